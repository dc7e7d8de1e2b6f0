//! A reader of VMA archives of its own: it accepts what Proxmox's tool accepts, refuses in that tool's words what that
//! one refuses, and gets the same out. A second, stricter look finds what no good writer writes. Written from the
//! format's description alone, with no code of `cowhand-vma`.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use md5::{Digest, Md5};

use crate::Mirror;

pub(crate) const HEADER: usize = 12_288;
pub(crate) const EXTENT: usize = 512;
pub(crate) const SLOTS: usize = 59;
pub(crate) const BLOCK: usize = 4096;
pub(crate) const CLUSTER: u64 = 65_536;
const MAX_EXTENT: usize = EXTENT + SLOTS * CLUSTER as usize;

/// A disk of an archive, as its header has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmaDevice {
    /// Its number.
    pub id: u8,
    /// Its name, up to the first NUL.
    pub name: Vec<u8>,
    /// Guest bytes.
    pub size: u64,
}

impl VmaDevice {
    fn clusters(&self) -> u64 {
        self.size.div_ceil(CLUSTER)
    }

    fn is_memory(&self) -> bool {
        self.name == b"vmstate"
    }
}

/// What an archive's header says.
#[derive(Clone, Debug, Default)]
pub struct VmaHead {
    /// The archive's identity.
    pub uuid: [u8; 16],
    /// Seconds since 1970, UTC.
    pub ctime: i64,
    /// Bytes of the header: the first extent stands there.
    pub len: usize,
    /// Names and bytes, in the order of the table.
    pub configs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The disks, in the order of their numbers; 255 is among them where the header has it.
    pub devices: Vec<VmaDevice>,
    /// What no good writer writes.
    pub faults: Vec<String>,
}

/// What comes out of an archive.
#[derive(Clone, Debug, Default)]
pub struct VmaContent {
    /// The header.
    pub head: VmaHead,
    /// What the disks hold, by number. A memory stream is not among them.
    pub disks: BTreeMap<u8, Mirror>,
    /// The memory stream, as the tool appends it.
    pub memory: Option<Vec<u8>>,
    /// What no good writer writes, of the header and of the extents.
    pub faults: Vec<String>,
    /// Bytes of the archive.
    pub len: u64,
    /// Extents.
    pub extents: u64,
    /// The disks' blocks that are not stored, in bytes: past a disk's end none counts.
    pub dropped: u64,
}

