//! How far a verb has come, and whether it shall go on.

use std::ops::ControlFlow;

use crate::Error;

/// Told from time to time, from any thread, how far a verb has come. Its answer is go on or stop.
pub trait Progress: Sync {
    /// `done` of `total` guest bytes are dealt with.
    fn at(&self, done: u64, total: u64) -> ControlFlow<()>;

    /// The source's guest bytes from `at` on, `len` of them, cannot be read, and are taken for zeros because the caller
    /// asked to go on.
    fn lost(&self, at: u64, len: u64, why: &Error) -> ControlFlow<()> {
        let _ = (at, len, why);
        ControlFlow::Continue(())
    }
}

/// Nobody looks, nobody stops it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn at(&self, _done: u64, _total: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}
