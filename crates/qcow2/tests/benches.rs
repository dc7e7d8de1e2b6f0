//! The benches of truth on qcow2: model, race, crash and fault, over cluster sizes and variants.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::cell::Cell;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{how, named, qemu};
use cowhand_core::testing::{CrashTest, Failure, FaultTest, ModelTest, Op, RaceTest, Shape, State};
use cowhand_core::{
    CreateOptions, Folder, Format, Layer, MemoryStorage, NoFiles, OpenOptions, Resolver, Result, Storage,
};
use cowhand_qcow2::Qcow2;

/// Gives an image the files of its folder.
#[derive(Debug)]
struct In<'a>(&'a Arc<dyn Folder>);

impl Resolver for In<'_> {
    fn open(&self, name: &Path, writable: bool) -> Result<Arc<dyn Storage>> {
        self.0.open(name.to_str().unwrap(), writable)
    }

    fn create(&self, name: &Path) -> Result<Arc<dyn Storage>> {
        self.0.create_new(name.to_str().unwrap())
    }
}

type Make = Box<dyn Fn(Arc<dyn Storage>) -> Result<Arc<dyn Layer>> + Send + Sync>;

fn maker(size: u64, text: &str, parent: bool) -> Make {
    let how = CreateOptions { parent: if parent { named("base", "raw") } else { None }, ..how(size, text) };
    Box::new(move |file| Qcow2.create(file, &NoFiles, &how))
}

fn reopen(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Qcow2.open(file, &NoFiles, &OpenOptions { writable: true, ..OpenOptions::default() })
}

fn view(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Qcow2.open(file, &NoFiles, &OpenOptions::default())
}

/// A parent that holds data.
fn parent(size: usize) -> Arc<dyn Layer> {
    let file = Arc::new(MemoryStorage::from_bytes(&common::pattern(0, size, 0x77)));
    cowhand_core::raw::Raw.open(file, &NoFiles, &OpenOptions::default()).unwrap()
}

/// (options, allocation unit, disk size)
const VARIANTS: [(&str, u64, u64); 9] = [
    ("cluster_size=64k", 65536, 1 << 20),
    ("cluster_size=4k", 4096, 1 << 18),
    ("cluster_size=512,refcount_bits=1", 512, 1 << 17),
    ("cluster_size=512,refcount_bits=64", 512, 1 << 17),
    ("cluster_size=4k,compat=0.10", 4096, 1 << 18),
    ("cluster_size=16k,extended_l2=on", 16384, 1 << 19),
    ("cluster_size=64k,extended_l2=on,refcount_bits=32", 65536, 1 << 20),
    ("cluster_size=4k,compression_type=zstd,refcount_bits=2", 4096, 1 << 18),
    ("cluster_size=128k,refcount_bits=8", 131_072, 1 << 20),
];

#[test]
fn every_variant_is_a_flat_vector() {
    for (text, unit, size) in VARIANTS {
        for seed in 0..4 {
            // Two of four disks end inside a cluster.
            let size = size + 512 * (seed % 2);
            let shape = Shape { compressed: true, ..Shape::new(size, unit) };
            let alone = ModelTest::new(maker(size, text, false), reopen).shape(shape).seed(seed);
            alone.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
            let over = ModelTest::new(maker(size, text, true), reopen).shape(shape).seed(seed + 100);
            let over = over.parent(parent(size as usize / 1024 * 512));
            over.run().unwrap_or_else(|failure| panic!("{text} over a parent: {failure}"));
        }
    }
}

#[test]
fn a_data_file_is_a_flat_vector_too() {
    for text in ["data_file=d", "data_file=d,data_file_raw=on", "data_file=d,extended_l2=on"] {
        for seed in 0..2 {
            let how = how(1 << 20, text);
            let make =
                move |folder: &Arc<dyn Folder>| Qcow2.create(folder.create_new("disk")?, &In(folder), &how);
            let options = || OpenOptions { writable: true, ..OpenOptions::default() };
            let open = move |folder: &Arc<dyn Folder>| {
                Qcow2.open(folder.open("disk", true)?, &In(folder), &options())
            };
            let test = ModelTest::in_folder(make, open).shape(Shape::new(1 << 20, 65536)).seed(seed);
            test.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
        }
    }
}

#[test]
fn threads_leave_each_other_alone() {
    let time = Duration::from_millis(200);
    for (text, unit, _) in VARIANTS {
        let alone = RaceTest::new(maker(1 << 20, text, false), reopen).unit(unit).time(time).compressed(true);
        alone.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
        let over = RaceTest::new(maker(1 << 20, text, true), reopen).unit(unit).time(time);
        let over = over.parent(parent(1 << 20)).compressed(true);
        over.run().unwrap_or_else(|failure| panic!("{text} over a parent: {failure}"));
    }
}

