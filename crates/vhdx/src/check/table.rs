//! The whole block allocation table, in runs of entries that are alike.

use std::ops::Range;

use cowhand_core::{Error, Result, Storage};

use crate::bat::ENTRY;
use crate::region::Region;

/// What is read at once.
const PIECE: u64 = 1 << 20;

/// Shows the whole region, entries behind the disk's last one among them, to `see` in runs of entries that are alike;
/// `see` may end it. A hole of the file is one run, however long.
pub(crate) fn runs(
    file: &dyn Storage,
    bat: Region,
    see: &mut dyn FnMut(Range<u64>, u64) -> Result<()>,
) -> Result<()> {
    let entries = bat.length / ENTRY;
    let failed = |at| move |error| Error::io("cannot read the BAT", error).at(at);
    let mut bytes = vec![0; bat.length.min(PIECE) as usize];
    let (mut run, mut alike) = (0..0, 0);
    let mut data = 0..0;
    while run.end < entries {
        let at = bat.offset + ENTRY * run.end;
        if !data.contains(&at) {
            data = file.data_at(at).map_err(failed(at))?.unwrap_or(u64::MAX..u64::MAX);
        }
        let hole = (data.start.saturating_sub(at) / ENTRY).min(entries - run.end);
        if hole > 0 {
            if alike != 0 && !run.is_empty() {
                see(run.clone(), alike)?;
                run.start = run.end;
            }
            (run.end, alike) = (run.end + hole, 0);
            continue;
        }
        let piece = bytes.get_mut(..(ENTRY * (entries - run.end)).min(PIECE) as usize).unwrap_or_default();
        file.read_at(at, piece).map_err(failed(at))?;
        for line in piece.as_chunks::<8>().0.chunk_by(|one, other| one == other) {
            // Never empty: a line is of at least one entry.
            let raw = line.first().map_or(0, |raw| u64::from_le_bytes(*raw));
            if raw != alike && !run.is_empty() {
                see(run.clone(), alike)?;
                run.start = run.end;
            }
            (run.end, alike) = (run.end + line.len() as u64, raw);
        }
    }
    if run.is_empty() { Ok(()) } else { see(run, alike) }
}

#[cfg(test)]
mod tests {
    use cowhand_core::MemoryStorage;

    use super::*;
    use crate::bytes::MIB;

    #[test]
    fn a_whole_table_is_runs() {
        let file = MemoryStorage::new();
        let bat = Region { offset: 3 * MIB, length: 4 * MIB };
        file.set_len(8 * MIB).unwrap();
        // The second run crosses from one piece into the next, and what was never written is zero.
        let runs = [(0, 1, 7), (1, 3, 9), (3, 200_000, 2), (200_000, 200_001, 0x1234_5678_9abc)];
        for (from, to, raw) in runs {
            let bytes = u64::to_le_bytes(raw).repeat((to - from) as usize);
            file.write_at(bat.offset + ENTRY * from, &bytes).unwrap();
        }
        let mut seen = Vec::new();
        super::runs(&file, bat, &mut |entries, raw| {
            seen.push((entries.start, entries.end, raw));
            Ok(())
        })
        .unwrap();
        let zeros = (200_001, bat.length / ENTRY, 0);
        assert_eq!(seen, runs.into_iter().chain([zeros]).collect::<Vec<_>>());
    }
}
