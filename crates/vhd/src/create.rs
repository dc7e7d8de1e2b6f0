//! Making an image: options, and the size that comes out of them.

use std::ops::Range;
use std::sync::Arc;

use cowhand_core::{
    Content, CreateOptions, Error, Layer, Measured, OptionKind, OptionSpec, Prealloc, Result, Storage,
    touched,
};
use uuid::Uuid;

use crate::alloc::{Front, Layout};
use crate::creator::Creator;
use crate::dynamic::Dynamic;
use crate::fixed::Fixed;
use crate::footer::{DiskType, FOOTER_LEN, Footer};
use crate::geometry::{Geometry, SECTOR};
use crate::header::{Header, MAX_BLOCK, MAX_DISK};
use crate::naming::{Naming, ROOM};

/// The most that a table gets room for: XenServer's storage manager gives its tables room for 2 TiB, though no disk is so
/// large.
const MAX_ROOM: u64 = 2 << 40;
/// Smaller blocks are legal, and nobody reads them but this code.
pub(crate) const MIN_BLOCK: u64 = 512 << 10;
const DEFAULT_BLOCK: u64 = 2 << 20;

pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::SIZE,
    OptionSpec::new(
        "subformat",
        OptionKind::Choice(&["dynamic", "fixed"]),
        "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed}",
    ),
    OptionSpec::new(
        "force_size",
        OptionKind::Flag,
        "Use exactly the size given, instead of rounding it up to one that a disk geometry can say",
    ),
    OptionSpec::new(
        "size_align",
        OptionKind::Size,
        "Round the size up to a multiple of this and to no geometry (Azure wants 1M, and subformat=fixed)",
    )
    .own(),
    OptionSpec::new(
        "min_size",
        OptionKind::Size,
        "Make a smaller disk this large (Azure takes 20M at least)",
    )
    .own(),
    OptionSpec::new(
        "block_size",
        OptionKind::Size,
        "Block size of a dynamic disk, a power of two from 512K to 256M (default: 2M)",
    )
    .own(),
    OptionSpec::new(
        "creator",
        OptionKind::Choice(Creator::NAMES),
        "The program that the image says it was made by (allowed values: cowh, win, tap, vbox, vpc; default: cowh); win, tap and vbox state every size exactly",
    )
    .own(),
    OptionSpec::new(
        "max_size",
        OptionKind::Size,
        "Give the block allocation table room for a disk of this size, to which it can then grow at once",
    )
    .own(),
    OptionSpec::new(
        "batmap",
        OptionKind::Flag,
        "Add XenServer's map of full blocks, which goes with creator=tap and no other (default: on for that one)",
    )
    .own(),
    OptionSpec::new(
        "unique_id",
        OptionKind::Text,
        "The disk's unique id, a UUID whose bytes are written in the order in which it reads (default: a new one)",
    )
    .own(),
    OptionSpec::new(
        "preallocation",
        OptionKind::Choice(&["off", "falloc", "full"]),
        "Preallocation mode of a fixed disk (allowed values: off, falloc, full)",
    )
    .of_file(),
];

/// How the size of a disk comes from the size that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rounding {
    /// Up to one that a geometry can say, as QEMU does.
    Geometry,
    /// To whole sectors, the geometry being the maximum, which says nothing.
    None,
    /// To whole sectors, with the geometry if it can say that size.
    Exact,
    /// To whole sectors, with the geometry by the specification, which may say less: this creator's size is believed.
    Believed,
}

/// The size of the disk, a multiple of `align` or of a sector, and the geometry that its footer states, for `asked` bytes.
fn size_and_geometry(asked: u64, align: Option<u64>, rounding: Rounding) -> Result<(u64, Geometry)> {
    let too_large = || Error::invalid(format!("a disk of {asked} bytes is too large"));
    let unit = align.unwrap_or(SECTOR);
    if unit == 0 || !unit.is_multiple_of(SECTOR) {
        return Err(Error::invalid(format!("size_align={unit} is not a multiple of 512")));
    }
    let size = asked.checked_next_multiple_of(unit).ok_or_else(too_large)?;
    let geometry = match rounding {
        Rounding::Geometry => Geometry::holding(size / SECTOR),
        Rounding::Exact => {
            Some(Geometry::of_sectors(size / SECTOR)).filter(|g| g.bytes() == size).unwrap_or(Geometry::MAX)
        }
        Rounding::Believed => return Ok((size, Geometry::of_sectors(size / SECTOR))),
        Rounding::None => Geometry::MAX,
    };
    Ok((if geometry == Geometry::MAX { size } else { geometry.bytes() }, geometry))
}

