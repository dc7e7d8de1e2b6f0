//! How often each host cluster is referred to, and as what: one 16-bit cell for each, counted by several threads.
//!
//! A window holds the cells of at most [`WINDOW`] clusters, 128 MiB, of which only touched pages take memory. A file
//! with more clusters is looked at in several windows; stretches that nothing touches are passed over. Counts above
//! [`LARGE`] are kept in maps of at most [`MAX_LARGE`] entries, about 32 MiB.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use zerocopy::FromZeros;

/// Clusters of a window: 4 TiB of file with clusters of 64 KiB. A multiple of what any refcount block counts.
pub(super) const WINDOW: u64 = 1 << 26;
const MAX_LARGE: usize = 1 << 20;
const SHARDS: usize = 16;
/// Clusters that are passed over together where nothing touched one of them.
pub(super) const CHUNK: u64 = 1 << 12;

/// An entry of the image's own tables refers to it and says COPIED; once judged: and the refcount is not 1.
pub(super) const COPIED_USE: u16 = 1 << 15;
/// An entry of the image's own tables refers to it and does not say COPIED; once judged: and the refcount is 1.
pub(super) const PLAIN_USE: u16 = 1 << 14;
/// Guest data, of the image's own disk or a snapshot's.
pub(super) const DATA: u16 = 1 << 13;
/// An L2 table.
pub(super) const L2: u16 = 1 << 12;
/// Metadata that has its clusters to itself.
pub(super) const META: u16 = 1 << 11;
/// The bits of a cell that count.
pub(super) const COUNT: u16 = META - 1;
/// A count from which on it stands in the maps.
pub(super) const LARGE: u64 = COUNT as u64;

/// One window.
#[derive(Debug)]
pub(super) struct Counts {
    clusters: Range<u64>,
    cells: Vec<AtomicU16>,
    /// One bit for each chunk.
    touched: Vec<AtomicU64>,
    large: [Mutex<HashMap<u32, u64>>; SHARDS],
    /// The first cluster behind the window that something refers to.
    beyond: AtomicU64,
    full: AtomicBool,
}

/// What refers to a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) count: u64,
    pub(super) uses: u16,
}

impl Cell {
    pub(super) fn is(self, uses: u16) -> bool {
        self.uses & uses != 0
    }

    /// Metadata stands where something else stands too. L2 tables are shared by snapshots, data by anybody.
    pub(super) fn overlaps(self) -> bool {
        match (self.is(META), self.is(L2), self.is(DATA)) {
            (true, _, _) => self.count > 1,
            (false, l2, data) => l2 && data,
        }
    }
}

impl Counts {
    /// Cells for `clusters`, at most [`WINDOW`] of them. Errors: there is no memory.
    pub(super) fn new(clusters: Range<u64>) -> Option<Counts> {
        let len = clusters.end - clusters.start;
        let chunks = len.div_ceil(CHUNK).div_ceil(64);
        Some(Counts {
            cells: AtomicU16::new_vec_zeroed(usize::try_from(len).ok()?).ok()?,
            touched: AtomicU64::new_vec_zeroed(usize::try_from(chunks).ok()?).ok()?,
            clusters,
            large: Default::default(),
            beyond: AtomicU64::new(u64::MAX),
            full: AtomicBool::new(false),
        })
    }

    pub(super) fn clusters(&self) -> Range<u64> {
        self.clusters.clone()
    }

    /// The first cluster behind the window that was counted; `u64::MAX`: none.
    pub(super) fn beyond(&self) -> u64 {
        self.beyond.load(Relaxed)
    }

