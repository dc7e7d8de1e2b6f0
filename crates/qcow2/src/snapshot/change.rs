//! Making, applying and deleting snapshots, each at once: see [`crate::draft`].

use std::sync::Arc;

use cowhand_core::{Error, ErrorKind, NewSnapshot, Result, SnapshotInfo};

use super::{Snapshot, find};
use crate::bitmaps;
use crate::draft::Next;
use crate::layer::Qcow2Layer;

impl Qcow2Layer {
    pub(super) fn create_snapshot(&self, new: &NewSnapshot) -> Result<SnapshotInfo> {
        self.refuse_snapshots()?;
        let (writer, _claim) = self.alone()?;
        let size = self.view.size();
        // A machine's state that an applied snapshot brought along is that snapshot's, not this one's.
        self.drop_behind(writer, size.div_ceil(self.view.shared.geometry().cluster_size()))?;
        let mut info = SnapshotInfo::default();
        self.switch(writer, false, |draft, snapshots| {
            let own = self.view.l1().clone();
            let mut l1 = own.entries;
            draft.refer(&l1, own.at, true)?;
            draft.mend(&mut l1, own.at, 2)?;
            let at = draft.put_l1(&l1)?;
            let snapshot = Snapshot::new(new, snapshots, at, l1.len() as u32, size)?;
            info = snapshot.info.clone();
            let mut snapshots = snapshots.to_vec();
            snapshots.push(snapshot);
            Ok(Next { l1, size, snapshots: Some(snapshots) })
        })?;
        Ok(info)
    }

    pub(super) fn apply_snapshot(&self, which: &str) -> Result<()> {
        self.refuse_snapshots()?;
        if bitmaps::place(&self.view.shared.header()).is_some() {
            return Err(Error::unsupported(
                "a snapshot cannot be applied to an image that has persistent bitmaps",
            )
            .hint("remove the bitmaps first"));
        }
        let (writer, _claim) = self.alone()?;
        self.switch(writer, false, |draft, snapshots| {
            let snapshot = find(snapshots, which)?.1;
            let own = self.view.l1().clone();
            let mut l1 = draft.l1_of(snapshot)?;
            // First down: the counters of both may not have room at once.
            draft.refer(&own.entries, own.at, false)?;
            draft.refer(&l1, snapshot.l1_offset, true)?;
            draft.mend(&mut l1, snapshot.l1_offset, 1)?;
            Ok(Next { l1, size: snapshot.info.disk_size, snapshots: None })
        })
    }

    pub(super) fn delete_snapshot(&self, which: &str) -> Result<()> {
        self.refuse_snapshots()?;
        let (writer, _claim) = self.alone()?;
        self.switch(writer, false, |draft, snapshots| {
            let (index, snapshot) = find(snapshots, which)?;
            if Arc::strong_count(&snapshot.users) > 1 {
                return Err(Error::new(ErrorKind::Locked, format!("the snapshot '{which}' is being read")));
            }
            let own = self.view.l1().clone();
            let mut l1 = own.entries;
            let gone = draft.l1_of(snapshot)?;
            draft.refer(&gone, snapshot.l1_offset, false)?;
            draft.shift(snapshot.l1_offset, gone.len() as u64 * 8, false)?;
            draft.mend(&mut l1, own.at, 1)?;
            let mut snapshots = snapshots.to_vec();
            snapshots.remove(index);
            Ok(Next { l1, size: self.view.size(), snapshots: Some(snapshots) })
        })
    }

    fn refuse_snapshots(&self) -> Result<()> {
        if self.view.shared.rules.data_file {
            return Err(Error::unsupported(
                "an image with an external data file cannot have internal snapshots",
            ));
        }
        Ok(())
    }
}
