//! Where the table stands: in front of the blocks, or behind all else where it had to become longer.
//!
//! Another table is written where nothing stands, and one write of the header's first sector takes it into use: a power
//! cut leaves the old one or the new one. Blocks stay where they are, but for those that stand where it is to go home to.

use std::ops::Range;
use std::sync::Arc;

use cowhand_core::{Error, ErrorKind, Result};

use crate::bat::{Bat, FREE};
use crate::batmap::{Batmap, Map};
use crate::dynamic::{Dynamic, State};
use crate::footer::FOOTER_LEN;
use crate::geometry::SECTOR;
use crate::header::{HEADER_LEN, Header};
use crate::writer::Alone;

/// Bytes that are written at once.
const PIECE: usize = 1 << 20;

/// Where a table may begin: behind the footer's copy and where all programs write the header.
const FRONT: u64 = FOOTER_LEN + HEADER_LEN;

/// Bytes of the table that `header` describes, wherever it stands, with its padding and a batmap like that one.
fn room(header: &Header, batmap: Option<Batmap>) -> u64 {
    let end = Header { bat_at: 0, ..header.clone() }.bat_end();
    batmap.map_or(end, |batmap| batmap.behind(end, header.max_entries).map().end)
}

/// The entries that the table has now, in one of so many.
fn words(state: &State, entries: u32) -> Vec<u32> {
    let mut words = vec![FREE; entries as usize];
    for (block, entry) in state.bat.in_use() {
        if let Some(word) = words.get_mut(block as usize) {
            *word = entry;
        }
    }
    words
}

impl Dynamic {
    /// The table that `header` names, for a disk of `size` bytes, read so that it can be changed.
    pub(crate) fn table(&self, header: &Header, size: u64) -> Result<Arc<Bat>> {
        let bat = Bat::new(header, size.div_ceil(self.block_size));
        bat.load(self.file.as_ref())?;
        Ok(Arc::new(bat))
    }

    /// Gives the disk a table of so many entries, all it has in it.
    pub(crate) fn lengthen_table(&self, alone: &Alone<'_>, entries: u32) -> Result<()> {
        let words = words(&self.state(), entries);
        let header = self.table_behind(alone, entries)?;
        let batmap = alone.ready.batmap_head().map(|head| head.behind(header.bat_end(), entries));
        self.switch_table(alone, header, &words, batmap)
    }

    /// The header with room behind everything for a table of so many entries, and for a batmap where there is one.
    pub(crate) fn table_behind(&self, alone: &Alone<'_>, entries: u32) -> Result<Header> {
        let state = self.state();
        let mut header = Header { max_entries: entries, ..state.header.clone() };
        let len = room(&header, alone.ready.batmap_head());
        header.bat_at = self.reserve(alone, len)?;
        alone.ready.set_metadata_end(alone.ready.metadata_end().max(header.bat_at + len));
        Ok(header)
    }

    /// Writes the table that `header` names, whose room is nobody's, and its batmap, and takes it into use: a power cut
    /// leaves the old table or this one.
    pub(crate) fn switch_table(
        &self,
        alone: &Alone<'_>,
        header: Header,
        words: &[u32],
        batmap: Option<Batmap>,
    ) -> Result<()> {
        let file = self.file.as_ref();
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        bytes.resize((header.bat_end() - header.bat_at) as usize, 0xff);
        let mut at = header.bat_at;
        for piece in bytes.chunks(PIECE) {
            file.write_at(at, piece)
                .map_err(|error| Error::io("cannot write the block allocation table", error).at(at))?;
            at += piece.len() as u64;
        }
        let map = batmap.map(|head| Map::empty(file, head)).transpose()?;
        self.barrier(alone.writer)?;
        let bat = self.table(&header, self.state().size)?;
        // After a failure nobody knows which table counts, before it is opened again.
        self.rewrite_header(alone, |old| *old = header).inspect_err(|_| alone.writer.fail())?;
        if let (Some(mut old), Some(new)) = (alone.ready.batmap(), map) {
            *old = new;
        }
        self.set_state(State { bat, ..State::clone(&self.state()) });
        Ok(())
    }

