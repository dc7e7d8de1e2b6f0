//! Internal snapshots: earlier states of a disk, kept in its own file.

use std::sync::Arc;

use crate::{Layer, Result};

/// An internal snapshot, as a list shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The unique id.
    pub id: String,
    /// The name a person gave.
    pub name: String,
    /// The virtual machine's saved state, in bytes.
    pub vm_state_size: u64,
    /// Seconds since 1970 at which it was made.
    pub date_sec: u32,
    /// Nanoseconds to be added to `date_sec`.
    pub date_nsec: u32,
    /// How long the guest had run, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Instructions executed, where they were counted.
    pub icount: Option<u64>,
    /// Guest bytes of the snapshot's disk.
    pub disk_size: u64,
}

/// A snapshot to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewSnapshot {
    /// The name a person gave.
    pub name: String,
    /// Seconds since 1970.
    pub date_sec: u32,
    /// Nanoseconds to be added to `date_sec`.
    pub date_nsec: u32,
}

/// An optional ability of a layer: internal snapshots. `which` is an id or, if no id matches, a name. What changes is
/// durable when the call returns; a power cut leaves it done or not begun.
pub trait Snapshots {
    /// All snapshots in the file's order.
    fn list(&self) -> Result<Vec<SnapshotInfo>>;
    /// The disk as one snapshot holds it, read-only.
    fn open(&self, which: &str) -> Result<Arc<dyn Layer>>;
    /// Keeps the disk's present state. Nobody writes meanwhile.
    fn create(&self, new: &NewSnapshot) -> Result<SnapshotInfo>;
    /// The disk is again as the snapshot holds it, its size too; the virtual machine's state comes with it.
    fn apply(&self, which: &str) -> Result<()>;
    /// Takes a snapshot away; what only it used is free.
    fn delete(&self, which: &str) -> Result<()>;
}
