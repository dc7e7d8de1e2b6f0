//! Opening a chain: each file by its format, each parent under the path policy.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowhand_core::{
    Access, Cache, Error, ErrorKind, FileStorage, Format, Image, Layer, Link, Lock, OpenOptions, Options,
    ParentRef, Result, Secrets, Storage,
};

use crate::registry;
use crate::resolve::{Files, Policy, Watched};

/// What an image stands on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Parent {
    /// What the image names, under the path policy.
    #[default]
    Named,
    /// Nothing: only this file is opened.
    Ignored,
    /// This file, whatever the image names.
    Given(PathBuf),
}

/// How a disk is opened. `Default`: read-only, format by content, parents from the image's own folder.
#[derive(Clone, Debug, Default)]
pub struct Open {
    /// The top file's format; `None`: by content.
    pub format: Option<String>,
    /// The top for writing too. Parents are read-only, but for `writable_parent`.
    pub writable: bool,
    /// The parent at this depth (1: the top's own) for writing too, whether or not the top is.
    pub writable_parent: Option<usize>,
    /// [`Lock::None`] is `--force-share`.
    pub lock: Lock,
    /// What reads, writes and syncs promise.
    pub cache: Cache,
    /// Which files the images may make us open.
    pub policy: Policy,
    /// What the top stands on.
    pub parent: Parent,
    /// The format of a parent whose child does not state one; without it such a parent is raw.
    pub parent_format: Option<String>,
    /// Take a parent although its identity is not the one its child remembers.
    pub any_parent: bool,
    /// Options of the top's format.
    pub options: Vec<(String, String)>,
    /// What opens encrypted content, of any layer.
    pub secrets: Secrets,
    /// Guest data will be neither read nor written, so what is encrypted needs no secret.
    pub metadata_only: bool,
    /// An internal snapshot of the top, by id or name, in place of its present state.
    pub snapshot: Option<String>,
}

/// More layers than this are taken for a mistake or an attack.
const DEPTH: usize = 200;

/// A disk, and the files it is made of.
#[derive(Debug)]
pub struct Opened {
    image: Image,
    files: Files,
}

impl Deref for Opened {
    type Target = Image;

    fn deref(&self) -> &Image {
        &self.image
    }
}

impl Opened {
    /// Fails with [`ErrorKind::Changed`] where a file is no longer as it was when it was opened: its size, its time of
    /// change, or the file behind the name.
    pub fn check_unchanged(&self) -> Result<()> {
        for Watched { name, storage, identity } in self.watched() {
            let now = storage.identity().map_err(|error| Error::io("cannot look at", error).image(&name))?;
            if now != identity {
                return Err(Error::new(ErrorKind::Changed, "changed while it was read")
                    .image(name)
                    .hint("stop what writes to it, and run this again"));
            }
        }
        Ok(())
    }

    /// Which files the layers are, top first: device and inode.
    pub(crate) fn layer_files(&self) -> Vec<(u64, u64)> {
        let watched = self.watched();
        let of = |link: &Link| {
            let found = watched.iter().find(|file| file.name == link.name);
            found.map_or((0, 0), |file| (file.identity.device, file.identity.inode)) // never: every layer was opened as a file
        };
        self.image.links().iter().map(of).collect()
    }

