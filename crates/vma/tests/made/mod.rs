//! Archives for the tests, byte for byte: whole ones, and ones that break any rule.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)] // Each test file uses a part of it, and panics where it must.

use cowhand_core::{ArchiveSource, Archives, Body, Manifest, Reading, Result};
use cowhand_vma::Vma;
use md5::{Digest, Md5};

pub const CLUSTER: usize = 65536;
pub const BLOCK: usize = 4096;
pub const UUID: [u8; 16] = *b"0123456789abcdef";

/// A cluster: its device, its number, which blocks of it are stored, and these.
#[derive(Clone, Debug)]
pub struct Slot {
    pub dev: u8,
    pub cluster: u32,
    pub mask: u16,
    pub data: Vec<u8>,
}

/// Whose bytes tell which they are.
pub fn pattern(dev: u8, cluster: u32, block: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    for word in 0..(BLOCK / 8) as u32 {
        bytes.extend_from_slice(&[dev, 0xa5, block as u8, (word % 251) as u8]);
        bytes.extend_from_slice(&cluster.to_le_bytes());
    }
    bytes
}

pub fn slot(dev: u8, cluster: u32, mask: u16) -> Slot {
    let blocks = (0..16).filter(|bit| mask >> bit & 1 == 1);
    Slot { dev, cluster, mask, data: blocks.flat_map(|bit| pattern(dev, cluster, bit)).collect() }
}

/// The extent of these clusters.
pub fn extent(slots: &[Slot]) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    bytes[..4].copy_from_slice(b"VMAE");
    let count: u32 = slots.iter().map(|slot| slot.mask.count_ones()).sum();
    bytes[6..8].copy_from_slice(&(count as u16).to_be_bytes());
    bytes[8..24].copy_from_slice(&UUID);
    for (at, slot) in (40..).step_by(8).zip(slots) {
        bytes[at..at + 2].copy_from_slice(&slot.mask.to_be_bytes());
        bytes[at + 3] = slot.dev;
        bytes[at + 4..at + 8].copy_from_slice(&slot.cluster.to_be_bytes());
    }
    seal_extent(&mut bytes);
    slots.iter().for_each(|slot| bytes.extend_from_slice(&slot.data));
    bytes
}

/// Puts the right checksum into an extent's header.
pub fn seal_extent(extent: &mut [u8]) {
    extent[24..40].fill(0);
    let sum: [u8; 16] = Md5::digest(&extent[..512]).into();
    extent[24..40].copy_from_slice(&sum);
}

/// Puts the right checksum into a header.
pub fn seal_header(header: &mut [u8]) {
    let len = u32::from_be_bytes(header[56..60].try_into().unwrap()) as usize;
    header[32..48].fill(0);
    let sum: [u8; 16] = Md5::digest(&header[..len]).into();
    header[32..48].copy_from_slice(&sum);
}

pub fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

pub fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// The header of an archive with these configurations and devices.
pub fn header(configs: &[(&str, &[u8])], devices: &[(u8, &str, u64)]) -> Vec<u8> {
    let mut blobs = vec![0];
    let mut blob = |bytes: &[u8]| {
        let at = blobs.len() as u32;
        blobs.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        blobs.extend_from_slice(bytes);
        at
    };
    let mut bytes = vec![0; 12288];
    for (number, (name, data)) in configs.iter().enumerate() {
        put32(&mut bytes, 2044 + 4 * number, blob(format!("{name}\0").as_bytes()));
        put32(&mut bytes, 3068 + 4 * number, blob(data));
    }
    for (dev, name, size) in devices {
        let at = 4096 + 32 * usize::from(*dev);
        put32(&mut bytes, at, blob(format!("{name}\0").as_bytes()));
        bytes[at + 8..at + 16].copy_from_slice(&size.to_be_bytes());
    }
    bytes[..4].copy_from_slice(b"VMA\0");
    put32(&mut bytes, 4, 1);
    bytes[8..24].copy_from_slice(&UUID);
    bytes[24..32].copy_from_slice(&1_700_000_000_i64.to_be_bytes());
    let len = 12288 + blobs.len().next_multiple_of(512);
    put32(&mut bytes, 48, 12288);
    put32(&mut bytes, 52, blobs.len() as u32);
    put32(&mut bytes, 56, len as u32);
    bytes.extend_from_slice(&blobs);
    bytes.resize(len, 0);
    seal_header(&mut bytes);
    bytes
}

/// Disks as flat bytes; `None`: did not come.
pub type Disks = Vec<Vec<Option<u8>>>;

/// What was read of an archive.
#[derive(Debug)]
pub struct Taken {
    pub manifest: Manifest,
    pub disks: Disks,
    /// Of each disk, what is missing.
    pub missing: Vec<Vec<std::ops::Range<u64>>>,
    pub faults: Vec<(Option<u64>, String)>,
    pub chunks: usize,
}

/// Takes all chunks, and sees that none comes twice and that what is missing is what did not come.
pub fn take(mut source: Box<dyn ArchiveSource + '_>) -> Result<Taken> {
    let manifest = source.manifest().clone();
    let mut disks: Disks = manifest.disks.iter().map(|disk| vec![None; disk.size as usize]).collect();
    let mut chunks = 0;
    while let Some(chunk) = source.next()? {
        chunks += 1;
        let disk = &mut disks[chunk.disk as usize];
        let (at, len) = match chunk.body {
            Body::Bytes(bytes) => (chunk.at as usize, bytes.len()),
            Body::Zero(len) => (chunk.at as usize, len as usize),
        };
        if manifest.disks[chunk.disk as usize].memory && disk.len() < at + len {
            disk.resize(at + len, None);
        }
        for (i, byte) in disk[at..at + len].iter_mut().enumerate() {
            assert_eq!(*byte, None, "disk {} at {} comes twice", chunk.disk, at + i);
            *byte = Some(match chunk.body {
                Body::Bytes(bytes) => bytes[i],
                Body::Zero(_) => 0,
            });
        }
    }
    assert!(source.next()?.is_none(), "the end is the end");
    let mut missing = Vec::new();
    for (number, disk) in disks.iter().enumerate() {
        let mut ranges = Vec::new();
        source.missing(number as u32, &mut |range| {
            ranges.push(range);
            Ok(())
        })?;
        let mut absent = Vec::new();
        for (at, _) in disk.iter().enumerate().filter(|(_, byte)| byte.is_none()) {
            let at = at as u64;
            match absent.last_mut() {
                Some(std::ops::Range { end, .. }) if *end == at => *end += 1,
                _ => absent.push(at..at + 1),
            }
        }
        if !manifest.disks[number].memory {
            assert_eq!(ranges, absent, "what is missing of disk {number}");
        }
        missing.push(ranges);
    }
    let faults = source.faults();
    assert_eq!(faults.count as usize, faults.list.len());
    let faults = faults.list.iter().map(|fault| (fault.at, fault.message.clone())).collect();
    Ok(Taken { manifest, disks, missing, faults, chunks })
}

pub fn read(bytes: &[u8], how: Reading) -> Result<Taken> {
    take(Vma.read(Box::new(bytes), how)?)
}

/// The error of an archive that breaks a rule.
pub fn refused(bytes: &[u8]) -> String {
    match read(bytes, Reading::Strict) {
        Ok(_) => panic!("it was read"),
        Err(error) => error.to_string(),
    }
}
