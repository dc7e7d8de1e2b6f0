//! Power cuts: a few states of what `examples/crash_vhdx.rs` looks at many of, and each barrier left out in turn.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::MIB;
use common::crash::{CONFIGURATIONS, Configuration, Sort, below, cut, make};
use common::reopen;
use cowhand_core::testing::{CrashTest, Shape};
use cowhand_core::{MemoryStorage, Storage};

#[test]
fn a_power_cut_loses_nothing_that_was_flushed() {
    for configuration in CONFIGURATIONS {
        for seed in 0..2 {
            let counts = cut(configuration, seed, 3, 25, 8).unwrap_or_else(|failure| panic!("{failure}"));
            assert!(counts.states > 20, "{configuration:?}, seed {seed}: {counts:?}");
        }
    }
}

/// Which structure stands at `at`, as this program lays it out; the BAT says where the sector bitmap is.
fn structure(file: &MemoryStorage, at: u64) -> &'static str {
    let mut bitmap = [0; 8];
    file.read_at(3 * MIB + 8 * 4096, &mut bitmap).unwrap();
    let bitmap = u64::from_le_bytes(bitmap) & !7;
    match at {
        0x10000 | 0x20000 => "header",
        _ if (MIB..2 * MIB).contains(&at) => "log",
        _ if (3 * MIB..4 * MIB).contains(&at) => "table",
        _ if bitmap > 0 && (bitmap..bitmap + MIB).contains(&at) => "bitmap",
        _ => "other",
    }
}

/// Every barrier is needed: where one is left out, the crash test sees it.
#[test]
fn the_crash_test_sees_every_barrier_that_is_missing() {
    for (missing, sort) in [
        ("log", Sort::Absent),
        ("log", Sort::Child),
        ("table", Sort::Absent),
        ("bitmap", Sort::Child),
        ("header", Sort::Absent),
    ] {
        let how = Configuration { size: 2 * MIB, sort, ..CONFIGURATIONS[0] };
        let test = |seed| {
            let test = CrashTest::new(move |file| make(file, &how), reopen)
                .shape(Shape { ops: 30, max_len: 4096, spots: 4, ..Shape::new(how.size, how.block) })
                .seed(seed)
                .per_epoch(30)
                .nested(0)
                .units(&[512]);
            if sort.is_child() { test.parent(below(&how, seed)) } else { test }
        };
        let seen = (0..30).find(|seed| {
            test(*seed).without_barrier(move |file, at| structure(file, at) == missing).run().is_err()
        });
        let seen = seen.unwrap_or_else(|| panic!("not seen: no barrier before the {missing}, {sort:?}"));
        test(seen).run().unwrap();
    }
}
