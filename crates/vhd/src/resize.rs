//! Changing the disk's size, and emptying it.
//!
//! The size is the last to change where the disk grows, and the first where it shrinks; what is new reads zero before it
//! is there. A disk is emptied by another table that names no block.

use std::ops::Range;

use cowhand_core::{Error, Extent, Kind, Layer, Prealloc, Result, is_zero};

use crate::bat::FREE;
use crate::creator::Creator;
use crate::dynamic::{Dynamic, State};
use crate::footer::Footer;
use crate::geometry::{Geometry, SECTOR};
use crate::header::MAX_DISK;
use crate::space::make_zero;
use crate::writer::Alone;

/// Bytes that are read or written at once.
const PIECE: u64 = 1 << 20;

/// What a footer says of a disk of `size` bytes, so that every reader takes it for that large: its geometry too where it
/// is believed, unless the creator is one whose size is.
pub(crate) fn resized(footer: &mut Footer, size: u64) {
    let mut creators = Creator::NAMES.iter().map(|name| Creator::by_name(name));
    let exact = creators.any(|creator| creator.app == footer.creator_app && creator.exact);
    let geometry = Geometry::of_sectors(size / SECTOR);
    footer.current_size = size;
    footer.geometry = if exact || geometry.bytes() == size { geometry } else { Geometry::MAX };
}

/// Looks through what a layer holds in `range`. Errors: it is not all zero, and so is not cut off.
pub(crate) fn refuse_data_in(
    range: Range<u64>,
    extent: impl Fn(u64, u64) -> Result<Extent>,
    read: impl Fn(u64, &mut [u8]) -> Result<Extent>,
) -> Result<()> {
    let Range { start: mut here, end } = range;
    let mut buf = vec![0; end.saturating_sub(here).min(PIECE) as usize];
    while here < end {
        let found = extent(here, end - here)?;
        if found.kind != Kind::Data {
            here += found.len;
            continue;
        }
        let piece = buf.get_mut(..found.len.min(PIECE) as usize).unwrap_or_default();
        let found = read(here, piece)?;
        let piece = piece.get(..found.len as usize).unwrap_or_default();
        if found.kind == Kind::Data && !is_zero(piece) {
            let first = piece.iter().position(|byte| *byte != 0).unwrap_or(0) as u64;
            return Err(Error::unsupported(format!(
                "the disk holds data at offset {}, and a VHD is made smaller only where nothing is lost",
                here + first
            ))
            .hint("let the guest make what it has there smaller first, or choose a larger size"));
        }
        here += found.len;
    }
    Ok(())
}

impl Dynamic {
    /// See `Layer::resize`.
    pub(crate) fn resize_to(&self, size: u64, prealloc: Prealloc, below: u64) -> Result<()> {
        let size =
            size.checked_next_multiple_of(SECTOR).filter(|size| *size <= MAX_DISK).ok_or_else(|| {
                Error::invalid(format!(
                "{size} bytes are too large for a dynamic VHD, which has at most 2040 GiB ({MAX_DISK} bytes)"
            ))
            .hint("convert it to vhdx")
            })?;
        if matches!(prealloc, Prealloc::Falloc | Prealloc::Full) {
            return Err(Error::unsupported("preallocation of a dynamic VHD is not supported")
                .hint("leave it out, or convert the disk to subformat=fixed"));
        }
        let alone = self.alone()?;
        let old = self.state().size;
        if size > old {
            self.grow(&alone, old, size, below)
        } else if size < old {
            self.shrink(&alone, size)
        } else {
            Ok(())
        }
    }

    fn grow(&self, alone: &Alone<'_>, old: u64, size: u64, below: u64) -> Result<()> {
        let (writer, ready) = (alone.writer, alone.ready);
        let blocks = size.div_ceil(self.block_size);
        let last = old.div_ceil(self.block_size);
        self.drop_from(alone, last)?;
        let header = self.state().header.clone();
        if blocks > u64::from(header.max_entries) {
            // Never fails: a disk has fewer blocks than 2^32.
            let entries = u32::try_from(blocks).map_err(|_| Error::invalid("has too many blocks"))?;
            self.lengthen_table(alone, entries)?;
        }
        self.clear_tail(alone, old, below)?;
        if self.is_differencing() && below > old {
            for block in last..below.min(size).div_ceil(self.block_size) {
                self.cover(alone, &self.state(), block, 0..self.block_size / SECTOR)?;
                if self.bitmaps.too_dirty() {
                    self.write_back(writer, ready, false)?;
                }
            }
        }
        self.write_back(writer, ready, true)?;
        self.switch_size(alone, size)
    }

