//! What a file says of itself and of its parent, changed in place: the metadata, and the entries that go with it, in one
//! commit.

use std::ops::Range;

use cowhand_core::{Error, Kind, Layer, Options, ParentRef, Result};

use crate::amend::Amend;
use crate::bat::{Block, ENTRY};
use crate::bytes::MIB;
use crate::create::same_sectors;
use crate::draft::Draft;
use crate::guid::Guid;
use crate::items;
use crate::journal::MOST;
use crate::layer::VhdxLayer;
use crate::locator::Locator;
use crate::metadata::Metadata;
use crate::naming;
use crate::region::{Region, Regions};
use crate::space::make_zero;
use crate::state::State;
use crate::writer::Alone;

impl VhdxLayer {
    /// See `Layer::set_parent`.
    pub(crate) fn name_parent(&self, parent: Option<&ParentRef>) -> Result<()> {
        let state = self.state();
        if parent.is_none() && !state.is_differencing() {
            return self.flush();
        }
        let locator = parent.map(|parent| fitting(&state, parent)).transpose()?;
        let alone = self.alone()?;
        let state = self.state();
        let metadata = Metadata {
            leave_blocks_allocated: state.metadata.leave_blocks_allocated && locator.is_some(),
            parent: locator,
            ..state.metadata.clone()
        };
        let mut draft = Draft::of(self.file.as_ref());
        let (mut regions, mut freed) = (state.regions.clone(), Vec::new());
        match (state.is_differencing(), metadata.parent.is_some()) {
            (true, false) => freed = self.complete(&alone, &mut draft)?,
            (false, true) => {
                self.clear_bitmap_entries(&alone, &mut draft)?;
                let needed = (state.geometry.entries(true) * ENTRY).next_multiple_of(MIB);
                if needed > regions.bat.length {
                    self.spill(&alone, &mut draft, 0)?;
                    freed.push(regions.bat.offset..regions.bat.offset + regions.bat.length);
                    regions = self.longer_bat(&alone, &mut draft, needed)?;
                }
            }
            _ => {}
        }
        let next = State::of(metadata, regions, &self.pages)?;
        self.relabel(&alone, draft, next)?;
        freed.into_iter().for_each(|place| self.give_up(&alone, place));
        Ok(())
    }

    /// See `Layer::expect_parent`.
    pub(crate) fn note_identity(&self, id: Guid) -> Result<()> {
        let expects =
            |state: &State| state.metadata.parent.as_ref().is_none_or(|locator| locator.expects(id));
        if expects(&self.state()) {
            return self.flush();
        }
        let alone = self.alone()?;
        let state = self.state();
        let Some(locator) = &state.metadata.parent else { return Ok(()) };
        let metadata = Metadata { parent: Some(locator.expecting(id)), ..state.metadata.clone() };
        let next = State { metadata, ..State::clone(&state) };
        self.relabel(&alone, Draft::of(self.file.as_ref()), next)
    }

    /// See `Layer::amend`.
    pub(crate) fn amend_with(&self, options: &Options) -> Result<()> {
        let amend = Amend::of(options)?;
        let alone = self.alone()?;
        let state = self.state();
        let metadata = amend.metadata(&state.metadata);
        match (amend.data_write_guid, &alone.writer.journal) {
            (Some(guid), Some(journal)) => journal.identify(guid)?,
            (Some(_), None) => {
                return Err(Error::unsupported("was just made, and has the id it was made with"));
            }
            // The disk is another to its guest, and so to its children.
            (None, _) if metadata != state.metadata => self.touch_visibly(&alone)?,
            (None, _) => {}
        }
        let next = State { metadata, ..State::clone(&state) };
        self.relabel(&alone, Draft::of(self.file.as_ref()), next)
    }

