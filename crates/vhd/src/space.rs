//! The file's space: where the next block goes, what was freed, and the footer that moves out of the way.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use cowhand_core::{Error, ErrorKind, Result, Storage};

use crate::bat::FREE;
use crate::check::places::Places;
use crate::footer::FOOTER_LEN;
use crate::geometry::SECTOR;

/// Blocks, and bytes, by which the file grows at once, at most; always one block.
const MOST_GROWTH: u64 = 64;
const MOST_BYTES: u64 = 256 << 20;
/// Zeros that are written at once.
const ZEROS: u64 = 1 << 20;

/// A place for a block: bitmap and payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Where the bitmap goes.
    pub(crate) at: u64,
    /// From here on it reads zero; in front stands whatever the file held there.
    pub(crate) clean_from: u64,
}

impl Place {
    /// The value of the block's table entry. A place is never handed out that it cannot say.
    pub(crate) fn entry(&self) -> u32 {
        (self.at / SECTOR) as u32
    }
}

/// The space behind the metadata.
#[derive(Debug)]
pub(crate) struct Space {
    /// Bytes of a block with its bitmap.
    block_len: u64,
    bitmap_len: u64,
    /// Payload stands on multiples of this.
    alignment: u64,
    /// Ranges that nothing uses, in front of `end`, by their start: its end.
    free: BTreeMap<u64, u64>,
    /// Starts of those that hold a block.
    fitting: BTreeSet<u64>,
    /// Where what is used ends.
    end: u64,
    /// Where the footer stands, or is to stand: nothing is used from here on.
    data_end: u64,
    file_len: u64,
    /// Between this and `data_end` the file reads zero.
    clean_from: u64,
    growth: u64,
    /// The file was made longer than it needs to be, or needs less than it did.
    loose: bool,
}

/// What is known of a file's space.
#[derive(Debug)]
pub(crate) struct Known {
    /// Ranges that nothing uses, in front of `end`.
    pub(crate) free: Vec<Range<u64>>,
    /// Where what is used ends.
    pub(crate) end: u64,
    /// Where the footer stands.
    pub(crate) data_end: u64,
    /// The file's bytes.
    pub(crate) file_len: u64,
}

/// What the look before the first write tells of the space.
#[derive(Debug)]
pub(crate) struct Ground {
    /// Ranges between the blocks that nothing uses.
    pub(crate) free: Vec<Range<u64>>,
    /// Where what is used ends.
    pub(crate) end: u64,
    /// Where the metadata ends.
    pub(crate) metadata_end: u64,
    /// Where the disk's last block stands, and the bytes it has, if it has no room for more.
    pub(crate) short: Option<(u64, u64)>,
}

impl Ground {
    /// Of a file whose blocks, of `block_len` bytes with their bitmaps, go no further than `data_end`. What lies in front
    /// of the first block is left alone: others keep room there for a longer table.
    pub(crate) fn of(places: &Places, block_len: u64, data_end: u64) -> Ground {
        let metadata_end = places.metadata().iter().map(|place| place.range.end).max().unwrap_or(0);
        let mut end = places.end();
        let mut gaps: Vec<Range<u64>> = places.gaps(end).collect();
        let first = places.blocks().map(|(_, range)| range.start).next().unwrap_or(u64::MAX);
        gaps.retain(|gap| gap.start > first);
        let mut short = None;
        for (_, Range { start, end: cut }) in
            places.blocks().filter(|(_, range)| range.end - range.start < block_len)
        {
            // The disk has less of this one. Its room is whole where that is free.
            let whole = start + block_len;
            if cut == end && whole <= data_end {
                end = whole;
            } else if let Some(gap) = gaps.iter_mut().find(|gap| gap.start == cut && gap.end >= whole) {
                gap.start = whole;
            } else {
                short = Some((start, cut - start));
            }
        }
        // What is not in whole sectors at the edges is the metadata's.
        let free = gaps
            .into_iter()
            .map(|gap| gap.start.next_multiple_of(SECTOR)..gap.end / SECTOR * SECTOR)
            .filter(|gap| !gap.is_empty());
        Ground {
            free: free.collect(),
            end: end.next_multiple_of(SECTOR),
            metadata_end: metadata_end.next_multiple_of(SECTOR),
            short,
        }
    }
}

impl Space {
    /// For blocks of `block_len` bytes with their bitmaps of `bitmap_len`, whose payload is aligned to `alignment`.
    pub(crate) fn new(block_len: u64, bitmap_len: u64, alignment: u64, known: Known) -> Space {
        let mut space = Space {
            block_len,
            bitmap_len,
            alignment,
            free: BTreeMap::new(),
            fitting: BTreeSet::new(),
            end: known.end,
            data_end: known.data_end,
            file_len: known.file_len,
            clean_from: u64::MAX,
            growth: 4,
            loose: false,
        };
        for range in known.free {
            space.insert(range);
        }
        space
    }

