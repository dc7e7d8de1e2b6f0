//! Files that are packed as a whole: packed on several threads, unpacked as they come, and read at random through a table
//! of the places where unpacking can begin.
//!
//! It knows nothing of what is packed.

#![forbid(unsafe_code)]

mod checkpoints;
mod gzip;
mod lzo1x;
mod lzop;
mod ordered;
mod part;
mod pieces;
mod storage;
mod table;
mod zstd;

use std::fmt::Debug;
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::sync::Arc;

use cowhand_core::{Error, Forward, Result, Storage};

use part::{Part, pass_over};

pub use self::zstd::Zstd;
pub use gzip::Gzip;
pub use lzop::Lzop;
pub use pieces::Packed;
pub use storage::PackedStorage;
pub use table::{Point, SeekTable, Span};

/// How something is packed.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// Within [`Packing::levels`]; `None`: what the packing takes to be a good one.
    pub level: Option<i32>,
    /// Threads; 0: as many as the machine has, at most 8.
    pub workers: usize,
}

impl How {
    fn threads(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get().min(8)),
            n => n,
        }
    }

    fn level_of(&self, packing: &dyn Packing, normal: i32) -> Result<i32> {
        let (level, levels) = (self.level.unwrap_or(normal), packing.levels());
        if levels.contains(&level) {
            return Ok(level);
        }
        let (name, first, last) = (packing.name(), levels.start(), levels.end());
        Err(Error::invalid(format!("{name} has no level {level}"))
            .hint(format!("its levels are {first} to {last}")))
    }
}

/// A way of packing.
pub trait Packing: Send + Sync + Debug {
    /// Its name: `zstd`.
    fn name(&self) -> &'static str;

    /// The extension that is put behind a file's name, without the dot: `zst`.
    fn extension(&self) -> &'static str;

    /// Whether `head`, a file's first bytes, is packed so. It needs to see no more than 16.
    fn probe(&self, head: &[u8]) -> bool;

    /// The levels there are, the fastest first.
    fn levels(&self) -> RangeInclusive<i32>;

    /// What is packed in `input`, as it comes. A stream that ends before its end, does not have the checksum it says, or
    /// goes on with something else, fails when that is read; all that comes before it was given by then. Who reads on gets what
    /// can be unpacked behind the damage, as far as the packing can tell that it is intact; two errors with nothing between
    /// them are the end. Much of the work may be done on
    /// the thread that reads.
    fn unpack<'a>(&self, input: Box<dyn Read + Send + 'a>) -> Box<dyn Read + Send + 'a>;

    /// As [`Packing::unpack`], for who wants no more than the front: nothing is unpacked before it is asked for.
    fn front<'a>(&self, input: Box<dyn Read + Send + 'a>) -> Box<dyn Read + Send + 'a> {
        self.unpack(input)
    }

    /// Packs what is written into `output`. The bytes depend on the level alone, not on the threads. Errors: no such level.
    fn pack<'a>(&self, output: Box<dyn Write + Send + 'a>, how: How) -> Result<Box<dyn Pack + 'a>>;

    /// The places where unpacking can begin, as the file itself tells, with nothing unpacked. `None`: it does not tell.
    fn table(&self, file: &dyn Storage) -> Result<Option<SeekTable>>;

    /// Goes through the file once, as its unpacked bytes are read, to find such places. `None`: there can be none but the
    /// first.
    fn survey(&self, file: Arc<dyn Storage>) -> Result<Option<Box<dyn Survey>>>;

    /// Unpacks `span` of a file's table: where all is well, exactly as many bytes as it has.
    fn unpack_from(&self, file: Arc<dyn Storage>, span: Span<'_>) -> Result<Box<dyn Read + Send>>;
}

/// What packs. Bytes that were written are in the output once it was finished, and not before.
pub trait Pack: Write + Send {
    /// Ends the packed stream, and flushes the output.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// A packed file's bytes in order, of which a table is made as they go by.
pub trait Survey: Forward {
    /// Reads to the end, and gives the table. Errors: the file is broken.
    fn finish(self: Box<Self>) -> Result<SeekTable>;
}

/// All ways of packing.
pub fn packings() -> &'static [&'static dyn Packing] {
    &[&Zstd, &Gzip, &Lzop]
}

/// The one that `head`, a file's first bytes, is packed in.
pub fn detect(head: &[u8]) -> Option<&'static dyn Packing> {
    packings().iter().copied().find(|packing| packing.probe(head))
}

/// The one whose extension ends that file name.
pub fn by_extension(name: &str) -> Option<&'static dyn Packing> {
    let (_, extension) = name.rsplit_once('.')?;
    packings().iter().copied().find(|packing| packing.extension().eq_ignore_ascii_case(extension))
}
