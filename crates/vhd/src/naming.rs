//! What a differencing disk is made to say of its parent: id, time, name, and locators for whoever looks for it.

use std::ops::Range;
use std::path::Path;

use cowhand_core::{Error, ParentRef, Result, Storage};

use crate::footer::timestamp;
use crate::geometry::SECTOR;
use crate::header::{Header, RawLocator};
use crate::locator::Locator;

/// Room that each locator gets, if it can, so that another name fits into it later.
pub(crate) const ROOM: u64 = 4096;

/// What opens the note of a parent's format in the header's tail.
const NOTE: &[u8; 14] = b"parent-format\0";

/// What is written of a parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Naming {
    id: [u8; 16],
    timestamp: u32,
    name: [u8; 512],
    /// The parent's format, where the id does not tell it.
    format: Option<String>,
    /// Platform codes and texts, in the order in which they are written.
    texts: Vec<([u8; 4], Vec<u8>)>,
}

impl Naming {
    /// For a child of `parent`. The locators that `present` has under deprecated codes are kept, with the new name.
    ///
    /// Errors: a name that is no Unicode, or none at all; a VHD parent without an id, which is how a raw one is marked.
    pub(crate) fn of(parent: &ParentRef, present: &[Locator]) -> Result<Naming> {
        let mut paths = Vec::new();
        for path in &parent.candidates {
            paths.push((path.as_path(), path.to_str().ok_or_else(|| not_unicode(path))?));
        }
        let first = |absolute: bool| paths.iter().find(|(path, _)| path.is_absolute() == absolute);
        let relative = first(false).map(|(_, text)| text.strip_prefix("./").unwrap_or(text));
        let absolute = first(true).map(|(_, text)| *text);
        let name = paths.first().and_then(|(path, _)| path.file_name()).and_then(|name| name.to_str());
        let (Some(name), Some(any)) = (name, relative.or(absolute)) else {
            return Err(Error::invalid("the parent's name is empty, or names no file"));
        };
        let id = parent.expected.first().copied().unwrap_or_default();
        let format = parent.format.as_deref();
        if matches!(format, Some("vpc" | "vhd")) && id == [0; 16] {
            return Err(Error::invalid(format!("the parent '{any}' has no unique id, or it is not known"))
                .hint(
                    "a VHD knows its VHD parent by that id alone, so the parent must be there and have one",
                ));
        }
        let mut texts: Vec<([u8; 4], Vec<u8>)> = Vec::new();
        // XenServer's order. Windows looks for the codes it knows wherever they stand.
        texts.push((*b"MacX", relative.map_or_else(|| format!("file://{any}"), relative_url).into_bytes()));
        // Where a name has a `\` in it, Windows' way to write paths cannot say it.
        let windows = |text: &str| (!text.contains('\\')).then(|| text.replace('/', "\\"));
        let relative = relative.and_then(|text| windows(&dotted(text)));
        let absolute = absolute.and_then(windows);
        let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        texts.extend(absolute.as_deref().map(|text| (*b"W2ku", wide(text))));
        texts.extend(relative.as_deref().map(|text| (*b"W2ru", wide(text))));
        for (code, text) in [
            (b"Wi2r", relative.as_deref().or(absolute.as_deref())),
            (b"Wi2k", absolute.as_deref().or(relative.as_deref())),
        ] {
            let old = present.iter().find(|locator| locator.code == *code);
            if let (Some(old), Some(text)) = (old, text) {
                let bytes = if old.wide || !text.is_ascii() { wide(text) } else { text.as_bytes().to_vec() };
                texts.push((*code, bytes));
            }
        }
        Ok(Naming {
            id,
            timestamp: parent.modified.map_or(0, timestamp),
            name: header_name(name),
            format: format.filter(|format| !matches!(*format, "vpc" | "vhd")).map(str::to_owned),
            texts,
        })
    }

    /// As blktap has it, whose programs refuse what stands where the specification has zeros: a parent without an id is
    /// raw, and no note says so.
    pub(crate) fn of_blktap(self) -> Naming {
        Naming { format: self.format.filter(|format| format != "raw"), ..self }
    }

    /// How many bytes each text takes, whole sectors.
    pub(crate) fn needs(&self) -> impl Iterator<Item = u64> {
        self.texts.iter().map(|(_, text)| (text.len() as u64).next_multiple_of(SECTOR))
    }

