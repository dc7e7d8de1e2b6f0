//! The part of an archive that is looked at: bytes as they come, each read once.

use std::fmt;
use std::io::{ErrorKind, Read};

use cowhand_core::{Error, Result};

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
}

impl fmt::Debug for Window<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window {{ offset: {}, held: {} }}", self.offset, self.to - self.from)
    }
}

impl<'a> Window<'a> {
    /// On what follows in `input`, of which `offset` bytes were read.
    pub(crate) fn new(input: Box<dyn Read + Send + 'a>, offset: u64) -> Window<'a> {
        Window { input, buf: Vec::new(), from: 0, to: 0, offset, ended: false }
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
            match self.input.read(self.buf.get_mut(self.to..).unwrap_or_default()) {
                Ok(0) => self.ended = true,
                Ok(n) => self.to += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let came = self.offset + self.bytes().len() as u64;
                    return Err(Error::io(format!("cannot read the archive after {came} bytes"), error));
                }
            }
        }
        Ok(())
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