    /// Where the parent's locators stand, with the room that they have.
    fn locators(&self, header: &Header) -> impl Iterator<Item = Range<u64>> {
        let file_len = self.file_len();
        let places = header.locators.iter().map(|raw| raw.place());
        places
            .filter(move |place| place.start < file_len)
            .map(move |place| place.start..place.end.min(file_len))
    }

    /// Finds where what is not a block ends.
    pub(crate) fn find_metadata_end(&self, alone: &Alone<'_>) {
        let state = self.state();
        let used = self.metadata(alone, &state).into_iter().chain(self.locators(&state.header));
        alone.ready.set_metadata_end(used.map(|used| used.end).max().unwrap_or(0));
    }

    /// Where the table would stand in front of the blocks, with its batmap and behind what else stands there. `None`: it
    /// stands there, or nearly, or blocks only behind it.
    pub(crate) fn home_of_table(&self, alone: &Alone<'_>, state: &State) -> Option<Range<u64>> {
        let header = &state.header;
        let first = state.bat.in_use().map(|(_, entry)| u64::from(entry) * SECTOR).min();
        if first.is_some_and(|first| first >= header.bat_at) {
            return None;
        }
        let len = room(header, alone.ready.batmap_head());
        let locators = self.locators(header);
        let mut used: Vec<Range<u64>> =
            locators.chain(std::iter::once(header.at..header.at + HEADER_LEN)).collect();
        used.sort_by_key(|range| range.start);
        let mut start = FRONT;
        for range in used {
            if range.start < start + len && range.end > start {
                start = range.end.checked_next_multiple_of(SECTOR).filter(|start| *start < header.bat_at)?;
            }
        }
        (start + len <= header.bat_at).then(|| start..start + len)
    }

    /// Brings a table that stands behind blocks to the front, so that the file can become shorter and can be read from
    /// its start on. Blocks that stand there move first. Where there is no room for them, the table stays.
    pub(crate) fn bring_table_home(&self, alone: &Alone<'_>) -> Result<()> {
        let Some(home) = self.home_of_table(alone, &self.state()) else { return Ok(()) };
        let mut held = alone.ready.space().withhold(&home);
        if let Err(error) = self.clear_of_blocks(alone, &home, &mut held) {
            held.into_iter().for_each(|range| alone.ready.space().give_back(range));
            return if error.kind() == ErrorKind::NoSpace { Ok(()) } else { Err(error) };
        }
        let state = self.state();
        let header = Header { bat_at: home.start, ..state.header.clone() };
        let words = words(&state, header.max_entries);
        let head = alone.ready.batmap_head();
        let batmap = head.map(|head| head.behind(header.bat_end(), header.max_entries));
        self.switch_table(alone, header, &words, batmap)?;
        self.find_metadata_end(alone);
        let old = state.header.bat_at..state.header.bat_end();
        for Range { start, end } in
            [old].into_iter().chain(head.into_iter().flat_map(|head| [head.header(), head.map()]))
        {
            let (start, end) = (start.next_multiple_of(SECTOR), end / SECTOR * SECTOR);
            if start < end {
                alone.ready.space().give_back(start..end);
            }
        }
        Ok(())
    }

    /// Moves the blocks out of `range`; nobody reads them there any more, and nothing of it is given out: `held` is what
    /// was free of it.
    fn clear_of_blocks(
        &self,
        alone: &Alone<'_>,
        range: &Range<u64>,
        held: &mut Vec<Range<u64>>,
    ) -> Result<()> {
        let (state, block_len) = (self.state(), self.bitmap_len + self.block_size);
        let at = |entry: u32| u64::from(entry) * SECTOR;
        let inside = |entry: u32| at(entry) < range.end && at(entry) + block_len > range.start;
        let blocks: Vec<u64> =
            state.bat.in_use().filter(|(_, entry)| inside(*entry)).map(|(block, _)| block).collect();
        let mut done = Ok(());
        for block in blocks {
            done = self.move_block(alone, block, u64::MAX).and_then(|_| match self.much_waits(alone.ready) {
                true => self.write_back(alone.writer, alone.ready, false),
                false => Ok(()),
            });
            held.extend(alone.ready.space().withhold(range));
            if done.is_err() {
                break;
            }
        }
        self.write_back(alone.writer, alone.ready, true)?;
        // This waits until no read is at the old places.
        self.tighten(alone.writer, alone.ready)?;
        held.extend(alone.ready.space().withhold(range));
        done
    }
}
