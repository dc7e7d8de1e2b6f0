//! The archive's header: what it holds, and the checksum over it.

mod parse;

use md5::{Digest, Md5};

pub(crate) use parse::{Header, claimed, clusters, parse, read, rescue};

/// MD5 of a header, the archive's or an extent's, with zeros in place of the checksum, which stands at `at`.
pub(crate) fn checksum(header: &[u8], at: u64) -> [u8; 16] {
    let mut md5 = Md5::new();
    let at = at as usize;
    md5.update(header.get(..at).unwrap_or(header));
    md5.update([0; 16]);
    md5.update(header.get(at + 16..).unwrap_or_default());
    md5.finalize().into()
}