    fn shrink(&self, alone: &Alone<'_>, size: u64) -> Result<()> {
        refuse_data_in(
            size..self.state().size,
            |at, max| self.extent(at, max),
            |at, buf| self.read(at, buf),
        )?;
        self.switch_size(alone, size)?;
        self.drop_from(alone, size.div_ceil(self.block_size))?;
        self.tighten(alone.writer, alone.ready)
    }

    /// Takes the blocks from `first` on out of the file, those past the disk's end too: nobody counts on what they say.
    fn drop_from(&self, alone: &Alone<'_>, first: u64) -> Result<()> {
        let state = self.state();
        let behind: Vec<u64> =
            state.bat.in_use().map(|(block, _)| block).filter(|block| *block >= first).collect();
        let (Some(from), Some(to)) = (behind.first(), behind.last()) else { return Ok(()) };
        self.may_be_absent(alone.writer, alone.ready, *from..to + 1)?;
        for block in behind {
            self.free(alone.writer, alone.ready, &state, block)?;
        }
        self.write_back(alone.writer, alone.ready, true)
    }

    /// Makes what the last block holds behind the disk's end zero, and the disk's own where a parent would show.
    fn clear_tail(&self, alone: &Alone<'_>, old: u64, below: u64) -> Result<()> {
        let (block, within) = (old / self.block_size, old % self.block_size);
        if within == 0 {
            return Ok(());
        }
        let mut state = self.state();
        let mut place = self.look(&state, block, |at, _| at)?;
        if place.is_some_and(|at| alone.ready.is_short(at)) {
            // It has no room for what it gets.
            self.move_block(alone, block, u64::MAX)?;
            self.write_back(alone.writer, alone.ready, true)?;
            state = self.state();
            place = self.look(&state, block, |at, _| at)?;
        }
        let sectors = within / SECTOR..self.block_size / SECTOR;
        if self.is_differencing() && below > old {
            return self.cover(alone, &state, block, sectors);
        }
        let Some(at) = place else { return Ok(()) };
        make_zero(self.file.as_ref(), at + self.bitmap_len + within, self.block_size - within)?;
        if self.is_differencing() {
            self.may_be_absent(alone.writer, alone.ready, block..block + 1)?;
            self.set_present(alone.writer, &state, block, sectors, false)?;
        }
        Ok(())
    }

    fn switch_size(&self, alone: &Alone<'_>, size: u64) -> Result<()> {
        let bat = self.table(&self.state().header, size)?;
        self.rewrite_footers(alone, |footer| resized(footer, size))?;
        self.set_state(State { size, bat, ..State::clone(&self.state()) });
        Ok(())
    }

    /// See `Layer::clear`.
    pub(crate) fn clear_disk(&self) -> Result<()> {
        let alone = self.alone()?;
        let ready = alone.ready;
        // Nothing that was freed before is still waiting to be given back.
        self.tighten(alone.writer, ready)?;
        let state = self.state();
        let words = vec![FREE; state.header.max_entries as usize];
        let (mut home, mut home_batmap) = (state.header.clone(), ready.batmap_head());
        if let Some(place) = self.home_of_table(&alone, &state) {
            home.bat_at = place.start;
            home_batmap = home_batmap.map(|head| head.behind(home.bat_end(), home.max_entries));
        }
        let header = self.table_behind(&alone, home.max_entries)?;
        let batmap = home_batmap.map(|head| head.behind(header.bat_end(), header.max_entries));
        self.switch_table(&alone, header, &words, batmap)?;
        for (block, _) in state.bat.in_use() {
            self.bitmaps.forget(&mut self.bitmaps.shard(block), block);
        }
        drop(state);
        // Nobody reads what the old table named any more; and the table goes to the front, so that the file can end there.
        self.epochs.wait();
        self.switch_table(&alone, home, &words, home_batmap)?;
        self.find_metadata_end(&alone);
        ready.space().empty_from(ready.metadata_end());
        self.tighten(alone.writer, ready)
    }
}
