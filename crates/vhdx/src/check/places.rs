//! What stands where in the file, by the whole table: which MiB somebody has, which entries cannot be, and who shares
//! bytes with whom. The look before the first write and the check are the same one.
//!
//! In memory: a bit for each MiB of the file, at most 64 MiB; 16 bytes for each partly present block of one chunk; and
//! where places overlap, 48 bytes for each that does, at most 12 MiB.

use std::fmt;
use std::ops::Range;

use cowhand_core::{Error, Result, Storage};

use super::bits::{Bits, MOST};
use super::table;
use crate::bat::{self, ENTRY, Geometry, State};
use crate::bytes::MIB;
use crate::region::Regions;

/// Stretches of the file that more than one has, and those who have them, that are kept in mind.
const MAX_SHARED: usize = 1 << 18;

/// A disk whose table is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disk<'a> {
    /// The file as it is after its log was replayed.
    pub(crate) file: &'a dyn Storage,
    pub(crate) regions: &'a Regions,
    pub(crate) geometry: Geometry,
    pub(crate) differencing: bool,
    /// The file's length.
    pub(crate) len: u64,
}

/// Whose an entry of the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A payload block's.
    Block(u64),
    /// The sector bitmap's of a chunk.
    Bitmap(u64),
    /// No part of the disk needs it: it stands behind the last one, or for a sector bitmap that the disk does not have.
    Nobody,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Block(block) => write!(f, "block {block}"),
            Owner::Bitmap(chunk) => write!(f, "the sector bitmap of chunk {chunk}"),
            Owner::Nobody => f.write_str("no block"),
        }
    }
}

/// Why an entry cannot be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Bits 3 to 19 are not zero.
    Reserved,
    /// A state that does not exist, or not for such an entry.
    State,
    /// Partly present, in a disk without a parent.
    NoParent,
    /// Partly present, and the chunk's sector bitmap is not there.
    NoBitmap,
    /// Nothing of what it needs is in the file.
    PastEnd,
    /// The file ends within what it needs.
    Cut,
    /// It stands over a structure of this name.
    Over(String),
}

/// What an entry of the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Which one.
    pub(crate) number: u64,
    pub(crate) raw: u64,
    pub(crate) owner: Owner,
}

/// Room in the file that an entry has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Bytes of the file.
    pub(crate) range: Range<u64>,
    pub(crate) entry: Entry,
    /// Somebody reads what stands there; no one does of an unmapped block that keeps its place.
    pub(crate) read: bool,
}

/// What the table shows, one after the other.
pub(crate) enum Seen {
    /// Entries that are zero.
    Zeros(Range<u64>),
    /// One that takes no room and is not zero.
    Other(Entry),
    Place(Place),
    Wrong(Entry, Why),
}

/// What stands where.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    bits: Bits,
    /// MiB that more than one has; ascending only within what was found one after the other.
    shared: Vec<Range<u64>>,
    /// Payload blocks of the disk that are in the file.
    pub(crate) stored: u64,
    /// Those of them that do not stand behind their predecessor.
    pub(crate) fragmented: u64,
    /// Payload blocks that are not present.
    pub(crate) not_present: u64,
    /// Entries with the state that a draft of the format had for unmapped blocks.
    pub(crate) drafts: u64,
    /// Entries that nobody needs and that are not zero, and the first of them.
    pub(crate) stray: u64,
    pub(crate) first_stray: Option<u64>,
}

enum Verdict {
    Nothing,
    /// The bytes, and whether they are read.
    Place(Range<u64>, bool),
    Wrong(Why),
}

