//! `scan`: what the images in a folder, by a pattern, or in a volume group are. Each is looked at alone.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use cowhand_core::{Error, ErrorKind, Result};
use serde_json::{Map, Value};

use crate::info::Info;
use crate::open::Open;
use crate::registry;
use crate::resolve::{folder_of, in_folder};

/// Where images are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file or device; a folder, and what lies in it; or a path whose last part has `*`, `?` or `[...]`.
    Path(PathBuf),
    /// The logical volumes of a volume group, and of these what fits the pattern.
    VolumeGroup(String, Option<String>),
}

/// What was found of one file.
#[derive(Debug)]
pub struct Scanned {
    /// The file.
    pub path: PathBuf,
    /// What it is, or why that cannot be said.
    pub image: Result<Info>,
}

impl Scanned {
    /// As `cowhand scan --output=json` prints it.
    pub fn to_json(&self) -> Value {
        let mut all = Map::new();
        let mut put = |key: &str, value: Value| all.insert(key.to_owned(), value);
        put("filename", self.path.display().to_string().into());
        match &self.image {
            Err(error) => {
                put("scan-error", error.to_string().into());
            }
            Ok(info) => {
                put("format", info.format.into());
                put("virtual-size", info.virtual_size.into());
                put("physical-size", info.physical_size.into());
                put("actual-size", info.actual_size.into());
                if let Some(hidden) = info.hidden {
                    put("hidden", hidden.into());
                }
                if let Some(parent) = info.backing_filename() {
                    put("parent", parent.into());
                }
            }
        }
        Value::Object(all)
    }
}

/// Looks at every image of `places`, in the order of the places and of their names, and hands it to `see`. No file but
/// these is opened, and none is written. Where a folder or volume group is gone through, raw images, which are whatever
/// no format claims, and files whose name begins with a dot are left out unless `all`; they are not opened where the
/// name says enough.
///
/// Errors: a place that cannot be listed. An image that cannot be read is handed to `see` like the others.
pub fn scan(
    places: &[Place],
    how: &Open,
    all: bool,
    mut see: impl FnMut(&Scanned) -> Result<()>,
) -> Result<()> {
    let mut files = Vec::new();
    for place in places {
        files.extend(list(place, all)?);
    }
    for File { path, named } in files {
        let image = crate::info(&path, how, false).map(|mut found| found.swap_remove(0)); // never empty: the image itself
        let format = image.as_ref().ok().and_then(|image| registry::format(image.format).ok());
        let bare = format.is_some_and(|format| format.is_bare());
        if !bare || named || all {
            see(&Scanned { path, image })?;
        }
    }
    Ok(())
}

/// The files and devices of a place, in the order of their names; none is opened. `all`: those too whose name begins with
/// a dot. Errors: a place that cannot be listed.
pub fn files_in(place: &Place, all: bool) -> Result<Vec<PathBuf>> {
    Ok(list(place, all)?.into_iter().map(|file| file.path).collect())
}

struct File {
    path: PathBuf,
    /// It was asked for by its name, or by a pattern.
    named: bool,
}

fn list(place: &Place, all: bool) -> Result<Vec<File>> {
    match place {
        Place::VolumeGroup(group, pattern) => volumes(group, pattern.as_deref()),
        Place::Path(path) => match std::fs::metadata(path) {
            Ok(there) if there.is_dir() => {
                let wanted = |name: &OsStr| all || !is_hidden(name);
                Ok(entries(path, path, wanted)?.into_iter().map(|path| File { path, named: false }).collect())
            }
            Ok(_) => Ok(vec![File { path: path.clone(), named: true }]),
            Err(error) => match path.file_name().filter(|name| is_pattern(name)) {
                Some(pattern) => {
                    let folder = folder_of(path);
                    let shown = path.parent().unwrap_or(Path::new(""));
                    let wanted = |name: &OsStr| fits(pattern, name) && (all || !is_hidden(name));
                    let found = entries(&folder, shown, wanted)?;
                    Ok(found.into_iter().map(|path| File { path, named: true }).collect())
                }
                None => Err(Error::io("cannot look at", error).image(path.display())),
            },
        },
    }
}

/// The files and block devices of a folder that have a wanted name, sorted; `shown` is what stands before the names.
fn entries(folder: &Path, shown: &Path, wanted: impl Fn(&OsStr) -> bool) -> Result<Vec<PathBuf>> {
    use std::os::unix::fs::FileTypeExt;
    let failed = |error| Error::io("cannot list", error).image(folder.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let kind = std::fs::metadata(folder.join(&name)).map(|found| found.file_type());
        // What is gone by now, and what a link does not lead to, is no image.
        let is_image = kind.is_ok_and(|kind| kind.is_file() || kind.is_block_device());
        if is_image && wanted(&name) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names.into_iter().map(|name| in_folder(shown, Path::new(&name))).collect())
}

