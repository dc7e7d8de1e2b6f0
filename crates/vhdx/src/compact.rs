//! Giving back what nothing uses of the file, and taking all data out of it at once.
//!
//! Entries lose the places that say nothing; then what stands last moves into the gaps in front, blocks, sector bitmaps
//! and regions alike, and the file is cut. What moves is copied, durably, before it counts in its new place; its old one is
//! left alone until then. A disk is emptied by another BAT that says nothing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use cowhand_core::{Error, ErrorKind, Progress, Result};

use crate::bat::{self, Block};
use crate::check::places::{Owner, Place, Seen};
use crate::draft::Draft;
use crate::layer::VhdxLayer;
use crate::region::Region;
use crate::space::make_zero;
use crate::state::State;
use crate::writer::Alone;

/// Moves before the table is written: a run that is stopped loses no more.
const BATCH: u64 = 64;
/// What is looked for at once of what stands last in the file: 8 MiB.
const MOST: usize = 1 << 18;

/// What can be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Block(u64),
    /// The sector bitmap that has this block's bits.
    Bitmap(u64),
    Bat,
    Metadata,
}

impl VhdxLayer {
    /// See `Layer::compact`.
    pub(crate) fn compact_file(&self, progress: &dyn Progress) -> Result<()> {
        if self.state().keeps_blocks() {
            return self.flush_all();
        }
        let alone = self.alone()?;
        let used = self.drop_idle(&alone)?;
        self.write_all_back(&alone)?;
        // What a power cut left behind the last of it goes too.
        alone.ready.space().loosen();
        self.tighten(alone.writer, alone.ready)?;
        let gaps = alone.ready.space().end().saturating_sub(used);
        let done = self.move_down(&alone, gaps, progress);
        // What was moved is of use also where it was stopped.
        self.write_all_back(&alone)?;
        self.tighten(alone.writer, alone.ready)?;
        done
    }

    /// Takes places away that say nothing: of blocks that are zero, of children's blocks and sector bitmaps without a
    /// sector, of blocks that the disk does not have. Answers how many bytes of the file are in use then.
    fn drop_idle(&self, alone: &Alone<'_>) -> Result<u64> {
        let state = self.state();
        let regions = state.regions.taken().iter();
        let mut used: u64 = regions.map(|(range, _)| range.end - range.start).sum();
        let ratio = state.geometry.chunk_ratio();
        // The chunk of the last block seen that is partly present.
        let mut partial = None;
        self.disk(&state).walk(&mut |seen| {
            let (entry, place, read) = match seen {
                Seen::Place(Place { range, entry, read }) => (entry, Some(range), read),
                Seen::Other(entry) => (entry, None, false),
                Seen::Zeros(_) | Seen::Wrong(..) => return Ok(()),
            };
            let keep = match entry.owner {
                Owner::Block(block) if read => {
                    let is_partial = bat::state(entry.raw) == bat::State::Partial;
                    let at = block * state.geometry.block_size;
                    let empty =
                        is_partial && self.bits(&state, at, state.used(block))? == (state.used(block), false);
                    if is_partial && !empty {
                        partial = Some(block / ratio);
                    }
                    !empty
                }
                Owner::Bitmap(chunk) if read => partial == Some(chunk),
                _ => false,
            };
            if keep {
                used += place.map_or(0, |range| range.end - range.start);
                return Ok(());
            }
            let instead = match (entry.owner, bat::state(entry.raw)) {
                (Owner::Block(_), bat::State::NotPresent | bat::State::Partial) => Block::NotPresent,
                (Owner::Block(_), _) => Block::Zero,
                _ => Block::NotPresent,
            };
            if entry.raw != instead.encode() {
                self.edit(alone, &[state.table.set(entry.number, instead.encode())])?;
            }
            place.into_iter().for_each(|range| self.give_up(alone, range));
            Ok(())
        })?;
        Ok(used)
    }

    /// Moves what stands last, as long as there is a gap for it. `gaps`: bytes of them, more than are moved.
    fn move_down(&self, alone: &Alone<'_>, gaps: u64, progress: &dyn Progress) -> Result<()> {
        let (mut moves, mut moved) = (0, 0);
        loop {
            let last = self.last_items()?;
            if last.is_empty() {
                return Ok(());
            }
            for (range, item) in last {
                if !self.move_item(alone, item, range.start)? {
                    return Ok(());
                }
                moves += 1;
                moved += range.end - range.start;
                if moves % BATCH == 0 {
                    self.write_all_back(alone)?;
                }
                if progress.at(moved.min(gaps), gaps).is_break() {
                    return Err(Error::new(ErrorKind::Cancelled, "stopped on request"));
                }
            }
            self.write_all_back(alone)?;
        }
    }

