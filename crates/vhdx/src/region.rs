//! The region tables (section 2.2.3), and which bytes of the file are not payload.

use std::collections::HashSet;
use std::ops::Range;

use cowhand_core::{Error, Result, Storage};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bytes::{self, MIB};
use crate::draft::Draft;
use crate::guid::Guid;
use crate::header::LogPlace;

const BAT: Guid = Guid::of(0x2dc27766_f623_4200_9d64_115e9bfd4a08);
const METADATA: Guid = Guid::of(0x8b7ca206_4790_4b9a_b8fe_575f050f886e);

/// Where the two region tables stand.
pub(crate) const TABLES: [u64; 2] = [192 << 10, 256 << 10];
/// Bytes of a region table, all of which its checksum covers.
pub(crate) const TABLE_LEN: usize = 64 << 10;
const MAX_ENTRIES: u32 = 2047;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTable {
    signature: [u8; 4],
    checksum: U32,
    entry_count: U32,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    guid: Guid,
    file_offset: U64,
    length: U32,
    required: U32,
}

/// A run of whole MiB in the file, behind the header section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The regions that are known here, and all space that belongs to a structure.
#[derive(Clone, Debug)]
pub(crate) struct Regions {
    pub(crate) bat: Region,
    pub(crate) metadata: Region,
    /// Regions that are not known; opening does not need them.
    pub(crate) others: Vec<(Guid, Region)>,
    /// One of the two that are known is not marked as required.
    pub(crate) unmarked: bool,
    /// Ascending and disjoint: the header section, the log, every region.
    taken: Vec<(Range<u64>, String)>,
}

impl Regions {
    /// Reads the first table, or the second if that is damaged. `len` is the file's length.
    pub(crate) fn read(file: &dyn Storage, len: u64, log: &LogPlace) -> Result<Regions> {
        for at in TABLES {
            let table = read_table(file, at)?;
            if is_good(&table) {
                return Self::parse(&table, len, log).map_err(|error| error.at(at));
            }
        }
        Err(Error::corrupt("region table", "neither copy has a right signature and checksum").at(TABLES[0]))
    }

    /// Where one table is damaged, writes the other one over it, durably. Of two good ones that differ the first counts,
    /// and the second stays.
    pub(crate) fn mend(file: &dyn Storage, sync: impl FnOnce() -> Result<()>) -> Result<()> {
        let tables = [read_table(file, TABLES[0])?, read_table(file, TABLES[1])?];
        let (good, bad) = match tables.each_ref().map(|table| is_good(table)) {
            [true, false] => (0, 1),
            [false, true] => (1, 0),
            _ => return Ok(()),
        };
        bytes::write(file, "region table", TABLES[bad], &tables[good])?;
        sync()
    }

