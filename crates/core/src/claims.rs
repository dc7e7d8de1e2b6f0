//! Who is at work on which units (units, blocks) of a layer: what changes a mapping is alone on its units.

use std::ops::RangeInclusive;
use std::sync::{Condvar, Mutex, MutexGuard};

#[derive(Debug)]
struct Claimed {
    id: u64,
    units: RangeInclusive<u64>,
    alone: bool,
}

/// All claims, held or waited for, in the order in which they were asked for.
#[derive(Debug, Default)]
struct State {
    next: u64,
    claims: Vec<Claimed>,
    /// How many of them wait: nobody need be woken for none.
    waiting: usize,
}

/// The claims of one layer. As many as there are threads at work, so a list does. Who asks first is served first: a
/// stream of writers cannot keep one waiting who wants to be alone.
#[derive(Debug, Default)]
pub struct Claims {
    state: Mutex<State>,
    released: Condvar,
}

/// A claim; dropping it lets those who wait go on.
#[derive(Debug)]
pub struct Claim<'a> {
    claims: &'a Claims,
    id: u64,
}

impl Claims {
    // The list is changed by single steps that cannot panic half-way.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until no claim that overlaps is in the way: any, if this one is to be `alone`, else one that is alone. Nor
    /// does it overtake one that waits and that it would be in the way of. A thread that holds a claim takes no other.
    pub fn take(&self, units: RangeInclusive<u64>, alone: bool) -> Claim<'_> {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        let in_the_way = |other: &&Claimed| {
            (other.alone || alone) && other.units.start() <= units.end() && units.start() <= other.units.end()
        };
        state.claims.push(Claimed { id, units: units.clone(), alone });
        while state.claims.iter().take_while(|other| other.id != id).any(|other| in_the_way(&other)) {
            state.waiting += 1;
            state = self.released.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            state.waiting -= 1;
        }
        Claim { claims: self, id }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.claims.state();
        state.claims.retain(|claim| claim.id != self.id);
        if state.waiting > 0 {
            drop(state);
            self.claims.released.notify_all();
        }
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

    #[test]
    fn who_wants_to_be_alone_is_not_kept_waiting_by_a_stream_of_others() {
        let claims = Claims::default();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Two that overlap in time: there is never a moment without a claim.
            for thread in 0..2 {
                let (claims, done) = (&claims, &done);
                scope.spawn(move || {
                    let mut held = claims.take(thread..=thread, false);
                    while !done.load(Ordering::SeqCst) {
                        std::thread::sleep(Duration::from_millis(1 + thread));
                        drop(held);
                        held = claims.take(thread..=thread, false);
                    }
                });
            }
            for _ in 0..20 {
                let alone = claims.take(0..=u64::MAX, true);
                assert_eq!(claims.state().claims.first().map(|first| first.id), Some(alone.id));
            }
            done.store(true, Ordering::SeqCst);
        });
    }
}
