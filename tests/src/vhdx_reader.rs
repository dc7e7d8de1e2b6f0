//! A reader of VHDX that shares no code with `cowhand-vhdx`, and asserts every rule of the structure on its way.
//!
//! It is slow and simple on purpose: it follows [MS-VHDX] from front to back, replays a pending log in memory, looks at
//! every table entry and every bit, and panics with the file's name and what is wrong.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::Mirror;
use crate::guid::{
    BAT, DISK_ID, DISK_SIZE, FILE_PARAMETERS, LOCATOR, LOCATOR_TYPE, LOGICAL, METADATA, PHYSICAL, guid,
    guid_text,
};
use crate::vhdx_log::{LogChange, SECTOR, active_sequence, le16, le32, le64, vhdx_crc};

const K: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const HEADERS: [u64; 2] = [64 * K, 128 * K];
const TABLES: [u64; 2] = [192 * K, 256 * K];

/// One of the two headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhdxHeader {
    /// The higher counts.
    pub sequence: u64,
    /// Changes when the file is first written to in a session.
    pub file_write: [u8; 16],
    /// Changes when what a guest sees is first changed in a session.
    pub data_write: [u8; 16],
    /// Zero: the log is empty.
    pub log: [u8; 16],
    /// Where the log is, and its bytes.
    pub log_place: (u64, u64),
    bytes: Vec<u8>,
}

/// A region: its GUID, where it is, its bytes, required.
pub type VhdxRegion = ([u8; 16], u64, u64, bool);

/// A metadata item: its GUID, the flags (1 user, 2 of the disk, 4 required), its bytes.
pub type VhdxItem = ([u8; 16], u32, Vec<u8>);

/// What a write of guest data must leave as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhdxKept {
    /// The file type identifier, whole.
    pub identifier: Vec<u8>,
    /// Log's place.
    pub log: (u64, u64),
    /// All regions, in order of their GUIDs.
    pub regions: Vec<VhdxRegion>,
    /// All items, in order of their GUIDs.
    pub items: Vec<VhdxItem>,
    /// What stands in regions that this reader does not know.
    pub unknown: Vec<Vec<u8>>,
}

/// The file as it is once its log is replayed.
#[derive(Debug)]
struct Replayed {
    file: File,
    len: u64,
    changes: Vec<LogChange>,
}

impl Replayed {
    fn read(&self, at: u64, len: u64) -> Vec<u8> {
        let mut buf = vec![0; len as usize];
        let there = self.file.metadata().unwrap().len().saturating_sub(at).min(len);
        self.file.read_exact_at(&mut buf[..there as usize], at).unwrap();
        for change in &self.changes {
            let (from, bytes, count) = match change {
                LogChange::Sector(from, bytes) => (*from, Some(bytes), SECTOR),
                LogChange::Zero(from, count) => (*from, None, *count),
            };
            let (start, end) = (from.max(at), (from + count).min(at + len));
            if start < end {
                let to = &mut buf[(start - at) as usize..(end - at) as usize];
                match bytes {
                    Some(bytes) => to.copy_from_slice(&bytes[(start - from) as usize..(end - from) as usize]),
                    None => to.fill(0),
                }
            }
        }
        buf
    }
}

/// What an entry says of a payload block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VhdxBlock {
    /// 0.
    NotPresent,
    /// 1, 2, 3 and 5: zeros, which hide a parent.
    Zero(u8),
    /// 6, and where.
    Full(u64),
    /// 7, and where.
    Partial(u64),
}

/// A VHDX of which every rule was found to hold.
#[derive(Debug)]
pub struct Vhdx {
    path: PathBuf,
    file: Replayed,
    headers: [Option<VhdxHeader>; 2],
    tables: [Vec<u8>; 2],
    regions: Vec<VhdxRegion>,
    items: Vec<VhdxItem>,
    entries: Vec<u64>,
    /// Everything that the file has, by its place: from, to, what.
    places: Vec<(u64, u64, String)>,
    /// Guest bytes.
    pub size: u64,
    /// Bytes of a block.
    pub block: u64,
    /// The logical sector.
    pub logical: u64,
    /// The physical sector.
    pub physical: u64,
    /// LeaveBlocksAllocated: a fixed disk, where there is no parent.
    pub leave_allocated: bool,
    /// The parent locator's keys and values, in order, where there is a parent.
    pub locator: Option<Vec<(String, String)>>,
}

