//! So many bytes a second, and no more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often who waits looks whether to go on waiting.
const PATIENCE: Duration = Duration::from_millis(50);

/// A limit that several writers keep to together.
#[derive(Debug)]
pub(super) struct Pace {
    bps: u64,
    /// When what went before has taken the time that it should.
    due: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(bps: u64) -> Pace {
        Pace { bps: bps.max(1), due: Mutex::new(Instant::now()) }
    }

    /// Waits until `len` bytes may be written, or somebody says to stop.
    pub(super) fn wait(&self, len: u64, stop: &AtomicBool) {
        let due = {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            // Time in which nothing was written is not made up for.
            let from = (*due).max(Instant::now());
            let takes = Duration::try_from_secs_f64(len as f64 / self.bps as f64).unwrap_or(Duration::MAX);
            *due = from.checked_add(takes).unwrap_or(from);
            from
        };
        while let Some(rest) = due.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(rest.min(PATIENCE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_too_fast_waits() {
        let (pace, stop) = (Pace::new(10_000), AtomicBool::new(false));
        let since = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..5).for_each(|_| pace.wait(250, &stop)));
            }
        });
        // The last of ten goes when nine have taken their time.
        assert!(since.elapsed() >= Duration::from_millis(225), "{:?}", since.elapsed());
        stop.store(true, Ordering::Relaxed);
        let since = Instant::now();
        pace.wait(1 << 30, &stop);
        pace.wait(1, &stop);
        assert!(since.elapsed() < Duration::from_secs(5));
    }
}
