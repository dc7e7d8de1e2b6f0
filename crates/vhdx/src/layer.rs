//! An open VHDX file: what it has where (the reading half of the layer).

use std::ops::Range;
use std::sync::Arc;

use cowhand_core::{Details, Erase, Error, ErrorKind, Extent, Layer, LayerId, ParentRef, Result, Storage};

use crate::bat::{self, Block, Geometry};
use crate::bytes::{self, MIB};
use crate::create;
use crate::details;
use crate::header::{self, Header};
use crate::like;
use crate::log;
use crate::metadata::Metadata;
use crate::region::Regions;
use crate::table::{Table, View};
use crate::write::Writer;

/// Bytes of a sector bitmap looked at at once.
const BITMAP_WINDOW: u64 = 512;

/// One VHDX file.
#[derive(Debug)]
pub(crate) struct VhdxLayer {
    /// The file as it is after its log was replayed.
    pub(crate) file: Arc<dyn Storage>,
    pub(crate) creator: String,
    pub(crate) header: Header,
    pub(crate) regions: Regions,
    pub(crate) metadata: Metadata,
    pub(crate) geometry: Geometry,
    pub(crate) table: Table,
    /// The file's length, against which entries are judged.
    pub(crate) len: u64,
    /// There where the image may be written.
    pub(crate) writer: Option<Writer>,
}

impl VhdxLayer {
    /// Opens for reading. Nothing in the file changes: a pending log is replayed in memory.
    pub(crate) fn open(file: Arc<dyn Storage>) -> Result<VhdxLayer> {
        let creator = header::read_creator(file.as_ref())?;
        let header = Header::read(file.as_ref())?;
        let file = if header.log.is_pending() { log::replay(file, header.log)? } else { file };
        Self::assemble(file, creator, header, None)
    }

    /// The layer of a file without pending log, by what its regions say.
    pub(crate) fn assemble(
        file: Arc<dyn Storage>,
        creator: String,
        header: Header,
        writer: Option<Writer>,
    ) -> Result<VhdxLayer> {
        let len = file.len().map_err(|error| Error::io("cannot find the size", error))?;
        let regions = Regions::read(file.as_ref(), len, &header.log)?;
        let metadata = Metadata::read(file.as_ref(), regions.metadata)?;
        let geometry = Geometry {
            size: metadata.size,
            block_size: metadata.block_size,
            sector: metadata.logical_sector.into(),
        };
        let entries = geometry.entries(metadata.parent.is_some());
        if entries * bat::ENTRY > regions.bat.length {
            let what =
                format!("has {} bytes, too few for the {entries} entries of this disk", regions.bat.length);
            return Err(Error::corrupt("BAT region", what).at(regions.bat.offset));
        }
        let table = Table::new(file.clone(), regions.bat.offset);
        Ok(VhdxLayer { file, creator, header, regions, metadata, geometry, table, len, writer })
    }

    fn differencing(&self) -> bool {
        self.metadata.parent.is_some()
    }

    /// What `raw`, the entry of `block`, says; offsets are inside the file and meet no structure.
    fn decode(&self, block: u64, raw: u64) -> Result<Block> {
        let wrong = |what: String| {
            let entry = self.table.offset_of(self.geometry.entry_of(block));
            Error::corrupt("BAT entry", format!("{what} (block {block})")).at(entry)
        };
        let decoded = Block::decode(raw, self.differencing()).map_err(wrong)?;
        if let Block::Full(offset) | Block::Partial(offset) = decoded {
            // What lies past the disk's end in its last block need not be in the file.
            let needed = self
                .geometry
                .block_size
                .min(self.geometry.size.saturating_sub(block * self.geometry.block_size));
            self.check_place(offset, self.geometry.block_size, needed).map_err(wrong)?;
        }
        Ok(decoded)
    }

    fn check_place(&self, offset: u64, length: u64, needed: u64) -> Result<(), String> {
        if let Some(name) = self.regions.meets(offset..offset.saturating_add(length)) {
            return Err(format!("points to {offset}, where {name} is"));
        }
        // What is written here has its length checked when it is allocated.
        if self.writer.is_none() && offset.saturating_add(needed) > self.len {
            return Err(format!(
                "points to {offset}, past or too near the end of the file ({} bytes)",
                self.len
            ));
        }
        Ok(())
    }

    /// What the table says of a block.
    pub(crate) fn block(&self, block: u64) -> Result<Block> {
        self.decode(block, self.table.entry(self.geometry.entry_of(block))?)
    }

