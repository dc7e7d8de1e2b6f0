//! The judge of VMDK: the sparse header, the descriptor that it points to or that the file is, the footer.

use std::ops::Range;

use cowhand_core::{Compat, Ending, Finding, Inspector, Place, Printable};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

const SECTOR: u64 = 512;
const MAGIC: &[u8; 4] = b"KDMV";
/// The sparse extents of ESX, which name no descriptor of their own.
const COWD: &[u8; 4] = b"COWD";
const MAX_DESCRIPTOR: u64 = (1 << 20) - 1;
/// A file that is a descriptor is looked at this far: what it says of itself stands in front of its extents.
const MAX_TEXT: u64 = 64 << 10;
/// The grain directory's place is in a footer at the end of the file.
const AT_END: u64 = u64::MAX;
/// oslo.utils looks at so much of a file that is a descriptor.
const OSLO_TEXT: usize = 4096;
const OSLO_HEADER: u64 = 64;
const FOOTER: u64 = 1536;
/// What a descriptor says of a disk without a parent.
const NO_PARENT: &str = "ffffffff";

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SparseHeader {
    magic: [u8; 4],
    version: U32,
    flags: U32,
    sectors: U64,
    grain: U64,
    descriptor_at: U64,
    descriptor_len: U64,
    entries_per_table: U32,
    redundant_directory: U64,
    directory: U64,
    overhead: U64,
    unclean: u8,
    line_ends: [u8; 4],
    compression: U16,
}

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Marker {
    value: U64,
    size: U32,
    kind: U32,
    zeros: [u8; 496],
}

impl Marker {
    const END: u32 = 0;
    const FOOTER: u32 = 3;

    fn is(&self, kind: u32) -> bool {
        self.size.get() == 0 && self.kind.get() == kind && self.zeros == [0; 496]
    }
}

impl SparseHeader {
    fn footer_follows(&self) -> bool {
        self.directory.get() == AT_END
    }

    /// The descriptor stands right behind the header in every file that is one disk.
    fn regular(&self) -> bool {
        matches!(self.version.get(), 1..=3) && self.descriptor_at.get() == 1
    }
}

#[derive(Debug, Default)]
enum Step {
    #[default]
    Front,
    /// The descriptor that the header names.
    Embedded {
        len: u64,
    },
    /// The rest of a file that is text.
    Text,
    Done,
}

/// Judges one content.
#[derive(Debug, Default)]
pub(super) struct Vmdk {
    step: Step,
    /// The first sector of a file that may be a descriptor, and whether all of it is text.
    front: Vec<u8>,
    plain: bool,
    cowd: bool,
    /// `KDMV` stands at the front; the whole header, if the file had it.
    signed: bool,
    header: Option<SparseHeader>,
    descriptor: Option<Descriptor>,
    oslo: Oslo,
}

impl Inspector for Vmdk {
    fn wants(&self) -> Option<Range<u64>> {
        match self.step {
            Step::Front => Some(0..SECTOR),
            Step::Embedded { len } => Some(SECTOR..SECTOR + len),
            Step::Text => Some(SECTOR..MAX_TEXT),
            Step::Done => None,
        }
    }

    fn see(&mut self, bytes: &[u8]) {
        match std::mem::replace(&mut self.step, Step::Done) {
            Step::Front => self.see_front(bytes),
            Step::Embedded { len } => {
                if bytes.len() as u64 == len {
                    self.oslo = Oslo::judge(to_nul(bytes));
                    self.descriptor = Some(Descriptor::read(to_nul(bytes)));
                }
            }
            Step::Text => self.see_text(bytes),
            Step::Done => {}
        }
    }

    fn finish(&mut self, end: &Ending<'_>, compat: Compat) -> Option<Finding> {
        if !self.front.is_empty() {
            self.see_text(&[]); // the file is no longer than that
        }
        match compat {
            Compat::Strict => self.strict(end),
            Compat::Oslo => self.oslo(end),
        }
    }
}

