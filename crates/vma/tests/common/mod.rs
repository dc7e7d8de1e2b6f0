//! A decoder for the tests of the writer: from bytes alone, as strict as can be, sharing nothing with the crate.

#![allow(clippy::unwrap_used)]

use md5::{Digest, Md5};

pub(crate) const CLUSTER: usize = 65536;
const BLOCK: usize = 4096;

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub uuid: [u8; 16],
    pub time: i64,
    pub configs: Vec<(String, Vec<u8>)>,
    /// dev_id, name, disk.
    pub disks: Vec<(u8, String, Vec<u8>)>,
    /// Slots used and blocks stored, by extent.
    pub extents: Vec<(usize, usize)>,
    /// (dev_id, cluster, mask) as they come.
    pub clusters: Vec<(u8, u32, u16)>,
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

fn md5_without(bytes: &[u8], at: usize) -> [u8; 16] {
    let mut bytes = bytes.to_vec();
    bytes[at..at + 16].fill(0);
    Md5::digest(&bytes).into()
}

/// The front: (header's length, what it says, sizes of the disks).
pub(crate) fn front(file: &[u8]) -> (usize, Decoded, Vec<u64>) {
    assert_eq!(&file[..4], b"VMA\0");
    assert_eq!(number(file, 4, 4), 1);
    let (offset, len) = (number(file, 48, 4) as usize, number(file, 52, 4) as usize);
    let header = number(file, 56, 4) as usize;
    assert_eq!(offset, 12288);
    assert!(header > 12288 && header.is_multiple_of(512) && header <= 512 << 10, "{header}");
    assert!(offset + len <= header && header - (offset + len) < 512, "{offset} {len} {header}");
    assert_eq!(md5_without(&file[..header], 32), file[32..48]);
    assert!(file[60..2044].iter().chain(&file[4092..4128]).all(|byte| *byte == 0), "reserved");
    assert!(file[offset + len..header].iter().all(|byte| *byte == 0), "padding");

    let blobs = &file[offset..offset + len];
    assert_eq!(blobs[0], 0);
    let mut records = Vec::new();
    let mut at = 1;
    while at < blobs.len() {
        let len = usize::from(u16::from_le_bytes([blobs[at], blobs[at + 1]]));
        records.push((at as u64, blobs[at + 2..at + 2 + len].to_vec()));
        at += 2 + len;
    }
    assert_eq!(at, blobs.len());
    let mut records = records.into_iter();
    // In the order in which they stand: each is used once.
    let mut blob = |pointer: u64| {
        let (at, bytes) = records.next().unwrap();
        assert_eq!(at, pointer);
        bytes
    };
    let name = |mut bytes: Vec<u8>| {
        assert_eq!(bytes.pop(), Some(0));
        String::from_utf8(bytes).unwrap()
    };
    let mut found = Decoded::default();
    found.uuid.copy_from_slice(&file[8..24]);
    found.time = number(file, 24, 8) as i64;
    for index in 0..256 {
        match (number(file, 2044 + 4 * index, 4), number(file, 3068 + 4 * index, 4)) {
            (0, 0) => {}
            (names, data) => {
                assert_eq!(found.configs.len(), index);
                let names = name(blob(names));
                found.configs.push((names, blob(data)));
            }
        }
    }
    let mut sizes = Vec::new();
    for device in 0..256 {
        let at = 4096 + 32 * device;
        let (pointer, size) = (number(file, at, 4), number(file, at + 8, 8));
        assert_eq!(number(file, at + 4, 4) | number(file, at + 16, 8) | number(file, at + 24, 8), 0);
        if size > 0 {
            assert!((1..=254).contains(&device));
            sizes.push(size);
            found.disks.push((device as u8, name(blob(pointer)), Vec::new()));
        }
    }
    assert_eq!(records.next(), None);
    (header, found, sizes)
}

/// The whole archive, of small disks.
pub(crate) fn decode(file: &[u8]) -> Decoded {
    let (mut at, mut found, sizes) = front(file);
    let mut came: Vec<Vec<bool>> = Vec::new();
    for ((_, _, disk), size) in found.disks.iter_mut().zip(&sizes) {
        disk.resize(*size as usize, 0xaa);
        came.push(vec![false; disk.len().div_ceil(CLUSTER)]);
    }
    while at < file.len() {
        let header = &file[at..at + 512];
        assert_eq!(&header[..4], b"VMAE", "at {at}");
        assert_eq!(number(header, 4, 2), 0);
        assert_eq!(header[8..24], found.uuid);
        assert_eq!(md5_without(header, 24), header[24..40]);
        at += 512;
        let (mut slots, mut blocks) = (0, 0);
        for slot in header[40..].chunks(8) {
            let (mask, dev_id, cluster) = (number(slot, 0, 2) as u16, slot[3], number(slot, 4, 4) as u32);
            assert_eq!(slot[2], 0);
            if dev_id == 0 {
                assert_eq!(slot, [0; 8]);
                continue;
            }
            slots += 1;
            found.clusters.push((dev_id, cluster, mask));
            let index = found.disks.iter().position(|(number, ..)| *number == dev_id).unwrap();
            let (_, name, disk) = &mut found.disks[index];
            assert!(!std::mem::replace(&mut came[index][cluster as usize], true), "{name} {cluster} twice");
            for bit in 0..16 {
                let start = cluster as usize * CLUSTER + bit * BLOCK;
                let end = (start + BLOCK).min(disk.len());
                if mask >> bit & 1 == 0 {
                    assert_ne!(name, "vmstate");
                    if start < end {
                        disk[start..end].fill(0);
                    }
                    continue;
                }
                let block = &file[at..at + BLOCK];
                at += BLOCK;
                blocks += 1;
                if name != "vmstate" {
                    assert!(start < end, "a block past the end");
                    assert!(block.iter().any(|byte| *byte != 0), "a zero block");
                }
                if start < end {
                    disk[start..end].copy_from_slice(&block[..end - start]);
                }
                assert!(block[end.saturating_sub(start).min(BLOCK)..].iter().all(|byte| *byte == 0));
            }
        }
        assert_eq!(number(header, 6, 2), blocks as u64);
        found.extents.push((slots, blocks));
    }
    assert!(came.iter().flatten().all(|came| *came), "a cluster did not come");
    // Extents are full but for the last.
    assert!(found.extents.iter().rev().skip(1).all(|(slots, _)| *slots == 59));
    let memory: Vec<u32> = {
        let number = found.disks.iter().find(|(_, name, _)| name == "vmstate").map(|(number, ..)| *number);
        found.clusters.iter().filter(|(id, ..)| Some(*id) == number).map(|(_, cluster, _)| *cluster).collect()
    };
    assert!(memory.iter().enumerate().all(|(at, cluster)| at == *cluster as usize), "memory in order");
    found
}
