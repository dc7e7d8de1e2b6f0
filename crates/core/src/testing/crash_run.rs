//! The long run of a crash test: its configurations one after the other, each until there were so many states, as a
//! table.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use super::bench::Failure;
use super::crash_test::CrashCounts;

#[derive(Debug, Default)]
struct Row {
    counts: CrashCounts,
    seeds: u64,
    failed: usize,
}

/// The `main` of an example that cuts the power many times. Its arguments are `[STATES [CONFIGURATION [SEED]]]`: at least
/// so many states (100000) of each of the configurations whose name holds that word (all), with the seeds from that one
/// (0) on. `cut` runs one seed of a configuration. Prints a table on standard output, each failure on standard error; the
/// exit status is 1 where there was one, 2 where the arguments make no sense.
#[allow(clippy::print_stdout, clippy::print_stderr)] // That is what it is for.
pub fn crash_run<C: Sync>(
    configurations: &[C],
    name: impl Fn(&C) -> &str,
    cut: impl Fn(&C, u64) -> Result<CrashCounts, Failure> + Sync,
) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, or: u64| arguments.get(at).map_or(Some(or), |word| word.parse().ok());
    let (Some(states), wanted, Some(first)) = (number(0, 100_000), arguments.get(1), number(2, 0)) else {
        eprintln!("usage: [STATES [CONFIGURATION [SEED]]]");
        return ExitCode::from(2);
    };
    println!(
        "| configuration | seeds | epochs | states | of power cuts during recovery | seeds with an error | time |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let mut failed = 0;
    for configuration in configurations {
        let name = name(configuration);
        if wanted.is_some_and(|wanted| !name.contains(wanted.as_str())) {
            continue;
        }
        let since = Instant::now();
        let row = run(|seed| cut(configuration, seed), states as usize, first);
        failed += row.failed;
        println!(
            "| {name} | {} | {} | {} | {} | {} | {:.0} s |",
            row.seeds,
            row.counts.epochs,
            row.counts.states,
            row.counts.nested,
            row.failed,
            since.elapsed().as_secs_f64()
        );
    }
    ExitCode::from(u8::from(failed > 0))
}

/// Runs seed after seed in as many threads as there are processors, until there were so many states.
#[allow(clippy::print_stderr)]
fn run(cut: impl Fn(u64) -> Result<CrashCounts, Failure> + Sync, states: usize, first: u64) -> Row {
    let next = AtomicU64::new(first);
    let row = Mutex::new(Row::default());
    let locked = || row.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || {
        while locked().counts.states < states {
            let done = cut(next.fetch_add(1, Ordering::Relaxed));
            let mut row = locked();
            row.seeds += 1;
            match done {
                Ok(counts) => row.counts += counts,
                Err(failure) => {
                    eprintln!("{failure}");
                    row.failed += 1;
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
    row.into_inner().unwrap_or_else(PoisonError::into_inner)
}
