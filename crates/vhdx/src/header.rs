//! The header section: the file type identifier and the two headers (sections 2.2.1 and 2.2.2).

use cowhand_core::{Error, Result, Storage};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bytes::{self, MIB};
use crate::guid::Guid;

/// What a VHDX file begins with.
pub(crate) const SIGNATURE: &[u8; 8] = b"vhdxfile";
/// Where the two headers stand.
pub(crate) const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Bytes of a header that its checksum covers.
pub(crate) const HEADER_LEN: usize = 4096;
/// UTF-16 units of the creator.
const CREATOR_UNITS: usize = 256;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    signature: [u8; 4],
    checksum: U32,
    sequence_number: U64,
    file_write_guid: Guid,
    data_write_guid: Guid,
    log_guid: Guid,
    log_version: U16,
    version: U16,
    log_length: U32,
    log_offset: U64,
}

/// Where the log is. Its place is a whole number of MiB; its length is 0 only where nothing is pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogPlace {
    /// Which entries are of this log; zero: nothing is pending.
    pub(crate) guid: Guid,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl LogPlace {
    /// The log holds changes that are not in the file yet.
    pub(crate) fn is_pending(&self) -> bool {
        self.guid != Guid::ZERO
    }
}

/// The current header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) sequence_number: u64,
    pub(crate) file_write_guid: Guid,
    pub(crate) data_write_guid: Guid,
    pub(crate) log: LogPlace,
}

impl Header {
    /// The current header: of those with signature and checksum right, the one with the higher sequence number.
    pub(crate) fn read(file: &dyn Storage) -> Result<Header> {
        Header::current(file).map(|(header, _)| header)
    }

    /// The current header, and in which of [`HEADERS`] it stands.
    pub(crate) fn current(file: &dyn Storage) -> Result<(Header, usize)> {
        let mut found: Vec<(usize, Vec<u8>)> = Vec::with_capacity(2);
        for (slot, at) in HEADERS.into_iter().enumerate() {
            let mut bytes = vec![0; HEADER_LEN];
            bytes::read(file, "header", at, &mut bytes)?;
            if is_good(&bytes) {
                found.push((slot, bytes));
            }
        }
        let raw = |bytes: &[u8]| RawHeader::read_from_prefix(bytes).ok().map(|(raw, _)| raw);
        let mut best: Option<(usize, RawHeader)> = None;
        for (slot, header) in found.iter().filter_map(|(slot, bytes)| Some((*slot, raw(bytes)?))) {
            match &best {
                Some((_, other)) if other.sequence_number == header.sequence_number => {
                    if found.first().map(|(_, bytes)| bytes) != found.last().map(|(_, bytes)| bytes) {
                        return Err(Error::corrupt(
                            "header",
                            "both copies have the same sequence number and say different things",
                        )
                        .at(HEADERS[slot]));
                    }
                }
                Some((_, other)) if other.sequence_number > header.sequence_number => {}
                _ => best = Some((slot, header)),
            }
        }
        let (slot, raw) = best.ok_or_else(|| {
            Error::corrupt("header", "neither copy has a right signature and checksum")
                .at(HEADERS[0])
                .hint("the start of the file is damaged")
                .known_as("No valid VHDX header found")
        })?;
        // Never out of bounds: the slots were counted.
        let header = Header::check(&raw).map_err(|error| error.at(HEADERS[slot]))?;
        Ok((header, slot))
    }

    /// What a header says, whatever its signature and checksum. Errors: what it says cannot be.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Header> {
        let cut = |_| Error::corrupt("header", "is cut short");
        let (raw, _) = RawHeader::ref_from_prefix(bytes).map_err(cut)?;
        Header::check(raw)
    }

    fn check(raw: &RawHeader) -> Result<Header> {
        if raw.version != 1 {
            return Err(
                Error::unsupported(format!("VHDX version {} is not known", raw.version)).field("header")
            );
        }
        let log = LogPlace {
            guid: raw.log_guid,
            offset: raw.log_offset.get(),
            length: raw.log_length.get().into(),
        };
        if log.is_pending() && raw.log_version != 0 {
            return Err(
                Error::unsupported(format!("log version {} is not known", raw.log_version)).field("header")
            );
        }
        let wrong = |what: &str| {
            Err(Error::corrupt("header", format!("the log, {} bytes at {}, {what}", log.length, log.offset)))
        };
        if !log.length.is_multiple_of(MIB) || !log.offset.is_multiple_of(MIB) {
            return wrong("does not stand on whole MiB");
        }
        if (log.length > 0 && log.offset < MIB) || log.offset.checked_add(log.length).is_none() {
            return wrong("cannot lie there");
        }
        if log.length == 0 && log.is_pending() {
            return wrong("is pending and has no room");
        }
        Ok(Header {
            sequence_number: raw.sequence_number.get(),
            file_write_guid: raw.file_write_guid,
            data_write_guid: raw.data_write_guid,
            log,
        })
    }

    /// The header's bytes, with their checksum.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut raw = RawHeader {
            signature: *b"head",
            checksum: 0.into(),
            sequence_number: self.sequence_number.into(),
            file_write_guid: self.file_write_guid,
            data_write_guid: self.data_write_guid,
            log_guid: self.log.guid,
            log_version: 0.into(),
            version: 1.into(),
            log_length: (self.log.length as u32).into(), // never cut: a plan's log is below 4 GiB
            log_offset: self.log.offset.into(),
        };
        let mut bytes = raw.as_bytes().to_vec();
        bytes.resize(HEADER_LEN, 0);
        raw.checksum = bytes::checksum(&bytes).into();
        bytes[..raw.as_bytes().len()].copy_from_slice(raw.as_bytes());
        bytes
    }
}

