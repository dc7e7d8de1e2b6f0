//! The benches of truth on qcow2: model, race, crash and fault, over cluster sizes and variants.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::cell::Cell;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{how, named, qemu};
use cowhand_core::testing::{CrashTest, Failure, FaultTest, ModelTest, RaceTest, Shape, State};
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
        let alone = RaceTest::new(maker(1 << 20, text, false), reopen).unit(unit).time(time);
        alone.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
        let over =
            RaceTest::new(maker(1 << 20, text, true), reopen).unit(unit).time(time).parent(parent(1 << 20));
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
