//! The safety gate's judge of VHDX: headers, region tables and the metadata items, seen once from front to end.

use std::ops::Range;

use cowhand_core::{Compat, Ending, Finding, Inspector, Place, Problem};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

const SIGNATURE: &[u8; 8] = b"vhdxfile";
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TABLE: u64 = 64 * KIB;
const HEADER_AT: [u64; 2] = [64 * KIB, 128 * KIB];
const REGIONS_AT: [u64; 2] = [192 * KIB, 256 * KIB];
/// oslo.utils has to see the first region table whole.
const OSLO_HEAD: u64 = 256 * KIB;
const MAX_ENTRIES: u32 = 2047;
const MAX_PROBLEMS: usize = 16;
const MAX_SIZE: u64 = 64 << 40;
const CHECKSUM: Range<usize> = 4..8;
const REQUIRED: u32 = 1;
const ITEM_REQUIRED: u32 = 4;
const HAS_PARENT: u32 = 2;

// GUIDs as they stand in the file.
const REGION_BAT: [u8; 16] = guid(0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08);
const REGION_METADATA: [u8; 16] = guid(0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e);
const ITEM_PARAMETERS: [u8; 16] = guid(0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b);
const ITEM_SIZE: [u8; 16] = guid(0x2fa5_4224_cd1b_4876_b211_5dbe_d83b_f4b8);
const ITEM_SECTOR: [u8; 16] = guid(0x8141_bf1d_a96f_4709_ba47_f233_a8fa_ab5f);
const ITEM_PHYSICAL: [u8; 16] = guid(0xcda3_48c7_445d_4471_9cc9_e988_5251_c556);
const ITEM_PAGE83: [u8; 16] = guid(0xbeca_12ab_b2e6_4523_93ef_c309_e000_c746);
const ITEM_LOCATOR: [u8; 16] = guid(0xa8d3_5f2d_b30b_454d_abf7_d3d8_4834_ab0c);