    /// Some counts are too large for the memory there is for them.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Relaxed)
    }

    fn shard(&self, index: usize) -> MutexGuard<'_, HashMap<u32, u64>> {
        let shard = &self.large[index % SHARDS]; // never out of bounds
        shard.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Counts `times` references to a cluster, as `uses`.
    pub(super) fn add(&self, cluster: u64, times: u64, uses: u16) {
        let Some(index) = cluster.checked_sub(self.clusters.start) else { return };
        let Some(cell) = self.cells.get(index as usize) else {
            if cluster < self.beyond.load(Relaxed) {
                self.beyond.fetch_min(cluster, Relaxed);
            }
            return;
        };
        let chunk = index / CHUNK;
        if let Some(word) = self.touched.get((chunk / 64) as usize) {
            let bit = 1 << (chunk % 64);
            if word.load(Relaxed) & bit == 0 {
                word.fetch_or(bit, Relaxed);
            }
        }
        let mut old = cell.load(Relaxed);
        loop {
            let count = u64::from(old & COUNT);
            let sum = count.saturating_add(times).min(LARGE);
            let new = (old & !COUNT) | uses | sum as u16;
            match cell.compare_exchange_weak(old, new, Relaxed, Relaxed) {
                Err(now) => old = now,
                Ok(_) if sum < LARGE => return,
                // Whoever comes to the limit brings what was counted before.
                Ok(_) => {
                    return self.add_large(index as usize, if count < LARGE { count } else { 0 } + times);
                }
            }
        }
    }

    fn add_large(&self, index: usize, more: u64) {
        let mut shard = self.shard(index);
        let room = shard.len() < MAX_LARGE / SHARDS;
        match shard.get_mut(&(index as u32)) {
            Some(count) => *count = count.saturating_add(more),
            None if room => {
                shard.insert(index as u32, more);
            }
            None => self.full.store(true, Relaxed),
        }
    }

    /// What refers to a cluster of the window; nothing does to others.
    pub(super) fn get(&self, cluster: u64) -> Cell {
        let index = cluster.wrapping_sub(self.clusters.start) as usize;
        let word = self.cells.get(index).map_or(0, |cell| cell.load(Relaxed));
        let mut count = u64::from(word & COUNT);
        if count == LARGE {
            count = self.shard(index).get(&(index as u32)).copied().unwrap_or(LARGE);
        }
        Cell { count, uses: word & !COUNT }
    }

    /// The words of clusters of the window, for who looks at many: uses, and a count below [`LARGE`].
    pub(super) fn cells(&self, clusters: Range<u64>) -> &[AtomicU16] {
        let start = clusters.start.saturating_sub(self.clusters.start) as usize;
        let end = clusters.end.saturating_sub(self.clusters.start) as usize;
        self.cells.get(start..end.min(self.cells.len())).unwrap_or_default()
    }

    /// Keeps of what was said about COPIED only what is wrong.
    pub(super) fn judge(&self, cluster: u64, wrong: u16) {
        if let Some(cell) = self.cells.get(cluster.wrapping_sub(self.clusters.start) as usize) {
            let word = cell.load(Relaxed);
            cell.store(word & !(COPIED_USE | PLAIN_USE) | wrong, Relaxed);
        }
    }

    /// Whether something was counted in the chunk that `cluster`, of the window, is in.
    pub(super) fn is_touched(&self, cluster: u64) -> bool {
        let chunk = cluster.wrapping_sub(self.clusters.start) / CHUNK;
        let word = self.touched.get((chunk / 64) as usize).map_or(0, |word| word.load(Relaxed));
        word & 1 << (chunk % 64) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_any_size_add_up() {
        let counts = Counts::new(100..5000).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        counts.add(200, 1, DATA);
                        counts.add(201, 7, DATA | COPIED_USE);
                    }
                    counts.add(202, 65_537, L2);
                });
            }
        });
        assert_eq!(counts.get(200), Cell { count: 3000, uses: DATA });
        assert_eq!(counts.get(201), Cell { count: 21_000, uses: DATA | COPIED_USE });
        assert_eq!(counts.get(202), Cell { count: 196_611, uses: L2 });
        assert_eq!(counts.get(203), Cell { count: 0, uses: 0 });
        assert!(counts.is_touched(300) && !counts.is_touched(4999));
        assert_eq!(counts.beyond(), u64::MAX);
        counts.add(9000, 1, DATA);
        counts.add(7000, 1, DATA);
        counts.add(99, 1, DATA);
        assert_eq!(counts.beyond(), 7000);
    }

    #[test]
    fn metadata_shares_nothing() {
        let cell = |count, uses| Cell { count, uses };
        for fine in [cell(1, META), cell(7, L2), cell(9, DATA), cell(0, 0)] {
            assert!(!fine.overlaps(), "{fine:?}");
        }
        for wrong in [cell(2, META), cell(2, META | DATA), cell(2, META | L2), cell(2, L2 | DATA)] {
            assert!(wrong.overlaps(), "{wrong:?}");
        }
    }
}
