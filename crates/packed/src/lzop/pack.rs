//! lzop files as lzop makes them of what comes through a pipe: one part, blocks of 256 KiB, a checksum of each one's bytes.

use std::io;

use libdeflater::adler32;

use super::blocks::{ADLER_OF_DATA, LEVELS, MAGIC, NEWEST};
use crate::lzo1x::Packer;
use crate::pieces::{self, Pieces};

/// The library that lzop's newest version is made with.
const LIBRARY: u16 = 0x20a0;

/// LZO1X-1, and the level that lzop calls it by.
const METHOD: [u8; 2] = [1, 5];

/// Made on Unix, of what came through a pipe and went through one.
const FLAGS: u32 = 0x0300_0000 | 0xc | ADLER_OF_DATA;

/// A regular file that all may read.
const MODE: u32 = 0o100_644;

/// What a file begins with: no name and no time, so that the same bytes give the same file.
fn head() -> Vec<u8> {
    let mut fields = Vec::with_capacity(64);
    for number in [NEWEST, LIBRARY, LEVELS] {
        fields.extend(number.to_be_bytes());
    }
    fields.extend(METHOD);
    fields.extend(FLAGS.to_be_bytes());
    fields.extend(MODE.to_be_bytes());
    fields.extend([0; 8]); // the time
    fields.push(0); // the name's length
    let sum = adler32(&fields);
    [MAGIC.as_slice(), &fields, &sum.to_be_bytes()].concat()
}

/// Appends `bytes` as a block. The same bytes give the same block, whatever was packed before.
fn block(bytes: &[u8], packer: &mut Packer, out: &mut Vec<u8>) {
    const HEADER: usize = 12;
    let begin = out.len();
    out.extend([0; HEADER]);
    packer.pack(bytes, out);
    if out.len() - begin >= HEADER + bytes.len() {
        out.truncate(begin + HEADER);
        out.extend_from_slice(bytes);
    }
    let packed = out.len() - begin - HEADER;
    let fields = [bytes.len() as u32, packed as u32, adler32(bytes)].map(u32::to_be_bytes);
    if let Some(header) = out.get_mut(begin..begin + HEADER) {
        header.copy_from_slice(fields.as_flattened());
    }
}

/// Blocks are pieces, each packed by itself.
pub(super) struct InBlocks;

impl Pieces for InBlocks {
    const LEN: usize = 256 << 10;

    type Packer = BlockPacker;

    fn packer(&self) -> BlockPacker {
        BlockPacker(Packer::new())
    }

    fn head(&mut self) -> Vec<u8> {
        head()
    }

    fn passed(&mut self, _unpacked: usize, _packed: usize, (): ()) {}

    fn tail(&mut self) -> Vec<u8> {
        vec![0; 4]
    }
}

/// Packs blocks.
pub(super) struct BlockPacker(Packer);

impl pieces::Packer for BlockPacker {
    type Note = ();

    fn pack(&mut self, piece: &[u8], _last: bool, out: &mut Vec<u8>) -> io::Result<()> {
        // A length of nothing would be the part's end.
        if !piece.is_empty() {
            block(piece, &mut self.0, out);
        }
        Ok(())
    }
}
