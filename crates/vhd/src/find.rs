//! Where the footer is: at the end, in the copy at the front, which of them counts, and whether this is a VHD at all.

use cowhand_core::{Error, Probe, Result, Storage};

use crate::footer::{DiskType, FOOTER_LEN, Footer, RawFooter, SizeRule};

/// The footer that counts, and what is known of the file around it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) footer: Footer,
    /// Where it stands.
    pub(crate) at: u64,
    /// Where the trailing footer begins, or the file's end where there is none: no block goes past it.
    pub(crate) data_end: u64,
    /// The file's bytes.
    pub(crate) file_len: u64,
    /// What stands at the file's end.
    pub(crate) end: CopyState,
    /// What stands at its front; of a fixed disk, that is the guest's.
    pub(crate) front: CopyState,
    /// Wrong checksums do not matter.
    pub(crate) anyway: bool,
    /// The trailing footer has only 511 bytes.
    pub(crate) short: bool,
}

/// What one of the places of a footer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyState {
    /// The footer that counts, or the same bytes.
    Good,
    /// A whole footer that says something else.
    Differs,
    /// A footer whose checksum is wrong.
    Bad,
    /// No footer.
    Missing,
}

impl CopyState {
    fn of(place: &Option<RawFooter>, counts: &Footer) -> CopyState {
        match place {
            None => CopyState::Missing,
            Some(raw) if !raw.checksum_is_good() => CopyState::Bad,
            Some(raw) if raw.parse(0).is_ok_and(|footer| footer == *counts) => CopyState::Good,
            Some(_) => CopyState::Differs,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            CopyState::Good => "good",
            CopyState::Differs => "differs",
            CopyState::Bad => "bad",
            CopyState::Missing => "missing",
        }
    }
}

/// QEMU's sentence.
const NOT_A_VHD: &str = "invalid VPC image";

/// What to do about a wrong checksum.
pub(crate) const IGNORE: &str = "to read it all the same, pass --ignore-checksums";

/// The two places of a footer, as far as the cookie is there.
pub(crate) struct Places {
    pub(crate) file_len: u64,
    /// Where a trailing footer begins, if the file is long enough for one.
    pub(crate) tail_at: u64,
    pub(crate) tail: Option<RawFooter>,
    pub(crate) head: Option<RawFooter>,
}

fn good(footer: &Option<RawFooter>) -> Option<&RawFooter> {
    footer.as_ref().filter(|footer| footer.checksum_is_good())
}

fn has_header(footer: &RawFooter) -> bool {
    matches!(footer.disk_type(), Some(DiskType::Dynamic | DiskType::Differencing))
}

impl Places {
    pub(crate) fn read(file: &dyn Storage) -> Result<Places> {
        let file_len = file.len().map_err(|error| Error::io("cannot find the size", error))?;
        // Virtual PC before 2004 wrote 511 bytes; everything else stands on sector boundaries.
        let tail_len =
            (if file_len % FOOTER_LEN == FOOTER_LEN - 1 { FOOTER_LEN - 1 } else { FOOTER_LEN }).min(file_len);
        let at = |at: u64, len: u64| {
            let mut bytes = [0; FOOTER_LEN as usize];
            let bytes = &mut bytes[..len as usize]; // never out of bounds: both callers cap it at FOOTER_LEN
            file.read_at(at, bytes).map_err(|error| Error::io("cannot read the footer", error).at(at))?;
            Ok::<_, Error>(RawFooter::with_cookie(bytes))
        };
        let tail_at = file_len - tail_len;
        Ok(Places { file_len, tail_at, tail: at(tail_at, tail_len)?, head: at(0, FOOTER_LEN.min(file_len))? })
    }

    /// A trailing footer of a fixed disk that this file can hold.
    fn fixed(&self) -> Option<&RawFooter> {
        self.tail.as_ref().filter(|tail| {
            tail.disk_type() == Some(DiskType::Fixed)
                && tail.parse(0).is_ok_and(|footer| {
                    let exact = footer.current_size == self.tail_at;
                    // With a dynamic disk's footer at the front, this may be a sector of a guest whose file was cut.
                    let nested = good(&self.head).is_some_and(has_header);
                    exact || (!nested && footer.size(SizeRule::Auto).min(footer.current_size) <= self.tail_at)
                })
        })
    }

    /// The file ends in the footer of a fixed disk that fills it, or that was cut. One that leaves bytes over is no
    /// VHD: a guest could hide most of a raw disk behind a footer of its own.
    fn ends_a_fixed_disk(&self) -> bool {
        let Some(tail) = self.tail.as_ref().filter(|tail| tail.disk_type() == Some(DiskType::Fixed)) else {
            return false;
        };
        let nested = good(&self.head).is_some_and(has_header);
        tail.parse(0).is_ok_and(|footer| {
            let sizes = [footer.current_size, footer.size(SizeRule::Auto)];
            let cut = !nested && tail.checksum_is_good() && sizes.iter().all(|size| *size > self.tail_at);
            sizes.contains(&self.tail_at) || cut
        })
    }

