//! What stands where in the file of a dynamic or differencing disk: its metadata and its blocks, what of it overlaps, and
//! what is free between.
//!
//! In memory: 8 bytes for each block that is in the file.

use std::fmt;
use std::ops::Range;

use cowhand_core::{Error, Result, Storage};

use super::table;
use crate::bat::FREE;
use crate::batmap::Batmap;
use crate::find::Found;
use crate::footer::FOOTER_LEN;
use crate::geometry::SECTOR;
use crate::header::{HEADER_LEN, Header, RawLocator};

/// Blocks in the file that are kept in mind, 64 MiB of memory; the largest disk in blocks of 512 KiB has half.
const MAX_BLOCKS: usize = 1 << 23;

/// Blocks as near as this stand behind each other: their payload may be aligned.
const ALIGNMENT: u64 = 4096;

/// A parent locator has as much room as this at most.
const MAX_PATH: u64 = 64 << 10;

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

/// Table entries that cannot be right; more than one only where a stretch of the table is alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadEntries {
    /// The blocks whose entries these are.
    pub(crate) blocks: Range<u64>,
    pub(crate) entry: u32,
    pub(crate) why: Why,
}

/// Why a block cannot stand where its entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    PastEnd,
    Over(Owner),
    /// The room for blocks ends within it.
    Outside,
    /// As before, and within its sectors: the bitmap is there.
    Cut,
    /// It can, but the disk does not have the block.
    Beyond,
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
    /// Blocks of the disk that do not stand behind their predecessor.
    pub(crate) fragmented: u64,
}

impl Places {
    /// Reads the whole table of the disk of `size` bytes. `bad` hears of each entry that leads out of the file's room for
    /// blocks, or over what cannot be read then: footer, header, table; it may end the reading. They are left out. Entries of blocks that the disk does
    /// not have are kept wherever they lead within that room: their space is taken, by nobody. Errors: the table cannot
    /// be read; the file has more blocks than are kept in mind.
    pub(crate) fn read(
        file: &dyn Storage,
        found: &Found,
        header: &Header,
        size: u64,
        bad: &mut dyn FnMut(&Places, BadEntries) -> Result<()>,
    ) -> Result<Places> {
        let mut places = Places {
            metadata: metadata(file, found, header)?,
            blocks: Vec::new(),
            size,
            block_size: header.block_size,
            bitmap_len: header.bitmap_len(),
            fragmented: 0,
        };
        // The disk's last block may be shorter than the others, and those past it take no part in the disk.
        let count = size.div_ceil(header.block_size);
        let kinds = [0..count.saturating_sub(1), count.saturating_sub(1)..count, count..u64::MAX];
        let mut last = 0;
        table::runs(file, header, &mut |run, entry| {
            if entry == FREE {
                return Ok(());
            }
            for kind in &kinds {
                let blocks = run.start.max(kind.start)..run.end.min(kind.end);
                if blocks.is_empty() {
                    continue;
                }
                match places.wrong(blocks.start, entry, found) {
                    Some(why) => bad(&places, BadEntries { blocks, entry, why })?,
                    // No two blocks share a place, and a hostile table may say so of four thousand million.
                    None if places.blocks.len() as u64 + (blocks.end - blocks.start) > MAX_BLOCKS as u64 => {
                        return Err(Error::unsupported(format!(
                            "more than {MAX_BLOCKS} blocks are in the file, too many to be compared"
                        )));
                    }
                    None => {
                        let place = places.range(blocks.start, entry);
                        let apart = place.start.checked_sub(last).is_none_or(|gap| gap >= ALIGNMENT);
                        if blocks.start < count {
                            places.fragmented +=
                                u64::from(apart && last > 0) + (blocks.end - blocks.start - 1);
                            last = place.end;
                        }
                        places.blocks.extend(blocks.map(|block| u64::from(entry) << 32 | block));
                    }
                }
            }
            Ok(())
        })?;
        places.blocks.sort_unstable();
        Ok(places)
    }

    /// Guest bytes that the disk has of a block; all of it of one that the disk does not have, whose room is of that size.
    pub(crate) fn used(&self, block: u64) -> u64 {
        let rest = self.size.saturating_sub(block * self.block_size);
        if rest == 0 { self.block_size } else { rest.min(self.block_size).next_multiple_of(SECTOR) }
    }

