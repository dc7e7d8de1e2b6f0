//! Which files an image may make us open: the path policy.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use cowhand_core::{
    Access, Cache, Error, ErrorKind, FileStorage, Identity, Lock, Resolver, Result, Solid, Storage,
};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::archive::part::Part;
use crate::node::Node;
use crate::open::Open;

/// Which files may be opened because an image names them (a backing file, a data file, a parent locator). Names given
/// by the caller are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// None.
    Deny,
    /// Those that resolve beneath the image's own folder, however they are spelt.
    #[default]
    SameDir,
    /// Those beneath the image's own folder or one of these.
    Allow(Vec<PathBuf>),
    /// Any regular file or block device of this machine.
    Local,
    /// Any, and names with a protocol (`file:`).
    Any,
}

impl Policy {
    /// `deny`, `same-dir`, `local`, `any`, or `allow=DIR`.
    pub fn parse(text: &str) -> Result<Policy> {
        Ok(match text {
            "deny" => Policy::Deny,
            "same-dir" => Policy::SameDir,
            "local" => Policy::Local,
            "any" => Policy::Any,
            _ => match text.strip_prefix("allow=") {
                Some(dir) if !dir.is_empty() => Policy::Allow(vec![PathBuf::from(dir)]),
                _ => {
                    return Err(Error::invalid(format!("'{text}' is not a path policy"))
                        .hint("use deny, same-dir, allow=DIR, local or any"));
                }
            },
        })
    }

    /// Both: folders of several `allow=` add up, otherwise the later counts.
    #[must_use]
    pub fn and(self, later: Policy) -> Policy {
        match (self, later) {
            (Policy::Allow(mut dirs), Policy::Allow(more)) => {
                dirs.extend(more);
                Policy::Allow(dirs)
            }
            (_, later) => later,
        }
    }
}

/// How files are opened on behalf of one image.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// The image's own folder: where relative names start.
    pub(crate) folder: PathBuf,
    pub(crate) policy: Policy,
    pub(crate) lock: Lock,
    pub(crate) cache: Cache,
    /// What is opened for writing is to have no holes.
    pub(crate) solid: bool,
    /// What the caller says of the image's data file, in place of what the image says.
    pub(crate) data_file: Option<Arc<Node>>,
    /// Nobody is told where a file changes while it is read.
    pub(crate) may_change: bool,
    /// All files opened so far, so that their changing can be noticed.
    pub(crate) opened: Arc<Mutex<Vec<Watched>>>,
}

/// A file that was opened, and the state it was in.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pub(crate) name: String,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) identity: Identity,
    /// It is a block device.
    pub(crate) device: bool,
}

impl Files {
    pub(crate) fn beside(image: &Path, how: &Open) -> Files {
        Files {
            folder: folder_of(image),
            policy: how.policy.clone(),
            lock: how.lock,
            cache: how.cache,
            solid: how.solid,
            data_file: how.node.as_ref().and_then(|node| node.data_file()).cloned().map(Arc::new),
            may_change: how.lenient,
            opened: Arc::default(),
        }
    }

    /// For what stands below the images that `above` opened.
    pub(crate) fn after(self, above: &Files) -> Files {
        Files { opened: above.opened.clone(), ..self }
    }

    /// Errors: `storage`, the file `path` that was opened last, was opened before. One file twice in a chain never ends.
    pub(crate) fn refuse_loop(&self, path: &Path, storage: &dyn Storage) -> Result<()> {
        let failed = |error| Error::io("cannot look at", error).image(path.display());
        let new = storage.identity().map_err(failed)?;
        let same = |file: &&Watched| (file.identity.device, file.identity.inode) == (new.device, new.inode);
        match self.opened().iter().filter(same).count() {
            0 | 1 => Ok(()),
            _ => Err(Error::corrupt("parent", format!("'{}' stands in its own chain", path.display()))
                .known_as(format!("Backing file '{}' creates an infinite loop.", path.display()))),
        }
    }

    /// For the files that another image of the same chain names.
    pub(crate) fn of(&self, image: &Path) -> Files {
        Files { folder: folder_of(image), data_file: None, ..self.clone() }
    }

    /// The same with another lock.
    pub(crate) fn with_lock(&self, lock: Lock) -> Files {
        Files { lock, ..self.clone() }
    }

    /// Opens the top of what the caller means: the file that `how` describes, else the one that `part` names.
    pub(crate) fn top(&self, part: &Part<'_>, how: &Open, access: Access) -> Result<Arc<dyn Storage>> {
        match &how.node {
            Some(node) => node.top_storage(self, how, access),
            None => self.trusted_part(part, access),
        }
    }

