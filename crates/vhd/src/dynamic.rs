//! A dynamic or differencing disk: what its table and its bitmaps say, and the layer that reads and writes it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use cowhand_core::{
    Blocks, Details, Epochs, Erase, Error, Extent, Kind, Layer, LayerId, OpenOptions, Options, ParentRef,
    Prealloc, Progress, Result, Secrets, Storage, Structure,
};

use crate::bat::Bat;
use crate::batmap::Batmap;
use crate::bitmap::{self, BitOrder};
use crate::bitmaps::Bitmaps;
use crate::details::{self, Footers};
use crate::find::Found;
use crate::footer::{DiskType, FOOTER_LEN, Footer};
use crate::geometry::SECTOR;
use crate::header::{HEADER_LEN, Header};
use crate::like;
use crate::locator::{self, Locator};
use crate::tables;
use crate::writer::Writer;

/// Runs that one `extent` joins at most.
const JOINED: usize = 64;

/// What the footer, the header and the table say now. Who has it keeps it for one operation; who changes the layer as a
/// whole puts another in its place.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) footer: Footer,
    pub(crate) header: Header,
    /// Guest bytes.
    pub(crate) size: u64,
    pub(crate) locators: Vec<Locator>,
    pub(crate) bat: Arc<Bat>,
}

impl State {
    /// Bytes of the block's payload that are the disk's: all, but of the last one.
    pub(crate) fn used(&self, block: u64) -> u64 {
        self.header.block_size.min(self.size.saturating_sub(block * self.header.block_size))
    }

    pub(crate) fn is_differencing(&self) -> bool {
        self.footer.disk_type == DiskType::Differencing
    }

    /// Bytes of a block with its bitmap.
    pub(crate) fn block_len(&self) -> u64 {
        self.header.bitmap_len() + self.header.block_size
    }
}

/// A dynamic or differencing disk.
#[derive(Debug)]
pub(crate) struct Dynamic {
    pub(crate) file: Arc<dyn Storage>,
    state: RwLock<Arc<State>>,
    pub(crate) block_size: u64,
    pub(crate) bitmap_len: u64,
    pub(crate) bitmaps: Bitmaps,
    pub(crate) order: BitOrder,
    pub(crate) batmap: Option<Batmap>,
    footers: Footers,
    /// Blocks over metadata are read as they stand, and as wholes where no parent shows through.
    lenient: bool,
    /// No block goes past this: where the trailing footer begins.
    data_end: AtomicU64,
    file_len: AtomicU64,
    /// Reads under way: what was freed is not used again before they end.
    pub(crate) epochs: Epochs,
    /// `None`: read-only.
    pub(crate) writer: Option<Writer>,
}

impl Dynamic {
    /// Opens the disk that `found` describes; `size` is its guest bytes.
    pub(crate) fn open(
        file: Arc<dyn Storage>,
        found: Found,
        size: u64,
        how: &OpenOptions,
    ) -> Result<Dynamic> {
        let header = Header::read(file.as_ref(), &found, size)?;
        let differencing = found.footer.disk_type == DiskType::Differencing;
        let locators =
            if differencing { locator::read(file.as_ref(), &header, found.file_len)? } else { Vec::new() };
        let bat = Arc::new(Bat::new(&header, size.div_ceil(header.block_size)));
        let batmap = Batmap::find(file.as_ref(), &found.footer, &header)
            .map_err(|error| Error::io("cannot read the batmap", error).at(header.bat_end()))?;
        let footers = Footers::of(&found);
        let state = State { footer: found.footer, header, size, locators, bat };
        let writer = how.writable.then(|| Writer::new(false));
        let made = Dynamic::of(file, state, batmap, found.data_end, found.file_len, writer);
        Ok(Dynamic { footers, lenient: how.lenient && !how.writable, ..made })
    }

