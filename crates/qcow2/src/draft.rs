//! A state of the image made beside the one that counts, and taken into use with one write of the header.
//!
//! The COPIED flag of every entry of the image's own tables must say whether the refcount of what it refers to is 1: a
//! check calls a flag without that, and that without the flag, an error. A snapshot changes refcounts and flags all
//! over the file, and between any two writes of them they would not agree. So nothing is changed where it stands: L2
//! tables whose flags change are written anew, with an L1 table that leads to them, a snapshot table, and the refcounts
//! of the state to come (a fork of the allocator). All of these are led to by fields of the header's first sector,
//! which is written once, when the rest is durable. A power cut leaves the state before or after, without a leak.
//!
//! Nobody writes meanwhile. Readers go on; what the old state alone used is not given out before those that began
//! in it have ended.

use cowhand_core::{Error, Result};

use crate::alloc::{Allocator, Run};
use crate::allocated::refuse_shared_tables;
use crate::cache::read_to_end;
use crate::entry::{COPIED, Entry, Plain, Words};
use crate::layer::Qcow2Layer;
use crate::snapshot::{Snapshot, encode};
use crate::view::L1;
use crate::writer::{Writer, lock};

/// What the image is to be.
pub(crate) struct Next {
    /// Its own L1 table's entries.
    pub(crate) l1: Vec<u64>,
    pub(crate) size: u64,
    /// Where the list changes.
    pub(crate) snapshots: Option<Vec<Snapshot>>,
}

/// The state to come while it is made.
pub(crate) struct Draft<'a> {
    layer: &'a Qcow2Layer,
    alloc: &'a mut Allocator,
}

impl Qcow2Layer {
    /// Makes the image what `draft` says, which is given the snapshots that are there, at once. `compact`: what is
    /// written anew goes as far to the front as it can. The caller is alone.
    pub(crate) fn switch(
        &self,
        writer: &Writer,
        compact: bool,
        draft: impl FnOnce(&mut Draft<'_>, &[Snapshot]) -> Result<Next>,
    ) -> Result<()> {
        // What is in memory is in the file from here on, and nobody changes either.
        self.write_back(writer, true)?;
        let _order = lock(&writer.order);
        writer.check_failed()?;
        let mut alloc = writer.alloc();
        // Nobody opens a snapshot meanwhile.
        let mut snapshots = self.snapshots();
        let next = alloc.fork(compact).and_then(|()| {
            let mut draft_of = Draft { layer: self, alloc: &mut alloc };
            let next = draft(&mut draft_of, &snapshots)?;
            self.take_over(writer, draft_of, next, &mut snapshots)
        });
        if next.is_err() {
            alloc.abandon();
            return next;
        }
        // What the old state alone used is read by nobody now.
        writer.epochs.wait();
        let shared = &self.view.shared;
        shared.unpacked.clear();
        let bits = shared.geometry().cluster_bits();
        alloc.adopt(|run| {
            if run.is_empty() || writer.fresh {
                return;
            }
            // Only a wish.
            let _ = shared.file.punch(run.start << bits, (run.end - run.start) << bits);
        });
        Ok(())
    }

    /// Writes what is left to write, and the header.
    fn take_over(
        &self,
        writer: &Writer,
        mut draft: Draft<'_>,
        next: Next,
        snapshots: &mut Vec<Snapshot>,
    ) -> Result<()> {
        let shared = &self.view.shared;
        let bits = shared.geometry().cluster_bits();
        let old = shared.header().clone();
        let l1 = L1 { at: draft.put_l1(&next.l1)?, entries: next.l1 };
        draft.shift(old.l1_offset, u64::from(old.l1_entries) * 8, false)?;
        let list = match &next.snapshots {
            Some(new) => {
                let bytes = encode(new)?;
                draft.shift(old.snapshots_offset, encode(snapshots)?.len() as u64, false)?;
                Some((draft.put(&bytes)?, new.len() as u32))
            }
            None => None,
        };
        let (table, clusters) = draft.alloc.write_fork()?;
        self.barrier(writer)?;
        self.change_fields(writer, |header| {
            (header.l1_offset, header.l1_entries) = (l1.at, l1.entries.len() as u32);
            (header.refcount_table_offset, header.refcount_table_clusters) = (table, clusters);
            header.size = next.size;
            if let Some((at, count)) = list {
                (header.snapshots_offset, header.snapshots) = (at, count);
            }
        })?;
        // An offset of 0 is the header's: that table had no entries.
        let moved = [
            (old.l1_offset, l1.at),
            (old.refcount_table_offset, table),
            (old.snapshots_offset, list.map_or(old.snapshots_offset, |(at, _)| at)),
        ];
        moved.into_iter().filter(|(from, to)| from != to && from >> bits != 0).for_each(|(from, _)| {
            shared.moved_from(from);
        });
        if next.size < self.view.size() {
            self.view.set_size(next.size);
        }
        *self.view.l1_mut() = l1;
        self.view.set_size(next.size);
        if let Some(new) = next.snapshots {
            *snapshots = new;
        }
        Ok(())
    }
}

impl Draft<'_> {
    fn run(&self, at: u64, bytes: u64) -> Run {
        let geometry = self.layer.view.shared.geometry();
        let first = at >> geometry.cluster_bits();
        first..first + bytes.div_ceil(geometry.cluster_size())
    }

