//! The header as it is read, with every rule that it can break.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use cowhand_core::{ArchivedDisk, ConfigFile, Manifest, Result, read_up_to};
use zerocopy::FromBytes;

use crate::header::checksum;
use crate::layout::{CLUSTER, HEADER, LAST_DEVICE, MAGIC, MAX_CLUSTERS, MAX_HEADER, RawHeader, VMSTATE};
use crate::wrong::Wrong;

/// Offsets of the fields that are spoken of.
const VERSION: u64 = 4;
const MD5SUM: u64 = 32;
const BLOB_BUFFER_OFFSET: u64 = 48;
const BLOB_BUFFER_SIZE: u64 = 52;
const HEADER_SIZE: u64 = 56;
const CONFIG_DATA: u64 = 3068;
const DEV_INFO: u64 = 4096;
const DEVICE: u64 = 32;

/// The header of an archive.
#[derive(Clone, Debug, Default)]
pub(crate) struct Header {
    /// What it tells.
    pub(crate) manifest: Manifest,
    /// Offset in the archive, in bytes, at which the extents begin.
    pub(crate) size: u64,
}

impl Header {
    /// The place in [`Manifest::disks`] of the device `dev_id`.
    pub(crate) fn disk(&self, dev_id: u8) -> Option<u32> {
        let disks = &self.manifest.disks;
        let at = disks.binary_search_by_key(&u32::from(dev_id), |disk| disk.number).ok()?;
        u32::try_from(at).ok()
    }
}

/// Clusters that a disk has.
pub(crate) fn clusters(disk: &ArchivedDisk) -> u64 {
    disk.size.div_ceil(CLUSTER)
}

/// Reads the header of an archive, and not a byte more.
pub(crate) fn read(input: &mut dyn Read) -> Result<Header> {
    let mut bytes = vec![0; HEADER];
    let n = read_up_to(input, &mut bytes, 0)?;
    bytes.truncate(n);
    let len = length(&bytes)?;
    bytes.resize(len, 0);
    let rest = bytes.get_mut(HEADER..).unwrap_or_default();
    let n = read_up_to(input, rest, HEADER as u64)?;
    bytes.truncate(HEADER + n);
    if bytes.len() < len {
        return Err(cut(bytes.len(), len).known_as("can't read vma header data - got EOF").into());
    }
    Ok(parse(&bytes)?)
}

/// How long the header is that begins with `front`, which is at least [`HEADER`] bytes where the archive has so many.
fn length(front: &[u8]) -> Result<usize, Wrong> {
    if front.len() >= MAGIC.len() && !front.starts_with(&MAGIC) {
        return Err(Wrong::new("magic", 0, "is not 'VMA': this is no such archive")
            .known_as("not a vma file - wrong magic number"));
    }
    let Ok((raw, _)) = RawHeader::ref_from_prefix(front) else {
        return Err(cut(front.len(), HEADER));
    };
    if raw.version.get() != 1 {
        let message = format!("is {}; only version 1 is known", raw.version);
        let known_as = format!("wrong vma version {}", raw.version);
        return Err(Wrong::new("version", VERSION, message).known_as(known_as));
    }
    header_size(raw)
}

fn header_size(raw: &RawHeader) -> Result<usize, Wrong> {
    let len = raw.header_size.get();
    // Whoever reads the difference as a signed number sees none, too, where it has its highest bit.
    if len as usize <= HEADER || len > MAX_HEADER {
        let message = format!("is {len}; it must be more than {HEADER}, and at most {MAX_HEADER}");
        let known_as = format!("wrong vma header size {}", len.cast_signed());
        return Err(Wrong::new("header_size", HEADER_SIZE, message).known_as(known_as));
    }
    Ok(len as usize)
}

fn cut(len: usize, of: usize) -> Wrong {
    Wrong::new("header", len as u64, format!("the archive ends there, within the header of {of} bytes"))
        .known_as("can't read vma header - got EOF")
}

/// Parses a header, which is so long as [`length`] says. The first rule that is broken is the error.
pub(crate) fn parse(bytes: &[u8]) -> Result<Header, Wrong> {
    let len = length(bytes)?;
    let Some((bytes, (raw, _))) = bytes.get(..len).zip(RawHeader::ref_from_prefix(bytes).ok()) else {
        return Err(cut(bytes.len(), len));
    };
    if raw.md5sum != checksum(bytes, MD5SUM) {
        return Err(
            Wrong::new("md5sum", MD5SUM, "is not that of the header").known_as("wrong vma header chechsum")
        );
    }
    Ok(Header { manifest: manifest(raw, bytes, &mut Err)?, size: len as u64 })
}

/// How long the header is that begins with `front`, where it says so in reason; else as long as it has to be.
pub(crate) fn claimed(front: &[u8]) -> usize {
    RawHeader::ref_from_prefix(front).ok().and_then(|(raw, _)| header_size(raw).ok()).unwrap_or(HEADER)
}

