//! `info`: what an image file says of itself, and where it stands.

use std::path::{Path, PathBuf};

use cowhand_core::{Details, Error, ParentRef, Result, SnapshotInfo};
use serde_json::{Map, Value, json};

use crate::archive::part::file_of;
use crate::open::{Open, Opened, Parent, open, open_alone, open_as_far, shared_if_raw};
use crate::resolve::{folder_of, in_folder};

/// What is known of one image file.
#[derive(Clone, Debug)]
pub struct Info {
    /// The image, as it was named or found.
    pub filename: String,
    /// The file that it stands in: of a disk of an archive, the archive.
    pub file: String,
    /// What QEMU calls that: `file`, or `host_device`.
    pub protocol: &'static str,
    /// The format's name.
    pub format: &'static str,
    /// Guest bytes.
    pub virtual_size: u64,
    /// Bytes of the file, up to whole sectors as QEMU counts them.
    pub file_size: u64,
    /// Bytes of the file; where it is a device, the device's.
    pub physical_size: u64,
    /// Bytes of space that the file takes.
    pub actual_size: u64,
    /// The mark that hides it from lists; `None`: its format has none.
    pub hidden: Option<bool>,
    /// What the format says.
    pub details: Details,
    /// The parent it names.
    pub parent: Option<ParentRef>,
    /// Whether the parent is there, and is the one.
    pub parent_state: ParentState,
    /// Internal snapshots.
    pub snapshots: Vec<SnapshotInfo>,
}

/// What is known of a parent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ParentState {
    /// Nobody looked, or there is none to look for.
    #[default]
    NotLookedUp,
    /// It lies here, and is the one that the image remembers, as far as it does.
    Found(PathBuf),
    /// It could not be opened, or is another file: why.
    Lost(String),
}

impl ParentState {
    /// For programs.
    pub fn to_json(&self) -> Value {
        match self {
            ParentState::NotLookedUp => Value::Null,
            ParentState::Found(path) => json!({ "resolves": true, "filename": path.display().to_string() }),
            ParentState::Lost(why) => json!({ "resolves": false, "error": why }),
        }
    }
}

/// Looks at `path` alone, and at whether the parent that it names is there. What that stands on is its own business.
pub fn info_with_parent(path: &Path, how: &Open) -> Result<Info> {
    let mut found = info(path, how, false)?.swap_remove(0); // never empty: the image itself
    if found.parent.is_some() || matches!(how.parent, Parent::Given(_)) {
        let (opened, lost) = open_as_far(path, &Open { metadata_only: true, ..shared_if_raw(path, how)? })?;
        found.parent_state = match (opened.links().get(1), lost) {
            (Some(parent), _) => ParentState::Found(PathBuf::from(&parent.name)),
            (None, Some(error)) => ParentState::Lost(error.to_string()),
            (None, None) => ParentState::NotLookedUp,
        };
    }
    Ok(found)
}

/// Looks at `path`, and with `chain` at all its ancestors, top first.
///
/// Without `chain` no other file is opened. What is encrypted needs no secret. A raw image is looked at even while somebody writes to it.
pub fn info(path: &Path, how: &Open, chain: bool) -> Result<Vec<Info>> {
    let opened = if chain {
        open(path, &Open { metadata_only: true, ..shared_if_raw(path, how)? })?
    } else {
        open_alone(path, how)?
    };
    let links = opened.links();
    (0..links.len()).map(|depth| of_link(&opened, depth)).collect()
}

