//! What Hyper-V and VirtualBox ask of a VHDX.

use cowhand_core::{Consumer, Error, Objection, Result, Storage};

use crate::bat::{self, Geometry};
use crate::check::places::{Disk, Owner};
use crate::check::table;
use crate::header::Header;
use crate::metadata::Metadata;
use crate::region::{self, Regions, TABLES};

pub(crate) const ALL: &[Consumer] = &[
    Consumer { name: "hyperv", title: "Hyper-V", options: &[], solid: true, judge: hyperv },
    Consumer { name: "virtualbox", title: "VirtualBox", options: &[], solid: false, judge: virtualbox },
];

/// An image as its consumers see it.
struct Judged<'a> {
    file: &'a dyn Storage,
    header: Header,
    regions: Regions,
    metadata: Metadata,
}

impl Judged<'_> {
    fn of(file: &dyn Storage) -> Result<Judged<'_>> {
        let len = file.len().map_err(|error| Error::io("cannot find the size", error))?;
        let header = Header::read(file)?;
        let regions = Regions::read(file, len, &header.log)?;
        let metadata = Metadata::read(file, regions.metadata)?;
        Ok(Judged { file, header, regions, metadata })
    }
}

/// What it finds in a log it replays, and either of two copies will do; so only what it does not read is left.
fn hyperv(file: &dyn Storage) -> Result<Vec<Objection>> {
    let judged = Judged::of(file)?;
    let mut objections = Vec::new();
    if let Some(locator) = &judged.metadata.parent
        && !locator.entries().any(|(key, path)| is_for_windows(&key, &path))
    {
        objections.push(
            Objection::new("its parent is not named in a way that Windows knows")
                .remedy("cowhand reconnect-parent FILE"),
        );
    }
    // Before its log is replayed, the table is not yet what it will be.
    if !judged.header.log.is_pending() {
        objections.extend(strange_entries(&judged)?);
    }
    Ok(objections)
}

/// A name under which Windows finds a file.
fn is_for_windows(key: &str, path: &str) -> bool {
    let bare = path.strip_prefix(r"\\?\").unwrap_or(path);
    let mut start = bare.bytes();
    let on_drive =
        start.next().is_some_and(|letter| letter.is_ascii_alphabetic()) && start.next() == Some(b':');
    match key {
        "relative_path" => !path.is_empty() && !path.starts_with('/'),
        "volume_path" => bare.starts_with("Volume{"),
        "absolute_win32_path" => on_drive || path.starts_with(r"\\"),
        _ => false,
    }
}

/// Entries that QEMU's older versions wrote, and reads: zero blocks that name a place, and the state that version 0.95 of
/// the specification had for unmapped ones.
fn strange_entries(judged: &Judged<'_>) -> Result<Option<Objection>> {
    let Judged { file, regions, metadata, .. } = judged;
    let geometry = Geometry {
        size: metadata.size,
        block_size: metadata.block_size,
        sector: metadata.logical_sector.into(),
    };
    let len = file.len().map_err(|error| Error::io("cannot find the size", error))?;
    let disk = Disk { file: *file, regions, geometry, differencing: metadata.parent.is_some(), len };
    let mut strange = 0;
    table::runs(*file, regions.bat, &mut |run, raw| {
        if bat::is_strange(raw) {
            strange += run.filter(|number| matches!(disk.owner(*number), Owner::Block(_))).count();
        }
        Ok(())
    })?;
    let objection = Objection::new(format!(
        "{strange} entries of the BAT say in QEMU's old way that a block is zero or unmapped, which Windows does not read"
    ));
    Ok((strange > 0).then(|| match metadata.leave_blocks_allocated {
        true => objection,
        false => objection.remedy("cowhand compact FILE"),
    }))
}

/// It replays no log, follows no parent, and reads the first region table alone, strictly. It only reads such disks.
fn virtualbox(file: &dyn Storage) -> Result<Vec<Objection>> {
    let judged = Judged::of(file)?;
    let mut objections = Vec::new();
    if judged.header.log.is_pending() {
        objections.push(
            Objection::new("its log holds changes that are to be replayed first")
                .remedy("cowhand check -r all FILE"),
        );
    }
    if judged.metadata.parent.is_some() {
        objections.push(Objection::new("the disk is differencing, and must be fixed or dynamic"));
    }
    match region::first_says_required(file)? {
        Some(true) => {}
        Some(false) => {
            objections.push(Objection::new("its region table does not say that its regions are required"));
        }
        None => objections.push(
            Objection::new(format!("the first region table (at {}) is damaged", TABLES[0]))
                .remedy("cowhand check -r all FILE"),
        ),
    }
    Ok(objections)
}

#[cfg(test)]
mod tests {
    use super::is_for_windows;

    #[test]
    fn names_that_windows_finds() {
        for (key, path, found) in [
            ("relative_path", r".\base.vhdx", true),
            ("relative_path", "", false),
            ("relative_path", "/vm/base.vhdx", false),
            ("volume_path", r"\\?\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\base.vhdx", true),
            ("absolute_win32_path", r"\\?\C:\vm\base.vhdx", true),
            ("absolute_win32_path", r"d:\vm\base.vhdx", true),
            ("absolute_win32_path", r"\\server\share\base.vhdx", true),
            ("absolute_win32_path", "/vm/base.vhdx", false),
            ("parent_linkage", r"c:\x", false),
        ] {
            assert_eq!(is_for_windows(key, path), found, "{key} {path}");
        }
    }
}
