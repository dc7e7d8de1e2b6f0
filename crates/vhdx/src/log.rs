//! The log (section 2.3): finds what a writer that did not end well left pending, and makes entries.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use cowhand_core::{Error, Result, Storage};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bytes;
use crate::guid::Guid;
use crate::header::LogPlace;
use crate::overlay::{Change, Changes, Overlay, SECTOR};

/// Descriptors in the first sector of an entry.
pub(crate) const FIRST_DESCRIPTORS: usize = ((SECTOR - HEADER_LEN) / DESCRIPTOR_LEN) as usize;

const HEADER_LEN: u64 = 64;
const DESCRIPTOR_LEN: u64 = 32;
/// Bytes read at once while looking for entries; what a hole costs of the budget.
const WINDOW: u64 = 1 << 20;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    signature: [u8; 4],
    checksum: U32,
    entry_length: U32,
    tail: U32,
    sequence_number: U64,
    descriptor_count: U32,
    reserved: U32,
    log_guid: Guid,
    flushed_file_offset: U64,
    last_file_offset: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawDescriptor {
    signature: [u8; 4],
    /// Data: the sector's last 4 bytes.
    trailing: [u8; 4],
    /// Data: the sector's first 8 bytes. Zero: how many bytes.
    leading_or_length: [u8; 8],
    file_offset: U64,
    sequence_number: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawData {
    signature: [u8; 4],
    sequence_high: U32,
    body: [u8; 4084],
    sequence_low: U32,
}

/// An entry whose every part is whole.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where in the ring.
    at: u64,
    length: u64,
    tail: u64,
    sequence_number: u64,
    descriptors: u64,
    flushed_file_offset: u64,
    last_file_offset: u64,
}

/// The ring of 4 KiB sectors.
struct Ring<'a> {
    file: &'a dyn Storage,
    place: LogPlace,
}

/// What replaying a log does to its file.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) changes: Changes,
    /// The file's length afterwards: never less than it is.
    pub(crate) len: u64,
}

/// `file` as it is after its log is replayed. The file does not change. Errors: [`pending`]'s.
pub(crate) fn replay(file: Arc<dyn Storage>, place: LogPlace) -> Result<Arc<dyn Storage>> {
    let Pending { changes, len } = pending(file.as_ref(), place)?;
    Ok(Arc::new(Overlay::new(file, changes, len)))
}

/// What the log at `place` has pending.
///
/// Errors: nothing in the log can be replayed; the file is shorter than the log takes for granted; the log's changes
/// are not of whole sectors, or too many to be kept.
pub(crate) fn pending(file: &dyn Storage, place: LogPlace) -> Result<Pending> {
    let len = file.len().map_err(|error| Error::io("cannot find the size", error))?;
    if place.offset.checked_add(place.length).is_none_or(|end| end > len) {
        return Err(wrong("reaches past the end of the file", place.offset)
            .hint("the file was cut short: get a whole copy"));
    }
    let ring = Ring { file, place };
    let sequence = ring.active_sequence()?;
    let Some(head) = sequence.last() else {
        return Err(wrong("is pending, and nothing in it is whole", place.offset)
            .hint("what the last writer did cannot be told; restore a copy, or let a repair drop the log"));
    };
    if len < head.flushed_file_offset {
        let what =
            format!("takes a file of {} bytes for granted, and this one has {len}", head.flushed_file_offset);
        return Err(wrong(&what, ring.offset(head.at)).hint("the file was cut short: get a whole copy"));
    }
    let mut changes = Changes::default();
    for entry in &sequence {
        ring.apply(entry, &mut changes)?;
    }
    let len = len.max(head.last_file_offset).max(changes.end());
    if i64::try_from(len).is_err() {
        return Err(wrong(
            &format!("makes the file {len} bytes long, which no file can be"),
            ring.offset(head.at),
        ));
    }
    Ok(Pending { changes, len })
}

/// What an entry says besides its changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label {
    pub(crate) log_guid: Guid,
    pub(crate) sequence_number: u64,
    /// Where in the ring the entry goes. It is its own tail: replaying it replays nothing else.
    pub(crate) at: u32,
    pub(crate) flushed_file_offset: u64,
    pub(crate) last_file_offset: u64,
}

