//! A disk as one L1 table maps it: the image's own, or a snapshot's. Looks up; changes nothing.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cowhand_core::{Error, ErrorKind, Result, Storage};

use crate::cache::{Body, Slices, read_to_end};
use crate::compress::Inflater;
use crate::crypt::Crypt;
use crate::entry::{Entry, OFFSET, Packed, Plain, Rules, Words, Wrong};
use crate::geometry::Geometry;
use crate::header::Header;
use crate::tables::Tables;
use crate::unpacked::Unpacked;

/// L1 entries or slices that one lookup walks at most, so that a call's time is bounded.
const LOOKS: usize = 64;

/// What all disks of one file share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) file: Arc<dyn Storage>,
    /// Where data clusters stand: `file`, or the external data file.
    pub(crate) data: Arc<dyn Storage>,
    /// Guest data in data clusters is encrypted.
    pub(crate) crypt: Option<Crypt>,
    /// As the file has it, or is about to. Writers of the header hold it alone.
    header: RwLock<Header>,
    pub(crate) rules: Rules,
    pub(crate) slices: Slices,
    pub(crate) inflater: Inflater,
    pub(crate) unpacked: Unpacked,
    /// What never holds guest data or an L2 table.
    regions: Vec<Region>,
    /// Nor do these; looked for when the first entry is used, and only where nothing here changes them.
    tables: OnceLock<Tables>,
    tables_stay: bool,
    /// The files' lengths when they were last asked.
    file_len: AtomicU64,
    data_len: AtomicU64,
    /// New L2 tables end here at the latest; they are in memory, and reach the file later.
    made: AtomicU64,
}

/// Where one of the image's own structures stood when it was opened.
#[derive(Debug)]
struct Region {
    range: Range<u64>,
    name: &'static str,
    /// It stands elsewhere now.
    moved: AtomicBool,
}

/// What stands at some guest bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Hole,
    /// With the host offset where a cluster is kept for it.
    Zero(Option<u64>),
    /// At this offset of the data storage.
    Data(u64),
    Compressed,
}

/// A run of guest bytes that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) len: u64,
    pub(crate) found: Found,
}

impl Stretch {
    /// Adds what follows; false where it is not alike.
    fn join(&mut self, next: Stretch) -> bool {
        let alike = match (self.found, next.found) {
            (Found::Hole, Found::Hole)
            | (Found::Compressed, Found::Compressed)
            | (Found::Zero(None), Found::Zero(None)) => true,
            (Found::Data(a), Found::Data(b)) | (Found::Zero(Some(a)), Found::Zero(Some(b))) => {
                a + self.len == b
            }
            _ => false,
        };
        if alike {
            self.len += next.len;
        }
        alike
    }
}

fn join(all: &mut Option<Stretch>, next: Stretch) -> bool {
    match all {
        Some(all) => all.join(next),
        None => {
            *all = Some(next);
            true
        }
    }
}

/// A disk.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) shared: Arc<Shared>,
    /// Guest bytes.
    size: AtomicU64,
    l1: RwLock<L1>,
}

/// An L1 table.
#[derive(Clone, Debug, Default)]
pub(crate) struct L1 {
    /// Where it stands in the file.
    pub(crate) at: u64,
    pub(crate) entries: Vec<u64>,
}

impl Shared {
    pub(crate) fn new(
        file: Arc<dyn Storage>,
        data: Arc<dyn Storage>,
        crypt: Option<Crypt>,
        header: Header,
        snapshot_table: u64,
        read_only: bool,
    ) -> Shared {
        let geometry = header.geometry;
        let span = |start: u64, bytes: u64| {
            let end = start.saturating_add(bytes);
            start..end.checked_next_multiple_of(geometry.cluster_size()).unwrap_or(u64::MAX)
        };
        let refcounts = u64::from(header.refcount_table_clusters) << geometry.cluster_bits();
        let crypto = header.crypto_header();
        let regions = [
            (span(0, 1), "the header"),
            (span(header.l1_offset, u64::from(header.l1_entries) * 8), "the L1 table"),
            (span(header.refcount_table_offset, refcounts), "the refcount table"),
            (span(header.snapshots_offset, snapshot_table), "the snapshot table"),
            (span(crypto.offset, crypto.length), "the encryption header"),
        ];
        let rules = Rules {
            geometry,
            version: header.version,
            data_file: header.has_data_file,
            raw_data: header.data_file_raw(),
        };
        Shared {
            slices: Slices::new(geometry),
            inflater: Inflater::new(header.codec),
            unpacked: Unpacked::new(geometry),
            regions: regions
                .into_iter()
                .filter(|(range, _)| !range.is_empty())
                .map(|(range, name)| Region { range, name, moved: AtomicBool::new(false) })
                .collect(),
            tables: OnceLock::new(),
            tables_stay: read_only,
            file_len: AtomicU64::new(0),
            data_len: AtomicU64::new(0),
            made: AtomicU64::new(0),
            file,
            data,
            crypt,
            header: RwLock::new(header),
            rules,
        }
    }