/// A GUID written as it is read, in the byte order of Microsoft's files: the first three fields little-endian.
const fn guid(text: u128) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = text.to_be_bytes();
    [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
}

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    signature: [u8; 4],
    checksum: U32,
    sequence: U64,
    file_write: [u8; 16],
    data_write: [u8; 16],
    log: [u8; 16],
    log_version: U16,
    version: U16,
    log_len: U32,
    log_at: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RegionTable {
    signature: [u8; 4],
    checksum: U32,
    entries: U32,
    reserved: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Region {
    guid: [u8; 16],
    at: U64,
    len: U32,
    required: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MetadataTable {
    signature: [u8; 8],
    reserved: U16,
    entries: U16,
    reserved2: [u8; 20],
}

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Item {
    guid: [u8; 16],
    at: U32,
    len: U32,
    flags: U32,
    reserved: U32,
}

/// The items whose values count.
#[derive(Clone, Copy, Debug)]
enum Value {
    Parameters,
    Size,
    Sector,
}

#[derive(Debug, Default)]
enum Step {
    #[default]
    Signature,
    Header(usize),
    Regions(usize),
    Metadata,
    Items,
    Done,
}

/// What the metadata table told, as far as oslo.utils' verdict depends on it.
#[derive(Clone, Copy, Debug, Default)]
enum Table {
    /// No metadata region is named, or none that can be seen.
    #[default]
    Absent,
    /// It was to be seen, and the file ended.
    Cut,
    /// It is none.
    Bad,
    /// It does not list the size.
    Sizeless,
    /// The size's place ends here.
    SizeEnds(u64),
}

/// Judges one content.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    step: Step,
    signed: bool,
    headers: [Option<Header>; 2],
    region_tables: u32,
    metadata: Option<Range<u64>>,
    bat_len: u64,
    regions_end: u64,
    table: Table,
    /// What is still to be read, the last first.
    items: Vec<(u64, Value)>,
    has_locator: bool,
    parameters: Option<(u32, u32)>,
    size: Option<u64>,
    sector: Option<u32>,
    problems: Vec<Problem>,
}

impl Inspector for Judge {
    fn wants(&self) -> Option<Range<u64>> {
        let (at, len) = match self.step {
            Step::Signature => (0, 32),
            Step::Header(copy) => (*HEADER_AT.get(copy)?, 4 * KIB),
            Step::Regions(copy) => (*REGIONS_AT.get(copy)?, TABLE),
            Step::Metadata => (self.metadata.as_ref()?.start, TABLE),
            Step::Items => match *self.items.last()? {
                (at, Value::Sector) => (at, 4),
                (at, _) => (at, 8),
            },
            Step::Done => return None,
        };
        Some(at..at.checked_add(len)?)
    }

    fn see(&mut self, bytes: &[u8]) {
        let short = self.wants().is_none_or(|range| range.end - range.start > bytes.len() as u64);
        self.step = match self.step {
            Step::Signature => {
                self.signed = bytes.starts_with(SIGNATURE);
                if self.signed { Step::Header(0) } else { Step::Done }
            }
            Step::Header(copy) => {
                if !short {
                    self.read_header(copy, bytes);
                }
                if copy == 0 { Step::Header(1) } else { Step::Regions(0) }
            }
            Step::Regions(copy) => {
                if !short {
                    self.read_regions(copy, bytes);
                }
                match (copy, &self.metadata) {
                    (0, _) => Step::Regions(1),
                    (_, Some(_)) => Step::Metadata,
                    (_, None) => Step::Done,
                }
            }
            Step::Metadata => {
                self.table = if short { Table::Cut } else { self.read_metadata(bytes) };
                Step::Items
            }
            Step::Items => {
                self.read_item(bytes);
                Step::Items
            }
            Step::Done => Step::Done,
        };
    }

    fn finish(&mut self, end: &Ending<'_>, compat: Compat) -> Option<Finding> {
        if !self.signed {
            return None;
        }
        let mut finding = Finding::new(Place::Front);
        finding.virtual_size = self.size;
        match compat {
            Compat::Strict => self.strict(end.len, &mut finding),
            Compat::Oslo => {
                finding.incomplete = match self.table {
                    Table::Absent => end.len < OSLO_HEAD || self.metadata.is_some(),
                    Table::Cut | Table::Bad => true,
                    Table::Sizeless => false,
                    Table::SizeEnds(at) => at > end.len,
                };
            }
        }
        Some(finding)
    }
}

impl Judge {
    /// The first few problems are enough: thousands of entries can have one each.
    fn problem(&mut self, check: &'static str, reason: impl Into<String>) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { check, reason: reason.into() });
        }
    }

    fn read_header(&mut self, copy: usize, bytes: &[u8]) {
        let Ok((header, _)) = Header::read_from_prefix(bytes) else { return };
        if header.signature != *b"head" {
            self.problem("header", format!("header {} has no signature", copy + 1));
        } else if header.checksum.get() != checksum(bytes) {
            self.problem("checksum", format!("header {}: the checksum is wrong", copy + 1));
        } else if let Some(slot) = self.headers.get_mut(copy) {
            *slot = Some(header);
        }
    }

    /// The first table that names a metadata region is followed; both are judged.
    fn read_regions(&mut self, copy: usize, bytes: &[u8]) {
        let Ok((table, rest)) = RegionTable::read_from_prefix(bytes) else { return };
        let name = format!("region table {}", copy + 1);
        if table.signature != *b"regi" {
            self.problem("region", format!("{name} has no signature"));
            return;
        }
        self.region_tables += 1;
        if table.checksum.get() != checksum(bytes) {
            self.problem("checksum", format!("{name}: the checksum is wrong"));
        }
        if table.entries.get() > MAX_ENTRIES {
            self.problem("region", format!("{name} has {} entries", table.entries.get()));
            return;
        }
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let follow = self.metadata.is_none();
        for entry in rest.chunks_exact(size_of::<Region>()).take(table.entries.get() as usize) {
            let Ok(region) = Region::ref_from_bytes(entry) else { continue };
            let (at, len) = (region.at.get(), u64::from(region.len.get()));
            let Some(end) =
                at.checked_add(len).filter(|_| at >= MIB && at % MIB == 0 && len >= MIB && len % MIB == 0)
            else {
                self.problem("region", format!("{name}: a region at offset {at}, {len} bytes long"));
                return;
            };
            ranges.push(at..end);
            self.regions_end = self.regions_end.max(end);
            match region.guid {
                REGION_METADATA if follow && self.metadata.is_none() => self.metadata = Some(at..end),
                REGION_BAT if follow => self.bat_len = len,
                REGION_METADATA | REGION_BAT => {}
                _ if region.required.get() & REQUIRED != 0 => {
                    self.problem("unknown_features", format!("{name}: a required region is not known"));
                }
                _ => {}
            }
        }
        ranges.sort_by_key(|range| range.start);
        if ranges.windows(2).any(|pair| matches!(pair, [a, b] if a.end > b.start)) {
            self.problem("region", format!("{name}: regions overlap"));
        }
    }

    fn read_metadata(&mut self, bytes: &[u8]) -> Table {
        let (Ok((table, rest)), Some(region)) =
            (MetadataTable::read_from_prefix(bytes), self.metadata.clone())
        else {
            return Table::Bad;
        };
        if table.signature != *b"metadata" {
            self.problem("metadata", "the metadata table has no signature");
            return Table::Bad;
        }
        if u32::from(table.entries.get()) > MAX_ENTRIES {
            self.problem("metadata", format!("the metadata table has {} entries", table.entries.get()));
            return Table::Sizeless;
        }
        let mut answer = Table::Sizeless;
        for entry in rest.chunks_exact(size_of::<Item>()).take(table.entries.get().into()) {
            let Ok(item) = Item::ref_from_bytes(entry) else { continue };
            let (at, len) = (u64::from(item.at.get()), u64::from(item.len.get()));
            let (value, expected) = match item.guid {
                ITEM_PARAMETERS => (Value::Parameters, 8),
                ITEM_SIZE => (Value::Size, 8),
                ITEM_SECTOR => (Value::Sector, 4),
                known => {
                    self.has_locator |= known == ITEM_LOCATOR;
                    if !matches!(known, ITEM_PHYSICAL | ITEM_PAGE83 | ITEM_LOCATOR)
                        && item.flags.get() & ITEM_REQUIRED != 0
                    {
                        self.problem("unknown_features", "a required metadata item is not known");
                    }
                    continue;
                }
            };
            let place = region.start.checked_add(at).and_then(|at| Some(at..at.checked_add(len)?));
            let Some(place) = place else { continue };
            if matches!(value, Value::Size) && !matches!(answer, Table::SizeEnds(_)) {
                answer = Table::SizeEnds(place.end);
            }
            if len != expected || at < TABLE || place.end > region.end {
                self.problem(
                    "metadata",
                    format!("an item at offset {at} of the metadata region, {len} bytes long"),
                );
            } else if self.items.len() < 3 {
                self.items.push((place.start, value));
            } else {
                self.problem("metadata", "an item stands twice in the metadata table");
            }
        }
        self.items.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        answer
    }

    fn read_item(&mut self, bytes: &[u8]) {
        match self.items.pop() {
            Some((_, Value::Parameters)) => {
                let pair = <[U32; 2]>::read_from_bytes(bytes);
                self.parameters = pair.ok().map(|[block, flags]| (block.get(), flags.get()));
            }
            Some((_, Value::Size)) => self.size = U64::read_from_bytes(bytes).ok().map(U64::get),
            Some((_, Value::Sector)) => self.sector = U32::read_from_bytes(bytes).ok().map(U32::get),
            None => {}
        }
    }

    fn strict(&mut self, len: u64, finding: &mut Finding) {
        finding.problems = std::mem::take(&mut self.problems);
        self.check_headers(finding);
        if self.region_tables == 0 {
            finding.problem("region", "there is no region table");
        } else if self.metadata.is_none() || self.bat_len == 0 {
            finding.problem("region", "a region is missing: the metadata or the block allocation table");
        }
        if self.regions_end > len {
            finding
                .problem("region", format!("regions reach to {}, the file ends at {len}", self.regions_end));
        }
        let (Some((block, flags)), Some(size), Some(sector)) = (self.parameters, self.size, self.sector)
        else {
            finding.problem("metadata", "the file parameters, the size or the sector size cannot be read");
            return;
        };
        if flags & HAS_PARENT != 0 {
            finding.problem("backing_file", "a differencing disk: it needs its parent");
            if !self.has_locator {
                finding.problem("metadata", "a differencing disk without a parent locator");
            }
        }
        let (block, sector) = (u64::from(block), u64::from(sector));
        if !block.is_power_of_two() || !(MIB..=256 * MIB).contains(&block) {
            finding.problem("metadata", format!("a block size of {block} bytes"));
        } else if !matches!(sector, 512 | 4096) {
            finding.problem("metadata", format!("a sector size of {sector} bytes"));
        } else if size > MAX_SIZE || size % sector != 0 {
            finding.problem("metadata", format!("a size of {size} bytes"));
        } else {
            let ratio = (sector << 23) / block;
            let blocks = size.div_ceil(block);
            let entries = match flags & HAS_PARENT {
                0 => blocks + blocks.saturating_sub(1) / ratio,
                _ => blocks.div_ceil(ratio) * (ratio + 1),
            };
            if self.bat_len > 0 && entries * 8 > self.bat_len {
                finding.problem(
                    "region",
                    format!("{entries} block entries do not fit the block allocation table"),
                );
            }
        }
    }

    fn check_headers(&self, finding: &mut Finding) {
        let header = match self.headers {
            [Some(a), Some(b)] if a.sequence == b.sequence && common(&a) != common(&b) => {
                finding.problem("header", "both headers have the same sequence number and differ");
                return;
            }
            [Some(a), Some(b)] if a.sequence.get() >= b.sequence.get() => a,
            [_, Some(b)] => b,
            [Some(a), None] => a,
            [None, None] => {
                finding.problem("header", "neither header is good");
                return;
            }
        };
        if header.version.get() != 1 {
            finding.problem("header", format!("version {} of the format is not known", header.version.get()));
        }
        if header.log != [0; 16] {
            finding.problem("log", "the log holds changes that were not written yet");
            if header.log_version.get() != 0 {
                finding
                    .problem("log", format!("version {} of the log is not known", header.log_version.get()));
            }
        }
        let (at, len) = (header.log_at.get(), u64::from(header.log_len.get()));
        if len > 0 && (at < MIB || at % MIB != 0 || len % MIB != 0 || at.checked_add(len).is_none()) {
            finding.problem("log", format!("the log is said to be at offset {at}, {len} bytes long"));
        }
    }
}

/// What two headers of one sequence number must have in common.
fn common(header: &Header) -> ([u8; 16], [u8; 16], [u8; 16], U16, U32, U64) {
    (header.file_write, header.data_write, header.log, header.log_version, header.log_len, header.log_at)
}

/// CRC-32C with the checksum's own field as zeros.
fn checksum(bytes: &[u8]) -> u32 {
    let before = crc32c::crc32c(bytes.get(..CHECKSUM.start).unwrap_or_default());
    let field = crc32c::crc32c_append(before, &[0; 4]);
    crc32c::crc32c_append(field, bytes.get(CHECKSUM.end..).unwrap_or_default())
}
