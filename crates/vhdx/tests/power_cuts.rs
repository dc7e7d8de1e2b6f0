//! Power cuts: a few states of what `examples/crash.rs` looks at many of, and each barrier left out in turn.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::MIB;
use common::crash::{CONFIGURATIONS, Configuration, Sort, cut, make};
use common::reopen;
use cowhand_core::testing::{CrashTest, Shape};
use cowhand_core::{MemoryStorage, Storage};

#[test]
fn a_power_cut_loses_nothing_that_was_flushed() {
    for configuration in CONFIGURATIONS {
        for seed in 0..2 {
            let counts = cut(configuration, seed, 3, 25).unwrap_or_else(|failure| panic!("{failure}"));
            assert!(counts.states > 20, "{configuration:?}, seed {seed}: {counts:?}");
        }
    }
}

/// Which structure stands at `at`: its place is as this program lays it out.
fn structure(at: u64) -> &'static str {
    match at {
        0x10000 | 0x20000 => "header",
        _ if at < MIB => "other",
        _ if at < 2 * MIB => "log",
        _ if at < 3 * MIB => "other",
        _ if at < 4 * MIB => "table",
        _ => "payload",
    }
}

/// Every barrier is needed: where one is left out, the crash test sees it.
#[test]
fn the_crash_test_sees_every_barrier_that_is_missing() {
    type LeftOut = fn(&MemoryStorage, u64) -> bool;
    for (missing, left_out) in [
        ("before an entry of the log", (|_, at| structure(at) == "log") as LeftOut),
        ("before the changes in place", |_, at| structure(at) == "table"),
        ("before a header", |_, at| structure(at) == "header"),
    ] {
        let how = Configuration { size: 2 * MIB, sort: Sort::Absent, ..CONFIGURATIONS[0] };
        let test = |seed| {
            CrashTest::new(move |file| make(file, &how), reopen)
                .shape(Shape { ops: 30, max_len: 4096, spots: 4, ..Shape::new(how.size, how.block) })
                .seed(seed)
                .per_epoch(30)
                .nested(0)
                .units(&[512])
        };
        let seen = (0..30).find(|seed| test(*seed).without_barrier(left_out).run().is_err());
        let seen = seen.unwrap_or_else(|| panic!("not seen: no barrier {missing}"));
        test(seen).run().unwrap();
    }
}