    /// Entries that lead into tables are followed.
    pub(crate) fn unguarded(self) -> Shared {
        Shared { regions: Vec::new(), tables_stay: false, ..self }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.rules.geometry
    }

    /// The header.
    pub(crate) fn header(&self) -> RwLockReadGuard<'_, Header> {
        self.header.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The header, for who is about to write it to the file.
    pub(crate) fn header_mut(&self) -> RwLockWriteGuard<'_, Header> {
        self.header.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The structure that stood at `offset` when the image was opened stands elsewhere: its place may come to hold
    /// anything.
    pub(crate) fn moved_from(&self, offset: u64) {
        for region in self.regions.iter().filter(|region| region.range.start == offset) {
            region.moved.store(true, Ordering::Relaxed);
        }
    }

    /// Errors where `offset` is past the end of `storage`; the length is asked again before it is believed.
    fn check_end(&self, what: &str, offset: u64, end: u64, in_data: bool, at: u64) -> Result<()> {
        let (storage, known) =
            if in_data { (&self.data, &self.data_len) } else { (&self.file, &self.file_len) };

        if end <= known.load(Ordering::Relaxed) || (!in_data && end <= self.made.load(Ordering::Relaxed)) {
            return Ok(());
        }
        let len = storage.len().map_err(|error| Error::io("cannot find the size", error))?;
        known.store(len, Ordering::Relaxed);
        if offset < len {
            return Ok(());
        }
        Err(Error::corrupt(what, format!("points at {offset}, past the end of the file ({len} bytes)"))
            .at(at)
            .with_kind(ErrorKind::Corrupt)
            .hint("the image was cut short or damaged; restore it from a copy"))
    }

    /// How many of `len` bytes at `host` the data storage has.
    pub(crate) fn data_there(&self, host: u64, len: u64) -> Result<u64> {
        if host + len > self.data_len.load(Ordering::Relaxed) {
            let now = self.data.len().map_err(|error| Error::io("cannot find the size", error))?;
            self.data_len.store(now, Ordering::Relaxed);
            return Ok(now.saturating_sub(host).min(len));
        }
        Ok(len)
    }

    /// The files may have become shorter.
    pub(crate) fn forget_lengths(&self) {
        self.file_len.store(0, Ordering::Relaxed);
        self.data_len.store(0, Ordering::Relaxed);
        self.made.store(0, Ordering::Relaxed);
    }

    /// A new L2 table ends at `end`.
    pub(crate) fn made(&self, end: u64) {
        self.made.fetch_max(end, Ordering::Relaxed);
    }

    pub(crate) fn check_region(&self, what: &str, offset: u64, at: u64) -> Result<()> {
        let inside =
            |region: &&Region| region.range.contains(&offset) && !region.moved.load(Ordering::Relaxed);
        match self.regions.iter().find(inside) {
            Some(Region { name, .. }) => {
                Err(Error::corrupt(what, format!("points at {offset}, into {name}")).at(at))
            }
            None => Ok(()),
        }
    }

    /// Where tables stand, in an image that nobody changes.
    fn tables(&self) -> Result<Option<&Tables>> {
        if !self.tables_stay {
            return Ok(None);
        }
        if let Some(known) = self.tables.get() {
            return Ok(Some(known));
        }
        let found = Tables::read(self.file.as_ref(), &self.header())?;
        Ok(Some(self.tables.get_or_init(|| found)))
    }

    /// Errors where an L2 entry, standing at `at`, points at a table.
    fn check_data(&self, offset: u64, at: u64) -> Result<()> {
        self.check_region("L2 entry", offset, at)?;
        match self.tables()?.and_then(|tables| tables.at(offset - self.geometry().in_cluster(offset))) {
            Some(name) => Err(Error::corrupt("L2 entry", format!("points at {offset}, into {name}")).at(at)),
            None => Ok(()),
        }
    }

