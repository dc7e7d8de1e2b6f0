//! XenServer's batmap: a bit for each block that says "every sector of it is present". Where it stands and what it says.

use std::io;
use std::ops::Range;

use cowhand_core::Storage;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::footer::Footer;
use crate::geometry::SECTOR;
use crate::header::Header;

const COOKIE: &[u8; 8] = b"tdbatmap";
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

    /// The bytes of its header.
    pub(crate) fn header(&self) -> Range<u64> {
        self.at..self.at + SECTOR
    }

    /// The bytes of the map.
    pub(crate) fn map(&self) -> Range<u64> {
        self.map_at..self.map_at.saturating_add(u64::from(self.sectors) * SECTOR)
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
