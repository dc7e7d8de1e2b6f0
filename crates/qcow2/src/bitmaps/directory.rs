//! The bitmap directory: which persistent bitmaps an image has, and where their tables stand.

use std::collections::HashSet;
use std::ops::Range;

use cowhand_core::{BitmapInfo, Error, Result, Storage};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::extensions::BitmapsAt;
use crate::geometry::Geometry;
use crate::header::{AUTOCLEAR_BITMAPS, Header};

/// What QEMU allows: bitmaps of an image, bytes of their directory, bytes of a name, bytes of a bitmap.
pub(crate) const MAX_BITMAPS: usize = 65535;
pub(crate) const MAX_DIRECTORY_BYTES: u64 = 65535 * 1024;
pub(crate) const MAX_NAME: usize = 1023;
pub(crate) const MAX_BITMAP_BYTES: u64 = 512 << 20;
/// Of a granularity, as shifts.
pub(crate) const GRANULARITY_BITS: std::ops::RangeInclusive<u32> = 9..=31;

const IN_USE: u32 = 1;
const AUTO: u32 = 2;
const EXTRA_DATA_COMPATIBLE: u32 = 4;
const DIRTY_TRACKING: u8 = 1;

const FIELD: &str = "bitmap directory";

/// An entry's fixed part.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OnDisk {
    bitmap_table_offset: U64,
    bitmap_table_size: U32,
    flags: U32,
    kind: u8,
    granularity_bits: u8,
    name_size: U16,
    extra_data_size: U32,
}

/// A bitmap as its directory entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Where its table stands, the start of a cluster.
    pub(crate) table_at: u64,
    /// Words of its table.
    pub(crate) table_len: u32,
    flags: u32,
    granularity_bits: u32,
    pub(crate) name: Vec<u8>,
    extra: Vec<u8>,
}

/// The directory of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Directory {
    pub(crate) entries: Vec<Entry>,
}

impl Entry {
    /// A new bitmap without a table. `granularity_bits` and `name` were judged.
    pub(crate) fn new(name: &[u8], granularity_bits: u32) -> Entry {
        Entry {
            table_at: 0,
            table_len: 0,
            flags: 0,
            granularity_bits,
            name: name.to_vec(),
            extra: Vec::new(),
        }
    }

    pub(crate) fn granularity_bits(&self) -> u32 {
        self.granularity_bits
    }

    /// Writes are to be recorded in it.
    pub(crate) fn is_auto(&self) -> bool {
        self.flags & AUTO != 0
    }

    pub(crate) fn set_auto(&mut self, on: bool) {
        self.flags = if on { self.flags | AUTO } else { self.flags & !AUTO };
    }

    /// It was not saved after the last writes.
    pub(crate) fn in_use(&self) -> bool {
        self.flags & IN_USE != 0
    }

    pub(crate) fn set_in_use(&mut self, on: bool) {
        self.flags = if on { self.flags | IN_USE } else { self.flags & !IN_USE };
    }

    /// Has data beside it that is not known here, and that does not say that the bitmap may be used all the same.
    pub(crate) fn is_foreign(&self) -> bool {
        !self.extra.is_empty() && self.flags & EXTRA_DATA_COMPATIBLE == 0
    }

    /// What it says can be trusted.
    pub(crate) fn is_usable(&self) -> bool {
        !self.in_use() && !self.is_foreign()
    }

