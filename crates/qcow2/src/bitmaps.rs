//! The bitmap directory: which persistent bitmaps an image has. They are only listed.

use cowhand_core::Storage;
use serde_json::{Value, json};

use crate::header::{AUTOCLEAR_BITMAPS, Header};

const ENTRY: usize = 24;
/// What QEMU allows: 65535 bitmaps with names of 1023 bytes.
const MAX_DIRECTORY: u64 = 65535 * 1048;
const IN_USE: u64 = 1;
const AUTO: u64 = 2;

/// The bitmaps' names, granularities and flags as `info` shows them. `None` where there are none, where they are not
/// in step with the data, or where their directory cannot be read: none of that concerns the disk.
pub(crate) fn list(file: &dyn Storage, header: &Header) -> Option<Value> {
    let at = header.extensions.bitmaps().filter(|_| header.autoclear & AUTOCLEAR_BITMAPS != 0)?;
    let end = at.offset.checked_add(at.size)?;
    if at.size > MAX_DIRECTORY || end > file.len().ok()? {
        return None;
    }
    let mut bytes = vec![0; at.size as usize];
    file.read_at(at.offset, &mut bytes).ok()?;
    let mut rest = bytes.as_slice();
    let mut found = Vec::new();
    for _ in 0..at.count {
        let entry = rest.get(..ENTRY)?;
        let number = |at: usize, len: usize| {
            entry
                .get(at..at + len)
                .unwrap_or_default()
                .iter()
                .fold(0u64, |all, byte| all << 8 | u64::from(*byte))
        };
        let (flags, granularity, name_len, extra_len) =
            (number(12, 4), number(17, 1), number(18, 2), number(20, 4));
        let name_at = ENTRY.checked_add(extra_len as usize)?;
        let name_end = name_at.checked_add(name_len as usize)?;
        let name = String::from_utf8_lossy(rest.get(name_at..name_end)?).into_owned();
        let mut set = Vec::new();
        if flags & IN_USE != 0 {
            set.push("in-use");
        }
        if flags & AUTO != 0 {
            set.push("auto");
        }
        found.push(json!({ "flags": set, "name": name, "granularity": 1u64.checked_shl(granularity as u32).unwrap_or(0) }));
        rest = rest.get(name_end.next_multiple_of(8)..).unwrap_or_default();
    }
    Some(found.into())
}