    pub(crate) fn range(&self, block: u64, entry: u32) -> Range<u64> {
        let start = u64::from(entry) * SECTOR;
        start..start + self.bitmap_len + self.used(block)
    }

    /// Why the block cannot stand there.
    fn wrong(&self, block: u64, entry: u32, found: &Found) -> Option<Why> {
        let Range { start, end } = self.range(block, entry);
        let over = self.metadata.iter().find(|other| {
            let fixed = matches!(other.owner, Owner::FooterCopy | Owner::Header | Owner::Table);
            fixed && other.range.start < end && start < other.range.end
        });
        if start >= found.file_len {
            Some(Why::PastEnd)
        } else if let Some(over) = over {
            Some(Why::Over(over.owner))
        } else if end > found.data_end {
            let cut = start + self.bitmap_len < found.data_end;
            Some(if cut { Why::Cut } else { Why::Outside })
        } else {
            None
        }
    }

    /// What is wrong, for people: "puts block 7 at ..., past the file's end at ...".
    pub(crate) fn text(&self, bad: &BadEntries, found: &Found) -> String {
        let block = bad.blocks.start;
        let Range { start, end } = self.range(block, bad.entry);
        let (file_len, room) = (found.file_len, found.data_end);
        match bad.why {
            Why::PastEnd => format!("puts block {block} at {start}, past the file's end at {file_len}"),
            Why::Over(owner) => format!("puts block {block} at {start}..{end}, over {owner}"),
            Why::Outside | Why::Cut => {
                format!("puts block {block} at {start}..{end}, and the blocks' room ends at {room}")
            }
            Why::Beyond => format!("puts block {block} at {start}, and the disk does not have it"),
        }
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

    /// The metadata and the disk's blocks, ascending by their start.
    fn all(&self) -> impl Iterator<Item = Place> {
        let mut metadata = self.metadata.iter().cloned().peekable();
        let blocks = self.blocks().filter(|(block, _)| self.has(*block));
        let mut blocks = blocks.map(|(block, range)| Place { range, owner: Owner::Block(block) }).peekable();
        std::iter::from_fn(move || match (metadata.peek(), blocks.peek()) {
            (Some(one), Some(other)) if one.range.start <= other.range.start => metadata.next(),
            (_, Some(_)) => blocks.next(),
            (_, None) => metadata.next(),
        })
    }

    /// What shares bytes with something else, blocks of the disk and metadata: the one that begins first, and the one
    /// that begins within it. `see` may end it.
    pub(crate) fn overlaps(&self, see: &mut dyn FnMut(&Place, &Place) -> Result<()>) -> Result<()> {
        let mut furthest: Option<Place> = None;
        for place in self.all() {
            if let Some(before) = furthest.as_ref().filter(|before| place.range.start < before.range.end) {
                see(before, &place)?;
            }
            if furthest.as_ref().is_none_or(|before| place.range.end > before.range.end) {
                furthest = Some(place);
            }
        }
        Ok(())
    }

    /// Blocks without which nothing shares bytes any more, as far as blocks take part in it, and where they stand.
    pub(crate) fn in_the_way(&self) -> Vec<(u32, Range<u64>)> {
        let mut away = Vec::new();
        let mut stays: Option<Place> = None;
        for place in self.all() {
            match stays.take_if(|before| place.range.start < before.range.end) {
                None => stays = Some(place),
                Some(before) => match (before.owner, place.owner) {
                    (_, Owner::Block(block)) => {
                        away.push((block, place.range));
                        stays = Some(before);
                    }
                    (Owner::Block(block), _) => {
                        away.push((block, before.range));
                        stays = Some(place);
                    }
                    _ => stays = Some(if place.range.end > before.range.end { place } else { before }),
                },
            }
        }
        away
    }

    /// The metadata, ascending by place.
    pub(crate) fn metadata(&self) -> &[Place] {
        &self.metadata
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

/// Where everything but the blocks and the footer at the end stands. What goes on past the file's end ends there.
fn metadata(file: &dyn Storage, found: &Found, header: &Header) -> Result<Vec<Place>> {
    let failed = |error| Error::io("cannot read the batmap", error).at(header.bat_end());
    let batmap = Batmap::find(file, &found.footer, header).map_err(failed)?;
    // One that says too much is no place of anything; it is judged with the parent's name.
    let within = |raw: &RawLocator| {
        let (at, len) = (raw.data_offset.get(), u64::from(raw.data_length.get()));
        len <= MAX_PATH && at.checked_add(len).is_some_and(|end| end <= found.file_len)
    };
    let locators = header.locators.iter().enumerate().filter(|(_, raw)| within(raw)).map(|(index, raw)| {
        let place = raw.place();
        (place.start..place.end.min(place.start + MAX_PATH), Owner::Locator(index))
    });
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
    .map(|(range, owner)| Place { range: range.start..range.end.min(found.file_len), owner })
    .filter(|place| !place.range.is_empty())
    .collect();
    all.sort_by_key(|place| place.range.start);
    Ok(all)
}

/// The look before the first write: what stands where. Errors: an entry of the disk's part of the table leads where no
/// block can stand, or two things share bytes; a writer that trusted it would write one over the other.
pub(crate) fn audit(file: &dyn Storage, found: &Found, header: &Header, size: u64) -> Result<Places> {
    let refuse = |field: &str, what: String, at: u64| {
        Error::corrupt(field, what).at(at).hint(
            "it can be read, and is not written while that is so; 'cowhand check' tells all that is wrong",
        )
    };
    let count = size.div_ceil(header.block_size);
    let places = Places::read(file, found, header, size, &mut |places, bad| {
        // What the disk does not have is read by nobody, wherever it leads.
        if bad.blocks.start >= count {
            return Ok(());
        }
        Err(refuse("BAT entry", places.text(&bad, found), header.bat_at + 4 * bad.blocks.start))
    })?;
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

    fn places(file: &MemoryStorage, bad: &mut Vec<(u64, Why)>) -> Places {
        let found = find(file).unwrap();
        let size = found.footer.size(SizeRule::Auto);
        let header = Header::read(file, &found, size).unwrap();
        Places::read(file, &found, &header, size, &mut |_, entries| {
            bad.push((entries.blocks.start, entries.why));
            Ok(())
        })
        .unwrap()
    }

    #[test]
    fn says_what_stands_where() {
        let file = image();
        let places = places(&file, &mut Vec::new());
        let blocks: Vec<_> = places.blocks().collect();
        // The disk has half of its last block.
        assert_eq!(blocks, [(4, 3584..3584 + 512 + 2048), (0, 11776..11776 + 512 + 4096)]);
        let owners: Vec<_> = places.metadata.iter().map(|place| place.owner).collect();
        assert_eq!(owners, [Owner::FooterCopy, Owner::Header, Owner::Table]);
        assert_eq!(places.end(), 11776 + 512 + 4096);
        assert_eq!(
            places.gaps(places.end() + 100).collect::<Vec<_>>(),
            [2048..3584, 6144..11776, 16384..16484]
        );
    }

    #[test]
    fn says_what_cannot_be() {
        for (block, entry, why, owners) in [
            (1, 7, None, Some((Owner::Block(1), Owner::Block(4)))),
            (1, 8, None, Some((Owner::Block(4), Owner::Block(1)))),
            (1, 3, Some(Why::Over(Owner::Table)), None),
            (4, 30, Some(Why::Cut), None),
            (4, 32, Some(Why::Outside), None),
            (3, 33, Some(Why::PastEnd), None),
        ] {
            let file = image();
            file.write_at(1536 + 4 * block, &u32::to_be_bytes(entry)).unwrap();
            let mut bad = Vec::new();
            let places = places(&file, &mut bad);
            assert_eq!(bad, Vec::from_iter(why.map(|why| (block, why))));
            let mut shared = Vec::new();
            let see = &mut |one: &Place, other: &Place| {
                shared.push((one.owner, other.owner));
                Ok(())
            };
            places.overlaps(see).unwrap();
            assert_eq!(shared, Vec::from_iter(owners));
        }
    }
}
