//! The front of a VHD in a stream: footer copy, dynamic header, table, what stands between them, and nothing after.

use std::io::Read;

use cowhand_core::{DiskInfo, Error, Head, LayerId, MemoryStorage, ParentRef, Result, read_up_to};

use crate::bat::FREE;
use crate::find::{CopyState, Found};
use crate::footer::{DiskType, FOOTER_LEN, Footer, RawFooter, SizeRule};
use crate::geometry::SECTOR;
use crate::header::{HEADER_LEN, Header};
use crate::locator;

/// The largest table that is kept: 2040 GiB in blocks of 512 KiB, rounded up.
const MAX_TABLE: u64 = 16 << 20;
/// Header and table begin before this, or they stand behind data. Windows puts them below 16 KiB.
const MAX_BEFORE: u64 = 1 << 20;
/// Bytes read at once: what a header claims is not believed before it comes.
const STEP: usize = 64 << 10;

const SAVE_IT: &str = "save it to a file first, and read that";

/// What the first bytes of a stream are.
pub(super) enum Start {
    /// A dynamic or differencing disk's front.
    Dynamic(Box<Front>),
    /// Something else, which may have a fixed disk's footer at its end: the bytes that were read.
    Other(Vec<u8>),
}

/// The front of a dynamic or differencing disk.
pub(super) struct Front {
    /// All that was read: up to the end of the table, or of the header where that comes later.
    pub(super) bytes: Vec<u8>,
    pub(super) footer: Footer,
    pub(super) header: Header,
    /// Guest bytes.
    pub(super) size: u64,
    /// Where header and table end, with the padding to a whole sector: no block stands before.
    pub(super) end: u64,
}

impl Start {
    /// Reads the front. Errors: it is too short for a VHD; it is a dynamic disk's and breaks its rules; what must be
    /// known before the data stands behind it.
    pub(super) fn read(input: &mut dyn Read) -> Result<Start> {
        let mut bytes = Vec::new();
        let came = take(input, &mut bytes, FOOTER_LEN)?;
        // The shortest VHD is the 511-byte footer of an empty fixed disk.
        if came < FOOTER_LEN - 1 {
            return Err(ended(came, "footer copy"));
        }
        let raw = RawFooter::with_cookie(&bytes)
            .filter(|raw| matches!(raw.disk_type(), Some(DiskType::Dynamic | DiskType::Differencing)));
        let Some(raw) = raw.filter(|_| came == FOOTER_LEN) else { return Ok(Start::Other(bytes)) };
        if !raw.checksum_is_good() {
            let (is, should) = raw.checksums();
            return Err(Error::corrupt(
                "footer checksum",
                format!(
                    "is {is:#010x} and should be {should:#010x}; only the end of the stream has another copy"
                ),
            )
            .at(64)
            .hint(SAVE_IT));
        }
        let footer = raw.parse(0)?;
        let size = footer.size(SizeRule::Auto);
        if !size.is_multiple_of(SECTOR) {
            let what = format!("is {size} bytes, which is not a multiple of 512");
            return Err(Error::corrupt("footer current size", what).at(48));
        }
        let header_end = within(footer.header_at, HEADER_LEN, "dynamic header")?;
        reach(input, &mut bytes, header_end, "dynamic header")?;
        let header = read_header(&bytes, &footer, size)?;
        if 4 * u64::from(header.max_entries) > MAX_TABLE {
            return Err(Error::unsupported(format!(
                "a table of {} entries is too long to be kept while a stream is read",
                header.max_entries
            ))
            .field("max table entries")
            .at(header.at + 28)
            .hint(SAVE_IT));
        }
        if header.max_entries > 0 {
            let bat_end = within(header.bat_at, 4 * u64::from(header.max_entries), "block allocation table")?;
            reach(input, &mut bytes, bat_end, "block allocation table")?;
        }
        let end = (bytes.len() as u64).next_multiple_of(SECTOR);
        Ok(Start::Dynamic(Box::new(Front { bytes, footer, header, size, end })))
    }
}

fn read_header(front: &[u8], footer: &Footer, size: u64) -> Result<Header> {
    let found = Found {
        anyway: false,
        footer: footer.clone(),
        at: 0,
        data_end: u64::MAX,
        file_len: u64::MAX,
        front: CopyState::Good,
        end: CopyState::Missing,
        short: false,
    };
    Header::read(&MemoryStorage::from_bytes(front), &found, size)
}

