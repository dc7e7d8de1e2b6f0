//! The safety gate's judge of VMA: an archive is no image to take from a stranger, and may be a broken one besides.

use std::ops::Range;

use cowhand_core::{Compat, Ending, Finding, Inspector, Place, Problem};
use md5::{Digest, Md5};
use zerocopy::{FromBytes, IntoBytes};

use crate::layout::{HEADER, MAGIC, MAX_HEADER, RawHeader};

/// How much of the header is looked at at a time, in bytes.
const STEP: u64 = 64 << 10;

/// How much tells whether it is an archive, in bytes.
const FIRST: u64 = 512;

/// Judges one content.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    /// Bytes that were seen.
    at: u64,
    /// Where the next range ends; `None`: nothing was seen.
    next: Option<u64>,
    /// Where the header ends, once that was seen.
    end: u64,
    /// The header's fields, while they are not whole.
    fields: Vec<u8>,
    /// The magic stands at offset 0.
    signed: bool,
    sum: Option<[u8; 16]>,
    md5: Md5,
    virtual_size: Option<u64>,
    problems: Vec<Problem>,
}

impl Inspector for Judge {
    fn wants(&self) -> Option<Range<u64>> {
        Some(self.at..self.next.unwrap_or(FIRST)).filter(|range| !range.is_empty())
    }

    fn see(&mut self, bytes: &[u8]) {
        let Some(wanted) = self.wants() else { return };
        if self.at == 0 {
            self.signed = bytes.starts_with(&MAGIC);
        }
        self.at += bytes.len() as u64;
        if !self.signed {
            self.next = Some(0);
        } else if self.at < wanted.end {
            self.problem("header", "the file ends inside its header");
            self.sum = None;
            self.next = Some(0);
        } else if self.at <= HEADER as u64 {
            self.fields.extend_from_slice(bytes);
            self.next = Some(HEADER as u64);
            if let Ok(header) = RawHeader::read_from_bytes(&self.fields) {
                self.front(&header);
                self.next = Some(self.end.min(self.at + STEP));
            }
        } else {
            self.md5.update(bytes);
            self.next = Some(self.end.min(self.at + STEP));
        }
    }

    fn finish(&mut self, _end: &Ending<'_>, compat: Compat) -> Option<Finding> {
        // oslo.utils does not know the format.
        if !self.signed || compat == Compat::Oslo {
            return None;
        }
        let mut finding = Finding::new(Place::Front);
        finding.virtual_size = self.virtual_size;
        finding.problem("archive", "a backup archive of disks and configurations, and no disk image");
        finding.problems.append(&mut self.problems);
        let sum = std::mem::take(&mut self.md5).finalize();
        if self.sum.is_some_and(|said| said != *sum) {
            finding.problem("checksum", "the header's checksum is wrong");
        }
        Some(finding)
    }
}

impl Judge {
    fn problem(&mut self, check: &'static str, reason: impl Into<String>) {
        self.problems.push(Problem { check, reason: reason.into() });
    }

    fn front(&mut self, header: &RawHeader) {
        if header.version.get() != 1 {
            self.problem("header", format!("version {} of the format is not known", header.version.get()));
        }
        let disks = header.dev_info.iter().skip(1).filter(|device| device.name.get() != 0);
        let mut sizes = disks.map(|device| device.size.get()).filter(|size| *size != 0);
        self.virtual_size = sizes.next().filter(|_| sizes.next().is_none());
        let (offset, size, end) =
            (header.blob_buffer_offset.get(), header.blob_buffer_size.get(), header.header_size.get());
        if end <= HEADER as u32 || end > MAX_HEADER {
            self.problem("header", format!("a header of {end} bytes"));
            return;
        }
        if offset < HEADER as u32 || offset.checked_add(size).is_none_or(|buffer| buffer > end) {
            self.problem("header", format!("a blob buffer of {size} bytes at offset {offset}"));
        }
        self.md5.update(RawHeader { md5sum: [0; 16], ..*header }.as_bytes());
        self.sum = Some(header.md5sum);
        self.end = end.into();
    }
}
