//! What a file is: its format, and how it is packed where that format's files come packed.

use std::io::Read;
use std::sync::Arc;

use cowhand_core::{Error, Format, Probe, Result, Storage, Walk};
use cowhand_packed::Packing;

use crate::registry::{self, Probing};

/// What a file is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content {
    pub(crate) format: &'static dyn Format,
    /// How the file is packed; `None`: it is not, or what is packed in it is nothing that comes so.
    pub(crate) packing: Option<&'static dyn Packing>,
}

/// Bytes that tell how a file is packed.
const SIGNATURE: u64 = 16;
/// Bytes that a format is shown of what is packed.
const HEAD: u64 = 4096;
/// Bytes of the file that are looked through for them, at most: more than the largest block of any packing. A guest may
/// have written to its disk what says that it is packed, and goes on without end with nothing in it.
const FAR: u64 = 80 << 20;

impl Content {
    /// By the content, or of the format that somebody `named`.
    pub(crate) fn of(
        file: &Arc<dyn Storage>,
        named: Option<&'static dyn Format>,
        probing: Probing,
    ) -> Result<Content> {
        let packing = if probing == Probing::Whole { packing(file.as_ref())? } else { None };
        let detect = || registry::detect_by(file.as_ref(), probing);
        match (named, packing) {
            (Some(format), packing) => {
                Ok(Content { format, packing: packing.filter(|_| format.comes_packed()) })
            }
            (None, Some(packing)) => match packed_format(file, packing) {
                Some(format) => Ok(Content { format, packing: Some(packing) }),
                None => Ok(Content { format: detect()?, packing: None }),
            },
            (None, None) => Ok(Content { format: detect()?, packing: None }),
        }
    }
}

/// How the file begins to be packed, whatever is packed in it.
pub(crate) fn packing(file: &dyn Storage) -> Result<Option<&'static dyn Packing>> {
    let failed = |error| Error::io("cannot read its head", error);
    let mut head = [0; SIGNATURE as usize];
    let len = file.len().map_err(failed)?.min(SIGNATURE) as usize;
    let head = head.get_mut(..len).unwrap_or_default();
    file.read_at(0, head).map_err(failed)?;
    Ok(cowhand_packed::detect(head))
}

/// The front of what is packed, as far as it can be unpacked.
pub(crate) fn unpacked_head(file: &Arc<dyn Storage>, packing: &dyn Packing) -> Vec<u8> {
    let mut head = Vec::new();
    let unpacked = packing.front(Box::new(Walk::new(file.clone()).take(FAR)));
    // An error behind the first bytes is said when those are read that it is about.
    let _ = unpacked.take(HEAD).read_to_end(&mut head);
    head
}

/// The format of what is packed, where its files come so. What cannot be unpacked is nothing that does.
fn packed_format(file: &Arc<dyn Storage>, packing: &dyn Packing) -> Option<&'static dyn Format> {
    let head = unpacked_head(file, packing);
    let whole = cowhand_core::MemoryStorage::from_bytes(&head);
    let comes_so =
        |format: &&'static dyn Format| format.comes_packed() && format.probe(&head, &whole) == Probe::Sure;
    registry::formats().iter().copied().find(comes_so)
}
