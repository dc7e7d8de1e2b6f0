//! Persistent dirty bitmaps: which parts of the disk were written since a backup.

use std::ops::Range;

use crate::Result;

/// A dirty bitmap, as a list shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Guest bytes that one bit stands for, a power of two.
    pub granularity: u64,
    /// Writes are recorded (qcow2's `auto` flag).
    pub enabled: bool,
    /// It was not saved when the image was last written, so what it says cannot be trusted (qcow2's `in_use` flag).
    pub inconsistent: bool,
}

/// Is handed ranges of guest bytes, one after the other.
pub type SeeRange<'a> = dyn FnMut(Range<u64>) -> Result<()> + 'a;

/// An optional ability of a layer: persistent dirty bitmaps. Everything but reading needs a writable layer; what is
/// changed is durable when the call returns. A bitmap that is inconsistent can be listed and removed, and nothing else.
pub trait Bitmaps {
    /// All bitmaps in the file's order.
    fn list(&self) -> Result<Vec<BitmapInfo>>;
    /// Makes an empty one. `granularity`: a power of two in bytes; `None`: the format's choice.
    fn add(&self, name: &str, granularity: Option<u64>, enabled: bool) -> Result<()>;
    /// Takes one away.
    fn remove(&self, name: &str) -> Result<()>;
    /// Nothing is dirty any more.
    fn clear(&self, name: &str) -> Result<()>;
    /// Records writes from here on, or no longer.
    fn enable(&self, name: &str, enabled: bool) -> Result<()>;
    /// Calls `see` with the dirty ranges of guest bytes, ascending, whole granules but for the disk's end.
    fn dirty(&self, name: &str, see: &mut SeeRange<'_>) -> Result<()>;
    /// Marks all ranges that `ranges` hands to its argument as dirty; all of them or, on an error, none.
    fn mark(&self, name: &str, ranges: &mut dyn FnMut(&mut SeeRange<'_>) -> Result<()>) -> Result<()>;
}
