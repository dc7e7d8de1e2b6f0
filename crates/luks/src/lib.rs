//! LUKS version 1: encrypted disks.
//!
//! The specification is cryptsetup's *LUKS1 On-Disk Format*; names here are its terms. [`Luks`] is the format of files
//! that are a LUKS volume. Another format that keeps a LUKS header within its own file (qcow2) has [`Volume`] for the
//! header and its key slots, and [`Encrypted`] for the disk's bytes.

#![forbid(unsafe_code)]

mod algorithms;
mod area;
mod encrypted;
mod hash;
mod header;
mod keyslot;
mod layer;
mod options;
mod sectors;
mod split;
mod volume;
mod wrapped;

use std::sync::Arc;

use cowhand_core::{
    Content, CreateOptions, Error, ErrorKind, Format, Inspector, Layer, Maps, Measured, OpenOptions,
    OptionSpec, Probe, QemuDriver, Resolver, Result, Storage,
};

pub use algorithms::{CIPHERS, IVGENS, MODES};
pub use area::Area;
pub use encrypted::Encrypted;
pub use hash::HASHES;
pub use header::MAGIC;
pub use sectors::{SECTOR, Sectors};
pub use volume::{Choice, Volume, candidates, chosen, locked};
pub use wrapped::unwrap_secret;

/// Files that are a LUKS volume.
#[derive(Clone, Copy, Debug, Default)]
pub struct Luks;

impl Format for Luks {
    fn names(&self) -> &'static [&'static str] {
        &["luks"]
    }

    fn qemu(&self) -> Option<QemuDriver> {
        Some(QemuDriver { resizes: true, measures: true, details: true, maps: Maps::Nothing })
    }

    fn extensions(&self) -> &'static [&'static str] {
        &["luks"]
    }

    fn probe(&self, head: &[u8], _storage: &dyn Storage) -> Probe {
        // Whatever its version: one that is not read here is this format's to refuse.
        if head.starts_with(&MAGIC) { Probe::Sure } else { Probe::No }
    }

    fn options(&self) -> &'static [OptionSpec] {
        options::CREATE
    }

    fn open_options(&self) -> &'static [OptionSpec] {
        options::OPEN
    }

    fn defining_options(&self) -> &'static [&'static str] {
        &["key-secret"]
    }

    fn amend_options(&self) -> &'static [OptionSpec] {
        options::AMEND
    }

    fn measure(&self, _content: &dyn Content, how: &CreateOptions) -> Result<Measured> {
        let choice = Choice::from(&how.options, "")?;
        if how.qemu_choices {
            chosen(&how.options, "key-secret", &how.secrets)?;
        }
        let rounded = layer::rounded(how.size)?;
        let behind = |size: u64| choice.header_len().checked_add(size).ok_or_else(|| layer::too_large(size));
        let estimate = behind(how.size)?;
        Ok(Measured { required: estimate, fully_allocated: estimate, exact: behind(rounded)?, bitmaps: None })
    }

    fn open(
        &self,
        file: Arc<dyn Storage>,
        _files: &dyn Resolver,
        how: &OpenOptions,
    ) -> Result<Arc<dyn Layer>> {
        Ok(Arc::new(layer::LuksLayer::open(file, how)?))
    }

    fn create(
        &self,
        file: Arc<dyn Storage>,
        _files: &dyn Resolver,
        how: &CreateOptions,
    ) -> Result<Arc<dyn Layer>> {
        Ok(Arc::new(layer::LuksLayer::create(file, how)?))
    }

    fn inspector(&self) -> Option<Box<dyn Inspector>> {
        None
    }
}

/// Fills `buf` with bytes that nobody can guess.
fn random(buf: &mut [u8]) -> Result<()> {
    getrandom::fill(buf)
        .map_err(|error| Error::new(ErrorKind::Io, format!("the system gives no random bytes: {error}")))
}
