//! Both region tables: each alone, and against each other.

use cowhand_core::{Error, ErrorKind, Result, Storage};

use super::findings::Findings;
use crate::header::LogPlace;
use crate::region::{self, Regions, TABLES};

/// What the region tables say.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) regions: Regions,
    /// The table that is to be written over the other one, if that is not the same.
    pub(super) over: Option<usize>,
}

/// `None`: neither table can be believed, and it was said why. Errors: a region that is required is not known; a table
/// cannot be read.
pub(super) fn look(
    file: &dyn Storage,
    len: u64,
    log: &LogPlace,
    all: &mut Findings,
) -> Result<Option<Found>> {
    let tables = [region::read_table(file, TABLES[0])?, region::read_table(file, TABLES[1])?];
    let good = tables.each_ref().map(|table| region::is_good(table));
    let parse = |slot: usize| Regions::parse(&tables[slot], len, log).map_err(|error| error.at(TABLES[slot]));
    let counts = match good {
        [true, _] => 0,
        [false, true] => 1,
        _ => {
            all.corrupt(TABLES[0], || "neither region table has a right signature and checksum".to_owned());
            return Ok(None);
        }
    };
    let mut from = counts;
    let regions = match parse(counts) {
        Ok(regions) => regions,
        Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
        Err(error) => {
            // Opening the image goes no further; but what the second one says may be possible.
            let second = match good {
                [true, true] => parse(1).ok(),
                _ => None,
            };
            let Some(second) = second else {
                all.corrupt(error.offset(), || error.to_string());
                return Ok(None);
            };
            from = 1;
            all.corrupt(error.offset(), || format!("{error}; what the second table says can be"));
            second
        }
    };
    if good != [true, true] {
        let bad = 1 - counts;
        all.corrupt(TABLES[bad], || {
            format!("region table {} has a wrong signature or checksum; the other one counts", bad + 1)
        });
    } else if from == counts && tables[0] != tables[1] {
        all.corrupt(TABLES[1], || "the region tables do not say the same; the first one counts".to_owned());
    }
    if regions.unmarked {
        all.note(TABLES[from], || {
            "the BAT and the metadata region are not marked as required, as in files of QEMU; VirtualBox refuses that"
                .to_owned()
        });
    }
    for (guid, region) in &regions.others {
        all.note(region.offset, || {
            format!(
                "the {} bytes at {} are of region {guid}, which is not known",
                region.length, region.offset
            )
        });
    }
    let over = (tables[0] != tables[1]).then_some(from);
    Ok(Some(Found { regions, over }))
}

/// Writes the table that counts over the other one. Errors: one of them cannot be read or written.
pub(super) fn write_over(file: &dyn Storage, from: usize) -> Result<()> {
    // Never out of bounds: there are two.
    let (from, to) = (TABLES[from], TABLES[1 - from]);
    let table = region::read_table(file, from)?;
    crate::bytes::write(file, "region table", to, &table)?;
    file.sync().map_err(|error| Error::io("cannot make the repair durable", error))
}
