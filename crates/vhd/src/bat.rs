//! The block allocation table of an image that is read: pages of it, on demand, or all of it in runs.

use std::ops::Range;
use std::sync::Arc;

use cowhand_core::{Error, Result, Storage};

use crate::cache::Cache;
use crate::header::Header;

/// The entry of a block that is not in the file.
pub(crate) const FREE: u32 = u32::MAX;

const PAGE: u64 = 64 << 10;
const PER_PAGE: u64 = PAGE / 4;
/// 2 TiB of 2 MiB blocks.
const CACHED: u64 = 4 << 20;
/// What is read at once where all of the table is.
const LARGE_PIECE: u64 = 1 << 20;
/// Pages that one call looks through for a block that is not free: 2 TiB of 512 KiB blocks.
const LOOK_AHEAD: u64 = 256;

/// Shows the whole table, entries past the disk's last block among them, to `see` in runs of blocks whose entries are
/// alike; `see` may end it.
pub(crate) fn runs(
    file: &dyn Storage,
    header: &Header,
    see: &mut dyn FnMut(Range<u64>, u32) -> Result<()>,
) -> Result<()> {
    let entries = u64::from(header.max_entries);
    let failed = |at| move |error| Error::io("cannot read the block allocation table", error).at(at);
    let mut bytes = vec![0; (4 * entries).min(LARGE_PIECE) as usize];
    let mut run = 0..0;
    let mut alike = FREE;
    let mut data = 0..0;
    while run.end < entries {
        let at = header.bat_at + 4 * run.end;
        if !data.contains(&at) {
            data = file.data_at(at).map_err(failed(at))?.unwrap_or(u64::MAX..u64::MAX);
        }
        // A hole is zeros, however long.
        let hole = (data.start.saturating_sub(at) / 4).min(entries - run.end);
        if hole > 0 {
            if alike != 0 && !run.is_empty() {
                see(run.clone(), alike)?;
                run.start = run.end;
            }
            (run.end, alike) = (run.end + hole, 0);
            continue;
        }
        let piece = bytes.get_mut(..(4 * (entries - run.end)).min(LARGE_PIECE) as usize).unwrap_or_default();
        file.read_at(at, piece).map_err(failed(at))?;
        for line in piece.as_chunks::<4>().0.chunk_by(|one, other| one == other) {
            // Never empty: a line is of at least one entry.
            let entry = line.first().map_or(FREE, |entry| u32::from_be_bytes(*entry));
            if entry != alike && !run.is_empty() {
                see(run.clone(), alike)?;
                run.start = run.end;
            }
            (run.end, alike) = (run.end + line.len() as u64, entry);
        }
    }
    if run.is_empty() { Ok(()) } else { see(run, alike) }
}

/// The table, read a page at a time.
#[derive(Debug)]
pub(crate) struct Bat {
    at: u64,
    entries: u64,
    pages: Cache,
}

impl Bat {
    /// The table of `header`; only the first `blocks` entries are looked at.
    pub(crate) fn new(header: &Header, blocks: u64) -> Bat {
        Bat {
            at: header.bat_at,
            entries: blocks.min(u64::from(header.max_entries)),
            pages: Cache::new(PAGE, CACHED),
        }
    }

    /// Where the entry of `block` stands in the file.
    pub(crate) fn entry_at(&self, block: u64) -> u64 {
        self.at + 4 * block
    }

    fn page(&self, file: &dyn Storage, page: u64) -> Result<Arc<[u8]>> {
        self.pages.get(page, || {
            let first = page * PER_PAGE;
            let len = 4 * self.entries.saturating_sub(first).min(PER_PAGE);
            let mut bytes = vec![0; len as usize];
            let at = self.entry_at(first);
            file.read_at(at, &mut bytes)
                .map_err(|error| Error::io("cannot read the block allocation table", error).at(at))?;
            Ok(bytes.into())
        })
    }

    /// The entry of `block`, which must be one of the disk's: the sector at which its bitmap stands, or `None`.
    pub(crate) fn get(&self, file: &dyn Storage, block: u64) -> Result<Option<u32>> {
        let page = self.page(file, block / PER_PAGE)?;
        let entry = page
            .as_chunks::<4>()
            .0
            .get((block % PER_PAGE) as usize)
            .map_or(FREE, |bytes| u32::from_be_bytes(*bytes));
        Ok((entry != FREE).then_some(entry))
    }

    /// How many blocks from `block` on, which must be one of the disk's, are not in the file. It looks ahead so far
    /// that an empty disk is one run, and stops before `end`.
    pub(crate) fn free_run(&self, file: &dyn Storage, block: u64, end: u64) -> Result<u64> {
        let end = end.min(self.entries);
        let mut at = block;
        for _ in 0..LOOK_AHEAD {
            if at >= end {
                break;
            }
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

#[cfg(test)]
mod tests {
    use cowhand_core::MemoryStorage;

    use super::*;

    #[test]
    fn a_whole_table_is_runs() {
        const ENTRIES: u32 = 600_000;
        let file = MemoryStorage::new();
        let header = Header::new(512, 1536, ENTRIES, 2 << 20);
        file.set_len(header.bat_end()).unwrap();
        // The first piece ends inside the run of free entries, and what was never written is zero.
        let runs = [(0, 1, 7), (1, 3, 9), (3, 400_000, FREE), (400_000, 400_001, 0x1234_5678)];
        for (from, to, entry) in runs {
            file.write_at(header.bat_at + 4 * from, &u32::to_be_bytes(entry).repeat((to - from) as usize))
                .unwrap();
        }
        let mut seen = Vec::new();
        super::runs(&file, &header, &mut |blocks, entry| {
            seen.push((blocks.start, blocks.end, entry));
            Ok(())
        })
        .unwrap();
        let zeros = (400_001, u64::from(ENTRIES), 0);
        assert_eq!(seen, runs.into_iter().chain([zeros]).collect::<Vec<_>>());
    }
}
