//! `ARCHIVE#DISK`: how a caller names one disk of a file that holds several.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use cowhand_core::{Error, ErrorKind, Format, Result};

/// What a caller's name means. Names found in images are never taken apart so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part<'a> {
    /// The name as it was given: what people are shown.
    pub(crate) name: &'a Path,
    /// The file.
    pub(crate) file: &'a Path,
    /// The disk in it, where the name says one.
    pub(crate) disk: Option<&'a str>,
}

impl<'a> Part<'a> {
    /// A file that bears the whole name is meant; else what stands in front of a `#`, of several the last in front of
    /// which a file's name stands.
    pub(crate) fn of(name: &'a Path) -> Part<'a> {
        let whole = Part { name, file: name, disk: None };
        if std::fs::symlink_metadata(name).is_ok() {
            return whole;
        }
        let bytes = name.as_os_str().as_bytes();
        let marks = bytes.iter().enumerate().rev().filter(|(_, byte)| **byte == b'#');
        let found = marks.filter_map(|(at, _)| {
            let (front, rest) = bytes.split_at_checked(at)?;
            let disk = std::str::from_utf8(rest.get(1..)?).ok()?;
            Some((Path::new(OsStr::from_bytes(front)), disk))
        });
        match found.into_iter().find(|(front, _)| is_file(front)) {
            Some((file, disk)) => Part { name, file, disk: Some(disk) },
            None => whole,
        }
    }

    /// For a file of `format`, which holds no disks that could be named.
    pub(crate) fn refuse_disk(&self, format: &dyn Format) -> Result<()> {
        let Some(disk) = self.disk else { return Ok(()) };
        let (file, format) = (self.file.display(), format.names()[0]); // never empty: every format has a name
        Err(Error::new(
            ErrorKind::NotFound,
            format!("no file has this name, and '{file}' is {format}, which holds no disk '{disk}'"),
        )
        .hint("leave out # and what follows, or name a backup archive")
        .image(self.name.display()))
    }
}

/// The file that what is called `name` stands in.
pub(crate) fn file_of(name: &str) -> String {
    Part::of(Path::new(name)).file.display().to_string()
}

fn is_file(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() || found.file_type().is_block_device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_that_name_wins_and_else_the_last_mark_behind_a_file_counts() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["a.vma", "a.vma#x", "b#1.vma", "-"] {
            std::fs::write(at(name), b"").unwrap();
        }
        std::fs::create_dir(at("dir")).unwrap();
        let split = |name: &str| {
            let name = at(name);
            let found = Part::of(&name);
            let file = found.file.strip_prefix(folder.path()).unwrap().to_str().unwrap().to_owned();
            (file, found.disk.map(str::to_owned))
        };
        let some = |file: &str, disk: &str| (file.to_owned(), Some(disk.to_owned()));
        let none = |file: &str| (file.to_owned(), None);
        assert_eq!(split("a.vma"), none("a.vma"));
        assert_eq!(split("a.vma#x"), none("a.vma#x"));
        assert_eq!(split("a.vma#y"), some("a.vma", "y"));
        assert_eq!(split("a.vma#x#y"), some("a.vma#x", "y"));
        assert_eq!(split("a.vma#y#x"), some("a.vma", "y#x"));
        assert_eq!(split("a.vma#drive/../../etc"), some("a.vma", "drive/../../etc"));
        assert_eq!(split("a.vma#"), some("a.vma", ""));
        assert_eq!(split("b#1.vma"), none("b#1.vma"));
        assert_eq!(split("b#1.vma#d"), some("b#1.vma", "d"));
        assert_eq!(split("missing.vma#d"), none("missing.vma#d"));
        assert_eq!(split("dir#d"), none("dir#d"));
        // A link that leads nowhere bears the name all the same.
        std::os::unix::fs::symlink("gone", at("a.vma#z")).unwrap();
        assert_eq!(split("a.vma#z"), none("a.vma#z"));
        // A name that is no text names no disk.
        let odd = folder.path().join(OsStr::from_bytes(b"a.vma#\xff"));
        assert_eq!(Part::of(&odd).disk, None);
    }
}
