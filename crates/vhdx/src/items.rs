//! The metadata region changed in place: other items, and where they go.

use std::ops::Range;

use cowhand_core::{Error, Result, Storage};
use zerocopy::{FromBytes, IntoBytes};

use crate::bytes;
use crate::draft::Draft;
use crate::guid::Guid;
use crate::metadata::{
    FILE_PARAMETERS, IS_USER, Items, MAX_ENTRIES, Metadata, RawEntry, RawTable, TABLE_LEN,
};
use crate::region::Region;

/// Makes the region say `wanted`. Items that are not known here stay, a user's too.
///
/// Errors: the region has no room for an item that gets longer.
pub(crate) fn put(
    draft: &mut Draft<'_>,
    file: &dyn Storage,
    region: Region,
    wanted: &Metadata,
) -> Result<()> {
    let (table, _) = Items::read(file, region)?;
    let (mut head, raw) = RawTable::read_from_prefix(&table).map_err(|_| cut_short())?;
    let count = usize::from(head.entry_count.get());
    let (raw, _) = <[RawEntry]>::ref_from_prefix_with_elems(raw, count).map_err(|_| cut_short())?;
    let mut shelf = Shelf { file, region, items: raw.iter().map(|entry| Item::of(*entry)).collect() };
    let before = shelf.items.len();
    let items = wanted.items()?;
    shelf.items.retain(|item| !item.is_known() || items.iter().any(|(id, ..)| *id == item.entry.item_id));
    for (id, bytes, flags) in items {
        shelf.set(id, bytes, flags)?;
    }
    if shelf.items.len() > usize::from(MAX_ENTRIES) {
        return Err(Error::unsupported(format!("the metadata table is full: it has {count} entries")));
    }
    if shelf.find_places().is_none() {
        shelf.pack()?;
    }
    for item in &shelf.items {
        if let Some(bytes) = &item.new {
            draft.write("metadata item", region.offset + u64::from(item.entry.offset.get()), bytes)?;
        }
    }
    let entry_count = (shelf.items.len() as u16).into(); // never cut: at most 2047
    head.entry_count = entry_count;
    let mut table = head.as_bytes().to_vec();
    shelf.items.iter().for_each(|item| table.extend_from_slice(item.entry.as_bytes()));
    // Entries that are no more leave nothing behind.
    let len = size_of::<RawTable>() + before.max(shelf.items.len()) * size_of::<RawEntry>();
    table.resize(len, 0);
    draft.write("metadata table", region.offset, &table)
}

fn cut_short() -> Error {
    Error::corrupt("metadata table", "is cut short")
}

/// The items of a region that are being changed.
struct Shelf<'a> {
    file: &'a dyn Storage,
    region: Region,
    items: Vec<Item>,
}

struct Item {
    entry: RawEntry,
    /// What it shall hold, if that is not what stands at its place.
    new: Option<Vec<u8>>,
}

impl Item {
    fn of(entry: RawEntry) -> Item {
        Item { entry, new: None }
    }

    /// It is one of those that [`Metadata`] tells.
    fn is_known(&self) -> bool {
        self.entry.flags.get() & IS_USER == 0 && Metadata::KNOWN.contains(&self.entry.item_id)
    }

    /// Its place in the region.
    fn place(&self) -> Range<usize> {
        let start = self.entry.offset.get() as usize;
        start..start + self.entry.length.get() as usize
    }
}

