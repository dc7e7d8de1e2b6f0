//! Sizes changed, disks emptied, files made shorter: held against flat bytes, with the power cut at every moment.

use std::sync::Arc;

use cowhand_core::testing::{CrashTest, Failure, FaultTest, ModelTest, Op, Shape, State, fill};
use cowhand_core::{
    CheckOptions, Erase, Fault, Format, Layer, MemoryStorage, NoFiles, Prealloc, Quiet, Result, Severity,
    Storage,
};

use super::benches::{SORTS, Sort, is_child, made, parent};
use super::{content, create, open, open_to_write};
use crate::Vhd;

/// (block size, disk size)
const SIZES: [(u64, u64); 5] =
    [(512, 20 << 10), (1024, 77 * 512), (4096, 61 * 1024), (16384, 20000 / 512 * 512), (65536, 1 << 20)];

fn shape(size: u64, block_size: u64) -> Shape {
    Shape { resize: true, header: true, compact: true, ..Shape::new(size, block_size) }
}

/// A script whose disk becomes smaller only where it was emptied first.
fn script(shape: Shape, seed: u64) -> Vec<Op> {
    let mut size = shape.size;
    let mut all = Vec::new();
    for op in shape.script(seed) {
        if let Op::Resize { size: new } = op {
            if new < size {
                let how = if seed.is_multiple_of(2) { Erase::Free } else { Erase::Zero };
                all.push(Op::Erase { at: new, len: size - new, how });
                all.push(Op::Flush);
            }
            size = new;
        }
        all.push(op);
    }
    all
}

fn fixed(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    create(file.clone(), 100 << 10, &[("subformat", "fixed"), ("force_size", "on")])?.close()?;
    open_to_write(file)
}

#[test]
fn resized_emptied_and_compacted_disks_behave_like_a_flat_vector() {
    for (block_size, size) in SIZES {
        for sort in SORTS {
            for seed in 0..if size < 1 << 20 { 4 } else { 1 } {
                let shape = shape(size, block_size);
                let make = |file| made(file, sort, size, block_size);
                let test =
                    ModelTest::new(make, open_to_write).shape(shape).script(script(shape, seed)).seed(seed);
                let test = if is_child(sort) { test.parent(parent(size * 3 / 2 / 512 * 512)) } else { test };
                test.run().unwrap_or_else(|failure| panic!("{sort:?} {block_size} {size}: {failure}"));
            }
        }
    }
    for seed in 0..8 {
        let shape = shape(100 << 10, 4096);
        let test = ModelTest::new(fixed, open_to_write).shape(shape).script(script(shape, seed)).seed(seed);
        test.run().unwrap_or_else(|failure| panic!("fixed: {failure}"));
    }
}

/// Our own check finds nothing but lost space.
fn checked(state: &State) -> Result<(), Failure> {
    let Some(file) = state.file("disk") else { return Err(Failure::new("the image is gone")) };
    let Some(checker) = Vhd.checker() else { return Err(Failure::new("there is no check")) };
    let report = checker.check(file, &NoFiles, &CheckOptions::default(), &Quiet)?;
    let bad = |fault: &&Fault| {
        // The children made here have no locators.
        matches!(fault.severity, Severity::Corruption | Severity::Error)
            && !fault.message.contains("nothing says where")
    };
    report.faults.iter().find(bad).map_or(Ok(()), |fault| Err(Failure::new(fault.message.clone())))
}

/// Seeds and states of an epoch: few, or with COWHAND_SLOW in the environment so many that there are more than 100,000
/// states, which takes minutes.
fn length(few: (u64, usize), many: (u64, usize)) -> (u64, usize, usize) {
    let slow = std::env::var_os("COWHAND_SLOW").is_some();
    let (seeds, per_epoch) = if slow { many } else { few };
    (seeds, per_epoch, if slow { 100_000 } else { 500 })
}

#[test]
fn a_power_cut_leaves_one_size_or_the_other() {
    let (seeds, per_epoch, least) = length((3, 6), (24, 200));
    let mut states = 0;
    for (block_size, size) in [(512, 20 << 10), (4096, 61 * 1024), (65536, 300 << 10)] {
        for sort in SORTS {
            for seed in 0..seeds {
                let shape = Shape { ops: 30, ..shape(size, block_size) };
                let make = |file| made(file, sort, size, block_size);
                let test = CrashTest::new(make, open_to_write)
                    .view(open)
                    .shape(shape)
                    .script(script(Shape { align: 512, ..shape }, seed))
                    .seed(seed)
                    .per_epoch(per_epoch)
                    .check(|state, _| checked(state));
                let test = if is_child(sort) { test.parent(parent(size * 3 / 2 / 512 * 512)) } else { test };
                let counts =
                    test.run().unwrap_or_else(|failure| panic!("{sort:?} {block_size} {seed}: {failure}"));
                states += counts.states;
            }
        }
    }
    assert!(states > least, "{states}");
}

