//! Reading tables from a file of which most may be holes: what is a hole is zero, and is not read.

use std::io;
use std::ops::Range;

use cowhand_core::Storage;

use crate::cache::read_to_end;

/// One reader; remembers the last hole and the last data it met, so that neighbours need not be asked for.
#[derive(Debug)]
pub(super) struct Sparse<'a> {
    file: &'a dyn Storage,
    hole: Range<u64>,
    data: Range<u64>,
}

impl<'a> Sparse<'a> {
    pub(super) fn new(file: &'a dyn Storage) -> Sparse<'a> {
        Sparse { file, hole: 0..0, data: 0..0 }
    }

    /// The first offset in `range` that may not be zero.
    pub(super) fn data_in(&mut self, range: Range<u64>) -> io::Result<Option<u64>> {
        if self.data.contains(&range.start) {
            return Ok(Some(range.start));
        }
        if !self.hole.contains(&range.start) {
            let next = self.file.data_at(range.start)?;
            self.hole = range.start..next.as_ref().map_or(u64::MAX, |next| next.start);
            self.data = next.unwrap_or(0..0);
        }
        Ok(Some(range.start.max(self.hole.end)).filter(|at| *at < range.end))
    }

    /// Fills `buf`, with zeros past the end of the file. False: all of it is zero.
    pub(super) fn read(&mut self, at: u64, buf: &mut [u8]) -> io::Result<bool> {
        let end = at.saturating_add(buf.len() as u64);
        if self.data_in(at..end)?.is_none() {
            buf.fill(0);
            return Ok(false);
        }
        read_to_end(self.file, at, buf)?;
        Ok(true)
    }
}
