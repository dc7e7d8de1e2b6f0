//! `map`: which parts of a disk are there, and where they stand.

use std::path::Path;

use cowhand_core::{Error, Image, Kind, Link, Maps, Result};
use serde_json::{Value, json};

use crate::archive::part::file_of;
use crate::registry;
use crate::resolve::{folder_of, in_folder};

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
pub fn map(image: &Image, start: u64, length: u64, each: impl FnMut(&MapEntry) -> Result<()>) -> Result<()> {
    walk(image, start, length, |_, _| Ok(()), each)
}

/// As [`map`], and no more than QEMU tells: of some formats it does not know what is where, and where the file holds much
/// less than an image of another says, it looks for holes in the file.
pub fn map_as_qemu(
    image: &Image,
    start: u64,
    length: u64,
    each: impl FnMut(&MapEntry) -> Result<()>,
) -> Result<()> {
    let of_link = |link: &Link| -> Result<Maps> {
        let known = registry::format(link.format)?.qemu().map_or(Maps::Image, |driver| driver.maps);
        Ok(if known == Maps::Holes && !is_hollow(link)? { Maps::Image } else { known })
    };
    let known = image.links().iter().map(of_link).collect::<Result<Vec<_>>>()?;
    let told = |entry: &mut MapEntry, link: &Link| match known.get(entry.depth) {
        Some(Maps::Nothing) => {
            *entry = MapEntry {
                present: true,
                zero: false,
                data: true,
                compressed: false,
                offset: None,
                ..entry.clone()
            };
            Ok(())
        }
        Some(Maps::Alone) => {
            entry.present = true;
            entry.data |= entry.offset.is_some();
            Ok(())
        }
        Some(Maps::Holes) if entry.data => look_for_holes(entry, link),
        // Of a hole in the last layer it tells where there would be room.
        Some(_) if !entry.present && entry.depth + 1 == known.len() => {
            let kept = link.layer.kept_for_hole(entry.start, entry.length);
            (entry.length, entry.offset) = kept.map_err(|error| error.image(&link.name))?;
            Ok(())
        }
        _ => Ok(()),
    };
    walk(image, start, length, told, each)
}

/// The file holds much less than is in it by the image's own account.
fn is_hollow(link: &Link) -> Result<bool> {
    let failed = |error| Error::io("cannot look at", error).image(&link.name);
    let Some(unit) = link.layer.details().cluster_size.filter(|_| link.layer.host_name().is_none()) else {
        return Ok(false);
    };
    let file = link.layer.host();
    let held = file.physical_size().map_err(failed)? / unit;
    let said = file.len().map_err(failed)?.div_ceil(unit);
    Ok(said >= (held * 10 / 9).max(held + 2))
}

/// Data that lies in a hole of the file reads zero. Cuts the entry where that changes.
fn look_for_holes(entry: &mut MapEntry, link: &Link) -> Result<()> {
    let Some(at) = entry.offset else { return Ok(()) };
    let data = link.layer.host().data_at(at);
    let data = data.map_err(|error| Error::io("cannot find the holes", error).image(&link.name).at(at))?;
    let (zero, end) = match data {
        None => (true, u64::MAX),
        Some(data) if data.start > at => (true, data.start),
        Some(data) => (false, data.end),
    };
    entry.zero = zero;
    entry.length = entry.length.min(end - at);
    Ok(())
}

/// Bytes that stand as they are in what is a disk itself are where that says, and nowhere else.
fn follow(entry: &mut MapEntry, link: &Link) -> Result<()> {
    let Some(at) =
        entry.offset.filter(|_| registry::format(link.format).is_ok_and(|format| format.is_bare()))
    else {
        return Ok(());
    };
    let found = link.layer.host().disk_extent(at, entry.length);
    let found =
        found.map_err(|error| Error::io("cannot find what is where", error).image(&link.name).at(at))?;
    if let Some(found) = found {
        *entry = MapEntry {
            length: found.len,
            present: found.kind != Kind::Hole,
            zero: found.kind != Kind::Data,
            data: found.kind == Kind::Data,
            compressed: found.compressed,
            offset: found.host,
            ..std::mem::take(entry)
        };
    }
    Ok(())
}

/// `told` may change an entry, and make it shorter.
fn walk(
    image: &Image,
    start: u64,
    length: u64,
    told: impl Fn(&mut MapEntry, &Link) -> Result<()>,
    mut each: impl FnMut(&MapEntry) -> Result<()>,
) -> Result<()> {
    if start > image.size() {
        return Err(Error::invalid(format!(
            "offset {start} is past the end of the disk ({} bytes)",
            image.size()
        ))
        .image(image.name()));
    }
    let file = |link: &Link| match link.layer.host_name() {
        Some(name) => in_folder(&folder_of(Path::new(&link.name)), &name).display().to_string(),
        None => file_of(&link.name),
    };
    let files: Vec<String> = image.links().iter().map(file).collect();
    let end = start.saturating_add(length).min(image.size());
    let mut at = start;
    let mut held: Option<MapEntry> = None;
    while at < end {
        let found = image.extent(at, end - at)?;
        let mut entry = MapEntry {
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
        if let Some(link) = image.links().get(found.depth) {
            follow(&mut entry, link)?;
            told(&mut entry, link)?;
        }
        at += entry.length;
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
