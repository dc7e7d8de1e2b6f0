//! What only who is alone may change: the metadata and the regions, where a block stands.

use std::ops::Range;

use cowhand_core::{Error, ErrorKind, Result};

use crate::bat::Block;
use crate::bytes::MIB;
use crate::draft::Sector;
use crate::layer::VhdxLayer;
use crate::pages::Edit;
use crate::space::{Place, make_zero};
use crate::state::State;
use crate::writer::Alone;

/// Bytes that are copied at once.
const PIECE: u64 = 1 << 20;

impl VhdxLayer {
    /// Says in the headers that what a guest or a child sees of the disk changes, before it does.
    pub(crate) fn touch_visibly(&self, alone: &Alone<'_>) -> Result<()> {
        self.touch(alone.writer, true)
    }

    /// Makes these sectors of the file and this state count, durably and in one step. All that is published has been
    /// written back ([`VhdxLayer::write_all_back`]). New room that they refer to is already in the file. Errors:
    /// `Unsupported` where they are too many for one step; after any other nothing more is written, since which state
    /// counts is not known.
    pub(crate) fn change(&self, alone: &Alone<'_>, sectors: &[Sector], state: State) -> Result<()> {
        let end = alone.ready.space().end();
        self.commit(alone.writer, sectors, end, true).inspect_err(|error| {
            if let Some(journal) =
                alone.writer.journal.as_ref().filter(|_| error.kind() != ErrorKind::Unsupported)
            {
                journal.fail();
            }
        })?;
        self.pages.replaced(sectors);
        self.set_state(state);
        Ok(())
    }

    /// Commits what was published, durably.
    pub(crate) fn write_all_back(&self, alone: &Alone<'_>) -> Result<()> {
        self.write_back(alone.writer, alone.ready, true)
    }

    /// Changes entries and bits of the metadata, in memory, in one step; [`VhdxLayer::write_all_back`] makes it durable.
    pub(crate) fn edit(&self, alone: &Alone<'_>, edits: &[Edit]) -> Result<()> {
        self.publish(alone.writer, alone.ready, edits)
    }

    /// Room for `len` bytes, whole MiB, behind all that is in use, for what is no block. It reads zero.
    pub(crate) fn reserve(&self, alone: &Alone<'_>, len: u64) -> Result<Place> {
        let mut space = alone.ready.space();
        let place = space.append(self.file.as_ref(), len);
        self.grown(space.file_len());
        drop(space);
        let place = self.taken(place?)?;
        if let Err(error) = make_zero(self.file.as_ref(), place.range.start..place.clean_from) {
            self.untake(alone, place);
            return Err(error);
        }
        Ok(place)
    }

    /// Gives back room that nothing refers to.
    pub(crate) fn untake(&self, alone: &Alone<'_>, place: Place) {
        alone.ready.space().give_back(place.range);
    }

    /// The room at `place` belongs to nobody: the change that says so was published, or has been made. It is used again
    /// when that is durable and no read uses it.
    pub(crate) fn give_up(&self, alone: &Alone<'_>, place: Range<u64>) {
        alone.ready.freed(place);
    }

    /// Moves a block of the file to the first gap that it fits into, if that is in front of `below`. Answers whether it
    /// did. Its old place is free after the next flush.
    pub(crate) fn move_block(&self, alone: &Alone<'_>, block: u64, below: u64) -> Result<bool> {
        let state = self.state();
        let (from, partial) = match state.block(block, self.file_len())? {
            Block::Full(from) => (from, false),
            Block::Partial(from) => (from, true),
            Block::NotPresent | Block::Zero => return Ok(false),
        };
        let entry = state.geometry.entry_of(block);
        let length = state.geometry.block_size;
        let moved = |to| if partial { Block::Partial(to) } else { Block::Full(to) };
        self.relocate(alone, from..from + state.used(block), length, below, |to| {
            state.table.set(entry, moved(to).encode())
        })
    }

    /// Moves the sector bitmap that has the bits of `block` likewise.
    pub(crate) fn move_bitmap(&self, alone: &Alone<'_>, block: u64, below: u64) -> Result<bool> {
        let state = self.state();
        let Some(from) = state.bitmap(block, self.file_len())? else { return Ok(false) };
        if !self.pages.is_clean() {
            // Its old place gets nothing more.
            self.write_all_back(alone)?;
        }
        let entry = state.geometry.bitmap_entry_of(block);
        self.relocate(alone, from..from + MIB, MIB, below, |to| {
            state.table.set(entry, crate::bat::encode_bitmap(to))
        })
    }

    /// Copies `from`, which has room of `length` bytes, to a gap in front of `below`, and makes it count there.
    fn relocate(
        &self,
        alone: &Alone<'_>,
        from: Range<u64>,
        length: u64,
        below: u64,
        edit: impl FnOnce(u64) -> Edit,
    ) -> Result<bool> {
        let Some(place) = alone.ready.space().take_below(length, below) else { return Ok(false) };
        let place = self.taken(place)?;
        let room = from.start..from.start + length;
        let moved = self.copy(from, &place).and_then(|()| self.edit(alone, &[edit(place.at())]));
        if let Err(error) = moved {
            self.untake(alone, place);
            return Err(error);
        }
        self.give_up(alone, room);
        Ok(true)
    }

    /// Copies what stands at `from`; where the file has holes, so has the copy. What is behind it in `to` is zero.
    pub(crate) fn copy(&self, from: Range<u64>, to: &Place) -> Result<()> {
        let file = self.file.as_ref();
        make_zero(file, to.range.start..to.clean_from)?;
        let mut buf = vec![0; (from.end - from.start).min(PIECE) as usize];
        let mut at = from.start;
        while at < from.end {
            let failed = |error| Error::io("cannot read", error).at(at);
            let Some(data) = file.data_at(at).map_err(failed)?.filter(|data| data.start < from.end) else {
                break;
            };
            at = data.start.max(at);
            let end = data.end.min(from.end);
            while at < end {
                let n = (end - at).min(PIECE);
                let piece = buf.get_mut(..n as usize).unwrap_or_default();
                let there = to.at() + (at - from.start);
                file.read_at(at, piece).map_err(|error| Error::io("cannot read", error).at(at))?;
                file.write_at(there, piece).map_err(|error| Error::io("cannot write", error).at(there))?;
                at += n;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
