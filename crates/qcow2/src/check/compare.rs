//! The counts in the file against those that were counted.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use cowhand_core::{Result, Storage};

use super::changed::Changed;
use super::counts::{CHUNK, COPIED_USE, COUNT, Cell, Counts, DATA, L2, LARGE, PLAIN_USE};
use super::findings::Findings;
use super::layout::{Block, Kind, Layout};
use super::sparse::Sparse;
use super::workers::on_threads;
use crate::refcount::Width;

/// Clusters that a thread takes at once, or as many as one refcount block counts.
const TAKE: u64 = 1 << 15;

/// What is done with counts that are wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fix {
    Nothing,
    /// Those that are too low are raised.
    Raise,
    /// Those that are too high are lowered.
    Lower,
}

/// A comparison of one window.
#[derive(Debug)]
pub(super) struct Compare<'a> {
    pub(super) file: &'a dyn Storage,
    pub(super) layout: &'a Layout,
    pub(super) counts: &'a Counts,
    pub(super) fix: Fix,
    pub(super) workers: usize,
}

/// What it brings back.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) found: Findings,
    /// Behind the last cluster that is used or has a count.
    pub(super) end: u64,
    /// Entries must be looked at once more: some lead into metadata or have a wrong COPIED flag.
    pub(super) suspects: bool,
    /// Clusters of refcount blocks that are wrong more often than right: perhaps they are none.
    doubted: Vec<u64>,
}

