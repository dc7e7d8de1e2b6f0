//! Writing guest bytes: in place where a block is in the file, else in a new one that is published after its data; and
//! taking guest bytes away.
//!
//! In a differencing disk a bit says whether a sector is the child's, and a new block has only the bits of what was
//! written. In a dynamic disk some readers do not ask the bits, so a new block is zero and has all of them.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use cowhand_core::{Erase, Error, Result, Storage};

use crate::bat::FREE;
use crate::bitmap;
use crate::bitmaps::Mark;
use crate::dynamic::{Dynamic, State};
use crate::fixed::SHARED_UNIT;
use crate::geometry::SECTOR;
use crate::space::{Place, make_zero};
use crate::writer::{Alone, Ready, Writer};

/// Part of a request that lies within one block.
#[derive(Clone, Copy, Debug)]
struct Part {
    block: u64,
    /// From the block's start.
    within: u64,
    len: u64,
}

impl Part {
    fn end(&self) -> u64 {
        self.within + self.len
    }

    /// The sectors that it touches.
    fn sectors(&self) -> Range<u64> {
        self.within / SECTOR..self.end().div_ceil(SECTOR)
    }
}

/// Where a part's data goes.
enum Target {
    /// To the block whose bitmap stands here. The two: the first and the last sector are written whole, or are present
    /// already; and all sectors are present.
    Here { at: u64, edges: [bool; 2], all: bool },
    /// To a block that the file does not have yet.
    New,
}

impl Dynamic {
    /// The part of `at..end` in its first block.
    fn part(&self, at: u64, end: u64) -> Part {
        let within = at % self.block_size;
        Part { block: at / self.block_size, within, len: (end - at).min(self.block_size - within) }
    }

    /// Errors: the range goes past the end of the disk.
    fn check_range(state: &State, at: u64, len: u64) -> Result<u64> {
        at.checked_add(len).filter(|end| *end <= state.size).ok_or_else(|| {
            Error::invalid(format!("{len} bytes at {at} go past the end of the disk ({} bytes)", state.size))
        })
    }

    fn target(&self, state: &State, part: Part) -> Result<Target> {
        let found = self.look(state, part.block, |at, bits| {
            let sectors = part.sectors();
            let (alike, present) = bitmap::run(bits, self.order, sectors.start, sectors.end);
            let is_present = |sector| bitmap::run(bits, self.order, sector, sector + 1).1;
            let edges = [
                part.within.is_multiple_of(SECTOR) || is_present(sectors.start),
                part.end().is_multiple_of(SECTOR) || is_present(sectors.end - 1),
            ];
            Target::Here { at, edges, all: present && alike == sectors.end - sectors.start }
        })?;
        Ok(found.unwrap_or(Target::New))
    }

    /// See `Layer::write`.
    pub(crate) fn write_at(&self, at: u64, buf: &[u8]) -> Result<()> {
        let (writer, ready) = self.begin()?;
        let end = Dynamic::check_range(&self.state(), at, buf.len() as u64)?;
        let (mut here, mut rest) = (at, buf);
        while !rest.is_empty() {
            let part = self.part(here, end);
            let (piece, after) = rest.split_at(part.len as usize);
            if self.much_waits(ready) {
                self.write_back(writer, ready, false)?;
            }
            self.write_part(writer, ready, here, part, piece)?;
            here += part.len;
            rest = after;
        }
        Ok(())
    }

    fn write_part(&self, writer: &Writer, ready: &Ready, at: u64, part: Part, bytes: &[u8]) -> Result<()> {
        {
            let _claim = writer.claims.take(part.block..=part.block, false);
            writer.check_open()?;
            let state = self.state();
            Dynamic::check_range(&state, at, part.len)?;
            if let Target::Here { at, edges: [true, true], all } = self.target(&state, part)? {
                self.put(at + self.bitmap_len + part.within, bytes)?;
                return if all {
                    Ok(())
                } else {
                    self.set_present(writer, &state, part.block, part.sectors(), true)
                };
            }
        }
        let _claim = writer.claims.take(part.block..=part.block, true);
        writer.check_open()?;
        let state = self.state();
        Dynamic::check_range(&state, at, part.len)?;
        match self.target(&state, part)? {
            Target::Here { at, edges, .. } => {
                self.put_padded(at + self.bitmap_len, part, bytes, edges)?;
                self.set_present(writer, &state, part.block, part.sectors(), true)
            }
            Target::New => self.write_new(writer, ready, &state, part, |place| {
                let payload = place.at + self.bitmap_len;
                // Nothing around what is written need be made zero where it is.
                let zero = payload + part.within / SECTOR * SECTOR >= place.clean_from;
                self.put_padded(payload, part, bytes, [zero, zero])
            }),
        }
    }

