//! What a file says of itself and of its parent, changed in place: the mark that hides it, ids and times, and which
//! parent it has.
//!
//! The header is two sectors long, so a disk may write half of it. Another header is therefore written where nothing
//! stands, with the parent's new locators beside it, and taken into use by the footers, which name its place and are one
//! sector each. Then it is written to where all programs expect it, behind the footer's copy, which nothing refers to by
//! then, and the footers name that place again.

use std::ops::Range;

use cowhand_core::{Error, Extent, Kind, Layer, Options, ParentRef, Result};

use crate::amend::Amend;
use crate::bitmap;
use crate::dynamic::{Dynamic, State};
use crate::footer::{DiskType, FOOTER_LEN};
use crate::geometry::SECTOR;
use crate::header::HEADER_LEN;
use crate::locator;
use crate::naming::{self, Naming, ROOM};
use crate::space::make_zero;
use crate::writer::Alone;

/// Where every program writes the header.
const HOME: Range<u64> = FOOTER_LEN..FOOTER_LEN + HEADER_LEN;
/// Zeros that are written at once.
const ZEROS: u64 = 1 << 20;

impl Dynamic {
    /// See `Layer::set_parent`.
    pub(crate) fn name_parent(&self, parent: Option<&ParentRef>) -> Result<()> {
        let state = self.state();
        let naming = parent.map(|parent| Naming::of(parent, &state.locators)).transpose()?;
        let naming = if state.footer.made_by_blktap() { naming.map(Naming::of_blktap) } else { naming };
        match (&naming, self.is_differencing()) {
            (None, false) => return self.flush(),
            (Some(_), false) => self.fill_absent()?,
            _ => {}
        }
        let alone = self.alone()?;
        if naming.is_none() {
            self.clean_absent(&alone)?;
        }
        self.change_header(&alone, naming.as_ref())
    }

    /// Writes the zeros that absent sectors of a dynamic disk's blocks are: over a parent they would be holes.
    fn fill_absent(&self) -> Result<()> {
        let size = self.size();
        let mut zeros = Vec::new();
        let mut at = 0;
        while at < size {
            let Extent { len, kind, .. } = self.extent(at, size - at)?;
            let end = at + len;
            while kind == Kind::Zero && at < end {
                let n = (end - at).min(ZEROS);
                zeros.resize(n as usize, 0);
                self.write(at, &zeros)?;
                at += n;
            }
            at = end;
        }
        Ok(())
    }

    /// Makes the bytes zero that stand in the places of absent sectors: in a dynamic disk such a sector is zero, and QEMU
    /// reads what stands there without a look at the bitmaps.
    fn clean_absent(&self, alone: &Alone<'_>) -> Result<()> {
        let state = self.state();
        for (block, _) in state.bat.in_use() {
            let sectors = state.used(block).div_ceil(SECTOR);
            let mut absent = Vec::new();
            self.look(&state, block, |place, bits| {
                let mut at = 0;
                while at < sectors {
                    let (run, present) = bitmap::run(bits, self.order, at, sectors);
                    if !present {
                        let start = place + self.bitmap_len + at * SECTOR;
                        absent.push(start..start + run * SECTOR);
                    }
                    at += run;
                }
            })?;
            for range in absent {
                make_zero(self.file.as_ref(), range.start, range.end - range.start)?;
            }
        }
        self.barrier(alone.writer)
    }

    /// Puts another header, with this parent or none, in the place of the one that counts, durably.
    fn change_header(&self, alone: &Alone<'_>, naming: Option<&Naming>) -> Result<()> {
        let (file, old) = (self.file.as_ref(), self.state());
        let home_is_free =
            !self.metadata(alone, &old).iter().any(|used| used.start < HOME.end && HOME.start < used.end);
        // Where its own place is neither free nor what the file uses now, it stays where it is.
        let home = if home_is_free || old.header.at == HOME.start { HOME.start } else { old.header.at };
        let needs: Vec<u64> = naming.iter().flat_map(|naming| naming.needs()).collect();
        let (spare, places) = self.places(alone, &old, old.header.at == home, &needs)?;

        let mut header = old.header.clone();
        match naming {
            Some(naming) => {
                naming.put(&mut header, &places);
                naming.write(file, &places)?;
            }
            None => naming::clear(&mut header),
        }
        let locators =
            if naming.is_some() { locator::read(file, &header, self.file_len())? } else { Vec::new() };
        let disk_type = if naming.is_some() { DiskType::Differencing } else { DiskType::Dynamic };
        for at in spare.into_iter().chain([home]) {
            let mut state = State::clone(&self.state());
            header.at = at;
            (state.footer.header_at, state.footer.disk_type) = (at, disk_type);
            (state.header, state.locators) = (header.clone(), locators.clone());
            // After a failure nobody knows which footer and which header count, before it is opened again.
            self.switch(alone, state).inspect_err(|_| alone.writer.fail())?;
        }
        self.find_metadata_end(alone);
        // Also where barriers are left out.
        self.sync(alone.writer)
    }