/// The bytes of an entry that puts each of `sectors` (its file offset, its bytes) in place; at most
/// [`FIRST_DESCRIPTORS`] of them, so that one sector of the entry holds all descriptors.
pub(crate) fn entry<'a>(
    label: &Label,
    sectors: impl ExactSizeIterator<Item = (u64, &'a [u8; SECTOR as usize])>,
) -> Vec<u8> {
    let count = sectors.len();
    let length = (1 + count) * SECTOR as usize;
    let mut raw = RawEntry {
        signature: *b"loge",
        checksum: 0.into(),
        entry_length: (length as u32).into(), // never cut: an entry is at most 127 sectors long
        tail: label.at.into(),
        sequence_number: label.sequence_number.into(),
        descriptor_count: (count as u32).into(),
        reserved: 0.into(),
        log_guid: label.log_guid,
        flushed_file_offset: label.flushed_file_offset.into(),
        last_file_offset: label.last_file_offset.into(),
    };
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(raw.as_bytes());
    let mut data = Vec::with_capacity(count * SECTOR as usize);
    for (at, sector) in sectors {
        let (leading, rest) = sector.split_first_chunk().unwrap_or((&[0; 8], &[])); // a sector is longer than 8
        let (body, trailing) = rest.split_last_chunk().unwrap_or((&[], &[0; 4]));
        let descriptor = RawDescriptor {
            signature: *b"desc",
            trailing: *trailing,
            leading_or_length: *leading,
            file_offset: at.into(),
            sequence_number: label.sequence_number.into(),
        };
        bytes.extend_from_slice(descriptor.as_bytes());
        data.extend_from_slice(b"data");
        data.extend_from_slice(&((label.sequence_number >> 32) as u32).to_le_bytes());
        data.extend_from_slice(body);
        data.extend_from_slice(&(label.sequence_number as u32).to_le_bytes());
    }
    bytes.resize(SECTOR as usize, 0);
    bytes.append(&mut data);
    raw.checksum = bytes::checksum(&bytes).into();
    bytes[..HEADER_LEN as usize].copy_from_slice(raw.as_bytes());
    bytes
}

fn wrong(message: &str, at: u64) -> Error {
    Error::corrupt("log", message).at(at)
}

