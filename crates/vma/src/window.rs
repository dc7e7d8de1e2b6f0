//! The part of an archive that is looked at: bytes as they come, each read once.

use std::fmt;
use std::io::{ErrorKind, Read};
use std::ops::Range;

use cowhand_core::{Error, Gap, Result};

/// Read beyond what is asked for, where there is more.
const SLACK: usize = 128 << 10;

/// Bytes of an archive from [`Window::offset`] on.
pub(crate) struct Window<'a> {
    input: Box<dyn Read + Send + 'a>,
    buf: Vec<u8>,
    from: usize,
    to: usize,
    offset: u64,
    ended: bool,
    /// Bytes that are lost, and still to be passed over: zeros stand for them.
    gap: u64,
    /// Where they stand in the archive, ascending, as far as they were not passed; and why, of those nobody was told of.
    lost: Vec<Range<u64>>,
    news: Vec<(u64, Error)>,
}

impl fmt::Debug for Window<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window {{ offset: {}, held: {} }}", self.offset, self.to - self.from)
    }
}

impl<'a> Window<'a> {
    /// On what follows in `input`, of which `offset` bytes were read.
    pub(crate) fn new(input: Box<dyn Read + Send + 'a>, offset: u64) -> Window<'a> {
        Window {
            input,
            buf: Vec::new(),
            from: 0,
            to: 0,
            offset,
            ended: false,
            gap: 0,
            lost: Vec::new(),
            news: Vec::new(),
        }
    }

    /// Holds `len` bytes, or all there are where these are fewer. Errors leave what came before them.
    pub(crate) fn fill(&mut self, len: usize) -> Result<()> {
        if self.from + len > self.buf.len() {
            self.buf.copy_within(self.from..self.to, 0);
            self.to -= self.from;
            self.from = 0;
            if len > self.buf.len() {
                self.buf.resize(len + SLACK, 0);
            }
        }
        while self.to - self.from < len && !self.ended {
            let room = self.buf.get_mut(self.to..).unwrap_or_default();
            if self.gap > 0 {
                let n = room.len().min(usize::try_from(self.gap).unwrap_or(usize::MAX));
                room.iter_mut().take(n).for_each(|byte| *byte = 0);
                self.to += n;
                self.gap -= n as u64;
                continue;
            }
            match self.input.read(room) {
                Ok(0) => self.ended = true,
                Ok(n) => self.to += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let came = self.offset + self.bytes().len() as u64;
                    let error = match error.downcast::<Gap>() {
                        Ok(gap) => {
                            self.lose(came, gap);
                            continue;
                        }
                        Err(error) => error,
                    };
                    return Err(Error::io(format!("cannot read the archive after {came} bytes"), error));
                }
            }
        }
        Ok(())
    }

    fn lose(&mut self, at: u64, gap: Gap) {
        self.gap = gap.len.min(u64::MAX - at);
        let end = at + self.gap;
        match self.lost.last_mut() {
            Some(last) if last.end == at => last.end = end,
            _ => {
                self.lost.push(at..end);
                self.news.push((at, gap.error));
            }
        }
    }

    /// Where bytes are lost that were come to since somebody asked, and why.
    pub(crate) fn news(&mut self) -> Vec<(u64, Error)> {
        std::mem::take(&mut self.news)
    }

    /// What is lost of `count` blocks of `len` bytes, from `at` bytes behind the first on: their numbers.
    pub(crate) fn lost(&self, at: usize, len: u64, count: usize) -> Vec<Range<usize>> {
        let first = self.offset + at as u64;
        let end = first + count as u64 * len;
        let lost = self.lost.iter().filter(|lost| lost.start < end && lost.end > first);
        let blocks = |lost: &Range<u64>| {
            let (from, to) = (lost.start.max(first) - first, lost.end.min(end) - first);
            (from / len) as usize..to.div_ceil(len) as usize
        };
        lost.map(blocks).collect()
    }

    /// What is held: at least what was last asked for, where the archive has so much.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buf.get(self.from..self.to).unwrap_or_default()
    }

    /// Goes on by `len` bytes of those that are held.
    pub(crate) fn pass(&mut self, len: usize) {
        let len = len.min(self.to - self.from);
        self.from += len;
        self.offset += len as u64;
        let offset = self.offset;
        self.lost.retain(|lost| lost.end > offset);
    }

    /// Goes to the end of what is lost, where nothing else is held.
    pub(crate) fn leap(&mut self) {
        if self.gap > 0 && self.lost.last().is_some_and(|lost| lost.start <= self.offset) {
            self.pass(usize::MAX);
            self.offset += self.gap;
            self.gap = 0;
            self.lost.clear();
        }
    }

    /// Where in the archive its bytes begin.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Nothing more shall be read, until [`Window::resume`].
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// What comes next shall be read: it stands behind what could not be.
    pub(crate) fn resume(&mut self) {
        self.ended = false;
    }
}
