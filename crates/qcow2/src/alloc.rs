//! The allocator: which host clusters are free, by the refcounts. Counts go up before anything points at a cluster,
//! and down only after nothing durable does.

mod fork;
mod rebuild;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use cowhand_core::{Error, ErrorKind, Result, Storage};

use crate::cache::read_to_end;
use crate::entry::OFFSET;
use crate::geometry::Geometry;
use crate::header::{AT_REFCOUNT_TABLE, MAX_REFCOUNT_TABLE_BYTES};
use crate::refcount::Width;

/// Refcount blocks in memory, in bytes; dirty ones may take as much again.
const CACHE_BYTES: u64 = 8 << 20;

/// The reserve needs a larger refcount table first.
#[derive(Debug)]
pub(crate) enum Refused {
    /// With what the table covers now, in clusters.
    TableFull(u64),
    Failed(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Refused::Failed(error)
    }
}

#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    dirty: Range<usize>,
    /// Copied for writing: must not be dropped, the file is older.
    writing: bool,
    used: u64,
}

/// Host clusters, as numbers.
pub(crate) type Run = Range<u64>;

#[derive(Debug)]
pub(crate) struct Allocator {
    file: Arc<dyn Storage>,
    geometry: Geometry,
    width: Width,
    /// Refcount blocks' offsets.
    table: Vec<u64>,
    table_at: u64,
    dirty_entries: BTreeSet<usize>,
    /// A block that the file's table does not know yet was made since the last write.
    new_blocks: bool,
    blocks: BTreeMap<usize, Block>,
    clock: u64,
    dirty_blocks: usize,
    /// Where the search for free clusters starts.
    cursor: u64,
    /// From this cluster on nothing was ever written, so it reads zero.
    virgin: u64,
    /// Where the next compressed bytes go: in a cluster that has room, or 0.
    packed: u64,
    broken: bool,
    /// Another state is kept in the file while this one is made.
    fork: Option<fork::Fork>,
}

/// Where a batch of compressed clusters goes.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Offset in the file of each piece.
    pub(crate) places: Vec<u64>,
}

impl Allocator {
    /// The allocator of an image that is there; it knows nothing until [`Allocator::load`].
    pub(crate) fn open(file: Arc<dyn Storage>, geometry: Geometry, table_at: u64) -> Allocator {
        Allocator::empty(file, geometry, table_at, Vec::new())
    }

