//! The safety gate's judge of qcow2: the header, its extensions and the snapshot table, seen once from front to end.

use std::ops::Range;

use cowhand_core::{Compat, Ending, Finding, Inspector, Place, Printable, Problem};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

const MAGIC: &[u8] = b"QFI\xfb";
/// What the first look takes: up to and with `cluster_bits`.
const START: u64 = 24;
/// What oslo.utils has to see before it says qcow2.
const OSLO_HEADER: u64 = 512;
/// The header's cluster is looked at this far. The largest header that a writer makes is below 16 KiB.
const MAX_HEADER: u64 = 64 << 10;
const MAX_L1: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
const MAX_SNAPSHOTS: u32 = 65536;
const MAX_SNAPSHOT_EXTRA: u32 = 1024;
const MAX_BACKING_NAME: u32 = 1023;

const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = 0x1f;
/// oslo.utils knows the bits up to the compression type, not extended L2 entries.
const OSLO_KNOWN: u64 = 0x0f;

const EXT_END: u32 = 0;
const EXT_FEATURES: u32 = 0x6803_f857;
const EXT_CRYPTO: u32 = 0x0537_be77;

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    version: U32,
    backing_offset: U64,
    backing_len: U32,
    cluster_bits: U32,
    size: U64,
    crypt_method: U32,
    l1_entries: U32,
    l1_offset: U64,
    refcount_offset: U64,
    refcount_clusters: U32,
    snapshots: U32,
    snapshots_offset: U64,
    incompatible: U64,
    compatible: U64,
    autoclear: U64,
    refcount_order: U32,
    length: U32,
    compression: u8,
    padding: [u8; 7],
}

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Snapshot {
    l1_offset: U64,
    l1_entries: U32,
    id_len: U16,
    name_len: U16,
    times: [u8; 20],
    extra_len: U32,
}

#[derive(Debug, Default)]
enum Step {
    #[default]
    Start,
    Header {
        end: u64,
    },
    Snapshot {
        at: u64,
        left: u32,
    },
    Done,
}

/// Judges one content.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    step: Step,
    head: Vec<u8>,
    header: Option<Header>,
    /// What strict rules hold against it, as far as it has been seen.
    problems: Vec<Problem>,
    /// Where the last snapshot that was seen ends.
    snapshots_end: u64,
}

impl Inspector for Judge {
    fn wants(&self) -> Option<Range<u64>> {
        match self.step {
            Step::Start => Some(0..START),
            Step::Header { end } => Some(START..end),
            Step::Snapshot { at, .. } => Some(at..at.checked_add(size_of::<Snapshot>() as u64)?),
            Step::Done => None,
        }
    }

    fn see(&mut self, bytes: &[u8]) {
        match self.step {
            Step::Start => {
                self.step = Step::Done;
                if bytes.starts_with(MAGIC) {
                    self.head = bytes.to_vec();
                    let end = cluster_size(&parse(bytes)).unwrap_or(OSLO_HEADER).min(MAX_HEADER);
                    self.step = Step::Header { end };
                }
            }
            Step::Header { .. } => {
                self.head.extend_from_slice(bytes);
                self.read_head();
            }
            Step::Snapshot { at, left } => {
                self.step = match self.read_snapshot(at, bytes) {
                    Ok(next) if left > 1 => Step::Snapshot { at: next, left: left - 1 },
                    Ok(_) => Step::Done,
                    Err(reason) => {
                        self.problem("snapshots", format!("snapshot at offset {at}: {reason}"));
                        Step::Done
                    }
                };
            }
            Step::Done => {}
        }
    }

    fn finish(&mut self, end: &Ending<'_>, compat: Compat) -> Option<Finding> {
        if !self.head.is_empty() {
            self.read_head(); // the content ended before the header's window did
        }
        let header = self.header?;
        match compat {
            Compat::Strict => Some(self.strict(&header, end.len)),
            Compat::Oslo => oslo(&header, end.len),
        }
    }
}