    /// What a good table says of a file of `len` bytes.
    pub(crate) fn parse(table: &[u8], len: u64, log: &LogPlace) -> Result<Regions> {
        let wrong = |message: String| Error::corrupt("region table", message);
        let (raw, entries) =
            RawTable::ref_from_prefix(table).map_err(|_| wrong("is cut short".to_owned()))?;
        let count = raw.entry_count.get();
        if count > MAX_ENTRIES {
            return Err(wrong(format!("has {count} entries, more than {MAX_ENTRIES}")));
        }
        let (entries, _) = <[RawEntry]>::ref_from_prefix_with_elems(entries, count as usize)
            .map_err(|_| wrong(format!("has no room for {count} entries")))?;
        let mut seen = HashSet::new();
        let mut taken = vec![(0..MIB, "the header section".to_owned())];
        if log.length > 0 {
            taken.push((log.offset..log.offset.saturating_add(log.length), "the log".to_owned()));
        }
        let (mut bat, mut metadata) = (None, None);
        let (mut others, mut unmarked) = (Vec::new(), false);
        for entry in entries {
            let (offset, length) = (entry.file_offset.get(), u64::from(entry.length.get()));
            let (slot, name) = match entry.guid {
                BAT => (Some(&mut bat), "the BAT region".to_owned()),
                METADATA => (Some(&mut metadata), "the metadata region".to_owned()),
                other => (None, format!("region {other}")),
            };
            if !seen.insert(entry.guid) {
                return Err(wrong(format!("{name} is there twice")));
            }
            let required = entry.required.get() & 1 != 0;
            unmarked |= slot.is_some() && !required;
            if slot.is_none() && required {
                return Err(Error::unsupported(format!("{name} is required and not known"))
                    .field("region table")
                    .hint("a newer program made this file, and only such a one can read it"));
            }
            let end =
                offset.checked_add(length).filter(|_| length > 0 && offset % MIB == 0 && length % MIB == 0);
            let Some(end) = end else {
                return Err(wrong(format!(
                    "{name}, {length} bytes at {offset}, does not stand on whole MiB"
                )));
            };
            if end > len {
                return Err(wrong(format!("{name} ends at {end}, past the end of the file ({len} bytes)")));
            }
            let region = Region { offset, length };
            match slot {
                Some(slot) => *slot = Some(region),
                None => others.push((entry.guid, region)),
            }
            taken.push((offset..end, name));
        }
        taken.sort_by_key(|(range, _)| range.start);
        for pair in taken.windows(2) {
            if let [(left, a), (right, b)] = pair
                && left.end > right.start
            {
                return Err(wrong(format!("{a} and {b} overlap at {}", right.start)));
            }
        }
        if let Some((range, name)) = taken.iter().find(|(range, _)| range.end > len) {
            return Err(wrong(format!(
                "{name} ends at {}, past the end of the file ({len} bytes)",
                range.end
            )));
        }
        Ok(Regions {
            bat: bat.ok_or_else(|| wrong("names no BAT region".to_owned()))?,
            metadata: metadata.ok_or_else(|| wrong("names no metadata region".to_owned()))?,
            others,
            unmarked,
            taken,
        })
    }

    /// Makes both tables say that the two regions stand there, and else what the one says that counts. Answers what they
    /// say then. Errors: a region would stand where something else does.
    pub(crate) fn put(
        draft: &mut Draft<'_>,
        file: &dyn Storage,
        len: u64,
        log: &LogPlace,
        bat: Region,
        metadata: Region,
    ) -> Result<Regions> {
        let mut good = None;
        for at in TABLES {
            let table = read_table(file, at)?;
            if good.is_none() && is_good(&table) {
                good = Some(table);
            }
        }
        let wrong = |message: &str| Error::corrupt("region table", message);
        let mut table = good.ok_or_else(|| wrong("neither copy has a right signature and checksum"))?;
        let (raw, rest) = RawTable::mut_from_prefix(&mut table).map_err(|_| wrong("is cut short"))?;
        let count = raw.entry_count.get() as usize;
        let (entries, _) = <[RawEntry]>::mut_from_prefix_with_elems(rest, count)
            .map_err(|_| wrong("has no room for its entries"))?;
        for entry in entries {
            let region = match entry.guid {
                BAT => bat,
                METADATA => metadata,
                _ => continue,
            };
            entry.file_offset = region.offset.into();
            entry.length =
                u32::try_from(region.length).map_err(|_| wrong("has no room for such a length"))?.into();
        }
        let checksum = bytes::checksum(&table).to_le_bytes();
        table[4..8].copy_from_slice(&checksum); // never out of bounds: a whole table
        for at in TABLES {
            draft.write("region table", at, &table)?;
        }
        Self::parse(&table, len, log)
    }

    /// All space that belongs to a structure, ascending and disjoint, and whose it is.
    pub(crate) fn taken(&self) -> &[(Range<u64>, String)] {
        &self.taken
    }

