//! A storage without holes: what nobody wrote is written as zeros, for Windows' programs, which refuse sparse files.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Identity, Storage};

/// Zeros that are written at once.
const ZEROS: u64 = 1 << 20;

/// A storage whose every byte is written, at the latest when it is synced. Nothing is punched out of it, and what it
/// shares with another storage has no holes either.
///
/// It never has a hole, also not for a moment: what it is longer than what was written is only kept in mind, reads zero,
/// and is written when something comes behind it, or by a sync.
#[derive(Debug)]
pub struct Solid {
    storage: Arc<dyn Storage>,
    ends: Mutex<Ends>,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    /// Up to here every byte was written.
    written: u64,
    /// The length, `written` or more.
    len: u64,
}

impl Solid {
    /// Over `storage`, whose holes are filled now.
    pub fn over(storage: Arc<dyn Storage>) -> io::Result<Solid> {
        let len = storage.len()?;
        let mut at = 0;
        while let Some(hole) = hole_at(storage.as_ref(), at)? {
            write_zeros(storage.as_ref(), hole.start, hole.end)?;
            at = hole.end;
        }
        Ok(Solid { storage, ends: Mutex::new(Ends { written: len, len }) })
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes zeros up to `to`.
    fn fill(&self, ends: &mut Ends, to: u64) -> io::Result<()> {
        while ends.written < to {
            let end = to.min(ends.written + ZEROS);
            write_zeros(self.storage.as_ref(), ends.written, end)?;
            ends.written = end;
        }
        ends.len = ends.len.max(ends.written);
        Ok(())
    }

    /// Does `put` to bytes from `at` on; answers what it does, the bytes that were put.
    fn put(&self, at: u64, len: u64, put: impl FnOnce() -> io::Result<u64>) -> io::Result<u64> {
        let end = at.checked_add(len).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut ends = self.ends();
        if end <= ends.written {
            drop(ends);
            return put();
        }
        self.fill(&mut ends, at)?;
        let done = put()?;
        ends.written = ends.written.max(at + done);
        ends.len = ends.len.max(ends.written);
        Ok(done)
    }
}

/// The first hole of a storage at or behind `at`; `None`: there is none up to the end.
pub fn hole_at(storage: &dyn Storage, at: u64) -> io::Result<Option<Range<u64>>> {
    let len = storage.len()?;
    let mut here = at;
    while here < len {
        match storage.data_at(here)? {
            Some(data) if data.start <= here => here = data.end.max(here + 1),
            data => return Ok(Some(here..data.map_or(len, |data| data.start.min(len)))),
        }
    }
    Ok(None)
}

fn write_zeros(storage: &dyn Storage, at: u64, end: u64) -> io::Result<()> {
    let zeros = vec![0; end.saturating_sub(at).min(ZEROS) as usize];
    let mut here = at;
    while here < end {
        let n = (end - here).min(ZEROS);
        storage.write_at(here, zeros.get(..n as usize).unwrap_or_default())?;
        here += n;
    }
    Ok(())
}

impl Storage for Solid {
    fn len(&self) -> io::Result<u64> {
        Ok(self.ends().len)
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let Ends { written, len } = *self.ends();
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let there = written.saturating_sub(at).min(buf.len() as u64);
        let (there, rest) = buf.split_at_mut(there as usize);
        rest.fill(0);
        if there.is_empty() { Ok(()) } else { self.storage.read_at(at, there) }
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        let len = buf.len() as u64;
        if len == 0 {
            return Ok(());
        }
        self.put(at, len, || self.storage.write_at(at, buf).map(|()| len)).map(|_| ())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut ends = self.ends();
        let there = self.storage.len()?;
        if len < there {
            self.storage.set_len(len)?;
            // A device keeps its length.
            ends.written = ends.written.min(self.storage.len()?);
        }
        ends.len = len.max(ends.written);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut ends = self.ends();
        let len = ends.len;
        self.fill(&mut ends, len)?;
        drop(ends);
        self.storage.sync()
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<bool> {
        let end = at.checked_add(len).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut ends = self.ends();
        ends.len = ends.len.max(end);
        let there = end.min(ends.written);
        drop(ends);
        write_zeros(self.storage.as_ref(), at, there)?;
        Ok(true)
    }

    fn allocate(&self, at: u64, len: u64) -> io::Result<bool> {
        let end = at.checked_add(len).ok_or(io::ErrorKind::FileTooLarge)?;
        self.fill(&mut self.ends(), end)?;
        Ok(true)
    }

    fn data_at(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        self.storage.data_at(at)
    }

    fn copy_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> io::Result<u64> {
        let end = src_at.checked_add(len).ok_or(io::ErrorKind::FileTooLarge)?;
        let whole = src.data_at(src_at)?.is_some_and(|data| data.start <= src_at && end <= data.end);
        if !whole {
            return Ok(0);
        }
        self.put(at, len, || self.storage.copy_from(at, src, src_at, len))
    }

    fn physical_size(&self) -> io::Result<u64> {
        self.storage.physical_size()
    }

    fn identity(&self) -> io::Result<Identity> {
        self.storage.identity()
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.storage.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStorage;

    const MIB: u64 = 1 << 20;

    fn solid() -> (Arc<MemoryStorage>, Solid) {
        let memory = Arc::new(MemoryStorage::new());
        (memory.clone(), Solid::over(memory).unwrap())
    }

    #[test]
    fn what_nobody_wrote_is_zeros_and_no_hole() {
        let (memory, solid) = solid();
        solid.set_len(8 * MIB).unwrap();
        assert_eq!((solid.len().unwrap(), memory.len().unwrap()), (8 * MIB, 0));
        solid.write_at(3 * MIB, &[7; 5000]).unwrap();
        assert_eq!(memory.len().unwrap(), 3 * MIB + 5000, "no more than was written");
        let mut buf = [1; 10];
        solid.read_at(3 * MIB + 4995, &mut buf).unwrap();
        assert_eq!(buf, [7, 7, 7, 7, 7, 0, 0, 0, 0, 0]);
        assert!(solid.read_at(8 * MIB - 9, &mut buf).is_err());
        assert_eq!(hole_at(memory.as_ref(), 0).unwrap(), None);
        solid.write_at(MIB, &[9; 3]).unwrap();
        solid.sync().unwrap();
        assert_eq!((memory.len().unwrap(), hole_at(memory.as_ref(), 0).unwrap()), (8 * MIB, None));
        let mut buf = [0; 5];
        memory.read_at(MIB - 1, &mut buf).unwrap();
        assert_eq!(buf, [0, 9, 9, 9, 0]);
    }

    #[test]
    fn nothing_is_punched_and_zeros_are_written() {
        let (memory, solid) = solid();
        solid.write_at(0, &[7; 10_000]).unwrap();
        assert!(!solid.punch(0, 10_000).unwrap());
        assert!(solid.zero(0, 8192).unwrap() && solid.zero(9000, 2 * MIB).unwrap());
        assert_eq!(solid.len().unwrap(), 9000 + 2 * MIB);
        solid.allocate(4 * MIB, MIB).unwrap();
        let mut buf = [1; 10_000];
        memory.read_at(0, &mut buf).unwrap();
        assert!(buf[..8192].iter().all(|b| *b == 0) && buf[8192..9000].iter().all(|b| *b == 7));
        assert_eq!((memory.len().unwrap(), hole_at(memory.as_ref(), 0).unwrap()), (5 * MIB, None));
    }

    #[test]
    fn what_was_cut_off_reads_zero_when_it_grows_again() {
        let (memory, solid) = solid();
        solid.write_at(0, &[7; 10_000]).unwrap();
        solid.set_len(5000).unwrap();
        solid.set_len(9000).unwrap();
        let mut buf = [1; 9000];
        solid.read_at(0, &mut buf).unwrap();
        assert!(buf[..5000].iter().all(|b| *b == 7) && buf[5000..].iter().all(|b| *b == 0));
        solid.set_len(6000).unwrap();
        solid.sync().unwrap();
        assert_eq!(memory.len().unwrap(), 6000);
    }

    #[test]
    fn the_holes_of_a_file_that_is_there_are_filled() {
        let memory = Arc::new(MemoryStorage::new());
        memory.set_len(3 * MIB + 100).unwrap();
        memory.write_at(MIB, &[7; 4096]).unwrap();
        assert_eq!(hole_at(memory.as_ref(), 0).unwrap(), Some(0..MIB));
        assert_eq!(hole_at(memory.as_ref(), MIB).unwrap(), Some(MIB + 4096..3 * MIB + 100));
        let before = memory.snapshot();
        Solid::over(memory.clone()).unwrap();
        assert_eq!(hole_at(memory.as_ref(), 0).unwrap(), None);
        assert!(memory.same_bytes(&before));
    }
}
