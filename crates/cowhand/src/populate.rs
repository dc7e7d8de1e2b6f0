//! `populate`: every unit of a disk gets its place in the top's file, with what the disk shows there.

use std::path::Path;

use cowhand_core::{Error, ErrorKind, Progress, Result};

use crate::buffer::Buffer;
use crate::open::{Open, open};

/// Guest bytes that are read and written at a time.
const PIECE: u64 = 1 << 20;

/// Writes into the top of `path` all that its chain shows, zeros too, so that the top holds it all. An error, or a kill,
/// leaves the disk as it reads.
pub fn populate(path: &Path, how: &Open, progress: &dyn Progress) -> Result<()> {
    let disk = open(path, &Open { writable: true, ..how.clone() })?;
    let size = disk.size();
    let mut buf = Buffer::default();
    let mut at = 0;
    while at < size {
        let bytes = buf.get((size - at).min(PIECE) as usize);
        disk.read(at, bytes)?;
        disk.write(at, bytes)?;
        at += bytes.len() as u64;
        if progress.at(at, size).is_break() {
            disk.close()?;
            return Err(Error::new(ErrorKind::Cancelled, "stopped on request").image(path.display()));
        }
    }
    disk.close()
}