/// Makes an image on an empty storage.
pub(crate) fn create(file: Arc<dyn Storage>, how: &CreateOptions) -> Result<Arc<dyn Layer>> {
    // A device keeps its length.
    let device = !file.is_empty().map_err(|error| Error::io("cannot find the size", error))?;
    let Plan { footer, blocks } = Plan::new(how)?;
    match blocks {
        None if device => Err(Error::unsupported(
            "a fixed VHD is made in an empty file, since its footer stands behind the disk, at the file's end",
        )
        .hint("name a file, not a device")),
        None => Ok(Arc::new(Fixed::create(file, footer, how.prealloc())?)),
        Some((layout, named)) => {
            let mut header = Header::new(layout.header_at, layout.bat_at, layout.entries, layout.block_size);
            if let Some((naming, places)) = named {
                naming.put(&mut header, &places);
                naming.write(file.as_ref(), &places)?;
            }
            Ok(Arc::new(Dynamic::create(file, footer, header, &layout, how.fresh)?))
        }
    }
}

/// Where a child's locators stand: one after another, each with room for another name.
pub(crate) type Places = Vec<Range<u64>>;

/// Where the first locator of a new child stands. Between the header and it there is room for another header, which is
/// how the parent is changed.
const LOCATORS_AT: u64 = 4096;

/// A new disk's make, within the format's limits.
pub(crate) struct Plan {
    pub(crate) footer: Footer,
    /// `None`: a fixed disk. A child's parent and where the locators stand.
    pub(crate) blocks: Option<(Layout, Option<(Naming, Places)>)>,
}

impl Plan {
    /// Errors: options or a size that do not fit together.
    pub(crate) fn new(how: &CreateOptions) -> Result<Plan> {
        let options = &how.options;
        let fixed = options.text("subformat") == Some("fixed");
        let batmap = options.flag("batmap");
        let creator = match options.text("creator") {
            None if batmap == Some(true) => Creator::by_name("tap"),
            name => name.map(Creator::by_name).unwrap_or_default(),
        };
        let batmap = fitting(batmap, creator, fixed)?;
        let align = options.size("size_align");
        let rounding = if options.flag("force_size").unwrap_or(false) {
            Rounding::None
        } else if creator.exact {
            Rounding::Believed
        } else if how.parent.is_some() {
            // A child is as large as it was asked to be.
            Rounding::Exact
        } else if align.is_some() {
            Rounding::None
        } else if how.keep_size && !options.has("force_size") {
            Rounding::Exact
        } else {
            Rounding::Geometry
        };
        let asked = how.size.max(options.size("min_size").unwrap_or(0));
        let (size, geometry) = size_and_geometry(asked, align, rounding)?;
        let id = match options.text("unique_id") {
            None => Footer::new_id(),
            Some(text) => unique_id(text)?,
        };
        let footer =
            |header_at| Footer { unique_id: id, ..Footer::new(size, geometry, header_at).by(creator) };
        if fixed {
            return match ["block_size", "max_size", "batmap"].into_iter().find(|name| options.has(name)) {
                _ if how.parent.is_some() => Err(Error::invalid("a fixed VHD has no parent")
                    .hint("leave out subformat=fixed: a disk with a parent is a differencing one")),
                Some(name) => Err(Error::invalid("a fixed VHD has no blocks")
                    .hint(format!("leave out {name}, or choose subformat=dynamic"))),
                None => Ok(Plan { footer: footer(None), blocks: None }),
            };
        }
        if how.prealloc() != Prealloc::Off {
            return Err(Error::unsupported("preallocation of a dynamic VHD is not supported")
                .hint("choose subformat=fixed"));
        }
        let room_for = options.size("max_size").unwrap_or(0);
        if size > MAX_DISK || room_for > MAX_ROOM {
            return Err(Error::invalid("The image size is too large for file format 'vpc'")
                .hint("a dynamic VHD has at most 2040 GiB: choose vhdx"));
        }
        if options.has("max_size") && room_for < size {
            return Err(Error::invalid(format!(
                "max_size={room_for} is less than the disk's size of {size} bytes"
            )));
        }
        let block_size = options.size("block_size").unwrap_or(DEFAULT_BLOCK);
        if !block_size.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&block_size) {
            return Err(Error::invalid(format!(
                "block_size={block_size} is not a power of two from 512K to 256M"
            )));
        }
        let naming = how.parent.as_ref().map(|parent| Naming::of(parent, &[])).transpose()?;
        let blktap = creator.app == Creator::by_name("tap").app;
        let naming = if blktap { naming.map(Naming::of_blktap) } else { naming };
        let named = naming.map(|naming| {
            let mut end = LOCATORS_AT;
            let places = naming.needs().map(|len| {
                let start = end;
                end += len.max(ROOM);
                start..end
            });
            let places: Places = places.collect();
            (naming, places)
        });
        let bat_at = named.as_ref().and_then(|(_, places)| places.last()).map(|last| last.end);
        let layout = Layout::new(size, block_size, Front { bat_at, room_for, batmap })?;
        let mut footer = footer(Some(layout.header_at));
        if named.is_some() {
            footer.disk_type = DiskType::Differencing;
        }
        Ok(Plan { footer, blocks: Some((layout, named)) })
    }
}