    pub(crate) fn of(
        file: Arc<dyn Storage>,
        state: State,
        batmap: Option<Batmap>,
        data_end: u64,
        file_len: u64,
        writer: Option<Writer>,
    ) -> Dynamic {
        Dynamic {
            block_size: state.header.block_size,
            bitmap_len: state.header.bitmap_len(),
            bitmaps: Bitmaps::new(state.header.bitmap_len()),
            order: if state.footer.bitmaps_are_lsb_first() { BitOrder::Lsb } else { BitOrder::Msb },
            batmap,
            footers: Footers::MADE,
            lenient: false,
            data_end: AtomicU64::new(data_end),
            file_len: AtomicU64::new(file_len),
            epochs: Epochs::default(),
            state: RwLock::new(Arc::new(state)),
            file,
            writer,
        }
    }

    /// What the file says now. Whoever goes on to read payload has entered `epochs` before, or holds a claim.
    pub(crate) fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another state in the place of this one. The caller is alone.
    pub(crate) fn set_state(&self, state: State) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
    }

    pub(crate) fn is_differencing(&self) -> bool {
        self.state().is_differencing()
    }

    pub(crate) fn data_end(&self) -> u64 {
        self.data_end.load(Ordering::Acquire)
    }

    pub(crate) fn file_len(&self) -> u64 {
        self.file_len.load(Ordering::Acquire)
    }

    /// The file has another length now.
    pub(crate) fn set_end(&self, data_end: u64, file_len: u64) {
        self.data_end.store(data_end, Ordering::Release);
        self.file_len.store(file_len, Ordering::Release);
    }

    /// Where the block's bitmap stands, its table entry being `sector`. Errors: outside the file, or over metadata.
    fn block_at(&self, state: &State, block: u64, sector: u32) -> Result<u64> {
        let header = &state.header;
        let (file_len, data_end) = (self.file_len(), self.data_end());
        let start = u64::from(sector) * SECTOR;
        let end = start + self.bitmap_len + state.used(block);
        let over = |metadata: Range<u64>| start < metadata.end && end > metadata.start;
        let wrong = if start >= file_len {
            format!("puts block {block} at {start}, past the file's end at {file_len}")
        } else if end > data_end {
            format!("puts block {block} at {start}..{end}, and the blocks' room ends at {data_end}")
        } else if !self.lenient
            && (over(0..FOOTER_LEN)
                || over(header.at..header.at + HEADER_LEN)
                || over(header.bat_at..header.bat_end()))
        {
            format!("puts block {block} at {start}, over the footer's copy, the header or the table")
        } else {
            return Ok(start);
        };
        Err(Error::corrupt("BAT entry", wrong)
            .at(state.bat.entry_at(block))
            .hint("the image is damaged or was cut"))
    }

    /// Shows where the block's bitmap stands, and what it says; `None`: the block is not in the file. Both are of one
    /// moment.
    pub(crate) fn look<T>(
        &self,
        state: &State,
        block: u64,
        see: impl FnOnce(u64, &Arc<[u8]>) -> T,
    ) -> Result<Option<T>> {
        let file = self.file.as_ref();
        if state.bat.get(file, block)?.is_none() {
            return Ok(None);
        }
        let mut shard = self.bitmaps.shard(block);
        // It may have gone meanwhile.
        let Some(sector) = state.bat.get(file, block)? else { return Ok(None) };
        let at = self.block_at(state, block, sector)?;
        let bits = self.bitmaps.get(&mut shard, file, block, at)?;
        Ok(Some(see(at, &bits)))
    }

    /// What is at `at`, within one block or a run of free ones.
    fn piece(&self, state: &State, at: u64, max: u64) -> Result<Extent> {
        let block_size = self.block_size;
        let (block, within) = (at / block_size, at % block_size);
        let found = self.look(state, block, |place, bits| {
            let (first, all) = (within / SECTOR, block_size / SECTOR);
            let (sectors, present) = match self.lenient && !state.is_differencing() {
                true => (all - first, true),
                false => bitmap::run(bits, self.order, first, all),
            };
            let len = max.min(sectors * SECTOR - within % SECTOR);
            if present {
                Extent::data(len, Some(place + self.bitmap_len + within))
            } else {
                // Zero, or the parent's.
                Extent {
                    kind: if state.is_differencing() { Kind::Hole } else { Kind::Zero },
                    ..Extent::hole(len)
                }
            }
        })?;
        if let Some(found) = found {
            return Ok(found);
        }
        let end = (at + max).div_ceil(block_size);
        let free = state.bat.free_run(self.file.as_ref(), block, end)?.max(1);
        Ok(Extent::hole(max.min(free * block_size - within)))
    }
}