/// The layer at `depth` of what was opened.
pub(crate) fn of_link(opened: &Opened, depth: usize) -> Result<Info> {
    let links = opened.links();
    let link = links.get(depth).ok_or_else(|| Error::invalid("is not in the chain").image(opened.name()))?;
    let found = links.get(depth + 1).map(|parent| ParentState::Found(PathBuf::from(&parent.name)));
    let file = opened
        .watched()
        .into_iter()
        .find(|file| file.name == link.name)
        .ok_or_else(|| Error::invalid("was not opened as a file").image(&link.name))?;
    let failed = |error| Error::io("cannot look at", error).image(&link.name);
    let len = file.storage.len().map_err(failed)?;
    Ok(Info {
        filename: link.name.clone(),
        file: file_of(&link.name),
        protocol: if file.device { "host_device" } else { "file" },
        format: link.format,
        virtual_size: link.layer.size(),
        file_size: len.next_multiple_of(512),
        physical_size: len,
        hidden: link.layer.hidden(),
        actual_size: file.storage.physical_size().map_err(failed)?,
        details: link.layer.details(),
        parent: link.layer.parent(),
        parent_state: found.unwrap_or_default(),
        snapshots: match link.layer.as_snapshots() {
            Some(snapshots) => snapshots.list().map_err(|error| error.image(&link.name))?,
            None => Vec::new(),
        },
    })
}

impl Info {
    /// The image is the file itself: its driver is what bytes are kept on.
    pub fn is_file(&self) -> bool {
        self.format == self.protocol
    }

    /// The parent's name as the image has it.
    pub fn backing_filename(&self) -> Option<String> {
        Some(self.parent.as_ref()?.candidates.first()?.display().to_string())
    }

    /// The parent's name from where the caller stands.
    pub fn full_backing_filename(&self) -> Option<PathBuf> {
        let name = self.parent.as_ref()?.candidates.first()?;
        let has_protocol = name
            .to_string_lossy()
            .split_once(':')
            .is_some_and(|(protocol, _)| protocol.len() > 1 && !protocol.contains('/'));
        if has_protocol || name.is_absolute() {
            return Some(name.clone());
        }
        Some(in_folder(&folder_of(Path::new(&self.filename)), name))
    }

    /// As `qemu-img info --output=json` prints it.
    pub fn to_json(&self) -> Value {
        let file = json!({
            "children": [],
            "virtual-size": self.file_size,
            "filename": self.file,
            "format": self.protocol,
            "actual-size": self.actual_size,
            "format-specific": { "type": "file", "data": {} },
            "dirty-flag": false,
        });
        let mut all = Map::new();
        let mut put = |key: &str, value: Value| all.insert(key.to_owned(), value);
        let children = if self.is_file() { json!([]) } else { json!([{ "name": "file", "info": file }]) };
        put("children", children);
        put("virtual-size", self.virtual_size.into());
        put("filename", self.filename.as_str().into());
        if let Some(size) = self.details.cluster_size {
            put("cluster-size", size.into());
        }
        put("format", self.format.into());
        put("actual-size", self.actual_size.into());
        if self.details.encrypted {
            put("encrypted", true.into());
        }
        if self.details.compressed {
            put("compressed", true.into());
        }
        if self.is_file() {
            put("format-specific", json!({ "type": "file", "data": {} }));
        }
        if !self.details.specific.is_empty() {
            put("format-specific", json!({ "type": self.format, "data": self.details.specific }));
        }
        if let (Some(name), Some(full)) = (self.backing_filename(), self.full_backing_filename()) {
            put("full-backing-filename", full.display().to_string().into());
            put("backing-filename", name.into());
        }
        if let Some(format) = self.parent.as_ref().and_then(|parent| parent.format.as_deref()) {
            put("backing-filename-format", format.into());
        }
        if !self.snapshots.is_empty() {
            put("snapshots", self.snapshots.iter().map(snapshot_json).collect());
        }
        put("dirty-flag", self.details.dirty.into());
        Value::Object(all)
    }
}

/// A snapshot as `qemu-img info --output=json` prints it.
pub fn snapshot_json(snapshot: &SnapshotInfo) -> Value {
    const BILLION: u64 = 1_000_000_000;
    let mut value = json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.date_sec,
        "date-nsec": snapshot.date_nsec,
        "vm-clock-sec": snapshot.vm_clock_nsec / BILLION,
        "vm-clock-nsec": snapshot.vm_clock_nsec % BILLION,
    });
    if let (Some(icount), Some(object)) = (snapshot.icount, value.as_object_mut()) {
        object.insert("icount".to_owned(), icount.into());
    }
    value
}
