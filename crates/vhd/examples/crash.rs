//! Cuts the power many times: `cargo run -p cowhand-vhd --example crash -- [STATES [CONFIGURATION [SEED]]]`.
//! Prints one table; docs/crash.md holds one.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use common::crash::{CONFIGURATIONS, Configuration, cut};
use cowhand_core::testing::CrashCounts;

#[derive(Debug, Default)]
struct Row {
    counts: CrashCounts,
    seeds: u64,
    failed: Vec<String>,
}

/// Runs seed after seed in as many threads as there are processors, until there were so many states.
fn run(configuration: &Configuration, states: usize, first: u64) -> Row {
    let next = AtomicU64::new(first);
    let row = Mutex::new(Row::default());
    let work = || {
        while row.lock().unwrap().counts.states < states {
            let done = cut(configuration, next.fetch_add(1, Ordering::Relaxed), 400);
            let mut row = row.lock().unwrap();
            row.seeds += 1;
            match done {
                Ok(counts) => row.counts += counts,
                Err(failure) => {
                    eprintln!("{failure}");
                    row.failed.push(failure.to_string());
                    // So that an image that always fails comes to an end.
                    row.counts.states += states / 100 + 1;
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    row.into_inner().unwrap()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, or: u64| arguments.get(at).map_or(or, |word| word.parse().unwrap());
    let (states, wanted, first) = (number(0, 100_000), arguments.get(1), number(2, 0));
    println!(
        "| configuration | seeds | epochs | states | of power cuts during recovery | seeds with an error | time |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let mut failed = 0;
    for configuration in CONFIGURATIONS {
        if wanted.is_some_and(|wanted| !configuration.name.contains(wanted.as_str())) {
            continue;
        }
        let since = Instant::now();
        let Row { counts, seeds, failed: errors } = run(configuration, states as usize, first);
        failed += errors.len();
        println!(
            "| {} | {seeds} | {} | {} | {} | {} | {:.0} s |",
            configuration.name,
            counts.epochs,
            counts.states,
            counts.nested,
            errors.len(),
            since.elapsed().as_secs_f64()
        );
    }
    std::process::exit(i32::from(failed > 0));
}
