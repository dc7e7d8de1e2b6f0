//! How large a file becomes: how many clusters of each kind a disk needs, in a new image and by QEMU's estimate.

use cowhand_core::{BitmapInfo, Content, CreateOptions, Error, Measured, Prealloc, Result, largest, touched};

use crate::geometry::Geometry;
use crate::header::MAX_REFCOUNT_TABLE_BYTES;
use crate::options::Chosen;
use crate::resize::check_l1;

/// What a new image begins with, in clusters: the header, the refcount table, the L1 table, the full disk encryption
/// header.
///
/// The refcount table is as long as the full image needs. So it never moves while the image is filled, and new
/// clusters stand behind one another without a gap, whatever order several threads take them in: the file's length
/// follows from their number alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    geometry: Geometry,
    /// Guest bytes.
    pub(crate) size: u64,
    pub(crate) table: u64,
    pub(crate) l1: u64,
    pub(crate) crypto: u64,
}

impl Layout {
    /// For a disk of `asked` bytes of which nothing is written before the image is there: QEMU's layout, with the least
    /// refcount table. Errors: the format cannot say this size.
    pub(crate) fn least(asked: u64, chosen: &Chosen) -> Result<Layout> {
        let geometry = chosen.geometry;
        // As QEMU: a disk is whole sectors.
        let size = asked.checked_next_multiple_of(512).unwrap_or(u64::MAX);
        check_l1(geometry, size)?;
        let bits = geometry.cluster_bits();
        let l1 = (geometry.l1_entries(size) * 8).div_ceil(1 << bits);
        let crypto = chosen.crypto_len().div_ceil(1 << bits);
        Ok(Layout { geometry, size, table: 1, l1, crypto }.with_table_for(0))
    }

    /// For a disk of `asked` bytes that is filled. Errors: the format cannot say this size.
    pub(crate) fn new(asked: u64, chosen: &Chosen) -> Result<Layout> {
        let layout = Layout::least(asked, chosen)?;
        let (size, bits) = (layout.size, layout.geometry.cluster_bits());
        let data = if chosen.data_file.is_some() { 0 } else { size.div_ceil(1 << bits) };
        Ok(layout.with_table_for(layout.geometry.l1_entries(size) + data))
    }

    /// With a refcount table that counts `more` clusters beside the header and the tables.
    fn with_table_for(mut self, more: u64) -> Layout {
        let bits = self.geometry.cluster_bits();
        let most = MAX_REFCOUNT_TABLE_BYTES >> bits;
        loop {
            let blocks = self.file(more).div_ceil(self.geometry.block_entries());
            let table = (blocks * 8).div_ceil(1 << bits).min(most);
            if table <= self.table {
                return self;
            }
            self.table = table;
        }
    }

    /// Clusters of the file in which `more` clusters are used beside the header and the tables; with refcount blocks.
    fn file(&self, more: u64) -> u64 {
        self.counted(1 + self.table + self.l1 + self.crypto + more)
    }

    /// `clusters`, and the refcount blocks that count them and themselves.
    fn counted(&self, clusters: u64) -> u64 {
        let mut all = clusters;
        loop {
            let with = clusters + all.div_ceil(self.geometry.block_entries());
            if with == all {
                return all;
            }
            all = with;
        }
    }

    /// The length of an image's file that holds nothing: as in QEMU, it ends with the L1 table where that stands last.
    pub(crate) fn empty_len(&self) -> u64 {
        let bits = self.geometry.cluster_bits();
        let (l1_at, end) = (self.counted(1 + self.table), self.file(0));
        let l1_is_last = self.l1 > 0 && end == l1_at + self.l1;
        if l1_is_last { (l1_at << bits) + self.geometry.l1_entries(self.size) * 8 } else { end << bits }
    }
}

