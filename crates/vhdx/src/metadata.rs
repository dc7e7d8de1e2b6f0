//! The metadata region: what the disk is (section 2.6).

use std::collections::HashSet;

use cowhand_core::{Error, Result, Storage};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bytes::{self, MIB};
use crate::guid::Guid;
use crate::locator::Locator;
use crate::region::Region;

pub(crate) const FILE_PARAMETERS: Guid = Guid::of(0xcaa16737_fa36_4d43_b3b6_33f0aa44e76b);
const VIRTUAL_DISK_SIZE: Guid = Guid::of(0x2fa54224_cd1b_4876_b211_5dbed83bf4b8);
const VIRTUAL_DISK_ID: Guid = Guid::of(0xbeca12ab_b2e6_4523_93ef_c309e000c746);
const LOGICAL_SECTOR_SIZE: Guid = Guid::of(0x8141bf1d_a96f_4709_ba47_f233a8faab5f);
const PHYSICAL_SECTOR_SIZE: Guid = Guid::of(0xcda348c7_445d_4471_9cc9_e9885251c556);
const PARENT_LOCATOR: Guid = Guid::of(0xa8d35f2d_b30b_454d_abf7_d3d84834ab0c);

/// Bytes of the metadata table; items stand behind it.
pub(crate) const TABLE_LEN: usize = 64 << 10;
/// The largest disk.
pub(crate) const MAX_SIZE: u64 = 64 << 40;
pub(crate) const MAX_ENTRIES: u16 = 2047;
const MAX_USER_ENTRIES: usize = 1024;
const MAX_ITEM: u32 = 1 << 20;

pub(crate) const IS_USER: u32 = 1;
const IS_VIRTUAL_DISK: u32 = 2;
const IS_REQUIRED: u32 = 4;

const LEAVE_BLOCKS_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawTable {
    signature: [u8; 8],
    reserved: U16,
    pub(crate) entry_count: U16,
    reserved2: [u8; 20],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawEntry {
    pub(crate) item_id: Guid,
    pub(crate) offset: U32,
    pub(crate) length: U32,
    pub(crate) flags: U32,
    pub(crate) reserved: U32,
}

/// What the metadata says, within the format's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// Bytes of a payload block: a power of two, 1 to 256 MiB.
    pub(crate) block_size: u64,
    /// The file is of fixed size: its blocks stay allocated.
    pub(crate) leave_blocks_allocated: bool,
    /// Guest bytes: a multiple of the logical sector, at most 64 TiB.
    pub(crate) size: u64,
    /// The disk's page 83 identity, which a child shares with its parent.
    pub(crate) disk_id: Guid,
    /// 512 or 4096.
    pub(crate) logical_sector: u32,
    /// 512 or 4096.
    pub(crate) physical_sector: u32,
    /// There if and only if the disk has a parent.
    pub(crate) parent: Option<Locator>,
}

/// An item's place, inside its region.
#[derive(Clone, Copy)]
struct Item {
    at: u64,
    length: u32,
}

#[derive(Default)]
pub(crate) struct Items {
    file_parameters: Option<Item>,
    size: Option<Item>,
    disk_id: Option<Item>,
    logical_sector: Option<Item>,
    physical_sector: Option<Item>,
    locator: Option<Item>,
}

impl Metadata {
    /// The items that are known here.
    pub(crate) const KNOWN: [Guid; 6] = [
        FILE_PARAMETERS,
        VIRTUAL_DISK_SIZE,
        VIRTUAL_DISK_ID,
        LOGICAL_SECTOR_SIZE,
        PHYSICAL_SECTOR_SIZE,
        PARENT_LOCATOR,
    ];

