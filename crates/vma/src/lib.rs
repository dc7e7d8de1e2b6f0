//! The VMA format: Proxmox's backup archives, which hold the disks of a virtual machine and its configuration.
//!
//! Section names in comments are those of the specification that comes with Proxmox's QEMU, `vma_spec.txt`.

#![forbid(unsafe_code)]

mod came;
mod check;
mod details;
mod extent;
mod header;
mod index;
mod inspector;
mod kept;
mod layer;
pub mod layout;
mod places;
mod reader;
mod resync;
mod runs;
mod seen;
mod survey;
#[cfg(test)]
mod tests;
mod window;
mod writer;
mod wrong;

use std::io::{Read, Write};
use std::sync::Arc;

use cowhand_core::{
    ArchiveIndex, ArchiveSource, Archives, Checker, CreateOptions, Error, Format, Forward, Inspector, Layer,
    Manifest, OpenOptions, OptionKind, OptionSpec, Probe, QemuDriver, Reading, Resolver, Result, Sink,
    Storage, Walk,
};

pub use self::writer::{StreamId, VmaWriter, WriterOptions};
use crate::layout::MAGIC;
use crate::places::{BUDGET, Room};

/// The VMA format.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vma;

const DISK: OptionSpec = OptionSpec::new("disk", OptionKind::Text, "which disk of the archive, by its name");

impl Format for Vma {
    fn names(&self) -> &'static [&'static str] {
        &["vma"]
    }

    fn qemu(&self) -> Option<QemuDriver> {
        None
    }

    fn extensions(&self) -> &'static [&'static str] {
        &["vma"]
    }

    fn probe(&self, head: &[u8], _storage: &dyn Storage) -> Probe {
        if head.starts_with(&MAGIC) { Probe::Sure } else { Probe::No }
    }

    fn options(&self) -> &'static [OptionSpec] {
        &[]
    }

    fn open_options(&self) -> &'static [OptionSpec] {
        &[DISK]
    }

    fn archives(&self) -> Option<&dyn Archives> {
        Some(self)
    }

    fn disk_option(&self) -> Option<&'static str> {
        Some(DISK.name)
    }

    fn comes_packed(&self) -> bool {
        true
    }

    fn open(
        &self,
        file: Arc<dyn Storage>,
        _files: &dyn Resolver,
        how: &OpenOptions,
    ) -> Result<Arc<dyn Layer>> {
        if how.writable {
            return Err(Error::unsupported("a backup archive cannot be written in place")
                .hint("extract the disk, and write to that"));
        }
        let manifest = header::read(&mut Walk::new(file.clone()))?.manifest;
        let disk = manifest.disk(how.options.text(DISK.name))?;
        Ok(Arc::new(layer::Disk::new(file, manifest, disk)?))
    }

    fn create(
        &self,
        _file: Arc<dyn Storage>,
        _files: &dyn Resolver,
        _how: &CreateOptions,
    ) -> Result<Arc<dyn Layer>> {
        Err(Error::unsupported("a backup archive is made as a whole")
            .hint("cowhand vma create ARCHIVE NAME=IMAGE does that"))
    }

    fn checker(&self) -> Option<&dyn Checker> {
        Some(self)
    }

    fn inspector(&self) -> Option<Box<dyn Inspector>> {
        Some(Box::new(inspector::Judge::default()))
    }
}

impl Archives for Vma {
    fn read<'a>(
        &self,
        input: Box<dyn Read + Send + 'a>,
        how: Reading,
    ) -> Result<Box<dyn ArchiveSource + 'a>> {
        reader::read(input, how)
    }

    fn survey(&self, input: &mut (dyn Read + Send)) -> Result<Manifest> {
        survey::survey(input)
    }

    fn read_as<'a>(
        &self,
        input: Box<dyn Read + Send + 'a>,
        manifest: &Manifest,
    ) -> Result<Box<dyn ArchiveSource + 'a>> {
        reader::read_as(input, manifest)
    }

    fn write<'a>(&self, output: Box<dyn Write + Send + 'a>, what: &Manifest) -> Result<Box<dyn Sink + 'a>> {
        writer::write(output, what)
    }

    fn index(&self, file: &mut dyn Forward) -> Result<Arc<dyn ArchiveIndex>> {
        Ok(Arc::new(index::index(file, Room::of(BUDGET))?))
    }

    fn index_from(&self, bytes: &[u8]) -> Result<Arc<dyn ArchiveIndex>> {
        Ok(Arc::new(kept::from_bytes(bytes)?))
    }
}