    /// Adds a reference to the clusters of `bytes` bytes at `at`, or takes one away.
    pub(crate) fn shift(&mut self, at: u64, bytes: u64, up: bool) -> Result<()> {
        self.alloc.shift(self.run(at, bytes), up)
    }

    /// Writes `bytes` to new clusters. Answers where they stand; 0 where there is nothing to write.
    fn put(&mut self, bytes: &[u8]) -> Result<u64> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let shared = &self.layer.view.shared;
        let run = self.alloc.take_new(self.run(0, bytes.len() as u64).end)?;
        let at = run.start << shared.geometry().cluster_bits();
        shared
            .file
            .write_at(at, bytes)
            .map_err(|error| Error::io("cannot write the image's tables", error).at(at))?;
        Ok(at)
    }

    pub(crate) fn put_l1(&mut self, entries: &[u64]) -> Result<u64> {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.put(&bytes)
    }

    fn words(&self, what: &str, at: u64, bytes: u64) -> Result<Vec<u64>> {
        let mut raw = vec![0; bytes as usize];
        if !raw.is_empty() {
            read_to_end(self.layer.view.shared.file.as_ref(), at, &mut raw)
                .map_err(|error| Error::io(format!("cannot read {what}"), error).at(at))?;
        }
        Ok(raw.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect())
    }

    /// A snapshot's L1 table.
    pub(crate) fn l1_of(&self, snapshot: &Snapshot) -> Result<Vec<u64>> {
        let shared = &self.layer.view.shared;
        let len = shared.file.len().map_err(|error| Error::io("cannot find the size", error))?;
        snapshot.check(&shared.header(), len)?;
        self.words("a snapshot's L1 table", snapshot.l1_offset, u64::from(snapshot.l1_entries) * 8)
    }

    /// The L2 table that an L1 entry standing at `at` refers to, and its words.
    fn table(&self, entry: u64, at: u64) -> Result<Option<(u64, Vec<u64>)>> {
        let shared = &self.layer.view.shared;
        let Some(table) = shared.l2_table(entry, at)? else { return Ok(None) };
        Ok(Some((table, self.words("an L2 table", table, shared.geometry().cluster_size())?)))
    }

    /// Adds a reference to all that the tables from an L1 table on refer to, or takes one away.
    pub(crate) fn refer(&mut self, l1: &[u64], l1_at: u64, up: bool) -> Result<()> {
        refuse_shared_tables(l1, l1_at)?;
        let shared = &self.layer.view.shared;
        let bits = shared.geometry().cluster_bits();
        let per_entry = shared.geometry().entry_words();
        for (index, entry) in (0u64..).zip(l1) {
            let Some((table, words)) = self.table(*entry, l1_at + 8 * index)? else { continue };
            self.shift(table, 1, up)?;
            let mut run = 0..0;
            for (at, entry) in (table..).step_by(8 * per_entry).zip(words.chunks_exact(per_entry)) {
                let next = match decoded(entry) {
                    Words(0, 0) => continue,
                    words => match shared.entry(words, at)? {
                        Entry::Plain(Plain { host: Some(host), .. }) if !shared.rules.data_file => {
                            self.run(host, 1)
                        }
                        Entry::Plain(_) => continue,
                        Entry::Compressed(packed) => {
                            packed.at >> bits..((packed.at + packed.len - 1) >> bits) + 1
                        }
                    },
                };
                if next.start == run.end {
                    run.end = next.end;
                } else {
                    self.alloc.shift(std::mem::replace(&mut run, next), up)?;
                }
            }
            self.alloc.shift(run, up)?;
        }
        Ok(())
    }

    /// Makes the COPIED flags of the image's own tables agree with the refcounts, in new tables where they do not.
    /// `references`: to each of the tables from this L1 table and copies of it.
    pub(crate) fn mend(&mut self, l1: &mut [u64], l1_at: u64, references: u32) -> Result<()> {
        let shared = &self.layer.view.shared;
        let bits = shared.geometry().cluster_bits();
        let per_entry = shared.geometry().entry_words();
        for (index, entry) in (0u64..).zip(l1) {
            let Some((mut table, mut words)) = self.table(*entry, l1_at + 8 * index)? else {
                *entry = 0;
                continue;
            };
            let mut differs = false;
            let places = (table..).step_by(8 * per_entry);
            for (at, entry) in places.zip(words.chunks_exact_mut(per_entry)) {
                let known = match decoded(entry) {
                    Words(0, 0) => continue,
                    words => shared.entry(words, at)?,
                };
                if let Entry::Plain(Plain { host: Some(host), copied, .. }) = known
                    && let Some(first) = entry.first_mut()
                    && copied != (self.alloc.count(host >> bits)? == 1)
                {
                    *first ^= COPIED;
                    differs = true;
                }
            }
            if differs {
                for _ in 0..references {
                    self.shift(table, 1, false)?;
                }
                table = self.put_l1(&words)?;
                for _ in 1..references {
                    self.shift(table, 1, true)?;
                }
                // Whatever stood there before may still be remembered.
                shared.slices.forget(table);
            }
            *entry = table | if self.alloc.count(table >> bits)? == 1 { COPIED } else { 0 };
        }
        Ok(())
    }
}

fn decoded(entry: &[u64]) -> Words {
    Words(entry.first().copied().unwrap_or(0), entry.get(1).copied().unwrap_or(0))
}
