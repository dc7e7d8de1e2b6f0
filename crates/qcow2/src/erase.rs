//! Taking guest bytes away: zero flags, unallocated entries.

use cowhand_core::{Erase, Error, Result};

use crate::entry::{Entry, Plain};
use crate::layer::Qcow2Layer;
use crate::writer::Writer;

/// Clusters whose claim is held at once.
const BATCH: u64 = 1 << 16;

impl Qcow2Layer {
    /// See `Layer::erase`.
    pub(crate) fn erase_at(&self, at: u64, len: u64, how: Erase) -> Result<u64> {
        let writer = self.begin()?;
        self.check_range(at, len)?;
        let shared = &self.view.shared;
        let geometry = shared.geometry();
        let unit = geometry.subcluster_size();
        let end = at + len;
        let end = if end == self.view.size() { end } else { end - end % unit };
        // Version 2 cannot say zero: it can only say nothing, which is zero where there is no parent.
        let backed = shared.header().backing.is_some();
        let no_zero = shared.rules.version < 3 && backed;
        let raw = shared.rules.raw_data;
        if !at.is_multiple_of(unit)
            || at >= end
            || (how != Erase::Reveal && no_zero)
            || (how == Erase::Reveal && raw)
        {
            return Ok(0);
        }
        let mut here = at;
        while here < end {
            // Guest bytes that one claim covers; where there is no table, and none is needed, more.
            let batch_end =
                end.min((here >> geometry.cluster_bits()).saturating_add(BATCH) << geometry.cluster_bits());
            let done = self.erase_batch(writer, here, batch_end, end, how)?;
            if done == 0 {
                break;
            }
            here += done;
            if here < end {
                self.begin()?;
            }
        }
        Ok(here - at)
    }

    fn erase_batch(&self, writer: &Writer, at: u64, batch_end: u64, end: u64, how: Erase) -> Result<u64> {
        let shared = &self.view.shared;
        let geometry = shared.geometry();
        let bits = geometry.cluster_bits();
        // What is a hole already stays one where that reads as asked.
        let holes_do = how == Erase::Reveal || (how == Erase::Free && shared.header().backing.is_none());
        if holes_do && !shared.rules.raw_data {
            let stretch = self.view.stretch(at, end - at)?;
            if stretch.found == crate::view::Found::Hole {
                // Nothing changes; but who asks what was erased may mean this too.
                self.record(writer, at, stretch.len)?;
                return Ok(stretch.len);
            }
        }
        let (first, last) = (at >> bits, (batch_end - 1) >> bits);
        let _claim = writer.claims.take(first..=last, true);
        self.check_range(at, batch_end - at)?;
        let _operation = writer.epochs.enter();
        self.record(writer, at, batch_end - at)?;
        if shared.rules.raw_data {
            self.clear_data(at, batch_end - at)?;
        }
        let table_end = (first / geometry.l2_entries() + 1) * geometry.l2_entries();
        let last = last.min(table_end - 1);
        let batch_end = batch_end.min((last + 1) << bits);
        self.own_tables(writer, first, last)?;
        let old = self.entries(first, last)?;
        let mut new = Vec::with_capacity(old.len());
        let mut freed = Vec::new();
        let mut done = at;
        for (cluster, old) in (first..).zip(old) {
            let start = cluster << bits;
            let to = batch_end.min(start + geometry.cluster_size());
            let whole = done == start && (to == start + geometry.cluster_size() || to == self.view.size());
            let Some((entry, free)) = self.erased(old, done - start, to - start, whole, how) else { break };
            if shared.rules.data_file && how == Erase::Free && free {
                self.clear_data(start, to - start)?;
            }
            freed.extend(free.then(|| self.freed_by(old)).flatten());
            new.push(shared.rules.encode(entry));
            done = to;
        }
        self.publish(writer, first, new.len() as u64, freed, |index, old| {
            new.get(index as usize).copied().unwrap_or(old)
        })?;
        Ok(done - at)
    }

    /// A cluster's entry after bytes `from..to` of it are erased, and whether its old place is free then. `None`: that
    /// cannot be said.
    pub(crate) fn erased(
        &self,
        old: Entry,
        from: u64,
        to: u64,
        whole: bool,
        how: Erase,
    ) -> Option<(Plain, bool)> {
        let shared = &self.view.shared;
        let geometry = shared.geometry();
        let all = geometry.all_subclusters();
        let raw = shared.rules.raw_data;
        let bits = if whole {
            all
        } else {
            let unit = geometry.subcluster_size();
            ((1u64 << to.div_ceil(unit).min(32)) - (1u64 << (from / unit).min(32))) as u32
        };
        let says_zero = how != Erase::Reveal && shared.rules.version >= 3;
        let old = match old {
            Entry::Compressed(_) if !whole => return None,
            Entry::Compressed(_) => {
                return Some((Plain { zero: if says_zero { all } else { 0 }, ..Plain::default() }, true));
            }
            Entry::Plain(plain) => plain,
        };
        let mut new = Plain { data: old.data & !bits, zero: old.zero & !bits, ..old };
        if says_zero {
            new.zero |= bits;
        }
        let own = old.copied || shared.rules.data_file;
        let keep = raw || new.data != 0 || (how == Erase::Zero && says_zero && own);
        if keep || old.host.is_none() {
            // A place shared with a snapshot is not this image's to keep; with data left in it, it stays shared.
            return Some((new, false));
        }
        Some((Plain { host: None, copied: false, ..new }, true))
    }

    /// Makes bytes of the data file zero.
    pub(crate) fn clear_data(&self, at: u64, len: u64) -> Result<()> {
        let data = &self.view.shared.data;
        let failed = |error| Error::io("cannot clear the data file", error).at(at);
        let file_len = data.len().map_err(failed)?;
        let len = len.min(file_len.saturating_sub(at));
        if len == 0 || data.punch(at, len).map_err(failed)? || data.zero(at, len).map_err(failed)? {
            return Ok(());
        }
        let zeros = vec![0; len.min(1 << 20) as usize];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(zeros.len() as u64);
            data.write_at(at + done, zeros.get(..n as usize).unwrap_or_default()).map_err(failed)?;
            done += n;
        }
        Ok(())
    }
}