/// What can be made of a header that may break rules, and which these are. `None`: nothing. `bytes` are what the archive
/// begins with: [`claimed`] of them, or all there are.
pub(crate) fn rescue(bytes: &[u8]) -> (Option<Header>, Vec<Wrong>) {
    let first = match parse(bytes) {
        Ok(header) => return (Some(header), Vec::new()),
        Err(first) => first,
    };
    let mut wrong = vec![first];
    let Ok((raw, _)) = RawHeader::ref_from_prefix(bytes) else {
        return (None, wrong);
    };
    let len = claimed(bytes);
    let held = bytes.get(..len).unwrap_or(bytes);
    let mut note = |more: Wrong| {
        if wrong.iter().all(|known| *known != more) {
            wrong.push(more);
        }
        Ok(())
    };
    // Never an error: whoever notes goes on.
    let manifest = manifest(raw, held, &mut note).unwrap_or_default();
    let makes_sense = raw.magic == MAGIC || !manifest.disks.is_empty() || !manifest.configs.is_empty();
    (makes_sense.then_some(Header { manifest, size: len as u64 }), wrong)
}

/// What `bytes`, a header, tells. `judge` is asked about each rule that is broken, and whether to go on.
fn manifest(
    raw: &RawHeader,
    bytes: &[u8],
    judge: &mut dyn FnMut(Wrong) -> Result<(), Wrong>,
) -> Result<Manifest, Wrong> {
    let mut manifest = Manifest { id: raw.uuid, made: raw.ctime.get(), ..Manifest::default() };
    let buffer = match blob_buffer(raw, bytes) {
        Ok(buffer) => buffer,
        Err(wrong) => {
            judge(wrong)?;
            &[]
        }
    };
    let pointers = raw.config_names.iter().chain(&raw.config_data);
    let pointers = pointers.map(|pointer| pointer.get());
    let blobs = blobs(buffer, pointers.chain(raw.dev_info.iter().map(|device| device.name.get())).collect());

    for ((number, name), data) in (0..).zip(&raw.config_names).zip(&raw.config_data) {
        if name.get() == 0 || data.get() == 0 {
            continue;
        }
        let found = blobs.get(&name.get()).and_then(|blob| text(blob));
        match found.zip(blobs.get(&data.get())) {
            Some((name, data)) => manifest.configs.push(ConfigFile { name, data: data.to_vec() }),
            None => {
                let message = format!("configuration {number} has no name or no data where they shall be");
                let wrong = Wrong::new("config_data", CONFIG_DATA + 4 * number, message);
                judge(wrong.known_as("vma contains invalid data pointers"))?;
            }
        }
    }
    for (number, device) in (0_u32..).zip(&raw.dev_info).skip(1).take(LAST_DEVICE) {
        let name = blobs.get(&device.name.get()).and_then(|blob| text(blob));
        let Some(name) = name.filter(|_| device.size.get() != 0) else {
            continue;
        };
        let memory = name == VMSTATE;
        let disk = ArchivedDisk { number, name, size: device.size.get(), memory };
        if !memory && clusters(&disk) > MAX_CLUSTERS {
            let message = format!("device {number} has {} bytes, more than 2^32 clusters", disk.size);
            judge(Wrong::new("dev_info", DEV_INFO + DEVICE * u64::from(number), message))?;
            continue;
        }
        manifest.disks.push(disk);
    }
    Ok(manifest)
}

fn blob_buffer<'a>(raw: &RawHeader, header: &'a [u8]) -> Result<&'a [u8], Wrong> {
    let (offset, size) = (raw.blob_buffer_offset.get() as usize, raw.blob_buffer_size.get() as usize);
    if offset < HEADER {
        let message = format!("is {offset}, within the header's fields");
        let known_as = format!("wrong vma blob buffer offset {}", raw.blob_buffer_offset.get().cast_signed());
        return Err(Wrong::new("blob_buffer_offset", BLOB_BUFFER_OFFSET, message).known_as(known_as));
    }
    let end = offset.checked_add(size);
    end.and_then(|end| header.get(offset..end)).ok_or_else(|| {
        let message = format!("is {size} at {offset}, beyond the header's end");
        let [offset, size] = [raw.blob_buffer_offset, raw.blob_buffer_size].map(|n| n.get().cast_signed());
        Wrong::new("blob_buffer_size", BLOB_BUFFER_SIZE, message)
            .known_as(format!("wrong vma blob buffer size {offset}/{size}"))
    })
}

/// The blobs of a buffer that are pointed to. They are walked from the first: who points into the middle of one points to
/// nothing. A pointer of 0 does, too.
fn blobs(buffer: &[u8], pointers: BTreeSet<u32>) -> BTreeMap<u32, &[u8]> {
    let mut found = BTreeMap::new();
    let mut pointers = pointers.into_iter().peekable();
    let mut at: usize = 1;
    while let Some([low, high]) = buffer.get(at..).and_then(|rest| rest.first_chunk()) {
        let from = at + 2;
        let end = from + usize::from(u16::from_le_bytes([*low, *high]));
        let Some(blob) = buffer.get(from..end) else {
            break;
        };
        while pointers.next_if(|pointer| (*pointer as usize) < at).is_some() {}
        match pointers.next_if(|pointer| *pointer as usize == at) {
            Some(pointer) => _ = found.insert(pointer, blob),
            None if pointers.peek().is_none() => break,
            None => {}
        }
        at = end;
    }
    found
}

/// A name: it ends with a NUL, and with the first of them.
fn text(blob: &[u8]) -> Option<String> {
    let (0, name) = blob.split_last()? else {
        return None;
    };
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(String::from_utf8_lossy(name).into_owned())
}
