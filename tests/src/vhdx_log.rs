//! The log of VHDX for the judges: entries as [MS-VHDX] 2.3 has them, written into a ring, and found and replayed again.
//! Nothing of `cowhand-vhdx` is used.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

pub(crate) const SECTOR: u64 = 4096;

pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub(crate) fn set(into: &mut [u8], at: usize, bytes: &[u8]) {
    into[at..at + bytes.len()].copy_from_slice(bytes);
}

/// CRC-32C of a structure whose own four bytes, behind its signature, count as zero.
pub(crate) fn vhdx_crc(bytes: &[u8]) -> u32 {
    let mut copy = bytes.to_vec();
    copy[4..8].fill(0);
    crc32c::crc32c(&copy)
}

/// One change that an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogChange {
    /// 4 KiB of that place become these.
    Sector(u64, Vec<u8>),
    /// So many bytes of that place become zero.
    Zero(u64, u64),
}

/// A file's log, to be written into: a ring of 4 KiB sectors.
#[derive(Debug)]
pub struct LogRing<'a> {
    file: &'a File,
    /// Where it begins in the file.
    at: u64,
    len: u64,
    /// The LogGuid that entries get.
    pub guid: [u8; 16],
    /// Where in the ring the next entry begins.
    pub next: u64,
    /// The next entry's sequence number.
    pub sequence: u64,
    /// FlushedFileOffset and LastFileOffset of the entries.
    pub offsets: (u64, u64),
}

impl<'a> LogRing<'a> {
    /// A log of `len` bytes at `at`, with nothing in it.
    pub fn new(file: &'a File, at: u64, len: u64, guid: [u8; 16]) -> LogRing<'a> {
        let end = file.metadata().unwrap().len();
        LogRing { file, at, len, guid, next: 0, sequence: 1, offsets: (end, end) }
    }

    /// The ring's bytes.
    pub fn room(&self) -> u64 {
        self.len
    }

    /// Writes an entry behind the last one; answers where in the ring. `tail`: `None` is the entry itself.
    pub fn entry(&mut self, tail: Option<u64>, changes: &[LogChange]) -> u64 {
        let at = self.next;
        let bytes = self.bytes(tail.unwrap_or(at), changes);
        self.write(at, &bytes);
        self.next = (at + bytes.len() as u64) % self.len;
        self.sequence += 1;
        at
    }

    /// An entry's bytes, of that sequence number.
    pub fn bytes(&self, tail: u64, changes: &[LogChange]) -> Vec<u8> {
        let head = (64 + 32 * changes.len()).next_multiple_of(SECTOR as usize);
        let mut entry = vec![0; head];
        for (n, change) in changes.iter().enumerate() {
            let at = 64 + 32 * n;
            match change {
                LogChange::Zero(from, len) => {
                    set(&mut entry, at, b"zero");
                    set(&mut entry, at + 8, &len.to_le_bytes());
                    set(&mut entry, at + 16, &from.to_le_bytes());
                }
                LogChange::Sector(to, bytes) => {
                    assert_eq!(bytes.len() as u64, SECTOR);
                    set(&mut entry, at, b"desc");
                    set(&mut entry, at + 4, &bytes[4092..]);
                    set(&mut entry, at + 8, &bytes[..8]);
                    set(&mut entry, at + 16, &to.to_le_bytes());
                    entry.extend_from_slice(b"data");
                    entry.extend_from_slice(&((self.sequence >> 32) as u32).to_le_bytes());
                    entry.extend_from_slice(&bytes[8..4092]);
                    entry.extend_from_slice(&(self.sequence as u32).to_le_bytes());
                }
            }
            set(&mut entry, at + 24, &self.sequence.to_le_bytes());
        }
        set(&mut entry, 0, b"loge");
        let len = entry.len() as u32;
        set(&mut entry, 8, &len.to_le_bytes());
        set(&mut entry, 12, &(tail as u32).to_le_bytes());
        set(&mut entry, 16, &self.sequence.to_le_bytes());
        set(&mut entry, 24, &(changes.len() as u32).to_le_bytes());
        set(&mut entry, 32, &self.guid);
        set(&mut entry, 48, &self.offsets.0.to_le_bytes());
        set(&mut entry, 56, &self.offsets.1.to_le_bytes());
        let crc = vhdx_crc(&entry);
        set(&mut entry, 4, &crc.to_le_bytes());
        entry
    }

    /// Puts bytes into the ring; what passes its end goes on at its start.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        for (n, sector) in bytes.chunks(SECTOR as usize).enumerate() {
            let to = (at + n as u64 * SECTOR) % self.len;
            self.file.write_all_at(sector, self.at + to).unwrap();
        }
    }
}

