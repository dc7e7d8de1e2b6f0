//! What cannot seek: image files that are read from a pipe or written to one, from front to back.

mod made;

use std::fmt::Debug;
use std::io::{Cursor, Read};

pub use made::{Contents, Made, Pieces};

use crate::{CreateOptions, Error, Image, LayerId, ParentRef, Result};

/// A disk in a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskInfo {
    /// What the stream calls it; empty where it has no name.
    pub name: String,
    /// Guest bytes.
    pub size: u64,
    /// What it stands on: the stream holds only what differs.
    pub parent: Option<ParentRef>,
    /// What a child of it checks.
    pub identity: LayerId,
}

/// The content of a [`Chunk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// These guest bytes.
    Bytes(&'a [u8]),
    /// So many guest bytes that are zero, whatever lies below.
    Zero(u64),
}

/// A run of guest bytes that a stream holds. What no chunk names is zero, or the parent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Which of [`Source::disks`].
    pub disk: u32,
    /// Guest offset in bytes.
    pub at: u64,
    /// The content.
    pub body: Body<'a>,
}

/// Disks that come out of a stream, in chunks of any order; none comes twice.
pub trait Source: Send + Debug {
    /// The disks; known before the first chunk, but for an identity that only the end tells.
    fn disks(&self) -> &[DiskInfo];

    /// The next chunk. `None`: the stream was read to its end, and was whole. Errors: it ended early, or breaks its
    /// format's rules.
    fn next(&mut self) -> Result<Option<Chunk<'_>>>;
}

/// What the front of a stream tells of the whole.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// What was read so far.
    pub bytes: Vec<u8>,
    /// The file's length in bytes; `None`: the layout does not tell.
    pub file_len: Option<u64>,
    /// The disk; `None`: only the end tells.
    pub disk: Option<DiskInfo>,
}

impl Head {
    /// The whole stream again: what was read, and then the `rest`.
    pub fn replay<R: Read>(self, rest: R) -> impl Read {
        Cursor::new(self.bytes).chain(rest)
    }
}

/// The bytes of an image file that is made while it is read, from front to back.
pub trait Encoded: Read + Send {
    /// The whole file's length in bytes, known before the first of them is read. It does not change.
    fn file_len(&self) -> u64;

    /// What a child of it checks: known before the first byte too, so that children can be made beside it.
    fn identity(&self) -> LayerId {
        LayerId(None)
    }
}

/// An optional ability of a format: files that are read and written from front to back, in bounded memory.
pub trait Streams: Send + Sync + Debug {
    /// Reads the front of a stream, as little as tells what there is to tell. Errors: it is not this format, or breaks
    /// its rules.
    fn head(&self, input: &mut dyn Read) -> Result<Head>;

    /// Takes the disk out of a stream of `file_len` bytes; `None`: nobody said how many there are, and where the front
    /// does not tell the disk's size either, that is an error that asks for it. Errors: it is not this format.
    fn source<'a>(
        &self,
        input: Box<dyn Read + Send + 'a>,
        file_len: Option<u64>,
    ) -> Result<Box<dyn Source + 'a>>;

    /// The file that `how` makes and `disk` fills. Which bytes there are is settled by what the disk's tables say now;
    /// what proves to be zero when it is read is in the file as zeros. `how.parent`: a child, which gets what the disk
    /// does not call a hole. A disk of fewer bytes than `how.size` is followed by zeros. Errors: it has more; and, from
    /// the read that comes to the file's end, that a file of the disk changed meanwhile.
    fn encode<'a>(&self, disk: &'a Image, how: &CreateOptions) -> Result<Box<dyn Encoded + 'a>>;
}

/// Fills `buf` from a stream of which `at` bytes were read. Answers how many there were: fewer where the stream ended.
pub fn read_up_to(input: &mut dyn Read, buf: &mut [u8], at: u64) -> Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(more) => done += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                let came = at + done as u64;
                return Err(Error::io(format!("cannot read the stream after {came} bytes"), error));
            }
        }
    }
    Ok(done)
}