impl Ring<'_> {
    /// The file offset of a place in the ring.
    fn offset(&self, at: u64) -> u64 {
        self.place.offset + at // never overflows: the log ends within the file
    }

    fn wrap(&self, at: u64) -> u64 {
        at % self.place.length // never 0: a pending log has room
    }

    fn read_sector(&self, at: u64) -> Result<[u8; SECTOR as usize]> {
        let mut sector = [0; SECTOR as usize];
        bytes::read(self.file, "log", self.offset(self.wrap(at)), &mut sector)?;
        Ok(sector)
    }

    /// The entries to replay, in order: of all runs of entries, each with the next sequence number and right behind the
    /// one before, that which ends with the highest number and holds the entry that its head calls the tail; from that
    /// tail on (section 2.3.3).
    fn active_sequence(&self) -> Result<Vec<Entry>> {
        let entries = self.entries()?;
        let place_of: HashMap<u64, usize> =
            entries.iter().enumerate().map(|(n, entry)| (entry.at, n)).collect();
        let next = |entry: &Entry| {
            let n = *place_of.get(&self.wrap(entry.at + entry.length))?;
            entries
                .get(n)
                .filter(|next| Some(next.sequence_number) == entry.sequence_number.checked_add(1))
                .map(|_| n)
        };
        // Every entry's run ends in one head. From the highest number down, the one behind has its answer already.
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|n| std::cmp::Reverse(entries.get(*n).map(|entry| entry.sequence_number)));
        let mut head_of: Vec<usize> = (0..entries.len()).collect();
        let mut best: Option<(&Entry, &Entry)> = None;
        for n in order {
            let Some(entry) = entries.get(n) else { continue };
            if let Some(head) = next(entry).and_then(|next| head_of.get(next).copied())
                && let Some(slot) = head_of.get_mut(n)
            {
                *slot = head;
            }
        }
        for (n, head) in entries.iter().enumerate() {
            let tail = place_of.get(&head.tail).copied();
            let ends_here = head_of.get(n) == Some(&n) && tail.and_then(|tail| head_of.get(tail)) == Some(&n);
            if let Some(tail) = tail.and_then(|tail| entries.get(tail)).filter(|_| ends_here)
                && best.is_none_or(|(_, other)| other.sequence_number < head.sequence_number)
            {
                best = Some((tail, head));
            }
        }
        let mut sequence = Vec::new();
        let mut entry = best.map(|(tail, _)| *tail);
        while let Some(this) = entry {
            sequence.push(this);
            entry = next(&this).and_then(|n| entries.get(n)).copied();
        }
        Ok(sequence)
    }

    /// All whole entries of this log, wherever they begin.
    fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        // An entry may hold sectors that nothing describes, so a hostile log could have every sector begin an entry
        // that reaches around the ring. A log as writers make it is looked at twice at most.
        let mut budget = self.place.length.saturating_mul(3);
        let mut window = Vec::new();
        let mut at = 0;
        while at < self.place.length {
            let failed = |error| Error::io("cannot find the log's holes", error).at(self.offset(at));
            match self.file.data_at(self.offset(at)).map_err(failed)? {
                Some(data) if data.start < self.offset(self.place.length) => {
                    at = at.max((data.start - self.place.offset) / SECTOR * SECTOR);
                }
                _ => break,
            }
            window.resize(WINDOW.min(self.place.length - at) as usize, 0);
            bytes::read(self.file, "log", self.offset(at), &mut window)?;
            for sector in window.chunks(SECTOR as usize) {
                if sector.starts_with(b"loge")
                    && let Some(entry) = self.entry(at, &mut budget)?
                {
                    entries.push(entry);
                }
                at += SECTOR;
            }
        }
        Ok(entries)
    }

    /// The entry at `at`, if it is one of this log and whole: all sequence numbers and the checksum are right.
    fn entry(&self, at: u64, budget: &mut u64) -> Result<Option<Entry>> {
        let first = self.read_sector(at)?;
        let Ok((raw, _)) = RawEntry::ref_from_prefix(&first) else { return Ok(None) };
        let (length, tail) = (u64::from(raw.entry_length.get()), u64::from(raw.tail.get()));
        let (sequence_number, descriptors) =
            (raw.sequence_number.get(), u64::from(raw.descriptor_count.get()));
        let is_whole = |n: u64| n.is_multiple_of(SECTOR);
        let head_sectors = (HEADER_LEN + descriptors * DESCRIPTOR_LEN).div_ceil(SECTOR);
        if raw.signature != *b"loge"
            || raw.log_guid != self.place.guid
            || sequence_number == 0
            || !is_whole(length)
            || length > self.place.length
            || head_sectors * SECTOR > length
            || !is_whole(tail)
            || tail >= self.place.length
        {
            return Ok(None);
        }
        let mut crc = 0;
        let (mut left, mut data_sectors, mut n) = (descriptors, 0, 0);
        // All that is described; then what is not, if there is any.
        while n < head_sectors + data_sectors {
            spend(budget, SECTOR).ok_or_else(|| self.overlaps(at))?;
            let sector = self.read_sector(at + n * SECTOR)?;
            if n < head_sectors {
                for descriptor in descriptors_of(&sector, n == 0, left)? {
                    let is_data = descriptor.signature == *b"desc";
                    if !(is_data || descriptor.signature == *b"zero")
                        || descriptor.sequence_number != sequence_number
                    {
                        return Ok(None);
                    }
                    data_sectors += u64::from(is_data);
                    left = left.saturating_sub(1);
                }
                if n + 1 == head_sectors && (head_sectors + data_sectors) * SECTOR > length {
                    return Ok(None);
                }
            } else if !is_data_of(&sector, sequence_number) {
                return Ok(None);
            }
            crc = if n == 0 { bytes::checksum(&sector) } else { crc32c::crc32c_append(crc, &sector) };
            n += 1;
        }
        let (from, end) = (at + n * SECTOR, at + length);
        for range in [from..end.min(self.place.length), from.max(self.place.length)..end] {
            if !range.is_empty() {
                let start = self.offset(self.wrap(range.start));
                let within = start..start + (range.end - range.start);
                crc = self.sum(crc, within, budget)?.ok_or_else(|| self.overlaps(at))?;
            }
        }
        let whole = crc == raw.checksum.get();
        Ok(whole.then_some(Entry {
            at,
            length,
            tail,
            sequence_number,
            descriptors,
            flushed_file_offset: raw.flushed_file_offset.get(),
            last_file_offset: raw.last_file_offset.get(),
        }))
    }

    fn overlaps(&self, at: u64) -> Error {
        wrong("has entries that overlap again and again", self.offset(at))
            .hint("this file was made to keep a reader busy")
    }

    /// The checksum of what came before, and then this range of the file. Holes are not read: a log of 4 GiB may be one.
    /// `None`: the budget is spent.
    fn sum(&self, mut crc: u32, range: Range<u64>, budget: &mut u64) -> Result<Option<u32>> {
        let mut buf = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let failed = |error| Error::io("cannot find the log's holes", error).at(at);
            let data = self.file.data_at(at).map_err(failed)?.unwrap_or(range.end..range.end);
            let start = data.start.clamp(at, range.end);
            if start > at {
                if spend(budget, WINDOW).is_none() {
                    return Ok(None);
                }
                crc = crc32c::crc32c_combine(crc, sum_of_zeros(start - at), (start - at) as usize);
            }
            at = start;
            let end = data.end.min(range.end);
            while at < end {
                buf.resize(WINDOW.min(end - at) as usize, 0);
                if spend(budget, buf.len() as u64).is_none() {
                    return Ok(None);
                }
                bytes::read(self.file, "log", at, &mut buf)?;
                crc = crc32c::crc32c_append(crc, &buf);
                at += buf.len() as u64;
            }
        }
        Ok(Some(crc))
    }

    /// Puts a whole entry's changes over those of the entries before.
    fn apply(&self, entry: &Entry, changes: &mut Changes) -> Result<()> {
        let head_sectors = (HEADER_LEN + entry.descriptors * DESCRIPTOR_LEN).div_ceil(SECTOR);
        let (mut left, mut data_sector) = (entry.descriptors, head_sectors);
        for n in 0..head_sectors {
            let at = self.offset(self.wrap(entry.at + n * SECTOR));
            let sector = self.read_sector(entry.at + n * SECTOR)?;
            for descriptor in descriptors_of(&sector, n == 0, left)? {
                left = left.saturating_sub(1);
                let start = descriptor.file_offset.get();
                let (length, change) = if descriptor.signature == *b"desc" {
                    let body = self.offset(self.wrap(entry.at + data_sector * SECTOR)) + 8;
                    data_sector += 1;
                    (
                        SECTOR,
                        Change::Sector {
                            leading: descriptor.leading_or_length,
                            body,
                            trailing: descriptor.trailing,
                        },
                    )
                } else {
                    (u64::from_le_bytes(descriptor.leading_or_length), Change::Zero)
                };
                let range = whole_sectors(start, length).ok_or_else(|| {
                    wrong(&format!("changes {length} bytes at {start}, which are not whole sectors"), at)
                })?;
                if !changes.put(range, change) {
                    return Err(Error::unsupported("the log changes more places than can be kept in memory")
                        .field("log")
                        .at(at));
                }
            }
        }
        Ok(())
    }
}

