//! Other images of an image's make: the options they are made with.

use crate::header::Header;
use crate::metadata::Metadata;

/// The options that make another image like this one. What had a parent becomes dynamic. `replacing`: it takes this
/// one's place, so a guest and its children know it by the same ids.
pub(crate) fn options(metadata: &Metadata, header: &Header, replacing: bool) -> Vec<(&'static str, String)> {
    // A child's file may say that its blocks stay allocated, and that means nothing.
    let fixed = metadata.leave_blocks_allocated && metadata.parent.is_none();
    let mut options = vec![
        ("subformat", if fixed { "fixed" } else { "dynamic" }.to_owned()),
        ("block_size", metadata.block_size.to_string()),
        ("logical_sector_size", metadata.logical_sector.to_string()),
        ("physical_sector_size", metadata.physical_sector.to_string()),
    ];
    // A file whose log has no room is legal, and none is made here.
    if header.log.length > 0 {
        options.push(("log_size", header.log.length.to_string()));
    }
    if replacing {
        options.push(("disk_id", metadata.disk_id.to_string()));
        options.push(("data_write_guid", header.data_write_guid.to_string()));
    }
    options
}
