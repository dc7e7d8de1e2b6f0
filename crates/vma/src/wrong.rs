//! What breaks the format's rules, and where: an error for who is strict, a fault for who goes on.

use cowhand_core::{Error, Fault, Severity};

/// A rule that is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// The field or structure, in the specification's words.
    pub(crate) field: &'static str,
    /// Offset in the archive, in bytes; `None`: it is what is not there.
    pub(crate) at: Option<u64>,
    /// What is wrong.
    pub(crate) message: String,
    /// How Proxmox's tool says it, where it does.
    pub(crate) known_as: Option<String>,
}

impl Wrong {
    pub(crate) fn new(field: &'static str, at: u64, message: impl Into<String>) -> Wrong {
        Wrong { field, at: Some(at), message: message.into(), known_as: None }
    }

    /// Of what is nowhere in the archive.
    pub(crate) fn absent(field: &'static str, message: impl Into<String>) -> Wrong {
        Wrong { field, at: None, message: message.into(), known_as: None }
    }

    /// And so Proxmox's tool says it, whose callers may look for that.
    pub(crate) fn known_as(self, words: impl Into<String>) -> Wrong {
        Wrong { known_as: Some(words.into()), ..self }
    }

    pub(crate) fn fault(self) -> Fault {
        let message = format!("{}: {}", self.field, self.message);
        Fault::new(Severity::Corruption, self.at, message)
    }
}

impl From<Wrong> for Error {
    fn from(wrong: Wrong) -> Error {
        let mut error = Error::corrupt(wrong.field, wrong.message);
        if let Some(at) = wrong.at {
            error = error.at(at);
        }
        if let Some(words) = wrong.known_as {
            error = error.known_as(words);
        }
        error
    }
}
