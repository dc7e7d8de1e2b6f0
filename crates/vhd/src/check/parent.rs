//! What a differencing disk says of its parent, and what a disk without one should not say.

use cowhand_core::{Result, Storage};

use super::Disk;
use super::findings::Findings;
use super::footers::is_in_the_future;
use crate::footer::EPOCH;
use crate::header::{Header, RawLocator};
use crate::locator;
use crate::naming;

/// Codes whose data is text that is read, and what else blktap and Windows know.
const CODES: [[u8; 4]; 7] = [*b"W2ru", *b"W2ku", *b"MacX", *b"Wi2r", *b"Wi2k", *b"Mac ", [0; 4]];

/// Judges the parent's identity, its name and each locator. Whether the parent is there is not asked.
pub(super) fn judge(file: &dyn Storage, disk: &Disk, all: &mut Findings) -> Result<()> {
    let header = &disk.header;
    if header.tail != [0; 256] {
        all.refused(header.at + 768, || "the header's reserved bytes are not zero".to_owned());
    }
    let used = |raw: &RawLocator| raw.code != [0; 4] || raw.data_length.get() != 0;
    if !disk.differencing() {
        if header.parent_unique_id != [0; 16]
            || header.parent_name != [0; 512]
            || header.locators.iter().any(used)
        {
            all.refused(header.at + 40, || "the disk has no parent, and its header names one".to_owned());
        }
        return Ok(());
    }
    if !all.rules.any_time && is_in_the_future(EPOCH + u64::from(header.parent_timestamp)) {
        all.refused(header.at + 56, || {
            "the parent is said to have changed last in the future; XenServer refuses that".to_owned()
        });
    }
    let mut usable = Vec::new();
    for (index, raw) in header.locators.iter().enumerate() {
        let at = header.at + 576 + 24 * index as u64;
        if !CODES.contains(&raw.code) {
            all.refused(at, || {
                let code = String::from_utf8_lossy(&raw.code).into_owned();
                format!("parent locator {} has the code {code:?}, which is not known", index + 1)
            });
        }
        // Alone, so that what is wrong with one is no word about the others.
        let mut alone = Header { locators: [RawLocator::default(); 8], ..header.clone() };
        if let Some(slot) = alone.locators.get_mut(index) {
            *slot = *raw;
        }
        match locator::read(file, &alone, disk.found.file_len) {
            Ok(read) => {
                if read.iter().any(|locator| locator.text.contains(char::REPLACEMENT_CHARACTER)) {
                    all.refused(at, || format!("the path of parent locator {} cannot be decoded", index + 1));
                }
                usable.extend(read);
            }
            Err(error) => all.corrupt(error.offset().unwrap_or(at), || {
                format!("{error}; naming the parent anew puts that right")
            }),
        }
    }
    if locator::parent_ref(header, &usable).candidates.is_empty() {
        all.corrupt(header.at + 64, || "the disk has a parent, and nothing says where".to_owned());
    }
    let stated = naming::note(&header.tail).is_some() || disk.found.footer.made_by_blktap();
    if header.parent_unique_id == [0; 16] && !stated {
        all.note(header.at + 40, || "the parent's id is zero, so it is taken to be raw".to_owned());
    }
    if header.parent_unique_id == disk.found.footer.unique_id {
        all.corrupt(header.at + 40, || "the parent's id is the disk's own".to_owned());
    }
    Ok(())
}
