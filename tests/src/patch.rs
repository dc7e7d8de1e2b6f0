//! Hostile images: bytes of a good one changed, checksums put right again.

use std::path::Path;

/// An image's bytes, to be changed. Offsets and numbers are as the formats have them.
#[derive(Clone, Debug)]
pub struct Patch {
    bytes: Vec<u8>,
}

impl Patch {
    /// All bytes of a file.
    pub fn of(path: &Path) -> Patch {
        Patch { bytes: std::fs::read(path).unwrap() }
    }

    /// Writes them out.
    pub fn save(&self, path: &Path) {
        std::fs::write(path, &self.bytes).unwrap();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True: none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Cuts or grows.
    pub fn resize(&mut self, len: usize) -> &mut Patch {
        self.bytes.resize(len, 0);
        self
    }

    /// These bytes at that place; the file grows as far as needed.
    pub fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Patch {
        if self.bytes.len() < at + bytes.len() {
            self.bytes.resize(at + bytes.len(), 0);
        }
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// So many bytes of that place.
    pub fn get(&self, at: usize, len: usize) -> &[u8] {
        &self.bytes[at..at + len]
    }

    /// A 32-bit number, big endian.
    pub fn be32(&mut self, at: usize, value: u32) -> &mut Patch {
        self.put(at, &value.to_be_bytes())
    }

    /// A 64-bit number, big endian.
    pub fn be64(&mut self, at: usize, value: u64) -> &mut Patch {
        self.put(at, &value.to_be_bytes())
    }

    /// A 32-bit number, little endian.
    pub fn le32(&mut self, at: usize, value: u32) -> &mut Patch {
        self.put(at, &value.to_le_bytes())
    }

    /// A 64-bit number, little endian.
    pub fn le64(&mut self, at: usize, value: u64) -> &mut Patch {
        self.put(at, &value.to_le_bytes())
    }

    /// The 64-bit number, big endian, of that place.
    pub fn read_be64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.get(at, 8).try_into().unwrap())
    }

    /// The 32-bit number, big endian, of that place.
    pub fn read_be32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.get(at, 4).try_into().unwrap())
    }

    /// The 32-bit number, little endian, of that place.
    pub fn read_le32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.get(at, 4).try_into().unwrap())
    }

    /// The 64-bit number, little endian, of that place.
    pub fn read_le64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.get(at, 8).try_into().unwrap())
    }

    /// Where these bytes stand first.
    pub fn find(&self, what: &[u8]) -> Option<usize> {
        self.bytes.windows(what.len()).position(|window| window == what)
    }

    /// Makes VHD's ones'-complement sum of the structure at `at` right: its checksum stands at `at + field`.
    pub fn vhd_sum(&mut self, at: usize, len: usize, field: usize) -> &mut Patch {
        self.be32(at + field, 0);
        let sum: u32 = self.get(at, len).iter().map(|byte| u32::from(*byte)).sum();
        self.be32(at + field, !sum)
    }

    /// Makes VHDX's CRC-32C of the structure at `at` right: it stands at `at + 4`.
    pub fn vhdx_crc(&mut self, at: usize, len: usize) -> &mut Patch {
        self.le32(at + 4, 0);
        let crc = crc32c::crc32c(self.get(at, len));
        self.le32(at + 4, crc)
    }
}
