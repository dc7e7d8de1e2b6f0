//! What only who is alone may change: the footers, the header, where a block stands.

use std::sync::PoisonError;

use cowhand_core::{Error, Result};

use crate::bitmaps::Mark;
use crate::dynamic::{Dynamic, State};
use crate::footer::Footer;
use crate::header::Header;
use crate::writer::Alone;

/// Bytes that are copied at once.
const PIECE: u64 = 1 << 20;

impl Dynamic {
    /// Changes the footer, in memory and in both its places, durably: a power cut leaves the old one or the new one.
    pub(crate) fn rewrite_footers(&self, alone: &Alone<'_>, change: impl FnOnce(&mut Footer)) -> Result<()> {
        let mut state = State::clone(&self.state());
        change(&mut state.footer);
        self.write_footers(alone.writer, &state.footer, self.data_end())?;
        self.set_state(state);
        Ok(())
    }

    /// Changes the header, in memory and in its place, durably. It is two sectors long, with its checksum in the first:
    /// only a change within that one leaves a header at every power cut. What else changes it goes to another place,
    /// which the footers then name.
    pub(crate) fn rewrite_header(&self, alone: &Alone<'_>, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut state = State::clone(&self.state());
        change(&mut state.header);
        let at = state.header.at;
        self.file
            .write_at(at, &state.header.to_bytes())
            .map_err(|error| Error::io("cannot write the dynamic header", error).at(at))?;
        self.barrier(alone.writer)?;
        self.set_state(state);
        Ok(())
    }

    /// Moves a block of the file to the first place that is free, if that is in front of `below`. Answers whether it did.
    /// Its old place is free after the next flush.
    pub(crate) fn move_block(&self, alone: &Alone<'_>, block: u64, below: u64) -> Result<bool> {
        let state = self.state();
        let Some((from, bits)) = self.look(&state, block, |at, bits| (at, bits.clone()))? else {
            return Ok(false);
        };
        let place = self.take(alone.writer, alone.ready)?;
        if place.at >= below {
            self.untake(alone.ready, &place);
            return Ok(false);
        }
        if let Err(error) = self.copy_payload(from, place.at, state.used(block)) {
            self.untake(alone.ready, &place);
            return Err(error);
        }
        let _publish = alone.writer.publish.read().unwrap_or_else(PoisonError::into_inner);
        let mut shard = self.bitmaps.shard(block);
        self.bitmaps.forget(&mut shard, block);
        self.bitmaps.put(&mut shard, block, place.at, bits, Mark::New);
        state.bat.set(block, place.entry());
        alone.ready.freed(from);
        Ok(true)
    }

    fn copy_payload(&self, from: u64, to: u64, len: u64) -> Result<()> {
        let file = self.file.as_ref();
        let mut buf = vec![0; len.min(PIECE) as usize];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(PIECE);
            let piece = buf.get_mut(..n as usize).unwrap_or_default();
            let (from, to) = (from + self.bitmap_len + done, to + self.bitmap_len + done);
            file.read_at(from, piece).map_err(|error| Error::io("cannot read", error).at(from))?;
            file.write_at(to, piece).map_err(|error| Error::io("cannot write", error).at(to))?;
            done += n;
        }
        Ok(())
    }
}
