//! What stands where in the file of a dynamic or differencing disk: its metadata and its blocks, what of it overlaps, and
//! what is free between.
//!
//! In memory: 8 bytes for each block that is in the file.

use std::fmt;
use std::ops::Range;

use cowhand_core::{Error, Result, Storage};

use crate::bat::{self, FREE};
use crate::batmap::Batmap;
use crate::find::Found;
use crate::footer::FOOTER_LEN;
use crate::geometry::SECTOR;
use crate::header::{HEADER_LEN, Header};

/// Blocks in the file that are kept in mind, 128 MiB of memory; the largest disk in blocks of 512 KiB has a quarter.
const MAX_BLOCKS: usize = 1 << 24;

/// What takes room in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    FooterCopy,
    Header,
    Table,
    BatmapHeader,
    Batmap,
    /// The data of the parent locator of this index.
    Locator(usize),
    /// A block's bitmap and what the disk has of its sectors.
    Block(u32),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::FooterCopy => f.write_str("the footer's copy"),
            Owner::Header => f.write_str("the dynamic header"),
            Owner::Table => f.write_str("the table"),
            Owner::BatmapHeader => f.write_str("the batmap's header"),
            Owner::Batmap => f.write_str("the batmap"),
            Owner::Locator(index) => write!(f, "the path of parent locator {}", index + 1),
            Owner::Block(block) => write!(f, "block {block}"),
        }
    }
}

/// Room that somebody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) range: Range<u64>,
    pub(crate) owner: Owner,
}

/// A table entry that cannot be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadEntries {
    /// The blocks whose entries these are; more than one only where a stretch of the table is alike.
    pub(crate) blocks: Range<u64>,
    pub(crate) entry: u32,
    /// Where the first of them stands in the file.
    pub(crate) at: u64,
    /// What is wrong: "puts block 7 at ..., past the file's end at ...".
    pub(crate) what: String,
}

/// What stands where.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Ascending by their start.
    metadata: Vec<Place>,
    /// A sector in the upper half, the block that begins there in the lower; ascending.
    blocks: Vec<u64>,
    size: u64,
    block_size: u64,
    bitmap_len: u64,
}

impl Places {
    /// Reads the whole table of the disk of `size` bytes. `bad` hears of each entry that leads out of the file's room for
    /// blocks or over metadata (which are then left out) and may end the reading. Entries of blocks that the disk does
    /// not have are kept wherever they lead within that room: their space is taken, by nobody. Errors: the table cannot
    /// be read; the file has more blocks than are kept in mind.
    pub(crate) fn read(
        file: &dyn Storage,
        found: &Found,
        header: &Header,
        size: u64,
        bad: &mut dyn FnMut(BadEntries) -> Result<()>,
    ) -> Result<Places> {
        let mut places = Places {
            metadata: metadata(file, found, header)?,
            blocks: Vec::new(),
            size,
            block_size: header.block_size,
            bitmap_len: header.bitmap_len(),
        };
        // The disk's last block may be shorter than the others, and those past it take no part in the disk.
        let count = size.div_ceil(header.block_size);
        let kinds = [0..count.saturating_sub(1), count.saturating_sub(1)..count, count..u64::MAX];
        bat::runs(file, header, &mut |run, entry| {
            if entry == FREE {
                return Ok(());
            }
            for kind in &kinds {
                let blocks = run.start.max(kind.start)..run.end.min(kind.end);
                if blocks.is_empty() {
                    continue;
                }
                let at = header.bat_at + 4 * blocks.start;
                match places.wrong(blocks.start, entry, found) {
                    Some(what) => bad(BadEntries { blocks, entry, at, what })?,
                    // No two blocks share a place, and a hostile table may say so of four thousand million.
                    None if places.blocks.len() as u64 + (blocks.end - blocks.start) > MAX_BLOCKS as u64 => {
                        return Err(Error::unsupported(format!(
                            "more than {MAX_BLOCKS} blocks are in the file, too many to be compared"
                        )));
                    }
                    None => places.blocks.extend(blocks.map(|block| u64::from(entry) << 32 | block)),
                }
            }
            Ok(())
        })?;
        places.blocks.sort_unstable();
        Ok(places)
    }

