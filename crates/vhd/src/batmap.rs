//! XenServer's batmap: a bit for each block that says "every sector of it is present". Where it stands and what it says,
//! and how it is kept from lying.

use std::io;
use std::ops::Range;

use cowhand_core::{Error, Result, Storage};
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::footer::Footer;
use crate::geometry::SECTOR;
use crate::header::Header;

const COOKIE: &[u8; 8] = b"tdbatmap";
/// The first version, which sums its map's bytes as signed ones.
const SIGNED: u32 = 0x0001_0001;
/// A checksum for which the sum of a map's bytes would have to be 2^31.
const NO_MAP: u32 = 0x7fff_ffff;
/// The longest map that is taken for one, in sectors: a bit for every entry of the longest table that is written.
const MOST_SECTORS: u32 = 1 << 12;
/// The last version that blktap wrote, 1.2.
pub(crate) const VERSION: u32 = 0x0001_0002;

/// The header as it stands in the file, right behind the table's padding.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawBatmap {
    cookie: [u8; 8],
    offset: U64,
    /// In sectors.
    size: U32,
    version: U32,
    checksum: U32,
    marker: u8,
    /// 0 or 1: whether there is a hash.
    key_cookie: u8,
    key_nonce: [u8; 32],
    key_hash: [u8; 32],
    reserved: [u8; 418],
}

/// The hash of the key that the disk's content is encrypted with, as blktap keeps it; it opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyHash {
    pub(crate) nonce: [u8; 32],
    /// SHA-256 of nonce and key.
    pub(crate) hash: [u8; 32],
}

/// What the batmap's header says; nothing of it was judged but the cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batmap {
    /// Where the header stands.
    pub(crate) at: u64,
    /// Where the map stands.
    pub(crate) map_at: u64,
    /// The map's length in sectors.
    pub(crate) sectors: u32,
    pub(crate) version: u32,
    pub(crate) checksum: u32,
    /// A byte that means something to XenServer's storage manager alone.
    pub(crate) marker: u8,
    pub(crate) key: Option<KeyHash>,
    reserved: [u8; 418],
}

impl Batmap {
    /// An empty one for a table of `entries` entries that ends, padded, at `table_end`: no bit is set, which is never
    /// wrong.
    pub(crate) fn new(table_end: u64, entries: u32) -> Batmap {
        Batmap {
            at: table_end,
            map_at: table_end + SECTOR,
            sectors: entries.div_ceil(8 * SECTOR as u32).max(1),
            version: VERSION,
            checksum: !0,
            marker: 0,
            key: None,
            reserved: [0; 418],
        }
    }

    /// The same for another table, as [`Batmap::new`].
    pub(crate) fn behind(self, table_end: u64, entries: u32) -> Batmap {
        Batmap {
            version: self.version,
            marker: self.marker,
            key: self.key,
            reserved: self.reserved,
            ..Batmap::new(table_end, entries)
        }
    }

    /// The batmap of a disk, if its maker writes them and the cookie is there.
    pub(crate) fn find(file: &dyn Storage, footer: &Footer, header: &Header) -> io::Result<Option<Batmap>> {
        let at = header.bat_end();
        if !footer.may_have_batmap() || at.checked_add(SECTOR).is_none_or(|end| end > file.len().unwrap_or(0))
        {
            return Ok(None);
        }
        let mut bytes = [0; SECTOR as usize];
        file.read_at(at, &mut bytes)?;
        let raw: RawBatmap = zerocopy::transmute!(bytes);
        Ok((raw.cookie == *COOKIE).then(|| Batmap {
            at,
            map_at: raw.offset.get(),
            sectors: raw.size.get(),
            version: raw.version.get(),
            checksum: raw.checksum.get(),
            marker: raw.marker,
            key: (raw.key_cookie != 0).then_some(KeyHash { nonce: raw.key_nonce, hash: raw.key_hash }),
            reserved: raw.reserved,
        }))
    }

    /// The header's 512 bytes.
    pub(crate) fn bytes(&self) -> [u8; SECTOR as usize] {
        let (nonce, hash) = self.key.map_or(([0; 32], [0; 32]), |key| (key.nonce, key.hash));
        let raw = RawBatmap {
            cookie: *COOKIE,
            offset: self.map_at.into(),
            size: self.sectors.into(),
            version: self.version.into(),
            checksum: self.checksum.into(),
            marker: self.marker,
            key_cookie: u8::from(self.key.is_some()),
            key_nonce: nonce,
            key_hash: hash,
            reserved: self.reserved,
        };
        zerocopy::transmute!(raw)
    }

    /// It was being changed when that was cut off, and counts for nothing.
    pub(crate) fn is_changing(&self) -> bool {
        self.checksum == NO_MAP
    }

    /// The bytes of its header.
    pub(crate) fn header(&self) -> Range<u64> {
        self.at..self.at + SECTOR
    }

    /// The bytes of the map.
    pub(crate) fn map(&self) -> Range<u64> {
        self.map_at..self.map_at.saturating_add(u64::from(self.sectors) * SECTOR)
    }
}

/// A batmap that is kept true while the disk is written.
///
/// A bit may be 0 though all sectors are there; it must never be 1 where one is not. So writing sets none, and what takes
/// sectors away clears it first. Map and header cannot change at once: while the map changes, the header has a checksum
/// that no map has, and a map whose header is so left is emptied before the next change.
#[derive(Debug)]
pub(crate) struct Map {
    head: Batmap,
    map: Vec<u8>,
}

