//! From an archive into its disks: one thread reads and gathers, others write.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cowhand_core::{ArchiveSource, Body, Cache, Chunk, Error, ErrorKind, Result, Storage, zero_prefix};

use super::Digester;
use super::pace::Pace;
use crate::fill::Filling;
use crate::target::Target;

/// Bytes that are handed over together, and less than a block more.
const BATCH: usize = 1 << 20;
/// Runs that are handed over together at most.
const RUNS: usize = 4096;
/// Batches there are: being filled, waiting, being written.
const BATCHES: usize = 6;
/// A block: chunks are cut between them, and those that are zero become holes of a machine's memory.
const UNIT: usize = 4096;
/// How often who waits for the writers looks whether to go on.
const PATIENCE: Duration = Duration::from_millis(100);

/// Where a disk goes.
#[derive(Debug)]
pub(super) struct Outlet {
    pub(super) to: To,
    /// Guest bytes; what an archive says of a disk's last block goes no further.
    pub(super) size: u64,
    pub(super) pace: Option<Arc<Pace>>,
}

#[derive(Debug)]
pub(super) enum To {
    Image(Box<Filling>),
    Memory(Memory),
}

/// A machine's memory: bytes whose number nobody knows before the end.
#[derive(Debug)]
pub(super) struct Memory {
    target: Target,
    end: AtomicU64,
    written: AtomicU64,
}

impl Memory {
    pub(super) fn new(path: &Path, cache: Cache) -> Result<Memory> {
        let target = Target::begin(path, cache)?;
        Ok(Memory { target, end: AtomicU64::new(0), written: AtomicU64::new(0) })
    }

    fn put(&self, at: u64, body: Body<'_>) -> Result<()> {
        let failed = |error| Error::io("cannot write the machine's memory", error);
        let len = match body {
            Body::Zero(len) => len,
            Body::Bytes(bytes) => {
                let mut rest = bytes;
                let mut here = at;
                while !rest.is_empty() {
                    let (len, zero) = zero_prefix(rest, UNIT);
                    let (run, after) = rest.split_at(len); // never out of bounds: a prefix
                    if !zero {
                        self.target.storage().write_at(here, run).map_err(failed)?;
                        self.written.fetch_add(len as u64, Ordering::Relaxed);
                    }
                    here += len as u64;
                    rest = after;
                }
                bytes.len() as u64
            }
        };
        self.end.fetch_max(at + len, Ordering::Relaxed);
        Ok(())
    }

    /// All came: how long it is, and how much of it was written.
    pub(super) fn finish(self) -> Result<(u64, u64)> {
        let len = self.end.into_inner();
        let set = self.target.storage().set_len(len);
        set.map_err(|error| Error::io("cannot write the machine's memory", error))?;
        self.target.finish()?;
        Ok((len, self.written.into_inner()))
    }
}

/// Bytes and zeros of disks.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    runs: Vec<Run>,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    disk: usize,
    at: u64,
    len: u64,
    /// Where in [`Batch::bytes`] they stand; `None`: zeros.
    bytes: Option<usize>,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.bytes.len() >= BATCH || self.runs.len() >= RUNS
    }

    /// Takes as much of the front of `body` as there is room for, cut between blocks alone: who digests them wants them
    /// whole. How much that is.
    fn take(&mut self, disk: usize, at: u64, body: Body<'_>) -> usize {
        let (len, start, taken) = match body {
            Body::Zero(len) => (len, None, 0),
            Body::Bytes(bytes) => {
                // Whole blocks, though what a disk that ends within one has of it stands before them.
                let room = BATCH.saturating_sub(self.bytes.len()).next_multiple_of(UNIT).min(bytes.len());
                let start = self.bytes.len();
                self.bytes.extend_from_slice(&bytes[..room]); // never out of bounds: at most its length
                (room as u64, Some(start), room)
            }
        };
        match self.runs.last_mut() {
            Some(last)
                if last.disk == disk
                    && last.at + last.len == at
                    && last.bytes.is_some() == start.is_some() =>
            {
                last.len += len
            }
            _ => self.runs.push(Run { disk, at, len, bytes: start }),
        }
        taken
    }
}

/// What the writers share.
struct Shared<'a> {
    outlets: &'a [Option<Outlet>],
    digester: Option<&'a Digester>,
    full: Mutex<Receiver<Batch>>,
    stop: AtomicBool,
    failed: Mutex<Option<Error>>,
}

impl Shared<'_> {
    fn write_all(&self, empty: &Sender<Batch>) {
        loop {
            // The next batch is waited for under the lock, which the others would wait for it too.
            let next = self.full.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(mut batch) = next else { return };
            if !self.stop.load(Ordering::Relaxed)
                && let Err(error) = self.write(&batch)
            {
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                self.stop.store(true, Ordering::Relaxed);
            }
            batch.bytes.clear();
            batch.runs.clear();
            // At the end nobody wants it back, and others still wait to be written.
            let _ = empty.send(batch);
        }
    }

    fn write(&self, batch: &Batch) -> Result<()> {
        for run in &batch.runs {
            let Some(Some(outlet)) = self.outlets.get(run.disk) else { continue };
            let body = match run.bytes {
                None => Body::Zero(run.len),
                Some(start) => {
                    Body::Bytes(batch.bytes.get(start..start + run.len as usize).unwrap_or_default())
                }
            };
            if let Some(digester) = self.digester {
                digester.add(run.disk as u32, run.at, body)?;
            }
            if let (Some(pace), Body::Bytes(_)) = (&outlet.pace, body) {
                pace.wait(run.len, &self.stop);
            }
            match &outlet.to {
                To::Image(image) => image.put(run.at, body)?,
                To::Memory(memory) => memory.put(run.at, body)?,
            }
        }
        Ok(())
    }
}

