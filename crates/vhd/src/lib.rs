//! The VHD format (Virtual PC, Hyper-V, Azure, XenServer): fixed, dynamic and differencing disks.
//!
//! Section names in comments are those of Microsoft's "Virtual Hard Disk Image Format Specification".

#![forbid(unsafe_code)]

mod alloc;
mod alone;
mod amend;
mod bat;
mod batmap;
mod bitmap;
mod bitmaps;
mod cache;
mod check;
mod compact;
mod consumers;
mod create;
mod creator;
mod details;
mod dynamic;
mod find;
mod fixed;
mod footer;
mod geometry;
mod header;
mod inspector;
mod like;
mod locator;
mod naming;
mod relabel;
mod resize;
mod resize_fixed;
mod space;
mod stream;
mod table;
mod tables;
#[cfg(test)]
mod tests;
mod write;
mod writer;

use std::sync::Arc;

use cowhand_core::{
    Checker, Consumer, Content, CreateOptions, Error, Format, Inspector, Layer, LayerId, Maps, Measured,
    OpenOptions, OptionKind, OptionSpec, Probe, QemuDriver, Resolver, Result, Storage,
};

use crate::footer::{DiskType, SizeRule};
use crate::geometry::SECTOR;

/// The VHD format.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vhd;

impl Format for Vhd {
    fn names(&self) -> &'static [&'static str] {
        &["vpc", "vhd"]
    }

    fn qemu(&self) -> Option<QemuDriver> {
        Some(QemuDriver { resizes: false, measures: false, details: false, maps: Maps::Alone })
    }

    fn extensions(&self) -> &'static [&'static str] {
        &["vhd", "vpc", "avhd"]
    }

    fn probe(&self, _head: &[u8], storage: &dyn Storage) -> Probe {
        find::probe(storage)
    }

    fn options(&self) -> &'static [OptionSpec] {
        create::OPTIONS
    }

    fn child_options(&self) -> &'static [&'static str] {
        &["block_size"]
    }

    fn identity(&self, file: &dyn Storage) -> Result<LayerId> {
        Ok(LayerId(Some(find::find(file)?.footer.unique_id)))
    }

    fn open_options(&self) -> &'static [OptionSpec] {
        const OPTIONS: &[OptionSpec] = &[
            OptionSpec::new(
                "force_size_calc",
                OptionKind::Text,
                "Which field tells the disk's size (allowed values: auto, current_size, chs; default: auto, by the program that made the image)",
            ),
            OptionSpec::new(
                "footer",
                OptionKind::Choice(&["auto", "front"]),
                "Which footer of a dynamic disk counts (allowed values: auto; front, the copy that stands there; default: auto, the one at the end where it is good)",
            ),
        ];
        OPTIONS
    }

    fn defining_options(&self) -> &'static [&'static str] {
        &["force_size_calc"]
    }

    fn amend_options(&self) -> &'static [OptionSpec] {
        amend::OPTIONS
    }

    fn open(
        &self,
        file: Arc<dyn Storage>,
        _files: &dyn Resolver,
        how: &OpenOptions,
    ) -> Result<Arc<dyn Layer>> {
        let anyway = how.ignore_checksums && !how.writable;
        let found = match how.options.text("footer") {
            Some("front") => find::find_front(file.as_ref())?,
            _ if anyway => find::find_anyway(file.as_ref())?,
            _ => find::find(file.as_ref())?,
        };
        let rule = match how.options.text("force_size_calc") {
            Some("current_size") => SizeRule::CurrentSize,
            Some("chs") => SizeRule::Chs,
            None | Some("auto") => SizeRule::Auto,
            Some(other) => return Err(Error::invalid(format!("Invalid size calculation mode: '{other}'"))),
        };
        let size = found.footer.size(rule);
        if !size.is_multiple_of(SECTOR) {
            return Err(Error::corrupt(
                "footer current size",
                format!("is {size} bytes, which is not a multiple of 512"),
            )
            .at(found.at + 48));
        }
        Ok(match found.footer.disk_type {
            DiskType::Fixed => Arc::new(fixed::Fixed::open(file, found, size, how.writable)?),
            DiskType::Dynamic | DiskType::Differencing => {
                Arc::new(dynamic::Dynamic::open(file, found, size, how)?)
            }
        })
    }

    fn create(
        &self,
        file: Arc<dyn Storage>,
        _files: &dyn Resolver,
        how: &CreateOptions,
    ) -> Result<Arc<dyn Layer>> {
        create::create(file, how)
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

    fn streams(&self) -> Option<&dyn cowhand_core::Streams> {
        Some(self)
    }
}