    /// Every file that was opened.
    pub(crate) fn watched(&self) -> Vec<Watched> {
        self.files.opened.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

/// Opens the disk whose top is `path`.
pub fn open(path: &Path, how: &Open) -> Result<Opened> {
    match open_as_far(path, how)? {
        (opened, None) => Ok(opened),
        (_, Some(error)) => Err(error),
    }
}

/// Opens the disk whose top is `path`, down to the last layer that can be opened. The error is that of the next.
pub(crate) fn open_as_far(path: &Path, how: &Open) -> Result<(Opened, Option<Error>)> {
    let files = Files::beside(path, how.policy.clone(), how.lock, how.cache);
    let storage = files.trusted(path, access(how.writable))?;
    let format = match &how.format {
        Some(name) => registry::format(name)?,
        None => registry::detect(storage.as_ref()).map_err(|error| error.image(path.display()))?,
    };
    let options =
        Options::check(format.open_options(), &how.options).map_err(|error| error.image(path.display()))?;
    let mut top = open_layer(
        path,
        storage,
        format,
        &files,
        &OpenOptions { writable: how.writable, options, ..how.layer(0) },
    )?;
    let parent = top.layer.parent();
    if let Some(which) = &how.snapshot {
        top.layer = snapshot(&top, which)?;
    }
    let mut links = vec![top];
    let below = match &how.parent {
        Parent::Ignored => Ok(()),
        Parent::Named => follow(&mut links, path, parent, &files, how),
        Parent::Given(given) => follow_given(&mut links, path, given, parent.as_ref(), &files, how),
    };
    let below = below.and_then(|()| match how.writable_parent {
        Some(depth) if depth >= links.len() => {
            Err(Error::invalid("Image does not have a backing file").image(path.display()))
        }
        _ => Ok(()),
    });
    Ok((Opened { image: Image::new(links)?, files }, below.err()))
}

/// Opens the parent that the caller named, and what that stands on.
fn follow_given(
    links: &mut Vec<Link>,
    child: &Path,
    given: &Path,
    wanted: Option<&ParentRef>,
    files: &Files,
    how: &Open,
) -> Result<()> {
    let storage = files.trusted(given, access(how.writes(1)))?;
    check_loop(child, given, storage.as_ref(), files)?;
    let format = match &how.parent_format {
        Some(name) => registry::format(name)?,
        None => registry::detect(storage.as_ref()).map_err(|error| error.image(given.display()))?,
    };
    let link = open_layer(given, storage, format, &files.of(given), &how.layer(1))?;
    check_identity(child, wanted, &link, how)?;
    let next = link.layer.parent();
    links.push(link);
    follow(links, given, next, files, how)
}

/// Opens one file to look at what it says of itself, and none that it names: guest data cannot be read where it is
/// encrypted. A raw image is looked at even while somebody writes to it.
pub fn open_alone(path: &Path, how: &Open) -> Result<Opened> {
    let how = Open { parent: Parent::Ignored, policy: Policy::Deny, metadata_only: true, ..how.clone() };
    open(path, &shared_if_raw(path, &how)?)
}

/// For who only looks: the tables of a raw image that is written to cannot change, because it has none.
pub(crate) fn shared_if_raw(path: &Path, how: &Open) -> Result<Open> {
    let is_raw = || -> Result<bool> {
        if let Some(name) = &how.format {
            return Ok(name == "raw");
        }
        let storage = FileStorage::open(path, Access::Read, Lock::None, Cache::Writeback)?;
        Ok(registry::detect(&storage).map_err(|error| error.image(path.display()))?.names().contains(&"raw"))
    };
    let lock = if how.lock == Lock::Default && is_raw()? { Lock::Shared } else { how.lock };
    Ok(Open { lock, ..how.clone() })
}

fn access(writable: bool) -> Access {
    if writable { Access::Write } else { Access::Read }
}

fn open_layer(
    path: &Path,
    storage: Arc<dyn Storage>,
    format: &'static dyn Format,
    files: &Files,
    how: &OpenOptions,
) -> Result<Link> {
    let layer = format.open(storage, files, how).map_err(|error| error.image(path.display()))?;
    Ok(Link { layer, name: path.display().to_string(), format: format.names()[0] }) // never empty: every format has a name
}

impl Open {
    /// The parent at that depth is opened for writing.
    fn writes(&self, depth: usize) -> bool {
        self.writable_parent == Some(depth)
    }

    /// How the parent at that depth is opened.
    fn layer(&self, depth: usize) -> OpenOptions {
        OpenOptions {
            writable: self.writes(depth),
            secrets: self.secrets.clone(),
            metadata_only: self.metadata_only,
            ..OpenOptions::default()
        }
    }
}

fn snapshot(top: &Link, which: &str) -> Result<Arc<dyn Layer>> {
    let snapshots = top.layer.as_snapshots().ok_or_else(|| {
        Error::unsupported(format!("a {} image has no internal snapshots", top.format)).image(&top.name)
    })?;
    snapshots.open(which).map_err(|error| error.image(&top.name))
}

/// Opens parent after parent, until one names none.
fn follow(
    links: &mut Vec<Link>,
    child: &Path,
    parent: Option<ParentRef>,
    files: &Files,
    how: &Open,
) -> Result<()> {
    let mut child = child.to_owned();
    let mut parent = parent;
    while let Some(wanted) = parent {
        if links.len() >= DEPTH {
            return Err(Error::new(
                ErrorKind::ChainTooLong,
                format!("the chain has more than {DEPTH} layers"),
            )
            .image(child.display()));
        }
        let files = files.of(&child);
        let depth = links.len();
        let (path, storage) = find_parent(&child, &wanted, &files, access(how.writes(depth)))?;
        check_loop(&child, &path, storage.as_ref(), &files)?;
        let format = parent_format(&child, &path, storage.as_ref(), &wanted, how)?;
        let link = open_layer(&path, storage, format, &files.of(&path), &how.layer(depth))?;
        check_identity(&child, Some(&wanted), &link, how)?;
        parent = link.layer.parent();
        links.push(link);
        child = path;
    }
    Ok(())
}

/// The first candidate that is there and may be opened. A candidate that may not be opened is an error only where no
/// other is found.
fn find_parent(
    child: &Path,
    wanted: &ParentRef,
    files: &Files,
    access: Access,
) -> Result<(PathBuf, Arc<dyn Storage>)> {
    let mut first_error: Option<Error> = None;
    for candidate in &wanted.candidates {
        match files.named_by_image(candidate, access) {
            Ok(found) => return Ok(found),
            Err(error) => {
                let worse = first_error.as_ref().is_none_or(|first| {
                    first.kind() == ErrorKind::NotFound && error.kind() != ErrorKind::NotFound
                });
                if worse {
                    first_error = Some(error);
                }
            }
        }
    }
    if wanted.any_case && first_error.as_ref().is_some_and(|error| error.kind() == ErrorKind::NotFound) {
        let spelt_otherwise = wanted.candidates.iter().filter_map(|candidate| files.in_any_case(candidate));
        if let Some(found) =
            spelt_otherwise.filter_map(|name| files.named_by_image(&name, access).ok()).next()
        {
            return Ok(found);
        }
    }
    let shown = wanted.candidates.first().map(|path| path.display().to_string()).unwrap_or_default();
    match first_error {
        Some(error) if error.kind() == ErrorKind::NotFound => {
            let tried: Vec<String> =
                wanted.candidates.iter().map(|path| format!("'{}'", path.display())).collect();
            Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "its parent '{shown}' is not there: No such file or directory (tried {})",
                    tried.join(", ")
                ),
            )
            .image(child.display())
            .hint("put it back, or name it with --parent"))
        }
        Some(error) => Err(error.image(child.display())),
        None => Err(Error::corrupt("parent", "the image needs a parent and names none")
            .image(child.display())
            .hint("name it with --parent")),
    }
}

