//! Random operations on a disk, and the stamped bytes they write.

use std::ops::Range;

use super::Rng;
use crate::Erase;

/// A stamp's unit, in bytes.
pub(super) const SECTOR: u64 = 512;

/// One operation on a layer or an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes stamped bytes.
    Write {
        /// Guest offset.
        at: u64,
        /// Bytes.
        len: u64,
    },
    /// Writes whole units compressed.
    Compressed {
        /// Guest offset.
        at: u64,
        /// Bytes.
        len: u64,
    },
    /// Takes bytes away.
    Erase {
        /// Guest offset.
        at: u64,
        /// Bytes.
        len: u64,
        /// How.
        how: Erase,
    },
    /// Changes the disk's size.
    Resize {
        /// Guest bytes.
        size: u64,
    },
    /// Makes an internal snapshot.
    Snapshot,
    /// Goes back to one of the snapshots there are.
    Apply {
        /// Which, counted round and round.
        nth: usize,
    },
    /// Takes one of the snapshots away.
    Delete {
        /// Which, counted round and round.
        nth: usize,
    },
    /// Sets or takes the mark that hides an image.
    Hide {
        /// Whether it is hidden.
        hidden: bool,
    },
    /// Names another parent; what lies below stays what it is.
    Rename {
        /// The new name's length.
        len: usize,
    },
    /// Takes all guest data away. Passed over while there are snapshots.
    Clear,
    /// Gives back the space in the file that nothing uses.
    Compact,
    /// Makes a bitmap that records what is written, or empties the one there is.
    Bitmap,
    /// Takes the bitmap away.
    NoBitmap,
    /// A durable barrier.
    Flush,
    /// Closes and opens again.
    Reopen,
}

impl Op {
    /// The guest bytes it works on.
    pub(super) fn range(&self) -> Option<Range<u64>> {
        match *self {
            Op::Write { at, len } | Op::Compressed { at, len } | Op::Erase { at, len, .. } => {
                Some(at..at + len)
            }
            _ => None,
        }
    }
}

/// What random operations look like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Guest bytes of the disk.
    pub size: u64,
    /// The allocation unit (cluster, block) in bytes: operations begin and end near its borders. Compressed writes are
    /// whole units.
    pub unit: u64,
    /// Offsets and lengths are multiples of this: 1, or 512. Crash and fault tests always use 512.
    pub align: u64,
    /// How many operations.
    pub ops: usize,
    /// The longest write, in bytes. Erasing takes up to two units whatever this says.
    pub max_len: u64,
    /// How many units of the disk are used at all: few, so that operations meet. Its last unit is one of them.
    pub spots: usize,
    /// Erases.
    pub erase: bool,
    /// Compressed writes.
    pub compressed: bool,
    /// Changes of the disk's size, never above twice the size.
    pub resize: bool,
    /// Internal snapshots: made, gone back to, taken away.
    pub snapshots: bool,
    /// A bitmap of what was written: made, emptied, taken away.
    pub bitmaps: bool,
    /// What stands in the header alone: the mark that hides it, the parent's name, all data taken away at once.
    pub header: bool,
    /// The file made as short as it can be.
    pub compact: bool,
    /// Closing and opening again.
    pub reopen: bool,
}

impl Shape {
    /// What suits most: 60 operations on six units, writes, erasing, flushing and opening again, offsets by the byte.
    pub fn new(size: u64, unit: u64) -> Self {
        Shape {
            size,
            unit,
            align: 1,
            ops: 60,
            max_len: (2 * unit).min(65536),
            spots: 6,
            erase: true,
            compressed: false,
            resize: false,
            snapshots: false,
            bitmaps: false,
            header: false,
            compact: false,
            reopen: true,
        }
    }

    /// The operations of one seed.
    pub fn script(&self, seed: u64) -> Vec<Op> {
        let mut rng = Rng::new(seed);
        let units = self.size.div_ceil(self.unit).max(1);
        let mut spots: Vec<u64> = (1..self.spots).map(|_| rng.below(units)).collect();
        spots.push(units - 1);
        // A neighbour: what crosses the border between two units meets what is in the second.
        spots.push((spots[0] + 1).min(units - 1));
        let mut size = self.size;
        (0..self.ops).map(|_| self.op(&mut rng, &spots, &mut size)).collect()
    }

