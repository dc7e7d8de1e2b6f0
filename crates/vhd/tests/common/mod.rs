//! What the tests of this crate share: empty images of every sort, made byte by byte, and the benches' ways in.

#![allow(dead_code, clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // Each test file uses a part of it, and panics where it must.

pub(crate) mod crash;

use std::sync::Arc;

use cowhand_core::testing::fill;
use cowhand_core::{Error, Format, Layer, MemoryStorage, NoFiles, OpenOptions, Result, Storage, raw::Raw};
use cowhand_vhd::Vhd;

/// What sort of image it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    /// A dynamic disk.
    Dynamic,
    /// A dynamic disk in whose file every second block stands, full of old bytes, with no sector present.
    Partial,
    /// A child.
    Child,
    /// A child of XenServer's first blktap, whose bitmaps have bit 0 first.
    Lsb,
    /// A dynamic disk as XenServer has it: every second block stands in the file, whole, and the batmap says so.
    Batmap,
    /// A fixed disk.
    Fixed,
}

impl Sort {
    pub(crate) fn is_child(self) -> bool {
        matches!(self, Sort::Child | Sort::Lsb)
    }
}

pub(crate) fn sum(bytes: &[u8]) -> [u8; 4] {
    (!bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))).to_be_bytes()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// The footer of such an image of `size` bytes.
pub(crate) fn footer(sort: Sort, size: u64) -> Vec<u8> {
    let mut footer = vec![0; 512];
    put(&mut footer, 0, b"conectix\0\0\0\x02\0\x01\0\0");
    let header_at = if sort == Sort::Fixed { u64::MAX } else { 512 };
    put(&mut footer, 16, &header_at.to_be_bytes());
    let creator: &[u8; 12] = match sort {
        Sort::Lsb => b"tap\0\0\x01\0\0\0\0\0\0",
        Sort::Batmap => b"tap\0\0\x01\0\x03\0\0\0\0",
        _ => b"win \0\x0a\0\0Wi2k",
    };
    put(&mut footer, 28, creator);
    put(&mut footer, 40, &size.to_be_bytes());
    put(&mut footer, 48, &size.to_be_bytes());
    put(&mut footer, 56, &[0xff, 0xff, 16, 255]);
    footer[63] = match sort {
        Sort::Fixed => 2,
        Sort::Dynamic | Sort::Partial | Sort::Batmap => 3,
        _ => 4,
    };
    put(&mut footer, 68, b"sixteen bytes id");
    let sum = sum(&footer);
    put(&mut footer, 64, &sum);
    footer
}

/// An empty image; on a device its footer stands at the device's end.
pub(crate) fn make(file: Arc<dyn Storage>, sort: Sort, size: u64, block_size: u64) -> Result<Arc<dyn Layer>> {
    let failed = |error| Error::io("cannot make it", error);
    let footer = footer(sort, size);
    let mut bytes = Vec::new();
    if sort == Sort::Fixed {
        bytes.resize(size as usize, 0);
    } else {
        let entries = size.div_ceil(block_size) as u32;
        let bitmap = (block_size / 4096).next_multiple_of(512).max(512);
        let mut header = vec![0; 1024];
        put(&mut header, 0, b"cxsparse\xff\xff\xff\xff\xff\xff\xff\xff");
        put(&mut header, 16, &1536u64.to_be_bytes());
        put(&mut header, 24, &0x0001_0000u32.to_be_bytes());
        put(&mut header, 28, &entries.to_be_bytes());
        put(&mut header, 32, &(block_size as u32).to_be_bytes());
        if sort.is_child() {
            put(&mut header, 40, b"the parent's id.");
            put(&mut header, 64, b"\0b\0a\0s\0e");
        }
        let own = sum(&header);
        put(&mut header, 36, &own);
        let mut table = vec![0xff; (4 * entries as usize).next_multiple_of(512)];
        let mut batmap = Vec::new();
        if sort == Sort::Batmap {
            batmap.resize(1024, 0);
            put(&mut batmap, 0, b"tdbatmap");
            put(&mut batmap, 8, &(1536 + table.len() as u64 + 512).to_be_bytes());
            put(&mut batmap, 16, &[0, 0, 0, 1, 0, 1, 0, 2]);
        }
        let mut blocks = Vec::new();
        if matches!(sort, Sort::Partial | Sort::Batmap) {
            let (bits, payload) = if sort == Sort::Partial { (0, 0x5a) } else { (0xff, 0) };
            let first = (1536 + table.len() + batmap.len()) as u64;
            for (nth, block) in (0..entries as usize).step_by(2).enumerate() {
                let at = first + nth as u64 * (bitmap + block_size);
                put(&mut table, 4 * block, &((at / 512) as u32).to_be_bytes());
                blocks.resize(blocks.len() + bitmap as usize, bits);
                blocks.resize(blocks.len() + block_size as usize, payload);
                if sort == Sort::Batmap {
                    batmap[512 + block / 8] |= 0x80 >> (block % 8);
                }
            }
        }
        if sort == Sort::Batmap {
            let sum = sum(&batmap[512..]);
            put(&mut batmap, 24, &sum);
        }
        bytes = [footer.clone(), header, table, batmap, blocks].concat();
    }
    file.write_at(0, &bytes).map_err(failed)?;
    let end = (file.len().map_err(failed)? - 512).max(bytes.len() as u64);
    file.write_at(end, &footer).map_err(failed)?;
    reopen(file)
}

pub(crate) fn reopen(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Vhd.open(file, &NoFiles, &OpenOptions { writable: true, ..OpenOptions::default() })
}

pub(crate) fn view(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Vhd.open(file, &NoFiles, &OpenOptions::default())
}

/// A raw disk full of stamps, some of it zero.
pub(crate) fn parent(size: u64) -> Arc<dyn Layer> {
    let mut bytes = vec![0; size as usize];
    fill(&mut bytes, 0, 1 << 40);
    bytes[size as usize / 3..size as usize / 2].fill(0);
    Raw.open(Arc::new(MemoryStorage::from_bytes(&bytes)), &NoFiles, &OpenOptions::default()).unwrap()
}
