//! Unpacking that goes on behind what is damaged, with the next block that can be verified.

use std::io::{self, Read};

use cowhand_core::{Error, ErrorKind, Result};

use super::blocks::{Blocks, MAGIC, may_be_block};
use super::unpack::Unpack;

/// Unpacked bytes of the blocks that everybody makes.
const USUAL: usize = 256 << 10;

/// Bytes that are looked through at a time.
const CHUNK: usize = 4096;

/// Bytes that are held, about and at most: longer than any block is only what a file was filled up with.
const MOST: usize = 80 << 20;

/// Bytes that may be read again for each that is passed over, and beside: for what looks like a block is unpacked to
/// see if it is one.
const AGAIN: u64 = 32;
const AT_FIRST: u64 = 64 << 20;

/// The bytes of a file, those behind its damages too.
pub(super) struct Rescue<R> {
    unpack: Unpack<Tape<R>>,
    state: State,
    /// An error was told, and nothing came since.
    told: bool,
    /// The longest block so far.
    longest: usize,
    /// Bytes that were passed over, and that were read again.
    passed: u64,
    again: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// A block or a part comes next.
    Between,
    /// What is here makes no sense. Something may, behind it.
    Lost,
    Ended,
}

impl<R: Read> Rescue<R> {
    pub(super) fn new(from: R) -> Rescue<R> {
        let unpack = Unpack::new(Blocks::new(Tape { from, begin: 0, held: Vec::new(), at: 0 }), u64::MAX);
        Rescue { unpack, state: State::Between, told: false, longest: USUAL, passed: 0, again: 0 }
    }

    /// Unpacks the next block. False: there is none.
    fn step(&mut self) -> Result<bool> {
        if self.state == State::Lost && !self.find()? {
            self.state = State::Ended;
        }
        if self.state == State::Ended {
            return Ok(false);
        }
        self.unpack.blocks.from.mark();
        match self.unpack.step() {
            Ok(unpacked) => {
                self.longest = self.longest.max(unpacked.unwrap_or(0));
                self.state = if unpacked.is_some() { State::Between } else { State::Ended };
                Ok(unpacked.is_some())
            }
            Err(error) => {
                // What it said of its length need not be so: it may have passed over another's front.
                let tape = &mut self.unpack.blocks.from;
                self.again += tape.at as u64;
                tape.at = tape.held.len().min(1);
                self.unpack.blocks.at = tape.begin + tape.at as u64;
                let known = error.kind() != ErrorKind::Unsupported;
                self.state = if known { State::Lost } else { State::Ended };
                Err(error)
            }
        }
    }

    /// Looks for what may be a block or a part. False: there is none.
    fn find(&mut self) -> Result<bool> {
        let blocks = &mut self.unpack.blocks;
        loop {
            let ahead = blocks.from.ahead(CHUNK).map_err(|error| Error::io("reading an lzop file", error))?;
            let many = self.again > AT_FIRST + AGAIN * self.passed;
            let found = ahead
                .windows(MAGIC.len())
                .position(|bytes| bytes == MAGIC || !many && may_be_block(bytes, blocks.flags, self.longest));
            let part = found.is_some_and(|at| ahead.get(at..).is_some_and(|rest| rest.starts_with(&MAGIC)));
            let passed = found.unwrap_or((ahead.len() + 1).saturating_sub(MAGIC.len()));
            blocks.from.at += passed;
            self.passed += passed as u64;
            if found.is_some() {
                blocks.at = blocks.from.begin + blocks.from.at as u64;
                blocks.begin(part);
                return Ok(true);
            }
            if passed == 0 {
                return Ok(false);
            }
            blocks.from.mark();
        }
    }
}

impl<R: Read> Read for Rescue<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while !buf.is_empty() {
            let n = self.unpack.give(buf);
            if n > 0 {
                self.told = false;
                return Ok(n);
            }
            match self.step() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                // One error for all that makes no sense between two blocks that do.
                Err(error) if self.told && self.state == State::Lost && error.kind() != ErrorKind::Io => {}
                Err(error) => {
                    self.told = true;
                    return Err(error.into());
                }
            }
        }
        Ok(0)
    }
}

/// What is read, and can be read again from a mark on.
pub(super) struct Tape<R> {
    from: R,
    /// Where the mark stands in the file.
    begin: u64,
    /// All since the mark, and how much of it was read.
    held: Vec<u8>,
    at: usize,
}

impl<R: Read> Tape<R> {
    /// What was read is not wanted again.
    fn mark(&mut self) {
        self.begin += self.at as u64;
        self.held.drain(..self.at);
        self.at = 0;
    }

    /// That many bytes that come next; fewer where the file ends.
    fn ahead(&mut self, len: usize) -> io::Result<&[u8]> {
        let missing = len.saturating_sub(self.held.len() - self.at); // never below 0: no more is read than is held
        self.from.by_ref().take(missing as u64).read_to_end(&mut self.held)?;
        Ok(self.held.get(self.at..).unwrap_or_default())
    }
}

impl<R: Read> Read for Tape<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let rest = self.held.get(self.at..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]); // never out of bounds: not longer than either
        if n > 0 {
            self.at += n;
            return Ok(n);
        }
        if self.held.len() > MOST {
            self.mark();
        }
        let n = self.from.read(buf)?;
        self.held.extend_from_slice(&buf[..n]); // never out of bounds: it was read into
        self.at += n;
        Ok(n)
    }
}
