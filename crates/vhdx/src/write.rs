//! Writing a new image: blocks at the file's end, data before the entry that names it (the writing half of the layer).
//!
//! An image is written here only from its creation to its close. Blocks are only ever added, each at a place that has
//! never held anything, and their entries go to the file after their data: no log is needed for that. Changing an
//! image that existed before needs one, and is refused at opening.
//!
//! Lock order: `flushing`, then `space`, then the table's pages. Guest data is written under none of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use cowhand_core::{Erase, Error, Kind, Layer, Result, Storage};

use crate::bat::Block;
use crate::layer::VhdxLayer;

/// The file grows by this much at once, so that no write waits for another's growth; closing cuts what is left.
const GROWTH: u64 = 64 << 20;

/// What writing needs to know.
#[derive(Debug)]
pub(crate) struct Writer {
    /// Nobody sees the file before it is closed: no order is kept before the end.
    fresh: bool,
    /// The end of the last block that the file can ever have.
    most: u64,
    space: Mutex<Space>,
    flushing: Mutex<()>,
    /// The file system was asked to share blocks and cannot.
    cannot_share: AtomicBool,
}

#[derive(Debug)]
struct Space {
    /// Where the next new block goes: the end of all that is in use.
    end: u64,
    /// The file's length, `end` or more.
    grown: u64,
    /// Blocks that have a place and no entry yet.
    pending: HashMap<u64, Pending>,
    /// Places that were taken and given back untouched.
    spare: Vec<u64>,
    closed: bool,
}

#[derive(Debug)]
struct Pending {
    place: u64,
    /// Writers that are at it. All write to the same place, which reads zero where none of them has been.
    writers: usize,
    /// One of them may have written something.
    touched: bool,
}

/// A block as a writer has it.
struct Reserved {
    block: u64,
    /// Where it stands in the file.
    place: u64,
    /// It has no entry yet.
    pending: bool,
}

/// How a write to reserved blocks ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Written,
    Failed,
    Untouched,
}

impl Writer {
    /// A writer whose next block goes to `end`, where the file ends; the last one that it can need ends at `most`.
    pub(crate) fn new(end: u64, most: u64, fresh: bool) -> Self {
        let space = Space { end, grown: end, pending: HashMap::new(), spare: Vec::new(), closed: false };
        Writer {
            fresh,
            most,
            space: Mutex::new(space),
            flushing: Mutex::new(()),
            cannot_share: AtomicBool::new(false),
        }
    }

    // Every change under the lock is whole before anything can fail.
    fn space(&self) -> MutexGuard<'_, Space> {
        self.space.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn flushing(&self) -> MutexGuard<'_, ()> {
        self.flushing.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Space {
    /// A place for a new block.
    fn allocate(&mut self, file: &dyn Storage, block_size: u64, most: u64) -> Result<u64> {
        if let Some(place) = self.spare.pop() {
            return Ok(place);
        }
        let place = self.end;
        let end = place.saturating_add(block_size);
        if end > self.grown {
            let grown = end.saturating_add(GROWTH).min(most).max(end);
            file.set_len(grown).map_err(|error| Error::io("cannot make the file longer", error).at(place))?;
            self.grown = grown;
        }
        self.end = end;
        Ok(place)
    }

    /// Takes back a place that nothing was written to.
    fn give_back(&mut self, place: u64, block_size: u64) {
        self.spare.push(place);
        while let Some(n) = self.spare.iter().position(|place| place.saturating_add(block_size) == self.end) {
            self.end = self.spare.swap_remove(n);
        }
    }
}

impl VhdxLayer {
    /// Gives every block of the range a place.
    fn reserve(&self, at: u64, len: u64) -> Result<Vec<Reserved>> {
        let (writer, block_size) = (self.writer()?, self.geometry.block_size);
        let end = at.checked_add(len).filter(|end| *end <= self.geometry.size);
        let end =
            end.ok_or_else(|| Error::invalid(format!("{len} bytes at {at} go past the end of the disk")))?;
        let mut reserved = Vec::with_capacity(1 + (len / block_size) as usize);
        let mut space = writer.space();
        if space.closed {
            return Err(Error::invalid("is closed already"));
        }
        for block in at / block_size..end.div_ceil(block_size) {
            let taken = match self.block(block) {
                Ok(Block::Full(place)) => Ok((place, false)),
                Ok(_) => match space.pending.get_mut(&block) {
                    Some(pending) => {
                        pending.writers += 1;
                        Ok((pending.place, true))
                    }
                    None => space.allocate(self.file.as_ref(), block_size, writer.most).map(|place| {
                        space.pending.insert(block, Pending { place, writers: 1, touched: false });
                        (place, true)
                    }),
                },
                Err(error) => Err(error),
            };
            match taken {
                Ok((place, pending)) => reserved.push(Reserved { block, place, pending }),
                Err(error) => {
                    drop(space);
                    self.settle(&reserved, Outcome::Untouched)?;
                    return Err(error);
                }
            }
        }
        Ok(reserved)
    }

    /// Ends what [`VhdxLayer::reserve`] began: written blocks get their entries. Answers true when the table should be
    /// written back.
    fn settle(&self, reserved: &[Reserved], outcome: Outcome) -> Result<bool> {
        if reserved.iter().all(|reserved| !reserved.pending) {
            return Ok(false);
        }
        let (mut space, mut full, mut done) = (self.writer()?.space(), false, Ok(()));
        for Reserved { block, place, .. } in reserved.iter().filter(|reserved| reserved.pending) {
            // Another writer to the same block may have been first to give it its entry.
            let Some(pending) = space.pending.get_mut(block) else { continue };
            pending.writers = pending.writers.saturating_sub(1);
            pending.touched |= outcome != Outcome::Untouched;
            if outcome == Outcome::Written {
                match self.table.set(self.geometry.entry_of(*block), Block::Full(*place).encode()) {
                    Ok(many) => {
                        full |= many;
                        space.pending.remove(block);
                    }
                    Err(error) => done = Err(error),
                }
            } else if pending.writers == 0 && !pending.touched {
                space.pending.remove(block);
                space.give_back(*place, self.geometry.block_size);
            }
        }
        done.map(|()| full)
    }