    fn put(&self, host: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_at(host, bytes).map_err(|error| Error::io("cannot write", error).at(host))
    }

    /// Writes a part to the payload at `payload`. `edges`: what the first and the last sector hold beside it stays; else
    /// it becomes zero.
    fn put_padded(&self, payload: u64, part: Part, bytes: &[u8], edges: [bool; 2]) -> Result<()> {
        let [head, tail] = edges;
        let start = if head { part.within } else { part.within / SECTOR * SECTOR };
        let end = if tail { part.end() } else { part.end().next_multiple_of(SECTOR) };
        if start == part.within && end == part.end() {
            return self.put(payload + start, bytes);
        }
        let mut whole = vec![0; (end - start) as usize];
        let offset = (part.within - start) as usize;
        if let Some(middle) = whole.get_mut(offset..offset + bytes.len()) {
            middle.copy_from_slice(bytes);
        }
        self.put(payload + start, &whole)
    }

    /// Gives the block a place, lets `fill` write the part, and publishes it.
    fn write_new(
        &self,
        writer: &Writer,
        ready: &Ready,
        state: &State,
        part: Part,
        fill: impl FnOnce(&Place) -> Result<()>,
    ) -> Result<()> {
        let place = self.take(writer, ready)?;
        let made = self.make_new(&place, part).and_then(|new| fill(&place).map(|()| new));
        match made {
            Ok((bits, mark)) => {
                self.publish(writer, state, part.block, &place, bits, mark);
                Ok(())
            }
            Err(error) => {
                self.untake(ready, &place);
                Err(error)
            }
        }
    }

    /// What a block must hold beside the part: in a dynamic disk zeros, and all bits. Answers its bitmap.
    fn make_new(&self, place: &Place, part: Part) -> Result<(Arc<[u8]>, Mark)> {
        let file = self.file.as_ref();
        if self.is_differencing() {
            let mut bits = vec![0; self.bitmap_len as usize];
            let sectors = part.sectors();
            bitmap::set(&mut bits, self.order, sectors.start, sectors.end, true);
            return Ok((bits.into(), Mark::New));
        }
        let payload = place.at + self.bitmap_len;
        let sectors = part.sectors();
        for around in [0..sectors.start * SECTOR, sectors.end * SECTOR..self.block_size] {
            let stale = payload + around.start..(payload + around.end).min(place.clean_from);
            make_zero(file, stale.start, stale.end.saturating_sub(stale.start))?;
        }
        // Here, so that it lies beside the payload on the disk.
        let bits: Arc<[u8]> = vec![0xff; self.bitmap_len as usize].into();
        file.write_at(place.at, &bits)
            .map_err(|error| Error::io("cannot write a sector bitmap", error).at(place.at))?;
        Ok((bits, Mark::Clean))
    }

    /// Says of sectors of a block in the file that they are present, their data being there, or that they are not. The
    /// caller has claimed the block. A block none of whose sectors is present is taken out of the file.
    pub(crate) fn set_present(
        &self,
        writer: &Writer,
        state: &State,
        block: u64,
        sectors: Range<u64>,
        present: bool,
    ) -> Result<()> {
        let _publish = writer.publish.read().unwrap_or_else(PoisonError::into_inner);
        let file = self.file.as_ref();
        let mut shard = self.bitmaps.shard(block);
        let Some(entry) = state.bat.get(file, block)? else { return Ok(()) };
        let at = u64::from(entry) * SECTOR;
        let old = self.bitmaps.get(&mut shard, file, block, at)?;
        let mut bits = old.to_vec();
        bitmap::set(&mut bits, self.order, sectors.start, sectors.end, present);
        if *bits != *old {
            self.bitmaps.change(&mut shard, block, at, bits.into());
        }
        Ok(())
    }

