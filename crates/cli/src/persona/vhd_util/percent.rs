//! Progress as this tool prints it: a percentage that is written over.

use std::io::Write;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};

use cowhand::Progress;

use crate::progress::Meter;

/// Passes on the wish to stop, and draws if asked to.
pub(super) struct Percent {
    meter: Meter,
    shown: bool,
    /// Hundredths that were printed last.
    last: AtomicU64,
}

impl Percent {
    pub(super) fn new(shown: bool) -> Percent {
        Percent { meter: Meter::new(false, true), shown, last: AtomicU64::new(u64::MAX) }
    }

    /// All is done.
    pub(super) fn finish(self) {
        if self.shown {
            print("\r100.00%\n");
        }
    }
}

impl Progress for Percent {
    fn at(&self, done: u64, total: u64) -> ControlFlow<()> {
        if self.shown {
            let now =
                (u128::from(done) * 10_000).checked_div(u128::from(total)).unwrap_or(0).min(9_999) as u64;
            if self.last.swap(now, Ordering::Relaxed) != now {
                print(&format!("\r{:>3}.{:02}%", now / 100, now % 100));
            }
        }
        self.meter.at(done, total)
    }
}

/// Progress that cannot be shown is no reason to stop.
fn print(text: &str) {
    let mut to = std::io::stdout().lock();
    let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
}