impl Vmdk {
    fn see_front(&mut self, bytes: &[u8]) {
        self.signed = bytes.starts_with(MAGIC);
        self.cowd = bytes.starts_with(COWD);
        if self.signed {
            self.header = SparseHeader::read_from_prefix(bytes).ok().map(|(header, _)| header);
            let header = self.header.filter(|header| header.regular() && bytes.len() as u64 == SECTOR);
            if let Some(header) = header {
                let len = header.descriptor_len.get().saturating_mul(SECTOR).min(MAX_DESCRIPTOR);
                if len > 0 {
                    self.step = Step::Embedded { len };
                }
            }
        } else {
            self.plain = bytes.iter().all(|byte| is_text(*byte));
            if self.plain || matches!(bytes.first(), Some(b'#' | b' ' | b'\r' | b'\n' | b'v' | b'V')) {
                self.front = bytes.to_vec();
                self.step = Step::Text;
            }
        }
    }

    fn see_text(&mut self, rest: &[u8]) {
        let mut text = std::mem::take(&mut self.front);
        text.extend_from_slice(rest);
        if self.plain && text.len() as u64 >= OSLO_HEADER {
            self.oslo = Oslo::judge(to_nul(text.get(..OSLO_TEXT).unwrap_or(&text)));
        }
        let opens = opens(&text);
        self.descriptor = Some(Descriptor::read(to_nul(&text)))
            .filter(|found| opens || (self.plain && found.kind.is_some()));
    }

    fn strict(&self, end: &Ending<'_>) -> Option<Finding> {
        if !self.signed && !self.cowd && self.descriptor.is_none() {
            return None;
        }
        let mut finding = Finding::new(Place::Front);
        if self.cowd {
            finding.problem("descriptor", "an ESX sparse extent, which only its descriptor makes a disk");
            return Some(finding);
        }
        if !self.signed {
            let sectors =
                self.descriptor.as_ref().map(|descriptor| descriptor.sectors).filter(|sectors| *sectors > 0);
            finding.virtual_size = sectors.and_then(|sectors| sectors.checked_mul(SECTOR));
            finding.problem("descriptor", "a descriptor whose disk is in other files");
            return Some(finding);
        }
        let Some(header) = self.header else {
            finding.problem("header", "the file ends inside its header");
            return Some(finding);
        };
        finding.virtual_size = header.sectors.get().checked_mul(SECTOR);
        if finding.virtual_size.is_none_or(|size| size == 0 || size >= 1 << 63) {
            // A header without a size sends QEMU to the descriptor's extents.
            finding.problem("header", format!("a size of {} sectors", header.sectors.get()));
        }
        if !matches!(header.version.get(), 1..=3) {
            finding.problem("header", format!("version {} of the format is not known", header.version.get()));
        }
        let directory = header.directory.get();
        if !header.footer_follows() && directory.checked_mul(SECTOR).is_none_or(|at| at >= end.len) {
            finding.problem(
                "header",
                format!("the grain directory in sector {directory} lies past the end of the file"),
            );
        }
        match &self.descriptor {
            Some(descriptor) => descriptor.check(&mut finding),
            None => finding.problem("descriptor", "no descriptor stands behind the header"),
        }
        if header.footer_follows()
            && let Err(reason) = check_footer(&header, end.tail, Compat::Strict)
        {
            finding.problem("footer", reason);
        }
        Some(finding)
    }