impl Judge {
    fn problem(&mut self, check: &'static str, reason: impl Into<String>) {
        self.problems.push(Problem { check, reason: reason.into() });
    }

    fn read_head(&mut self) {
        let head = std::mem::take(&mut self.head);
        let header = parse(&head);
        self.header = Some(header);
        self.step = Step::Done;
        self.check_header(&header, &head);
        let Some(cluster) = cluster_size(&header) else { return };
        let (at, left) = (header.snapshots_offset.get(), header.snapshots.get());
        if left > MAX_SNAPSHOTS {
            self.problem("snapshots", format!("{left} snapshots, more than {MAX_SNAPSHOTS}"));
        } else if left > 0 {
            match table(at, 0, cluster) {
                Ok(()) => self.step = Step::Snapshot { at, left },
                Err(reason) => self.problem("snapshots", format!("snapshot table at offset {at}: {reason}")),
            }
        }
    }

    fn check_header(&mut self, header: &Header, head: &[u8]) {
        let version = header.version.get();
        if !(2..=3).contains(&version) {
            // Nothing behind the version can be relied on.
            self.problem("unknown_features", format!("version {version} of the format is not known"));
        }
        if header.backing_offset.get() != 0 {
            self.problem("backing_file", backing(header, head));
        }
        if !(2..=3).contains(&version) {
            return;
        }
        let Some(cluster) = cluster_size(header) else {
            let bits = header.cluster_bits.get();
            self.problem("header", format!("cluster_bits is {bits}, not in 9..21"));
            return;
        };
        if header.backing_offset.get() != 0 {
            let end = header.backing_offset.get().checked_add(u64::from(header.backing_len.get()));
            if header.backing_len.get() > MAX_BACKING_NAME || end.is_none_or(|end| end > cluster) {
                self.problem(
                    "header",
                    "the backing file's name lies outside the first cluster, or is too long",
                );
            }
        }
        // The backing file's name ends the extensions, and old writers put nothing else between.
        let limit = Some(header.backing_offset.get()).filter(|at| *at != 0).unwrap_or(cluster).min(cluster);
        let mut length = 72;
        let mut features = 0;
        if version == 3 {
            features = header.incompatible.get();
            length = u64::from(header.length.get());
            if length < 104 || length > cluster || length % 8 != 0 {
                self.problem("header", format!("header_length is {length}"));
                return;
            }
            self.check_version_3(header, features, limit, length, head);
        }
        self.check_tables(header, cluster, features);
        match extensions(head, length, limit) {
            Ok(found) => match header.crypt_method.get() {
                0 | 1 => {}
                2 if found.crypto => {}
                2 => self.problem("header", "LUKS encryption without its header extension"),
                other => self.problem("header", format!("encryption method {other} is not known")),
            },
            Err(reason) => self.problem("header", reason),
        }
    }

    fn check_version_3(&mut self, header: &Header, features: u64, limit: u64, length: u64, head: &[u8]) {
        if features & DATA_FILE != 0 {
            self.problem("data_file", "the guest's data is in another file");
        }
        if features & CORRUPT != 0 {
            self.problem("corrupt", "it is marked as corrupt");
        }
        if features & !KNOWN != 0 {
            let names = extensions(head, length, limit)
                .map(|found| found.names(features & !KNOWN))
                .unwrap_or_default();
            self.problem(
                "unknown_features",
                format!("incompatible features {:#x} are not known{names}", features & !KNOWN),
            );
        }
        if header.refcount_order.get() > 6 {
            self.problem("header", format!("refcount_order is {}, above 6", header.refcount_order.get()));
        }
        let compression = if length > 104 { header.compression } else { 0 };
        if compression > 1 {
            self.problem("header", format!("compression type {compression} is not known"));
        } else if (compression != 0) != (features & COMPRESSION != 0) {
            self.problem("header", format!("compression type {compression} contradicts its feature bit"));
        }
        if features & EXTENDED_L2 != 0 && header.cluster_bits.get() < 14 {
            self.problem("header", "extended L2 entries in clusters below 16 KiB");
        }
    }

