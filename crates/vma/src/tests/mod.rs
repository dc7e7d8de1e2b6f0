//! The crate's tests that take more than one module.

mod build;
mod check;
mod index;
mod kept;