    fn oslo(&self, end: &Ending<'_>) -> Option<Finding> {
        let mut finding = Finding::new(Place::Front);
        if !self.signed {
            return match &self.oslo {
                Oslo::Unread | Oslo::Untyped => None,
                judged => {
                    judged.tell(&mut finding);
                    Some(finding)
                }
            };
        }
        let Some(header) = self.header.filter(|_| end.len >= OSLO_HEADER) else {
            finding.incomplete = true;
            return Some(finding);
        };
        if header.version.get() == 0 || header.version.get() > 3 {
            finding.problem("descriptor", "a version that oslo.utils does not know");
            return Some(finding);
        }
        if header.descriptor_at.get() != 1 {
            finding.incomplete = header.footer_follows();
            finding.problem("descriptor", "the descriptor does not stand behind the header");
            return Some(finding);
        }
        let len = header.descriptor_len.get().saturating_mul(SECTOR).min(MAX_DESCRIPTOR);
        finding.incomplete =
            (len > 0 && end.len < SECTOR + len) || (header.footer_follows() && end.len < FOOTER);
        if finding.incomplete {
            return Some(finding);
        }
        finding.virtual_size = match self.oslo {
            Oslo::Safe | Oslo::Bad(_) => header.sectors.get().checked_mul(SECTOR),
            _ => Some(0),
        };
        self.oslo.tell(&mut finding);
        if header.footer_follows()
            && let Err(reason) = check_footer(&header, end.tail, Compat::Oslo)
        {
            finding.problem("footer", reason);
        }
        Some(finding)
    }
}

/// The footer of a streamed image takes the header's place, so it must say the same.
fn check_footer(header: &SparseHeader, tail: &[u8], compat: Compat) -> Result<(), &'static str> {
    let parts = tail.last_chunk::<{ FOOTER as usize }>().ok_or("the file is too short for its footer")?;
    let (marker, rest) = Marker::read_from_prefix(parts.as_slice()).map_err(|_| "no footer")?;
    let (footer, _) = SparseHeader::read_from_prefix(rest).map_err(|_| "no footer")?;
    let (end, _) =
        Marker::read_from_suffix(parts.as_slice()).map(|(rest, end)| (end, rest)).map_err(|_| "no footer")?;
    if footer.magic != header.magic || footer.version != header.version {
        Err("the footer's signature or version is not the header's")
    } else if (footer.descriptor_at, footer.descriptor_len) != (header.descriptor_at, header.descriptor_len) {
        Err("the footer names another descriptor than the header")
    } else if footer.footer_follows() {
        Err("the footer names another footer")
    } else if !marker.is(Marker::FOOTER) {
        Err("the marker before the footer is wrong")
    } else if !end.is(Marker::END) || end.value.get() != 0 {
        Err("the marker at the end of the stream is wrong")
    } else if compat == Compat::Strict && (footer.sectors, footer.grain) != (header.sectors, header.grain) {
        Err("the footer describes another disk than the header")
    } else {
        Ok(())
    }
}

/// ASCII that can be printed, and white space (the separators 0x1c..0x1f count as such).
fn is_text(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7e | b'\t'..=b'\r' | 0x1c..=0x1f)
}

fn to_nul(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Would a program that probes take this for a descriptor? QEMU does where the first line that says anything is the
/// version, whatever bytes stand in the comments before.
fn opens(text: &[u8]) -> bool {
    let starts = |line: &[u8], with: &[u8]| {
        line.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with))
    };
    let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    starts(text, b"# disk descriptorfile")
        || lines
            .find(|line| !line.is_empty() && !line.starts_with(b"#"))
            .is_some_and(|line| starts(line, b"version="))
}

fn trim(line: &str) -> &str {
    line.trim_matches(|c| u8::try_from(c).is_ok_and(|byte| is_text(byte) && (byte <= 0x20)))
}

/// What counts of a descriptor, in lower case.
#[derive(Debug, Default)]
struct Descriptor {
    /// `createType`, and how often it is said.
    kind: Option<String>,
    kinds: u32,
    extents: Vec<String>,
    extent_count: u32,
    /// The extents' sizes together, in sectors.
    sectors: u64,
    parent: bool,
    odd_line: Option<String>,
}

