//! Two states of the refcounts side by side: the file has the old one until its header says otherwise.
//!
//! A snapshot changes many counts and many entries that must agree with them, of which an image that checks clean can
//! have either all or none. So every refcount block that changes gets a new place, and so does the table that leads to
//! them; one write of the header then takes the new ones into use, together with whatever else it leads to. Nothing
//! that was in use in the old state is given out before that.

use std::collections::BTreeMap;
use std::sync::Arc;

use cowhand_core::{Error, ErrorKind, Result};

use super::{Allocator, Refused, Run};
use crate::cache::read_to_end;
use crate::header::MAX_REFCOUNT_TABLE_BYTES;

/// The old state, and what the new one has of its own.
#[derive(Debug)]
pub(super) struct Fork {
    table: Vec<u64>,
    table_at: u64,
    compact: bool,
    /// Blocks that are the new state's own, with where they stood; 0: there was none.
    moved: BTreeMap<usize, u64>,
    /// Those whose old places still count as used.
    left: Vec<u64>,
    /// Where blocks are moved to.
    pool: Run,
    /// The old content of the block that was asked for last.
    last: Option<(usize, Arc<[u8]>)>,
    /// What is in use in the old state alone: each stands for 64 clusters from the first on, one bit for each.
    freed: Vec<(u64, u64)>,
}

impl Fork {
    pub(super) fn made(&mut self, block: usize) {
        self.moved.insert(block, 0);
    }
}

impl Allocator {
    /// Begins a second state. Nothing may be dirty. `compact`: it has no block that counts nothing, and what it gives out
    /// stands as far to the front as it can.
    pub(crate) fn fork(&mut self, compact: bool) -> Result<()> {
        let empty = if compact { self.empty_blocks()? } else { Vec::new() };
        let used = self.block_offsets().count() as u64 - empty.len() as u64;
        // Some that are empty now may have to count the others' new places; a block has at least 64 counters.
        let blocks = used + (used / 32 + 2).min(empty.len() as u64);
        if compact {
            self.cursor = 0;
        }
        self.fork = Some(Fork {
            table: self.table.clone(),
            table_at: self.table_at,
            compact,
            moved: BTreeMap::new(),
            left: Vec::new(),
            pool: 0..0,
            last: None,
            freed: Vec::new(),
        });
        self.packed = 0;
        // What counts the pool may be moved there itself, so it is known before it is counted.
        let (run, missing) = self.choose(self.cursor, blocks)?;
        if let Some(fork) = &mut self.fork {
            fork.pool = run.clone();
        }
        self.occupy(run, &missing).map_err(|refused| match refused {
            Refused::Failed(error) => error,
            Refused::TableFull(_) => full(),
        })?;
        for number in empty {
            let (Some(fork), Some(entry)) = (&mut self.fork, self.table.get_mut(number)) else { continue };
            if !fork.moved.contains_key(&number) {
                fork.left.push(std::mem::take(entry));
                self.blocks.remove(&number);
            }
        }
        Ok(())
    }

    /// Blocks that count nothing.
    fn empty_blocks(&mut self) -> Result<Vec<usize>> {
        let mut empty = Vec::new();
        for number in 0..self.table.len() {
            if self.block(number)?.is_some_and(|block| block.bytes.iter().all(|byte| *byte == 0)) {
                empty.push(number);
            }
        }
        Ok(empty)
    }

    /// The cluster behind the last one in use.
    pub(crate) fn used_end(&mut self) -> Result<u64> {
        let (per_block, width) = (self.geometry.block_entries(), self.width);
        for number in (0..self.table.len()).rev() {
            let Some(block) = self.block(number)? else { continue };
            let last = (0..per_block).rev().find(|index| width.get(&block.bytes, *index as usize) != 0);
            if let Some(last) = last {
                return Ok(number as u64 * per_block + last + 1);
            }
        }
        Ok(0)
    }

    /// The file ends at cluster `end`: what is behind reads zero once it is written again.
    pub(crate) fn cut_off(&mut self, end: u64) {
        self.virgin = end;
        self.cursor = self.cursor.min(end);
        self.packed = 0;
    }

