//! Opening a chain: each file by its format, each parent under the path policy.

use std::borrow::Cow;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowhand_core::{
    Access, Cache, Error, ErrorKind, Format, Image, Layer, Link, Lock, OpenOptions, Options, ParentRef,
    Progress, Result, Secrets, Storage,
};

use crate::archive::Indexing;
use crate::archive::content::Content;
use crate::archive::disk::{Archive, ArchiveDisk};
use crate::archive::part::Part;
use crate::journal::noted;
use crate::kinship::modified;
use crate::node::{Backing, Described, Name, Node, no_node};
use crate::parent::{Found, Seeker, Seen, itself, relative_name, remembered};
use crate::registry::{self, Probing, unknown_option};
use crate::resolve::{Files, Policy, Watched, folder_of, in_folder};
use crate::shelf::Shelf;

/// What an image stands on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Parent {
    /// What the image names, under the path policy.
    #[default]
    Named,
    /// Nothing: only this file is opened.
    Ignored,
    /// This file, whatever the image names. One of a format whose files have no identity (raw, qcow2) is taken as it is.
    Given(PathBuf),
}

/// How a disk is opened. `Default`: read-only, format by content, parents from the image's own folder.
#[derive(Clone, Debug, Default)]
pub struct Open {
    /// The top file's format; `None`: by content.
    pub format: Option<String>,
    /// What describes the top beside its path, its format and its options.
    pub node: Option<Arc<Node>>,
    /// The top for writing too. Parents are read-only, but for `writable_parents`. Where the top remembers its parent's
    /// identity and wants its names kept current ([`ParentRef::kept_current`]), and that parent is no longer where the top
    /// says first, it is told where it was found.
    pub writable: bool,
    /// The parents at these depths (1: the top's own) for writing too, whether or not the top is.
    pub writable_parents: Vec<usize>,
    /// [`Lock::None`] is `--force-share`.
    pub lock: Lock,
    /// Raw files that are only read may be written to by others meanwhile, as QEMU has it: no table in them can change.
    pub share_raw: bool,
    /// What reads, writes and syncs promise.
    pub cache: Cache,
    /// Files that are opened for writing are to have no holes: those that are there are filled, and none come.
    pub solid: bool,
    /// Which files the images may make us open.
    pub policy: Policy,
    /// What the top stands on.
    pub parent: Parent,
    /// The format of a parent whose child does not state one; without it such a parent is raw.
    pub parent_format: Option<String>,
    /// Take a parent although its identity is not the one its child remembers.
    pub any_parent: bool,
    /// Folders in which a parent is looked for that is not where its child says, or is not the one it was: by its
    /// identity, or by its name where it has none. What lies in them is trusted; folders within are not gone into.
    pub search: Vec<PathBuf>,
    /// Options of the top's format.
    pub options: Vec<(String, String)>,
    /// What opens encrypted content, of any layer.
    pub secrets: Secrets,
    /// Guest data will be neither read nor written, so what is encrypted needs no secret.
    pub metadata_only: bool,
    /// Read images although their checksums are wrong; none that is opened for writing.
    pub ignore_checksums: bool,
    /// An internal snapshot of the top, by id or name, in place of its present state.
    pub snapshot: Option<String>,
    /// How formats are found that nobody names.
    pub probing: Probing,
    /// What an image says is taken as it stands, as far as that can do this program no harm: what QEMU does. What leads past the
    /// end of a qcow2 file reads zero, what leads into its tables reads them; a parent of no stated format is what it looks
    /// like; a chain may be of any length; no image is looked at before the first write to it; and files may change while
    /// they are read.
    pub lenient: bool,
    /// What is written over in the top's file is noted first in this new file or device, by which
    /// [`revert`](crate::revert) can bring it back. What becomes of the journal is the caller's business.
    pub undo: Option<PathBuf>,
    /// How the places of an archive's bytes are found, where a disk of one is opened.
    pub indexing: Indexing,
}

/// More layers than this are taken for a mistake or an attack.
const DEPTH: usize = 200;

/// A disk, and the files it is made of.
#[derive(Debug)]
pub struct Opened {
    image: Image,
    files: Files,
    /// The top, where it is a disk of an archive.
    archived: Option<Arc<ArchiveDisk>>,
}

impl Deref for Opened {
    type Target = Image;

    fn deref(&self) -> &Image {
        &self.image
    }
}

