//! Internal snapshots: earlier states of the disk, as read-only layers.

mod change;
mod table;

use std::sync::Arc;

use cowhand_core::{Error, ErrorKind, Extent, Layer, NewSnapshot, Result, SnapshotInfo, Snapshots, Storage};

use crate::layer::Qcow2Layer;
use crate::view::View;

pub(crate) use table::{Snapshot, encode, read_table};

impl Snapshots for Qcow2Layer {
    fn list(&self) -> Result<Vec<SnapshotInfo>> {
        Ok(self.snapshots().iter().map(|snapshot| snapshot.info.clone()).collect())
    }

    fn create(&self, new: &NewSnapshot) -> Result<SnapshotInfo> {
        self.create_snapshot(new)
    }

    fn apply(&self, which: &str) -> Result<()> {
        self.apply_snapshot(which)
    }

    fn delete(&self, which: &str) -> Result<()> {
        self.delete_snapshot(which)
    }

    fn open(&self, which: &str) -> Result<Arc<dyn Layer>> {
        let snapshots = self.snapshots();
        let snapshot = find(&snapshots, which)?.1;
        let shared = &self.view.shared;
        let len = shared.file.len().map_err(|error| Error::io("cannot find the size", error))?;
        snapshot.check(&shared.header(), len)?;
        let view =
            View::open(shared.clone(), snapshot.info.disk_size, snapshot.l1_offset, snapshot.l1_entries)?;
        Ok(Arc::new(SnapshotLayer { view, _user: snapshot.users.clone() }))
    }
}

/// The snapshot with that id, or else with that name, and its place.
fn find<'a>(snapshots: &'a [Snapshot], which: &str) -> Result<(usize, &'a Snapshot)> {
    let by = |name: fn(&SnapshotInfo) -> &str| {
        snapshots.iter().enumerate().find(|(_, snapshot)| name(&snapshot.info) == which)
    };
    by(|info| &info.id).or_else(|| by(|info| &info.name)).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("there is no snapshot with the id or name '{which}'"))
            .hint("list them first")
    })
}

/// A snapshot's disk. Nothing can change it: what it maps has another reference than the image's own, and it is not
/// deleted while it is open.
#[derive(Debug)]
struct SnapshotLayer {
    view: View,
    _user: Arc<()>,
}

impl Layer for SnapshotLayer {
    fn size(&self) -> u64 {
        self.view.size()
    }

    fn granule(&self) -> u64 {
        self.view.shared.geometry().subcluster_size()
    }

    fn host(&self) -> &Arc<dyn Storage> {
        &self.view.shared.data
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        self.view.extent(at, max)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        self.view.read(at, buf)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn parent(&self) -> Option<cowhand_core::ParentRef> {
        crate::layer::parent_of(&self.view.shared.header())
    }
}
