//! Writing guest bytes: in place where the block has room in the file, else in a new place that is published after its
//! data; and taking guest bytes away.
//!
//! Where a parent shows through a block, a new place for it holds only what is written, and the bits say which sectors
//! those are. Everywhere else a new place reads zero around what is written, and is the whole block's.

use std::ops::Range;
use std::sync::atomic::Ordering;

use cowhand_core::{Erase, Error, Result, Storage};

use crate::bat::{self, Block};
use crate::bytes::MIB;
use crate::layer::VhdxLayer;
use crate::pages::Edit;
use crate::space::{Place, make_zero};
use crate::state::State;
use crate::writer::{Ready, Writer, lock};

/// File systems share whole units of this many bytes.
const SHARED_UNIT: u64 = 4096;

/// Part of a request that lies within one block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) block: u64,
    /// From the block's start.
    pub(crate) within: u64,
    pub(crate) len: u64,
}

impl Part {
    fn end(&self) -> u64 {
        self.within + self.len
    }

    /// It is all that the disk has of the block.
    fn is_whole(&self, state: &State) -> bool {
        self.within == 0 && self.len == state.used(self.block)
    }

    /// The sectors that it touches.
    fn sectors(&self, state: &State) -> Range<u64> {
        let sector = state.geometry.sector;
        self.within / sector..self.end().div_ceil(sector)
    }
}

/// Where a part's data goes.
enum Target {
    /// To the block that stands here. The two: the first and the last sector are written whole, or are present already;
    /// and all sectors are present.
    Here { at: u64, edges: [bool; 2], all: bool },
    /// To a new place: the table says this of the block, and that it has none.
    New(Block),
}

impl VhdxLayer {
    /// The part of `at..end` in its first block.
    fn part(state: &State, at: u64, end: u64) -> Part {
        let block_size = state.geometry.block_size;
        let within = at % block_size;
        Part { block: at / block_size, within, len: (end - at).min(block_size - within) }
    }

    /// Errors: the range goes past the end of the disk.
    fn check_range(state: &State, at: u64, len: u64) -> Result<u64> {
        let size = state.geometry.size;
        at.checked_add(len).filter(|end| *end <= size).ok_or_else(|| {
            Error::invalid(format!("{len} bytes at {at} go past the end of the disk ({size} bytes)"))
        })
    }

    /// The caller has claimed the block.
    fn target(&self, state: &State, part: Part) -> Result<Target> {
        let at = match state.block(part.block, self.file_len())? {
            Block::Full(at) => return Ok(Target::Here { at, edges: [true; 2], all: true }),
            Block::Partial(at) => at,
            other => return Ok(Target::New(other)),
        };
        let sector = state.geometry.sector;
        let start = part.block * state.geometry.block_size;
        let (alike, present) = self.bits(state, start + part.within, part.len)?;
        let all = present && alike == part.len;
        let edges = [
            present || part.within.is_multiple_of(sector),
            all || part.end().is_multiple_of(sector) || self.bits(state, start + part.end() - 1, 1)?.1,
        ];
        Ok(Target::Here { at, edges, all })
    }

    /// See `Layer::write`.
    pub(crate) fn write_at(&self, at: u64, buf: &[u8]) -> Result<()> {
        let (writer, ready) = self.begin()?;
        let state = self.state();
        let end = Self::check_range(&state, at, buf.len() as u64)?;
        if !buf.is_empty() {
            self.touch(writer, true)?;
        }
        let (mut here, mut rest) = (at, buf);
        while !rest.is_empty() {
            let part = Self::part(&state, here, end);
            let (piece, after) = rest.split_at(part.len as usize);
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
            Self::check_range(&state, at, part.len)?;
            if let Target::Here { at, all: true, .. } = self.target(&state, part)? {
                return self.put(at + part.within, bytes);
            }
        }
        let _claim = writer.claims.take(part.block..=part.block, true);
        writer.check_open()?;
        let state = self.state();
        Self::check_range(&state, at, part.len)?;
        match self.target(&state, part)? {
            Target::Here { at, edges, all } => {
                self.put_padded(&state, at, part, bytes, edges)?;
                if all { Ok(()) } else { self.set_present(writer, ready, &state, part) }
            }
            Target::New(instead_of) => self.write_new(writer, ready, &state, part, instead_of, |place| {
                // Nothing around what is written need be made zero where it is.
                let zero = place.at() + part.within / state.geometry.sector * state.geometry.sector
                    >= place.clean_from;
                self.put_padded(&state, place.at(), part, bytes, [zero, zero])
            }),
        }
    }

