//! What persistent bitmaps take of the file: their directory, their tables, the clusters of their bits.

use cowhand_core::{Error, Result, Storage};

use super::findings::Findings;
use super::sparse::Sparse;
use crate::header::Header;

const ENTRY: u64 = 24;
const MAX_BITMAPS: u32 = 65535;
const MAX_DIRECTORY: u64 = MAX_BITMAPS as u64 * 1048;
/// Bytes that QEMU allows one bitmap to have.
const MAX_BITMAP: u64 = 512 << 20;
const KNOWN_FLAGS: u32 = 0b111;
/// Nobody relies on its bits.
const IN_USE: u32 = 1;
/// Bits of a bitmap table entry.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const ALL_ONES: u64 = 1;

/// What the bitmaps take.
#[derive(Debug, Default)]
pub(super) struct Used {
    /// Offset and bytes of the directory and of tables.
    pub(super) tables: Vec<(u64, u64)>,
    /// Offsets of clusters of bits.
    pub(super) data: Vec<u64>,
}

/// Looks at all bitmaps of a file of `len` bytes. Errors: there is no directory to be read.
pub(super) fn read(file: &dyn Storage, header: &Header, len: u64, found: &mut Findings) -> Result<Used> {
    let Some(at) = header.extensions.bitmaps() else {
        return Err(
            Error::corrupt("autoclear_features", "says bitmaps, and there is no bitmaps extension").at(88)
        );
    };
    let cluster = header.geometry.cluster_size();
    let aligned = at.offset != 0 && header.geometry.in_cluster(at.offset) == 0;
    let inside = at.offset.checked_add(at.size).is_some_and(|end| end <= len);
    if at.count == 0 || at.count > MAX_BITMAPS || at.size > MAX_DIRECTORY || !aligned || !inside {
        let message = format!("{} bitmaps in {} bytes at {} cannot be", at.count, at.size, at.offset);
        return Err(Error::corrupt("bitmap directory", message).at(at.offset));
    }
    let mut bytes = vec![0; at.size as usize];
    file.read_at(at.offset, &mut bytes)
        .map_err(|error| Error::io("cannot read the bitmap directory", error).at(at.offset))?;
    let mut used = Used { tables: vec![(at.offset, at.size)], ..Used::default() };
    let mut tables: Vec<(u64, u64)> = Vec::new();
    let mut next = 0;
    let mut wrong = |at: u64, message: &dyn Fn() -> String| {
        found.corrupt(at, message);
        found.needs.bitmaps = true;
    };
    for _ in 0..at.count {
        let here = at.offset + next;
        let Some(entry) = bytes.get(next as usize..).and_then(Entry::parse) else {
            wrong(here, &|| format!("bitmap directory at offset {here}: is cut off"));
            break;
        };
        next += entry.size;
        if let Some(message) = entry.wrong(header, len) {
            wrong(here, &|| format!("bitmap directory at offset {here}: {message}"));
            continue;
        }
        tables.push((entry.table, u64::from(entry.entries) * 8));
    }
    // Tables that lie over each other are read once: the overlap is found when clusters are counted.
    used.tables.extend(&tables);
    tables.sort_unstable();
    tables.dedup();
    let mut sparse = Sparse::new(file);
    let mut done = 0;
    for (at, size) in tables {
        let (mut from, end) = (at.max(done), at + size);
        let failed = |error| Error::io("cannot read a bitmap's table", error).at(at);
        while let Some(start) = sparse.data_in(from..end).map_err(failed)?.filter(|_| from < end) {
            let start = start / 8 * 8;
            let mut piece = vec![0; (end - start).min(64 << 10) as usize];
            sparse.read(start, &mut piece).map_err(failed)?;
            for (index, raw) in (0u64..).zip(piece.as_chunks::<8>().0) {
                let (entry, at) = (u64::from_be_bytes(*raw), start + 8 * index);
                let offset = entry & OFFSET;
                let fine = entry & !OFFSET == 0 || (entry & !OFFSET == ALL_ONES && offset == 0);
                if !fine || offset % cluster != 0 || offset >= len {
                    wrong(at, &|| format!("bitmap table entry at offset {at}: {entry:#x} cannot be"));
                } else if offset != 0 {
                    used.data.push(offset);
                }
            }
            from = start + piece.len() as u64;
        }
        done = done.max(end);
    }
    Ok(used)
}

/// An entry of the directory, as far as it matters here.
#[derive(Debug)]
struct Entry {
    /// Bytes up to the next entry.
    size: u64,
    table: u64,
    entries: u32,
    flags: u32,
    kind: u8,
    granularity: u8,
    name: u16,
}

impl Entry {
    fn parse(bytes: &[u8]) -> Option<Entry> {
        let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let name = u16::from_be_bytes(bytes.get(18..20)?.try_into().ok()?);
        let size = (ENTRY + u64::from(name) + u64::from(word(20)?)).next_multiple_of(8);
        (size <= bytes.len() as u64).then_some(Entry {
            size,
            table: u64::from(word(0)?) << 32 | u64::from(word(4)?),
            entries: word(8)?,
            flags: word(12)?,
            kind: *bytes.get(16)?,
            granularity: *bytes.get(17)?,
            name,
        })
    }

    fn wrong(&self, header: &Header, len: u64) -> Option<String> {
        let bytes = u64::from(self.entries) * header.geometry.cluster_size();
        let inside = self.table.checked_add(u64::from(self.entries) * 8).is_some_and(|end| end <= len);
        let bits = header.size.div_ceil(1u64.checked_shl(u32::from(self.granularity)).unwrap_or(u64::MAX));
        let needed = bits.div_ceil(8).div_ceil(header.geometry.cluster_size());
        if self.kind != 1 {
            Some(format!("type {} is unknown", self.kind))
        } else if self.flags & !KNOWN_FLAGS != 0 {
            Some(format!("flags {:#x} are unknown", self.flags))
        } else if !(9..=31).contains(&self.granularity) {
            Some(format!("granularity_bits is {}; it must be 9 to 31", self.granularity))
        } else if !(1..=1023).contains(&self.name) {
            Some(format!("a name of {} bytes", self.name))
        } else if self.entries == 0 || bytes > MAX_BITMAP {
            Some(format!("a bitmap table of {} entries", self.entries))
        } else if self.flags & IN_USE == 0 && u64::from(self.entries) != needed {
            Some(format!("a bitmap table of {} entries, for a disk that needs {needed}", self.entries))
        } else if self.table == 0 || header.geometry.in_cluster(self.table) != 0 || !inside {
            Some(format!("the bitmap table at {} does not lie in the file", self.table))
        } else {
            None
        }
    }
}
