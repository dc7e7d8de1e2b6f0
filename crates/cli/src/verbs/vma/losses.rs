//! What is wrong with an archive, a line for each thing.

use cowhand::archive::Ranges;
use cowhand::{ArchiveFaults, Printable, Result};

use crate::output::Output;

/// What breaks the format's rules.
pub(super) fn faults(out: &mut Output, faults: &ArchiveFaults) -> Result<()> {
    for fault in &faults.list {
        match fault.at {
            Some(at) => writeln!(out, "damaged at offset {at}: {}", Printable(&fault.message))?,
            None => writeln!(out, "damaged: {}", Printable(&fault.message))?,
        }
    }
    further(out, faults.count, faults.list.len())
}

/// What is `missing`, or else not as it should be, of a disk.
pub(super) fn ranges(out: &mut Output, what: &str, disk: &str, ranges: &Ranges) -> Result<()> {
    for range in &ranges.list {
        let len = range.end - range.start;
        writeln!(out, "{what}: disk {} offset {} length {len}", Printable(disk), range.start)?;
    }
    further(out, ranges.count, ranges.list.len())
}

/// Of what is in a disk and differs.
pub(super) const DIFFERS: &str = "differs from its digest";

fn further(out: &mut Output, count: u64, listed: usize) -> Result<()> {
    match count - listed as u64 {
        0 => Ok(()),
        more => writeln!(out, "and {more} more of these"),
    }
}
