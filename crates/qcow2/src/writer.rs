//! What a writable layer has beside its view, and the order in which metadata reaches the disk.
//!
//! Locks, in the order they are taken: claims, the bitmaps' own, `tables`, `order`, `publish`, then L1 or a slice or
//! `alloc`, one at a time, and behind `alloc` the list of snapshots, then the header. Guest data is read and written
//! under claims alone.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, RwLock};

use cowhand_core::{Claim, Claims, Epochs, Error, ErrorKind, Result};

use crate::alloc::{Allocator, Layout, Refused, Run};
use crate::bitmaps;
use crate::cache::Copied;
use crate::check;
use crate::compress::Deflater;
use crate::entry::{COPIED, Words};
use crate::header::{AUTOCLEAR_BITMAPS, AUTOCLEAR_DATA_FILE_RAW, Header};
use crate::layer::Qcow2Layer;
use crate::view::L1;

/// Freed runs that may wait for a flush.
const MAX_FREED: usize = 1 << 16;

/// Clusters that one L1 table no longer refers to.
#[derive(Clone, Debug)]
pub(crate) struct Freed {
    pub(crate) run: Run,
    /// Their space may go back to the file system.
    pub(crate) punch: bool,
}

/// Freed clusters whose going is durable, and which an operation may still be reading.
#[derive(Debug)]
pub(crate) struct Waiting {
    freed: Vec<Freed>,
    epoch: u64,
}

/// What writing needs.
#[derive(Debug)]
pub(crate) struct Writer {
    /// Nobody sees the file before it is whole: no barriers but the last.
    pub(crate) fresh: bool,
    /// The image is taken for what it says.
    trusting: bool,
    /// Where the clusters in use ended when the file was opened or laid out.
    laid_out: u64,
    pub(crate) deflater: Deflater,
    pub(crate) claims: Claims,
    pub(crate) epochs: Epochs,
    alloc: Mutex<Allocator>,
    /// Held by who makes or copies an L2 table.
    tables: Mutex<()>,
    /// Held by who writes metadata to the file.
    pub(crate) order: Mutex<Vec<Waiting>>,
    /// Shared by who changes a mapping, held alone by who copies what is to be written.
    publish: RwLock<()>,
    freed: Mutex<Vec<Freed>>,
    dirty_l1: Mutex<BTreeSet<usize>>,
    /// Counts are written with what they cover, lazy refcounts or not.
    exact: AtomicBool,
    ready: AtomicBool,
    closed: AtomicBool,
    /// A write failed after which the file's state is not known.
    pub(crate) failed: AtomicBool,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Nobody else writes while this is held.
#[derive(Debug)]
pub(crate) struct Alone<'a> {
    writer: &'a Writer,
    _claim: Claim<'a>,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.writer.exact.store(false, Ordering::Relaxed);
    }
}

impl Writer {
    /// `ready`: the image was made here and needs no look before the first write.
    pub(crate) fn new(alloc: Allocator, deflater: Deflater, fresh: bool, ready: bool) -> Writer {
        Writer {
            fresh,
            trusting: false,
            laid_out: alloc.end(),
            deflater,
            claims: Claims::default(),
            epochs: Epochs::default(),
            alloc: Mutex::new(alloc),
            tables: Mutex::default(),
            order: Mutex::default(),
            publish: RwLock::default(),
            freed: Mutex::default(),
            dirty_l1: Mutex::default(),
            exact: AtomicBool::new(false),
            ready: AtomicBool::new(ready),
            closed: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        }
    }

    /// The image is not looked at before the first write.
    pub(crate) fn trusting(self, trusting: bool) -> Writer {
        Writer { trusting, ..self }
    }

    pub(crate) fn alloc(&self) -> MutexGuard<'_, Allocator> {
        lock(&self.alloc)
    }

    pub(crate) fn check_failed(&self) -> Result<()> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Io, "an earlier write of the image's tables failed")
                .hint("close it and open it again"));
        }
        Ok(())
    }

    /// Clusters that nothing in the file refers to any more, durably: they are given out again once no operation uses
    /// them.
    pub(crate) fn free(&self, runs: impl IntoIterator<Item = Run>) {
        lock(&self.freed).extend(runs.into_iter().map(|run| Freed { run, punch: true }));
    }
}

