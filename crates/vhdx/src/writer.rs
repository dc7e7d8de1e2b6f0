//! What writing keeps, and the order in which metadata reaches the file.
//!
//! What is written is published in memory at once, in one step: the block's entry and its bits, once its payload is in
//! the file. A flush takes all that was published by then and commits it through the log, which makes it count in one
//! step too; so bits and entries need no order among each other. Places of blocks that are no more are used again when
//! that is durable, and the reads that may have found them there are over.
//!
//! Locks, in the order they are taken: `claims`, `bitmaps`, `order`, then the pages; the space and the list of what was
//! freed, each innermost. Payload is read and written under claims alone.
//!
//! Who changes the layer as a whole starts with [`VhdxLayer::alone`]; what it then needs is in `alone.rs`.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cowhand_core::{Claim, Claims, Error, ErrorKind, Result};

use crate::bytes;
use crate::check::places::{self, Disk};
use crate::draft::Sector;
use crate::journal::Journal;
use crate::layer::VhdxLayer;
use crate::pages::Edit;
use crate::space::{Place, Space};
use crate::state::State;

/// Blocks' places that were freed durably, and that a read may still be using.
#[derive(Debug)]
struct Waiting {
    freed: Vec<Range<u64>>,
    epoch: u64,
}

/// What writing needs.
#[derive(Debug)]
pub(crate) struct Writer {
    /// `None`: nobody sees the file before it is whole, so no order is kept before the end.
    pub(crate) journal: Option<Journal>,
    /// By block.
    pub(crate) claims: Claims,
    /// Held by who makes a sector bitmap.
    pub(crate) bitmaps: Mutex<()>,
    /// Held by who writes metadata to the file.
    order: Mutex<Vec<Waiting>>,
    ready: OnceLock<Ready>,
    closed: AtomicBool,
    /// What is changed shows nobody anything new.
    pub(crate) keeps_looks: AtomicBool,
    /// The file system was asked to share blocks and cannot.
    pub(crate) cannot_share: AtomicBool,
}

/// What is known once the image was looked at.
#[derive(Debug)]
pub(crate) struct Ready {
    space: Mutex<Space>,
    /// Places of blocks that are no more.
    freed: Mutex<Vec<Range<u64>>>,
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
    /// Of an image that was there.
    pub(crate) fn new(journal: Option<Journal>) -> Writer {
        Writer {
            journal,
            claims: Claims::default(),
            bitmaps: Mutex::default(),
            order: Mutex::default(),
            ready: OnceLock::new(),
            closed: AtomicBool::new(false),
            keeps_looks: AtomicBool::new(false),
            cannot_share: AtomicBool::new(false),
        }
    }

    /// Of an image that was just made, in which this space is known.
    pub(crate) fn of_new(space: Space, journal: Option<Journal>) -> Writer {
        let writer = Writer::new(journal);
        // Never set before: the writer was made here.
        let _ = writer.ready.set(Ready::new(space));
        writer
    }

    /// Nobody has closed it, and what it holds is known. Asked again under a claim, since who closes it or changes it as
    /// a whole claims all.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Denied, "was closed, and is not written any more"));
        }
        self.journal.as_ref().map_or(Ok(()), Journal::check)
    }
}

impl Ready {
    fn new(space: Space) -> Ready {
        Ready { space: Mutex::new(space), freed: Mutex::default() }
    }

    pub(crate) fn space(&self) -> MutexGuard<'_, Space> {
        lock(&self.space)
    }

    /// Nothing in memory leads to this place any more.
    pub(crate) fn freed(&self, place: Range<u64>) {
        lock(&self.freed).push(place);
    }
}

impl VhdxLayer {
    /// The writer, where this layer may be changed now. Looks at the image before the first change. Called with no claim
    /// held.
    pub(crate) fn begin(&self) -> Result<(&Writer, &Ready)> {
        let writer =
            self.writer.as_ref().ok_or_else(|| Error::new(ErrorKind::Denied, "is open read-only"))?;
        writer.check_open()?;
        let ready = match writer.ready.get() {
            Some(ready) => ready,
            None => {
                let _order = lock(&writer.order);
                match writer.ready.get() {
                    Some(ready) => ready,
                    None => {
                        let ready = self.prepare()?;
                        writer.ready.get_or_init(|| ready)
                    }
                }
            }
        };
        Ok((writer, ready))
    }

    /// Before the first change of an image that was there: is it what it says?
    fn prepare(&self) -> Result<Ready> {
        let (state, len) = (self.state(), self.file_len());
        let State { regions, geometry, .. } = &*state;
        let differencing = state.is_differencing();
        let disk = Disk { file: self.file.as_ref(), regions, geometry: *geometry, differencing, len };
        let used = places::audit(&disk)?.into_bits();
        Ok(Ready::new(Space::new(used, geometry.block_size, len)))
    }

    /// Says in the headers that the file changes, before it does; `visible`: what a guest reads, too.
    pub(crate) fn touch(&self, writer: &Writer, visible: bool) -> Result<()> {
        let visible = visible && !writer.keeps_looks.load(Ordering::Acquire);
        writer.journal.as_ref().map_or(Ok(()), |journal| journal.touch(visible))
    }