    /// The raw footer that counts, and where it stands.
    fn choose(&self) -> Option<(&RawFooter, u64)> {
        let fixed =
            self.fixed().filter(|footer| footer.checksum_is_good()).map(|footer| (footer, self.tail_at));
        // The end's wins over its copy at the front, which must be there too: a guest can write a disk's last sector.
        let tail = good(&self.tail).filter(|footer| has_header(footer) && self.head.is_some());
        let head = good(&self.head).filter(|footer| has_header(footer));
        fixed.or(tail.map(|footer| (footer, self.tail_at))).or(head.map(|footer| (footer, 0)))
    }

    /// The footer that counts. Errors: as [`find`].
    pub(crate) fn found(&self) -> Result<Found> {
        let (raw, at) = self.choose().ok_or_else(|| self.complaint())?;
        Ok(self.with(raw.parse(at)?, at))
    }

    /// What is known of the file if it is `footer`, found at `at`, that counts.
    pub(crate) fn with(&self, footer: Footer, at: u64) -> Found {
        Found {
            at,
            data_end: if self.tail.is_some() { self.tail_at } else { self.file_len },
            file_len: self.file_len,
            end: CopyState::of(&self.tail, &footer),
            front: CopyState::of(&self.head, &footer),
            anyway: false,
            short: self.file_len % FOOTER_LEN == FOOTER_LEN - 1,
            footer,
        }
    }

    /// The raw footer that counts where nobody asks for its checksum.
    fn choose_anyway(&self) -> Option<(&RawFooter, u64)> {
        let fixed = self.fixed().map(|footer| (footer, self.tail_at));
        let tail = self.tail.as_ref().filter(|footer| has_header(footer) && self.head.is_some());
        let head = self.head.as_ref().filter(|footer| has_header(footer));
        fixed.or(tail.map(|footer| (footer, self.tail_at))).or(head.map(|footer| (footer, 0)))
    }

    /// Why there is none that counts.
    fn complaint(&self) -> Error {
        let bad = |footer: &RawFooter, at: u64| {
            let (is, should) = footer.checksums();
            Error::corrupt(
                "footer checksum",
                format!("is {is:#010x} and should be {should:#010x}, and no good copy is left"),
            )
            .at(at + 64)
            .hint(IGNORE)
            .known_as("Incorrect header checksum")
        };
        match (&self.tail, &self.head) {
            (_, Some(head)) if !head.checksum_is_good() && has_header(head) => bad(head, 0),
            (Some(tail), _) if !tail.checksum_is_good() => bad(tail, self.tail_at),
            (Some(tail), None) if has_header(tail) => Error::corrupt(
                "footer copy",
                "a dynamic disk's footer stands at the end of the file, but not its copy at the front, so this is not a VHD",
            )
            .at(0)
            .known_as(NOT_A_VHD),
            (Some(tail), _) => match tail.parse(self.tail_at) {
                Err(error) => error,
                Ok(footer) => Error::corrupt(
                    "footer current size",
                    format!("is {} bytes, and only {} stand before the footer", footer.current_size, self.tail_at),
                )
                .at(self.tail_at + 48)
                .hint("the file was cut")
                .known_as(NOT_A_VHD),
            },
            (None, Some(head)) => match head.parse(0) {
                Err(error) => error,
                Ok(_) => Error::corrupt("footer", "no footer stands at the end of the file").at(self.tail_at),
            },
            (None, None) => Error::corrupt("footer", "there is none, so this is not a VHD")
                .at(self.tail_at)
                .known_as(if self.file_len == 0 { "File too small for a VHD header" } else { NOT_A_VHD }),
        }
    }
}

/// Finds the footer that counts. Errors: there is none; its checksum is bad and no good copy is left; a fixed disk is
/// larger than the file.
pub(crate) fn find(file: &dyn Storage) -> Result<Found> {
    Places::read(file)?.found()
}

/// The same, for who reads what is left of a damaged image: a footer with a wrong checksum counts where no other does,
/// and so does a header.
pub(crate) fn find_anyway(file: &dyn Storage) -> Result<Found> {
    let places = Places::read(file)?;
    let (raw, at) = places.choose().or_else(|| places.choose_anyway()).ok_or_else(|| places.complaint())?;
    Ok(Found { anyway: true, ..places.with(raw.parse(at)?, at) })
}

/// The footer's copy at the front, for who does not trust the one at the end. Errors: it is not there, or not good.
pub(crate) fn find_front(file: &dyn Storage) -> Result<Found> {
    let places = Places::read(file)?;
    let raw = good(&places.head).filter(|footer| has_header(footer)).ok_or_else(|| {
        Error::corrupt("footer copy", "no good footer of a disk with a table stands at the front").at(0)
    })?;
    Ok(places.with(raw.parse(0)?, 0))
}

