//! The file type identifier, both headers, and the log: each alone, and against each other.
//!
//! Headers of different sequence numbers and a log that is pending are what a power cut leaves, and no fault.

use std::sync::Arc;

use cowhand_core::{Error, ErrorKind, Result, Storage};

use super::findings::{Findings, by_number};
use crate::bytes;
use crate::guid::Guid;
use crate::header::{self, HEADER_LEN, HEADERS, Header, SIGNATURE};
use crate::journal;
use crate::log::{self, Pending};
use crate::overlay::Overlay;

/// What stands before the region tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    /// The file begins as a VHDX does.
    pub(super) identified: bool,
    pub(super) header: Header,
    /// Which of the two it is.
    pub(super) slot: usize,
    pub(super) other: Other,
    pub(super) log: Log,
}

/// The header that does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Other {
    Good,
    Damaged,
    /// As new as the one that counts, and different in nothing that matters.
    Twin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Log {
    Empty,
    Pending,
    /// It is said to be pending, and cannot be replayed.
    Broken,
    /// It may be replayed in memory only.
    Unfit,
}

/// Judges all that. `None`: nobody can say which header counts, and it was said why. Errors: a version that is not known;
/// the file cannot be read.
pub(super) fn look(file: &dyn Storage, all: &mut Findings) -> Result<Option<Head>> {
    let mut signature = [0; SIGNATURE.len()];
    bytes::read(file, "file type identifier", 0, &mut signature)?;
    let identified = signature == *SIGNATURE;
    if !identified {
        all.corrupt(0, || "the file does not begin with 'vhdxfile'".to_owned());
    }
    let mut copies = [vec![0; HEADER_LEN], vec![0; HEADER_LEN]];
    for (at, copy) in HEADERS.into_iter().zip(&mut copies) {
        bytes::read(file, "header", at, copy)?;
    }
    let good = copies.each_ref().map(|copy| header::is_good(copy));
    let (header, slot, other) = match Header::current(file) {
        Ok((header, slot)) => {
            let other = if good == [true, true] { Other::Good } else { Other::Damaged };
            (header, slot, other)
        }
        Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
        Err(error) => {
            let twins = copies.each_ref().map(|copy| Header::parse(copy).ok());
            let [Some(one), Some(two)] = twins.map(|twin| twin.filter(|_| good == [true, true])) else {
                all.corrupt(error.offset(), || error.to_string());
                return Ok(None);
            };
            let same = Header { file_write_guid: one.file_write_guid, ..two } == one;
            all.corrupt(error.offset(), || match same {
                true => format!("{error}, which is of no consequence: all that counts is the same"),
                false => format!("{error}; nobody can tell which is right"),
            });
            if !same {
                return Ok(None);
            }
            (one, 0, Other::Twin)
        }
    };
    if other == Other::Damaged {
        // Never out of bounds: there are two.
        all.corrupt(HEADERS[1 - slot], || {
            format!("header {} has a wrong signature or checksum; the other one counts", 2 - slot)
        });
    }
    if header.sequence_number > journal::LAST_SEQUENCE {
        all.note(HEADERS[slot] + 8, || {
            "the header has one of the last sequence numbers that there are, so the image cannot be written"
                .to_owned()
        });
    }
    for (guid, at, name) in
        [(header.file_write_guid, 16, "file write"), (header.data_write_guid, 32, "data write")]
    {
        if guid == Guid::ZERO {
            all.note(HEADERS[slot] + at, || format!("the {name} GUID is zero"));
        }
    }
    if header.log.length == 0 {
        all.note(HEADERS[slot] + 68, || "the image has no log, so it cannot be written".to_owned());
    }
    Ok(Some(Head { identified, header, slot, other, log: Log::Empty }))
}

/// The file as it is after its log was replayed, or as it is where that cannot be. Errors: the log cannot be read, or
/// holds more than can be kept in mind.
pub(super) fn replayed(
    file: &Arc<dyn Storage>,
    head: &mut Head,
    all: &mut Findings,
) -> Result<Arc<dyn Storage>> {
    let place = head.header.log;
    if !place.is_pending() {
        return Ok(file.clone());
    }
    match log::pending(file.as_ref(), place) {
        Ok(Pending { changes, len }) => {
            let own = file.len().map_err(|error| Error::io("cannot find the size", error))?;
            head.log = match journal::unfit(&changes, &place) {
                Some(error) => {
                    all.corrupt(error.offset(), || error.to_string());
                    Log::Unfit
                }
                None => Log::Pending,
            };
            all.note(place.offset, || {
                let (sectors, zeros) = changes.count();
                let grown = match len > own {
                    true => format!(", and makes the file {len} bytes long"),
                    false => String::new(),
                };
                format!(
                    "the log is pending: it changes {sectors} {} of metadata and zeroes {zeros} bytes{grown}; \
                     what follows is what is found when that is done, and who opens the image for writing does it",
                    by_number(sectors, "sector", "sectors")
                )
            });
            Ok(Arc::new(Overlay::new(file.clone(), changes, len)))
        }
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            all.corrupt(error.offset(), || error.to_string());
            head.log = Log::Broken;
            all.blind = true;
            Ok(file.clone())
        }
        Err(error) => Err(error),
    }
}
