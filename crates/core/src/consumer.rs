//! The programs and services that images are made for, each with demands of its own.

use crate::{Result, Storage};

/// A program or service that takes images of a format, and what it asks of them.
#[derive(Clone, Copy, Debug)]
pub struct Consumer {
    /// The word for it (`azure`).
    pub name: &'static str,
    /// What people call it.
    pub title: &'static str,
    /// The options with which an image for it is made, as far as the caller gives no others of these names.
    pub options: &'static [(&'static str, &'static str)],
    /// It refuses files with holes.
    pub solid: bool,
    /// What it would refuse in the image in that file, or take for something else. Empty: nothing is known that it
    /// would. Errors: the image cannot be read here either.
    pub judge: fn(&dyn Storage) -> Result<Vec<Objection>>,
}

/// One thing that a consumer would refuse, or take for something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objection {
    /// What it is, for people.
    pub what: String,
    /// What to type, with `FILE` for the image's name, where that is less than making the image anew.
    pub remedy: Option<String>,
}

impl Objection {
    /// An objection that only an image made anew answers.
    pub fn new(what: impl Into<String>) -> Objection {
        Objection { what: what.into(), remedy: None }
    }

    /// Says what to type.
    #[must_use]
    pub fn remedy(self, command: impl Into<String>) -> Objection {
        Objection { remedy: Some(command.into()), ..self }
    }
}