    fn check_tables(&mut self, header: &Header, cluster: u64, features: u64) {
        let size = header.size.get();
        let l1_entries = u64::from(header.l1_entries.get());
        let per_table = if features & EXTENDED_L2 != 0 { cluster / 16 } else { cluster / 8 };
        let needed = size.div_ceil(cluster).div_ceil(per_table);
        if size >= 1 << 63 {
            self.problem("header", format!("a size of {size} bytes is too large"));
        } else if needed > l1_entries {
            self.problem(
                "header",
                format!("a size of {size} bytes needs {needed} L1 entries, there are {l1_entries}"),
            );
        }
        if l1_entries > MAX_L1 / 8 {
            self.problem("header", format!("an L1 table of {l1_entries} entries is too large"));
        } else if l1_entries > 0
            && let Err(reason) = table(header.l1_offset.get(), l1_entries * 8, cluster)
        {
            self.problem("header", format!("L1 table at offset {}: {reason}", header.l1_offset.get()));
        }
        let refcounts = u64::from(header.refcount_clusters.get()).saturating_mul(cluster);
        if refcounts == 0 || refcounts > MAX_REFCOUNT_TABLE {
            self.problem("header", format!("a refcount table of {refcounts} bytes"));
        } else if let Err(reason) = table(header.refcount_offset.get(), refcounts, cluster) {
            self.problem(
                "header",
                format!("refcount table at offset {}: {reason}", header.refcount_offset.get()),
            );
        }
    }

    /// Answers where the next snapshot starts.
    fn read_snapshot(&mut self, at: u64, bytes: &[u8]) -> Result<u64, String> {
        let snapshot = Snapshot::ref_from_bytes(bytes).map_err(|_| "it lies past the end of the file")?;
        let cluster = self.header.as_ref().and_then(cluster_size).unwrap_or(OSLO_HEADER);
        let entries = u64::from(snapshot.l1_entries.get());
        if snapshot.extra_len.get() > MAX_SNAPSHOT_EXTRA {
            return Err(format!("{} bytes of extra data", snapshot.extra_len.get()));
        }
        if entries > MAX_L1 / 8 {
            return Err(format!("an L1 table of {entries} entries is too large"));
        }
        if entries > 0 {
            table(snapshot.l1_offset.get(), entries * 8, cluster)
                .map_err(|reason| format!("its L1 table: {reason}"))?;
        }
        let strings = u64::from(snapshot.id_len.get()) + u64::from(snapshot.name_len.get());
        let body = size_of::<Snapshot>() as u64 + u64::from(snapshot.extra_len.get()) + strings;
        self.snapshots_end = at.checked_add(body).ok_or("it ends beyond 2^64")?;
        self.snapshots_end.checked_next_multiple_of(8).ok_or_else(|| "it ends beyond 2^64".to_owned())
    }

    fn strict(&mut self, header: &Header, len: u64) -> Finding {
        let mut finding = Finding::new(Place::Front);
        finding.virtual_size = Some(header.size.get());
        finding.problems = std::mem::take(&mut self.problems);
        let head = if header.version.get() == 3 { 104 } else { 72 };
        let l1_missing = header.l1_entries.get() > 0 && header.l1_offset.get() >= len;
        if len < head || l1_missing || header.refcount_offset.get() >= len {
            finding.problem("header", format!("the file ends at {len}, before its own tables"));
        }
        if self.snapshots_end > len {
            finding.problem("snapshots", "the snapshot table goes past the end of the file");
        }
        finding
    }
}