/// One file twice in a chain never ends. The file just opened is the last of those noted.
fn check_loop(child: &Path, path: &Path, storage: &dyn Storage, files: &Files) -> Result<()> {
    let failed = |error| Error::io("cannot look at", error).image(path.display());
    let new = storage.identity().map_err(failed)?;
    let opened = files.opened.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let same = opened
        .iter()
        .filter(|file| (file.identity.device, file.identity.inode) == (new.device, new.inode))
        .count();
    if same > 1 {
        return Err(Error::corrupt("parent", format!("'{}' stands in its own chain", path.display()))
            .image(child.display()));
    }
    Ok(())
}

/// The stated format; else the one the caller says; else raw, if nothing else is found there: guessing would let a
/// guest write itself a header that names any file of the host.
fn parent_format(
    child: &Path,
    path: &Path,
    storage: &dyn Storage,
    wanted: &ParentRef,
    how: &Open,
) -> Result<&'static dyn Format> {
    if let Some(name) = wanted.format.as_ref().or(how.parent_format.as_ref()) {
        return registry::format(name).map_err(|error| error.image(child.display()));
    }
    let probed = registry::detect(storage).map(|format| format.names()[0]).unwrap_or("something else"); // never empty: every format has a name
    if probed != "raw" {
        return Err(Error::new(
            ErrorKind::Ambiguous,
            format!(
                "does not state its backing file's format, so '{}' would be raw, but it looks like {probed}",
                path.display()
            ),
        )
        .image(child.display())
        .hint(format!(
            "if you trust it, pass --parent-format {}",
            if probed == "something else" { "FORMAT" } else { probed }
        )));
    }
    registry::format("raw")
}

fn check_identity(child: &Path, wanted: Option<&ParentRef>, link: &Link, how: &Open) -> Result<()> {
    let expected = wanted.map(|wanted| wanted.expected.as_slice()).unwrap_or_default();
    let found = link.layer.identity().0;
    if how.any_parent || expected.is_empty() || found.is_some_and(|id| expected.contains(&id)) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Mismatch,
        format!(
            "'{}' is not the parent this image was made from, or it was changed since (its identity differs)",
            link.name
        ),
    )
    .image(child.display())
    .hint("name the right one with --parent, or pass --any-parent to use it all the same"))
}
