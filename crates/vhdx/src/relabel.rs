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
use crate::metadata::Metadata;
use crate::naming;
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
        let next = State::of(metadata, state.regions.clone(), &self.pages)?;
        let mut draft = Draft::of(self.file.as_ref());
        let freed = match (state.is_differencing(), next.is_differencing()) {
            (true, false) => self.complete(&alone, &mut draft)?,
            (false, true) => self.clear_bitmap_entries(&alone, &mut draft).map(|()| Vec::new())?,
            _ => Vec::new(),
        };
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
        if draft.len() + metadata.len() > MOST {
            self.spill(alone, &mut draft, 0)?;
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
        let table = &self.state().table;
        if table.entry(entry)? != 0 {
            draft.write("BAT", table.offset_of(entry), &[0; ENTRY as usize])?;
        }
        self.spill(alone, draft, MOST - 2)
    }
}

/// The locator of `parent` in a disk of this state, if it can have that parent.
fn fitting(state: &State, parent: &ParentRef) -> Result<crate::locator::Locator> {
    if state.keeps_blocks() {
        return Err(Error::unsupported("is a fixed VHDX, which has no parent")
            .hint("convert it to a dynamic one first"));
    }
    if let Some(sector) = parent.sector.filter(|sector| *sector != state.metadata.logical_sector) {
        return Err(same_sectors(sector));
    }
    let locator = naming::locator(parent, state.metadata.parent.as_ref())?;
    let entries = state.geometry.entries(true);
    if entries * ENTRY > state.regions.bat.length {
        return Err(Error::unsupported(format!(
            "has no room in its BAT for the {entries} entries of a disk with a parent"
        ))
        .hint("convert it into a new image with that parent"));
    }
    Ok(locator)
}

#[cfg(test)]
mod tests;
