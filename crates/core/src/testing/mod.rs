//! The benches of truth: what proves any layer right.
//!
//! Turn them on with `cowhand-core = { workspace = true, features = ["testing"] }` under `[dev-dependencies]`.
//!
//! | bench | question |
//! |---|---|
//! | [`ModelTest`] | does a layer, alone or over a parent, behave like a flat vector of bytes? |
//! | [`CrashTest`] | after a power cut at any moment, is all there that was flushed? ([`crash_run`]: many times) |
//! | [`FaultTest`], [`fault_test`] | does each single failing I/O end in an error, with nothing lost? |
//! | [`RaceTest`] | do threads that write side by side leave each other's bytes alone? |
//!
//! All work on storages in memory, are seeded, and answer `Result<_, Failure>`: a test says `.run().unwrap()` and a
//! failure prints what was wrong, where, and the seed. Sectors are stamped with their own number and a version
//! ([`fill`], [`describe`]), so that a misplaced sector is told from a stale one.
//!
//! # How a format uses them
//!
//! ```
//! use std::sync::Arc;
//! use cowhand_core::testing::{CrashTest, FaultTest, ModelTest, RaceTest, Shape};
//! use cowhand_core::{CreateOptions, Format, Layer, NoFiles, OpenOptions, Result, Storage, raw::Raw};
//!
//! fn make(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
//!     Raw.create(file, &NoFiles, &CreateOptions { size: 1 << 20, ..Default::default() })
//! }
//! fn reopen(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
//!     Raw.open(file, &NoFiles, &OpenOptions { writable: true, ..Default::default() })
//! }
//! // 65536: the allocation unit (cluster, block), so that operations meet its borders.
//! let shape = Shape::new(1 << 20, 65536);
//! for seed in 0..4 {
//!     ModelTest::new(make, reopen).shape(shape).seed(seed).run().unwrap();
//!     CrashTest::new(make, reopen).shape(shape).seed(seed).per_epoch(20).run().unwrap();
//! }
//! FaultTest::new(make, reopen).shape(shape).run().unwrap();
//! RaceTest::new(make, reopen).unit(65536).run().unwrap();
//! ```
//!
//! - `.parent(layer)` puts the layer under test over a parent, through [`Image`](crate::Image): any format, any size.
//! - A format of several files (an external data file) uses `in_folder` instead of `new`; its main file is found
//!   under whatever name it was made.
//! - `CrashTest::check` is called for every state: put the format's own `check` there. `CrashTest::view` opens
//!   read-only and must see the same bytes and change nothing.
//! - A format that is only written fresh: `.fresh()` on `FaultTest` and `RaceTest`, `reopen: false` in `Shape`;
//!   `reopen` may then open read-only.
//! - `Shape` turns on what the format can: `compressed`, `resize`, `snapshots`, `bitmaps`, `header`, and
//!   off what it cannot.
//! - `CrashTest::device` puts the image on a device full of old bytes, where nothing reads zero of itself;
//!   `CrashTest::threads` lets what happens between two flushes happen at once. `CrashTest::without_barrier` plants a
//!   mistake in any format: a barrier that is left out. The test must then fail.
//! - For another operation than a layer's (convert, commit, create and rename) use the parts: [`Journal`],
//!   [`CrashFolder`], [`Faults`], [`FaultFolder`] and [`fault_test`].

// These modules are tests that live in a library: they panic where a test would.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod bench;
mod crash;
mod crash_run;
mod crash_test;
mod fault;
mod fault_test;
mod history;
mod model;
mod race;
mod rough;
mod run;
mod script;
mod slow;
mod states;

#[cfg(test)]
mod paged;
#[cfg(test)]
mod proofs;

pub use bench::{Failure, Rng};
pub use crash::{CrashFolder, CrashStorage, Journal};
pub use crash_run::crash_run;
pub use crash_test::{CrashCounts, CrashTest};
pub use fault::{Fault, FaultFolder, FaultStorage, Faults, Io, SYNCS, WRITES};
pub use fault_test::{FaultCounts, FaultTest, fault_test};
pub use model::ModelTest;
pub use race::RaceTest;
pub use script::{Op, Shape, describe, fill};
pub use states::{Plan, State, States};
