//! What `info` says of a VHD.

use cowhand_core::Details;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::footer::{DiskType, Footer};
use crate::header::Header;
use crate::locator::{self, Locator};

/// A four-byte code as text: `tap\0` is `tap`.
fn code(bytes: &[u8; 4]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches(['\0', ' ']).to_owned()
}

fn of_footer(footer: &Footer) -> Map<String, Value> {
    let mut facts = Map::new();
    let mut put = |name: &str, value: Value| facts.insert(name.to_owned(), value);
    put("subformat", footer.disk_type.name().into());
    put("uuid", Uuid::from_bytes(footer.unique_id).to_string().into());
    put("creator", code(&footer.creator_app).into());
    let version = footer.creator_version;
    put("creator-version", format!("{}.{}", version >> 16, version & 0xffff).into());
    put("creator-host-os", code(&footer.creator_host_os).into());
    put("creation-time", footer.created().into());
    put("current-size", footer.current_size.into());
    put("original-size", footer.original_size.into());
    let geometry = footer.geometry;
    put(
        "geometry",
        json!({
            "cylinders": geometry.cylinders,
            "heads": geometry.heads,
            "sectors-per-track": geometry.sectors_per_track,
        }),
    );
    if footer.saved_state != 0 {
        put("saved-state", true.into());
    }
    if footer.hidden != 0 {
        put("hidden", footer.hidden.into());
    }
    facts
}

/// The details of a fixed disk.
pub(crate) fn of_fixed(footer: &Footer) -> Details {
    Details { specific: of_footer(footer), ..Details::default() }
}

/// The details of a dynamic or differencing disk.
pub(crate) fn of_dynamic(
    footer: &Footer,
    header: &Header,
    locators: &[Locator],
    has_batmap: bool,
) -> Details {
    let mut specific = of_footer(footer);
    let mut put = |name: &str, value: Value| specific.insert(name.to_owned(), value);
    put("block-size", header.block_size.into());
    put("table-entries", header.max_entries.into());
    if has_batmap {
        put("batmap", true.into());
    }
    if footer.disk_type == DiskType::Differencing {
        put("parent-uuid", Uuid::from_bytes(header.parent_unique_id).to_string().into());
        put("parent-name", locator::parent_name(header).into());
        let list =
            locators.iter().map(|locator| json!({ "code": code(&locator.code), "path": locator.text }));
        put("parent-locators", list.collect());
    }
    Details { cluster_size: Some(header.block_size), specific, ..Details::default() }
}