    /// Forgets the second state.
    pub(crate) fn abandon(&mut self) {
        let Some(fork) = self.fork.take() else { return };
        (self.table, self.table_at) = (fork.table, fork.table_at);
        self.blocks.clear();
        self.dirty_entries.clear();
        self.dirty_blocks = 0;
        self.new_blocks = false;
        self.packed = 0;
        self.cursor = 0;
    }

    /// Makes the table cover clusters up to `end`: the new state's is written whole, at any size.
    pub(super) fn cover(&mut self, end: u64) -> Result<()> {
        let blocks = end.div_ceil(self.geometry.block_entries());
        if blocks * 8 > MAX_REFCOUNT_TABLE_BYTES {
            return Err(full());
        }
        if self.table.len() < blocks as usize {
            self.table.resize(blocks as usize, 0);
        }
        Ok(())
    }

    /// Gives a block that is about to change a place of its own.
    pub(super) fn unshare(&mut self, number: usize) -> Result<()> {
        if self.fork.as_ref().is_none_or(|fork| fork.moved.contains_key(&number)) {
            return Ok(());
        }
        let bits = self.geometry.cluster_bits();
        // In memory before its place changes.
        let Some(block) = self.block(number)? else { return Ok(()) };
        let clean = block.dirty.is_empty();
        block.dirty = 0..block.bytes.len();
        self.dirty_blocks += usize::from(clean);
        let (Some(fork), Some(entry)) = (&mut self.fork, self.table.get_mut(number)) else { return Ok(()) };
        let place = fork.pool.next().ok_or_else(|| {
            Error::corrupt("refcount table", "has more blocks than it had when they were counted")
        })?;
        fork.moved.insert(number, *entry);
        fork.left.push(*entry);
        *entry = place << bits;
        Ok(())
    }

    /// The block of that index as the old state has it, where it has another.
    pub(super) fn before(&mut self, number: usize) -> Result<Option<Arc<[u8]>>> {
        let Some(fork) = &mut self.fork else { return Ok(None) };
        let at = fork.moved.get(&number).copied().unwrap_or(0);
        if at == 0 {
            return Ok(None);
        }
        if let Some((known, bytes)) = &fork.last
            && *known == number
        {
            return Ok(Some(bytes.clone()));
        }
        let mut bytes = vec![0; self.geometry.cluster_size() as usize];
        read_to_end(self.file.as_ref(), at, &mut bytes)
            .map_err(|error| Error::io("cannot read a refcount block", error).at(at))?;
        let bytes: Arc<[u8]> = bytes.into();
        fork.last = Some((number, bytes.clone()));
        Ok(Some(bytes))
    }

    /// Adds a reference to each cluster of `run`, or takes one away.
    pub(crate) fn shift(&mut self, run: Run, up: bool) -> Result<()> {
        let bits = self.geometry.cluster_bits();
        let max = self.geometry.refcount_max();
        for cluster in run {
            let count = self.count(cluster)?;
            let next =
                if up { count.checked_add(1).filter(|next| *next <= max) } else { count.checked_sub(1) };
            let next = next.ok_or_else(|| match up {
                true => Error::unsupported(format!(
                    "the cluster at {} would have more than the {max} references that can be counted",
                    cluster << bits
                ))
                .hint("delete a snapshot, or convert the image to one with more refcount_bits"),
                false => Error::corrupt("refcount", "a cluster that was in use has a count of 0")
                    .at(cluster << bits)
                    .hint("run a check that repairs"),
            })?;
            self.set(cluster..cluster + 1, next)?;
        }
        if self.too_dirty() { self.spill() } else { Ok(()) }
    }

    /// Takes clusters for the new state.
    pub(crate) fn take_new(&mut self, n: u64) -> Result<Run> {
        let (run, _) = self.reserve(n).map_err(|refused| match refused {
            Refused::Failed(error) => error,
            Refused::TableFull(_) => full(),
        })?;
        Ok(run)
    }

