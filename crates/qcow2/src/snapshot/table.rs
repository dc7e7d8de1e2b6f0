//! The snapshot table: which internal snapshots there are.

use std::sync::Arc;

use cowhand_core::{Error, NewSnapshot, Result, SnapshotInfo, Storage};

use crate::header::{Header, MAX_L1_BYTES, MAX_SNAPSHOTS};

const ENTRY: usize = 40;
const MAX_EXTRA: u32 = 1024;
/// The extra data that is known: the saved state's size, the disk's size, the instruction count.
const EXTRA: usize = 24;
/// What QEMU keeps of a name.
const MAX_NAME: usize = 255;
/// What QEMU allows the whole table to have.
const MAX_TABLE: u64 = 64 << 20;

/// A snapshot as its table entry says.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) l1_offset: u64,
    pub(crate) l1_entries: u32,
    pub(super) info: SnapshotInfo,
    /// The entry as it stands in the table: what is not understood of it is kept.
    raw: Vec<u8>,
    /// Shared with the layers that read this snapshot.
    pub(super) users: Arc<()>,
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

/// A table's bytes, all entries as they stood.
pub(crate) fn encode(snapshots: &[Snapshot]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for snapshot in snapshots {
        bytes.extend_from_slice(&snapshot.raw);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    if bytes.len() as u64 > MAX_TABLE {
        return Err(Error::unsupported("the snapshot table cannot be larger than 64 MiB")
            .hint("delete some snapshots first"));
    }
    Ok(bytes)
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
        let mut whole = raw.to_vec();
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
        whole.extend_from_slice(rest);
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
        let len = whole.len() as u64;
        Ok((Snapshot { l1_offset, l1_entries, info, raw: whole, users: Arc::default() }, len))
    }

    /// A new snapshot of the disk whose L1 table was copied to `l1_offset`; `others` are those that are there.
    pub(super) fn new(
        new: &NewSnapshot,
        others: &[Snapshot],
        l1_offset: u64,
        l1_entries: u32,
        disk_size: u64,
    ) -> Result<Snapshot> {
        if others.len() >= MAX_SNAPSHOTS as usize {
            return Err(Error::unsupported(format!(
                "an image cannot have more than {MAX_SNAPSHOTS} snapshots"
            ))
            .hint("delete some first"));
        }
        if new.name.len() > MAX_NAME || new.name.contains('\0') {
            return Err(Error::invalid(format!(
                "a snapshot's name must have at most {MAX_NAME} bytes, and no NUL"
            )));
        }
        // As QEMU: the number after the highest.
        let highest = others.iter().filter_map(|other| other.info.id.parse::<u64>().ok()).max();
        let id = highest.unwrap_or(0).saturating_add(1).to_string();
        let info = SnapshotInfo {
            id,
            name: new.name.clone(),
            date_sec: new.date_sec,
            date_nsec: new.date_nsec,
            icount: Some(0),
            disk_size,
            ..SnapshotInfo::default()
        };
        let mut raw = Vec::with_capacity(ENTRY + EXTRA + info.id.len() + info.name.len());
        raw.extend_from_slice(&l1_offset.to_be_bytes());
        raw.extend_from_slice(&l1_entries.to_be_bytes());
        raw.extend_from_slice(&(info.id.len() as u16).to_be_bytes());
        raw.extend_from_slice(&(info.name.len() as u16).to_be_bytes());
        raw.extend_from_slice(&info.date_sec.to_be_bytes());
        raw.extend_from_slice(&info.date_nsec.to_be_bytes());
        raw.extend_from_slice(&info.vm_clock_nsec.to_be_bytes());
        raw.extend_from_slice(&0u32.to_be_bytes());
        raw.extend_from_slice(&(EXTRA as u32).to_be_bytes());
        for extra in [info.vm_state_size, info.disk_size, info.icount.unwrap_or(u64::MAX)] {
            raw.extend_from_slice(&extra.to_be_bytes());
        }
        raw.extend_from_slice(info.id.as_bytes());
        raw.extend_from_slice(info.name.as_bytes());
        Ok(Snapshot { l1_offset, l1_entries, info, raw, users: Arc::default() })
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