#[test]
fn a_power_cut_leaves_a_fixed_disk_with_one_size_or_the_other() {
    let (seeds, per_epoch, least) = length((6, 12), (150, 400));
    let mut states = 0;
    for seed in 0..seeds {
        let shape = Shape { ops: 40, ..shape(100 << 10, 4096) };
        let test = CrashTest::new(fixed, open_to_write)
            .view(open)
            .shape(shape)
            .script(script(Shape { align: 512, ..shape }, seed))
            .seed(seed)
            .per_epoch(per_epoch);
        states += test.run().unwrap_or_else(|failure| panic!("fixed, {seed}: {failure}")).states;
    }
    assert!(states > least, "{states}");
}

#[test]
fn each_failure_while_it_is_resized_is_an_error_and_loses_nothing() {
    for (sort, block_size, size) in [(Sort::Ours, 512, 20 << 10), (Sort::Child, 4096, 64 << 10)] {
        let make = |file| made(file, sort, size, block_size);
        let test = FaultTest::new(make, open_to_write).shape(shape(size, block_size)).every(3).seed(5);
        let test = if is_child(sort) { test.parent(parent(size)) } else { test };
        test.run().unwrap_or_else(|failure| panic!("{sort:?} {block_size}: {failure}"));
    }
    FaultTest::new(fixed, open_to_write).shape(shape(100 << 10, 4096)).seed(3).run().unwrap();
}

#[test]
fn compacting_cuts_the_file_to_what_is_used() {
    let file = Arc::new(MemoryStorage::new());
    let (block_size, size) = (65536, 1 << 20);
    let layer = made(file.clone(), Sort::Ours, size, block_size).unwrap();
    let mut bytes = vec![0; size as usize];
    fill(&mut bytes, 0, 1);
    layer.write(0, &bytes).unwrap();
    layer.close().unwrap();
    let full = file.len().unwrap();
    let layer = open_to_write(file.clone()).unwrap();
    // Every second block, and the first two.
    for block in [0, 1, 3, 5, 7, 9, 11, 13, 15] {
        let at = block * block_size;
        assert_eq!(layer.erase(at, block_size, Erase::Free).unwrap(), block_size);
        bytes[at as usize..][..block_size as usize].fill(0);
    }
    layer.compact(&Quiet).unwrap();
    let pitch = (block_size + 512).next_multiple_of(4096);
    assert_eq!(file.len().unwrap(), full - 9 * pitch);
    assert_eq!(content(vec![layer.clone()]).unwrap(), bytes);
    layer.close().unwrap();
    assert_eq!(content(vec![open(file.clone()).unwrap()]).unwrap(), bytes);
    let layer = open_to_write(file.clone()).unwrap();
    layer.clear().unwrap();
    assert!(file.len().unwrap() < 4096, "{}", file.len().unwrap());
    assert_eq!(content(vec![layer]).unwrap(), vec![0; size as usize]);
}

fn table_at(file: &MemoryStorage) -> u64 {
    u64::from_be_bytes(file.to_vec()[528..536].try_into().unwrap())
}

#[test]
fn a_table_that_had_to_go_behind_the_blocks_comes_home() {
    for (creator, batmap) in [("win", false), ("tap", true)] {
        let file = Arc::new(MemoryStorage::new());
        let layer = create(file.clone(), 64 << 20, &[("creator", creator)]).unwrap();
        layer.write(0, &[1; 4096]).unwrap();
        layer.write(30 << 20, &[2; 4096]).unwrap();
        layer.close().unwrap();
        let layer = open_to_write(file.clone()).unwrap();
        layer.resize(64 << 30, Prealloc::Off, 0).unwrap();
        layer.write(50 << 30, &[3; 4096]).unwrap();
        layer.close().unwrap();
        assert!(table_at(&file) > 4 << 20);
        let head = |file: &MemoryStorage| Vhd.streams().unwrap().head(&mut file.to_vec().as_slice());
        assert!(head(&file).is_err());

        let layer = open_to_write(file.clone()).unwrap();
        layer.compact(&Quiet).unwrap();
        assert_eq!(table_at(&file), 1536, "{creator}");
        // What is left of the place of the block that was in the way is less than one, and stays free.
        let table = 4 * 32768 + if batmap { 512 + 4096 } else { 0 };
        let pitch = (2 << 20) + 4096;
        let least = (1536 + table + 512u64).next_multiple_of(4096) + 2 * pitch + (2 << 20) + 512;
        let len = file.len().unwrap();
        assert!((least..=least + pitch).contains(&len), "{creator}: {len}, {least}");
        layer.close().unwrap();
        assert_eq!(head(&file).unwrap().disk.unwrap().size, 64 << 30);
        let layer = open_to_write(file.clone()).unwrap();
        for (at, byte) in [(0, 1), (30 << 20, 2), (50 << 30, 3)] {
            let mut bytes = [0; 4096];
            layer.read(at, &mut bytes).unwrap();
            assert_eq!(bytes, [byte; 4096]);
        }
        layer.compact(&Quiet).unwrap();
        assert_eq!((file.len().unwrap(), table_at(&file)), (len, 1536));
        layer.resize(128 << 30, Prealloc::Off, 0).unwrap();
        layer.clear().unwrap();
        assert_eq!(table_at(&file), 1536);
        assert!(file.len().unwrap() < 300 << 10, "{}", file.len().unwrap());
        layer.close().unwrap();
    }
}

