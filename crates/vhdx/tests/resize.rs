//! Sizes changed, disks emptied, files made shorter: held against flat bytes, with the power cut at every moment.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::crash::{CONFIGURATIONS, Configuration, Sort, below, check, make, qemu_agrees};
use common::{
    Build, ELSEWHERE, FULL, LINKAGE, MIB, PARTIAL, ZERO, chain, create, create_options, noise, open,
    parent_of, reopen,
};
use cowhand_core::raw::Raw;
use cowhand_core::testing::{
    CrashTest, Fault, FaultTest, Faults, Io, Journal, ModelTest, Op, Plan, SYNCS, Shape,
};
use cowhand_core::{
    CheckOptions, Erase, ErrorKind, Folder, Format, Identity, Image, Kind, Layer, MemoryFolder,
    MemoryStorage, NoFiles, OpenOptions, Prealloc, Quiet, Result, Severity, Storage,
};
use cowhand_vhdx::Vhdx;

const GIB: u64 = 1 << 30;

/// Resized, emptied and compacted, beside all else.
fn script(how: &Configuration, shape: Shape, seed: u64) -> Vec<Op> {
    let shape = Shape { resize: true, compact: true, header: true, ..shape };
    let mut script = shape.script(seed);
    script.retain(|op| *op != Op::Clear || how.sort != Sort::Fixed);
    for op in &mut script {
        if let Op::Resize { size } = op {
            *size = size.next_multiple_of(how.sector);
        }
    }
    script
}

#[test]
fn resized_emptied_and_compacted_disks_behave_like_a_flat_vector() {
    for how in CONFIGURATIONS {
        for seed in 0..2 {
            let shape = Shape { ops: 50, max_len: 65536, ..Shape::new(how.size, how.block) };
            let test = ModelTest::new(|file| make(file, how), reopen).shape(shape);
            let test = test.script(script(how, shape, seed)).seed(seed);
            let test = if how.sort.is_child() { test.parent(below(how, seed)) } else { test };
            test.run().unwrap_or_else(|failure| panic!("{how:?}, seed {seed}: {failure}"));
        }
    }
}

#[test]
fn a_power_cut_leaves_the_old_or_the_new() {
    let slow = std::env::var_os("COWHAND_SLOW").is_some();
    let states = AtomicU64::new(0);
    for (nth, how) in CONFIGURATIONS.iter().enumerate() {
        for seed in 0..if slow { 40 } else { 1 } {
            let seed = seed + nth as u64;
            let shape = Shape {
                ops: if slow { 30 } else { 14 },
                max_len: 8192,
                align: 512,
                ..Shape::new(how.size, how.block)
            };
            let script = script(how, shape, seed);
            let test = CrashTest::new(|file| make(file, how), reopen)
                .view(open)
                .shape(shape)
                .script(script)
                .seed(seed)
                .per_epoch(if slow { 20 } else { 2 })
                .same_bytes(true)
                .check(|state, layer| {
                    check(state)?;
                    let nth = states.fetch_add(1, Ordering::Relaxed);
                    let theirs = nth.is_multiple_of(50) && !how.sort.is_child() && how.sector == 512;
                    if theirs { qemu_agrees(state, layer) } else { Ok(()) }
                });
            let test = if how.sort.is_child() { test.parent(below(how, seed)) } else { test };
            let counts = test.run().unwrap_or_else(|failure| panic!("{how:?}, seed {seed}: {failure}"));
            assert!(counts.states > 5, "{how:?}: {counts:?}");
        }
    }
    assert!(states.into_inner() > 100);
}

#[test]
fn each_failure_is_an_error_and_loses_nothing() {
    for how in CONFIGURATIONS {
        let shape = Shape { ops: 12, max_len: 8192, align: 512, ..Shape::new(how.size, how.block) };
        let shape = Shape { resize: how.sector == 512, compact: true, header: true, ..shape };
        let test = FaultTest::new(|file| make(file, how), reopen).shape(shape);
        let test = test.every(17).seed(5);
        let test = if how.sort.is_child() { test.parent(below(how, 1)) } else { test };
        test.run().unwrap_or_else(|failure| panic!("{how:?}: {failure}"));
    }
}

