//! An open VHDX file: what it has where (the reading half of the layer).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use cowhand_core::{
    Details, Epochs, Erase, Error, Extent, Layer, LayerId, Options, ParentRef, Prealloc, Progress, Result,
    Secrets, Storage,
};

use crate::bat::{Block, Geometry};
use crate::create;
use crate::details;
use crate::guid::Guid;
use crate::header::{self, Header};
use crate::journal::Journal;
use crate::like;
use crate::log;
use crate::pages::{PAGE, Pages};
use crate::state::State;
use crate::table::View;
use crate::writer::Writer;

/// One VHDX file.
#[derive(Debug)]
pub(crate) struct VhdxLayer {
    /// The file as it is after its log was replayed.
    pub(crate) file: Arc<dyn Storage>,
    pub(crate) creator: String,
    /// The header as it was when this was opened.
    header: Header,
    state: RwLock<Arc<State>>,
    pub(crate) pages: Arc<Pages>,
    /// The file's length, against which entries are judged.
    len: AtomicU64,
    /// Reads under way: what was freed is not used again before they end.
    pub(crate) epochs: Epochs,
    /// `None`: read-only.
    pub(crate) writer: Option<Writer>,
}

impl VhdxLayer {
    /// Opens for reading. Nothing in the file changes: a pending log is replayed in memory.
    pub(crate) fn open(file: Arc<dyn Storage>) -> Result<VhdxLayer> {
        let creator = header::read_creator(file.as_ref())?;
        let header = Header::read(file.as_ref())?;
        let file = if header.log.is_pending() { log::replay(file, header.log)? } else { file };
        Self::assemble(file, creator, header, None)
    }

    /// Opens for writing. What the log has pending is put in place first; otherwise nothing in the file changes before
    /// the first write.
    pub(crate) fn open_to_write(file: Arc<dyn Storage>) -> Result<VhdxLayer> {
        let creator = header::read_creator(file.as_ref())?;
        if Header::read(file.as_ref())?.log.is_pending() {
            // What does not open is not changed either.
            Self::open(file.clone())?;
        }
        let journal = Journal::open(file.clone())?;
        let header = journal.header();
        Self::assemble(file, creator, header, Some(Writer::new(Some(journal))))
    }

    /// The layer of a file without pending log, by what its regions say.
    pub(crate) fn assemble(
        file: Arc<dyn Storage>,
        creator: String,
        header: Header,
        writer: Option<Writer>,
    ) -> Result<VhdxLayer> {
        let len = file.len().map_err(|error| Error::io("cannot find the size", error))?;
        let pages = Arc::new(Pages::new(file.clone()));
        let state = State::read(file.as_ref(), &pages, &header.log, len)?;
        Ok(VhdxLayer {
            file,
            creator,
            header,
            state: RwLock::new(Arc::new(state)),
            pages,
            len: AtomicU64::new(len),
            epochs: Epochs::default(),
            writer,
        })
    }

