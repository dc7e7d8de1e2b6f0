//! Power cuts: a few states of what `examples/crash_vhd.rs` looks at many of, and each barrier left out in turn.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::crash::{CONFIGURATIONS, cut, device};
use std::io;
use std::sync::Arc;

use common::{Sort, footer, make, parent, reopen, sum, view};
use cowhand_core::testing::{CrashTest, Journal, Plan, Shape};
use cowhand_core::{Folder, Identity, MemoryFolder, MemoryStorage, Storage};

#[test]
fn a_power_cut_loses_nothing_that_was_flushed() {
    for configuration in CONFIGURATIONS {
        for seed in 0..6 {
            let counts = cut(configuration, seed, 6).unwrap_or_else(|failure| panic!("{failure}"));
            assert!(counts.states > 20, "{configuration:?}, seed {seed}: {counts:?}");
        }
    }
}

fn word(file: &MemoryStorage, at: u64) -> u32 {
    let mut word = [0; 4];
    file.read_at(at, &mut word).unwrap();
    u32::from_be_bytes(word)
}

/// Which structure stands at `at`.
fn structure(file: &MemoryStorage, at: u64) -> &'static str {
    let entries = u64::from(word(file, 512 + 28));
    let block_size = u64::from(word(file, 512 + 32));
    let in_table = |at: u64| (0..entries).any(|block| u64::from(word(file, 1536 + 4 * block)) * 512 == at);
    match at {
        0..512 => "footer",
        512..1536 => "header",
        _ if at < 1536 + 4 * entries => "table",
        _ if in_table(at) && block_size > 512 => "bitmap",
        _ => "other",
    }
}

/// Every barrier is needed: where one is left out, the crash test sees it.
#[test]
fn the_crash_test_sees_every_barrier_that_is_missing() {
    for (missing, sort, unit, size) in [
        ("table", Sort::Dynamic, 4096, 1 << 16),
        ("table", Sort::Child, 4096, 1 << 16),
        ("bitmap", Sort::Child, 16384, 4 << 14),
        ("bitmap", Sort::Partial, 16384, 4 << 14),
    ] {
        let shape = Shape { ops: 40, ..Shape::new(size, unit) };
        let test = |seed| {
            let test = CrashTest::new(move |file| make(file, sort, size, unit), reopen)
                .shape(shape)
                .seed(seed)
                .per_epoch(40)
                .units(&[512]);
            let test = if sort.is_child() { test.parent(parent(size)) } else { test };
            // On a device what is missing is noise, in a file it is zeros.
            if seed % 2 == 0 { test.device(device(size, unit)) } else { test }
        };
        let seen = (0..40).find(|seed| {
            test(*seed).without_barrier(move |file, at| structure(file, at) == missing).run().is_err()
        });
        let seen = seen.unwrap_or_else(|| panic!("not seen: no barrier before the {missing}, {sort:?}"));
        test(seen).run().unwrap();
    }
}

/// Forgets every barrier.
#[derive(Debug)]
struct Careless(Arc<dyn Storage>);

impl Storage for Careless {
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
        self.0.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn identity(&self) -> io::Result<Identity> {
        self.0.identity()
    }
}

/// A guest writes what looks like a footer, everywhere. Were the old footer written over before the new one is durable, a
/// power cut could leave a file that ends in the guest's.
#[test]
fn no_power_cut_makes_a_guests_bytes_the_footer() {
    const SIZE: u64 = 64 << 10;
    let mut fake = footer(Sort::Dynamic, SIZE);
    fake[64..84].copy_from_slice(b"\0\0\0\0the guest's own.");
    let own = sum(&fake);
    fake[64..68].copy_from_slice(&own);
    let fooled = |careless: bool| {
        let folder = MemoryFolder::new();
        let image = folder.create_new("disk").unwrap();
        make(image, Sort::Dynamic, SIZE, 512).unwrap();
        let journal = Journal::over(&folder);
        let mut file = journal.folder().open("disk", true).unwrap();
        if careless {
            file = Arc::new(Careless(file));
        }
        let layer = reopen(file).unwrap();
        for at in (0..16 * 512).step_by(1024) {
            layer.write(at, &fake.repeat(2)).unwrap();
            layer.flush().unwrap();
        }
        layer.close().unwrap();
        let identity = layer.identity();
        let mut states = journal.states(&Plan::default());
        states.any(|state| view(state.file("disk").unwrap()).unwrap().identity() != identity)
    };
    assert!(!fooled(false));
    assert!(fooled(true));
}