    /// Waits until nobody writes, and keeps others from beginning. Everything is in the file, durably; readers go on.
    /// Errors: read-only, closed; what is wrong with the image.
    pub(crate) fn alone(&self) -> Result<Alone<'_>> {
        let (writer, ready) = self.begin()?;
        let claim = writer.claims.take(0..=u64::MAX, true);
        writer.check_open()?;
        self.touch(writer, false)?;
        self.write_back(writer, ready, true)?;
        Ok(Alone { writer, ready, _claim: claim })
    }

    /// Room for `len` bytes, whole MiB, which nothing refers to. Whoever does not publish it gives it back.
    pub(crate) fn take(&self, ready: &Ready, len: u64) -> Result<Place> {
        let mut space = ready.space();
        let place = space.take(self.file.as_ref(), len);
        self.grown(space.file_len());
        drop(space);
        self.taken(place?)
    }

    /// What is known of a place as it was is of no use any more.
    pub(crate) fn taken(&self, place: Place) -> Result<Place> {
        if place.clean_from > place.range.start {
            self.pages.forget(place.range.clone());
        }
        Ok(place)
    }

    /// Makes these changes of the metadata, in memory, in one step. What they free is said to [`Ready::freed`] behind it.
    pub(crate) fn publish(&self, writer: &Writer, ready: &Ready, edits: &[Edit]) -> Result<()> {
        while !self.pages.publish(edits)? {
            self.write_back(writer, ready, false)?;
        }
        Ok(())
    }

    /// Commits what was published. `last`: the caller wants to know all that was written durable.
    pub(crate) fn write_back(&self, writer: &Writer, ready: &Ready, last: bool) -> Result<()> {
        let mut order = lock(&writer.order);
        // First: what is freed is published before.
        let freed = std::mem::take(&mut *lock(&ready.freed));
        let sectors = self.pages.take();
        let epoch = self.epochs.now();
        let end = ready.space().end();
        let done = self.commit(writer, &sectors, end, last);
        self.pages.written(done.is_ok());
        if let Err(error) = done {
            lock(&ready.freed).extend(freed);
            return Err(error);
        }
        if !freed.is_empty() {
            order.push(Waiting { freed, epoch });
        }
        self.reclaim(ready, &mut order, writer.journal.is_some());
        Ok(())
    }

    /// Makes all these sectors count in one step. `end`: what is in use of the file ends there.
    pub(crate) fn commit(&self, writer: &Writer, sectors: &[Sector], end: u64, last: bool) -> Result<()> {
        match &writer.journal {
            Some(_) if sectors.is_empty() && !last => Ok(()),
            Some(journal) => journal.commit(sectors, end),
            None => {
                for sector in sectors {
                    bytes::write(self.file.as_ref(), "BAT", sector.at, sector.bytes.as_slice())?;
                }
                if last { self.sync(writer) } else { Ok(()) }
            }
        }
    }

    /// All that was written is durable.
    fn sync(&self, writer: &Writer) -> Result<()> {
        self.file.sync().map_err(|error| {
            writer.journal.iter().for_each(Journal::fail);
            Error::io("cannot make what was written durable", error)
        })
    }

    /// Gives the places of blocks that are no more, durably, to others, once no read uses them.
    fn reclaim(&self, ready: &Ready, waiting: &mut Vec<Waiting>, journaled: bool) {
        if waiting.is_empty() {
            return;
        }
        self.epochs.advance();
        self.epochs.advance();
        let (over, rest): (Vec<_>, Vec<_>) =
            std::mem::take(waiting).into_iter().partition(|batch| self.epochs.is_over(batch.epoch));
        *waiting = rest;
        for place in over.into_iter().flat_map(|batch| batch.freed) {
            if journaled {
                // Only a wish.
                let _ = self.file.punch(place.start, place.end - place.start);
            }
            ready.space().give_back(place);
        }
    }

    /// Waits until every read that is under way has ended.
    pub(crate) fn wait_for_reads(&self, writer: &Writer) {
        let _order = lock(&writer.order);
        self.epochs.wait();
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
            self.write_back(writer, ready, false)?;
            self.tighten(writer, ready)?;
        }
        writer.closed.store(true, Ordering::Release);
        Ok(())
    }

    /// Ends the file where what is in use of it ends, and empties the log, durably. The caller is alone, and all was
    /// written back.
    pub(crate) fn tighten(&self, writer: &Writer, ready: &Ready) -> Result<()> {
        let mut order = lock(&writer.order);
        if !order.is_empty() {
            self.epochs.wait();
            self.reclaim(ready, &mut order, writer.journal.is_some());
        }
        if let Some(journal) = &writer.journal {
            // Nothing in the log may take a longer file for granted.
            journal.settle()?;
        }
        let mut space = ready.space();
        let Some(len) = space.wants_len() else {
            return if writer.journal.is_some() { Ok(()) } else { self.sync(writer) };
        };
        let failed = |error| Error::io("cannot set the file's length", error);
        self.file.set_len(len).map_err(failed)?;
        // A device keeps its length, and what it holds there.
        let len = self.file.len().map_err(failed)?;
        space.cut(len);
        self.cut(len);
        // What comes there again is new.
        self.pages.forget(len..u64::MAX);
        self.sync(writer)
    }
}
