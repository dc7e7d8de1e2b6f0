//! A bounded cache of table pages and bitmaps: what keeps memory the same whatever the disk's size.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use cowhand_core::Result;

/// Keeps the latest pieces that were read, each of the same length, up to a number of bytes.
#[derive(Debug)]
pub(crate) struct Cache {
    held: Mutex<Held>,
    most: usize,
}

#[derive(Debug, Default)]
struct Held {
    pieces: HashMap<u64, Arc<[u8]>>,
    /// Oldest first.
    order: VecDeque<u64>,
}

impl Cache {
    /// For pieces of `piece_len` bytes, of which `bytes` are kept at most; always at least two pieces.
    pub(crate) fn new(piece_len: u64, bytes: u64) -> Cache {
        let most = usize::try_from(bytes / piece_len.max(1)).unwrap_or(usize::MAX).max(2);
        Cache { held: Mutex::default(), most }
    }

    /// The piece `key`, read by `load` if it is not here. `load` runs with no lock held.
    pub(crate) fn get(&self, key: u64, load: impl FnOnce() -> Result<Arc<[u8]>>) -> Result<Arc<[u8]>> {
        let held = || self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(piece) = held().pieces.get(&key) {
            return Ok(piece.clone());
        }
        let piece = load()?;
        let mut held = held();
        if held.pieces.insert(key, piece.clone()).is_none() {
            held.order.push_back(key);
        }
        while held.order.len() > self.most {
            if let Some(oldest) = held.order.pop_front() {
                held.pieces.remove(&oldest);
            }
        }
        Ok(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_its_bound_and_reads_what_it_dropped_again() {
        let cache = Cache::new(10, 35);
        let mut loads = 0;
        for key in (0..100).chain([99, 98, 97, 0]) {
            let piece = cache.get(key, || {
                loads += 1;
                Ok(Arc::from(vec![key as u8; 10]))
            });
            assert_eq!(*piece.unwrap(), [key as u8; 10]);
            assert!(cache.held.lock().unwrap().pieces.len() <= 3);
        }
        assert_eq!(loads, 101);
    }
}
