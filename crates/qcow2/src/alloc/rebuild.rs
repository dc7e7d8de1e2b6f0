//! Another refcount width: a whole new refcount structure in free clusters, beside the one that counts until the header
//! names the new one.

use std::collections::BTreeSet;

use cowhand_core::{Error, ErrorKind, Result};

use super::{Allocator, Run};
use crate::header::MAX_REFCOUNT_TABLE_BYTES;
use crate::refcount::Width;

impl Allocator {
    /// Writes the counts once more, `2^order` bits wide. In the new structure the clusters of this one are free. All
    /// counts have been written, and nobody changes one meanwhile. Errors: a count that is too large for the width.
    pub(crate) fn rebuild(&mut self, order: u32) -> Result<Allocator> {
        let geometry = self.geometry.with_refcount_order(order);
        let bits = geometry.cluster_bits();
        let per_block = geometry.block_entries();
        let counted = self.counted(geometry.refcount_max(), per_block, order)?;
        let (place, blocks) = self.place_new(&counted, per_block)?;
        // Whatever happens from here on, these do not read zero any more.
        self.virgin = self.virgin.max(place.end);
        let table_end = place.end - blocks.len() as u64;
        let entries = ((table_end - place.start) << bits) / 8;
        if entries * 8 > MAX_REFCOUNT_TABLE_BYTES {
            return Err(Error::new(ErrorKind::NoSpace, "the refcount table cannot grow beyond 8 MiB")
                .hint("use a smaller refcount_bits"));
        }
        let free: BTreeSet<u64> =
            self.table_run().chain(self.block_offsets().map(|offset| offset >> bits)).collect();
        let mut table = vec![0u64; entries as usize];
        let width = Width::of(geometry);
        for (index, cluster) in blocks.iter().zip(table_end..) {
            let mut bytes = vec![0; geometry.cluster_size() as usize];
            let first = index * per_block;
            let range = first..first + per_block;
            self.each_count(range.clone(), |cluster, count| {
                width.set(&mut bytes, (cluster - first) as usize, count);
            })?;
            for cluster in free.range(range.clone()) {
                width.set(&mut bytes, (cluster - first) as usize, 0);
            }
            for cluster in place.start.max(range.start)..place.end.min(range.end) {
                width.set(&mut bytes, (cluster - first) as usize, 1);
            }
            let at = cluster << bits;
            if let Some(entry) = table.get_mut(*index as usize) {
                *entry = at;
            }
            self.file
                .write_at(at, &bytes)
                .map_err(|error| Error::io("cannot write a refcount block", error).at(at))?;
        }
        let at = place.start << bits;
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.file
            .write_at(at, &bytes)
            .map_err(|error| Error::io("cannot write the refcount table", error).at(at))?;
        let mut new = Allocator::empty(self.file.clone(), geometry, at, table);
        new.virgin = self.virgin;
        Ok(new)
    }

    /// Which blocks of `per_block` counts are needed for what is counted. Errors: a count above `max`.
    fn counted(&mut self, max: u64, per_block: u64, order: u32) -> Result<BTreeSet<u64>> {
        let bits = self.geometry.cluster_bits();
        let (mut needed, mut last, mut over) = (BTreeSet::new(), None, None);
        self.each_count(0..self.covered(), |cluster, count| {
            if count != 0 && last != Some(cluster / per_block) {
                last = Some(cluster / per_block);
                needed.insert(cluster / per_block);
            }
            if count > max {
                over = over.or(Some((cluster, count)));
            }
        })?;
        match over {
            Some((cluster, count)) => Err(Error::unsupported(format!(
                "Cannot decrease refcount entry width to {} bits: Cluster at offset {:#x} has a refcount of {count}",
                1u64 << order,
                cluster << bits
            ))),
            None => Ok(needed),
        }
    }

    /// Free clusters for a table and, behind it, the blocks that count `counted` and these clusters.
    fn place_new(&mut self, counted: &BTreeSet<u64>, per_block: u64) -> Result<(Run, BTreeSet<u64>)> {
        let per_table = self.geometry.cluster_size() / 8;
        let mut n = 1;
        loop {
            let start = self.find(0, n)?;
            let mut blocks = counted.clone();
            blocks.extend(start / per_block..=(start + n - 1) / per_block);
            let entries = blocks.last().map_or(0, |last| last + 1);
            let wanted = blocks.len() as u64 + entries.div_ceil(per_table);
            if wanted <= n {
                return Ok((start..start + n, blocks));
            }
            n = wanted;
        }
    }

    /// Calls `see` with each cluster of `run` that has a count, ascending; those without a block are left out.
    fn each_count(&mut self, run: Run, mut see: impl FnMut(u64, u64)) -> Result<()> {
        let per_block = self.geometry.block_entries();
        let width = self.width;
        let mut at = run.start;
        while at < run.end.min(self.covered()) {
            let (index, first) = self.place(at);
            let end = run.end.min(at - first as u64 + per_block);
            if let Some(block) = self.block(index)? {
                for (cluster, number) in (at..end).zip(first..) {
                    see(cluster, width.get(&block.bytes, number));
                }
            }
            at = end;
        }
        Ok(())
    }
}
