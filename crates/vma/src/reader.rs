//! An archive read from front to back.

use std::io::Read;

use cowhand_core::{ArchiveSource, Error, Reading, Result};

pub(crate) fn read<'a>(
    _input: Box<dyn Read + Send + 'a>,
    _how: Reading,
) -> Result<Box<dyn ArchiveSource + 'a>> {
    Err(Error::unsupported("being built"))
}