    /// Does `each(file offset, range of the bytes)` for runs of reserved blocks that stand one behind the other.
    fn each_run(
        &self,
        at: u64,
        len: u64,
        reserved: &[Reserved],
        mut each: impl FnMut(u64, u64, u64) -> Result<bool>,
    ) -> Result<bool> {
        let block_size = self.geometry.block_size;
        let (mut done, mut rest) = (0, reserved);
        while let Some((first, _)) = rest.split_first() {
            let alike = rest
                .iter()
                .zip(0..)
                .take_while(|(next, n)| next.place == first.place.saturating_add(n * block_size))
                .count();
            let within = (at + done) % block_size;
            let n = (alike as u64 * block_size - within).min(len - done);
            if !each(first.place + within, done, n)? {
                return Ok(false);
            }
            done += n;
            rest = rest.get(alike..).unwrap_or_default();
        }
        Ok(true)
    }

    /// Writes guest bytes.
    pub(crate) fn write_blocks(&self, at: u64, buf: &[u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let reserved = self.reserve(at, buf.len() as u64)?;
        let written = self.each_run(at, buf.len() as u64, &reserved, |place, from, n| {
            let piece = buf.get(from as usize..(from + n) as usize).unwrap_or_default();
            self.file.write_at(place, piece).map_err(|error| Error::io("cannot write", error).at(place))?;
            Ok(true)
        });
        let full = self.settle(&reserved, if written.is_ok() { Outcome::Written } else { Outcome::Failed });
        written?;
        if full? {
            let _alone = self.writer()?.flushing();
            self.write_back()?;
        }
        Ok(())
    }

    /// Shares blocks of `src`; answers `len`, or 0 where that cannot be done.
    pub(crate) fn share_blocks(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> Result<u64> {
        let writer = self.writer()?;
        // Asked before a block is reserved for it: what turns out to be zero would then take room.
        let possible = self.file.as_fd().is_some()
            && src.as_fd().is_some()
            && !writer.cannot_share.load(Ordering::Relaxed);
        if !possible || len == 0 {
            return Ok(0);
        }
        let reserved = self.reserve(at, len)?;
        let mut any = false;
        let shared = self.each_run(at, len, &reserved, |place, from, n| {
            let failed = |error| Error::io("cannot share blocks", error).at(place);
            let done = self.file.copy_from(place, src, src_at + from, n).map_err(failed)?;
            any |= done > 0;
            Ok(done == n)
        });
        match shared {
            Ok(true) => {
                self.settle(&reserved, Outcome::Written)?;
                Ok(len)
            }
            Ok(false) => {
                self.settle(&reserved, if any { Outcome::Failed } else { Outcome::Untouched })?;
                // One range may be at odds with the file system's blocks; one of whole MiB is not.
                if at.is_multiple_of(crate::bytes::MIB)
                    && len.is_multiple_of(4096)
                    && src_at.is_multiple_of(4096)
                {
                    writer.cannot_share.store(true, Ordering::Relaxed);
                }
                Ok(0)
            }
            Err(error) => {
                self.settle(&reserved, Outcome::Failed)?;
                Err(error)
            }
        }
    }

    /// Makes guest bytes read zero. Blocks stay where they are.
    pub(crate) fn erase_blocks(&self, at: u64, len: u64, how: Erase) -> Result<u64> {
        self.writer()?;
        if how == Erase::Reveal {
            return Ok(0);
        }
        let mut done = 0;
        while done < len {
            let extent = self.extent(at + done, len - done)?;
            if let (Kind::Data, Some(host)) = (extent.kind, extent.host) {
                let failed = |error| Error::io("cannot write zeros", error).at(host);
                let freed = how == Erase::Free && self.file.punch(host, extent.len).map_err(failed)?;
                if !freed && !self.file.zero(host, extent.len).map_err(failed)? {
                    break;
                }
            }
            done += extent.len;
        }
        Ok(done)
    }

    /// Writes the table's changed pages behind the data that they name.
    fn write_back(&self) -> Result<()> {
        let changed = self.table.changed();
        if changed.is_empty() {
            return Ok(());
        }
        if !self.writer()?.fresh {
            self.sync()?;
        }
        self.table.write(&changed)
    }

    fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|error| Error::io("cannot sync", error))
    }

    /// Data, then the table, then nothing is lost any more.
    pub(crate) fn flush_all(&self) -> Result<()> {
        let writer = self.writer()?;
        let _alone = writer.flushing();
        self.cut(&mut writer.space())?;
        self.write_back()?;
        self.sync()
    }

    /// Takes back what the file has grown beyond its last block.
    fn cut(&self, space: &mut Space) -> Result<()> {
        if space.grown > space.end {
            self.file.set_len(space.end).map_err(|error| Error::io("cannot set the file's length", error))?;
            space.grown = space.end;
        }
        Ok(())
    }

    /// Flushes; what comes after is refused.
    pub(crate) fn close_all(&self) -> Result<()> {
        self.writer()?.space().closed = true;
        self.flush_all()
    }
}

#[cfg(test)]
mod tests;
