//! What `info` says of a VHDX: what Windows' Get-VHD tells, by the names of the format.

use cowhand_core::{Details, Result};
use serde_json::{Map, Value};

use crate::bat::{Block, ENTRY};
use crate::layer::VhdxLayer;
use crate::state::State;

/// A longer BAT is not gone through for a figure.
const MOST_BAT: u64 = 4 << 20;

pub(crate) fn of(layer: &VhdxLayer) -> Details {
    let (state, header) = (layer.state(), layer.header());
    let metadata = &state.metadata;
    let mut specific = Map::new();
    let mut put = |name: &str, value: Value| specific.insert(name.to_owned(), value);
    let subformat = match (&metadata.parent, metadata.leave_blocks_allocated) {
        (Some(_), _) => "differencing",
        (None, true) => "fixed",
        (None, false) => "dynamic",
    };
    put("subformat", subformat.into());
    put("block-size", metadata.block_size.into());
    put("logical-sector-size", metadata.logical_sector.into());
    put("physical-sector-size", metadata.physical_sector.into());
    put("virtual-disk-id", metadata.disk_id.to_string().into());
    put("data-write-guid", header.data_write_guid.to_string().into());
    put("file-write-guid", header.file_write_guid.to_string().into());
    put("creator", layer.creator.clone().into());
    put("header-sequence-number", header.sequence_number.into());
    put("log-size", header.log.length.into());
    put("log-offset", header.log.offset.into());
    put("log-dirty", header.log.is_pending().into());
    // A block that says what cannot be is the check's to tell.
    if let Some(percentage) = fragmentation(&state).ok().flatten() {
        put("fragmentation-percentage", percentage.into());
    }
    if let Some(parent) = &metadata.parent {
        let entries = parent.entries().map(|(key, value)| (key, value.into()));
        put("parent-locator", Value::Object(entries.collect()));
    }
    Details {
        cluster_size: Some(metadata.block_size),
        dirty: header.log.is_pending(),
        specific,
        ..Details::default()
    }
}

/// Of the blocks in the file, in the guest's order and without the first, how many in a hundred do not stand behind the
/// one before. `None`: finding out would take long.
fn fragmentation(state: &State) -> Result<Option<u64>> {
    let (geometry, differencing) = (&state.geometry, state.is_differencing());
    if geometry.entries(differencing) * ENTRY > MOST_BAT {
        return Ok(None);
    }
    let (mut followers, mut apart) = (0u64, 0);
    let mut before: Option<u64> = None;
    state.payload(&mut |_, raw| {
        if let Ok(Block::Full(place) | Block::Partial(place)) = Block::decode(raw, differencing)
            && let Some(before) = before.replace(place)
        {
            followers += 1;
            apart += u64::from(before.saturating_add(geometry.block_size) != place);
        }
        Ok(())
    })?;
    Ok(Some(apart * 100 / followers.max(1)))
}
