//! All L1 and L2 tables, each once however many disks share it, looked at by several threads.
//!
//! Tables are taken together in batches of about [`BATCH`] (24 MiB), sorted by where they stand; a thread reads up to
//! [`PIECE`] of them at once, and never what is a hole.

mod impostors;

use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use cowhand_core::{Error, ErrorKind, Progress, Result, Storage};

use super::changed::Changed;
use super::counts::{COPIED_USE, Cell, Counts, DATA, L2, META, PLAIN_USE};
use super::entries::{Judge, Trouble};
use super::findings::Findings;
use super::layout::{Block, L1Part, Layout};
use super::sparse::Sparse;
use super::workers::on_threads;
use crate::cache::read_to_end;
use crate::entry::{COPIED, Entry, L1_RESERVED, OFFSET, Plain, Words};
use crate::refcount::Width;

const BATCH: usize = 1 << 20;
const PIECE: u64 = 256 << 10;
/// Tables that a thread takes at once.
const TAKE: usize = 32;

/// What a walk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Counts what is referred to. With the flag, reports what is wrong with entries alone.
    Count(bool),
    /// Reports what the counts show to be wrong with entries.
    Compare,
    /// Mends entries that the counts show to be wrong, and those wrong `alone` too. Reports what is lost, or, with `keep`,
    /// leaves entries as they are by which something would be.
    Mend { alone: bool, keep: bool },
    /// Mends COPIED flags.
    Flags,
}

/// How the guest's clusters are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) allocated: u64,
    pub(super) fragmented: u64,
    pub(super) compressed: u64,
}

/// What a walk brings back.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) found: Findings,
    pub(super) tally: Tally,
    /// Something was written.
    pub(super) changed: bool,
}

impl Work {
    fn join(&mut self, threads: Vec<Work>) {
        let mut found = Vec::with_capacity(threads.len());
        for thread in threads {
            self.tally.allocated += thread.tally.allocated;
            self.tally.fragmented += thread.tally.fragmented;
            self.tally.compressed += thread.tally.compressed;
            self.changed |= thread.changed;
            found.push(thread.found);
        }
        self.found.join(found);
    }
}

/// An L2 table, and how many L1 entries name it.
#[derive(Clone, Copy, Debug)]
struct Table {
    at: u64,
    active: u32,
    snapshots: u32,
    /// The first of the image's own L1 entries that does.
    index: Option<u32>,
}

impl Table {
    fn times(&self) -> u64 {
        u64::from(self.active) + u64::from(self.snapshots)
    }
}

/// A walk through all tables.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    pub(super) file: &'a dyn Storage,
    pub(super) layout: &'a Layout,
    pub(super) counts: &'a Counts,
    pub(super) job: Job,
    pub(super) workers: usize,
}

