//! A file that holds several disks and what goes with them: a backup archive, read and written from front to back, and
//! read at random through an index.

use std::fmt::Debug;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::sync::Arc;

use crate::{Chunk, Error, Fault, Layer, MAX_FAULTS, Result, Source, Storage};

/// A file that an archive keeps beside its disks: a machine's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigFile {
    /// What the archive calls it. It came from outside: it may hold anything, and is no path until somebody has seen that.
    pub name: String,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// A disk of an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchivedDisk {
    /// The archive's own number for it.
    pub number: u32,
    /// What the archive calls it. It came from outside, as [`ConfigFile::name`] did.
    pub name: String,
    /// Guest bytes.
    pub size: u64,
    /// No disk but a running machine's memory: its bytes come in order, and its size is a guess of who wrote it.
    pub memory: bool,
}

/// What an archive says at its front.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// What tells this archive from others: 16 raw bytes.
    pub id: [u8; 16],
    /// When it was made, in seconds since 1970, UTC.
    pub made: i64,
    /// The files beside the disks, in the archive's order.
    pub configs: Vec<ConfigFile>,
    /// The disks, in the order of their numbers. [`Chunk::disk`] counts in this list.
    pub disks: Vec<ArchivedDisk>,
}

/// What happens where an archive is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reading {
    /// The first thing that is wrong is an error, and a cluster that never came is one at the end.
    #[default]
    Strict,
    /// What is wrong is noted, and reading goes on where the archive makes sense again. What is intact comes out.
    Salvage,
}

/// What was found wrong with an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchiveFaults {
    /// How many there are.
    pub count: u64,
    /// The first [`MAX_FAULTS`] of them, in the order of being found; offsets are the unpacked archive's.
    pub list: Vec<Fault>,
}

impl ArchiveFaults {
    /// Counts one, and lists it while there is room.
    pub fn add(&mut self, fault: Fault) {
        self.count += 1;
        if self.list.len() < MAX_FAULTS {
            self.list.push(fault);
        }
    }
}

/// Bytes that are lost: an error of who reads bytes in order and goes on behind them. Who salvages takes it for so many
/// bytes that nobody knows.
#[derive(Debug)]
pub struct Gap {
    /// How many there are.
    pub len: u64,
    /// Why they are lost.
    pub error: Error,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.error)
    }
}

impl std::error::Error for Gap {}

impl From<Gap> for io::Error {
    fn from(gap: Gap) -> io::Error {
        io::Error::other(gap)
    }
}

/// An archive that is read from front to back. What comes of a disk is in chunks of any order; what is zero comes as such,
/// so that a range that never comes is one that the archive lacks.
pub trait ArchiveSource: Source {
    /// What the front says.
    fn manifest(&self) -> &Manifest;

    /// Bytes of the archive, unpacked, that were read so far.
    fn position(&self) -> u64;

    /// What was wrong so far, under [`Reading::Salvage`].
    fn faults(&self) -> &ArchiveFaults;

    /// Calls `see` with the guest ranges of the disk that did not come, ascending; all of them once
    /// [`Source::next`] has answered that nothing follows.
    fn missing(&self, disk: u32, see: &mut dyn FnMut(Range<u64>) -> Result<()>) -> Result<()>;

    /// Calls `see` with the guest ranges of the disk that came from where bytes of the archive may be lost or have come in
    /// between, so that they may be wrong; in the order in which they came. [`Reading::Strict`] knows none.
    fn doubtful(&self, disk: u32, see: &mut dyn FnMut(Range<u64>) -> Result<()>) -> Result<()> {
        let _ = (disk, see);
        Ok(())
    }
}

/// Takes the disks of an archive that is being written, in chunks of any order and alignment.
pub trait Sink: Send + Debug {
    /// Guest bytes that it keeps together: what comes in whole ones, at their multiples, need not wait for anything.
    fn granule(&self) -> u64 {
        1
    }

    /// Guest bytes that it takes best at a time; a multiple of the granule.
    fn batch(&self) -> u64 {
        1 << 20
    }

