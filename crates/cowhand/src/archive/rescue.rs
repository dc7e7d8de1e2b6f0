//! The bytes of a file as far as they can be had: behind what is damaged it goes on.

use std::io::{self, Read};
use std::sync::Arc;

use cowhand_core::{Error, Gap, Storage};

/// Bytes that are lost together where a file cannot be read.
const SECTOR: u64 = 4096;

/// A file that is not packed.
pub(super) struct Sectors {
    pub(super) file: Arc<dyn Storage>,
    pub(super) at: u64,
    pub(super) len: u64,
}

impl Read for Sectors {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.len - self.at;
        let most = left.min(buf.len() as u64);
        let sector = (SECTOR - self.at % SECTOR).min(left);
        let mut n = most as usize;
        if let Err(error) = self.file.read_at(self.at, &mut buf[..n]) {
            // Never out of bounds, neither: at most its length.
            n = sector.min(most) as usize;
            if most < sector || self.file.read_at(self.at, &mut buf[..n]).is_err() {
                self.at += sector;
                return Err(Gap { len: sector, error: Error::io("cannot read it", error) }.into());
            }
        }
        self.at += n as u64;
        Ok(n)
    }
}
