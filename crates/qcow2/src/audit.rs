//! Before the first write: does everything that is used have a count, and one owner where it says so? An allocator
//! that trusts refcounts which do not cover what is used hands out a cluster that somebody has.

use std::collections::HashSet;

use cowhand_core::{Error, Result};

use crate::alloc::Allocator;
use crate::bitmaps::{self, Directory};
use crate::cache::read_to_end;
use crate::entry::{COPIED, Entry, Plain, Words};
use crate::layer::Qcow2Layer;

/// Clusters that are looked at: 64 MiB of bits, 32 TiB with clusters of 64 KiB.
const MAX_CLUSTERS: u64 = 64 << 23;

struct Audit<'a> {
    layer: &'a Qcow2Layer,
    alloc: &'a mut Allocator,
    /// One bit for each cluster that was seen in use.
    seen: Vec<u64>,
    bits: u32,
}

/// Refuses an image that cannot be written safely.
pub(crate) fn audit(layer: &Qcow2Layer, alloc: &mut Allocator) -> Result<()> {
    let shared = &layer.view.shared;
    let header = &shared.header().clone();
    let bits = header.geometry.cluster_bits();
    let len = shared.file.len().map_err(|error| Error::io("cannot find the size", error))?;
    let clusters = len.div_ceil(1 << bits);
    if clusters > MAX_CLUSTERS {
        return Err(Error::unsupported(format!(
            "an image file of {clusters} clusters is too large to be checked before writing"
        )));
    }
    let mut audit = Audit { layer, alloc, seen: vec![0; clusters.div_ceil(64) as usize], bits };
    let span = |start: u64, bytes: u64| start >> bits..start.saturating_add(bytes).div_ceil(1 << bits);
    audit.metadata("header", span(0, 1))?;
    audit.metadata("L1 table", span(header.l1_offset, u64::from(header.l1_entries) * 8))?;
    audit.metadata("refcount table", audit.alloc.table_run())?;
    let table = crate::snapshot::read_table(shared.file.as_ref(), header)?.1;
    audit.metadata("snapshot table", span(header.snapshots_offset, table))?;
    let crypto = header.crypto_header();
    audit.metadata("encryption header", span(crypto.offset, crypto.length))?;
    let blocks: Vec<u64> = audit.alloc.block_offsets().collect();
    for block in blocks {
        audit.metadata("refcount block", span(block, 1))?;
    }
    if let Some(at) = bitmaps::place(header) {
        audit.metadata("bitmap directory", bitmaps::run(at, header.geometry))?;
        for bitmap in Directory::read(shared.file.as_ref(), header)?.entries {
            audit.bitmap(&bitmap)?;
        }
    }
    let snapshots = layer.snapshots().clone();
    for snapshot in &snapshots {
        snapshot.check(header, len)?;
        audit
            .metadata("snapshot's L1 table", span(snapshot.l1_offset, u64::from(snapshot.l1_entries) * 8))?;
    }
    let mut tables = HashSet::new();
    let own = layer.view.l1().clone();
    audit.tables(&own.entries, own.at, true, &mut tables)?;
    for snapshot in &snapshots {
        let mut raw = vec![0; snapshot.l1_entries as usize * 8];
        let failed = |error| Error::io("cannot read a snapshot's L1 table", error).at(snapshot.l1_offset);
        shared.file.read_at(snapshot.l1_offset, &mut raw).map_err(failed)?;
        let l1: Vec<u64> = raw.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect();
        audit.tables(&l1, snapshot.l1_offset, false, &mut tables)?;
    }
    Ok(())
}

fn refuse(what: &str, at: u64, message: String) -> Error {
    Error::corrupt(what, message)
        .at(at)
        .hint("the image can be read, but not written before a check has repaired it")
}