    /// The offset of the L2 table that an L1 entry, standing at `at`, points at. `None`: there is no table.
    pub(crate) fn l2_table(&self, entry: u64, at: u64) -> Result<Option<u64>> {
        let offset = entry & OFFSET;
        if offset == 0 {
            return Ok(None);
        }
        if self.geometry().in_cluster(offset) != 0 {
            return Err(Error::corrupt(
                "L1 entry",
                format!("points at {offset}, which is no cluster's start"),
            )
            .at(at));
        }
        self.check_region("L1 entry", offset, at)?;
        if self.tables()?.is_some_and(|tables| tables.is_block(offset)) {
            return Err(Error::corrupt("L1 entry", format!("points at {offset}, a refcount block")).at(at));
        }
        self.check_end("L1 entry", offset, offset + self.geometry().cluster_size(), false, at)?;
        Ok(Some(offset))
    }

    /// Reads an L2 entry that stands at `at`, and refuses what makes no sense by itself.
    pub(crate) fn decode(&self, words: Words, at: u64) -> Result<Entry> {
        self.rules.decode(words).map_err(|wrong| {
            let message = match wrong {
                Wrong::Unaligned(offset) => format!("points at {offset}, which is no cluster's start"),
                Wrong::ZeroInV2 => "says zero, which a version 2 image cannot".to_owned(),
                Wrong::Bitmap => {
                    "says that a subcluster is allocated and zero, or allocated nowhere".to_owned()
                }
                Wrong::CompressedInDataFile => {
                    "says compressed, in an image with an external data file".to_owned()
                }
            };
            Error::corrupt("L2 entry", message).at(at)
        })
    }

    /// Reads an L2 entry that stands at `at`, and refuses what cannot be in this file.
    pub(crate) fn entry(&self, words: Words, at: u64) -> Result<Entry> {
        let entry = self.decode(words, at)?;
        match entry {
            Entry::Plain(Plain { host: Some(host), .. }) => {
                // Only data is looked for: a zero cluster's place may never have been written.
                let in_data = self.rules.data_file;
                if !in_data {
                    self.check_data(host, at)?;
                }
                if matches!(entry, Entry::Plain(Plain { data: 1.., .. })) {
                    self.check_end("L2 entry", host, host + self.geometry().cluster_size(), in_data, at)?;
                }
            }
            Entry::Plain(_) => {}
            Entry::Compressed(packed) => {
                self.check_data(packed.at, at)?;
                self.check_end("L2 entry", packed.at, packed.at + packed.len, false, at)?;
            }
        }
        Ok(entry)
    }

    /// Fills `buf` with the bytes of guest offset `guest`, which stand in data clusters at `host`.
    pub(crate) fn read_data(&self, guest: u64, host: u64, buf: &mut [u8]) -> Result<()> {
        match &self.crypt {
            Some(crypt) => crypt.read(guest, host, buf, |host, buf| self.get_data(host, buf)),
            None => self.get_data(host, buf),
        }
    }

    /// Writes the bytes of guest offset `guest` to data clusters at `host`.
    pub(crate) fn write_data(&self, guest: u64, host: u64, bytes: &[u8]) -> Result<()> {
        let put = |host, bytes: &[u8]| {
            let failed = |error| Error::io("cannot write data", error).at(host);
            self.data.write_at(host, bytes).map_err(failed)
        };
        match &self.crypt {
            Some(crypt) => crypt.write(guest, host, bytes, |host, buf| self.get_data(host, buf), put),
            None => put(host, bytes),
        }
    }

    /// Fills `buf` with what stands in data clusters; a file may end inside its last cluster.
    fn get_data(&self, host: u64, buf: &mut [u8]) -> Result<()> {
        let failed = |error| Error::io("cannot read data", error).at(host);
        match self.data.read_at(host, buf) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                let there = self.data.len().map_err(failed)?.saturating_sub(host).min(buf.len() as u64);
                let (stored, tail) = buf.split_at_mut(there as usize);
                // The clusters were all found to start before the end; what is missing is more than one cluster's tail
                // only if the file was cut since.
                if tail.len() as u64 >= self.geometry().cluster_size() {
                    return Err(failed(error));
                }
                tail.fill(0);
                if stored.is_empty() { Ok(()) } else { self.data.read_at(host, stored).map_err(failed) }
            }
            other => other.map_err(failed),
        }
    }

    /// Reads compressed bytes; the last sector may be cut by the end of the file.
    pub(crate) fn read_packed(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        read_to_end(self.file.as_ref(), at, buf)
            .map_err(|error| Error::io("cannot read compressed data", error).at(at))
    }

    /// Fills `cluster` from where it stands compressed.
    pub(crate) fn unpack(&self, packed: Packed, cluster: &mut [u8]) -> Result<()> {
        let mut bytes = vec![0; packed.len as usize];
        self.read_packed(packed.at, &mut bytes)?;
        self.inflater.inflate(&bytes, cluster).map_err(|error| error.at(packed.at))
    }
}

