//! Changing the disk's size: one commit, by which a power cut leaves the old size or the new one.
//!
//! What is new says that it is zero before it is there: nobody looks at entries behind the disk's last block. Where the
//! BAT has no room for them, a longer one is written to a free place, and that commit takes it into use too.

use std::ops::Range;

use cowhand_core::{Error, Kind, Prealloc, Result, is_zero};

use crate::bat::{Block, ENTRY, Geometry};
use crate::bytes::{self, MIB};
use crate::check::places::{Disk, Owner, Seen};
use crate::create::preallocate;
use crate::draft::Draft;
use crate::items;
use crate::layer::VhdxLayer;
use crate::metadata::{MAX_SIZE, Metadata};
use crate::pages::Edit;
use crate::region::{Region, Regions};
use crate::space::{Place, make_zero};
use crate::state::State;
use crate::write::Part;
use crate::writer::Alone;

/// Bytes that are read or written at once.
const PIECE: u64 = 1 << 20;

/// What the entries of new blocks say.
struct New {
    /// Blocks before this one are zero, whatever the parent has.
    zero_until: u64,
    /// The first of them, and where it stands; the others stand behind it.
    stored: Option<(u64, u64)>,
}

impl New {
    /// No entry says anything.
    fn is_silent(&self) -> bool {
        self.zero_until == 0 && self.stored.is_none()
    }

    fn block(&self, block: u64, block_size: u64) -> Block {
        match self.stored {
            Some((first, at)) => Block::Full(at + block.saturating_sub(first) * block_size),
            None if block < self.zero_until => Block::Zero,
            None => Block::NotPresent,
        }
    }
}

/// A table that becomes longer.
struct Longer<'a> {
    old: &'a State,
    size: Geometry,
    new: New,
}

/// The number of the first entry of a piece, what it says, and what it shall say.
type See<'a> = dyn FnMut(u64, &[u8], &[u8]) -> Result<()> + 'a;

impl Longer<'_> {
    /// What an entry shall say that says `raw`, or has nothing to say yet.
    fn entry(&self, number: u64, raw: u64) -> u64 {
        let (size, old) = (self.size, self.old.geometry);
        let block = size.block_at(number);
        if size.entry_of(block) == number {
            match block {
                _ if block < old.blocks() => raw,
                _ if block < size.blocks() => self.new.block(block, size.block_size).encode(),
                _ => 0,
            }
        } else {
            // The sector bitmap of the chunk in front of that block.
            let had = block.saturating_sub(size.chunk_ratio()) < old.blocks();
            if self.old.is_differencing() && had { raw } else { 0 }
        }
    }

    fn entries(&self) -> u64 {
        self.size.entries(self.old.is_differencing())
    }
}

impl VhdxLayer {
    /// See `Layer::resize`.
    pub(crate) fn resize_to(&self, size: u64, prealloc: Prealloc, below: u64) -> Result<()> {
        let state = self.state();
        let size = size
            .checked_next_multiple_of(state.geometry.sector)
            .filter(|size| *size <= MAX_SIZE)
            .ok_or_else(|| {
                Error::invalid(format!("{size} bytes are too many: a VHDX holds at most 64 TiB"))
            })?;
        if !state.keeps_blocks() && matches!(prealloc, Prealloc::Falloc | Prealloc::Full) {
            return Err(Error::unsupported("preallocation is for a fixed image")
                .hint("leave it out, or convert the disk to subformat=fixed"));
        }
        drop(state);
        let alone = self.alone()?;
        let old = self.state().geometry.size;
        if size == old {
            return Ok(());
        }
        self.touch_visibly(&alone)?;
        if size > old { self.grow(&alone, size, prealloc, below) } else { self.shrink(&alone, size) }
    }

    pub(crate) fn grow(&self, alone: &Alone<'_>, size: u64, prealloc: Prealloc, below: u64) -> Result<()> {
        self.clear_tail(alone, below)?;
        self.write_all_back(alone)?;
        let mut taken = Vec::new();
        let done = self.take_longer(alone, size, prealloc, below, &mut taken);
        if done.is_err() {
            taken.into_iter().for_each(|place| self.untake(alone, place));
        }
        done
    }