    /// What there is at `at`. `look`: holes of the file count as zeros.
    fn map(&self, at: u64, max: u64, look: bool) -> Result<Extent> {
        let geometry = &self.geometry;
        let max = max.min(geometry.size.saturating_sub(at));
        let (block, within) = (at / geometry.block_size, at % geometry.block_size);
        let first = self.block(block)?;
        match first {
            Block::NotPresent => Ok(Extent::hole(self.run(at, max, |_, next| next == Block::NotPresent)?)),
            Block::Zero => Ok(Extent::zero(self.run(at, max, |_, next| next == Block::Zero)?)),
            Block::Partial(offset) => {
                self.partial(at, max.min(geometry.block_size - within), offset + within)
            }
            Block::Full(offset) => {
                let host = offset + within;
                let (zero, max) = if look { self.hole(host, max)? } else { (false, max) };
                let follows = |n, next| next == Block::Full(offset.saturating_add(n * geometry.block_size));
                let len = self.run(at, max, follows)?;
                let extent = if zero { Extent::zero(len) } else { Extent::data(len, None) };
                Ok(Extent { host: Some(host), ..extent })
            }
        }
    }

    /// Is `host` in a hole of the file, and for how many of `max` bytes does that go on?
    fn hole(&self, host: u64, max: u64) -> Result<(bool, u64)> {
        let data =
            self.file.data_at(host).map_err(|error| Error::io("cannot find the holes", error).at(host))?;
        Ok(match data {
            None => (true, max),
            Some(data) if data.start > host => (true, max.min(data.start - host)),
            Some(data) => (false, max.min(data.end.saturating_sub(host).max(1))),
        })
    }

    /// How many of the `max` bytes from `at` are alike: those of the block of `at`, and of each further block, the n-th
    /// after it, for which `alike(n, what the table says of it)`. A wrong entry ends the run: it is reported when it is
    /// the first.
    fn run(&self, at: u64, max: u64, alike: impl Fn(u64, Block) -> bool) -> Result<u64> {
        let geometry = &self.geometry;
        let first = at / geometry.block_size;
        let stop = at.saturating_add(max).div_ceil(geometry.block_size);
        let mut block = first + 1;
        'pages: while block < stop {
            match self.table.view(geometry.entry_of(block))? {
                View::Zero(end) => {
                    let behind = geometry.block_at(end).max(block + 1);
                    if !alike(block - first, Block::NotPresent) {
                        break;
                    }
                    block = behind;
                }
                View::Entries(entries) => {
                    let end = geometry.block_at(entries.end()).min(stop);
                    while block < end {
                        let Some(raw) = entries.get(geometry.entry_of(block)) else { break };
                        if !self.decode(block, raw).is_ok_and(|next| alike(block - first, next)) {
                            break 'pages;
                        }
                        block += 1;
                    }
                }
            }
        }
        Ok(max.min(block.saturating_mul(geometry.block_size).saturating_sub(at)))
    }

    /// What there is at `at` in a block that is partly here, for at most the `max` bytes left in it. `host` is where
    /// the bytes of `at` would stand.
    fn partial(&self, at: u64, max: u64, host: u64) -> Result<Extent> {
        let geometry = &self.geometry;
        let block = at / geometry.block_size;
        let entry = geometry.bitmap_entry_of(block);
        let wrong = |what: String| {
            Error::corrupt("sector bitmap entry", format!("{what} (block {block})"))
                .at(self.table.offset_of(entry))
        };
        let bitmap = bat::decode_bitmap(self.table.entry(entry)?)
            .map_err(wrong)?
            .ok_or_else(|| wrong("names no bitmap, and a block is partly here".to_owned()))?;
        self.check_place(bitmap, MIB, MIB).map_err(wrong)?;
        let first_bit = geometry.bit_of(at);
        // Sectors of the run, the first of which may be begun within.
        let sectors = (at % geometry.sector + max).div_ceil(geometry.sector);
        let mut window = [0; BITMAP_WINDOW as usize];
        let (mut counted, mut here) = (0, None);
        while counted < sectors {
            let bit = first_bit + counted;
            let bits = (BITMAP_WINDOW * 8 - bit % 8).min(sectors - counted);
            let span = (bit % 8 + bits).div_ceil(8) as usize;
            let bytes = window.get_mut(..span).unwrap_or_default();
            bytes::read(self.file.as_ref(), "sector bitmap", bitmap + bit / 8, bytes)?;
            let (alike, present) = run_of_bits(bytes, bit % 8, bits);
            if *here.get_or_insert(present) != present {
                break;
            }
            counted += alike;
            if alike < bits {
                break;
            }
        }
        let len = (counted * geometry.sector).saturating_sub(at % geometry.sector).min(max);
        Ok(if here == Some(true) { Extent::data(len, Some(host)) } else { Extent::hole(len) })
    }
}

