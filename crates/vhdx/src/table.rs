//! The BAT in pages: read when they are needed, kept within bounds, changed ones written back.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use cowhand_core::{Error, Result, Storage};

use crate::bat::ENTRY;
use crate::bytes;

/// Bytes of a page. A BAT region is whole MiB, so a page never reaches past it.
const PAGE: u64 = 64 << 10;
/// Entries of a page.
const PER_PAGE: u64 = PAGE / ENTRY;
/// Pages kept: 16 MiB.
const KEPT: usize = 256;

type Page = Arc<Vec<u8>>;

/// The table in its file. One lock guards the pages; it is held while a page is read, never while guest data is.
#[derive(Debug)]
pub(crate) struct Table {
    file: Arc<dyn Storage>,
    /// Where the BAT region begins.
    at: u64,
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    kept: HashMap<u64, Slot>,
    /// File offsets that are known to read zero, except where a page is kept.
    hole: Range<u64>,
    dirty: usize,
    /// Counts uses: which page was not used for longest?
    clock: u64,
}

#[derive(Debug)]
struct Slot {
    page: Page,
    used: u64,
    dirty: bool,
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
    pub(crate) fn new(file: Arc<dyn Storage>, at: u64) -> Self {
        Table { file, at, pages: Mutex::default() }
    }

    /// The file offset of an entry.
    pub(crate) fn offset_of(&self, entry: u64) -> u64 {
        self.at + entry * ENTRY
    }

    // A panic elsewhere cannot leave the pages half-changed: nothing in here panics between two changes.
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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
        let mut pages = self.pages();
        let number = entry / PER_PAGE;
        let at = self.at + number * PAGE;
        if !pages.kept.contains_key(&number) {
            let mut hole = self.hole(&mut pages, at)?;
            if hole.contains(&at) && hole.end >= at + PAGE {
                // Kept pages in it are not in the file yet.
                let kept = pages.kept.keys().filter(|other| **other > number).min();
                hole.end = hole.end.min(kept.map_or(u64::MAX, |other| self.at + other * PAGE));
                return Ok(View::Zero((hole.end - self.at) / PAGE * PER_PAGE));
            }
        }
        let page = self.load(&mut pages, number)?;
        Ok(View::Entries(Entries { page, first: number * PER_PAGE }))
    }

    /// The last hole that was found, if `at` is in it; otherwise the file is asked.
    fn hole(&self, pages: &mut Pages, at: u64) -> Result<Range<u64>> {
        if !pages.hole.contains(&at) {
            let failed = |error| Error::io("cannot find the holes of the BAT", error).at(at);
            pages.hole = at..match self.file.data_at(at).map_err(failed)? {
                Some(data) => data.start,
                None => self.file.len().map_err(failed)?,
            };
        }
        Ok(pages.hole.clone())
    }

    fn load(&self, pages: &mut Pages, number: u64) -> Result<Page> {
        pages.clock += 1;
        let used = pages.clock;
        if let Some(slot) = pages.kept.get_mut(&number) {
            slot.used = used;
            return Ok(slot.page.clone());
        }
        let mut page = vec![0; PAGE as usize];
        bytes::read(self.file.as_ref(), "BAT", self.at + number * PAGE, &mut page)?;
        while pages.kept.len() >= KEPT {
            let clean = pages.kept.iter().filter(|(_, slot)| !slot.dirty);
            let Some(oldest) = clean.min_by_key(|(_, slot)| slot.used).map(|(number, _)| *number) else {
                break;
            };
            pages.kept.remove(&oldest);
        }
        let page = Arc::new(page);
        pages.kept.insert(number, Slot { page: page.clone(), used, dirty: false });
        Ok(page)
    }

    /// Changes one entry. Answers true when so many pages wait to be written that it should be done now.
    pub(crate) fn set(&self, entry: u64, value: u64) -> Result<bool> {
        let mut pages = self.pages();
        let number = entry / PER_PAGE;
        self.load(&mut pages, number)?;
        let Pages { kept, dirty, .. } = &mut *pages;
        if let Some(slot) = kept.get_mut(&number) {
            let (entries, _) = Arc::make_mut(&mut slot.page).as_chunks_mut();
            if let Some(raw) = entries.get_mut((entry % PER_PAGE) as usize) {
                *raw = value.to_le_bytes();
            }
            *dirty += usize::from(!slot.dirty);
            slot.dirty = true;
        }
        Ok(*dirty >= KEPT / 2)
    }

    /// The changed pages as they are now.
    pub(crate) fn changed(&self) -> Changed {
        let pages = self.pages();
        let mut changed: Vec<_> = pages
            .kept
            .iter()
            .filter(|(_, slot)| slot.dirty)
            .map(|(n, slot)| (*n, slot.page.clone()))
            .collect();
        changed.sort_by_key(|(number, _)| *number);
        Changed(changed)
    }

    /// Writes pages. One that was changed again since stays to be written. The caller sees to it that no two threads
    /// do this at once.
    pub(crate) fn write(&self, changed: &Changed) -> Result<()> {
        for (number, page) in &changed.0 {
            bytes::write(self.file.as_ref(), "BAT", self.at + number * PAGE, page)?;
            let mut pages = self.pages();
            pages.hole = 0..0;
            let Pages { kept, dirty, .. } = &mut *pages;
            if let Some(slot) =
                kept.get_mut(number).filter(|slot| slot.dirty && Arc::ptr_eq(&slot.page, page))
            {
                slot.dirty = false;
                *dirty -= 1;
            }
        }
        Ok(())
    }
}