#[test]
fn a_power_cut_loses_nothing_that_was_flushed() {
    let qemu = qemu();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.qcow2");
    std::fs::write(folder.path().join("base"), [0; 512]).unwrap();
    for (text, unit, size) in [VARIANTS[0], VARIANTS[1], VARIANTS[2], VARIANTS[4], VARIANTS[5]] {
        let seen = Cell::new(0);
        // Leaks alone are allowed; some states are shown to QEMU.
        let sample = |state: &State, _: &Arc<dyn Layer>| {
            seen.set(seen.get() + 1);
            if qemu && seen.get() % 97 == 7 {
                std::fs::write(&path, state.file("disk").unwrap().to_vec())?;
                let out = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&path).output()?;
                if !matches!(out.status.code(), Some(0 | 3)) {
                    return Err(Failure::new(String::from_utf8_lossy(&[out.stdout, out.stderr].concat())));
                }
            }
            Ok(())
        };
        for (seed, below) in [(1, false), (2, true)] {
            let shape = Shape { compressed: true, ..Shape::new(size, unit) };
            let mut test =
                CrashTest::new(maker(size, text, below), reopen).view(view).check(sample).shape(shape);
            if below {
                test = test.parent(parent(size as usize));
            }
            let counts =
                test.seed(seed).per_epoch(40).run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
            println!("{text} seed {seed}: {counts:?}");
            assert!(counts.states > 200, "{text}: {counts:?}");
        }
    }
}

/// The disk is large and its clusters small, so that there are many tables.
const TABLES: (&str, u64, u64) = ("cluster_size=512", 512, 1 << 19);

#[test]
fn a_power_cut_while_threads_write_loses_nothing_either() {
    for (text, unit, size) in [VARIANTS[0], VARIANTS[1], VARIANTS[5], TABLES] {
        let shape = Shape { compressed: true, ..Shape::new(size, unit) };
        for seed in 0..3 {
            let test = CrashTest::new(maker(size, text, false), reopen).shape(shape).seed(seed).threads(3);
            test.per_epoch(10).run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
        }
    }
}

/// A device: nothing reads zero of itself, and nothing can be punched.
#[test]
fn old_bytes_of_a_device_never_show() {
    for (text, unit, size) in [VARIANTS[0], VARIANTS[1], VARIANTS[5], TABLES] {
        let shape = Shape { compressed: true, ..Shape::new(size, unit) };
        for seed in 0..3 {
            let test = CrashTest::new(maker(size, text, false), reopen).view(view).shape(shape).seed(seed);
            let test = test.device(4 << 20).per_epoch(10);
            test.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
        }
    }
}

fn word(file: &MemoryStorage, at: u64) -> u64 {
    let mut word = [0; 8];
    file.read_at(at, &mut word).unwrap();
    u64::from_be_bytes(word)
}

/// The offsets in the table at `at` of as many entries as are asked for.
fn table(file: &MemoryStorage, at: u64, entries: u64) -> Vec<u64> {
    (0..entries).map(|index| word(file, at + 8 * index) & 0x00ff_ffff_ffff_fe00).collect()
}

/// Which structure of an image with clusters of 512 bytes stands at `at`.
fn structure(file: &MemoryStorage, at: u64) -> &'static str {
    let (l1, l1_entries) = (word(file, 40), word(file, 32) & 0xffff_ffff);
    let (counts, clusters) = (word(file, 48), word(file, 56) >> 32);
    if at < 512 {
        "header"
    } else if (l1..l1 + 8 * l1_entries).contains(&at) {
        "L1"
    } else if (counts..counts + 512 * clusters).contains(&at) {
        "refcount table"
    } else if table(file, counts, 64 * clusters).contains(&(at - at % 512)) {
        "refcount block"
    } else {
        // L2 tables and data: a new table is in no L1 table yet.
        "other"
    }
}

/// Every barrier is needed: where one is left out, the crash test sees it.
#[test]
fn the_crash_test_sees_every_barrier_that_is_missing() {
    let (text, unit, size) = ("cluster_size=512,refcount_bits=64", 512, 1 << 22);
    let shape = Shape { compressed: true, max_len: 1 << 18, ops: 40, ..Shape::new(size, unit) };
    // So much that the refcount table grows.
    let much = |n: u64| [Op::Write { at: n << 18, len: 1 << 18 }, Op::Flush];
    for missing in ["L1", "refcount table", "refcount block", "header", "other"] {
        let seen = (0..30).any(|seed| {
            let test = CrashTest::new(maker(size, text, false), reopen).shape(shape).seed(seed).per_epoch(20);
            let test = test.units(&[512]).nested(2);
            let test = if missing == "header" { test.script((0..12).flat_map(much).collect()) } else { test };
            // On a device what is missing is noise, in a file it is zeros.
            let test = if seed % 2 == 0 { test.device(8 << 20) } else { test };
            test.without_barrier(move |file, at| structure(file, at) == missing).run().is_err()
        });
        assert!(seen, "the barrier before what is written to: {missing}");
    }
}

#[test]
fn a_failing_input_or_output_loses_nothing() {
    for (text, unit, size) in [VARIANTS[0], VARIANTS[1], VARIANTS[2], VARIANTS[5]] {
        let shape = Shape { compressed: true, ..Shape::new(size, unit) };
        let test = FaultTest::new(maker(size, text, false), reopen).shape(shape).seed(3).every(3);
        let counts = test.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
        assert!(counts.errors > 30, "{text}: {counts:?}");
    }
    let mut fresh = how(1 << 20, "cluster_size=4k");
    fresh.fresh = true;
    let make = move |file| Qcow2.create(file, &NoFiles, &fresh);
    FaultTest::new(make, reopen).shape(Shape::new(1 << 20, 4096)).fresh().run().unwrap();
}
