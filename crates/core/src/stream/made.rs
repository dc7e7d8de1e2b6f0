//! Files that are made while they are read: the disk they are made from, and pieces that become bytes to read.

use std::io::{self, Read};

use crate::{Encoded, Error, ErrorKind, Identity, Image, LayerId, Result};

/// A disk whose bytes go into a stream, and the files it is made of as they were at the start.
#[derive(Debug)]
pub struct Contents<'a> {
    disk: &'a Image,
    then: Vec<Identity>,
}

impl<'a> Contents<'a> {
    /// The most bytes that are worth reading at once.
    pub const PIECE: u64 = 1 << 20;

    /// The bytes of `disk`, for a stream of a disk of `size` bytes. Errors: the disk has more.
    pub fn new(disk: &'a Image, size: u64) -> Result<Contents<'a>> {
        if disk.size() > size {
            let has = disk.size();
            return Err(Error::invalid(format!("the disk has {has} bytes, more than the {size} asked for"))
                .image(disk.name()));
        }
        Ok(Contents { disk, then: identities(disk)? })
    }

    /// The disk.
    pub fn disk(&self) -> &'a Image {
        self.disk
    }

    /// Puts the `len` guest bytes from `at` on behind what `piece` holds; past the disk's end they are zero.
    pub fn append(&self, at: u64, len: usize, piece: &mut Vec<u8>) -> Result<()> {
        let old = piece.len();
        piece.resize(old + len, 0);
        let there = usize::try_from(self.disk.size().saturating_sub(at)).unwrap_or(usize::MAX).min(len);
        match piece.get_mut(old..old + there) {
            Some(into) if there > 0 => self.disk.read(at, into),
            _ => Ok(()),
        }
    }

    /// An error if one of the disk's files is another than at the start, or was written since.
    pub fn check_unchanged(&self) -> Result<()> {
        let now = identities(self.disk)?;
        let changed = self.disk.links().iter().zip(&self.then).zip(&now).find(|((_, then), now)| then != now);
        match changed {
            None => Ok(()),
            Some(((link, _), _)) => Err(Error::new(ErrorKind::Changed, "it changed while it was read")
                .image(&link.name)
                .hint("what was written of it is of no use")),
        }
    }
}

fn identities(disk: &Image) -> Result<Vec<Identity>> {
    let identity = |link: &crate::Link| {
        link.layer.host().identity().map_err(|error| Error::io("cannot look at", error).image(&link.name))
    };
    disk.links().iter().map(identity).collect()
}

/// A file that is made piece by piece, from front to back.
pub trait Pieces: Send {
    /// See [`Encoded::file_len`].
    fn file_len(&self) -> u64;

    /// See [`Encoded::identity`].
    fn identity(&self) -> LayerId {
        LayerId(None)
    }

    /// Puts the next bytes, about [`Contents::PIECE`] at most, into `piece`, which is empty. None: that was all.
    fn next(&mut self, piece: &mut Vec<u8>) -> Result<()>;
}

/// A file made of [`Pieces`], as something to read. After an error every further read fails.
#[derive(Debug)]
pub struct Made<P> {
    pieces: P,
    piece: Vec<u8>,
    /// How much of `piece` was read.
    used: usize,
    failed: bool,
}

impl<P: Pieces> Made<P> {
    /// The bytes of `pieces`, none of which was taken yet.
    pub fn new(pieces: P) -> Made<P> {
        Made { pieces, piece: Vec::new(), used: 0, failed: false }
    }
}

impl<P: Pieces> Read for Made<P> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other("an earlier read failed"));
        }
        if self.used == self.piece.len() && !buf.is_empty() {
            self.piece.clear();
            self.used = 0;
            if let Err(error) = self.pieces.next(&mut self.piece) {
                self.failed = true;
                return Err(error.into());
            }
        }
        let done = self.piece.get(self.used..).unwrap_or_default().read(buf)?;
        self.used += done;
        Ok(done)
    }
}

impl<P: Pieces> Encoded for Made<P> {
    fn file_len(&self) -> u64 {
        self.pieces.file_len()
    }

    fn identity(&self) -> LayerId {
        self.pieces.identity()
    }
}
