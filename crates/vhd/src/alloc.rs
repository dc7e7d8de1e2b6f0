//! Where a new image's metadata and blocks go, and how long its file becomes.

use cowhand_core::{Error, Result, Storage};

use crate::bat::FREE;
use crate::batmap::Batmap;
use crate::footer::{FOOTER_LEN, Footer};
use crate::geometry::SECTOR;
use crate::header::{HEADER_LEN, Header, bitmap_len};
use crate::space::make_zero;

/// Payload stands on these boundaries, so that file systems can share it and disks need not read to write it.
const ALIGNMENT: u64 = 4096;

/// What stands in front of the blocks beside the footer's copy, the header and a table of the disk's blocks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Front {
    /// Where the table stands, if not right behind the header: what is between is for the parent's locators.
    pub(crate) bat_at: Option<u64>,
    /// The disk that the table has entries for, in bytes, where that is larger than the disk.
    pub(crate) room_for: u64,
    /// A batmap behind the table.
    pub(crate) batmap: bool,
}

/// How a new dynamic disk lies in its file: footer copy, header, table, then blocks of one pitch, whatever order they
/// are written in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) block_size: u64,
    /// Blocks of the disk.
    pub(crate) blocks: u32,
    /// Entries of the table, at least one for each block.
    pub(crate) entries: u32,
    pub(crate) header_at: u64,
    pub(crate) bat_at: u64,
    /// Where the table ends, with its padding.
    pub(crate) bat_end: u64,
    has_batmap: bool,
    /// Where all that stands in front of the blocks ends.
    pub(crate) front_end: u64,
    /// Where the first block's payload stands.
    first_payload: u64,
    /// From one block's payload to the next one's.
    pitch: u64,
    /// To what the payload is aligned.
    pub(crate) alignment: u64,
}

/// To what the payload of new blocks is aligned in a file whose metadata ends at `front_end`, so that table entries reach
/// all of them: a full disk of the largest size and small blocks reaches too far when each block is padded. `None`: they
/// do not reach them in any way.
pub(crate) fn alignment(front_end: u64, blocks: u64, block_size: u64) -> Option<u64> {
    let bitmap = bitmap_len(block_size);
    [ALIGNMENT, SECTOR].into_iter().find(|alignment| {
        let pitch = (bitmap + block_size).next_multiple_of(*alignment);
        (front_end + bitmap).next_multiple_of(*alignment) + pitch * blocks < u64::from(FREE) * SECTOR
    })
}

impl Layout {
    /// For a disk of `size` bytes. Errors: more bytes than the table's 32-bit sector numbers reach when all blocks are
    /// in the file.
    pub(crate) fn new(size: u64, block_size: u64, front: Front) -> Result<Layout> {
        let too_large = || {
            Error::invalid(format!("a disk of {size} bytes is too large for blocks of {block_size} bytes"))
                .hint("choose a larger block_size")
        };
        let count = |size: u64| u32::try_from(size.div_ceil(block_size)).map_err(|_| too_large());
        let (blocks, entries) = (count(size)?, count(size.max(front.room_for))?);
        let bat_at = front.bat_at.unwrap_or(FOOTER_LEN + HEADER_LEN);
        let bat_end = (bat_at + 4 * u64::from(entries)).next_multiple_of(SECTOR);
        let front_end = if front.batmap { Batmap::new(bat_end, entries).map().end } else { bat_end };
        let bitmap = bitmap_len(block_size);
        let alignment = alignment(front_end, u64::from(blocks), block_size).ok_or_else(too_large)?;
        Ok(Layout {
            block_size,
            blocks,
            entries,
            header_at: FOOTER_LEN,
            bat_at,
            bat_end,
            has_batmap: front.batmap,
            front_end,
            first_payload: (front_end + bitmap).next_multiple_of(alignment),
            pitch: (bitmap + block_size).next_multiple_of(alignment),
            alignment,
        })
    }

    /// The file's length with `blocks` blocks in it.
    pub(crate) fn file_len(&self, blocks: u64) -> u64 {
        self.blocks_end(blocks) + FOOTER_LEN
    }

    /// Where the first `blocks` blocks end.
    fn blocks_end(&self, blocks: u64) -> u64 {
        match blocks.checked_sub(1) {
            None => self.front_end,
            Some(last) => self.first_payload + self.pitch * last + self.block_size,
        }
    }

    /// The batmap that a new disk has, if it has one.
    pub(crate) fn batmap(&self) -> Option<Batmap> {
        self.has_batmap.then(|| Batmap::new(self.bat_end, self.entries))
    }

    /// Writes all that stands in front of the blocks, with no block in the table.
    pub(crate) fn write_front(&self, file: &dyn Storage, footer: &Footer, header: &Header) -> Result<()> {
        let failed = |error| Error::io("cannot write the headers", error);
        file.write_at(0, &footer.to_bytes()).map_err(failed)?;
        file.write_at(self.header_at, &header.to_bytes()).map_err(failed)?;
        let free = vec![0xff; (self.bat_end - self.bat_at).min(1 << 20) as usize];
        let mut at = self.bat_at;
        while at < self.bat_end {
            let piece = free.get(..(self.bat_end - at).min(1 << 20) as usize).unwrap_or(&free);
            file.write_at(at, piece)
                .map_err(|error| Error::io("cannot write the block allocation table", error).at(at))?;
            at += piece.len() as u64;
        }
        if let Some(batmap) = self.batmap() {
            // A hole of the file; on a device whatever was there.
            let map = batmap.map();
            make_zero(file, map.start, map.end - map.start)?;
            file.write_at(batmap.at, &batmap.bytes()).map_err(failed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::MAX_DISK;

    #[test]
    fn payload_is_aligned_and_nothing_overlaps() {
        for block_size in [512, 4096, 512 << 10, 2 << 20, 256 << 20] {
            for size in [0, 512, 5 << 20, 1 << 30] {
                let layout = Layout::new(size, block_size, Front::default()).unwrap();
                assert_eq!(layout.first_payload % 4096, 0);
                assert_eq!(layout.pitch % 4096, 0);
                assert!(layout.first_payload >= layout.bat_end + bitmap_len(block_size));
                assert!(layout.pitch >= layout.block_size + bitmap_len(block_size));
                assert_eq!(layout.bat_at, 1536);
            }
        }
    }

    #[test]
    fn what_stands_in_front_has_its_place() {
        let front = Front { bat_at: Some(16384), room_for: 2 << 40, batmap: true };
        let layout = Layout::new(1 << 29, 2 << 20, front).unwrap();
        assert_eq!((layout.blocks, layout.entries, layout.bat_at), (256, 1 << 20, 16384));
        assert_eq!(layout.bat_end, 16384 + (4 << 20));
        // A bit for each entry behind the batmap's header.
        assert_eq!(layout.file_len(0), layout.bat_end + 512 + (128 << 10) + 512);
        assert!(layout.first_payload >= layout.front_end + 512);
        assert_eq!(layout.first_payload % 4096, 0);
    }

    #[test]
    fn the_largest_disk_fits_with_every_block_size() {
        for shift in 19..=28 {
            let layout = Layout::new(MAX_DISK, 1 << shift, Front::default()).unwrap();
            assert!(layout.file_len(u64::from(layout.blocks)) / SECTOR < u64::from(u32::MAX), "{shift}");
            assert_eq!(layout.pitch.is_multiple_of(4096), shift > 19, "{shift}");
        }
        assert!(Layout::new(MAX_DISK, 512, Front::default()).is_err());
    }
}
