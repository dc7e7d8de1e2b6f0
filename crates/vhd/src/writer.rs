//! What writing a dynamic or differencing disk keeps, and the order in which its metadata reaches the file.
//!
//! What is written is published in memory at once: a table entry once its payload and bitmap are in the file, a bit once
//! its sector is. A flush takes all that was published by then and writes it in an order that a power cut cannot harm:
//! bitmaps of new blocks; a barrier, behind which all that was published before stands; bitmaps of other blocks, and the
//! table; a barrier, behind which the places of freed blocks belong to nobody. They are used again once the reads that
//! may have found them there are over.
//!
//! Locks, in the order they are taken: `claims`, the batmap, `order`, `publish`, then one shard of the bitmaps, behind it
//! the table; the space and the list of what was freed, each innermost. Payload is read and written under claims alone.
//!
//! Who changes the layer as a whole starts with [`Dynamic::alone`]: nobody writes meanwhile, all is in the file as it is
//! in memory, and reads go on. What it then needs is [`Dynamic::rewrite_footers`], [`Dynamic::rewrite_header`],
//! [`Dynamic::move_block`], [`Dynamic::write_back`] (a flush) and [`Dynamic::set_state`].

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use cowhand_core::{Claim, Claims, Error, ErrorKind, Result, Storage};

use crate::alloc::{Layout, alignment};
use crate::bat::{Bat, ChangedEntries};
use crate::batmap::{Batmap, Map};
use crate::bitmaps::{ChangedBitmap, Mark};
use crate::check::places;
use crate::dynamic::{Dynamic, State};
use crate::find::{CopyState, Found, find};
use crate::footer::{FOOTER_LEN, Footer};
use crate::geometry::SECTOR;
use crate::header::Header;
use crate::locator;
use crate::space::{Ground, Known, Place, Space};

/// Freed blocks that may wait for a flush.
const MAX_FREED: usize = 1 << 16;

/// Blocks' places that were freed durably, and that a read may still be using.
#[derive(Debug)]
struct Waiting {
    freed: Vec<u64>,
    epoch: u64,
}

/// What writing needs.
#[derive(Debug)]
pub(crate) struct Writer {
    /// Nobody sees the file before it is whole: no barriers but the last.
    fresh: bool,
    /// By block.
    pub(crate) claims: Claims,
    /// Held by who writes metadata to the file.
    order: Mutex<Vec<Waiting>>,
    /// Shared by who changes what the table or a bitmap says, held alone by who takes what is to be written.
    pub(crate) publish: RwLock<()>,
    ready: OnceLock<Ready>,
    closed: AtomicBool,
    /// A barrier failed: what the file holds is not known.
    failed: AtomicBool,
}

/// What is known once the image was looked at.
#[derive(Debug)]
pub(crate) struct Ready {
    space: Mutex<Space>,
    /// Where a block stands that has less room than others, and its bytes with the bitmap.
    short: Mutex<Option<(u64, u64)>>,
    /// Places of blocks that are no more.
    freed: Mutex<Vec<u64>>,
    batmap: Option<Mutex<Map>>,
    /// No block stands or is put in front of this, and none did whose place somebody may still read.
    pub(crate) front: u64,
    /// Where what is not a block ends.
    metadata_end: AtomicU64,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nobody else writes while this is held.
#[derive(Debug)]
pub(crate) struct Alone<'a> {
    pub(crate) writer: &'a Writer,
    pub(crate) ready: &'a Ready,
    _claim: Claim<'a>,
}

impl Writer {
    pub(crate) fn new(fresh: bool) -> Writer {
        Writer {
            fresh,
            claims: Claims::default(),
            order: Mutex::default(),
            publish: RwLock::default(),
            ready: OnceLock::new(),
            closed: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        }
    }

    /// What the file holds is not known any more: nothing is written into it until it is opened again.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// Nobody has closed it. Asked again under a claim, since closing claims all.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Denied, "was closed, and is not written any more"));
        }
        Ok(())
    }
}

