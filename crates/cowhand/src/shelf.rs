//! The folders of `--search-dir`: which file in them has an identity, or a name.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cowhand_core::{Access, Cache, Error, ErrorKind, FileStorage, Format, Lock, ParentRef, Result};

use crate::registry;
use crate::resolve::in_folder;

/// Most files that are looked at.
const MOST: usize = 1 << 16;

/// Folders, and what lies in them. They are gone through once, when the first parent is missed; of each file no more is
/// read than what holds its identity.
#[derive(Debug)]
pub(crate) struct Shelf<'a> {
    folders: &'a [PathBuf],
    files: OnceCell<Vec<Shelved>>,
}

/// A file in one of the folders.
#[derive(Debug)]
pub(crate) struct Shelved {
    pub(crate) path: PathBuf,
    /// Whose identity it has; `None`: none that formats know.
    pub(crate) format: Option<&'static dyn Format>,
    id: Option<[u8; 16]>,
    /// Device and inode.
    file: (u64, u64),
}

impl<'a> Shelf<'a> {
    pub(crate) fn new(folders: &'a [PathBuf]) -> Shelf<'a> {
        Shelf { folders, files: OnceCell::new() }
    }

    /// No folder was named.
    pub(crate) fn is_empty(&self) -> bool {
        self.folders.is_empty()
    }

    /// How many files there are.
    pub(crate) fn len(&self) -> Result<usize> {
        self.files().map(<[Shelved]>::len)
    }

    /// The file that is the parent: by its identity where the child remembers one, by its name otherwise. Files of
    /// `in_chain` are not. Errors: several are, and not exactly one of them has the parent's name.
    pub(crate) fn find(&self, wanted: &ParentRef, in_chain: &[(u64, u64)]) -> Result<Option<&Shelved>> {
        let names: Vec<&OsStr> = wanted.candidates.iter().filter_map(|path| path.file_name()).collect();
        let named = |file: &&Shelved| {
            file.path.file_name().is_some_and(|name| is_one_of(name, &names, wanted.any_case))
        };
        let is_it = |file: &&Shelved| match wanted.expected.as_slice() {
            [] => named(file),
            expected => file.id.is_some_and(|id| expected.contains(&id)),
        };
        let all = self.files()?.iter().filter(|file| !in_chain.contains(&file.file));
        let found: Vec<&Shelved> = all.filter(is_it).collect();
        let of_name: Vec<&Shelved> = found.iter().copied().filter(named).collect();
        match (found.as_slice(), of_name.as_slice()) {
            ([], _) => Ok(None),
            ([one], _) | (_, [one]) => Ok(Some(one)),
            (several, _) => {
                let paths: Vec<String> =
                    several.iter().map(|file| format!("'{}'", file.path.display())).collect();
                Err(Error::new(
                    ErrorKind::Ambiguous,
                    format!("any of these files may be its parent: {}", paths.join(", ")),
                )
                .hint("name it with --parent, or leave but one of them in the folders of --search-dir"))
            }
        }
    }

    fn files(&self) -> Result<&[Shelved]> {
        if let Some(files) = self.files.get() {
            return Ok(files);
        }
        let found = files_of(self.folders)?.into_iter().map(|(path, file)| {
            let (format, id) = identity(&path).unzip();
            Shelved { path, format, id, file }
        });
        Ok(self.files.get_or_init(|| found.collect()))
    }
}

/// The files of `folders`, with device and inode, each file once; by name within a folder. Folders within are not gone
/// into. Errors: a folder that cannot be listed; more files than anybody has images.
pub(crate) fn files_of(folders: &[PathBuf]) -> Result<Vec<(PathBuf, (u64, u64))>> {
    let mut files = Vec::new();
    let mut seen = HashSet::new();
    for folder in folders {
        let failed = |error| Error::io("cannot list", error).image(folder.display());
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name());
            if files.len() + names.len() > MOST {
                return Err(Error::invalid(format!(
                    "holds more than {MOST} files, too many to look through for images"
                ))
                .image(folder.display()));
            }
        }
        names.sort();
        for name in names {
            let path = in_folder(folder, Path::new(&name));
            // What is gone by now, and what is no file, is no image.
            let Ok(found) = std::fs::metadata(&path) else { continue };
            let file = (found.dev(), found.ino());
            if found.is_file() && seen.insert(file) {
                files.push((path, file));
            }
        }
    }
    Ok(files)
}

/// Whose identity a file has. It is looked at though somebody writes to it.
fn identity(path: &Path) -> Option<(&'static dyn Format, [u8; 16])> {
    let storage = FileStorage::open(path, Access::Read, Lock::None, Cache::Writeback).ok()?;
    registry::identity(&storage)
}

fn is_one_of(name: &OsStr, names: &[&OsStr], any_case: bool) -> bool {
    let lower = |name: &OsStr| name.to_str().map(str::to_lowercase);
    names.contains(&name)
        || (any_case
            && names.iter().any(|other| lower(other).is_some_and(|other| Some(other) == lower(name))))
}
