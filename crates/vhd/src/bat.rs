//! The block allocation table: pages of it on demand while an image is read, the whole of it once it is written.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cowhand_core::{Error, Result, Storage};

use crate::cache::Cache;
use crate::geometry::SECTOR;
use crate::header::Header;

/// The entry of a block that is not in the file.
pub(crate) const FREE: u32 = u32::MAX;

const PAGE: u64 = 64 << 10;
const PER_PAGE: u64 = PAGE / 4;
/// 2 TiB of 2 MiB blocks.
const CACHED: u64 = 4 << 20;
/// Entries that one call looks through for a block that is not free: 2 TiB of 512 KiB blocks.
const LOOK_AHEAD: u64 = 256 * PER_PAGE;
/// Entries in what a disk writes whole.
const PER_SECTOR: u64 = SECTOR / 4;
/// The longest table that is kept in memory, in entries: a disk of the largest size in 256 KiB blocks.
pub(crate) const MOST_WRITABLE: u64 = 1 << 23;

/// The table.
#[derive(Debug)]
pub(crate) struct Bat {
    at: u64,
    /// Of the disk's blocks; the table may be longer.
    entries: u64,
    /// All there are.
    max_entries: u64,
    pages: Cache,
    whole: OnceLock<Whole>,
}

/// What writing keeps.
#[derive(Debug)]
struct Whole {
    entries: Box<[AtomicU32]>,
    /// Sectors of the table that the file does not have yet.
    dirty: Mutex<BTreeSet<u64>>,
}

impl Whole {
    fn of(entries: Box<[AtomicU32]>) -> Whole {
        Whole { entries, dirty: Mutex::default() }
    }

