//! A storage that never ends: past its end it reads zero, as QEMU's files do.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::{Identity, Storage};

/// What is read past the end is zero, so an image that was cut, or leads past its end, reads zero there. For reading alone.
#[derive(Debug)]
pub struct Endless(Arc<dyn Storage>);

/// Longer than any file, and far enough from the end of what can be counted.
const LEN: u64 = 1 << 62;

impl Endless {
    /// Over `storage`, which is not changed.
    pub fn over(storage: Arc<dyn Storage>) -> Endless {
        Endless(storage)
    }
}

impl Storage for Endless {
    fn len(&self) -> io::Result<u64> {
        Ok(LEN)
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let there = self.0.len()?.saturating_sub(at).min(buf.len() as u64);
        let (there, rest) = buf.split_at_mut(there as usize);
        rest.fill(0);
        if there.is_empty() { Ok(()) } else { self.0.read_at(at, there) }
    }

    fn write_at(&self, _at: u64, _buf: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn data_at(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        self.0.data_at(at)
    }

    fn physical_size(&self) -> io::Result<u64> {
        self.0.physical_size()
    }

    fn identity(&self) -> io::Result<Identity> {
        self.0.identity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStorage;

    #[test]
    fn zeros_follow_what_is_there() {
        let endless = Endless::over(Arc::new(MemoryStorage::from_bytes(&[1, 2, 3])));
        for (at, wanted) in [(0, [1, 2]), (2, [3, 0]), (3, [0, 0]), (LEN - 2, [0, 0]), (u64::MAX - 1, [0, 0])]
        {
            let mut buf = [9; 2];
            endless.read_at(at, &mut buf).unwrap();
            assert_eq!(buf, wanted);
        }
        assert_eq!(endless.write_at(0, &[0]).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
