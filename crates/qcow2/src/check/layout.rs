//! Where an image's structures stand, as far as that can be told: what has its clusters to itself, the L1 tables, the
//! refcount blocks. What is wrong with them is reported, and looking goes on.

use std::ops::Range;

use cowhand_core::{Error, ErrorKind, Result, Storage};

use super::bitmaps;
use super::counts::{Counts, META};
use super::findings::Findings;
use crate::cache::read_to_end;
use crate::entry::Rules;
use crate::header::{AUTOCLEAR_BITMAPS, Header, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, MAX_SNAPSHOTS};
use crate::snapshot;

/// Bits of a refcount table entry that must be zero.
const RESERVED: u64 = 0x1ff;
/// More than any LUKS header and its key slots take.
const MAX_CRYPTO_HEADER: u64 = 256 << 20;

/// What a structure that has its clusters to itself is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Header,
    L1,
    SnapshotL1,
    Snapshots,
    RefcountTable,
    RefcountBlock,
    CryptoHeader,
    Bitmaps,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Header => "the header",
            Kind::L1 => "the L1 table",
            Kind::SnapshotL1 => "a snapshot's L1 table",
            Kind::Snapshots => "the snapshot table",
            Kind::RefcountTable => "the refcount table",
            Kind::RefcountBlock => "a refcount block",
            Kind::CryptoHeader => "the LUKS header",
            Kind::Bitmaps => "the bitmaps",
        }
    }
}

/// Clusters of one structure.
#[derive(Clone, Debug)]
pub(super) struct Region {
    pub(super) kind: Kind,
    pub(super) clusters: Range<u64>,
    times: u64,
}

/// A stretch of L1 tables' bytes, and how many tables it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct L1Part {
    pub(super) bytes: Range<u64>,
    /// The image's own: 0 or 1.
    pub(super) active: u32,
    pub(super) snapshots: u32,
}

/// The counts that a stretch of clusters has in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// All are 0.
    None,
    At(u64),
    /// They cannot be known.
    Unknown,
}

/// An image's structures.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) header: Header,
    pub(super) rules: Rules,
    /// Bytes of the file.
    pub(super) len: u64,
    /// Bytes of the file that data clusters stand in.
    pub(super) data_len: u64,
    pub(super) l1: Vec<L1Part>,
    regions: Vec<Region>,
    /// Clusters of bitmaps' bits, sorted.
    bitmap_data: Vec<u64>,
    /// Clusters of refcount blocks, sorted.
    block_clusters: Vec<u64>,
    /// There is a refcount table.
    counted: bool,
    /// Its entries, as they are to be used.
    blocks: Vec<u64>,
}

/// No refcount block stands there.
const UNKNOWN: u64 = u64::MAX;

impl Layout {
    /// Reads what the header leads to, except L1 and L2 tables and refcount blocks. `data_len`: of an external data
    /// file. Errors: the header itself says too little.
    pub(super) fn read(
        file: &dyn Storage,
        data_len: Option<u64>,
        header: Header,
        found: &mut Findings,
    ) -> Result<Layout> {
        let len = file.len().map_err(|error| Error::io("cannot find the size", error))?;
        let rules = Rules {
            geometry: header.geometry,
            version: header.version,
            data_file: header.has_data_file,
            raw_data: header.data_file_raw(),
        };
        let mut layout = Layout {
            rules,
            len,
            data_len: data_len.unwrap_or(if rules.data_file { u64::MAX } else { len }),
            l1: Vec::new(),
            regions: Vec::new(),
            bitmap_data: Vec::new(),
            block_clusters: Vec::new(),
            counted: false,
            blocks: Vec::new(),
            header,
        };
        layout.claim(Kind::Header, 0, 1);
        layout.read_disks(file, found)?;
        layout.read_refcount_table(file, found)?;
        layout.crypto_header(found);
        layout.read_bitmaps(file, found)?;
        Ok(layout)
    }

    pub(super) fn bits(&self) -> u32 {
        self.rules.geometry.cluster_bits()
    }

