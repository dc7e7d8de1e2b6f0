//! The benches of truth on qcow2: model, race, crash and fault, over cluster sizes and variants.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::crash::{CONFIGURATIONS, In, cut, parent};
use common::{how, named, qemu};
use cowhand_core::testing::{CrashTest, FaultTest, ModelTest, Op, RaceTest, Shape};
use cowhand_core::{
    CreateOptions, Folder, Format, Layer, MemoryStorage, NoFiles, OpenOptions, Result, Storage,
};
use cowhand_qcow2::Qcow2;

type Make = Box<dyn Fn(Arc<dyn Storage>) -> Result<Arc<dyn Layer>> + Send + Sync>;

fn maker(size: u64, text: &str, parent: bool) -> Make {
    let how = CreateOptions { parent: if parent { named("base", "raw") } else { None }, ..how(size, text) };
    Box::new(move |file| Qcow2.create(file, &NoFiles, &how))
}

fn reopen(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Qcow2.open(file, &NoFiles, &OpenOptions { writable: true, ..OpenOptions::default() })
}

/// (options, allocation unit, disk size)
const VARIANTS: [(&str, u64, u64); 11] = [
    ("cluster_size=64k", 65536, 1 << 20),
    ("cluster_size=4k", 4096, 1 << 18),
    ("cluster_size=512,refcount_bits=1", 512, 1 << 17),
    ("cluster_size=512,refcount_bits=64", 512, 1 << 17),
    ("cluster_size=4k,compat=0.10", 4096, 1 << 18),
    ("cluster_size=16k,extended_l2=on", 16384, 1 << 19),
    ("cluster_size=64k,extended_l2=on,refcount_bits=32", 65536, 1 << 20),
    ("cluster_size=4k,compression_type=zstd,refcount_bits=2", 4096, 1 << 18),
    ("cluster_size=128k,refcount_bits=8", 131_072, 1 << 20),
    ("cluster_size=4k,lazy_refcounts=on", 4096, 1 << 18),
    ("cluster_size=64k,lazy_refcounts=on", 65536, 1 << 20),
];

#[test]
fn every_variant_is_a_flat_vector() {
    for (text, unit, size) in VARIANTS {
        for seed in 0..4 {
            // Two of four disks end inside a cluster.
            let size = size + 512 * (seed % 2);
            let shape = Shape {
                compressed: true,
                resize: true,
                snapshots: true,
                header: true,
                ..Shape::new(size, unit)
            };
            let alone = ModelTest::new(maker(size, text, false), reopen).shape(shape).seed(seed);
            alone.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
            let over = ModelTest::new(maker(size, text, true), reopen).shape(shape).seed(seed + 100);
            let over = over.parent(parent(size / 1024 * 512));
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
            let shape = Shape { resize: true, snapshots: true, header: true, ..Shape::new(1 << 20, 65536) };
            let test = ModelTest::in_folder(make, open).shape(shape).seed(seed);
            test.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
        }
    }
}

#[test]
fn threads_leave_each_other_alone() {
    let time = Duration::from_millis(200);
    for (text, unit, _) in VARIANTS {
        let alone = RaceTest::new(maker(1 << 20, text, false), reopen)
            .unit(unit)
            .time(time)
            .compressed(true)
            .resize(true);
        alone.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
        let over = RaceTest::new(maker(1 << 20, text, true), reopen).unit(unit).time(time);
        let over = over
            .parent(parent(1 << 20))
            .compressed(true)
            .resize(true)
            .snapshots(!text.contains("refcount_bits=1"));
        over.run().unwrap_or_else(|failure| panic!("{text} over a parent: {failure}"));
    }
}

/// A few states of what `examples/crash_qcow2.rs` looks at many of.
#[test]
fn a_power_cut_loses_nothing_that_was_flushed() {
    let sample = if qemu() { 97 } else { 0 };
    for configuration in CONFIGURATIONS {
        for seed in 0..4 {
            let counts = cut(configuration, seed, 4, sample).unwrap_or_else(|failure| panic!("{failure}"));
            assert!(counts.states > 50, "{configuration:?}, seed {seed}: {counts:?}");
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
    let much: Vec<Op> = (0..12).flat_map(much).collect();
    for (missing, script, shape) in [
        ("L1", None, shape),
        ("refcount table", None, shape),
        ("refcount block", None, shape),
        ("other", None, shape),
        ("header", Some(much), shape),
        ("header", None, Shape { resize: true, ..shape }),
        ("header", None, Shape { snapshots: true, ..shape }),
        ("header", None, Shape { bitmaps: true, ..shape }),
    ] {
        let seen = (0..30).any(|seed| {
            let test = CrashTest::new(maker(size, text, false), reopen).shape(shape).seed(seed).per_epoch(20);
            let test = test.units(&[512]).nested(2);
            let test = match &script {
                Some(script) => test.script(script.clone()),
                None => test,
            };
            // On a device what is missing is noise, in a file it is zeros.
            let test = if seed % 2 == 0 { test.device(8 << 20) } else { test };
            test.without_barrier(move |file, at| structure(file, at) == missing).run().is_err()
        });
        assert!(seen, "the barrier before what is written to: {missing}, {shape:?}");
    }
}

#[test]
fn a_failing_input_or_output_loses_nothing() {
    for (text, unit, size) in [VARIANTS[0], VARIANTS[1], VARIANTS[2], VARIANTS[5], VARIANTS[9]] {
        let shape =
            Shape { compressed: true, resize: true, snapshots: true, header: true, ..Shape::new(size, unit) };
        let test = FaultTest::new(maker(size, text, false), reopen).shape(shape).seed(3).every(3);
        let counts = test.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
        assert!(counts.errors > 30, "{text}: {counts:?}");
    }
    let mut fresh = how(1 << 20, "cluster_size=4k");
    fresh.fresh = true;
    let make = move |file| Qcow2.create(file, &NoFiles, &fresh);
    FaultTest::new(make, reopen).shape(Shape::new(1 << 20, 4096)).fresh().run().unwrap();
}
