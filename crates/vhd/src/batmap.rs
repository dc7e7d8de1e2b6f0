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
    /// 0 or 1, a nonce of 32 bytes, and the SHA-256 of nonce and key.
    keyhash: [u8; 65],
    reserved: [u8; 418],
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
}

impl Batmap {
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
        }))
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