    /// Clusters of the file; the last may be cut.
    pub(super) fn clusters(&self) -> u64 {
        self.len.div_ceil(1 << self.bits())
    }

    fn span(&self, at: u64, bytes: u64) -> Range<u64> {
        at >> self.bits()..at.saturating_add(bytes).div_ceil(1 << self.bits())
    }

    fn claim(&mut self, kind: Kind, at: u64, bytes: u64) {
        let clusters = self.span(at, bytes);
        if !clusters.is_empty() {
            self.regions.push(Region { kind, clusters, times: 1 });
        }
    }

    /// A table that starts with a cluster, not the first, and ends in the file.
    fn fits(&self, at: u64, bytes: u64) -> bool {
        let ends = at.checked_add(bytes).is_some_and(|end| end <= self.len);
        bytes == 0 || (ends && at != 0 && self.rules.geometry.in_cluster(at) == 0)
    }

    /// The snapshot table, and all L1 tables.
    fn read_disks(&mut self, file: &dyn Storage, found: &mut Findings) -> Result<()> {
        let mut tables = Vec::new();
        let (at, bytes) = (self.header.l1_offset, u64::from(self.header.l1_entries) * 8);
        if bytes <= MAX_L1_BYTES && self.fits(at, bytes) {
            tables.push((at..at + bytes, true));
        } else {
            // The header's reader has said so.
            found.needs.blind = true;
        }
        let (at, count) = (self.header.snapshots_offset, self.header.snapshots);
        if count > MAX_SNAPSHOTS || !self.fits(at, u64::from(count) * 40) {
            found.needs.blind = true;
        } else {
            match snapshot::read_table(file, &self.header) {
                Ok((snapshots, bytes)) => {
                    self.claim(Kind::Snapshots, at, bytes);
                    for snapshot in snapshots {
                        if let Err(error) = snapshot.check(&self.header, self.len) {
                            found.corrupt(snapshot.l1_offset, || error.to_string());
                        }
                        let (at, bytes) = (snapshot.l1_offset, u64::from(snapshot.l1_entries) * 8);
                        if bytes <= MAX_L1_BYTES && self.fits(at, bytes) {
                            tables.push((at..at + bytes, false));
                        } else {
                            found.needs.blind = true;
                        }
                    }
                }
                Err(error) => {
                    found.needs.blind = true;
                    self.settle(error, found)?;
                }
            }
            if count > 0 && self.header.has_data_file {
                found.corrupt(60, || {
                    format!(
                        "nb_snapshots is {count}: an image with an external data file cannot have snapshots"
                    )
                });
            }
        }
        let whole = tables.iter().map(|(bytes, own)| (self.span(bytes.start, bytes.end - bytes.start), *own));
        for part in parts(whole.collect()) {
            let kind = if part.active > 0 { Kind::L1 } else { Kind::SnapshotL1 };
            let times = u64::from(part.active) + u64::from(part.snapshots);
            self.regions.push(Region { kind, clusters: part.bytes, times });
        }
        self.l1 = parts(tables);
        Ok(())
    }

    /// What is wrong with the image is a fault; a failure of the disk, or of us, an error.
    fn settle(&self, error: Error, found: &mut Findings) -> Result<()> {
        if error.kind() != ErrorKind::Corrupt {
            return Err(error);
        }
        found.corrupt_if_at(error.offset(), || error.to_string());
        Ok(())
    }