    /// Where the footer stands: blocks end before.
    pub(crate) fn data_end(&self) -> u64 {
        self.data_end
    }

    pub(crate) fn file_len(&self) -> u64 {
        self.file_len
    }

    /// The first place at or behind `start` whose payload is aligned.
    fn aligned(&self, start: u64) -> u64 {
        (start + self.bitmap_len).next_multiple_of(self.alignment) - self.bitmap_len
    }

    fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.free.insert(range.start, range.end);
        if range.end - range.start >= self.block_len {
            self.fitting.insert(range.start);
        }
    }

    fn remove(&mut self, start: u64) -> Option<u64> {
        self.fitting.remove(&start);
        self.free.remove(&start)
    }

    /// A place for a block, aligned where the hole it is in allows that. `footer` is put at the file's new end where it
    /// must grow, and is durable there (`barrier`) before anything is given the old one's place. Errors: no room on the
    /// device; further from the start than a table entry says.
    pub(crate) fn take(
        &mut self,
        file: &dyn Storage,
        footer: &[u8],
        barrier: &dyn Fn() -> Result<()>,
    ) -> Result<Place> {
        if let Some(start) = self.fitting.first().copied() {
            let end = self.remove(start).unwrap_or(start);
            let aligned = self.aligned(start);
            let at = if aligned + self.block_len <= end { aligned } else { start };
            self.insert_if_useful(start..at);
            self.insert_if_useful(at + self.block_len..end);
            return Ok(Place { at, clean_from: u64::MAX });
        }
        let at = self.aligned(self.end);
        if at / SECTOR >= u64::from(FREE) {
            return Err(Error::new(
                ErrorKind::NoSpace,
                "the file has reached 2 TiB, and a table entry says no place behind that",
            )
            .hint("convert the image to vhdx"));
        }
        if at + self.block_len > self.data_end {
            self.extend(file, at, self.block_len, footer, barrier)?;
        }
        self.end = at + self.block_len;
        Ok(Place { at, clean_from: self.clean_from })
    }

    /// Room for `len` bytes that are no block's, behind all that is used. The footer moves as for [`Space::take`].
    pub(crate) fn reserve(
        &mut self,
        file: &dyn Storage,
        len: u64,
        footer: &[u8],
        barrier: &dyn Fn() -> Result<()>,
    ) -> Result<u64> {
        let at = self.end.next_multiple_of(SECTOR);
        if at + len > self.data_end {
            self.extend(file, at, len, footer, barrier)?;
        }
        self.end = at + len;
        Ok(at)
    }

    /// Where the first hole is that holds a block.
    pub(crate) fn first_hole(&self) -> Option<u64> {
        self.fitting.first().copied()
    }

    /// Gives nothing out of `range` any more. Answers what of it was free; to be given back, or used otherwise.
    pub(crate) fn withhold(&mut self, range: &Range<u64>) -> Vec<Range<u64>> {
        let all = self.free.range(..range.end).filter(|(_, end)| **end > range.start);
        let all: Vec<Range<u64>> = all.map(|(start, end)| *start..*end).collect();
        let mut held = Vec::new();
        for Range { start, end } in all {
            self.remove(start);
            self.insert(start..range.start.max(start));
            self.insert(range.end.min(end)..end);
            held.push(range.start.max(start)..range.end.min(end));
        }
        held
    }

    /// Nothing is used in `range`, which ends where the first block stands.
    pub(crate) fn free_front(&mut self, range: Range<u64>) {
        while let Some((&start, _)) = self.free.range(..range.end).next() {
            self.remove(start);
        }
        self.insert(range);
    }

    /// Nothing is used from `end` on, whatever was known before.
    pub(crate) fn empty_from(&mut self, end: u64) {
        self.free.clear();
        self.fitting.clear();
        self.lower(end.min(self.end));
    }

    /// No block is put in front of this.
    pub(crate) fn front(&self) -> u64 {
        self.free.keys().next().map_or(self.end, |start| self.end.min(*start))
    }

    /// What is left of a range: an edge that holds no block is not worth to be known.
    fn insert_if_useful(&mut self, range: Range<u64>) {
        if range.end.saturating_sub(range.start) >= self.block_len {
            self.insert(range);
        }
    }

    /// Makes room for `len` bytes at `at`, and for some blocks more.
    fn extend(
        &mut self,
        file: &dyn Storage,
        at: u64,
        len: u64,
        footer: &[u8],
        barrier: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let pitch = self.block_len.next_multiple_of(self.alignment);
        let more = (self.growth - 1).min(MOST_BYTES / pitch);
        let mut end = at + len + pitch * more;
        // The footer's write makes the file longer: at no moment does it end without one.
        let put = |end: u64| file.write_at(end, footer);
        let (old_end, old_len) = (self.data_end, self.file_len);
        let mut longer = put(end);
        // Room for some more may not be there, and for one may.
        if longer.as_ref().is_err_and(|error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge)
        }) {
            end = at + len;
            longer = file.set_len(old_len).and_then(|()| put(end));
        }
        let longer = longer
            .map_err(|error| Error::io("cannot make it longer for another block", error).at(old_len))
            .and_then(|()| barrier());
        if let Err(error) = longer {
            // The old footer stands where it stood. Cut off again, it is at the end; where it is not, the copy at the
            // front counts, and the file is cut when it is closed.
            self.loose = true;
            let _ = file.set_len(old_len);
            return Err(error);
        }
        self.growth = (self.growth * 2).min(MOST_GROWTH);
        self.loose = true;
        self.data_end = end;
        self.file_len = end + FOOTER_LEN;
        // Only when the old footer is gone is it known what is zero.
        let clean_from = std::mem::replace(&mut self.clean_from, u64::MAX);
        make_zero(file, old_end, old_len - old_end)?;
        self.clean_from = clean_from.min(old_end);
        Ok(())
    }

    /// Takes back a range that nothing in the file refers to any more and nobody uses.
    pub(crate) fn give_back(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if let Some((&before, &until)) = self.free.range(..start).next_back()
            && until == start
        {
            self.remove(before);
            start = before;
        }
        if let Some(after) = self.free.get(&end).copied() {
            self.remove(end);
            end = after;
        }
        self.insert(start..end);
        if end == self.end {
            self.lower(start);
        }
    }

    /// Nothing is used from `end` on, which is at most where that was so before.
    fn lower(&mut self, end: u64) {
        if self.clean_from != u64::MAX {
            self.clean_from = self.clean_from.max(self.end);
        }
        while let Some((&start, _)) = self.free.last_key_value()
            && start >= end
        {
            self.remove(start);
        }
        self.loose |= end < self.end;
        self.end = end;
    }

    /// Ends the file at `len`, which is behind all that is used: the footer first, durable, so that there is one at any
    /// moment. On a device, which keeps its length, that is where the footer stands from now on.
    pub(crate) fn end_file_at(
        &mut self,
        file: &dyn Storage,
        len: u64,
        footer: &[u8],
        barrier: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let at = len - FOOTER_LEN;
        // There is a footer in the midst of it from now on, whatever comes of this.
        self.clean_from = u64::MAX;
        file.write_at(at, footer).map_err(|error| Error::io("cannot write the footer", error).at(at))?;
        barrier()?;
        file.set_len(len).map_err(|error| Error::io(format!("cannot make it {len} bytes long"), error))?;
        self.data_end = at;
        self.file_len = file.len().map_err(|error| Error::io("cannot find the size", error))?;
        self.loose = false;
        Ok(())
    }

    /// Whether the file may be longer than it needs to be.
    pub(crate) fn is_loose(&self) -> bool {
        self.loose
    }

    /// Ends the file where what is used ends, which is `used`: the footer first, durable, so that there is one at any
    /// moment.
    pub(crate) fn tighten(
        &mut self,
        file: &dyn Storage,
        used: u64,
        footer: &[u8],
        barrier: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        self.lower(used.min(self.end));
        let (at, len) = (self.end, self.end + FOOTER_LEN);
        let failed = |error| Error::io("cannot find the size", error);
        if at != self.data_end || file.len().map_err(failed)? != self.file_len {
            // There is a footer in the midst of it from now on, whatever comes of this.
            self.clean_from = u64::MAX;
            file.write_at(at, footer).map_err(|error| Error::io("cannot write the footer", error).at(at))?;
            barrier()?;
            file.set_len(len)
                .map_err(|error| Error::io(format!("cannot make it {len} bytes long"), error))?;
            // A device keeps its length, and the footer at its end.
            if file.len().map_err(failed)? == len {
                (self.data_end, self.file_len) = (at, len);
            }
        }
        self.loose = false;
        Ok(())
    }
}

/// Makes bytes of the file zero, and gives their space back where that is possible.
pub(crate) fn make_zero(file: &dyn Storage, at: u64, len: u64) -> Result<()> {
    let failed = |error| Error::io("cannot write zeros", error).at(at);
    // Giving space back is a wish; where it fails, writing says what is wrong.
    if len == 0 || file.punch(at, len).unwrap_or(false) || file.zero(at, len).map_err(failed)? {
        return Ok(());
    }
    let zeros = vec![0; len.min(ZEROS) as usize];
    let mut done = 0;
    while done < len {
        let n = (len - done).min(ZEROS);
        file.write_at(at + done, zeros.get(..n as usize).unwrap_or_default()).map_err(failed)?;
        done += n;
    }
    Ok(())
}
