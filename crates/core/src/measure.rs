//! How large an image's file will be, before it is made.

use crate::Result;

/// The content that is to be stored: which guest bytes will be written.
pub trait Content {
    /// Guest bytes of the disk.
    fn size(&self) -> u64;

    /// The first run at or after `at` that will be written as data, as `(start, length)`; `None`: nothing follows.
    /// Runs ascend and do not touch.
    fn next(&self, at: u64) -> Result<Option<(u64, u64)>>;
}

/// What an image will need, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// The file's length with this content, rounded as `qemu-img measure` does.
    pub required: u64,
    /// The file's length once every guest byte was written.
    pub fully_allocated: u64,
    /// The file's length as `convert` makes it, to the byte.
    pub exact: u64,
}