/// Takes so much from the budget, if it is there.
fn spend(budget: &mut u64, amount: u64) -> Option<()> {
    *budget = budget.checked_sub(amount)?;
    Some(())
}

/// The checksum of so many zeros.
fn sum_of_zeros(len: u64) -> u32 {
    let (mut sum, mut unit, mut bytes, mut left) = (0, crc32c::crc32c(&[0]), 1, len);
    while left > 0 {
        if left & 1 == 1 {
            sum = crc32c::crc32c_combine(sum, unit, bytes);
        }
        unit = crc32c::crc32c_combine(unit, unit, bytes);
        bytes *= 2;
        left >>= 1;
    }
    sum
}

fn whole_sectors(start: u64, length: u64) -> Option<Range<u64>> {
    let end = start.checked_add(length)?;
    (start.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR)).then_some(start..end)
}

/// The descriptors in one sector of an entry that has `left` more of them.
fn descriptors_of(sector: &[u8; SECTOR as usize], first: bool, left: u64) -> Result<&[RawDescriptor]> {
    let skip = if first { HEADER_LEN } else { 0 };
    let room = (SECTOR - skip) / DESCRIPTOR_LEN;
    let bytes = sector.get(skip as usize..).unwrap_or_default();
    let found = <[RawDescriptor]>::ref_from_prefix_with_elems(bytes, left.min(room) as usize);
    found.map(|(descriptors, _)| descriptors).map_err(|_| Error::corrupt("log", "has a cut sector"))
}

fn is_data_of(sector: &[u8; SECTOR as usize], sequence_number: u64) -> bool {
    RawData::ref_from_bytes(sector).is_ok_and(|raw| {
        raw.signature == *b"data"
            && u64::from(raw.sequence_high.get()) == sequence_number >> 32
            && u64::from(raw.sequence_low.get()) == sequence_number & 0xffff_ffff
    })
}

#[cfg(test)]
mod tests;
