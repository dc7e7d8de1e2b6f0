//! Where an archive makes sense again behind what is damaged.

use zerocopy::FromBytes;

use crate::extent;
use crate::layout::{BLOCK, EXTENT_HEADER, EXTENT_MAGIC, RawExtent, SLOTS};
use crate::wrong::Wrong;

/// The longest extent, in bytes.
pub(crate) const MAX_EXTENT: usize = EXTENT_HEADER + SLOTS * 16 * BLOCK as usize;

/// Bytes that have to be looked at from `at` on, to find the extent that follows one that is damaged.
pub(crate) const REACH: usize = MAX_EXTENT + EXTENT_HEADER;

/// The first extent at or behind `from` of `bytes`, of the archive that bears `uuid`; `None`: of any.
pub(crate) fn find(bytes: &[u8], from: usize, uuid: Option<&[u8; 16]>) -> Option<usize> {
    let mut at = from;
    loop {
        let rest = bytes.get(at..)?;
        at += rest.windows(EXTENT_MAGIC.len()).position(|four| four == EXTENT_MAGIC)?;
        if stands(bytes, at, uuid) {
            return Some(at);
        }
        at += 1;
    }
}

/// A whole extent's header stands at `at`.
pub(crate) fn stands(bytes: &[u8], at: usize, uuid: Option<&[u8; 16]>) -> bool {
    let Some(header) = bytes.get(at..) else {
        return false;
    };
    // What is cheap comes first: the bytes may be made to look like headers everywhere.
    let Ok((raw, _)) = RawExtent::ref_from_prefix(header) else {
        return false;
    };
    raw.magic == EXTENT_MAGIC
        && uuid.is_none_or(|uuid| raw.uuid == *uuid)
        && extent::listed(raw, 0) == u32::from(raw.block_count.get())
        && extent::parse(header, 0, uuid).is_ok()
}

/// An extent's header stood at the front of `bytes`, though it may be damaged.
fn resembles(bytes: &[u8], uuid: &[u8; 16]) -> bool {
    RawExtent::ref_from_prefix(bytes).is_ok_and(|(raw, _)| raw.magic == EXTENT_MAGIC || raw.uuid == *uuid)
}

/// The extent that follows the one at the front of `bytes`, whose header is damaged; `None`: it is not within [`REACH`].
///
/// What is left of the header says where that is. Else it is whole blocks behind the header, unless bytes are lost: what
/// stands before that place and does not lead to it is in the guest's data, which may hold a copy of this archive.
pub(crate) fn following(bytes: &[u8], uuid: &[u8; 16]) -> Option<usize> {
    let bytes = bytes.get(..REACH).unwrap_or(bytes);
    if let Some((raw, _)) = RawExtent::ref_from_prefix(bytes).ok().filter(|_| resembles(bytes, uuid)) {
        let said = [u32::from(raw.block_count.get()), extent::listed(raw, 0)];
        let ends = said.map(|blocks| EXTENT_HEADER + blocks as usize * BLOCK as usize);
        if let Some(end) = ends.into_iter().find(|end| stands(bytes, *end, Some(uuid))) {
            return Some(end);
        }
    }
    let first = find(bytes, 1, Some(uuid))?;
    let mut aligned = (EXTENT_HEADER..bytes.len()).step_by(BLOCK as usize);
    match aligned.find(|at| stands(bytes, *at, Some(uuid))) {
        Some(aligned) if !leads(bytes, first, aligned, uuid) => Some(aligned),
        _ => Some(first),
    }
}

/// From the extent that stands at `from`, one leads to the next, until one ends at `to`.
fn leads(bytes: &[u8], from: usize, to: usize, uuid: &[u8; 16]) -> bool {
    let mut at = from;
    while at < to && stands(bytes, at, Some(uuid)) {
        let header = bytes.get(at..).unwrap_or_default();
        let blocks = extent::parse(header, 0, None).map_or(0, |extent| extent.block_count.get());
        at += EXTENT_HEADER + usize::from(blocks) * BLOCK as usize;
    }
    at == to
}

/// What becomes of an extent of `len` bytes at the front of `bytes` behind which no other stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is where it shall be, and whole.
    Whole,
    /// The one behind it is damaged so far that nobody knows whether it is in its place, or is none at all: so it may be
    /// whole. Where the next one stands.
    Doubtful(Option<usize>),
    /// Bytes of it are lost or came in between: the next extent stands there.
    Shifted(usize),
}

/// One stands behind it, which is the next and none behind that: those without data are as short as what may be lost.
pub(crate) fn in_place(bytes: &[u8], len: usize, uuid: &[u8; 16]) -> bool {
    let last = len - EXTENT_HEADER;
    stands(bytes, len, Some(uuid)) && (last == 0 || !stands(bytes, last, Some(uuid)))
}

/// Finds that out. What follows whole sectors behind its end may stand behind extents whose headers are damaged; that whole
/// sectors of this one came in between, or were lost together with a header, cannot be told from that. `bytes` are as much
/// as [`REACH`] behind its end, where there is so much.
pub(crate) fn judge(bytes: &[u8], len: usize, uuid: &[u8; 16]) -> Verdict {
    let behind = bytes.get(len..).unwrap_or_default();
    let damaged = resembles(behind, uuid) && !stands(behind, 0, Some(uuid));
    if behind.is_empty() || in_place(bytes, len, uuid) || damaged {
        return Verdict::Whole;
    }
    match find(bytes, EXTENT_HEADER, Some(uuid)) {
        // The one that follows is damaged, and may be in its place.
        Some(next) if next > len && (next - len).is_multiple_of(EXTENT_HEADER) => {
            Verdict::Doubtful(Some(next))
        }
        Some(next) => Verdict::Shifted(next),
        None => Verdict::Doubtful(None),
    }
}

/// The fault's text, with where reading goes on.
pub(crate) fn going_on(wrong: Wrong, at: Option<u64>) -> Wrong {
    let message = match at {
        Some(at) => format!("{}; the next extent that makes sense is at offset {at}", wrong.message),
        None => format!("{}; nothing behind it makes sense", wrong.message),
    };
    Wrong { message, ..wrong }
}