impl Ready {
    /// What `space` says, of a file that has no more than that.
    fn new(space: Space, metadata_end: u64) -> Ready {
        Ready {
            front: space.front(),
            metadata_end: AtomicU64::new(metadata_end),
            space: Mutex::new(space),
            short: Mutex::default(),
            freed: Mutex::default(),
            batmap: None,
        }
    }

    pub(crate) fn space(&self) -> MutexGuard<'_, Space> {
        lock(&self.space)
    }

    pub(crate) fn metadata_end(&self) -> u64 {
        self.metadata_end.load(Ordering::Acquire)
    }

    /// What is not a block ends there from now on.
    pub(crate) fn set_metadata_end(&self, end: u64) {
        self.metadata_end.store(end, Ordering::Release);
    }

    /// The header of the batmap.
    pub(crate) fn batmap_head(&self) -> Option<Batmap> {
        self.batmap.as_ref().map(|map| lock(map).head())
    }

    /// The batmap, where there is one.
    pub(crate) fn batmap(&self) -> Option<MutexGuard<'_, Map>> {
        self.batmap.as_ref().map(lock)
    }

    /// Whether the block at `at` has less room than others.
    pub(crate) fn is_short(&self, at: u64) -> bool {
        lock(&self.short).is_some_and(|(short, _)| short == at)
    }

    /// The block at `at` is no more. Called with the change published in the same hold of `publish`.
    pub(crate) fn freed(&self, at: u64) {
        lock(&self.freed).push(at);
    }
}

impl Dynamic {
    /// Makes a disk on a storage that is empty but for the parent's locators, or on a device: complete, with no block in
    /// it.
    pub(crate) fn create(
        file: Arc<dyn Storage>,
        footer: Footer,
        header: Header,
        layout: &Layout,
        fresh: bool,
    ) -> Result<Dynamic> {
        let failed = |error| Error::io("cannot write the headers", error);
        file.set_len(layout.file_len(0)).map_err(failed)?;
        // A device keeps its length, and has its footer at its end.
        let file_len = file.len().map_err(failed)? / SECTOR * SECTOR;
        let data_end = file_len - FOOTER_LEN;
        layout.write_front(file.as_ref(), &footer, &header)?;
        file.write_at(data_end, &footer.to_bytes())
            .map_err(|error| Error::io("cannot write the footer", error).at(data_end))?;
        let state = State {
            size: footer.current_size,
            bat: Arc::new(Bat::of_new(&header)),
            locators: locator::read(file.as_ref(), &header, file_len)?,
            footer,
            header,
        };
        let known = Known { free: Vec::new(), end: layout.front_end, data_end, file_len };
        let space = Space::new(state.block_len(), state.header.bitmap_len(), layout.alignment, known);
        let writer = Writer::new(fresh);
        // Never set before: the writer was made here.
        let _ = writer.ready.set(Ready::new(space, layout.front_end));
        Ok(Dynamic::of(file, state, layout.batmap(), data_end, file_len, Some(writer)))
    }

    /// The writer, where this layer may be changed now. Looks at the image before the first change, and writes metadata
    /// back where too much of it waits. Called with no claim held.
    pub(crate) fn begin(&self) -> Result<(&Writer, &Ready)> {
        let writer =
            self.writer.as_ref().ok_or_else(|| Error::new(ErrorKind::Denied, "is not open for writing"))?;
        writer.check_open()?;
        check_failed(writer)?;
        let ready = match writer.ready.get() {
            Some(ready) => ready,
            None => {
                let _order = lock(&writer.order);
                match writer.ready.get() {
                    Some(ready) => ready,
                    None => {
                        let ready = self.prepare(writer)?;
                        writer.ready.get_or_init(|| ready)
                    }
                }
            }
        };
        if self.much_waits(ready) {
            self.write_back(writer, ready, false)?;
        }
        Ok((writer, ready))
    }