/// Reads `source` to its end, and gives what comes of each disk to its outlet. `each` sees every chunk that has an outlet;
/// `idle` is asked whether to go on while the writers are waited for.
pub(super) fn pump(
    source: &mut dyn ArchiveSource,
    outlets: &[Option<Outlet>],
    digester: Option<&Digester>,
    each: &mut dyn FnMut(u64, Chunk<'_>) -> Result<()>,
    idle: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let (to, full) = sync_channel(BATCHES);
    let (empty, empties) = channel();
    for _ in 0..BATCHES {
        let _ = empty.send(Batch::default()); // never fails: the other end is here
    }
    let shared = Shared {
        outlets,
        digester,
        full: Mutex::new(full),
        stop: AtomicBool::new(false),
        failed: Mutex::new(None),
    };
    let done = std::thread::scope(|scope| {
        // Who only writes would wait for the others at the file's lock; hashes are made side by side.
        let writers = if digester.is_some() { 2 } else { 1 };
        for _ in 0..writers {
            let (shared, empty) = (&shared, empty.clone());
            scope.spawn(move || shared.write_all(&empty));
        }
        let mut hand = Hand { batch: None, to, empties, stop: &shared.stop, idle };
        let done = gather(source, outlets, &mut hand, each);
        if done.is_err() {
            shared.stop.store(true, Ordering::Relaxed);
        }
        done
    });
    // What a writer said comes first: the reader only found out.
    match shared.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => done,
    }
}

fn gather(
    source: &mut dyn ArchiveSource,
    outlets: &[Option<Outlet>],
    hand: &mut Hand<'_>,
    each: &mut dyn FnMut(u64, Chunk<'_>) -> Result<()>,
) -> Result<()> {
    while let Some(chunk) = source.next()? {
        let Some(Some(outlet)) = outlets.get(chunk.disk as usize) else { continue };
        let Some(body) = within(outlet, chunk) else { continue };
        each(outlet.size, Chunk { body, ..chunk })?;
        let (disk, mut at) = (chunk.disk as usize, chunk.at);
        match body {
            Body::Zero(_) => {
                hand.batch()?.take(disk, at, body);
            }
            Body::Bytes(mut bytes) => {
                while !bytes.is_empty() {
                    let taken = hand.batch()?.take(disk, at, Body::Bytes(bytes));
                    at += taken as u64;
                    bytes = bytes.get(taken..).unwrap_or_default();
                }
            }
        }
    }
    hand.finish()
}

/// What of a chunk lies within its disk.
fn within<'a>(outlet: &Outlet, chunk: Chunk<'a>) -> Option<Body<'a>> {
    if matches!(outlet.to, To::Memory(_)) {
        return Some(chunk.body);
    }
    let room = outlet.size.checked_sub(chunk.at).filter(|room| *room > 0)?;
    Some(match chunk.body {
        Body::Zero(len) => Body::Zero(len.min(room)),
        Body::Bytes(bytes) => {
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            Body::Bytes(bytes.get(..room).unwrap_or(bytes))
        }
    })
}

/// The batch that is being filled, and where it goes.
struct Hand<'a> {
    batch: Option<Batch>,
    to: SyncSender<Batch>,
    empties: Receiver<Batch>,
    stop: &'a AtomicBool,
    idle: &'a dyn Fn() -> Result<()>,
}

impl Hand<'_> {
    /// A batch with room in it.
    fn batch(&mut self) -> Result<&mut Batch> {
        if self.batch.as_ref().is_some_and(Batch::is_full) {
            self.over()?;
        }
        if self.batch.is_none() {
            let mut batch = self.next()?;
            batch.bytes.reserve(BATCH + UNIT);
            self.batch = Some(batch);
        }
        self.batch.as_mut().ok_or_else(gone)
    }

    fn next(&self) -> Result<Batch> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Cancelled, "a thread that writes has failed"));
            }
            match self.empties.recv_timeout(PATIENCE) {
                Ok(batch) => return Ok(batch),
                Err(RecvTimeoutError::Timeout) => (self.idle)()?,
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
            }
        }
    }

    /// Hands over what there is.
    fn over(&mut self) -> Result<()> {
        match self.batch.take() {
            Some(batch) => self.to.send(batch).map_err(|_| gone()),
            None => Ok(()),
        }
    }

    /// Hands over the last batch, and waits until all of them are written.
    fn finish(&mut self) -> Result<()> {
        self.over()?;
        (0..BATCHES).try_for_each(|_| self.next().map(drop))
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Io, "a thread that writes has ended too early")
}
