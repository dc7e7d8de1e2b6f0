//! What is asked of the file system for a new file, whatever stands in it.

use super::FileStorage;
use crate::{Error, OptionKind, OptionSpec, Options, Result};

/// The options of the file that a new image stands in, in QEMU's order. A format whose table has one of these names has
/// it for its own.
pub const FILE_OPTIONS: &[OptionSpec] = &[
    OptionSpec::new("nocow", OptionKind::Flag, "Turn off copy-on-write (valid only on btrfs)").of_file(),
    OptionSpec::new(
        "preallocation",
        OptionKind::Choice(&["off", "falloc", "full"]),
        "Preallocation mode (allowed values: off, falloc, full)",
    )
    .of_file(),
    OptionSpec::new(
        "extent_size_hint",
        OptionKind::Size,
        "Extent size hint for the image file, 0 to disable",
    )
    .of_file(),
];

/// How a new file is to be kept. No file system promises to follow these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileHints {
    /// The file's blocks are written in place, on a file system that would copy them.
    pub nocow: bool,
    /// Bytes that extents are to come in; 0: no matter. It is not passed on: what is written here comes in large pieces.
    pub extent_size: u64,
}

impl FileHints {
    /// Takes the hints out of `options`. Errors: a value that is none.
    pub fn take(options: &mut Vec<(String, String)>) -> Result<FileHints> {
        let is_hint = |(name, _): &(String, String)| name == "nocow" || name == "extent_size_hint";
        let hints: Vec<_> = options.extract_if(.., |option| is_hint(option)).collect();
        let hints = Options::check(FILE_OPTIONS, &hints)?;
        Ok(FileHints {
            nocow: hints.flag("nocow").unwrap_or(false),
            extent_size: hints.size("extent_size_hint").unwrap_or(0),
        })
    }

    /// Asks for them, while the file is empty. Errors: a size that no file system can be told.
    pub fn apply(&self, file: &FileStorage) -> Result<()> {
        if self.extent_size > u32::MAX.into() {
            return Err(Error::invalid("Extent size hint is too large"));
        }
        if self.nocow {
            file.avoid_copies();
        }
        Ok(())
    }
}
