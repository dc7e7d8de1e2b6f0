//! A kept index is believed only where it is whole, agrees with itself, and is the archive's.

use std::sync::Arc;

use cowhand_core::testing::Rng;
use cowhand_core::{ArchiveIndex, Archives, ErrorKind, Walk};
use md5::{Digest, Md5};

use super::build::{Archive, Order};
use super::index::storage;
use crate::Vma;

fn kept(archive: &[u8]) -> Vec<u8> {
    Vma.index(&mut Walk::new(storage(archive))).unwrap().to_bytes()
}

/// Puts the checksum right.
fn seal(kept: &mut [u8]) {
    let at = kept.len() - 16;
    let sum = Md5::digest(&kept[..at]);
    kept[at..].copy_from_slice(&sum);
}

#[test]
fn another_archive_is_refused() {
    let rng = &mut Rng::new(1);
    let mut archive = Archive::of(&[300_000], rng);
    let bytes = archive.build(Order::Straight, rng);
    let index = Vma.index_from(&kept(&bytes)).unwrap();
    assert!(index.clone().layer(storage(&bytes), 0).is_ok());
    let refused = |bytes: &[u8]| {
        let error = index.clone().layer(storage(bytes), 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch);
    };
    refused(&[&bytes[..], &[0]].concat());
    refused(&bytes[..bytes.len() - 4096]);
    refused(&[]);
    // The configuration is another, and nothing else.
    archive.configs[0].1[0] = b'C';
    let other = archive.build(Order::Straight, rng);
    assert_eq!(other.len(), bytes.len());
    refused(&other);
}

#[test]
fn changed_bytes_are_refused() {
    let rng = &mut Rng::new(2);
    let kept = kept(&Archive::of(&[300_000, 70_000], rng).build(Order::Jumps, rng));
    for at in 0..kept.len() {
        let mut bad = kept.clone();
        bad[at] ^= 1 << rng.below(8);
        assert_eq!(Vma.index_from(&bad).unwrap_err().kind(), ErrorKind::Corrupt, "byte {at}");
    }
    for cut in 0..kept.len() {
        assert!(Vma.index_from(&kept[..cut]).is_err(), "cut to {cut}");
    }
    assert!(Vma.index_from(&[&kept[..], &[0]].concat()).is_err());
}

#[test]
fn hostile_ones_lead_nowhere() {
    let rng = &mut Rng::new(3);
    let archive = Archive::of(&[300_000, 70_000], rng).build(Order::Jumps, rng);
    let kept = kept(&archive);
    let file = storage(&archive);
    // Behind the archive's header, which has a checksum of its own, and in the fields before it.
    let behind = kept.len() - 16;
    let lists = 44 + 12800;
    let mut taken = 0;
    for round in 0..5000 {
        let mut bad = kept.clone();
        for _ in 0..1 + rng.below(3) {
            let at = if rng.chance(1, 4) {
                rng.below(44) as usize
            } else {
                lists + rng.below((behind - lists) as u64) as usize
            };
            bad[at] = if rng.chance(1, 2) { bad[at] ^ 1 << rng.below(8) } else { rng.below(256) as u8 };
        }
        seal(&mut bad);
        let Ok(index) = Vma.index_from(&bad) else { continue };
        let index: Arc<dyn ArchiveIndex> = index;
        for disk in 0..2 {
            let Ok(layer) = index.clone().layer(file.clone(), disk) else { continue };
            taken += 1;
            let mut at = 0;
            while at < layer.size() {
                let mut buf = vec![0; (layer.size() - at).min(70_000) as usize];
                let read = layer.read(at, &mut buf).unwrap_or_else(|error| panic!("round {round}: {error}"));
                assert!(read.len > 0 && read.len <= buf.len() as u64);
                at += read.len;
            }
        }
    }
    assert!(taken > 100, "{taken}: nothing is tested");
}
