//! Bitmaps as they stand in a file, and as a layer shows them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use cowhand_core::{BitmapInfo, Bitmaps, Layer, Result};

/// A bitmap as it stands in a file, read here without the help of what is tested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) in_use: bool,
    pub(crate) auto: bool,
    pub(crate) granularity: u64,
    /// Numbers of the granules whose bits are set.
    pub(crate) dirty: BTreeSet<u64>,
}

pub(crate) fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

/// Where the bitmaps extension's data stands. `None`: there is none, or the autoclear bit says that it does not count.
pub(crate) fn extension(image: &[u8]) -> Option<usize> {
    let mut at = number(image, 100, 4) as usize;
    while number(image, at, 4) != 0 {
        if number(image, at, 4) == 0x2385_2875 {
            return (number(image, 88, 8) & 1 == 1).then_some(at + 8);
        }
        at += 8 + (number(image, at + 4, 4) as usize).next_multiple_of(8);
    }
    None
}

pub(crate) fn stored(image: &[u8]) -> Vec<Stored> {
    let Some(extension) = extension(image) else { return Vec::new() };
    let cluster = 1usize << number(image, 20, 4);
    let size = number(image, 24, 8);
    let mut at = number(image, extension + 16, 8) as usize;
    (0..number(image, extension, 4))
        .map(|_| {
            let (table, words) = (number(image, at, 8) as usize, number(image, at + 8, 4) as usize);
            let (flags, granularity) = (number(image, at + 12, 4), 1u64 << image[at + 17]);
            let (name_len, extra) = (number(image, at + 18, 2) as usize, number(image, at + 20, 4) as usize);
            let name = &image[at + 24 + extra..at + 24 + extra + name_len];
            at = (at + 24 + extra + name_len).next_multiple_of(8);
            let bit = |bit: &u64| {
                let (word, in_word) = (*bit as usize / (cluster * 8), *bit as usize % (cluster * 8));
                assert!(word < words);
                match number(image, table + 8 * word, 8) {
                    0 => false,
                    1 => true,
                    place => image[place as usize + in_word / 8] >> (in_word % 8) & 1 == 1,
                }
            };
            Stored {
                name: String::from_utf8(name.to_vec()).unwrap(),
                in_use: flags & 1 != 0,
                auto: flags & 2 != 0,
                granularity,
                dirty: (0..size.div_ceil(granularity)).filter(bit).collect(),
            }
        })
        .collect()
}

pub(crate) fn bitmaps(layer: &Arc<dyn Layer>) -> &dyn Bitmaps {
    layer.as_bitmaps().unwrap()
}

/// The same through the layer.
pub(crate) fn seen(layer: &Arc<dyn Layer>) -> Vec<Stored> {
    let all = bitmaps(layer);
    let dirty = |info: &BitmapInfo| {
        let mut dirty = BTreeSet::new();
        let mut last = None;
        let read = all.dirty(&info.name, &mut |range| {
            assert!(range.start < range.end && range.start.is_multiple_of(info.granularity), "{range:?}");
            assert!(range.end.is_multiple_of(info.granularity) || range.end == layer.size(), "{range:?}");
            assert!(last.is_none_or(|last| last < range.start), "ascending, none next to another");
            last = Some(range.end);
            dirty.extend(granules(&range, info.granularity));
            Ok(())
        });
        assert_eq!(read.is_err(), info.inconsistent);
        dirty
    };
    let list = all.list().unwrap();
    list.into_iter()
        .map(|info| Stored {
            dirty: dirty(&info),
            name: info.name,
            in_use: info.inconsistent,
            auto: info.enabled,
            granularity: info.granularity,
        })
        .collect()
}

pub(crate) fn granules(bytes: &Range<u64>, granularity: u64) -> Range<u64> {
    bytes.start / granularity..bytes.end.div_ceil(granularity)
}

pub(crate) fn mark(layer: &Arc<dyn Layer>, name: &str, ranges: &[Range<u64>]) -> Result<()> {
    bitmaps(layer).mark(name, &mut |see| ranges.iter().try_for_each(|range| see(range.clone())))
}

/// The dirty ranges of a bitmap.
pub(crate) fn seen_ranges(layer: &Arc<dyn Layer>, name: &str) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    let seen = bitmaps(layer).dirty(name, &mut |range| {
        ranges.push(range);
        Ok(())
    });
    seen.unwrap();
    ranges
}