impl Walk<'_> {
    /// Walks. Errors: a table could not be written; somebody wants it to stop. What cannot be read is a finding.
    pub(super) fn run(&self, progress: &dyn Progress) -> Result<Work> {
        let mut work = Work::default();
        let impostors = match self.job {
            Job::Mend { .. } => self.impostors(&mut work)?,
            _ => HashSet::new(),
        };
        let guest = |entries: u64| entries.saturating_mul(1 << self.layout.rules.geometry.l2_bits());
        let total = guest(self.layout.l1.iter().map(|part| (part.bytes.end - part.bytes.start) / 8).sum());
        let done = AtomicU64::new(0);
        let tell = |tables: u64| {
            let now = guest(done.fetch_add(tables, Relaxed) + tables);
            match progress.at(now.min(total), total) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(Error::new(ErrorKind::Cancelled, "stopped on request")),
            }
        };
        let mut tables = Vec::new();
        let mut sparse = Sparse::new(self.file);
        for part in &self.layout.l1 {
            let mut from = Some(part.bytes.start);
            while let Some(at) = from {
                from = self.l1_piece(&mut sparse, part, at, &mut work, |work, at, entry| {
                    let (entry, table) = self.l1_entry(part, at, entry, &impostors, work);
                    tables.extend(table);
                    entry
                })?;
                if tables.len() >= BATCH {
                    merge(&mut tables);
                    if tables.len() >= BATCH / 2 {
                        work.join(self.tables(&tables, &impostors, &tell)?);
                        tables.clear();
                    }
                }
            }
        }
        merge(&mut tables);
        work.join(self.tables(&tables, &impostors, &tell)?);
        Ok(work)
    }

    /// Calls `see` with the place and the value of every L1 entry of a piece that is not 0, and puts what it answers.
    /// Answers where the next piece starts.
    fn l1_piece(
        &self,
        sparse: &mut Sparse<'_>,
        part: &L1Part,
        from: u64,
        work: &mut Work,
        mut see: impl FnMut(&mut Work, u64, u64) -> u64,
    ) -> Result<Option<u64>> {
        let mut piece = Vec::new();
        let read = sparse.data_in(from..part.bytes.end).and_then(|start| {
            let Some(start) = start.map(|start| start / 8 * 8) else { return Ok(None) };
            piece.resize((part.bytes.end - start).min(PIECE) as usize, 0);
            sparse.read(start, &mut piece).map(|_| Some(start))
        });
        let start = match read {
            Ok(Some(start)) => start,
            Ok(None) => return Ok(None),
            Err(error) => {
                work.found.unread(from, || format!("the L1 table at offset {from} cannot be read: {error}"));
                return Ok(Some(from + PIECE).filter(|next| *next < part.bytes.end));
            }
        };
        let mut changed = Changed::default();
        for (index, raw) in piece.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let entry = u64::from_be_bytes(*raw);
            if entry != 0 {
                let new = see(work, start + 8 * index as u64, entry);
                if new != entry {
                    *raw = new.to_be_bytes();
                    changed.add(8 * index..8 * index + 8);
                }
            }
        }
        work.changed |= changed.write(self.file, start, &piece)?;
        let next = start + piece.len() as u64;
        Ok(Some(next).filter(|next| *next < part.bytes.end))
    }

    /// Looks at an L1 entry that stands at `at`: what it shall be, and the table it names.
    fn l1_entry(
        &self,
        part: &L1Part,
        at: u64,
        entry: u64,
        impostors: &HashSet<u64>,
        work: &mut Work,
    ) -> (u64, Option<Table>) {
        let layout = self.layout;
        let target = entry & OFFSET;
        let alone = match target {
            0 => None,
            _ if layout.rules.geometry.in_cluster(target) != 0 => Some(Trouble::Unaligned(target)),
            _ if target >= layout.len => Some(Trouble::PastEnd(target)),
            _ => None,
        };
        let cluster = target >> layout.bits();
        let cell = if self.job == Job::Count(true) { Cell::default() } else { self.counts.get(cluster) };
        let trouble = alone.or_else(|| {
            let wrong = cell.is(META) || impostors.contains(&target);
            (wrong && target != 0).then_some(Trouble::Metadata(target))
        });
        let corrupt = |work: &mut Work, trouble: Trouble| {
            let text = || format!("L1 entry at offset {at} {}", trouble.text(layout.len));
            work.found.corrupt(at, text);
            work.found.needs.entries = true;
        };
        match self.job {
            Job::Count(report) => {
                if report && entry & L1_RESERVED != 0 {
                    corrupt(work, Trouble::Reserved);
                } else if report && target == 0 {
                    corrupt(work, Trouble::CopiedNothing);
                }
                if let Some(trouble) = alone {
                    if report {
                        corrupt(work, trouble);
                    }
                    return (entry, None);
                }
            }
            Job::Compare => {
                if let Some(trouble) = trouble.filter(|_| alone.is_none()) {
                    corrupt(work, trouble);
                }
                if has_wrong_flag(cell, entry, part.active > 0 && target != 0) {
                    let mut read = Ok(());
                    work.found.flag(at, entry & COPIED != 0, || {
                        let index = self.index(part, at).unwrap_or_default();
                        let count = self.stored(cluster, &mut read);
                        format!(
                            "OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={count}"
                        )
                    });
                    unread_count(work, at, read);
                }
            }
            Job::Mend { alone: alone_too, keep } => {
                if let Some(trouble) = trouble.filter(|_| alone_too || alone.is_none()) {
                    if keep {
                        return (entry, None);
                    }
                    let lost = self.guest_of_l1(part, at);
                    work.found.corrupt(at, || {
                        format!("{lost} lost: L1 entry at offset {at} {}", trouble.text(layout.len))
                    });
                    return (0, None);
                }
                if alone_too && (entry & L1_RESERVED != 0 || target == 0) {
                    let new = if target == 0 { 0 } else { entry & !L1_RESERVED };
                    return (new, self.table_of(part, target, self.index(part, at)));
                }
            }
            Job::Flags => {
                if has_wrong_flag(cell, entry, part.active > 0 && target != 0) {
                    return (entry ^ COPIED, self.table_of(part, target, self.index(part, at)));
                }
            }
        }
        if alone.is_some() || target == 0 {
            return (entry, None);
        }
        if matches!(self.job, Job::Count(_)) {
            let times = u64::from(part.active) + u64::from(part.snapshots);
            self.counts.add(cluster, times, L2 | use_of(part.active > 0, entry & COPIED != 0));
        }
        (entry, self.table_of(part, target, self.index(part, at)))
    }

    fn table_of(&self, part: &L1Part, at: u64, index: Option<u32>) -> Option<Table> {
        (at != 0).then_some(Table { at, active: part.active, snapshots: part.snapshots, index })
    }

    /// Which of the image's own L1 entries stands at `at`.
    fn index(&self, part: &L1Part, at: u64) -> Option<u32> {
        let index = at.checked_sub(self.layout.header.l1_offset)? / 8;
        u32::try_from(index).ok().filter(|_| part.active > 0)
    }

    fn guest_of_l1(&self, part: &L1Part, at: u64) -> String {
        match self.index(part, at) {
            Some(index) => {
                let bits = self.layout.rules.geometry.l2_bits();
                range_text(u64::from(index) << bits, 1 << bits)
            }
            None => "a part of a snapshot is".to_owned(),
        }
    }

    fn judge(&self) -> Judge {
        Judge { rules: self.layout.rules, len: self.layout.len, data_len: self.layout.data_len }
    }

    /// Looks at tables, sorted, on several threads.
    fn tables(
        &self,
        tables: &[Table],
        impostors: &HashSet<u64>,
        tell: &(dyn Fn(u64) -> Result<()> + Sync),
    ) -> Result<Vec<Work>> {
        let next = AtomicUsize::new(0);
        let size = self.layout.rules.geometry.cluster_size();
        on_threads(self.workers.min(tables.len().div_ceil(TAKE)), || {
            let mut work = Work::default();
            let mut sparse = Sparse::new(self.file);
            let mut bytes = Vec::new();
            loop {
                let first = next.fetch_add(TAKE, Relaxed);
                let Some(taken) = tables.get(first..).filter(|rest| !rest.is_empty()) else {
                    return Ok(work);
                };
                let mut rest = taken.get(..TAKE).unwrap_or(taken);
                let count = rest.len() as u64;
                let mut number = first as u64;
                while let Some(table) = rest.first() {
                    work.found.begin(number);
                    // Tables that stand side by side are read together.
                    let side_by_side = rest
                        .iter()
                        .zip(0..PIECE.div_ceil(size))
                        .take_while(|(next, nth)| next.at == table.at + nth * size)
                        .count();
                    let (group, others) = rest.split_at_checked(side_by_side).unwrap_or((rest, &[]));
                    rest = others;
                    number += group.len() as u64;
                    bytes.resize(group.len() * size as usize, 0);
                    match sparse.read(table.at, &mut bytes) {
                        Ok(false) => continue,
                        Ok(true) => {}
                        Err(error) => {
                            let at = table.at;
                            work.found.unread(at, || {
                                format!("the L2 table at offset {at} cannot be read: {error}")
                            });
                            continue;
                        }
                    }
                    for (table, bytes) in group.iter().zip(bytes.chunks_exact_mut(size as usize)) {
                        self.table(table, bytes, impostors, &mut work)?;
                    }
                }
                tell(count)?;
            }
        })
    }

    fn table(
        &self,
        table: &Table,
        bytes: &mut [u8],
        impostors: &HashSet<u64>,
        work: &mut Work,
    ) -> Result<()> {
        let judge = self.judge();
        let step = judge.rules.geometry.entry_words();
        match self.job {
            Job::Count(report) => self.count(&judge, table, bytes, report, work),
            Job::Compare => each(bytes, step, |index, words| {
                if let Some(entry) = judge.fine(words) {
                    let at = table.at + (index * step * 8) as u64;
                    if let Some(to) = self.metadata_at(&judge, entry, impostors) {
                        work.found.needs.entries = true;
                        work.found.corrupt(at, || {
                            format!("L2 entry at offset {at} {}", Trouble::Metadata(to).text(judge.len))
                        });
                    } else if self.has_wrong_data_flag(entry, words, table) {
                        let mut read = Ok(());
                        work.found.flag(at, words.0 & COPIED != 0, || {
                            let count = self.stored((words.0 & OFFSET) >> self.layout.bits(), &mut read);
                            format!("OFLAG_COPIED data cluster: l2_entry={:x} refcount={count}", words.0)
                        });
                        unread_count(work, at, read);
                    }
                }
                words
            }),
            Job::Mend { alone: alone_too, keep } => {
                let mut changed = Changed::default();
                each(bytes, step, |index, words| {
                    let at = table.at + (index * step * 8) as u64;
                    let mut loses = false;
                    let new =
                        self.mend(&judge, table, index, words, alone_too, impostors, |trouble, lost| {
                            loses = true;
                            if keep {
                                return;
                            }
                            work.found.corrupt(at, || {
                                format!(
                                    "{lost} lost: L2 entry at offset {at} {}",
                                    trouble.text(judge.data_len)
                                )
                            });
                        });
                    if keep && loses {
                        return words;
                    }
                    if new != words {
                        changed.add(index * step * 8..(index + 1) * step * 8);
                    }
                    new
                });
                work.changed |= changed.write(self.file, table.at, bytes)?;
            }
            Job::Flags => {
                let mut changed = Changed::default();
                each(bytes, step, |index, words| {
                    let wrong =
                        judge.fine(words).is_some_and(|entry| self.has_wrong_data_flag(entry, words, table));
                    if !wrong {
                        return words;
                    }
                    changed.add(index * step * 8..(index + 1) * step * 8);
                    Words(words.0 ^ COPIED, words.1)
                });
                work.changed |= changed.write(self.file, table.at, bytes)?;
            }
        }
        Ok(())
    }

    /// Counts what a table's entries refer to; what is wrong counts as it will be once it is mended.
    fn count(&self, judge: &Judge, table: &Table, bytes: &mut [u8], report: bool, work: &mut Work) {
        let (bits, step) = (self.layout.bits(), judge.rules.geometry.entry_words());
        let (times, active) = (table.times(), u64::from(table.active));
        let mut expected = 0;
        each(bytes, step, |index, words| {
            let at = table.at + (index * step * 8) as u64;
            let mended;
            let entry = match judge.fine(words) {
                Some(entry) => entry,
                None => {
                    mended = judge.mend(words, |trouble| {
                        if report {
                            work.found.needs.entries = true;
                            work.found.corrupt(at, || {
                                format!("L2 entry at offset {at} {}", trouble.text(judge.data_len))
                            });
                        }
                    });
                    match judge.fine(mended) {
                        Some(entry) => entry,
                        None => return words,
                    }
                }
            };
            match entry {
                Entry::Compressed(packed) => {
                    for cluster in packed.at >> bits..=(packed.at + packed.len - 1) >> bits {
                        self.counts.add(cluster, times, DATA);
                    }
                    work.tally.allocated += active;
                    work.tally.fragmented += active;
                    work.tally.compressed += active;
                }
                Entry::Plain(Plain { host: Some(host), copied, data, .. }) => {
                    if judge.rules.data_file {
                        if report {
                            self.outside(judge, table, index, at, (host, copied), work);
                        }
                        if host == 0 && data == 0 && !judge.rules.geometry.extended() {
                            return words;
                        }
                    } else {
                        self.counts.add(host >> bits, times, DATA | use_of(active > 0, copied));
                    }
                    work.tally.allocated += active;
                    if expected != 0 && host != expected {
                        work.tally.fragmented += active;
                    }
                    expected = host + judge.rules.geometry.cluster_size();
                }
                Entry::Plain(_) => {}
            }
            words
        });
    }

    /// Reports what is wrong with an entry whose cluster stands in an external data file.
    fn outside(
        &self,
        judge: &Judge,
        table: &Table,
        index: usize,
        at: u64,
        (host, copied): (u64, bool),
        work: &mut Work,
    ) {
        if table.active > 0 && !copied {
            work.found.needs.entries = true;
            work.found.corrupt(at, || {
                format!("L2 entry at offset {at} {}", Trouble::NotCopiedInDataFile.text(judge.data_len))
            });
        }
        if let Some(guest) = self.guest(table, index).filter(|_| judge.rules.raw_data)
            && guest != host
        {
            work.found.needs.raw = true;
            work.found.corrupt(at, || {
                format!("L2 entry at offset {at} maps guest offset {guest} to {host}, in a data file that is said to be raw")
            });
        }
    }

    /// The guest offset of an entry of one of the image's own tables.
    fn guest(&self, table: &Table, index: usize) -> Option<u64> {
        let geometry = self.layout.rules.geometry;
        let first = u64::from(table.index?) << geometry.l2_bits();
        Some(first + ((index as u64) << geometry.cluster_bits()))
    }

    fn metadata_at(&self, judge: &Judge, entry: Entry, impostors: &HashSet<u64>) -> Option<u64> {
        let bits = self.layout.bits();
        let (at, len) = judge.target(entry)?;
        let wrong = (at >> bits..=(at + len - 1) >> bits).any(|cluster| {
            let cell = self.counts.get(cluster);
            cell.is(META) || (cell.is(L2) && !impostors.contains(&(cluster << bits)))
        });
        wrong.then_some(at)
    }

    fn has_wrong_data_flag(&self, entry: Entry, words: Words, table: &Table) -> bool {
        match entry {
            Entry::Plain(Plain { host: Some(host), .. }) if !self.layout.rules.data_file => {
                has_wrong_flag(self.counts.get(host >> self.layout.bits()), words.0, table.active > 0)
            }
            _ => false,
        }
    }

    /// The count that a cluster has in the file, for a message, and whether it could be read.
    fn stored(&self, cluster: u64, read: &mut io::Result<()>) -> u64 {
        let geometry = self.layout.rules.geometry;
        let Block::At(at) = self.layout.block(cluster / geometry.block_entries()) else { return 0 };
        let mut bytes = vec![0; geometry.cluster_size() as usize];
        let index = (cluster % geometry.block_entries()) as usize;
        *read = read_to_end(self.file, at, &mut bytes);
        if read.is_ok() { Width::of(geometry).get(&bytes, index) } else { 0 }
    }

    /// An entry as it shall be; `lost` is told what the guest loses by that, and why.
    #[expect(clippy::too_many_arguments)]
    fn mend(
        &self,
        judge: &Judge,
        table: &Table,
        index: usize,
        words: Words,
        alone_too: bool,
        impostors: &HashSet<u64>,
        mut lost: impl FnMut(Trouble, String),
    ) -> Words {
        let mut tell = |trouble: Trouble, words: Words| {
            // A cluster that holds no data, only a place for it, is no loss.
            let held = judge.rules.decode(words).is_ok_and(|entry| {
                matches!(entry, Entry::Compressed(_) | Entry::Plain(Plain { data: 1.., .. }))
            });
            if trouble.loses() && (held || judge.rules.decode(words).is_err()) {
                let size = judge.rules.geometry.cluster_size();
                let what = self.guest(table, index).map(|guest| range_text(guest, size));
                lost(trouble, what.unwrap_or_else(|| "a cluster of a snapshot is".to_owned()));
            }
        };
        let mut new = words;
        if alone_too {
            new = judge.mend(words, |trouble| tell(trouble, words));
            let outside = judge.rules.data_file && table.active > 0;
            if outside
                && matches!(judge.fine(new), Some(Entry::Plain(Plain { host: Some(_), copied: false, .. })))
            {
                new.0 |= COPIED;
            }
        }
        if let Some(to) = judge.fine(new).and_then(|entry| self.metadata_at(judge, entry, impostors)) {
            tell(Trouble::Metadata(to), new);
            new = judge.lost(new);
        }
        new
    }
}