impl Descriptor {
    fn read(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text).to_ascii_lowercase();
        let mut found = Descriptor::default();
        for line in text.split('\n').map(trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let word = line.split(' ').next().unwrap_or_default();
            match line.split_once('=') {
                _ if line.starts_with("ddb") => {}
                Some((name, value)) if !name.contains(' ') => {
                    let value = value.trim().trim_matches('"');
                    match name {
                        "createtype" => {
                            found.kinds += 1;
                            found.kind.get_or_insert_with(|| value.chars().take(64).collect());
                        }
                        "parentcid" => found.parent |= value != NO_PARENT,
                        "parentfilenamehint" => found.parent = true,
                        _ => {}
                    }
                }
                _ if matches!(word, "rw" | "rdonly" | "noaccess") => {
                    found.extent_count += 1;
                    let size = line.split(' ').nth(1).and_then(|size| size.parse().ok()).unwrap_or(0);
                    found.sectors = found.sectors.saturating_add(size);
                    if found.extents.len() < 2 {
                        found.extents.push(line.chars().take(1024).collect());
                    }
                }
                _ => found.odd_line = found.odd_line.or_else(|| Some(line.chars().take(64).collect())),
            }
        }
        found
    }

    /// Strict rules: one disk, in this file, and a descriptor without a word that is not understood.
    fn check(&self, finding: &mut Finding) {
        if self.parent {
            finding.problem("backing_file", "it names a parent");
        }
        let kind = self.kind.as_deref().unwrap_or("");
        if !matches!(kind, "monolithicsparse" | "streamoptimized") || self.kinds != 1 {
            finding.problem("descriptor", format!("the subformat '{}' is not taken", Printable(kind)));
        }
        if let Some(line) = &self.odd_line {
            finding.problem("descriptor", format!("the line '{}' is not understood", Printable(line)));
        }
        match self.extents.as_slice() {
            [extent] => {
                // RW 20480 SPARSE "name.vmdk"
                let mut words = extent.splitn(4, ' ');
                let (kind, name) = (words.nth(2).unwrap_or_default(), words.next().unwrap_or_default());
                if kind != "sparse" || name.contains(['/', '\\']) {
                    finding.problem(
                        "descriptor",
                        format!("the extent '{}' is not in this file", Printable(extent)),
                    );
                }
            }
            [] => finding.problem("descriptor", "it names no extent"),
            _ => finding.problem("descriptor", format!("it names {} extents", self.extent_count)),
        }
    }
}

/// What oslo.utils makes of a descriptor.
#[derive(Debug, Default)]
enum Oslo {
    #[default]
    Unread,
    /// There is no `createType`.
    Untyped,
    /// A subformat that it does not take.
    Kind,
    Bad(&'static str),
    Safe,
}

impl Oslo {
    fn judge(text: &[u8]) -> Oslo {
        let Some(text) = text.is_ascii().then(|| String::from_utf8_lossy(text).to_ascii_lowercase()) else {
            return Oslo::Unread;
        };
        if text.is_empty() {
            return Oslo::Unread;
        }
        let Some((_, value)) = text.split_once("createtype=\"") else { return Oslo::Untyped };
        match value.split('"').next() {
            Some("monolithicsparse" | "streamoptimized") if value.contains('"') => {}
            Some(kind) if kind.len() >= 64 => return Oslo::Untyped,
            _ => return Oslo::Kind,
        }
        let mut extents = 0;
        let mut slash = false;
        for line in text.split('\n').map(trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let field = line.split_once('=').is_some_and(|(name, _)| !name.contains(' '));
            if line.starts_with("ddb") || field {
                continue;
            }
            if !matches!(line.split(' ').next(), Some("rw" | "rdonly" | "noaccess")) {
                return Oslo::Bad("a line of the descriptor is not understood");
            }
            extents += 1;
            slash |= line.contains('/');
        }
        if slash {
            Oslo::Bad("an extent's name is a path")
        } else if extents == 0 {
            Oslo::Bad("the descriptor names no extent")
        } else {
            Oslo::Safe
        }
    }

    fn tell(&self, finding: &mut Finding) {
        match self {
            Oslo::Safe => {}
            Oslo::Unread => finding.problem("descriptor", "no descriptor was found"),
            Oslo::Untyped | Oslo::Kind => finding.problem("descriptor", "the subformat is not taken"),
            Oslo::Bad(reason) => finding.problem("descriptor", *reason),
        }
    }
}
