//! Disks read by several threads, and given on in order by one.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use cowhand_core::{Body, Chunk, Image, Result, is_zero};

use crate::buffer::Buffer;
use crate::plan::{Concat, Piece, Plan, What};

/// Bytes that are read and were not given on yet, at most; two pieces where those are longer.
const MEMORY: u64 = 32 << 20;
/// Pieces that are, at most: most of them are empty, where there are many.
const PIECES: usize = 64;
/// So many of the longest pieces are as long as an empty one may be: in between, who takes them can be stopped.
const EMPTY: u64 = 4096;

/// A disk to be read, and how long it shall be: zeros follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk<'a> {
    pub(super) image: &'a Image,
    pub(super) size: u64,
}

/// How disks are cut into pieces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Pieces begin and end at multiples of it.
    pub(super) granule: u64,
    /// Bytes of data in a piece, at most.
    pub(super) batch: u64,
    /// Threads that read.
    pub(super) workers: usize,
}

/// Who is shown data.
pub(super) type See<'a> = dyn Fn(Chunk<'_>) -> Result<()> + Sync + 'a;

/// Reads the disks, one after the other. `see` is shown what is not zero by the threads that read, in any order; `take`
/// gets every byte of every disk, in order. Holes are not read. The first error of anybody ends it.
pub(super) fn feed(
    disks: &[Disk<'_>],
    cut: Cut,
    see: &See<'_>,
    mut take: impl FnMut(Chunk<'_>) -> Result<()>,
) -> Result<()> {
    let sources: Vec<Concat<'_>> = disks.iter().map(|disk| Concat::new([disk.image])).collect();
    let empty = cut.batch.saturating_mul(EMPTY);
    let disks: Vec<Source<'_>> = disks
        .iter()
        .zip(&sources)
        .map(|(disk, source)| {
            let plan = Plan::new(source, cut.granule, cut.batch, 0).with_empty(empty);
            Source { source, plan, size: disk.size }
        })
        .collect();
    let buffers = (MEMORY / cut.batch.max(1)).clamp(2, cut.workers as u64 + 2) as usize;
    let line = Line {
        disks,
        see,
        cursor: Mutex::default(),
        state: Mutex::new(State::new(buffers)),
        moved: Condvar::new(),
    };
    std::thread::scope(|scope| {
        for _ in 0..cut.workers.clamp(1, buffers) {
            scope.spawn(|| line.work());
        }
        // However this ends, the others end too.
        let _stop = Stop(&line);
        while let Some(mut came) = line.next()? {
            let Came { disk, at, len, buf } = &mut came;
            let body = match buf {
                Some(buf) => Body::Bytes(buf.get(*len as usize)),
                None => Body::Zero(*len),
            };
            take(Chunk { disk: *disk, at: *at, body })?;
            line.give_back(came.buf);
        }
        Ok(())
    })
}

struct Source<'a> {
    source: &'a Concat<'a>,
    plan: Plan<'a>,
    size: u64,
}

/// A piece to be read, and its disk.
struct Turn<'l, 'a> {
    disk: u32,
    of: &'l Source<'a>,
    piece: Piece<'a>,
}

/// A piece that was read.
struct Came {
    disk: u32,
    at: u64,
    len: u64,
    /// `None`: it is zero.
    buf: Option<Buffer>,
}

/// Who comes next to have a piece.
#[derive(Default)]
struct Cursor {
    disk: usize,
    number: u64,
}

struct State {
    /// The piece that is to be given on next.
    due: u64,
    /// Those that are read and not due, or failed.
    ready: BTreeMap<u64, Result<Came>>,
    spare: Vec<Buffer>,
    /// How many pieces there are, once that is known.
    total: Option<u64>,
    stopped: bool,
}

impl State {
    fn new(buffers: usize) -> State {
        let spare = (0..buffers).map(|_| Buffer::default()).collect();
        State { due: 0, ready: BTreeMap::new(), spare, total: None, stopped: false }
    }
}

/// The threads that read in a line: who has a piece has a buffer, so the one whose piece is due never waits for one.
struct Line<'a> {
    disks: Vec<Source<'a>>,
    see: &'a See<'a>,
    cursor: Mutex<Cursor>,
    state: Mutex<State>,
    moved: Condvar,
}

struct Stop<'l, 'a>(&'l Line<'a>);

impl Drop for Stop<'_, '_> {
    fn drop(&mut self) {
        self.0.state().stopped = true;
        self.0.moved.notify_all();
    }
}

impl<'a> Line<'a> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.moved.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// What is due; `None`: all was given on.
    fn next(&self) -> Result<Option<Came>> {
        let mut state = self.state();
        loop {
            let due = state.due;
            if let Some(came) = state.ready.remove(&due) {
                state.due += 1;
                self.moved.notify_all();
                return came.map(Some);
            }
            if state.total == Some(due) {
                return Ok(None);
            }
            state = self.wait(state);
        }
    }

    fn give_back(&self, buf: Option<Buffer>) {
        self.state().spare.extend(buf);
        self.moved.notify_all();
    }

    /// Reads pieces until there are no more.
    fn work(&self) {
        while let Some(mut buf) = self.buffer() {
            let Some((number, piece)) = self.piece() else { return };
            let came = piece.and_then(|turn| self.read(turn, &mut buf));
            let mut state = self.state();
            let came = came.map(|read| match read {
                Read { disk, at, len, zero: false } => Came { disk, at, len, buf: Some(buf) },
                Read { disk, at, len, zero: true } => {
                    state.spare.push(buf);
                    Came { disk, at, len, buf: None }
                }
            });
            state.ready.insert(number, came);
            drop(state);
            self.moved.notify_all();
        }
    }

    /// A buffer, once there is one and not too much waits.
    fn buffer(&self) -> Option<Buffer> {
        let mut state = self.state();
        loop {
            if state.stopped || state.total.is_some() {
                return None;
            }
            if state.ready.len() < PIECES
                && let Some(buf) = state.spare.pop()
            {
                return Some(buf);
            }
            state = self.wait(state);
        }
    }

    /// The next piece, and its number.
    fn piece(&self) -> Option<(u64, Result<Turn<'_, 'a>>)> {
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(disk) = self.disks.get(cursor.disk) {
            let piece = disk.plan.next().transpose();
            if let Some(piece) = piece {
                let (number, place) = (cursor.number, cursor.disk as u32);
                cursor.number += 1;
                return Some((number, piece.map(|piece| Turn { disk: place, of: disk, piece })));
            }
            cursor.disk += 1;
        }
        self.state().total = Some(cursor.number);
        self.moved.notify_all();
        None
    }

    /// Reads a piece into `buf`, and looks whether it is zero.
    fn read(&self, turn: Turn<'_, '_>, buf: &mut Buffer) -> Result<Read> {
        let Turn { disk, of, piece } = turn;
        let Source { source, size, .. } = of;
        let Piece { at, len, what } = piece;
        // What follows the image belongs to its last piece.
        let whole = if at + len == source.size() { size - at } else { len };
        let zero = match what {
            What::Zero | What::Hole => true,
            What::Data | What::Verbatim { .. } => {
                let buf = buf.get(whole as usize);
                let (bytes, rest) = buf.split_at_mut(len as usize);
                source.read(at, bytes)?;
                rest.fill(0);
                let zero = is_zero(buf);
                if !zero {
                    (self.see)(Chunk { disk, at, body: Body::Bytes(buf) })?;
                }
                zero
            }
        };
        Ok(Read { disk, at, len: whole, zero })
    }
}

/// What was found when a piece was read.
struct Read {
    disk: u32,
    at: u64,
    len: u64,
    zero: bool,
}