    /// Reads the refcount table of `clusters` clusters.
    pub(crate) fn load(&mut self, clusters: u32) -> Result<()> {
        let bytes = u64::from(clusters) << self.geometry.cluster_bits();
        let mut raw = vec![0; bytes as usize];
        read_to_end(self.file.as_ref(), self.table_at, &mut raw)
            .map_err(|error| Error::io("cannot read the refcount table", error).at(self.table_at))?;
        self.table = raw.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word) & !511).collect();
        let len = self.file.len().map_err(|error| Error::io("cannot find the size", error))?;
        self.virgin = len.div_ceil(self.geometry.cluster_size());
        Ok(())
    }

    /// The allocator of a new image whose table stands at `table_at` and has `entries` entries.
    pub(crate) fn fresh(
        file: Arc<dyn Storage>,
        geometry: Geometry,
        table_at: u64,
        entries: usize,
    ) -> Result<Allocator> {
        let len = file.len().map_err(|error| Error::io("cannot find the size", error))?;
        let mut allocator = Allocator::empty(file, geometry, table_at, vec![0; entries]);
        allocator.virgin = len.div_ceil(geometry.cluster_size());
        Ok(allocator)
    }

    fn empty(file: Arc<dyn Storage>, geometry: Geometry, table_at: u64, table: Vec<u64>) -> Allocator {
        Allocator {
            file,
            geometry,
            width: Width::of(geometry),
            table,
            table_at,
            dirty_entries: BTreeSet::new(),
            new_blocks: false,
            blocks: BTreeMap::new(),
            clock: 0,
            dirty_blocks: 0,
            cursor: 0,
            virgin: 0,
            packed: 0,
            broken: false,
            fork: None,
        }
    }

    /// Where the last cluster ends that was ever given out, as an offset.
    pub(crate) fn end(&self) -> u64 {
        self.virgin << self.geometry.cluster_bits()
    }

    pub(crate) fn table_at(&self) -> u64 {
        self.table_at
    }

    /// The offsets of all refcount blocks.
    pub(crate) fn block_offsets(&self) -> impl Iterator<Item = u64> + '_ {
        self.table.iter().copied().filter(|offset| *offset != 0)
    }

    /// Clusters of the refcount table.
    pub(crate) fn table_run(&self) -> Run {
        let start = self.table_at >> self.geometry.cluster_bits();
        start..start + ((self.table.len() as u64 * 8) >> self.geometry.cluster_bits())
    }

    /// Clusters that the refcount table can count.
    pub(crate) fn covered(&self) -> u64 {
        self.table.len() as u64 * self.geometry.block_entries()
    }

    fn place(&self, cluster: u64) -> (usize, usize) {
        let per_block = self.geometry.block_entries();
        ((cluster / per_block) as usize, (cluster % per_block) as usize)
    }

    /// The block of that index, read where it is not in memory; `None` where there is none.
    fn block(&mut self, index: usize) -> Result<Option<&mut Block>> {
        let offset = self.table.get(index).copied().unwrap_or(0);
        if offset == 0 {
            return Ok(None);
        }
        self.clock += 1;
        if !self.blocks.contains_key(&index) {
            let len = self.file.len().map_err(|error| Error::io("cannot find the size", error))?;
            let at = self.table_at + 8 * index as u64;
            if self.geometry.in_cluster(offset) != 0 {
                return Err(Error::corrupt(
                    "refcount table entry",
                    format!("{offset} is no cluster's start"),
                )
                .at(at));
            }
            if offset >= len {
                return Err(Error::corrupt(
                    "refcount table entry",
                    format!("{offset} is past the end of the file ({len} bytes)"),
                )
                .at(at));
            }
            let mut bytes = vec![0; self.geometry.cluster_size() as usize];
            read_to_end(self.file.as_ref(), offset, &mut bytes)
                .map_err(|error| Error::io("cannot read a refcount block", error).at(offset))?;
            self.make_room();
            self.blocks.insert(index, Block { bytes, dirty: 0..0, writing: false, used: 0 });
        }
        let clock = self.clock;
        let Some(block) = self.blocks.get_mut(&index) else { return Ok(None) };
        block.used = clock;
        Ok(Some(block))
    }

    fn make_room(&mut self) {
        let room = (CACHE_BYTES / self.geometry.cluster_size()) as usize;
        if self.blocks.len() < room {
            return;
        }
        let idle = |block: &Block| block.dirty.is_empty() && !block.writing;
        let mut old: Vec<(u64, usize)> = self
            .blocks
            .iter()
            .filter(|(_, block)| idle(block))
            .map(|(index, block)| (block.used, *index))
            .collect();
        old.sort_unstable();
        for (_, index) in old.iter().take(old.len().div_ceil(2)) {
            self.blocks.remove(index);
        }
    }

    /// The count of a cluster; 0 past what the table covers.
    pub(crate) fn count(&mut self, cluster: u64) -> Result<u64> {
        let (block, index) = self.place(cluster);
        let width = self.width;
        Ok(self.block(block)?.map_or(0, |block| width.get(&block.bytes, index)))
    }

    /// Sets counts of clusters that have a block.
    fn set(&mut self, run: Run, value: u64) -> Result<()> {
        let width = self.width;
        let per_block = self.geometry.block_entries();
        let mut at = run.start;
        while at < run.end {
            let (number, first) = self.place(at);
            let count = (run.end - at).min(per_block - first as u64);
            self.unshare(number)?;
            let block = self
                .block(number)?
                .ok_or_else(|| Error::corrupt("refcount table", "has no block for a cluster in use"))?;
            for index in first..first + count as usize {
                width.set(&mut block.bytes, index, value);
            }
            let (start, end) = (width.byte(first), width.byte(first + count as usize - 1) + 8);
            let clean = block.dirty.is_empty();
            let end = end.min(block.bytes.len());
            block.dirty =
                if clean { start..end } else { block.dirty.start.min(start)..block.dirty.end.max(end) };
            if clean {
                self.dirty_blocks += 1;
            }
            at += count;
        }
        Ok(())
    }

    /// The first run of `n` free clusters at or after `from`. What the table does not cover is free.
    fn find(&mut self, from: u64, n: u64) -> Result<u64> {
        let per_block = self.geometry.block_entries();
        let width = self.width;
        let mut start = from;
        let mut at = from;
        let covered = self.covered();
        while at < start + n && at < covered {
            let (number, first) = self.place(at);
            let end = (at - first as u64) + per_block;
            let before = self.before(number)?;
            match self.block(number)? {
                None => at = end,
                Some(block) => {
                    let used = |bytes: &[u8], index| width.get(bytes, index) != 0;
                    for index in first..per_block as usize {
                        if used(&block.bytes, index) || before.as_ref().is_some_and(|old| used(old, index)) {
                            start = at + 1;
                        }
                        at += 1;
                        if at >= start + n {
                            break;
                        }
                    }
                }
            }
        }
        // A run may not begin at a cluster that offsets cannot name.
        if (start + n).checked_mul(self.geometry.cluster_size()).is_none_or(|end| end > OFFSET) {
            return Err(Error::new(ErrorKind::NoSpace, "the image file cannot grow any further"));
        }
        Ok(start)
    }

    /// Indices of blocks that are needed for `run` and are not there.
    fn missing(&self, run: Run) -> Vec<usize> {
        let (first, last) = (self.place(run.start).0, self.place(run.end - 1).0);
        (first..=last).filter(|index| self.table.get(*index).copied().unwrap_or(0) == 0).collect()
    }

    /// `n` free clusters that stand together, at or after `from`, and the refcount blocks that are needed for them and
    /// for these blocks, which come behind them.
    fn choose(&mut self, from: u64, n: u64) -> Result<(Run, Vec<usize>)> {
        let mut extra = 0;
        loop {
            let start = self.find(from, n + extra)?;
            let missing = self.missing(start..start + n + extra);
            if missing.len() as u64 <= extra {
                return Ok((start..start + n, missing));
            }
            extra = missing.len() as u64;
        }
    }

    /// Takes what [`Allocator::choose`] found.
    fn occupy(&mut self, run: Run, missing: &[usize]) -> Result<(), Refused> {
        let end = run.end + missing.len() as u64;
        if end > self.covered() {
            if self.fork.is_none() {
                return Err(Refused::TableFull(self.covered()));
            }
            self.cover(end)?;
        }
        for (index, cluster) in missing.iter().zip(run.end..) {
            self.add_block(*index, cluster);
        }
        self.set(run.start..end, 1)?;
        self.virgin = self.virgin.max(end);
        Ok(())
    }

    /// Takes `n` free clusters that stand together, at or after `from`, with the refcount blocks they need behind them.
    fn take(&mut self, from: u64, n: u64) -> Result<Run, Refused> {
        let (run, missing) = self.choose(from, n)?;
        self.occupy(run.clone(), &missing)?;
        Ok(run)
    }

    fn add_block(&mut self, index: usize, cluster: u64) {
        if let Some(entry) = self.table.get_mut(index) {
            *entry = cluster << self.geometry.cluster_bits();
        }
        let bytes = vec![0; self.geometry.cluster_size() as usize];
        let dirty = 0..bytes.len();
        self.make_room();
        self.clock += 1;
        self.blocks.insert(index, Block { bytes, dirty, writing: false, used: self.clock });
        self.dirty_blocks += 1;
        self.dirty_entries.insert(index);
        self.new_blocks = true;
        if let Some(fork) = &mut self.fork {
            fork.made(index);
        }
    }

    /// Reserves `n` clusters that stand together. The second: they read zero.
    pub(crate) fn reserve(&mut self, n: u64) -> Result<(Run, bool), Refused> {
        let virgin = self.virgin;
        let run = self.take(self.cursor, n)?;
        // Shorter holes that were passed over are looked at again once something is freed; looking at them each time
        // would make every large write walk the whole file.
        self.cursor = run.end;
        let zero = run.start >= virgin;
        Ok((run, zero))
    }

    /// Reserves bytes for pieces of compressed data, packed without a gap where counts allow.
    pub(crate) fn reserve_packed(&mut self, sizes: &[u64]) -> Result<Layout, Refused> {
        let cluster = self.geometry.cluster_size();
        let bits = self.geometry.cluster_bits();
        let max = self.geometry.refcount_max();
        // Try to go on in the open cluster; that needs the next clusters, if any, to be free.
        let mut open = self.packed;
        if open != 0 && self.count(open >> bits)? >= max {
            open = 0;
        }
        for start in [open, 0] {
            let mut at = start;
            let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
            if at != 0 {
                counts.insert(at >> bits, self.count(at >> bits)?);
            }
            let mut places = Vec::with_capacity(sizes.len());
            for size in sizes {
                if at % cluster != 0 && counts.get(&(at >> bits)).is_some_and(|count| *count >= max) {
                    at = at.next_multiple_of(cluster);
                }
                places.push(at);
                for number in at >> bits..=(at + size - 1) >> bits {
                    *counts.entry(number).or_default() += 1;
                }
                at += size;
            }
            // Numbers are relative to cluster 0 so far, unless they go on in the open cluster.
            let new = if start == 0 { 0 } else { (start >> bits) + 1 }..at.div_ceil(cluster);
            let n = new.end.saturating_sub(new.start);
            let mut base = 0;
            if n > 0 {
                if start != 0 {
                    if self.find(new.start, n)? != new.start {
                        continue;
                    }
                    let run = self.take(new.start, n)?;
                    if run.start != new.start {
                        self.release(run)?;
                        continue;
                    }
                } else {
                    base = self.reserve(n)?.0.start;
                }
            }
            for (number, count) in &counts {
                self.set(number + base..number + base + 1, *count)?;
            }
            let shift = base << bits;
            self.packed = if at % cluster == 0 { 0 } else { at + shift };
            for place in &mut places {
                *place += shift;
            }
            return Ok(Layout { places });
        }
        Err(Refused::Failed(Error::new(ErrorKind::NoSpace, "no room for compressed data")))
    }

    /// Whether the one reference to each cluster of `run` is the caller's, who is about to take it away. From here on
    /// nobody is given room in them beside what is there.
    pub(crate) fn retire(&mut self, run: &Run) -> Result<bool> {
        if run.contains(&(self.packed >> self.geometry.cluster_bits())) {
            self.packed = 0;
        }
        for cluster in run.clone() {
            if self.count(cluster)? != 1 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes one reference from each cluster of `run`. Answers nothing; what reaches 0 can be given out again.
    pub(crate) fn release(&mut self, run: Run) -> Result<()> {
        let bits = self.geometry.cluster_bits();
        for cluster in run {
            let count = self.count(cluster)?;
            let left = count.checked_sub(1).ok_or_else(|| {
                Error::corrupt("refcount", "a cluster that was in use has a count of 0")
                    .at(cluster << bits)
                    .hint("run a check that repairs")
            })?;
            self.set(cluster..cluster + 1, left)?;
            if left == 0 {
                self.cursor = self.cursor.min(cluster);
                if self.packed >> bits == cluster {
                    self.packed = 0;
                }
            }
        }
        Ok(())
    }

    /// Counts were changed that the file does not have yet.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty_blocks > 0 || !self.dirty_entries.is_empty()
    }

    /// So much is dirty that it should be written before more is changed.
    pub(crate) fn too_dirty(&self) -> bool {
        self.dirty_blocks as u64 * self.geometry.cluster_size() > CACHE_BYTES / 2 && self.dirty_blocks > 1
    }

    /// Makes the refcount table larger and writes everything that belongs to it. Nobody else may be writing metadata.
    /// `barrier` makes what was written before durable.
    pub(crate) fn grow(&mut self, n: u64, barrier: &dyn Fn() -> Result<()>) -> Result<()> {
        let bits = self.geometry.cluster_bits();
        let per_cluster = self.geometry.cluster_size() / 8;
        let old = self.table_run();
        let wanted = self.covered() + n + 2 * self.geometry.block_entries();
        let mut clusters = (wanted.div_ceil(self.geometry.block_entries()) * 3 / 2).div_ceil(per_cluster);
        clusters = clusters.max(old.end - old.start + 1).min(MAX_REFCOUNT_TABLE_BYTES >> bits);
        if clusters <= old.end - old.start {
            return Err(Error::new(ErrorKind::NoSpace, "the refcount table cannot grow beyond 8 MiB")
                .hint("use larger clusters"));
        }
        let old_at = self.table_at;
        let old_len = self.table.len();
        self.table.resize((clusters * per_cluster) as usize, 0);
        let done = match self.take(self.cursor, clusters) {
            Ok(run) => {
                self.table_at = run.start << bits;
                self.write_grown(clusters, barrier)
            }
            Err(Refused::Failed(error)) => Err(error),
            Err(Refused::TableFull(_)) => {
                Err(Error::new(ErrorKind::NoSpace, "the refcount table cannot grow any further")
                    .hint("use larger clusters"))
            }
        };
        if let Err(error) = done {
            // The file still has the old table, which knows nothing of the blocks past it.
            self.table_at = old_at;
            self.table.truncate(old_len);
            self.blocks.retain(|index, _| *index < old_len);
            self.dirty_entries.retain(|index| *index < old_len);
            self.dirty_blocks = self.blocks.values().filter(|block| !block.dirty.is_empty()).count();
            return Err(error);
        }
        self.release(old)
    }

    /// The header could not be written whole: which table the file has is not known.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    fn write_grown(&mut self, clusters: u64, barrier: &dyn Fn() -> Result<()>) -> Result<()> {
        let copies = self.copy_dirty();
        let done = copies.write_blocks(self.file.as_ref());
        self.written(&copies, done.is_ok());
        done?;
        let bytes: Vec<u8> = self.table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.file
            .write_at(self.table_at, &bytes)
            .map_err(|error| Error::io("cannot write the refcount table", error).at(self.table_at))?;
        barrier()?;
        let mut fields = self.table_at.to_be_bytes().to_vec();
        fields.extend_from_slice(&(clusters as u32).to_be_bytes());
        let written = self.file.write_at(AT_REFCOUNT_TABLE, &fields);
        let written =
            written.map_err(|error| Error::io("cannot write the header", error).at(AT_REFCOUNT_TABLE));
        let durable = written.and_then(|()| barrier());
        self.broken = durable.is_err();
        self.dirty_entries.clear();
        durable
    }

    /// Copies all that is dirty, and holds it for clean.
    pub(crate) fn copy_dirty(&mut self) -> Dirty {
        let mut dirty = Dirty { new_blocks: std::mem::take(&mut self.new_blocks), ..Dirty::default() };
        if self.dirty_blocks > 0 {
            for (index, block) in &mut self.blocks {
                let offset = self.table.get(*index).copied().unwrap_or(0);
                if block.dirty.is_empty() || offset == 0 {
                    continue;
                }
                let range = block.dirty.start / 512 * 512
                    ..block.dirty.end.next_multiple_of(512).min(block.bytes.len());
                let bytes = block.bytes.get(range.clone()).unwrap_or_default().to_vec();
                block.dirty = 0..0;
                block.writing = true;
                dirty.indices.push((*index, range.clone()));
                dirty.blocks.push((offset + range.start as u64, bytes));
            }
            self.dirty_blocks = 0;
        }
        for index in std::mem::take(&mut self.dirty_entries) {
            let entry = self.table.get(index).copied().unwrap_or(0);
            dirty.entries.push((self.table_at + 8 * index as u64, entry, index));
        }
        dirty
    }

    /// Ends what [`Allocator::copy_dirty`] began; what was not written is dirty again.
    pub(crate) fn written(&mut self, dirty: &Dirty, done: bool) {
        for (index, range) in &dirty.indices {
            let Some(block) = self.blocks.get_mut(index) else { continue };
            block.writing = false;
            if !done {
                let clean = block.dirty.is_empty();
                block.dirty = if clean {
                    range.clone()
                } else {
                    block.dirty.start.min(range.start)..block.dirty.end.max(range.end)
                };
                self.dirty_blocks += usize::from(clean);
            }
        }
        if !done {
            self.new_blocks |= dirty.new_blocks;
            self.dirty_entries.extend(dirty.entries.iter().map(|(_, _, index)| *index));
        }
    }
}