    /// What the file says now. Whoever goes on to read payload has entered `epochs` before, or holds a claim.
    pub(crate) fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another state in the place of this one. The caller is alone.
    pub(crate) fn set_state(&self, state: State) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
    }

    /// The current header.
    pub(crate) fn header(&self) -> Header {
        let journal = self.writer.as_ref().and_then(|writer| writer.journal.as_ref());
        journal.map_or(self.header, Journal::header)
    }

    pub(crate) fn file_len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// The file has at least this length now.
    pub(crate) fn grown(&self, len: u64) {
        self.len.fetch_max(len, Ordering::AcqRel);
    }

    /// The file was cut to this length.
    pub(crate) fn cut(&self, len: u64) {
        self.len.store(len, Ordering::Release);
    }

    /// What there is at `at`. `look`: holes of the file count as zeros.
    fn map(&self, state: &State, at: u64, max: u64, look: bool) -> Result<Extent> {
        let geometry = &state.geometry;
        let max = max.min(geometry.size.saturating_sub(at));
        let (block, within) = (at / geometry.block_size, at % geometry.block_size);
        loop {
            let first = state.block(block, self.file_len())?;
            return match first {
                Block::NotPresent => {
                    Ok(Extent::hole(self.run(state, at, max, |_, next| next == Block::NotPresent)?))
                }
                Block::Zero => Ok(Extent::zero(self.run(state, at, max, |_, next| next == Block::Zero)?)),
                Block::Partial(offset) => {
                    let (len, here) = self.bits(state, at, max.min(geometry.block_size - within))?;
                    // Entry and bits are of one moment where the entry is still the same: a block's place is not used
                    // again while this looks.
                    if state.block(block, self.file_len())? != first {
                        continue;
                    }
                    Ok(if here { Extent::data(len, Some(offset + within)) } else { Extent::hole(len) })
                }
                Block::Full(offset) => {
                    let host = offset + within;
                    let (zero, max) = if look { self.hole(host, max)? } else { (false, max) };
                    let follows =
                        |n, next| next == Block::Full(offset.saturating_add(n * geometry.block_size));
                    let len = self.run(state, at, max, follows)?;
                    let extent = if zero { Extent::zero(len) } else { Extent::data(len, None) };
                    Ok(Extent { host: Some(host), ..extent })
                }
            };
        }
    }

    /// Is `host` in a hole of the file, and for how many of `max` bytes does that go on?
    fn hole(&self, host: u64, max: u64) -> Result<(bool, u64)> {
        let data =
            self.file.data_at(host).map_err(|error| Error::io("cannot find the holes", error).at(host))?;
        Ok(match data {
            None => (true, max),
            Some(data) if data.start > host => (true, max.min(data.start - host)),
            Some(data) => (false, max.min(data.end.saturating_sub(host).max(1))),
        })
    }

    /// How many of the `max` bytes from `at` are alike: those of the block of `at`, and of each further block, the n-th
    /// after it, for which `alike(n, what the table says of it)`. A wrong entry ends the run: it is reported when it is
    /// the first.
    pub(crate) fn run(
        &self,
        state: &State,
        at: u64,
        max: u64,
        alike: impl Fn(u64, Block) -> bool,
    ) -> Result<u64> {
        let (geometry, len) = (&state.geometry, self.file_len());
        let first = at / geometry.block_size;
        let stop = at.saturating_add(max).div_ceil(geometry.block_size);
        let mut block = first + 1;
        'pages: while block < stop {
            match state.table.view(geometry.entry_of(block))? {
                View::Zero(end) => {
                    let behind = geometry.block_at(end).max(block + 1);
                    if !alike(block - first, Block::NotPresent) {
                        break;
                    }
                    block = behind;
                }
                View::Entries(entries) => {
                    let end = geometry.block_at(entries.end()).min(stop);
                    while block < end {
                        let Some(raw) = entries.get(geometry.entry_of(block)) else { break };
                        if !state.decode(block, raw, len).is_ok_and(|next| alike(block - first, next)) {
                            break 'pages;
                        }
                        block += 1;
                    }
                }
            }
        }
        Ok(max.min(block.saturating_mul(geometry.block_size).saturating_sub(at)))
    }

    /// What the sector bitmap says of the sector of `at`, and for how many of the `max` bytes left in its block it says
    /// the same.
    pub(crate) fn bits(&self, state: &State, at: u64, max: u64) -> Result<(u64, bool)> {
        let geometry = &state.geometry;
        let block = at / geometry.block_size;
        let bitmap = state.bitmap(block, self.file_len())?.ok_or_else(|| {
            let entry = geometry.bitmap_entry_of(block);
            let what = format!("names no bitmap, and a block is partly here (block {block})");
            Error::corrupt("sector bitmap entry", what).at(state.table.offset_of(entry))
        })?;
        let bit = geometry.bit_of(at);
        // A block's bits are all in one page: they are as many bytes as a power of two, at most a page.
        let page = self.pages.page("sector bitmap", bitmap + bit / 8)?;
        // The sectors, the first of which may be begun within.
        let sectors = (at % geometry.sector + max).div_ceil(geometry.sector);
        let (alike, present) = run_of_bits(&page, bit % (PAGE * 8), sectors);
        Ok(((alike * geometry.sector).saturating_sub(at % geometry.sector).min(max), present))
    }
}

/// How many of `bits` bits, from bit `first` on, are like the first, and whether they are set. Bits count from the
/// lowest.
fn run_of_bits(bytes: &[u8], first: u64, bits: u64) -> (u64, bool) {
    let bit = |n: u64| bytes.get((n / 8) as usize).is_some_and(|byte| byte >> (n % 8) & 1 == 1);
    let present = bit(first);
    let whole = if present { 0xff } else { 0 };
    let mut n = first;
    while n < first + bits {
        if n.is_multiple_of(8) && bytes.get((n / 8) as usize) == Some(&whole) {
            n += 8;
        } else if bit(n) == present {
            n += 1;
        } else {
            break;
        }
    }
    ((n - first).min(bits), present)
}

impl Layer for VhdxLayer {
    fn size(&self) -> u64 {
        self.state().geometry.size
    }

    fn granule(&self) -> u64 {
        let state = self.state();
        if state.is_differencing() { state.geometry.sector } else { state.geometry.block_size }
    }