    /// Reads the table and the items that it names.
    pub(crate) fn read(file: &dyn Storage, region: Region) -> Result<Metadata> {
        let (_, items) = Items::read(file, region)?;
        let parameters: [U32; 2] = item(file, "file parameters", items.file_parameters)?;
        let size: U64 = item(file, "virtual disk size", items.size)?;
        let logical_sector: U32 = item(file, "logical sector size", items.logical_sector)?;
        let physical_sector: U32 = item(file, "physical sector size", items.physical_sector)?;
        let disk_id: Guid = item(file, "virtual disk ID", items.disk_id)?;
        let [block_size, flags] = parameters.map(U32::get);
        let parent = match (flags & HAS_PARENT != 0, items.locator) {
            (false, _) => None,
            (true, Some(place)) => {
                Some(Locator::parse(&content(file, "parent locator", place)?).map_err(|e| e.at(place.at))?)
            }
            (true, None) => {
                return Err(Error::corrupt("parent locator", "is missing, and the disk has a parent")
                    .at(region.offset));
            }
        };
        let metadata = Metadata {
            block_size: block_size.into(),
            leave_blocks_allocated: flags & LEAVE_BLOCKS_ALLOCATED != 0,
            size: size.get(),
            disk_id,
            logical_sector: logical_sector.get(),
            physical_sector: physical_sector.get(),
            parent,
        };
        metadata.check().map_err(|error| error.at(region.offset))?;
        Ok(metadata)
    }

    fn check(&self) -> Result<()> {
        if !self.block_size.is_power_of_two() || !(MIB..=256 * MIB).contains(&self.block_size) {
            let what = format!("the block size {} is no power of two from 1 MiB to 256 MiB", self.block_size);
            return Err(Error::corrupt("file parameters", what));
        }
        for (field, sector) in
            [("logical sector size", self.logical_sector), ("physical sector size", self.physical_sector)]
        {
            if sector != 512 && sector != 4096 {
                return Err(Error::corrupt(field, format!("is {sector}; only 512 and 4096 are possible")));
            }
        }
        if self.size > MAX_SIZE {
            return Err(Error::corrupt("virtual disk size", format!("is {}, more than 64 TiB", self.size)));
        }
        if !self.size.is_multiple_of(self.logical_sector.into()) {
            let what =
                format!("is {}, no multiple of the logical sector ({})", self.size, self.logical_sector);
            return Err(Error::corrupt("virtual disk size", what));
        }
        Ok(())
    }

    /// The items that say this: their contents and their flags. Errors: a locator that is too long.
    pub(crate) fn items(&self) -> Result<Vec<(Guid, Vec<u8>, u32)>> {
        let mut flags = if self.leave_blocks_allocated { LEAVE_BLOCKS_ALLOCATED } else { 0 };
        flags |= if self.parent.is_some() { HAS_PARENT } else { 0 };
        let block_size = self.block_size as u32; // never cut: at most 256 MiB
        let of_file = IS_REQUIRED;
        let of_disk = IS_REQUIRED | IS_VIRTUAL_DISK;
        let mut items = vec![
            (FILE_PARAMETERS, [block_size, flags].map(u32::to_le_bytes).concat(), of_file),
            (VIRTUAL_DISK_SIZE, self.size.to_le_bytes().to_vec(), of_disk),
            (VIRTUAL_DISK_ID, self.disk_id.raw().to_vec(), of_disk),
            (LOGICAL_SECTOR_SIZE, self.logical_sector.to_le_bytes().to_vec(), of_disk),
            (PHYSICAL_SECTOR_SIZE, self.physical_sector.to_le_bytes().to_vec(), of_disk),
        ];
        if let Some(parent) = &self.parent {
            let bytes = parent.to_bytes()?;
            if bytes.len() > MAX_ITEM as usize {
                return Err(Error::invalid(
                    "the parent locator is longer than a MiB, as long as an item can be",
                ));
            }
            items.push((PARENT_LOCATOR, bytes, of_file));
        }
        Ok(items)
    }

    /// File parameters take over from the `old` ones the flags that are not known here.
    pub(crate) fn keep_unknown_flags(new: &mut [u8], old: &[u8]) {
        let known = (LEAVE_BLOCKS_ALLOCATED | HAS_PARENT).to_le_bytes();
        for ((new, old), known) in new.iter_mut().zip(old).skip(4).zip(known) {
            *new = (*new & known) | (old & !known);
        }
    }