    /// Opens a name that the caller gave.
    pub(crate) fn trusted(&self, path: &Path, access: Access) -> Result<Arc<dyn Storage>> {
        let storage = FileStorage::open(path, access, self.lock, self.cache)?;
        self.watch(path, storage, access)
    }

    /// As [`Files::trusted`], where the caller may have named one disk of a file, for reading.
    pub(crate) fn trusted_part(&self, part: &Part<'_>, access: Access) -> Result<Arc<dyn Storage>> {
        if part.disk.is_some() && access != Access::Read {
            return Err(Error::unsupported("a disk of an archive can be read, and not written")
                .hint("convert it to an image, and write to that")
                .image(part.name.display()));
        }
        let storage = FileStorage::open(part.file, access, self.lock, self.cache)?;
        self.watch(part.name, storage, access)
    }

    /// Opens a name that an image gave, if the policy allows it. The answer holds the path as it was found.
    pub(crate) fn named_by_image(&self, name: &Path, access: Access) -> Result<(PathBuf, Arc<dyn Storage>)> {
        let name = self.without_protocol(name)?;
        let path = in_folder(&self.folder, &name);
        let refused = |why: &str| {
            Error::new(ErrorKind::Denied, format!("the image names '{}', {why}", name.display()))
                .hint("if you trust the image, pass --paths local, or --paths allow=DIR for its folder")
        };
        let mut roots = vec![self.folder.clone()];
        match &self.policy {
            Policy::Deny => return Err(refused("and opening files that an image names is off")),
            Policy::Local | Policy::Any => {
                let storage = self.trusted(&path, access)?;
                return Ok((path, storage));
            }
            Policy::SameDir => {}
            Policy::Allow(dirs) => roots.extend(dirs.iter().cloned()),
        }
        // Where it really leads; what is not there is not there under any policy.
        let real = std::fs::canonicalize(&path)
            .map_err(|error| Error::io("cannot open", error).image(path.display()))?;
        for root in roots {
            let Ok(root) = std::fs::canonicalize(&root) else { continue };
            let Ok(beneath) = real.strip_prefix(&root) else { continue };
            let file = open_beneath(&root, beneath, access, self.cache)
                .map_err(|error| Error::io("cannot open", error).image(path.display()))?;
            let storage = FileStorage::from_file(file, access, self.lock, self.cache)
                .map_err(|error| error.image(path.display()))?;
            let storage = self.watch(&path, storage, access)?;
            return Ok((path, storage));
        }
        Err(refused("which does not lie beneath the image's own folder"))
    }

    /// The name of a file beneath the image's folder that differs from `name` in case alone.
    pub(crate) fn in_any_case(&self, name: &Path) -> Option<PathBuf> {
        let mut found = PathBuf::new();
        for part in name.components() {
            let part = match part {
                Component::Normal(part) => part.to_str()?.to_lowercase(),
                Component::CurDir => continue,
                _ => return None,
            };
            let entries = std::fs::read_dir(self.folder.join(&found)).ok()?.flatten();
            let same =
                |name: &std::ffi::OsString| name.to_str().is_some_and(|name| name.to_lowercase() == part);
            found.push(entries.map(|entry| entry.file_name()).find(same)?);
        }
        Some(found)
    }

    /// The files opened so far.
    pub(crate) fn opened(&self) -> MutexGuard<'_, Vec<Watched>> {
        self.opened.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn watch(&self, path: &Path, storage: FileStorage, access: Access) -> Result<Arc<dyn Storage>> {
        let device = storage.is_device();
        let mut storage: Arc<dyn Storage> = Arc::new(storage);
        if self.solid && access != Access::Read {
            storage = without_holes(storage).map_err(|error| error.image(path.display()))?;
        }
        let identity =
            storage.identity().map_err(|error| Error::io("cannot look at", error).image(path.display()))?;
        let watched =
            Watched { name: path.display().to_string(), storage: storage.clone(), identity, device };
        self.opened().push(watched);
        Ok(storage)
    }

    /// The name of a file, where it is one.
    fn without_protocol(&self, name: &Path) -> Result<PathBuf> {
        let text = name.to_string_lossy();
        let Some((protocol, rest)) = protocol(&text) else { return Ok(name.to_owned()) };
        match (&self.policy, protocol) {
            (Policy::Any, "file") => Ok(PathBuf::from(rest.strip_prefix("//").unwrap_or(rest))),
            (Policy::Any, _) => Err(Error::unsupported(format!(
                "the image names '{text}', and the protocol '{protocol}' is not spoken here"
            ))),
            _ => Err(Error::new(
                ErrorKind::Denied,
                format!("the image names '{text}', a protocol and not a file"),
            )
            .hint("if you trust the image, name its parent yourself with --parent")),
        }
    }
}

