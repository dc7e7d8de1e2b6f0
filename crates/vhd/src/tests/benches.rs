//! Images under core's benches: model, race, faults.

use std::sync::Arc;
use std::time::Duration;

use cowhand_core::testing::{FaultTest, ModelTest, RaceTest, Shape, fill};
use cowhand_core::{Format, Layer, MemoryStorage, NoFiles, OpenOptions, Result, Storage, raw::Raw};

use super::{create, open, open_to_write, sign, small};

/// (block size, disk size): blocks of a sector, of few, of a usual number; tables of two blocks; disks that end within a
/// block.
pub(super) const SIZES: [(u64, u64); 7] = [
    (512, 20 << 10),
    (1024, 77 * 512),
    (4096, 61 * 1024),
    (4096, 8192),
    (16384, 20000 / 512 * 512),
    (65536, 1 << 20),
    (1 << 20, (5 << 20) + 512),
];

/// What sort of image is made, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// A dynamic disk.
    Ours,
    /// A dynamic disk whose bitmaps have bits that are 0, over bytes that are not.
    Partial,
    /// A child over a raw parent.
    Child,
    /// Such a child of XenServer's first blktap.
    Lsb,
}

pub(super) const SORTS: [Sort; 4] = [Sort::Ours, Sort::Partial, Sort::Child, Sort::Lsb];

/// Makes an image of the sort.
pub(super) fn made(file: Arc<dyn Storage>, sort: Sort, size: u64, block_size: u64) -> Result<Arc<dyn Layer>> {
    small(file.clone(), size, block_size, false)?.close()?;
    if sort == Sort::Ours {
        return open_to_write(file);
    }
    if sort == Sort::Partial {
        // Every second block, full of old bytes, with no sector present.
        let layer = open_to_write(file.clone())?;
        for at in (0..size).step_by(2 * block_size as usize) {
            layer.write(at, &vec![0x5a; block_size.min(size - at) as usize])?;
        }
        layer.close()?;
    }
    let failed = |error| cowhand_core::Error::io("cannot make it", error);
    let mut bytes = vec![0; file.len().map_err(failed)? as usize];
    file.read_at(0, &mut bytes).map_err(failed)?;
    let end = bytes.len() - 512;
    for footer in [0, end] {
        if sort != Sort::Partial {
            bytes[footer + 63] = 4;
        }
        if sort == Sort::Lsb {
            bytes[footer + 28..footer + 36].copy_from_slice(b"tap\0\0\x01\0\0");
        }
    }
    if sort == Sort::Partial {
        let blocks = size.div_ceil(block_size) as usize;
        for entry in (0..blocks).map(|block| 1536 + 4 * block) {
            let sector = u32::from_be_bytes(bytes[entry..entry + 4].try_into().unwrap());
            if sector != u32::MAX {
                let at = sector as usize * 512;
                bytes[at..at + crate::header::bitmap_len(block_size) as usize].fill(0);
            }
        }
    }
    sign(&mut bytes);
    file.write_at(0, &bytes).map_err(failed)?;
    open_to_write(file)
}

/// A raw disk full of stamps.
pub(super) fn parent(size: u64) -> Arc<dyn Layer> {
    let mut bytes = vec![0; size as usize];
    fill(&mut bytes, 0, 1 << 40);
    bytes[size as usize / 3..size as usize / 2].fill(0);
    Raw.open(Arc::new(MemoryStorage::from_bytes(&bytes)), &NoFiles, &OpenOptions::default()).unwrap()
}

pub(super) fn is_child(sort: Sort) -> bool {
    matches!(sort, Sort::Child | Sort::Lsb)
}

#[test]
fn dynamic_images_behave_like_a_flat_vector() {
    for (block_size, size) in SIZES {
        for sort in SORTS {
            for seed in 0..4 {
                let make = |file| made(file, sort, size, block_size);
                let test = ModelTest::new(make, open_to_write).shape(Shape::new(size, block_size)).seed(seed);
                let test = if is_child(sort) {
                    test.parent(parent(size * (seed + 1) / 2 / 512 * 512))
                } else {
                    test
                };
                test.run().unwrap_or_else(|failure| panic!("{sort:?} {block_size} {size}: {failure}"));
            }
        }
    }
}

#[test]
fn new_images_behave_like_a_flat_vector() {
    for (block_size, size) in SIZES {
        for seed in 0..3 {
            let shape = Shape { reopen: false, ..Shape::new(size, block_size) };
            let make = |file| small(file, size, block_size, seed % 2 == 0);
            ModelTest::new(make, open).shape(shape).seed(seed).run().unwrap();
        }
    }
}

#[test]
fn fixed_images_behave_like_a_flat_vector() {
    for seed in 0..6 {
        let make = |file| create(file, 200 << 10, &[("subformat", "fixed"), ("force_size", "on")]);
        ModelTest::new(make, open_to_write).shape(Shape::new(200 << 10, 4096)).seed(seed).run().unwrap();
    }
}

#[test]
fn threads_leave_each_other_alone() {
    for block_size in [512, 4096, 65536] {
        for sort in SORTS {
            let size = 16 * block_size;
            let test =
                RaceTest::new(move |file| made(file, sort, size, block_size), open_to_write).unit(block_size);
            let test = test.time(Duration::from_millis(250));
            let test = if is_child(sort) { test.parent(parent(size)) } else { test };
            test.run().unwrap_or_else(|failure| panic!("{sort:?} {block_size}: {failure}"));
        }
    }
    let fresh = |file| small(file, 1 << 20, 65536, true);
    RaceTest::new(fresh, open).unit(65536).fresh().time(Duration::from_millis(250)).run().unwrap();
}

#[test]
fn each_failure_is_an_error_and_loses_nothing() {
    for (sort, block_size, size) in [
        (Sort::Ours, 512, 20 << 10),
        (Sort::Ours, 4096, 64 << 10),
        (Sort::Partial, 4096, 64 << 10),
        (Sort::Child, 4096, 64 << 10),
        (Sort::Lsb, 16384, 100 << 10),
    ] {
        let make = |file| made(file, sort, size, block_size);
        let test = FaultTest::new(make, open_to_write).shape(Shape::new(size, block_size)).every(2).seed(5);
        let test = if is_child(sort) { test.parent(parent(size)) } else { test };
        let counts = test.run().unwrap_or_else(|failure| panic!("{sort:?} {block_size}: {failure}"));
        assert!(counts.errors > 100, "{counts:?}");
    }
    for (block_size, unseen) in [(512, true), (4096, true), (4096, false)] {
        let counts = FaultTest::new(|file| small(file, 64 << 10, block_size, unseen), open)
            .shape(Shape::new(64 << 10, block_size))
            .fresh()
            .run()
            .unwrap();
        assert!(counts.errors > 100, "{counts:?}");
    }
    let make = |file| create(file, 64 << 10, &[("subformat", "fixed"), ("preallocation", "full")]);
    FaultTest::new(make, open).shape(Shape::new(64 << 10, 4096)).fresh().run().unwrap();
    FaultTest::new(make, open_to_write).shape(Shape::new(64 << 10, 4096)).run().unwrap();
}