/// Signature and checksum of a header are right.
pub(crate) fn is_good(header: &[u8]) -> bool {
    RawHeader::ref_from_prefix(header)
        .is_ok_and(|(raw, _)| raw.signature == *b"head" && raw.checksum.get() == bytes::checksum(header))
}

/// Checks the file type identifier and answers who made the file.
pub(crate) fn read_creator(file: &dyn Storage) -> Result<String> {
    let mut bytes = [0; 8 + 2 * CREATOR_UNITS];
    bytes::read(file, "file type identifier", 0, &mut bytes)?;
    let (signature, creator) = bytes.split_at(8);
    if signature != SIGNATURE {
        return Err(Error::corrupt("file type identifier", "is not 'vhdxfile'").at(0));
    }
    let units =
        creator.as_chunks().0.iter().map(|unit| u16::from_le_bytes(*unit)).take_while(|unit| *unit != 0);
    Ok(char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
}

/// The file type identifier, naming this program.
pub(crate) fn identifier() -> Vec<u8> {
    let creator = concat!("Cowhand ", env!("CARGO_PKG_VERSION"));
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend(creator.encode_utf16().take(CREATOR_UNITS - 1).flat_map(u16::to_le_bytes));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::{ErrorKind, MemoryStorage};

    fn header(sequence_number: u64) -> Header {
        Header {
            sequence_number,
            file_write_guid: Guid::random(),
            data_write_guid: Guid::random(),
            log: LogPlace { guid: Guid::ZERO, offset: MIB, length: MIB },
        }
    }

    fn file(first: &[u8], second: &[u8]) -> MemoryStorage {
        let file = MemoryStorage::new();
        file.set_len(MIB).unwrap();
        file.write_at(0, &identifier()).unwrap();
        file.write_at(HEADERS[0], first).unwrap();
        file.write_at(HEADERS[1], second).unwrap();
        file
    }

    #[test]
    fn the_higher_sequence_number_counts_and_a_bad_copy_does_not() {
        let (a, b) = (header(7), header(8));
        let mut bad = b.to_bytes();
        bad[4000] ^= 1;
        assert_eq!(Header::read(&file(&a.to_bytes(), &b.to_bytes())).unwrap(), b);
        assert_eq!(Header::read(&file(&b.to_bytes(), &a.to_bytes())).unwrap(), b);
        assert_eq!(Header::read(&file(&a.to_bytes(), &bad)).unwrap(), a);
        assert_eq!(Header::read(&file(&bad, &a.to_bytes())).unwrap(), a);
        assert!(Header::read(&file(&bad, &bad)).unwrap_err().to_string().contains("neither copy"));
    }

    #[test]
    fn equal_sequence_numbers_must_mean_equal_headers() {
        let (a, b) = (header(7), header(7));
        assert_eq!(Header::read(&file(&a.to_bytes(), &a.to_bytes())).unwrap(), a);
        assert!(
            Header::read(&file(&a.to_bytes(), &b.to_bytes()))
                .unwrap_err()
                .to_string()
                .contains("same sequence number")
        );
    }

    /// The header with `bytes` put at `at` and a right checksum.
    fn changed(header: Header, at: usize, bytes: &[u8]) -> MemoryStorage {
        let mut all = header.to_bytes();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        let crc = bytes::checksum(&all);
        all[4..8].copy_from_slice(&crc.to_le_bytes());
        file(&all, &[0])
    }

    #[test]
    fn wrong_versions_and_log_places_are_refused() {
        let mut pending = header(1);
        pending.log.guid = Guid::random();
        let kind = |file: MemoryStorage| Header::read(&file).unwrap_err().kind();
        assert_eq!(kind(changed(header(1), 66, &2u16.to_le_bytes())), ErrorKind::Unsupported);
        assert_eq!(kind(changed(pending, 64, &1u16.to_le_bytes())), ErrorKind::Unsupported);
        // Without a pending log its version says nothing.
        assert!(Header::read(&changed(header(1), 64, &1u16.to_le_bytes())).is_ok());
        assert_eq!(kind(changed(header(1), 68, &4096u32.to_le_bytes())), ErrorKind::Corrupt);
        assert_eq!(kind(changed(header(1), 72, &4096u64.to_le_bytes())), ErrorKind::Corrupt);
        assert_eq!(kind(changed(header(1), 72, &0u64.to_le_bytes())), ErrorKind::Corrupt);
        assert_eq!(kind(changed(header(1), 72, &(0u64.wrapping_sub(MIB)).to_le_bytes())), ErrorKind::Corrupt);
        assert_eq!(kind(changed(pending, 68, &0u32.to_le_bytes())), ErrorKind::Corrupt);
    }

    #[test]
    fn the_creator_is_read_back() {
        assert!(read_creator(&file(&[0], &[0])).unwrap().starts_with("Cowhand "));
        assert!(read_creator(&MemoryStorage::from_bytes(&[0; 4096])).is_err());
    }
}
