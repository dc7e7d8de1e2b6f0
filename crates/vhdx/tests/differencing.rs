//! Differencing images built by hand, alone and in chains: every payload state, sector bitmaps, both sector sizes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::{Build, DATA_WRITE, FULL, LINKAGE, MIB, PARTIAL, ZERO, chain, noise, open};
use cowhand_core::{Erase, Extent, Kind, Layer, MemoryStorage, Storage};

const PARENT: &[(&str, &str)] = &[("parent_linkage", LINKAGE), ("relative_path", r"..\p.vhdx")];

/// A raw disk of noise.
fn raw(bytes: &[u8]) -> Arc<dyn Layer> {
    let file = Arc::new(MemoryStorage::from_bytes(bytes));
    Arc::new(cowhand_core::raw::RawLayer::over(file, false).unwrap())
}

#[test]
fn the_parent_and_the_identity_are_told() {
    let child = Build::new(MIB, MIB, 512, Some(PARENT)).open().unwrap();
    let parent = child.parent().unwrap();
    assert_eq!(parent.candidates, [PathBuf::from("../p.vhdx")]);
    assert_eq!(parent.expected, [common::guid(LINKAGE).as_slice()]);
    assert_eq!(child.identity().0, Some(DATA_WRITE));
    assert_eq!(child.granule(), 512);
    assert_eq!(child.details().specific["subformat"], "differencing");
    assert_eq!(child.details().specific["creator"], "by hand");
    assert_eq!(Build::new(MIB, MIB, 4096, Some(PARENT)).open().unwrap().granule(), 4096);
    assert!(Build::new(MIB, MIB, 512, None).open().unwrap().parent().is_none());
}

#[test]
fn every_state_over_a_parent() {
    for (block, sector) in [(MIB, 512), (2 * MIB, 512), (MIB, 4096), (4 * MIB, 4096)] {
        // State, and whether the block keeps an offset: the parent shows, zeros, or the block's own bytes.
        let states: [(u64, bool, Option<u8>); 8] = [
            (0, false, None),
            (0, true, None),
            (1, false, Some(0)),
            (ZERO, true, Some(0)),
            (3, true, Some(0)),
            (5, false, Some(0)),
            (FULL, true, Some(1)),
            (PARTIAL, true, Some(2)),
        ];
        let size = block * states.len() as u64 - sector;
        let below = noise(size as usize, 1);
        let own = noise(block as usize, 2);
        let mut child = Build::new(size, block, sector, Some(PARENT));
        let mut expected = below.clone();
        let sectors = block / sector;
        let bitmap_at = child.room(MIB);
        for (n, (state, keeps, shows)) in states.into_iter().enumerate() {
            let mut entry = state;
            if keeps {
                let at = child.room(block);
                child.file.write_at(at, &own).unwrap();
                entry |= at;
            }
            child.set(n as u64, entry);
            let start = n * block as usize;
            let end = expected.len().min(start + block as usize);
            match shows {
                None => {}
                Some(0) => expected[start..end].fill(0),
                Some(1) => expected[start..end].copy_from_slice(&own[..end - start]),
                // Every third sector, and a long run from the middle on.
                _ => {
                    let mut bits = vec![0u8; (sectors / 8) as usize];
                    for bit in
                        (0..sectors).filter(|bit| bit % 3 == 0 || (sectors / 2..sectors - 9).contains(bit))
                    {
                        bits[(bit / 8) as usize] |= 1 << (bit % 8);
                        let at = (bit * sector) as usize;
                        let to = (start + at + sector as usize).min(end);
                        expected[start + at..to].copy_from_slice(&own[at..at + to - start - at]);
                    }
                    child.file.write_at(bitmap_at + n as u64 * sectors / 8, &bits).unwrap();
                    child.set_bitmap(0, bitmap_at | FULL);
                }
            }
        }
        let image = chain(vec![child.open().unwrap(), raw(&below)]);
        let mut all = vec![0xa5; size as usize];
        image.read(0, &mut all).unwrap();
        assert!(all == expected, "{block}-byte blocks, {sector}-byte sectors");
        // In odd pieces, and by extents.
        let mut at = 0;
        while at < size as usize {
            let n = (99_991).min(size as usize - at);
            image.read(at as u64, &mut all[..n]).unwrap();
            assert!(all[..n] == expected[at..at + n], "at {at}");
            at += n;
        }
        let child = child.open().unwrap();
        let mut at = 0;
        while at < size {
            let found = child.extent(at, size - at).unwrap();
            let range = at as usize..(at + found.len) as usize;
            match found.kind {
                Kind::Zero => assert!(expected[range].iter().all(|byte| *byte == 0)),
                Kind::Hole => assert!(expected[range.clone()] == below[range]),
                Kind::Data => {
                    let mut stored = vec![0; found.len as usize];
                    child.host().read_at(found.host.unwrap(), &mut stored).unwrap();
                    assert!(expected[range] == stored);
                }
            }
            at += found.len;
        }
    }
}

