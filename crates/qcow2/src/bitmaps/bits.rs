//! A bitmap in memory: made piece by piece where something is set, and set by many threads at once.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use cowhand_core::{Result, SeeRange};

/// Bits of a piece: 4 KiB of memory.
const PIECE: u64 = 1 << 15;
const WORDS: usize = PIECE as usize / 64;

#[derive(Debug, Default)]
struct Piece {
    /// Every bit is set, whatever `words` says.
    full: AtomicBool,
    /// A bit was set that was not set when the bitmap was loaded.
    changed: AtomicBool,
    words: OnceLock<Box<[AtomicU64]>>,
}

/// One bit for each granule of a disk. Nothing is ever unset; who clears a bitmap makes a new one.
#[derive(Debug)]
pub(crate) struct Bits {
    granularity_bits: u32,
    /// Guest bytes.
    size: u64,
    pieces: Vec<Piece>,
}

/// What stands in a part of a bitmap.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Zeros,
    Ones,
    Mixed(Vec<u8>),
}

fn within(start: u64, end: u64) -> u64 {
    let ones = u64::MAX >> (64 - (end - start));
    ones << start
}

impl Piece {
    fn words(&self) -> &[AtomicU64] {
        self.words.get_or_init(|| (0..WORDS).map(|_| AtomicU64::new(0)).collect())
    }

    fn is_full(&self) -> bool {
        self.full.load(Relaxed)
    }

    /// Sets bits of this piece.
    fn set(&self, range: Range<u64>) {
        if self.is_full() {
            return;
        }
        if range == (0..PIECE) {
            self.full.store(true, Relaxed);
            self.changed.store(true, Relaxed);
            return;
        }
        let words = self.words();
        let mut at = range.start;
        while at < range.end {
            let start = at % 64;
            let end = (range.end - (at - start)).min(64);
            if let Some(word) = words.get((at / 64) as usize) {
                let mask = within(start, end);
                // Most writes go where a write went before: then this line of memory need not be taken from others.
                if word.load(Relaxed) & mask != mask {
                    word.fetch_or(mask, Relaxed);
                    self.changed.store(true, Relaxed);
                }
            }
            at += end - start;
        }
    }

    fn word(&self, index: usize) -> u64 {
        if self.is_full() {
            return u64::MAX;
        }
        self.words.get().and_then(|words| words.get(index)).map_or(0, |word| word.load(Relaxed))
    }

    fn is_empty(&self) -> bool {
        !self.is_full() && self.words.get().is_none()
    }
}

impl Bits {
    /// Nothing is set. The caller has seen to it that the bitmap is not too large to be kept.
    pub(crate) fn new(size: u64, granularity_bits: u32) -> Bits {
        let pieces = size.div_ceil(1 << granularity_bits).div_ceil(PIECE);
        Bits { granularity_bits, size, pieces: (0..pieces).map(|_| Piece::default()).collect() }
    }

