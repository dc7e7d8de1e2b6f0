//! Guest data where the bitmaps say that there is none: something wrote there and did not say so, or lost its bits.

use cowhand_core::{Error, Result, is_zero};

use super::findings::Findings;
use super::{Disk, Image};
use crate::bitmap::{self, BitOrder};
use crate::geometry::SECTOR;

/// What is read at once.
const PIECE: u64 = 1 << 20;

/// Reads what stands in the places of absent sectors, which is zero in every image that XenServer makes.
pub(super) fn judge(image: &Image<'_>, disk: &Disk, all: &mut Findings) -> Result<()> {
    let order = if disk.found.footer.bitmaps_are_lsb_first() { BitOrder::Lsb } else { BitOrder::Msb };
    let bitmap_len = disk.header.bitmap_len();
    let mut bits = vec![0; bitmap_len as usize];
    let mut bytes = Vec::new();
    for (block, place) in disk.places.blocks().filter(|(block, _)| disk.places.has(*block)) {
        image.go_on(0, 1)?;
        read(image, place.start, &mut bits)?;
        let sectors = (place.end - place.start).saturating_sub(bitmap_len) / SECTOR;
        let mut sector = 0;
        while sector < sectors {
            let (run, present) = bitmap::run(&bits, order, sector, sectors);
            let run = run.min(PIECE / SECTOR);
            if !present {
                bytes.resize((run * SECTOR) as usize, 0);
                let at = place.start + bitmap_len + sector * SECTOR;
                read(image, at, &mut bytes)?;
                let stray = bytes.chunks(SECTOR as usize).position(|sector| !is_zero(sector));
                if let Some(stray) = stray {
                    let stray = stray as u64;
                    all.corrupt(at + stray * SECTOR, || {
                        format!(
                            "sector {} of block {block} has data, and its bit says that it has none",
                            sector + stray
                        )
                    });
                }
            }
            sector += run;
        }
    }
    Ok(())
}

fn read(image: &Image<'_>, at: u64, buf: &mut [u8]) -> Result<()> {
    image.file.read_at(at, buf).map_err(|error| Error::io("cannot read", error).at(at))
}
