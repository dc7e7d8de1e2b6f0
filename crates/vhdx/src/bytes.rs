//! Reads and writes whole structures, and says which one it was when that fails.

use std::io;

use cowhand_core::{Error, Result, Storage};

/// The unit that everything in a VHDX is aligned to (section 2.1), in bytes.
pub(crate) const MIB: u64 = 1 << 20;

/// Fills `buf` with the structure `what` that starts at `at`. A file that ends before is a corrupt one.
pub(crate) fn read(file: &dyn Storage, what: &str, at: u64, buf: &mut [u8]) -> Result<()> {
    file.read_at(at, buf).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            Error::corrupt(what, format!("the file ends before or within its {} bytes", buf.len()))
                .at(at)
                .hint("the file was cut short: get a whole copy")
        }
        _ => Error::io(format!("cannot read the {what}"), error).at(at),
    })
}

/// Writes the structure `what`.
pub(crate) fn write(file: &dyn Storage, what: &str, at: u64, buf: &[u8]) -> Result<()> {
    file.write_at(at, buf).map_err(|error| Error::io(format!("cannot write the {what}"), error).at(at))
}

/// CRC-32C of a structure whose checksum is in its bytes 4 to 8, which count as zero (section 2.2.2).
pub(crate) fn checksum(structure: &[u8]) -> u32 {
    let (head, rest) = structure.split_at(structure.len().min(4));
    let crc = crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]);
    crc32c::crc32c_append(crc, rest.get(4..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_field_counts_as_zero() {
        let mut structure = *b"head\0\0\0\0and what follows";
        let crc = crc32c::crc32c(&structure);
        structure[4..8].copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(checksum(&structure), crc);
        // The check value of CRC-32C that its definition gives.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }
}