/// The data file of an image that is only looked at, when it may not be opened: any use of its content fails.
#[derive(Debug)]
struct Withheld(PathBuf);

impl Withheld {
    fn refused<T>(&self) -> io::Result<T> {
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("the data file '{}' was not opened", self.0.display()),
        ))
    }
}

impl Storage for Withheld {
    fn len(&self) -> io::Result<u64> {
        Ok(u64::MAX >> 1)
    }

    fn read_at(&self, _at: u64, _buf: &mut [u8]) -> io::Result<()> {
        self.refused()
    }

    fn write_at(&self, _at: u64, _buf: &[u8]) -> io::Result<()> {
        self.refused()
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        self.refused()
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(Identity::default())
    }
}

impl Resolver for Files {
    fn open(&self, name: &Path, writable: bool) -> Result<Arc<dyn Storage>> {
        if let Some(node) = &self.data_file {
            let access = if writable { Access::Write } else { Access::Read };
            return node.storage(self, &Open::default(), access);
        }
        if self.policy == Policy::Deny && !writable {
            return Ok(Arc::new(Withheld(name.to_owned())));
        }
        let access = if writable { Access::Write } else { Access::Read };
        self.named_by_image(name, access).map(|(_, storage)| storage)
    }

    fn create(&self, name: &Path) -> Result<Arc<dyn Storage>> {
        self.trusted(&self.folder.join(name), Access::CreateNew)
    }
}

/// `json:{...}`, `nbd://host` and the like are no files: the protocol, and what stands behind it. QEMU's rule: letters
/// before a colon, and no slash before it; one letter is a drive of Windows, which is no protocol and no file here either.
pub(crate) fn protocol(name: &str) -> Option<(&str, &str)> {
    let (protocol, rest) = name.split_once(':')?;
    let letters = protocol.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    (letters && protocol.len() > 1).then_some((protocol, rest))
}

/// The folder that has to be allowed before `child` can be opened over `parent`, which is named as the child has it:
/// the default policy opens only what lies beneath the child's own folder. `None`: nothing has to be, or `parent` is
/// not there.
pub fn folder_to_allow(child: &Path, parent: &Path) -> Option<PathBuf> {
    let own = std::fs::canonicalize(folder_of(child)).ok()?;
    let real = std::fs::canonicalize(in_folder(&folder_of(child), parent)).ok()?;
    real.parent().filter(|_| !real.starts_with(&own)).map(Path::to_owned)
}

/// The storage, that has no holes and gets none.
pub(crate) fn without_holes(storage: Arc<dyn Storage>) -> Result<Arc<dyn Storage>> {
    let solid = Solid::over(storage).map_err(|error| Error::io("cannot fill its holes", error))?;
    Ok(Arc::new(solid))
}

/// A block or character device.
pub(crate) fn is_device(path: &Path) -> bool {
    let device = |there: std::fs::Metadata| {
        let kind = there.file_type();
        kind.is_block_device() || kind.is_char_device()
    };
    std::fs::metadata(path).is_ok_and(device)
}

pub(crate) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        // Who says `./` finds it in the names that are made of it.
        Some(parent) if parent.as_os_str() == "." => PathBuf::from("./"),
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// `name` as seen from where the caller stands. As QEMU spells it: what lies in the current folder bears no `./`.
pub(crate) fn in_folder(folder: &Path, name: &Path) -> PathBuf {
    if folder.as_os_str() == "." { name.to_owned() } else { folder.join(name) }
}

/// Opens `beneath` in `root`; the kernel makes sure that no link leads out, also when one is put there meanwhile.
fn open_beneath(root: &Path, beneath: &Path, access: Access, cache: Cache) -> io::Result<File> {
    if beneath.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let root = File::open(root)?;
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    flags |= if access == Access::Read { OFlags::RDONLY } else { OFlags::RDWR };
    if matches!(cache, Cache::Writethrough | Cache::DirectSync) {
        flags |= OFlags::DSYNC;
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(&root, beneath, flags, Mode::empty(), resolve) {
        Ok(file) => Ok(file.into()),
        // Kernels before 5.6, and some sandboxes: the path is canonical, so refusing a link at its end must do.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
            Ok(rustix::fs::openat(&root, beneath, flags | OFlags::NOFOLLOW, Mode::empty())?.into())
        }
        Err(error) => Err(error.into()),
    }
}
