//! The dynamic header: block size, block allocation table, and what names a parent.

use std::ops::Range;

use cowhand_core::{Error, Result, Storage};
use serde_json::{Map, Value};
use uuid::Uuid;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::find::{Found, IGNORE};
use crate::footer::{EPOCH, FOOTER_LEN, checksum};
use crate::geometry::SECTOR;

const COOKIE: &[u8; 8] = b"cxsparse";
pub(crate) const HEADER_LEN: u64 = 1024;
/// The largest disk with a block allocation table: 2040 GiB.
pub(crate) const MAX_DISK: u64 = 0xff00_0000 * SECTOR;
/// The largest block that is read or written here.
pub(crate) const MAX_BLOCK: u64 = 256 << 20;

/// The header as it stands in the file (VHD specification, "Dynamic Disk Header Format").
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    cookie: [u8; 8],
    data_offset: U64,
    table_offset: U64,
    version: U32,
    max_table_entries: U32,
    block_size: U32,
    checksum: U32,
    parent_unique_id: [u8; 16],
    parent_timestamp: U32,
    reserved: [u8; 4],
    parent_name: [u8; 512],
    locators: [RawLocator; 8],
    reserved_too: [u8; 256],
}

/// One entry of the parent locator table.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RawLocator {
    pub(crate) code: [u8; 4],
    /// Room for the data: in bytes as Windows and XenServer have it, in sectors as the specification has it. The
    /// length is all that reading needs.
    pub(crate) data_space: U32,
    pub(crate) data_length: U32,
    reserved: U32,
    pub(crate) data_offset: U64,
}

impl RawLocator {
    /// The bytes of the file that its data takes, with the room it has to grow.
    pub(crate) fn place(&self) -> Range<u64> {
        let space = u64::from(self.data_space.get());
        let space = if space < SECTOR { space * SECTOR } else { space };
        let at = self.data_offset.get();
        at..at.saturating_add(space.max(self.data_length.get().into()))
    }
}

/// How a dynamic or differencing disk is laid out: a validated header.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    /// Where the header itself stands.
    pub(crate) at: u64,
    /// Where the block allocation table stands.
    pub(crate) bat_at: u64,
    /// Entries of the table; at least as many as the disk has blocks.
    pub(crate) max_entries: u32,
    /// Guest bytes of a block: a power of two from 512 B to 256 MiB.
    pub(crate) block_size: u64,
    pub(crate) parent_unique_id: [u8; 16],
    /// When the parent was last changed, in VHD's time; 0: not said.
    pub(crate) parent_timestamp: u32,
    /// UTF-16BE, ended by a zero or by the field's end.
    pub(crate) parent_name: [u8; 512],
    pub(crate) locators: [RawLocator; 8],
    /// What the specification reserves behind the locators.
    pub(crate) tail: [u8; 256],
}

impl RawLocator {
    /// An entry that is not used.
    pub(crate) const NONE: RawLocator = RawLocator {
        code: [0; 4],
        data_space: U32::ZERO,
        data_length: U32::ZERO,
        reserved: U32::ZERO,
        data_offset: U64::ZERO,
    };

    /// An entry for `len` bytes of text at `at`, where there is room for `space` bytes.
    pub(crate) fn new(code: [u8; 4], at: u64, len: u32, space: u32) -> RawLocator {
        RawLocator {
            code,
            data_space: space.into(),
            data_length: len.into(),
            reserved: 0.into(),
            data_offset: at.into(),
        }
    }

    /// The bytes that are set aside for its text: what the field says, taken for sectors where it is too small to be
    /// bytes.
    pub(crate) fn space(&self) -> u64 {
        let space = u64::from(self.data_space.get());
        let space = if space < SECTOR { space * SECTOR } else { space };
        space.max(u64::from(self.data_length.get()).next_multiple_of(SECTOR))
    }
}

impl std::fmt::Debug for RawLocator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}+{}", String::from_utf8_lossy(&self.code), self.data_offset, self.data_length)
    }
}