/// Refcount blocks and table entries to be written, copied at one moment.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    new_blocks: bool,
    indices: Vec<(usize, Range<usize>)>,
    blocks: Vec<(u64, Vec<u8>)>,
    entries: Vec<(u64, u64, usize)>,
}

impl Dirty {
    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.entries.is_empty()
    }

    fn write_blocks(&self, file: &dyn Storage) -> Result<()> {
        self.blocks.iter().try_for_each(|(at, bytes)| {
            file.write_at(*at, bytes)
                .map_err(|error| Error::io("cannot write a refcount block", error).at(*at))
        })
    }

    /// Writes blocks, then the table entries that point at new ones.
    pub(crate) fn write(&self, file: &dyn Storage, barrier: &dyn Fn() -> Result<()>) -> Result<()> {
        self.write_blocks(file)?;
        if self.entries.is_empty() {
            return Ok(());
        }
        if self.new_blocks {
            barrier()?;
        }
        let mut rest = self.entries.as_slice();
        while let Some((at, _, _)) = rest.first() {
            let together =
                rest.iter().zip(0u64..).take_while(|((here, _, _), i)| *here == at + 8 * i).count();
            let (now, later) = rest.split_at(together);
            let bytes: Vec<u8> = now.iter().flat_map(|(_, entry, _)| entry.to_be_bytes()).collect();
            file.write_at(*at, &bytes)
                .map_err(|error| Error::io("cannot write the refcount table", error).at(*at))?;
            rest = later;
        }
        Ok(())
    }
}