#[test]
fn the_second_chunk_has_its_own_bitmap() {
    // 256 MiB blocks of 512-byte sectors: 16 of them are a chunk.
    let (block, size) = (256 * MIB, 20 * 256 * MIB);
    let mut child = Build::new(size, block, 512, Some(PARENT));
    let bitmap = child.room(MIB);
    let place = child.room(block);
    child.set_bitmap(17, bitmap | FULL);
    child.set(17, place | PARTIAL);
    // Block 17 is the chunk's second: its last sector, and one in the middle.
    let bits_at = bitmap + 65536;
    child.file.write_at(bits_at + 65535, &[0x80]).unwrap();
    child.file.write_at(bits_at + 40000, &[0x04]).unwrap();
    child.file.write_at(place + block - 512, &[9; 512]).unwrap();
    let layer = child.open().unwrap();
    let start = 17 * block;
    let middle = (40000 * 8 + 2) * 512;
    let hole = |at: u64, max: u64| layer.extent(at, max).unwrap();
    assert_eq!(hole(0, size), Extent::hole(start));
    assert_eq!(hole(start, size), Extent::hole(middle));
    assert_eq!(hole(start + middle + 100, size), Extent::data(412, Some(place + middle + 100)));
    assert_eq!(hole(start + middle + 512, size), Extent::hole(block - 1024 - middle));
    let mut last = [0; 600];
    assert_eq!(layer.read(start + block - 512, &mut last).unwrap().len, 512);
    assert_eq!(last[..513], [[9; 512].as_slice(), &[0]].concat());
    assert_eq!(hole(start + block, size), Extent::hole(2 * block));
}

#[test]
fn children_stand_on_children_of_other_shapes_and_sizes() {
    let base = noise(3 * MIB as usize, 1);
    // A 4096-byte middle of 4 MiB blocks over the base; a 512-byte top of 1 MiB blocks, larger than both.
    let mut middle = Build::new(4 * MIB, 4 * MIB, 4096, Some(PARENT));
    let (bitmap, place) = (middle.room(MIB), middle.room(4 * MIB));
    middle.set_bitmap(0, bitmap | FULL);
    middle.set(0, place | PARTIAL);
    middle.file.write_at(bitmap, &[0b10]).unwrap();
    middle.file.write_at(place + 4096, &[7; 4096]).unwrap();
    let mut top = Build::new(6 * MIB, MIB, 512, Some(PARENT));
    let place = top.room(MIB);
    top.set(1, place | FULL);
    top.set(5, ZERO);
    top.file.write_at(place, &[8; MIB as usize]).unwrap();
    let image = chain(vec![top.open().unwrap(), middle.open().unwrap(), raw(&base)]);
    let mut expected = base.clone();
    expected.resize(6 * MIB as usize, 0);
    expected[4096..8192].fill(7);
    expected[MIB as usize..2 * MIB as usize].fill(8);
    let mut all = vec![1; 6 * MIB as usize];
    image.read(0, &mut all).unwrap();
    assert!(all == expected);
}

#[test]
fn states_of_a_disk_without_a_parent() {
    let mut disk = Build::new(10 * MIB, MIB, 512, None);
    for (block, entry) in [(1, 1), (2, ZERO), (3, 3), (4, 5), (7, 9 * MIB)] {
        disk.set(block, entry);
    }
    let (a, b) = (disk.room(MIB), disk.room(MIB));
    disk.file.write_at(a, &noise(2 * MIB as usize, 3)).unwrap();
    disk.set(5, a | FULL);
    disk.set(6, b | FULL);
    let layer = disk.open().unwrap();
    let kinds = |at: u64| layer.extent(at, u64::MAX).unwrap();
    assert_eq!(kinds(0), Extent::hole(MIB));
    assert_eq!(kinds(MIB + 5), Extent::zero(4 * MIB - 5));
    // Blocks that stand one behind the other are one extent.
    assert_eq!(kinds(5 * MIB + 5), Extent::data(2 * MIB - 5, Some(a + 5)));
    assert_eq!(kinds(7 * MIB), Extent::hole(3 * MIB));
    assert!(layer.write(0, &[0]).is_err() && layer.erase(0, 512, Erase::Zero).is_err());
}

#[test]
fn fixed_blocks_that_are_not_present_read_zero() {
    let disk = Build::new(2 * MIB, MIB, 512, None);
    disk.file.write_at(common::METADATA_AT + (64 << 10) + 4, &[1]).unwrap();
    let layer = open(disk.file).unwrap();
    assert_eq!(layer.details().specific["subformat"], "fixed");
    assert_eq!(chain(vec![layer]).extent(0, 2 * MIB).unwrap().kind, Kind::Hole);
}
