//! A target that is whole or absent: written under a partial name, synced, renamed.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use cowhand_core::{
    Access, Cache, DirFolder, Error, ErrorKind, FileStorage, Folder, Lock, Resolver, Result, Storage,
};
use rustix::fs::{AtFlags, CWD, RenameFlags, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;

use crate::gate::Gate;
use crate::resolve::{Watched, folder_of, in_folder, without_holes};
use crate::resume::{partial_name, sidecar_name};

/// How a target takes the place of a file that is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replace {
    /// It is written beside that, which stays until the target is whole, and renamed.
    #[default]
    Whole,
    /// As `Whole`; as `InPlace` where that cannot be: the folder takes no new file, the file is a mount point, or its owner
    /// could not be kept.
    WholeIfPossible,
    /// The file is emptied and written, as QEMU does it: an error leaves half a target, and nothing of what was there.
    InPlace,
}

/// A file that will be there whole, or not at all.
///
/// Until [`Target::finish`] only `.NAME.partial-ID` exists beside it; what bore the name before is untouched. Dropped
/// unfinished, the partial goes away. A block device has no name to give back, and is written in place; a file is where the
/// caller wants that.
#[derive(Debug)]
pub(crate) struct Target {
    path: PathBuf,
    storage: Arc<FileStorage>,
    partial: Option<Partial>,
    device: bool,
}

/// How a target is written beside what is there.
#[derive(Clone, Copy, Default)]
struct Beside {
    replace: Replace,
    keep: bool,
    resumable: bool,
    lock: Lock,
}

#[derive(Debug)]
struct Partial {
    folder: DirFolder,
    /// Where it is now, and where it is to be.
    partial: PathBuf,
    path: PathBuf,
    /// What bore the name before, held so that nobody uses it while it is replaced.
    old: Option<FileStorage>,
    keep: bool,
    done: bool,
}

impl Target {
    /// Prepares to write `path`, which takes the place of what is there as `replace` says.
    pub(crate) fn replacing(path: &Path, cache: Cache, keep: bool, replace: Replace) -> Result<Target> {
        match replace {
            Replace::InPlace => Target::in_place(path, cache),
            Replace::Whole | Replace::WholeIfPossible => {
                Target::prepare(path, cache, Beside { keep, replace, ..Beside::default() })
            }
        }
    }

    /// Prepares to write `path`. What is new there has the old file's mode and owner from the start: what nobody may
    /// read must not be there to be read meanwhile. Errors: another program uses the file that is there; it is no file.
    pub(crate) fn begin(path: &Path, cache: Cache) -> Result<Target> {
        Target::prepare(path, cache, Beside::default())
    }

    /// As [`Target::begin`], where what bears the name is read meanwhile, and held by its reader's lock: who reads it too
    /// keeps the old file, and nobody can write to it.
    pub(crate) fn in_place_of_source(path: &Path, cache: Cache) -> Result<Target> {
        Target::prepare(path, cache, Beside { lock: Lock::None, ..Beside::default() })
    }

    /// As [`Target::begin`], for what can be gone on with: the partial bears the same name each time, what is in it
    /// stays, and an error leaves it there.
    pub(crate) fn resumable(path: &Path, cache: Cache) -> Result<Target> {
        Target::prepare(path, cache, Beside { keep: true, resumable: true, ..Beside::default() })
    }