impl Audit<'_> {
    /// Marks a cluster; true if it was marked before.
    fn mark(&mut self, cluster: u64) -> bool {
        let Some(word) = self.seen.get_mut((cluster / 64) as usize) else { return false };
        let bit = 1 << (cluster % 64);
        let before = *word & bit != 0;
        *word |= bit;
        before
    }

    /// A structure that has its clusters to itself.
    fn metadata(&mut self, what: &str, run: std::ops::Range<u64>) -> Result<()> {
        for cluster in run {
            self.count(what, cluster)?;
            if self.mark(cluster) {
                return Err(refuse(
                    what,
                    cluster << self.bits,
                    "stands where another structure stands".to_owned(),
                ));
            }
        }
        Ok(())
    }

    fn bitmap(&mut self, entry: &bitmaps::Entry) -> Result<()> {
        let shared = &self.layer.view.shared;
        let geometry = shared.geometry();
        self.metadata("bitmap table", entry.table_run(geometry))?;
        for word in bitmaps::read_table(shared.file.as_ref(), geometry, entry)? {
            if let bitmaps::Word::Stored(at) = word {
                self.metadata("bitmap", at >> self.bits..(at >> self.bits) + 1)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, what: &str, cluster: u64) -> Result<u64> {
        match self.alloc.count(cluster)? {
            0 => {
                Err(refuse(what, cluster << self.bits, "stands in a cluster whose refcount is 0".to_owned()))
            }
            count => Ok(count),
        }
    }

    /// A cluster that an entry standing at `at` refers to. `copied`: it says that it is the only one.
    fn reference(&mut self, what: &str, cluster: u64, copied: bool, at: u64) -> Result<()> {
        let count = self.alloc.count(cluster)?;
        let host = cluster << self.bits;
        let seen = self.mark(cluster);
        if count == 0 {
            return Err(refuse(what, at, format!("refers to the cluster at {host}, whose refcount is 0")));
        }
        if copied && count != 1 {
            return Err(refuse(
                what,
                at,
                format!("says that the cluster at {host} is its own, and the refcount is {count}"),
            ));
        }
        if seen && count == 1 {
            return Err(refuse(
                what,
                at,
                format!("refers to the cluster at {host}, which something else uses, and the refcount is 1"),
            ));
        }
        Ok(())
    }

    /// `own`: the image's own L1 table; COPIED means nothing in a snapshot's.
    fn tables(&mut self, l1: &[u64], l1_at: u64, own: bool, done: &mut HashSet<u64>) -> Result<()> {
        let shared = &self.layer.view.shared;
        for (index, entry) in (0u64..).zip(l1) {
            let at = l1_at + 8 * index;
            let Some(table) = shared.l2_table(*entry, at)? else { continue };
            let known = !done.insert(table);
            if known {
                // A table that two refer to was looked at; it must be counted as such.
                if self.alloc.count(table >> self.bits)? < 2 {
                    return Err(refuse(
                        "L1 entry",
                        at,
                        format!(
                            "refers to the L2 table at {table}, as another does, and its refcount is below 2"
                        ),
                    ));
                }
                continue;
            }
            self.reference("L1 entry", table >> self.bits, own && entry & COPIED != 0, at)?;
            self.table(table, own)?;
        }
        Ok(())
    }

    fn table(&mut self, table: u64, own: bool) -> Result<()> {
        let shared = &self.layer.view.shared;
        let geometry = shared.geometry();
        let mut bytes = vec![0; geometry.cluster_size() as usize];
        read_to_end(shared.file.as_ref(), table, &mut bytes)
            .map_err(|error| Error::io("cannot read an L2 table", error).at(table))?;
        let step = geometry.entry_words() * 8;
        let mut last_packed = u64::MAX;
        for (index, raw) in bytes.chunks_exact(step).enumerate() {
            let word = |at: usize| {
                raw.get(at..at + 8).and_then(|raw| raw.try_into().ok()).map_or(0, u64::from_be_bytes)
            };
            let words = Words(word(0), word(8));
            if words == Words(0, 0) {
                continue;
            }
            let at = table + (index * step) as u64;
            match shared.entry(words, at)? {
                Entry::Plain(Plain { host: Some(host), copied, .. }) if !shared.rules.data_file => {
                    self.reference("L2 entry", host >> self.bits, own && copied, at)?;
                }
                Entry::Plain(_) => {}
                Entry::Compressed(packed) => {
                    // Several of one cluster are normal, so only the count is looked at, once for each run of them.
                    for cluster in packed.at >> self.bits..=(packed.at + packed.len - 1) >> self.bits {
                        if cluster != last_packed {
                            self.mark(cluster);
                            self.count("L2 entry", cluster)?;
                            last_packed = cluster;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