/// Bytes of the sector bitmap in front of each block's data: one bit for a sector, whole sectors.
pub(crate) fn bitmap_len(block_size: u64) -> u64 {
    (block_size / (SECTOR * 8)).next_multiple_of(SECTOR).max(SECTOR)
}

/// The fields of the header at `at`, as they stand there, and its locators.
pub(crate) fn fields(file: &dyn Storage, at: u64) -> Result<(Map<String, Value>, [RawLocator; 8])> {
    let mut bytes = [0; HEADER_LEN as usize];
    file.read_at(at, &mut bytes)
        .map_err(|error| Error::io("cannot read the dynamic header", error).at(at))?;
    let raw: RawHeader = zerocopy::transmute!(bytes);
    let end = raw.cookie.iter().position(|byte| *byte == 0).unwrap_or(raw.cookie.len());
    let name = raw.parent_name.as_chunks::<2>().0.iter().map(|unit| u16::from_be_bytes(*unit));
    let name: Vec<u16> = name.take_while(|unit| *unit != 0).collect();
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    put("cookie", String::from_utf8_lossy(raw.cookie.get(..end).unwrap_or_default()).into_owned().into());
    put("data-offset", raw.data_offset.get().into());
    put("table-offset", raw.table_offset.get().into());
    put("version", raw.version.get().into());
    put("max-table-entries", raw.max_table_entries.get().into());
    put("block-size", raw.block_size.get().into());
    put("parent-name", without_drive(&String::from_utf16_lossy(&name)).into());
    put("parent-uuid", Uuid::from_bytes(raw.parent_unique_id).to_string().into());
    put("parent-timestamp", (EPOCH + u64::from(raw.parent_timestamp.get())).into());
    put("checksum", raw.checksum.get().into());
    put("checksum-computed", checksum(&bytes, raw.checksum.to_bytes()).into());
    Ok((fields, raw.locators))
}

/// Windows' way to write a path, as a path of this system: what stands behind the drive `C:`.
pub(crate) fn without_drive(text: &str) -> String {
    let path = text.replace('\\', "/");
    path.strip_prefix("C:").or_else(|| path.strip_prefix("c:")).map(str::to_owned).unwrap_or(path)
}

impl Header {
    /// Reads and checks the header that the footer points to, for a disk of `size` bytes. Errors: every rule that makes
    /// the file unreadable, with the field and its offset.
    pub(crate) fn read(file: &dyn Storage, found: &Found, size: u64) -> Result<Header> {
        Header::read_with(file, found, size, &mut |error| {
            if found.anyway { Ok(()) } else { Err(error.hint(IGNORE)) }
        })
    }

