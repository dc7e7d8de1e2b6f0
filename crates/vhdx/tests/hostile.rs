//! Files that break one rule each: a clear error, at once, and never other bytes than the guest's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{
    BAT_AT, BLOCKS_AT, Build, FULL, LINKAGE, METADATA_AT, MIB, PARTIAL, chain, open, read_all, sealed,
};
use cowhand_core::{ErrorKind, Format, Kind, MemoryStorage, Probe, Storage};
use cowhand_vhdx::Vhdx;

const PARENT: &[(&str, &str)] = &[("parent_linkage", LINKAGE), ("relative_path", "p.vhdx")];

fn plain() -> Build {
    Build::new(4 * MIB, MIB, 512, None)
}

fn put(build: &Build, at: u64, bytes: &[u8]) {
    build.file.write_at(at, bytes).unwrap();
}

/// Changes a structure that has a checksum, and sets that right.
fn patch(build: &Build, at: u64, len: usize, change: impl FnOnce(&mut [u8])) {
    let mut bytes = vec![0; len];
    build.file.read_at(at, &mut bytes).unwrap();
    change(&mut bytes);
    put(build, at, &sealed(bytes));
}

/// Opening fails and says this.
fn refused(build: &Build, says: &str) {
    let before = build.file.to_vec();
    let error = build.open().expect_err(says);
    assert!(error.to_string().contains(says), "'{error}' does not say '{says}'");
    assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported));
    assert!(build.file.to_vec() == before);
}

#[test]
fn a_good_one_opens() {
    assert_eq!(read_all(plain().file).unwrap(), vec![0; 4 * MIB as usize]);
    let mut head = [0; 4096];
    plain().file.read_at(0, &mut head).unwrap();
    assert_eq!(Vhdx.probe(&head, &MemoryStorage::new()), Probe::Sure);
    assert_eq!(Vhdx.probe(&head[..7], &MemoryStorage::new()), Probe::No);
}

#[test]
fn headers() {
    let build = plain();
    put(&build, 3, b"X");
    refused(&build, "'vhdxfile'");
    let build = plain();
    put(&build, (64 << 10) + 4095, &[1]);
    assert!(build.open().is_ok());
    put(&build, (128 << 10) + 4095, &[1]);
    refused(&build, "neither copy");
    let build = plain();
    patch(&build, 128 << 10, 4096, |header| header[8] = 4);
    patch(&build, 128 << 10, 4096, |header| header[16] = 9);
    refused(&build, "same sequence number");
    let build = plain();
    patch(&build, 64 << 10, 4096, |header| header[66] = 2);
    refused(&build, "version 2");
    // A log that is pending, and empty.
    let build = plain();
    patch(&build, 64 << 10, 4096, |header| header[48] = 1);
    refused(&build, "nothing in it is whole");
    patch(&build, 64 << 10, 4096, |header| header[64] = 1);
    refused(&build, "log version 1");
    let build = plain();
    patch(&build, 64 << 10, 4096, |header| header[72..80].copy_from_slice(&(2 * MIB).to_le_bytes()));
    refused(&build, "overlap");
}

#[test]
fn region_tables() {
    let first = 192 << 10;
    let build = plain();
    put(&build, first + 65535, &[1]);
    assert!(build.open().is_ok(), "the second copy");
    put(&build, (256 << 10) + 65535, &[1]);
    refused(&build, "neither copy");
    let entry = |change: &dyn Fn(&mut [u8])| {
        let build = plain();
        patch(&build, first, 65536, |table| change(&mut table[16..]));
        build
    };
    refused(&entry(&|entry| entry[24..28].copy_from_slice(&(64 * MIB as u32).to_le_bytes())), "past the end");
    refused(&entry(&|entry| entry[16] = 1), "whole MiB");
    refused(&entry(&|entry| entry[0] = 0), "is required and not known");
    refused(&entry(&|entry| entry.copy_within(32..64, 0)), "twice");
}

#[test]
fn metadata() {
    let item = METADATA_AT + (64 << 10);
    for (at, bytes, says) in [
        (METADATA_AT, &b"X"[..], "no signature"),
        (METADATA_AT + 10, &[0, 8], "2048 entries"),
        (METADATA_AT + 32, &[0], "is required and not known"),
        (METADATA_AT + 32 + 19, &[1], "cannot lie there"),
        (item, &[1], "block size"),
        (item + 3, &[0x40], "block size"),
        (item + 4, &[2], "parent locator"),
        (item + 8, &[1], "no multiple"),
        (item + 8 + 7, &[1], "64 TiB"),
        (item + 32, &[1], "logical sector size"),
        (item + 36, &[1], "physical sector size"),
    ] {
        let build = plain();
        put(&build, at, bytes);
        refused(&build, says);
    }
    // A BAT region of 1 MiB holds 131072 entries, no more.
    assert!(Build::new(127 << 30, MIB, 512, None).open().is_ok());
    refused(&Build::new(128 << 30, MIB, 512, None), "too few");
    let locator = item + 40;
    for (at, bytes, says) in [
        (locator, &[0][..], "type"),
        (locator + 18, &[0], "no parent_linkage"),
        (locator + 23, &[1], "cannot lie there"),
    ] {
        let build = Build::new(MIB, MIB, 512, Some(PARENT));
        assert!(build.open().is_ok());
        put(&build, at, bytes);
        refused(&build, says);
    }
}