    /// Guest bytes that the disk has of a block; all of it of one that the disk does not have, whose room is of that size.
    fn used(&self, block: u64) -> u64 {
        let rest = self.size.saturating_sub(block * self.block_size);
        if rest == 0 { self.block_size } else { rest.min(self.block_size).next_multiple_of(SECTOR) }
    }

    fn range(&self, block: u64, entry: u32) -> Range<u64> {
        let start = u64::from(entry) * SECTOR;
        start..start + self.bitmap_len + self.used(block)
    }

    /// Why the block cannot stand there.
    fn wrong(&self, block: u64, entry: u32, found: &Found) -> Option<String> {
        let Range { start, end } = self.range(block, entry);
        if start >= found.file_len {
            return Some(format!("puts block {block} at {start}, past the file's end at {}", found.file_len));
        }
        if end > found.data_end {
            let room = found.data_end;
            return Some(format!(
                "puts block {block} at {start}..{end}, and the blocks' room ends at {room}"
            ));
        }
        let over = self.metadata.iter().find(|place| place.range.start < end && start < place.range.end)?;
        Some(format!("puts block {block} at {start}..{end}, over {}", over.owner))
    }

    /// The blocks in the file as the table has them, with the bytes of their bitmaps and sectors; ascending by place.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (u32, Range<u64>)> {
        self.blocks.iter().map(|packed| {
            // The halves of the word.
            let (entry, block) = ((packed >> 32) as u32, *packed as u32);
            (block, self.range(u64::from(block), entry))
        })
    }

    /// Whether the disk has this block, and not only the table.
    pub(crate) fn has(&self, block: u32) -> bool {
        u64::from(block) * self.block_size < self.size
    }

    /// The metadata, ascending by place.
    pub(crate) fn metadata(&self) -> &[Place] {
        &self.metadata
    }

    /// What shares bytes with something else, metadata with metadata and blocks of the disk with each other (no block
    /// here stands over metadata): the one that begins first, and the one that begins within it. `see` may end it.
    pub(crate) fn overlaps(&self, see: &mut dyn FnMut(&Place, &Place) -> Result<()>) -> Result<()> {
        let blocks = self.blocks().filter(|(block, _)| self.has(*block));
        let blocks = blocks.map(|(block, range)| Place { range, owner: Owner::Block(block) });
        sweep(self.metadata.iter().cloned(), see)?;
        sweep(blocks, see)
    }

    /// Behind the last byte that the table or the metadata takes.
    pub(crate) fn end(&self) -> u64 {
        let metadata = self.metadata.iter().map(|place| place.range.end);
        metadata.chain(self.blocks().map(|(_, range)| range.end)).max().unwrap_or(0)
    }

    /// The stretches before `end` that nothing takes, ascending.
    pub(crate) fn gaps(&self, end: u64) -> impl Iterator<Item = Range<u64>> {
        let mut metadata = self.metadata.iter().map(|place| place.range.clone()).peekable();
        let mut blocks = self.blocks().map(|(_, range)| range).peekable();
        let mut taken = 0;
        let mut finished = false;
        std::iter::from_fn(move || {
            while !finished {
                let next = match (metadata.peek(), blocks.peek()) {
                    (Some(one), Some(other)) if one.start <= other.start => metadata.next(),
                    (_, Some(_)) => blocks.next(),
                    (_, None) => metadata.next(),
                };
                finished = next.is_none();
                let next = next.unwrap_or(end..end);
                let gap = taken..next.start.min(end);
                taken = taken.max(next.end);
                if !gap.is_empty() {
                    return Some(gap);
                }
            }
            None
        })
    }
}

/// Calls `see` for each of `places`, which ascend by their start, that begins within one before it.
fn sweep(
    places: impl Iterator<Item = Place>,
    see: &mut dyn FnMut(&Place, &Place) -> Result<()>,
) -> Result<()> {
    let mut furthest: Option<Place> = None;
    for place in places {
        if let Some(before) = furthest.as_ref().filter(|before| place.range.start < before.range.end) {
            see(before, &place)?;
        }
        if furthest.as_ref().is_none_or(|before| place.range.end > before.range.end) {
            furthest = Some(place);
        }
    }
    Ok(())
}