impl Layer for Dynamic {
    fn size(&self) -> u64 {
        self.state().size
    }

    fn granule(&self) -> u64 {
        SECTOR
    }

    fn host(&self) -> &Arc<dyn Storage> {
        &self.file
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        let _operation = self.epochs.enter();
        let state = self.state();
        let max = max.min(state.size.saturating_sub(at));
        let mut found = self.piece(&state, at, max)?;
        // Data does not join: bitmaps stand between the blocks.
        for _ in 0..JOINED {
            if found.kind == Kind::Data || found.len >= max {
                break;
            }
            // What is wrong there is said to who asks there.
            let Ok(next) = self.piece(&state, at + found.len, max - found.len) else { break };
            if next.kind != found.kind {
                break;
            }
            found.len += next.len;
        }
        Ok(found)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        let _operation = self.epochs.enter();
        let found = self.piece(&self.state(), at, buf.len() as u64)?;
        if let (Kind::Data, Some(host), Some(buf)) =
            (found.kind, found.host, buf.get_mut(..found.len as usize))
        {
            self.file.read_at(host, buf).map_err(|error| Error::io("cannot read", error).at(host))?;
        }
        Ok(found)
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

    fn compact(&self, progress: &dyn Progress) -> Result<()> {
        self.compact_file(progress)
    }

    fn clear(&self) -> Result<()> {
        self.clear_disk()
    }

    fn details(&self) -> Details {
        let state = self.state();
        let batmap = self.batmap_head();
        details::of_dynamic(&state.footer, self.footers, &state.header, &state.locators, batmap.as_ref())
    }

    /// Whole blocks: that is what the table gives room to.
    fn allocated(&self, see: &mut dyn FnMut(Range<u64>, u64) -> Result<()>) -> Result<()> {
        let state = self.state();
        let blocks = state.size.div_ceil(self.block_size);
        let mut block = 0;
        while block < blocks {
            match state.bat.get(self.file.as_ref(), block)? {
                None => block += state.bat.free_run(self.file.as_ref(), block, blocks)?.max(1),
                Some(sector) => {
                    self.block_at(&state, block, sector)?;
                    let start = block * self.block_size;
                    see(start..(start + self.block_size).min(state.size), self.block_size)?;
                    block += 1;
                }
            }
        }
        Ok(())
    }

    fn made_with(&self, replacing: bool) -> Vec<(&'static str, String)> {
        let state = self.state();
        like::options(&state.footer, Some(&state.header), state.size, replacing)
    }

    fn size_by_file(&self, file_len: u64, exact: bool) -> Result<Option<u64>> {
        match self.is_differencing() {
            true => Ok(None),
            false => like::largest_dynamic(file_len, self.block_size, self.batmap.is_some(), exact).map(Some),
        }
    }

    fn may_shrink(&self, _size: u64) -> Result<()> {
        Err(like::never_shrinks())
    }

    fn identity(&self) -> LayerId {
        LayerId(Some(self.state().footer.unique_id))
    }

    fn parent(&self) -> Option<ParentRef> {
        let state = self.state();
        state.is_differencing().then(|| locator::parent_ref(&state.header, &state.locators))
    }

    fn set_parent(&self, parent: Option<&ParentRef>) -> Result<()> {
        self.name_parent(parent)
    }

    fn used_len(&self) -> Result<u64> {
        self.used()
    }

    fn set_file_len(&self, len: u64) -> Result<()> {
        self.end_file_at(len)
    }

    fn structures(&self) -> Result<Vec<Structure>> {
        tables::structures(self.file.as_ref(), &self.state().locators, self.batmap_head())
    }

    fn as_blocks(&self) -> Option<&dyn Blocks> {
        Some(self)
    }

    fn hidden(&self) -> Option<bool> {
        Some(self.state().footer.hidden != 0)
    }

    fn set_hidden(&self, hidden: bool) -> Result<()> {
        self.hide(hidden)
    }

    fn amend(&self, options: &Options, _secrets: &Secrets, _progress: &dyn Progress) -> Result<()> {
        self.amend_with(options)
    }
}
