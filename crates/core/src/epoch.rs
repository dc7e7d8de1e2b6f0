//! When has every operation that may still use a freed cluster or block ended? Counted by epochs, without a lock.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

/// Epochs, and the operations under way in the current and the previous one.
#[derive(Debug, Default)]
pub struct Epochs {
    current: AtomicU64,
    active: [AtomicU64; 2],
}

/// An operation under way.
#[derive(Debug)]
pub struct Operation<'a> {
    epochs: &'a Epochs,
    epoch: u64,
}

impl Epochs {
    fn counter(&self, epoch: u64) -> &AtomicU64 {
        &self.active[(epoch & 1) as usize] // never out of bounds: 0 or 1
    }

    /// Begins an operation. What it finds mapped stays untouched until it ends.
    pub fn enter(&self) -> Operation<'_> {
        loop {
            let epoch = self.current.load(SeqCst);
            self.counter(epoch).fetch_add(1, SeqCst);
            // Had the epoch gone on in between, this operation might be counted where nobody looks.
            if self.current.load(SeqCst) == epoch {
                return Operation { epochs: self, epoch };
            }
            self.counter(epoch).fetch_sub(1, SeqCst);
        }
    }

    /// The epoch to mark a freed unit with, once nothing leads to it any more.
    pub fn now(&self) -> u64 {
        self.current.load(SeqCst)
    }

    /// Goes on by an epoch if no operation of the previous one is left. One caller at a time.
    pub fn advance(&self) {
        let epoch = self.current.load(SeqCst);
        if self.counter(epoch.wrapping_add(1)).load(SeqCst) == 0 {
            self.current.store(epoch + 1, SeqCst);
        }
    }

    /// Whether every operation that began in or before the epoch `marked` has ended.
    pub fn is_over(&self, marked: u64) -> bool {
        self.now() >= marked + 2
    }
}

impl Epochs {
    /// Waits until every operation that is under way has ended. The caller is in none, and is the one that advances.
    pub fn wait(&self) {
        let marked = self.now();
        loop {
            self.advance();
            if self.is_over(marked) {
                return;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.epochs.counter(self.epoch).fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_holds_what_was_freed_in_its_time() {
        let epochs = Epochs::default();
        let operation = epochs.enter();
        let marked = epochs.now();
        for _ in 0..4 {
            epochs.advance();
        }
        assert!(!epochs.is_over(marked));
        let _later = epochs.enter();
        drop(operation);
        epochs.advance();
        assert!(epochs.is_over(marked));
    }
}
