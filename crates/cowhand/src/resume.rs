//! What lets a conversion go on after a kill: a sidecar beside the partial target, and when it is written.
//!
//! The sidecar says of which files and with which options the partial is made, and up to which guest byte it is whole
//! and durable. It is replaced by a rename, after the target was flushed: so it never says more than is there.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use cowhand_core::{
    CheckOptions, DirFolder, Error, ErrorKind, Folder, Format, Identity, Image, Kind, Layer, Link,
    OpenOptions, Quiet, Repair, Result,
};
use serde_json::{Value, json};

use crate::buffer::Buffer;
use crate::convert::{Convert, chain};
use crate::plan::Concat;
use crate::resolve::Watched;
use crate::target::{Target, TargetFiles};

/// How often it is written, at most.
const INTERVAL: Duration = Duration::from_secs(1);
/// The sidecar's own version.
const VERSION: u64 = 1;
/// Guest bytes that are compared at a time.
const CHUNK: u64 = 1 << 20;

/// Up to where a partial target is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Checkpoint {
    /// Guest bytes that were there at the checkpoint before: from here on it is looked at again.
    before: u64,
    /// Guest bytes that are there, and durable.
    done: u64,
}

/// The file that tells how far a partial target has come.
#[derive(Debug)]
pub(crate) struct Sidecar {
    path: PathBuf,
    folder: DirFolder,
    /// What must be the same for the partial to be of use.
    key: Value,
    last: Mutex<Last>,
}

#[derive(Debug)]
struct Last {
    at: Instant,
    checkpoint: Checkpoint,
}

impl Sidecar {
    /// Beside the target, whose partial bears a name that can be found again.
    pub(crate) fn beside(target: &Target, key: Value) -> Result<Sidecar> {
        let (path, folder) = target.sidecar()?;
        let key = json!({ "version": VERSION, "program": env!("CARGO_PKG_VERSION"), "made of": key });
        let last = Mutex::new(Last { at: Instant::now(), checkpoint: Checkpoint::default() });
        Ok(Sidecar { path, folder, key, last })
    }

    /// The partial target of an earlier run, and up to where it is whole. `None`: there is none, or it is of no use.
    pub(crate) fn go_on(
        &self,
        how: &Convert,
        source: &Concat<'_>,
        format: &dyn Format,
        target: &Target,
        files: &TargetFiles,
        below: &[Link],
    ) -> Option<(Arc<dyn Layer>, u64)> {
        let checkpoint = self.load()?;
        if let Some(checker) = format.checker() {
            // What was given out and not used when the run before ended.
            let leaks = CheckOptions {
                repair: Repair::Leaks,
                secrets: how.open.secrets.clone(),
                ..CheckOptions::default()
            };
            match checker.check(files.over(target).ok()?, files, &leaks, &Quiet) {
                Ok(report) if report.corruptions > 0 || report.check_errors > 0 => return None,
                Err(error) if error.kind() != ErrorKind::Unsupported => return None,
                // What cannot be given back stays unused.
                _ => {}
            }
        }
        let writable =
            OpenOptions { writable: true, secrets: how.open.secrets.clone(), ..OpenOptions::default() };
        let layer = format.open(files.over(target).ok()?, files, &writable).ok()?;
        let image = chain(&how.target, layer.clone(), format, below).ok()?;
        if !same(source, &image, checkpoint.before, checkpoint.done).unwrap_or(false) {
            return None;
        }
        self.begin(checkpoint);
        Some((layer, checkpoint.done))
    }

    /// What the sidecar that is there says. `None`: there is none, or it is about something else.
    fn load(&self) -> Option<Checkpoint> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        let said: Value = serde_json::from_str(&text).ok()?;
        let number = |name: &str| said.get(name).and_then(Value::as_u64);
        let checkpoint = Checkpoint { before: number("before")?, done: number("done")? };
        let of_this = said.get("key") == Some(&self.key) && checkpoint.before <= checkpoint.done;
        (of_this && checkpoint.done > 0).then_some(checkpoint)
    }

    /// Goes on from a checkpoint.
    fn begin(&self, checkpoint: Checkpoint) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Last { at: Instant::now(), checkpoint };
    }

    /// Writes a checkpoint if it is time. `done`: how many guest bytes are written; `flush` makes them durable.
    pub(crate) fn tick(&self, done: impl FnOnce() -> u64, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut last = match self.last.try_lock() {
            Ok(last) => last,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Another thread is at it.
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        if last.at.elapsed() < INTERVAL {
            return Ok(());
        }
        self.save(&mut last, done(), flush)
    }

    /// Writes a checkpoint now.
    pub(crate) fn stop(&self, done: u64, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        self.save(&mut last, done, flush)
    }

    fn save(&self, last: &mut Last, done: u64, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        if done > last.checkpoint.done {
            flush()?;
            let checkpoint = Checkpoint { before: last.checkpoint.done, done };
            let text = json!({ "key": self.key, "before": checkpoint.before, "done": checkpoint.done });
            self.replace(&text.to_string())
                .map_err(|error| Error::io("cannot write", error).image(self.path.display()))?;
            self.folder.sync()?;
            last.checkpoint = checkpoint;
        }
        last.at = Instant::now();
        Ok(())
    }

    fn replace(&self, text: &str) -> std::io::Result<()> {
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        let mut file = std::fs::File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)
    }

    /// It says nothing any more.
    pub(crate) fn remove(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("cannot remove", error).image(self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Both have the same bytes in `from..to`; past an end there are none.
fn same(source: &Concat<'_>, target: &Image, from: u64, to: u64) -> Result<bool> {
    let mut bufs = (Buffer::default(), Buffer::default());
    let end = to.min(source.size());
    let mut at = from;
    if end > target.size() {
        return Ok(false);
    }
    while at < end {
        let (there, _) = source.extent(at, end - at)?;
        let here = target.extent(at, there.len)?;
        if there.kind != Kind::Data && here.kind != Kind::Data {
            at += here.len;
            continue;
        }
        let n = here.len.min(CHUNK);
        let (a, b) = (bufs.0.get(n as usize), bufs.1.get(n as usize));
        source.read(at, a)?;
        target.read(at, b)?;
        if a != b {
            return Ok(false);
        }
        at += n;
    }
    Ok(true)
}

/// The sidecar's path for a target of that name.
pub(crate) fn sidecar_name(name: &OsStr) -> OsString {
    [OsStr::new("."), name, OsStr::new(".resume")].into_iter().collect()
}

/// The partial's name for a target of that name.
pub(crate) fn partial_name(name: &OsStr) -> OsString {
    [OsStr::new("."), name, OsStr::new(".partial-resume")].into_iter().collect()
}

/// What must be the same for a partial target to be of use.
pub(crate) fn key(how: &Convert, format: &dyn Format, size: u64, read: &[Watched]) -> Value {
    let files: Vec<Value> = read
        .iter()
        .map(|file| {
            let Identity { device, inode, len, mtime_ns } = file.identity;
            json!([file.name, device, inode, len, mtime_ns.to_string()])
        })
        .collect();
    json!({
        "files": files,
        "sources": how.sources.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        "snapshot": how.open.snapshot,
        "source options": how.open.options,
        "options of each": how.opens.iter().map(|open| &open.options).collect::<Vec<_>>(),
        "format": format.names(),
        "options": how.options,
        "size": size,
        "backing": how.backing.as_ref().map(|path| path.display().to_string()),
        "compress": how.compress,
        "sparse": how.sparse,
        "salvage": how.salvage,
    })
}
