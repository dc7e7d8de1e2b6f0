//! L1 and L2 entries: 64-bit words in the file, the mapping of one cluster behind them.

use crate::geometry::Geometry;

/// The entry's target has exactly one reference, so it may be written in place.
pub(crate) const COPIED: u64 = 1 << 63;
pub(crate) const COMPRESSED: u64 = 1 << 62;
pub(crate) const ZERO: u64 = 1;
/// Bits of an L1 or L2 entry that hold an offset in the file.
pub(crate) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Bits of an L1 entry, and of a standard L2 entry, that must be zero.
pub(crate) const L1_RESERVED: u64 = !(COPIED | OFFSET);
pub(crate) const L2_RESERVED: u64 = !(COPIED | COMPRESSED | OFFSET | ZERO);

/// The words of one L2 entry; the second is 0 without extended L2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Words(pub(crate) u64, pub(crate) u64);

/// Where the bytes of a compressed cluster stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Packed {
    /// Offset in the image file, any byte.
    pub(crate) at: u64,
    /// Bytes up to the end of the last sector that belongs to it.
    pub(crate) len: u64,
}

/// What an L2 entry says of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Compressed(Packed),
    Plain(Plain),
}

/// A cluster that is not compressed. Without extended L2 it has one subcluster: itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plain {
    /// The host cluster, where there is one.
    pub(crate) host: Option<u64>,
    /// The host cluster has this one reference.
    pub(crate) copied: bool,
    /// Subclusters whose bytes stand in the host cluster.
    pub(crate) data: u32,
    /// Subclusters that read zero. Never one that is in `data`.
    pub(crate) zero: u32,
}

/// Why an L2 entry makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// The offset is no cluster's start.
    Unaligned(u64),
    /// A zero cluster in a version 2 image.
    ZeroInV2,
    /// Extended L2: a subcluster is both allocated and zero, or allocated without a cluster.
    Bitmap,
    /// A compressed cluster where data stands in another file.
    CompressedInDataFile,
}

/// The rules of one image that entries are read by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) geometry: Geometry,
    pub(crate) version: u32,
    pub(crate) data_file: bool,
    /// The data file is a valid raw image of the disk.
    pub(crate) raw_data: bool,
}

impl Rules {
    /// Reads an entry.
    pub(crate) fn decode(&self, words: Words) -> Result<Entry, Wrong> {
        let geometry = self.geometry;
        if words.0 & COMPRESSED != 0 {
            if self.data_file {
                return Err(Wrong::CompressedInDataFile);
            }
            let bits = geometry.compressed_offset_bits();
            let at = words.0 & ((1 << bits) - 1);
            let sectors = (words.0 >> bits) & ((1 << (62 - bits)) - 1);
            // The first sector is counted by the offset alone, the others by `sectors`.
            return Ok(Entry::Compressed(Packed { at, len: (sectors + 1) * 512 - at % 512 }));
        }
        let offset = words.0 & OFFSET;
        if geometry.in_cluster(offset) != 0 {
            return Err(Wrong::Unaligned(offset));
        }
        let copied = words.0 & COPIED != 0;
        // In a data file a cluster may stand at 0; only the COPIED bit tells it from none.
        let host = (offset != 0 || (self.data_file && copied)).then_some(offset);
        let (data, zero) = if geometry.extended() {
            let (data, zero) = (words.1 as u32, (words.1 >> 32) as u32);
            if data & zero != 0 || (data != 0 && host.is_none()) {
                return Err(Wrong::Bitmap);
            }
            (data, zero)
        } else if words.0 & ZERO != 0 {
            if self.version < 3 {
                return Err(Wrong::ZeroInV2);
            }
            (0, 1)
        } else {
            (u32::from(host.is_some()), 0)
        };
        Ok(Entry::Plain(Plain { host, copied: copied && host.is_some(), data, zero }))
    }

    /// The words that say `plain`.
    pub(crate) fn encode(&self, plain: Plain) -> Words {
        let first = plain.host.map_or(0, |host| host | if plain.copied { COPIED } else { 0 });
        if self.geometry.extended() {
            Words(first, u64::from(plain.zero) << 32 | u64::from(plain.data))
        } else {
            Words(first | u64::from(plain.zero & 1), 0)
        }
    }

    /// The words of a cluster of which `bytes` compressed bytes stand at `at`. `None`: the entry has no room for
    /// such an offset.
    pub(crate) fn encode_packed(&self, at: u64, bytes: u64) -> Option<Words> {
        let bits = self.geometry.compressed_offset_bits();
        let sectors = (at + bytes - 1) / 512 - at / 512;
        (at < 1 << bits).then_some(Words(COMPRESSED | sectors << bits | at, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(bits: u32, extended: bool) -> Rules {
        Rules { geometry: Geometry::new(bits, extended, 4), version: 3, data_file: false, raw_data: false }
    }

    #[test]
    fn plain_entries_survive() {
        for rules in [rules(16, false), rules(16, true)] {
            let all = rules.geometry.all_subclusters();
            for plain in [
                Plain::default(),
                Plain { host: Some(0x50000), copied: true, data: all, zero: 0 },
                Plain { host: Some(0x50000), copied: false, data: 0, zero: all },
                Plain { host: None, copied: false, data: 0, zero: all },
            ] {
                assert_eq!(rules.decode(rules.encode(plain)), Ok(Entry::Plain(plain)));
            }
        }
    }

    #[test]
    fn compressed_entries_survive() {
        for bits in 9..=21 {
            let rules = rules(bits, false);
            for at in [1u64 << bits, (3 << bits) + 511, (3 << bits) + 512, (5 << bits) + 77] {
                for bytes in [1, 2, 511, 512, (1 << bits) - 1] {
                    let words = rules.encode_packed(at, bytes).unwrap();
                    let Ok(Entry::Compressed(packed)) = rules.decode(words) else { panic!() };
                    assert_eq!(packed.at, at);
                    assert!(packed.len >= bytes && packed.len < bytes + 512 && (at + packed.len) % 512 == 0);
                }
            }
            assert_eq!(rules.encode_packed(1 << rules.geometry.compressed_offset_bits(), 5), None);
        }
    }

    #[test]
    fn nonsense_is_told() {
        let standard = rules(16, false);
        assert_eq!(standard.decode(Words(0x50200 | COPIED, 0)), Err(Wrong::Unaligned(0x50200)));
        assert_eq!(Rules { version: 2, ..standard }.decode(Words(1, 0)), Err(Wrong::ZeroInV2));
        let extended = rules(16, true);
        assert_eq!(extended.decode(Words(0x50000, 1 << 32 | 1)), Err(Wrong::Bitmap));
        assert_eq!(extended.decode(Words(0, 1)), Err(Wrong::Bitmap));
        let outside = Rules { data_file: true, ..standard };
        assert_eq!(outside.decode(Words(COMPRESSED, 0)), Err(Wrong::CompressedInDataFile));
        let Ok(Entry::Plain(first)) = outside.decode(Words(COPIED, 0)) else { panic!() };
        assert_eq!(first.host, Some(0));
    }
}
