//! The safety gate's judge of one format: asks for the few ranges of a content it has to see, and judges at the end.

use std::ops::Range;

/// The longest range a judge may ask for at a time, in bytes.
pub const MAX_WINDOW: u64 = 1 << 20;

/// How much of a content's end every judge is shown, in bytes.
pub const TAIL: usize = 1536;

/// Whose rules a judge applies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compat {
    /// Our own: whatever may do harm, or is not what it says.
    #[default]
    Strict,
    /// Those of oslo.utils' `format_inspector`, where a deployment depends on its very verdicts.
    Oslo,
}

/// Where a format's signature stands in a content. It decides whether two formats may stand in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the front, where every program that probes looks first: a container, and nothing else may be there.
    Front,
    /// Behind the guest's bytes, which start at offset 0 and may hold anything: a fixed VHD.
    End,
    /// In what a raw disk's guest wrote: a partition table, a file system. They go together.
    Guest,
}

/// Something that makes an image unsafe to take from a stranger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// A stable name for programs (`backing_file`, `unknown_features`).
    pub check: &'static str,
    /// What a person should know.
    pub reason: String,
}

/// What a judge found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where the signature stands.
    pub place: Place,
    /// Guest bytes, where the content tells.
    pub virtual_size: Option<u64>,
    /// Why this image should not be used as it is. Empty: nothing was found.
    pub problems: Vec<Problem>,
    /// It ends before what had to be seen, so it was not judged.
    pub incomplete: bool,
}

impl Finding {
    /// The format is there; nothing more is known of it.
    pub fn new(place: Place) -> Self {
        Finding { place, virtual_size: None, problems: Vec::new(), incomplete: false }
    }

    /// Adds a problem.
    pub fn problem(&mut self, check: &'static str, reason: impl Into<String>) {
        self.problems.push(Problem { check, reason: reason.into() });
    }
}

/// How a content ended.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    /// Its length in bytes.
    pub len: u64,
    /// Its last [`TAIL`] bytes, or all there are.
    pub tail: &'a [u8],
}

/// Judges one format of one content, which is seen once, from front to end. Who drives it collects the range that it
/// wants (so that the verdict does not depend on how the content is cut into chunks) and shows it whole.
pub trait Inspector: Send {
    /// The next range it has to see, at most [`MAX_WINDOW`] long; it starts where the last one ended, or later.
    /// `None`: nothing but the end.
    fn wants(&self) -> Option<Range<u64>>;

    /// The bytes of the range it wanted. Fewer, and possibly none: the content ends there, or the range had passed,
    /// and nothing more will be shown.
    fn see(&mut self, bytes: &[u8]);

    /// The content ended. `None`: it is not this format.
    fn finish(&mut self, end: &Ending<'_>, compat: Compat) -> Option<Finding>;
}
