//! Tables that a repair changes are written back only where they changed.

use std::ops::Range;

use cowhand_core::{Error, Result, Storage};

/// The bytes of a buffer that differ from the file's.
#[derive(Debug, Default)]
pub(super) struct Changed(Range<usize>);

impl Changed {
    pub(super) fn add(&mut self, range: Range<usize>) {
        self.0 =
            if self.0.is_empty() { range } else { self.0.start.min(range.start)..self.0.end.max(range.end) };
    }

    /// Writes them to where the buffer was read from; false: there are none.
    pub(super) fn write(self, file: &dyn Storage, at: u64, bytes: &[u8]) -> Result<bool> {
        let Some(part) = bytes.get(self.0.clone()).filter(|part| !part.is_empty()) else { return Ok(false) };
        let at = at + self.0.start as u64;
        file.write_at(at, part).map_err(|error| Error::io("cannot write a table", error).at(at))?;
        Ok(true)
    }
}