    /// What bears the name is emptied and written.
    fn in_place(path: &Path, cache: Cache) -> Result<Target> {
        refuse_folder(path).map_err(|error| error.image(path.display()))?;
        let storage = match FileStorage::open(path, Access::Write, Lock::Default, cache) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                FileStorage::open(path, Access::CreateNew, Lock::Default, cache)?
            }
            found => found?,
        };
        let failed = |error| Error::io("cannot empty it", error).image(path.display());
        let device = storage.file().metadata().map_err(failed)?.file_type().is_block_device();
        if !device {
            storage.set_len(0).map_err(failed)?;
        }
        Ok(Target { path: path.to_owned(), storage: Arc::new(storage), partial: None, device })
    }

    /// What goes wrong is said of the name that the caller gave.
    fn prepare(asked: &Path, cache: Cache, how: Beside) -> Result<Target> {
        let found = refuse_folder(asked).and_then(|()| end_of_links(asked));
        let found = found.and_then(|path| refuse_folder(&path).map(|()| path));
        let target = found.and_then(|path| Target::beside(path, cache, how));
        target.map_err(|error| error.image_is(asked.display()))
    }

    fn beside(path: PathBuf, cache: Cache, how: Beside) -> Result<Target> {
        let there = match std::fs::symlink_metadata(&path) {
            Ok(metadata) => Some(metadata.file_type()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("cannot look at", error)),
        };
        if there.is_some_and(|kind| kind.is_block_device()) {
            if how.resumable {
                return Err(Error::unsupported("a device is written in place, which cannot be gone on with")
                    .hint("leave out --resume"));
            }
            if how.lock == Lock::None {
                return Err(Error::unsupported("a device cannot be replaced while it is read")
                    .hint("name another target"));
            }
            let storage = Arc::new(FileStorage::open(&path, Access::Write, how.lock, cache)?);
            return Ok(Target { path, storage, partial: None, device: true });
        }
        let old = match there {
            Some(_) => {
                let old = FileStorage::open(&path, Access::Write, how.lock, Cache::Unsafe);
                Some(old.map_err(|error| match is_pipe(&path) {
                    true => error.hint("'cowhand stream' and 'cowhand vma create' write into pipes"),
                    false => error,
                })?)
            }
            None => None,
        };
        // `x/.` is in a folder that is not there.
        let name =
            path.file_name().filter(|_| old.is_some() || !path.as_os_str().as_bytes().ends_with(b"/."));
        let name = name.ok_or_else(|| {
            Error::invalid("is no name for a target")
                .hint("name a file")
                .known_by(Errno::NOENT.raw_os_error())
        })?;
        let folder = folder_of(&path);
        // Said of the target's own name, before the partial's is tried.
        std::fs::metadata(&folder).map_err(|error| Error::io("cannot create", error))?;
        let was_there = old.is_some();
        let made = match is_mount_point(&path) {
            true => Err(Error::new(ErrorKind::Denied, "is a mount point, which cannot be replaced")
                .hint("name another target")
                .known_by(Errno::BUSY.raw_os_error())),
            false if how.resumable => same_partial(&folder, name, cache),
            false => new_partial(&folder, name, cache),
        };
        let begun = made.and_then(|(partial, storage)| {
            // From here on, an error takes the partial away.
            let partial = Partial {
                folder: DirFolder::new(folder, cache),
                partial,
                path: path.clone(),
                old,
                keep: how.keep,
                done: false,
            };
            let kept = partial.old.as_ref().map_or(Ok(true), |old| keep_attributes(old, &storage))?;
            Ok((partial, storage, kept))
        });
        let or_in_place = was_there && how.replace == Replace::WholeIfPossible;
        match begun {
            Err(error) if or_in_place && error.kind() == ErrorKind::Denied => Target::in_place(&path, cache),
            Ok((partial, storage, false)) if or_in_place => {
                drop((partial, storage));
                Target::in_place(&path, cache)
            }
            Ok((partial, storage, _)) => Ok(Target { path, storage, partial: Some(partial), device: false }),
            Err(error) => Err(error),
        }
    }

    /// Where the bytes go.
    pub(crate) fn storage(&self) -> &Arc<FileStorage> {
        &self.storage
    }

    /// Whether the file system shares blocks of `from` with the target: tried while the target is empty, since a place
    /// in the image that was given to blocks which cannot be shared may stay unused.
    pub(crate) fn can_share(&self, from: &dyn Storage) -> bool {
        const UNIT: u64 = 4096;
        let shared = !self.is_device() && self.storage.copy_from(0, from, 0, UNIT).is_ok_and(|done| done > 0);
        // Whatever came there goes: a format makes its image in an empty file.
        (shared && self.storage.set_len(0).is_ok()) || self.is_device()
    }

    /// Where to note how far a resumable target has come, and the folder that is to be synced after.
    pub(crate) fn sidecar(&self) -> Result<(PathBuf, DirFolder)> {
        let folder = folder_of(&self.path);
        let path = folder.join(sidecar_name(self.path.file_name().unwrap_or_default()));
        Ok((path, DirFolder::new(folder, Cache::Writeback)))
    }

    /// Nothing of what is in a resumable partial is of use.
    pub(crate) fn start_anew(&self) -> Result<()> {
        self.storage
            .set_len(0)
            .map_err(|error| Error::io("cannot empty its partial", error).image(self.path.display()))
    }

    /// True where the target is a device, which holds what it held before.
    pub(crate) fn is_device(&self) -> bool {
        self.device
    }

    /// Syncs, gives it its name, syncs the folder.
    pub(crate) fn finish(self) -> Result<()> {
        self.finish_by(Partial::rename)
    }

    /// As [`Target::finish`], where nothing bore the name: what bears it by now stays, and that is an error.
    pub(crate) fn finish_new(self) -> Result<()> {
        self.finish_by(|partial| {
            match rustix::fs::renameat_with(CWD, &partial.partial, CWD, &partial.path, RenameFlags::NOREPLACE)
            {
                // A file system that cannot look and rename at once.
                Err(Errno::INVAL | Errno::NOSYS) if std::fs::symlink_metadata(&partial.path).is_err() => {
                    partial.rename()
                }
                done => done.map_err(|error| partial.not_renamed(error.into())),
            }
        })
    }

    fn finish_by(mut self, name: impl FnOnce(&Partial) -> Result<()>) -> Result<()> {
        self.storage.sync().map_err(|error| Error::io("cannot sync", error).image(self.path.display()))?;
        let Some(partial) = &mut self.partial else { return Ok(()) };
        name(partial)?;
        partial.done = true;
        partial.folder.sync()
    }
}

