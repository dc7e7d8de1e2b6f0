//! What L1 entries call an L2 table and is none.

use std::collections::HashSet;

use cowhand_core::{Error, Result};

use super::{BATCH, Walk, Work, each};
use crate::check::counts::{DATA, L2};
use crate::check::sparse::Sparse;
use crate::entry::OFFSET;

/// So many entries that make no sense, and more than make some, show that a table is none.
const NONSENSE: u32 = 8;

impl Walk<'_> {
    /// What L1 entries name and is no L2 table, as its content shows: an L1 entry is wrong then, and what stands there is
    /// left as it is.
    pub(super) fn impostors(&self, work: &mut Work) -> Result<HashSet<u64>> {
        let mut found = HashSet::new();
        let mut tables = Vec::new();
        let mut sparse = Sparse::new(self.file);
        for part in &self.layout.l1 {
            let mut from = Some(part.bytes.start);
            while let Some(at) = from {
                from = self.l1_piece(&mut sparse, part, at, work, |_, _, entry| {
                    tables.push(entry & OFFSET);
                    entry
                })?;
                if tables.len() >= BATCH {
                    self.unlike_tables(&mut tables, &mut found)?;
                }
            }
        }
        self.unlike_tables(&mut tables, &mut found)?;
        Ok(found)
    }

    /// Takes those `tables` that do not look like L2 tables over into `found`.
    fn unlike_tables(&self, tables: &mut Vec<u64>, found: &mut HashSet<u64>) -> Result<()> {
        let geometry = self.layout.rules.geometry;
        let judge = self.judge();
        let mut sparse = Sparse::new(self.file);
        let mut bytes = vec![0; geometry.cluster_size() as usize];
        tables.sort_unstable();
        tables.dedup();
        for at in tables.drain(..) {
            let cell = self.counts.get(at >> self.layout.bits());
            let read = at != 0 && geometry.in_cluster(at) == 0 && at < self.layout.len;
            if !read {
                continue;
            }
            sparse
                .read(at, &mut bytes)
                .map_err(|error| Error::io("cannot read an L2 table", error).at(at))?;
            let (mut used, mut wrong, mut nonsense) = (0, 0, 0);
            each(&mut bytes, geometry.entry_words(), |_, words| {
                let mut senseless = false;
                judge.mend(words, |trouble| senseless |= trouble.is_nonsense());
                used += 1;
                wrong += u32::from(judge.fine(words).is_none());
                nonsense += u32::from(senseless);
                words
            });
            // Where data stands too, a table must be without fault to be believed.
            let doubted = cell.is(L2) && cell.is(DATA) && (used == 0 || wrong > 0);
            if doubted || (nonsense >= NONSENSE && nonsense * 2 > used) {
                found.insert(at);
            }
        }
        Ok(())
    }
}
