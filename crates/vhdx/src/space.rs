//! The file's space: where the next block goes, and what was freed. It is counted in MiB.

use std::io;
use std::ops::Range;

use cowhand_core::{Error, Result, Storage};

use crate::bytes::MIB;
use crate::check::bits::{Bits, MOST};

/// The file grows by this much at once, so that no write waits for another's growth; closing cuts what is left.
const GROWTH: u64 = 64 << 20;
/// Zeros that are written at once.
const ZEROS: u64 = 1 << 20;

/// Room in the file.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) range: Range<u64>,
    /// From here on it reads zero; in front stands whatever the file held there.
    pub(crate) clean_from: u64,
}

impl Place {
    /// Where it begins.
    pub(crate) fn at(&self) -> u64 {
        self.range.start
    }
}

/// What is in use of the file.
#[derive(Debug)]
pub(crate) struct Space {
    /// A bit for each MiB.
    used: Bits,
    /// Behind the last that is used, in MiB.
    end: u64,
    /// Bytes of the file.
    file_len: u64,
    /// Nothing was ever written from here on: it reads zero as far as the file goes, and what it grows by does.
    clean_from: u64,
    /// MiB of a block.
    block: u64,
    /// No gap that holds a block, and none at all, is in front of these.
    first_gap: [u64; 2],
    /// The file was made longer than it needs to be, or needs less than it did.
    loose: bool,
}

impl Space {
    /// The space of a file of `file_len` bytes, of which `used` is in use and nothing reads zero for sure.
    pub(crate) fn new(used: Bits, block_size: u64, file_len: u64) -> Space {
        let end = used.end();
        let clean_from = file_len.max(end * MIB);
        Space { used, end, file_len, clean_from, block: block_size / MIB, first_gap: [0; 2], loose: false }
    }

    /// Bytes of the file.
    pub(crate) fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Where what is used ends, in the file.
    pub(crate) fn end(&self) -> u64 {
        (self.end * MIB).min(self.file_len)
    }

    /// Room for `len` bytes, whole MiB: in the first gap that has so much, else at the end. Errors: the file cannot be
    /// made longer.
    pub(crate) fn take(&mut self, file: &dyn Storage, len: u64) -> Result<Place> {
        match self.gap(len / MIB) {
            Some(start) => Ok(self.hand_out(start, len / MIB)),
            None => self.append(file, len),
        }
    }

    /// Room for `len` bytes behind all that is used.
    pub(crate) fn append(&mut self, file: &dyn Storage, len: u64) -> Result<Place> {
        if self.end + len / MIB > MOST {
            return Err(Error::unsupported(format!(
                "the file would be longer than {} TiB, which is too long to be written",
                MOST >> 20
            )));
        }
        let end = self.end * MIB + len;
        if end > self.file_len {
            self.extend(file, end)?;
        }
        Ok(self.hand_out(self.end, len / MIB))
    }

    /// Room for `len` bytes in a gap that ends at or before `below`, if there is one.
    pub(crate) fn take_below(&mut self, len: u64, below: u64) -> Option<Place> {
        let start = self.gap(len / MIB).filter(|start| start * MIB + len <= below)?;
        Some(self.hand_out(start, len / MIB))
    }

    /// Where the first gap begins that has so many MiB.
    fn gap(&mut self, len: u64) -> Option<u64> {
        let which = usize::from(len >= self.block);
        let known = len == self.block || len == 1;
        // A gap for fewer than a block is not in front of one for any.
        let from = self.first_gap[which.min(usize::from(known))]; // never out of bounds: 0 or 1
        let mut gap = self.used.gap(from);
        while let Some(short) = gap.take_if(|gap| gap.end - gap.start < len) {
            gap = self.used.gap(short.end);
        }
        if known {
            self.first_gap[which] = gap.as_ref().map_or(self.end, |gap| gap.start); // as above
        }
        gap.map(|gap| gap.start)
    }