    /// What stands last in the file, the last one first.
    fn last_items(&self) -> Result<Vec<(Range<u64>, Item)>> {
        let state = self.state();
        let ratio = state.geometry.chunk_ratio();
        let mut last = BinaryHeap::new();
        let mut add = |range: Range<u64>, item| {
            last.push(Reverse((range.start, range.end, item)));
            if last.len() > MOST {
                last.pop();
            }
        };
        for (region, item) in [(state.regions.bat, Item::Bat), (state.regions.metadata, Item::Metadata)] {
            add(region.offset..region.offset + region.length, item);
        }
        self.disk(&state).walk(&mut |seen| {
            if let Seen::Place(place) = seen {
                match place.entry.owner {
                    Owner::Block(block) => add(place.range, Item::Block(block)),
                    Owner::Bitmap(chunk) => add(place.range, Item::Bitmap(chunk * ratio)),
                    Owner::Nobody => {}
                }
            }
            Ok(())
        })?;
        Ok(last.into_sorted_vec().into_iter().map(|Reverse((start, end, item))| (start..end, item)).collect())
    }

    /// Moves what stands at `at` to the first gap that it fits into, if that is in front. Answers whether it did.
    fn move_item(&self, alone: &Alone<'_>, item: Item, at: u64) -> Result<bool> {
        let regions = &self.state().regions;
        match item {
            Item::Block(block) => self.move_block(alone, block, at),
            Item::Bitmap(block) => self.move_bitmap(alone, block, at),
            Item::Bat => self.move_region(alone, regions.bat, |bat| (bat, regions.metadata)),
            Item::Metadata => self.move_region(alone, regions.metadata, |metadata| (regions.bat, metadata)),
        }
    }

    /// `both`: where the BAT and the metadata stand when this one does there.
    fn move_region(
        &self,
        alone: &Alone<'_>,
        from: Region,
        both: impl FnOnce(Region) -> (Region, Region),
    ) -> Result<bool> {
        self.write_all_back(alone)?;
        let Some(place) = alone.ready.space().take_below(from.length, from.offset) else { return Ok(false) };
        let place = self.taken(place)?;
        let old = from.offset..from.offset + from.length;
        if let Err(error) = self.copy(old.clone(), &place) {
            self.untake(alone, place);
            return Err(error);
        }
        let (bat, metadata) = both(Region { offset: place.at(), ..from });
        self.place_regions(alone, bat, metadata)?;
        self.give_up(alone, old);
        Ok(true)
    }

    /// Makes the regions count that stand there.
    fn place_regions(&self, alone: &Alone<'_>, bat: Region, metadata: Region) -> Result<()> {
        let mut draft = Draft::of(self.file.as_ref());
        let regions = self.regions_at(&mut draft, bat, metadata)?;
        let state = State::of(self.state().metadata.clone(), regions, &self.pages)?;
        self.change(alone, &draft.into_sectors(), state)
    }

    /// See `Layer::clear`.
    pub(crate) fn clear_disk(&self) -> Result<()> {
        let alone = self.alone()?;
        let state = self.state();
        if state.keeps_blocks() {
            return Err(Error::unsupported("a fixed VHDX keeps its blocks, and cannot be emptied")
                .hint("convert it with -o subformat=dynamic"));
        }
        self.touch_visibly(&alone)?;
        // Nothing that was freed before is still waiting to be given back.
        self.tighten(alone.writer, alone.ready)?;
        let place = self.reserve(&alone, state.regions.bat.length)?;
        let bat = Region { offset: place.at(), ..state.regions.bat };
        self.place_regions(&alone, bat, state.regions.metadata)?;
        // Nobody reads what the old table named any more; and the new one goes to the front, so that the file can end there.
        drop(state);
        self.wait_for_reads(alone.writer);
        let state = self.state();
        alone.ready.space().keep_only(state.regions.taken().iter().map(|(range, _)| range));
        let home = alone.ready.space().take_below(bat.length, bat.offset);
        if let Some(home) = home {
            let home = self.taken(home)?;
            make_zero(self.file.as_ref(), home.range.start..home.clean_from)?;
            let at = Region { offset: home.at(), ..bat };
            self.place_regions(&alone, at, state.regions.metadata)?;
            self.give_up(&alone, bat.offset..bat.offset + bat.length);
        }
        self.write_all_back(&alone)?;
        self.tighten(alone.writer, alone.ready)
    }
}