impl Disk<'_> {
    /// Entries that the disk needs; the region may have more.
    pub(crate) fn entries(&self) -> u64 {
        self.geometry.entries(self.differencing)
    }

    /// Whose an entry is.
    pub(crate) fn owner(&self, number: u64) -> Owner {
        let ratio = self.geometry.chunk_ratio();
        let (chunk, within) = (number / (ratio + 1), number % (ratio + 1));
        let block = chunk * ratio + within;
        match number < self.entries() {
            true if within == ratio && self.differencing => Owner::Bitmap(chunk),
            true if within < ratio && block < self.geometry.blocks() => Owner::Block(block),
            _ => Owner::Nobody,
        }
    }

    /// The file offset of an entry.
    pub(crate) fn entry_at(&self, number: u64) -> u64 {
        self.regions.bat.offset + number * ENTRY // never overflows: the region ends within the file
    }

    /// The guest bytes that depend on an entry.
    pub(crate) fn guest(&self, owner: Owner) -> Range<u64> {
        let Geometry { size, block_size, .. } = self.geometry;
        let unit = match owner {
            Owner::Block(_) => block_size,
            _ => block_size * self.geometry.chunk_ratio(),
        };
        let (Owner::Block(number) | Owner::Bitmap(number)) = owner else { return 0..0 };
        (number * unit).min(size)..((number + 1) * unit).min(size)
    }

    /// "guest bytes 0 to 2097151".
    pub(crate) fn guest_text(&self, owner: Owner) -> String {
        guest_text(&self.guest(owner))
    }

    /// Bytes of room that an entry has, and how many of them the disk needs: of its last block, what it has.
    pub(crate) fn room(&self, owner: Owner) -> (u64, u64) {
        match owner {
            Owner::Block(_) => {
                let guest = self.guest(owner);
                (self.geometry.block_size, guest.end - guest.start)
            }
            _ => (MIB, MIB),
        }
    }

    /// Why nothing can stand at `offset`.
    fn place(&self, owner: Owner, offset: u64) -> Result<Range<u64>, Why> {
        let (room, needed) = self.room(owner);
        let range = offset..offset.saturating_add(room);
        if let Some(name) = self.regions.meets(range.clone()) {
            Err(Why::Over(name.to_owned()))
        } else if offset >= self.len {
            Err(Why::PastEnd)
        } else if needed > self.len - offset {
            // A bitmap that is there in part says of the sectors behind that they are not, and nobody knows that.
            Err(if matches!(owner, Owner::Block(_)) { Why::Cut } else { Why::PastEnd })
        } else {
            Ok(range)
        }
    }

    fn judge(&self, entry: &Entry) -> Verdict {
        let offset = bat::offset(entry.raw);
        let placed = |range: Result<Range<u64>, Why>| match range {
            Ok(range) => Verdict::Place(range, true),
            Err(why) => Verdict::Wrong(why),
        };
        if entry.owner == Owner::Nobody || entry.raw == 0 {
            return Verdict::Nothing;
        }
        if entry.raw & bat::RESERVED != 0 {
            return Verdict::Wrong(Why::Reserved);
        }
        match (entry.owner, bat::state(entry.raw)) {
            (Owner::Bitmap(_), State::NotPresent) => Verdict::Nothing,
            (Owner::Bitmap(_), State::Full) => placed(self.place(entry.owner, offset)),
            (Owner::Bitmap(_), _) | (_, State::Unknown) => Verdict::Wrong(Why::State),
            (_, State::NotPresent | State::Undefined | State::Zero) => Verdict::Nothing,
            (_, State::Unmapped | State::UnmappedDraft) => match self.place(entry.owner, offset) {
                Ok(range) => Verdict::Place(range, false),
                Err(_) => Verdict::Nothing,
            },
            (_, State::Partial) if !self.differencing => Verdict::Wrong(Why::NoParent),
            (_, State::Full | State::Partial) => placed(self.place(entry.owner, offset)),
        }
    }

    /// What `entry` should be, for all of its bytes that can still be told, and whether something of the disk is lost by
    /// it; `None`: other means are needed.
    pub(crate) fn mended(&self, entry: &Entry, why: &Why, fixed: bool) -> Option<(u64, bool)> {
        let gone = match entry.owner {
            Owner::Block(_) if fixed => bat::Block::Zero.encode(),
            _ => 0,
        };
        let offset = bat::offset(entry.raw);
        let full = bat::Block::Full(offset).encode();
        match why {
            Why::NoParent => Some((full, false)),
            Why::Reserved => {
                let raw = entry.raw & !bat::RESERVED;
                match self.judge(&Entry { raw, ..*entry }) {
                    // Not even its state can be right; and in the states that have no place, nothing is lost.
                    Verdict::Wrong(Why::PastEnd | Why::Over(_)) => Some((gone, true)),
                    _ => Some((raw, false)),
                }
            }
            // One bit makes it of one that is fully present, and so its bytes are kept.
            Why::State if self.place(entry.owner, offset).is_ok() => Some((full, false)),
            Why::State | Why::PastEnd | Why::Over(_) => Some((gone, true)),
            Why::NoBitmap | Why::Cut => None,
        }
    }

    /// What is wrong with an entry, for people: "(guest bytes 0 to 1048575) puts block 0 at ...", behind the entry's own place.
    pub(crate) fn text(&self, entry: &Entry, why: &Why) -> String {
        let (raw, owner, offset) = (entry.raw, entry.owner, bat::offset(entry.raw));
        let (_, needed) = self.room(owner);
        let end = offset.saturating_add(needed);
        let what = match why {
            Why::Reserved => format!("{raw:#x} has reserved bits set"),
            Why::State => format!("{raw:#x} gives {owner} the state {}, which it cannot have", raw & 7),
            Why::NoParent => {
                format!("{raw:#x} says that {owner} is partly in the parent, and there is no parent")
            }
            Why::NoBitmap => {
                format!("says that {owner} is partly in the parent, and no sector bitmap says which part")
            }
            Why::PastEnd => format!("puts {owner} at {offset}, past the end of the file at {}", self.len),
            Why::Cut => format!("puts {owner} at {offset}..{end}, and the file ends at {}", self.len),
            Why::Over(name) => format!("puts {owner} at {offset}..{end}, over {name}"),
        };
        format!("({}) {what}", self.guest_text(owner))
    }

    /// Shows `see` the whole region, in the order of the file.
    pub(crate) fn walk(&self, see: &mut dyn FnMut(Seen) -> Result<()>) -> Result<()> {
        // Partly present blocks of the chunk whose bitmap's entry comes next.
        let mut partial: Vec<Entry> = Vec::new();
        let ratio = self.geometry.chunk_ratio();
        table::runs(self.file, self.regions.bat, &mut |run, raw| {
            if raw == 0 {
                let bitmap = partial.first().map(|entry| entry.number / (ratio + 1) * (ratio + 1) + ratio);
                if bitmap.is_some_and(|number| run.contains(&number)) {
                    partial.drain(..).try_for_each(|entry| see(Seen::Wrong(entry, Why::NoBitmap)))?;
                }
                return see(Seen::Zeros(run));
            }
            for number in run {
                let entry = Entry { number, raw, owner: self.owner(number) };
                let bitmap = matches!(entry.owner, Owner::Bitmap(_));
                match self.judge(&entry) {
                    Verdict::Nothing => see(Seen::Other(entry))?,
                    Verdict::Place(range, read) => {
                        if bitmap {
                            partial.clear();
                        } else if bat::state(raw) == State::Partial {
                            partial.push(entry);
                        }
                        see(Seen::Place(Place { range, entry, read }))?;
                    }
                    Verdict::Wrong(why) => see(Seen::Wrong(entry, why))?,
                }
                if bitmap {
                    partial.drain(..).try_for_each(|entry| see(Seen::Wrong(entry, Why::NoBitmap)))?;
                }
            }
            Ok(())
        })
    }
}

