//! A dynamic disk that was just made: table in memory, blocks appended as they are first written, the file made to say
//! so at each flush.
//!
//! A new block reads zero in the file until it is written, so it is published as soon as it has a place, with all bits
//! of its bitmap set; holes within it stay holes of the file. A flush writes bitmaps, then the table. Where others may
//! see the file before it is whole, a barrier stands between the two, so that the table on disk never names a block
//! that is not there.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowhand_core::{Details, Erase, Error, ErrorKind, Extent, Kind, Layer, LayerId, Result, Storage};

use crate::alloc::{Allocator, Layout};
use crate::bat::FREE;
use crate::details::{self, Footers};
use crate::fixed::SHARED_UNIT;
use crate::footer::Footer;
use crate::geometry::SECTOR;
use crate::header::Header;

/// A dynamic disk that was just made.
#[derive(Debug)]
pub(crate) struct Fresh {
    file: Arc<dyn Storage>,
    footer: Footer,
    header: Header,
    layout: Layout,
    size: u64,
    /// Table entries. Only the holder of `allocator` changes one, from free to its place, once.
    bat: Box<[AtomicU32]>,
    allocator: Mutex<Allocator>,
    /// Nobody sees the file before it is whole.
    unseen: bool,
    closed: AtomicBool,
}

/// Part of a request that lies within one block.
struct Part {
    block: u32,
    /// From the block's start.
    within: u64,
    len: u64,
}

impl Fresh {
    /// Makes a dynamic disk on an empty storage: complete, with no block in it.
    pub(crate) fn create(
        file: Arc<dyn Storage>,
        footer: Footer,
        layout: Layout,
        unseen: bool,
    ) -> Result<Fresh> {
        let fresh = Fresh::without_blocks(file, footer, layout, 0, unseen);
        layout.write_front(fresh.file.as_ref(), &fresh.footer, &fresh.header)?;
        fresh.lock().put_footer(fresh.file.as_ref(), &layout, &fresh.footer.to_bytes())?;
        Ok(fresh)
    }

    /// A disk with no block in it, whose file is `file_len` bytes long.
    pub(crate) fn without_blocks(
        file: Arc<dyn Storage>,
        footer: Footer,
        layout: Layout,
        file_len: u64,
        unseen: bool,
    ) -> Fresh {
        Fresh {
            header: Header::new(layout.header_at, layout.bat_at, layout.entries, layout.block_size),
            size: footer.current_size,
            bat: (0..layout.entries).map(|_| AtomicU32::new(FREE)).collect(),
            allocator: Mutex::new(Allocator::new(file_len)),
            unseen,
            closed: AtomicBool::new(false),
            footer,
            layout,
            file,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Allocator> {
        self.allocator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, block: u32) -> u32 {
        self.bat.get(block as usize).map_or(FREE, |entry| entry.load(Ordering::Acquire))
    }

    /// Where the block's payload stands, if it has a place.
    fn payload(&self, block: u32) -> Option<u64> {
        Some(self.entry(block)).filter(|entry| *entry != FREE).map(|entry| self.layout.payload_at(entry))
    }

    /// Where the block's payload stands; it is given a place if it has none.
    fn payload_or_new(&self, block: u32) -> Result<u64> {
        if let Some(payload) = self.payload(block) {
            return Ok(payload);
        }
        let mut allocator = self.lock();
        // Another writer may have been first.
        if let Some(payload) = self.payload(block) {
            return Ok(payload);
        }
        let entry = allocator.take(self.file.as_ref(), &self.layout, block)?;
        if let Some(place) = self.bat.get(block as usize) {
            place.store(entry, Ordering::Release);
        }
        drop(allocator);
        // Here, so that it lies beside the payload on the disk; where this fails, the next flush does it.
        self.write_bitmap(block)?;
        self.lock().without_bitmap.remove(&block);
        Ok(self.layout.payload_at(entry))
    }

    fn write_bitmap(&self, block: u32) -> Result<()> {
        let at = u64::from(self.entry(block)) * SECTOR;
        let bitmap = vec![0xff; self.layout.bitmap_len() as usize];
        self.file
            .write_at(at, &bitmap)
            .map_err(|error| Error::io("cannot write a sector bitmap", error).at(at))
    }

    /// Writes the sectors of the table that hold these entries, the last one padded.
    fn write_table(&self, entries: std::ops::Range<u32>) -> Result<()> {
        const PER_SECTOR: usize = SECTOR as usize / 4;
        let first = entries.start as usize / PER_SECTOR * PER_SECTOR;
        let entries =
            self.bat.get(first..(entries.end as usize).next_multiple_of(PER_SECTOR).min(self.bat.len()));
        for (index, piece) in entries.unwrap_or_default().chunks(1 << 18).enumerate() {
            let mut bytes: Vec<u8> =
                piece.iter().flat_map(|entry| entry.load(Ordering::Acquire).to_be_bytes()).collect();
            bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0xff);
            let at = self.layout.bat_at + 4 * (first as u64 + ((index as u64) << 18));
            let failed = |error| Error::io("cannot write the block allocation table", error).at(at);
            self.file.write_at(at, &bytes).map_err(failed)?;
        }
        Ok(())
    }

    /// The part of `at..end` in its first block.
    fn part(&self, at: u64, end: u64) -> Part {
        let within = at % self.layout.block_size;
        // A disk has fewer blocks than 2^32.
        let block = (at / self.layout.block_size) as u32;
        Part { block, within, len: (end - at).min(self.layout.block_size - within) }
    }

    /// How many blocks from `block` on, up to that of `end`, have no place.
    fn free_run(&self, block: u32, end: u64) -> u64 {
        let last = end.div_ceil(self.layout.block_size) as usize;
        let entries = self.bat.get(block as usize..last).unwrap_or_default();
        entries.iter().take_while(|entry| entry.load(Ordering::Relaxed) == FREE).count() as u64
    }

    fn piece(&self, at: u64, max: u64) -> Extent {
        let part = self.part(at, at + max);
        match self.payload(part.block) {
            Some(payload) => Extent::data(part.len, Some(payload + part.within)),
            None => {
                let free = self.free_run(part.block, at + max).max(1);
                Extent::hole(max.min(free * self.layout.block_size - part.within))
            }
        }
    }

    fn check(&self, at: u64, len: u64) -> Result<u64> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Denied, "was closed, and is not written any more"));
        }
        at.checked_add(len).filter(|end| *end <= self.size).ok_or_else(|| {
            Error::invalid(format!("{len} bytes at {at} go past the end of the disk ({} bytes)", self.size))
        })
    }
}