impl View {
    /// Reads the L1 table of `entries` entries at `at`, whose bounds were checked.
    pub(crate) fn open(shared: Arc<Shared>, size: u64, at: u64, entries: u32) -> Result<View> {
        let mut bytes = vec![0; entries as usize * 8];
        shared
            .file
            .read_at(at, &mut bytes)
            .map_err(|error| Error::io("cannot read the L1 table", error).at(at))?;
        let entries = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect();
        Ok(View::new(shared, size, L1 { at, entries }))
    }

    /// The disk of `size` guest bytes that `l1` maps.
    pub(crate) fn new(shared: Arc<Shared>, size: u64, l1: L1) -> View {
        View { shared, size: AtomicU64::new(size), l1: RwLock::new(l1) }
    }

    /// Guest bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    pub(crate) fn l1(&self) -> RwLockReadGuard<'_, L1> {
        self.l1.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn l1_mut(&self) -> RwLockWriteGuard<'_, L1> {
        self.l1.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// An L1 entry, 0 past the table's end, and where it stands.
    pub(crate) fn l1_entry(&self, index: usize) -> (u64, u64) {
        let l1 = self.l1();
        (l1.entries.get(index).copied().unwrap_or(0), l1.at + 8 * index as u64)
    }

    /// Where the slice that maps `at` stands, and the index of `at`'s entry in it. `None`: there is no L2 table.
    pub(crate) fn slice_of(&self, at: u64) -> Result<Option<(u64, usize)>> {
        let geometry = self.shared.geometry();
        let index = (at >> geometry.l2_bits()) as usize;
        let (entry, entry_at) = self.l1_entry(index);
        let Some(table) = self.shared.l2_table(entry, entry_at)? else { return Ok(None) };
        let in_table = (at >> geometry.cluster_bits()) % geometry.l2_entries();
        let slice = in_table / geometry.slice_entries();
        Ok(Some((table + slice * geometry.slice_bytes(), (in_table % geometry.slice_entries()) as usize)))
    }

    /// See `Layer::kept_for_hole`: a cluster that has subclusters is kept whole.
    pub(crate) fn kept_for_hole(&self, at: u64, max: u64) -> Result<(u64, Option<u64>)> {
        let geometry = self.shared.geometry();
        if !geometry.extended() || self.shared.crypt.is_some() {
            return Ok((max, None));
        }
        let Some((slice, index)) = self.slice_of(at)? else {
            let table = 1 << geometry.l2_bits();
            return Ok((max.min(table - at % table), None));
        };
        let words = geometry.entry_words();
        let read =
            |body: &Body| self.shared.entry(body.get(index, words), slice + (index * words * 8) as u64);
        let entry = self.shared.slices.look(self.shared.file.as_ref(), slice, read)??;
        let skip = geometry.in_cluster(at);
        let host = match entry {
            Entry::Plain(Plain { host, .. }) => host.map(|host| host + skip),
            Entry::Compressed(_) => None,
        };
        Ok((max.min(geometry.cluster_size() - skip), host))
    }

    /// The entries of the L2 table that the L1 entry at `index` leads to; none where there is no table.
    pub(crate) fn table_entries(&self, index: u64) -> Result<Vec<Entry>> {
        let shared = &self.shared;
        let geometry = shared.geometry();
        let (entry, entry_at) = self.l1_entry(index as usize);
        let Some(table) = shared.l2_table(entry, entry_at)? else { return Ok(Vec::new()) };
        let words = geometry.entry_words();
        let mut entries = Vec::with_capacity(geometry.l2_entries() as usize);
        for offset in (0..geometry.cluster_size()).step_by(geometry.slice_bytes() as usize) {
            let slice = table + offset;
            shared.slices.look(shared.file.as_ref(), slice, |body| {
                (0..geometry.slice_entries() as usize).try_for_each(|index| {
                    entries.push(shared.entry(body.get(index, words), slice + (index * words * 8) as u64)?);
                    Ok::<_, Error>(())
                })
            })??;
        }
        Ok(entries)
    }