    fn read_refcount_table(&mut self, file: &dyn Storage, found: &mut Findings) -> Result<()> {
        let (at, clusters) =
            (self.header.refcount_table_offset, u64::from(self.header.refcount_table_clusters));
        let bytes = clusters << self.bits();
        if clusters == 0 || bytes > MAX_REFCOUNT_TABLE_BYTES || !self.fits(at, 1) {
            // The header's reader has said so.
            found.needs.rebuild = true;
            return Ok(());
        }
        self.claim(Kind::RefcountTable, at, bytes);
        let mut table = vec![0; bytes as usize];
        read_to_end(file, at, &mut table)
            .map_err(|error| Error::io("cannot read the refcount table", error).at(at))?;
        let (len, geometry) = (self.len, self.rules.geometry);
        let entries = (0u64..).zip(table.as_chunks::<8>().0);
        let mut blocks: Vec<u64> = entries
            .map(|(index, raw)| {
                let (entry, at) = (u64::from_be_bytes(*raw), at + 8 * index);
                let offset = entry & !RESERVED;
                let wrong = if entry == 0 {
                    return 0;
                } else if entry & RESERVED != 0 {
                    "has reserved bits set"
                } else if geometry.in_cluster(offset) != 0 {
                    "is no cluster's start"
                } else if offset >= len {
                    "lies past the end of the file"
                } else {
                    return offset;
                };
                found.corrupt(at, || {
                    format!("refcount table entry {index} at offset {at}: {entry:#x} {wrong}")
                });
                found.needs.rebuild = true;
                UNKNOWN
            })
            .collect();
        drop(table);
        while blocks.last() == Some(&0) {
            blocks.pop();
        }
        self.blocks = blocks;
        self.counted = true;
        self.find_doubles(at, found);
        let known = self.blocks.iter().filter(|block| !matches!(**block, 0 | UNKNOWN));
        self.block_clusters = known.map(|block| block >> self.bits()).collect();
        self.block_clusters.sort_unstable();
        Ok(())
    }

    /// A block that two entries name can be right for one of them at most: for the first, we say.
    fn find_doubles(&mut self, table_at: u64, found: &mut Findings) {
        let known = (0u32..).zip(&self.blocks).filter(|(_, block)| !matches!(**block, 0 | UNKNOWN));
        let mut order: Vec<(u64, u32)> = known.map(|(index, block)| (*block, index)).collect();
        order.sort_unstable();
        let mut doubles: Vec<(u32, u64)> = Vec::new();
        for pair in order.windows(2) {
            if let [(first, _), (second, index)] = pair
                && first == second
            {
                doubles.push((*index, *second));
            }
        }
        doubles.sort_unstable();
        for (index, offset) in doubles {
            let at = table_at + 8 * u64::from(index);
            found.corrupt(at, || {
                format!("refcount table entry {index} at offset {at}: the block at {offset} is another entry's too")
            });
            found.needs.rebuild = true;
            if let Some(block) = self.blocks.get_mut(index as usize) {
                *block = UNKNOWN;
            }
        }
    }

    fn crypto_header(&mut self, found: &mut Findings) {
        let Some(crypto) = self.header.extensions.crypto_header() else { return };
        if crypto.length > MAX_CRYPTO_HEADER || !self.fits(crypto.offset, crypto.length) {
            found.needs.blind = true;
            found.corrupt(crypto.offset, || {
                format!(
                    "the LUKS header, {} bytes at offset {}, does not lie in the file",
                    crypto.length, crypto.offset
                )
            });
            return;
        }
        self.claim(Kind::CryptoHeader, crypto.offset, crypto.length);
    }

    fn read_bitmaps(&mut self, file: &dyn Storage, found: &mut Findings) -> Result<()> {
        if self.header.autoclear & AUTOCLEAR_BITMAPS == 0 {
            // Whatever stands there is no longer in step with the data.
            return Ok(());
        }
        match bitmaps::read(file, &self.header, self.len, found) {
            Ok(used) => {
                for (at, bytes) in used.tables {
                    self.claim(Kind::Bitmaps, at, bytes);
                }
                self.bitmap_data = used.data.into_iter().map(|at| at >> self.bits()).collect();
                self.bitmap_data.sort_unstable();
            }
            Err(error) => {
                found.needs.bitmaps = true;
                self.settle(error, found)?;
            }
        }
        Ok(())
    }