/// The end of `len` bytes at `at`, if they can be expected before any data.
fn within(at: u64, len: u64, what: &str) -> Result<u64> {
    at.checked_add(len).filter(|_| at <= MAX_BEFORE).ok_or_else(|| {
        Error::unsupported(format!("the {what} stands at {at}, behind data that it is needed for"))
            .hint(SAVE_IT)
    })
}

fn ended(came: u64, what: &str) -> Error {
    Error::corrupt(what, format!("the stream ended after {came} bytes, inside it")).hint("it was cut")
}

/// Reads on until `bytes` has `end` of the stream's, if it has fewer. Answers how many it has.
fn take(input: &mut dyn Read, bytes: &mut Vec<u8>, end: u64) -> Result<u64> {
    while (bytes.len() as u64) < end {
        let old = bytes.len();
        let want = usize::try_from(end - old as u64).unwrap_or(STEP).min(STEP);
        bytes.resize(old + want, 0);
        let got = bytes.get_mut(old..).map_or(Ok(0), |into| read_up_to(input, into, old as u64))?;
        bytes.truncate(old + got);
        if got < want {
            break;
        }
    }
    Ok(bytes.len() as u64)
}

/// As [`take`]; an end before that is an error.
fn reach(input: &mut dyn Read, bytes: &mut Vec<u8>, end: u64, what: &str) -> Result<()> {
    match take(input, bytes, end)? {
        came if came < end => Err(ended(came, what)),
        _ => Ok(()),
    }
}

impl Front {
    /// The table's entries, those past the disk's end too.
    pub(super) fn entries(&self) -> impl Iterator<Item = u32> + '_ {
        let (at, len) = (self.header.bat_at as usize, 4 * self.header.max_entries as usize);
        let table = self.bytes.get(at..at.saturating_add(len)).unwrap_or_default();
        table.as_chunks::<4>().0.iter().map(|entry| u32::from_be_bytes(*entry))
    }

    /// The blocks of the first `count` entries: the sector at which the bitmap of each stands, and its number; as they
    /// stand in the file.
    pub(super) fn blocks(&self, count: u64) -> Vec<(u32, u32)> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let there = || (0..).zip(self.entries().take(count)).filter(|(_, sector)| *sector != FREE);
        let mut blocks = Vec::with_capacity(there().count());
        blocks.extend(there().map(|(block, sector)| (sector, block)));
        blocks.sort_unstable();
        blocks
    }

    /// Where the first block's bitmap stands.
    fn first_block(&self) -> Option<u64> {
        self.entries().filter(|entry| *entry != FREE).min().map(|entry| u64::from(entry) * SECTOR)
    }

    /// Reads on as far as locators stand, before the first block.
    pub(super) fn read_locators(&mut self, input: &mut dyn Read) -> Result<()> {
        let before = self.first_block().unwrap_or(u64::MAX).min(self.end + MAX_BEFORE);
        let end = self.header.locators.iter().filter_map(locator_end).filter(|end| *end <= before).max();
        match end {
            Some(end) if self.footer.disk_type == DiskType::Differencing => {
                reach(input, &mut self.bytes, end, "parent locator")
            }
            _ => Ok(()),
        }
    }

    /// The disk, its parent by the names that were read so far.
    pub(super) fn disk(&self) -> Result<DiskInfo> {
        Ok(DiskInfo {
            size: self.size,
            parent: self.parent()?,
            identity: LayerId(Some(self.footer.unique_id)),
            ..DiskInfo::default()
        })
    }

    fn parent(&self) -> Result<Option<ParentRef>> {
        if self.footer.disk_type != DiskType::Differencing {
            return Ok(None);
        }
        let came = self.bytes.len() as u64;
        let mut header = self.header.clone();
        for raw in &mut header.locators {
            if locator_end(raw).is_none_or(|end| end > came) {
                raw.data_length = 0.into();
            }
        }
        let locators = locator::read(&MemoryStorage::from_bytes(&self.bytes), &header, came)?;
        Ok(Some(locator::parent_ref(&header, &locators)))
    }
}

fn locator_end(raw: &crate::header::RawLocator) -> Option<u64> {
    let len = raw.data_length.get();
    raw.data_offset.get().checked_add(u64::from(len)).filter(|_| len > 0)
}

/// See `Streams::head`.
pub(super) fn head(input: &mut dyn Read) -> Result<Head> {
    Ok(match Start::read(input)? {
        Start::Other(bytes) => Head { bytes, ..Head::default() },
        Start::Dynamic(front) => {
            Head { file_len: front.file_len(), disk: Some(front.disk()?), bytes: front.bytes }
        }
    })
}
