//! Which MiB of the file somebody has: a bit for each.

use std::ops::Range;

/// MiB that are told apart, from the file's start: 512 TiB, eight times the largest disk, in 64 MiB of memory.
pub(crate) const MOST: u64 = 1 << 29;

/// A bit for each MiB of the file; what is behind the last word is free.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    /// Room for a file of so many MiB; memory is taken where bits are set.
    pub(crate) fn new(mib: u64) -> Bits {
        Bits(vec![0; mib.min(MOST).div_ceil(64) as usize])
    }

    /// The words that `range` has a part in, and which of their bits.
    fn words(range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
        let Range { start, end } = range;
        (start / 64..end.div_ceil(64)).map(move |word| {
            let first = start.saturating_sub(word * 64).min(63);
            let last = (end - word * 64).min(64);
            (word as usize, (u64::MAX << first) & (u64::MAX >> (64 - last)))
        })
    }

    /// Sets the bits of `range`, which ends at [`MOST`] at most. False: one of them was set before.
    pub(crate) fn take(&mut self, range: Range<u64>) -> bool {
        if range.is_empty() {
            return true;
        }
        let needed = range.end.min(MOST).div_ceil(64) as usize;
        if self.0.len() < needed {
            self.0.resize(needed, 0);
        }
        let mut free = true;
        for (word, mask) in Self::words(range) {
            if let Some(word) = self.0.get_mut(word) {
                free &= *word & mask == 0;
                *word |= mask;
            }
        }
        free
    }

    /// Clears the bits of `range`.
    pub(crate) fn free(&mut self, range: Range<u64>) {
        for (word, mask) in Self::words(range) {
            if let Some(word) = self.0.get_mut(word) {
                *word &= !mask;
            }
        }
        // So the end is found at once, however many are freed from there down.
        while self.0.pop_if(|word| *word == 0).is_some() {}
    }

    /// Behind the last bit that is set.
    pub(crate) fn end(&self) -> u64 {
        let last = self.0.iter().rposition(|word| *word != 0);
        last.map_or(0, |word| {
            let bits = self.0.get(word).map_or(0, |bits| 64 - u64::from(bits.leading_zeros()));
            word as u64 * 64 + bits
        })
    }

    /// The first stretch at or behind `from` of bits that are not set, which ends before one that is.
    pub(crate) fn gap(&self, from: u64) -> Option<Range<u64>> {
        let start = self.next(from, false)?;
        Some(start..self.next(start, true)?)
    }

    /// The first bit at or behind `from` that is `set` or not; none behind the last word.
    fn next(&self, from: u64, set: bool) -> Option<u64> {
        let first = (from / 64) as usize;
        self.0.iter().enumerate().skip(first).find_map(|(index, word)| {
            let word = if set { *word } else { !*word };
            let word = if index == first { word & (u64::MAX << (from % 64)) } else { word };
            (word != 0).then(|| index as u64 * 64 + u64::from(word.trailing_zeros()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_taken_once_and_gaps_found() {
        let mut bits = Bits::new(10);
        assert_eq!((bits.end(), bits.gap(0)), (0, None));
        assert!(bits.take(0..3) && bits.take(5..70) && bits.take(128..129) && bits.take(300..428));
        assert!(!bits.take(2..4), "2 was taken");
        assert!(!bits.take(0..1000) && bits.take(1000..1001));
        let mut bits = Bits::new(0);
        for range in [0..3, 5..70, 128..129, 300..428] {
            assert!(bits.take(range));
        }
        let mut gaps = Vec::new();
        let mut from = 0;
        while let Some(gap) = bits.gap(from) {
            from = gap.end;
            gaps.push(gap);
        }
        assert_eq!(gaps, [3..5, 70..128, 129..300]);
        assert_eq!(bits.end(), 428);
        bits.free(60..200);
        bits.free(427..428);
        assert_eq!((bits.gap(50), bits.end()), (Some(60..300), 427));
        bits.free(300..5000);
        assert_eq!((bits.gap(50), bits.end()), (None, 60));
        assert!(bits.take(300..428));
        assert!(bits.take(MOST - 1..MOST) && !bits.take(MOST - 1..MOST));
        assert_eq!(bits.gap(428), Some(428..MOST - 1));
    }
}
