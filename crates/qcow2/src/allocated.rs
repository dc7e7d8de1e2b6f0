//! What an image keeps of its disk: one pass over the L2 tables, past the cache.

use std::ops::Range;

use cowhand_core::{Error, Result};

use crate::cache::read_to_end;
use crate::entry::{COPIED, Entry, OFFSET, Words};
use crate::layer::Qcow2Layer;

/// What is found of neighbours that are kept alike, told as one.
struct Runs<'a> {
    see: &'a mut dyn FnMut(Range<u64>, u64) -> Result<()>,
    held: Option<(Range<u64>, u64)>,
}

impl Runs<'_> {
    /// The guest bytes `range` are kept in `bytes` of the file; `whole`: neighbours may be told together.
    fn add(&mut self, range: Range<u64>, bytes: u64, whole: bool) -> Result<()> {
        if let Some((held, kept)) = self.held.as_mut().filter(|(held, _)| whole && held.end == range.start) {
            held.end = range.end;
            *kept += bytes;
            return Ok(());
        }
        self.end()?;
        if whole {
            self.held = Some((range, bytes));
            return Ok(());
        }
        (self.see)(range, bytes)
    }

    fn end(&mut self) -> Result<()> {
        match self.held.take() {
            Some((range, bytes)) => (self.see)(range, bytes),
            None => Ok(()),
        }
    }
}

impl Qcow2Layer {
    /// See `Layer::allocated`. A cluster counts where it has a place, also one that only reads zero; with extended L2
    /// its subclusters that hold data do; a compressed cluster counts with its sectors. What was written and not
    /// flushed is flushed.
    pub(crate) fn each_allocated(&self, see: &mut dyn FnMut(Range<u64>, u64) -> Result<()>) -> Result<()> {
        self.flush_all()?;
        let shared = &self.view.shared;
        let geometry = shared.geometry();
        let size = self.view.size();
        let l1 = self.view.l1().clone();
        refuse_shared_tables(&l1.entries, l1.at)?;
        let mut runs = Runs { see, held: None };
        let mut table = vec![0; geometry.cluster_size() as usize];
        for (index, entry) in l1.entries.iter().enumerate() {
            let start = (index as u64).checked_shl(geometry.l2_bits()).filter(|start| *start < size);
            let Some(start) = start else { break };
            let Some(at) = shared.l2_table(*entry, l1.at + 8 * index as u64)? else { continue };
            let failed = |error| Error::io("cannot read an L2 table", error).at(at);
            // A sparse file may claim terabytes of tables that are not there.
            let data = shared.file.data_at(at).map_err(failed)?;
            if data.is_none_or(|data| data.start >= at + geometry.cluster_size()) {
                continue;
            }
            read_to_end(shared.file.as_ref(), at, &mut table).map_err(failed)?;
            self.table_allocated(&table, at, start, size, &mut runs)?;
        }
        runs.end()
    }

    fn table_allocated(
        &self,
        table: &[u8],
        at: u64,
        start: u64,
        size: u64,
        runs: &mut Runs<'_>,
    ) -> Result<()> {
        let shared = &self.view.shared;
        let geometry = shared.geometry();
        let cluster = geometry.cluster_size();
        let words = table.as_chunks::<8>().0;
        for (index, entry) in words.chunks(geometry.entry_words()).enumerate() {
            let from = start + ((index as u64) << geometry.cluster_bits());
            if from >= size {
                break;
            }
            let word = |at: usize| entry.get(at).map_or(0, |word| u64::from_be_bytes(*word));
            let words = Words(word(0), word(1));
            if words == Words(0, 0) {
                continue;
            }
            let range = from..(from + cluster).min(size);
            match shared.decode(words, at + (index * geometry.entry_words() * 8) as u64)? {
                Entry::Compressed(packed) => runs.add(range, packed.len, false)?,
                Entry::Plain(plain) if geometry.extended() => {
                    let bytes = u64::from(plain.data.count_ones()) * geometry.subcluster_size();
                    if bytes > 0 {
                        runs.add(range, bytes, bytes == cluster)?;
                    }
                }
                Entry::Plain(_) if words.0 & (COPIED | OFFSET) != 0 => runs.add(range, cluster, true)?,
                Entry::Plain(_) => {}
            }
        }
        Ok(())
    }
}

/// A table that two L1 entries name would be counted twice, and read as often as a hostile image likes.
pub(crate) fn refuse_shared_tables(l1: &[u64], at: u64) -> Result<()> {
    let mut tables: Vec<(u64, usize)> =
        l1.iter().map(|entry| entry & OFFSET).zip(0..).filter(|(offset, _)| *offset != 0).collect();
    tables.sort_unstable();
    match tables.iter().zip(tables.iter().skip(1)).find(|(a, b)| a.0 == b.0) {
        None => Ok(()),
        Some((_, (offset, index))) => Err(Error::corrupt(
            "L1 entry",
            format!("points at the L2 table at {offset}, which another entry has"),
        )
        .at(at + 8 * *index as u64)
        .hint("the image is damaged; a check tells how far")),
    }
}