/// Whether there is a batmap. XenServer's blktap takes one for granted in all images that bear its name, from creator
/// version 1.2 on, and looks for one in no other.
fn fitting(batmap: Option<bool>, creator: Creator, fixed: bool) -> Result<bool> {
    let tap = creator.app == Creator::by_name("tap").app;
    match batmap {
        Some(true) if !tap => {
            Err(Error::invalid("a batmap is looked for in XenServer's images alone")
                .hint("choose creator=tap"))
        }
        Some(false) if tap && !fixed => {
            Err(Error::invalid("XenServer takes it for granted that each of its images has a batmap")
                .hint("leave out batmap=off"))
        }
        given => Ok(given.unwrap_or(tap && !fixed)),
    }
}

/// The bytes of a unique id as they stand in a file.
pub(crate) fn unique_id(text: &str) -> Result<[u8; 16]> {
    let id = Uuid::try_parse(text).map_err(|_| {
        Error::invalid(format!("unique_id={text} is not a UUID"))
            .hint("one looks like 67e55044-10b1-426f-9247-bb680e5fe0c8")
    })?;
    if id.is_nil() {
        return Err(Error::invalid("a unique_id of zeros is no id")
            .hint("to a child it would say that its parent is raw"));
    }
    Ok(id.into_bytes())
}

/// See `Format::measure`. QEMU has no estimate for this format: what is required is what the blocks touched take.
pub(crate) fn measure(content: &dyn Content, how: &CreateOptions) -> Result<Measured> {
    let Plan { footer, blocks } = Plan::new(how)?;
    let (least, most) = match blocks {
        None => (footer.current_size + FOOTER_LEN, footer.current_size + FOOTER_LEN),
        Some((layout, _)) => (
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
        assert_eq!(size_and_geometry(0, None, Rounding::Geometry).unwrap().0, 0);
        assert_eq!(size_and_geometry(1, None, Rounding::Geometry).unwrap().0, 34816);
        assert_eq!(size_and_geometry(1 << 30, None, Rounding::Geometry).unwrap().0, 1_073_995_776);
        assert_eq!(size_and_geometry(1000, None, Rounding::None).unwrap(), (1024, Geometry::MAX));
        let aligned = size_and_geometry((1 << 20) + 1, Some(1 << 20), Rounding::None).unwrap();
        assert_eq!(aligned, (2 << 20, Geometry::MAX));
        assert_eq!(
            size_and_geometry((200 << 30) + 1, None, Rounding::Geometry).unwrap(),
            ((200 << 30) + 512, Geometry::MAX)
        );
        // A size that a geometry can say, and one that none can.
        assert_eq!(
            size_and_geometry(34816, None, Rounding::Exact).unwrap(),
            (34816, Geometry::of_sectors(68))
        );
        assert_eq!(size_and_geometry(1 << 30, None, Rounding::Exact).unwrap(), (1 << 30, Geometry::MAX));
        // Hyper-V and XenServer write what the specification's algorithm gives, which rounds down.
        let (size, geometry) = size_and_geometry(10 << 30, None, Rounding::Believed).unwrap();
        assert_eq!((size, geometry), (10 << 30, Geometry::of_sectors(10 << 21)));
        assert!(geometry.bytes() < size);
        for bad in [0, 100, 513] {
            assert!(size_and_geometry(512, Some(bad), Rounding::None).is_err());
        }
        assert!(size_and_geometry(u64::MAX, None, Rounding::None).is_err());
    }
}
