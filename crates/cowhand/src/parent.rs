//! A child's parent: what the child remembers of it, and how it is found again.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use cowhand_core::{Error, ErrorKind, Format, LayerId, Link, Lock, Options, ParentRef, Result, Storage};

use crate::archive::content::Content;
use crate::archive::part::Part;
use crate::open::{Open, access, archive_disk, link_to, open_layer};
use crate::registry;
use crate::resolve::{Files, folder_of, in_folder};
use crate::shelf::Shelf;

/// What a child has to know of a file beside its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) id: LayerId,
    pub(crate) modified: Option<SystemTime>,
    pub(crate) sector: u32,
    pub(crate) disk_id: Option<[u8; 16]>,
}

/// What `child` is to remember of the parent that it shall call `name`.
pub(crate) fn remembered(child: &Path, name: &Path, format: Option<String>, seen: Option<Seen>) -> ParentRef {
    let mut candidates = vec![name.to_owned()];
    // The other way to say it: formats that write several have both, and are found after a move of the folder too.
    let other = if name.is_relative() {
        whole(&in_folder(&folder_of(child), name))
    } else {
        relative_name(child, name)
    };
    candidates.extend((other.is_relative() != name.is_relative()).then_some(other));
    ParentRef {
        candidates,
        format,
        any_case: false,
        kept_current: false,
        expected: seen.and_then(|seen| seen.id.0).into_iter().collect(),
        modified: seen.and_then(|seen| seen.modified),
        sector: seen.map(|seen| seen.sector),
        disk_id: seen.and_then(|seen| seen.disk_id),
    }
}

/// `parent`, a name from where the caller stands, as seen from the folder of `child`; the name as it is where that
/// cannot be found out.
pub(crate) fn relative_name(child: &Path, parent: &Path) -> PathBuf {
    let real = |path: &Path| std::fs::canonicalize(folder_of(path));
    let (Ok(from), Ok(to), Some(name)) = (real(child), real(parent), parent.file_name()) else {
        return parent.to_owned();
    };
    let same = from.components().zip(to.components()).take_while(|(from, to)| from == to).count();
    let up = from.components().skip(same).map(|_| Component::ParentDir);
    up.chain(to.components().skip(same)).collect::<PathBuf>().join(name)
}

/// The file at `path`, which may be a link: what stands in the file is seen from the file's own folder.
pub(crate) fn itself(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// The absolute path; the links of its folders are followed, that of the file itself is not.
fn whole(path: &Path) -> PathBuf {
    match (std::fs::canonicalize(folder_of(path)), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}

/// Who looks for the parent of `child`.
#[derive(Debug)]
pub(crate) struct Seeker<'a> {
    pub(crate) child: &'a Path,
    pub(crate) wanted: &'a ParentRef,
    /// Opens on behalf of the child.
    pub(crate) files: Files,
    pub(crate) how: &'a Open,
    /// Where in the chain the parent stands, 1 being the top's own.
    pub(crate) depth: usize,
}

/// A parent that was found; or why what was looked at is not it.
type Looked = Result<(PathBuf, Link), Error>;

/// Where a parent was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Where its child says; or elsewhere, and the child cannot tell whether it is the one, or what it says is right too.
    AsNamed,
    /// It is the one, no longer there where its child says first, and the child is to say where it is.
    Elsewhere,
}