    /// Counts what has its clusters to itself. `refcounts`: the refcount structure too.
    pub(super) fn count(&self, counts: &Counts, refcounts: bool) {
        let window = counts.clusters();
        // The first one behind the window is counted too, which says that there is one.
        for region in self.regions.iter().filter(|region| refcounts || region.kind != Kind::RefcountTable) {
            let first = region.clusters.start.max(window.start);
            for cluster in first..region.clusters.end.min(window.end.max(first).saturating_add(1)) {
                counts.add(cluster, region.times, META);
            }
        }
        let blocks: &[u64] = if refcounts { &self.block_clusters } else { &[] };
        for singles in [blocks, self.bitmap_data.as_slice()] {
            let inside = within(singles, &window);
            for cluster in singles.get(inside.start..).unwrap_or_default().iter().take(inside.len() + 1) {
                counts.add(*cluster, 1, META);
            }
        }
    }

    /// Calls `see` for every cluster of the window that was counted as metadata.
    pub(super) fn each(&self, window: &Range<u64>, mut see: impl FnMut(Kind, u64)) {
        for region in &self.regions {
            let clusters = region.clusters.start.max(window.start)..region.clusters.end.min(window.end);
            clusters.for_each(|cluster| see(region.kind, cluster));
        }
        for (kind, singles) in
            [(Kind::Bitmaps, &self.bitmap_data), (Kind::RefcountBlock, &self.block_clusters)]
        {
            let inside = singles.get(within(singles, window)).unwrap_or_default();
            inside.iter().for_each(|cluster| see(kind, *cluster));
        }
    }

    /// The first refcount block from the `index`th on; `u64::MAX`: there is none.
    pub(super) fn next_block(&self, index: u64) -> u64 {
        let rest = self.blocks.get(index as usize..).unwrap_or_default();
        let found = (index..).zip(rest).find(|(_, block)| !matches!(**block, 0 | UNKNOWN));
        found.map_or(u64::MAX, |(index, _)| index)
    }

    /// The refcount block of the `index`th stretch of clusters.
    pub(super) fn block(&self, index: u64) -> Block {
        match self.blocks.get(index as usize) {
            _ if !self.counted => Block::Unknown,
            None | Some(0) => Block::None,
            Some(&UNKNOWN) => Block::Unknown,
            Some(at) => Block::At(*at),
        }
    }
}

/// Which of sorted clusters are in a window.
fn within(sorted: &[u64], window: &Range<u64>) -> Range<usize> {
    let behind = |end: u64| sorted.partition_point(|cluster| *cluster < end);
    behind(window.start)..behind(window.end)
}

/// Cuts tables that may lie over each other (snapshots' in a broken image) into stretches that belong to the same ones,
/// so that each byte is looked at once. The flag: the image's own.
fn parts(tables: Vec<(Range<u64>, bool)>) -> Vec<L1Part> {
    let mut edges: Vec<(u64, i32, i32)> = Vec::with_capacity(tables.len() * 2);
    for (bytes, own) in tables {
        if !bytes.is_empty() {
            let (active, snapshots) = (i32::from(own), i32::from(!own));
            edges.push((bytes.start, active, snapshots));
            edges.push((bytes.end, -active, -snapshots));
        }
    }
    edges.sort_unstable();
    let (mut active, mut snapshots, mut from) = (0, 0, 0);
    let mut parts = Vec::new();
    for (at, more_active, more_snapshots) in edges {
        if at > from && active + snapshots > 0 {
            parts.push(L1Part { bytes: from..at, active: active as u32, snapshots: snapshots as u32 });
        }
        active += more_active;
        snapshots += more_snapshots;
        from = at;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_over_each_other_are_cut() {
        let part = |bytes, active, snapshots| L1Part { bytes, active, snapshots };
        assert_eq!(
            parts(vec![(0..100, true), (50..150, false), (50..80, false), (200..300, false)]),
            [
                part(0..50, 1, 0),
                part(50..80, 1, 2),
                part(80..100, 1, 1),
                part(100..150, 0, 1),
                part(200..300, 0, 1)
            ]
        );
    }
}