impl Partial {
    fn rename(&self) -> Result<()> {
        std::fs::rename(&self.partial, &self.path).map_err(|error| self.not_renamed(error))
    }

    fn not_renamed(&self, error: std::io::Error) -> Error {
        Error::io("cannot be replaced by what was written", error).image(self.path.display())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done && !self.keep {
            // Nobody can be told: the error that led here is already on its way.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

/// Follows a symbolic link to its end, which need not exist: the link stays, what it names is replaced.
fn end_of_links(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..40 {
        match std::fs::read_link(&path) {
            Ok(to) => {
                let next = folder_of(&path).join(to);
                // A descriptor's link leads to a pipe whatever its text names.
                if std::fs::symlink_metadata(&next).is_err() && std::fs::metadata(&path).is_ok() {
                    return Ok(path);
                }
                path = next;
            }
            Err(_) => return Ok(path),
        }
    }
    let error = Error::new(ErrorKind::Invalid, "has too many levels of symbolic links");
    Err(error.known_by(Errno::LOOP.raw_os_error()).image(path.display()))
}

fn is_pipe(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
}

/// What ends in a slash names a folder, and no file is made of that name.
fn refuse_folder(path: &Path) -> Result<()> {
    match path.as_os_str().as_bytes().ends_with(b"/") {
        true => {
            let error = Error::invalid("is the name of a folder").hint("name a file");
            Err(error.known_by(Errno::ISDIR.raw_os_error()))
        }
        false => Ok(()),
    }
}

/// Another file system, or a file of one, is mounted there: nothing can be renamed to it.
fn is_mount_point(path: &Path) -> bool {
    let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    // Where nobody can tell, renaming does.
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// The partial of a run before, or a new one.
fn same_partial(folder: &Path, name: &OsStr, cache: Cache) -> Result<(PathBuf, Arc<FileStorage>)> {
    let at = folder.join(partial_name(name));
    let storage = match FileStorage::open(&at, Access::Write, Lock::Default, cache) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            FileStorage::open(&at, Access::CreateNew, Lock::Default, cache)?
        }
        other => other?,
    };
    Ok((at, Arc::new(storage)))
}

fn new_partial(folder: &Path, name: &OsStr, cache: Cache) -> Result<(PathBuf, Arc<FileStorage>)> {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map(|since| since.subsec_nanos())
        .unwrap_or(0);
    let mut attempt = 0;
    loop {
        let mut partial = [b".", shown(name.as_bytes())].concat();
        let id = format!(".partial-{:x}{:08x}", std::process::id(), nanos.wrapping_add(attempt));
        partial.extend(id.into_bytes());
        let partial = folder.join(OsString::from_vec(partial));
        match FileStorage::open(&partial, Access::CreateNew, Lock::Default, cache) {
            Ok(storage) => return Ok((partial, Arc::new(storage))),
            Err(error) if error.kind() == ErrorKind::Exists && attempt < 100 => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

/// File names end at 255 bytes; the whole name is only there for people to see.
fn shown(name: &[u8]) -> &[u8] {
    const MOST: usize = 220;
    let begins_char = |at: usize| name.get(at).is_none_or(|byte| byte & 0xc0 != 0x80);
    let end = (0..=MOST.min(name.len())).rev().find(|at| begins_char(*at));
    name.get(..end.unwrap_or(0)).unwrap_or(name)
}

/// Mode, owner and extended attributes of the old file, for those who set them had reasons. False: the owner could not be
/// kept.
fn keep_attributes(old: &FileStorage, new: &FileStorage) -> Result<bool> {
    let failed = |error: std::io::Error| Error::io("cannot keep the old file's mode and owner", error);
    let was = old.file().metadata().map_err(failed)?;
    let is = new.file().metadata().map_err(failed)?;
    let mut kept = true;
    if (was.uid(), was.gid()) != (is.uid(), is.gid()) {
        match std::os::unix::fs::fchown(new.file(), Some(was.uid()), Some(was.gid())) {
            // Only root may give files away; the group may still be kept.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                let _ = std::os::unix::fs::fchown(new.file(), None, Some(was.gid()));
                kept = false;
            }
            other => other.map_err(failed)?,
        }
    }
    new.file().set_permissions(was.permissions()).map_err(failed)?;
    copy_extended_attributes(old, new);
    Ok(kept)
}

/// As far as the file system takes them: one that has none, or does not let us set a label, is no error.
fn copy_extended_attributes(old: &FileStorage, new: &FileStorage) {
    let mut names = vec![0; 65536];
    let Ok(len) = rustix::fs::flistxattr(old.file(), &mut names[..]) else { return };
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65536];
        if let Ok(len) = rustix::fs::fgetxattr(old.file(), name, &mut value[..]) {
            let _ = rustix::fs::fsetxattr(new.file(), name, &value[..len], rustix::fs::XattrFlags::empty());
        }
    }
}

/// Makes the further files of a target (qcow2's data file), each whole or absent as the target is.
#[derive(Debug)]
pub(crate) struct TargetFiles {
    target: PathBuf,
    folder: PathBuf,
    /// What must not be replaced.
    read: Vec<Watched>,
    cache: Cache,
    keep: bool,
    made: Mutex<Vec<Target>>,
    gate: Gate,
    solid: bool,
    replace: Replace,
}

impl TargetFiles {
    /// For the image `target`, made of what stands in the files `read`.
    pub(crate) fn beside(target: &Path, cache: Cache, keep: bool, read: Vec<Watched>) -> TargetFiles {
        let folder = folder_of(target);
        TargetFiles {
            target: target.to_owned(),
            folder,
            read,
            cache,
            keep,
            made: Mutex::default(),
            gate: Gate::default(),
            solid: false,
            replace: Replace::default(),
        }
    }

    /// They and the target are to have no holes, where that is asked for.
    pub(crate) fn solid(self, solid: bool) -> TargetFiles {
        TargetFiles { solid, ..self }
    }

    /// They take the place of what is there as `replace` says.
    pub(crate) fn replacing(self, replace: Replace) -> TargetFiles {
        TargetFiles { replace, ..self }
    }

    /// A target's storage as its format gets it.
    pub(crate) fn over(&self, target: &Target) -> Result<Arc<dyn Storage>> {
        let storage = self.gate.over(target.storage().clone());
        if self.solid && !target.is_device() { without_holes(storage) } else { Ok(storage) }
    }

    /// What their writes and the target's go through.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Gives them their names; to be done before the image that names them gets its own.
    pub(crate) fn finish(self) -> Result<()> {
        let made = self.made.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        made.into_iter().try_for_each(Target::finish)
    }

    /// There are any.
    pub(crate) fn have_any(&self) -> bool {
        !self.made.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).is_empty()
    }

    /// One of them is a device, written in place.
    pub(crate) fn have_device(&self) -> bool {
        self.made.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).iter().any(Target::is_device)
    }

