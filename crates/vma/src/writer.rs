//! An archive written from front to back.

use std::io::Write;

use cowhand_core::{Error, Manifest, Result, Sink};

pub(crate) fn write<'a>(_output: Box<dyn Write + Send + 'a>, _what: &Manifest) -> Result<Box<dyn Sink + 'a>> {
    Err(Error::unsupported("being built"))
}
