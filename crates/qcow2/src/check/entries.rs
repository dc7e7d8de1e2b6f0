//! What is wrong with one L2 entry, seen alone, and what it is to be instead.

use crate::entry::{COMPRESSED, COPIED, Entry, L2_RESERVED, OFFSET, Plain, Rules, Words, Wrong, ZERO};

/// The rules by which entries are judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judge {
    pub(super) rules: Rules,
    /// Bytes of the image file, and of the file that data clusters stand in.
    pub(super) len: u64,
    pub(super) data_len: u64,
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Reserved,
    CopiedNothing,
    CopiedAndCompressed,
    CompressedWithBitmap,
    CompressedInDataFile,
    ZeroInV2,
    BothBits,
    NoCluster,
    Unaligned(u64),
    PastEnd(u64),
    Metadata(u64),
    NotCopiedInDataFile,
}

impl Trouble {
    /// The guest could not read its bytes, or read what is not its own: they are gone.
    pub(super) fn loses(self) -> bool {
        matches!(
            self,
            Trouble::CompressedInDataFile
                | Trouble::NoCluster
                | Trouble::Unaligned(_)
                | Trouble::PastEnd(_)
                | Trouble::Metadata(_)
        )
    }

    /// No program writes such an entry.
    pub(super) fn is_nonsense(self) -> bool {
        !matches!(self, Trouble::PastEnd(_) | Trouble::Metadata(_) | Trouble::NotCopiedInDataFile)
    }

    pub(super) fn text(self, len: u64) -> String {
        match self {
            Trouble::Reserved => "has reserved bits set".to_owned(),
            Trouble::CopiedNothing => "says COPIED, and names no table".to_owned(),
            Trouble::CopiedAndCompressed => "says compressed and COPIED, which exclude each other".to_owned(),
            Trouble::CompressedWithBitmap => "says compressed, and has bits of subclusters".to_owned(),
            Trouble::CompressedInDataFile => {
                "says compressed, in an image with an external data file".to_owned()
            }
            Trouble::ZeroInV2 => "says zero, which a version 2 image cannot".to_owned(),
            Trouble::BothBits => "says of subclusters that they are both allocated and zero".to_owned(),
            Trouble::NoCluster => "says that subclusters are allocated, and has no cluster".to_owned(),
            Trouble::Unaligned(to) => format!("points at {to}, which is no cluster's start"),
            Trouble::PastEnd(to) => format!("points at {to}, past the end of the file ({len} bytes)"),
            Trouble::Metadata(to) => format!("points at {to}, where metadata stands"),
            Trouble::NotCopiedInDataFile => {
                "does not say COPIED, which every cluster in an external data file is".to_owned()
            }
        }
    }
}

impl Judge {
    /// The entry, if nothing is wrong with it alone.
    pub(super) fn fine(&self, words: Words) -> Option<Entry> {
        let entry = self.rules.decode(words).ok()?;
        let fine = match entry {
            Entry::Compressed(packed) => {
                let copied = words.0 & COPIED != 0 || words.1 != 0;
                !copied && packed.at < self.len && self.ends_inside(packed.at + packed.len)
            }
            Entry::Plain(plain) => {
                let end = if self.rules.data_file { self.data_len } else { self.len };
                // In a data file a zero cluster's place may never have been written.
                let inside =
                    plain.host.is_none_or(|host| host < end || (self.rules.data_file && plain.data == 0));
                words.0 & self.reserved() == 0 && inside
            }
        };
        fine.then_some(entry)
    }

    fn reserved(&self) -> u64 {
        if self.rules.geometry.extended() { L2_RESERVED | ZERO } else { L2_RESERVED }
    }

    /// A file may end inside its last cluster, and a compressed cluster's last sector inside the file's last cluster.
    fn ends_inside(&self, end: u64) -> bool {
        end.saturating_sub(self.len) < self.rules.geometry.cluster_size()
    }

    /// The entry as it shall be, and `trouble` told of everything that was wrong.
    pub(super) fn mend(&self, words: Words, mut trouble: impl FnMut(Trouble)) -> Words {
        let mut words = words;
        // Each step takes one trouble away and brings no new one.
        while let Some((wrong, better)) = self.first(words) {
            trouble(wrong);
            words = better;
        }
        words
    }

    fn first(&self, words: Words) -> Option<(Trouble, Words)> {
        if words.0 & COMPRESSED != 0 {
            if self.rules.data_file {
                return Some((Trouble::CompressedInDataFile, self.lost(words)));
            }
            if words.0 & COPIED != 0 {
                return Some((Trouble::CopiedAndCompressed, Words(words.0 & !COPIED, words.1)));
            }
            if words.1 != 0 {
                return Some((Trouble::CompressedWithBitmap, Words(words.0, 0)));
            }
            return match self.rules.decode(words) {
                Ok(Entry::Compressed(packed))
                    if packed.at >= self.len || !self.ends_inside(packed.at + packed.len) =>
                {
                    Some((Trouble::PastEnd(packed.at), self.lost(words)))
                }
                _ => None,
            };
        }
        if words.0 & self.reserved() != 0 {
            return Some((Trouble::Reserved, Words(words.0 & !self.reserved(), words.1)));
        }
        match self.rules.decode(words) {
            Err(Wrong::ZeroInV2) => Some((Trouble::ZeroInV2, Words(words.0 & !ZERO, 0))),
            Err(Wrong::Unaligned(to)) => Some((Trouble::Unaligned(to), self.lost(words))),
            Err(Wrong::Bitmap) => {
                let (data, zero) = (words.1 as u32, (words.1 >> 32) as u32);
                if words.0 & OFFSET == 0 && data & zero != data {
                    return Some((Trouble::NoCluster, self.lost(words)));
                }
                // Which of both bits is wrong cannot be told; zeros could not be taken back.
                let kept = if words.0 & OFFSET == 0 { zero } else { zero & !data };
                let data = if words.0 & OFFSET == 0 { 0 } else { data };
                Some((Trouble::BothBits, Words(words.0, u64::from(kept) << 32 | u64::from(data))))
            }
            Err(Wrong::CompressedInDataFile) => None,
            Ok(_) if self.fine(words).is_none() => {
                Some((Trouble::PastEnd(words.0 & OFFSET), self.lost(words)))
            }
            Ok(_) => None,
        }
    }

    /// An entry whose cluster is no good: what it held reads zero, never what lies below.
    pub(super) fn lost(&self, words: Words) -> Words {
        let geometry = self.rules.geometry;
        let compressed = words.0 & COMPRESSED != 0;
        if geometry.extended() {
            let (data, zero) = (words.1 as u32, (words.1 >> 32) as u32);
            let zero = if compressed { geometry.all_subclusters() } else { data | zero };
            Words(0, u64::from(zero) << 32)
        } else if self.rules.version < 3 {
            Words(0, 0)
        } else {
            Words(ZERO, 0)
        }
    }

    /// What an entry that is fine refers to in the image file: the first byte, and bytes.
    pub(super) fn target(&self, entry: Entry) -> Option<(u64, u64)> {
        match entry {
            Entry::Compressed(packed) => Some((packed.at, packed.len)),
            Entry::Plain(Plain { host: Some(host), .. }) if !self.rules.data_file => {
                Some((host, self.rules.geometry.cluster_size()))
            }
            Entry::Plain(_) => None,
        }
    }
}