    /// Makes sectors of a block the disk's own, and zero. The caller is alone; they may be past the disk's end.
    pub(crate) fn cover(
        &self,
        alone: &Alone<'_>,
        state: &State,
        block: u64,
        sectors: Range<u64>,
    ) -> Result<()> {
        let (writer, ready) = (alone.writer, alone.ready);
        let file = self.file.as_ref();
        let (within, len) = (sectors.start * SECTOR, (sectors.end - sectors.start) * SECTOR);
        if let Some(at) = self.look(state, block, |at, _| at)? {
            make_zero(file, at + self.bitmap_len + within, len)?;
            return self.set_present(writer, state, block, sectors, true);
        }
        self.write_new(writer, ready, state, Part { block, within, len }, |place| {
            let start = place.at + self.bitmap_len + within;
            make_zero(file, start, (start + len).min(place.clean_from).saturating_sub(start))
        })
    }

    /// Takes a block out of the file. The caller has claimed it alone.
    pub(crate) fn free(&self, writer: &Writer, ready: &Ready, state: &State, block: u64) -> Result<()> {
        let _publish = writer.publish.read().unwrap_or_else(PoisonError::into_inner);
        let mut shard = self.bitmaps.shard(block);
        if let Some(entry) = state.bat.get(self.file.as_ref(), block)? {
            self.bitmaps.forget(&mut shard, block);
            state.bat.set(block, FREE);
            ready.freed(u64::from(entry) * SECTOR);
        }
        Ok(())
    }

    /// See `Layer::write_from`.
    pub(crate) fn clone_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> Result<u64> {
        let (writer, ready) = self.begin()?;
        let end = Dynamic::check_range(&self.state(), at, len)?;
        let mut here = at;
        while here < end && here.is_multiple_of(SECTOR) {
            let part = self.part(here, end);
            let whole = Part { len: part.len - part.len % SHARED_UNIT, ..part };
            if whole.len == 0 {
                break;
            }
            let done = self.clone_part(writer, ready, here, whole, src, src_at + (here - at))?;
            here += done;
            if done < part.len {
                break;
            }
        }
        Ok(here - at)
    }

    /// Answers the bytes done: whole sectors.
    fn clone_part(
        &self,
        writer: &Writer,
        ready: &Ready,
        at: u64,
        part: Part,
        src: &dyn Storage,
        src_at: u64,
    ) -> Result<u64> {
        let _claim = writer.claims.take(part.block..=part.block, true);
        writer.check_open()?;
        let state = self.state();
        Dynamic::check_range(&state, at, part.len)?;
        let clone = |block_at: u64| {
            let host = block_at + self.bitmap_len + part.within;
            let shared = self.file.copy_from(host, src, src_at, part.len);
            let done = shared.map_err(|error| Error::io("cannot share blocks", error).at(host))?;
            Ok(done.min(part.len) / SECTOR * SECTOR)
        };
        match self.target(&state, part)? {
            Target::Here { at, all, .. } => {
                let done = clone(at)?;
                if done > 0 && !all {
                    let sectors = Part { len: done, ..part }.sectors();
                    self.set_present(writer, &state, part.block, sectors, true)?;
                }
                Ok(done)
            }
            Target::New => {
                let place = self.take(writer, ready)?;
                let made = clone(place.at).and_then(|done| {
                    let part = Part { len: done, ..part };
                    Ok((done, if done > 0 { Some(self.make_new(&place, part)?) } else { None }))
                });
                match made {
                    Ok((done, Some((bits, mark)))) => {
                        self.publish(writer, &state, part.block, &place, bits, mark);
                        Ok(done)
                    }
                    Ok((_, None)) => {
                        self.untake(ready, &place);
                        Ok(0)
                    }
                    Err(error) => {
                        self.untake(ready, &place);
                        Err(error)
                    }
                }
            }
        }
    }