impl Map {
    /// Writes a map that says nothing of any block, and its header, where `head` has them. Not durable.
    pub(crate) fn empty(file: &dyn Storage, head: Batmap) -> Result<Map> {
        let range = head.map();
        let mut map = Map { head, map: vec![0; (range.end - range.start) as usize] };
        file.write_at(range.start, &map.map)
            .map_err(|error| Error::io("cannot write the batmap", error).at(range.start))?;
        map.write_head(file, map.checksum())?;
        Ok(map)
    }

    /// Reads the map that `head` leads to; the blocks' room ends at `data_end`. Errors: it is not in the file.
    pub(crate) fn read(file: &dyn Storage, head: Batmap, data_end: u64) -> Result<Map> {
        let range = head.map();
        if head.sectors > MOST_SECTORS || range.end > data_end {
            let what = format!(
                "puts a map of {} sectors at {}, outside the file's room for it",
                head.sectors, head.map_at
            );
            return Err(Error::corrupt("batmap", what).at(head.at + 8));
        }
        let mut map = vec![0; (range.end - range.start) as usize];
        file.read_at(range.start, &mut map)
            .map_err(|error| Error::io("cannot read the batmap", error).at(range.start))?;
        Ok(Map { head, map })
    }

    /// Its header.
    pub(crate) fn head(&self) -> Batmap {
        self.head
    }

    /// Changes what the header says beside the map, durable at the next barrier.
    pub(crate) fn amend(&mut self, file: &dyn Storage, change: impl FnOnce(&mut Batmap)) -> Result<()> {
        let old = self.head;
        change(&mut self.head);
        self.write_head(file, old.checksum).inspect_err(|_| self.head = old)
    }

    /// A bit for each block, the highest first.
    pub(crate) fn bits(&self) -> &[u8] {
        &self.map
    }

    /// The ones' complement of the sum of all bytes.
    pub(crate) fn checksum(&self) -> u32 {
        let signed = self.head.version == SIGNED;
        let value = |byte: &u8| if signed { i32::from(*byte as i8) as u32 } else { u32::from(*byte) };
        !self.map.iter().fold(0u32, |sum, byte| sum.wrapping_add(value(byte)))
    }

    fn write_head(&mut self, file: &dyn Storage, checksum: u32) -> Result<()> {
        self.head.checksum = checksum;
        file.write_at(self.head.at, &self.head.bytes())
            .map_err(|error| Error::io("cannot write the batmap's header", error).at(self.head.at))
    }

    /// Empties a map that its header does not match: nobody knows which half is right.
    pub(crate) fn put_right(&mut self, file: &dyn Storage, sync: &dyn Fn() -> Result<()>) -> Result<()> {
        if self.head.checksum == self.checksum() {
            return Ok(());
        }
        self.map.fill(0);
        self.rewrite(file, 0..self.map.len(), sync)
    }

    /// Says, durably, of these blocks that not all their sectors may be present.
    pub(crate) fn clear(
        &mut self,
        file: &dyn Storage,
        blocks: Range<u64>,
        sync: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let bits = self.map.len() as u64 * 8;
        let (first, end) = (blocks.start.min(bits), blocks.end.min(bits));
        let mut changed: Option<Range<usize>> = None;
        let mut map = self.map.clone();
        for block in first..end {
            let index = (block / 8) as usize;
            let bit = 0x80 >> (block % 8);
            if let Some(byte) = map.get_mut(index).filter(|byte| **byte & bit != 0) {
                *byte &= !bit;
                changed = Some(changed.map_or(index, |range| range.start)..index + 1);
            }
        }
        let Some(changed) = changed else { return Ok(()) };
        let old = std::mem::replace(&mut self.map, map);
        let sector = SECTOR as usize;
        let changed = changed.start / sector * sector..changed.end.next_multiple_of(sector);
        self.rewrite(file, changed, sync).inspect_err(|_| self.map = old)
    }

    fn rewrite(
        &mut self,
        file: &dyn Storage,
        bytes: Range<usize>,
        sync: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        self.write_head(file, NO_MAP)?;
        sync()?;
        let at = self.head.map_at + bytes.start as u64;
        file.write_at(at, self.map.get(bytes).unwrap_or_default())
            .map_err(|error| Error::io("cannot write the batmap", error).at(at))?;
        sync()?;
        let checksum = self.checksum();
        self.write_head(file, checksum)?;
        sync()
    }
}

#[cfg(test)]
mod tests {
    use cowhand_core::MemoryStorage;

    use super::*;
    use crate::creator::Creator;
    use crate::geometry::Geometry;

    #[test]
    fn what_is_written_is_read() {
        let header = Header::new(512, 1536, 256, 2 << 20);
        let footer = Footer::new(1 << 29, Geometry::MAX, Some(512)).by(Creator::by_name("tap"));
        let key = KeyHash { nonce: [1; 32], hash: [2; 32] };
        let batmap = Batmap { marker: 7, key: Some(key), ..Batmap::new(header.bat_end(), 256) };
        assert_eq!((batmap.header(), batmap.map()), (2560..3072, 3072..3584));
        assert_eq!(Batmap::new(0, 1 << 20).sectors, 256);
        let file = MemoryStorage::new();
        file.set_len(4096).unwrap();
        file.write_at(batmap.at, &batmap.bytes()).unwrap();
        let find = |footer: &Footer| Batmap::find(&file, footer, &header).unwrap();
        assert_eq!(find(&footer), Some(batmap));
        // Nobody looks for one under another creator's name.
        assert_eq!(find(&Footer { creator_app: *b"win ", ..footer }), None);
    }
}
