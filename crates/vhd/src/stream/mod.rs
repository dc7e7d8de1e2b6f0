//! VHD in a stream: what its front tells, taking the disk out of it, making it while it is read.

mod encode;
mod front;
mod length;
mod source;
#[cfg(test)]
mod tests;

use std::io::Read;

use cowhand_core::{CreateOptions, Encoded, Head, Image, Result, Source, Streams};

use crate::Vhd;

impl Streams for Vhd {
    fn head(&self, input: &mut dyn Read) -> Result<Head> {
        front::head(input)
    }

    fn source<'a>(
        &self,
        input: Box<dyn Read + Send + 'a>,
        file_len: Option<u64>,
    ) -> Result<Box<dyn Source + 'a>> {
        source::source(input, file_len)
    }

    fn encode<'a>(&self, disk: &'a Image, how: &CreateOptions) -> Result<Box<dyn Encoded + 'a>> {
        encode::encode(disk, how)
    }
}
