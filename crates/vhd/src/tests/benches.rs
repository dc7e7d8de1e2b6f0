//! Fresh images under core's benches: model, race, faults, power cuts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cowhand_core::testing::{CrashTest, FaultTest, ModelTest, RaceTest, Shape};
use cowhand_core::{CreateOptions, Format, Layer, NoFiles, Result, Storage, raw::Raw};

use super::{create, open, small};
use crate::alloc::{Front, Layout};
use crate::find::find;
use crate::fresh::Fresh;

fn shape(size: u64, unit: u64) -> Shape {
    Shape { reopen: false, ..Shape::new(size, unit) }
}

#[test]
fn dynamic_images_behave_like_a_flat_vector() {
    for (block_size, size) in
        [(512, 20 << 10), (1024, 77 * 512), (4096, 61 * 1024), (65536, 1 << 20), (1 << 20, (5 << 20) + 512)]
    {
        for seed in 0..6 {
            ModelTest::new(|file| small(file, size, block_size, seed % 2 == 0), open)
                .shape(shape(size, block_size))
                .seed(seed)
                .run()
                .unwrap();
        }
    }
}

#[test]
fn fixed_images_behave_like_a_flat_vector() {
    for seed in 0..6 {
        let make = |file| create(file, 200 << 10, &[("subformat", "fixed"), ("force_size", "on")]);
        ModelTest::new(make, open).shape(shape(200 << 10, 4096)).seed(seed).run().unwrap();
    }
}

/// The benches make an image, close it and open it again for writing. A fresh one is written only by who made it: it is
/// made on the first opening, on what was an empty file until then.
fn nothing(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Raw.create(file, &NoFiles, &CreateOptions::default())
}

#[test]
fn threads_leave_each_other_alone() {
    for block_size in [4096, 65536] {
        let first = |file: Arc<dyn Storage>| {
            if file.is_empty().unwrap() { small(file, 1 << 20, block_size, true) } else { open(file) }
        };
        RaceTest::new(nothing, first).unit(block_size).run().unwrap();
    }
}

#[test]
fn each_failure_is_an_error() {
    for (block_size, unseen) in [(512, true), (4096, true), (4096, false)] {
        let counts = FaultTest::new(|file| small(file, 64 << 10, block_size, unseen), open)
            .shape(shape(64 << 10, block_size))
            .fresh()
            .run()
            .unwrap();
        assert!(counts.errors > 100, "{counts:?}");
    }
    let make = |file| create(file, 64 << 10, &[("subformat", "fixed"), ("preallocation", "full")]);
    FaultTest::new(make, open).shape(shape(64 << 10, 4096)).fresh().run().unwrap();
}

/// The caller may go on after a failure that passes: a block whose bitmap could not be written gets it from the flush.
#[test]
fn what_was_written_with_success_outlives_a_failure() {
    let make = |file| small(file, 64 << 10, 4096, false);
    let reopen = |file: Arc<dyn Storage>| {
        if file.is_empty().unwrap() {
            return make(file);
        }
        open(file.clone()).or_else(|_| {
            // Making it failed: nothing was promised.
            file.set_len(0).unwrap();
            make(file)
        })
    };
    let counts = FaultTest::new(nothing, reopen).shape(shape(64 << 10, 4096)).run().unwrap();
    assert!(counts.errors > 100, "{counts:?}");
}

/// An image that others may see before it is whole: what was flushed is there after a power cut.
#[test]
fn a_power_cut_leaves_what_was_flushed() {
    const SIZE: u64 = 64 << 10;
    for block_size in [512, 4096, 16384] {
        for seed in 0..3 {
            let opened = AtomicBool::new(false);
            let reopen = |file: Arc<dyn Storage>| {
                if opened.swap(true, Ordering::Relaxed) {
                    return open(file);
                }
                // The maker's own layer again, on the bench's storage.
                let found = find(file.as_ref())?;
                let layout = Layout::new(SIZE, block_size, Front::default())?;
                Ok(Arc::new(Fresh::without_blocks(file, found.footer, layout, found.file_len, false))
                    as Arc<dyn Layer>)
            };
            let counts = CrashTest::new(|file| small(file, SIZE, block_size, false), reopen)
                .fresh()
                .shape(shape(SIZE, block_size))
                .seed(seed)
                .per_epoch(60)
                .run()
                .unwrap();
            assert!(counts.states > 100, "{counts:?}");
        }
    }
}