impl Opened {
    /// Fails with [`ErrorKind::Changed`] where a file is no longer as it was when it was opened: its size, its time of
    /// change, or the file behind the name; never where it was opened with [`Open::lenient`].
    pub fn check_unchanged(&self) -> Result<()> {
        if self.files.may_change {
            return Ok(());
        }
        for Watched { name, storage, identity, .. } in self.watched() {
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

    /// What a child of the layer at that depth, 0 being the top, has to remember of it.
    pub(crate) fn seen(&self, depth: usize) -> Option<Seen> {
        let link = self.image.links().get(depth)?;
        let file = self.watched().into_iter().find(|file| file.name == link.name)?;
        let layer = &link.layer;
        Some(Seen {
            id: layer.identity(),
            modified: modified(file.identity),
            sector: layer.sector(),
            disk_id: layer.disk_id(),
        })
    }

    /// Writes into the top, `path`, where its parent was found, which is the one that it remembers.
    fn tell_the_top(&self, path: &Path) -> Result<()> {
        let [top, parent, ..] = self.image.links() else { return Ok(()) };
        let path = itself(path);
        let name = relative_name(&path, Path::new(&parent.name));
        let told = remembered(&path, &name, Some(parent.format.to_owned()), self.seen(1));
        match top.layer.set_parent(Some(&told)) {
            // It was found without; and the format may have no way to say where.
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Invalid) => Ok(()),
            done => done.map_err(|error| error.image(&top.name)),
        }
    }

    /// The top, where it is a disk of an archive.
    pub(crate) fn archived(&self) -> Option<&ArchiveDisk> {
        self.archived.as_deref()
    }

    /// What stands in an image is the name of a file, which is not unpacked and of which no part is looked for: so the
    /// image would not find such a disk of an archive again.
    pub(crate) fn refuse_as_parent(&self) -> Result<()> {
        match &self.archived {
            Some(disk) if !disk.is_whole_file() => Err(Error::unsupported(
                "this disk of an archive cannot be the parent of an image, which would not find it again",
            )
            .hint("convert it to an image first")
            .image(self.image.name())),
            _ => Ok(()),
        }
    }

    /// Finds out now where the bytes of an archive's disk stand, which may take a look at the whole archive. Otherwise that
    /// is done when the first of them is asked for, and `progress` cannot stop it.
    pub fn prepare(&self, progress: &dyn Progress) -> Result<()> {
        let Some(disk) = &self.archived else { return Ok(()) };
        disk.prepare(progress).map_err(|error| error.image(self.image.name()))
    }

    /// Every file that was opened.
    pub(crate) fn watched(&self) -> Vec<Watched> {
        self.files.opened().clone()
    }
}

/// Opens the disk whose top is `path`. `ARCHIVE#DISK` is a disk of an archive, where no file has that very name; an
/// archive of one disk is that disk.
pub fn open(path: &Path, how: &Open) -> Result<Opened> {
    match open_as_far(path, how)? {
        (opened, None) => Ok(opened),
        (_, Some(error)) => Err(error),
    }
}

/// Opens the disk whose top is `path`, down to the last layer that can be opened. The error is that of the next.
pub(crate) fn open_as_far(path: &Path, how: &Open) -> Result<(Opened, Option<Error>)> {
    let how = how.sharing(path);
    open_among(path, &how, Files::beside(Part::of(path).file, &how))
}

/// As [`open_as_far`]; what `files` has opened already stands above.
fn open_among(path: &Path, how: &Open, files: Files) -> Result<(Opened, Option<Error>)> {
    let format = how.format.as_deref().map(registry::format).transpose()?;
    let part = Part::of(path);
    let storage = files.top(&part, how, access(how.writable))?;
    let named = |error: Error| error.image(path.display());
    files.refuse_loop(path, storage.as_ref()).map_err(named)?;
    let content = Content::of(&storage, format, how.probing).map_err(named)?;
    let options = registry::open_options(content.format, &how.options).map_err(named)?;
    let (mut top, archived) = match archive_disk(&part, &storage, content, &options, how).map_err(named)? {
        Some(disk) => (link_to(path, content, &disk), Some(disk)),
        None => {
            let options = OpenOptions { writable: how.writable, options, ..how.layer(0) };
            let storage = match &how.undo {
                Some(journal) if how.writable => noted(storage, content.format, journal)?,
                _ => storage,
            };
            let link = open_layer(path, storage, content.format, &files, &options)?;
            let format = protocol_of(how).unwrap_or(link.format);
            (Link { format, ..link }, None)
        }
    };
    let parent = top.layer.parent();
    if let Some(which) = &how.snapshot {
        top.layer = snapshot(&top, which)?;
    }
    let mut links = vec![top];
    let backing = how.node.as_ref().map(|node| node.backing()).unwrap_or(&Backing::Named);
    let below = match (&how.parent, backing) {
        (Parent::Ignored, Backing::Described(described)) => {
            Err(unknown_option(content.format, &format!("backing.{}", described.first()))
                .image(path.display()))
        }
        (Parent::Ignored, Backing::Reference(_)) => {
            Err(unknown_option(content.format, "backing").image(path.display()))
        }
        (Parent::Named, Backing::Reference(id)) => Err(no_node(id).image(path.display()).below(1, id)),
        (Parent::Ignored, _) | (Parent::Named, Backing::Nothing) => Ok(Found::AsNamed),
        (Parent::Named, Backing::Described(described)) => {
            follow_described(&mut links, path, described, parent, content, &files, how)
        }
        (Parent::Named, Backing::Named) => follow(&mut links, path, parent, &files, how),
        (Parent::Given(given), _) => follow_given(&mut links, path, given, parent.as_ref(), &files, how),
    };
    let below = below.and_then(|found| match how.writable_parents.iter().max() {
        Some(depth) if *depth >= links.len() => {
            let said = "Image does not have a backing file";
            Err(Error::invalid(said).image(path.display()).known_as(said))
        }
        _ => Ok(found),
    });
    let opened = Opened { image: Image::new(links)?, files, archived };
    let below = below.and_then(|found| match found {
        Found::Elsewhere if how.writable => opened.tell_the_top(path),
        _ => Ok(()),
    });
    Ok((opened, below.err()))
}

/// The disk that the caller means, where the file is an archive. `None`: it is none.
pub(crate) fn archive_disk(
    part: &Part<'_>,
    file: &Arc<dyn Storage>,
    content: Content,
    options: &Options,
    how: &Open,
) -> Result<Option<Arc<ArchiveDisk>>> {
    match Archive::open(part, file, content, &how.indexing)? {
        Some(_) if how.writable => Err(Error::unsupported("a backup archive can be read, and not written")
            .hint("convert its disk to an image, and write to that")),
        Some(archive) => archive.disk(part, options).map(Some),
        None => part.refuse_disk(content.format).map(|()| None),
    }
}

pub(crate) fn link_to(path: &Path, content: Content, disk: &Arc<ArchiveDisk>) -> Link {
    Link { layer: disk.clone(), name: path.display().to_string(), format: content.format.names()[0] } // never empty: every format has a name
}

/// Opens the parent that the caller named, and what that stands on.
fn follow_given(
    links: &mut Vec<Link>,
    child: &Path,
    given: &Path,
    wanted: Option<&ParentRef>,
    files: &Files,
    how: &Open,
) -> Result<Found> {
    let nothing = ParentRef::default();
    let wanted = wanted.unwrap_or(&nothing);
    let link = Seeker { child, wanted, files: files.clone(), how, depth: 1 }.given(given)?;
    let next = link.layer.parent();
    links.push(link);
    follow(links, given, next, files, how)?;
    Ok(Found::AsNamed)
}

/// The driver of the top, where it is no format.
fn protocol_of(how: &Open) -> Option<&'static str> {
    let name = how.format.as_deref()?;
    [registry::FILE, registry::DEVICE].into_iter().find(|protocol| *protocol == name)
}