fn sound(file: Arc<dyn Storage>) {
    let how = CheckOptions { workers: 1, ..CheckOptions::default() };
    let report = Vhdx.checker().unwrap().check(file, &NoFiles, &how, &Quiet).unwrap();
    let bad = |severity| matches!(severity, Severity::Corruption | Severity::Error);
    assert!(!report.faults.iter().any(|fault| bad(fault.severity)), "{:?}", report.faults);
}

fn word(file: &dyn Storage, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_at(at, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// The BAT region's place and length, as the first table says.
fn bat(file: &dyn Storage) -> (u64, u64) {
    (word(file, (192 << 10) + 32), word(file, (192 << 10) + 40) & 0xffff_ffff)
}

fn file_of(folder: &dyn Folder, name: &str) -> Arc<dyn Storage> {
    folder.open(name, true).unwrap()
}

/// The most blocks of 1 MiB whose entries fit into a MiB of BAT, of a disk without a parent.
const MOST: u64 = 131_041;

/// A disk with a parent that is longer.
fn over(child: Arc<dyn Layer>, parent: &Arc<MemoryStorage>) -> Image {
    let raw = Raw.open(parent.clone(), &NoFiles, &OpenOptions::default()).unwrap();
    chain(vec![child, raw])
}

fn byte(image: &Image, at: u64) -> u8 {
    let mut one = [0xa5];
    image.read(at, &mut one).unwrap();
    one[0]
}

#[test]
fn a_longer_table_is_taken_into_use_at_once() {
    // 32 chunks less one of 4096 blocks have room in a child's MiB.
    for (child, blocks) in [(false, MOST), (true, 31 * 4096)] {
        let parent = Arc::new(MemoryStorage::new());
        parent.set_len(200 * GIB).unwrap();
        for at in [0, MIB, blocks * MIB - 512, blocks * MIB, 150 * GIB] {
            parent.write_at(at, &[7; 512]).unwrap();
        }
        let image = |layer| if child { over(layer, &parent) } else { chain(vec![layer]) };
        // Half a block longer, so that one is begun.
        let (old, new) = (blocks * MIB - MIB / 2, 180 * GIB + 4096);
        let folder = MemoryFolder::new();
        let file = folder.create_new("disk").unwrap();
        let mut options = create_options(old, &[("block_size", "1M"), ("block_state_zero", "off")]);
        (options.fresh, options.parent) = (false, child.then(|| parent_of(512)));
        let disk = image(Vhdx.create(file.clone(), &NoFiles, &options).unwrap());
        disk.write(5 * MIB, &[9; 4096]).unwrap();
        disk.write(old - 512, &[8; 512]).unwrap();
        disk.close().unwrap();
        drop(disk);
        assert_eq!(bat(file.as_ref()), (3 * MIB, MIB));

        let journal = Journal::over(&folder);
        let disk = image(reopen(file_of(journal.folder().as_ref(), "disk")).unwrap());
        disk.resize(new, Prealloc::Off).unwrap();
        journal.mark(1);
        disk.write(170 * GIB, &[6; 512]).unwrap();
        disk.close().unwrap();
        let live = file_of(journal.live().as_ref(), "disk");
        assert_eq!(bat(live.as_ref()).1, 2 * MIB);
        assert_ne!(bat(live.as_ref()).0, 3 * MIB);
        let (mut states, mut grown) = (0, 0);
        for state in journal.states(&Plan { per_epoch: 8, max_states: 120, ..Plan::default() }) {
            let file = state.file("disk").unwrap();
            sound(file.clone());
            let disk = image(open(file.clone()).unwrap());
            let size = disk.size();
            assert!(size == new || (size == old && state.mark().is_none()), "{size}: {state}");
            let below = if child { 7 } else { 0 };
            assert_eq!([byte(&disk, 0), byte(&disk, MIB)], [below; 2]);
            assert_eq!([byte(&disk, 5 * MIB), byte(&disk, old - 1)], [9, 8], "{state}");
            if size == new {
                // Also where the parent is longer.
                let zeros = [old, blocks * MIB - 1, blocks * MIB, 150 * GIB, new - 1];
                assert_eq!(zeros.map(|at| byte(&disk, at)), [0; 5], "{state}");
                grown += 1;
            }
            drop(disk);
            let disk = image(reopen(file.clone()).unwrap());
            disk.write(size - 512, &[5; 512]).unwrap();
            disk.close().unwrap();
            assert_eq!((byte(&disk, size - 1), byte(&disk, 5 * MIB)), (5, 9));
            sound(file);
            states += 1;
        }
        assert!(states > 20 && grown > 0 && grown < states, "{grown} of {states}");
    }
}

#[test]
fn new_blocks_of_a_fixed_disk_are_in_the_file() {
    for (mode, how) in [("off", Prealloc::Off), ("full", Prealloc::Full)] {
        let file = Arc::new(MemoryStorage::new());
        let given = [("subformat", "fixed"), ("block_size", "1M")];
        create(file.clone(), 2 * MIB + 512, &given).unwrap().close().unwrap();
        // As others leave it: the file ends where the disk does.
        let layer = reopen(file.clone()).unwrap();
        layer.write(2 * MIB, &[7; 512]).unwrap();
        layer.resize(5 * MIB + 512, how, 0).unwrap();
        layer.close().unwrap();
        let entries: Vec<u64> = (0..6).map(|n| word(file.as_ref(), 3 * MIB + 8 * n)).collect();
        assert_eq!(entries, [4, 5, 6, 7, 8, 9].map(|at| (at * MIB) | FULL), "{mode}");
        assert_eq!(file.len().unwrap(), 10 * MIB);
        let held = file.physical_size().unwrap() > 3 * MIB;
        assert_eq!(held, how == Prealloc::Full, "{mode}");
        let mut wanted = vec![0; 5 * MIB as usize + 512];
        wanted[2 * MIB as usize..][..512].fill(7);
        assert!(common::read_all(file.clone()).unwrap() == wanted);
        // And back again: the file too.
        let layer = reopen(file.clone()).unwrap();
        assert_eq!(layer.may_shrink(2 * MIB).unwrap_err().kind(), ErrorKind::Unsupported);
        layer.may_shrink(2 * MIB + 512).unwrap();
        layer.resize(2 * MIB, Prealloc::Off, 0).unwrap();
        layer.close().unwrap();
        assert_eq!((file.len().unwrap(), word(file.as_ref(), 3 * MIB + 16)), (6 * MIB, 0));
        sound(file);
    }
}

#[test]
fn sizes_are_whole_sectors_and_within_the_limit() {
    let file = Arc::new(MemoryStorage::new());
    create(file.clone(), MIB, &[("logical_sector_size", "4096")]).unwrap().close().unwrap();
    let layer = reopen(file.clone()).unwrap();
    let before = layer.identity();
    layer.resize(MIB, Prealloc::Off, 0).unwrap();
    layer.resize(MIB - 4095, Prealloc::Off, 0).unwrap();
    assert_eq!((layer.size(), layer.identity()), (MIB, before), "no change");
    layer.resize(MIB + 1, Prealloc::Off, 0).unwrap();
    assert_eq!(layer.size(), MIB + 4096);
    assert_ne!(layer.identity(), before);
    for size in [(64 << 40) + 4096, u64::MAX] {
        assert_eq!(layer.resize(size, Prealloc::Off, 0).unwrap_err().kind(), ErrorKind::Invalid);
    }
    for how in [Prealloc::Falloc, Prealloc::Full] {
        assert_eq!(layer.resize(9 * MIB, how, 0).unwrap_err().kind(), ErrorKind::Unsupported);
    }
    layer.resize(64 << 40, Prealloc::Off, 0).unwrap();
    layer.write((64 << 40) - 4096, &[1; 4096]).unwrap();
    layer.close().unwrap();
    assert!(file.len().unwrap() < 600 * MIB, "the table and a block");
    sound(file);
}

/// A disk in which entries keep places that they do not need, structures stand behind blocks, and gaps are in between.
fn untidy(child: bool) -> (Build, Vec<u8>) {
    let linkage = [("parent_linkage", LINKAGE), ("relative_path", "base.vhdx")];
    let mut built = Build::at(ELSEWHERE, 16 * MIB, MIB, 512, child.then_some(&linkage[..]));
    built.end = ELSEWHERE.end + 3 * MIB;
    let mut content = vec![0; 16 * MIB as usize];
    for n in 0..16u64 {
        let at = built.room(MIB);
        built.file.write_at(at, &noise(MIB as usize, n)).unwrap();
        match n % 8 {
            0 => built.set(n, at | 3),
            1 => built.set(n, at | ZERO),
            2 => built.set(n, at | 5),
            3 => built.set(n, at),
            4 if child => built.set(n, at | PARTIAL),
            _ => {
                built.set(n, at | FULL);
                built.file.read_at(at, &mut content[(n * MIB) as usize..][..MIB as usize]).unwrap();
            }
        }
    }
    if child {
        // No bit is set in it.
        let at = built.room(MIB);
        built.set_bitmap(0, at | FULL);
    }
    (built, content)
}

#[test]
fn what_says_nothing_loses_its_place_and_the_file_its_end() {
    for child in [false, true] {
        let (built, content) = untidy(child);
        let blocks =
            content.chunks(MIB as usize).filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64;
        let layer = reopen(built.file.clone()).unwrap();
        layer.compact(&Quiet).unwrap();
        layer.close().unwrap();
        // The header section, a log of three, the BAT and the metadata; the log is not moved.
        assert_eq!(built.file.len().unwrap(), (6 + blocks) * MIB, "{child}");
        sound(built.file.clone());
        let (at, _) = bat(built.file.as_ref());
        let entry = |n: u64| word(built.file.as_ref(), at + 8 * n);
        let absent = if child { 0 } else { ZERO };
        assert_eq!([entry(0), entry(1), entry(2), entry(3), entry(1) & 7], [ZERO, ZERO, ZERO, 0, ZERO]);
        if child {
            assert_eq!((entry(4), entry(4096)), (absent, 0), "nothing is in the block, nor in the bitmap");
        }
        assert!(common::read_all(built.file.clone()).unwrap() == content);
        // A second time there is nothing to do.
        let before = built.file.snapshot();
        let layer = reopen(built.file.clone()).unwrap();
        layer.compact(&Quiet).unwrap();
        layer.close().unwrap();
        assert_eq!(built.file.len().unwrap(), before.len().unwrap());
    }
}

#[test]
fn a_power_cut_during_compaction_loses_nothing() {
    for child in [false, true] {
        let (built, content) = untidy(child);
        let folder = MemoryFolder::new();
        let file = folder.create_new("disk").unwrap();
        file.write_at(0, &built.file.to_vec()).unwrap();
        let journal = Journal::over(&folder);
        let layer = reopen(file_of(journal.folder().as_ref(), "disk")).unwrap();
        layer.compact(&Quiet).unwrap();
        layer.close().unwrap();
        let mut states = 0;
        for state in journal.states(&Plan { per_epoch: 3, max_states: 30, ..Plan::default() }) {
            let file = state.file("disk").unwrap();
            assert!(common::read_all(file.clone()).unwrap() == content, "{state}");
            sound(file.clone());
            let layer = reopen(file.clone()).unwrap();
            layer.compact(&Quiet).unwrap();
            layer.close().unwrap();
            assert!(common::read_all(file.clone()).unwrap() == content, "{state}");
            states += 1;
        }
        assert!(states > 10, "{states}");
    }
}

/// What WSL's `ext4.vhdx` is: it has grown, and much of it holds zeros that the guest wrote.
#[test]
fn a_disk_that_was_emptied_by_its_guest_becomes_small() {
    let file = Arc::new(MemoryStorage::new());
    let layer = create(file.clone(), 80 * MIB, &[("block_size", "1M"), ("block_state_zero", "off")]).unwrap();
    let mut content = vec![0; 80 * MIB as usize];
    for n in 0..60u64 {
        let block = noise(MIB as usize, n);
        layer.write(n * MIB, &block).unwrap();
        if n % 10 == 0 {
            content[(n * MIB) as usize..][..MIB as usize].copy_from_slice(&block);
        }
    }
    layer.close().unwrap();
    let layer = reopen(file.clone()).unwrap();
    for n in (0..60).filter(|n| n % 10 != 0) {
        layer.erase(n * MIB, MIB, cowhand_core::Erase::Free).unwrap();
    }
    layer.compact(&Quiet).unwrap();
    layer.close().unwrap();
    assert_eq!(file.len().unwrap(), (4 + 6) * MIB);
    assert!(common::read_all(file.clone()).unwrap() == content);
    sound(file);
}

#[test]
fn what_a_power_cut_left_behind_the_last_block_goes() {
    let file = Arc::new(MemoryStorage::new());
    let layer = create(file.clone(), 8 * MIB, &[("block_size", "1M")]).unwrap();
    layer.write(0, &noise(MIB as usize, 1)).unwrap();
    layer.close().unwrap();
    let len = file.len().unwrap();
    file.set_len(len + 64 * MIB).unwrap();
    let layer = reopen(file.clone()).unwrap();
    layer.compact(&Quiet).unwrap();
    layer.close().unwrap();
    assert_eq!(file.len().unwrap(), len);
    sound(file);
}

#[test]
fn what_could_not_grow_takes_no_room() {
    // Of a fixed disk, and of one whose table must go elsewhere.
    for given in
        [[("subformat", "fixed"), ("block_size", "1M")], [("subformat", "dynamic"), ("block_size", "1M")]]
    {
        let start = Arc::new(MemoryStorage::new());
        create(start.clone(), 2 * MIB, &given).unwrap().close().unwrap();
        for nth in 1.. {
            let file = Arc::new(start.snapshot());
            let faults = Faults::none();
            let layer = reopen(faults.storage(file.clone())).unwrap();
            layer.write(0, &[1; 512]).unwrap();
            layer.flush().unwrap();
            let (kept, size) = (bat(file.as_ref()), (MOST + 1) * MIB);
            faults.arm(Fault::EIO.only(&[Io::Write, Io::Read, Io::SetLen]), nth);
            let grown = layer.resize(size, Prealloc::Off, 0);
            faults.disarm();
            if grown.is_ok() {
                assert!(nth > 5);
                break;
            }
            // What cannot be told ends all writing.
            if layer.write(0, &[2; 512]).is_ok() {
                layer.close().unwrap();
                assert_eq!(bat(file.as_ref()), kept);
                let blocks = if given[0].1 == "fixed" { 2 } else { 1 };
                assert_eq!(file.len().unwrap(), (4 + blocks) * MIB, "{given:?}, {nth}");
            }
        }
    }
}

#[test]
fn a_sync_that_failed_ends_all_writing() {
    let start = Arc::new(MemoryStorage::new());
    let layer = create(start.clone(), 8 * MIB, &[("block_size", "1M")]).unwrap();
    layer.write(0, &[1; 8 << 20]).unwrap();
    layer.close().unwrap();
    let layer = reopen(start.clone()).unwrap();
    layer.erase(MIB, 6 * MIB, Erase::Free).unwrap();
    layer.close().unwrap();
    for nth in 1.. {
        let faults = Faults::none();
        let layer = reopen(faults.storage(Arc::new(start.snapshot()))).unwrap();
        layer.write(0, &[2; 512]).unwrap();
        layer.flush().unwrap();
        faults.arm(Fault::EIO.only(SYNCS), nth);
        if layer.compact(&Quiet).is_ok() {
            assert!(nth > 5);
            break;
        }
        assert_eq!(layer.write(0, &[3; 512]).unwrap_err().kind(), ErrorKind::Io, "{nth}");
    }
}

/// A device: its length is its own, and it gives nothing back.
#[derive(Debug)]
struct Device(MemoryStorage);

impl Storage for Device {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(at, buf)
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.0.write_at(at, buf)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > self.0.len()? { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn data_at(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        let len = self.0.len()?;
        Ok((at < len).then_some(at..len))
    }

    fn physical_size(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn identity(&self) -> io::Result<Identity> {
        self.0.identity()
    }
}

#[test]
fn what_a_device_held_before_does_not_show() {
    let image = Arc::new(MemoryStorage::new());
    let layer = create(image.clone(), 8 * MIB, &[("block_size", "1M")]).unwrap();
    layer.write(0, &noise(4 << 20, 1)).unwrap();
    layer.close().unwrap();
    let mut bytes = vec![0xee; 24 << 20];
    image.read_at(0, &mut bytes[..8 << 20]).unwrap();
    let changes: [fn(&dyn Layer) -> Result<()>; 3] = [
        |layer| layer.compact(&Quiet),
        |layer| layer.clear(),
        |layer| {
            layer.resize(2 * MIB, Prealloc::Off, 0).and_then(|()| layer.resize(8 * MIB, Prealloc::Off, 0))
        },
    ];
    for (nth, change) in changes.into_iter().enumerate() {
        let device = Arc::new(Device(MemoryStorage::from_bytes(&bytes)));
        let layer = reopen(device.clone()).unwrap();
        change(layer.as_ref()).unwrap();
        for block in 4..8 {
            layer.write(block * MIB + 4096, &[1; 512]).unwrap();
        }
        layer.close().unwrap();
        let disk = common::read_all(device.clone()).unwrap();
        for block in disk[4 << 20..].chunks(1 << 20) {
            assert_eq!(block[4096..4608], [1; 512]);
            let around = [&block[..4096], &block[4608..]].concat();
            assert!(around.iter().all(|byte| *byte == 0), "change {nth}");
        }
        sound(device);
    }
}

#[test]
fn a_fixed_disk_is_left_alone() {
    let file = Arc::new(MemoryStorage::new());
    create(file.clone(), 3 * MIB, &[("subformat", "fixed"), ("block_size", "1M")]).unwrap().close().unwrap();
    let before = file.snapshot();
    let layer = reopen(file.clone()).unwrap();
    layer.compact(&Quiet).unwrap();
    assert_eq!(layer.clear().unwrap_err().kind(), ErrorKind::Unsupported);
    layer.close().unwrap();
    assert_eq!(file.len().unwrap(), before.len().unwrap());
    assert!(common::read_all(file).unwrap() == vec![0; 3 * MIB as usize]);
}

#[test]
fn all_data_goes_or_none() {
    for child in [false, true] {
        let (built, content) = untidy(child);
        let folder = MemoryFolder::new();
        let file = folder.create_new("disk").unwrap();
        file.write_at(0, &built.file.to_vec()).unwrap();
        let journal = Journal::over(&folder);
        let layer = reopen(file_of(journal.folder().as_ref(), "disk")).unwrap();
        let before = layer.identity();
        layer.clear().unwrap();
        journal.mark(1);
        assert_ne!(layer.identity(), before);
        assert_eq!(layer.extent(0, 16 * MIB).unwrap().kind, Kind::Hole);
        layer.write(3 * MIB, &[7; 512]).unwrap();
        layer.close().unwrap();
        let live = file_of(journal.live().as_ref(), "disk");
        // The log is not moved; all else stands in front of it, but for the metadata, and the new block too.
        assert!(live.len().unwrap() <= 14 * MIB, "{}", live.len().unwrap());
        let (mut kept, mut gone) = (0, 0);
        for state in journal.states(&Plan { per_epoch: 3, max_states: 30, ..Plan::default() }) {
            let file = state.file("disk").unwrap();
            sound(file.clone());
            let mut found = common::read_all(file.clone()).unwrap();
            found[3 * MIB as usize..][..512].fill(0);
            match found == content {
                true if state.mark().is_none() => kept += 1,
                _ => {
                    assert!(found.iter().all(|byte| *byte == 0), "{state}");
                    gone += 1;
                }
            }
        }
        assert!(kept > 0 && gone > 0, "{kept} {gone}");
    }
}

#[test]
fn the_largest_disk_fills_the_file_and_the_next_does_not() -> Result<()> {
    for block in ["1M", "32M", "256M"] {
        for (size, log) in [(600 * MIB, "1M"), (130 * GIB, "1M"), (300 * GIB + 12345, "4M"), (5 << 40, "1M")]
        {
            let like =
                create(Arc::new(MemoryStorage::new()), MIB, &[("block_size", block), ("log_size", log)])?;
            let found = like.size_by_file(size, true)?.unwrap();
            let step = like.details().cluster_size.unwrap();
            assert_eq!(found % step, 0);
            let len = |disk: u64| -> Result<u64> {
                let file = Arc::new(MemoryStorage::new());
                let mut options = create_options(disk, &[("block_size", block), ("log_size", log)]);
                options.options = cowhand_core::Options::check(
                    Vhdx.options(),
                    &[("block_size", block), ("log_size", log), ("subformat", "fixed")]
                        .map(|(name, value)| (name.to_owned(), value.to_owned())),
                )?;
                Vhdx.create(file.clone(), &NoFiles, &options)?.close()?;
                Ok(file.len().unwrap())
            };
            assert!(len(found)? <= size && size < len(found + step)?, "{block}, {size}: {found}");
        }
    }
    // The example of Hyper-V's utilities.
    let like = create(Arc::new(MemoryStorage::new()), MIB, &[("block_size", "16M")])?;
    assert_eq!(like.size_by_file(10 * GIB, false)?, Some(10_720_641_024));
    Ok(())
}
