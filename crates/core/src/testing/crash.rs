//! Records what is written to several files, and what was made durable when: the matter of crash states.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use super::states::{Plan, States};
use crate::{Error, Folder, Identity, MemoryFolder, MemoryStorage, Result, Storage};

/// One thing that happened, in order. Files are counted as they were made; a file keeps its number under any name.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Write {
        file: usize,
        at: u64,
        bytes: Arc<[u8]>,
    },
    /// `grows`: as `Storage::zero`, otherwise as `punch`.
    Zero {
        file: usize,
        at: u64,
        len: u64,
        grows: bool,
    },
    SetLen {
        file: usize,
        len: u64,
    },
    /// `to` names the file, `from` names nothing any more.
    Name {
        from: Option<String>,
        to: Option<(String, usize)>,
    },
    Sync {
        file: usize,
    },
    SyncNames,
    Mark(u64),
}

/// What a folder holds: the files' contents by number, and their names.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) files: Vec<MemoryStorage>,
    pub(super) names: BTreeMap<String, usize>,
}

impl Files {
    pub(super) fn snapshot(&self) -> Files {
        Files { files: self.files.iter().map(MemoryStorage::snapshot).collect(), names: self.names.clone() }
    }

    /// As [`Files::snapshot`], as a folder.
    pub(super) fn to_folder(&self) -> Arc<MemoryFolder> {
        let folder = MemoryFolder::new();
        for (name, file) in &self.names {
            folder.insert(name, Arc::new(self.files[*file].snapshot()));
        }
        Arc::new(folder)
    }

    pub(super) fn rename(&mut self, from: Option<&String>, to: Option<&(String, usize)>) {
        if let Some(from) = from {
            self.names.remove(from);
        }
        if let Some((to, file)) = to {
            self.names.insert(to.clone(), *file);
        }
    }
}

/// What was written to a folder's files, synced and marked, from the moment it began to record.
///
/// A sync of a file makes that file's earlier writes durable, a sync of the folder its names. Between them a power cut
/// may keep or lose any of it: [`Journal::states`].
#[derive(Debug)]
pub struct Journal(Mutex<Log>);

/// Told what a file holds and where it is written next: is the barrier right before that left out?
pub(super) type LeftOut = Arc<dyn Fn(&MemoryStorage, u64) -> bool + Send + Sync>;

struct Log {
    /// Durable from the beginning.
    start: Files,
    /// As programs see it now.
    live: Files,
    events: Vec<Event>,
    left_out: Option<LeftOut>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Log of {} events", self.events.len())
    }
}

impl Journal {
    /// Records an empty folder.
    pub fn new() -> Arc<Journal> {
        Self::over(&MemoryFolder::new())
    }

    /// Records a folder that begins as a copy of `folder`, all of it durable.
    pub fn over(folder: &MemoryFolder) -> Arc<Journal> {
        let mut start = Files::default();
        for (name, file) in folder.entries() {
            start.names.insert(name, start.files.len());
            start.files.push(file.snapshot());
        }
        let log = Log { live: start.snapshot(), start, events: Vec::new(), left_out: None };
        Arc::new(Journal(Mutex::new(log)))
    }

    /// From here on forgets a sync that a write to the same file follows at once, where `left_out` says so of that
    /// write. What a mark has confirmed is not forgotten.
    pub(super) fn leave_out(&self, left_out: LeftOut) {
        self.log().left_out = Some(left_out);
    }

    /// The folder through which it records.
    pub fn folder(self: &Arc<Self>) -> Arc<CrashFolder> {
        Arc::new(CrashFolder { journal: self.clone() })
    }

    /// Notes that this moment was reached, for instance that a flush returned. [`State::mark`](super::State::mark)
    /// gives the last mark before the crash.
    pub fn mark(&self, label: u64) {
        self.log().events.push(Event::Mark(label));
    }

    /// The folder as programs see it now: a copy.
    pub fn live(&self) -> Arc<MemoryFolder> {
        self.log().live.to_folder()
    }

    /// True if nothing was written, named, synced or marked.
    pub fn is_empty(&self) -> bool {
        self.log().events.is_empty()
    }