    /// The start of a new metadata region: the table and the items; what follows is zero. Errors: a locator that is too
    /// long.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let items = self.items()?;
        let count = items.len() as u16;
        let head = RawTable {
            signature: *b"metadata",
            reserved: 0.into(),
            entry_count: count.into(),
            reserved2: [0; 20],
        };
        let mut table = head.as_bytes().to_vec();
        let mut content = Vec::new();
        for (item_id, bytes, flags) in items {
            let offset = (TABLE_LEN + content.len()) as u32;
            let length = bytes.len() as u32;
            let entry = RawEntry {
                item_id,
                offset: offset.into(),
                length: length.into(),
                flags: flags.into(),
                reserved: 0.into(),
            };
            table.extend_from_slice(entry.as_bytes());
            content.extend_from_slice(&bytes);
        }
        table.resize(TABLE_LEN, 0);
        table.extend_from_slice(&content);
        Ok(table)
    }
}

impl Items {
    /// Reads the table: its bytes, and where the items are that are known here.
    pub(crate) fn read(file: &dyn Storage, region: Region) -> Result<(Vec<u8>, Items)> {
        let mut table = vec![0; TABLE_LEN];
        bytes::read(file, "metadata table", region.offset, &mut table)?;
        let items = Self::parse(&table, region);
        let items = items.map_err(|error| error.field("metadata table").at(region.offset))?;
        Ok((table, items))
    }

    fn parse(table: &[u8], region: Region) -> Result<Items> {
        let wrong = |message: String| Error::corrupt("metadata table", message);
        let (head, entries) =
            RawTable::ref_from_prefix(table).map_err(|_| wrong("is cut short".to_owned()))?;
        if head.signature != *b"metadata" {
            return Err(wrong("has no signature".to_owned()));
        }
        let count = head.entry_count.get();
        if count > MAX_ENTRIES {
            return Err(wrong(format!("has {count} entries, more than {MAX_ENTRIES}")));
        }
        let (entries, _) = <[RawEntry]>::ref_from_prefix_with_elems(entries, count.into())
            .map_err(|_| wrong(format!("has no room for {count} entries")))?;
        let mut items = Items::default();
        let (mut seen, mut users) = (HashSet::new(), 0);
        for entry in entries {
            let (id, flags) = (entry.item_id, entry.flags.get());
            let is_user = flags & IS_USER != 0;
            users += usize::from(is_user);
            if !seen.insert((id, is_user)) {
                return Err(wrong(format!("item {id} is there twice")));
            }
            let item = place(entry, region).ok_or_else(|| {
                wrong(format!(
                    "item {id}, {} bytes at {} of the region, cannot lie there",
                    entry.length, entry.offset
                ))
            })?;
            let slot = match id {
                _ if is_user => None,
                FILE_PARAMETERS => Some(&mut items.file_parameters),
                VIRTUAL_DISK_SIZE => Some(&mut items.size),
                VIRTUAL_DISK_ID => Some(&mut items.disk_id),
                LOGICAL_SECTOR_SIZE => Some(&mut items.logical_sector),
                PHYSICAL_SECTOR_SIZE => Some(&mut items.physical_sector),
                PARENT_LOCATOR => Some(&mut items.locator),
                _ => None,
            };
            match slot {
                Some(slot) => *slot = Some(item),
                None if flags & IS_REQUIRED != 0 => {
                    return Err(Error::unsupported(format!("metadata item {id} is required and not known"))
                        .hint("the program that made this file did not finish it, or only a newer program can read it"));
                }
                None => {}
            }
        }
        if users > MAX_USER_ENTRIES {
            return Err(wrong(format!("has {users} user items, more than {MAX_USER_ENTRIES}")));
        }
        Ok(items)
    }
}

/// An entry of the metadata table, for who judges more than opening does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// Where it stands in the file.
    pub(crate) at: u64,
    pub(crate) id: Guid,
    pub(crate) is_user: bool,
    /// The item's place in the region, within it.
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// IsVirtualDisk and IsRequired.
    pub(crate) marks: u32,
    /// What the format wants these to be.
    pub(crate) expected: Option<u32>,
}

