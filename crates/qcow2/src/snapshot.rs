//! The snapshot table: which internal snapshots there are, and their disks as read-only layers.

use std::sync::Arc;

use cowhand_core::{Error, ErrorKind, Extent, Layer, NewSnapshot, Result, SnapshotInfo, Snapshots, Storage};

use crate::header::{Header, MAX_L1_BYTES};
use crate::layer::Qcow2Layer;
use crate::view::View;

const ENTRY: usize = 40;
const MAX_EXTRA: u32 = 1024;
/// What QEMU allows the whole table to have.
const MAX_TABLE: u64 = 64 << 20;

/// A snapshot as its table entry says.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) l1_offset: u64,
    pub(crate) l1_entries: u32,
    info: SnapshotInfo,
}

/// Reads the snapshot table. The second: its length in bytes.
pub(crate) fn read_table(file: &dyn Storage, header: &Header) -> Result<(Vec<Snapshot>, u64)> {
    if header.snapshots == 0 {
        return Ok((Vec::new(), 0));
    }
    let failed = |error| Error::io("cannot read the snapshot table", error).at(header.snapshots_offset);
    let len = file.len().map_err(failed)?;
    let mut table = Window {
        file,
        at: header.snapshots_offset,
        end: len.min(header.snapshots_offset + MAX_TABLE),
        bytes: Vec::new(),
        base: 0,
    };
    let mut snapshots = Vec::with_capacity(header.snapshots as usize);
    let mut at = 0;
    for _ in 0..header.snapshots {
        let (snapshot, size) = Snapshot::parse(&mut table, at, header)?;
        snapshots.push(snapshot);
        at = (at + size).next_multiple_of(8);
    }
    Ok((snapshots, at))
}

/// The table, read in large pieces.
struct Window<'a> {
    file: &'a dyn Storage,
    /// Where the table starts and where it must end at the latest.
    at: u64,
    end: u64,
    /// The piece in memory, and its offset in the table.
    bytes: Vec<u8>,
    base: u64,
}

impl Window<'_> {
    fn get(&mut self, at: u64, len: usize) -> Result<&[u8]> {
        let here = self.at + at;
        let cut = || {
            Error::corrupt("snapshot table", "goes past the end of the file or of what is allowed (64 MiB)")
                .at(here)
        };
        let inside = at >= self.base && at + len as u64 <= self.base + self.bytes.len() as u64;
        if !inside {
            if here + len as u64 > self.end {
                return Err(cut());
            }
            let piece = (self.end - here).min((len as u64).max(256 << 10));
            self.bytes.resize(piece as usize, 0);
            self.base = at;
            self.file
                .read_at(here, &mut self.bytes)
                .map_err(|error| Error::io("cannot read the snapshot table", error).at(here))?;
        }
        let start = (at - self.base) as usize;
        self.bytes.get(start..start + len).ok_or_else(cut)
    }
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes.get(at..at + len).unwrap_or_default().iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

impl Snapshot {
    fn parse(table: &mut Window<'_>, at: u64, header: &Header) -> Result<(Snapshot, u64)> {
        let here = table.at + at;
        let raw = table.get(at, ENTRY)?;
        let (l1_offset, l1_entries) = (number(raw, 0, 8), number(raw, 8, 4) as u32);
        let (id_len, name_len) = (number(raw, 12, 2) as usize, number(raw, 14, 2) as usize);
        let mut info = SnapshotInfo {
            date_sec: number(raw, 16, 4) as u32,
            date_nsec: number(raw, 20, 4) as u32,
            vm_clock_nsec: number(raw, 24, 8),
            vm_state_size: number(raw, 32, 4),
            disk_size: header.size,
            ..SnapshotInfo::default()
        };
        let extra_len = number(raw, 36, 4) as u32;
        if extra_len > MAX_EXTRA {
            return Err(Error::corrupt(
                "snapshot table",
                format!("an entry says {extra_len} bytes of extra data, above {MAX_EXTRA}"),
            )
            .at(here + 36));
        }
        let extra_len = extra_len as usize;
        let rest = table.get(at + ENTRY as u64, extra_len + id_len + name_len)?;
        let (extra, names) = rest.split_at_checked(extra_len).unwrap_or_default();
        if extra.len() >= 8 {
            info.vm_state_size = number(extra, 0, 8);
        }
        if extra.len() >= 16 {
            info.disk_size = number(extra, 8, 8);
        }
        if extra.len() >= 24 {
            info.icount = Some(number(extra, 16, 8)).filter(|count| *count != u64::MAX);
        }
        let (id, name) = names.split_at_checked(id_len).unwrap_or_default();
        info.id = String::from_utf8_lossy(id).into_owned();
        info.name = String::from_utf8_lossy(name).into_owned();
        Ok((Snapshot { l1_offset, l1_entries, info }, (ENTRY + extra_len + id_len + name_len) as u64))
    }

    /// Refuses an L1 table that cannot be the one of a disk of this snapshot's size.
    pub(crate) fn check(&self, header: &Header, len: u64) -> Result<()> {
        let geometry = header.geometry;
        let bytes = u64::from(self.l1_entries) * 8;
        let wrong = |message: String| Err(Error::corrupt("snapshot's L1 table", message).at(self.l1_offset));
        if bytes > MAX_L1_BYTES {
            return wrong(format!("{} entries are more than 32 MiB", self.l1_entries));
        }
        if self.info.disk_size > i64::MAX as u64 {
            return wrong(format!("the disk's size {} is above 2^63 - 1", self.info.disk_size));
        }
        if geometry.in_cluster(self.l1_offset) != 0 {
            return wrong("starts inside a cluster".to_owned());
        }
        if self.l1_offset.checked_add(bytes).is_none_or(|end| end > len) {
            return wrong(format!("goes past the end of the file ({len} bytes)"));
        }
        if u64::from(self.l1_entries) < geometry.l1_entries(self.info.disk_size) {
            return wrong(format!(
                "{} entries do not cover its {} bytes",
                self.l1_entries, self.info.disk_size
            ));
        }
        Ok(())
    }
}

impl Snapshots for Qcow2Layer {
    fn list(&self) -> Result<Vec<SnapshotInfo>> {
        Ok(self.snapshots().iter().map(|snapshot| snapshot.info.clone()).collect())
    }

    fn create(&self, _new: &NewSnapshot) -> Result<SnapshotInfo> {
        Err(Error::unsupported("snapshots cannot be made yet"))
    }

    fn apply(&self, _which: &str) -> Result<()> {
        Err(Error::unsupported("snapshots cannot be applied yet"))
    }

    fn delete(&self, _which: &str) -> Result<()> {
        Err(Error::unsupported("snapshots cannot be deleted yet"))
    }

    fn open(&self, which: &str) -> Result<Arc<dyn Layer>> {
        let snapshots = self.snapshots();
        let by_id = snapshots.iter().find(|snapshot| snapshot.info.id == which);
        let found = by_id.or_else(|| snapshots.iter().find(|snapshot| snapshot.info.name == which));
        let snapshot = found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no snapshot with the id or name '{which}'"))
                .hint("list them first")
        })?;
        let shared = &self.view.shared;
        let len = shared.file.len().map_err(|error| Error::io("cannot find the size", error))?;
        snapshot.check(&shared.header(), len)?;
        let view =
            View::open(shared.clone(), snapshot.info.disk_size, snapshot.l1_offset, snapshot.l1_entries)?;
        Ok(Arc::new(SnapshotLayer { view }))
    }
}

/// A snapshot's disk. Nothing can change it: what it maps has another reference than the image's own.
#[derive(Debug)]
struct SnapshotLayer {
    view: View,
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