    /// The structure that `range` would run into, if there is one.
    pub(crate) fn meets(&self, range: Range<u64>) -> Option<&str> {
        let first = self.taken.partition_point(|(taken, _)| taken.end <= range.start);
        self.taken.get(first).filter(|(taken, _)| taken.start < range.end).map(|(_, name)| name.as_str())
    }

    /// Whether a block or a sector bitmap can stand at `place`, of which the file must have `needed` bytes; says what is
    /// wrong otherwise. `len` is the file's length.
    pub(crate) fn check_place(&self, place: Range<u64>, needed: u64, len: u64) -> Result<(), String> {
        let offset = place.start;
        if let Some(name) = self.meets(place) {
            return Err(format!("points to {offset}, where {name} is"));
        }
        if offset.saturating_add(needed) > len {
            return Err(format!("points to {offset}, past or too near the end of the file ({len} bytes)"));
        }
        Ok(())
    }

    /// A table's bytes for a file with just these two regions. Both are marked as required, which VirtualBox insists on.
    pub(crate) fn table(bat: Region, metadata: Region) -> Vec<u8> {
        let entry = |guid, region: Region| RawEntry {
            guid,
            file_offset: region.offset.into(),
            length: (region.length as u32).into(), // never cut: a plan's regions are below 4 GiB
            required: 1.into(),
        };
        let mut head =
            RawTable { signature: *b"regi", checksum: 0.into(), entry_count: 2.into(), reserved: 0.into() };
        let mut table = head.as_bytes().to_vec();
        table.extend_from_slice(entry(BAT, bat).as_bytes());
        table.extend_from_slice(entry(METADATA, metadata).as_bytes());
        table.resize(TABLE_LEN, 0);
        head.checksum = bytes::checksum(&table).into();
        table[..16].copy_from_slice(head.as_bytes());
        table
    }
}

pub(crate) fn read_table(file: &dyn Storage, at: u64) -> Result<Vec<u8>> {
    let mut table = vec![0; TABLE_LEN];
    bytes::read(file, "region table", at, &mut table)?;
    Ok(table)
}

/// Signature and checksum are right.
pub(crate) fn is_good(table: &[u8]) -> bool {
    RawTable::ref_from_prefix(table)
        .is_ok_and(|(raw, _)| raw.signature == *b"regi" && raw.checksum.get() == bytes::checksum(table))
}