    /// As [`Header::read`]; where only the checksum is wrong, `bad_sum` decides.
    pub(crate) fn read_with(
        file: &dyn Storage,
        found: &Found,
        size: u64,
        bad_sum: &mut dyn FnMut(Error) -> Result<()>,
    ) -> Result<Header> {
        let at = found.footer.header_at;
        let past = |field: &str, at: u64, what: String| Err(Error::corrupt(field, what).at(at));
        let end = at.checked_add(HEADER_LEN).filter(|end| *end <= found.file_len && at >= FOOTER_LEN);
        let Some(header_end) = end else {
            let what =
                format!("puts the dynamic header at {at}, outside the file's {} bytes", found.file_len);
            return past("footer data offset", found.at + 16, what);
        };
        let mut bytes = [0; HEADER_LEN as usize];
        file.read_at(at, &mut bytes)
            .map_err(|error| Error::io("cannot read the dynamic header", error).at(at))?;
        let raw: RawHeader = zerocopy::transmute!(bytes);
        if raw.cookie != *COOKIE {
            return past("dynamic header cookie", at, "is not \"cxsparse\"".to_owned())
                .map_err(|error| error.known_as("Invalid header magic"));
        }
        let (is, should) = (raw.checksum.get(), checksum(&bytes, raw.checksum.to_bytes()));
        if is != should {
            let what = format!("is {is:#010x} and should be {should:#010x}");
            bad_sum(Error::corrupt("dynamic header checksum", what).at(at + 36))?;
        }
        let version = raw.version.get();
        if version >> 16 != 1 {
            return Err(Error::unsupported(format!(
                "version {}.{} is not known",
                version >> 16,
                version & 0xffff
            ))
            .field("dynamic header version")
            .at(at + 24));
        }
        let block_size = u64::from(raw.block_size.get());
        if !block_size.is_power_of_two() || !(SECTOR..=MAX_BLOCK).contains(&block_size) {
            let what = format!("is {block_size} bytes; it must be a power of two from 512 bytes to 256 MiB");
            return past("block size", at + 32, what);
        }
        if size > MAX_DISK {
            let what = format!("is {size} bytes; a dynamic disk has at most 2040 GiB ({MAX_DISK} bytes)");
            return past("disk size", found.at + 48, what);
        }
        let max_entries = raw.max_table_entries.get();
        if u64::from(max_entries) < size.div_ceil(block_size) {
            let what =
                format!("{max_entries} blocks of {block_size} bytes do not cover the disk's {size} bytes");
            return past("max table entries", at + 28, what);
        }
        let bat_at = raw.table_offset.get();
        // Where the disk is empty there may be no table at all.
        let bat_end = bat_at.checked_add(4 * u64::from(max_entries));
        if bat_end.is_none_or(|end| end > found.file_len) {
            let what =
                format!("puts {max_entries} entries at {bat_at}, past the file's end at {}", found.file_len);
            return past("table offset", at + 16, what);
        }
        if bat_end > Some(bat_at) && (bat_at < FOOTER_LEN || (bat_at < header_end && bat_end > Some(at))) {
            return past(
                "table offset",
                at + 16,
                format!("puts the table at {bat_at}, over the footer or the header"),
            );
        }
        Ok(Header {
            at,
            bat_at,
            max_entries,
            block_size,
            parent_unique_id: raw.parent_unique_id,
            parent_timestamp: raw.parent_timestamp.get(),
            parent_name: raw.parent_name,
            locators: raw.locators,
            tail: raw.reserved_too,
        })
    }

    /// Bytes of the sector bitmap in front of each block's data.
    pub(crate) fn bitmap_len(&self) -> u64 {
        bitmap_len(self.block_size)
    }

    /// Where the block allocation table ends, with its padding to a whole sector.
    pub(crate) fn bat_end(&self) -> u64 {
        (self.bat_at + 4 * u64::from(self.max_entries)).next_multiple_of(SECTOR)
    }

    /// A header for a new disk without a parent.
    pub(crate) fn new(at: u64, bat_at: u64, max_entries: u32, block_size: u64) -> Header {
        Header {
            at,
            bat_at,
            max_entries,
            block_size,
            parent_unique_id: [0; 16],
            parent_timestamp: 0,
            parent_name: [0; 512],
            locators: [RawLocator::NONE; 8],
            tail: [0; 256],
        }
    }

    /// The 1024 bytes, with their checksum.
    pub(crate) fn to_bytes(&self) -> [u8; HEADER_LEN as usize] {
        let mut raw = RawHeader {
            cookie: *COOKIE,
            data_offset: u64::MAX.into(),
            table_offset: self.bat_at.into(),
            version: 0x0001_0000.into(),
            max_table_entries: self.max_entries.into(),
            // A block is at most 256 MiB.
            block_size: (self.block_size as u32).into(),
            checksum: 0.into(),
            parent_unique_id: self.parent_unique_id,
            parent_timestamp: self.parent_timestamp.into(),
            reserved: [0; 4],
            parent_name: self.parent_name,
            locators: self.locators,
            reserved_too: self.tail,
        };
        raw.checksum = checksum(raw.as_bytes(), [0; 4]).into();
        zerocopy::transmute!(raw)
    }
}
