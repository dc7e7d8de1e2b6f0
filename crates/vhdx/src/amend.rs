//! `amend`: ids and the physical sector of a file that is there.

use cowhand_core::{OptionKind, OptionSpec, Options, Result};

use crate::create::guid_option;
use crate::guid::Guid;
use crate::metadata::Metadata;

pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "disk_id",
        OptionKind::Text,
        "The id by which a guest knows the disk (SCSI page 83): a UUID, or 'new'; the image gets a new data_write_guid too",
    )
    .own(),
    OptionSpec::new(
        "physical_sector_size",
        OptionKind::Choice(&["512", "4096"]),
        "The disk's physical sector; the image gets a new data_write_guid too",
    )
    .own(),
    OptionSpec::new(
        "data_write_guid",
        OptionKind::Text,
        "The id by which a child knows its parent's content: a UUID, or 'new'; children know the image by the one it had",
    )
    .own(),
];

/// What is to be changed, checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amend {
    disk_id: Option<Guid>,
    physical_sector: Option<u32>,
    pub(crate) data_write_guid: Option<Guid>,
}

impl Amend {
    /// Errors: a value that is none.
    pub(crate) fn of(options: &Options) -> Result<Amend> {
        let guid = |name: &str| match options.text(name) {
            Some("new") => Ok(Some(Guid::random())),
            text => text.map(|text| guid_option(name, text)).transpose(),
        };
        Ok(Amend {
            disk_id: guid("disk_id")?,
            physical_sector: options.number("physical_sector_size").and_then(|size| u32::try_from(size).ok()),
            data_write_guid: guid("data_write_guid")?,
        })
    }

    /// What the metadata says with it.
    pub(crate) fn metadata(&self, old: &Metadata) -> Metadata {
        Metadata {
            disk_id: self.disk_id.unwrap_or(old.disk_id),
            physical_sector: self.physical_sector.unwrap_or(old.physical_sector),
            ..old.clone()
        }
    }
}
