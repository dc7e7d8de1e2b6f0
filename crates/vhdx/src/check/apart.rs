//! Two in one place: each gets bytes of its own. What the disk reads does not change by that; but writing to one does not
//! change the other any more.

use std::ops::Range;

use cowhand_core::{Error, Result, Severity};

use super::Image;
use super::places::Place;
use super::repair::Change;
use crate::bat;
use crate::bytes::{self, MIB};

/// Places that one step copies at most: who shares more is not damaged but made so.
const MAX_COPIES: usize = 4096;

impl Image<'_> {
    /// Copies what begins within something else behind everything, and lets the table say so. Who keeps a place that
    /// nobody reads gives it up.
    pub(super) fn apart(&self, shared: &[Place], change: &mut Change) -> Result<()> {
        let mut stays: Option<&Place> = None;
        let mut copies = 0;
        for place in shared {
            let Some(before) = stays.filter(|before| place.range.start < before.range.end) else {
                stays = Some(place);
                continue;
            };
            let raw = place.entry.raw;
            if !before.read || !place.read {
                // Never a bitmap: those are always read.
                let (idle, kept) = if before.read { (place, before) } else { (before, place) };
                change.set(idle.entry.number, bat::without_place(idle.entry.raw))?;
                stays = Some(kept);
                continue;
            }
            if copies == MAX_COPIES {
                return Ok(());
            }
            copies += 1;
            let to = change.end;
            let len = place.range.end - place.range.start;
            change.grow(to.saturating_add(len))?;
            self.copy(&place.range, to, change)?;
            change.set(place.entry.number, to | raw & (MIB - 1))?;
            let (one, other) = (before.entry.owner, place.entry.owner);
            let (guest_one, guest_other) = (change.disk.guest_text(one), change.disk.guest_text(other));
            let at = place.range.start;
            change.say(
                Severity::Note,
                place.entry.number,
                format!(
                    "{one} ({guest_one}) and {other} ({guest_other}) have a copy each of what they shared at {at}; \
                     it can be right for one of them only"
                ),
            );
        }
        Ok(())
    }

    /// Copies bytes of the file to where it has a hole; what is a hole there stays one.
    pub(super) fn copy(&self, from: &Range<u64>, to: u64, change: &Change) -> Result<()> {
        let file = change.file;
        let failed = |at| move |error| Error::io("cannot read a block", error).at(at);
        // The disk's last block need not be in the file whole.
        let end = from.end.min(change.disk.len);
        let mut piece = vec![0; MIB as usize];
        let mut at = from.start;
        while let Some(data) = file.data_at(at).map_err(failed(at))?.filter(|data| data.start < end) {
            at = data.start.max(at);
            let data_end = data.end.min(end);
            while at < data_end {
                self.go_on(0, 1)?;
                let len = (data_end - at).min(MIB) as usize;
                let piece = piece.get_mut(..len).unwrap_or_default();
                file.read_at(at, piece).map_err(failed(at))?;
                bytes::write(file, "block", to + (at - from.start), piece)?;
                at += len as u64;
            }
        }
        Ok(())
    }
}
