//! The block allocation table: how blocks, chunks and entries belong together, and what an entry says (section 2.5).

use crate::bytes::MIB;

/// Bytes of an entry.
pub(crate) const ENTRY: u64 = 8;
/// Sectors whose presence one sector bitmap block records; it is 1 MiB long.
const SECTORS_PER_BITMAP: u64 = 1 << 23;

/// How a disk is cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Guest bytes.
    pub(crate) size: u64,
    /// Bytes of a payload block: a power of two, 1 to 256 MiB.
    pub(crate) block_size: u64,
    /// Bytes of a logical sector.
    pub(crate) sector: u64,
}

impl Geometry {
    /// Payload blocks in a chunk, which has one sector bitmap block: 16 or more.
    pub(crate) fn chunk_ratio(&self) -> u64 {
        1 << self.chunk_bits()
    }

    /// The chunk ratio's power of two: entries are walked by the million, and divisions are slow.
    fn chunk_bits(&self) -> u32 {
        (SECTORS_PER_BITMAP * self.sector).ilog2() - self.block_size.ilog2()
    }

    /// Payload blocks of the disk.
    pub(crate) fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block_size)
    }

    /// Entries that the BAT must have.
    pub(crate) fn entries(&self, differencing: bool) -> u64 {
        let (blocks, ratio) = (self.blocks(), self.chunk_ratio());
        if differencing {
            blocks.div_ceil(ratio) * (ratio + 1)
        } else {
            blocks + blocks.saturating_sub(1) / ratio
        }
    }

    /// The entry of a payload block.
    pub(crate) fn entry_of(&self, block: u64) -> u64 {
        block + (block >> self.chunk_bits())
    }

    /// The entry of the sector bitmap block that belongs to a payload block.
    pub(crate) fn bitmap_entry_of(&self, block: u64) -> u64 {
        let ratio = self.chunk_ratio();
        block / ratio * (ratio + 1) + ratio
    }

    /// The first payload block whose entry is `entry` or behind it.
    pub(crate) fn block_at(&self, entry: u64) -> u64 {
        let with_bitmap = self.chunk_ratio() + 1;
        entry / with_bitmap * self.chunk_ratio() + entry % with_bitmap
    }

    /// Bytes of a block that are the disk's: all, but of the last one.
    pub(crate) fn used(&self, block: u64) -> u64 {
        self.block_size.min(self.size.saturating_sub(block * self.block_size))
    }

    /// The bit of a guest byte's sector in its sector bitmap block.
    pub(crate) fn bit_of(&self, at: u64) -> u64 {
        at / self.sector % SECTORS_PER_BITMAP
    }
}

/// What an entry says of its payload block. Offsets are file offsets of whole MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// Nothing: a child shows its parent, other disks zeros.
    NotPresent,
    /// Zeros, whatever the parent has: states ZERO, UNDEFINED and UNMAPPED.
    Zero,
    /// The whole block stands here.
    Full(u64),
    /// The sectors that the sector bitmap names stand here; the parent shows through the others.
    Partial(u64),
}

const NOT_PRESENT: u64 = 0;
const UNDEFINED: u64 = 1;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
const UNMAPPED_V095: u64 = 5;
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;

const STATE: u64 = 7;
/// Bits of an entry that are zero.
pub(crate) const RESERVED: u64 = 0xf_fff8;

/// An entry's state as it stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    NotPresent,
    Undefined,
    Zero,
    Unmapped,
    /// As unmapped; in a draft of the format, 0.95.
    UnmappedDraft,
    Full,
    Partial,
    /// One that does not exist.
    Unknown,
}

/// The state that an entry has; a sector bitmap's may be [`State::NotPresent`] or [`State::Full`].
pub(crate) fn state(entry: u64) -> State {
    match entry & STATE {
        NOT_PRESENT => State::NotPresent,
        UNDEFINED => State::Undefined,
        ZERO => State::Zero,
        UNMAPPED => State::Unmapped,
        UNMAPPED_V095 => State::UnmappedDraft,
        FULLY_PRESENT => State::Full,
        PARTIALLY_PRESENT => State::Partial,
        _ => State::Unknown,
    }
}

/// The entry in the same state, with no place.
pub(crate) fn without_place(entry: u64) -> u64 {
    entry & STATE
}

/// The file offset that an entry has, which says something in some states only.
pub(crate) fn offset(entry: u64) -> u64 {
    entry & !(MIB - 1)
}