/// oslo.utils' verdict. It looks at the features' place in version 2 as well, where the data file is concerned.
fn oslo(header: &Header, len: u64) -> Option<Finding> {
    if len < OSLO_HEADER {
        return None;
    }
    let mut finding = Finding::new(Place::Front);
    finding.virtual_size = Some(header.size.get());
    if header.backing_offset.get() != 0 {
        finding.problem("backing_file", "it has a backing file");
    }
    if header.incompatible.get() & DATA_FILE != 0 {
        finding.problem("data_file", "the guest's data is in another file");
    }
    match header.version.get() {
        2 => {}
        3 if header.incompatible.get() & !OSLO_KNOWN == 0 => {}
        3 => finding.problem("unknown_features", "incompatible features that oslo.utils does not know"),
        other => finding.problem("unknown_features", format!("version {other} of the format")),
    }
    Some(finding)
}

/// The header, with zeros where the content is too short for it.
fn parse(head: &[u8]) -> Header {
    let mut bytes = [0; size_of::<Header>()];
    for (to, from) in bytes.iter_mut().zip(head) {
        *to = *from;
    }
    zerocopy::transmute!(bytes)
}

fn cluster_size(header: &Header) -> Option<u64> {
    let bits = header.cluster_bits.get();
    (9..=21).contains(&bits).then(|| 1 << bits)
}

/// A table must stand on a cluster boundary, behind the header.
fn table(at: u64, len: u64, cluster: u64) -> Result<(), String> {
    if at == 0 {
        Err("it overlaps the header".into())
    } else if !at.is_multiple_of(cluster) {
        Err("it is not aligned to a cluster".into())
    } else if at.checked_add(len).is_none_or(|end| end >= 1 << 63) {
        Err("it ends beyond 2^63".into())
    } else {
        Ok(())
    }
}

fn backing(header: &Header, head: &[u8]) -> String {
    let name = usize::try_from(header.backing_offset.get()).ok().and_then(|at| {
        head.get(at..at.checked_add(header.backing_len.get().min(MAX_BACKING_NAME) as usize)?)
    });
    match name {
        Some(name) => format!("it names a backing file, '{}'", Printable(&String::from_utf8_lossy(name))),
        None => "it names a backing file".into(),
    }
}

#[derive(Default)]
struct Extensions<'a> {
    crypto: bool,
    features: &'a [u8],
}

impl Extensions<'_> {
    /// The names that the image's own table gives these incompatible bits.
    fn names(&self, bits: u64) -> String {
        let mut names = String::new();
        for entry in self.features.chunks_exact(48).take(64) {
            let (Some([0, bit]), Some(name)) = (entry.first_chunk::<2>(), entry.get(2..)) else { continue };
            if *bit < 64 && bits & (1 << bit) != 0 {
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                names.push_str(if names.is_empty() { ": " } else { ", " });
                names.push_str(&Printable(&String::from_utf8_lossy(name)).to_string());
            }
        }
        names
    }
}

/// Walks the header extensions from `at` up to `limit`.
fn extensions(head: &[u8], at: u64, limit: u64) -> Result<Extensions<'_>, String> {
    let mut found = Extensions::default();
    let mut at = at;
    while at < limit {
        if at >= MAX_HEADER {
            return Err(format!("header extensions reach past {MAX_HEADER} bytes"));
        }
        let rest = usize::try_from(at).ok().and_then(|at| head.get(at..)).unwrap_or_default();
        let Ok((start, rest)) = <[U32; 2]>::read_from_prefix(rest) else { break };
        let [kind, len] = start.map(U32::get);
        if kind == EXT_END {
            break;
        }
        let end = at + 8 + u64::from(len);
        if end > limit {
            return Err(format!("header extension {kind:#x} at offset {at} is too long, {len} bytes"));
        }
        match kind {
            EXT_CRYPTO => found.crypto = true,
            EXT_FEATURES => found.features = rest.get(..len as usize).unwrap_or_default(),
            _ => {}
        }
        at = end.next_multiple_of(8);
    }
    Ok(found)
}
