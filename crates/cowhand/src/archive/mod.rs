//! Backup archives: several disks in one file, packed or not, read and written from front to back, and at random.

pub(crate) mod content;
mod digest;
pub(crate) mod disk;
mod input;
mod listed;
pub(crate) mod part;
mod unpacked;

pub use self::digest::{Differing, Digester, Digests};
pub use self::disk::Indexing;
pub use self::listed::{Listed, listed};
