//! Making a new image: what is asked for, where everything goes, and the file's first content.

use std::sync::Arc;

use cowhand_core::{
    Content, CreateOptions, Error, Measured, OptionKind, OptionSpec, ParentRef, Prealloc, Result, Storage,
    largest, touched,
};

use crate::bat::{Block, ENTRY, Geometry};
use crate::bytes::{self, MIB};
use crate::check::bits::Bits;
use crate::guid::Guid;
use crate::header::{self, HEADERS, Header, LogPlace};
use crate::journal::Journal;
use crate::layer::VhdxLayer;
use crate::metadata::{MAX_SIZE, Metadata};
use crate::naming;
use crate::region::{Region, Regions, TABLES};
use crate::space::Space;
use crate::writer::Writer;

/// What can be set when an image is made.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::SIZE,
    OptionSpec::new(
        "log_size",
        OptionKind::Size,
        "Log size; min 1MB, rounded up to whole MB",
    )
    .shown("1048576"),
    OptionSpec::new(
        "block_size",
        OptionKind::Size,
        "Block size; a power of two from 1MB to 256MB. 0 means auto-calculate based on image size",
    )
    .shown("0"),
    OptionSpec::new(
        "subformat",
        OptionKind::Choice(&["dynamic", "fixed"]),
        "VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'.",
    ),
    OptionSpec::new(
        "block_state_zero",
        OptionKind::Flag,
        "Blocks that nothing is written to say that they are zero (the default), not just that they are absent",
    ),
    OptionSpec::new(
        "logical_sector_size",
        OptionKind::Choice(&["512", "4096"]),
        "The disk's logical sector; default 512, and the parent's where there is one",
    )
    .own(),
    OptionSpec::new(
        "physical_sector_size",
        OptionKind::Choice(&["512", "4096"]),
        "The disk's physical sector; default 4096",
    )
    .own(),
    OptionSpec::new(
        "disk_id",
        OptionKind::Text,
        "The id by which a guest knows the disk (SCSI page 83), a UUID; default a new one, and the parent's where there is one",
    )
    .own(),
    OptionSpec::new(
        "data_write_guid",
        OptionKind::Text,
        "The id by which a child knows its parent's content, a UUID; default a new one",
    )
    .own(),
    OptionSpec::new(
        "preallocation",
        OptionKind::Choice(&["off", "falloc", "full"]),
        "Preallocation mode of a fixed image (allowed values: off, falloc, full)",
    )
    .of_file(),
];

/// A new image's make, within the format's limits.
#[derive(Debug)]
struct Plan {
    metadata: Metadata,
    /// What children know the content by.
    data_write_guid: Guid,
    log_size: u64,
    /// The state that every block begins with.
    unwritten: Block,
    prealloc: Prealloc,
    fresh: bool,
    as_qemu: bool,
}

impl Plan {
    fn new(how: &CreateOptions) -> Result<Plan> {
        let options = &how.options;
        let fixed = options.text("subformat") == Some("fixed");
        let sector = |name: &str, default| match options.text(name) {
            Some("512") => 512,
            Some("4096") => 4096,
            _ => default,
        };
        let locator = how.parent.as_ref().map(|parent| naming::locator(parent, None)).transpose()?;
        let logical_sector = match &how.parent {
            None => sector("logical_sector_size", 512),
            Some(parent) => sectors_of_child(parent, options.number("logical_sector_size"))?,
        };
        let too_large = || Error::invalid("Image size too large; max of 64TB");
        let size = how
            .size
            .checked_next_multiple_of(logical_sector.into())
            .filter(|size| *size <= MAX_SIZE)
            .ok_or_else(too_large)?;
        let block_size = match options.size("block_size").unwrap_or(0) {
            0 if how.qemu_choices => block_size_of_qemu(size),
            0 => automatic_block_size(size),
            // QEMU rounds too.
            given => given.min(256 * MIB).next_multiple_of(MIB),
        };
        if !block_size.is_power_of_two() {
            return Err(Error::invalid("Block size must be a power of two"));
        }
        let log_size =
            options.size("log_size").unwrap_or(MIB).checked_next_multiple_of(MIB).unwrap_or(u64::MAX);
        if log_size == 0 {
            return Err(Error::invalid("Log size must be a multiple of 1 MB"));
        }
        if log_size >= 1 << 32 {
            return Err(Error::invalid("Log size must be smaller than 4 GB"));
        }
        let prealloc = how.prealloc();
        if prealloc != Prealloc::Off && !fixed {
            return Err(Error::invalid("preallocation is for a fixed image").hint("add subformat=fixed"));
        }
        let unwritten = match options.flag("block_state_zero") {
            _ if locator.is_some() && fixed => {
                return Err(Error::invalid("a fixed VHDX has no parent")
                    .hint("leave out subformat=fixed: a disk with a parent is a differencing one"));
            }
            Some(true) if locator.is_some() => {
                return Err(Error::invalid("blocks that say they are zero would hide the parent")
                    .hint("leave out block_state_zero"));
            }
            None if locator.is_some() => Block::NotPresent,
            Some(false) => Block::NotPresent,
            _ => Block::Zero,
        };
        let disk_id = match (options.text("disk_id"), &how.parent) {
            (Some(text), _) => Some(guid_option("disk_id", text)?),
            (None, Some(parent)) => parent.disk_id.map(Guid::from_raw),
            (None, None) => None,
        };
        let data_write_guid =
            options.text("data_write_guid").map(|text| guid_option("data_write_guid", text)).transpose()?;
        let metadata = Metadata {
            block_size,
            leave_blocks_allocated: fixed,
            size,
            disk_id: disk_id.unwrap_or_else(Guid::random),
            logical_sector,
            physical_sector: sector("physical_sector_size", 4096),
            parent: locator,
        };
        let data_write_guid = data_write_guid.unwrap_or_else(Guid::random);
        Ok(Plan {
            metadata,
            data_write_guid,
            log_size,
            unwritten,
            prealloc,
            fresh: how.fresh,
            as_qemu: how.qemu_choices,
        })
    }
}

