//! What every virtual disk is said in: where bytes are kept ([`Storage`], [`Folder`]), one image file ([`Layer`],
//! [`Format`]), and a chain of them as one disk ([`Image`]).
//!
//! Nothing here knows a format but [`raw`], which is the absence of one. Everything is synchronous, takes `&self` and
//! spawns no thread.

mod archive;
mod bitmap;
mod check;
mod claims;
mod consumer;
mod epoch;
mod error;
mod folder;
mod format;
mod image;
mod inspect;
mod layer;
mod measure;
mod options;
mod progress;
pub mod raw;
mod secret;
mod snapshot;
mod storage;
mod stream;
mod tables;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod zero;

pub use archive::{
    ArchiveFaults, ArchiveIndex, ArchiveSource, ArchivedDisk, Archives, ConfigFile, Forward, Gap, Manifest,
    Reading, Sink, Walk,
};
pub use bitmap::{BitmapInfo, Bitmaps, SeeRange};
pub use check::{
    CheckOptions, Checker, Class, Fault, KnownCheck, MAX_FAULTS, Repair, Report, Rules, Severity,
};
pub use claims::{Claim, Claims};
pub use consumer::{Consumer, Objection};
pub use epoch::{Epochs, Operation};
pub use error::{Error, ErrorKind, Printable, Result};
pub use folder::{DirFolder, Folder, MemoryFolder};
pub use format::{CreateOptions, Details, Format, Maps, NoFiles, OpenOptions, Probe, QemuDriver, Resolver};
pub use image::{Image, Link, Mapped};
pub use inspect::{Compat, Ending, Finding, Inspector, MAX_WINDOW, Place, Problem, TAIL};
pub use layer::{Erase, Extent, Kind, Layer, LayerId, ParentRef, Prealloc};
pub use measure::{Content, Measured, largest, touched};
pub use options::{
    OptionKind, OptionSpec, Options, Owner, parse_option_string, parse_option_words, parse_size,
};
pub use progress::{Progress, Quiet};
pub use secret::Secrets;
pub use snapshot::{NewSnapshot, SnapshotInfo, Snapshots};
pub use storage::{
    Access, Cache, Endless, FILE_OPTIONS, FileHints, FileStorage, Identity, Lock, MemoryStorage, Solid,
    Storage, hole_at,
};
pub use stream::{Body, Chunk, Contents, DiskInfo, Encoded, Head, Made, Pieces, Source, Streams, read_up_to};
pub use tables::{Blocks, Structure};
pub use zero::{is_zero, zero_prefix};
