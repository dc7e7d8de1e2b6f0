//! gzip (RFC 1952): unpacked as it comes, of one member or several, and packed into one member, which every program reads.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::RangeInclusive;
use std::sync::Arc;

use cowhand_core::{Error, ErrorKind, Result, Storage};
use flate2::bufread::GzDecoder;
use flate2::{Compress, Compression, Crc, FlushCompress};

use crate::checkpoints;
use crate::pieces::{InPieces, Packer, Pieces};
use crate::{How, Pack, Packing, SeekTable, Span, Survey};

/// What every member begins with.
const SIGNATURE: [u8; 2] = [0x1f, 0x8b];

/// gzip.
#[derive(Debug)]
pub struct Gzip;

impl Packing for Gzip {
    fn name(&self) -> &'static str {
        "gzip"
    }

    fn extension(&self) -> &'static str {
        "gz"
    }

    fn probe(&self, head: &[u8]) -> bool {
        head.starts_with(&SIGNATURE)
    }

    fn levels(&self) -> RangeInclusive<i32> {
        1..=9
    }

    fn unpack<'a>(&self, input: Box<dyn Read + Send + 'a>) -> Box<dyn Read + Send + 'a> {
        Box::new(Gunzip::new(input))
    }

    fn pack<'a>(&self, output: Box<dyn Write + Send + 'a>, how: How) -> Result<Box<dyn Pack + 'a>> {
        let level = how.level_of(self, 6)?;
        // Never negative: one of its levels.
        let member = Member { level: Compression::new(level as u32), crc: Crc::new() };
        Ok(Box::new(InPieces::new(member, output, how.threads())?))
    }

    /// A gzip file does not tell where anything is.
    fn table(&self, _file: &dyn Storage) -> Result<Option<SeekTable>> {
        Ok(None)
    }

    fn survey(&self, file: Arc<dyn Storage>) -> Result<Option<Box<dyn Survey>>> {
        Ok(Some(checkpoints::survey(file)))
    }

    fn unpack_from(&self, file: Arc<dyn Storage>, span: Span<'_>) -> Result<Box<dyn Read + Send>> {
        checkpoints::unpack_from(file, span)
    }
}

/// What is packed in a gzip file.
struct Gunzip<'a>(At<'a>);

type Input<'a> = BufReader<Box<dyn Read + Send + 'a>>;

enum At<'a> {
    Member(Box<GzDecoder<Input<'a>>>),
    Behind(Input<'a>),
    End,
}

impl<'a> Gunzip<'a> {
    fn new(input: Box<dyn Read + Send + 'a>) -> Gunzip<'a> {
        let input = BufReader::with_capacity(128 << 10, input);
        Gunzip(At::Member(Box::new(GzDecoder::new(input))))
    }
}

impl Read for Gunzip<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            // What failed is at its end.
            match std::mem::replace(&mut self.0, At::End) {
                At::Member(mut member) => match member.read(buf).map_err(bad)? {
                    0 => self.0 = At::Behind(member.into_inner()),
                    n => {
                        self.0 = At::Member(member);
                        return Ok(n);
                    }
                },
                At::Behind(mut input) => {
                    if follows(&mut input)? {
                        self.0 = At::Member(Box::new(GzDecoder::new(input)));
                    }
                }
                At::End => return Ok(0),
            }
        }
    }
}

fn bad(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            Error::new(ErrorKind::Changed, "the gzip file ends before its end").into()
        }
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            Error::corrupt("gzip", error.to_string()).into()
        }
        _ => error,
    }
}

/// Whether another member follows. Zeros to the end are what a tape was filled up with; all else is an error.
pub(crate) fn follows(input: &mut impl BufRead) -> io::Result<bool> {
    let mut zeros = false;
    loop {
        let next = match input.fill_buf() {
            Ok(next) => next,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        match next.first() {
            None => return Ok(false),
            Some(&byte) if byte == SIGNATURE[0] && !zeros => return Ok(true),
            Some(0) => {
                zeros = true;
                let n = next.iter().take_while(|byte| **byte == 0).count();
                input.consume(n);
            }
            Some(_) => return Err(Error::corrupt("gzip", "something else follows the last member").into()),
        }
    }
}

/// One member, of which each piece ends with an empty block, so that the next begins with a whole byte.
struct Member {
    level: Compression,
    crc: Crc,
}

impl Pieces for Member {
    /// Few bytes are lost for the next piece's not knowing this one.
    const LEN: usize = 512 << 10;

    type Packer = Deflate;

    fn packer(&self) -> Deflate {
        Deflate(Compress::new(self.level, false))
    }

    fn head(&mut self) -> Vec<u8> {
        // Deflate, no name, no time, the fastest and the best not used, made on Unix.
        vec![SIGNATURE[0], SIGNATURE[1], 8, 0, 0, 0, 0, 0, 0, 3]
    }

    fn passed(&mut self, _unpacked: usize, _packed: usize, crc: Crc) {
        self.crc.combine(&crc);
    }

    fn tail(&mut self) -> Vec<u8> {
        [self.crc.sum().to_le_bytes(), self.crc.amount().to_le_bytes()].concat()
    }
}

struct Deflate(Compress);

impl Packer for Deflate {
    type Note = Crc;

    fn pack(&mut self, piece: &[u8], last: bool, out: &mut Vec<u8>) -> io::Result<Crc> {
        let mut crc = Crc::new();
        crc.update(piece);
        // More than the worst input becomes: a packer that ran out of space cannot be used again.
        out.reserve_exact(piece.len() + piece.len() / 8 + 1024);
        self.0.reset();
        let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
        self.0.compress_vec(piece, out, flush)?;
        if self.0.total_in() != piece.len() as u64 || out.len() == out.capacity() {
            return Err(io::Error::other("deflate did not take all of a piece"));
        }
        Ok(crc)
    }
}
