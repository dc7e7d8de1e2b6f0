//! Taking the disk out of a stream in one pass: blocks as they come, whatever their order; between them everything is
//! passed over.
//!
//! In memory: while the front is read, its bytes (4 for each entry of the table, 16 MiB at most); from then on 8 bytes
//! for each block in the file, one sector bitmap (64 KiB at most) and one piece of 1 MiB. The most is at the front of a
//! full disk of 2040 GiB in blocks of 512 KiB: 16 + 32 MiB.

use std::fmt;
use std::io::Read;

use cowhand_core::{Body, Chunk, Contents, DiskInfo, Error, ErrorKind, LayerId, Result, Source, read_up_to};

use super::front::{Front, Start};
use crate::bitmap::{self, BitOrder};
use crate::footer::{DiskType, FOOTER_LEN, Footer, RawFooter, SizeRule};
use crate::geometry::SECTOR;

const PIECE: u64 = Contents::PIECE;

/// See `Streams::source`.
pub(super) fn source<'a>(
    mut input: Box<dyn Read + Send + 'a>,
    file_len: Option<u64>,
) -> Result<Box<dyn Source + 'a>> {
    Ok(match Start::read(&mut input)? {
        Start::Dynamic(front) => Box::new(Dynamic::new(*front, input, file_len)?),
        Start::Other(bytes) => Box::new(Fixed::new(bytes, input, file_len)?),
    })
}

/// A stream, and how far it was read.
struct Input<'a> {
    rest: Box<dyn Read + Send + 'a>,
    at: u64,
    /// Bytes of the whole stream, where somebody said so.
    len: Option<u64>,
    piece: Vec<u8>,
}

impl fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a stream read up to {} of {:?}", self.at, self.len)
    }
}

impl Input<'_> {
    /// The next `len` bytes, a piece at most. Errors: there are fewer.
    fn take(&mut self, len: u64) -> Result<&[u8]> {
        self.piece.resize(len as usize, 0);
        let got = read_up_to(&mut self.rest, &mut self.piece, self.at)?;
        self.at += got as u64;
        if (got as u64) < len {
            return Err(cut(self.at));
        }
        Ok(&self.piece)
    }

    /// Passes over everything before `at`.
    fn skip_to(&mut self, at: u64) -> Result<()> {
        while self.at < at {
            self.take((at - self.at).min(PIECE))?;
        }
        Ok(())
    }

    /// Reads to the end, and gives the footer that stands there and its place. Errors: it is none or a damaged one, or
    /// begins before `data_end`; the stream is not as long as somebody said.
    fn footer(&mut self, data_end: u64) -> Result<(Footer, u64)> {
        // The last 512 bytes come to stand at the front of `held`.
        let mut held = Vec::new();
        loop {
            self.piece.resize(PIECE as usize, 0);
            let got = read_up_to(&mut self.rest, &mut self.piece, self.at)?;
            self.at += got as u64;
            held.extend_from_slice(self.piece.get(..got).unwrap_or_default());
            held.drain(..held.len().saturating_sub(FOOTER_LEN as usize));
            if (got as u64) < PIECE {
                break;
            }
        }
        let end = self.at;
        if self.len.is_some_and(|len| len != end) {
            let should = self.len.unwrap_or(end);
            let what = format!("it ended after {end} bytes, and should have had {should}");
            return Err(Error::new(ErrorKind::Changed, what));
        }
        let len = tail_len(end);
        if end < data_end + len {
            return Err(cut(end));
        }
        let at = end - len;
        held.drain(..held.len().saturating_sub(len as usize));
        let raw = RawFooter::with_cookie(&held).ok_or_else(|| {
            Error::corrupt("footer", "no footer stands at the end of the stream")
                .at(at)
                .hint("it was cut, or something follows it")
        })?;
        if !raw.checksum_is_good() {
            let (is, should) = raw.checksums();
            let what = format!("is {is:#010x} and should be {should:#010x}");
            return Err(Error::corrupt("footer checksum", what).at(at + 64));
        }
        Ok((raw.parse(at)?, at))
    }
}

fn cut(at: u64) -> Error {
    Error::new(ErrorKind::Changed, format!("the stream ended after {at} bytes, before its footer"))
        .hint("it was cut")
}

/// Bytes of the footer of a file of `len` bytes: Virtual PC before 2004 wrote 511.
fn tail_len(len: u64) -> u64 {
    if len % FOOTER_LEN == FOOTER_LEN - 1 { FOOTER_LEN - 1 } else { FOOTER_LEN }
}

/// A fixed disk: its bytes, and a footer that must fit them.
#[derive(Debug)]
struct Fixed<'a> {
    disks: [DiskInfo; 1],
    input: Input<'a>,
    /// Guest bytes given out.
    at: u64,
    done: bool,
}

impl<'a> Fixed<'a> {
    fn new(front: Vec<u8>, rest: Box<dyn Read + Send + 'a>, len: Option<u64>) -> Result<Fixed<'a>> {
        let Some(file_len) = len else {
            return Err(Error::unsupported("a fixed VHD says only at its end how large it is")
                .hint("say how many bytes will come, or save it to a file first"));
        };
        let size = file_len.checked_sub(tail_len(file_len)).filter(|size| size.is_multiple_of(SECTOR));
        let Some(size) = size else {
            let what = format!("of {file_len} bytes is no VHD: those before a footer are no whole sectors");
            return Err(Error::corrupt("stream", what));
        };
        let rest = Box::new(std::io::Cursor::new(front).chain(rest));
        let disks = [DiskInfo { size, ..DiskInfo::default() }];
        Ok(Fixed { disks, input: Input { rest, at: 0, len, piece: Vec::new() }, at: 0, done: false })
    }
}

impl Source for Fixed<'_> {
    fn disks(&self) -> &[DiskInfo] {
        &self.disks
    }