    /// Writes the changed blocks: nothing in the file leads to them.
    fn spill(&mut self) -> Result<()> {
        let dirty = self.copy_dirty();
        let done = dirty.write_blocks(self.file.as_ref());
        self.written(&dirty, done.is_ok());
        done
    }

    /// Writes the new state. After a barrier, and with the header's write, it is the one that counts. Answers where
    /// its table stands, and in how many clusters.
    pub(crate) fn write_fork(&mut self) -> Result<(u64, u32)> {
        let bits = self.geometry.cluster_bits();
        let per_cluster = self.geometry.cluster_size() / 8;
        let old = self.fork.as_ref().map_or(0..0, |fork| {
            let start = fork.table_at >> bits;
            start..start + fork.table.len() as u64 / per_cluster
        });
        if self.fork.as_ref().is_some_and(|fork| fork.compact) {
            let last = self.table.iter().rposition(|entry| *entry != 0);
            self.table.truncate(last.map_or(0, |last| last + 1));
        }
        let run = loop {
            let clusters = (self.table.len() as u64).div_ceil(per_cluster);
            let run = self.take_new(clusters)?;
            if self.table.len() as u64 <= clusters * per_cluster {
                break run;
            }
            self.set(run, 0)?;
        };
        self.table.resize(((run.end - run.start) * per_cluster) as usize, 0);
        self.set(old, 0)?;
        // Counting old places down may move further blocks.
        while let Some(place) = self.fork.as_mut().and_then(|fork| fork.left.pop()) {
            self.set(place >> bits..(place >> bits) + 1, 0)?;
        }
        let rest = self.fork.as_ref().map_or(0..0, |fork| fork.pool.clone());
        self.set(rest, 0)?;
        self.find_freed()?;
        self.spill()?;
        let at = run.start << bits;
        let bytes: Vec<u8> = self.table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.file
            .write_at(at, &bytes)
            .map_err(|error| Error::io("cannot write the refcount table", error).at(at))?;
        self.table_at = at;
        Ok((at, (run.end - run.start) as u32))
    }

    /// Notes which clusters the new state does not use any more.
    fn find_freed(&mut self) -> Result<()> {
        let (per_block, width) = (self.geometry.block_entries(), self.width);
        let moved: Vec<usize> = self.fork.iter().flat_map(|fork| fork.moved.keys().copied()).collect();
        let mut freed = Vec::new();
        for number in moved {
            let Some(old) = self.before(number)? else { continue };
            let Some(block) = self.block(number)? else { continue };
            for start in (0..per_block).step_by(64) {
                let gone = |index: u64| {
                    width.get(&old, index as usize) != 0 && width.get(&block.bytes, index as usize) == 0
                };
                let count = (per_block - start).min(64);
                let bits = (0..count).fold(0, |bits, bit| bits | u64::from(gone(start + bit)) << bit);
                if bits != 0 {
                    freed.push((number as u64 * per_block + start, bits));
                }
            }
        }
        if let Some(fork) = &mut self.fork {
            fork.freed = freed;
        }
        Ok(())
    }

    /// The header leads to the new state, and no operation of the old one is under way. Calls `freed` for what was
    /// in use and is free.
    pub(crate) fn adopt(&mut self, mut freed: impl FnMut(Run)) {
        let Some(fork) = self.fork.take() else { return };
        self.dirty_entries.clear();
        self.new_blocks = false;
        let mut run: Run = 0..0;
        let clusters = fork.freed.iter().flat_map(|(first, bits)| {
            (0..64).filter(move |bit| bits >> bit & 1 != 0).map(move |bit| first + bit)
        });
        for cluster in clusters {
            self.cursor = self.cursor.min(cluster);
            if cluster == run.end {
                run.end += 1;
            } else {
                freed(std::mem::replace(&mut run, cluster..cluster + 1));
            }
        }
        freed(run);
    }
}

fn full() -> Error {
    Error::new(ErrorKind::NoSpace, "the refcount table cannot grow beyond 8 MiB").hint("use larger clusters")
}
