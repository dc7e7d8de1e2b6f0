//! A dynamic or differencing disk that is read: table, sector bitmaps, blocks.

use std::ops::Range;
use std::sync::Arc;

use cowhand_core::{Details, Error, Extent, Kind, Layer, LayerId, ParentRef, Result, Storage};

use crate::bat::Bat;
use crate::batmap::Batmap;
use crate::bitmap::{self, BitOrder};
use crate::cache::Cache;
use crate::details::{self, Footers};
use crate::find::Found;
use crate::footer::{DiskType, FOOTER_LEN, Footer};
use crate::geometry::SECTOR;
use crate::header::{HEADER_LEN, Header};
use crate::locator::{self, Locator};

/// Bitmaps that are kept: those of 8 GiB in 2 MiB blocks.
const CACHED_BITMAPS: u64 = 2 << 20;
/// Runs that one `extent` joins at most.
const JOINED: usize = 64;

/// A dynamic or differencing disk, read-only.
#[derive(Debug)]
pub(crate) struct Dynamic {
    file: Arc<dyn Storage>,
    footer: Footer,
    header: Header,
    size: u64,
    file_len: u64,
    /// No block goes past this.
    data_end: u64,
    bat: Bat,
    bitmaps: Cache,
    order: BitOrder,
    /// What a sector is whose bit is 0: zero, or the parent's.
    absent: Kind,
    locators: Vec<Locator>,
    batmap: Option<Batmap>,
    footers: Footers,
}

impl Dynamic {
    /// Opens the disk that `found` describes; `size` is its guest bytes.
    pub(crate) fn open(file: Arc<dyn Storage>, found: Found, size: u64) -> Result<Dynamic> {
        let header = Header::read(file.as_ref(), &found, size)?;
        let differencing = found.footer.disk_type == DiskType::Differencing;
        let locators =
            if differencing { locator::read(file.as_ref(), &header, found.file_len)? } else { Vec::new() };
        Ok(Dynamic {
            size,
            file_len: found.file_len,
            data_end: found.data_end,
            bat: Bat::new(&header, size.div_ceil(header.block_size)),
            bitmaps: Cache::new(header.bitmap_len(), CACHED_BITMAPS),
            order: if found.footer.bitmaps_are_lsb_first() { BitOrder::Lsb } else { BitOrder::Msb },
            absent: if differencing { Kind::Hole } else { Kind::Zero },
            batmap: Batmap::find(file.as_ref(), &found.footer, &header)
                .map_err(|error| Error::io("cannot read the batmap", error).at(header.bat_end()))?,
            footers: Footers::of(&found),
            file,
            footer: found.footer,
            header,
            locators,
        })
    }

    /// Where the block's bitmap stands, its table entry being `sector`. Errors: outside the file, or over metadata.
    fn block_at(&self, block: u64, sector: u32) -> Result<u64> {
        let start = u64::from(sector) * SECTOR;
        let used = self.header.block_size.min(self.size.saturating_sub(block * self.header.block_size));
        let end = start + self.header.bitmap_len() + used.next_multiple_of(SECTOR);
        let over = |metadata: Range<u64>| start < metadata.end && end > metadata.start;
        let wrong = if start >= self.file_len {
            format!("puts block {block} at {start}, past the file's end at {}", self.file_len)
        } else if end > self.data_end {
            format!("puts block {block} at {start}..{end}, and the blocks' room ends at {}", self.data_end)
        } else if over(0..FOOTER_LEN)
            || over(self.header.at..self.header.at + HEADER_LEN)
            || over(self.header.bat_at..self.header.bat_end())
        {
            format!("puts block {block} at {start}, over the footer's copy, the header or the table")
        } else {
            return Ok(start);
        };
        Err(Error::corrupt("BAT entry", wrong)
            .at(self.bat.entry_at(block))
            .hint("the image is damaged or was cut"))
    }

    fn bitmap(&self, block: u64, at: u64) -> Result<Arc<[u8]>> {
        self.bitmaps.get(block, || {
            let mut bytes = vec![0; self.header.bitmap_len() as usize];
            self.file
                .read_at(at, &mut bytes)
                .map_err(|error| Error::io("cannot read a sector bitmap", error).at(at))?;
            Ok(bytes.into())
        })
    }

    /// What is at `at`, within one block or a run of free ones.
    fn piece(&self, at: u64, max: u64) -> Result<Extent> {
        let block_size = self.header.block_size;
        let (block, within) = (at / block_size, at % block_size);
        let Some(sector) = self.bat.get(self.file.as_ref(), block)? else {
            let end = (at + max).div_ceil(block_size);
            let free = self.bat.free_run(self.file.as_ref(), block, end)?.max(1);
            return Ok(Extent::hole(max.min(free * block_size - within)));
        };
        let start = self.block_at(block, sector)?;
        let bitmap = self.bitmap(block, start)?;
        let (sectors, present) = bitmap::run(&bitmap, self.order, within / SECTOR, block_size / SECTOR);
        let len = max.min(sectors * SECTOR - within % SECTOR);
        Ok(if present {
            Extent::data(len, Some(start + self.header.bitmap_len() + within))
        } else {
            Extent { kind: self.absent, ..Extent::hole(len) }
        })
    }
}

impl Layer for Dynamic {
    fn size(&self) -> u64 {
        self.size
    }

    fn granule(&self) -> u64 {
        SECTOR
    }

    fn host(&self) -> &Arc<dyn Storage> {
        &self.file
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        let max = max.min(self.size.saturating_sub(at));
        let mut found = self.piece(at, max)?;
        // Data does not join: bitmaps stand between the blocks.
        for _ in 0..JOINED {
            if found.kind == Kind::Data || found.len >= max {
                break;
            }
            // What is wrong there is said to who asks there.
            let Ok(next) = self.piece(at + found.len, max - found.len) else { break };
            if next.kind != found.kind {
                break;
            }
            found.len += next.len;
        }
        Ok(found)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        let found = self.piece(at, buf.len() as u64)?;
        if let (Kind::Data, Some(host), Some(buf)) =
            (found.kind, found.host, buf.get_mut(..found.len as usize))
        {
            self.file.read_at(host, buf).map_err(|error| Error::io("cannot read", error).at(host))?;
        }
        Ok(found)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn details(&self) -> Details {
        details::of_dynamic(&self.footer, self.footers, &self.header, &self.locators, self.batmap.as_ref())
    }

    /// Whole blocks: that is what the table gives room to.
    fn allocated(&self, see: &mut dyn FnMut(Range<u64>, u64) -> Result<()>) -> Result<()> {
        let block_size = self.header.block_size;
        let blocks = self.size.div_ceil(block_size);
        let mut block = 0;
        while block < blocks {
            match self.bat.get(self.file.as_ref(), block)? {
                None => block += self.bat.free_run(self.file.as_ref(), block, blocks)?.max(1),
                Some(sector) => {
                    self.block_at(block, sector)?;
                    let start = block * block_size;
                    see(start..(start + block_size).min(self.size), block_size)?;
                    block += 1;
                }
            }
        }
        Ok(())
    }

    fn identity(&self) -> LayerId {
        LayerId(Some(self.footer.unique_id))
    }

    fn parent(&self) -> Option<ParentRef> {
        (self.footer.disk_type == DiskType::Differencing)
            .then(|| locator::parent_ref(&self.header, &self.locators))
    }
}
