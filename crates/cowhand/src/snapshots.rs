//! Internal snapshots of one image: listed, made, gone back to, taken away.

use std::path::Path;
use std::time::SystemTime;

use cowhand_core::{Error, NewSnapshot, Result, SnapshotInfo, Snapshots};

use crate::open::{Open, Opened, Parent, open};

/// All internal snapshots of `path`, in the file's order; none where the format has no such thing.
pub fn list_snapshots(path: &Path, how: &Open) -> Result<Vec<SnapshotInfo>> {
    let image = open(path, &Open { parent: Parent::Ignored, metadata_only: true, ..how.clone() })?;
    match image.links().first().and_then(|top| top.layer.as_snapshots()) {
        Some(snapshots) => snapshots.list().map_err(|error| error.image(path.display())),
        None => Ok(Vec::new()),
    }
}

/// Keeps the present state of `path` under `name`, dated now.
pub fn create_snapshot(path: &Path, how: &Open, name: &str) -> Result<SnapshotInfo> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let new = NewSnapshot {
        name: name.to_owned(),
        date_sec: u32::try_from(since.as_secs()).unwrap_or(u32::MAX),
        date_nsec: since.subsec_nanos(),
    };
    change(path, how, |snapshots| snapshots.create(&new))
}

/// The disk `path` is again as the snapshot holds it. `which`: its id, or else its name.
pub fn apply_snapshot(path: &Path, how: &Open, which: &str) -> Result<()> {
    change(path, how, |snapshots| snapshots.apply(which))
}

/// Takes a snapshot away. `which`: its id, or else its name.
pub fn delete_snapshot(path: &Path, how: &Open, which: &str) -> Result<()> {
    change(path, how, |snapshots| snapshots.delete(which))
}

fn change<T>(path: &Path, how: &Open, work: impl FnOnce(&dyn Snapshots) -> Result<T>) -> Result<T> {
    let image: Opened =
        open(path, &Open { writable: true, parent: Parent::Ignored, metadata_only: true, ..how.clone() })?;
    let top = &image.links()[0]; // never empty: every image has a layer
    let snapshots = top.layer.as_snapshots().ok_or_else(|| {
        Error::unsupported(format!("a {} image has no internal snapshots", top.format)).image(&top.name)
    })?;
    let done = work(snapshots).map_err(|error| error.image(&top.name))?;
    image.close()?;
    Ok(done)
}
