//! An archive unpacked into a folder: all its members, connected to each other, or no folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cowhand_core::{Error, ErrorKind, ParentRef, Result, zero_prefix};

use super::parts::Parts;
use super::pipe::{Exactly, read_full};
use super::{Stream, Streamed, format_name};
use crate::open::{Open, Opened, Parent, open};
use crate::resolve::Policy;
use crate::target_folder::TargetFolder;

/// Bytes that are written at a time.
const CHUNK: usize = 1 << 20;
/// Runs of zeros of this size become holes of the file.
const UNIT: usize = 4096;

/// Unpacks into the folder `path`, which is new, or empty.
pub(super) fn unpack(parts: &mut Parts<'_>, path: &Path, how: &Stream) -> Result<Streamed> {
    if how.format.is_some() || !how.options.is_empty() {
        return Err(Error::unsupported("members are unpacked as they are").hint("leave out -O and -o"));
    }
    let folder = TargetFolder::begin(path, true)?;
    let mut members: BTreeMap<usize, (String, &'static str)> = BTreeMap::new();
    let mut bytes = 0;
    while let Some(mut part) = parts.next()? {
        let Some(member) = part.member.clone() else { continue }; // never: the parts are an archive's
        if members.insert(member.number, (member.name(), format_name(part.format))).is_some() {
            let message = format!("'{}' is twice in it", member.name());
            return Err(parts.named(Error::corrupt("archive", message)));
        }
        let body = Exactly::new(parts.body(&mut part), member.len);
        let written = write(body, &folder.now().join(member.name()), member.len);
        written.map_err(|error| parts.named(error))?;
        bytes += member.len;
    }
    let Some((size, from)) = connect(folder.now(), &members, how).map_err(|error| parts.named(error))? else {
        return Err(parts.named(Error::new(ErrorKind::NotFound, "the archive is empty")));
    };
    folder.finish(how.cache)?;
    let layers = members.len();
    Ok(Streamed {
        from,
        to: from,
        size: Some(size),
        layers,
        written: None,
        bytes: Some(bytes),
        sectors: None,
    })
}

/// Writes a member's bytes as they come.
fn write(mut body: impl Read, path: &Path, len: u64) -> Result<()> {
    let failed = |error| Error::io("cannot write", error).image(path.display());
    let file = File::create_new(path).map_err(failed)?;
    let mut buf = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let n = read_full(&mut body, &mut buf)?;
        if n == 0 {
            break;
        }
        let mut rest = &buf[..n]; // never out of bounds: at most its length
        while !rest.is_empty() {
            let (run, zero) = zero_prefix(rest, UNIT);
            if !zero {
                file.write_all_at(&rest[..run], at).map_err(failed)?; // never out of bounds: a prefix
            }
            rest = &rest[run..];
            at += run as u64;
        }
    }
    file.set_len(len).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// Sees that the members are a chain, and that each names the next. The leaf's size, and its format.
fn connect(
    folder: &Path,
    members: &BTreeMap<usize, (String, &'static str)>,
    how: &Stream,
) -> Result<Option<(u64, &'static str)>> {
    let mut leaf = None;
    let mut child: Option<(Opened, &str, &'static str, ParentRef)> = None;
    for (place, (number, (name, format))) in members.iter().enumerate() {
        if place != *number {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("the archive holds '{name}', and no member {place}"),
            ));
        }
        let opened = open_member(folder, name, format, false)?;
        leaf.get_or_insert((opened.size(), *format));
        match child.take() {
            None if place > 0 => {
                return Err(Error::corrupt("archive", format!("'{name}' follows the base of the chain")));
            }
            None => {}
            Some((above, above_name, above_format, named)) => {
                let found = opened.top().layer.identity().0;
                let same = named.expected.is_empty() || found.is_some_and(|id| named.expected.contains(&id));
                if !same && !how.open.any_parent {
                    return Err(Error::new(
                        ErrorKind::Mismatch,
                        format!("'{name}' is not the parent that '{above_name}' was made from (its identity differs)"),
                    )
                    .hint("pass --any-parent to take it all the same"));
                }
                if !same || named.candidates.first().is_none_or(|first| first.as_os_str() != name.as_str()) {
                    drop(above);
                    let above = open_member(folder, above_name, above_format, true)?;
                    let parent = ParentRef {
                        candidates: vec![PathBuf::from(name)],
                        format: Some((*format).to_owned()),
                        expected: found.into_iter().collect(),
                        ..ParentRef::default()
                    };
                    above.top().layer.set_parent(Some(&parent))?;
                    above.close()?;
                }
            }
        }
        if let Some(parent) = opened.top().layer.parent() {
            child = Some((opened, name, *format, parent));
        }
    }
    match child {
        Some(_) => {
            let message = format!(
                "the chain's layer {}, on which the others stand, is not in the archive",
                members.len()
            );
            Err(Error::new(ErrorKind::NotFound, message))
        }
        None => Ok(leaf),
    }
}

fn open_member(folder: &Path, name: &str, format: &str, writable: bool) -> Result<Opened> {
    let how = Open {
        format: Some(format.to_owned()),
        writable,
        parent: Parent::Ignored,
        policy: Policy::Deny,
        ..Open::default()
    };
    open(&folder.join(name), &how)
}
