//! The images that a command line names, and how they are opened.

use std::ffi::OsStr;
use std::path::PathBuf;

use cowhand::{Lock, Open, Policy};

use super::{Failure, text};

/// One image as the caller names it.
pub(super) struct Source {
    /// For messages: the word as it stands.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) open: Open,
}

/// What the verbs' flags say of how images are opened.
#[derive(Default)]
pub(super) struct Opening {
    pub(super) format: Option<String>,
    pub(super) image_opts: bool,
    pub(super) force_share: bool,
}

impl Opening {
    /// The image that `word` names. What its file names is followed, as callers of this tool expect: local files only.
    pub(super) fn source(&self, word: &OsStr) -> Result<Source, Failure> {
        Ok(Source {
            name: text(word),
            path: word.into(),
            open: Open {
                format: self.format.clone(),
                lock: if self.force_share { Lock::None } else { Lock::Default },
                policy: Policy::Local,
                ..Open::default()
            },
        })
    }
}
