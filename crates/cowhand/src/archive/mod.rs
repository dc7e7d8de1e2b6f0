//! Backup archives: several disks in one file, packed or not, read and written from front to back.

mod digest;
mod input;

pub use self::digest::{Differing, Digester, Digests};
