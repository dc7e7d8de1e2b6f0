//! The block allocation table of an image that is read: pages of it, on demand.

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
/// Pages that one call looks through for a block that is not free: 2 TiB of 512 KiB blocks.
const LOOK_AHEAD: u64 = 256;

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
