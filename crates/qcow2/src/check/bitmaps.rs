//! What persistent bitmaps take of the file: their directory, their tables, the clusters of their bits.

use cowhand_core::{Error, Result, Storage};

use super::findings::Findings;
use super::sparse::Sparse;
use crate::bitmaps::{self, Word};
use crate::header::Header;

/// What the bitmaps take.
#[derive(Debug, Default)]
pub(super) struct Used {
    /// Offset and bytes of the directory and of tables.
    pub(super) tables: Vec<(u64, u64)>,
    /// Offsets of clusters of bits.
    pub(super) data: Vec<u64>,
}

/// Looks at all bitmaps of a file of `len` bytes. Errors: there is no directory to be read.
pub(super) fn read(file: &dyn Storage, header: &Header, len: u64, found: &mut Findings) -> Result<Used> {
    let Some(at) = header.extensions.bitmaps() else {
        return Err(
            Error::corrupt("autoclear_features", "says bitmaps, and there is no bitmaps extension").at(88)
        );
    };
    let bytes = bitmaps::read_bytes(file, header, at)?;
    let mut used = Used { tables: vec![(at.offset, at.size)], ..Used::default() };
    let mut tables: Vec<(u64, u64)> = Vec::new();
    let mut wrong = |at: u64, message: &dyn Fn() -> String| {
        found.corrupt(at, message);
        found.needs.bitmaps = true;
    };
    for (here, entry) in bitmaps::entries(&bytes, at, header) {
        match entry.map(|entry| (entry.table_at, u64::from(entry.table_len) * 8)) {
            Ok((table, size)) if table + size <= len => tables.push((table, size)),
            Ok((table, _)) => wrong(here, &|| {
                format!(
                    "bitmap directory at offset {here}: the bitmap table at {table} does not lie in the file"
                )
            }),
            Err(error) => wrong(here, &|| error.to_string()),
        }
    }
    // Tables that lie over each other are read once: the overlap is found when clusters are counted.
    used.tables.extend(&tables);
    tables.sort_unstable();
    tables.dedup();
    let mut sparse = Sparse::new(file);
    let mut done = 0;
    for (at, size) in tables {
        let (mut from, end) = (at.max(done), at + size);
        let failed = |error| Error::io("cannot read a bitmap's table", error).at(at);
        while let Some(start) = sparse.data_in(from..end).map_err(failed)?.filter(|_| from < end) {
            let start = start / 8 * 8;
            let mut piece = vec![0; (end - start).min(64 << 10) as usize];
            sparse.read(start, &mut piece).map_err(failed)?;
            for (index, raw) in (0u64..).zip(piece.as_chunks::<8>().0) {
                let at = start + 8 * index;
                match Word::decode(u64::from_be_bytes(*raw), header.geometry, at) {
                    Ok(Word::Stored(offset)) if offset < len => used.data.push(offset),
                    Ok(Word::Stored(offset)) => wrong(at, &|| {
                        format!("bitmap table at offset {at}: points at {offset}, past the end of the file")
                    }),
                    Ok(Word::Zeros | Word::Ones) => {}
                    Err(error) => wrong(at, &|| error.to_string()),
                }
            }
            from = start + piece.len() as u64;
        }
        done = done.max(end);
    }
    Ok(used)
}