/// Where everything but the blocks and the footer at the end stands. What lies outside the file is left out.
fn metadata(file: &dyn Storage, found: &Found, header: &Header) -> Result<Vec<Place>> {
    let failed = |error| Error::io("cannot read the batmap", error).at(header.bat_end());
    let batmap = Batmap::find(file, &found.footer, header).map_err(failed)?;
    let locators =
        header.locators.iter().enumerate().map(|(index, raw)| (raw.place(), Owner::Locator(index)));
    let mut all: Vec<Place> = [
        (0..FOOTER_LEN, Owner::FooterCopy),
        (header.at..header.at + HEADER_LEN, Owner::Header),
        (header.bat_at..header.bat_end(), Owner::Table),
    ]
    .into_iter()
    .chain(
        batmap
            .into_iter()
            .flat_map(|batmap| [(batmap.header(), Owner::BatmapHeader), (batmap.map(), Owner::Batmap)]),
    )
    .chain(locators)
    .filter(|(range, _)| !range.is_empty() && range.end <= found.file_len)
    .map(|(range, owner)| Place { range, owner })
    .collect();
    all.sort_by_key(|place| place.range.start);
    Ok(all)
}

/// Before the first write: what stands where, refused where an entry of the table leads where no block can stand, or two
/// things share bytes. An allocator or a writer that trusted it would write one thing over another.
pub(crate) fn audit(file: &dyn Storage, found: &Found, header: &Header, size: u64) -> Result<Places> {
    let refuse = |field: &str, what: String, at: u64| {
        Error::corrupt(field, what)
            .at(at)
            .hint("it can be read; run a check that repairs before writing to it")
    };
    let places =
        Places::read(file, found, header, size, &mut |bad| Err(refuse("BAT entry", bad.what, bad.at)))?;
    places.overlaps(&mut |one, other| {
        let what = format!("{} and {} share bytes", one.owner, other.owner);
        Err(refuse("image", what, other.range.start))
    })?;
    Ok(places)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cowhand_core::MemoryStorage;

    use super::*;
    use crate::find::find;
    use crate::footer::SizeRule;
    use crate::tests::small;

    /// A disk of 4.5 blocks of 4 KiB in a table of more; blocks 4 and 0 are in the file, in this order.
    fn image() -> MemoryStorage {
        let file = Arc::new(MemoryStorage::new());
        let layer = small(file.clone(), 18 << 10, 4096, true).unwrap();
        layer.write(4 * 4096, &[1; 512]).unwrap();
        layer.write(0, &[1; 512]).unwrap();
        layer.close().unwrap();
        MemoryStorage::from_bytes(&file.to_vec())
    }

    fn audited(file: &MemoryStorage) -> Result<Places> {
        let found = find(file)?;
        let size = found.footer.size(SizeRule::Auto);
        audit(file, &found, &Header::read(file, &found, size)?, size)
    }

    #[test]
    fn says_what_stands_where() {
        let file = image();
        let places = audited(&file).unwrap();
        let blocks: Vec<_> = places.blocks().collect();
        // The disk has half of its last block.
        assert_eq!(blocks, [(4, 3584..3584 + 512 + 2048), (0, 11776..11776 + 512 + 4096)]);
        let owners: Vec<_> = places.metadata().iter().map(|place| place.owner).collect();
        assert_eq!(owners, [Owner::FooterCopy, Owner::Header, Owner::Table]);
        assert_eq!(places.end(), 11776 + 512 + 4096);
        assert_eq!(
            places.gaps(places.end() + 100).collect::<Vec<_>>(),
            [2048..3584, 6144..11776, 16384..16484]
        );
    }

    #[test]
    fn refuses_what_must_not_be_written() {
        for (block, entry, what) in [
            (1, 7, "image at offset 3584: block 1 and block 4 share bytes"),
            (1, 8, "image at offset 4096: block 4 and block 1 share bytes"),
            (1, 3, "BAT entry at offset 1540: puts block 1 at 1536..6144, over the table"),
            (
                4,
                32,
                "BAT entry at offset 1552: puts block 4 at 16384..18944, and the blocks' room ends at 16384",
            ),
            (3, 33, "BAT entry at offset 1548: puts block 3 at 16896, past the file's end at 16896"),
        ] {
            let file = image();
            file.write_at(1536 + 4 * block, &u32::to_be_bytes(entry)).unwrap();
            let error = audited(&file).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
