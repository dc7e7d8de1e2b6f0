//! The safety gate's judge of VHD: the footer's two places and the dynamic header, seen once from front to end.

use std::ops::Range;

use cowhand_core::{Compat, Ending, Finding, Inspector, Place, Problem};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

const SECTOR: u64 = 512;
const COOKIE: &[u8; 8] = b"conectix";
const DYNAMIC_COOKIE: &[u8; 8] = b"cxsparse";
const VERSION: u32 = 0x0001_0000;
const CHECKSUM: Range<usize> = 64..68;
const DYNAMIC_CHECKSUM: Range<usize> = 36..40;
const MAX_CHS: (u16, u8, u8) = (65535, 16, 255);
const MAX_DYNAMIC: u64 = 0xff00_0000 * SECTOR;
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Footer {
    cookie: [u8; 8],
    features: U32,
    version: U32,
    data_offset: U64,
    time: U32,
    creator: [u8; 4],
    creator_version: U32,
    host: [u8; 4],
    original_size: U64,
    current_size: U64,
    cylinders: U16,
    heads: u8,
    sectors: u8,
    kind: U32,
    checksum: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DynamicHeader {
    cookie: [u8; 8],
    data_offset: U64,
    table_offset: U64,
    version: U32,
    entries: U32,
    block_size: U32,
    checksum: U32,
}

impl Footer {
    /// The footer in these 512 bytes (or 511, as Virtual PC wrote before 2004), and whether its checksum is right.
    fn read(bytes: &[u8]) -> Option<(Footer, bool)> {
        let (footer, _) = Footer::read_from_prefix(bytes).ok()?;
        (footer.cookie == *COOKIE).then(|| (footer, footer.checksum.get() == checksum(bytes, CHECKSUM)))
    }

    fn sparse(&self) -> bool {
        matches!(self.kind.get(), DYNAMIC | DIFFERENCING)
    }

    /// Guest bytes. Virtual PC and QEMU mean the geometry, unless it is the largest there is.
    fn size(&self) -> u64 {
        let chs = (self.cylinders.get(), self.heads, self.sectors);
        let bytes = u64::from(chs.0) * u64::from(chs.1) * u64::from(chs.2) * SECTOR;
        let by_geometry =
            matches!(&self.creator, b"vpc " | b"qemu" | b"vs  ") && chs != MAX_CHS && bytes != 0;
        if by_geometry { bytes } else { self.current_size.get() }
    }
}

/// The ones' complement of the sum of all bytes but the checksum's own.
fn checksum(bytes: &[u8], field: Range<usize>) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    !sum(bytes).wrapping_sub(sum(bytes.get(field).unwrap_or_default()))
}

#[derive(Debug, Default)]
enum Step {
    #[default]
    Front,
    DynamicHeader {
        at: u64,
    },
    Done,
}

/// Judges one content.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    step: Step,
    /// The cookie stands at offset 0.
    signed: bool,
    front: Option<(Footer, bool)>,
    table_offset: u64,
    table_end: u64,
    problems: Vec<Problem>,
}

impl Inspector for Judge {
    fn wants(&self) -> Option<Range<u64>> {
        match self.step {
            Step::Front => Some(0..SECTOR),
            Step::DynamicHeader { at } => Some(at..at.checked_add(1024)?),
            Step::Done => None,
        }
    }

    fn see(&mut self, bytes: &[u8]) {
        match std::mem::replace(&mut self.step, Step::Done) {
            Step::Front => {
                self.signed = bytes.starts_with(COOKIE);
                self.front = (bytes.len() as u64 == SECTOR).then(|| Footer::read(bytes)).flatten();
                if let Some((footer, _)) = self.front.filter(|(footer, _)| footer.sparse()) {
                    let at = footer.data_offset.get();
                    if at >= SECTOR && at % SECTOR == 0 && at < 1 << 63 {
                        self.step = Step::DynamicHeader { at };
                    } else {
                        self.problem(
                            "header",
                            format!("the dynamic disk header is said to be at offset {at}"),
                        );
                    }
                }
            }
            Step::DynamicHeader { at } => self.check_dynamic(at, bytes),
            Step::Done => {}
        }
    }

    fn finish(&mut self, end: &Ending<'_>, compat: Compat) -> Option<Finding> {
        match compat {
            Compat::Strict => self.strict(end),
            Compat::Oslo => self.oslo(end),
        }
    }
}

impl Judge {
    fn problem(&mut self, check: &'static str, reason: impl Into<String>) {
        self.problems.push(Problem { check, reason: reason.into() });
    }

