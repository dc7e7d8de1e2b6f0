//! What `info` says of a VHD.

use cowhand_core::Details;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::batmap::Batmap;
use crate::find::{CopyState, Found};
use crate::footer::{DiskType, EPOCH, Footer};
use crate::header::Header;
use crate::locator::{self, Locator};
use crate::naming;

/// How the places of the footer were found when the image was opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footers {
    pub(crate) end: CopyState,
    pub(crate) front: CopyState,
    pub(crate) short: bool,
}

impl Footers {
    /// Of an image that was just made.
    pub(crate) const MADE: Footers = Footers { end: CopyState::Good, front: CopyState::Good, short: false };

    pub(crate) fn of(found: &Found) -> Footers {
        Footers { end: found.end, front: found.front, short: found.short }
    }
}

/// A four-byte code as text: `tap\0` is `tap`.
fn code(bytes: &[u8; 4]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches(['\0', ' ']).to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn of_footer(footer: &Footer, footers: Footers) -> Map<String, Value> {
    let mut facts = Map::new();
    let mut put = |name: &str, value: Value| facts.insert(name.to_owned(), value);
    put("subformat", footer.disk_type.name().into());
    // The bytes in the file's order, as XenServer and QEMU print them; Windows swaps those of the first three parts.
    put("uuid", Uuid::from_bytes(footer.unique_id).to_string().into());
    put("uuid-in-windows", Uuid::from_bytes_le(footer.unique_id).to_string().into());
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
    put("footer-at-end", footers.end.name().into());
    if footer.disk_type != DiskType::Fixed {
        put("footer-copy", footers.front.name().into());
    }
    if footers.short {
        put("footer-length", 511.into());
    }
    if footer.features & 1 != 0 {
        put("temporary", true.into());
    }
    if footer.saved_state != 0 {
        put("saved-state", true.into());
    }
    if footer.hidden != 0 {
        put("hidden", footer.hidden.into());
    }
    facts
}

/// The details of a fixed disk.
pub(crate) fn of_fixed(footer: &Footer, footers: Footers) -> Details {
    Details { specific: of_footer(footer, footers), ..Details::default() }
}

/// The details of a dynamic or differencing disk.
pub(crate) fn of_dynamic(
    footer: &Footer,
    footers: Footers,
    header: &Header,
    locators: &[Locator],
    batmap: Option<&Batmap>,
) -> Details {
    let mut specific = of_footer(footer, footers);
    let mut put = |name: &str, value: Value| specific.insert(name.to_owned(), value);
    put("block-size", header.block_size.into());
    put("table-entries", header.max_entries.into());
    put("header-offset", header.at.into());
    put("table-offset", header.bat_at.into());
    if let Some(batmap) = batmap {
        put("batmap", true.into());
        put("batmap-marker", batmap.marker.into());
        if let Some(key) = &batmap.key {
            put("batmap-key-nonce", hex(&key.nonce).into());
            put("batmap-key-hash", hex(&key.hash).into());
        }
    }
    if footer.disk_type == DiskType::Differencing {
        put("parent-uuid", Uuid::from_bytes(header.parent_unique_id).to_string().into());
        put("parent-name", locator::parent_name(header).into());
        if header.parent_timestamp != 0 {
            put("parent-time", (EPOCH + u64::from(header.parent_timestamp)).into());
        }
        if let Some(format) = naming::note(&header.tail) {
            put("parent-format", format.into());
        }
        let used = header.locators.iter().filter(|raw| raw.code != [0; 4]);
        let list = used.map(|raw| {
            let text = locators.iter().find(|locator| locator.at == raw.data_offset.get());
            json!({
                "code": code(&raw.code),
                "path": text.map(|locator| locator.text.as_str()),
                "offset": raw.data_offset.get(),
                "length": raw.data_length.get(),
                "space": raw.space(),
            })
        });
        put("parent-locators", list.collect());
    }
    Details { cluster_size: Some(header.block_size), specific, ..Details::default() }
}