/// The device nodes of a volume group's volumes.
fn volumes(group: &str, pattern: Option<&str>) -> Result<Vec<File>> {
    let named = |error: Error| error.image(format!("volume group {group}"));
    let plain = |name: &str| !name.is_empty() && !name.starts_with(['-', '.']) && !name.contains('/');
    if !plain(group) {
        return Err(named(Error::invalid("is no name for a volume group")));
    }
    let wanted = |name: &OsStr| pattern.is_none_or(|pattern| fits(OsStr::new(pattern), name));
    let folder = Path::new("/dev").join(group);
    let listed = Command::new("lvs").args(["--noheadings", "-o", "lv_name", group]).output();
    let found = match listed {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let mut names: Vec<&str> =
                text.lines().map(str::trim).filter(|name| plain(name) && wanted(OsStr::new(name))).collect();
            names.sort_unstable();
            names.into_iter().map(|name| folder.join(name)).collect()
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or("lvs failed").trim().to_owned();
            return Err(named(Error::new(ErrorKind::NotFound, said)));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if !folder.is_dir() {
                return Err(named(
                    Error::new(
                        ErrorKind::NotFound,
                        format!(
                            "cannot be listed: there is no program 'lvs', and no folder {}",
                            folder.display()
                        ),
                    )
                    .hint("install lvm2, or name the devices"),
                ));
            }
            entries(&folder, &folder, wanted)?
        }
        Err(error) => return Err(named(Error::io("cannot run lvs", error))),
    };
    Ok(found.into_iter().map(|path| File { path, named: false }).collect())
}

fn is_pattern(name: &OsStr) -> bool {
    name.as_encoded_bytes().iter().any(|byte| b"*?[".contains(byte))
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// A name's characters. A byte that is part of none stands for itself, as a character that nobody uses.
fn characters(name: &OsStr) -> Vec<char> {
    let stray =
        |byte: &u8| char::from_u32(0x10_ff00 + u32::from(*byte)).unwrap_or(char::REPLACEMENT_CHARACTER);
    name.as_encoded_bytes()
        .utf8_chunks()
        .flat_map(|chunk| chunk.valid().chars().chain(chunk.invalid().iter().map(stray)))
        .collect()
}

/// Whether `name` fits `pattern`, in which `*` is any text, `?` any character, and `[a-z]` or `[!a-z]` one of a set.
fn fits(pattern: &OsStr, name: &OsStr) -> bool {
    let (pattern, name) = (characters(pattern), characters(name));
    let (mut p, mut n) = (0, 0);
    // Where the last star stands, and up to where it was last taken to reach.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() || p < pattern.len() {
        let one = match (pattern.get(p), name.get(n)) {
            (Some('*'), _) => {
                star = Some((p, n));
                p += 1;
                continue;
            }
            (Some('?'), Some(_)) => Some(p + 1),
            (Some('['), Some(c)) => match set(&pattern[p..], *c) {
                Some((true, len)) => Some(p + len),
                Some((false, _)) => None,
                None => (*c == '[').then_some(p + 1),
            },
            (Some(wanted), Some(c)) if wanted == c => Some(p + 1),
            _ => None,
        };
        match (one, &mut star) {
            (Some(next), _) => (p, n) = (next, n + 1),
            (None, Some((at, reached))) if *reached < name.len() => {
                *reached += 1;
                (p, n) = (*at + 1, *reached);
            }
            _ => return false,
        }
    }
    true
}

/// Whether `c` is in the set that `pattern` begins with, and how long the set is; `None`: it has no end.
fn set(pattern: &[char], c: char) -> Option<(bool, usize)> {
    let negated = matches!(pattern.get(1), Some('!' | '^'));
    let first = if negated { 2 } else { 1 };
    // A bracket that comes first is one of the set.
    let end = first + 1 + pattern.get(first + 1..)?.iter().position(|c| *c == ']')?;
    let mut at = first;
    let mut found = false;
    while let Some(low) = pattern[..end].get(at) {
        match (pattern[..end].get(at + 1), pattern[..end].get(at + 2)) {
            (Some('-'), Some(high)) => {
                found |= (*low..=*high).contains(&c);
                at += 3;
            }
            _ => {
                found |= *low == c;
                at += 1;
            }
        }
    }
    Some((found != negated, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        fits(OsStr::new(pattern), OsStr::new(name))
    }

    #[test]
    fn names_need_not_be_text() {
        use std::os::unix::ffi::OsStrExt;
        let [pattern, good, other] = [&b"\xff*.vhd"[..], b"\xff\xfe.vhd", b"\xfe.vhd"].map(OsStr::from_bytes);
        assert!(is_pattern(pattern) && fits(pattern, good) && !fits(pattern, other));
    }

    #[test]
    fn patterns() {
        for (pattern, yes, no) in [
            ("*.qcow2", "a.qcow2 .qcow2", "a.qcow a.qcow2x"),
            ("a*b*c", "abc aXbYc aabbcc abcbc", "ab acb bac abcd"),
            ("VHD-?", "VHD-1 VHD-é", "VHD- VHD-12"),
            ("[a-c]1", "a1 b1 c1", "d1 -1 a"),
            ("[!a-c]1", "d1 -1", "a1"),
            ("[]x]", "] x", "a"),
            ("[", "[", "a"),
            ("[a", "[a", "a"),
            ("**", "a abc", ""),
            ("a", "a", "b aa"),
            ("a-[0-9]*", "a-1 a-12x", "a-x a-"),
        ] {
            assert!(yes.split(' ').all(|name| matches(pattern, name)), "{pattern}");
            assert!(no.split(' ').all(|name| name.is_empty() || !matches(pattern, name)), "{pattern}");
        }
        assert!(matches("*", "") && matches("", "") && !matches("?", "") && !matches("", "a"));
        // No time that grows with a power of the stars.
        assert!(!matches(&"a*".repeat(40), &"a".repeat(39)));
        assert!(!matches(&format!("{}b", "a*".repeat(40)), &"a".repeat(4000)));
    }

    #[test]
    fn names_of_volume_groups_are_no_options() {
        for name in ["", "-o", "a/b", ".", ".."] {
            let error = volumes(name, None).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{name}");
        }
    }
}