    /// Puts it into `header`, its texts at `places`, in order, each as long as [`Naming::needs`] at the least.
    pub(crate) fn put(&self, header: &mut Header, places: &[Range<u64>]) {
        header.parent_unique_id = self.id;
        header.parent_timestamp = self.timestamp;
        header.parent_name = self.name;
        let noted = note(&header.tail).is_some();
        if noted || self.format.is_some() {
            header.tail = tail(self.format.as_deref().unwrap_or_default());
        }
        let mut texts = self.texts.iter().zip(places).map(|((code, text), place)| {
            // Never cut: a path is shorter than 64 KiB, and so is its place.
            RawLocator::new(*code, place.start, text.len() as u32, (place.end - place.start) as u32)
        });
        header.locators = std::array::from_fn(|_| texts.next().unwrap_or(RawLocator::NONE));
    }

    /// Writes the texts to `places`, padded with zeros to the places' ends.
    pub(crate) fn write(&self, file: &dyn Storage, places: &[Range<u64>]) -> Result<()> {
        for ((_, text), place) in self.texts.iter().zip(places) {
            let mut bytes = text.clone();
            bytes.resize(usize::try_from(place.end - place.start).unwrap_or(0).max(text.len()), 0);
            file.write_at(place.start, &bytes)
                .map_err(|error| Error::io("cannot write a parent locator", error).at(place.start))?;
        }
        Ok(())
    }
}

/// Takes a parent's traces out of `header`.
pub(crate) fn clear(header: &mut Header) {
    header.parent_unique_id = [0; 16];
    header.parent_timestamp = 0;
    header.parent_name = [0; 512];
    header.locators = [RawLocator::NONE; 8];
    if note(&header.tail).is_some() {
        header.tail = [0; 256];
    }
}

