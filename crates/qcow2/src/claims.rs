//! Who is at work on which guest clusters: what changes a mapping is alone on its clusters.

use std::ops::RangeInclusive;
use std::sync::{Condvar, Mutex, MutexGuard};

#[derive(Debug)]
struct Claimed {
    id: u64,
    clusters: RangeInclusive<u64>,
    alone: bool,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    held: Vec<Claimed>,
}

/// The claims of one layer. As many as there are threads at work, so a list does.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    state: Mutex<State>,
    released: Condvar,
}

/// A claim; dropping it lets those who wait go on.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    claims: &'a Claims,
    id: u64,
}

impl Claims {
    // The list is changed by single steps that cannot panic half-way.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until no claim that overlaps is in the way: any, if this one is to be `alone`, else one that is alone.
    pub(crate) fn take(&self, clusters: RangeInclusive<u64>, alone: bool) -> Claim<'_> {
        let mut state = self.state();
        let in_the_way = |held: &Claimed| {
            (held.alone || alone)
                && held.clusters.start() <= clusters.end()
                && clusters.start() <= held.clusters.end()
        };
        while state.held.iter().any(in_the_way) {
            state = self.released.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        let id = state.next;
        state.next += 1;
        state.held.push(Claimed { id, clusters, alone });
        Claim { claims: self, id }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.claims.state();
        state.held.retain(|held| held.id != self.id);
        drop(state);
        self.claims.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[test]
    fn overlaps_wait_and_neighbours_do_not() {
        let claims = Claims::default();
        let done = AtomicBool::new(false);
        let first = claims.take(3..=5, true);
        let _beside = claims.take(6..=9, true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _second = claims.take(5..=5, false);
                assert!(done.load(Ordering::SeqCst));
            });
            std::thread::sleep(Duration::from_millis(20));
            done.store(true, Ordering::SeqCst);
            drop(first);
        });
        let _shared = claims.take(1..=2, false);
        let _too = claims.take(2..=2, false);
    }
}