impl Shelf<'_> {
    /// An item of the system shall hold `bytes`.
    fn set(&mut self, id: Guid, mut bytes: Vec<u8>, flags: u32) -> Result<()> {
        let found = self.items.iter().position(|item| item.is_known() && item.entry.item_id == id);
        let Some(item) = found.and_then(|at| self.items.get_mut(at)) else {
            let entry = RawEntry {
                item_id: id,
                offset: 0.into(),
                length: 0.into(),
                flags: flags.into(),
                reserved: 0.into(),
            };
            self.items.push(Item { entry, new: Some(bytes) });
            return Ok(());
        };
        let old = content(self.file, self.region, item)?;
        if id == FILE_PARAMETERS {
            Metadata::keep_unknown_flags(&mut bytes, &old);
        }
        if old != bytes {
            item.new = Some(bytes);
        }
        Ok(())
    }

    /// Finds a place for all that is new: its own, where that is long enough, or a gap. `None`: there is none.
    fn find_places(&mut self) -> Option<()> {
        let end = usize::try_from(self.region.length).ok()?;
        for at in 0..self.items.len() {
            let Some(len) = self.items.get(at).and_then(|item| item.new.as_ref()).map(Vec::len) else {
                continue;
            };
            let mut others: Vec<_> = self.items.iter().map(Item::place).collect();
            let own = others.swap_remove(at);
            others.retain(|range| !range.is_empty());
            others.sort_by_key(|range| range.start);
            let free = |range: &Range<usize>| {
                range.end <= end
                    && others.iter().all(|other| other.end <= range.start || range.end <= other.start)
            };
            let starts = std::iter::once(TABLE_LEN).chain(others.iter().map(|other| other.end));
            let here = Some(own.start).filter(|start| *start >= TABLE_LEN);
            let mut candidates = here.into_iter().chain(starts).map(|start| start..start + len);
            let place = candidates.find(free)?;
            self.put(at, place.start);
        }
        Some(())
    }

    /// Puts all items, one behind the other, to the front of the region.
    fn pack(&mut self) -> Result<()> {
        let mut end = TABLE_LEN;
        for at in 0..self.items.len() {
            let Some(item) = self.items.get_mut(at) else { break };
            if item.new.is_none() {
                item.new = Some(content(self.file, self.region, item)?);
            }
            let len = item.new.as_ref().map_or(0, Vec::len);
            if len > 0 {
                self.put(at, end);
            }
            end += len;
        }
        if end as u64 > self.region.length {
            let (end, length) = (end, self.region.length);
            return Err(Error::unsupported(format!(
                "the metadata region has no room: {length} bytes, and {end} would be needed"
            ))
            .at(self.region.offset)
            .hint("convert the image into a new one, whose parent can then be named"));
        }
        Ok(())
    }

    fn put(&mut self, at: usize, start: usize) {
        if let Some(item) = self.items.get_mut(at) {
            // Never cut: a region is below 4 GiB, and what ends outside is refused.
            item.entry.offset = (start as u32).into();
            item.entry.length = (item.new.as_ref().map_or(0, Vec::len) as u32).into();
        }
    }
}