    fn hand_out(&mut self, start: u64, len: u64) -> Place {
        let range = start * MIB..(start + len) * MIB;
        self.used.take(start..start + len);
        self.end = self.end.max(start + len);
        let clean_from = self.clean_from.clamp(range.start, range.end);
        self.clean_from = self.clean_from.max(range.end);
        Place { range, clean_from }
    }

    /// Makes the file `end` bytes long, and somewhat longer.
    fn extend(&mut self, file: &dyn Storage, end: u64) -> Result<()> {
        let mut len = end.saturating_add(GROWTH);
        let mut longer = file.set_len(len);
        // Room for some more may not be there, and for one may.
        if longer.as_ref().is_err_and(|error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge)
        }) {
            len = end;
            longer = file.set_len(len);
        }
        longer.map_err(|error| Error::io("cannot make the file longer", error).at(self.file_len))?;
        self.file_len = len;
        self.loose = true;
        Ok(())
    }

    /// Makes the file at least `end` bytes long.
    pub(crate) fn reach(&mut self, file: &dyn Storage, end: u64) -> Result<()> {
        if end > self.file_len { self.extend(file, end) } else { Ok(()) }
    }

    /// The file is as long as it needs to be when it is closed, whoever made it longer.
    pub(crate) fn loosen(&mut self) {
        self.loose = true;
    }

    /// Nothing is in use but these.
    pub(crate) fn keep_only<'a>(&mut self, ranges: impl Iterator<Item = &'a Range<u64>>) {
        self.used = Bits::default();
        for range in ranges {
            self.used.take(mib(range));
        }
        self.end = self.used.end();
        self.first_gap = [0; 2];
        self.loose = true;
    }

    /// Takes back a place that nothing in the file refers to any more and nobody uses.
    pub(crate) fn give_back(&mut self, range: Range<u64>) {
        let range = mib(&range);
        self.used.free(range.clone());
        let [any, block] = &mut self.first_gap;
        *any = (*any).min(range.start);
        *block = (*block).min((range.start + 1).saturating_sub(self.block));
        if range.end >= self.end {
            self.end = self.used.end();
            self.loose = true;
        }
    }

    /// Takes back a place as it was given out: nothing was written to it.
    pub(crate) fn give_back_untouched(&mut self, place: &Place) {
        if self.clean_from == place.range.end {
            self.clean_from = place.clean_from;
        }
        self.give_back(place.range.clone());
    }

    /// The length that the file needs, if it may be another than it has.
    pub(crate) fn wants_len(&self) -> Option<u64> {
        (self.loose && self.file_len > self.end * MIB).then_some(self.end * MIB)
    }

    /// The file has this length now.
    pub(crate) fn cut(&mut self, len: u64) {
        self.file_len = len;
        self.clean_from = self.clean_from.min(len).max(self.end * MIB);
        self.loose = false;
    }
}

/// The MiB of a range of bytes.
fn mib(range: &Range<u64>) -> Range<u64> {
    range.start / MIB..range.end.div_ceil(MIB)
}