impl VmaContent {
    /// The disk of that name.
    pub fn disk(&self, name: &str) -> &Mirror {
        let device = self.head.devices.iter().find(|device| device.name == name.as_bytes());
        let device = device.unwrap_or_else(|| panic!("the archive has no disk '{name}'"));
        &self.disks[&device.id]
    }
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The MD5 of these bytes, the sixteen at `field` taken for zeros.
pub(crate) fn vma_sum(bytes: &[u8], field: usize) -> [u8; 16] {
    let mut sum = Md5::new();
    sum.update(&bytes[..field]);
    sum.update([0; 16]);
    sum.update(&bytes[field + 16..]);
    sum.finalize().into()
}

/// As many bytes as there are, up to `buf`'s length.
fn fill(from: &mut dyn Read, buf: &mut [u8]) -> usize {
    let mut done = 0;
    while done < buf.len() {
        match from.read(&mut buf[done..]).unwrap() {
            0 => break,
            n => done += n,
        }
    }
    done
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// The header. Errors: what Proxmox's tool says where it refuses it.
pub fn vma_head(from: &mut dyn Read) -> Result<VmaHead, String> {
    let mut bytes = vec![0; HEADER];
    if fill(from, &mut bytes) < HEADER {
        return Err("can't read vma header - got EOF".to_owned());
    }
    if bytes[..4] != *b"VMA\0" {
        return Err("not a vma file - wrong magic number".to_owned());
    }
    let len = be32(&bytes, 56);
    if len.wrapping_sub(HEADER as u32).cast_signed() <= 0 {
        return Err(format!("wrong vma header size {}", len.cast_signed()));
    }
    let len = len as usize;
    from.take((len - HEADER) as u64).read_to_end(&mut bytes).unwrap();
    if bytes.len() < len {
        return Err("can't read vma header data - got EOF".to_owned());
    }
    if bytes[32..48] != vma_sum(&bytes, 32) {
        return Err("wrong vma header chechsum".to_owned());
    }
    if be32(&bytes, 4) != 1 {
        return Err(format!("wrong vma version {}", be32(&bytes, 4)));
    }
    let (start, size) = (be32(&bytes, 48) as usize, be32(&bytes, 52) as usize);
    if start < HEADER {
        return Err(format!("wrong vma blob buffer offset {start}"));
    }
    if start + size > len {
        return Err(format!("wrong vma blob buffer size {size}/{len}"));
    }
    let mut head = VmaHead {
        uuid: bytes[8..24].try_into().unwrap(),
        ctime: be64(&bytes, 24).cast_signed(),
        len,
        ..VmaHead::default()
    };
    let blobs = Blobs::walk(&bytes[start..start + size]);
    read_devices(&bytes, &blobs, &mut head);
    read_configs(&bytes, &blobs, &mut head)?;
    head.faults.extend(blobs.faults);
    head.look_closer(&bytes, start, size);
    Ok(head)
}

/// The records of the blob buffer, by what points to them.
struct Blobs {
    records: BTreeMap<u32, Vec<u8>>,
    faults: Vec<String>,
}

impl Blobs {
    fn walk(buffer: &[u8]) -> Blobs {
        let mut blobs = Blobs { records: BTreeMap::new(), faults: Vec::new() };
        let mut at = 1;
        while at + 2 <= buffer.len() {
            let len = usize::from(u16::from_le_bytes([buffer[at], buffer[at + 1]]));
            match buffer.get(at + 2..at + 2 + len) {
                Some(bytes) => drop(blobs.records.insert(at as u32, bytes.to_vec())),
                None => blobs.faults.push(format!("the blob at {at} ends behind the blob buffer")),
            }
            at += 2 + len;
        }
        if at != buffer.len() && blobs.faults.is_empty() {
            blobs.faults.push(format!(
                "the blob buffer has {} bytes that are no blob",
                buffer.len() as i64 - at as i64
            ));
        }
        if buffer.first().is_some_and(|byte| *byte != 0) {
            blobs.faults.push("the blob buffer's first byte is not zero".to_owned());
        }
        blobs
    }

    /// A name: NUL-terminated, and as long as it is in C.
    fn name(&self, pointer: u32) -> Option<Vec<u8>> {
        let bytes = self.records.get(&pointer).filter(|bytes| bytes.last() == Some(&0))?;
        Some(bytes.iter().copied().take_while(|byte| *byte != 0).collect())
    }
}

fn read_devices(bytes: &[u8], blobs: &Blobs, head: &mut VmaHead) {
    for id in 0..=255_u8 {
        let at = 4096 + 32 * usize::from(id);
        let (pointer, size) = (be32(bytes, at), be64(bytes, at + 8));
        let name = blobs.name(pointer);
        if id == 0 || id == 255 {
            if !is_zero(&bytes[at..at + 32]) {
                head.faults.push(format!("device {id} is in use"));
            }
        } else if (pointer != 0 || size != 0) && (name.is_none() || size == 0) {
            head.faults.push(format!("device {id} has {size} bytes and name pointer {pointer}: it is none"));
        }
        if !is_zero(&bytes[at + 4..at + 8]) || !is_zero(&bytes[at + 16..at + 32]) {
            head.faults.push(format!("device {id}: reserved bytes are not zero"));
        }
        if let Some(name) = name.filter(|_| id > 0 && size > 0) {
            head.devices.push(VmaDevice { id, name, size });
        }
    }
}

fn read_configs(bytes: &[u8], blobs: &Blobs, head: &mut VmaHead) -> Result<(), String> {
    for n in 0..256 {
        let (name, data) = (be32(bytes, 2044 + 4 * n), be32(bytes, 3068 + 4 * n));
        if name == 0 || data == 0 {
            if name != data {
                head.faults.push(format!("configuration {n} has one pointer of two"));
            }
            continue;
        }
        match (blobs.name(name), blobs.records.get(&data)) {
            (Some(name), Some(data)) => head.configs.push((name, data.clone())),
            _ => return Err("vma contains invalid data pointers".to_owned()),
        }
    }
    Ok(())
}

impl VmaHead {
    /// The disks that Proxmox's tool looks at.
    pub fn usable(&self) -> impl Iterator<Item = &VmaDevice> {
        self.devices.iter().filter(|device| device.id != 255)
    }

    fn look_closer(&mut self, bytes: &[u8], start: usize, size: usize) {
        let mut fault = |wrong: bool, text: &str| {
            if wrong {
                self.faults.push(text.to_owned());
            }
        };
        fault(!is_zero(&bytes[60..2044]) || !is_zero(&bytes[4092..4096]), "reserved bytes are not zero");
        fault(!self.len.is_multiple_of(512), "the header is no multiple of 512 bytes");
        fault(self.len > 524_288, "the header has more than 524288 bytes");
        fault(!is_zero(&bytes[HEADER..start]), "bytes before the blob buffer are not zero");
        fault(!is_zero(&bytes[start + size..]), "bytes behind the blob buffer are not zero");
        let mut names = HashSet::new();
        for device in &self.devices {
            fault(!device.size.is_multiple_of(512), "a disk's size is no multiple of 512 bytes");
            fault(device.clusters() > 1 << 32, "a disk has more than 2^32 clusters");
            fault(!names.insert(device.name.clone()), "two disks have one name");
        }
        let mut names = HashSet::new();
        for (name, _) in &self.configs {
            fault(!names.insert(name.clone()), "two configurations have one name");
            fault(name.is_empty() || name.contains(&b'/'), "a configuration's name is no file name");
        }
    }

    /// What `vma list` prints, where the time zone is UTC.
    pub fn list(&self) -> String {
        let mut text = String::new();
        let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        for (called, data) in &self.configs {
            text += &format!("CFG: size: {} name: {}\n", data.len(), name(called));
        }
        for device in self.usable() {
            let (id, size) = (device.id, device.size);
            if device.is_memory() {
                text += &format!("VMSTATE: dev_id={id} memory: {size}\n");
            } else {
                text += &format!("DEV: dev_id={id} size: {size} devname: {}\n", name(&device.name));
            }
        }
        text + &format!("CTIME: {}\n", vma_ctime(self.ctime))
    }
}

/// A time as C's `ctime` has it in UTC, without the line's end.
pub fn vma_ctime(seconds: i64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [(&str, i64); 12] = [
        ("Jan", 31),
        ("Feb", 28),
        ("Mar", 31),
        ("Apr", 30),
        ("May", 31),
        ("Jun", 30),
        ("Jul", 31),
        ("Aug", 31),
        ("Sep", 30),
        ("Oct", 31),
        ("Nov", 30),
        ("Dec", 31),
    ];
    let (day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let (mut year, mut left) = (1970, day);
    while left < 0 {
        year -= 1;
        left += 365 + i64::from(is_leap(year));
    }
    while left >= 365 + i64::from(is_leap(year)) {
        left -= 365 + i64::from(is_leap(year));
        year += 1;
    }
    let mut month = "";
    for (name, days) in MONTHS {
        month = name;
        let days = days + i64::from(name == "Feb" && is_leap(year));
        if left < days {
            break;
        }
        left -= days;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let weekday = DAYS[day.rem_euclid(7) as usize];
    format!("{weekday} {month} {:2} {hour:02}:{minute:02}:{second:02} {year}", left + 1)
}

/// What `vma extract` gets out of an archive: of all disks, or of those named. Errors: its words.
pub fn vma_extract(from: &mut dyn Read, only: Option<&[&str]>) -> Result<VmaContent, String> {
    let mut reader = Reader::open(from)?;
    let wanted = |name: &[u8]| only.is_none_or(|only| only.iter().any(|each| each.as_bytes() == name));
    reader.skipped = reader
        .content
        .head
        .devices
        .iter()
        .filter(|device| !device.is_memory() && !wanted(&device.name))
        .map(|device| device.id)
        .collect();
    reader.extents()?;
    for device in reader.content.head.usable() {
        if device.is_memory() || reader.skipped.contains(&device.id) {
            continue;
        }
        let seen = &reader.seen[&device.id];
        if let Some(cluster) = (0..device.clusters()).find(|cluster| !seen.has(*cluster)) {
            let name = String::from_utf8_lossy(&device.name).into_owned();
            return Err(format!("detected missing cluster {cluster} for stream {name}"));
        }
    }
    Ok(reader.content)
}

/// What `vma verify` says: missing clusters are nothing to it.
pub fn vma_verify(from: &mut dyn Read) -> Result<(), String> {
    let mut reader = Reader::open(from)?;
    reader.extents()
}

/// As [`vma_extract`] takes all of it, and with nothing that a good writer would not write. Errors: all of it.
pub fn vma_strict(from: &mut dyn Read) -> Result<VmaContent, String> {
    let content = vma_extract(from, None)?;
    if content.faults.is_empty() { Ok(content) } else { Err(content.faults.join("\n")) }
}

/// Numbers below a bound, that were seen.
#[derive(Debug, Default)]
struct Seen(Vec<u64>);

impl Seen {
    fn has(&self, n: u64) -> bool {
        self.0.get((n / 64) as usize).is_some_and(|word| word >> (n % 64) & 1 == 1)
    }

    /// True: it is new.
    fn add(&mut self, n: u64) -> bool {
        let at = (n / 64) as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, 0);
        }
        let new = !self.has(n);
        self.0[at] |= 1 << (n % 64);
        new
    }
}

struct Reader<'a> {
    from: &'a mut dyn Read,
    content: VmaContent,
    skipped: Vec<u8>,
    seen: BTreeMap<u8, Seen>,
    next_memory: u32,
}

impl<'a> Reader<'a> {
    fn open(from: &'a mut dyn Read) -> Result<Reader<'a>, String> {
        let head = vma_head(from)?;
        let mut content =
            VmaContent { faults: head.faults.clone(), len: head.len as u64, ..VmaContent::default() };
        let mut seen = BTreeMap::new();
        for device in head.usable() {
            if device.is_memory() {
                content.memory = Some(Vec::new());
            } else {
                content.disks.insert(device.id, Mirror::new(device.size));
                seen.insert(device.id, Seen::default());
            }
        }
        content.head = head;
        Ok(Reader { from, content, skipped: Vec::new(), seen, next_memory: 0 })
    }

    fn extents(&mut self) -> Result<(), String> {
        let mut head = [0; EXTENT];
        let mut data = vec![0; MAX_EXTENT - EXTENT];
        loop {
            let there = fill(self.from, &mut head);
            if there == 0 {
                if self.content.extents == 0 {
                    self.content.faults.push("there is no extent".to_owned());
                }
                return Ok(());
            }
            if there < EXTENT {
                return Err(format!("read short extent ({there} bytes)"));
            }
            if head[24..40] != vma_sum(&head, 24) {
                return Err("wrong vma extent header chechsum".to_owned());
            }
            if head[8..24] != self.content.head.uuid {
                return Err("wrong vma extent uuid".to_owned());
            }
            if head[..4] != *b"VMAE" || head[4..6] != [0, 0] {
                return Err("wrong vma extent header magic".to_owned());
            }
            let stored = usize::from(be16(&head, 6)) * BLOCK;
            let most = stored.min(data.len());
            let there = fill(self.from, &mut data[..most]);
            if there < stored {
                return Err(format!("short vma extent ({} < {})", EXTENT + there, EXTENT + stored));
            }
            self.content.extents += 1;
            self.content.len += (EXTENT + stored) as u64;
            self.extent(&head, &data[..stored])?;
        }
    }

    fn extent(&mut self, head: &[u8], mut data: &[u8]) -> Result<(), String> {
        for slot in head[40..].chunks_exact(8) {
            let (mask, device, cluster) = (be16(slot, 0), slot[3], be32(slot, 4));
            if slot[2] != 0 || (device == 0 && !is_zero(slot)) {
                self.content.faults.push(format!("cluster {cluster}: the slot has bytes that are not zero"));
            }
            if device == 0 {
                continue;
            }
            let Some(found) = self.content.head.usable().find(|each| each.id == device) else {
                return Err(format!("got wrong dev id {device}"));
            };
            let (name, size) = (String::from_utf8_lossy(&found.name).into_owned(), found.size);
            // The tool counts sectors: what is behind the last whole one is not there.
            let end = if found.is_memory() { u64::MAX } else { size & !511 };
            if found.is_memory() {
                if cluster != self.next_memory {
                    return Err("found out of order vmstate data".to_owned());
                }
                self.next_memory += 1;
            } else if !self.skipped.contains(&device) {
                if !self.seen.get_mut(&device).unwrap().add(cluster.into()) {
                    return Err(format!("found duplicated cluster {cluster} for stream {name}"));
                }
                if u64::from(cluster) >= size.div_ceil(CLUSTER) {
                    self.content.faults.push(format!("cluster {cluster} of {name} lies behind its end"));
                }
            }
            for bit in 0..16 {
                let at = u64::from(cluster) * CLUSTER + bit * BLOCK as u64;
                if mask >> bit & 1 == 0 {
                    self.absent(device, at, end);
                    continue;
                }
                // A cluster that is whole is written at once, as far as the disk goes.
                if at >= end && (mask != 0xffff || bit == 0) {
                    return Err("got wrong block address - write beyond end".to_owned());
                }
                let Some((block, rest)) = data.split_at_checked(BLOCK) else {
                    return Err("short vma extent - too many blocks".to_owned());
                };
                data = rest;
                self.block(device, &name, at, end, block);
            }
        }
        if data.is_empty() { Ok(()) } else { Err("vma extent error - missing blocks".to_owned()) }
    }

    fn absent(&mut self, device: u8, at: u64, end: u64) {
        if self.content.disks.contains_key(&device) {
            self.content.dropped += end.saturating_sub(at).min(BLOCK as u64);
        } else {
            let text = format!("the block at {at} of the memory is not there, and what follows moves");
            self.content.faults.push(text);
        }
    }

    fn block(&mut self, device: u8, name: &str, at: u64, end: u64, block: &[u8]) {
        let Some(disk) = self.content.disks.get_mut(&device) else {
            return self.content.memory.as_mut().unwrap().extend_from_slice(block);
        };
        let there = end.saturating_sub(at).min(BLOCK as u64) as usize;
        let faults = &mut self.content.faults;
        if there == 0 {
            faults.push(format!("the block at {at} of {name} lies behind its end"));
        }
        if is_zero(block) {
            faults.push(format!("the block at {at} of {name} is stored and zero"));
        }
        if !is_zero(&block[there..]) {
            faults.push(format!("what follows the end of {name} in its last block is not zero"));
        }
        if there > 0 && !self.skipped.contains(&device) {
            disk.write(at, &block[..there]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(vma_ctime(0), "Thu Jan  1 00:00:00 1970");
        assert_eq!(vma_ctime(1_709_210_096), "Thu Feb 29 12:34:56 2024");
        assert_eq!(vma_ctime(-1), "Wed Dec 31 23:59:59 1969");
        assert_eq!(vma_ctime(951_868_799), "Tue Feb 29 23:59:59 2000");
    }
}
