//! The part of a storage that holds a LUKS header and its key material.

use std::sync::Arc;

use cowhand_core::{Error, Result, Storage};

/// `len` bytes of a storage from `base` on: a file's front, or some clusters of a qcow2 image.
#[derive(Clone, Debug)]
pub struct Area {
    /// Where the bytes are kept.
    pub storage: Arc<dyn Storage>,
    /// Offset of the header in the storage, in bytes.
    pub base: u64,
    /// Bytes that belong to the header and its key material, or that are there at all.
    pub len: u64,
}

impl Area {
    pub(crate) fn read(&self, at: u64, buf: &mut [u8], what: &str) -> Result<()> {
        let here = self.base.saturating_add(at);
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(Error::corrupt(what, format!("goes past the {} bytes there are", self.len)).at(here));
        }
        let failed = |error| Error::io(format!("cannot read the {what}"), error).at(here);
        self.storage.read_at(here, buf).map_err(failed)
    }

    pub(crate) fn write(&self, at: u64, buf: &[u8], what: &str) -> Result<()> {
        let here = self.base.saturating_add(at);
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(Error::invalid(format!("there is no room for the {what}")).at(here));
        }
        let failed = |error| Error::io(format!("cannot write the {what}"), error).at(here);
        self.storage.write_at(here, buf).map_err(failed)
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.storage.sync().map_err(|error| Error::io("cannot sync", error))
    }
}
