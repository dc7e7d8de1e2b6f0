//! A part of a storage's bytes in order.

use std::io::{self, Read};
use std::sync::Arc;

use cowhand_core::Storage;

/// Bytes from one place to another, or to the end.
#[derive(Debug)]
pub(crate) struct Part {
    storage: Arc<dyn Storage>,
    at: u64,
    end: Option<u64>,
}

impl Part {
    pub(crate) fn new(storage: Arc<dyn Storage>, at: u64, end: Option<u64>) -> Part {
        Part { storage, at, end }
    }
}

impl Read for Part {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.storage.len()?;
        let end = self.end.map_or(len, |end| end.min(len));
        let n = end.saturating_sub(self.at).min(buf.len() as u64) as usize;
        self.storage.read_at(self.at, &mut buf[..n])?; // never out of bounds: at most its length
        self.at += n as u64;
        Ok(n)
    }
}

/// Reads that many bytes that nobody wants.
pub(crate) fn pass_over(from: &mut dyn Read, len: u64) -> io::Result<()> {
    let passed = io::copy(&mut from.take(len), &mut io::sink())?;
    if passed < len { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}
