//! What the metadata says beyond what opening asks of it: marks of its items, their places, and the parent's name.

use cowhand_core::{Result, Storage};

use super::findings::Findings;
use crate::guid::Guid;
use crate::header::Header;
use crate::metadata::{self, Entry, Metadata};
use crate::region::Region;

/// Judges items that could be read.
pub(super) fn look(
    file: &dyn Storage,
    region: Region,
    found: &Metadata,
    header: &Header,
    all: &mut Findings,
) -> Result<()> {
    let mut entries = metadata::entries(file, region)?;
    for Entry { at, id, is_user, marks, expected, .. } in &entries {
        if *id == Guid::ZERO {
            all.note(*at, || "a metadata item has the id zero".to_owned());
        }
        if expected.is_some_and(|expected| !is_user && *marks != expected) {
            all.note(*at, || {
                format!(
                    "metadata item {id} is marked as {marks:#x}; the format wants {:#x}",
                    expected.unwrap_or(0)
                )
            });
        }
    }
    entries.retain(|entry| entry.length > 0);
    entries.sort_by_key(|entry| entry.offset);
    for pair in entries.windows(2) {
        if let [one, other] = pair
            && other.offset - one.offset < one.length
        {
            all.corrupt(other.at, || format!("metadata items {} and {} share bytes", one.id, other.id));
        }
    }
    if found.disk_id == Guid::ZERO {
        all.note(region.offset, || "the virtual disk's id is zero".to_owned());
    }
    let locator = entries.iter().find(|entry| entry.is_locator());
    let Some(parent) = &found.parent else {
        if let Some(locator) = locator {
            all.note(locator.at, || "the disk has no parent, and its metadata names one".to_owned());
        }
        return Ok(());
    };
    let at = locator.map_or(region.offset, |locator| region.offset + locator.offset);
    if found.leave_blocks_allocated {
        all.note(region.offset, || {
            "the disk has a parent and is marked as fixed, which means nothing then".to_owned()
        });
    }
    if parent.parent().candidates.is_empty() {
        all.corrupt(at, || "the disk has a parent, and nothing says where".to_owned());
    }
    if parent.linkage() == Guid::ZERO {
        all.note(at, || "the parent's id is zero, so nothing tells the right parent from another".to_owned());
    } else if parent.linkage() == header.data_write_guid {
        all.note(at, || "the parent's id is the disk's own".to_owned());
    }
    if let Some(second) = parent.linkage2() {
        all.note(at, || {
            format!(
                "a merge into the parent was begun and not finished (parent_linkage2 is {second}); \
                 merging again finishes it: cowhand commit, or cowhand merge"
            )
        });
    }
    Ok(())
}
