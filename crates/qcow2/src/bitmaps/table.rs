//! A bitmap's table: which clusters hold its bits.

use std::collections::HashSet;
use std::ops::Range;

use cowhand_core::{Error, Result, Storage};

use crate::bitmaps::bits::Bits;
use crate::bitmaps::directory::Entry;
use crate::cache::read_to_end;
use crate::entry::OFFSET;
use crate::geometry::Geometry;

/// A word that says: all bits are set.
const ALL_ONES: u64 = 1;

/// What a word of a table says of the bits it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Zeros,
    Ones,
    /// They stand in the cluster at this offset.
    Stored(u64),
}

impl Word {
    /// Reads a word that stands at `at`.
    pub(crate) fn decode(raw: u64, geometry: Geometry, at: u64) -> Result<Word> {
        let offset = raw & OFFSET;
        let wrong = |message: String| Err(Error::corrupt("bitmap table", message).at(at));
        if raw & !(OFFSET | ALL_ONES) != 0 || (offset != 0 && raw & ALL_ONES != 0) {
            return wrong(format!("entry {raw:#018x} has bits that are unknown"));
        }
        match offset {
            0 if raw == ALL_ONES => Ok(Word::Ones),
            0 => Ok(Word::Zeros),
            _ if geometry.in_cluster(offset) != 0 => {
                wrong(format!("points at {offset}, which is no cluster's start"))
            }
            _ => Ok(Word::Stored(offset)),
        }
    }

    fn encode(self) -> u64 {
        match self {
            Word::Zeros => 0,
            Word::Ones => ALL_ONES,
            Word::Stored(offset) => offset,
        }
    }
}

/// Reads and judges a bitmap's table: at most 8 MiB.
pub(crate) fn read(file: &dyn Storage, geometry: Geometry, entry: &Entry) -> Result<Vec<Word>> {
    let len = file.len().map_err(|error| Error::io("cannot find the size", error))?;
    let bytes = u64::from(entry.table_len) * 8;
    if entry.table_at.checked_add(bytes).is_none_or(|end| end > len) {
        let message = format!("'{}': goes past the end of the file ({len} bytes)", entry.label());
        return Err(Error::corrupt("bitmap table", message).at(entry.table_at));
    }
    let mut raw = vec![0; bytes as usize];
    file.read_at(entry.table_at, &mut raw)
        .map_err(|error| Error::io("cannot read a bitmap table", error).at(entry.table_at))?;
    (entry.table_at..)
        .step_by(8)
        .zip(raw.as_chunks::<8>().0)
        .map(|(at, raw)| match Word::decode(u64::from_be_bytes(*raw), geometry, at)? {
            Word::Stored(offset) if offset >= len => {
                let message = format!("points at {offset}, past the end of the file ({len} bytes)");
                Err(Error::corrupt("bitmap table", message).at(at))
            }
            word => Ok(word),
        })
        .collect()
}

/// A table's bytes.
pub(crate) fn encode(words: &[Word]) -> Vec<u8> {
    words.iter().flat_map(|word| word.encode().to_be_bytes()).collect()
}

/// The bits that word `index` stands for.
pub(crate) fn bits_of(index: usize, geometry: Geometry) -> Range<u64> {
    let per_word = geometry.cluster_size() * 8;
    index as u64 * per_word..(index as u64 + 1) * per_word
}

/// Words that the bitmap of a disk of `size` bytes needs; there is always one.
pub(crate) fn len(entry: &Entry, size: u64, geometry: Geometry) -> u64 {
    entry.bits(size).div_ceil(geometry.cluster_size() * 8).max(1)
}

/// The bitmap of a disk of `size` bytes that the table says.
pub(crate) fn load(file: &dyn Storage, geometry: Geometry, entry: &Entry, size: u64) -> Result<Bits> {
    let words = read(file, geometry, entry)?;
    let bits = Bits::new(size, entry.granularity_bits());
    let mut bytes = vec![0; geometry.cluster_size() as usize];
    let needed = len(entry, size, geometry) as usize;
    let mut seen = HashSet::new();
    for (index, word) in words.into_iter().take(needed).enumerate() {
        let range = bits_of(index, geometry);
        match word {
            Word::Zeros => {}
            Word::Ones => bits.set(range),
            // So that a bitmap in memory is not larger than the file.
            Word::Stored(at) if !seen.insert(at) => {
                let message = format!("'{}': points at {at} twice", entry.label());
                return Err(Error::corrupt("bitmap table", message).at(entry.table_at));
            }
            Word::Stored(at) => {
                read_to_end(file, at, &mut bytes)
                    .map_err(|error| Error::io("cannot read a bitmap", error).at(at))?;
                bits.load(range.start, &bytes);
            }
        }
    }
    bits.loaded();
    Ok(bits)
}
