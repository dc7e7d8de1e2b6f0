//! The VHDX format, after [MS-VHDX]: Hyper-V's virtual disk. Fixed, dynamic and differencing images are made, read with
//! what their log has pending, and changed in place through it.
//!
//! [MS-VHDX]: https://learn.microsoft.com/openspecs/windows_protocols/ms-vhdx/83e061f8-f6e2-4de1-91bd-5d518a43d477

#![forbid(unsafe_code)]

mod alone;
mod amend;
mod bat;
mod bytes;
mod check;
mod compact;
mod consumers;
mod create;
mod details;
mod draft;
mod guid;
mod header;
mod inspector;
mod items;
mod journal;
mod layer;
mod like;
mod locator;
mod log;
mod metadata;
mod naming;
mod overlay;
mod pages;
mod region;
mod relabel;
mod resize;
mod space;
mod state;
mod table;
mod write;
mod writer;

use std::sync::Arc;

use cowhand_core::{
    Checker, Consumer, Content, CreateOptions, Error, ErrorKind, Format, Inspector, Layer, LayerId, Maps,
    Measured, OpenOptions, OptionSpec, Probe, QemuDriver, Resolver, Result, Storage,
};

/// The number of errno.h.
const EINVAL: i32 = 22;

/// The VHDX format.
#[derive(Clone, Copy, Debug)]
pub struct Vhdx;

impl Format for Vhdx {
    fn names(&self) -> &'static [&'static str] {
        &["vhdx"]
    }

    fn qemu(&self) -> Option<QemuDriver> {
        Some(QemuDriver { resizes: false, measures: false, details: false, maps: Maps::Nothing })
    }

    fn extensions(&self) -> &'static [&'static str] {
        &["vhdx", "avhdx"]
    }

    fn probe(&self, head: &[u8], _storage: &dyn Storage) -> Probe {
        if head.starts_with(header::SIGNATURE) { Probe::Sure } else { Probe::No }
    }

    fn options(&self) -> &'static [OptionSpec] {
        create::OPTIONS
    }

    fn child_options(&self) -> &'static [&'static str] {
        &["block_size", "physical_sector_size"]
    }

    fn sector_option(&self) -> Option<&'static str> {
        Some("logical_sector_size")
    }

    fn identity(&self, file: &dyn Storage) -> Result<LayerId> {
        Ok(LayerId(Some(header::Header::read(file)?.data_write_guid.raw())))
    }

    fn spell(&self, id: [u8; 16]) -> String {
        guid::Guid::from_raw(id).to_string()
    }

    fn amend_options(&self) -> &'static [OptionSpec] {
        amend::OPTIONS
    }

    /// Errors: the rules of the format that are broken, by field and offset; a region or metadata item that is required
    /// and not known.
    fn open(
        &self,
        file: Arc<dyn Storage>,
        _files: &dyn Resolver,
        how: &OpenOptions,
    ) -> Result<Arc<dyn Layer>> {
        // Of most that can be wrong QEMU says no more than this.
        let known = |error: Error| match error.kind() {
            ErrorKind::Corrupt | ErrorKind::Unsupported => error.known_by(EINVAL),
            _ => error,
        };
        let open = if how.writable { layer::VhdxLayer::open_to_write } else { layer::VhdxLayer::open };
        Ok(Arc::new(open(file).map_err(known)?))
    }

    fn create(
        &self,
        file: Arc<dyn Storage>,
        _files: &dyn Resolver,
        how: &CreateOptions,
    ) -> Result<Arc<dyn Layer>> {
        Ok(Arc::new(create::create(file, how)?))
    }

    fn measure(&self, content: &dyn Content, how: &CreateOptions) -> Result<Measured> {
        create::measure(content, how)
    }

    fn consumers(&self) -> &'static [Consumer] {
        consumers::ALL
    }

    fn checker(&self) -> Option<&dyn Checker> {
        Some(self)
    }

    fn inspector(&self) -> Option<Box<dyn Inspector>> {
        Some(Box::new(inspector::Judge::default()))
    }
}
