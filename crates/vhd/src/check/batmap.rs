//! XenServer's batmap against the bitmaps: a bit that says "full" of a block that is not would have readers pass over its
//! bitmap. A bit that is 0 is always right.

use cowhand_core::{Error, ErrorKind, Result};

use super::findings::Findings;
use super::{Disk, Image};
use crate::bat::Bat;
use crate::batmap::{Batmap, VERSION};
use crate::bitmap::{self, BitOrder};
use crate::geometry::SECTOR;

/// What is read of a map at once.
const PIECE: u64 = 1 << 20;

impl Image<'_> {
    pub(super) fn batmap(&self, disk: &Disk, all: &mut Findings) -> Result<()> {
        let failed = |error| Error::io("cannot read the batmap", error).at(disk.header.bat_end());
        let Some(map) = Batmap::find(self.file, &disk.found.footer, &disk.header).map_err(failed)? else {
            return Ok(());
        };
        if map.version > VERSION {
            all.refused(map.at + 20, || format!("the batmap's version {:#x} is not known", map.version));
            return Ok(());
        }
        let (range, room) = (map.map(), disk.found.data_end);
        if range.is_empty() || range.start < map.header().end || range.end > room || range.start % SECTOR != 0
        {
            all.corrupt(map.at + 8, || {
                format!(
                    "the batmap is said to stand at {}..{}, where it cannot; it is not put right",
                    range.start, range.end
                )
            });
            return Ok(());
        }
        if (range.end - range.start) * 8 < disk.blocks() {
            all.corrupt(map.at + 16, || {
                let (bits, blocks) = ((range.end - range.start) * 8, disk.blocks());
                format!("the batmap has {bits} bits for {blocks} blocks; it is not put right")
            });
            return Ok(());
        }
        let mut wrong = false;
        let sum = self.walk_batmap(disk, &map, false, &mut |block, what| {
            wrong = true;
            all.corrupt(range.start + block / 8, || format!("the batmap calls block {block} full, {what}"));
        });
        match sum {
            Ok(_) if map.is_changing() && !wrong => all.note(map.at + 24, || {
                "the batmap was being changed when that was cut off; the next write makes it whole".to_owned()
            }),
            Ok(sum) if sum != map.checksum => {
                wrong = true;
                all.corrupt(map.at + 24, || {
                    format!("the batmap's checksum is {:#010x} and should be {sum:#010x}", map.checksum)
                });
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => all.unread(error.offset().unwrap_or(map.at), || error.to_string()),
        }
        all.batmap = wrong;
        Ok(())
    }

    /// Tells `wrong` of each bit that should not be set, and clears it if asked to; answers the map's checksum.
    fn walk_batmap(
        &self,
        disk: &Disk,
        map: &Batmap,
        clear: bool,
        wrong: &mut dyn FnMut(u64, &'static str),
    ) -> Result<u32> {
        let io = |at| move |error| Error::io("cannot read the batmap", error).at(at);
        let entries = u64::from(disk.header.max_entries);
        let bat = Bat::new(&disk.header, entries);
        let range = map.map();
        let (mut at, mut sum) = (range.start, 0u32);
        let mut bytes = vec![0; (range.end - range.start).min(PIECE) as usize];
        while at < range.end {
            let len = (range.end - at).min(PIECE) as usize;
            let piece = bytes.get_mut(..len).unwrap_or_default();
            self.file.read_at(at, piece).map_err(io(at))?;
            let mut changed = false;
            for (index, byte) in (0u64..).zip(piece.iter_mut()).filter(|(_, byte)| **byte != 0) {
                for bit in 0..8 {
                    let block = (at - range.start + index) * 8 + bit;
                    if *byte << bit & 0x80 == 0 || block >= entries {
                        continue;
                    }
                    if let Some(what) = self.not_full(disk, &bat, block)? {
                        wrong(block, what);
                        *byte &= !(0x80 >> bit);
                        changed = true;
                    }
                }
            }
            if changed && clear {
                self.file
                    .write_at(at, piece)
                    .map_err(|error| Error::io("cannot write the batmap", error).at(at))?;
            }
            // The checksum is of what is there. Version 1.1 took the bytes for signed ones.
            if changed && !clear {
                self.file.read_at(at, piece).map_err(io(at))?;
            }
            sum = piece.iter().fold(sum, |sum, byte| {
                sum.wrapping_add(if map.version == 0x0001_0001 {
                    *byte as i8 as u32
                } else {
                    u32::from(*byte)
                })
            });
            at += len as u64;
            self.go_on(0, 1)?;
        }
        Ok(!sum)
    }

    /// Why not every sector of the block is present.
    fn not_full(&self, disk: &Disk, bat: &Bat, block: u64) -> Result<Option<&'static str>> {
        let Some(sector) = bat.get(self.file, block)? else { return Ok(Some("and it is not in the file")) };
        let at = u64::from(sector) * SECTOR;
        let len = disk.header.bitmap_len();
        if at + len > disk.found.data_end {
            return Ok(Some("and it is not in the file"));
        }
        let mut bits = vec![0; len as usize];
        self.file
            .read_at(at, &mut bits)
            .map_err(|error| Error::io("cannot read a sector bitmap", error).at(at))?;
        let order = if disk.found.footer.bitmaps_are_lsb_first() { BitOrder::Lsb } else { BitOrder::Msb };
        let sectors = disk.places.used(block) / SECTOR;
        let mut from = 0;
        while from < sectors {
            let (run, present) = bitmap::run(&bits, order, from, sectors);
            if !present {
                return Ok(Some("and its bitmap does not"));
            }
            from += run;
        }
        Ok(None)
    }

    /// Clears the bits that should not be set, and makes the checksum right.
    pub(super) fn mend_batmap(&self, disk: &Disk) -> Result<()> {
        let failed = |error| Error::io("cannot mend the batmap", error).at(disk.header.bat_end());
        let Some(map) = Batmap::find(self.file, &disk.found.footer, &disk.header).map_err(failed)? else {
            return Ok(());
        };
        let sum = self.walk_batmap(disk, &map, true, &mut |_, _| {})?;
        self.file.sync().map_err(failed)?;
        self.file.write_at(map.at + 24, &sum.to_be_bytes()).map_err(failed)?;
        self.file.sync().map_err(failed)
    }
}