/// Grows past the table's room, and is compacted then.
fn grown(size: u64) -> Vec<Op> {
    let write = |at: u64| Op::Write { at: at / 512 * 512, len: 1024 };
    let mut all = Vec::new();
    for size in [size, 8 * size] {
        all.extend([0, 3, 5, 7, 9].map(|tenth| write(size / 10 * tenth)));
        all.extend([Op::Resize { size: 4 * size }, write(3 * size), write(2 * size), Op::Flush]);
        all.extend([Op::Compact, write(size), Op::Flush]);
        all.push(Op::Erase { at: 0, len: size / 2 / 512 * 512, how: Erase::Free });
        all.extend([Op::Compact, Op::Reopen, write(0), Op::Flush]);
    }
    all.push(Op::Clear);
    all.extend([write(size), Op::Flush]);
    all
}

#[test]
fn a_table_comes_home_whatever_stands_there_and_whenever_the_power_goes() {
    let mut states = 0;
    for (block_size, size) in [(512, 10 << 10), (1024, 19 << 10)] {
        for sort in SORTS {
            let make = |file| made(file, sort, size, block_size);
            let shape = shape(size, block_size);
            let test = ModelTest::new(make, open_to_write).shape(shape).script(grown(size));
            let test = if is_child(sort) { test.parent(parent(size * 3 / 2 / 512 * 512)) } else { test };
            test.run().unwrap_or_else(|failure| panic!("{sort:?} {block_size}: {failure}"));
            let test = CrashTest::new(make, open_to_write)
                .view(open)
                .shape(shape)
                .script(grown(size))
                .per_epoch(4)
                .check(|state, _| checked(state));
            let test = if is_child(sort) { test.parent(parent(size * 3 / 2 / 512 * 512)) } else { test };
            let counts = test.run().unwrap_or_else(|failure| panic!("{sort:?} {block_size}: {failure}"));
            states += counts.states;
        }
    }
    assert!(states > 1000, "{states}");
}

/// Which structure is written at `at`, by the header that counts.
fn structure(file: &MemoryStorage, at: u64) -> &'static str {
    let mut header = [0; 32];
    file.read_at(512, &mut header).unwrap();
    let table = u64::from_be_bytes(header[16..24].try_into().unwrap());
    let entries = u64::from(u32::from_be_bytes(header[28..].try_into().unwrap()));
    match at {
        512..1536 if table == 1536 => "header",
        512..1536 => "header, table behind",
        _ if (table..table + 4 * entries).contains(&at) => "table",
        1536 => "table at home",
        _ => "other",
    }
}

/// What puts another table in use needs its barriers: where one is left out, the crash test sees it.
#[test]
fn the_crash_test_sees_every_barrier_of_a_switch_that_is_missing() {
    // A table of two sectors.
    let size = 100 << 10;
    let write = |at: u64| Op::Write { at, len: 1024 };
    let start = [write(0), write(10 << 10), write(90 << 10), Op::Flush];
    let larger = Op::Resize { size: 2 * size };
    let free = Op::Erase { at: 0, len: 8 << 10, how: Erase::Free };
    for (what, missing, ops) in [
        ("growing", "header", vec![larger]),
        ("emptying", "header", vec![Op::Clear]),
        ("emptying", "header, table behind", vec![Op::Clear]),
        ("emptying", "table at home", vec![Op::Clear]),
        ("compacting", "header, table behind", vec![larger, write(150 << 10), Op::Compact]),
        ("compacting", "table", vec![free, Op::Flush, Op::Compact]),
    ] {
        let script: Vec<Op> = start.into_iter().chain(ops).chain([Op::Flush]).collect();
        let test = |seed| {
            CrashTest::new(move |file| made(file, Sort::Ours, size, 512), open_to_write)
                .view(open)
                .shape(shape(size, 512))
                .script(script.clone())
                .seed(seed)
                .per_epoch(60)
        };
        let seen = (0..8).find(|seed| {
            test(*seed).without_barrier(move |file, at| structure(file, at) == missing).run().is_err()
        });
        let seen = seen.unwrap_or_else(|| panic!("not seen, {what}: no barrier before the {missing}"));
        test(seen).run().unwrap_or_else(|failure| panic!("{what}: {failure}"));
    }
}

#[test]
fn data_is_not_cut_off() {
    let file = Arc::new(MemoryStorage::new());
    for layer in
        [fixed(file).unwrap(), made(Arc::new(MemoryStorage::new()), Sort::Ours, 100 << 10, 4096).unwrap()]
    {
        layer.write(70 << 10, &[7; 512]).unwrap();
        assert!(layer.may_shrink(50 << 10).unwrap_err().to_string().contains("--force"));
        let error = layer.resize(50 << 10, Prealloc::Off, 0).unwrap_err().to_string();
        assert!(error.contains("data at offset 71680"), "{error}");
        layer.resize(71 << 10, Prealloc::Off, 0).unwrap();
        assert_eq!(layer.size(), 71 << 10);
    }
}
