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
