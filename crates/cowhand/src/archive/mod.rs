//! Backup archives: several disks in one file, packed or not, read and written from front to back, and at random.

pub(crate) mod content;
mod create;
mod digest;
pub(crate) mod disk;
mod extract;
mod feed;
mod front;
mod input;
mod kept;
mod listed;
mod map;
pub(crate) mod names;
mod naming;
mod pace;
pub(crate) mod part;
mod pump;
mod ranges;
mod rescue;
mod tally;
mod unpacked;
mod verify;

pub use self::create::{
    ArchiveCreated, ArchiveTo, CreateArchive, DiskArchived, DiskToArchive, create_archive,
};
pub use self::digest::{Differing, Digester, Digests};
pub use self::disk::Indexing;
pub use self::extract::{Extract, Extracted, ExtractedDisk, ExtractedFile, Onlooker, extract};
pub use self::front::{Front, front};
pub use self::listed::{Listed, listed};
pub use self::map::{MapLine, MapTarget};
pub use self::naming::{Mapped, WallClock, backup_name, check_backup_name};
pub use self::ranges::Ranges;
pub use self::tally::Tally;
pub use self::verify::{VerifiedArchive, VerifiedDisk, VerifyArchive, verify_archive};