    /// Takes a chunk. Errors: it was given before, lies outside its disk, or the bytes cannot be written.
    fn put(&mut self, chunk: Chunk<'_>) -> Result<()>;

    /// Guest bytes of the disk that are zero, and are not in the archive, so far.
    fn zeros(&self, disk: u32) -> u64;

    /// Says that what never came is zero, and ends the archive. The output was flushed.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Bytes in order, some of which can be passed over.
pub trait Forward: Read + Send {
    /// Passes over `len` bytes. Errors: [`io::ErrorKind::UnexpectedEof`] where there are fewer.
    fn skip(&mut self, len: u64) -> io::Result<()>;
}

/// A storage's bytes in order; what is passed over is not read.
#[derive(Debug)]
pub struct Walk {
    storage: Arc<dyn Storage>,
    at: u64,
}

impl Walk {
    /// From its first byte on.
    pub fn new(storage: Arc<dyn Storage>) -> Walk {
        Walk { storage, at: 0 }
    }
}

impl Read for Walk {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.storage.len()?.saturating_sub(self.at).min(buf.len() as u64) as usize;
        self.storage.read_at(self.at, &mut buf[..n])?; // never out of bounds: not longer than it
        self.at += n as u64;
        Ok(n)
    }
}

impl Forward for Walk {
    fn skip(&mut self, len: u64) -> io::Result<()> {
        let end = self.at.checked_add(len).filter(|end| self.storage.len().is_ok_and(|len| *end <= len));
        self.at = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(())
    }
}

/// Where the bytes of an archive's disks stand in it.
pub trait ArchiveIndex: Send + Sync + Debug {
    /// What the archive's front says.
    fn manifest(&self) -> &Manifest;

    /// One disk of the archive `file`, which is the one this was made of: read-only.
    fn layer(self: Arc<Self>, file: Arc<dyn Storage>, disk: u32) -> Result<Arc<dyn Layer>>;

    /// To be kept, for [`Archives::index_from`].
    fn to_bytes(&self) -> Vec<u8>;
}

/// An optional ability of a format: its files hold several disks.
pub trait Archives: Send + Sync + Debug {
    /// Reads an archive's front, and what follows as it is asked for. Errors: it is none, or its front cannot be read.
    fn read<'a>(&self, input: Box<dyn Read + Send + 'a>, how: Reading)
    -> Result<Box<dyn ArchiveSource + 'a>>;

    /// Goes through an archive whose front is damaged, to tell what it holds: the front says what it still can, and the rest
    /// of the archive what it does not. Errors: there is nothing of an archive in it.
    fn survey(&self, input: &mut (dyn Read + Send)) -> Result<Manifest>;

    /// Reads an archive as [`Reading::Salvage`] does, which holds what `manifest` says, whatever its front does.
    fn read_as<'a>(
        &self,
        input: Box<dyn Read + Send + 'a>,
        manifest: &Manifest,
    ) -> Result<Box<dyn ArchiveSource + 'a>>;

    /// Writes an archive. A disk whose number is 0 gets the next one, and an archive whose id is all zeros a random one.
    /// Errors: more or larger things than the format can hold.
    fn write<'a>(&self, output: Box<dyn Write + Send + 'a>, what: &Manifest) -> Result<Box<dyn Sink + 'a>>;

    /// Goes through an archive once, to find where each disk's bytes stand. Errors: it is broken anywhere.
    fn index(&self, file: &mut dyn Forward) -> Result<Arc<dyn ArchiveIndex>>;

    /// An index that was kept. It came from outside: it is looked at as an archive is.
    fn index_from(&self, bytes: &[u8]) -> Result<Arc<dyn ArchiveIndex>>;
}

impl Manifest {
    /// The disk of that name. Errors: there is none, or several; no name does where there is but one disk, a machine's
    /// memory not counted.
    pub fn disk(&self, name: Option<&str>) -> Result<u32> {
        let names = || {
            let names: Vec<&str> = self.disks.iter().map(|disk| disk.name.as_str()).collect();
            if names.is_empty() { "it has none".to_owned() } else { format!("it has {}", names.join(", ")) }
        };
        let mut found = (0_u32..)
            .zip(&self.disks)
            .filter(|(_, disk)| name.map_or(!disk.memory, |name| disk.name == name));
        match (found.next(), found.next(), name) {
            (Some((at, _)), None, _) => Ok(at),
            (None, _, Some(name)) => {
                Err(Error::new(crate::ErrorKind::NotFound, format!("the archive has no disk '{name}'"))
                    .hint(names()))
            }
            (None, _, None) => Err(Error::new(crate::ErrorKind::NotFound, "the archive has no disk")),
            (Some(_), Some(_), Some(name)) => {
                Err(Error::corrupt("dev_info", format!("several disks bear the name '{name}'")))
            }
            (Some(_), Some(_), None) => {
                Err(Error::invalid("the archive has several disks, and none was named")
                    .hint(format!("put #NAME behind the archive's name: {}", names())))
            }
        }
    }
}
