//! Partly present blocks whose sector bitmap is gone: a new one calls those sectors present that are not zero. That is
//! right for all but the zeros that a guest wrote over something else; and where the disk never wrote, its parent shows
//! through as before.

use cowhand_core::{Error, Result, Severity};

use super::Image;
use super::places::{Disk, Entry, Owner, Seen, Why};
use super::repair::Change;
use crate::bat::{self, Block, Geometry};
use crate::bytes::{self, MIB};

impl Image<'_> {
    pub(super) fn bitmaps(&self, disk: &Disk, change: &mut Change) -> Result<()> {
        let mut chunk: Option<(u64, Vec<Entry>)> = None;
        let ratio = disk.geometry.chunk_ratio();
        disk.walk(&mut |seen| {
            let Seen::Wrong(entry, Why::NoBitmap) = seen else { return Ok(()) };
            let Owner::Block(block) = entry.owner else { return Ok(()) };
            let number = block / ratio;
            match &mut chunk {
                Some((other, entries)) if *other == number => entries.push(entry),
                _ => {
                    if let Some((other, entries)) = chunk.replace((number, vec![entry])) {
                        self.bitmap(disk, other, &entries, change)?;
                    }
                }
            }
            Ok(())
        })?;
        match chunk {
            Some((number, entries)) => self.bitmap(disk, number, &entries, change),
            None => Ok(()),
        }
    }

    /// Makes the bitmap of a chunk, in which these blocks are partly present.
    fn bitmap(&self, disk: &Disk, chunk: u64, entries: &[Entry], change: &mut Change) -> Result<()> {
        let mut bits = vec![0; MIB as usize];
        for entry in entries {
            self.present(disk, entry, &mut bits)?;
            let guest = disk.guest_text(entry.owner);
            change.say(
                Severity::Corruption,
                entry.number,
                format!(
                    "{guest} may be wrong: which sectors of them are the disk's own was lost; those that are not zero \
                     are taken for it"
                ),
            );
        }
        let at = change.end;
        change.grow(at + MIB)?;
        bytes::write(change.file, "sector bitmap", at, &bits)?;
        let number = chunk * (disk.geometry.chunk_ratio() + 1) + disk.geometry.chunk_ratio();
        change.set(number, Block::Full(at).encode())
    }

    /// Sets the bits of the block's sectors that are not zero.
    fn present(&self, disk: &Disk, entry: &Entry, bits: &mut [u8]) -> Result<()> {
        let failed = |at| move |error| Error::io("cannot read a block", error).at(at);
        let Geometry { sector, .. } = disk.geometry;
        let guest = disk.guest(entry.owner);
        let start = bat::offset(entry.raw);
        let end = start + (guest.end - guest.start);
        let mut piece = vec![0; MIB as usize];
        let mut at = start;
        while let Some(data) = disk.file.data_at(at).map_err(failed(at))?.filter(|data| data.start < end) {
            at = at.max(start + (data.start.saturating_sub(start)) / sector * sector);
            let data_end = data.end.min(end);
            while at < data_end {
                self.go_on(0, 1)?;
                let len = (end - at).min(MIB) as usize;
                let piece = piece.get_mut(..len).unwrap_or_default();
                disk.file.read_at(at, piece).map_err(failed(at))?;
                for (index, bytes) in piece.chunks(sector as usize).enumerate() {
                    if cowhand_core::is_zero(bytes) {
                        continue;
                    }
                    let bit = disk.geometry.bit_of(guest.start + (at - start) + index as u64 * sector);
                    if let Some(byte) = bits.get_mut((bit / 8) as usize) {
                        *byte |= 1 << (bit % 8);
                    }
                }
                at += len as u64;
            }
        }
        Ok(())
    }
}