/// How surely the content is a VHD: a fixed disk's footer at the end that fits the file, or else a dynamic disk's at the
/// front. A bad checksum does not make it something else: opening will complain of it.
pub(crate) fn probe(file: &dyn Storage) -> Probe {
    match Places::read(file) {
        Ok(places) if places.ends_a_fixed_disk() => Probe::Trailer,
        Ok(places) if places.head.as_ref().is_some_and(has_header) => Probe::Sure,
        _ => Probe::No,
    }
}

#[cfg(test)]
mod tests {
    use cowhand_core::MemoryStorage;

    use super::*;
    use crate::geometry::Geometry;

    fn file(parts: &[&[u8]]) -> MemoryStorage {
        MemoryStorage::from_bytes(&parts.concat())
    }

    fn is_vhd(file: &MemoryStorage) -> bool {
        probe(file) != Probe::No
    }

    fn error(file: &MemoryStorage) -> String {
        find(file).unwrap_err().to_string()
    }

    #[test]
    fn a_fixed_disk_is_known_by_its_end() {
        let footer = Footer::new(4096, Geometry::MAX, None).to_bytes();
        let fixed = file(&[&[7; 4096], &footer]);
        assert_eq!(probe(&fixed), Probe::Trailer);
        assert_eq!((find(&fixed).unwrap().at, find(&fixed).unwrap().data_end), (4096, 4096));
        // 511 bytes, as the first Virtual PCs wrote it.
        let short = file(&[&[7; 4096], &footer[..511]]);
        assert!(is_vhd(&short));
        assert_eq!(find(&short).unwrap().at, 4096);
        // Too small for its file: a guest's own.
        assert!(!is_vhd(&file(&[&[7; 8192], &footer])));
        // Too large for its file: it was cut, which opening tells.
        let cut = file(&[&[7; 2048], &footer]);
        assert!(is_vhd(&cut));
        assert!(
            error(&cut).contains("footer current size at offset 2096: is 4096 bytes, and only 2048"),
            "{}",
            error(&cut)
        );
        let mut bad = footer;
        bad[100] ^= 1;
        let bad = file(&[&[7; 4096], &bad]);
        assert!(is_vhd(&bad));
        assert!(error(&bad).contains("footer checksum at offset 4160"), "{}", error(&bad));
    }

    #[test]
    fn a_guest_that_holds_a_vhd_does_not_make_its_disk_dynamic() {
        let inner = Footer::new(1 << 30, Geometry::MAX, Some(512)).to_bytes();
        let mut guest = vec![0; 8192];
        guest[..512].copy_from_slice(&inner);
        let outer = Footer::new(8192, Geometry::MAX, None).to_bytes();
        let found = find(&file(&[&guest, &outer])).unwrap();
        assert_eq!(found.footer.disk_type, DiskType::Fixed);
        // A raw disk that ends in a dynamic disk's footer.
        let raw = file(&[&[0; 8192], &inner]);
        assert!(!is_vhd(&raw));
        assert!(error(&raw).contains("footer copy at offset 0"), "{}", error(&raw));
        // A dynamic disk cut where its guest holds a fixed disk's footer.
        let nested = Footer::new(1024, Geometry::MAX, None).to_bytes();
        let cut = file(&[&guest, &nested]);
        assert_eq!(probe(&cut), Probe::Sure);
        assert_eq!(find(&cut).unwrap().footer.disk_type, DiskType::Dynamic);
    }

    #[test]
    fn the_copies_stand_in_for_each_other() {
        let front = Footer::new(1 << 30, Geometry::MAX, Some(512));
        let end = Footer { hidden: 1, ..front.clone() };
        let (front, end) = (front.to_bytes(), end.to_bytes());
        let broken = |footer: &[u8; 512]| {
            let mut broken = *footer;
            broken[50] ^= 0xff;
            broken
        };
        let hidden = |front: &[u8; 512], end: &[u8]| {
            find(&file(&[front, &[0; 2048], end])).map(|found| (found.footer.hidden, found.front, found.end))
        };
        assert_eq!(hidden(&front, &front).unwrap(), (0, CopyState::Good, CopyState::Good));
        assert_eq!(hidden(&front, &end).unwrap(), (1, CopyState::Differs, CopyState::Good));
        assert_eq!(hidden(&broken(&front), &end).unwrap(), (1, CopyState::Bad, CopyState::Good));
        assert_eq!(hidden(&front, &broken(&end)).unwrap(), (0, CopyState::Good, CopyState::Bad));
        assert_eq!(hidden(&front, &[0; 512]).unwrap(), (0, CopyState::Good, CopyState::Missing));
        let both = hidden(&broken(&front), &broken(&end)).unwrap_err().to_string();
        assert!(both.contains("footer checksum at offset 64"), "{both}");
    }

    #[test]
    fn short_and_foreign_files_are_no_vhd() {
        for len in [0, 1, 511, 512, 513, 1023, 5000] {
            let foreign = file(&[&vec![0xc0; len]]);
            assert!(!is_vhd(&foreign) && find(&foreign).is_err(), "{len}");
            let cookies = file(&[b"conectix", &vec![0; len]]);
            assert!(!is_vhd(&cookies) && find(&cookies).is_err(), "{len}");
        }
    }
}
