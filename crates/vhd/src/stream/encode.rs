//! A VHD that is made while it is read. The disk's extents say at the start which blocks there are, and so how long the
//! file is; what proves to be zero when it is read is in the file as zeros.
//!
//! The file is the one that creating an image and writing in ascending order make. In memory: its front, 4 bytes for
//! each entry of the table, 16 MiB at most; one bit for each block; one piece.

use cowhand_core::{
    Contents, CreateOptions, Encoded, Error, Image, Kind, LayerId, Made, MemoryStorage, Pieces, Result,
    Storage,
};

use crate::alloc::Layout;
use crate::create::{Places, Plan};
use crate::footer::{DiskType, FOOTER_LEN, Footer};
use crate::geometry::SECTOR;
use crate::header::{Header, bitmap_len};
use crate::naming::Naming;

/// See `Streams::encode`.
pub(super) fn encode<'a>(disk: &'a Image, how: &CreateOptions) -> Result<Box<dyn Encoded + 'a>> {
    let Plan { footer, blocks } = Plan::new(how)?;
    match blocks {
        Some((layout, parent)) => Ok(Box::new(blocky(disk, footer, layout, parent)?)),
        None => {
            let contents = Contents::new(disk, footer.current_size)?;
            Ok(Box::new(Made::new(Fixed { contents, footer, at: 0 })))
        }
    }
}

/// A fixed disk.
struct Fixed<'a> {
    contents: Contents<'a>,
    footer: Footer,
    at: u64,
}

impl Pieces for Fixed<'_> {
    fn file_len(&self) -> u64 {
        self.footer.current_size + FOOTER_LEN
    }

    fn identity(&self) -> LayerId {
        LayerId(Some(self.footer.unique_id))
    }

    fn next(&mut self, piece: &mut Vec<u8>) -> Result<()> {
        let size = self.footer.current_size;
        if self.at < size {
            let len = (size - self.at).min(Contents::PIECE);
            self.contents.append(self.at, len as usize, piece)?;
            self.at += len;
        } else if self.at == size {
            self.contents.check_unchanged()?;
            piece.extend(self.footer.to_bytes());
            self.at += FOOTER_LEN;
        }
        Ok(())
    }
}

/// A dynamic or differencing disk of the size that `footer` says, laid out as `layout` has it.
pub(super) fn blocky(
    disk: &Image,
    footer: Footer,
    layout: Layout,
    parent: Option<(Naming, Places)>,
) -> Result<impl Encoded> {
    let contents = Contents::new(disk, footer.current_size)?;
    let mut header = Header::new(layout.header_at, layout.bat_at, layout.entries, layout.block_size);
    let front = MemoryStorage::new();
    if let Some((naming, places)) = &parent {
        naming.put(&mut header, places);
        naming.write(&front, places)?;
    }
    layout.write_front(&front, &footer, &header)?;
    let mut made = Dynamic {
        bitmap_len: bitmap_len(layout.block_size),
        front_len: layout.file_len(0) - FOOTER_LEN,
        front,
        blocks: Blocks { bits: vec![0; (layout.blocks as usize).div_ceil(64)], count: 0 },
        contents,
        footer,
        layout,
        next: Next::Front(0),
        nth: 0,
    };
    made.front.set_len(made.front_len).map_err(|error| Error::io("cannot make the front", error))?;
    made.find_blocks()?;
    made.fill_table()?;
    Ok(Made::new(made))
}

/// Which blocks are in the file.
struct Blocks {
    bits: Vec<u64>,
    count: u64,
}

impl Blocks {
    fn add(&mut self, block: u64) {
        if let Some(word) = self.bits.get_mut((block / 64) as usize) {
            self.count += u64::from(*word >> (block % 64) & 1 == 0);
            *word |= 1 << (block % 64);
        }
    }

    /// The first one from `block` on.
    fn from(&self, block: u64) -> Option<u64> {
        let mut index = block / 64;
        let mut word = self.bits.get(index as usize)? & (u64::MAX << (block % 64));
        while word == 0 {
            index += 1;
            word = *self.bits.get(index as usize)?;
        }
        Some(index * 64 + u64::from(word.trailing_zeros()))
    }
}

/// What comes next.
enum Next {
    /// What stands before the blocks, from this byte on.
    Front(u64),
    /// What stands before the first block from this one on, and its bitmap; or the footer where there is none.
    Block(u64),
    /// Payload of a block, from this byte of it on.
    Payload(u64, u64),
    /// Nothing.
    End,
}

/// A dynamic or differencing disk.
struct Dynamic<'a> {
    contents: Contents<'a>,
    footer: Footer,
    layout: Layout,
    bitmap_len: u64,
    /// All that stands before the blocks.
    front: MemoryStorage,
    front_len: u64,
    blocks: Blocks,
    next: Next,
    /// Blocks that came.
    nth: u64,
}