    /// So much waits to be written that what goes on for long ends here, and begins again.
    pub(crate) fn much_waits(&self, ready: &Ready) -> bool {
        self.bitmaps.too_dirty() || lock(&ready.freed).len() > MAX_FREED
    }

    /// Before the first change of an image that was there: is it what it says, and are its footers as they should be?
    fn prepare(&self, writer: &Writer) -> Result<Ready> {
        let state = self.state();
        let (file, header) = (self.file.as_ref(), &state.header);
        state.bat.load(file)?;
        let found = find(file)?;
        let places = places::audit(file, &found, header, state.size)?;
        let ground = Ground::of(&places, state.block_len(), found.data_end);
        let (data_end, file_len) = self.put_footers_right(writer, &state, &found, ground.end)?;
        let mut map = match self.batmap {
            Some(batmap) => Some(Map::read(file, batmap, data_end)?),
            None => None,
        };
        map.iter_mut().try_for_each(|map| map.put_right(file, &|| self.barrier(writer)))?;
        let blocks = u64::from(header.max_entries);
        let alignment = alignment(ground.metadata_end, blocks, header.block_size).unwrap_or(SECTOR);
        let known = Known { free: ground.free, end: ground.end, data_end, file_len };
        let space = Space::new(state.block_len(), self.bitmap_len, alignment, known);
        let ready = Ready::new(space, ground.metadata_end);
        let first = state.bat.in_use().map(|(_, entry)| u64::from(entry) * SECTOR).min();
        Ok(Ready {
            short: Mutex::new(ground.short),
            batmap: map.map(Mutex::new),
            front: first.unwrap_or(u64::MAX).min(ready.front),
            ..ready
        })
    }

    /// Makes both footers the one that counts, where they are not alike; one after the other, so that one is good at any
    /// moment. Answers where the trailing one stands, and the file's length.
    fn put_footers_right(
        &self,
        writer: &Writer,
        state: &State,
        found: &Found,
        used: u64,
    ) -> Result<(u64, u64)> {
        let (mut at, mut file_len) = (found.data_end, found.file_len);
        if (found.end, found.front, found.short) == (CopyState::Good, CopyState::Good, false) {
            return Ok((at, file_len));
        }
        if found.end == CopyState::Missing {
            // It goes where no block stands.
            let last = (file_len / SECTOR * SECTOR).saturating_sub(FOOTER_LEN);
            at = if used <= last { last } else { file_len.next_multiple_of(SECTOR) };
        }
        self.write_footers(writer, &state.footer, at)?;
        file_len = file_len.max(at + FOOTER_LEN);
        self.set_end(at, file_len);
        Ok((at, file_len))
    }

    /// Writes the footer in both its places, durably: a power cut leaves the old one or the new one.
    pub(crate) fn write_footers(&self, writer: &Writer, footer: &Footer, trailing: u64) -> Result<()> {
        // The trailing one counts while it is good; where it is not, the copy did until now, and says the same.
        for at in [0, trailing] {
            self.file
                .write_at(at, &footer.to_bytes())
                .map_err(|error| Error::io("cannot write the footer", error).at(at))?;
            self.barrier(writer)?;
        }
        Ok(())
    }