    fn put(&self, host: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_at(host, bytes).map_err(|error| Error::io("cannot write", error).at(host))
    }

    /// Writes a part to the block at `place`. `edges`: what the first and the last sector hold beside it stays; else it
    /// becomes zero.
    fn put_padded(
        &self,
        state: &State,
        place: u64,
        part: Part,
        bytes: &[u8],
        edges: [bool; 2],
    ) -> Result<()> {
        let sector = state.geometry.sector;
        let start = if edges[0] { part.within } else { part.within / sector * sector };
        let end = if edges[1] { part.end() } else { part.end().next_multiple_of(sector) };
        if start == part.within && end == part.end() {
            return self.put(place + start, bytes);
        }
        let mut whole = vec![0; (end - start) as usize];
        let offset = (part.within - start) as usize;
        if let Some(middle) = whole.get_mut(offset..offset + bytes.len()) {
            middle.copy_from_slice(bytes);
        }
        self.put(place + start, &whole)
    }

    /// Gives the block a place, lets `fill` write the part, and publishes it.
    pub(crate) fn write_new(
        &self,
        writer: &Writer,
        ready: &Ready,
        state: &State,
        part: Part,
        instead_of: Block,
        fill: impl FnOnce(&Place) -> Result<()>,
    ) -> Result<()> {
        let place = self.take(ready, state.geometry.block_size)?;
        let made =
            fill(&place).and_then(|()| self.publish_new(writer, ready, state, part, instead_of, &place));
        if made.is_err() {
            ready.space().give_back(place.range);
        }
        made
    }

    /// Makes the place, in which the part stands, that of its block.
    fn publish_new(
        &self,
        writer: &Writer,
        ready: &Ready,
        state: &State,
        part: Part,
        instead_of: Block,
        place: &Place,
    ) -> Result<()> {
        let entry = state.geometry.entry_of(part.block);
        let at = place.at();
        let shows = state.is_differencing() && instead_of == Block::NotPresent;
        if shows && !part.is_whole(state) {
            let bitmap = self.bitmap(writer, ready, state, part.block)?;
            let bits =
                |sectors, present| Edit::Bits { at: bitmap, bits: state.bits(part.block, sectors), present };
            let all = 0..state.geometry.block_size / state.geometry.sector;
            let edits = [
                bits(all, false),
                bits(part.sectors(state), true),
                state.table.set(entry, Block::Partial(at).encode()),
            ];
            return self.publish(writer, ready, &edits);
        }
        let sectors = part.sectors(state);
        let sector = state.geometry.sector;
        for around in [0..sectors.start * sector, sectors.end * sector..state.geometry.block_size] {
            make_zero(self.file.as_ref(), at + around.start..(at + around.end).min(place.clean_from))?;
        }
        self.publish(writer, ready, &[state.table.set(entry, Block::Full(at).encode())])
    }

    /// Where the sector bitmap stands that has the bits of `block`. Where there is none it is made, with no bit set.
    pub(crate) fn bitmap(&self, writer: &Writer, ready: &Ready, state: &State, block: u64) -> Result<u64> {
        if let Some(at) = state.bitmap(block, self.file_len())? {
            return Ok(at);
        }
        let _one = lock(&writer.bitmaps);
        if let Some(at) = state.bitmap(block, self.file_len())? {
            return Ok(at);
        }
        let place = self.take(ready, MIB)?;
        let entry = state.geometry.bitmap_entry_of(block);
        let made = make_zero(self.file.as_ref(), place.range.start..place.clean_from).and_then(|()| {
            self.publish(writer, ready, &[state.table.set(entry, bat::encode_bitmap(place.at()))])
        });
        match made {
            Ok(()) => Ok(place.at()),
            Err(error) => {
                ready.space().give_back(place.range);
                Err(error)
            }
        }
    }

    /// Says of sectors of a partly present block that they are here, their data being there. Where all are, the block is
    /// fully present. The caller has claimed it alone.
    fn set_present(&self, writer: &Writer, ready: &Ready, state: &State, part: Part) -> Result<()> {
        let Block::Partial(at) = state.block(part.block, self.file_len())? else { return Ok(()) };
        let sectors = part.sectors(state);
        let bitmap = self.bitmap(writer, ready, state, part.block)?;
        let mut edits =
            vec![Edit::Bits { at: bitmap, bits: state.bits(part.block, sectors.clone()), present: true }];
        if self.others_are(state, part.block, sectors, true)? {
            let entry = state.geometry.entry_of(part.block);
            edits.push(state.table.set(entry, Block::Full(at).encode()));
        }
        self.publish(writer, ready, &edits)
    }