impl Compare<'_> {
    /// Compares. Afterwards the counts keep of COPIED only what is wrong.
    pub(super) fn run(&self) -> Result<Compared> {
        let geometry = self.layout.rules.geometry;
        let window = self.counts.clusters();
        let each = geometry.block_entries();
        let first = window.start / each;
        let next = AtomicU64::new(first);
        let end = window.end.div_ceil(each);
        let take = (TAKE / each).max(1);
        let threads = self.workers.min((end - first).div_ceil(take) as usize);
        let parts = on_threads(threads, || {
            let mut part = Compared::default();
            let mut sparse = Sparse::new(self.file);
            let mut block = vec![0; geometry.cluster_size() as usize];
            loop {
                let from = next.fetch_add(take, Relaxed);
                if from >= end {
                    return Ok(part);
                }
                part.found.begin(from);
                for index in from..(from + take).min(end) {
                    self.block(index, &mut sparse, &mut block, &mut part)?;
                }
            }
        })?;
        let mut all = Compared::default();
        let mut found = Vec::new();
        for part in parts {
            all.end = all.end.max(part.end);
            all.suspects |= part.suspects;
            all.doubted.extend(part.doubted);
            found.push(part.found);
        }
        all.found.join(found);
        all.doubted.sort_unstable();
        Ok(all)
    }

    fn block(
        &self,
        index: u64,
        sparse: &mut Sparse<'_>,
        bytes: &mut [u8],
        part: &mut Compared,
    ) -> Result<()> {
        let each = self.layout.rules.geometry.block_entries();
        let window = self.counts.clusters();
        let clusters = (index * each).max(window.start)..((index + 1) * each).min(window.end);
        let block = self.layout.block(index);
        let stored = match block {
            Block::Unknown => {
                self.uncounted(clusters, part);
                return Ok(());
            }
            Block::None => Ok(false),
            Block::At(at) => sparse.read(at, bytes),
        };
        let mut pieces = vec![clusters.clone()];
        match stored {
            Ok(true) => {}
            Ok(false) => {
                // Only what is referred to can be wrong, and that is rare.
                bytes.fill(0);
                let chunks = clusters.start / CHUNK..clusters.end.div_ceil(CHUNK);
                let touched =
                    chunks.filter(|chunk| self.counts.is_touched((chunk * CHUNK).max(clusters.start)));
                pieces = touched
                    .map(|chunk| (chunk * CHUNK).max(clusters.start)..((chunk + 1) * CHUNK).min(clusters.end))
                    .collect();
            }
            Err(error) => {
                let at = (index * each) << self.layout.bits();
                part.found.unread(at, || format!("refcount block {index} cannot be read: {error}"));
                self.uncounted(clusters, part);
                return Ok(());
            }
        }
        let mut judged =
            Judged { base: index * each, block, changed: Changed::default(), right: 0, wrong: 0 };
        let width = Width::of(self.layout.rules.geometry);
        for piece in pieces {
            if self.layout.rules.geometry.refcount_order() == 4 {
                // Nearly all images; the shape of this loop is what a check's time goes to.
                let get = |bytes: &[u8], index: usize| {
                    bytes.as_chunks::<2>().0.get(index).map_or(0, |raw| u64::from(u16::from_be_bytes(*raw)))
                };
                self.piece(piece, bytes, get, &mut judged, part);
            } else {
                self.piece(piece, bytes, |bytes, index| width.get(bytes, index), &mut judged, part);
            }
        }
        if let Block::At(at) = block {
            if judged.wrong > judged.right {
                part.doubted.push(at >> self.layout.bits());
            }
            judged.changed.write(self.file, at, bytes)?;
        }
        Ok(())
    }

    /// Clusters whose counts in the file cannot be known.
    fn uncounted(&self, clusters: Range<u64>, part: &mut Compared) {
        for cluster in clusters {
            let cell = self.counts.get(cluster);
            if cell.count > 0 {
                part.end = part.end.max(cluster + 1);
                part.suspects |= cell.overlaps();
                self.counts.judge(cluster, 0);
            }
        }
    }

    #[inline]
    fn piece(
        &self,
        clusters: Range<u64>,
        bytes: &mut [u8],
        get: impl Fn(&[u8], usize) -> u64,
        judged: &mut Judged,
        part: &mut Compared,
    ) {
        let first = (clusters.start - judged.base) as usize;
        for (offset, cell) in self.counts.cells(clusters.clone()).iter().enumerate() {
            let word = cell.load(Relaxed);
            let stored = get(bytes, first + offset);
            if u64::from(word) == stored && stored == 0 {
                continue;
            }
            let cluster = clusters.start + offset as u64;
            let (count, uses) = (u64::from(word & COUNT), word & !COUNT);
            let wrong_use = if stored == 1 { PLAIN_USE } else { COPIED_USE };
            let cell_of = Cell { count, uses };
            if count == stored && count < LARGE && uses & wrong_use == 0 && !cell_of.overlaps() {
                judged.right += 1;
                part.end = part.end.max(cluster + 1);
                cell.store(word & !(COPIED_USE | PLAIN_USE), Relaxed);
            } else {
                self.doubtful(cluster, stored, wrong_use, bytes, judged, part);
            }
        }
    }

    /// A cluster that is not plainly right.
    #[cold]
    fn doubtful(
        &self,
        cluster: u64,
        stored: u64,
        wrong_use: u16,
        bytes: &mut [u8],
        judged: &mut Judged,
        part: &mut Compared,
    ) {
        let cell = self.counts.get(cluster);
        // A file may end inside its last cluster, and a compressed cluster behind that: counts further on say nothing.
        if cell.count == 0 && cluster >= self.layout.clusters() {
            return;
        }
        part.end = part.end.max(cluster + 1);
        let wrong = cell.uses & wrong_use;
        self.counts.judge(cluster, wrong);
        part.suspects |= wrong != 0 || cell.overlaps();
        if stored == cell.count {
            judged.right += 1;
            return;
        }
        judged.wrong += 1;
        let at = cluster << self.layout.bits();
        let text = || format!("cluster {cluster} refcount={stored} reference={}", cell.count);
        let largest = self.layout.rules.geometry.refcount_max();
        if stored > cell.count {
            part.found.needs.lower = true;
            part.found.leak(at, text);
        } else {
            part.found.needs.raise = true;
            part.found.needs.rebuild |= judged.block == Block::None;
            part.found.uncounted(at, text);
        }
        let fix = match self.fix {
            Fix::Nothing => false,
            Fix::Raise => stored < cell.count.min(largest),
            Fix::Lower => stored > cell.count,
        };
        if fix && matches!(judged.block, Block::At(_)) {
            let width = Width::of(self.layout.rules.geometry);
            let index = (cluster - judged.base) as usize;
            width.set(bytes, index, cell.count.min(largest));
            let byte = width.byte(index);
            judged.changed.add(byte..(width.byte(index + 1)).max(byte + 1));
        }
    }
}

/// How a block's counts fare.
#[derive(Debug)]
struct Judged {
    /// The first cluster that it counts.
    base: u64,
    block: Block,
    changed: Changed,
    right: u64,
    wrong: u64,
}

impl Compared {
    /// Reports metadata that does not have its clusters to itself.
    pub(super) fn overlaps(&mut self, layout: &Layout, counts: &Counts) {
        let Compared { found, doubted, .. } = self;
        layout.each(&counts.clusters(), |kind, cluster| {
            let cell = counts.get(cluster);
            if !cell.overlaps() {
                return;
            }
            let at = cluster << layout.bits();
            found.corrupt(at, || {
                format!(
                    "{} in cluster {cluster} at offset {at} does not have it to itself: {} use it",
                    kind.name(),
                    cell.count
                )
            });
            let guests = cell.is(DATA | L2);
            match kind {
                Kind::Bitmaps => found.needs.bitmaps = true,
                // Counts can be made anew wherever there is room, so they yield to whatever may be the guest's.
                Kind::RefcountBlock | Kind::RefcountTable => {
                    found.needs.rebuild |= !guests || doubted.binary_search(&cluster).is_ok();
                }
                // Entries that lead there are wrong.
                Kind::Header | Kind::L1 if guests => {}
                _ => {
                    found.needs.unclear = true;
                    found.needs.blind = true;
                }
            }
        });
    }
}
