//! Where images live side by side: what "whole target or none" needs of a directory.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::{Access, Cache, Error, FileStorage, Lock, MemoryStorage, Result, Storage};

/// A folder of images. Names are plain file names.
pub trait Folder: Send + Sync + Debug {
    /// Opens a file that is there.
    fn open(&self, name: &str, write: bool) -> Result<Arc<dyn Storage>>;
    /// Makes a file that must be new.
    fn create_new(&self, name: &str) -> Result<Arc<dyn Storage>>;
    /// Gives a file another name, replacing what bore it, in one step.
    fn rename(&self, from: &str, to: &str) -> Result<()>;
    /// Takes a file away.
    fn remove(&self, name: &str) -> Result<()>;
    /// Names made, changed or removed before are durable after.
    fn sync(&self) -> Result<()>;
}

/// A directory of this machine.
#[derive(Debug)]
pub struct DirFolder {
    path: PathBuf,
    cache: Cache,
}

impl DirFolder {
    /// The folder at `path`; `cache` is for the files opened in it.
    pub fn new(path: impl Into<PathBuf>, cache: Cache) -> Self {
        let path: PathBuf = path.into();
        DirFolder { path: if path.as_os_str().is_empty() { PathBuf::from(".") } else { path }, cache }
    }

    fn named(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Folder for DirFolder {
    fn open(&self, name: &str, write: bool) -> Result<Arc<dyn Storage>> {
        let access = if write { Access::Write } else { Access::Read };
        Ok(Arc::new(FileStorage::open(&self.named(name), access, Lock::Default, self.cache)?))
    }

    fn create_new(&self, name: &str) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(FileStorage::open(&self.named(name), Access::CreateNew, Lock::Default, self.cache)?))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        std::fs::rename(self.named(from), self.named(to)).map_err(|error| {
            Error::io(format!("cannot rename {from} to it"), error).image(self.named(to).display())
        })
    }

    fn remove(&self, name: &str) -> Result<()> {
        std::fs::remove_file(self.named(name))
            .map_err(|error| Error::io("cannot remove", error).image(self.named(name).display()))
    }

    fn sync(&self) -> Result<()> {
        if self.cache == Cache::Unsafe {
            return Ok(());
        }
        let named = |error| Error::io("cannot sync the folder", error).image(self.path.display());
        let folder = std::fs::File::open(&self.path).map_err(named)?;
        match folder.sync_all() {
            // Some file systems cannot sync a folder, and say so.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other.map_err(named),
        }
    }
}

/// A folder in memory.
#[derive(Debug, Default)]
pub struct MemoryFolder(Mutex<BTreeMap<String, Arc<MemoryStorage>>>);

impl MemoryFolder {
    /// An empty folder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a file in.
    pub fn insert(&self, name: &str, storage: Arc<MemoryStorage>) {
        self.files().insert(name.to_owned(), storage);
    }

    /// The names in it, sorted.
    pub fn names(&self) -> Vec<String> {
        self.files().keys().cloned().collect()
    }

    /// The files in it with their names, sorted.
    pub fn entries(&self) -> Vec<(String, Arc<MemoryStorage>)> {
        self.files().iter().map(|(name, file)| (name.clone(), file.clone())).collect()
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Arc<MemoryStorage>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn absent(name: &str) -> Error {
    Error::io("cannot open", io::ErrorKind::NotFound.into()).image(Path::new(name).display())
}

impl Folder for MemoryFolder {
    fn open(&self, name: &str, _write: bool) -> Result<Arc<dyn Storage>> {
        let file = self.files().get(name).cloned().ok_or_else(|| absent(name))?;
        Ok(file)
    }

    fn create_new(&self, name: &str) -> Result<Arc<dyn Storage>> {
        let mut files = self.files();
        if files.contains_key(name) {
            return Err(Error::io("cannot create", io::ErrorKind::AlreadyExists.into()).image(name));
        }
        let file = Arc::new(MemoryStorage::new());
        files.insert(name.to_owned(), file.clone());
        Ok(file)
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let mut files = self.files();
        let file = files.remove(from).ok_or_else(|| absent(from))?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.files().remove(name).map(drop).ok_or_else(|| absent(name))
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}