impl Entry {
    pub(crate) fn is_locator(&self) -> bool {
        self.id == PARENT_LOCATOR && !self.is_user
    }
}

/// All entries of a table that could be read.
pub(crate) fn entries(file: &dyn Storage, region: Region) -> Result<Vec<Entry>> {
    let mut table = vec![0; TABLE_LEN];
    bytes::read(file, "metadata table", region.offset, &mut table)?;
    Items::parse(&table, region)?;
    let (head, rest) =
        RawTable::ref_from_prefix(&table).map_err(|_| Error::corrupt("metadata table", "is cut"))?;
    let (raw, _) = <[RawEntry]>::ref_from_prefix_with_elems(rest, head.entry_count.get().into())
        .map_err(|_| Error::corrupt("metadata table", "is cut"))?;
    let first = region.offset + size_of::<RawTable>() as u64;
    let entry = |(at, raw): (u64, &RawEntry)| Entry {
        at,
        id: raw.item_id,
        is_user: raw.flags.get() & IS_USER != 0,
        offset: raw.offset.get().into(),
        length: raw.length.get().into(),
        marks: raw.flags.get() & (IS_VIRTUAL_DISK | IS_REQUIRED),
        expected: match raw.item_id {
            FILE_PARAMETERS | PARENT_LOCATOR => Some(IS_REQUIRED),
            VIRTUAL_DISK_SIZE | VIRTUAL_DISK_ID | LOGICAL_SECTOR_SIZE | PHYSICAL_SECTOR_SIZE => {
                Some(IS_REQUIRED | IS_VIRTUAL_DISK)
            }
            _ => None,
        },
    };
    Ok((first..).step_by(size_of::<RawEntry>()).zip(raw).map(entry).collect())
}

/// Where an entry's item lies in the file; `None` where the entry breaks the rules of section 2.6.1.2.
fn place(entry: &RawEntry, region: Region) -> Option<Item> {
    let (offset, length) = (entry.offset.get(), entry.length.get());
    let fits = if length == 0 {
        offset == 0
    } else {
        offset as usize >= TABLE_LEN
            && length <= MAX_ITEM
            && u64::from(offset) + u64::from(length) <= region.length
    };
    fits.then_some(Item { at: region.offset.checked_add(offset.into())?, length })
}

fn content(file: &dyn Storage, what: &str, item: Item) -> Result<Vec<u8>> {
    let mut bytes = vec![0; item.length as usize]; // bounded: at most MAX_ITEM
    bytes::read(file, what, item.at, &mut bytes)?;
    Ok(bytes)
}