/// Whether the first table says of the regions that are known here that they are required. `None`: it is damaged.
pub(crate) fn first_says_required(file: &dyn Storage) -> Result<Option<bool>> {
    let table = read_table(file, TABLES[0])?;
    if !is_good(&table) {
        return Ok(None);
    }
    let Ok((raw, rest)) = RawTable::ref_from_prefix(&table) else { return Ok(None) };
    let entries = <[RawEntry]>::ref_from_prefix_with_elems(rest, raw.entry_count.get() as usize);
    Ok(entries.ok().map(|(entries, _)| {
        let mut known = entries.iter().filter(|entry| [BAT, METADATA].contains(&entry.guid));
        known.all(|entry| entry.required.get() & 1 != 0)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::{ErrorKind, MemoryStorage};

    const LOG: LogPlace = LogPlace { guid: Guid::ZERO, offset: MIB, length: MIB };
    const LEN: u64 = 8 * MIB;

    fn region(mib: u64, mibs: u64) -> Region {
        Region { offset: mib * MIB, length: mibs * MIB }
    }

    fn read(change: impl FnOnce(&mut Vec<u8>)) -> Result<Regions> {
        let mut table = Regions::table(region(3, 1), region(2, 1));
        change(&mut table);
        let crc = bytes::checksum(&table);
        table[4..8].copy_from_slice(&crc.to_le_bytes());
        let file = MemoryStorage::new();
        file.set_len(LEN).unwrap();
        file.write_at(TABLES[0], &table).unwrap();
        Regions::read(&file, LEN, &LOG)
    }

    /// Adds a third entry.
    fn third(table: &mut [u8], guid: Guid, offset: u64, length: u32, required: u32) {
        table[8] = 3;
        let entry =
            RawEntry { guid, file_offset: offset.into(), length: length.into(), required: required.into() };
        table[80..112].copy_from_slice(entry.as_bytes());
    }

    #[test]
    fn finds_regions_and_what_they_take() {
        let regions = read(|table| third(table, Guid::random(), 5 * MIB, MIB as u32, 0)).unwrap();
        assert_eq!((regions.bat, regions.metadata), (region(3, 1), region(2, 1)));
        assert_eq!(regions.meets(0..1), Some("the header section"));
        assert_eq!(regions.meets(MIB..2 * MIB), Some("the log"));
        assert_eq!(regions.meets(4 * MIB..5 * MIB), None);
        assert!(regions.meets(4 * MIB..6 * MIB).unwrap().starts_with("region "));
        assert_eq!(regions.meets(6 * MIB..20 * MIB), None);
    }

    #[test]
    fn the_second_copy_serves_when_the_first_is_damaged() {
        let file = MemoryStorage::new();
        file.set_len(LEN).unwrap();
        let mut bad = Regions::table(region(4, 1), region(2, 1));
        bad[100] ^= 1;
        file.write_at(TABLES[0], &bad).unwrap();
        assert!(Regions::read(&file, LEN, &LOG).unwrap_err().to_string().contains("neither copy"));
        file.write_at(TABLES[1], &Regions::table(region(3, 1), region(2, 1))).unwrap();
        assert_eq!(Regions::read(&file, LEN, &LOG).unwrap().bat, region(3, 1));
    }

    #[test]
    fn refusals() {
        let says = |change: &dyn Fn(&mut Vec<u8>)| read(|table| change(table)).unwrap_err().to_string();
        let mib = MIB as u32;
        assert!(says(&|t| t[8..12].copy_from_slice(&2048u32.to_le_bytes())).contains("2048 entries"));
        assert!(says(&|t| t[8..12].copy_from_slice(&u32::MAX.to_le_bytes())).contains("entries"));
        assert!(says(&|t| t[8] = 1).contains("no metadata"));
        assert!(says(&|t| third(t, BAT, 5 * MIB, mib, 1)).contains("twice"));
        assert!(says(&|t| third(t, Guid::of(7), 5 * MIB + 4096, mib, 0)).contains("whole MiB"));
        assert!(says(&|t| third(t, Guid::of(7), 5 * MIB, 4096, 0)).contains("whole MiB"));
        assert!(says(&|t| third(t, Guid::of(7), 5 * MIB, 0, 0)).contains("whole MiB"));
        assert!(says(&|t| third(t, Guid::of(7), 0u64.wrapping_sub(MIB), mib, 0)).contains("whole MiB"));
        assert!(says(&|t| third(t, Guid::of(7), 8 * MIB, mib, 0)).contains("past the end"));
        assert!(says(&|t| third(t, Guid::of(7), MIB, mib, 0)).contains("overlap"));
        assert!(says(&|t| third(t, Guid::of(7), 3 * MIB, mib, 0)).contains("overlap"));
        assert!(says(&|t| third(t, Guid::of(7), 0, mib, 0)).contains("overlap"));
        let unknown = read(|t| third(t, Guid::of(7), 5 * MIB, mib, 1)).unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::Unsupported);
        assert!(unknown.to_string().contains("00000000-0000-0000-0000-000000000007"));
    }

    #[test]
    fn a_log_past_the_end_is_refused() {
        let file = MemoryStorage::new();
        file.set_len(LEN).unwrap();
        file.write_at(TABLES[0], &Regions::table(region(3, 1), region(2, 1))).unwrap();
        let log = LogPlace { offset: 7 * MIB, length: 2 * MIB, ..LOG };
        assert!(Regions::read(&file, LEN, &log).unwrap_err().to_string().contains("the log ends"));
    }
}