impl Block {
    /// Reads a payload block's entry; says what is wrong with it.
    pub(crate) fn decode(entry: u64, differencing: bool) -> Result<Block, String> {
        if entry & RESERVED != 0 {
            return Err(format!("{entry:#x} has reserved bits set"));
        }
        let offset = entry & !(MIB - 1);
        match entry & STATE {
            NOT_PRESENT => Ok(Block::NotPresent),
            UNDEFINED | ZERO | UNMAPPED | UNMAPPED_V095 => Ok(Block::Zero),
            FULLY_PRESENT => Ok(Block::Full(offset)),
            PARTIALLY_PRESENT if differencing => Ok(Block::Partial(offset)),
            PARTIALLY_PRESENT => {
                Err(format!("{entry:#x} says that the block is partly in the parent, and there is no parent"))
            }
            state => Err(format!("{entry:#x} has the state {state}, which does not exist")),
        }
    }

    /// The entry that says this.
    pub(crate) fn encode(self) -> u64 {
        match self {
            Block::NotPresent => NOT_PRESENT,
            Block::Zero => ZERO,
            Block::Full(offset) => offset | FULLY_PRESENT,
            Block::Partial(offset) => offset | PARTIALLY_PRESENT,
        }
    }
}

/// A payload block's entry as older versions of QEMU wrote it, and Windows does not read it: zero with a place, or
/// unmapped as version 0.95 has it.
pub(crate) fn is_strange(entry: u64) -> bool {
    match state(entry) {
        State::Zero => offset(entry) != 0,
        state => state == State::UnmappedDraft,
    }
}

/// Where the sector bitmap block of this entry stands; `Ok(None)` where there is none.
pub(crate) fn decode_bitmap(entry: u64) -> Result<Option<u64>, String> {
    match (entry & STATE, entry & RESERVED) {
        (NOT_PRESENT, 0) => Ok(None),
        (FULLY_PRESENT, 0) => Ok(Some(entry & !(MIB - 1))),
        (_, 0) => Err(format!("{entry:#x} has a state that a sector bitmap cannot have")),
        _ => Err(format!("{entry:#x} has reserved bits set")),
    }
}

/// The entry that says that a sector bitmap block stands there.
pub(crate) fn encode_bitmap(offset: u64) -> u64 {
    offset | FULLY_PRESENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_specification() {
        let geometry = |size, block_size, sector| Geometry { size, block_size, sector };
        assert_eq!(geometry(0, MIB, 512).chunk_ratio(), 4096);
        assert_eq!(geometry(0, 256 * MIB, 512).chunk_ratio(), 16);
        assert_eq!(geometry(0, MIB, 4096).chunk_ratio(), 32768);
        // An empty disk, one chunk exactly, and one block more.
        let ratio = 128;
        for (blocks, plain, differencing) in
            [(0, 0, 0), (1, 1, 129), (ratio, ratio, 129), (ratio + 1, ratio + 2, 258)]
        {
            let geometry = geometry(blocks * 32 * MIB, 32 * MIB, 512);
            assert_eq!(
                (geometry.entries(false), geometry.entries(true)),
                (plain, differencing),
                "{blocks} blocks"
            );
        }
    }

    #[test]
    fn entries_and_blocks_are_each_others_inverse() {
        let geometry = Geometry { size: 64 << 30, block_size: 256 * MIB, sector: 512 };
        for block in 0..geometry.blocks() {
            let entry = geometry.entry_of(block);
            assert_eq!(geometry.block_at(entry), block);
            let bitmap = geometry.bitmap_entry_of(block);
            assert_eq!((bitmap % 17, geometry.block_at(bitmap)), (16, (block / 16 + 1) * 16));
            assert!(bitmap > entry && bitmap - entry <= 16);
        }
        assert_eq!(geometry.bit_of(4 << 30), 0);
        assert_eq!(geometry.bit_of((4 << 30) + 512 * 9), 9);
        assert_eq!(geometry.bit_of((4 << 30) - 512), (1 << 23) - 1);
    }

    #[test]
    fn states() {
        let at = 7 * MIB;
        for (entry, plain, differencing) in [
            (at, Some(Block::NotPresent), Some(Block::NotPresent)),
            (1, Some(Block::Zero), Some(Block::Zero)),
            (at | 2, Some(Block::Zero), Some(Block::Zero)),
            (at | 3, Some(Block::Zero), Some(Block::Zero)),
            (4, None, None),
            (5, Some(Block::Zero), Some(Block::Zero)),
            (at | 6, Some(Block::Full(at)), Some(Block::Full(at))),
            (at | 7, None, Some(Block::Partial(at))),
            (at | 6 | 8, None, None),
            (1 << 19, None, None),
        ] {
            assert_eq!(Block::decode(entry, false).ok(), plain, "{entry:#x}");
            assert_eq!(Block::decode(entry, true).ok(), differencing, "{entry:#x}");
        }
        assert_eq!(Block::Full(at).encode(), at | 6);
        assert_eq!(decode_bitmap(at | 6), Ok(Some(at)));
        assert_eq!(decode_bitmap(at), Ok(None));
        assert!(decode_bitmap(at | 7).is_err() && decode_bitmap(8).is_err());
    }
}