impl Vhdx {
    /// Reads a file; panics where a rule does not hold.
    pub fn open(path: &Path) -> Vhdx {
        let name = path.display().to_string();
        let file = File::open(path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let len = file.metadata().unwrap().len();
        let mut vhdx = Vhdx {
            path: path.to_owned(),
            file: Replayed { file, len, changes: Vec::new() },
            headers: [None, None],
            tables: [Vec::new(), Vec::new()],
            regions: Vec::new(),
            items: Vec::new(),
            entries: Vec::new(),
            places: vec![(0, MIB, "the header section".to_owned())],
            size: 0,
            block: 0,
            logical: 0,
            physical: 0,
            leave_allocated: false,
            locator: None,
        };
        assert_eq!(vhdx.file.read(0, 8), b"vhdxfile", "{name}: the signature");
        vhdx.headers = HEADERS.map(|at| header(&vhdx.file.read(at, SECTOR), &name));
        if let [Some(a), Some(b)] = &vhdx.headers {
            assert!(a.sequence != b.sequence || a == b, "{name}: two headers of the same number");
        }
        vhdx.replay();
        vhdx.read_regions();
        vhdx.read_metadata();
        vhdx.read_table();
        vhdx.places.sort();
        for pair in vhdx.places.windows(2) {
            let ((_, end, a), (start, _, b)) = (&pair[0], &pair[1]);
            assert!(end <= start, "{name}: {a} ends at {end}, {b} begins at {start}");
        }
        vhdx
    }

    /// The header that counts.
    pub fn header(&self) -> &VhdxHeader {
        let best = self.headers.iter().flatten().max_by_key(|header| header.sequence);
        best.unwrap_or_else(|| panic!("{}: no header", self.path.display()))
    }

    fn replay(&mut self) {
        let name = self.path.display().to_string();
        let VhdxHeader { log, log_place: (at, len), .. } = self.header().clone();
        assert!(at.is_multiple_of(MIB) && len.is_multiple_of(MIB), "{name}: the log, {len} bytes at {at}");
        if len > 0 {
            assert!(at >= MIB && at + len <= self.file.len, "{name}: the log, {len} bytes at {at}");
            self.places.push((at, at + len, "the log".to_owned()));
        }
        if log == [0; 16] {
            return;
        }
        let sequence = active_sequence(&self.file.read(at, len), &log);
        let head = sequence.last().unwrap_or_else(|| panic!("{name}: a log without a valid sequence"));
        assert!(self.file.len >= head.flushed, "{name}: shorter than its FlushedFileOffset {}", head.flushed);
        let mut end = self.file.len.max(head.last);
        for change in sequence.iter().flat_map(|entry| &entry.changes) {
            let (from, count) = match change {
                LogChange::Sector(from, _) => (*from, SECTOR),
                LogChange::Zero(from, count) => (*from, *count),
            };
            assert!(from.is_multiple_of(SECTOR) && count.is_multiple_of(SECTOR), "{name}: {count} at {from}");
            let headers = HEADERS.iter().any(|at| from < at + SECTOR && *at < from + count);
            assert!(!headers, "{name}: the log changes a header");
            end = end.max(from + count);
        }
        self.file.changes = sequence.into_iter().flat_map(|entry| entry.changes).collect();
        self.file.len = end;
    }

    fn read_regions(&mut self) {
        let name = self.path.display().to_string();
        self.tables = TABLES.map(|at| self.file.read(at, 64 * K));
        let good = |table: &&Vec<u8>| &table[..4] == b"regi" && le32(table, 4) == vhdx_crc(table);
        let table = self.tables.iter().find(good).unwrap_or_else(|| panic!("{name}: no region table"));
        let count = le32(table, 8) as usize;
        assert!(count <= 2047 && le32(table, 12) == 0, "{name}: {count} regions");
        for entry in table[16..].chunks_exact(32).take(count) {
            let (at, len, required) = (le64(entry, 16), u64::from(le32(entry, 24)), le32(entry, 28));
            let id: [u8; 16] = entry[..16].try_into().unwrap();
            let what = format!("region {}", guid_text(&id));
            assert!(
                at.is_multiple_of(MIB) && len.is_multiple_of(MIB) && at >= MIB && len > 0,
                "{name}: {what}, {len} bytes at {at}"
            );
            assert!(at + len <= self.file.len, "{name}: {what} ends behind the file");
            assert!(required <= 1, "{name}: reserved bits of {what}");
            assert!(self.regions.iter().all(|(other, ..)| *other != id), "{name}: {what} is there twice");
            let known = id == guid(BAT) || id == guid(METADATA);
            assert!(known || required == 0, "{name}: {what} is required");
            self.regions.push((id, at, len, required == 1));
            self.places.push((at, at + len, what));
        }
        let rest = &table[16 + 32 * count..];
        assert!(rest.iter().all(|byte| *byte == 0), "{name}: bytes behind the region table's entries");
        self.regions.sort();
    }

    /// Where a region is, and its bytes.
    pub fn region(&self, id: &str) -> (u64, u64) {
        let found = self.regions.iter().find(|(other, ..)| *other == guid(id));
        let (_, at, len, _) = found.unwrap_or_else(|| panic!("{}: no region {id}", self.path.display()));
        (*at, *len)
    }

    fn read_metadata(&mut self) {
        let name = self.path.display().to_string();
        let (at, len) = self.region(METADATA);
        let table = self.file.read(at, 64 * K);
        assert_eq!(&table[..8], b"metadata", "{name}: the metadata's signature");
        let count = usize::from(le16(&table, 10));
        assert!(count <= 2047, "{name}: {count} metadata items");
        assert!(table[8..10] == [0; 2] && table[12..32] == [0; 20], "{name}: reserved bytes of the metadata");
        let (mut seen, mut taken) = (HashSet::new(), Vec::new());
        for entry in table[32..].chunks_exact(32).take(count) {
            let id: [u8; 16] = entry[..16].try_into().unwrap();
            let (from, bytes, flags) =
                (u64::from(le32(entry, 16)), u64::from(le32(entry, 20)), le32(entry, 24));
            let what = format!("item {}", guid_text(&id));
            assert!(flags <= 7 && le32(entry, 28) == 0, "{name}: reserved bits of {what}");
            assert!(seen.insert((id, flags & 1)), "{name}: {what} is there twice");
            if bytes == 0 {
                assert_eq!(from, 0, "{name}: {what} is empty and has a place");
            } else {
                assert!(from >= 64 * K && bytes <= MIB && from + bytes <= len, "{name}: {what} at {from}");
                taken.push((from, from + bytes, what.clone()));
            }
            let known =
                [FILE_PARAMETERS, DISK_SIZE, DISK_ID, LOGICAL, PHYSICAL, LOCATOR].map(guid).contains(&id);
            assert!((known && flags & 1 == 0) || flags & 4 == 0, "{name}: {what} is required");
            self.items.push((id, flags, self.file.read(at + from, bytes)));
        }
        assert!(
            self.items.iter().filter(|(_, flags, _)| flags & 1 == 1).count() <= 1024,
            "{name}: user items"
        );
        taken.sort();
        for pair in taken.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "{name}: {} and {} overlap", pair[0].2, pair[1].2);
        }
        self.items.sort();
        let parameters = self.item(FILE_PARAMETERS, 8);
        self.block = u64::from(le32(&parameters, 0));
        assert!(
            self.block.is_power_of_two() && (MIB..=256 * MIB).contains(&self.block),
            "{name}: blocks of {} bytes",
            self.block
        );
        let flags = le32(&parameters, 4);
        assert!(flags <= 3, "{name}: reserved bits of the file parameters");
        self.leave_allocated = flags & 1 == 1;
        self.size = le64(&self.item(DISK_SIZE, 8), 0);
        self.logical = u64::from(le32(&self.item(LOGICAL, 4), 0));
        self.physical = u64::from(le32(&self.item(PHYSICAL, 4), 0));
        self.item(DISK_ID, 16);
        for sector in [self.logical, self.physical] {
            assert!(sector == 512 || sector == 4096, "{name}: a sector of {sector} bytes");
        }
        assert!(
            self.size.is_multiple_of(self.logical) && self.size <= 64 << 40,
            "{name}: a disk of {} bytes",
            self.size
        );
        if flags & 2 != 0 {
            self.locator = Some(self.read_locator());
        }
    }

    fn item(&self, id: &str, len: usize) -> Vec<u8> {
        let name = self.path.display();
        let found = self.items.iter().find(|(other, flags, _)| *other == guid(id) && flags & 1 == 0);
        let (_, _, bytes) = found.unwrap_or_else(|| panic!("{name}: no item {id}"));
        assert!(len == 0 || bytes.len() == len, "{name}: item {id} has {} bytes", bytes.len());
        bytes.clone()
    }

    fn read_locator(&self) -> Vec<(String, String)> {
        let name = self.path.display();
        let item = self.item(LOCATOR, 0);
        assert_eq!(item[..16], guid(LOCATOR_TYPE), "{name}: the locator's type");
        assert_eq!(le16(&item, 16), 0, "{name}: reserved bytes of the locator");
        let mut found: Vec<(String, String)> = Vec::new();
        for entry in item[20..].chunks_exact(12).take(usize::from(le16(&item, 18))) {
            let text = |at: u32, len: u16| {
                let bytes = &item[at as usize..at as usize + usize::from(len)];
                assert!(at >= 20 && len > 0 && len.is_multiple_of(2), "{name}: text of {len} bytes at {at}");
                let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| le16(pair, 0)).collect();
                let text = String::from_utf16(&units).unwrap();
                assert!(!text.contains('\0'), "{name}: a NUL in the locator: {text:?}");
                text
            };
            let key = text(le32(entry, 0), le16(entry, 8));
            let value = text(le32(entry, 4), le16(entry, 10));
            assert!(found.iter().all(|(other, _)| *other != key), "{name}: {key} is there twice");
            found.push((key, value));
        }
        assert_eq!(found.len(), usize::from(le16(&item, 18)), "{name}: the locator is cut");
        assert!(found.iter().any(|(key, _)| key == "parent_linkage"), "{name}: no parent_linkage");
        for (key, value) in &found {
            if key.starts_with("parent_linkage") {
                assert!(
                    value.starts_with('{') && value.ends_with('}') && value.len() == 38,
                    "{name}: {value}"
                );
                guid(value);
            }
        }
        found
    }

    /// How many payload blocks one bitmap block serves.
    pub fn chunk_ratio(&self) -> u64 {
        (self.logical << 23) / self.block
    }

    fn blocks_count(&self) -> u64 {
        self.size.div_ceil(self.block)
    }

    fn read_table(&mut self) {
        let name = self.path.display().to_string();
        let (at, len) = self.region(BAT);
        let ratio = self.chunk_ratio();
        let (blocks, chunks) = (self.blocks_count(), self.blocks_count().div_ceil(ratio));
        let child = self.locator.is_some();
        let count = if child { chunks * (ratio + 1) } else { blocks + blocks.saturating_sub(1) / ratio };
        assert!(count * 8 <= len, "{name}: a BAT of {len} bytes for {count} entries");
        self.entries = self.file.read(at, count * 8).chunks_exact(8).map(|raw| le64(raw, 0)).collect();
        for n in 0..count {
            let raw = self.entries[n as usize];
            let (state, place) = ((raw & 7) as u8, raw >> 20 << 20);
            assert_eq!(raw & 0xf_fff8, 0, "{name}: reserved bits of entry {n}: {raw:#x}");
            if n % (ratio + 1) == ratio {
                let what = format!("the sector bitmap of chunk {}", n / (ratio + 1));
                assert!(state == 0 || (state == 6 && child), "{name}: {what} is in state {state}");
                if state == 6 {
                    assert!(place + MIB <= self.file.len, "{name}: {what} at {place} is not in the file");
                    self.places.push((place, place + MIB, what));
                }
                continue;
            }
            let number = n - n / (ratio + 1);
            let what = format!("block {number}");
            assert!(
                matches!(state, 0 | 1 | 2 | 3 | 5 | 6) || (state == 7 && child),
                "{name}: {what} is in state {state}"
            );
            if number >= blocks {
                assert_eq!(state, 0, "{name}: {what} lies behind the disk's end");
                continue;
            }
            // What a block that was unmapped had, it has until somebody takes it away.
            if state >= 6 || (state == 3 && place != 0) {
                let needed = self.block.min(self.size - number * self.block);
                assert!(place >= MIB && place + needed <= self.file.len, "{name}: {what} is not in the file");
                self.places.push((place, place + self.block, what.clone()));
            }
            if state == 7 {
                let bitmap = self.entries[(number / ratio * (ratio + 1) + ratio) as usize];
                assert_eq!(bitmap & 7, 6, "{name}: {what} is partly here, and there is no bitmap");
            }
        }
    }

    fn entry(&self, number: u64) -> u64 {
        self.entries[(number + number / self.chunk_ratio()) as usize]
    }

    /// What the table says of a block.
    pub fn block_at(&self, number: u64) -> VhdxBlock {
        let raw = self.entry(number);
        let place = raw >> 20 << 20;
        match raw & 7 {
            0 => VhdxBlock::NotPresent,
            6 => VhdxBlock::Full(place),
            7 => VhdxBlock::Partial(place),
            state => VhdxBlock::Zero(state as u8),
        }
    }

    /// All blocks, in order.
    pub fn blocks(&self) -> Vec<VhdxBlock> {
        (0..self.blocks_count()).map(|number| self.block_at(number)).collect()
    }

    /// Which sectors of a block that is partly here are here.
    pub fn bits(&self, number: u64) -> Vec<bool> {
        let ratio = self.chunk_ratio();
        let bitmap = self.entries[(number / ratio * (ratio + 1) + ratio) as usize] >> 20 << 20;
        let in_block = self.block / self.logical;
        let first = number % ratio * in_block;
        let bytes = self.file.read(bitmap + first / 8, in_block / 8);
        (0..in_block as usize).map(|n| bytes[n / 8] >> (n % 8) & 1 == 1).collect()
    }

    /// Puts what this file holds over `below`, which is what its parent shows (nothing: an empty mirror).
    pub fn over(&self, below: &Mirror) -> Mirror {
        let mut disk = Mirror::new(self.size);
        for number in 0..self.blocks_count() {
            let start = number * self.block;
            let len = self.block.min(self.size - start);
            let copy = |disk: &mut Mirror, from: u64, place: u64, len: u64| {
                let mut done = 0;
                while done < len {
                    let piece = MIB.min(len - done);
                    disk.write(from + done, &self.file.read(place + done, piece));
                    done += piece;
                }
            };
            match self.block_at(number) {
                VhdxBlock::Zero(_) => {}
                VhdxBlock::NotPresent => disk.reveal(below, start, len),
                VhdxBlock::Full(place) => copy(&mut disk, start, place, len),
                VhdxBlock::Partial(place) => {
                    let bits = self.bits(number);
                    let mut s = 0;
                    while s < bits.len() && s as u64 * self.logical < len {
                        let run = bits[s..].iter().take_while(|bit| **bit == bits[s]).count() as u64;
                        let at = s as u64 * self.logical;
                        let bytes = (run * self.logical).min(len - at);
                        if bits[s] {
                            copy(&mut disk, start + at, place + at, bytes);
                        } else {
                            disk.reveal(below, start + at, bytes);
                        }
                        s += run as usize;
                    }
                }
            }
        }
        disk
    }

    /// A value of the locator.
    pub fn says(&self, key: &str) -> Option<&str> {
        let found = self.locator.iter().flatten().find(|(other, _)| other == key);
        found.map(|(_, value)| value.as_str())
    }

    /// The parent's file, by the relative path. `None`: no parent.
    pub fn parent(&self) -> Option<PathBuf> {
        self.locator.as_ref()?;
        let name = self.path.display();
        let relative = self.says("relative_path").unwrap_or_else(|| panic!("{name}: no relative_path"));
        let path = self.path.parent().unwrap().join(relative.replace('\\', "/"));
        Some(path.canonicalize().unwrap_or_else(|error| panic!("{name}: {relative}: {error}")))
    }

    /// The VirtualDiskId, which a child shares with its parent.
    pub fn disk_id(&self) -> Vec<u8> {
        self.item(DISK_ID, 16)
    }

    /// What must be the same after guest data was written.
    pub fn kept(&self) -> VhdxKept {
        let unknown = self.regions.iter().filter(|(id, ..)| *id != guid(BAT) && *id != guid(METADATA));
        VhdxKept {
            identifier: self.file.read(0, 64 * K),
            log: self.header().log_place,
            regions: self.regions.clone(),
            items: self.items.clone(),
            unknown: unknown.map(|(_, at, len, _)| self.file.read(*at, *len)).collect(),
        }
    }

    /// Panics unless this is a file that was written to and closed well: nothing pending, both headers whole and
    /// alternated, both region tables the same.
    pub fn assert_closed(&self) {
        let name = self.path.display();
        let [Some(a), Some(b)] = &self.headers else { panic!("{name}: a header is damaged") };
        assert_eq!(a.sequence.abs_diff(b.sequence), 1, "{name}: headers {} and {}", a.sequence, b.sequence);
        let without_number =
            |header: &VhdxHeader| VhdxHeader { sequence: 0, bytes: Vec::new(), ..header.clone() };
        assert_eq!(without_number(a), without_number(b), "{name}: the headers say different things");
        assert_eq!(a.log, [0; 16], "{name}: the log is pending");
        assert!(a.log_place.1 >= MIB, "{name}: no log");
        for guid in [a.file_write, a.data_write] {
            assert_ne!(guid, [0; 16], "{name}: a GUID of zeros");
        }
        for table in &self.tables {
            assert_eq!(le32(table, 4), vhdx_crc(table), "{name}: a region table's checksum");
        }
        assert!(self.tables[0] == self.tables[1], "{name}: the region tables differ");
    }

    /// Panics unless the file is whole MiB long.
    pub fn assert_whole(&self) {
        let name = self.path.display();
        assert!(self.file.len.is_multiple_of(MIB), "{name}: {} bytes are no whole MiB", self.file.len);
    }

    /// Panics unless this is a file as Cowhand makes it: whatever others want of flags and of space is there.
    pub fn assert_ours(&self) {
        let name = self.path.display();
        self.assert_closed();
        self.assert_whole();
        for (id, _, _, required) in &self.regions {
            assert!(*required, "{name}: region {} is not required", guid_text(id));
        }
        let flags =
            [(FILE_PARAMETERS, 4), (DISK_SIZE, 6), (DISK_ID, 6), (LOGICAL, 6), (PHYSICAL, 6), (LOCATOR, 4)];
        for (id, found, _) in &self.items {
            let (_, right) = flags.iter().find(|(known, _)| guid(known) == *id).unwrap();
            assert_eq!(found, right, "{name}: flags of item {}", guid_text(id));
        }
        let creator = self.file.read(8, 512);
        assert!(creator.starts_with(b"C\0o\0w\0h\0a\0n\0d\0"), "{name}: the creator");
        self.assert_nothing_leaks();
    }

    /// Panics where the file has room that nothing uses.
    pub fn assert_nothing_leaks(&self) {
        let name = self.path.display();
        let mut end = 0;
        for (start, behind, what) in &self.places {
            assert_eq!(*start, end, "{name}: nothing stands before {what}");
            end = *behind;
        }
        assert!(self.file.len <= end, "{name}: {} bytes, and what is used ends at {end}", self.file.len);
    }

    /// Bytes of the file, after its log.
    pub fn len(&self) -> u64 {
        self.file.len
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.file.len == 0
    }
}

