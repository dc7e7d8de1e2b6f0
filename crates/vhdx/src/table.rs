//! The BAT of one region: its entries, found in the pages of the file.

use std::sync::Arc;

use cowhand_core::Result;

use crate::bat::ENTRY;
use crate::pages::{Edit, Look, PAGE, Page, Pages};

/// Entries of a page.
const PER_PAGE: u64 = PAGE / ENTRY;

/// Where the BAT is.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pages: Arc<Pages>,
    /// Where the BAT region begins.
    at: u64,
}

/// Entries one after the other.
pub(crate) enum View {
    /// All entries before this one are zero.
    Zero(u64),
    /// The entries from `first` on.
    Entries(Entries),
}

/// Part of a page.
pub(crate) struct Entries {
    page: Page,
    first: u64,
}

impl Entries {
    /// The entry of that number, if it is in this page.
    pub(crate) fn get(&self, entry: u64) -> Option<u64> {
        let (entries, _) = self.page.as_chunks();
        entries.get(usize::try_from(entry.checked_sub(self.first)?).ok()?).map(|raw| u64::from_le_bytes(*raw))
    }

    /// The first entry behind this page.
    pub(crate) fn end(&self) -> u64 {
        self.first + PER_PAGE
    }
}

impl Table {
    /// The table whose region begins at `at`.
    pub(crate) fn new(pages: Arc<Pages>, at: u64) -> Self {
        Table { pages, at }
    }

    /// The file offset of an entry.
    pub(crate) fn offset_of(&self, entry: u64) -> u64 {
        self.at + entry * ENTRY
    }

    /// One entry.
    pub(crate) fn entry(&self, entry: u64) -> Result<u64> {
        Ok(match self.view(entry)? {
            View::Zero(_) => 0,
            View::Entries(entries) => entries.get(entry).unwrap_or(0),
        })
    }

    /// The entries from `entry` on, as far as one look goes.
    pub(crate) fn view(&self, entry: u64) -> Result<View> {
        let at = self.offset_of(entry);
        Ok(match self.pages.look("BAT", at)? {
            Look::Zero(end) => View::Zero((end - self.at) / ENTRY),
            // The region begins on a whole MiB, and so with a page.
            Look::Page(page) => View::Entries(Entries { page, first: entry / PER_PAGE * PER_PAGE }),
        })
    }

    /// The change that makes an entry `value`.
    pub(crate) fn set(&self, entry: u64, value: u64) -> Edit {
        Edit::Entry { at: self.offset_of(entry), value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::MIB;
    use cowhand_core::{MemoryStorage, Storage};

    fn table(mib: u64) -> (Arc<MemoryStorage>, Arc<Pages>, Table) {
        let file = Arc::new(MemoryStorage::new());
        file.set_len(mib * MIB).unwrap();
        let pages = Arc::new(Pages::new(file.clone()));
        (file.clone(), pages.clone(), Table::new(pages, MIB))
    }

    fn another(file: &Arc<MemoryStorage>) -> Table {
        Table::new(Arc::new(Pages::new(file.clone())), MIB)
    }

    /// Writes what waits.
    fn write(file: &MemoryStorage, pages: &Pages) -> usize {
        let sectors = pages.take();
        for sector in &sectors {
            file.write_at(sector.at, sector.bytes.as_slice()).unwrap();
        }
        pages.written(true);
        sectors.len()
    }

    #[test]
    fn holes_are_jumped_over_up_to_what_is_not_written_yet() {
        let (file, pages, table) = table(65);
        assert!(matches!(table.view(5).unwrap(), View::Zero(end) if end == (64 << 20) / 8));
        assert!(pages.publish(&[table.set(1 << 20, 42)]).unwrap());
        assert!(matches!(table.view(5).unwrap(), View::Zero(end) if end == 1 << 20));
        assert_eq!(table.entry(1 << 20).unwrap(), 42);
        file.write_at(MIB + PAGE, &[1]).unwrap();
        let other = another(&file);
        assert!(matches!(other.view(5).unwrap(), View::Zero(end) if end == PER_PAGE));
        assert_eq!(other.entry(PER_PAGE).unwrap(), 1);
    }

    #[test]
    fn more_pages_than_are_kept_lose_nothing() {
        let (file, pages, table) = table(65);
        let count = 768;
        let mut most = 0;
        for n in 0..count {
            let edit = table.set(n * PER_PAGE + n, n + 1);
            while !pages.publish(std::slice::from_ref(&edit)).unwrap() {
                most = most.max(write(&file, &pages));
            }
        }
        assert_eq!(most, 126);
        for n in 0..count {
            assert_eq!(table.entry(n * PER_PAGE + n).unwrap(), n + 1, "before the last write");
        }
        write(&file, &pages);
        assert!(pages.is_clean());
        let other = another(&file);
        for n in 0..count {
            assert_eq!(other.entry(n * PER_PAGE + n).unwrap(), n + 1);
        }
    }

    #[test]
    fn what_changes_while_it_is_written_is_written_again() {
        let (file, pages, table) = table(2);
        assert!(pages.publish(&[table.set(0, 1)]).unwrap());
        let taken = pages.take();
        assert!(pages.publish(&[table.set(1, 2)]).unwrap());
        assert_eq!(taken.len(), 1);
        file.write_at(taken[0].at, taken[0].bytes.as_slice()).unwrap();
        pages.written(true);
        assert_eq!(another(&file).entry(1).unwrap(), 0);
        assert_eq!(write(&file, &pages), 1);
        assert_eq!(another(&file).entry(1).unwrap(), 2);
        // What could not be written waits on; what is as it was does not.
        assert!(pages.publish(&[table.set(1, 2)]).unwrap());
        assert!(pages.is_clean());
        assert!(pages.publish(&[table.set(1, 3)]).unwrap());
        pages.take();
        pages.written(false);
        assert_eq!(write(&file, &pages), 1);
    }

    #[test]
    fn bits_of_a_block_change_in_one_step_with_its_entry() {
        let (file, pages, table) = table(3);
        let bits = |from, to, present| Edit::Bits { at: 2 * MIB, bits: from..to, present };
        // The second 256 MiB block of 512-byte sectors: a whole page.
        let page = PAGE * 8;
        assert!(pages.publish(&[bits(page, 2 * page, true), table.set(1, 7)]).unwrap());
        assert!(pages.publish(&[bits(page + 3, page + 12, false)]).unwrap());
        assert_eq!(write(&file, &pages), 17);
        let mut found = [0; 4];
        file.read_at(2 * MIB + PAGE, &mut found).unwrap();
        assert_eq!(found, [0b111, 0xf0, 0xff, 0xff]);
        file.read_at(2 * MIB + PAGE - 2, &mut found).unwrap();
        assert_eq!(found, [0, 0, 0b111, 0xf0]);
        // Only the sector that changes is written.
        assert!(pages.publish(&[bits(page, 2 * page, true)]).unwrap());
        assert_eq!(write(&file, &pages), 1);
    }
}