/// Makes bytes of the file zero, and gives their space back where that is possible.
pub(crate) fn make_zero(file: &dyn Storage, range: Range<u64>) -> Result<()> {
    let (at, len) = (range.start, range.end.saturating_sub(range.start));
    let failed = |error| Error::io("cannot write zeros", error).at(at);
    // Giving space back is a wish; where it fails, writing says what is wrong.
    if len == 0 || file.punch(at, len).unwrap_or(false) || file.zero(at, len).map_err(failed)? {
        return Ok(());
    }
    let zeros = vec![0; len.min(ZEROS) as usize];
    let mut done = 0;
    while done < len {
        let n = (len - done).min(ZEROS);
        file.write_at(at + done, zeros.get(..n as usize).unwrap_or_default()).map_err(failed)?;
        done += n;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::MemoryStorage;

    fn file(mib: u64) -> MemoryStorage {
        let file = MemoryStorage::new();
        file.set_len(mib * MIB).unwrap();
        file
    }

    /// 4 MiB in use, then a gap of 3, then 1 in use; the file ends 2 MiB behind that. Blocks of 2 MiB.
    fn space() -> (MemoryStorage, Space) {
        let mut used = Bits::default();
        used.take(0..4);
        used.take(7..8);
        (file(10), Space::new(used, 2 * MIB, 10 * MIB))
    }

    fn take(space: &mut Space, file: &MemoryStorage, mib: u64) -> (u64, u64) {
        let place = space.take(file, mib * MIB).unwrap();
        assert_eq!(place.range.end - place.range.start, mib * MIB);
        (place.at() / MIB, (place.clean_from - place.at()) / MIB)
    }

    #[test]
    fn gaps_come_first_and_what_is_new_is_zero() {
        let (file, mut space) = space();
        assert_eq!(take(&mut space, &file, 2), (4, 2));
        assert_eq!(take(&mut space, &file, 2), (8, 2), "in the file, and not known to be zero");
        assert_eq!(file.len().unwrap(), 10 * MIB);
        assert_eq!(take(&mut space, &file, 1), (6, 1));
        assert_eq!(take(&mut space, &file, 2), (10, 0), "behind the file's end");
        assert_eq!(file.len().unwrap(), 12 * MIB + GROWTH);
        assert_eq!(take(&mut space, &file, 1), (12, 0));
        assert_eq!(space.end(), 13 * MIB);
        // What was used is used again, and is not zero.
        space.give_back(10 * MIB..12 * MIB);
        space.give_back(4 * MIB..6 * MIB);
        assert_eq!(take(&mut space, &file, 1), (4, 1));
        assert_eq!(take(&mut space, &file, 2), (10, 2));
        assert_eq!(take(&mut space, &file, 2), (13, 0));
        space.give_back(13 * MIB..15 * MIB);
        space.give_back(12 * MIB..13 * MIB);
        assert_eq!(space.wants_len(), Some(12 * MIB));
        assert_eq!(take(&mut space, &file, 2), (12, 2));
    }

    #[test]
    fn a_gap_that_two_neighbours_leave_is_found() {
        let (file, mut space) = space();
        while space.gap(1).is_some() {
            take(&mut space, &file, 1);
        }
        assert_eq!(space.gap(2), None);
        space.give_back(5 * MIB..6 * MIB);
        assert_eq!(space.gap(2), None);
        space.give_back(4 * MIB..5 * MIB);
        assert_eq!(space.take_below(2 * MIB, 5 * MIB).map(|place| place.at()), None);
        assert_eq!(space.take_below(2 * MIB, 6 * MIB).map(|place| place.at()), Some(4 * MIB));
    }

    #[test]
    fn what_could_not_be_counted_is_not_given_out() {
        let mut used = Bits::default();
        used.take(0..4);
        used.take(MOST - 2..MOST - 1);
        let len = (MOST - 1) * MIB;
        let file = MemoryStorage::new();
        file.set_len(len).unwrap();
        let mut space = Space::new(used, 2 * MIB, len);
        assert_eq!(space.append(&file, MIB).unwrap().at(), len);
        assert!(space.append(&file, MIB).is_err());
        assert_eq!(take(&mut space, &file, 2).0, 4);
    }

    #[test]
    fn what_comes_back_untouched_is_still_zero() {
        let (file, mut space) = space();
        take(&mut space, &file, 2);
        take(&mut space, &file, 2);
        let place = space.take(&file, 2 * MIB).unwrap();
        space.give_back_untouched(&place);
        assert_eq!(take(&mut space, &file, 2), (10, 0));
        assert_eq!(take(&mut space, &file, 1), (6, 1));
        space.cut(12 * MIB);
        assert_eq!(space.wants_len(), None);
    }
}
