//! Differencing disks with any bitmaps, over a raw parent, against flat bytes.

use std::sync::Arc;

use cowhand_core::raw::Raw;
use cowhand_core::{Format, Kind, MemoryStorage, NoFiles, OpenOptions};
use proptest::prelude::*;

use super::{content, open, sign, small};

/// An image of `type_` whose blocks have these bitmaps: a block is `None` where it is not in the file. Sector `n` of the
/// child is filled with `n` and a mark.
fn image(type_: u8, lsb_first: bool, block_size: u64, sectors: u64, blocks: &[Option<Vec<u8>>]) -> Vec<u8> {
    let file = Arc::new(MemoryStorage::new());
    let layer = small(file.clone(), sectors * 512, block_size, true).unwrap();
    for (block, bitmap) in (0..).zip(blocks) {
        if bitmap.is_some() {
            for at in
                (block * block_size..(block + 1) * block_size).step_by(512).filter(|at| *at < sectors * 512)
            {
                layer.write(at, &child_sector(at / 512)).unwrap();
            }
        }
    }
    layer.close().unwrap();
    let mut bytes = file.to_vec();
    for (block, bitmap) in blocks.iter().enumerate() {
        if let Some(bitmap) = bitmap {
            let at = 1536 + 4 * block;
            let start = 512 * u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            bytes[start..start + bitmap.len()].copy_from_slice(bitmap);
        }
    }
    let end = bytes.len() - 512;
    for footer in [0, end] {
        bytes[footer + 63] = type_;
        if lsb_first {
            bytes[footer + 28..footer + 36].copy_from_slice(b"tap\0\0\x01\0\0");
        }
    }
    sign(&mut bytes);
    bytes
}

fn child_sector(n: u64) -> [u8; 512] {
    let mut sector = [n as u8; 512];
    sector[0] = 0xc1;
    sector
}

fn parent_sector(n: u64) -> [u8; 512] {
    let mut sector = [n as u8; 512];
    sector[0] = 0xbb;
    sector
}

fn bit(bitmap: &[u8], lsb_first: bool, n: u64) -> bool {
    let byte = bitmap[n as usize / 8];
    if lsb_first { byte >> (n % 8) & 1 == 1 } else { byte << (n % 8) & 0x80 != 0 }
}

/// Bitmaps of long runs, of single bits, and of ends inside a byte.
fn bitmaps() -> impl Strategy<Value = Vec<Option<Vec<u8>>>> {
    let byte = prop_oneof![Just(0u8), Just(0xff), any::<u8>()];
    proptest::collection::vec(proptest::option::of(proptest::collection::vec(byte, 4)), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn bit_0_is_the_parents_or_zero(
        blocks in bitmaps(),
        lsb_first: bool,
        differencing: bool,
        cut in 0u64..32,
        parent_sectors in 0u64..200,
    ) {
        let sectors = 32 * blocks.len() as u64 - cut;
        let type_ = if differencing { 4 } else { 3 };
        let file = Arc::new(MemoryStorage::from_bytes(&image(type_, lsb_first, 32 * 512, sectors, &blocks)));
        let child = open(file.clone()).unwrap();
        let parent: Vec<u8> = (0..parent_sectors).flat_map(parent_sector).collect();
        let present = |n: u64| {
            blocks[n as usize / 32].as_deref().is_some_and(|bitmap| bit(bitmap, lsb_first, n % 32))
        };
        let expected: Vec<u8> = (0..sectors)
            .flat_map(|n| match (present(n), differencing && n < parent_sectors) {
                (true, _) => child_sector(n),
                (false, true) => parent_sector(n),
                (false, false) => [0; 512],
            })
            .collect();

        let mut layers = vec![child.clone()];
        prop_assert_eq!(child.parent().is_some(), differencing);
        if differencing {
            prop_assert_eq!(child.parent().unwrap().format, None);
            let parent = Arc::new(MemoryStorage::from_bytes(&parent));
            layers.push(Raw.open(parent, &NoFiles, &OpenOptions::default()).unwrap());
        }
        prop_assert!(content(layers).unwrap() == expected);

        // Extents cover the disk, end where the kind changes, and say where the bytes stand.
        let mut at = 0;
        while at < child.size() {
            let found = child.extent(at, u64::MAX).unwrap();
            prop_assert!(found.len > 0 && at + found.len <= child.size());
            for n in at / 512..(at + found.len) / 512 {
                prop_assert_eq!(found.kind == Kind::Data, present(n));
                let free = blocks[n as usize / 32].is_none();
                prop_assert_eq!(found.kind == Kind::Hole, !present(n) && (free || differencing));
            }
            if let Some(host) = found.host {
                let mut bytes = vec![0; found.len as usize];
                cowhand_core::Storage::read_at(file.as_ref(), host, &mut bytes).unwrap();
                prop_assert!(bytes == expected[at as usize..(at + found.len) as usize]);
            }
            at += found.len;
        }
    }
}

#[test]
fn runs_may_end_inside_a_byte() {
    // As Windows wrote it: libvhdi takes sector 2 of the byte 0xcb from the child.
    let blocks = [Some(vec![0xcb, 0xa8, 0, 0])];
    let child = open(Arc::new(MemoryStorage::from_bytes(&image(4, false, 32 * 512, 32, &blocks)))).unwrap();
    let mut kinds = Vec::new();
    let mut at = 0;
    while at < child.size() {
        let found = child.extent(at, u64::MAX).unwrap();
        kinds.push((found.len / 512, found.kind == Kind::Data));
        at += found.len;
    }
    let expected = [
        (2, true),
        (2, false),
        (1, true),
        (1, false),
        (3, true),
        (1, false),
        (1, true),
        (1, false),
        (1, true),
        (19, false),
    ];
    assert_eq!(kinds, expected);
}