fn content(file: &dyn Storage, region: Region, item: &Item) -> Result<Vec<u8>> {
    let mut bytes = vec![0; item.place().len()]; // bounded: the table was checked
    bytes::read(file, "metadata item", region.offset + u64::from(item.entry.offset.get()), &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::MIB;
    use crate::locator::Locator;
    use cowhand_core::MemoryStorage;

    const REGION: Region = Region { offset: MIB, length: MIB };
    const LINKAGE: &str = "{83ed0ec3-24c8-49a6-a959-5e4bd1288bbb}";

    fn plain() -> Metadata {
        Metadata {
            block_size: 2 * MIB,
            leave_blocks_allocated: false,
            size: 10 * MIB,
            disk_id: Guid::of(1),
            logical_sector: 512,
            physical_sector: 4096,
            parent: None,
        }
    }

    /// A locator item of about so many bytes.
    fn locator(len: usize) -> Locator {
        Locator::of(&[("parent_linkage", LINKAGE), ("relative_path", &"p".repeat(len / 2))]).unwrap()
    }

    fn child(len: usize) -> Metadata {
        Metadata { parent: Some(locator(len)), ..plain() }
    }

    fn file(metadata: &Metadata) -> MemoryStorage {
        let file = MemoryStorage::new();
        file.set_len(3 * MIB).unwrap();
        file.write_at(MIB, &metadata.to_bytes().unwrap()).unwrap();
        file
    }

    /// Adds an item of a user to the table, which stands at `at` of the region.
    fn add(file: &MemoryStorage, id: u128, at: u32, bytes: &[u8]) {
        let mut table = vec![0; TABLE_LEN];
        file.read_at(MIB, &mut table).unwrap();
        let count = usize::from(table[10]);
        table[10] += 1;
        let entry = RawEntry {
            item_id: Guid::of(id),
            offset: at.into(),
            length: (bytes.len() as u32).into(),
            flags: IS_USER.into(),
            reserved: 0.into(),
        };
        table[32 + 32 * count..64 + 32 * count].copy_from_slice(entry.as_bytes());
        file.write_at(MIB, &table).unwrap();
        file.write_at(MIB + u64::from(at), bytes).unwrap();
    }

    /// What the items of users hold.
    fn users(file: &MemoryStorage) -> Vec<(Guid, Vec<u8>)> {
        let (table, _) = Items::read(file, REGION).unwrap();
        let count = usize::from(table[10]);
        let entries = <[RawEntry]>::ref_from_prefix_with_elems(&table[32..], count).unwrap().0;
        let users = entries.iter().filter(|entry| entry.flags.get() & IS_USER != 0);
        users.map(|entry| (entry.item_id, content(file, REGION, &Item::of(*entry)).unwrap())).collect()
    }

    /// How many sectors change until the region says so; afterwards it does, and a second time nothing changes.
    fn change(file: &MemoryStorage, wanted: &Metadata) -> Result<usize> {
        let before = users(file);
        let mut draft = Draft::of(file);
        put(&mut draft, file, REGION, wanted)?;
        let sectors = draft.into_sectors();
        for sector in &sectors {
            file.write_at(sector.at, sector.bytes.as_slice()).unwrap();
        }
        assert_eq!(Metadata::read(file, REGION).unwrap(), *wanted);
        assert_eq!(users(file), before);
        let mut again = Draft::of(file);
        put(&mut again, file, REGION, wanted).unwrap();
        assert_eq!(again.len(), 0);
        Ok(sectors.len())
    }

    #[test]
    fn values_change_in_their_places() {
        let file = file(&plain());
        let size = Metadata { size: 99 * MIB, ..plain() };
        assert_eq!(change(&file, &size).unwrap(), 1);
        let all =
            Metadata { disk_id: Guid::of(2), physical_sector: 512, leave_blocks_allocated: true, ..size };
        assert_eq!(change(&file, &all).unwrap(), 1);
    }

    #[test]
    fn a_locator_comes_grows_and_goes() {
        let file = file(&plain());
        // Something that follows the items at once.
        add(&file, 7, TABLE_LEN as u32 + 40, b"a user's");
        assert_eq!(change(&file, &child(200)).unwrap(), 2);
        let behind = TABLE_LEN as u32 + 40 + 8 + 400;
        add(&file, 8, behind, b"another's");
        for len in [190, 600, 5000, 4000, 60] {
            assert!(change(&file, &child(len)).unwrap() <= 4, "{len}");
        }
        assert_eq!(change(&file, &plain()).unwrap(), 2);
        let (table, _) = Items::read(&file, REGION).unwrap();
        assert!(table[32 + 32 * 7..].iter().all(|byte| *byte == 0), "nothing is left of its entry");
    }

    #[test]
    fn where_no_gap_is_long_enough_all_is_packed() {
        let file = file(&plain());
        // Two gaps of 450 KiB and more, and neither has 460.
        let middle = TABLE_LEN as u32 + (450 << 10);
        add(&file, 7, middle, &[7; 5000]);
        add(&file, 8, MIB as u32 - 1000, &[8; 1000]);
        let long = |keys: usize| {
            let texts: Vec<_> = (0..keys).map(|n| (format!("note{n}"), "x".repeat(32_000))).collect();
            let mut pairs: Vec<_> = texts.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            pairs.push(("parent_linkage", LINKAGE));
            Metadata { parent: Some(Locator::of(&pairs).unwrap()), ..plain() }
        };
        assert!(change(&file, &long(6)).unwrap() < 100, "in the first gap");
        assert!(change(&file, &long(8)).unwrap() > 100, "all of it");
        let error = change(&file, &long(16)).unwrap_err();
        assert!(error.to_string().contains("no room"), "{error}");
    }

    #[test]
    fn what_is_not_known_of_the_parameters_stays() {
        let file = file(&plain());
        file.write_at(MIB + TABLE_LEN as u64 + 4, &[0xf0, 1, 2, 3]).unwrap();
        change(&file, &child(100)).unwrap();
        let mut flags = [0; 4];
        file.read_at(MIB + TABLE_LEN as u64 + 4, &mut flags).unwrap();
        assert_eq!(flags, [0xf2, 1, 2, 3]);
    }
}