/// The logical sector of a child of `parent`: the parent's, for a guest would not find its file systems otherwise, and
/// the bits of presence count in it.
fn sectors_of_child(parent: &ParentRef, given: Option<u64>) -> Result<u32> {
    let Some(sector) = parent.sector else {
        return Err(Error::invalid("the logical sector of the parent is not known")
            .hint("a child has its parent's, so the parent must be there, and be looked at"));
    };
    if given.is_some_and(|given| given != u64::from(sector)) {
        return Err(same_sectors(sector));
    }
    Ok(sector)
}

/// What is said to who wants a parent of `sector` bytes for a disk of others.
pub(crate) fn same_sectors(sector: u32) -> Error {
    Error::invalid(format!("a child has its parent's logical sector, which is {sector} bytes here"))
        .hint("convert the parent to the other sector size first, or make the child as qcow2")
}

/// An id as it is given on the command line.
pub(crate) fn guid_option(name: &str, text: &str) -> Result<Guid> {
    let guid = Guid::parse(text).ok_or_else(|| {
        Error::invalid(format!("{name}={text} is not a UUID"))
            .hint("one looks like 67e55044-10b1-426f-9247-bb680e5fe0c8")
    })?;
    if guid == Guid::ZERO {
        return Err(Error::invalid(format!("a {name} of zeros is no id")));
    }
    Ok(guid)
}

/// Where everything goes in a new file.
struct Places {
    geometry: Geometry,
    log: LogPlace,
    metadata_region: Region,
    bat: Region,
    blocks_at: u64,
    /// Where the last block ends when all are there, and a child's sector bitmaps.
    blocks_end: u64,
    /// Where the file ends then.
    full_len: u64,
}

impl Places {
    /// `as_qemu`: in QEMU's order, with what it leaves free, and a fixed file ends with the disk.
    fn of(metadata: &Metadata, log_size: u64, as_qemu: bool) -> Places {
        let geometry = Geometry {
            size: metadata.size,
            block_size: metadata.block_size,
            sector: metadata.logical_sector.into(),
        };
        let log = LogPlace { guid: Guid::ZERO, offset: MIB, length: log_size };
        let log_end = MIB + log_size;
        let differencing = metadata.parent.is_some();
        let bat_length = (geometry.entries(differencing) * ENTRY).next_multiple_of(MIB).max(MIB);
        let (bat_at, metadata_at) =
            if as_qemu { (log_end, log_end + bat_length) } else { (log_end + MIB, log_end) };
        let bat = Region { offset: bat_at, length: bat_length };
        let metadata_region = Region { offset: metadata_at, length: MIB };
        let blocks_at = log_end + bat_length + MIB + if as_qemu { 4 * MIB } else { 0 };
        let bitmaps = if differencing { geometry.blocks().div_ceil(geometry.chunk_ratio()) } else { 0 };
        let blocks_end = blocks_at + geometry.blocks() * geometry.block_size + bitmaps * MIB;
        let full_len = if as_qemu && !differencing { blocks_at + metadata.size } else { blocks_end };
        Places { geometry, log, metadata_region, bat, blocks_at, blocks_end, full_len }
    }
}