    /// Makes the file say what `next` does, with what `draft` changes.
    fn relabel<'a>(&'a self, alone: &Alone<'_>, mut draft: Draft<'a>, next: State) -> Result<()> {
        let mut metadata = Draft::of(self.file.as_ref());
        items::put(&mut metadata, self.file.as_ref(), next.regions.metadata, &next.metadata)?;
        if draft.len() + metadata.len() > MOST && draft.len() > 0 {
            let sectors = std::mem::replace(&mut draft, Draft::of(self.file.as_ref())).into_sectors();
            // The draft may have moved the BAT: from here on it counts where it is now, whatever becomes of the rest.
            let between = State { metadata: self.state().metadata.clone(), ..State::clone(&next) };
            self.change(alone, &sectors, between)?;
        }
        draft.and(metadata);
        self.change(alone, &draft.into_sectors(), next)
    }

    /// Where `draft` has more than `most` sectors, they change now.
    fn spill<'a>(&'a self, alone: &Alone<'_>, draft: &mut Draft<'a>, most: usize) -> Result<()> {
        if draft.len() > most {
            let sectors = std::mem::replace(draft, Draft::of(self.file.as_ref())).into_sectors();
            self.change(alone, &sectors, State::clone(&self.state()))?;
        }
        Ok(())
    }

    /// Makes a child's blocks what they can be in a disk without a parent: such as were here in part are whole, with
    /// zeros where the parent showed through, and sector bitmaps are no more. Answers where those stood.
    ///
    /// What does not fit into one commit with the rest changes before it: blocks are zero then where the parent, as the
    /// caller knows, has zeros.
    fn complete<'a>(&'a self, alone: &Alone<'_>, draft: &mut Draft<'a>) -> Result<Vec<Range<u64>>> {
        let state = self.state();
        let geometry = &state.geometry;
        state.payload(&mut |block, raw| {
            let Ok(Block::Partial(place)) = state.decode(block, raw, self.file_len()) else { return Ok(()) };
            let start = block * geometry.block_size;
            let end = start + state.used(block);
            let mut at = start;
            while at < end {
                let found = self.extent(at, end - at)?;
                if found.kind == Kind::Hole {
                    let here = place + (at - start);
                    make_zero(self.file.as_ref(), here..here + found.len)?;
                }
                at += found.len;
            }
            let entry = state.table.offset_of(geometry.entry_of(block));
            draft.write("BAT", entry, &Block::Full(place).encode().to_le_bytes())?;
            self.spill(alone, draft, MOST - 2)
        })?;
        let mut freed = Vec::new();
        for chunk in 0..geometry.blocks().div_ceil(geometry.chunk_ratio()) {
            let first = chunk * geometry.chunk_ratio();
            freed.extend(state.bitmap(first, self.file_len())?.map(|at| at..at + MIB));
            self.clear_entry(alone, draft, geometry.bitmap_entry_of(first))?;
        }
        Ok(freed)
    }

    /// Takes away what may stand in entries that mean nothing yet and will be of sector bitmaps, or of blocks behind the
    /// disk's end.
    fn clear_bitmap_entries<'a>(&'a self, alone: &Alone<'_>, draft: &mut Draft<'a>) -> Result<()> {
        let state = self.state();
        let geometry = &state.geometry;
        for chunk in 0..geometry.blocks().div_ceil(geometry.chunk_ratio()) {
            self.clear_entry(alone, draft, geometry.bitmap_entry_of(chunk * geometry.chunk_ratio()))?;
        }
        for entry in geometry.entries(false)..geometry.entries(true) {
            self.clear_entry(alone, draft, entry)?;
        }
        Ok(())
    }

    fn clear_entry<'a>(&'a self, alone: &Alone<'_>, draft: &mut Draft<'a>, entry: u64) -> Result<()> {
        let State { table, regions, .. } = &*self.state();
        if entry < regions.bat.length / ENTRY && table.entry(entry)? != 0 {
            draft.write("BAT", table.offset_of(entry), &[0; ENTRY as usize])?;
        }
        self.spill(alone, draft, MOST - 2)
    }

    /// Writes the BAT of a disk without a parent to a place of `needed` bytes, with zeros behind it, and has `draft` take it
    /// into use.
    fn longer_bat(&self, alone: &Alone<'_>, draft: &mut Draft<'_>, needed: u64) -> Result<Regions> {
        let State { regions, geometry, .. } = &*self.state();
        let place = self.take(alone.ready, needed)?;
        let old = regions.bat.offset..regions.bat.offset + geometry.entries(false) * ENTRY;
        if let Err(error) = self.copy(old, &place) {
            self.untake(alone, place);
            return Err(error);
        }
        let bat = Region { offset: place.at(), length: needed };
        self.regions_at(draft, bat, regions.metadata)
    }
}

/// The locator of `parent` in a disk of this state, if it can have that parent.
fn fitting(state: &State, parent: &ParentRef) -> Result<Locator> {
    if state.keeps_blocks() {
        return Err(Error::unsupported("is a fixed VHDX, which has no parent")
            .hint("convert it to a dynamic one first"));
    }
    if let Some(sector) = parent.sector.filter(|sector| *sector != state.metadata.logical_sector) {
        return Err(same_sectors(sector));
    }
    naming::locator(parent, state.metadata.parent.as_ref())
}

#[cfg(test)]
mod tests;