    /// Waits until nobody writes, and keeps others from beginning. Everything is in the file, durably; readers go on.
    /// Errors: read-only, closed; what is wrong with the image.
    pub(crate) fn alone(&self) -> Result<Alone<'_>> {
        let (writer, ready) = self.begin()?;
        let claim = writer.claims.take(0..=u64::MAX, true);
        writer.check_open()?;
        self.write_back(writer, ready, true)?;
        Ok(Alone { writer, ready, _claim: claim })
    }

    /// All that was written is durable.
    pub(crate) fn sync(&self, writer: &Writer) -> Result<()> {
        self.file.sync().map_err(|error| {
            writer.failed.store(true, Ordering::Release);
            Error::io("cannot make what was written durable", error)
        })
    }

    /// What was written before is durable before what is written after.
    pub(crate) fn barrier(&self, writer: &Writer) -> Result<()> {
        if writer.fresh { Ok(()) } else { self.sync(writer) }
    }

    /// A place for a block, which nothing refers to. Whoever does not publish it gives it back.
    pub(crate) fn take(&self, writer: &Writer, ready: &Ready) -> Result<Place> {
        let footer = self.state().footer.to_bytes();
        let mut space = ready.space();
        let place = space.take(self.file.as_ref(), &footer, &|| self.barrier(writer));
        self.set_end(space.data_end(), space.file_len());
        place
    }

    /// Room for `len` bytes that are no block's, behind all blocks.
    pub(crate) fn reserve(&self, alone: &Alone<'_>, len: u64) -> Result<u64> {
        let footer = self.state().footer.to_bytes();
        let mut space = alone.ready.space();
        let at = space.reserve(self.file.as_ref(), len, &footer, &|| self.barrier(alone.writer));
        self.set_end(space.data_end(), space.file_len());
        at
    }

    /// The batmap's header as it is now.
    pub(crate) fn batmap_head(&self) -> Option<Batmap> {
        let ready = self.writer.as_ref().and_then(|writer| writer.ready.get());
        ready.and_then(Ready::batmap_head).or(self.batmap)
    }

    /// Changes what stands beside the batmap in its header, which is one sector.
    pub(crate) fn amend_batmap(&self, alone: &Alone<'_>, change: impl FnOnce(&mut Batmap)) -> Result<()> {
        match &alone.ready.batmap {
            Some(map) => lock(map).amend(self.file.as_ref(), change),
            None => Ok(()),
        }
    }

    /// Gives back a place that was not published.
    pub(crate) fn untake(&self, ready: &Ready, place: &Place) {
        ready.space().give_back(self.room(ready, place.at));
    }

    /// What the block at `at` takes of the file.
    fn room(&self, ready: &Ready, at: u64) -> Range<u64> {
        let short = lock(&ready.short).filter(|(short, _)| *short == at);
        at..at + short.map_or(self.bitmap_len + self.block_size, |(_, len)| len.next_multiple_of(SECTOR))
    }

    /// Makes the place that of `block`: from now on it reads what its bitmap says.
    pub(crate) fn publish(
        &self,
        writer: &Writer,
        state: &State,
        block: u64,
        place: &Place,
        bits: Arc<[u8]>,
        mark: Mark,
    ) {
        let _publish = writer.publish.read().unwrap_or_else(PoisonError::into_inner);
        let mut shard = self.bitmaps.shard(block);
        self.bitmaps.put(&mut shard, block, place.at, bits, mark);
        state.bat.set(block, place.entry());
    }

    /// Says durably in the batmap that sectors of these blocks may be absent, before that is so.
    pub(crate) fn may_be_absent(&self, writer: &Writer, ready: &Ready, blocks: Range<u64>) -> Result<()> {
        match &ready.batmap {
            Some(batmap) => lock(batmap).clear(self.file.as_ref(), blocks, &|| self.barrier(writer)),
            None => Ok(()),
        }
    }

    /// Brings what was published to the file, in the order that a power cut cannot harm. `last`: the caller wants to
    /// know it durable, barriers or not.
    pub(crate) fn write_back(&self, writer: &Writer, ready: &Ready, last: bool) -> Result<()> {
        let mut order = lock(&writer.order);
        check_failed(writer)?;
        let state = self.state();
        let (bitmaps, entries, freed) = {
            let _alone = writer.publish.write().unwrap_or_else(PoisonError::into_inner);
            let freed = std::mem::take(&mut *lock(&ready.freed));
            (self.bitmaps.take_changed(), state.bat.take_changed(), freed)
        };
        let epoch = self.epochs.now();
        let (new, old): (Vec<_>, Vec<_>) = bitmaps.into_iter().partition(ChangedBitmap::is_new);
        if let Err(error) = self.write_metadata(writer, &new, &old, &entries, last) {
            state.bat.put_back(&entries);
            lock(&ready.freed).extend(freed);
            return Err(error);
        }
        if !freed.is_empty() {
            order.push(Waiting { freed, epoch });
        }
        self.reclaim(writer, ready, &mut order);
        Ok(())
    }

    fn write_metadata(
        &self,
        writer: &Writer,
        new: &[ChangedBitmap],
        old: &[ChangedBitmap],
        entries: &[ChangedEntries],
        last: bool,
    ) -> Result<()> {
        let file = self.file.as_ref();
        let write = |bitmaps: &[ChangedBitmap]| {
            let done = bitmaps.iter().try_for_each(|bitmap| bitmap.write(file));
            self.bitmaps.written(bitmaps, done.is_ok());
            done
        };
        let done = write(new)
            .and_then(|()| if old.is_empty() && entries.is_empty() { Ok(()) } else { self.barrier(writer) });
        if let Err(error) = done {
            self.bitmaps.written(old, false);
            return Err(error);
        }
        write(old)?;
        entries.iter().try_for_each(|run| run.write(file))?;
        if last { self.sync(writer) } else { self.barrier(writer) }
    }

    /// Gives the places of blocks that are no more, durably, to others, once no read uses them.
    fn reclaim(&self, writer: &Writer, ready: &Ready, waiting: &mut Vec<Waiting>) {
        if waiting.is_empty() {
            return;
        }
        self.epochs.advance();
        self.epochs.advance();
        let (over, rest): (Vec<_>, Vec<_>) =
            std::mem::take(waiting).into_iter().partition(|batch| self.epochs.is_over(batch.epoch));
        *waiting = rest;
        for at in over.into_iter().flat_map(|batch| batch.freed) {
            let range = self.room(ready, at);
            lock(&ready.short).take_if(|(short, _)| *short == at);
            if !writer.fresh {
                // Only a wish.
                let _ = self.file.punch(range.start, range.end - range.start);
            }
            ready.space().give_back(range);
        }
    }

    /// See `Layer::flush`.
    pub(crate) fn flush_all(&self) -> Result<()> {
        match self.at_work() {
            Some((writer, ready)) => self.write_back(writer, ready, true),
            None => Ok(()),
        }
    }

    /// The writer, where there may be something to write.
    fn at_work(&self) -> Option<(&Writer, &Ready)> {
        let writer = self.writer.as_ref().filter(|writer| !writer.closed.load(Ordering::Acquire))?;
        Some((writer, writer.ready.get()?))
    }

    /// See `Layer::close`.
    pub(crate) fn close_all(&self) -> Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        let _claim = writer.claims.take(0..=u64::MAX, true);
        if let Some((writer, ready)) = self.at_work() {
            self.write_back(writer, ready, !writer.fresh)?;
            self.tighten(writer, ready)?;
            self.sync(writer)?;
        }
        writer.closed.store(true, Ordering::Release);
        Ok(())
    }

    /// Ends the file where its blocks end. The caller is alone, and all is in the file; a barrier behind it is his.
    pub(crate) fn tighten(&self, writer: &Writer, ready: &Ready) -> Result<()> {
        let mut order = lock(&writer.order);
        self.epochs.wait();
        self.reclaim(writer, ready, &mut order);
        let state = self.state();
        let mut space = ready.space();
        if !space.is_loose() {
            return Ok(());
        }
        let last = state.bat.in_use().map(|(_, entry)| u64::from(entry) * SECTOR).max();
        let used = last.map_or(0, |last| self.room(ready, last).end).max(ready.metadata_end());
        let footer = state.footer.to_bytes();
        let done = space.tighten(self.file.as_ref(), used, &footer, &|| self.barrier(writer));
        self.set_end(space.data_end(), space.file_len());
        drop(space);
        done
    }
}

fn check_failed(writer: &Writer) -> Result<()> {
    if writer.failed.load(Ordering::Acquire) {
        return Err(Error::new(
            ErrorKind::Io,
            "an earlier write could not be made durable, so what was written may be lost",
        )
        .hint("close it, and check it before it is written again"));
    }
    Ok(())
}
