//! The BAT and the sector bitmaps as far as they are in memory: the pages lately looked at, and the sectors of them that
//! changed and wait to be written.
//!
//! Every change is one step to who reads: it is made under the lock that they are read under. That lock is held while a
//! page is read, never while guest data is.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use cowhand_core::{Error, Result, Storage};

use crate::bytes;
use crate::draft::Sector;
use crate::journal::MOST;

/// Bytes of a page. What is kept in pages is whole MiB, so a page never reaches past it.
pub(crate) const PAGE: u64 = 64 << 10;
/// Bytes of a sector of the file: what is written of a page.
pub(crate) const SECTOR: u64 = 4096;
/// Pages kept: 16 MiB.
const KEPT: usize = 256;
/// Bits of a sector of a bitmap.
const SECTOR_BITS: u64 = SECTOR * 8;

pub(crate) type Page = Arc<Vec<u8>>;

/// A change of the metadata.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    /// The BAT entry at this file offset.
    Entry { at: u64, value: u64 },
    /// Bits of the sector bitmap that begins at this file offset, all in one page.
    Bits { at: u64, bits: Range<u64>, present: bool },
}

impl Edit {
    fn what(&self) -> &'static str {
        match self {
            Edit::Entry { .. } => "BAT",
            Edit::Bits { .. } => "sector bitmap",
        }
    }

    /// The bytes of the file that it may change.
    fn bytes(&self) -> Range<u64> {
        match self {
            Edit::Entry { at, .. } => *at..at + 8,
            Edit::Bits { at, bits, .. } => at + bits.start / 8..at + bits.end.div_ceil(8),
        }
    }

    fn page(&self) -> u64 {
        self.bytes().start / PAGE
    }

    /// The sectors of its page that it may change, a bit for each.
    fn sectors(&self) -> u16 {
        let Range { start, end } = self.bytes();
        let first = (start % PAGE / SECTOR) as u32;
        let count = (end.saturating_sub(1) / SECTOR + 1).saturating_sub(start / SECTOR) as u32;
        (u16::MAX >> 16u32.saturating_sub(count).min(15)) << first
    }

    /// Changes the page; answers the sectors that are another now.
    fn apply(&self, page: &mut [u8]) -> u16 {
        match self {
            Edit::Entry { at, value } => {
                let within = (at % PAGE) as usize;
                let value = value.to_le_bytes();
                match page.get_mut(within..within + 8) {
                    Some(entry) if entry != value => {
                        entry.copy_from_slice(&value);
                        self.sectors()
                    }
                    _ => 0,
                }
            }
            Edit::Bits { bits, present, .. } => {
                // The bitmap begins on a whole MiB, and so with a page.
                let start = bits.start % (PAGE * 8);
                let bits = start..start + (bits.end - bits.start);
                let mut changed = 0;
                for (number, sector) in (0u64..).zip(page.chunks_mut(SECTOR as usize)) {
                    let first = number * SECTOR_BITS;
                    let here = bits.start.clamp(first, first + SECTOR_BITS) - first
                        ..bits.end.clamp(first, first + SECTOR_BITS) - first;
                    if set_bits(sector, here, *present) {
                        changed |= 1 << number;
                    }
                }
                changed
            }
        }
    }
}

/// Sets bits, which count from the lowest, or clears them; answers whether any was otherwise.
fn set_bits(bytes: &mut [u8], bits: Range<u64>, present: bool) -> bool {
    let mut changed = false;
    let mut bit = bits.start;
    while bit < bits.end {
        let end = bits.end.min((bit / 8 + 1) * 8);
        // Within one byte.
        let mask = (0xffu16 >> (8 - (end - bit))) << (bit % 8);
        if let Some(byte) = bytes.get_mut((bit / 8) as usize) {
            let new = if present { *byte | mask as u8 } else { *byte & !(mask as u8) };
            changed |= new != *byte;
            *byte = new;
        }
        bit = end;
    }
    changed
}

/// What the file has at some place.
pub(crate) enum Look {
    /// Zeros up to this file offset, which begins a page.
    Zero(u64),
    /// The page of this file offset.
    Page(Page),
}

/// The pages of one file.
#[derive(Debug)]
pub(crate) struct Pages {
    file: Arc<dyn Storage>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// By their number in the file.
    pages: HashMap<u64, Slot>,
    /// File offsets that are known to read zero, except where a page is kept.
    hole: Range<u64>,
    /// Sectors that are dirty or leaving.
    waiting: usize,
    /// Counts uses: which page was not used for longest?
    clock: u64,
}

#[derive(Debug)]
struct Slot {
    page: Page,
    used: u64,
    /// Sectors that the file has otherwise, a bit for each.
    dirty: u16,
    /// Sectors that somebody is writing to the file.
    leaving: u16,
}

impl Slot {
    fn waiting(&self) -> usize {
        (self.dirty | self.leaving).count_ones() as usize
    }
}

impl Pages {
    pub(crate) fn new(file: Arc<dyn Storage>) -> Pages {
        Pages { file, kept: Mutex::default() }
    }

    // A panic elsewhere cannot leave the pages half-changed: nothing in here panics between two changes.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The page of the file offset `at`, which is part of `what`.
    pub(crate) fn page(&self, what: &str, at: u64) -> Result<Page> {
        self.load(&mut self.kept(), what, at / PAGE)
    }

