//! The qcow2 format: versions 2 and 3, read and written.
//!
//! The specification is QEMU's `docs/interop/qcow2`; names here are its terms. [`Qcow2`] is all there is to see.

#![forbid(unsafe_code)]

mod alloc;
mod allocated;
mod amend;
mod bitmaps;
mod cache;
mod check;
mod clear;
mod compress;
mod create;
mod crypt;
mod draft;
mod entry;
mod erase;
mod extensions;
mod geometry;
mod header;
mod inspector;
mod layer;
mod measure;
mod options;
mod prealloc;
mod read;
mod refcount;
mod resize;
mod rewrite;
mod runtime;
mod snapshot;
mod tables;
mod unpacked;
mod view;
mod write;
mod writer;

use std::sync::Arc;

use cowhand_core::{
    Checker, Content, CreateOptions, Format, Inspector, Layer, Maps, Measured, OpenOptions, OptionSpec,
    Probe, QemuDriver, Resolver, Result, Storage,
};

/// The qcow2 format.
#[derive(Clone, Copy, Debug, Default)]
pub struct Qcow2;

impl Format for Qcow2 {
    fn names(&self) -> &'static [&'static str] {
        &["qcow2"]
    }

    fn qemu(&self) -> Option<QemuDriver> {
        Some(QemuDriver { resizes: true, measures: true, details: true, maps: Maps::Holes })
    }

    fn extensions(&self) -> &'static [&'static str] {
        &["qcow2", "qcow"]
    }

    fn probe(&self, head: &[u8], _storage: &dyn Storage) -> Probe {
        // Version 1 has the same signature and is another format; an unknown version is this one's to refuse.
        match (head.get(..4), head.get(4..8)) {
            (Some(magic), Some(version)) if *magic == header::MAGIC && *version != [0, 0, 0, 1] => {
                Probe::Sure
            }
            _ => Probe::No,
        }
    }

    fn options(&self) -> &'static [OptionSpec] {
        options::OPTIONS
    }

    fn child_options(&self) -> &'static [&'static str] {
        &["cluster_size"]
    }

    fn open_options(&self) -> &'static [OptionSpec] {
        runtime::OPEN_OPTIONS
    }

    fn defining_options(&self) -> &'static [&'static str] {
        &["encrypt.key-secret"]
    }

    fn amend_options(&self) -> &'static [OptionSpec] {
        amend::AMEND_OPTIONS
    }

    fn open(
        &self,
        file: Arc<dyn Storage>,
        files: &dyn Resolver,
        how: &OpenOptions,
    ) -> Result<Arc<dyn Layer>> {
        Ok(Arc::new(layer::Qcow2Layer::open(file, files, how)?))
    }

    fn create(
        &self,
        file: Arc<dyn Storage>,
        files: &dyn Resolver,
        how: &CreateOptions,
    ) -> Result<Arc<dyn Layer>> {
        Ok(Arc::new(create::create(file, files, how)?))
    }

    fn measure(&self, content: &dyn Content, how: &CreateOptions) -> Result<Measured> {
        measure::measure(content, how)
    }

    fn checker(&self) -> Option<&dyn Checker> {
        Some(self)
    }

    fn inspector(&self) -> Option<Box<dyn Inspector>> {
        Some(Box::new(inspector::Judge::default()))
    }
}