/// See `Format::measure`.
pub(crate) fn measure(content: &dyn Content, how: &CreateOptions) -> Result<Measured> {
    let chosen = Chosen::from(how)?;
    let geometry = chosen.geometry;
    let bits = geometry.cluster_bits();
    let outside = chosen.data_file.is_some();
    if let Some(crypt) =
        chosen.crypt.as_ref().filter(|crypt| how.qemu_choices && crypt.header_len().is_some())
    {
        crypt.secret(how)?;
    }
    check_l1(geometry, how.size)
        .map_err(|_| Error::invalid("The image size is too large (try using a larger cluster size)"))?;
    let layout = Layout::new(how.size, &chosen)?;
    let [touched, tables] = touched(content, [1 << bits, 1 << geometry.l2_bits()])?;

    let all = layout.size.div_ceil(1 << bits);
    let mapped = if chosen.prealloc == Prealloc::Off { tables } else { geometry.l1_entries(layout.size) };
    let data = if chosen.prealloc == Prealloc::Off { touched } else { all };
    let used = mapped + if outside { 0 } else { data };
    let exact = if used == 0 { layout.empty_len() } else { layout.file(used) << bits };

    // The source's size decides in QEMU, not the option.
    let all = content.size().div_ceil(1 << bits);
    let everything = how.parent.is_some() || matches!(chosen.prealloc, Prealloc::Falloc | Prealloc::Full);
    let full = estimate(geometry, all) + (layout.crypto << bits);
    let required = full - if everything && content.size() > 0 { 0 } else { (all - touched) << bits };
    let bitmaps = content.bitmaps().filter(|_| chosen.version >= 3);
    let bitmaps = bitmaps.map(|all_of| estimate_bitmaps(geometry, content.size(), all_of));
    Ok(Measured { required, fully_allocated: full, exact, bitmaps })
}

/// The largest disk whose file is at most `file_len` bytes long with every cluster written, as it is laid out here, or by
/// QEMU's estimate.
pub(crate) fn largest_disk(chosen: &Chosen, file_len: u64, exact: bool) -> Option<u64> {
    let geometry = chosen.geometry;
    let bits = geometry.cluster_bits();
    let full = |clusters: u64| -> Option<u64> {
        if !exact {
            return Some(estimate(geometry, clusters));
        }
        let layout = Layout::new(clusters << bits, chosen).ok()?;
        Some(layout.file(geometry.l1_entries(layout.size) + clusters) << bits)
    };
    let most = (file_len >> bits).min(i64::MAX as u64 >> bits);
    largest(most, |clusters| full(clusters).is_some_and(|len| len <= file_len))
        .map(|clusters| clusters << bits)
}

/// What QEMU holds dirty bitmaps of a disk of `size` bytes for: all their bits, tables, and the directory.
fn estimate_bitmaps(geometry: Geometry, size: u64, bitmaps: &[BitmapInfo]) -> u64 {
    let bits = geometry.cluster_bits();
    let whole = bitmaps.iter().filter(|bitmap| !bitmap.inconsistent);
    let (clusters, directory) = whole.fold((0, 0), |(clusters, directory), bitmap| {
        let data = size.div_ceil(bitmap.granularity.max(1)).div_ceil(8).div_ceil(1 << bits);
        let table = (data * 8).div_ceil(1 << bits);
        (clusters + data + table, directory + (24 + bitmap.name.len() as u64).next_multiple_of(8))
    });
    (clusters + directory.div_ceil(1 << bits)) << bits
}

/// What QEMU holds a full image of `clusters` guest clusters for, in bytes.
fn estimate(geometry: Geometry, clusters: u64) -> u64 {
    let bits = geometry.cluster_bits();
    let tables = clusters.div_ceil(geometry.l2_entries());
    let l1 = (tables * 8).div_ceil(1 << bits);
    let counted = 1 + tables + l1 + clusters;
    let (mut blocks, mut table) = (0, 0);
    loop {
        let before = blocks + table;
        blocks = (counted + before).div_ceil(geometry.block_entries());
        table = (blocks * 8).div_ceil(1 << bits);
        if blocks + table == before {
            return (counted + blocks + table) << bits;
        }
    }
}
