//! The header of an extent: which clusters follow, and what of them.

use zerocopy::FromBytes;

use crate::header::checksum;
use crate::layout::{EXTENT_HEADER, EXTENT_MAGIC, RawExtent, RawSlot};
use crate::wrong::Wrong;

const UUID: u64 = 8;
const BLOCK_COUNT: u64 = 6;
const MD5SUM: u64 = 24;
const BLOCKINFO: u64 = 40;

/// A cluster that an extent lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// The device.
    pub(crate) dev_id: u8,
    /// Which of its clusters.
    pub(crate) cluster: u32,
    /// Bit i: block i is in the extent's data; else it is zero.
    pub(crate) mask: u16,
    /// Offset in the archive, in bytes, of the entry.
    pub(crate) at: u64,
}

impl Slot {
    /// Blocks that are in the extent's data.
    pub(crate) fn blocks(self) -> u32 {
        self.mask.count_ones()
    }
}

/// Parses the extent's header that stands at offset `at` of the archive that bears `uuid`; `None`: of any. Its data is
/// [`RawExtent::block_count`] blocks long.
pub(crate) fn parse<'a>(bytes: &'a [u8], at: u64, uuid: Option<&[u8; 16]>) -> Result<&'a RawExtent, Wrong> {
    let Ok((extent, _)) = RawExtent::ref_from_prefix(bytes) else {
        return Err(short(bytes.len(), at));
    };
    let header = bytes.get(..EXTENT_HEADER).unwrap_or(bytes);
    // Proxmox's tool looks in another order.
    let known_as = || {
        if extent.md5sum != checksum(header, MD5SUM) {
            "wrong vma extent header chechsum"
        } else if uuid.is_some_and(|uuid| extent.uuid != *uuid) {
            "wrong vma extent uuid"
        } else {
            "wrong vma extent header magic"
        }
    };
    let wrong =
        |offset, message: String| Err(Wrong::new("extent", at + offset, message).known_as(known_as()));
    if extent.magic != EXTENT_MAGIC {
        return wrong(0, "no extent begins there: its magic is not 'VMAE'".to_owned());
    }
    if extent.reserved.get() != 0 {
        return wrong(4, format!("what follows its magic is {}, not 0", extent.reserved));
    }
    if extent.md5sum != checksum(header, MD5SUM) {
        return wrong(MD5SUM, "the checksum is not that of its header".to_owned());
    }
    if uuid.is_some_and(|uuid| extent.uuid != *uuid) {
        return wrong(UUID, format!("it is of another archive, {}", uuid::Uuid::from_bytes(extent.uuid)));
    }
    let (said, listed) = (u32::from(extent.block_count.get()), listed(extent, at));
    if listed != said {
        let (what, known_as) = match listed > said {
            true => ("too many", "short vma extent - too many blocks"),
            false => ("too few", "vma extent error - missing blocks"),
        };
        let message = format!("its clusters have {listed} blocks, {what}: it says {said}");
        return Err(Wrong::new("extent", at + BLOCK_COUNT, message).known_as(known_as));
    }
    Ok(extent)
}

/// An extent's header that the archive ends within.
pub(crate) fn short(len: usize, at: u64) -> Wrong {
    Wrong::new("extent", at, format!("the archive ends within its header, of which there are {len} bytes"))
        .known_as(format!("read short extent ({len} bytes)"))
}

/// Blocks that the clusters of an extent say are in its data.
pub(crate) fn listed(extent: &RawExtent, at: u64) -> u32 {
    slots(extent, at).map(Slot::blocks).sum()
}

/// The clusters that an extent lists, in the order of their data. `at`: the extent's offset in the archive.
pub(crate) fn slots(extent: &RawExtent, at: u64) -> impl Iterator<Item = Slot> {
    let places = (at + BLOCKINFO..).step_by(size_of::<RawSlot>());
    let used = places.zip(&extent.blockinfo).filter(|(_, slot)| slot.dev_id != 0);
    used.map(|(at, slot)| Slot {
        dev_id: slot.dev_id,
        cluster: slot.cluster.get(),
        mask: slot.mask.get(),
        at,
    })
}
