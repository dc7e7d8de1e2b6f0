//! Raw in a stream: the disk's bytes, and nothing that says how many there are.

use std::io::Read;

use super::{Raw, round_up};
use crate::{
    Body, Chunk, Contents, CreateOptions, DiskInfo, Encoded, Error, ErrorKind, Head, Image, Made, Pieces,
    Result, Source, Streams, read_up_to,
};

impl Streams for Raw {
    fn head(&self, _input: &mut dyn Read) -> Result<Head> {
        Ok(Head::default())
    }

    fn source<'a>(
        &self,
        input: Box<dyn Read + Send + 'a>,
        file_len: Option<u64>,
    ) -> Result<Box<dyn Source + 'a>> {
        let Some(file_len) = file_len else {
            return Err(Error::unsupported("a raw disk in a stream does not say how large it is")
                .hint("say how many bytes will come, or save it to a file first"));
        };
        Ok(Box::new(Bytes {
            disks: [DiskInfo { size: round_up(file_len)?, ..DiskInfo::default() }],
            input,
            file_len,
            at: 0,
            piece: Vec::new(),
        }))
    }

    fn encode<'a>(&self, disk: &'a Image, how: &CreateOptions) -> Result<Box<dyn Encoded + 'a>> {
        if how.parent.is_some() {
            return Err(Error::unsupported("a raw image cannot have a backing file").hint("choose qcow2"));
        }
        let size = round_up(how.size)?;
        Ok(Box::new(Made::new(Whole { contents: Contents::new(disk, size)?, size, at: 0 })))
    }
}

/// A raw disk that is read.
struct Bytes<'a> {
    disks: [DiskInfo; 1],
    input: Box<dyn Read + Send + 'a>,
    file_len: u64,
    at: u64,
    piece: Vec<u8>,
}

impl std::fmt::Debug for Bytes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a raw disk in a stream, {} of {} bytes read", self.at, self.file_len)
    }
}

impl Source for Bytes<'_> {
    fn disks(&self) -> &[DiskInfo] {
        &self.disks
    }

    fn next(&mut self) -> Result<Option<Chunk<'_>>> {
        let at = self.at;
        let left = self.file_len - at;
        if left == 0 {
            return match read_up_to(&mut self.input, &mut [0], at)? {
                0 => Ok(None),
                _ => Err(Error::new(ErrorKind::Changed, format!("more than {at} bytes came"))),
            };
        }
        self.piece.resize(left.min(Contents::PIECE) as usize, 0);
        let got = read_up_to(&mut self.input, &mut self.piece, at)?;
        if got < self.piece.len() {
            let came = at + got as u64;
            let what = format!("it ended after {came} bytes, and should have had {}", self.file_len);
            return Err(Error::new(ErrorKind::Changed, what));
        }
        self.at += got as u64;
        Ok(Some(Chunk { disk: 0, at, body: Body::Bytes(&self.piece) }))
    }
}

/// A raw disk that is made.
struct Whole<'a> {
    contents: Contents<'a>,
    size: u64,
    at: u64,
}

impl Pieces for Whole<'_> {
    fn file_len(&self) -> u64 {
        self.size
    }

    fn next(&mut self, piece: &mut Vec<u8>) -> Result<()> {
        let len = (self.size - self.at).min(Contents::PIECE);
        self.contents.append(self.at, len as usize, piece)?;
        self.at += len;
        if self.at == self.size { self.contents.check_unchanged() } else { Ok(()) }
    }
}
