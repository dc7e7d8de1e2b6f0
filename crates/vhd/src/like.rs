//! Other images of an image's make: the options they are made with, and how large their disks can be in a file of a
//! given length.

use cowhand_core::{Error, Result, largest};
use uuid::Uuid;

use crate::alloc::{Front, Layout};
use crate::create::MIN_BLOCK;
use crate::creator::Creator;
use crate::footer::{FOOTER_LEN, Footer};
use crate::geometry::{Geometry, SECTOR};
use crate::header::{Header, MAX_DISK};

/// The options that make another image like this one, which has a `header` unless it is fixed, and `size` guest bytes.
/// What had a parent becomes dynamic. `replacing`: it bears this one's id, which children know it by.
pub(crate) fn options(
    footer: &Footer,
    header: Option<&Header>,
    size: u64,
    replacing: bool,
) -> Vec<(&'static str, String)> {
    let kind = if header.is_some() { "dynamic" } else { "fixed" };
    let mut options = vec![("subformat", kind.to_owned())];
    if let Some(header) = header.filter(|header| header.block_size >= MIN_BLOCK) {
        options.push(("block_size", header.block_size.to_string()));
    }
    let named = |name: &&&str| Creator::by_name(name).app == footer.creator_app;
    let creator = Creator::NAMES.iter().find(named);
    if let Some(name) = creator {
        options.push(("creator", (*name).to_owned()));
    }
    let exact = creator.is_some_and(|name| Creator::by_name(name).exact);
    if !exact && Geometry::of_sectors(size / SECTOR).bytes() != size {
        options.push(("force_size", "on".to_owned()));
    }
    if replacing && footer.unique_id != [0; 16] {
        options.push(("unique_id", Uuid::from_bytes(footer.unique_id).to_string()));
    }
    options
}

/// What is said to who wants to make a VHD shorter.
pub(crate) fn never_shrinks() -> Error {
    Error::invalid("a VHD is never made smaller by Hyper-V, and other programs may not expect it")
        .hint("pass --force if that is what you want, or convert it to VHDX and shrink that")
}

fn too_short(file_len: u64) -> Error {
    Error::invalid(format!("{file_len} bytes are too few for any VHD of this kind"))
}

/// The largest fixed disk whose file is at most `file_len` bytes long: to the sector, or as Hyper-V's utilities have it.
pub(crate) fn largest_fixed(file_len: u64, exact: bool) -> Result<u64> {
    let room = file_len.checked_sub(FOOTER_LEN).ok_or_else(|| too_short(file_len))?;
    Ok(if exact { room - room % SECTOR } else { room })
}

/// The largest dynamic disk with such blocks whose file is at most `file_len` bytes long once every block is written: as
/// it is laid out here, or by the formula of Hyper-V's utilities, which knows of no sector bitmaps and no gaps.
pub(crate) fn largest_dynamic(file_len: u64, block_size: u64, batmap: bool, exact: bool) -> Result<u64> {
    if !exact {
        let room = file_len.checked_sub(2048).ok_or_else(|| too_short(file_len))?;
        let size = u128::from(room) * u128::from(block_size) / u128::from(block_size + 4);
        // Never fails: it is less than the room.
        return u64::try_from(size).map_err(|_| too_short(file_len));
    }
    // XenServer's images have a batmap behind the table.
    let front = Front { batmap, ..Front::default() };
    let disk = |blocks: u64| (blocks * block_size).min(MAX_DISK);
    let fits = |blocks: u64| {
        Layout::new(disk(blocks), block_size, front).is_ok_and(|layout| layout.file_len(blocks) <= file_len)
    };
    largest(MAX_DISK.div_ceil(block_size), fits).map(disk).ok_or_else(|| too_short(file_len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formulas_are_hyper_vs() {
        assert_eq!(largest_dynamic(10 << 30, 2 << 20, false, false).unwrap(), 10_737_395_712);
        assert_eq!(largest_fixed(10 << 30, false).unwrap(), (10 << 30) - 512);
        assert!(largest_dynamic(2047, 2 << 20, false, false).is_err() && largest_fixed(511, false).is_err());
    }

    #[test]
    fn one_block_more_would_be_too_much() {
        for block_size in [512 << 10, 2 << 20, 256 << 20] {
            for file_len in [4096, 3 << 20, 10 << 30, (10 << 30) + 511, 300 << 30, 1 << 42] {
                let front = Front { batmap: block_size == 2 << 20, ..Front::default() };
                let size = largest_dynamic(file_len, block_size, front.batmap, true).unwrap();
                let full = |size: u64| {
                    Layout::new(size, block_size, front).unwrap().file_len(size.div_ceil(block_size))
                };
                assert!(full(size) <= file_len, "{size} in {file_len}");
                assert!(size == MAX_DISK || full(size + SECTOR) > file_len, "{size} in {file_len}");
            }
        }
        assert_eq!(largest_fixed(1_000_000, true).unwrap(), 999_424);
        assert!(largest_dynamic(1000, 2 << 20, false, true).is_err());
    }
}
