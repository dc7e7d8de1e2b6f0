//! Changing the disk's size. What is new is made to read zero while it is still beyond the end, and the size is the last
//! to change; what is cut off goes after the size has.
//!
//! So a power cut leaves the old size with all it had, or the new one. Entries beyond the end do no harm: the format
//! keeps a virtual machine's saved state there. Nobody can count on them either, so growing drops all of them first.

use cowhand_core::{Error, Prealloc, Result};

use crate::entry::{COPIED, Entry, Plain, Words};
use crate::geometry::Geometry;
use crate::header::{Header, MAX_L1_BYTES};
use crate::layer::Qcow2Layer;
use crate::view::L1;
use crate::writer::{Freed, Writer};

/// Entries changed in one step.
const BATCH: u64 = 1 << 16;

impl Qcow2Layer {
    /// See `Layer::resize`.
    pub(crate) fn resize_to(&self, size: u64, prealloc: Prealloc, below: u64) -> Result<()> {
        check_size(&self.view.shared.header(), size)?;
        self.check_bitmaps(size)?;
        let (writer, _claim) = self.alone()?;
        let old = self.view.size();
        if size > old {
            self.grow_disk(writer, old, size, prealloc, below)
        } else if size < old {
            self.shrink_disk(writer, size)
        } else {
            Ok(())
        }
    }

    fn grow_disk(&self, writer: &Writer, old: u64, size: u64, prealloc: Prealloc, below: u64) -> Result<()> {
        let shared = &self.view.shared;
        let geometry = shared.geometry();
        let cluster = geometry.cluster_size();
        let first_new = old.next_multiple_of(cluster);
        self.drop_behind(writer, first_new >> geometry.cluster_bits())?;
        self.grow_l1(writer, geometry.l1_entries(size))?;
        if old < first_new {
            self.clear_tail(writer, old, below > old)?;
        }
        if shared.rules.data_file {
            self.clear_data(old, size - old)?;
            let failed = |error| Error::io("cannot make the data file longer", error);
            if shared.rules.raw_data || shared.data.len().map_err(failed)? < size {
                shared.data.set_len(size).map_err(failed)?;
            }
        }
        // A raw data file is read by others, so every cluster is mapped.
        let mapped = prealloc != Prealloc::Off || shared.rules.raw_data;
        if mapped {
            self.preallocate(writer, first_new..size, prealloc, geometry.all_subclusters())?;
        } else if below > first_new {
            self.hide_parent(writer, first_new >> geometry.cluster_bits(), below.min(size))?;
        }
        self.write_back(writer, true)?;
        self.switch_size(writer, size)?;
        self.view.set_size(size);
        Ok(())
    }

    fn shrink_disk(&self, writer: &Writer, size: u64) -> Result<()> {
        let shared = &self.view.shared;
        self.switch_size(writer, size)?;
        self.view.set_size(size);
        self.drop_behind(writer, size.div_ceil(shared.geometry().cluster_size()))?;
        self.write_back(writer, true)?;
        if shared.rules.data_file {
            // Not before the last entry that points there is durably gone.
            shared
                .data
                .set_len(size)
                .map_err(|error| Error::io("cannot make the data file shorter", error))?;
            self.barrier(writer)?;
        }
        self.trim(writer)
    }

    /// Takes everything away that guest clusters from `first` on map to, as far as the L1 table goes.
    pub(crate) fn drop_behind(&self, writer: &Writer, first: u64) -> Result<()> {
        let per_table = self.view.shared.geometry().l2_entries();
        let tables = self.view.l1().entries.len() as u64;
        for index in first / per_table..tables {
            let start = index * per_table;
            if self.view.l1_entry(index as usize).0 == 0 {
                continue;
            }
            if start >= first {
                self.drop_table(writer, index)?;
            } else {
                self.own_tables(writer, first, first)?;
                self.drop_entries(writer, first, start + per_table)?;
            }
            self.begin()?;
        }
        Ok(())
    }

    /// Makes the entries of guest clusters `first..end`, of one own table, say nothing.
    fn drop_entries(&self, writer: &Writer, first: u64, end: u64) -> Result<()> {
        let old = self.entries(first, end - 1)?;
        let freed = old.into_iter().filter_map(|old| self.freed_by(old)).collect();
        self.publish(writer, first, end - first, freed, |_, _| Words(0, 0))
    }

    /// Takes an L2 table away, and what it maps to.
    fn drop_table(&self, writer: &Writer, index: u64) -> Result<()> {
        let shared = &self.view.shared;
        let geometry = shared.geometry();
        let (entry, entry_at) = self.view.l1_entry(index as usize);
        let table = shared.l2_table(entry, entry_at)?;
        let first = index * geometry.l2_entries();
        let mut freed: Vec<Freed> = match table {
            Some(_) => {
                let old = self.entries(first, first + geometry.l2_entries() - 1)?;
                old.into_iter().filter_map(|old| self.freed_by(old)).collect()
            }
            None => Vec::new(),
        };
        freed.extend(table.map(|table| {
            let cluster = table >> geometry.cluster_bits();
            Freed { run: cluster..cluster + 1, punch: entry & COPIED != 0 }
        }));
        self.publish_l1(writer, index as usize, 0, freed);
        Ok(())
    }

