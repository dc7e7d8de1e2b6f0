//! zstd: packed into many frames with a seek table behind them, which every program reads.

mod frame;
mod pack;
mod table;
mod unpack;

use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::sync::Arc;

use cowhand_core::{Error, Forward, Result, Storage};

use crate::{How, Pack, Packing, Part, SeekTable, Span, Survey};
use pack::Frames;
use unpack::Unpack;

/// zstd (RFC 8878), and its seekable format.
#[derive(Debug)]
pub struct Zstd;

impl Packing for Zstd {
    fn name(&self) -> &'static str {
        "zstd"
    }

    fn extension(&self) -> &'static str {
        "zst"
    }

    fn probe(&self, head: &[u8]) -> bool {
        frame::probe(head)
    }

    fn levels(&self) -> RangeInclusive<i32> {
        1..=19
    }

    fn unpack<'a>(&self, input: Box<dyn Read + Send + 'a>) -> Box<dyn Read + Send + 'a> {
        Box::new(Unpack::new(input, How::default().threads()))
    }

    fn front<'a>(&self, input: Box<dyn Read + Send + 'a>) -> Box<dyn Read + Send + 'a> {
        Box::new(Unpack::at(input, 0))
    }

    fn pack<'a>(&self, output: Box<dyn Write + Send + 'a>, how: How) -> Result<Box<dyn Pack + 'a>> {
        let level = how.level_of(self, 1)?;
        Ok(Box::new(crate::pieces::InPieces::new(Frames::new(level), output, how.threads())?))
    }

    fn table(&self, file: &dyn Storage) -> Result<Option<SeekTable>> {
        match table::stored(file)? {
            Some(table) => Ok(Some(table)),
            None => table::walked(file),
        }
    }

    fn survey(&self, file: Arc<dyn Storage>) -> Result<Option<Box<dyn Survey>>> {
        if !table::several(file.as_ref())? {
            return Ok(None);
        }
        let bytes = Box::new(Part::new(file, 0, None));
        Ok(Some(Box::new(Surveyed(Unpack::new(bytes, How::default().threads())))))
    }

    fn unpack_from(&self, file: Arc<dyn Storage>, span: Span<'_>) -> Result<Box<dyn Read + Send>> {
        let bytes = Box::new(Part::new(file, span.from.packed, span.next));
        Ok(Box::new(Unpack::at(bytes, span.from.packed)))
    }
}

#[derive(Debug)]
struct Surveyed(Unpack<'static>);

impl Read for Surveyed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Forward for Surveyed {
    fn skip(&mut self, len: u64) -> io::Result<()> {
        crate::pass_over(self, len)
    }
}

impl Survey for Surveyed {
    fn finish(mut self: Box<Self>) -> Result<SeekTable> {
        io::copy(&mut self.0, &mut io::sink()).map_err(|error| Error::io("cannot unpack", error))?;
        Ok(self.0.table())
    }
}