    fn next(&mut self) -> Result<Option<Chunk<'_>>> {
        let [DiskInfo { size, .. }] = self.disks;
        let at = self.at;
        if at < size {
            let bytes = self.input.take((size - at).min(PIECE))?;
            self.at += bytes.len() as u64;
            return Ok(Some(Chunk { disk: 0, at, body: Body::Bytes(bytes) }));
        }
        if !self.done {
            let (footer, at) = self.input.footer(size)?;
            if footer.disk_type != DiskType::Fixed {
                let what =
                    "is a dynamic disk's, and its copy does not stand at the front, so this is not a VHD";
                return Err(Error::corrupt("footer", what).at(at));
            }
            let says = footer.size(SizeRule::Auto);
            if says != size {
                let what = format!("says {says} bytes, and {size} stand before the footer");
                return Err(Error::corrupt("footer size", what)
                    .at(at)
                    .hint("save it to a file first, and read that"));
            }
            let [disk] = &mut self.disks;
            disk.identity = LayerId(Some(footer.unique_id));
            self.done = true;
        }
        Ok(None)
    }
}

/// A dynamic or differencing disk.
#[derive(Debug)]
struct Dynamic<'a> {
    disks: [DiskInfo; 1],
    input: Input<'a>,
    /// The footer copy.
    footer: Footer,
    order: BitOrder,
    block_size: u64,
    /// The blocks: the sector of each one's bitmap, and its number; as they stand in the file.
    blocks: std::vec::IntoIter<(u32, u32)>,
    current: Option<Block>,
    bitmap: Vec<u8>,
    done: bool,
}

/// The block that is read, behind its bitmap.
#[derive(Debug)]
struct Block {
    /// Its first guest byte.
    start: u64,
    /// The next sector of it, and where those end that the disk has.
    sector: u64,
    end: u64,
}

impl<'a> Dynamic<'a> {
    fn new(mut front: Front, mut rest: Box<dyn Read + Send + 'a>, len: Option<u64>) -> Result<Dynamic<'a>> {
        front.read_locators(&mut rest)?;
        let disks = [front.disk()?];
        let Front { footer, header, size, .. } = &front;
        let at = front.bytes.len() as u64;
        let blocks = front.blocks(size.div_ceil(header.block_size));
        let mut end = front.end;
        for (sector, block) in &blocks {
            let start = u64::from(*sector) * SECTOR;
            if start < end {
                let what = format!(
                    "puts block {block} at {start}, where the front or another block stands: this cannot be read in one pass"
                );
                return Err(Error::corrupt("block allocation table entry", what)
                    .at(header.bat_at + 4 * u64::from(*block))
                    .hint("save it to a file first, and check that"));
            }
            let used = (size - u64::from(*block) * header.block_size).min(header.block_size);
            end = start + header.bitmap_len() + used;
        }
        Ok(Dynamic {
            disks,
            input: Input { rest, at, len, piece: Vec::new() },
            order: if footer.bitmaps_are_lsb_first() { BitOrder::Lsb } else { BitOrder::Msb },
            block_size: header.block_size,
            bitmap: vec![0; header.bitmap_len() as usize],
            footer: front.footer,
            blocks: blocks.into_iter(),
            current: None,
            done: false,
        })
    }

    /// Goes on to the next block and reads its bitmap. False: there is none.
    fn next_block(&mut self) -> Result<bool> {
        let Some((sector, block)) = self.blocks.next() else { return Ok(false) };
        self.input.skip_to(u64::from(sector) * SECTOR)?;
        let bitmap = self.input.take(self.bitmap.len() as u64)?;
        self.bitmap.copy_from_slice(bitmap);
        let start = u64::from(block) * self.block_size;
        let [DiskInfo { size, .. }] = self.disks;
        let end = (size - start).min(self.block_size) / SECTOR;
        self.current = Some(Block { start, sector: 0, end });
        Ok(true)
    }

    /// The end was read: its footer must say what the copy said, for that was gone by.
    fn finish(&mut self) -> Result<()> {
        let (footer, at) = self.input.footer(self.input.at)?;
        let meaning = |footer: &Footer| {
            let order = footer.bitmaps_are_lsb_first();
            (footer.disk_type, footer.header_at, footer.size(SizeRule::Auto), order, footer.unique_id)
        };
        if meaning(&footer) != meaning(&self.footer) {
            return Err(Error::corrupt("footer", "says something else than its copy at the front")
                .at(at)
                .hint("save it to a file first, and read that: there the footer at the end counts"));
        }
        self.done = true;
        Ok(())
    }
}

impl Source for Dynamic<'_> {
    fn disks(&self) -> &[DiskInfo] {
        &self.disks
    }

    fn next(&mut self) -> Result<Option<Chunk<'_>>> {
        loop {
            let Some(block) = self.current.as_mut().filter(|block| block.sector < block.end) else {
                // What the disk's end cuts off of a block need not be there.
                self.current = None;
                if self.next_block()? {
                    continue;
                }
                if !self.done {
                    self.finish()?;
                }
                return Ok(None);
            };
            let (run, present) = bitmap::run(&self.bitmap, self.order, block.sector, block.end);
            let at = block.start + block.sector * SECTOR;
            if present {
                let len = (run * SECTOR).min(PIECE);
                block.sector += len / SECTOR;
                let bytes = self.input.take(len)?;
                return Ok(Some(Chunk { disk: 0, at, body: Body::Bytes(bytes) }));
            }
            block.sector += run;
            self.input.skip_to(self.input.at + run * SECTOR)?;
        }
    }
}