    /// Makes the L1 table have at least `entries` entries.
    fn grow_l1(&self, writer: &Writer, entries: u64) -> Result<()> {
        let have = self.view.l1().entries.len() as u64;
        if entries <= have {
            return Ok(());
        }
        // From here on nothing of the old table waits to be written, and nobody else changes it.
        self.write_back(writer, true)?;
        let mut l1 = self.view.l1().entries.clone();
        l1.resize(entries as usize, 0);
        let at = self.write_l1(writer, &l1)?;
        self.write_back(writer, true)?;
        self.switch_l1(writer, L1 { at, entries: l1 }, |_| {})
    }

    /// Zeros what the disk's last cluster holds behind the disk's end, `end`. `hide`: also where the cluster says
    /// nothing, but for the subcluster that the end cuts.
    fn clear_tail(&self, writer: &Writer, end: u64, hide: bool) -> Result<()> {
        let rules = self.view.shared.rules;
        let geometry = rules.geometry;
        let (unit, size) = (geometry.subcluster_size(), geometry.cluster_size());
        let cluster = end >> geometry.cluster_bits();
        let (start, stop) = (cluster << geometry.cluster_bits(), (cluster + 1) << geometry.cluster_bits());
        let old = match self.entries(cluster, cluster)?.pop() {
            Some(old) => old,
            None => return Ok(()),
        };
        let cut = end.next_multiple_of(unit);
        let write_zeros = |to: u64| self.write_claimed(writer, end, &vec![0; (to - end) as usize]);
        let Entry::Plain(plain) = old else { return write_zeros(stop) };
        if end < cut && plain.data >> ((end - start) / unit) & 1 != 0 {
            let _operation = writer.epochs.enter();
            write_zeros(cut)?;
        }
        let behind = cut - start;
        let holes = |plain: Plain| !(plain.data | plain.zero) >> (behind / unit).min(31) != 0;
        if behind == size || (plain.data >> (behind / unit) == 0 && !(hide && holes(plain))) {
            return Ok(());
        }
        self.own_tables(writer, cluster, cluster)?;
        let Some(old) = self.entries(cluster, cluster)?.pop() else { return Ok(()) };
        let Some((new, free)) = self.erased(old, behind, size, false, cowhand_core::Erase::Free) else {
            return Ok(());
        };
        let freed = free.then(|| self.freed_by(old)).flatten().into_iter().collect();
        self.publish(writer, cluster, 1, freed, |_, _| rules.encode(new))
    }

    /// Makes guest clusters from `first` on, of which nothing is mapped, say zero up to the guest byte `end`. Version 2
    /// cannot say zero: clusters of zeros do it there.
    fn hide_parent(&self, writer: &Writer, first: u64, end: u64) -> Result<()> {
        let rules = self.view.shared.rules;
        let geometry = rules.geometry;
        if rules.version < 3 {
            let bits = geometry.cluster_bits();
            return self.preallocate(writer, first << bits..end, Prealloc::Metadata, 1);
        }
        let zero = rules.encode(Plain { zero: geometry.all_subclusters(), ..Plain::default() });
        let last = end.div_ceil(geometry.cluster_size());
        let mut at = first;
        while at < last {
            let table_end = (at / geometry.l2_entries() + 1) * geometry.l2_entries();
            let count = (last - at).min(table_end - at).min(BATCH);
            self.own_tables(writer, at, at)?;
            self.publish(writer, at, count, Vec::new(), |_, _| zero)?;
            at += count;
            self.begin()?;
        }
        Ok(())
    }
}

/// Refuses a size that this image cannot have.
fn check_size(header: &Header, size: u64) -> Result<()> {
    if !size.is_multiple_of(512) {
        return Err(Error::invalid(format!("the new size {size} is not a multiple of 512")));
    }
    check_l1(header.geometry, size)?;
    if header.version < 3 && header.snapshots > 0 {
        return Err(Error::unsupported("Can't resize a v2 image which has snapshots")
            .hint("delete the snapshots, or make it version 3 with amend -o compat=1.1"));
    }
    Ok(())
}

/// Refuses a size for which the L1 table would be larger than 32 MiB.
pub(crate) fn check_l1(geometry: Geometry, size: u64) -> Result<()> {
    let fits = i64::try_from(size).is_ok() && geometry.l1_entries(size) * 8 <= MAX_L1_BYTES;
    fits.then_some(()).ok_or_else(|| {
        Error::invalid(
            "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
        )
    })
}