    fn dirty(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Entries that changed, as they are to stand in the file.
#[derive(Debug)]
pub(crate) struct ChangedEntries {
    sectors: Range<u64>,
    at: u64,
    bytes: Vec<u8>,
}

impl ChangedEntries {
    pub(crate) fn write(&self, file: &dyn Storage) -> Result<()> {
        file.write_at(self.at, &self.bytes)
            .map_err(|error| Error::io("cannot write the block allocation table", error).at(self.at))
    }
}

impl Bat {
    /// The table of `header`; only the first `blocks` entries are the disk's.
    pub(crate) fn new(header: &Header, blocks: u64) -> Bat {
        let max_entries = u64::from(header.max_entries);
        Bat {
            at: header.bat_at,
            entries: blocks.min(max_entries),
            max_entries,
            pages: Cache::new(PAGE, CACHED),
            whole: OnceLock::new(),
        }
    }

    /// The table of a new disk, whose blocks are all free.
    pub(crate) fn of_new(header: &Header) -> Bat {
        let bat = Bat::new(header, u64::from(header.max_entries));
        let entries = (0..header.max_entries).map(|_| AtomicU32::new(FREE)).collect();
        // Never set before: the table was made here.
        let _ = bat.whole.set(Whole::of(entries));
        bat
    }

    /// Where the entry of `block` stands in the file.
    pub(crate) fn entry_at(&self, block: u64) -> u64 {
        self.at + 4 * block
    }

    /// Reads all of it into memory, so that it can be changed. Errors: it is longer than any disk's of a usual block
    /// size.
    pub(crate) fn load(&self, file: &dyn Storage) -> Result<()> {
        if self.whole.get().is_some() {
            return Ok(());
        }
        if self.max_entries > MOST_WRITABLE {
            return Err(Error::unsupported(format!(
                "the block allocation table has {} entries; one with more than {MOST_WRITABLE} is not changed",
                self.max_entries
            ))
            .hint("convert the image to one with larger blocks"));
        }
        let mut entries = Vec::with_capacity(self.max_entries as usize);
        let mut bytes = vec![0; PAGE as usize];
        while (entries.len() as u64) < self.max_entries {
            let first = entries.len() as u64;
            let len = 4 * (self.max_entries - first).min(PER_PAGE);
            let bytes = bytes.get_mut(..len as usize).unwrap_or_default();
            let at = self.entry_at(first);
            file.read_at(at, bytes).map_err(|error| unreadable(error, at))?;
            let words = bytes.as_chunks::<4>().0.iter();
            entries.extend(words.map(|word| AtomicU32::new(u32::from_be_bytes(*word))));
        }
        // Who was first read the same.
        let _ = self.whole.set(Whole::of(entries.into()));
        Ok(())
    }

    /// The entries that are not free, those past the disk's end among them: (block, sector). Once it was loaded.
    pub(crate) fn in_use(&self) -> impl Iterator<Item = (u64, u32)> {
        let entries = self.whole.get().map(|whole| &*whole.entries).unwrap_or_default();
        let loaded = entries.iter().map(|entry| entry.load(Ordering::Acquire));
        (0..).zip(loaded).filter(|(_, entry)| *entry != FREE)
    }

    fn page(&self, file: &dyn Storage, page: u64) -> Result<Arc<[u8]>> {
        self.pages.get(page, || {
            let first = page * PER_PAGE;
            let len = 4 * self.entries.saturating_sub(first).min(PER_PAGE);
            let mut bytes = vec![0; len as usize];
            let at = self.entry_at(first);
            file.read_at(at, &mut bytes).map_err(|error| unreadable(error, at))?;
            Ok(bytes.into())
        })
    }

    /// The entry of `block`, which must be one of the disk's: the sector at which its bitmap stands, or `None`.
    pub(crate) fn get(&self, file: &dyn Storage, block: u64) -> Result<Option<u32>> {
        let entry = match self.whole.get() {
            Some(whole) => whole.entries.get(block as usize).map(|entry| entry.load(Ordering::Acquire)),
            None => self
                .page(file, block / PER_PAGE)?
                .as_chunks::<4>()
                .0
                .get((block % PER_PAGE) as usize)
                .map(|bytes| u32::from_be_bytes(*bytes)),
        };
        Ok(entry.filter(|entry| *entry != FREE))
    }

    /// Changes the entry of `block` in memory. Once it was loaded.
    pub(crate) fn set(&self, block: u64, entry: u32) {
        let Some(whole) = self.whole.get() else { return };
        if let Some(place) = whole.entries.get(block as usize) {
            place.store(entry, Ordering::Release);
            whole.dirty().insert(block / PER_SECTOR);
        }
    }

    /// Takes the entries that changed, as what is to be written; the caller keeps others from changing them meanwhile.
    pub(crate) fn take_changed(&self) -> Vec<ChangedEntries> {
        let Some(whole) = self.whole.get() else { return Vec::new() };
        let sectors: Vec<u64> = std::mem::take(&mut *whole.dirty()).into_iter().collect();
        let runs = sectors.chunk_by(|a, b| a + 1 == *b);
        runs.filter_map(|run| {
            let sectors = *run.first()?..*run.last()? + 1;
            let first = sectors.start * PER_SECTOR;
            let last = (sectors.end * PER_SECTOR).min(self.max_entries);
            let entries = whole.entries.get(first as usize..last as usize)?;
            let bytes =
                entries.iter().flat_map(|entry| entry.load(Ordering::Acquire).to_be_bytes()).collect();
            Some(ChangedEntries { sectors, at: self.entry_at(first), bytes })
        })
        .collect()
    }

    /// They could not be written: they still are to be.
    pub(crate) fn put_back(&self, changed: &[ChangedEntries]) {
        if let Some(whole) = self.whole.get() {
            whole.dirty().extend(changed.iter().flat_map(|run| run.sectors.clone()));
        }
    }

    /// How many blocks from `block` on, which must be one of the disk's, are not in the file. It looks ahead so far
    /// that an empty disk is one run, and stops before `end`.
    pub(crate) fn free_run(&self, file: &dyn Storage, block: u64, end: u64) -> Result<u64> {
        let end = end.min(self.entries).min(block + LOOK_AHEAD);
        if let Some(whole) = self.whole.get() {
            let entries = whole.entries.get(block as usize..end as usize).unwrap_or_default();
            return Ok(
                entries.iter().take_while(|entry| entry.load(Ordering::Relaxed) == FREE).count() as u64
            );
        }
        let mut at = block;
        while at < end {
            let page = self.page(file, at / PER_PAGE)?;
            let from = (at % PER_PAGE) as usize;
            let to = (end - (at - at % PER_PAGE)).min(PER_PAGE) as usize;
            let entries = page.as_chunks::<4>().0.get(from..to).unwrap_or_default();
            // Whole lines first: nearly all of a table that is scanned is free.
            let free = [0xff; 4];
            let lines = entries
                .chunks(64)
                .take_while(|line| line.as_flattened().iter().fold(0xff, |all, b| all & b) == 0xff);
            let whole = lines.map(<[_]>::len).sum::<usize>();
            let more =
                entries.get(whole..).unwrap_or_default().iter().take_while(|entry| **entry == free).count();
            at += (whole + more) as u64;
            if whole + more < to - from {
                break;
            }
        }
        Ok(at - block)
    }
}

fn unreadable(error: std::io::Error, at: u64) -> Error {
    Error::io("cannot read the block allocation table", error).at(at)
}