#[test]
fn entries_are_judged_when_they_are_used() {
    for (entry, says) in [
        (4, "state 4"),
        (BLOCKS_AT | PARTIAL, "no parent"),
        (BLOCKS_AT | FULL | 8, "reserved"),
        ((64 * MIB) | FULL, "end of the file"),
        (u64::MAX << 20 | FULL, "end of the file"),
        (FULL, "the header section"),
        (MIB | FULL, "the log"),
        (METADATA_AT | FULL, "the metadata region"),
        (BAT_AT | FULL, "the BAT region"),
    ] {
        let mut build = plain();
        build.room(MIB);
        build.set(2, entry);
        let image = chain(vec![build.open().unwrap()]);
        let mut buf = vec![1; MIB as usize];
        image.read(MIB, &mut buf).unwrap();
        let error = image.read(2 * MIB, &mut buf).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(says), "{error}");
        assert!(error.to_string().contains(&format!("at offset {}", build.entry_at(2))), "{error}");
        // The run before it ends there; what comes behind is read.
        assert_eq!(image.extent(0, 4 * MIB).unwrap().len, 2 * MIB);
        assert!(image.extent(2 * MIB, 1).is_err());
        image.read(3 * MIB, &mut buf).unwrap();
    }
}

#[test]
fn a_block_cut_short_is_an_error_unless_the_disk_ends_before() {
    let mut build = Build::new(3 * MIB - 512, 2 * MIB, 512, None);
    let place = build.room(2 * MIB);
    build.set(1, place | FULL);
    build.file.set_len(place + MIB - 512).unwrap();
    assert_eq!(chain(vec![build.open().unwrap()]).extent(2 * MIB, MIB).unwrap().host, Some(place));
    build.file.set_len(place + MIB - 513).unwrap();
    assert!(read_all(build.file).unwrap_err().to_string().contains("near the end of the file"));
}

#[test]
fn sector_bitmaps() {
    for (entry, says) in [
        (0, "names no bitmap"),
        (BLOCKS_AT | PARTIAL, "cannot have"),
        (BLOCKS_AT | FULL | 8, "reserved"),
        ((64 * MIB) | FULL, "end of the file"),
        (BAT_AT | FULL, "the BAT region"),
    ] {
        let mut build = Build::new(MIB, MIB, 512, Some(PARENT));
        let place = build.room(MIB);
        build.set(0, place | PARTIAL);
        build.set_bitmap(0, entry);
        let error = build.open().unwrap().extent(0, 512).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

/// Any prefix of a good file opens or says why not, and no byte that is changed makes a panic or other guest bytes
/// without an error where they are covered by a checksum.
#[test]
fn cut_and_damaged_files() {
    let build = plain();
    let mut whole = build.file.to_vec();
    for len in [0, 1, 8, 519, 520, 65536, 70000, 196608, 300000, MIB, 2 * MIB + 100, 3 * MIB, 4 * MIB - 1] {
        let cut = Arc::new(MemoryStorage::from_bytes(&whole[..len as usize]));
        let error = open(cut).expect_err("cut");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{len}: {error}");
    }
    // Bits of the structures, flipped one at a time.
    let spots =
        (0..600).chain(65536..65636).chain(131072..131172).chain(196608..196700).chain(262144..262236);
    let spots = spots
        .chain(2 * 1048576..2 * 1048576 + 232)
        .chain(2 * 1048576 + 65536..2 * 1048576 + 65580)
        .chain(3 * 1048576..3 * 1048576 + 40);
    let file = Arc::new(MemoryStorage::from_bytes(&whole));
    for at in spots {
        for bit in [0, 5, 7] {
            whole[at] ^= 1 << bit;
            file.write_at(at as u64, &whole[at..=at]).unwrap();
            if let Ok(layer) = open(file.clone())
                && layer.size() > 0
            {
                let _ = layer.details();
                let mut at = 0;
                while let Ok(found) = layer.extent(at, layer.size() - at) {
                    at += found.len;
                    if at >= layer.size() {
                        break;
                    }
                }
            }
            whole[at] ^= 1 << bit;
            file.write_at(at as u64, &whole[at..=at]).unwrap();
        }
    }
}

#[test]
fn huge_empty_disks_cost_nothing() {
    let since = Instant::now();
    // 64 TiB in 1 MiB blocks: a BAT of 512 MiB, in a sparse file.
    let file = Arc::new(MemoryStorage::new());
    common::create(file.clone(), 64 << 40, &[("block_size", "1M"), ("block_state_zero", "off")])
        .unwrap()
        .close()
        .unwrap();
    let layer = open(file).unwrap();
    let found = layer.extent(0, u64::MAX).unwrap();
    assert_eq!((found.kind, found.len), (Kind::Hole, 64 << 40));
    // 1 TiB, made as it is by default, and its blocks say that they are zero.
    let file = Arc::new(MemoryStorage::new());
    common::create(file.clone(), 1 << 40, &[]).unwrap().close().unwrap();
    assert!(file.len().unwrap() <= 5 * MIB);
    let found = open(file).unwrap().extent(0, u64::MAX).unwrap();
    assert_eq!((found.kind, found.len), (Kind::Zero, 1 << 40));
    // Fixed: all of it is there, and is a hole of the file.
    let file = Arc::new(MemoryStorage::new());
    common::create(file.clone(), 1 << 40, &[("subformat", "fixed")]).unwrap().close().unwrap();
    let found = open(file).unwrap().extent(0, u64::MAX).unwrap();
    assert_eq!((found.kind, found.len), (Kind::Zero, 1 << 40));
    assert!(found.host.is_some());
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
}
