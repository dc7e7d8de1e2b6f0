//! What an extent holds, as runs of a disk's bytes: neighbours are one run.

use std::ops::Range;

use crate::layout::{BLOCK, BLOCKS, CLUSTER, EXTENT_HEADER};

/// Bytes of a disk that an extent tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The place in the list of disks.
    pub(crate) disk: u32,
    /// Guest offset in bytes.
    pub(crate) at: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// Where they stand in the extent, from its first byte; `None`: they are zero.
    pub(crate) data: Option<usize>,
}

impl Run {
    /// `next` goes on where this one ends, and can be one with it.
    pub(crate) fn joins(&self, next: &Run) -> bool {
        self.disk == next.disk
            && self.at + self.len == next.at
            && self.data.map(|data| data as u64 + self.len) == next.data.map(|data| data as u64)
    }
}

/// The runs of an extent, some blocks of which may be lost.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    list: Vec<Run>,
    block: usize,
    /// Blocks of the data that are not there, ascending.
    lost: Vec<Range<usize>>,
}

impl Runs {
    /// Begins with an extent. `lost`: the blocks of its data that are not there, ascending.
    pub(crate) fn begin(&mut self, lost: Vec<Range<usize>>) {
        self.list.clear();
        self.block = 0;
        self.lost = lost;
    }

    /// How many of the next `count` blocks of data are alike in being there, and whether they are.
    fn alike(&self, count: u32) -> (u32, bool) {
        let until = |end: usize| count.min(u32::try_from(end - self.block).unwrap_or(count));
        match self.lost.iter().find(|lost| lost.end > self.block) {
            Some(lost) if lost.start <= self.block => (until(lost.end), false),
            Some(lost) => (until(lost.start), true),
            None => (count, true),
        }
    }

    /// Takes nothing of blocks that the extent's data has next.
    pub(crate) fn skip(&mut self, mask: u16) {
        self.block += mask.count_ones() as usize;
    }

    /// Takes a cluster of the disk, whose bytes end at `end`. Answers which of its blocks are missing.
    pub(crate) fn cluster(&mut self, disk: u32, cluster: u32, mask: u16, end: u64) -> u16 {
        let base = u64::from(cluster) * CLUSTER;
        let mut missing = 0;
        let mut bit = 0;
        while bit < BLOCKS {
            let rest = mask >> bit;
            let there = rest & 1 == 1;
            let alike = if there { rest.trailing_ones() } else { rest.trailing_zeros() }.min(BLOCKS - bit);
            let (alike, known) = if there { self.alike(alike) } else { (alike, true) };
            if !known {
                (bit..bit + alike).for_each(|lost| missing |= 1 << lost);
            }
            let at = base + u64::from(bit) * BLOCK;
            let len = (u64::from(alike) * BLOCK).min(end.saturating_sub(at));
            let data = there.then_some(EXTENT_HEADER + self.block * BLOCK as usize);
            if there {
                self.block += alike as usize;
            }
            if len > 0 && known {
                self.push(Run { disk, at, len, data });
            }
            bit += alike;
        }
        missing
    }

    fn push(&mut self, run: Run) {
        match self.list.last_mut() {
            Some(last) if last.joins(&run) => last.len += run.len,
            _ => self.list.push(run),
        }
    }

    /// The run of that place.
    pub(crate) fn get(&self, at: usize) -> Option<Run> {
        self.list.get(at).copied()
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // One run is what is meant.
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_run_and_the_end_clips() {
        let mut runs = Runs::default();
        runs.begin(Vec::new());
        assert_eq!(runs.cluster(0, 0, 0xffff, 140_000), 0);
        assert_eq!(runs.cluster(0, 1, 0x00f1, 140_000), 0);
        runs.skip(0x8001);
        assert_eq!(runs.cluster(0, 2, 0xffff, 140_000), 0);
        let run = |at, len, data| Run { disk: 0, at, len, data };
        assert_eq!(
            runs.list,
            [
                run(0, 17 * 4096, Some(512)),
                run(17 * 4096, 3 * 4096, None),
                run(20 * 4096, 4 * 4096, Some(512 + 17 * 4096)),
                run(24 * 4096, 8 * 4096, None),
                run(131_072, 140_000 - 131_072, Some(512 + 23 * 4096)),
            ]
        );
    }

    #[test]
    fn blocks_behind_the_cut_are_missing() {
        let mut runs = Runs::default();
        runs.begin(std::iter::once(3..usize::MAX).collect());
        assert_eq!(runs.cluster(1, 0, 0b1010_0110, u64::MAX), 0b1000_0000);
        assert_eq!(runs.cluster(1, 1, 0b1, u64::MAX), 1);
        assert_eq!(runs.list.iter().map(|run| run.len).sum::<u64>(), 2 * 65536 - 2 * 4096);
        runs.begin([1..2, 17..20].into());
        assert_eq!(runs.cluster(1, 0, 0xffff, u64::MAX), 0b10);
        assert_eq!(runs.cluster(1, 1, 0xffff, u64::MAX), 0b1110);
        let there: Vec<(u64, Option<usize>)> =
            runs.list.iter().map(|run| (run.len / 4096, run.data)).collect();
        let data = |block: usize| Some(512 + block * 4096);
        assert_eq!(there, [(1, data(0)), (15, data(2)), (12, data(20))]);
    }
}