impl Layer for Fresh {
    fn size(&self) -> u64 {
        self.size
    }

    fn granule(&self) -> u64 {
        SECTOR
    }

    fn host(&self) -> &Arc<dyn Storage> {
        &self.file
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        Ok(self.piece(at, max.min(self.size.saturating_sub(at))))
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        let found = self.piece(at, buf.len() as u64);
        if let (Kind::Data, Some(host), Some(buf)) =
            (found.kind, found.host, buf.get_mut(..found.len as usize))
        {
            self.file.read_at(host, buf).map_err(|error| Error::io("cannot read", error).at(host))?;
        }
        Ok(found)
    }

    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        let end = self.check(at, buf.len() as u64)?;
        let (mut here, mut rest) = (at, buf);
        while !rest.is_empty() {
            let part = self.part(here, end);
            let (piece, after) = rest.split_at(part.len as usize);
            let host = self.payload_or_new(part.block)? + part.within;
            self.file.write_at(host, piece).map_err(|error| Error::io("cannot write", error).at(host))?;
            here += part.len;
            rest = after;
        }
        Ok(())
    }

    fn write_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> Result<u64> {
        let end = self.check(at, len)?;
        let mut here = at;
        while here < end {
            let part = self.part(here, end);
            let whole = part.len - part.len % SHARED_UNIT;
            if whole == 0 {
                break;
            }
            let host = self.payload_or_new(part.block)? + part.within;
            let shared = self.file.copy_from(host, src, src_at + (here - at), whole);
            let done = shared.map_err(|error| Error::io("cannot share blocks", error).at(host))?;
            here += done;
            if done < part.len {
                break;
            }
        }
        Ok(here - at)
    }

    fn erase(&self, at: u64, len: u64, how: Erase) -> Result<u64> {
        let end = self.check(at, len)?;
        let mut here = at;
        while here < end {
            let part = self.part(here, end);
            let Some(payload) = self.payload(part.block) else {
                here += self.piece(here, end - here).len;
                continue;
            };
            let host = payload + part.within;
            let failed = |error| Error::io("cannot write zeros", error).at(host);
            let zero = || self.file.zero(host, part.len).map_err(failed);
            let done = match how {
                Erase::Zero => zero()?,
                Erase::Free => self.file.punch(host, part.len).map_err(failed)? || zero()?,
                // Nothing lies below that could show.
                Erase::Reveal => false,
            };
            if !done {
                break;
            }
            here += part.len;
        }
        Ok(here - at)
    }

    fn flush(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        let failed = |error| Error::io("cannot sync", error);
        // Held throughout: the table that is written names the blocks that end before the footer.
        let mut allocator = self.lock();
        while let Some(block) = allocator.without_bitmap.first().copied() {
            self.write_bitmap(block)?;
            allocator.without_bitmap.remove(&block);
        }
        allocator.put_footer(self.file.as_ref(), &self.layout, &self.footer.to_bytes())?;
        if let Some(changed) = allocator.changed.clone() {
            if !self.unseen {
                self.file.sync().map_err(failed)?;
            }
            self.write_table(changed)?;
            allocator.changed = None;
        }
        self.file.sync().map_err(failed)
    }

    fn close(&self) -> Result<()> {
        self.flush()?;
        self.closed.store(true, Ordering::Release);
        Ok(())
    }

    fn details(&self) -> Details {
        details::of_dynamic(&self.footer, Footers::MADE, &self.header, &[], self.layout.batmap().as_ref())
    }

    fn identity(&self) -> LayerId {
        LayerId(Some(self.footer.unique_id))
    }
}