    /// `taken`: the room that this took, of which nothing is in use where it fails.
    fn take_longer(
        &self,
        alone: &Alone<'_>,
        size: u64,
        prealloc: Prealloc,
        below: u64,
        taken: &mut Vec<Place>,
    ) -> Result<()> {
        let state = self.state();
        let geometry = Geometry { size, ..state.geometry };
        let first = state.geometry.blocks();
        let mut new = New { zero_until: 0, stored: None };
        if state.keeps_blocks() && geometry.blocks() > first {
            let len = (geometry.blocks() - first) * geometry.block_size;
            let place = self.reserve(alone, len)?;
            new.stored = Some((first, place.at()));
            taken.push(place.clone());
            preallocate(self.file.as_ref(), place.at(), len, prealloc)?;
        } else if state.is_differencing() && below > state.geometry.size {
            new.zero_until = below.div_ceil(geometry.block_size);
        }
        let longer = Longer { old: &state, size: geometry, new };
        let needed = (longer.entries() * ENTRY).next_multiple_of(MIB);
        let metadata = Metadata { size, ..state.metadata.clone() };
        let old = state.regions.bat;
        if needed <= old.length {
            self.set_entries(alone, &longer)?;
            self.write_all_back(alone)?;
            return self.change_size(alone, metadata, old);
        }
        let place = self.take(alone.ready, needed)?;
        taken.push(place.clone());
        let bat = Region { offset: place.at(), length: needed };
        make_zero(self.file.as_ref(), place.range.start..place.clean_from)?;
        self.write_table(&longer, bat.offset)?;
        self.change_size(alone, metadata, bat)?;
        self.give_up(alone, old.offset..old.offset + old.length);
        Ok(())
    }

    /// Takes this metadata and the table in that place into use.
    fn change_size(&self, alone: &Alone<'_>, metadata: Metadata, bat: Region) -> Result<()> {
        let state = self.state();
        let file = self.file.as_ref();
        let mut draft = Draft::of(file);
        items::put(&mut draft, file, state.regions.metadata, &metadata)?;
        let regions = match bat == state.regions.bat {
            true => state.regions.clone(),
            false => self.regions_at(&mut draft, bat, state.regions.metadata)?,
        };
        let state = State::of(metadata, regions, &self.pages)?;
        self.change(alone, &draft.into_sectors(), state)
    }

    /// The regions as they are when these two stand there, which the tables shall say.
    pub(crate) fn regions_at(&self, draft: &mut Draft<'_>, bat: Region, metadata: Region) -> Result<Regions> {
        Regions::put(draft, self.file.as_ref(), self.file_len(), &self.header().log, bat, metadata)
    }

    /// Makes what the last block holds behind the disk's end zero, and the disk's own where a parent would show.
    fn clear_tail(&self, alone: &Alone<'_>, below: u64) -> Result<()> {
        let state = self.state();
        let Geometry { size, block_size, sector } = state.geometry;
        let (block, within) = (size / block_size, size % block_size);
        if within == 0 {
            return Ok(());
        }
        let shows = state.is_differencing() && below > size;
        let zero = |at: u64| {
            // The file may end where the disk does.
            let mut space = alone.ready.space();
            space.reach(self.file.as_ref(), at + block_size)?;
            self.grown(space.file_len());
            drop(space);
            make_zero(self.file.as_ref(), at + within..at + block_size)
        };
        match state.block(block, self.file_len())? {
            Block::Full(at) => zero(at),
            Block::Partial(at) => {
                zero(at)?;
                let bitmap = self.bitmap(alone.writer, alone.ready, &state, block)?;
                let bits = state.bits(block, within / sector..block_size / sector);
                self.edit(alone, &[Edit::Bits { at: bitmap, bits, present: shows }])
            }
            Block::NotPresent if shows => {
                let part = Part { block, within, len: block_size - within };
                self.write_new(alone.writer, alone.ready, &state, part, Block::NotPresent, |place| {
                    let end = (place.at() + block_size).min(place.clean_from);
                    make_zero(self.file.as_ref(), place.at() + within..end)
                })
            }
            Block::NotPresent | Block::Zero => Ok(()),
        }
    }

    /// Shows the entries of `longer` from `first` on to `see`, in pieces of the file.
    fn each_entry(&self, longer: &Longer<'_>, first: u64, see: &mut See<'_>) -> Result<()> {
        let Region { offset, length } = longer.old.regions.bat;
        let entries = longer.entries();
        let mut number = first;
        while number < entries {
            let count = (entries - number).min(PIECE / ENTRY);
            let (start, end) = (number * ENTRY, (number + count) * ENTRY);
            let there = end.min(length).saturating_sub(start);
            let failed = |error| Error::io("cannot find the holes of the BAT", error).at(offset + start);
            let data = self.file.data_at(offset + start).map_err(failed)?;
            let has_data = there > 0 && data.is_some_and(|data| data.start < offset + end);
            if !has_data && longer.new.is_silent() {
                number += count;
                continue;
            }
            let mut old = vec![0; (end - start) as usize];
            if has_data {
                let piece = old.get_mut(..there as usize).unwrap_or_default();
                bytes::read(self.file.as_ref(), "BAT", offset + start, piece)?;
            }
            let mut new = old.clone();
            let (words, _) = new.as_chunks_mut();
            for (nth, word) in (number..).zip(words) {
                *word = longer.entry(nth, u64::from_le_bytes(*word)).to_le_bytes();
            }
            see(number, &old, &new)?;
            number += count;
        }
        Ok(())
    }

