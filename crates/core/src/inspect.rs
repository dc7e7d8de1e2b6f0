//! The safety gate's judge of one format: sees a content once, from front to end, and keeps little of it.

/// Something that makes an image unsafe to take from a stranger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// A stable name for programs (`backing_file`, `unknown_features`).
    pub check: &'static str,
    /// What a person should know.
    pub reason: String,
}

/// What a judge found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// Guest bytes, where the content tells.
    pub virtual_size: Option<u64>,
    /// Why this image should not be used as it is. Empty: nothing was found.
    pub problems: Vec<Problem>,
}

/// Sees a content in chunks of any size, in order and without gaps, and judges it at the end. It holds a bounded part
/// of it; all judges together hold at most 1.5 MiB.
pub trait Inspector: Send {
    /// The next bytes; `at` is their offset.
    fn feed(&mut self, at: u64, chunk: &[u8]);

    /// The content ended after `len` bytes. `None`: it is not this format.
    fn finish(&mut self, len: u64) -> Option<Finding>;
}