    /// All is durable now, and the recording begins here.
    pub fn settle(&self) {
        let mut log = self.log();
        log.start = log.live.snapshot();
        log.events.clear();
    }

    /// What a power cut may leave, lazily, one state after the other.
    pub fn states(&self, plan: &Plan) -> States {
        let log = self.log();
        States::new(log.start.snapshot(), log.events.clone(), plan.clone())
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A folder whose every change is recorded in a [`Journal`].
#[derive(Debug)]
pub struct CrashFolder {
    journal: Arc<Journal>,
}

fn absent(name: &str) -> Error {
    Error::io("cannot open", io::ErrorKind::NotFound.into()).image(name)
}

impl CrashFolder {
    fn storage(&self, file: usize) -> Arc<dyn Storage> {
        Arc::new(CrashStorage { journal: self.journal.clone(), file })
    }
}

impl Folder for CrashFolder {
    fn open(&self, name: &str, _write: bool) -> Result<Arc<dyn Storage>> {
        let file = *self.journal.log().live.names.get(name).ok_or_else(|| absent(name))?;
        Ok(self.storage(file))
    }

    fn create_new(&self, name: &str) -> Result<Arc<dyn Storage>> {
        let mut log = self.journal.log();
        if log.live.names.contains_key(name) {
            return Err(Error::io("cannot create", io::ErrorKind::AlreadyExists.into()).image(name));
        }
        let file = log.live.files.len();
        log.live.files.push(MemoryStorage::new());
        log.live.names.insert(name.to_owned(), file);
        log.events.push(Event::Name { from: None, to: Some((name.to_owned(), file)) });
        drop(log);
        Ok(self.storage(file))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let mut log = self.journal.log();
        let file = *log.live.names.get(from).ok_or_else(|| absent(from))?;
        let (from, to) = (Some(from.to_owned()), Some((to.to_owned(), file)));
        log.live.rename(from.as_ref(), to.as_ref());
        log.events.push(Event::Name { from, to });
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<()> {
        let mut log = self.journal.log();
        log.live.names.remove(name).ok_or_else(|| absent(name))?;
        log.events.push(Event::Name { from: Some(name.to_owned()), to: None });
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.journal.log().events.push(Event::SyncNames);
        Ok(())
    }
}

/// A file in memory whose every change is recorded in a [`Journal`].
#[derive(Debug)]
pub struct CrashStorage {
    journal: Arc<Journal>,
    file: usize,
}

impl CrashStorage {
    /// Does it to the live file and, if that went well, notes it, as one step.
    fn record<T>(
        &self,
        event: Event,
        to_live: impl FnOnce(&MemoryStorage) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut log = self.journal.log();
        let done = to_live(&log.live.files[self.file])?;
        log.events.push(event);
        Ok(done)
    }

    fn live<T>(&self, ask: impl FnOnce(&MemoryStorage) -> io::Result<T>) -> io::Result<T> {
        ask(&self.journal.log().live.files[self.file])
    }
}

impl Storage for CrashStorage {
    fn len(&self) -> io::Result<u64> {
        self.live(|live| live.len())
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.live(|live| live.read_at(at, buf))
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        let mut log = self.journal.log();
        if let Some(left_out) = log.left_out.clone()
            && matches!(log.events.last(), Some(Event::Sync { file }) if *file == self.file)
            && left_out(&log.live.files[self.file], at)
        {
            log.events.pop();
        }
        drop(log);
        self.record(Event::Write { file: self.file, at, bytes: buf.into() }, |live| live.write_at(at, buf))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.record(Event::SetLen { file: self.file, len }, |live| live.set_len(len))
    }

    fn sync(&self) -> io::Result<()> {
        self.record(Event::Sync { file: self.file }, |live| live.sync())
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<bool> {
        self.record(Event::Zero { file: self.file, at, len, grows: false }, |live| live.punch(at, len))
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<bool> {
        self.record(Event::Zero { file: self.file, at, len, grows: true }, |live| live.zero(at, len))
    }

    fn data_at(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        self.live(|live| live.data_at(at))
    }

    fn physical_size(&self) -> io::Result<u64> {
        self.live(|live| live.physical_size())
    }

    fn identity(&self) -> io::Result<Identity> {
        self.live(|live| live.identity())
    }
}
