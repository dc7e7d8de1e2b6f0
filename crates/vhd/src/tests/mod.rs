//! Whole images: written, read back, held against flat bytes and other programs, damaged.

mod benches;
mod check;
mod children;
mod differencing;
mod hostile;
mod in_place;
mod labels;
mod qemu;
mod resize;

use std::sync::Arc;

use cowhand_core::{
    CreateOptions, Format, Image, Layer, Link, MemoryStorage, NoFiles, OpenOptions, Options, Result, Storage,
};

use crate::Vhd;
use crate::alloc::{Front, Layout};
use crate::dynamic::Dynamic;
use crate::footer::{Footer, checksum};
use crate::geometry::Geometry;
use crate::header::Header;

pub(crate) fn pairs(given: &[(&str, &str)]) -> Vec<(String, String)> {
    given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn create(file: Arc<dyn Storage>, size: u64, options: &[(&str, &str)]) -> Result<Arc<dyn Layer>> {
    let options = Options::check(Vhd.options(), &pairs(options))?;
    Vhd.create(file, &NoFiles, &CreateOptions { size, options, fresh: true, ..Default::default() })
}

pub(crate) fn open(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Vhd.open(file, &NoFiles, &OpenOptions::default())
}

pub(crate) fn open_to_write(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Vhd.open(file, &NoFiles, &OpenOptions { writable: true, ..OpenOptions::default() })
}

pub(crate) fn open_bytes(bytes: &[u8]) -> Result<Arc<dyn Layer>> {
    open(Arc::new(MemoryStorage::from_bytes(bytes)))
}

/// A dynamic disk in blocks of any size.
pub(crate) fn small(
    file: Arc<dyn Storage>,
    size: u64,
    block_size: u64,
    unseen: bool,
) -> Result<Arc<dyn Layer>> {
    let layout = Layout::new(size, block_size, Front::default())?;
    let footer = Footer::new(size, Geometry::MAX, Some(layout.header_at));
    let header = Header::new(layout.header_at, layout.bat_at, layout.entries, layout.block_size);
    Ok(Arc::new(Dynamic::create(file, footer, header, &layout, unseen)?))
}

/// Everything that the chain of `layers`, top first, holds.
pub(crate) fn content(layers: Vec<Arc<dyn Layer>>) -> Result<Vec<u8>> {
    let link = |layer| Link { layer, name: "test".to_owned(), format: "vpc" };
    let image = Image::new(layers.into_iter().map(link).collect())?;
    let mut bytes = vec![0xaa; image.size() as usize];
    image.read(0, &mut bytes)?;
    Ok(bytes)
}

/// Puts a good checksum on the header of an image made here, and on both its footers.
pub(crate) fn sign(bytes: &mut [u8]) {
    let end = bytes.len() - 512;
    for (part, own) in [(0..512, 64), (512..1536, 36), (end..end + 512, 64)] {
        let part = &mut bytes[part];
        part[own..own + 4].fill(0);
        let sum = checksum(part, [0; 4]).to_be_bytes();
        part[own..own + 4].copy_from_slice(&sum);
    }
}
