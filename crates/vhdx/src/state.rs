//! What an open file says of itself: its metadata, how its disk is cut into blocks, its regions and its BAT.

use std::ops::Range;
use std::sync::Arc;

use cowhand_core::{Error, Result, Storage};

use crate::bat::{self, Block, Geometry};
use crate::bytes::MIB;
use crate::header::LogPlace;
use crate::metadata::Metadata;
use crate::pages::Pages;
use crate::region::Regions;
use crate::table::{Table, View};

/// Who has it keeps it for one operation; who changes the layer as a whole puts another in its place.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) metadata: Metadata,
    pub(crate) geometry: Geometry,
    pub(crate) regions: Regions,
    pub(crate) table: Table,
}

impl State {
    /// What the regions of a file without pending log say. `len` is the file's length.
    pub(crate) fn read(file: &dyn Storage, pages: &Arc<Pages>, log: &LogPlace, len: u64) -> Result<State> {
        let regions = Regions::read(file, len, log)?;
        let metadata = Metadata::read(file, regions.metadata)?;
        Self::of(metadata, regions, pages)
    }

    /// The state of a disk with this metadata in these regions. Errors: the BAT region is too short for it.
    pub(crate) fn of(metadata: Metadata, regions: Regions, pages: &Arc<Pages>) -> Result<State> {
        let geometry = Geometry {
            size: metadata.size,
            block_size: metadata.block_size,
            sector: metadata.logical_sector.into(),
        };
        let entries = geometry.entries(metadata.parent.is_some());
        if entries * bat::ENTRY > regions.bat.length {
            let what =
                format!("has {} bytes, too few for the {entries} entries of this disk", regions.bat.length);
            return Err(Error::corrupt("BAT region", what).at(regions.bat.offset));
        }
        let table = Table::new(pages.clone(), regions.bat.offset);
        Ok(State { metadata, geometry, regions, table })
    }

    pub(crate) fn is_differencing(&self) -> bool {
        self.metadata.parent.is_some()
    }

    /// The file keeps its blocks where they are: a fixed one. Of a child this says nothing (section 2.6.2.1).
    pub(crate) fn keeps_blocks(&self) -> bool {
        self.metadata.leave_blocks_allocated && !self.is_differencing()
    }

    /// Bytes of the block that are the disk's: all, but of the last one.
    pub(crate) fn used(&self, block: u64) -> u64 {
        self.geometry.used(block)
    }

    /// The error that an entry is wrong, which is that of `what`.
    pub(crate) fn wrong_entry(&self, entry: u64, what: String) -> Error {
        Error::corrupt("BAT entry", what).at(self.table.offset_of(entry))
    }

    /// What `raw`, the entry of `block`, says; offsets are inside the file, which is `len` bytes long, and meet no
    /// structure.
    pub(crate) fn decode(&self, block: u64, raw: u64, len: u64) -> Result<Block, String> {
        let decoded = Block::decode(raw, self.is_differencing())?;
        if let Block::Full(offset) | Block::Partial(offset) = decoded {
            // What lies past the disk's end in its last block need not be in the file.
            let place = offset..offset.saturating_add(self.geometry.block_size);
            self.regions.check_place(place, self.used(block), len)?;
        }
        Ok(decoded)
    }

    /// What the table says of a block.
    pub(crate) fn block(&self, block: u64, len: u64) -> Result<Block> {
        let entry = self.geometry.entry_of(block);
        let raw = self.table.entry(entry)?;
        self.decode(block, raw, len)
            .map_err(|what| self.wrong_entry(entry, format!("{what} (block {block})")))
    }

    /// Calls `see` with each payload block, ascending, and its entry; what stands in a hole of the file is left out.
    pub(crate) fn payload(&self, see: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
        let geometry = &self.geometry;
        let mut block = 0;
        while block < geometry.blocks() {
            match self.table.view(geometry.entry_of(block))? {
                View::Zero(end) => block = geometry.block_at(end).max(block + 1),
                View::Entries(entries) => {
                    let end = geometry.block_at(entries.end()).min(geometry.blocks()).max(block + 1);
                    while block < end {
                        see(block, entries.get(geometry.entry_of(block)).unwrap_or(0))?;
                        block += 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// Where the sector bitmap stands that has the bits of `block`, if there is one.
    pub(crate) fn bitmap(&self, block: u64, len: u64) -> Result<Option<u64>> {
        let entry = self.geometry.bitmap_entry_of(block);
        self.decode_bitmap(self.table.entry(entry)?, len).map_err(|what| {
            Error::corrupt("sector bitmap entry", format!("{what} (block {block})"))
                .at(self.table.offset_of(entry))
        })
    }

    /// Where the sector bitmap of this entry stands, inside the file.
    pub(crate) fn decode_bitmap(&self, raw: u64, len: u64) -> Result<Option<u64>, String> {
        let found = bat::decode_bitmap(raw)?;
        if let Some(at) = found {
            self.regions.check_place(at..at.saturating_add(MIB), MIB, len)?;
        }
        Ok(found)
    }

    /// The bits of these sectors, counted from the block's first, in the sector bitmap of the block's chunk.
    pub(crate) fn bits(&self, block: u64, sectors: Range<u64>) -> Range<u64> {
        let first = self.geometry.bit_of(block * self.geometry.block_size);
        first + sectors.start..first + sectors.end
    }
}
