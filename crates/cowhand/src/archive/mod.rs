//! Backup archives: several disks in one file, packed or not, read and written from front to back, and at random.

pub(crate) mod content;
mod digest;
pub(crate) mod disk;
mod extract;
mod input;
mod listed;
mod map;
mod names;
mod pace;
pub(crate) mod part;
mod pump;
mod tally;
mod unpacked;

pub use self::digest::{Differing, Digester, Digests};
pub use self::disk::Indexing;
pub use self::extract::{Extract, Extracted, ExtractedDisk, ExtractedFile, Onlooker, Ranges, extract};
pub use self::listed::{Listed, listed};
pub use self::map::{MapLine, MapTarget};
pub use self::tally::Tally;

/// An archive's id as people write it.
pub(crate) fn uuid_text(id: &[u8; 16]) -> String {
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default().to_owned();
    [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-")
}