/// Opens the parent that the caller describes, and what that stands on.
fn follow_described(
    links: &mut Vec<Link>,
    child: &Path,
    described: &Described,
    wanted: Option<ParentRef>,
    content: Content,
    files: &Files,
    how: &Open,
) -> Result<Found> {
    let child_named = |error: Error| error.image(child.display());
    if content.format.is_bare() {
        return Err(child_named(Error::invalid("Driver doesn't support backing files")));
    }
    let stated = wanted.as_ref().and_then(|wanted| wanted.format.as_deref());
    let named =
        wanted.as_ref().and_then(|wanted| wanted.candidates.first()).filter(|_| !described.has_file());
    let file = match named {
        // What the image names is opened under the policy, whoever says how.
        Some(name) => {
            let before = files.opened().len();
            let found = files.of(child).named_by_image(name, access(how.writes(1)));
            files.opened().truncate(before);
            Some(found.map_err(|error| error.below(1, name.display()))?.0)
        }
        None => None,
    };
    let node = described
        .node(stated, file.as_deref())
        .map_err(|error| child_named(error).below(1, child.display()))?;
    go_on_with(node, links, files, how)?;
    Ok(Found::AsNamed)
}

/// Opens what `node` describes below `links`, and what that stands on.
fn go_on_with(node: Node, links: &mut Vec<Link>, files: &Files, how: &Open) -> Result<()> {
    let depth = links.len();
    let path = node.path().to_owned();
    let below = Open {
        writable: how.writes(depth),
        writable_parents: how.writable_parents.iter().filter_map(|of| of.checked_sub(depth)).collect(),
        format: None,
        options: Vec::new(),
        node: None,
        snapshot: None,
        parent: Parent::Named,
        ..how.clone()
    };
    let below = node.open(below);
    let below = below.sharing(&path).into_owned();
    let files = Files::beside(&path, &below).after(files);
    let lower = |error: Error| match error.lower().map(|(layers, file)| (layers, file.to_owned())) {
        Some((layers, file)) => error.below(depth + layers, file),
        None => error.below(depth, path.display()),
    };
    let (parent, broken) = open_among(&path, &below, files).map_err(lower)?;
    links.extend(parent.image.links().iter().cloned());
    broken.map_or(Ok(()), |error| Err(lower(error)))
}