/// Pages to be written.
pub(crate) struct Changed(Vec<(u64, Page)>);

impl Changed {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::MemoryStorage;

    fn table(mib: u64) -> (Arc<MemoryStorage>, Table) {
        let file = Arc::new(MemoryStorage::new());
        file.set_len(mib << 20).unwrap();
        (file.clone(), Table::new(file, 1 << 20))
    }

    #[test]
    fn holes_are_jumped_over_up_to_what_is_not_written_yet() {
        let (file, table) = table(65);
        assert!(matches!(table.view(5).unwrap(), View::Zero(end) if end == (64 << 20) / 8));
        table.set(1 << 20, 42).unwrap();
        assert!(matches!(table.view(5).unwrap(), View::Zero(end) if end == 1 << 20));
        assert_eq!(table.entry(1 << 20).unwrap(), 42);
        file.write_at((1 << 20) + PAGE, &[1]).unwrap();
        let fresh = Table::new(file, 1 << 20);
        assert!(matches!(fresh.view(5).unwrap(), View::Zero(end) if end == PER_PAGE));
        assert_eq!(fresh.entry(PER_PAGE).unwrap(), 1);
    }

    #[test]
    fn more_pages_than_are_kept_lose_nothing() {
        let (file, table) = table(65);
        let pages = 3 * KEPT as u64;
        for n in 0..pages {
            if table.set(n * PER_PAGE + n, n + 1).unwrap() {
                table.write(&table.changed()).unwrap();
            }
        }
        assert!(table.pages().kept.len() <= KEPT);
        for n in 0..pages {
            assert_eq!(table.entry(n * PER_PAGE + n).unwrap(), n + 1, "before the last write");
        }
        table.write(&table.changed()).unwrap();
        assert!(table.changed().is_empty());
        let fresh = Table::new(file, 1 << 20);
        for n in 0..pages {
            assert_eq!(fresh.entry(n * PER_PAGE + n).unwrap(), n + 1);
        }
    }

    #[test]
    fn a_page_changed_while_it_is_written_is_written_again() {
        let (file, table) = table(2);
        table.set(0, 1).unwrap();
        let changed = table.changed();
        table.set(1, 2).unwrap();
        table.write(&changed).unwrap();
        assert_eq!(Table::new(file.clone(), 1 << 20).entry(1).unwrap(), 0);
        table.write(&table.changed()).unwrap();
        assert_eq!(Table::new(file, 1 << 20).entry(1).unwrap(), 2);
    }
}
