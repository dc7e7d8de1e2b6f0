//! Images that are there, written in place: under core's benches, and what becomes of their blocks.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::crash::{CONFIGURATIONS, Configuration, below, make};
use common::{
    Build, FULL, LINKAGE, MIB, PARTIAL, ZERO, chain, create_options, noise, open, parent_of, reopen, stamped,
};
use cowhand_core::testing::{FaultTest, ModelTest, RaceTest, Rng, Shape};
use cowhand_core::{CreateOptions, Erase, ErrorKind, Format, Kind, MemoryStorage, NoFiles, Storage};
use cowhand_vhdx::Vhdx;

fn shape(how: &Configuration) -> Shape {
    Shape { ops: 40, max_len: 65536, ..Shape::new(how.size, how.block) }
}

#[test]
fn they_behave_like_a_flat_vector() {
    for how in CONFIGURATIONS {
        for seed in 0..2 {
            let test = ModelTest::new(|file| make(file, how), reopen).shape(shape(how)).seed(seed);
            let test = if how.sort.is_child() { test.parent(below(how, seed)) } else { test };
            test.run().unwrap_or_else(|failure| panic!("{how:?}: {failure}"));
        }
    }
}

#[test]
fn threads_leave_each_other_alone() {
    for how in CONFIGURATIONS {
        let test = RaceTest::new(|file| make(file, how), reopen).unit(how.block);
        let test = test.time(Duration::from_millis(60));
        let test = if how.sort.is_child() { test.parent(below(how, 0)) } else { test };
        test.run().unwrap_or_else(|failure| panic!("{how:?}: {failure}"));
    }
}

#[test]
fn each_failure_is_an_error_and_loses_nothing() {
    for how in CONFIGURATIONS {
        let shape = Shape { ops: 14, max_len: 8192, ..shape(how) };
        let test = FaultTest::new(|file| make(file, how), reopen).shape(shape).every(5).seed(3);
        let test = if how.sort.is_child() { test.parent(below(how, 1)) } else { test };
        let counts = test.run().unwrap_or_else(|failure| panic!("{how:?}: {failure}"));
        assert!(counts.errors > 10, "{how:?}: {counts:?}");
    }
}

/// A dynamic disk of 16 blocks of 1 MiB.
fn image() -> Build {
    Build::new(16 * MIB, MIB, 512, None)
}

