//! Internal snapshots of one image: listed, made, gone back to, taken away.

use std::path::Path;
use std::time::SystemTime;

use cowhand_core::{Error, NewSnapshot, Result, SnapshotInfo, Snapshots};

use crate::open::{Open, Opened, Parent, open};

/// An image whose internal snapshots are looked at or changed.
#[derive(Debug)]
pub struct Snapshotted(Opened);

impl Snapshotted {
    /// Opens `path` for what is to be done; its snapshots can be changed where `how` says that it is writable.
    pub fn open(path: &Path, how: &Open) -> Result<Snapshotted> {
        open(path, how).map(Snapshotted)
    }

    /// All of them, in the file's order; none where the format has no such thing.
    pub fn list(&self) -> Result<Vec<SnapshotInfo>> {
        let top = &self.0.links()[0]; // never empty: every image has a layer
        match top.layer.as_snapshots() {
            Some(snapshots) => snapshots.list().map_err(|error| error.image(&top.name)),
            None => Ok(Vec::new()),
        }
    }

    /// Keeps the present state under `name`, dated now.
    pub fn create(self, name: &str) -> Result<SnapshotInfo> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let new = NewSnapshot {
            name: name.to_owned(),
            date_sec: u32::try_from(since.as_secs()).unwrap_or(u32::MAX),
            date_nsec: since.subsec_nanos(),
        };
        self.change(|snapshots| snapshots.create(&new))
    }

    /// The disk is again as the snapshot holds it. `which`: its id, or else its name.
    pub fn apply(self, which: &str) -> Result<()> {
        self.change(|snapshots| snapshots.apply(which))
    }

    /// Takes a snapshot away. `which`: its id, or else its name.
    pub fn delete(self, which: &str) -> Result<()> {
        self.change(|snapshots| snapshots.delete(which))
    }

    fn change<T>(self, work: impl FnOnce(&dyn Snapshots) -> Result<T>) -> Result<T> {
        let top = &self.0.links()[0]; // never empty: every image has a layer
        let snapshots = top.layer.as_snapshots().ok_or_else(|| {
            Error::unsupported(format!("a {} image has no internal snapshots", top.format))
                .image(&top.name)
                .known_as("Block driver does not support snapshots")
        })?;
        let done = work(snapshots).map_err(|error| error.image(&top.name))?;
        self.0.close()?;
        Ok(done)
    }
}

/// All internal snapshots of `path`, in the file's order; none where the format has no such thing.
pub fn list_snapshots(path: &Path, how: &Open) -> Result<Vec<SnapshotInfo>> {
    Snapshotted::open(path, &alone(how, false))?.list()
}

/// Keeps the present state of `path` under `name`, dated now.
pub fn create_snapshot(path: &Path, how: &Open, name: &str) -> Result<SnapshotInfo> {
    Snapshotted::open(path, &alone(how, true))?.create(name)
}

/// The disk `path` is again as the snapshot holds it. `which`: its id, or else its name.
pub fn apply_snapshot(path: &Path, how: &Open, which: &str) -> Result<()> {
    Snapshotted::open(path, &alone(how, true))?.apply(which)
}

/// Takes a snapshot away. `which`: its id, or else its name.
pub fn delete_snapshot(path: &Path, how: &Open, which: &str) -> Result<()> {
    Snapshotted::open(path, &alone(how, true))?.delete(which)
}

/// What it stands on, and what opens its content, is not needed.
fn alone(how: &Open, writable: bool) -> Open {
    Open { writable, parent: Parent::Ignored, metadata_only: true, ..how.clone() }
}
