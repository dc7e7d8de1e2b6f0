//! What an archive says of itself where none of its disks is meant: for `info`.

use std::path::Path;
use std::sync::Arc;

use cowhand_core::{Access, Error, Format, Result, Storage};
use serde_json::{Map, Value, json};

use super::content::Content;
use super::disk::Archive;
use super::part::Part;
use crate::open::Open;
use crate::registry;
use crate::resolve::Files;

/// An archive as a whole.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The file, as it was named.
    pub filename: String,
    /// The format's name.
    pub format: &'static str,
    /// Bytes of the file, up to whole sectors as QEMU counts them.
    pub file_size: u64,
    /// Bytes of space that the file takes.
    pub actual_size: u64,
    /// The disks, in the archive's order: how each can be named on its own, and its guest bytes.
    pub disks: Vec<(String, u64)>,
    /// What else it says, named as programs find it.
    pub facts: Map<String, Value>,
}

/// Looks at the archive `path`, no further than its front. `None`: it is no archive, one of its disks is named, or it has
/// exactly one, which can do without a name.
pub fn listed(path: &Path, how: &Open) -> Result<Option<Listed>> {
    let part = Part::of(path);
    if part.disk.is_some() {
        return Ok(None);
    }
    let files = Files::beside(part.file, how);
    let file = files.trusted(path, Access::Read)?;
    let named = |error: Error| error.image(path.display());
    let format = how.format.as_deref().map(registry::format).transpose()?;
    look(&part, &file, format, how).map_err(named)
}

fn look(
    part: &Part<'_>,
    file: &Arc<dyn Storage>,
    format: Option<&'static dyn Format>,
    how: &Open,
) -> Result<Option<Listed>> {
    let content = Content::of(file, format, how.probing)?;
    let option = content.format.disk_option();
    if option.is_none_or(|option| how.options.iter().any(|(name, _)| name == option)) {
        return Ok(None);
    }
    let Some(archive) = Archive::open(part, file, content, &how.indexing)? else { return Ok(None) };
    let disks = &archive.manifest().disks;
    if disks.len() == 1 {
        return Ok(None);
    }
    let failed = |error| Error::io("cannot look at", error);
    let filename = part.name.display().to_string();
    Ok(Some(Listed {
        format: content.format.names()[0], // never empty: every format has a name
        file_size: file.len().map_err(failed)?.next_multiple_of(512),
        actual_size: file.physical_size().map_err(failed)?,
        disks: disks.iter().map(|disk| (format!("{filename}#{}", disk.name), disk.size)).collect(),
        facts: facts(&archive),
        filename,
    }))
}

/// What an archive says of itself, for programs.
pub(super) fn facts(archive: &Archive) -> Map<String, Value> {
    let manifest = archive.manifest();
    let disks = manifest.disks.iter().map(|disk| json!({ "name": disk.name, "size": disk.size }));
    let configs = manifest.configs.iter();
    let configs = configs.map(|config| json!({ "name": config.name, "size": config.data.len() }));
    let mut facts = Map::new();
    facts.insert("uuid".to_owned(), archive.format().spell(manifest.id).into());
    facts.insert("creation-time".to_owned(), manifest.made.into());
    if let Some(packing) = archive.packing() {
        facts.insert("packed".to_owned(), packing.name().into());
    }
    facts.insert("disks".to_owned(), disks.collect());
    facts.insert("configs".to_owned(), configs.collect());
    facts
}

impl Listed {
    /// As `qemu-img info --output=json` prints an image, but that there is no `virtual-size`: the archive as a whole has
    /// none, and its disks have theirs.
    pub fn to_json(&self) -> Value {
        json!({
            "filename": self.filename,
            "format": self.format,
            "actual-size": self.actual_size,
            "disks": self.disks.iter().map(|(filename, size)| json!({ "filename": filename, "virtual-size": size })).collect::<Vec<_>>(),
            "format-specific": { "type": self.format, "data": self.facts },
            "dirty-flag": false,
        })
    }
}
