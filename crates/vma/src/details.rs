//! What `info` says of an archive.

use cowhand_core::{Details, Manifest};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::layout::CLUSTER;

/// The details of one disk of it.
pub(crate) fn details(manifest: &Manifest, disk: u32) -> Details {
    let mut specific = Map::new();
    let mut put = |name: &str, value: Value| specific.insert(name.to_owned(), value);
    put("uuid", Uuid::from_bytes(manifest.id).to_string().into());
    put("creation-time", manifest.made.into());
    let name = manifest.disks.get(disk as usize).map(|disk| disk.name.as_str());
    put("disk", name.into());
    let disks = manifest.disks.iter();
    put("disks", disks.map(|disk| json!({ "name": disk.name, "size": disk.size })).collect());
    let configs = manifest.configs.iter();
    put("configs", configs.map(|config| json!({ "name": config.name, "size": config.data.len() })).collect());
    Details { cluster_size: Some(CLUSTER), specific, ..Details::default() }
}