fn range_text(guest: u64, len: u64) -> String {
    format!("guest bytes {guest} to {} are", guest.saturating_add(len) - 1)
}

fn use_of(active: bool, copied: bool) -> u16 {
    match (active, copied) {
        (false, _) => 0,
        (true, true) => COPIED_USE,
        (true, false) => PLAIN_USE,
    }
}

/// A count that was wanted for the message of the entry at `at` could not be read again.
fn unread_count(work: &mut Work, at: u64, read: io::Result<()>) {
    if let Err(error) = read {
        work.found.unread(at, || format!("the refcount of what the entry at offset {at} leads to: {error}"));
    }
}

/// Whether an entry that refers to a judged cluster says COPIED where its refcount is not 1, or does not where it is.
fn has_wrong_flag(cell: Cell, entry: u64, active: bool) -> bool {
    active && cell.is(if entry & COPIED != 0 { COPIED_USE } else { PLAIN_USE })
}

/// Calls `see` with the number and the words of every entry that is not zero, and puts what it answers.
#[inline]
fn each(bytes: &mut [u8], words: usize, mut see: impl FnMut(usize, Words) -> Words) {
    if words == 1 {
        for (index, raw) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let old = u64::from_be_bytes(*raw);
            if old != 0 {
                let new = see(index, Words(old, 0)).0;
                if new != old {
                    *raw = new.to_be_bytes();
                }
            }
        }
    } else {
        for (index, raw) in bytes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let both = u128::from_be_bytes(*raw);
            if both != 0 {
                let old = Words((both >> 64) as u64, both as u64);
                let new = see(index, old);
                if new != old {
                    *raw = (u128::from(new.0) << 64 | u128::from(new.1)).to_be_bytes();
                }
            }
        }
    }
}

/// Sorts tables by where they stand, each once.
fn merge(tables: &mut Vec<Table>) {
    tables.sort_unstable_by_key(|table| (table.at, table.index.is_none(), table.index));
    tables.dedup_by(|next, first| {
        let same = next.at == first.at;
        if same {
            first.active = first.active.saturating_add(next.active);
            first.snapshots = first.snapshots.saturating_add(next.snapshots);
        }
        same
    });
}