    /// As [`Pages::page`], but where the file has a hole that is said of all of it.
    pub(crate) fn look(&self, what: &str, at: u64) -> Result<Look> {
        let mut kept = self.kept();
        let number = at / PAGE;
        if !kept.pages.contains_key(&number) {
            let start = number * PAGE;
            let hole = self.hole(&mut kept, what, start)?;
            if hole.contains(&start) && hole.end >= start + PAGE {
                // Kept pages in it are not in the file yet.
                let next = kept.pages.keys().filter(|other| **other > number).min();
                let end = hole.end.min(next.map_or(u64::MAX, |next| next * PAGE));
                return Ok(Look::Zero(end / PAGE * PAGE));
            }
        }
        self.load(&mut kept, what, number).map(Look::Page)
    }

    /// The last hole that was found, if `at` is in it; otherwise the file is asked.
    fn hole(&self, kept: &mut Kept, what: &str, at: u64) -> Result<Range<u64>> {
        if !kept.hole.contains(&at) {
            let failed = |error| Error::io(format!("cannot find the holes of the {what}"), error).at(at);
            kept.hole = at..match self.file.data_at(at).map_err(failed)? {
                Some(data) => data.start,
                None => self.file.len().map_err(failed)?,
            };
        }
        Ok(kept.hole.clone())
    }

    fn load(&self, kept: &mut Kept, what: &str, number: u64) -> Result<Page> {
        kept.clock += 1;
        let used = kept.clock;
        if let Some(slot) = kept.pages.get_mut(&number) {
            slot.used = used;
            return Ok(slot.page.clone());
        }
        let mut page = vec![0; PAGE as usize];
        bytes::read(self.file.as_ref(), what, number * PAGE, &mut page)?;
        while kept.pages.len() >= KEPT {
            let clean = kept.pages.iter().filter(|(_, slot)| slot.waiting() == 0);
            let Some(oldest) = clean.min_by_key(|(_, slot)| slot.used).map(|(number, _)| *number) else {
                break;
            };
            kept.pages.remove(&oldest);
        }
        let page = Arc::new(page);
        kept.pages.insert(number, Slot { page: page.clone(), used, dirty: 0, leaving: 0 });
        Ok(page)
    }

    /// Makes all of these changes, in memory, in one step. False: too much would wait then, and nothing was changed;
    /// what waits is to be written first.
    pub(crate) fn publish(&self, edits: &[Edit]) -> Result<bool> {
        let mut kept = self.kept();
        let mut more = 0;
        for edit in edits {
            self.load(&mut kept, edit.what(), edit.page())?;
            let slot = kept.pages.get(&edit.page());
            more +=
                slot.map_or(0, |slot| (edit.sectors() & !(slot.dirty | slot.leaving)).count_ones()) as usize;
        }
        if kept.waiting > 0 && kept.waiting + more > MOST {
            return Ok(false);
        }
        for edit in edits {
            // Always there: what was used last is not the first to go.
            let Some(slot) = kept.pages.get_mut(&edit.page()) else { continue };
            let before = slot.waiting();
            slot.dirty |= edit.apply(Arc::make_mut(&mut slot.page).as_mut_slice());
            let more = slot.waiting() - before;
            kept.waiting += more;
        }
        Ok(true)
    }

    /// All sectors that changed, as they are now and to be written. The caller says [`Pages::written`] before anybody
    /// asks again.
    pub(crate) fn take(&self) -> Vec<Sector> {
        let mut kept = self.kept();
        let mut sectors = Vec::new();
        for (number, slot) in kept.pages.iter_mut().filter(|(_, slot)| slot.dirty != 0) {
            let (chunks, _) = slot.page.as_chunks::<{ SECTOR as usize }>();
            for (n, bytes) in chunks.iter().enumerate().filter(|(n, _)| slot.dirty >> n & 1 == 1) {
                sectors.push(Sector { at: number * PAGE + n as u64 * SECTOR, bytes: Box::new(*bytes) });
            }
            slot.leaving = std::mem::take(&mut slot.dirty);
        }
        sectors.sort_unstable_by_key(|sector| sector.at);
        sectors
    }

    /// What was taken is in the file, or could not be written.
    pub(crate) fn written(&self, done: bool) {
        let mut kept = self.kept();
        kept.hole = 0..0;
        let mut fewer = 0;
        for slot in kept.pages.values_mut() {
            let before = slot.waiting();
            let left = std::mem::take(&mut slot.leaving);
            if !done {
                slot.dirty |= left;
            }
            fewer += before - slot.waiting();
        }
        kept.waiting -= fewer;
    }

    /// Nothing waits to be written.
    pub(crate) fn is_clean(&self) -> bool {
        self.kept().waiting == 0
    }

    /// These bytes of the file hold other metadata from now on, or none: what is known of them is forgotten.
    pub(crate) fn forget(&self, range: Range<u64>) {
        let mut kept = self.kept();
        kept.hole = 0..0;
        kept.pages.retain(|number, _| (number + 1) * PAGE <= range.start || number * PAGE >= range.end);
        kept.waiting = kept.pages.values().map(Slot::waiting).sum();
    }

    /// The file has these sectors now.
    pub(crate) fn replaced(&self, sectors: &[Sector]) {
        let mut kept = self.kept();
        kept.hole = 0..0;
        for sector in sectors {
            if let Some(slot) = kept.pages.get_mut(&(sector.at / PAGE)) {
                let within = (sector.at % PAGE) as usize;
                let page = Arc::make_mut(&mut slot.page);
                if let Some(bytes) = page.get_mut(within..within + SECTOR as usize) {
                    bytes.copy_from_slice(sector.bytes.as_slice());
                }
            }
        }
    }
}