impl Seeker<'_> {
    /// The parent by the names that the child gives; where it is not there, on the shelf.
    pub(crate) fn find(&self, shelf: &Shelf<'_>) -> Result<(PathBuf, Link, Found)> {
        let mut stale = true;
        let missing = match self.named(&mut stale)? {
            Ok(found) => return Ok(found),
            Err(missing) => missing,
        };
        // One that somebody holds is there.
        if shelf.is_empty() || missing.kind() == ErrorKind::Locked {
            return Err(missing);
        }
        match self.shelved(shelf)? {
            Some((path, link)) => Ok((path, link, self.elsewhere(stale))),
            None => {
                let count = shelf.len()?;
                Err(missing.hint(format!("none of the {count} files in the folders of --search-dir is it")))
            }
        }
    }

    /// The parent that the caller names.
    pub(crate) fn given(&self, path: &Path) -> Result<Link> {
        let part = Part::of(path);
        let open = Open {
            format: self.how.parent_format.clone(),
            node: None,
            writable: self.how.writes(self.depth),
            ..self.how.clone()
        };
        let files = self.files.with_lock(open.sharing(path).lock);
        let storage = files.trusted_part(&part, access(self.how.writes(self.depth)))?;
        self.refuse_loop(path, storage.as_ref())?;
        let named = |error: Error| error.image(path.display());
        let format = self.how.parent_format.as_deref().map(registry::format).transpose()?;
        let content = Content::of(&storage, format, self.how.probing).map_err(named)?;
        let read = Open { writable: self.how.writes(self.depth), ..self.how.clone() };
        if let Some(disk) =
            archive_disk(&part, &storage, content, &Options::default(), &read).map_err(named)?
        {
            return Ok(link_to(path, content, &disk));
        }
        let format = self.format_of_given(path, storage.as_ref())?;
        // What has no identity cannot be the wrong one: the caller says that it holds what the parent held.
        let nameless = format.identity(storage.as_ref()).is_ok_and(|id| id.0.is_none());
        self.open(path, storage, format, nameless)?
    }

    fn elsewhere(&self, stale: bool) -> Found {
        let known = !self.how.any_parent && !self.wanted.expected.is_empty();
        if stale && known && self.wanted.kept_current { Found::Elsewhere } else { Found::AsNamed }
    }

    /// The first candidate that is there, may be opened, and is the one. Of those that are not it the answer tells
    /// the one of which most can be said. `stale` stays where nothing of what is named before is the parent: what may not
    /// be opened might be.
    fn named(&self, stale: &mut bool) -> Result<Result<(PathBuf, Link, Found), Error>> {
        let mut missing: Option<Error> = None;
        let mut not_it = |error: Error| {
            let says = |error: &Error| match error.kind() {
                ErrorKind::NotFound => 0,
                ErrorKind::Mismatch => 2,
                _ => 1,
            };
            if missing.as_ref().is_none_or(|first| says(first) < says(&error)) {
                missing = Some(error);
            }
        };
        for (index, candidate) in self.wanted.candidates.iter().enumerate() {
            match self.named_so(candidate)? {
                Ok((path, link)) => return Ok(Ok((path, link, self.elsewhere(*stale && index > 0)))),
                Err(error) => {
                    *stale &= matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Mismatch);
                    not_it(error);
                }
            }
        }
        if self.wanted.any_case && missing.as_ref().is_some_and(|error| error.kind() == ErrorKind::NotFound) {
            for candidate in &self.wanted.candidates {
                let Some(spelt_otherwise) = self.files.in_any_case(candidate) else { continue };
                if let Ok((path, link)) = self.named_so(&spelt_otherwise)? {
                    return Ok(Ok((path, link, Found::AsNamed)));
                }
            }
        }
        Ok(Err(self.missing(missing)))
    }

    fn missing(&self, error: Option<Error>) -> Error {
        let candidates = &self.wanted.candidates;
        match error {
            Some(error) if error.kind() == ErrorKind::NotFound => {
                let tried: Vec<String> =
                    candidates.iter().map(|path| format!("'{}'", path.display())).collect();
                let shown = tried.first().map_or("''", String::as_str);
                let tried = tried.join(", ");
                let known =
                    candidates.first().map(|name| in_folder(&self.files.folder, name)).unwrap_or_default();
                let known = known.display();
                Error::new(
                    ErrorKind::NotFound,
                    format!("its parent {shown} is not there: No such file or directory (tried {tried})"),
                )
                .image(self.child.display())
                .hint("put it back, or name it with --parent, or its folder with --search-dir")
                .known_as(format!("Could not open '{known}': No such file or directory"))
            }
            Some(error) => error.image(self.child.display()),
            None => Error::corrupt("parent", "the image needs a parent and names none")
                .image(self.child.display())
                .hint("name it with --parent, or its folder with --search-dir"),
        }
    }

    /// The file that the child calls so, if it is the parent. What is not it is not kept open.
    fn named_so(&self, name: &Path) -> Result<Looked> {
        let before = self.files.opened().len();
        let found = match self.sharing().named_by_image(name, access(self.how.writes(self.depth))) {
            Err(error) => Err(error),
            Ok((path, storage)) => self.take(path, storage)?,
        };
        if found.is_err() {
            self.files.opened().truncate(before);
        }
        Ok(found)
    }

    /// As the child says that its parent is opened: one that is raw, or is no parent, may be shared.
    fn sharing(&self) -> Files {
        let stated = self.wanted.format.as_ref().or(self.how.parent_format.as_ref());
        let raw = match stated {
            Some(name) => registry::format(name).is_ok_and(|format| format.is_bare()),
            None => !self.how.lenient,
        };
        let shared = self.how.share_raw && raw && self.wanted.expected.is_empty();
        match self.files.lock {
            Lock::Default if shared && !self.how.writes(self.depth) => self.files.with_lock(Lock::Shared),
            _ => self.files.clone(),
        }
    }

    fn take(&self, path: PathBuf, storage: Arc<dyn Storage>) -> Result<Looked> {
        if let Err(error) = self.refuse_loop(&path, storage.as_ref()) {
            return Ok(Err(error));
        }
        let format = self.format(&path, storage.as_ref())?;
        Ok(self.open(&path, storage, format, false)?.map(|link| (path, link)))
    }

    fn shelved(&self, shelf: &Shelf<'_>) -> Result<Option<(PathBuf, Link)>> {
        let in_chain: Vec<(u64, u64)> =
            self.files.opened().iter().map(|file| (file.identity.device, file.identity.inode)).collect();
        let Some(found) =
            shelf.find(self.wanted, &in_chain).map_err(|error| error.image(self.child.display()))?
        else {
            return Ok(None);
        };
        let storage = self.files.trusted(&found.path, access(self.how.writes(self.depth)))?;
        self.refuse_loop(&found.path, storage.as_ref())?;
        let format = match found.format {
            Some(format) => format,
            None => self.format(&found.path, storage.as_ref())?,
        };
        let link = self.open(&found.path, storage, format, false)??;
        Ok(Some((found.path.clone(), link)))
    }

    /// Opens what may be the parent, which is taken for it as it is where it is `trusted`. The inner error: it is not.
    fn open(
        &self,
        path: &Path,
        storage: Arc<dyn Storage>,
        format: &'static dyn Format,
        trusted: bool,
    ) -> Result<Result<Link>> {
        let link = open_layer(path, storage, format, &self.files.of(path), &self.how.layer(self.depth))?;
        let id = link.layer.identity();
        if trusted || self.how.any_parent || self.wanted.expected.is_empty() || self.expects(id) {
            return Ok(Ok(link));
        }
        let spell = |id: &[u8; 16]| format.spell(*id);
        let expected: Vec<String> = self.wanted.expected.iter().map(spell).collect();
        let found = id.0.as_ref().map_or("none".to_owned(), spell);
        Ok(Err(Error::new(
            ErrorKind::Mismatch,
            format!(
                "'{}' is not the parent this image was made from, or it was changed since (its identity is {found}, not {})",
                link.name,
                expected.join(" or ")
            ),
        )
        .image(self.child.display())
        .hint("name the right one with --parent, or its folder with --search-dir, or pass --any-parent to use it all the same")))
    }

    fn expects(&self, id: LayerId) -> bool {
        id.0.is_some_and(|id| self.wanted.expected.contains(&id))
    }

    /// One file twice in a chain never ends. The file just opened is the last of those noted.
    fn refuse_loop(&self, path: &Path, storage: &dyn Storage) -> Result<()> {
        self.files.refuse_loop(path, storage).map_err(|error| error.image(self.child.display()))
    }

    /// The stated format; else the one the caller says; else raw, if nothing else is found there: guessing would let a
    /// guest write itself a header that names any file of the host.
    fn format(&self, path: &Path, storage: &dyn Storage) -> Result<&'static dyn Format> {
        let child = |error: Error| error.image(self.child.display());
        if let Some(name) = self.wanted.format.as_ref().or(self.how.parent_format.as_ref()) {
            return registry::format(name).map(|stated| self.by_identity(stated, storage)).map_err(child);
        }
        if self.how.lenient {
            return registry::detect_by(storage, self.how.probing).map_err(child);
        }
        let probed = registry::detect_by(storage, self.how.probing).ok();
        if probed.is_some_and(|format| format.is_bare()) {
            return Ok(registry::bare());
        }
        let name = probed.and_then(|format| format.names().first().copied());
        Err(child(
            Error::new(
                ErrorKind::Ambiguous,
                format!(
                    "does not state its backing file's format, so '{}' would be raw, but it looks like {}",
                    path.display(),
                    name.unwrap_or("something else")
                ),
            )
            .hint(format!("if you trust it, pass --parent-format {}", name.unwrap_or("FORMAT"))),
        ))
    }

    /// A child may remember who its parent is and have no word for what format that has. Whoever bears the identity is
    /// the one, so nothing is guessed.
    fn by_identity(&self, stated: &'static dyn Format, storage: &dyn Storage) -> &'static dyn Format {
        let is_it = |format: &dyn Format| format.identity(storage).is_ok_and(|id| self.expects(id));
        if self.wanted.expected.is_empty() || is_it(stated) {
            return stated;
        }
        registry::detect(storage).ok().filter(|format| is_it(*format)).unwrap_or(stated)
    }

    /// The format the caller says; else what is found there, where the child does not state another.
    fn format_of_given(&self, path: &Path, storage: &dyn Storage) -> Result<&'static dyn Format> {
        if let Some(name) = &self.how.parent_format {
            return registry::format(name);
        }
        let probed =
            registry::detect_by(storage, self.how.probing).map_err(|error| error.image(path.display()))?;
        let Some(stated) = &self.wanted.format else { return Ok(probed) };
        if !self.wanted.expected.is_empty() || probed.names().contains(&stated.as_str()) {
            return Ok(probed);
        }
        let looks = probed.names()[0]; // never empty: every format has a name
        Err(Error::new(
            ErrorKind::Ambiguous,
            format!("states that its parent is {stated}, but '{}' looks like {looks}", path.display()),
        )
        .image(self.child.display())
        .hint(format!("pass --parent-format with the one it is, {stated} or {looks}")))
    }
}
