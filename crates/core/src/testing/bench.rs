//! What all benches share: a failure, a source of chance, and ways to open what is under test.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::{Error, Folder, Image, Layer, Link, Result, Storage};

/// What a bench found wrong. Prints as the plain text, so that `unwrap` shows it readably.
pub struct Failure {
    text: String,
    /// It is an error that a layer answered, not something wrong that was seen.
    error: bool,
}

impl Failure {
    /// A failure that says this.
    pub fn new(text: impl Into<String>) -> Self {
        Failure { text: text.into(), error: false }
    }

    /// It is an error that a layer answered, not something wrong that was seen.
    pub(super) fn is_error(&self) -> bool {
        self.error
    }

    /// Puts a line before it: where it was found.
    #[must_use]
    pub fn during(self, what: impl fmt::Display) -> Self {
        Failure { text: format!("{what}: {}", self.text), ..self }
    }

    /// Puts a line behind it.
    #[must_use]
    pub fn with(self, more: impl fmt::Display) -> Self {
        Failure { text: format!("{}\n{more}", self.text), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure { text: format!("{error:?}"), error: true }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure { text: error.to_string(), error: true }
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Failure::new(text)
    }
}

/// Runs `f`; a panic in it is a failure that carries its text.
pub(super) fn no_panic<T>(f: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Failure::new(format!("panicked: {}", text.unwrap_or("(no text)"))))
    })
}

/// A small seeded source of chance (SplitMix64): the same seed, the same test, on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 where `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.any().checked_rem(end).unwrap_or(0)
    }

    /// True `n` times in `of`.
    pub fn chance(&mut self, n: u64, of: u64) -> bool {
        self.below(of) < n
    }

    /// One of these; there must be one.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// Makes or opens what is under test in a folder.
pub(super) type Opener<'a> = Box<dyn Fn(&Arc<dyn Folder>) -> Result<Arc<dyn Layer>> + Send + Sync + 'a>;

/// The name of the file of a format that has one file.
pub(super) const DISK: &str = "disk";

pub(super) fn makes<'a>(
    make: impl Fn(Arc<dyn Storage>) -> Result<Arc<dyn Layer>> + Send + Sync + 'a,
) -> Opener<'a> {
    Box::new(move |folder| make(folder.create_new(DISK)?))
}

pub(super) fn opens<'a>(
    open: impl Fn(Arc<dyn Storage>) -> Result<Arc<dyn Layer>> + Send + Sync + 'a,
) -> Opener<'a> {
    Box::new(move |folder| open(folder.open(DISK, true)?))
}

/// The layer, over its parent if it has one.
pub(super) fn image(top: Arc<dyn Layer>, parent: Option<&Arc<dyn Layer>>) -> Result<Image> {
    let mut links = vec![Link { layer: top, name: DISK.into(), format: "test" }];
    links.extend(parent.map(|layer| Link { layer: layer.clone(), name: "parent".into(), format: "test" }));
    Image::new(links)
}
