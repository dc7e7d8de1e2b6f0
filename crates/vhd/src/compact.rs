//! Giving back what nothing uses of the file: blocks that say nothing go, the last ones move into the holes in front of
//! them, and the file is cut. A block is copied, and that is durable, before the table names its new place; its old one
//! is left alone until then.

use cowhand_core::{Error, ErrorKind, Progress, Result};

use crate::bitmap;
use crate::dynamic::Dynamic;
use crate::geometry::SECTOR;
use crate::writer::Alone;

/// Blocks that are moved before the table is written: a run that is stopped loses no more.
const BATCH: usize = 64;

impl Dynamic {
    /// See `Layer::compact`.
    pub(crate) fn compact_file(&self, progress: &dyn Progress) -> Result<()> {
        let alone = self.alone()?;
        let (writer, ready) = (alone.writer, alone.ready);
        self.drop_empty(&alone)?;
        self.bring_table_home(&alone)?;
        // What is in front of the first block is left alone otherwise.
        let first = self.state().bat.in_use().map(|(_, entry)| u64::from(entry) * SECTOR).min();
        if let Some(first) = first.filter(|first| *first > ready.metadata_end()) {
            ready.space().free_front(ready.metadata_end()..first);
        }
        let done = self.move_down(&alone, progress);
        // What was moved is of use also where it was stopped.
        self.write_back(writer, ready, true)?;
        self.tighten(writer, ready)?;
        done
    }

    /// Takes blocks out of the file that have no sector of the disk.
    fn drop_empty(&self, alone: &Alone<'_>) -> Result<()> {
        let state = self.state();
        let blocks = state.size.div_ceil(self.block_size);
        let all: Vec<u64> = state.bat.in_use().map(|(block, _)| block).collect();
        for block in all {
            let sectors = state.used(block) / SECTOR;
            let empty = block >= blocks
                || self
                    .look(&state, block, |_, bits| bitmap::run(bits, self.order, 0, sectors))?
                    .is_some_and(|(alike, present)| !present && alike == sectors);
            if empty {
                self.may_be_absent(alone.writer, alone.ready, block..block + 1)?;
                self.free(alone.writer, alone.ready, &state, block)?;
            }
        }
        self.write_back(alone.writer, alone.ready, true)?;
        self.tighten(alone.writer, alone.ready)
    }

    /// Moves blocks, the last one first, as long as there is a hole in front of it.
    fn move_down(&self, alone: &Alone<'_>, progress: &dyn Progress) -> Result<()> {
        let state = self.state();
        let mut blocks: Vec<(u32, u64)> = state.bat.in_use().map(|(block, entry)| (entry, block)).collect();
        blocks.sort_unstable_by(|a, b| b.cmp(a));
        let total = blocks.len() as u64 * self.block_size;
        for (moved, (entry, block)) in blocks.into_iter().enumerate() {
            let at = u64::from(entry) * SECTOR;
            let hole = alone.ready.space().first_hole();
            if hole.is_none_or(|hole| hole >= at) || !self.move_block(alone, block, at)? {
                break;
            }
            if (moved + 1).is_multiple_of(BATCH) {
                self.write_back(alone.writer, alone.ready, false)?;
            }
            if progress.at((moved as u64 + 1) * self.block_size, total).is_break() {
                return Err(Error::new(ErrorKind::Cancelled, "stopped on request"));
            }
        }
        Ok(())
    }
}