/// "guest bytes 0 to 2097151".
pub(crate) fn guest_text(guest: &Range<u64>) -> String {
    format!("guest bytes {} to {}", guest.start, guest.end.max(guest.start + 1) - 1)
}

impl Places {
    /// Looks at the whole table. `wrong` hears of each entry that cannot be right, and may end it; they have no place.
    /// Errors: the table cannot be read; something stands too far behind in the file to be counted.
    pub(crate) fn read(disk: &Disk, wrong: &mut dyn FnMut(Entry, Why) -> Result<()>) -> Result<Places> {
        let mut places = Places { bits: Bits::new(disk.len.div_ceil(MIB)), ..Places::default() };
        for (range, _) in disk.regions.taken() {
            places.take(range.clone(), disk.regions.bat.offset)?;
        }
        let blocks = disk.geometry.blocks();
        let mut next = None;
        disk.walk(&mut |seen| {
            match seen {
                Seen::Wrong(entry, why) => wrong(entry, why)?,
                Seen::Zeros(run) => {
                    let block_at = |number| disk.geometry.block_at(number).min(blocks);
                    places.not_present += block_at(run.end) - block_at(run.start);
                }
                Seen::Other(entry) => match (entry.owner, bat::state(entry.raw)) {
                    (Owner::Nobody, _) => {
                        places.stray += 1;
                        places.first_stray.get_or_insert(entry.number);
                    }
                    (Owner::Block(_), State::NotPresent) => places.not_present += 1,
                    (_, State::UnmappedDraft) => places.drafts += 1,
                    _ => {}
                },
                Seen::Place(Place { range, entry, read }) => {
                    places.drafts += u64::from(bat::state(entry.raw) == State::UnmappedDraft);
                    if read && matches!(entry.owner, Owner::Block(_)) {
                        places.stored += 1;
                        places.fragmented += u64::from(next.is_some_and(|next| next != range.start));
                        next = Some(range.end);
                    }
                    places.take(range, disk.entry_at(entry.number))?;
                }
            }
            Ok(())
        })?;
        Ok(places)
    }