    /// Whether the bits of all sectors that the disk has of a partly present block, but for these, say this.
    fn others_are(&self, state: &State, block: u64, sectors: Range<u64>, present: bool) -> Result<bool> {
        let sector = state.geometry.sector;
        let start = block * state.geometry.block_size;
        for rest in [0..sectors.start * sector, sectors.end * sector..state.used(block)] {
            if !rest.is_empty() {
                let len = rest.end - rest.start;
                if self.bits(state, start + rest.start, len)? != (len, present) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Says `instead` of a block; if it had a place in the file, that is free when this is durable. The caller has
    /// claimed it alone.
    pub(crate) fn replace(
        &self,
        writer: &Writer,
        ready: &Ready,
        state: &State,
        block: u64,
        instead: Block,
    ) -> Result<()> {
        let old = state.block(block, self.file_len())?;
        if old == instead {
            return Ok(());
        }
        self.publish(writer, ready, &[state.table.set(state.geometry.entry_of(block), instead.encode())])?;
        if let Block::Full(at) | Block::Partial(at) = old {
            ready.freed(at..at + state.geometry.block_size);
        }
        Ok(())
    }

    /// See `Layer::write_from`.
    pub(crate) fn clone_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> Result<u64> {
        let (writer, ready) = self.begin()?;
        let state = self.state();
        let end = Self::check_range(&state, at, len)?;
        // Asked before a place is taken for it: what turns out to be zero would then take room.
        let possible = self.file.as_fd().is_some() && src.as_fd().is_some();
        if !possible || len == 0 || writer.cannot_share.load(Ordering::Relaxed) {
            return Ok(0);
        }
        self.touch(writer, true)?;
        let mut here = at;
        while here < end && here.is_multiple_of(SHARED_UNIT) {
            let part = Self::part(&state, here, end);
            let whole = Part { len: part.len - part.len % SHARED_UNIT, ..part };
            if whole.len == 0 {
                break;
            }
            let from = src_at + (here - at);
            let done = self.clone_part(writer, ready, here, whole, src, from)?;
            if done == 0 && from.is_multiple_of(SHARED_UNIT) {
                writer.cannot_share.store(true, Ordering::Relaxed);
            }
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
        Self::check_range(&state, at, part.len)?;
        let clone = |place: u64| {
            let host = place + part.within;
            let shared = self.file.copy_from(host, src, src_at, part.len);
            let done = shared.map_err(|error| Error::io("cannot share blocks", error).at(host))?;
            Ok(done.min(part.len) / SHARED_UNIT * SHARED_UNIT)
        };
        match self.target(&state, part)? {
            Target::Here { at, all, .. } => {
                let done = clone(at)?;
                if done > 0 && !all {
                    self.set_present(writer, ready, &state, Part { len: done, ..part })?;
                }
                Ok(done)
            }
            Target::New(instead_of) => {
                let place = self.take(ready, state.geometry.block_size)?;
                let made = clone(place.at()).and_then(|done| {
                    if done > 0 {
                        let part = Part { len: done, ..part };
                        self.publish_new(writer, ready, &state, part, instead_of, &place)?;
                    }
                    Ok(done)
                });
                match &made {
                    Ok(0) => ready.space().give_back_untouched(&place),
                    Ok(_) => {}
                    Err(_) => ready.space().give_back(place.range),
                }
                made
            }
        }
    }

    /// See `Layer::erase`.
    pub(crate) fn erase_at(&self, at: u64, len: u64, how: Erase) -> Result<u64> {
        let (writer, ready) = self.begin()?;
        let end = Self::check_range(&self.state(), at, len)?;
        // What is so already, and need not be said again.
        let done = if how == Erase::Reveal { Block::NotPresent } else { Block::Zero };
        let mut here = at;
        while here < end {
            let part = {
                // As for a read: where the BAT is now, nothing else is meanwhile. Nobody waits for a claim in here.
                let _operation = self.epochs.enter();
                let state = self.state();
                let part = Self::part(&state, here, end);
                // What is absent reads zero where nothing is below, and has no space to give back.
                let absent = how == Erase::Free && !state.is_differencing();
                let is_so = |block| block == done || absent && block == Block::NotPresent;
                if is_so(state.block(part.block, self.file_len())?) {
                    here += self.run(&state, here, end - here, |_, next| is_so(next))?;
                    continue;
                }
                part
            };
            let done = self.erase_part(writer, ready, here, part, how)?;
            here += done;
            if done < part.len {
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
        Self::check_range(&state, at, part.len)?;
        let target = self.target(&state, part)?;
        if part.is_whole(&state) {
            match (&target, how) {
                (Target::Here { at, .. }, Erase::Zero | Erase::Free) if state.keeps_blocks() => {
                    return self.zero_in_place(writer, *at, part, how);
                }
                // Its blocks stay, and there is nothing below that could show.
                (_, Erase::Reveal) if state.keeps_blocks() => return Ok(0),
                _ => {}
            }
            let instead = if how == Erase::Reveal { Block::NotPresent } else { Block::Zero };
            self.touch(writer, true)?;
            self.replace(writer, ready, &state, part.block, instead)?;
            return Ok(part.len);
        }
        match (target, how) {
            (Target::New(Block::Zero), Erase::Zero | Erase::Free)
            | (Target::New(Block::NotPresent), Erase::Reveal) => Ok(part.len),
            (Target::Here { at, all: true, .. }, Erase::Zero | Erase::Free) => {
                self.zero_in_place(writer, at, part, how)
            }
            _ if state.is_differencing() => self.erase_sectors(writer, ready, &state, part, how),
            // Part of a block cannot be absent, and nothing below could show.
            _ => Ok(0),
        }
    }

    /// Makes bytes zero where they stand. Answers the bytes done.
    fn zero_in_place(&self, writer: &Writer, place: u64, part: Part, how: Erase) -> Result<u64> {
        self.touch(writer, true)?;
        let host = place + part.within;
        let failed = |error| Error::io("cannot write zeros", error).at(host);
        let done = (how == Erase::Free && self.file.punch(host, part.len).unwrap_or(false))
            || self.file.zero(host, part.len).map_err(failed)?;
        Ok(if done { part.len } else { 0 })
    }

    /// In a child, part of a block: whole sectors become its own, and zero, or the parent's again.
    fn erase_sectors(
        &self,
        writer: &Writer,
        ready: &Ready,
        state: &State,
        part: Part,
        how: Erase,
    ) -> Result<u64> {
        let sector = state.geometry.sector;
        let part = Part { len: part.len / sector * sector, ..part };
        if part.len == 0 || !part.within.is_multiple_of(sector) {
            return Ok(0);
        }
        let file = self.file.as_ref();
        self.touch(writer, true)?;
        match (self.target(state, part)?, how) {
            (Target::New(instead_of), Erase::Zero | Erase::Free) => {
                self.write_new(writer, ready, state, part, instead_of, |place| {
                    let (start, end) = (place.at() + part.within, place.at() + part.end());
                    make_zero(file, start..end.min(place.clean_from))
                })?;
            }
            (Target::Here { at, .. }, Erase::Zero | Erase::Free) => {
                let (start, end) = (at + part.within, at + part.end());
                let failed = |error| Error::io("cannot write zeros", error).at(start);
                if how == Erase::Free || !file.zero(start, part.len).map_err(failed)? {
                    make_zero(file, start..end)?;
                }
                self.set_present(writer, ready, state, part)?;
            }
            (Target::Here { .. }, Erase::Reveal) => self.reveal(writer, ready, state, part)?,
            // A block that is zero has no bits, and hides the parent.
            (Target::New(_), Erase::Reveal) => return Ok(0),
        }
        Ok(part.len)
    }

    /// Makes sectors of a block that is in the file the parent's again. One with none of its own goes out of the file.
    fn reveal(&self, writer: &Writer, ready: &Ready, state: &State, part: Part) -> Result<()> {
        let (block, sectors) = (part.block, part.sectors(state));
        let found = state.block(block, self.file_len())?;
        if matches!(found, Block::Partial(_)) && self.others_are(state, block, sectors.clone(), false)? {
            return self.replace(writer, ready, state, block, Block::NotPresent);
        }
        let bitmap = self.bitmap(writer, ready, state, block)?;
        let bits = |sectors, present| Edit::Bits { at: bitmap, bits: state.bits(block, sectors), present };
        let mut edits = Vec::new();
        if let Block::Full(at) = found {
            let entry = state.geometry.entry_of(block);
            edits.push(bits(0..state.geometry.block_size / state.geometry.sector, true));
            edits.push(state.table.set(entry, Block::Partial(at).encode()));
        }
        edits.push(bits(sectors, false));
        self.publish(writer, ready, &edits)
    }
}

#[cfg(test)]
mod tests;