    fn sector(&self) -> u32 {
        self.state().metadata.logical_sector
    }

    fn host(&self) -> &Arc<dyn Storage> {
        &self.file
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        let _operation = self.epochs.enter();
        self.map(&self.state(), at, max, true)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        let _operation = self.epochs.enter();
        let extent = self.map(&self.state(), at, buf.len() as u64, false)?;
        if let Some(host) = extent.host {
            let piece = buf.get_mut(..extent.len as usize).unwrap_or_default();
            self.file.read_at(host, piece).map_err(|error| Error::io("cannot read", error).at(host))?;
        }
        Ok(extent)
    }

    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.write_at(at, buf)
    }

    fn write_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> Result<u64> {
        self.clone_from(at, src, src_at, len)
    }

    fn erase(&self, at: u64, len: u64, how: Erase) -> Result<u64> {
        self.erase_at(at, len, how)
    }

    fn flush(&self) -> Result<()> {
        self.flush_all()
    }

    fn close(&self) -> Result<()> {
        self.close_all()
    }

    fn resize(&self, size: u64, prealloc: Prealloc, below: u64) -> Result<()> {
        self.resize_to(size, prealloc, below)
    }

    fn may_shrink(&self, size: u64) -> Result<()> {
        self.refuse_to_cut(size..self.size())
    }

    fn keeps_looks(&self) {
        if let Some(writer) = &self.writer {
            writer.keeps_looks.store(true, Ordering::Release);
        }
    }

    fn compact(&self, progress: &dyn Progress) -> Result<()> {
        self.compact_file(progress)
    }

    fn clear(&self) -> Result<()> {
        self.clear_disk()
    }

    fn details(&self) -> Details {
        details::of(self)
    }

    /// Whole blocks: that is what the table gives room to.
    fn allocated(&self, see: &mut dyn FnMut(Range<u64>, u64) -> Result<()>) -> Result<()> {
        let mut at = 0;
        loop {
            // Ended before `see` is called, which may take its time, or change the layer.
            let operation = self.epochs.enter();
            let state = self.state();
            let Geometry { size, block_size, .. } = state.geometry;
            if at >= size {
                return Ok(());
            }
            let empty = state.block(at / block_size, self.file_len())?;
            if let Block::Full(_) | Block::Partial(_) = empty {
                drop(operation);
                let end = at.saturating_add(block_size);
                see(at..end.min(size), block_size)?;
                at = end;
            } else {
                at += self.run(&state, at, size - at, |_, next| next == empty)?;
            }
        }
    }

    fn made_with(&self, replacing: bool) -> Vec<(&'static str, String)> {
        like::options(&self.state().metadata, &self.header(), replacing)
    }

    fn size_by_file(&self, file_len: u64, exact: bool) -> Result<Option<u64>> {
        if self.state().is_differencing() {
            return Ok(None);
        }
        let found = create::largest_disk(self, file_len, exact).ok_or_else(|| {
            Error::invalid(format!("{file_len} bytes are too few for any image of this kind"))
        });
        found.map(Some)
    }

    fn identity(&self) -> LayerId {
        LayerId(Some(self.header().data_write_guid.raw()))
    }

    fn disk_id(&self) -> Option<[u8; 16]> {
        Some(self.state().metadata.disk_id.raw())
    }

    fn next_identity(&self) -> Result<Option<[u8; 16]>> {
        let journal = self.writer.as_ref().and_then(|writer| writer.journal.as_ref());
        Ok(journal.map(|journal| journal.next_identity().raw()))
    }

    fn parent(&self) -> Option<ParentRef> {
        self.state().metadata.parent.as_ref().map(|locator| locator.parent())
    }

    fn set_parent(&self, parent: Option<&ParentRef>) -> Result<()> {
        self.name_parent(parent)
    }

    fn expect_parent(&self, id: [u8; 16]) -> Result<()> {
        self.note_identity(Guid::from_raw(id))
    }

    fn amend(&self, options: &Options, _secrets: &Secrets, _progress: &dyn Progress) -> Result<()> {
        self.amend_with(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_bits() {
        assert_eq!(run_of_bits(&[0b0000_1110], 1, 7), (3, true));
        assert_eq!(run_of_bits(&[0b0000_1110], 0, 8), (1, false));
        assert_eq!(run_of_bits(&[0xff, 0xff, 0x01], 3, 21), (14, true));
        assert_eq!(run_of_bits(&[0xff, 0xff, 0xff], 3, 10), (10, true));
        assert_eq!(run_of_bits(&[0, 0, 0x80], 0, 24), (23, false));
    }
}
