//! Bytes at offsets: what an image is kept on.

mod endless;
mod file;
mod hints;
mod memory;
mod solid;

pub use endless::Endless;
pub use file::{Access, Cache, FileStorage, Lock};
pub use hints::{FILE_OPTIONS, FileHints};
pub use memory::MemoryStorage;
pub use solid::{Solid, hole_at};

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use crate::Extent;

/// What tells one state of one file from another: did the source change while it was read?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device the file is on.
    pub device: u64,
    /// The file on that device.
    pub inode: u64,
    /// Bytes.
    pub len: u64,
    /// Nanoseconds since 1970 of the last change of content.
    pub mtime_ns: i128,
}

/// Bytes at offsets. A file, a block device, memory; positioned I/O from many threads.
pub trait Storage: Send + Sync + Debug {
    /// Bytes.
    fn len(&self) -> io::Result<u64>;

    /// True where there is no byte.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills all of `buf`, or fails; [`io::ErrorKind::UnexpectedEof`] where the storage ends before.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `buf`, growing the storage where that is possible.
    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()>;

    /// Cuts or grows; what is new reads zero.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// What was written before is durable after. After one failure every later call fails.
    fn sync(&self) -> io::Result<()>;

    /// True: the range now reads zero and its space is given back. The length does not change.
    fn punch(&self, at: u64, len: u64) -> io::Result<bool> {
        let _ = (at, len);
        Ok(false)
    }

    /// True: the range now reads zero and keeps its space. The storage grows to the range's end.
    fn zero(&self, at: u64, len: u64) -> io::Result<bool> {
        let _ = (at, len);
        Ok(false)
    }

    /// True: the range has its space; its content has not changed. The storage grows to the range's end.
    fn allocate(&self, at: u64, len: u64) -> io::Result<bool> {
        let _ = (at, len);
        Ok(false)
    }

    /// The first range at or after `at` that may hold something else than zeros; `None` if there is none up to the
    /// end. A storage that cannot tell answers all that is left.
    fn data_at(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        let len = self.len()?;
        Ok((at < len).then_some(at..len))
    }

    /// Where these bytes are themselves a disk in a file: what the image that it is kept in says of `at`, `max` bytes at
    /// most. `None`: they are not.
    fn disk_extent(&self, at: u64, max: u64) -> io::Result<Option<Extent>> {
        let _ = (at, max);
        Ok(None)
    }

    /// Shares `len` bytes of `src` without copying. Answers the bytes shared; 0 where that cannot be done.
    fn copy_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> io::Result<u64> {
        let _ = (at, src, src_at, len);
        Ok(0)
    }

    /// Bytes of space that the storage takes.
    fn physical_size(&self) -> io::Result<u64> {
        self.len()
    }

    /// Which file in which state.
    fn identity(&self) -> io::Result<Identity>;

    /// The open file behind this storage, where there is one: what sharing blocks needs.
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
