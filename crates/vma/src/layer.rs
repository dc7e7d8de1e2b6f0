//! One disk of an archive, read at random.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cowhand_core::{
    ArchiveIndex, ArchivedDisk, Details, Error, ErrorKind, Extent, Layer, Manifest, Result, Storage, Walk,
};

use crate::details::details;
use crate::index::{Index, index};
use crate::layout::BLOCK;
use crate::places::{BUDGET, Room};

/// Bytes of a sector: a disk's size is rounded up to whole ones, as a raw file's is.
const SECTOR: u64 = 512;

/// A disk of the archive that `file` holds.
#[derive(Debug)]
pub(crate) struct Disk {
    file: Arc<dyn Storage>,
    manifest: Manifest,
    disk: u32,
    /// Guest bytes that the archive says there are.
    len: u64,
    /// [`Disk::len`], up to a whole sector: what is behind is zero.
    size: u64,
    index: OnceLock<Result<Arc<Index>>>,
    /// Held by who makes the index.
    making: Mutex<()>,
}

impl Disk {
    /// Nothing but the archive's front was read: its `manifest`. The index is made when it is first asked for. Errors: the
    /// disk is none.
    pub(crate) fn new(file: Arc<dyn Storage>, manifest: Manifest, disk: u32) -> Result<Disk> {
        let no_such = || Error::invalid(format!("the archive has no disk number {disk}"));
        let ArchivedDisk { name, size: len, memory, .. } =
            manifest.disks.get(disk as usize).ok_or_else(no_such)?;
        if *memory {
            // Its bytes come in order until they end: the size is a guess, and what is left out is no zero.
            return Err(Error::unsupported(format!("'{name}' is a running machine's memory, and no disk"))
                .hint("cowhand vma extract makes a file of it"));
        }
        let len = *len;
        let size = len
            .checked_next_multiple_of(SECTOR)
            .ok_or_else(|| Error::unsupported(format!("the disk '{name}' is too large: {len} bytes")))?;
        Ok(Disk { file, manifest, disk, len, size, index: OnceLock::new(), making: Mutex::default() })
    }

    /// With the index of that archive. Errors: the disk is none, or the file is another one.
    pub(crate) fn indexed(file: Arc<dyn Storage>, index: Arc<Index>, disk: u32) -> Result<Disk> {
        index.is_of(file.as_ref())?;
        let layer = Disk::new(file, index.manifest().clone(), disk)?;
        let _ = layer.index.set(Ok(index)); // never set before: it was just made
        Ok(layer)
    }

    fn index(&self) -> Result<&Index> {
        if self.index.get().is_none() {
            let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            if self.index.get().is_none() {
                let made = index(&mut Walk::new(self.file.clone()), Room::of(BUDGET)).map(Arc::new);
                match made {
                    // What could not be read today may be tomorrow.
                    Err(error) if error.kind() == ErrorKind::Io => return Err(error),
                    made => _ = self.index.set(made),
                }
            }
        }
        match self.index.get() {
            Some(Ok(index)) => Ok(index),
            Some(Err(error)) => Err(again(error)),
            None => Err(Error::invalid("the archive has no index")), // never: it was just set
        }
    }
}

/// The same error once more.
fn again(error: &Error) -> Error {
    Error::new(error.kind(), error.to_string())
}

impl Layer for Disk {
    fn size(&self) -> u64 {
        self.size
    }

    fn granule(&self) -> u64 {
        BLOCK
    }

    fn host(&self) -> &Arc<dyn Storage> {
        &self.file
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        let places = &self.index()?.places;
        let max = max.min(self.size.saturating_sub(at));
        let there = max.min(self.len.saturating_sub(at));
        let mut zeros = 0;
        while zeros < there {
            let piece = places.look(self.disk as usize, at + zeros, there - zeros);
            match piece.at {
                Some(host) if zeros == 0 => return Ok(Extent::data(piece.len, Some(host))),
                Some(_) => return Ok(Extent::zero(zeros)),
                None => zeros += piece.len,
            }
        }
        Ok(Extent::zero(max))
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        let found = self.extent(at, buf.len() as u64)?;
        if let Some(host) = found.host {
            let stored = buf.get_mut(..found.len as usize).unwrap_or_default(); // never shorter: it was the most
            self.file.read_at(host, stored).map_err(|error| Error::io("cannot read", error).at(host))?;
        }
        Ok(found)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn details(&self) -> Details {
        details(&self.manifest, self.disk)
    }
}
