//! A disk as the file that another driver's image stands in.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use cowhand_core::{Erase, Error, Extent, Identity, Image, Kind, Mapped, Prealloc, Storage};

use crate::registry;

/// The bytes of a disk.
#[derive(Debug)]
pub(crate) struct DiskFile {
    disk: Image,
    /// Taken by who makes it longer.
    growing: Mutex<()>,
}

impl DiskFile {
    pub(crate) fn of(disk: Image) -> DiskFile {
        DiskFile { disk, growing: Mutex::new(()) }
    }

    /// Makes room for `end` bytes.
    fn reach(&self, end: u64) -> io::Result<()> {
        let _guard = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if end <= self.disk.size() {
            return Ok(());
        }
        self.disk.resize(end.next_multiple_of(512), Prealloc::Off).map_err(io::Error::from)
    }
}

impl Storage for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.size())
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > self.disk.size()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.disk.read(at, buf).map_err(io::Error::from)
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        let end = at.checked_add(buf.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.reach(end)?;
        self.disk.write(at, buf).map_err(io::Error::from)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let _guard = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let len = len.checked_next_multiple_of(512).ok_or(io::ErrorKind::FileTooLarge)?;
        if len == self.disk.size() {
            return Ok(());
        }
        self.disk.resize(len, Prealloc::Off).map_err(io::Error::from)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.flush().map_err(io::Error::from)
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<bool> {
        self.disk.erase(at, len, Erase::Free).map_err(io::Error::from)?;
        Ok(true)
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<bool> {
        self.reach(at.checked_add(len).ok_or(io::ErrorKind::FileTooLarge)?)?;
        self.disk.erase(at, len, Erase::Zero).map_err(io::Error::from)?;
        Ok(true)
    }

    fn data_at(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        let size = self.disk.size();
        let (mut from, mut to) = (at, at);
        while to < size {
            let found = self.disk.extent(to, size - to).map_err(io::Error::from)?;
            match found.kind {
                Kind::Data => to += found.len,
                Kind::Zero | Kind::Hole if from < to => break,
                Kind::Zero | Kind::Hole => (from, to) = (to + found.len, to + found.len),
            }
        }
        Ok((from < to).then_some(from..to))
    }

    fn disk_extent(&self, at: u64, max: u64) -> io::Result<Option<Extent>> {
        let max = max.min(self.disk.size().saturating_sub(at));
        if max == 0 {
            return Ok(None);
        }
        let Mapped { len, kind, compressed, host, .. } =
            self.disk.extent(at, max).map_err(io::Error::from)?;
        let found = Extent { len, kind, compressed, host };
        // A disk that is its file's bytes as they stand is where those are.
        match (self.disk.links().first(), host) {
            (Some(link), Some(host))
                if registry::format(link.format).is_ok_and(|format| format.is_bare()) =>
            {
                Ok(Some(link.layer.host().disk_extent(host, len)?.unwrap_or(found)))
            }
            _ => Ok(Some(found)),
        }
    }

    fn physical_size(&self) -> io::Result<u64> {
        self.host(|file| file.physical_size())
    }

    fn identity(&self) -> io::Result<Identity> {
        self.host(|file| file.identity())
    }
}

impl DiskFile {
    fn host<T>(&self, ask: impl Fn(&dyn Storage) -> io::Result<T>) -> io::Result<T> {
        match self.disk.links().first() {
            Some(link) => ask(link.layer.host().as_ref()),
            None => Err(Error::invalid("a disk without a layer").into()),
        }
    }
}