impl Dynamic<'_> {
    /// What the file has to say of the guest bytes from `at` on, for `max` bytes at most: (how many, they are stored).
    /// In a child, all is stored that is no hole. Past the disk's end is zero, which a child must say.
    fn stored(&self, at: u64, max: u64) -> Result<(u64, bool)> {
        let child = self.footer.disk_type == DiskType::Differencing;
        let size = self.contents.disk().size();
        if at >= size {
            return Ok((max, child));
        }
        let found = self.contents.disk().extent(at, max.min(size - at))?;
        Ok((found.len, if child { found.kind != Kind::Hole } else { found.kind == Kind::Data }))
    }

    /// Finds the blocks that are in the file.
    fn find_blocks(&mut self) -> Result<()> {
        let (size, block_size) = (self.footer.current_size, self.layout.block_size);
        let mut at = 0;
        while at < size {
            let (len, stored) = self.stored(at, size - at)?;
            if stored {
                let (first, end) = (at / block_size, (at + len).div_ceil(block_size));
                (first..end).for_each(|block| self.blocks.add(block));
                // What else is in the last of them does not matter.
                at = end * block_size;
            } else {
                at += len;
            }
        }
        Ok(())
    }

    /// Puts their places into the table.
    fn fill_table(&self) -> Result<()> {
        let mut block = 0;
        for nth in 0..self.blocks.count {
            block = self.blocks.from(block).unwrap_or(block);
            // Never fails: the layout was chosen so that the last block's sector fits.
            let sector = u32::try_from(self.place(nth) / SECTOR)
                .map_err(|_| Error::unsupported("the file is too long for a VHD"))?;
            self.front
                .write_at(self.layout.bat_at + 4 * block, &sector.to_be_bytes())
                .map_err(|error| Error::io("cannot make the table", error))?;
            block += 1;
        }
        Ok(())
    }

    /// Where the bitmap stands of the block that comes after `nth` others.
    fn place(&self, nth: u64) -> u64 {
        self.layout.file_len(nth + 1) - FOOTER_LEN - self.layout.block_size - self.bitmap_len
    }

    fn front(&self, from: u64, piece: &mut Vec<u8>) -> Result<Next> {
        let len = (self.front_len - from).min(Contents::PIECE);
        piece.resize(len as usize, 0);
        self.front.read_at(from, piece).map_err(|error| Error::io("cannot make the front", error))?;
        let from = from + len;
        Ok(if from < self.front_len { Next::Front(from) } else { Next::Block(0) })
    }

    /// The gap before the next block from `block` on and that block's bitmap, or the footer.
    fn block(&mut self, block: u64, piece: &mut Vec<u8>) -> Result<Next> {
        let Some(block) = self.blocks.from(block) else {
            self.contents.check_unchanged()?;
            piece.extend(self.footer.to_bytes());
            return Ok(Next::End);
        };
        let before = self.layout.file_len(self.nth) - FOOTER_LEN;
        let gap = (self.place(self.nth) - before) as usize;
        piece.resize(gap + self.bitmap_len as usize, 0);
        self.nth += 1;
        match piece.get_mut(gap..) {
            Some(bitmap) if self.footer.disk_type == DiskType::Differencing => self.mark(block, bitmap)?,
            Some(bitmap) => bitmap.fill(0xff),
            None => {}
        }
        Ok(Next::Payload(block, 0))
    }

    /// Sets the bits of a child's sectors that are stored.
    fn mark(&self, block: u64, bitmap: &mut [u8]) -> Result<()> {
        let start = block * self.layout.block_size;
        let end = (start + self.layout.block_size).min(self.footer.current_size);
        let mut at = start;
        while at < end {
            let (len, stored) = self.stored(at, end - at)?;
            if stored {
                for sector in (at - start) / SECTOR..(at + len - start).div_ceil(SECTOR) {
                    if let Some(byte) = bitmap.get_mut((sector / 8) as usize) {
                        *byte |= 0x80 >> (sector % 8);
                    }
                }
            }
            at += len;
        }
        Ok(())
    }

    fn payload(&self, block: u64, from: u64, piece: &mut Vec<u8>) -> Result<Next> {
        let len = (self.layout.block_size - from).min(Contents::PIECE);
        self.contents.append(block * self.layout.block_size + from, len as usize, piece)?;
        let from = from + len;
        Ok(if from < self.layout.block_size { Next::Payload(block, from) } else { Next::Block(block + 1) })
    }
}

impl Pieces for Dynamic<'_> {
    fn file_len(&self) -> u64 {
        self.layout.file_len(self.blocks.count)
    }

    fn identity(&self) -> LayerId {
        LayerId(Some(self.footer.unique_id))
    }

    fn next(&mut self, piece: &mut Vec<u8>) -> Result<()> {
        self.next = match self.next {
            Next::Front(from) => self.front(from, piece)?,
            Next::Block(block) => self.block(block, piece)?,
            Next::Payload(block, from) => self.payload(block, from, piece)?,
            Next::End => Next::End,
        };
        Ok(())
    }
}