/// An entry that is whole.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    len: u64,
    tail: u64,
    sequence: u64,
    pub(crate) flushed: u64,
    pub(crate) last: u64,
    pub(crate) changes: Vec<LogChange>,
}

/// The entries to be replayed, in order: those of the sequence whose head has the highest number, from its tail on.
/// `ring` is the log's bytes. Empty: there is no valid sequence.
pub(crate) fn active_sequence(ring: &[u8], guid: &[u8]) -> Vec<Entry> {
    let len = ring.len() as u64;
    let entries: HashMap<u64, Entry> =
        (0..len).step_by(SECTOR as usize).filter_map(|at| Some((at, entry(ring, at, guid)?))).collect();
    let mut best: Vec<(u64, Entry)> = Vec::new();
    for start in entries.keys() {
        // As far as the numbers go on, and once around at most.
        let mut sequence = vec![(*start, entries[start].clone())];
        let mut used: HashSet<u64> = HashSet::from([*start]);
        loop {
            let (at, last) = sequence.last().unwrap();
            let next = (at + last.len) % len;
            match entries.get(&next) {
                Some(found) if found.sequence == last.sequence + 1 && used.insert(next) => {
                    sequence.push((next, found.clone()));
                }
                _ => break,
            }
        }
        let head = &sequence.last().unwrap().1;
        let Some(tail) = sequence.iter().position(|(at, _)| *at == head.tail) else { continue };
        if best.last().is_none_or(|(_, other)| head.sequence > other.sequence) {
            best = sequence.split_off(tail);
        }
    }
    best.into_iter().map(|(_, entry)| entry).collect()
}

fn entry(ring: &[u8], at: u64, guid: &[u8]) -> Option<Entry> {
    let len = ring.len() as u64;
    let first = &ring[at as usize..(at + SECTOR) as usize];
    let (bytes, tail) = (u64::from(le32(first, 8)), u64::from(le32(first, 12)));
    let (sequence, count) = (le64(first, 16), u64::from(le32(first, 24)));
    let head = (64 + 32 * count).next_multiple_of(SECTOR);
    if &first[..4] != b"loge"
        || &first[32..48] != guid
        || sequence == 0
        || bytes == 0
        || !bytes.is_multiple_of(SECTOR)
        || bytes > len
        || head > bytes
        || !tail.is_multiple_of(SECTOR)
        || tail >= len
    {
        return None;
    }
    let whole: Vec<u8> = (0..bytes / SECTOR)
        .flat_map(|n| {
            let from = ((at + n * SECTOR) % len) as usize;
            ring[from..from + SECTOR as usize].iter().copied()
        })
        .collect();
    if le32(first, 4) != vhdx_crc(&whole) {
        return None;
    }
    let (mut changes, mut data) = (Vec::new(), head as usize);
    for n in 0..count as usize {
        let descriptor = &whole[64 + 32 * n..96 + 32 * n];
        let to = le64(descriptor, 16);
        if le64(descriptor, 24) != sequence {
            return None;
        }
        changes.push(match &descriptor[..4] {
            b"zero" => LogChange::Zero(to, le64(descriptor, 8)),
            b"desc" => {
                let sector = whole.get(data..data + SECTOR as usize)?;
                data += SECTOR as usize;
                let number = u64::from(le32(sector, 4)) << 32 | u64::from(le32(sector, 4092));
                if &sector[..4] != b"data" || number != sequence {
                    return None;
                }
                LogChange::Sector(to, [&descriptor[8..16], &sector[8..4092], &descriptor[4..8]].concat())
            }
            _ => return None,
        });
    }
    Some(Entry { len: bytes, tail, sequence, flushed: le64(first, 48), last: le64(first, 56), changes })
}
