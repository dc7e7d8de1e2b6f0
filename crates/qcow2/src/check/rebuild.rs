//! A new refcount structure in place of one that cannot be mended: written behind everything in use, durable, and then
//! made the image's by one write into the header's first sector.

use cowhand_core::{Error, Result};

use super::counts::{CHUNK, Counts};
use super::layout::Block;
use super::sparse::Sparse;
use super::{Image, Looked};
use crate::geometry::Geometry;
use crate::header::{AT_REFCOUNT_TABLE, MAX_REFCOUNT_TABLE_BYTES};
use crate::refcount::Width;

/// The structure as it grows. Its clusters follow each other, the table last.
struct New {
    geometry: Geometry,
    /// Its first cluster: nothing from here on is in use.
    start: u64,
    /// Blocks written so far: which stretch of clusters, and the cluster it stands in.
    blocks: Vec<(u64, u64)>,
    next: u64,
    /// The block that counts `start`.
    tail: Vec<u8>,
}

impl Image<'_> {
    /// Makes the structure anew. Where not everything could be looked at, no count becomes lower than it was.
    pub(super) fn rebuild(&self, looked: &Looked) -> Result<()> {
        let layout = &looked.layout;
        let geometry = layout.rules.geometry;
        let start = if looked.needs.blind { layout.clusters() } else { looked.end };
        let mut new = New {
            geometry,
            start,
            blocks: Vec::new(),
            next: start,
            tail: vec![0; geometry.cluster_size() as usize],
        };
        self.windows(layout, false, &mut |counts, _| {
            let counts = counts
                .ok_or_else(|| Error::unsupported("the clusters in use stand too far from each other"))?;
            self.walk(layout, counts, super::Job::Count(false))?.found.complete()?;
            self.count_blocks(looked, counts, &mut new)
        })?;
        let (table_at, table) = self.finish(&mut new)?;
        self.sync()?;
        let clusters = (table.len() as u64 >> geometry.cluster_bits()) as u32;
        let mut fields = table_at.to_be_bytes().to_vec();
        fields.extend_from_slice(&clusters.to_be_bytes());
        self.put(AT_REFCOUNT_TABLE, &fields)?;
        self.sync()
    }

    fn put(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_at(at, bytes).map_err(|error| Error::io("cannot write the refcounts", error).at(at))
    }

    /// Writes the blocks of a window, as far as they count something that is in use.
    fn count_blocks(&self, looked: &Looked, counts: &Counts, new: &mut New) -> Result<()> {
        let geometry = new.geometry;
        let (each, width, largest) = (geometry.block_entries(), Width::of(geometry), geometry.refcount_max());
        let window = counts.clusters();
        let mut sparse = Sparse::new(self.file);
        let failed = |error| Error::io("cannot read a refcount block", error);
        let mut old = vec![0; geometry.cluster_size() as usize];
        for index in window.start / each..window.end.min(new.start).div_ceil(each) {
            let clusters =
                (index * each).max(window.start)..((index + 1) * each).min(window.end).min(new.start);
            let mut bytes = vec![0; geometry.cluster_size() as usize];
            let mut used = false;
            let mut from = clusters.start;
            while from < clusters.end {
                let to = ((from / CHUNK + 1) * CHUNK).min(clusters.end);
                if counts.is_touched(from) {
                    for cluster in from..to {
                        let count = counts.get(cluster).count.min(largest);
                        if count > 0 {
                            used = true;
                            width.set(&mut bytes, (cluster - index * each) as usize, count);
                        }
                    }
                }
                from = to;
            }
            if let Block::At(at) = looked.layout.block(index)
                && looked.needs.blind
                && sparse.read(at, &mut old).map_err(failed)?
            {
                for entry in 0..(clusters.end - index * each) as usize {
                    let count = width.get(&old, entry);
                    if count > width.get(&bytes, entry) {
                        used = true;
                        width.set(&mut bytes, entry, count);
                    }
                }
            }
            if index == new.start / each {
                new.tail = bytes;
            } else if used {
                self.put(new.next << geometry.cluster_bits(), &bytes)?;
                new.blocks.push((index, new.next));
                new.next += 1;
            }
        }
        Ok(())
    }

    /// Writes the blocks that count the structure itself, and the table. Answers where it stands, and its bytes.
    fn finish(&self, new: &mut New) -> Result<(u64, Vec<u8>)> {
        let geometry = new.geometry;
        let (bits, each, width) = (geometry.cluster_bits(), geometry.block_entries(), Width::of(geometry));
        let first = new.start / each;
        // More blocks may need a longer table, and that more blocks.
        let (mut blocks, mut clusters) = (1, 1);
        loop {
            let end = new.next + blocks + clusters;
            let needed = end.div_ceil(each) - first;
            let table = (first + needed).saturating_mul(8).div_ceil(geometry.cluster_size());
            if table << bits > MAX_REFCOUNT_TABLE_BYTES {
                return Err(Error::unsupported("the file is too long for a refcount table of at most 8 MiB"));
            }
            if needed <= blocks && table <= clusters {
                break;
            }
            (blocks, clusters) = (needed.max(blocks), table.max(clusters));
        }
        let end = new.next + blocks + clusters;
        let mut bytes = std::mem::take(&mut new.tail);
        for index in first..first + blocks {
            for cluster in (index * each).max(new.start)..((index + 1) * each).min(end) {
                width.set(&mut bytes, (cluster - index * each) as usize, 1);
            }
            self.put(new.next << bits, &bytes)?;
            new.blocks.push((index, new.next));
            new.next += 1;
            bytes.fill(0);
        }
        let mut table = vec![0; (clusters << bits) as usize];
        for (index, cluster) in &new.blocks {
            if let Some(entry) = table.as_chunks_mut::<8>().0.get_mut(*index as usize) {
                *entry = (cluster << bits).to_be_bytes();
            }
        }
        self.put(new.next << bits, &table)?;
        Ok((new.next << bits, table))
    }
}