    pub(crate) fn label(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    pub(crate) fn info(&self) -> BitmapInfo {
        BitmapInfo {
            name: self.label(),
            granularity: 1 << self.granularity_bits,
            enabled: self.is_auto(),
            inconsistent: !self.is_usable(),
        }
    }

    /// Bits that a disk of `size` bytes needs.
    pub(crate) fn bits(&self, size: u64) -> u64 {
        size.div_ceil(1 << self.granularity_bits)
    }

    /// The clusters of its table, as numbers.
    pub(crate) fn table_run(&self, geometry: Geometry) -> Range<u64> {
        let start = self.table_at >> geometry.cluster_bits();
        start..start + (u64::from(self.table_len) * 8).div_ceil(geometry.cluster_size())
    }

    /// Bytes of the entry at the front of `bytes`. `None`: it is cut off.
    fn len(bytes: &[u8]) -> Option<usize> {
        let (raw, _) = OnDisk::ref_from_prefix(bytes).ok()?;
        let rest = (raw.extra_data_size.get() as usize).checked_add(usize::from(raw.name_size.get()))?;
        let len = size_of::<OnDisk>().checked_add(rest)?.checked_next_multiple_of(8)?;
        (len <= bytes.len()).then_some(len)
    }

    /// Parses and judges an entry that stands at `at` in the file.
    fn parse(bytes: &[u8], at: u64, header: &Header) -> Result<Entry> {
        let wrong = |offset: u64, message: String| Err(Error::corrupt(FIELD, message).at(at + offset));
        let (raw, rest) = OnDisk::ref_from_prefix(bytes).map_err(|_| cut(at))?;
        let name_len = usize::from(raw.name_size.get());
        let (extra, rest) =
            rest.split_at_checked(raw.extra_data_size.get() as usize).ok_or_else(|| cut(at))?;
        let name = rest.get(..name_len).ok_or_else(|| cut(at))?;
        if raw.kind != DIRTY_TRACKING {
            return wrong(16, format!("bitmap type {} is unknown", raw.kind));
        }
        let flags = raw.flags.get();
        if flags & !(IN_USE | AUTO | EXTRA_DATA_COMPATIBLE) != 0 {
            return wrong(12, format!("flags {flags:#010x} have bits that are unknown"));
        }
        let granularity_bits = u32::from(raw.granularity_bits);
        if !GRANULARITY_BITS.contains(&granularity_bits) {
            return wrong(17, format!("granularity_bits is {granularity_bits}; it must be 9 to 31"));
        }
        if name_len == 0 || name_len > MAX_NAME {
            return wrong(18, format!("a name of {name_len} bytes; it must be 1 to {MAX_NAME}"));
        }
        let (table_at, table_len) = (raw.bitmap_table_offset.get(), raw.bitmap_table_size.get());
        let geometry = header.geometry;
        if table_at == 0 || geometry.in_cluster(table_at) != 0 {
            return wrong(0, format!("a table at {table_at}, which is no cluster's start"));
        }
        if table_at >= 1 << 56 {
            return wrong(0, format!("a table at {table_at}, past what an image can have"));
        }
        let bytes = u64::from(table_len) << geometry.cluster_bits();
        if table_len == 0 || bytes > MAX_BITMAP_BYTES {
            return wrong(8, format!("a table of {table_len} entries; a bitmap has at most 512 MiB"));
        }
        let entry = Entry {
            table_at,
            table_len,
            flags,
            granularity_bits,
            name: name.to_vec(),
            extra: extra.to_vec(),
        };
        // QEMU opens no image where it is longer either.
        let needed = entry.bits(header.size).div_ceil(geometry.cluster_size() * 8);
        if !entry.in_use() && u64::from(table_len) != needed {
            return wrong(8, format!("a table of {table_len} entries; a disk of this size needs {needed}"));
        }
        Ok(entry)
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        let raw = OnDisk {
            bitmap_table_offset: self.table_at.into(),
            bitmap_table_size: self.table_len.into(),
            flags: self.flags.into(),
            kind: DIRTY_TRACKING,
            granularity_bits: self.granularity_bits as u8,
            name_size: (self.name.len() as u16).into(),
            extra_data_size: (self.extra.len() as u32).into(),
        };
        bytes.extend_from_slice(raw.as_bytes());
        bytes.extend_from_slice(&self.extra);
        bytes.extend_from_slice(&self.name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
}

fn cut(at: u64) -> Error {
    Error::corrupt(FIELD, "ends inside an entry").at(at)
}

/// Where the directory of the image's bitmaps is. `None`: there are none, or they missed writes of a program that does
/// not know them.
pub(crate) fn place(header: &Header) -> Option<BitmapsAt> {
    header.extensions.bitmaps().filter(|_| header.autoclear & AUTOCLEAR_BITMAPS != 0 && header.version >= 3)
}

/// The clusters of the directory, as numbers.
pub(crate) fn run(at: BitmapsAt, geometry: Geometry) -> Range<u64> {
    let start = at.offset >> geometry.cluster_bits();
    start..start + at.size.div_ceil(geometry.cluster_size())
}

/// Reads a directory's bytes. Errors: it cannot be one.
pub(crate) fn read_bytes(file: &dyn Storage, header: &Header, at: BitmapsAt) -> Result<Vec<u8>> {
    let wrong = |message: String| Err(Error::corrupt("bitmaps extension", message).at(at.offset));
    let len = file.len().map_err(|error| Error::io("cannot find the size", error))?;
    if at.count == 0 || at.count as usize > MAX_BITMAPS {
        return wrong(format!("says {} bitmaps; there may be 1 to {MAX_BITMAPS}", at.count));
    }
    if at.offset == 0 || header.geometry.in_cluster(at.offset) != 0 {
        return wrong(format!("says that the directory is at {}, which is no cluster's start", at.offset));
    }
    if at.size > MAX_DIRECTORY_BYTES {
        return wrong(format!("says a directory of {} bytes, above {MAX_DIRECTORY_BYTES}", at.size));
    }
    if at.offset.checked_add(at.size).is_none_or(|end| end > len) {
        return wrong(format!("says a directory that goes past the end of the file ({len} bytes)"));
    }
    let mut bytes = vec![0; at.size as usize];
    file.read_at(at.offset, &mut bytes)
        .map_err(|error| Error::io("cannot read the bitmap directory", error).at(at.offset))?;
    Ok(bytes)
}

/// The entries of a directory, where each stands, and each judged by itself. The last is the one that is cut off, where
/// one is.
pub(crate) fn entries<'a>(
    bytes: &'a [u8],
    at: BitmapsAt,
    header: &'a Header,
) -> impl Iterator<Item = (u64, Result<Entry>)> + 'a {
    let mut rest = Some(bytes);
    (0..at.count).map_while(move |_| {
        let now = rest.take()?;
        let here = at.offset + (bytes.len() - now.len()) as u64;
        let Some((entry, behind)) = Entry::len(now).and_then(|len| now.split_at_checked(len)) else {
            return Some((here, Err(cut(here))));
        };
        rest = Some(behind);
        Some((here, Entry::parse(entry, here, header)))
    })
}

impl Directory {
    /// Reads and judges the directory; what stands in tables is looked at where it is used.
    pub(crate) fn read(file: &dyn Storage, header: &Header) -> Result<Directory> {
        let Some(at) = place(header) else { return Ok(Directory::default()) };
        let bytes = read_bytes(file, header, at)?;
        let mut directory = Directory::default();
        let mut names = HashSet::new();
        let mut len = 0;
        for (here, entry) in entries(&bytes, at, header) {
            let entry = entry?;
            if !names.insert(entry.name.clone()) {
                let message = format!("two bitmaps are named '{}'", entry.label());
                return Err(Error::corrupt(FIELD, message).at(here));
            }
            len += (size_of::<OnDisk>() + entry.extra.len() + entry.name.len()).next_multiple_of(8);
            directory.entries.push(entry);
        }
        if len != bytes.len() {
            let message = format!("has {} bytes behind its last entry", bytes.len() - len);
            return Err(Error::corrupt(FIELD, message).at(at.offset));
        }
        Ok(directory)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.entries.iter().for_each(|entry| entry.encode(&mut bytes));
        bytes
    }

    /// The bitmap of that name.
    pub(crate) fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name.as_bytes())
    }

    pub(crate) fn find_mut(&mut self, name: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.name == name.as_bytes())
    }

    /// Only flags differ, so that the one can be written over the other in place.
    pub(crate) fn same_places(&self, other: &Directory) -> bool {
        let alike = |(a, b): (&Entry, &Entry)| Entry { flags: b.flags, ..a.clone() } == *b;
        self.entries.len() == other.entries.len() && self.entries.iter().zip(&other.entries).all(alike)
    }
}