    /// See `Layer::erase`.
    pub(crate) fn erase_at(&self, at: u64, len: u64, how: Erase) -> Result<u64> {
        let (writer, ready) = self.begin()?;
        let state = self.state();
        let end = Dynamic::check_range(&state, at, len)?;
        let hides = self.is_differencing() && how != Erase::Reveal;
        if len > 0 && !hides && how != Erase::Zero {
            self.may_be_absent(writer, ready, at / self.block_size..end.div_ceil(self.block_size))?;
        }
        let mut here = at;
        while here < end {
            let part = self.part(here, end);
            if !hides && state.bat.get(self.file.as_ref(), part.block)?.is_none() {
                // Nothing is there that could be taken away.
                let last = end.div_ceil(self.block_size);
                let free = state.bat.free_run(self.file.as_ref(), part.block, last)?.max(1);
                here += (end - here).min(free * self.block_size - part.within);
                continue;
            }
            let done = self.erase_part(writer, ready, here, part, how)?;
            here += done;
            if done < part.len || self.much_waits(ready) {
                break;
            }
        }
        Ok(here - at)
    }

    /// Answers the bytes done of the part, from its start on.
    fn erase_part(&self, writer: &Writer, ready: &Ready, at: u64, part: Part, how: Erase) -> Result<u64> {
        let _claim = writer.claims.take(part.block..=part.block, true);
        writer.check_open()?;
        let state = self.state();
        Dynamic::check_range(&state, at, part.len)?;
        if self.is_differencing() {
            return self.erase_sectors(writer, ready, &state, part, how);
        }
        let whole = part.within == 0 && part.len == state.used(part.block);
        if whole && how != Erase::Zero {
            self.free(writer, ready, &state, part.block)?;
            return Ok(part.len);
        }
        let Target::Here { at, .. } = self.target(&state, part)? else { return Ok(part.len) };
        let host = at + self.bitmap_len + part.within;
        let failed = |error| Error::io("cannot write zeros", error).at(host);
        let done = match how {
            // Part of a block cannot be absent where readers do not ask the bits; and nothing below could show.
            Erase::Reveal => false,
            Erase::Free => {
                self.file.punch(host, part.len).unwrap_or(false)
                    || self.file.zero(host, part.len).map_err(failed)?
            }
            Erase::Zero => self.file.zero(host, part.len).map_err(failed)?,
        };
        Ok(if done { part.len } else { 0 })
    }

    /// In a differencing disk: whole sectors become the child's, and zero, or the parent's again.
    fn erase_sectors(
        &self,
        writer: &Writer,
        ready: &Ready,
        state: &State,
        part: Part,
        how: Erase,
    ) -> Result<u64> {
        let part = Part { len: part.len / SECTOR * SECTOR, ..part };
        if part.len == 0 || !part.within.is_multiple_of(SECTOR) {
            return Ok(0);
        }
        match (self.target(state, part)?, how) {
            (Target::New, Erase::Reveal) => {}
            (Target::New, _) => self.write_new(writer, ready, state, part, |place| {
                let payload = place.at + self.bitmap_len;
                let stale = payload + part.within..(payload + part.end()).min(place.clean_from);
                make_zero(self.file.as_ref(), stale.start, stale.end.saturating_sub(stale.start))
            })?,
            (Target::Here { .. }, Erase::Reveal) => {
                self.set_present(writer, state, part.block, part.sectors(), false)?;
                let sectors = self.block_size / SECTOR;
                let left = self.look(state, part.block, |_, bits| {
                    bitmap::run(bits, self.order, 0, sectors) != (sectors, false)
                })?;
                if left == Some(false) {
                    self.free(writer, ready, state, part.block)?;
                }
            }
            (Target::Here { at, .. }, _) => {
                let host = at + self.bitmap_len + part.within;
                let failed = |error| Error::io("cannot write zeros", error).at(host);
                if how == Erase::Free || !self.file.zero(host, part.len).map_err(failed)? {
                    make_zero(self.file.as_ref(), host, part.len)?;
                }
                self.set_present(writer, state, part.block, part.sectors(), true)?;
            }
        }
        Ok(part.len)
    }
}