    fn check_dynamic(&mut self, at: u64, bytes: &[u8]) {
        let (Ok((header, _)), 1024) = (DynamicHeader::read_from_prefix(bytes), bytes.len()) else {
            self.problem(
                "header",
                format!("the dynamic disk header at offset {at} lies past the end of the file"),
            );
            return;
        };
        if header.cookie != *DYNAMIC_COOKIE {
            self.problem("header", format!("there is no dynamic disk header at offset {at}"));
            return;
        }
        if header.checksum.get() != checksum(bytes, DYNAMIC_CHECKSUM) {
            self.problem("checksum", "the dynamic disk header's checksum is wrong");
        }
        if header.version.get() != VERSION {
            self.problem(
                "header",
                format!("version {:#x} of the dynamic disk header is not known", header.version.get()),
            );
        }
        let block = header.block_size.get();
        if !(512..=256 << 20).contains(&block) || !block.is_power_of_two() {
            self.problem("header", format!("a block size of {block} bytes"));
        }
        let size = self.front.map_or(0, |(footer, _)| footer.size());
        if u64::from(header.entries.get()) * u64::from(block) < size {
            self.problem("header", format!("{} blocks do not cover {size} bytes", header.entries.get()));
        }
        self.table_offset = header.table_offset.get();
        self.table_end = self.table_offset.saturating_add(4 * u64::from(header.entries.get()));
    }

    fn strict(&mut self, end: &Ending<'_>) -> Option<Finding> {
        let footer_len = if end.len % SECTOR == 511 { 511 } else { 512 };
        let back = end.tail.len().checked_sub(footer_len).and_then(|at| Footer::read(end.tail.get(at..)?));
        // A file that is nothing but a footer holds one, at its end.
        if self.signed && !(end.len <= SECTOR && back.is_some_and(|(footer, _)| footer.kind.get() == FIXED)) {
            return Some(self.signed_front(end.len, back));
        }
        // A guest could have written a footer that sends a reader to places in its own disk.
        let (footer, good) = back.filter(|(footer, _)| footer.kind.get() == FIXED)?;
        let before = end.len.saturating_sub(footer_len as u64);
        let sizes = [footer.current_size.get(), footer.size()];
        if !sizes.contains(&before) && sizes.iter().any(|size| *size < before) {
            // It leaves bytes over: no disk of this file, but a sector that a guest wrote.
            return None;
        }
        let mut finding = Finding::new(Place::End);
        finding.virtual_size = Some(footer.size());
        if !good {
            finding.problem("checksum", "the footer's checksum is wrong");
        }
        check_version(&footer, &mut finding);
        if footer.size() > before {
            finding
                .problem("size", format!("a fixed disk of {} bytes in a file of {}", footer.size(), end.len));
        }
        Some(finding)
    }

    /// The cookie stands at offset 0: whoever probes takes it for a VHD, whatever else is wrong.
    fn signed_front(&mut self, len: u64, back: Option<(Footer, bool)>) -> Finding {
        let mut finding = Finding::new(Place::Front);
        finding.problems = std::mem::take(&mut self.problems);
        let Some((front, good)) = self.front else {
            finding.problem("footer", "the file ends inside its first sector");
            return finding;
        };
        let footer = back.filter(|(back, good)| *good && back.sparse()).map_or(front, |(back, _)| back);
        finding.virtual_size = Some(footer.size());
        if !good {
            finding.problem("checksum", "the checksum of the footer's copy at offset 0 is wrong");
        }
        check_version(&front, &mut finding);
        match front.kind.get() {
            FIXED => finding.problem("footer", "a fixed disk's footer stands at offset 0"),
            DYNAMIC => {}
            DIFFERENCING => finding.problem("backing_file", "a differencing disk: it needs its parent"),
            other => finding.problem("footer", format!("disk type {other} is not known")),
        }
        match back {
            None => finding.problem("footer", "there is no footer at the end of the file"),
            Some((_, false)) => finding.problem("checksum", "the checksum of the footer at the end is wrong"),
            Some((back, true)) => {
                if (back.kind, back.data_offset, back.size()) != (front.kind, front.data_offset, front.size())
                {
                    finding.problem(
                        "footer",
                        "the footer at the end and its copy at offset 0 describe different disks",
                    );
                }
            }
        }
        if front.sparse() && footer.size() > MAX_DYNAMIC {
            finding.problem("size", format!("{} bytes are more than 2040 GiB", footer.size()));
        }
        if self.table_offset >= len || self.table_end > len {
            finding.problem(
                "header",
                format!("the block allocation table at offset {} lies past the end", self.table_offset),
            );
        }
        finding
    }

    /// oslo.utils knows the cookie at offset 0 alone, and takes the original size for the size.
    fn oslo(&self, end: &Ending<'_>) -> Option<Finding> {
        let mut finding = self.signed.then(|| Finding::new(Place::Front))?;
        finding.incomplete = end.len < SECTOR;
        finding.virtual_size = self.front.map(|(footer, _)| footer.original_size.get());
        Some(finding)
    }
}

fn check_version(footer: &Footer, finding: &mut Finding) {
    if footer.version.get() >> 16 != VERSION >> 16 {
        finding.problem("footer", format!("version {:#x} of the format is not known", footer.version.get()));
    }
}