/// The parent's format that the header's tail notes: written here alone, for parents that no other program that knows
/// VHD could read.
pub(crate) fn note(tail: &[u8; 256]) -> Option<String> {
    let text = tail.strip_prefix(NOTE)?;
    let text = text.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(text).ok().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn tail(format: &str) -> [u8; 256] {
    let mut tail = [0; 256];
    if !format.is_empty() {
        // The last byte stays zero.
        for (to, from) in tail[..255].iter_mut().zip(NOTE.iter().chain(format.as_bytes())) {
            *to = *from;
        }
    }
    tail
}

/// A path in the header's own field, UTF-16BE and ended by a zero.
fn header_name(name: &str) -> [u8; 512] {
    let mut field = [0; 512];
    for (to, unit) in field[..510].as_chunks_mut::<2>().0.iter_mut().zip(name.encode_utf16()) {
        *to = unit.to_be_bytes();
    }
    field
}

/// Windows and XenServer begin relative paths with a dot.
fn dotted(relative: &str) -> String {
    if relative.starts_with("../") { relative.to_owned() } else { format!("./{relative}") }
}

/// As XenServer writes it: what follows `file://` is the path as it is.
fn relative_url(relative: &str) -> String {
    format!("file://{}", dotted(relative))
}

fn not_unicode(path: &Path) -> Error {
    Error::invalid(format!(
        "the parent's path '{}' is not Unicode, and a VHD writes paths in UTF-16",
        path.display()
    ))
    .hint("rename it")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use cowhand_core::MemoryStorage;

    use super::*;
    use crate::locator::{parent_ref, read};

    fn parent(paths: &[&str], format: &str, id: Option<u8>) -> ParentRef {
        ParentRef {
            candidates: paths.iter().map(Into::into).collect(),
            format: Some(format.to_owned()),
            expected: id.iter().map(|id| [*id; 16]).collect(),
            ..ParentRef::default()
        }
    }

    /// Written into a header and read back: locators and all.
    fn back(naming: &Naming) -> (ParentRef, Vec<Locator>, Header) {
        let mut header = Header::new(512, 1536, 1, 2 << 20);
        let file = MemoryStorage::new();
        let mut at = 4096;
        let places: Vec<_> = naming
            .needs()
            .map(|len| {
                at += ROOM.max(len);
                at - ROOM.max(len)..at
            })
            .collect();
        naming.put(&mut header, &places);
        naming.write(&file, &places).unwrap();
        let locators = read(&file, &header, file.len().unwrap()).unwrap();
        (parent_ref(&header, &locators), locators, header)
    }

    #[test]
    fn a_name_reads_back_as_it_was_given() {
        for (paths, expected) in [
            (vec!["base.vhd", "/srv/d\u{e4}/base.vhd"], vec!["base.vhd", "/srv/d\u{e4}/base.vhd"]),
            (vec!["./base.vhd"], vec!["base.vhd"]),
            (
                vec!["../up/\u{1f40e}.vhd", "/up/\u{1f40e}.vhd"],
                vec!["../up/\u{1f40e}.vhd", "/up/\u{1f40e}.vhd", "\u{1f40e}.vhd"],
            ),
            (vec!["/srv/base.vhd"], vec!["/srv/base.vhd", "base.vhd"]),
            // Not Windows' to write.
            (vec!["a\\b.vhd"], vec!["a\\b.vhd", "b.vhd"]),
            (vec!["100%41.vhd"], vec!["100%41.vhd", "100A.vhd"]),
        ] {
            let (read, ..) = back(&Naming::of(&parent(&paths, "vpc", Some(7)), &[]).unwrap());
            assert_eq!(read.candidates, expected.iter().map(std::path::PathBuf::from).collect::<Vec<_>>());
            assert_eq!((read.format.as_deref(), read.expected), (Some("vpc"), vec![[7; 16]]));
        }
        let long = format!("{}/base.vhd", "d".repeat(4000));
        let (read, ..) = back(&Naming::of(&parent(&[&long], "raw", None), &[]).unwrap());
        assert_eq!(read.candidates[0], Path::new(&long));
    }

    #[test]
    fn a_format_is_told_by_the_id_or_noted() {
        let format = |format: &str, id| {
            let naming = Naming::of(&parent(&["base"], format, id), &[]).unwrap();
            let (read, _, header) = back(&naming);
            (read.format, read.expected.len(), header.tail != [0; 256])
        };
        assert_eq!(format("vpc", Some(1)), (Some("vpc".to_owned()), 1, false));
        // A raw disk may begin with anything, so it is noted too.
        assert_eq!(format("raw", None), (Some("raw".to_owned()), 0, true));
        assert_eq!(format("qcow2", None), (Some("qcow2".to_owned()), 0, true));
        assert_eq!(format("vhdx", Some(1)), (Some("vhdx".to_owned()), 1, true));
        let error = Naming::of(&parent(&["base"], "vpc", None), &[]).unwrap_err().to_string();
        assert!(error.contains("has no unique id"), "{error}");
        assert!(Naming::of(&parent(&[".."], "raw", None), &[]).is_err());
        assert!(Naming::of(&parent(&[], "raw", None), &[]).is_err());
    }

    #[test]
    fn another_name_leaves_nothing_of_the_one_before() {
        let (_, _, mut header) = back(&Naming::of(&parent(&["long.qcow2"], "qcow2", None), &[]).unwrap());
        Naming::of(&parent(&["b"], "vpc", Some(1)), &[]).unwrap().put(&mut header, &[0..512, 512..1024]);
        assert_eq!((note(&header.tail), header.parent_name[..4].to_vec()), (None, vec![0, b'b', 0, 0]));
        clear(&mut header);
        assert_eq!(header.to_bytes()[40..], Header::new(512, 1536, 1, 2 << 20).to_bytes()[40..]);
    }

    #[test]
    fn deprecated_codes_are_kept_where_they_were() {
        let old = |code: &[u8; 4], wide| Locator { at: 0, code: *code, text: "x".to_owned(), wide };
        let naming =
            Naming::of(&parent(&["b.vhd"], "vpc", Some(1)), &[old(b"Wi2r", false), old(b"Wi2k", true)])
                .unwrap();
        let (_, locators, _) = back(&naming);
        let found: Vec<_> = locators.iter().map(|l| (l.code, l.text.as_str(), l.wide)).collect();
        assert_eq!(
            found,
            [
                (*b"MacX", "file://./b.vhd", false),
                (*b"W2ru", ".\\b.vhd", true),
                (*b"Wi2r", ".\\b.vhd", false),
                (*b"Wi2k", ".\\b.vhd", true),
            ]
        );
    }

    #[test]
    fn the_time_is_the_parents() {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let naming =
            Naming::of(&ParentRef { modified: Some(modified), ..parent(&["b"], "raw", None) }, &[]).unwrap();
        assert_eq!(back(&naming).0.modified, Some(modified));
    }
}