fn header(bytes: &[u8], name: &str) -> Option<VhdxHeader> {
    if &bytes[..4] != b"head" || le32(bytes, 4) != vhdx_crc(bytes) {
        return None;
    }
    assert_eq!(le16(bytes, 66), 1, "{name}: the header's version");
    let raw = |at: usize| -> [u8; 16] { bytes[at..at + 16].try_into().unwrap() };
    let header = VhdxHeader {
        sequence: le64(bytes, 8),
        file_write: raw(16),
        data_write: raw(32),
        log: raw(48),
        log_place: (le64(bytes, 72), u64::from(le32(bytes, 68))),
        bytes: bytes.to_vec(),
    };
    assert!(header.log == [0; 16] || le16(bytes, 64) == 0, "{name}: the log's version");
    assert!(bytes[80..].iter().all(|byte| *byte == 0), "{name}: reserved bytes of a header");
    Some(header)
}

/// The whole content of a chain: each file's parent by its relative path, its identity checked.
pub fn vhdx_content(path: &Path) -> Mirror {
    let vhdx = Vhdx::open(path);
    let Some(parent) = vhdx.parent() else { return vhdx.over(&Mirror::default()) };
    let below = Vhdx::open(&parent);
    let wanted = guid(vhdx.says("parent_linkage").unwrap());
    let second = vhdx.says("parent_linkage2").map(guid).filter(|id| *id != [0; 16]);
    let found = below.header().data_write;
    assert!(wanted == found || second == Some(found), "{}: the parent's DataWriteGuid", path.display());
    assert_eq!(vhdx.logical, below.logical, "{}: sectors of child and parent", path.display());
    vhdx.over(&vhdx_content(&parent))
}