/// How many of `bits` bits, from bit `first` on, are like the first, and whether they are set. Bits count from the
/// lowest.
fn run_of_bits(bytes: &[u8], first: u64, bits: u64) -> (u64, bool) {
    let bit = |n: u64| bytes.get((n / 8) as usize).is_some_and(|byte| byte >> (n % 8) & 1 == 1);
    let present = bit(first);
    let whole = if present { 0xff } else { 0 };
    let mut n = first;
    while n < first + bits {
        if n.is_multiple_of(8) && bytes.get((n / 8) as usize) == Some(&whole) {
            n += 8;
        } else if bit(n) == present {
            n += 1;
        } else {
            break;
        }
    }
    ((n - first).min(bits), present)
}

impl Layer for VhdxLayer {
    fn size(&self) -> u64 {
        self.geometry.size
    }

    fn granule(&self) -> u64 {
        if self.differencing() { self.geometry.sector } else { self.geometry.block_size }
    }

    fn sector(&self) -> u32 {
        self.metadata.logical_sector
    }

    fn host(&self) -> &Arc<dyn Storage> {
        &self.file
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        self.map(at, max, true)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        let extent = self.map(at, buf.len() as u64, false)?;
        if let Some(host) = extent.host {
            let piece = buf.get_mut(..extent.len as usize).unwrap_or_default();
            self.file.read_at(host, piece).map_err(|error| Error::io("cannot read", error).at(host))?;
        }
        Ok(extent)
    }

    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.write_blocks(at, buf)
    }

    fn write_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> Result<u64> {
        self.share_blocks(at, src, src_at, len)
    }

    fn erase(&self, at: u64, len: u64, how: Erase) -> Result<u64> {
        self.erase_blocks(at, len, how)
    }

    fn flush(&self) -> Result<()> {
        if self.writer.is_some() { self.flush_all() } else { Ok(()) }
    }

    fn close(&self) -> Result<()> {
        if self.writer.is_some() { self.close_all() } else { Ok(()) }
    }

    fn details(&self) -> Details {
        details::of(self)
    }

    /// Whole blocks: that is what the table gives room to.
    fn allocated(&self, see: &mut dyn FnMut(Range<u64>, u64) -> Result<()>) -> Result<()> {
        let Geometry { size, block_size, .. } = self.geometry;
        let mut at = 0;
        while at < size {
            let empty = self.block(at / block_size)?;
            if let Block::Full(_) | Block::Partial(_) = empty {
                let end = at.saturating_add(block_size);
                see(at..end.min(size), block_size)?;
                at = end;
            } else {
                at += self.run(at, size - at, |_, next| next == empty)?;
            }
        }
        Ok(())
    }

    fn made_with(&self, replacing: bool) -> Vec<(&'static str, String)> {
        like::options(&self.metadata, &self.header, replacing)
    }

    fn size_by_file(&self, file_len: u64, exact: bool) -> Result<Option<u64>> {
        if self.differencing() {
            return Ok(None);
        }
        let found = create::largest_disk(self, file_len, exact).ok_or_else(|| {
            Error::invalid(format!("{file_len} bytes are too few for any image of this kind"))
        });
        found.map(Some)
    }

    fn identity(&self) -> LayerId {
        LayerId(Some(self.header.data_write_guid.raw()))
    }

    fn disk_id(&self) -> Option<[u8; 16]> {
        Some(self.metadata.disk_id.raw())
    }

    fn parent(&self) -> Option<ParentRef> {
        self.metadata.parent.as_ref().map(|locator| locator.parent())
    }
}

impl VhdxLayer {
    /// The writing half's state.
    pub(crate) fn writer(&self) -> Result<&Writer> {
        self.writer.as_ref().ok_or_else(|| Error::new(ErrorKind::Denied, "is open read-only"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_bits() {
        assert_eq!(run_of_bits(&[0b0000_1110], 1, 7), (3, true));
        assert_eq!(run_of_bits(&[0b0000_1110], 0, 8), (1, false));
        assert_eq!(run_of_bits(&[0xff, 0xff, 0x01], 3, 21), (14, true));
        assert_eq!(run_of_bits(&[0xff, 0xff, 0xff], 3, 10), (10, true));
        assert_eq!(run_of_bits(&[0, 0, 0x80], 0, 24), (23, false));
    }
}