fn word(build: &Build, at: u64) -> u64 {
    let mut bytes = [0; 8];
    build.file.read_at(at, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

fn entry(build: &Build, block: u64) -> u64 {
    word(build, build.entry_at(block))
}

/// FileWriteGuid and DataWriteGuid of the header that counts, and whether its log is empty.
fn guids(build: &Build) -> ([u8; 16], [u8; 16], bool) {
    let header = |at: u64| {
        let mut bytes = vec![0; 4096];
        build.file.read_at(at, &mut bytes).unwrap();
        bytes
    };
    let sequence = |header: &[u8]| u64::from_le_bytes(header[8..16].try_into().unwrap());
    let (one, two) = (header(64 << 10), header(128 << 10));
    let current = if sequence(&one) > sequence(&two) { one } else { two };
    (current[16..32].try_into().unwrap(), current[32..48].try_into().unwrap(), current[48..64] == [0; 16])
}

#[test]
fn every_state_becomes_a_block_when_it_is_written() {
    // Offsets say nothing in the first three; that of an unmapped one is its own, and is left alone.
    for state in [0, 9 * MIB, 1, (9 * MIB) | 1, ZERO, (9 * MIB) | ZERO, 3, 5] {
        let mut build = image();
        build.set(2, state);
        let kept = build.room(MIB);
        build.file.write_at(kept, &[0xee; MIB as usize]).unwrap();
        build.set(3, kept | FULL);
        let layer = reopen(build.file.clone()).unwrap();
        layer.write(2 * MIB + 700, &[7; 100]).unwrap();
        layer.close().unwrap();
        let mut all = vec![0; 16 * MIB as usize];
        all[2 * MIB as usize + 700..][..100].fill(7);
        all[3 * MIB as usize..][..MIB as usize].fill(0xee);
        assert!(common::read_all(build.file.clone()).unwrap() == all, "{state:#x}");
        assert_eq!(entry(&build, 2), (5 * MIB) | FULL, "{state:#x}");
        assert!(guids(&build).2);
    }
    // The place that an unmapped block keeps is nobody else's.
    let mut build = image();
    let kept = build.room(MIB);
    build.file.write_at(kept, &[0xee; MIB as usize]).unwrap();
    build.set(2, kept | 3);
    let layer = reopen(build.file.clone()).unwrap();
    for block in [1, 2, 5] {
        layer.write(block * MIB, &[1]).unwrap();
    }
    layer.close().unwrap();
    assert_eq!([1, 2, 5].map(|block| entry(&build, block)), [5, 6, 7].map(|mib| (mib * MIB) | FULL));
}

#[test]
fn guids_change_with_the_first_write_and_not_before() {
    let mut build = image();
    let place = build.room(MIB);
    build.set(0, place | FULL);
    let before = guids(&build);
    let bytes = build.file.to_vec();
    let layer = reopen(build.file.clone()).unwrap();
    let next = layer.next_identity().unwrap().unwrap();
    layer.flush().unwrap();
    // What is so already is no change.
    assert_eq!(layer.erase(3 * MIB + 512, 512, Erase::Reveal).unwrap(), 512);
    layer.close().unwrap();
    assert!(build.file.to_vec() == bytes);
    assert_eq!(layer.write(0, &[1]).unwrap_err().kind(), ErrorKind::Denied);

    let layer = reopen(build.file.clone()).unwrap();
    let other = layer.next_identity().unwrap().unwrap();
    assert_ne!(next, other);
    assert_eq!(layer.identity().0, Some(before.1));
    layer.write(5, &[1]).unwrap();
    // Before a byte of the guest's changes, and durable.
    assert_eq!((layer.identity().0, layer.next_identity().unwrap()), (Some(other), Some(other)));
    assert_eq!((guids(&build).1, guids(&build).0 == before.0), (other, false));
    layer.write(MIB, &[1]).unwrap();
    layer.flush().unwrap();
    assert!(!guids(&build).2, "the log is in use");
    layer.close().unwrap();
    assert_eq!((guids(&build).1, guids(&build).2), (other, true));
}

#[test]
fn freed_places_are_used_again_when_that_is_durable() {
    let mut build = image();
    for block in [0, 1, 15] {
        let place = build.room(MIB);
        build.file.write_at(place, &noise(MIB as usize, block)).unwrap();
        build.set(block, place | FULL);
    }
    let mut all = common::read_all(build.file.clone()).unwrap();
    let layer = reopen(build.file.clone()).unwrap();
    assert_eq!(layer.erase(MIB, MIB, Erase::Free).unwrap(), MIB);
    assert_eq!(layer.extent(MIB, MIB).unwrap().kind, Kind::Zero);
    all[MIB as usize..][..MIB as usize].fill(0);
    // Not before: a power cut would show the one's bytes in the other.
    layer.write(5 * MIB + 600, &[7; 100]).unwrap();
    layer.flush().unwrap();
    assert_eq!((entry(&build, 1), entry(&build, 5)), (ZERO, (7 * MIB) | FULL));
    layer.write(6 * MIB + 600, &[8; 100]).unwrap();
    layer.flush().unwrap();
    assert_eq!(entry(&build, 6), (5 * MIB) | FULL);
    all[5 * MIB as usize + 600..][..100].fill(7);
    all[6 * MIB as usize + 600..][..100].fill(8);
    // A file whose end is free ends before.
    layer.erase(5 * MIB, MIB, Erase::Reveal).unwrap();
    all[5 * MIB as usize..][..MIB as usize].fill(0);
    layer.close().unwrap();
    assert_eq!((entry(&build, 5), build.file.len().unwrap()), (0, 7 * MIB));
    assert!(common::read_all(build.file.clone()).unwrap() == all);
    // A gap that is found when it is opened is filled, too, and shows nothing of what it held.
    let layer = reopen(build.file.clone()).unwrap();
    layer.erase(0, MIB, Erase::Zero).unwrap();
    layer.close().unwrap();
    build.file.write_at(4 * MIB, &[0x77; MIB as usize]).unwrap();
    let layer = reopen(build.file.clone()).unwrap();
    layer.write(9 * MIB + 5, &[9]).unwrap();
    layer.close().unwrap();
    all[..MIB as usize].fill(0);
    all[9 * MIB as usize + 5] = 9;
    assert_eq!(entry(&build, 9), (4 * MIB) | FULL);
    assert!(common::read_all(build.file.clone()).unwrap() == all);
}

#[test]
fn a_fixed_file_keeps_its_blocks() {
    let file = Arc::new(MemoryStorage::new());
    let options = CreateOptions { fresh: false, ..create_options(3 * MIB, &[("subformat", "fixed")]) };
    Vhdx.create(file.clone(), &NoFiles, &options).unwrap().close().unwrap();
    let bat = |block: u64| {
        let mut bytes = [0; 8];
        file.read_at(3 * MIB + 8 * block, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    };
    // One block is not there: others leave such, and it comes when it is written.
    file.write_at(3 * MIB + 8, &0u64.to_le_bytes()).unwrap();
    let before = [bat(0), bat(2)];
    let layer = reopen(file.clone()).unwrap();
    layer.write(0, &[1; 3 * MIB as usize]).unwrap();
    assert_eq!(layer.erase(0, MIB, Erase::Free).unwrap(), MIB);
    assert_eq!(layer.erase(2 * MIB, MIB, Erase::Zero).unwrap(), MIB);
    assert_eq!(layer.erase(2 * MIB, MIB, Erase::Reveal).unwrap(), 0);
    layer.close().unwrap();
    assert_eq!([bat(0), bat(2)], before);
    assert_eq!((bat(1) & 7, file.len().unwrap()), (FULL, 7 * MIB));
    let all = common::read_all(file).unwrap();
    assert!(all.iter().enumerate().all(|(at, byte)| *byte == u8::from(at as u64 / MIB == 1)));
}

#[test]
fn a_child_has_the_bits_of_what_was_written() {
    // 4 KiB sectors count as one bit each.
    for sector in [512u64, 4096] {
        let linkage = [("parent_linkage", LINKAGE), ("relative_path", "base.vhdx")];
        let build = Build::new(16 * MIB, 2 * MIB, sector, Some(&linkage));
        let disk = chain(vec![reopen(build.file.clone()).unwrap(), stamped(16 * MIB)]);
        let start = 2 * MIB + 9 * sector;
        disk.write(start + 100, &vec![1; sector as usize]).unwrap();
        disk.flush().unwrap();
        let bitmap_entry = word(&build, build.bat + 8 * build.ratio());
        let bitmap = bitmap_entry & !7;
        assert_eq!((entry(&build, 1) & 7, bitmap_entry & 7), (PARTIAL, FULL));
        let of_block = bitmap + 2 * MIB / sector / 8;
        let bits = || word(&build, of_block);
        assert_eq!(bits(), 0b110 << 8);
        disk.erase(2 * MIB, 4 * sector, Erase::Zero).unwrap();
        disk.erase(start, sector, Erase::Reveal).unwrap();
        disk.flush().unwrap();
        assert_eq!(bits(), 0b100 << 8 | 0xf);
        // With all of them the block is whole.
        disk.write(2 * MIB, &noise(2 * MIB as usize, 5)).unwrap();
        disk.flush().unwrap();
        assert_eq!(entry(&build, 1) & 7, FULL);
        disk.erase(2 * MIB + 8 * sector, 3 * sector, Erase::Reveal).unwrap();
        disk.flush().unwrap();
        assert_eq!((entry(&build, 1) & 7, bits() & 0xffff), (PARTIAL, 0xf8ff));
        // With none it is gone.
        disk.erase(2 * MIB, 2 * MIB, Erase::Reveal).unwrap();
        disk.close().unwrap();
        assert_eq!(entry(&build, 1), 0);
    }
}

#[test]
fn a_child_hides_what_is_below() {
    let linkage = [("parent_linkage", LINKAGE), ("relative_path", "base.vhdx")];
    let build = Build::new(8 * MIB, MIB, 512, Some(&linkage));
    for (block, state) in [(1, 1), (2, ZERO), (3, 3)] {
        build.set(block, state);
    }
    let disk = chain(vec![reopen(build.file.clone()).unwrap(), stamped(8 * MIB)]);
    let mut all = vec![0; 8 * MIB as usize];
    disk.read(0, &mut all).unwrap();
    for block in 0..4 {
        disk.write(block * MIB + 1000, &[8; 10]).unwrap();
        all[(block * MIB) as usize + 1000..][..10].fill(8);
    }
    // A whole block needs no room to hide what is below.
    disk.erase(5 * MIB, 2 * MIB, Erase::Free).unwrap();
    all[5 * MIB as usize..7 * MIB as usize].fill(0);
    disk.close().unwrap();
    let states = [0, 1, 2, 3, 5, 6].map(|block| entry(&build, block) & 7);
    assert_eq!(states, [PARTIAL, FULL, FULL, FULL, ZERO, ZERO]);
    let mut found = vec![0; 8 * MIB as usize];
    chain(vec![open(build.file.clone()).unwrap(), stamped(8 * MIB)]).read(0, &mut found).unwrap();
    assert!(found == all);
    assert!(found[MIB as usize..MIB as usize + 512].iter().all(|byte| *byte == 0));
}

#[test]
fn bitmaps_of_many_chunks() {
    // 64 TiB in blocks of 32 MiB: a chunk is 4 GiB.
    let file = Arc::new(MemoryStorage::new());
    let options = CreateOptions {
        fresh: false,
        parent: Some(parent_of(512)),
        ..create_options(64 << 40, &[("block_size", "32M")])
    };
    let layer = Vhdx.create(file.clone(), &NoFiles, &options).unwrap();
    // More of them than one commit takes, in sectors of the BAT of their own.
    let spots: Vec<u64> = (0..300).map(|n| n * 200 * (1 << 30) + n * 3 * 4096).collect();
    for at in &spots {
        layer.write(*at, &at.to_le_bytes().repeat(64)).unwrap();
    }
    layer.close().unwrap();
    let layer = open(file.clone()).unwrap();
    for at in &spots {
        let mut found = [0; 512];
        let seen = layer.read(*at, &mut found).unwrap();
        assert_eq!((seen.kind, seen.len), (Kind::Data, 512));
        assert_eq!(found[..8], at.to_le_bytes());
        assert_eq!(layer.extent(at + 512, 4096).unwrap().kind, Kind::Hole);
    }
    assert_eq!(file.len().unwrap(), 3 * MIB + 17 * MIB + 300 * 33 * MIB);
}

#[test]
fn a_last_block_that_the_file_cuts_is_written() {
    // The disk ends within its last block, and the file with the disk.
    let mut build = Build::new(2 * MIB + 4096, 2 * MIB, 512, None);
    let first = build.room(2 * MIB);
    let last = build.room(0);
    build.file.set_len(last + 4096).unwrap();
    build.set(0, first | FULL);
    build.set(1, last | FULL);
    let layer = reopen(build.file.clone()).unwrap();
    layer.write(2 * MIB + 4000, &[5; 96]).unwrap();
    layer.close().unwrap();
    assert_eq!(build.file.len().unwrap(), last + 4096);
    let mut all = vec![0; 2 * MIB as usize + 4096];
    all[2 * MIB as usize + 4000..].fill(5);
    assert!(common::read_all(build.file.clone()).unwrap() == all);
    // A new block goes behind the room that it would have.
    let mut build = Build::new(4 * MIB + 4096, 2 * MIB, 512, None);
    let last = build.room(0);
    build.file.set_len(last + 4096).unwrap();
    build.set(2, last | FULL);
    let layer = reopen(build.file.clone()).unwrap();
    layer.write(0, &[1; 10]).unwrap();
    layer.close().unwrap();
    assert_eq!((entry(&build, 0), build.file.len().unwrap()), ((last + 2 * MIB) | FULL, last + 4 * MIB));
}

#[test]
fn what_stands_over_something_else_is_read_and_not_written() {
    for (other, what) in [
        ((4 * MIB) | FULL, "share bytes"),
        ((3 * MIB) | FULL, "the BAT region"),
        ((400 * MIB) | FULL, "past the end of the file"),
        ((4 * MIB) | 4, "state 4"),
    ] {
        let mut build = image();
        let place = build.room(MIB);
        build.file.write_at(place, &[3; MIB as usize]).unwrap();
        build.set(1, place | FULL);
        build.set(7, other);
        let before = build.file.to_vec();
        let layer = reopen(build.file.clone()).unwrap();
        let mut found = [0; 10];
        layer.read(MIB, &mut found).unwrap();
        assert_eq!(found, [3; 10]);
        for _ in 0..2 {
            let error = layer.write(0, &[1; 512]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains(what), "{error}");
            assert!(error.advice().unwrap().contains("cowhand check"), "{error}");
        }
        layer.erase(MIB, MIB, Erase::Free).unwrap_err();
        layer.close().unwrap();
        assert!(build.file.to_vec() == before);
    }
}

#[test]
fn the_largest_disk_opens_at_once() {
    // 64 TiB in blocks of 1 MiB: a BAT of 512 MiB, with some blocks in it.
    let file = Arc::new(MemoryStorage::new());
    let layer =
        common::create(file.clone(), 64 << 40, &[("block_size", "1M"), ("block_state_zero", "off")]).unwrap();
    let spots: Vec<u64> = (0..40).map(|n| n * (1677 << 30)).collect();
    for at in &spots {
        layer.write(*at, &[7; 512]).unwrap();
    }
    layer.close().unwrap();
    assert!(file.len().unwrap() > 515 * MIB);
    let opened = || {
        let since = Instant::now();
        let layer = open(file.clone()).unwrap();
        let mut found = [0; 512];
        layer.read(spots[20], &mut found).unwrap();
        assert_eq!(found, [7; 512]);
        assert_eq!(layer.extent(MIB, u64::MAX).unwrap().len, spots[1] - MIB);
        since.elapsed()
    };
    // The quickest of some: others may be at work on this machine.
    let quickest = (0..20).map(|_| opened()).min().unwrap();
    assert!(quickest < Duration::from_millis(20), "{quickest:?}");
    // The first write looks at all of the BAT, which is nearly all a hole.
    let layer = reopen(file.clone()).unwrap();
    layer.write((64 << 40) - 512, &[8; 512]).unwrap();
    layer.close().unwrap();
    let layer = open(file.clone()).unwrap();
    assert_eq!(layer.extent(spots[39] + MIB, u64::MAX).unwrap().kind, Kind::Hole);
    assert_eq!(file.len().unwrap(), (3 + 513 + 41) * MIB);
    assert!(file.physical_size().unwrap() < 8 * MIB);
}

/// What each block of the disk reads as; `None`: an error.
fn blocks_of(file: &Arc<MemoryStorage>, child: bool, blocks: u64) -> Option<Vec<Option<Vec<u8>>>> {
    let layer = open(file.clone()).ok()?;
    let disk = chain(if child { vec![layer, stamped(blocks * MIB)] } else { vec![layer] });
    let read = |block| {
        let mut bytes = vec![0; MIB as usize];
        disk.read(block * MIB, &mut bytes).ok().map(|()| bytes)
    };
    Some((0..blocks).map(read).collect())
}

#[test]
fn writing_to_what_is_damaged_harms_nothing_else() {
    const BLOCKS: u64 = 6;
    let (mut went_well, mut refused) = (0, 0);
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let child = seed % 2 == 1;
        let linkage = [("parent_linkage", LINKAGE), ("relative_path", "base.vhdx")];
        let mut build = Build::new(BLOCKS * MIB, MIB, 512, child.then_some(&linkage[..]));
        for block in [0, 2, 3] {
            let place = build.room(MIB);
            build.file.write_at(place, &noise(MIB as usize, block)).unwrap();
            build.set(block, place | if child && block == 2 { PARTIAL } else { FULL });
        }
        if child {
            let place = build.room(MIB);
            build.file.write_at(place, &[0x0f; MIB as usize]).unwrap();
            build.set_bitmap(0, place | FULL);
        }
        for _ in 0..1 + rng.below(2) {
            let value = match rng.below(4) {
                0 => (rng.below(10) * MIB) | rng.below(8),
                1 => rng.any(),
                2 => rng.below(8),
                _ => ((4 + rng.below(4)) * MIB) | FULL,
            };
            match rng.below(5) {
                0 if child => build.set_bitmap(0, value),
                _ => build.set(rng.below(BLOCKS), value),
            }
        }
        let before = blocks_of(&build.file, child, BLOCKS).unwrap();
        let mut changed = Vec::new();
        let layer = reopen(build.file.clone()).unwrap();
        for _ in 0..4 {
            let block = rng.below(BLOCKS);
            let done = match rng.below(4) {
                0 => layer.erase(block * MIB, MIB, Erase::Free).map(drop),
                1 => layer.erase(block * MIB + 4096, 8192, Erase::Reveal).map(drop),
                2 => layer.flush(),
                _ => layer.write(block * MIB + 512, &[1; 3 * 512]),
            };
            changed.push(block);
            went_well += u64::from(done.is_ok());
            refused += u64::from(done.is_err());
        }
        layer.close().unwrap();
        let after = blocks_of(&build.file, child, BLOCKS).unwrap();
        for block in (0..BLOCKS).filter(|block| !changed.contains(block)) {
            assert!(before[block as usize] == after[block as usize], "seed {seed}, block {block}");
        }
    }
    assert!(went_well > 30 && refused > 30, "{went_well} {refused}");
}

/// What is absent where nothing is below reads zero already: giving it back costs nothing.
#[test]
fn giving_back_what_is_absent_changes_nothing() {
    let file = Arc::new(MemoryStorage::new());
    let options = create_options(64 << 40, &[("block_size", "1M"), ("block_state_zero", "off")]);
    Vhdx.create(file.clone(), &NoFiles, &options).unwrap().close().unwrap();
    let layer = reopen(file).unwrap();
    assert_eq!(layer.erase(0, 64 << 40, Erase::Free).unwrap(), 64 << 40);
    assert_eq!(layer.extent(0, 64 << 40).unwrap().kind, Kind::Hole);
}
