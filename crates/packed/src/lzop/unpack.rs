//! The bytes of an lzop file, and the points that are passed on the way.

use std::io::{self, Read};

use cowhand_core::{Error, Forward, Result};
use libdeflater::{adler32, crc32};

use super::blocks::{Block, Blocks};
use crate::table::Points;
use crate::{Point, SeekTable, Survey, lzo1x};

/// The unpacked bytes, and the points that were passed.
pub(super) struct Unpack<R> {
    pub(super) blocks: Blocks<R>,
    points: Points,
    /// Unpacked bytes of the blocks whose headers were read.
    unpacked: u64,
    packed: Vec<u8>,
    /// A block's bytes, and how many of them were given out.
    bytes: Vec<u8>,
    given: usize,
}

impl<R: Read> Unpack<R> {
    /// With points that many unpacked bytes apart, at least.
    pub(super) fn new(blocks: Blocks<R>, apart: u64) -> Unpack<R> {
        let (packed, bytes) = (Vec::new(), Vec::new());
        Unpack { blocks, points: Points::new(apart), unpacked: 0, packed, bytes, given: 0 }
    }

    fn next(&mut self) -> Result<Option<Block>> {
        let block = self.blocks.next()?;
        if let Some(block) = &block {
            if self.points.wants(self.unpacked) {
                let state = block.flags.to_be_bytes().to_vec();
                self.points.add(Point { packed: block.at, unpacked: self.unpacked, state });
            }
            self.unpacked += block.unpacked as u64;
        }
        Ok(block)
    }

    /// Unpacks the next block, once all of the last one was given out. Answers how many bytes it has.
    pub(super) fn step(&mut self) -> Result<Option<usize>> {
        let Some(block) = self.next()? else { return Ok(None) };
        self.open(&block)?;
        Ok(Some(block.unpacked))
    }

    /// Gives out of the block that was unpacked; nothing where all of it was.
    pub(super) fn give(&mut self, buf: &mut [u8]) -> usize {
        let rest = self.bytes.get(self.given..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]); // never out of bounds: not longer than either
        self.given += n;
        n
    }

    /// Unpacks a block whose header was just read.
    fn open(&mut self, block: &Block) -> Result<()> {
        let broken = |message: &str| Error::corrupt("block of an lzop file", message).at(block.at);
        let holds = |stored: Option<u32>, sum: fn(&[u8]) -> u32, bytes: &[u8], what| match stored {
            Some(stored) if sum(bytes) != stored => Err(broken(what)),
            _ => Ok(()),
        };
        self.packed.clear();
        self.blocks.take(block.packed, &mut self.packed)?;
        holds(block.adler_of_packed, adler32, &self.packed, "the packed bytes do not have its checksum")?;
        holds(block.crc_of_packed, crc32, &self.packed, "the packed bytes do not have its checksum")?;
        // Nothing is given out of a block that is broken.
        if block.packed == block.unpacked {
            std::mem::swap(&mut self.packed, &mut self.bytes);
            self.given = self.bytes.len();
        } else {
            self.bytes.resize(block.unpacked, 0);
            self.given = self.bytes.len();
            lzo1x::unpack(&self.packed, &mut self.bytes).map_err(broken)?;
        }
        holds(block.adler_of_data, adler32, &self.bytes, "the unpacked bytes do not have its checksum")?;
        holds(block.crc_of_data, crc32, &self.bytes, "the unpacked bytes do not have its checksum")?;
        self.given = 0;
        Ok(())
    }
}

impl<R: Forward> Unpack<R> {
    /// Goes to the file's end from header to header, and gives the table.
    pub(super) fn rest(mut self) -> Result<SeekTable> {
        while let Some(block) = self.next()? {
            self.blocks.pass(block.packed)?;
        }
        Ok(self.points.table(self.unpacked))
    }
}

impl<R: Read> Read for Unpack<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.given == self.bytes.len() && !buf.is_empty() && self.step()?.is_some() {}
        Ok(self.give(buf))
    }
}

impl<R: Forward> Forward for Unpack<R> {
    /// Blocks that are passed over as a whole are not unpacked.
    fn skip(&mut self, len: u64) -> io::Result<()> {
        let mut left = len;
        loop {
            let n = left.min((self.bytes.len() - self.given) as u64); // never below 0: no more is given than there is
            self.given += n as usize;
            left -= n;
            if left == 0 {
                return Ok(());
            }
            let block = self.next()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if block.unpacked as u64 <= left {
                self.blocks.pass(block.packed)?;
                left -= block.unpacked as u64;
            } else {
                self.open(&block)?;
            }
        }
    }
}

impl<R: Forward> Survey for Unpack<R> {
    fn finish(self: Box<Self>) -> Result<SeekTable> {
        self.rest()
    }
}