    /// Writes the header of `state` to a place that nothing refers to, and then has the footers refer to it.
    fn switch(&self, alone: &Alone<'_>, state: State) -> Result<()> {
        let at = state.header.at;
        self.file
            .write_at(at, &state.header.to_bytes())
            .map_err(|error| Error::io("cannot write the dynamic header", error).at(at))?;
        self.barrier(alone.writer)?;
        self.write_footers(alone.writer, &state.footer, self.data_end())?;
        self.set_state(state);
        Ok(())
    }

    /// What the file uses in front of its blocks, or has used until now.
    pub(crate) fn metadata(&self, alone: &Alone<'_>, state: &State) -> Vec<Range<u64>> {
        let header = &state.header;
        let mut used = vec![0..FOOTER_LEN, header.at..header.at + HEADER_LEN];
        if header.max_entries > 0 {
            used.push(header.bat_at..header.bat_end());
        }
        used.extend(alone.ready.batmap_head().into_iter().flat_map(|batmap| [batmap.header(), batmap.map()]));
        // One that leads out of the file is no place of anything.
        let file_len = self.file_len();
        used.extend(header.locators.iter().filter(|raw| raw.code != [0; 4]).filter_map(|raw| {
            let (at, len) = (raw.data_offset.get(), u64::from(raw.data_length.get()));
            let end = at.checked_add(len).filter(|end| *end <= file_len)?;
            Some(at / SECTOR * SECTOR..end.next_multiple_of(SECTOR))
        }));
        used.retain(|range| !range.is_empty());
        used
    }

    /// Where nothing stands: places for a header, if one is wanted, and for locators of these lengths. In front of the
    /// blocks, where it can be, with room for longer names; else at the file's end.
    fn places(
        &self,
        alone: &Alone<'_>,
        state: &State,
        with_header: bool,
        needs: &[u64],
    ) -> Result<(Option<u64>, Vec<Range<u64>>)> {
        let mut used = self.metadata(alone, state);
        used.push(HOME);
        used.sort_by_key(|range| range.start);
        // Of blocks that are no more, some reader may still be at their old places; others were taken since.
        let first_block = state.bat.in_use().map(|(_, entry)| u64::from(entry) * SECTOR).min();
        let front = first_block.unwrap_or(u64::MAX).min(alone.ready.space().front()).min(alone.ready.front);
        let mut gaps = Vec::new();
        let mut taken = 0;
        used.push(front..front);
        for range in used {
            if range.start.min(front) > taken {
                gaps.push(taken..range.start.min(front));
            }
            taken = taken.max(range.end.next_multiple_of(SECTOR));
        }
        let header = with_header.then_some(HEADER_LEN);
        let roomy: Vec<u64> = needs.iter().map(|len| ROOM.max(*len)).collect();
        let fit = |texts: &[u64]| {
            let mut gaps = gaps.clone();
            header.iter().chain(texts).map(|len| carve(&mut gaps, *len)).collect::<Option<Vec<_>>>()
        };
        let found = match fit(&roomy).or_else(|| fit(needs)) {
            Some(found) => found,
            None => {
                let wanted = || header.iter().chain(needs);
                let start = self.reserve(alone, wanted().sum())?;
                let mut end = start;
                wanted()
                    .map(|len| {
                        end += len;
                        end - len..end
                    })
                    .collect()
            }
        };
        let mut found = found.into_iter();
        Ok((if with_header { found.next().map(|range| range.start) } else { None }, found.collect()))
    }

    /// See `Layer::set_hidden`.
    pub(crate) fn hide(&self, hidden: bool) -> Result<()> {
        if (self.state().footer.hidden != 0) == hidden {
            return self.flush();
        }
        let alone = self.alone()?;
        self.rewrite_footers(&alone, |footer| footer.hidden = hidden.into())
    }

    /// See `Layer::amend`.
    pub(crate) fn amend_with(&self, options: &Options) -> Result<()> {
        let amend = Amend::of(options, self.batmap.is_some())?;
        let alone = self.alone()?;
        if amend.is_of_batmap() {
            self.amend_batmap(&alone, |batmap| amend.change_batmap(&mut batmap.marker, &mut batmap.key))?;
        }
        if amend.is_of_footer() {
            self.rewrite_footers(&alone, |footer| amend.change_footer(footer))?;
        }
        self.sync(alone.writer)
    }
}

/// Takes `len` bytes from the first gap that has them.
fn carve(gaps: &mut [Range<u64>], len: u64) -> Option<Range<u64>> {
    let gap = gaps.iter_mut().find(|gap| gap.end - gap.start >= len)?;
    let start = gap.start;
    gap.start += len;
    Some(start..gap.start)
}