    /// Writes all of the table to `at`, where nobody looks yet and zeros stand.
    fn write_table(&self, longer: &Longer<'_>, at: u64) -> Result<()> {
        self.each_entry(longer, 0, &mut |number, _, new| match is_zero(new) {
            true => Ok(()),
            false => bytes::write(self.file.as_ref(), "BAT", at + number * ENTRY, new),
        })
    }

    /// Makes the entries of the new blocks say what they shall, in the table that is there.
    fn set_entries(&self, alone: &Alone<'_>, longer: &Longer<'_>) -> Result<()> {
        let table = &longer.old.table;
        let first = longer.size.entry_of(longer.old.geometry.blocks());
        self.each_entry(longer, first, &mut |number, old, new| {
            if old == new {
                return Ok(());
            }
            let ((old, _), (new, _)) = (old.as_chunks::<8>(), new.as_chunks::<8>());
            let differ = (number..).zip(old.iter().zip(new)).filter(|(_, (old, new))| old != new);
            for (number, (_, new)) in differ {
                self.edit(alone, &[table.set(number, u64::from_le_bytes(*new))])?;
            }
            Ok(())
        })
    }

    fn shrink(&self, alone: &Alone<'_>, size: u64) -> Result<()> {
        let old = self.state();
        self.change_size(alone, Metadata { size, ..old.metadata.clone() }, old.regions.bat)?;
        // From here on nobody counts on what stands behind.
        let blocks = self.state().geometry.blocks();
        let chunks = blocks.div_ceil(old.geometry.chunk_ratio());
        let is_behind = |owner| match owner {
            Owner::Block(block) => block >= blocks,
            Owner::Bitmap(chunk) => chunk >= chunks,
            Owner::Nobody => true,
        };
        self.disk(&old).walk(&mut |seen| {
            let (entry, place) = match seen {
                Seen::Place(place) => (place.entry, Some(place.range)),
                Seen::Other(entry) | Seen::Wrong(entry, _) => (entry, None),
                Seen::Zeros(_) => return Ok(()),
            };
            if is_behind(entry.owner) {
                self.edit(alone, &[old.table.set(entry.number, 0)])?;
                place.into_iter().for_each(|range| self.give_up(alone, range));
            }
            Ok(())
        })?;
        self.write_all_back(alone)?;
        self.tighten(alone.writer, alone.ready)
    }

    /// The disk that `state` tells of, for who looks at all of its table. All that was published is in the file.
    pub(crate) fn disk<'a>(&'a self, state: &'a State) -> Disk<'a> {
        Disk {
            file: self.file.as_ref(),
            regions: &state.regions,
            geometry: state.geometry,
            differencing: state.is_differencing(),
            len: self.file_len(),
        }
    }

    /// See `Layer::may_shrink`. What reads zero is no loss.
    pub(crate) fn refuse_to_cut(&self, range: Range<u64>) -> Result<()> {
        use cowhand_core::Layer;
        let Range { start: mut here, end } = range;
        let mut buf = vec![0; end.saturating_sub(here).min(PIECE) as usize];
        while here < end {
            let found = self.extent(here, end - here)?;
            if found.kind != Kind::Data {
                here += found.len;
                continue;
            }
            let piece = buf.get_mut(..found.len.min(PIECE) as usize).unwrap_or_default();
            let found = self.read(here, piece)?;
            let piece = piece.get(..found.len as usize).unwrap_or_default();
            if found.kind == Kind::Data && !is_zero(piece) {
                let first = piece.iter().position(|byte| *byte != 0).unwrap_or(0) as u64;
                return Err(Error::unsupported(format!(
                    "the disk holds data at offset {}, which would be lost",
                    here + first
                ))
                .hint("let the guest make what it has there smaller first, or pass --force"));
            }
            here += found.len;
        }
        Ok(())
    }
}