    fn op(&self, rng: &mut Rng, spots: &[u64], size: &mut u64) -> Op {
        let start = (rng.pick(spots) * self.unit).min(size.saturating_sub(1) / self.unit * self.unit);
        match rng.below(20) {
            0..=1 => Op::Flush,
            2 if self.reopen => Op::Reopen,
            3 if self.resize => {
                *size = (self.size / 2 + rng.below(self.size + self.size / 2)).next_multiple_of(SECTOR);
                Op::Resize { size: *size }
            }
            11 if self.snapshots => match rng.below(5) {
                0..=2 => Op::Snapshot,
                3 => Op::Apply { nth: rng.below(6) as usize },
                _ => Op::Delete { nth: rng.below(6) as usize },
            },
            12 if self.header => match rng.below(5) {
                0..=1 => Op::Hide { hidden: rng.chance(1, 2) },
                2..=3 => Op::Rename { len: 1 + rng.below(40) as usize },
                _ => Op::Clear,
            },
            13 if self.bitmaps && rng.chance(1, 2) => {
                if rng.chance(1, 4) {
                    Op::NoBitmap
                } else {
                    Op::Bitmap
                }
            }
            14 if self.compact => Op::Compact,
            // Where the disk ends is not known here if a snapshot may bring back another size.
            4..=5 if self.compressed && (start + self.unit <= *size || !self.snapshots) => {
                Op::Compressed { at: start, len: self.unit.min(*size - start) }
            }
            6..=9 if self.erase => {
                let how = *rng.pick(&[Erase::Zero, Erase::Free, Erase::Reveal]);
                if rng.chance(2, 3) {
                    let len = self.unit * (1 + rng.below(2));
                    Op::Erase { at: start, len: len.min(*size - start), how }
                } else {
                    let (at, len) = self.range(rng, start, 2 * self.unit, *size);
                    Op::Erase { at, len, how }
                }
            }
            10 if self.max_len >= self.unit => Op::Write { at: start, len: self.unit.min(*size - start) },
            _ => {
                let (at, len) = self.range(rng, start, self.max_len, *size);
                Op::Write { at, len }
            }
        }
    }

    /// A range that begins in the unit at `start`, not empty.
    fn range(&self, rng: &mut Rng, start: u64, max: u64, size: u64) -> (u64, u64) {
        let within = self.unit.min(size - start);
        let at = start + rng.below(within) / self.align * self.align;
        // Short ones most of the time: what lies around them is what goes wrong.
        let max = if rng.chance(1, 2) { max.min(2048) } else { max };
        let len = (1 + rng.below(max)).next_multiple_of(self.align).min(size - at);
        (at, len)
    }
}

const MAGIC: u64 = 0xc0c0 << 48;

/// Keeps the bytes of small numbers from being zero: what was zeroed by mistake must be seen.
const MASK: u128 = 0x9d3b_75e5_a6c7_51e3_2f8b_6a97_d4b9_5c6f;

/// Fills `buf` with the stamps of the sectors from guest offset `at` on: in every 16 bytes the sector's number and
/// `version`, which must not be 0. Never zero, and it compresses well.
pub fn fill(buf: &mut [u8], at: u64, version: u64) {
    let mut done = 0;
    while done < buf.len() {
        let here = at + done as u64;
        let stamp = stamp(here / SECTOR, version);
        let offset = (here % 16) as usize;
        let n = (16 - offset).min(buf.len() - done);
        buf[done..done + n].copy_from_slice(&stamp[offset..offset + n]);
        done += n;
    }
}

fn stamp(sector: u64, version: u64) -> [u8; 16] {
    let words = u128::from(MAGIC | sector) | u128::from(version) << 64;
    (words ^ MASK).to_le_bytes()
}

/// The sector number and version that all of `bytes` (whole sectors' worth, 16-aligned) carry.
pub(super) fn stamp_of(bytes: &[u8]) -> Option<(u64, u64)> {
    let first: [u8; 16] = bytes.get(..16)?.try_into().ok()?;
    let words = u128::from_le_bytes(first) ^ MASK;
    let sector = words as u64;
    (sector >> 48 == MAGIC >> 48 && bytes.chunks(16).all(|chunk| chunk == first))
        .then_some((sector & !MAGIC, (words >> 64) as u64))
}

/// What a sector holds, in words: zeros, the stamp of a sector and version, a mix, something else.
pub fn describe(sector: &[u8]) -> String {
    if crate::is_zero(sector) {
        return "zeros".into();
    }
    if let Some((number, version)) = stamp_of(sector) {
        return format!("version {version} of sector {number}");
    }
    let mut parts: Vec<String> = Vec::new();
    for chunk in sector.chunks(16) {
        let part = match stamp_of(chunk) {
            _ if crate::is_zero(chunk) => "zeros".into(),
            Some((number, version)) => format!("version {version} of sector {number}"),
            None => "other bytes".into(),
        };
        if parts.last() != Some(&part) {
            parts.push(part);
        }
    }
    format!("a mix ({})", parts.join(", "))
}
