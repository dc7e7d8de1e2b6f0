//! The exit status, in one table.

use cowhand::{Error, ErrorKind, Failed};

/// What each status means, for the manual.
pub(crate) const EXIT: &[(u8, &str)] = &[
    (0, "done; compare: the disks are the same; inspect: safe; doctor: whole and safe"),
    (1, "failed, or the command line makes no sense; compare: the disks differ"),
    (
        2,
        "compare: an image cannot be opened, or the command line makes no sense; check: errors; vma verify: something \
         is wrong; doctor: damaged",
    ),
    (
        3,
        "compare: what is where cannot be found out; inspect: unsafe; check: leaks and nothing else; stream --size: \
         the front does not tell; vma extract --salvage: the archive is damaged; doctor: whole, but look before you use it",
    ),
    (4, "compare: reading failed; inspect: ambiguous or unreadable"),
    (63, "check: images of this format cannot be checked"),
    (130, "stopped by a signal"),
];

pub(crate) const DONE: u8 = 0;
pub(crate) const FAILED: u8 = 1;
pub(crate) const STOPPED: u8 = 130;

pub(crate) mod doctor {
    pub(crate) const DAMAGED: u8 = 2;
    pub(crate) const ATTENTION: u8 = 3;
}

pub(crate) mod stream {
    pub(crate) const CANNOT_KNOW: u8 = 3;
}

pub(crate) mod vma {
    pub(crate) const FAULTY: u8 = 2;
    pub(crate) const INCOMPLETE: u8 = 3;
}

pub(crate) mod check {
    pub(crate) const CORRUPT: u8 = 2;
    pub(crate) const LEAKS: u8 = 3;
    pub(crate) const NO_CHECK: u8 = 63;
}

pub(crate) mod compare {
    pub(crate) const DIFFERENT: u8 = 1;
    pub(crate) const CANNOT_OPEN: u8 = 2;
    pub(crate) const CANNOT_MAP: u8 = 3;
    pub(crate) const CANNOT_READ: u8 = 4;
}

/// What a verb that failed says, and with which status.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: u8,
    pub(crate) error: Error,
}

impl Failure {
    /// `status`, unless the error's kind has one of its own.
    pub(crate) fn with(status: u8, error: Error) -> Failure {
        let status = if error.kind() == ErrorKind::Cancelled { STOPPED } else { status };
        Failure { status, error }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::with(FAILED, error)
    }
}

impl<S> From<Failed<S>> for Failure {
    fn from(failed: Failed<S>) -> Failure {
        failed.error.into()
    }
}

/// What a verb answers: its status.
pub(crate) type Outcome = Result<u8, Failure>;