    /// What stands at `at`, for at most `max` bytes, as far as it is alike.
    pub(crate) fn stretch(&self, at: u64, max: u64) -> Result<Stretch> {
        let max = max.min(self.size().saturating_sub(at));
        let mut all = None;
        let mut done = 0;
        for _ in 0..LOOKS {
            if done >= max {
                break;
            }
            let next = match self.look(at + done, max - done) {
                Ok(next) => next,
                // What was found so far is good; the error comes when its place is asked for.
                Err(_) if all.is_some() => break,
                Err(error) => return Err(error),
            };
            if !join(&mut all, next) {
                break;
            }
            done += next.len;
        }
        all.ok_or_else(|| {
            Error::invalid(format!("offset {at} is past the end of the disk ({} bytes)", self.size()))
        })
    }

    /// One look: a run of L1 entries without a table, or one slice.
    fn look(&self, at: u64, max: u64) -> Result<Stretch> {
        let geometry = self.shared.geometry();
        let Some((slice, index)) = self.slice_of(at)? else {
            let l1 = self.l1();
            let first = at >> geometry.l2_bits();
            let rest = l1.entries.get(first as usize..).unwrap_or_default();
            let empty = rest.iter().take_while(|entry| **entry & OFFSET == 0).count().max(1) as u64;
            let end = (first + empty).saturating_mul(1 << geometry.l2_bits());
            return Ok(Stretch { len: max.min(end - at), found: Found::Hole });
        };
        let scan = |body: &Body| self.scan(body, slice, index, at, max);
        self.shared.slices.look(self.shared.file.as_ref(), slice, scan)?
    }

    fn scan(&self, body: &Body, slice: u64, first: usize, at: u64, max: u64) -> Result<Stretch> {
        let geometry = self.shared.geometry();
        let (cluster, words) = (geometry.cluster_size(), geometry.entry_words());
        let mut all = None;
        let mut skip = geometry.in_cluster(at);
        let mut done = 0;
        for index in first..geometry.slice_entries() as usize {
            if done >= max {
                break;
            }
            let entry = match self.shared.entry(body.get(index, words), slice + (index * words * 8) as u64) {
                Ok(entry) => entry,
                Err(_) if all.is_some() => break,
                Err(error) => return Err(error),
            };
            let len = (cluster - skip).min(max - done);
            let alike = match entry {
                Entry::Compressed(_) => join(&mut all, Stretch { len, found: Found::Compressed }),
                Entry::Plain(plain) => join_subclusters(&mut all, geometry, plain, skip, len),
            };
            if !alike {
                break;
            }
            done += len;
            skip = 0;
        }
        all.ok_or_else(|| Error::corrupt("L2 table", "is too short").at(slice))
    }

    /// The compressed clusters from the one of `at` on that stand together in one slice, up to `end`.
    pub(crate) fn packed(&self, at: u64, end: u64) -> Result<Vec<Packed>> {
        let geometry = self.shared.geometry();
        let Some((slice, first)) = self.slice_of(at)? else { return Ok(Vec::new()) };
        let words = geometry.entry_words();
        let count = (end.div_ceil(geometry.cluster_size()) - (at >> geometry.cluster_bits())) as usize;
        let last = (first + count).min(geometry.slice_entries() as usize);
        self.shared.slices.look(self.shared.file.as_ref(), slice, |body| {
            let entry = |index| self.shared.entry(body.get(index, words), slice + (index * words * 8) as u64);
            (first..last)
                .map_while(|index| match entry(index) {
                    Ok(Entry::Compressed(packed)) => Some(packed),
                    _ => None,
                })
                .collect()
        })
    }
}

/// Adds the subclusters of a cluster that `len` bytes from `skip` on touch; false where one is not alike.
fn join_subclusters(
    all: &mut Option<Stretch>,
    geometry: Geometry,
    plain: Plain,
    skip: u64,
    len: u64,
) -> bool {
    let every = geometry.all_subclusters();
    let found = |at: u64, data: bool, zero: bool| match (data, zero, plain.host) {
        (true, _, Some(host)) => Found::Data(host + at),
        (_, true, host) => Found::Zero(host.map(|host| host + at)),
        _ => Found::Hole,
    };
    if (plain.data == every || plain.data == 0) && (plain.zero == every || plain.zero == 0) {
        return join(all, Stretch { len, found: found(skip, plain.data != 0, plain.zero != 0) });
    }
    let size = geometry.subcluster_size();
    let mut at = skip;
    while at < skip + len {
        let bit = 1u32 << (at / size).min(31);
        let piece = (size - at % size).min(skip + len - at);
        if !join(all, Stretch { len: piece, found: found(at, plain.data & bit != 0, plain.zero & bit != 0) })
        {
            return false;
        }
        at += piece;
    }
    true
}
