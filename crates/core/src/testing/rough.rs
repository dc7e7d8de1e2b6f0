//! What an image may stand on instead of a file: a device, full of what it held before.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::Rng;
use crate::{Folder, Identity, Result, Storage};

/// Makes files that are devices of one length, full of old bytes that cannot be punched away.
#[derive(Debug)]
pub(super) struct DeviceFolder {
    pub(super) inner: Arc<dyn Folder>,
    /// Bytes of each device.
    pub(super) len: u64,
}

impl Folder for DeviceFolder {
    fn open(&self, name: &str, write: bool) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(Device { inner: self.inner.open(name, write)?, len: self.len }))
    }

    fn create_new(&self, name: &str) -> Result<Arc<dyn Storage>> {
        let inner = self.inner.create_new(name)?;
        let mut rng = Rng::new(self.len);
        let old: Vec<u8> = (0..self.len / 8).flat_map(|_| rng.any().to_le_bytes()).collect();
        inner.write_at(0, &old).map_err(|error| crate::Error::io("cannot fill the device", error))?;
        Ok(Arc::new(Device { inner, len: self.len }))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.inner.remove(name)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
}

#[derive(Debug)]
struct Device {
    inner: Arc<dyn Storage>,
    len: u64,
}

impl Storage for Device {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(at, buf)
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.inner.write_at(at, buf)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > self.len { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn data_at(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        Ok((at < self.len).then_some(at..self.len))
    }

    fn physical_size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn identity(&self) -> io::Result<Identity> {
        self.inner.identity()
    }
}