    fn take(&mut self, range: Range<u64>, at: u64) -> Result<()> {
        let mib = range.start / MIB..range.end.div_ceil(MIB);
        if mib.end > MOST {
            return Err(Error::unsupported(format!(
                "something stands at {}, more than {} TiB into the file, which is too far to be counted",
                range.start,
                MOST >> 20
            ))
            .at(at));
        }
        if !self.bits.take(mib.clone()) {
            let room = self.shared.len() < MAX_SHARED;
            match self.shared.last_mut().filter(|last| last.start <= mib.end && mib.start <= last.end) {
                Some(last) => *last = last.start.min(mib.start)..last.end.max(mib.end),
                None if room => self.shared.push(mib),
                None => {}
            }
        }
        Ok(())
    }

    /// Whether two entries have places that meet.
    pub(crate) fn are_shared(&self) -> bool {
        !self.shared.is_empty()
    }

    /// Behind the last byte that somebody has, in bytes.
    pub(crate) fn end(&self) -> u64 {
        self.bits.end() * MIB
    }

    /// Stretches of bytes before the end that nobody has, ascending.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = Range<u64>> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let gap = self.bits.gap(from)?;
            from = gap.end;
            Some(gap.start * MIB..gap.end * MIB)
        })
    }

    /// The bit of each MiB.
    pub(crate) fn into_bits(self) -> Bits {
        self.bits
    }

    /// The places that meet others, ascending by their start; at most as many as are kept in mind.
    pub(crate) fn shared(&self, disk: &Disk) -> Result<Vec<Place>> {
        let mut shared = self.shared.clone();
        shared.sort_by_key(|range| range.start);
        // Merged, so that the first one that ends behind a place is the only one to be looked at.
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in shared {
            match merged.last_mut().filter(|last| range.start <= last.end) {
                Some(last) => last.end = last.end.max(range.end),
                None => merged.push(range),
            }
        }
        let mut found = Vec::new();
        disk.walk(&mut |seen| {
            let Seen::Place(place) = seen else { return Ok(()) };
            // Looking for each of millions takes long, and is of no use once all room is taken.
            if found.len() == MAX_SHARED {
                return Ok(());
            }
            let mib = place.range.start / MIB..place.range.end.div_ceil(MIB);
            let first = merged.partition_point(|other| other.end <= mib.start);
            if merged.get(first).is_some_and(|other| other.start < mib.end) {
                found.push(place);
            }
            Ok(())
        })?;
        found.sort_by_key(|place| (place.range.start, place.entry.number));
        Ok(found)
    }
}

/// Shows `see` each of the places, ascending by their start, that begins within another: the one that reaches furthest,
/// and this.
pub(crate) fn overlaps(places: &[Place], see: &mut dyn FnMut(&Place, &Place) -> Result<()>) -> Result<()> {
    let mut furthest: Option<&Place> = None;
    for place in places {
        if let Some(before) = furthest.filter(|before| place.range.start < before.range.end) {
            see(before, place)?;
        }
        if furthest.is_none_or(|before| place.range.end > before.range.end) {
            furthest = Some(place);
        }
    }
    Ok(())
}

