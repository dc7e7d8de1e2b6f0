//! The coding of an image as a small input: only the sectors that are not zero, so that a VHDX, whose parts lie
//! megabytes apart, is a few kilobytes.
//!
//! ```text
//! flags u8 (bit 0: mend the checksums after unpacking) · length u64 · then per sector: number u32 · 512 bytes
//! ```
//!
//! Numbers are little-endian. Records have one size and any bytes are a valid input, so that a fuzzer's changes stay
//! local: a bit in a number moves a sector, a bit in the content stays there.

use cowhand::{MemoryStorage, Storage};

use crate::mend;

/// Bytes before the first record.
pub const HEADER: usize = 9;
/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Bytes of a record.
pub const RECORD: usize = 4 + SECTOR;
/// The flag that asks for correct checksums.
pub const MEND: u8 = 1;

/// The longest image, in bytes. No structure of any format needs more, and sizes near 2^64 are never a file's.
const LONGEST: u64 = 1 << 46;

/// The image that `input` describes, cut to `longest` bytes. What is missing of `input` is zero.
pub fn unpack(input: &[u8], longest: u64) -> MemoryStorage {
    let (header, records) = input.split_at(input.len().min(HEADER));
    let flags = header.first().copied().unwrap_or(0);
    let mut len = [0; 8];
    let given = header.get(1..).unwrap_or_default();
    len[..given.len()].copy_from_slice(given);
    let len = u64::from_le_bytes(len) % LONGEST;

    let storage = MemoryStorage::new();
    for record in records.chunks(RECORD) {
        let Some((number, content)) = record.split_first_chunk::<4>() else { break };
        let at = u64::from(u32::from_le_bytes(*number)) * SECTOR as u64;
        if at < longest {
            storage.write_at(at, content).expect("memory takes it");
        }
    }
    storage.set_len(len.min(longest)).expect("memory takes it");
    if flags & MEND != 0 {
        mend::checksums(&storage);
    }
    storage
}

/// The input that unpacks to what `storage` holds.
pub fn pack(storage: &dyn Storage) -> std::io::Result<Vec<u8>> {
    let len = storage.len()?;
    let mut input = vec![0];
    input.extend(len.to_le_bytes());
    let mut at = 0;
    while let Some(data) = storage.data_at(at)? {
        let first = data.start / SECTOR as u64;
        for number in first..data.end.div_ceil(SECTOR as u64) {
            let start = number * SECTOR as u64;
            let mut sector = [0; SECTOR];
            let there = (len - start).min(SECTOR as u64) as usize;
            storage.read_at(start, &mut sector[..there])?;
            if sector.iter().any(|byte| *byte != 0) {
                let number = u32::try_from(number).map_err(std::io::Error::other)?;
                input.extend(number.to_le_bytes());
                input.extend(sector);
            }
        }
        at = data.end;
    }
    Ok(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacking_undoes_packing() {
        let storage = MemoryStorage::new();
        storage.set_len((3 << 20) + 100).unwrap();
        storage.write_at(700, &[1; 2000]).unwrap();
        storage.write_at((3 << 20) + 98, &[2; 2]).unwrap();
        let input = pack(&storage).unwrap();
        assert_eq!(input.len(), HEADER + 6 * RECORD, "sectors 1 to 5, and the last");
        assert_eq!(unpack(&input, u64::MAX).to_vec(), storage.to_vec());
        assert_eq!(unpack(&input, 1000).to_vec(), storage.to_vec()[..1000]);
        for cut in 0..input.len() {
            unpack(&input[..cut], u64::MAX);
        }
    }
}