/// Reads an item of one known size.
fn item<T: FromBytes>(file: &dyn Storage, what: &str, item: Option<Item>) -> Result<T> {
    let item = item.ok_or_else(|| Error::corrupt(what, "is missing from the metadata"))?;
    let bytes = content(file, what, item)?;
    T::read_from_bytes(&bytes).map_err(|_| {
        Error::corrupt(what, format!("is {} bytes long, not {}", bytes.len(), size_of::<T>())).at(item.at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::{ErrorKind, MemoryStorage};

    const REGION: Region = Region { offset: MIB, length: MIB };

    fn plain() -> Metadata {
        Metadata {
            block_size: 2 * MIB,
            leave_blocks_allocated: false,
            size: 10 * MIB + 512,
            disk_id: Guid::random(),
            logical_sector: 512,
            physical_sector: 4096,
            parent: None,
        }
    }

    fn read(bytes: &[u8]) -> Result<Metadata> {
        let file = MemoryStorage::new();
        file.set_len(2 * MIB).unwrap();
        file.write_at(MIB, bytes).unwrap();
        Metadata::read(&file, REGION)
    }

    #[test]
    fn is_read_back() {
        for leave_blocks_allocated in [false, true] {
            let metadata = Metadata { leave_blocks_allocated, ..plain() };
            assert_eq!(read(&metadata.to_bytes().unwrap()).unwrap(), metadata);
        }
        let empty = Metadata { size: 0, logical_sector: 4096, ..plain() };
        assert_eq!(read(&empty.to_bytes().unwrap()).unwrap(), empty);
        let linkage = "{83ed0ec3-24c8-49a6-a959-5e4bd1288bbb}";
        let parent = Locator::of(&[("parent_linkage", linkage), ("relative_path", r".\p.vhdx")]).unwrap();
        let child = Metadata { parent: Some(parent), ..plain() };
        assert_eq!(read(&child.to_bytes().unwrap()).unwrap(), child);
    }

    /// Byte offset of a field of the n-th entry.
    fn entry(n: usize) -> usize {
        32 + 32 * n
    }

    fn says(change: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut bytes = plain().to_bytes().unwrap();
        change(&mut bytes);
        read(&bytes).unwrap_err().to_string()
    }

    fn put(bytes: &mut [u8], at: usize, value: u32) {
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    #[test]
    fn tables_that_break_the_rules_are_refused() {
        assert!(says(|b| b[0] = 0).contains("no signature"));
        assert!(says(|b| b[10..12].copy_from_slice(&2048u16.to_le_bytes())).contains("2048 entries"));
        // A sixth entry that repeats the first.
        assert!(
            says(|b| {
                b[10] = 6;
                b.copy_within(32..64, entry(5));
            })
            .contains("twice")
        );
        for (offset, length) in [
            (TABLE_LEN as u32 - 1, 8),
            (0, 8),
            (MIB as u32, 8),
            (u32::MAX, 8),
            (TABLE_LEN as u32, MAX_ITEM + 1),
            (1, 0),
        ] {
            let text = says(|b| {
                put(b, entry(0) + 16, offset);
                put(b, entry(0) + 20, length);
            });
            assert!(text.contains("cannot lie there"), "{offset} {length}: {text}");
        }
        assert!(says(|b| put(b, entry(1) + 20, 4)).contains("is 4 bytes long"));
        assert!(says(|b| b[10] = 4).contains("physical sector size: is missing"));
        // Items of users are others than those of the same GUID.
        assert!(says(|b| put(b, entry(0) + 24, IS_USER)).contains("file parameters: is missing"));
    }

    #[test]
    fn unknown_items_are_refused_if_required() {
        let with = |flags: u32| {
            let mut bytes = plain().to_bytes().unwrap();
            bytes[10] = 6;
            bytes[entry(5)..entry(5) + 16].copy_from_slice(&Guid::of(9).raw());
            put(&mut bytes, entry(5) + 24, flags);
            read(&bytes)
        };
        assert!(with(0).is_ok());
        assert!(with(IS_USER).is_ok());
        for flags in [IS_REQUIRED, IS_REQUIRED | IS_USER] {
            let error = with(flags).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("00000000-0000-0000-0000-000000000009"));
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let refused = |change: fn(&mut Metadata)| {
            let mut metadata = plain();
            change(&mut metadata);
            read(&metadata.to_bytes().unwrap()).unwrap_err().to_string()
        };
        assert!(refused(|m| m.block_size = 3 * MIB).contains("block size"));
        assert!(refused(|m| m.block_size = 512 << 10).contains("block size"));
        assert!(refused(|m| m.block_size = 512 * MIB).contains("block size"));
        assert!(refused(|m| m.block_size = 0).contains("block size"));
        assert!(refused(|m| m.logical_sector = 1024).contains("logical sector size"));
        assert!(refused(|m| m.physical_sector = 0).contains("physical sector size"));
        assert!(refused(|m| m.size = 513).contains("no multiple"));
        assert!(refused(|m| m.logical_sector = 4096).contains("no multiple"));
        assert!(refused(|m| m.size = MAX_SIZE + 512).contains("64 TiB"));
        let mut orphan = plain().to_bytes().unwrap();
        orphan[TABLE_LEN + 4] = HAS_PARENT as u8;
        assert!(read(&orphan).unwrap_err().to_string().contains("parent locator"));
    }
}