/// The look before the first write to an image that was there: what stands where. Errors: an entry cannot be right, or
/// two have places that meet; a writer that trusted them would write one over the other.
pub(crate) fn audit(disk: &Disk) -> Result<Places> {
    const HINT: &str =
        "it can be read, and is not written while that is so; 'cowhand check' tells all that is wrong";
    let places = Places::read(disk, &mut |entry, why| {
        let text = disk.text(&entry, &why);
        Err(Error::corrupt("BAT entry", text).at(disk.entry_at(entry.number)).hint(HINT))
    })?;
    if places.are_shared() {
        overlaps(&places.shared(disk)?, &mut |one, other| {
            let (a, b) = (one.entry.owner, other.entry.owner);
            let (guest_a, guest_b) = (disk.guest_text(a), disk.guest_text(b));
            Err(Error::corrupt("BAT", format!("{a} ({guest_a}) and {b} ({guest_b}) share bytes"))
                .at(other.range.start)
                .hint(HINT))
        })?;
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use cowhand_core::MemoryStorage;

    use super::*;
    use crate::bat::Block;
    use crate::guid::Guid;
    use crate::header::LogPlace;
    use crate::region::{Region, TABLES};

    const LEN: u64 = 12 * MIB;
    const BAT: u64 = 3 * MIB;
    /// 16 blocks of 256 MiB have a chunk of their own; the disk has 18 of them, and half of the last.
    const GEOMETRY: Geometry =
        Geometry { size: 17 * 256 * MIB + MIB / 2, block_size: 256 * MIB, sector: 512 };
    const SMALL: Geometry = Geometry { size: 5 * MIB / 2, block_size: MIB, sector: 512 };

    fn file(entries: &[(u64, u64)]) -> (MemoryStorage, Regions) {
        let file = MemoryStorage::new();
        file.set_len(LEN).unwrap();
        let table =
            Regions::table(Region { offset: BAT, length: MIB }, Region { offset: 2 * MIB, length: MIB });
        file.write_at(TABLES[0], &table).unwrap();
        for (number, raw) in entries {
            file.write_at(BAT + 8 * number, &raw.to_le_bytes()).unwrap();
        }
        let log = LogPlace { guid: Guid::ZERO, offset: MIB, length: MIB };
        let regions = Regions::read(&file, LEN, &log).unwrap();
        (file, regions)
    }

    fn disk<'a>(made: &'a (MemoryStorage, Regions), geometry: Geometry, differencing: bool) -> Disk<'a> {
        Disk { file: &made.0, regions: &made.1, geometry, differencing, len: made.0.len().unwrap() }
    }

    #[test]
    fn entries_have_owners() {
        let made = file(&[]);
        let (plain, child) = (disk(&made, GEOMETRY, false), disk(&made, GEOMETRY, true));
        assert_eq!(
            (plain.owner(15), plain.owner(16), plain.owner(17)),
            (Owner::Block(15), Owner::Nobody, Owner::Block(16))
        );
        assert_eq!(
            (plain.owner(18), plain.owner(19), plain.owner(33)),
            (Owner::Block(17), Owner::Nobody, Owner::Nobody)
        );
        assert_eq!(
            (child.owner(16), child.owner(18), child.owner(19)),
            (Owner::Bitmap(0), Owner::Block(17), Owner::Nobody)
        );
        assert_eq!((child.owner(33), child.owner(34)), (Owner::Bitmap(1), Owner::Nobody));
        assert_eq!(child.guest(Owner::Bitmap(1)), 16 * 256 * MIB..GEOMETRY.size);
        assert_eq!(child.guest_text(Owner::Block(1)), "guest bytes 268435456 to 536870911");
        assert_eq!(plain.room(Owner::Block(17)), (256 * MIB, MIB / 2));
    }

    #[test]
    fn says_what_stands_where() {
        let full = |mib: u64| Block::Full(mib * MIB).encode();
        let made = file(&[(0, full(6)), (1, full(4)), (2, (8 * MIB) | 3), (9, 7)]);
        let places = audit(&disk(&made, SMALL, false)).unwrap();
        assert_eq!((places.stored, places.fragmented, places.stray, places.first_stray), (2, 1, 1, Some(9)));
        assert_eq!(places.gaps().collect::<Vec<_>>(), [5 * MIB..6 * MIB, 7 * MIB..8 * MIB]);
        assert_eq!(places.end(), 9 * MIB);
        assert_eq!(places.not_present, 0);
        // Of the last block half is enough.
        let made = file(&[(2, full(11))]);
        made.0.set_len(LEN - MIB / 2).unwrap();
        assert_eq!(audit(&disk(&made, SMALL, false)).unwrap().not_present, 2);
    }

    #[test]
    fn says_what_cannot_be() {
        let full = |mib: u64| (mib * MIB) | 6;
        let bitmap = 4096;
        for (differencing, entries, says) in [
            (false, vec![(0, full(6) | 8)], "reserved bits"),
            (false, vec![(0, 4)], "the state 4"),
            (false, vec![(1, full(6) | 1)], "there is no parent"),
            (false, vec![(1, full(12))], "past the end of the file"),
            (false, vec![(1, !0xf_ffff | 6)], "past the end of the file"),
            (false, vec![(1, full(0))], "over the header section"),
            (false, vec![(1, full(3))], "over the BAT region"),
            (false, vec![(0, full(5)), (1, full(5))], "block 0 (guest bytes 0 to 1048575) and block 1"),
            (false, vec![(0, full(5)), (1, (5 * MIB) | 3)], "share bytes"),
            (true, vec![(0, full(5) | 1)], "no sector bitmap says"),
            (
                true,
                vec![(0, full(5) | 1), (bitmap, full(12))],
                "the sector bitmap of chunk 0 at 12582912, past",
            ),
            (true, vec![(bitmap, full(5) | 1)], "the state 7"),
            (true, vec![(0, full(5)), (bitmap, full(5))], "and the sector bitmap of chunk 0"),
        ] {
            let made = file(&entries);
            let error = audit(&disk(&made, SMALL, differencing)).expect_err(says);
            assert!(error.to_string().contains(says), "{error}");
        }
        let made = file(&[(0, full(5) | 1), (bitmap, full(6)), (2, full(7) | 1)]);
        assert_eq!(audit(&disk(&made, SMALL, true)).unwrap().stored, 2);
    }
}