    /// While the target has no name yet, what it calls its data file is still a partial: (name, file now).
    pub(crate) fn now(&self) -> Vec<(PathBuf, Arc<FileStorage>)> {
        let made = self.made.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        made.iter().map(|target| (target.path.clone(), target.storage.clone())).collect()
    }
}

/// Both name one place, however they are spelt. There need not be a file yet.
fn same_name(a: &Path, b: &Path) -> bool {
    let folder = |path: &Path| std::fs::canonicalize(folder_of(path)).ok();
    a.file_name() == b.file_name() && folder(a) == folder(b)
}

/// A target that is one of the files read for it would replace what is being read, or what the target stands on.
pub(crate) fn refuse_one_of(target: &Path, read: &[Watched]) -> Result<()> {
    let Ok(there) = std::fs::metadata(target) else { return Ok(()) };
    let same = |file: &&Watched| (file.identity.device, file.identity.inode) == (there.dev(), there.ino());
    match read.iter().find(same) {
        None => Ok(()),
        Some(file) => Err(Error::invalid(format!("is part of what is read here ('{}')", file.name))
            .image(target.display())
            .hint("choose another name for the target")
            .known_as(format!(
                "Failed to get \"write\" lock\nIs another process using the image [{}]?",
                target.display()
            ))),
    }
}

impl Resolver for TargetFiles {
    /// Only what was made by [`Resolver::create`] before: verifying reads the target back through this.
    fn open(&self, name: &Path, _writable: bool) -> Result<Arc<dyn Storage>> {
        let path = end_of_links(&in_folder(&self.folder, name))?;
        match self.now().into_iter().find(|(made, _)| *made == path) {
            Some((_, storage)) => Ok(storage),
            None => Err(Error::new(ErrorKind::NotFound, format!("'{}' was not made here", name.display()))),
        }
    }

    fn create(&self, name: &Path) -> Result<Arc<dyn Storage>> {
        let path = in_folder(&self.folder, name);
        if same_name(&end_of_links(&path)?, &end_of_links(&self.target)?) {
            return Err(Error::invalid("the image and its data file cannot be one file")
                .hint("name another data file")
                .image(path.display()));
        }
        refuse_one_of(&path, &self.read)?;
        let target = Target::replacing(&path, self.cache, self.keep, self.replace)?;
        let storage = self.over(&target)?;
        self.made.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(target);
        Ok(storage)
    }
}