impl Qcow2Layer {
    /// The writer, where this layer may be changed now.
    fn writer(&self) -> Result<&Writer> {
        let writer =
            self.writer.as_ref().ok_or_else(|| Error::new(ErrorKind::Denied, "is open read-only"))?;
        if writer.closed.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Denied, "is closed"));
        }
        writer.check_failed()?;
        Ok(writer)
    }

    /// The writer, where this layer may be changed now. Looks at the image before the first change, and writes
    /// metadata back where too much of it waits.
    pub(crate) fn begin(&self) -> Result<&Writer> {
        let writer = self.writer()?;
        if !writer.ready.load(Ordering::Acquire) {
            self.prepare(writer)?;
        }
        let full = lock(&writer.freed).len() > MAX_FREED;
        if full || self.view.shared.slices.too_dirty() || lock(&writer.alloc).too_dirty() {
            self.write_back(writer, false)?;
        }
        Ok(writer)
    }

    /// Before the first change: are the refcounts to be trusted? And what readers must know that somebody wrote.
    fn prepare(&self, writer: &Writer) -> Result<()> {
        let order = lock(&writer.order);
        if writer.ready.load(Ordering::Acquire) {
            return Ok(());
        }
        let shared = &self.view.shared;
        let data_len = shared.rules.data_file.then(|| shared.data.len()).transpose();
        let data_len = data_len.map_err(|error| Error::io("cannot find the data file's size", error))?;
        if !writer.trusting {
            check::audit(shared.file.as_ref(), data_len)?;
        }
        lock(&writer.alloc).load(shared.header().refcount_table_clusters)?;
        // What is kept in step with the data, and not known here, is not from here on.
        self.change_fields(writer, |header| {
            let raw = if header.has_data_file { AUTOCLEAR_DATA_FILE_RAW } else { 0 };
            let bitmaps = if bitmaps::place(header).is_some() { AUTOCLEAR_BITMAPS } else { 0 };
            header.autoclear &= raw | bitmaps;
        })?;
        writer.ready.store(true, Ordering::Release);
        drop(order);
        let stale = shared.header().extensions.bitmaps().is_some() && !self.has_bitmaps();
        if stale {
            // They missed writes of another program. Where the header has no room to be changed, they do no harm.
            let dropped = self.rewrite_header(writer, |header| {
                header.extensions.set_bitmaps(None);
                Ok(())
            });
            return dropped.or_else(|error| match error.kind() {
                ErrorKind::Unsupported => Ok(()),
                _ => Err(error),
            });
        }
        Ok(())
    }

    /// Waits until nobody writes, and keeps others from beginning, while the layer as a whole is changed (its size, its
    /// L1 table, its snapshots). Readers go on. All refcounts in the file are right, and stay so meanwhile. Errors:
    /// read-only, closed.
    pub(crate) fn alone(&self) -> Result<(&Writer, Alone<'_>)> {
        let writer = self.begin()?;
        let alone = Alone { _claim: writer.claims.take(0..=u64::MAX, true), writer };
        writer.exact.store(true, Ordering::Relaxed);
        if self.view.shared.header().dirty {
            self.write_back(writer, true)?;
            self.mark_dirty(writer, false)?;
        }
        Ok((writer, alone))
    }

    /// As [`Qcow2Layer::alone`] for who changes the header alone: what the rest of the image is like does not matter.
    pub(crate) fn still(&self) -> Result<(&Writer, Claim<'_>)> {
        let writer = self.writer()?;
        Ok((writer, writer.claims.take(0..=u64::MAX, true)))
    }

    /// Changes fixed fields of the header, in memory and in the file, with one write within its first sector, and a
    /// barrier behind it. What else is to be durable before is the caller's matter.
    pub(crate) fn change_fields(&self, writer: &Writer, change: impl FnOnce(&mut Header)) -> Result<()> {
        let file = self.view.shared.file.as_ref();
        let mut header = self.view.shared.header_mut();
        let mut new = header.clone();
        change(&mut new);
        let failed = |error| Error::io("cannot read the header", error).at(0);
        let mut old_bytes = vec![0; header.fixed_len()];
        file.read_at(0, &mut old_bytes).map_err(failed)?;
        let mut bytes = old_bytes.clone();
        new.patch(&header, &mut bytes)?;
        if bytes != old_bytes {
            let written = file
                .write_at(0, &bytes)
                .map_err(|error| Error::io("cannot write the header", error).at(0))
                .and_then(|()| self.barrier(writer));
            if written.is_err() {
                // Which of both the file has is not known.
                writer.failed.store(true, Ordering::Relaxed);
            }
            written?;
        }
        *header = new;
        Ok(())
    }

    /// Says in the file whether refcounts may be too low.
    fn mark_dirty(&self, writer: &Writer, dirty: bool) -> Result<()> {
        self.change_fields(writer, |header| header.dirty = dirty)
    }

    /// Whether the refcounts that changed may stay in memory, because the file says that its own may be too low. It is
    /// made to say so where they are.
    fn may_postpone(&self, writer: &Writer) -> Result<bool> {
        let (lazy, marked) = {
            let header = self.view.shared.header();
            (header.lazy_refcounts && !writer.fresh && !writer.exact.load(Ordering::Relaxed), header.dirty)
        };
        let waiting = {
            let alloc = lock(&writer.alloc);
            if !lazy || alloc.too_dirty() {
                return Ok(false);
            }
            alloc.is_dirty()
        };
        if waiting && !marked {
            self.mark_dirty(writer, true)?;
        }
        Ok(true)
    }

    fn sync(&self) -> Result<()> {
        let shared = &self.view.shared;
        let failed = |error| Error::io("cannot make what was written durable", error);
        if shared.rules.data_file {
            shared.data.sync().map_err(failed)?;
        }
        shared.file.sync().map_err(failed)
    }

    pub(crate) fn barrier(&self, writer: &Writer) -> Result<()> {
        if writer.fresh { Ok(()) } else { self.sync() }
    }

    fn grow(&self, writer: &Writer, n: u64, covered: u64) -> Result<()> {
        let _order = lock(&writer.order);
        let mut alloc = lock(&writer.alloc);
        if alloc.covered() > covered {
            return Ok(());
        }
        let grown = alloc.grow(n, &|| self.barrier(writer));
        {
            let (mut header, table) = (self.view.shared.header_mut(), alloc.table_run());
            if header.refcount_table_offset != alloc.table_at() {
                self.view.shared.moved_from(header.refcount_table_offset);
                header.refcount_table_offset = alloc.table_at();
                header.refcount_table_clusters = (table.end - table.start) as u32;
            }
        }
        if alloc.is_broken() {
            writer.failed.store(true, Ordering::Relaxed);
        }
        grown
    }

    fn reserving<T>(
        &self,
        writer: &Writer,
        n: u64,
        mut how: impl FnMut(&mut Allocator) -> Result<T, Refused>,
    ) -> Result<T> {
        loop {
            let tried = how(&mut lock(&writer.alloc));
            match tried {
                Ok(done) => return Ok(done),
                Err(Refused::Failed(error)) => return Err(error),
                Err(Refused::TableFull(covered)) => self.grow(writer, n, covered)?,
            }
        }
    }

    /// `n` host clusters that stand together. The second: they read zero.
    pub(crate) fn reserve(&self, writer: &Writer, n: u64) -> Result<(Run, bool)> {
        self.reserving(writer, n, |alloc| alloc.reserve(n))
    }

    /// Room for pieces of compressed data.
    pub(crate) fn reserve_packed(&self, writer: &Writer, sizes: &[u64]) -> Result<Layout> {
        self.reserving(writer, sizes.len() as u64 + 1, |alloc| alloc.reserve_packed(sizes))
    }

    /// Gives back what was reserved and never published.
    pub(crate) fn release(&self, writer: &Writer, run: Run) {
        // At worst a cluster is lost until the next check; the error that led here is the one to tell.
        let _ = lock(&writer.alloc).release(run);
    }

    /// Sees to it that the L2 tables for guest clusters `first..=last` are there, and this image's own.
    pub(crate) fn own_tables(&self, writer: &Writer, first: u64, last: u64) -> Result<()> {
        let per_table = self.view.shared.geometry().l2_entries();
        for index in first / per_table..=last / per_table {
            if self.view.l1_entry(index as usize).0 & COPIED == 0 {
                self.own_table(writer, index as usize)?;
            }
        }
        Ok(())
    }

    fn own_table(&self, writer: &Writer, index: usize) -> Result<()> {
        let _tables = lock(&writer.tables);
        let shared = &self.view.shared;
        let geometry = shared.geometry();
        let (entry, entry_at) = self.view.l1_entry(index);
        if entry & COPIED != 0 {
            return Ok(());
        }
        let old = shared.l2_table(entry, entry_at)?;
        let step = geometry.slice_bytes();
        let offsets = (0..geometry.cluster_size()).step_by(step as usize);
        let content = |offset| match old {
            Some(old) => shared.slices.words(shared.file.as_ref(), old + offset),
            None => Ok(vec![0; step as usize / 8].into()),
        };
        let slices = offsets.clone().map(content).collect::<Result<Vec<_>>>()?;
        let (run, _) = self.reserve(writer, 1)?;
        let table = run.start << geometry.cluster_bits();
        // Both are written last, and stand in holes of the file: where the data fills the disk before, all of it would be lost.
        let space = |at, len| if writer.fresh { Ok(false) } else { shared.file.allocate(at, len) };
        if let Err(error) = space(table, geometry.cluster_size()).and_then(|_| space(entry_at, 8)) {
            self.release(writer, run);
            return Err(Error::io("cannot reserve the space of an L2 table", error).at(table));
        }
        shared.made(table + geometry.cluster_size());
        let _publish = writer.publish.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        for (offset, words) in offsets.zip(slices) {
            shared.slices.put_new(table + offset, words);
        }
        if let Some(place) = self.view.l1_mut().entries.get_mut(index) {
            *place = table | COPIED;
        }
        lock(&writer.dirty_l1).insert(index);
        if let Some(old) = old {
            let cluster = old >> geometry.cluster_bits();
            lock(&writer.freed).push(Freed { run: cluster..cluster + 1, punch: false });
        }
        Ok(())
    }

    /// Changes the entries of guest clusters `first..first + count`, whose tables are this image's own: puts what
    /// `change` answers for the number of each (from 0) and its old words.
    pub(crate) fn publish(
        &self,
        writer: &Writer,
        first: u64,
        count: u64,
        freed: Vec<Freed>,
        mut change: impl FnMut(u64, Words) -> Words,
    ) -> Result<()> {
        let shared = &self.view.shared;
        let geometry = shared.geometry();
        let _publish = writer.publish.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut done = 0;
        while done < count {
            let at = (first + done) << geometry.cluster_bits();
            let found = self.view.slice_of(at)?;
            let (slice, index) =
                found.ok_or_else(|| Error::corrupt("L1 table", "has no table where one was made"))?;
            let n = (count - done).min(geometry.slice_entries() - index as u64);
            let range = index..index + n as usize;
            shared.slices.change(shared.file.as_ref(), slice, range, |at, words| {
                change(done + (at - index) as u64, words)
            })?;
            done += n;
        }
        if !freed.is_empty() {
            lock(&writer.freed).extend(freed);
        }
        Ok(())
    }

    /// Changes an L1 entry. `freed`: what only the old one led to.
    pub(crate) fn publish_l1(&self, writer: &Writer, index: usize, entry: u64, freed: Vec<Freed>) {
        let _publish = writer.publish.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(place) = self.view.l1_mut().entries.get_mut(index) {
            *place = entry;
        }
        lock(&writer.dirty_l1).insert(index);
        lock(&writer.freed).extend(freed);
    }

    /// Writes an L1 table to new clusters. Nothing refers to it yet. Answers where it stands.
    pub(crate) fn write_l1(&self, writer: &Writer, entries: &[u64]) -> Result<u64> {
        let geometry = self.view.shared.geometry();
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        let (run, _) = self.reserve(writer, (bytes.len() as u64).div_ceil(geometry.cluster_size()))?;
        let at = run.start << geometry.cluster_bits();
        let written = self.view.shared.file.write_at(at, &bytes);
        written.map_err(|error| {
            self.release(writer, run);
            Error::io("cannot write an L1 table", error).at(at)
        })?;
        Ok(at)
    }

    /// Makes an L1 table that is durable the image's own, and changes other fields of the header in the same write. No
    /// entry of the old one waits to be written, and the caller is alone.
    pub(crate) fn switch_l1(&self, writer: &Writer, l1: L1, change: impl FnOnce(&mut Header)) -> Result<()> {
        let shared = &self.view.shared;
        let geometry = shared.geometry();
        let entries = l1.entries.len() as u32;
        self.change_fields(writer, |header| {
            header.l1_offset = l1.at;
            header.l1_entries = entries;
            change(header);
        })?;
        let old = std::mem::replace(&mut *self.view.l1_mut(), l1);
        let start = old.at >> geometry.cluster_bits();
        let clusters = (old.entries.len() as u64 * 8).div_ceil(geometry.cluster_size());
        if clusters > 0 {
            shared.moved_from(old.at);
            lock(&writer.freed).push(Freed { run: start..start + clusters, punch: true });
        }
        Ok(())
    }

    /// Brings metadata to the file in the order that a power cut cannot harm. `last`: the caller wants to know it
    /// durable, barriers or not.
    pub(crate) fn write_back(&self, writer: &Writer, last: bool) -> Result<()> {
        let shared = &self.view.shared;
        let mut order = lock(&writer.order);
        writer.check_failed()?;
        let (copies, l1, freed) = {
            let _alone = writer.publish.write().unwrap_or_else(|poisoned| poisoned.into_inner());
            let copies = shared.slices.copy_dirty();
            let l1: Vec<usize> = std::mem::take(&mut *lock(&writer.dirty_l1)).into_iter().collect();
            let l1: Vec<(usize, u64)> =
                l1.into_iter().map(|index| (index, self.view.l1_entry(index).0)).collect();
            (copies, l1, std::mem::take(&mut *lock(&writer.freed)))
        };
        let epoch = writer.epochs.now();
        let done = self.write_metadata(writer, &copies, &l1, last);
        if let Err(error) = done {
            shared.slices.restore(&copies);
            lock(&writer.dirty_l1).extend(l1.iter().map(|(index, _)| *index));
            lock(&writer.freed).extend(freed);
            return Err(error);
        }
        if !freed.is_empty() {
            order.push(Waiting { freed, epoch });
        }
        self.reclaim(writer, &mut order)
    }

    fn write_metadata(
        &self,
        writer: &Writer,
        copies: &[Copied],
        l1: &[(usize, u64)],
        last: bool,
    ) -> Result<()> {
        let file = self.view.shared.file.as_ref();
        // What the copies refer to was counted before it was published, so these counts cover it.
        if !self.may_postpone(writer)? {
            self.write_counts(writer)?;
        }
        if !copies.is_empty() || !l1.is_empty() {
            self.barrier(writer)?;
            copies.iter().try_for_each(|copy| copy.write(file))?;
        }
        if !l1.is_empty() {
            self.barrier(writer)?;
            for run in l1.chunk_by(|(a, _), (b, _)| a + 1 == *b) {
                let at = self.view.l1_entry(run.first().map_or(0, |(index, _)| *index)).1;
                let bytes: Vec<u8> = run.iter().flat_map(|(_, entry)| entry.to_be_bytes()).collect();
                file.write_at(at, &bytes)
                    .map_err(|error| Error::io("cannot write the L1 table", error).at(at))?;
            }
        }
        if last { self.sync() } else { self.barrier(writer) }
    }

    fn write_counts(&self, writer: &Writer) -> Result<()> {
        let dirty = lock(&writer.alloc).copy_dirty();
        if dirty.is_empty() {
            return Ok(());
        }
        let done = dirty.write(self.view.shared.file.as_ref(), &|| self.barrier(writer));
        lock(&writer.alloc).written(&dirty, done.is_ok());
        done
    }

    /// Gives out again what nothing on the disk and no operation refers to.
    fn reclaim(&self, writer: &Writer, waiting: &mut Vec<Waiting>) -> Result<()> {
        if waiting.is_empty() {
            return Ok(());
        }
        writer.epochs.advance();
        writer.epochs.advance();
        let shared = &self.view.shared;
        let bits = shared.geometry().cluster_bits();
        let (over, rest): (Vec<_>, Vec<_>) =
            std::mem::take(waiting).into_iter().partition(|batch| writer.epochs.is_over(batch.epoch));
        *waiting = rest;
        if over.is_empty() {
            return Ok(());
        }
        shared.unpacked.clear();
        let give_back = |run: Run| {
            if !run.is_empty() {
                // Only a wish. Nobody is given anything in these clusters before their count goes down.
                let _ = shared.file.punch(run.start << bits, (run.end - run.start) << bits);
            }
            lock(&writer.alloc).release(run)
        };
        // What nobody else uses is given back in long runs: it costs as much for little as for much.
        let mut last: Run = 0..0;
        for Freed { run, punch } in over.into_iter().flat_map(|batch| batch.freed) {
            let sole = punch && !writer.fresh && lock(&writer.alloc).retire(&run)?;
            if !sole {
                lock(&writer.alloc).release(run)?;
            } else if last.end == run.start {
                last.end = run.end;
            } else {
                give_back(std::mem::replace(&mut last, run))?;
            }
        }
        give_back(last)?;
        if self.may_postpone(writer)? { Ok(()) } else { self.write_counts(writer) }
    }

    /// See `Layer::flush`.
    pub(crate) fn flush_all(&self) -> Result<()> {
        match &self.writer {
            Some(writer) if !writer.closed.load(Ordering::Relaxed) => self.write_back(writer, true),
            _ => Ok(()),
        }
    }

    /// See `Layer::close`.
    pub(crate) fn close_all(&self) -> Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        if writer.closed.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.close_bitmaps(writer)?;
        if writer.fresh {
            self.fill_last_cluster(writer)?;
        }
        writer.exact.store(true, Ordering::Relaxed);
        self.write_back(writer, true)?;
        let mut order = lock(&writer.order);
        let rest = self.reclaim(writer, &mut order);
        if rest.is_ok() && self.view.shared.header().dirty {
            self.mark_dirty(writer, false)?;
        }
        drop(order);
        writer.closed.store(true, Ordering::Relaxed);
        rest
    }

    /// A new image's file is whole clusters once it holds any: its length must not depend on whose data came last.
    fn fill_last_cluster(&self, writer: &Writer) -> Result<()> {
        let file = &self.view.shared.file;
        let failed = |error| Error::io("cannot set the file's length", error);
        let end = lock(&writer.alloc).end();
        if end > writer.laid_out && file.len().map_err(failed)? < end {
            file.set_len(end).map_err(failed)
        } else {
            Ok(())
        }
    }

    /// Brings a new image's tables to the file, so that it can be opened from here on.
    pub(crate) fn write_first(&self) -> Result<()> {
        match &self.writer {
            Some(writer) => {
                writer.exact.store(true, Ordering::Relaxed);
                let done = self.write_back(writer, false);
                writer.exact.store(false, Ordering::Relaxed);
                done
            }
            None => Ok(()),
        }
    }
}