/// See `Format::measure`. QEMU has no estimate for this format: what is required is what the blocks touched take.
pub(crate) fn measure(content: &dyn Content, how: &CreateOptions) -> Result<Measured> {
    let plan = Plan::new(how)?;
    let Places { geometry, blocks_at, blocks_end, full_len, .. } =
        Places::of(&plan.metadata, plan.log_size, plan.as_qemu);
    let exact = if plan.metadata.leave_blocks_allocated {
        full_len
    } else {
        // In a child each chunk that is written to may get a sector bitmap.
        let chunk = geometry.block_size * geometry.chunk_ratio();
        let [blocks, chunks] = touched(content, [geometry.block_size, chunk])?;
        let bitmaps = if plan.metadata.parent.is_some() { chunks * MIB } else { 0 };
        blocks_at + blocks * geometry.block_size + bitmaps
    };
    Ok(Measured { required: exact, fully_allocated: blocks_end, exact, bitmaps: None })
}

/// The largest disk whose file is at most `file_len` bytes long with every block written: as it is laid out here, or by
/// the formula of Hyper-V's utilities.
pub(crate) fn largest_disk(like: &VhdxLayer, file_len: u64, exact: bool) -> Option<u64> {
    let state = like.state();
    let Metadata { block_size, logical_sector, .. } = state.metadata;
    let log_size = like.header().log.length;
    if !exact {
        let (block, ratio) =
            (u128::from(block_size), u128::from((u64::from(logical_sector) << 23) / block_size));
        let front = MIB + log_size + state.regions.metadata.length;
        let room = u128::from(file_len).checked_sub(u128::from(front) + 8 + 8 / ratio)?;
        let most = block * ratio * room / (block * ratio + 8 * ratio + 8);
        return u64::try_from(most - most % block).ok();
    }
    let end = |blocks: u64| {
        let metadata = Metadata { size: blocks * block_size, parent: None, ..state.metadata.clone() };
        Places::of(&metadata, log_size, false).blocks_end
    };
    largest(MAX_SIZE / block_size, |blocks| end(blocks) <= file_len).map(|blocks| blocks * block_size)
}

/// The smallest block with which the disk has at most 131072 of them, a BAT of a MiB; but not above 32 MiB, which is
/// what Windows takes. A file is longer than its data by what is unused of its blocks, so small blocks keep small files
/// small.
fn automatic_block_size(size: u64) -> u64 {
    size.div_ceil(131_072).next_power_of_two().clamp(MIB, 32 * MIB)
}

/// The block that QEMU takes for a disk of `size` bytes.
fn block_size_of_qemu(size: u64) -> u64 {
    const GIB: u64 = 1 << 30;
    let mib = match size {
        _ if size > 32 * 1024 * GIB => 64,
        _ if size > 100 * GIB => 32,
        _ if size > GIB => 16,
        _ => 8,
    };
    mib * MIB
}

/// Makes an image in `file`, whose content is lost.
pub(crate) fn create(file: Arc<dyn Storage>, how: &CreateOptions) -> Result<VhdxLayer> {
    let plan = Plan::new(how)?;
    let metadata = &plan.metadata;
    let Places { geometry, log, metadata_region, bat, blocks_at, blocks_end, full_len } =
        Places::of(&plan.metadata, plan.log_size, plan.as_qemu);
    let fixed = metadata.leave_blocks_allocated;
    let (end, len) = if fixed { (blocks_end, full_len) } else { (blocks_at, blocks_at) };

    let resize =
        |len| file.set_len(len).map_err(|error| Error::io(format!("cannot make it {len} bytes long"), error));
    resize(0)?;
    if file.len().map_err(|error| Error::io("cannot find the size", error))? != 0 {
        // A new block must read zero where it is not written, and a device holds what it held.
        return Err(Error::unsupported("a VHDX cannot be made on a block device")
            .hint("make it in a file, or choose raw or qcow2"));
    }
    resize(len)?;
    let header = Header {
        sequence_number: 1,
        file_write_guid: Guid::random(),
        data_write_guid: plan.data_write_guid,
        log,
    };
    let current = Header { sequence_number: 2, ..header };
    bytes::write(file.as_ref(), "file type identifier", 0, &header::identifier())?;
    for (at, header) in HEADERS.into_iter().zip([header, current]) {
        bytes::write(file.as_ref(), "header", at, &header.to_bytes())?;
    }
    let table = Regions::table(bat, metadata_region);
    for at in TABLES {
        bytes::write(file.as_ref(), "region table", at, &table)?;
    }
    bytes::write(file.as_ref(), "metadata table", metadata_region.offset, &metadata.to_bytes()?)?;
    if fixed || plan.unwritten != Block::NotPresent {
        write_entries(file.as_ref(), bat.offset, &geometry, |block| match fixed {
            true => Block::Full(blocks_at + block * geometry.block_size),
            false => plan.unwritten,
        })?;
    }
    preallocate(file.as_ref(), blocks_at, full_len - blocks_at, plan.prealloc)?;
    if !plan.fresh {
        file.sync().map_err(|error| Error::io("cannot sync", error))?;
    }
    let creator = header::read_creator(file.as_ref())?;
    let mut used = Bits::default();
    used.take(0..end / MIB);
    let space = Space::new(used, geometry.block_size, end);
    // The current header is the second.
    let journal = (!plan.fresh).then(|| Journal::new(file.clone(), current, 1));
    VhdxLayer::assemble(file, creator, current, Some(Writer::of_new(space, journal)))
}

