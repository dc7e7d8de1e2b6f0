//! Where the bytes of an archive's disks stand in it.

use std::sync::Arc;

use cowhand_core::{ArchiveIndex, Error, Forward, Result};

pub(crate) fn index(_file: &mut dyn Forward) -> Result<Arc<dyn ArchiveIndex>> {
    Err(Error::unsupported("being built"))
}

pub(crate) fn index_from(_bytes: &[u8]) -> Result<Arc<dyn ArchiveIndex>> {
    Err(Error::unsupported("being built"))
}
