//! `map`: which parts of a disk are there, and where they stand.

use cowhand_core::{Error, Image, Kind, Result};
use serde_json::{Value, json};

use crate::archive::part::file_of;

/// A run of guest bytes that are alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapEntry {
    /// Where it begins, in guest bytes.
    pub start: u64,
    /// Guest bytes.
    pub length: u64,
    /// The layer that decides, 0 being the top.
    pub depth: usize,
    /// A layer says something of it; otherwise it is zero because none does.
    pub present: bool,
    /// It reads zero.
    pub zero: bool,
    /// It is stored as data.
    pub data: bool,
    /// It is stored compressed.
    pub compressed: bool,
    /// Where it stands, verbatim, in the file `filename`.
    pub offset: Option<u64>,
    /// The file of the layer that decides.
    pub filename: String,
}

impl MapEntry {
    /// As `qemu-img map --output=json` prints it.
    pub fn to_json(&self) -> Value {
        let mut value = json!({
            "start": self.start,
            "length": self.length,
            "depth": self.depth,
            "present": self.present,
            "zero": self.zero,
            "data": self.data,
            "compressed": self.compressed,
        });
        if let (Some(offset), Some(object)) = (self.offset, value.as_object_mut()) {
            object.insert("offset".to_owned(), offset.into());
        }
        value
    }

    fn continues(&self, next: &MapEntry) -> bool {
        let alike = |e: &MapEntry| (e.depth, e.present, e.zero, e.data, e.compressed);
        alike(self) == alike(next)
            && match (self.offset, next.offset) {
                (None, None) => true,
                (Some(a), Some(b)) => a.checked_add(self.length) == Some(b),
                _ => false,
            }
    }
}

/// Walks `length` guest bytes from `start` on (cut at the disk's end) and tells of each run, joined as far as alike.
pub fn map(
    image: &Image,
    start: u64,
    length: u64,
    mut each: impl FnMut(&MapEntry) -> Result<()>,
) -> Result<()> {
    if start > image.size() {
        return Err(Error::invalid(format!(
            "offset {start} is past the end of the disk ({} bytes)",
            image.size()
        ))
        .image(image.name()));
    }
    let files: Vec<String> = image.links().iter().map(|link| file_of(&link.name)).collect();
    let end = start.saturating_add(length).min(image.size());
    let mut at = start;
    let mut held: Option<MapEntry> = None;
    while at < end {
        let found = image.extent(at, end - at)?;
        let entry = MapEntry {
            start: at,
            length: found.len,
            depth: found.depth,
            present: found.kind != Kind::Hole,
            zero: found.kind != Kind::Data,
            data: found.kind == Kind::Data,
            compressed: found.compressed,
            offset: found.host,
            filename: files.get(found.depth).cloned().unwrap_or_default(),
        };
        at += found.len;
        match &mut held {
            Some(before) if before.continues(&entry) => before.length += entry.length,
            _ => {
                if let Some(before) = held.replace(entry) {
                    each(&before)?;
                }
            }
        }
    }
    held.as_ref().map_or(Ok(()), each)
}
