//! A failure of what is done in steps, with the step that it happened in.

use std::fmt;
use std::ops::Deref;

use cowhand_core::Error;

/// What went wrong, and in which step: `S` lists those of the verb.
#[derive(Debug)]
pub struct Failed<S> {
    /// The step.
    pub step: S,
    /// What happened.
    pub error: Error,
}

impl<S: Copy> Failed<S> {
    /// For `map_err`: what fails there fails in `step`.
    pub(crate) fn at(step: S) -> impl Fn(Error) -> Failed<S> {
        move |error| Failed { step, error }
    }
}

impl<S> Deref for Failed<S> {
    type Target = Error;

    fn deref(&self) -> &Error {
        &self.error
    }
}

impl<S> fmt::Display for Failed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<S: fmt::Debug> std::error::Error for Failed<S> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}

/// Which step it was in matters to who says so.
impl<S> From<Failed<S>> for Error {
    fn from(failed: Failed<S>) -> Error {
        failed.error
    }
}
