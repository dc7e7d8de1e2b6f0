//! Making an image: options, and the size that comes out of them.

use std::sync::Arc;

use cowhand_core::{
    Content, CreateOptions, Error, Layer, Measured, OptionKind, OptionSpec, Prealloc, Result, Storage,
    touched,
};

use crate::alloc::Layout;
use crate::creator::Creator;
use crate::fixed::Fixed;
use crate::footer::{FOOTER_LEN, Footer};
use crate::fresh::Fresh;
use crate::geometry::{Geometry, SECTOR};
use crate::header::{MAX_BLOCK, MAX_DISK};

/// Smaller blocks are legal, and nobody reads them but this code.
const MIN_BLOCK: u64 = 512 << 10;
const DEFAULT_BLOCK: u64 = 2 << 20;

pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "subformat",
        kind: OptionKind::Choice(&["dynamic", "fixed"]),
        help: "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed}",
    },
    OptionSpec {
        name: "force_size",
        kind: OptionKind::Flag,
        help: "Use exactly the size given, instead of rounding it up to one that a disk geometry can say",
    },
    OptionSpec {
        name: "size_align",
        kind: OptionKind::Size,
        help: "Round the size up to a multiple of this and to no geometry (Azure wants 1M, and subformat=fixed)",
    },
    OptionSpec {
        name: "block_size",
        kind: OptionKind::Size,
        help: "Block size of a dynamic disk, a power of two from 512K to 256M (default: 2M)",
    },
    OptionSpec {
        name: "creator",
        kind: OptionKind::Choice(Creator::NAMES),
        help: "The program that the image says it was made by (allowed values: cowh, win, tap, vbox, vpc; default: cowh); win, tap and vbox state every size exactly",
    },
    OptionSpec {
        name: "preallocation",
        kind: OptionKind::Choice(&["off", "falloc", "full"]),
        help: "Preallocation mode of a fixed disk (allowed values: off, falloc, full)",
    },
];

/// The size of the disk and the geometry that its footer states, for `asked` bytes.
fn size_and_geometry(
    asked: u64,
    force_size: bool,
    align: Option<u64>,
    creator: Creator,
) -> Result<(u64, Geometry)> {
    let too_large = || Error::invalid(format!("a disk of {asked} bytes is too large"));
    let unit = align.unwrap_or(SECTOR);
    if unit == 0 || !unit.is_multiple_of(SECTOR) {
        return Err(Error::invalid(format!("size_align={unit} is not a multiple of 512")));
    }
    let size = asked.checked_next_multiple_of(unit).ok_or_else(too_large)?;
    if creator.exact && !force_size {
        return Ok((size, Geometry::of_sectors(size / SECTOR)));
    }
    let geometry =
        if force_size || align.is_some() { Geometry::MAX } else { Geometry::holding(size / SECTOR) };
    Ok((if geometry == Geometry::MAX { size } else { geometry.bytes() }, geometry))
}

/// Makes an image on an empty storage.
pub(crate) fn create(file: Arc<dyn Storage>, how: &CreateOptions) -> Result<Arc<dyn Layer>> {
    if how.parent.is_some() {
        return Err(Error::unsupported("making a differencing VHD (a parent was named) is not supported")
            .hint("choose qcow2 for an image with a backing file"));
    }
    if !file.is_empty().map_err(|error| Error::io("cannot find the size", error))? {
        return Err(Error::unsupported(
            "a VHD is made in an empty file, since its footer stands at the file's end",
        )
        .hint("name a file, not a device"));
    }
    match Plan::new(how)? {
        Plan::Fixed { footer } => Ok(Arc::new(Fixed::create(file, footer, how.prealloc())?)),
        Plan::Dynamic { footer, layout } => Ok(Arc::new(Fresh::create(file, footer, layout, how.fresh)?)),
    }
}

/// A new disk's make, within the format's limits.
enum Plan {
    Fixed { footer: Footer },
    Dynamic { footer: Footer, layout: Layout },
}

impl Plan {
    fn new(how: &CreateOptions) -> Result<Plan> {
        let options = &how.options;
        let creator = options.text("creator").map(Creator::by_name).unwrap_or_default();
        let force_size = options.flag("force_size").unwrap_or(false);
        let (size, geometry) = size_and_geometry(how.size, force_size, options.size("size_align"), creator)?;
        if options.text("subformat") == Some("fixed") {
            if options.has("block_size") {
                return Err(Error::invalid("a fixed VHD has no blocks")
                    .hint("leave out block_size, or choose subformat=dynamic"));
            }
            return Ok(Plan::Fixed { footer: Footer::new(size, geometry, None).by(creator) });
        }
        if how.prealloc() != Prealloc::Off {
            return Err(Error::unsupported("preallocation of a dynamic VHD is not supported")
                .hint("choose subformat=fixed"));
        }
        if size > MAX_DISK {
            return Err(Error::invalid(format!(
                "{size} bytes are too large for a dynamic VHD, which has at most 2040 GiB ({MAX_DISK} bytes)"
            ))
            .hint("choose vhdx"));
        }
        let block_size = options.size("block_size").unwrap_or(DEFAULT_BLOCK);
        if !block_size.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&block_size) {
            return Err(Error::invalid(format!(
                "block_size={block_size} is not a power of two from 512K to 256M"
            )));
        }
        let layout = Layout::new(size, block_size)?;
        let footer = Footer::new(size, geometry, Some(layout.header_at)).by(creator);
        Ok(Plan::Dynamic { footer, layout })
    }
}

/// See `Format::measure`. QEMU has no estimate for this format: what is required is what the blocks touched take.
pub(crate) fn measure(content: &dyn Content, how: &CreateOptions) -> Result<Measured> {
    let (least, most) = match Plan::new(how)? {
        Plan::Fixed { footer } => (footer.current_size + FOOTER_LEN, footer.current_size + FOOTER_LEN),
        Plan::Dynamic { layout, .. } => (
            layout.file_len(touched(content, [layout.block_size])?[0]),
            layout.file_len(u64::from(layout.blocks)),
        ),
    };
    Ok(Measured { required: least, fully_allocated: most, exact: least, bitmaps: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        // As qemu-img rounds.
        assert_eq!(size_and_geometry(0, false, None, Creator::default()).unwrap().0, 0);
        assert_eq!(size_and_geometry(1, false, None, Creator::default()).unwrap().0, 34816);
        assert_eq!(size_and_geometry(1 << 30, false, None, Creator::default()).unwrap().0, 1_073_995_776);
        assert_eq!(size_and_geometry(1000, true, None, Creator::default()).unwrap(), (1024, Geometry::MAX));
        assert_eq!(
            size_and_geometry((1 << 20) + 1, false, Some(1 << 20), Creator::default()).unwrap(),
            (2 << 20, Geometry::MAX)
        );
        assert_eq!(
            size_and_geometry((200 << 30) + 1, false, None, Creator::default()).unwrap(),
            ((200 << 30) + 512, Geometry::MAX)
        );
        for bad in [0, 100, 513] {
            assert!(size_and_geometry(512, false, Some(bad), Creator::default()).is_err());
        }
        let windows = Creator::by_name("win");
        let (size, geometry) = size_and_geometry(10 << 30, false, None, windows).unwrap();
        assert_eq!((size, geometry), (10 << 30, Geometry::of_sectors(10 << 21)));
        assert!(geometry.bytes() < size);
        assert_eq!(size_and_geometry(10 << 30, true, None, windows).unwrap(), (10 << 30, Geometry::MAX));
        assert!(size_and_geometry(u64::MAX, true, None, Creator::default()).is_err());
    }
}