/// Writes what `block` says of every payload block; sector bitmaps have no place.
fn write_entries(
    file: &dyn Storage,
    at: u64,
    geometry: &Geometry,
    block: impl Fn(u64) -> Block,
) -> Result<()> {
    let entries = geometry.entries(false);
    let mut buf = Vec::with_capacity((entries * ENTRY).min(MIB) as usize);
    let mut next = 0;
    while next < entries {
        let first = next;
        buf.clear();
        while next < entries && (buf.len() as u64) < MIB {
            let number = geometry.block_at(next);
            let value = if geometry.entry_of(number) == next { block(number).encode() } else { 0 };
            buf.extend_from_slice(&value.to_le_bytes());
            next += 1;
        }
        bytes::write(file, "BAT", at + first * ENTRY, &buf)?;
    }
    Ok(())
}

/// Gives the blocks of a fixed image their space.
pub(crate) fn preallocate(file: &dyn Storage, at: u64, len: u64, how: Prealloc) -> Result<()> {
    let failed = |error| Error::io("cannot reserve the space", error);
    if len == 0 || how == Prealloc::Off || how == Prealloc::Metadata {
        return Ok(());
    }
    if !file.allocate(at, len).map_err(failed)? && how == Prealloc::Falloc {
        return Err(
            Error::unsupported("this file system cannot reserve space").hint("use preallocation=full or off")
        );
    }
    if how == Prealloc::Full {
        let zeros = vec![0; MIB as usize];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(MIB);
            file.write_at(at + done, zeros.get(..n as usize).unwrap_or_default()).map_err(failed)?;
            done += n;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::{ErrorKind, MemoryStorage, Options};

    #[test]
    fn small_disks_get_small_blocks() {
        for (size, mib) in [
            (0, 1),
            (1, 1),
            (128 << 30, 1),
            ((128 << 30) + 1, 2),
            (1 << 40, 8),
            (4 << 40, 32),
            (64 << 40, 32),
        ] {
            assert_eq!(automatic_block_size(size), mib * MIB, "{size}");
        }
    }

    fn refused(size: u64, given: &[(&str, &str)]) -> ErrorKind {
        let given: Vec<_> = given.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        let options = Options::check(OPTIONS, &given).unwrap();
        create(Arc::new(MemoryStorage::new()), &CreateOptions { size, options, ..Default::default() })
            .unwrap_err()
            .kind()
    }

    #[test]
    fn requests_that_make_no_sense_are_refused() {
        assert_eq!(refused(MAX_SIZE + 1, &[]), ErrorKind::Invalid);
        assert_eq!(refused(u64::MAX, &[]), ErrorKind::Invalid);
        assert_eq!(refused(MIB, &[("block_size", "3M")]), ErrorKind::Invalid);
        for value in ["0", "4G"] {
            assert_eq!(refused(MIB, &[("log_size", value)]), ErrorKind::Invalid, "{value}");
        }
        assert_eq!(refused(MIB, &[("preallocation", "full")]), ErrorKind::Invalid);
        for (option, value) in
            [("disk_id", "7"), ("data_write_guid", "{00000000-0000-0000-0000-000000000000}")]
        {
            assert_eq!(refused(MIB, &[(option, value)]), ErrorKind::Invalid, "{option}");
        }
    }
}