/// What the name of a parent describes, where images may say such things.
fn described_by_image(wanted: &ParentRef, how: &Open) -> Result<Option<Node>> {
    let name = wanted.candidates.first().filter(|_| how.policy == Policy::Any);
    match name.map(|name| Name::of(name, wanted.format.as_deref())).transpose()? {
        Some(Name::Node(read)) => Ok(Some(read.node)),
        _ => Ok(None),
    }
}

/// Opens one file to look at what it says of itself, and none that it names: guest data cannot be read where it is
/// encrypted. A raw image is looked at even while somebody writes to it.
pub fn open_alone(path: &Path, how: &Open) -> Result<Opened> {
    let how = Open { parent: Parent::Ignored, policy: Policy::Deny, metadata_only: true, ..how.clone() };
    open(path, &shared_if_raw(path, &how)?)
}

/// For who only looks: the tables of a raw image that is written to cannot change, because it has none.
pub(crate) fn shared_if_raw(path: &Path, how: &Open) -> Result<Open> {
    let is_bare = || -> Result<bool> { Ok(guess(path, how)?.is_bare()) };
    let lock = if how.lock == Lock::Default && is_bare()? { Lock::Shared } else { how.lock };
    Ok(Open { lock, ..how.clone() })
}

/// The format that `path` is opened as: the one that `how` names, else the one that it is taken for.
pub fn guess(path: &Path, how: &Open) -> Result<&'static dyn Format> {
    if let Some(name) = &how.format {
        return registry::format(name);
    }
    let part = Part::of(path);
    let unlocked = Open { lock: Lock::None, cache: Cache::Writeback, ..how.clone() };
    let file = Files::beside(part.file, &unlocked).top(&part, &unlocked, Access::Read)?;
    Ok(Content::of(&file, None, how.probing).map_err(|error| error.image(path.display()))?.format)
}

pub(crate) fn access(writable: bool) -> Access {
    if writable { Access::Write } else { Access::Read }
}

pub(crate) fn open_layer(
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
    /// With the lock that the file `path` needs, where raw ones are shared.
    pub(crate) fn sharing(&self, path: &Path) -> Cow<'_, Open> {
        let shared = self.share_raw && !self.writable && self.lock == Lock::Default;
        if shared && guess(path, self).is_ok_and(|format| format.is_bare()) {
            return Cow::Owned(Open { lock: Lock::Shared, ..self.clone() });
        }
        Cow::Borrowed(self)
    }

    /// The parent at that depth is opened for writing.
    pub(crate) fn writes(&self, depth: usize) -> bool {
        self.writable_parents.contains(&depth)
    }

    /// How the parent at that depth is opened.
    pub(crate) fn layer(&self, depth: usize) -> OpenOptions {
        OpenOptions {
            writable: self.writes(depth),
            secrets: self.secrets.clone(),
            metadata_only: self.metadata_only,
            ignore_checksums: self.ignore_checksums,
            lenient: self.lenient,
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

/// Opens parent after parent, until one names none. Answers where the first was.
fn follow(
    links: &mut Vec<Link>,
    child: &Path,
    parent: Option<ParentRef>,
    files: &Files,
    how: &Open,
) -> Result<Found> {
    let shelf = Shelf::new(&how.search);
    let mut first = None;
    let mut child = child.to_owned();
    let mut parent = parent;
    while let Some(wanted) = parent {
        if links.len() >= DEPTH && !how.lenient {
            return Err(Error::new(
                ErrorKind::ChainTooLong,
                format!("the chain has more than {DEPTH} layers"),
            )
            .image(child.display()));
        }
        if let Some(node) = described_by_image(&wanted, how).map_err(|error| error.image(child.display()))? {
            go_on_with(node, links, files, how)?;
            break;
        }
        let seeker =
            Seeker { child: &child, wanted: &wanted, files: files.of(&child), how, depth: links.len() };
        let (path, link, found) = seeker.find(&shelf).map_err(|error| {
            let name = wanted.candidates.first().map(|name| in_folder(&folder_of(&child), name));
            error.below(links.len(), name.unwrap_or_default().display())
        })?;
        first.get_or_insert(found);
        parent = link.layer.parent();
        links.push(link);
        child = path;
    }
    Ok(first.unwrap_or(Found::AsNamed))
}