    /// Guest bytes of the disk.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    fn len(&self) -> u64 {
        self.size.div_ceil(1 << self.granularity_bits)
    }

    /// Sets the bits of all granules that these guest bytes touch.
    pub(crate) fn mark(&self, bytes: Range<u64>) {
        let end = bytes.end.min(self.size);
        if bytes.start < end {
            self.set(bytes.start >> self.granularity_bits..((end - 1) >> self.granularity_bits) + 1);
        }
    }

    /// Sets bits.
    pub(crate) fn set(&self, range: Range<u64>) {
        let mut at = range.start;
        let len = self.len();
        let end = range.end.min(len);
        while at < end {
            let Some(piece) = self.pieces.get((at / PIECE) as usize) else { return };
            let start = at % PIECE;
            let to = (end - (at - start)).min(PIECE);
            // Past the disk's end there is nothing that could stay unset.
            let to = if at - start + to == len { PIECE } else { to };
            piece.set(start..to);
            at += PIECE - start;
        }
    }

    /// Takes a bitmap's stored bytes, whose first is that of bit `first`, a multiple of 64.
    pub(crate) fn load(&self, first: u64, bytes: &[u8]) {
        for (number, raw) in (first / 64..(self.len().div_ceil(64))).zip(bytes.as_chunks::<8>().0) {
            // What is stored past the disk's end says nothing.
            let word = u64::from_le_bytes(*raw) & within(0, (self.len() - number * 64).min(64));
            let index = number as usize % WORDS;
            let piece = self.pieces.get(number as usize / WORDS);
            if let Some(piece) = piece.filter(|_| word != 0)
                && let Some(place) = piece.words().get(index)
            {
                place.fetch_or(word, Relaxed);
            }
        }
    }

    /// What is set now is what is stored.
    pub(crate) fn loaded(&self) {
        self.pieces.iter().for_each(|piece| piece.changed.store(false, Relaxed));
    }

    /// Nothing of what is stored is to stay.
    pub(crate) fn all_changed(&self) {
        self.pieces.iter().for_each(|piece| piece.changed.store(true, Relaxed));
    }

    /// Whether bits in `range` were set since it was loaded; some beside them count too.
    pub(crate) fn is_changed(&self, range: Range<u64>) -> bool {
        let pieces =
            (range.start / PIECE) as usize..(range.end.div_ceil(PIECE) as usize).min(self.pieces.len());
        self.pieces.get(pieces).unwrap_or_default().iter().any(|piece| piece.changed.load(Relaxed))
    }

    /// Sets what is set in `other`, which is of the same disk and granularity.
    pub(crate) fn merge(&self, other: &Bits) -> Result<()> {
        other.ranges(&mut |range| {
            self.mark(range);
            Ok(())
        })
    }

    /// What is to be stored for the bits in `range`, whose start is a multiple of 64 and whose length one of 4096.
    pub(crate) fn content(&self, range: Range<u64>) -> Content {
        let (mut any, mut all) = (false, true);
        let len = self.len();
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize / 8);
        for at in range.step_by(64) {
            let word = self
                .pieces
                .get((at / PIECE) as usize)
                .map_or(0, |piece| piece.word((at % PIECE) as usize / 64));
            let there = if at >= len { 0 } else { within(0, (len - at).min(64)) };
            any |= word & there != 0;
            all &= word & there == there;
            bytes.extend_from_slice(&(word & there).to_le_bytes());
        }
        match (any, all) {
            (false, _) => Content::Zeros,
            (true, true) => Content::Ones,
            (true, false) => Content::Mixed(bytes),
        }
    }

    /// Hands out the ranges of guest bytes whose bits are set, ascending, none next to another.
    pub(crate) fn ranges(&self, see: &mut SeeRange<'_>) -> Result<()> {
        let mut open: Option<Range<u64>> = None;
        let mut add = |run: Range<u64>| match &mut open {
            Some(open) if open.end == run.start => {
                open.end = run.end;
                Ok(())
            }
            _ => match open.replace(run) {
                Some(done) => see(self.bytes(done)),
                None => Ok(()),
            },
        };
        for (number, piece) in (0u64..).zip(&self.pieces) {
            let base = number * PIECE;
            if piece.is_full() {
                add(base..base + PIECE)?;
            } else if !piece.is_empty() {
                for index in 0..WORDS {
                    let mut word = piece.word(index);
                    let mut at = base + 64 * index as u64;
                    while word != 0 {
                        let skip = word.trailing_zeros();
                        word >>= skip;
                        at += u64::from(skip);
                        let ones = word.trailing_ones();
                        add(at..at + u64::from(ones))?;
                        word = word.checked_shr(ones).unwrap_or(0);
                        at += u64::from(ones);
                    }
                }
            }
        }
        match open {
            Some(last) if last.start < self.len() => see(self.bytes(last)),
            _ => Ok(()),
        }
    }

    fn bytes(&self, bits: Range<u64>) -> Range<u64> {
        let byte = |bit: u64| bit.checked_shl(self.granularity_bits).unwrap_or(u64::MAX).min(self.size);
        byte(bits.start)..byte(bits.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(bits: &Bits) -> Vec<Range<u64>> {
        let mut all = Vec::new();
        bits.ranges(&mut |range| {
            all.push(range);
            Ok(())
        })
        .unwrap();
        all
    }

    #[test]
    fn what_is_marked_is_handed_out_in_whole_granules() {
        let size = 5 * (PIECE << 9) + 100;
        let bits = Bits::new(size, 9);
        assert_eq!(set(&bits), []);
        bits.mark(1000..1001);
        bits.mark(1024..1024);
        bits.mark(1536..2000);
        assert_eq!(set(&bits), [512..1024, 1536..2048]);
        bits.mark(1024..1030);
        assert_eq!(set(&bits), vec![512..2048; 1]);
        // Over the border of pieces, a whole piece, and to the end of the disk and past it.
        let piece = PIECE << 9;
        bits.mark(piece - 1..3 * piece + 1);
        bits.mark(size - 1..u64::MAX);
        assert_eq!(set(&bits), [512..2048, piece - 512..3 * piece + 512, 5 * piece..size]);
        bits.mark(0..u64::MAX);
        assert_eq!(set(&bits), vec![0..size; 1]);
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let size = 2 * (PIECE << 16) + 3;
        let bits = Bits::new(size, 16);
        assert_eq!(bits.content(0..4096), Content::Zeros);
        bits.mark(0..4096 << 16);
        bits.mark(size - 1..size);
        assert_eq!(bits.content(0..4096), Content::Ones);
        assert_eq!(bits.content(4096..8192), Content::Zeros);
        let last = 2 * PIECE..2 * PIECE + 4096;
        // The bit past the end would be another's word; only bits of the disk count.
        assert_eq!(bits.content(last.clone()), Content::Ones);
        bits.mark(9 << 16..20_000 << 16);
        let Content::Mixed(bytes) = bits.content(19_968..19_968 + 4096) else { panic!("mixed") };
        assert_eq!(bytes[..5], [0xff, 0xff, 0xff, 0xff, 0]);
        let again = Bits::new(size, 16);
        again.set(0..4096);
        for first in (4096..2 * PIECE).step_by(4096) {
            match bits.content(first..first + 4096) {
                Content::Zeros => {}
                Content::Ones => again.set(first..first + 4096),
                Content::Mixed(bytes) => again.load(first, &bytes),
            }
        }
        again.set(last);
        assert_eq!(set(&again), set(&bits));
        again.loaded();
        assert!(!again.is_changed(0..u64::MAX));
        again.mark(5..6);
        assert!(!again.is_changed(0..u64::MAX));
        again.mark(size / 2 + (9 << 16)..size / 2 + (10 << 16));
        assert_eq!((again.is_changed(0..4096), again.is_changed(PIECE..PIECE + 64)), (false, true));
        again.merge(&bits).unwrap();
    }

    #[test]
    fn stored_bits_past_the_end_are_not_there() {
        let bits = Bits::new(10 << 9, 9);
        bits.load(0, &[0xff; 512]);
        assert_eq!(set(&bits), vec![0..10 << 9; 1]);
        let one = Bits::new(64 << 9, 9);
        one.load(0, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(set(&one), []);
    }
}
