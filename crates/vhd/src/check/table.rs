//! The whole block allocation table, in runs of entries that are alike.

use std::ops::Range;

use cowhand_core::{Error, Result, Storage};

use crate::bat::FREE;
use crate::header::Header;

/// What is read at once.
const PIECE: u64 = 1 << 20;

/// Shows the whole table, entries past the disk's last block among them, to `see` in runs of blocks whose entries are
/// alike; `see` may end it.
pub(super) fn runs(
    file: &dyn Storage,
    header: &Header,
    see: &mut dyn FnMut(Range<u64>, u32) -> Result<()>,
) -> Result<()> {
    let entries = u64::from(header.max_entries);
    let failed = |at| move |error| Error::io("cannot read the block allocation table", error).at(at);
    let mut bytes = vec![0; (4 * entries).min(PIECE) as usize];
    let mut run = 0..0;
    let mut alike = FREE;
    let mut data = 0..0;
    while run.end < entries {
        let at = header.bat_at + 4 * run.end;
        if !data.contains(&at) {
            data = file.data_at(at).map_err(failed(at))?.unwrap_or(u64::MAX..u64::MAX);
        }
        // A hole is zeros, however long.
        let hole = (data.start.saturating_sub(at) / 4).min(entries - run.end);
        if hole > 0 {
            if alike != 0 && !run.is_empty() {
                see(run.clone(), alike)?;
                run.start = run.end;
            }
            (run.end, alike) = (run.end + hole, 0);
            continue;
        }
        let piece = bytes.get_mut(..(4 * (entries - run.end)).min(PIECE) as usize).unwrap_or_default();
        file.read_at(at, piece).map_err(failed(at))?;
        for line in piece.as_chunks::<4>().0.chunk_by(|one, other| one == other) {
            // Never empty: a line is of at least one entry.
            let entry = line.first().map_or(FREE, |entry| u32::from_be_bytes(*entry));
            if entry != alike && !run.is_empty() {
                see(run.clone(), alike)?;
                run.start = run.end;
            }
            (run.end, alike) = (run.end + line.len() as u64, entry);
        }
    }
    if run.is_empty() { Ok(()) } else { see(run, alike) }
}

#[cfg(test)]
mod tests {
    use cowhand_core::MemoryStorage;

    use super::*;

    #[test]
    fn a_whole_table_is_runs() {
        const ENTRIES: u32 = 600_000;
        let file = MemoryStorage::new();
        let header = Header::new(512, 1536, ENTRIES, 2 << 20);
        file.set_len(header.bat_end()).unwrap();
        // The first piece ends inside the run of free entries, and what was never written is zero.
        let runs = [(0, 1, 7), (1, 3, 9), (3, 400_000, FREE), (400_000, 400_001, 0x1234_5678)];
        for (from, to, entry) in runs {
            file.write_at(header.bat_at + 4 * from, &u32::to_be_bytes(entry).repeat((to - from) as usize))
                .unwrap();
        }
        let mut seen = Vec::new();
        super::runs(&file, &header, &mut |blocks, entry| {
            seen.push((blocks.start, blocks.end, entry));
            Ok(())
        })
        .unwrap();
        let zeros = (400_001, u64::from(ENTRIES), 0);
        assert_eq!(seen, runs.into_iter().chain([zeros]).collect::<Vec<_>>());
    }
}
