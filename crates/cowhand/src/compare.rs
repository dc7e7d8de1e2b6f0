//! `compare`: do two disks have the same content, and if not, where do they differ first?

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use cowhand_core::{Error, Image, Kind, Result, is_zero};

use crate::buffer::Buffer;
use crate::convert::{PIECE, workers};
use crate::plan::{Concat, Piece, Plan, most_empty};
use cowhand_core::Progress;

/// How two disks differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The first sector with different bytes begins here.
    Content(u64),
    /// One disk has data here and the other has none (only asked for in strict mode).
    Allocation(u64),
    /// The sizes differ (only a difference in strict mode).
    Size,
}

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The first difference; `None`: the disks are the same.
    pub difference: Option<Difference>,
    /// One disk is longer; unless strict, that is no difference if the longer one's rest is zero.
    pub sizes_differ: bool,
}

/// Why a comparison could not be done.
#[derive(Debug)]
pub struct CompareError {
    /// It was known what is where, and reading it failed; otherwise that could not be found out.
    pub reading: bool,
    /// What happened.
    pub error: Error,
}

const SECTOR: usize = 512;

/// Compares two disks, with as many threads as there are processors.
pub fn compare(
    a: &Image,
    b: &Image,
    strict: bool,
    progress: &dyn Progress,
) -> Result<Comparison, CompareError> {
    compare_sources(&Concat::new([a]), &Concat::new([b]), strict, workers(None), progress)
}

pub(crate) fn compare_sources(
    a: &Concat<'_>,
    b: &Concat<'_>,
    strict: bool,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Comparison, CompareError> {
    let sizes_differ = a.size() != b.size();
    if strict && sizes_differ {
        return Ok(Comparison { difference: Some(Difference::Size), sizes_differ });
    }
    // The longer one is walked, so that its rest is seen too.
    let (a, b) = if a.size() >= b.size() { (a, b) } else { (b, a) };
    let comparing = Comparing {
        a,
        b,
        strict,
        first: AtomicU64::new(u64::MAX),
        allocation: Mutex::new(false),
        reading: Mutex::new(false),
    };
    let plan = Plan::new(a, SECTOR as u64, PIECE, 0).with_empty(most_empty(a.size()));
    plan.run(threads, |plan| {
        let mut bufs = (Buffer::default(), Buffer::default());
        while let Some(piece) = plan.next()? {
            if comparing.piece(piece, &mut bufs)? {
                plan.stop();
            }
            plan.advance(piece.len, progress)?;
        }
        Ok(())
    })
    .map_err(|error| CompareError {
        reading: *comparing.reading.lock().unwrap_or_else(|p| p.into_inner()),
        error,
    })?;
    let first = comparing.first.load(Ordering::Relaxed);
    let allocation = *comparing.allocation.lock().unwrap_or_else(|p| p.into_inner());
    let difference = match (first, allocation) {
        (u64::MAX, _) => None,
        (at, true) => Some(Difference::Allocation(at)),
        (at, false) => Some(Difference::Content(at)),
    };
    Ok(Comparison { difference, sizes_differ })
}

struct Comparing<'a> {
    a: &'a Concat<'a>,
    b: &'a Concat<'a>,
    strict: bool,
    /// The first difference found so far. Pieces are handed out in order, so what comes before it is being looked at
    /// by somebody.
    first: AtomicU64,
    allocation: Mutex<bool>,
    reading: Mutex<bool>,
}

impl Comparing<'_> {
    fn found(&self, at: u64, allocation: bool) {
        // What a disk has may change within a sector: at the end of an odd-sized raw file.
        let at = at - at % SECTOR as u64;
        let mut kind = self.allocation.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if at < self.first.load(Ordering::Relaxed) {
            self.first.store(at, Ordering::Relaxed);
            *kind = allocation;
        }
    }

    /// What `disk` has at `at`, nothing past its end.
    fn look(disk: &Concat<'_>, at: u64, max: u64) -> Result<(u64, Kind)> {
        if at >= disk.size() {
            return Ok((max, Kind::Hole));
        }
        let (mapped, _) = disk.extent(at, max.min(disk.size() - at))?;
        Ok((mapped.len, mapped.kind))
    }

    fn read<'b>(&self, disk: &Concat<'_>, at: u64, buf: &'b mut Buffer, len: u64) -> Result<&'b [u8]> {
        let buf = buf.get(len as usize);
        disk.read(at, buf)
            .inspect_err(|_| *self.reading.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = true)?;
        Ok(buf)
    }

    /// True: the piece differs.
    fn piece(&self, piece: Piece<'_>, bufs: &mut (Buffer, Buffer)) -> Result<bool> {
        let end = piece.at + piece.len;
        let mut at = piece.at;
        while at < end {
            let (len_a, kind_a) = Self::look(self.a, at, end - at)?;
            let (len_b, kind_b) = Self::look(self.b, at, len_a)?;
            if self.strict && kind_a != kind_b {
                self.found(at, true);
                return Ok(true);
            }
            let data = |kind| kind == Kind::Data;
            let len = if data(kind_a) || data(kind_b) { len_b.min(PIECE) } else { len_b };
            let (buf_a, buf_b) = (&mut bufs.0, &mut bufs.1);
            let difference = match (data(kind_a), data(kind_b)) {
                (false, false) => None,
                (true, false) => first_not_zero(self.read(self.a, at, buf_a, len)?),
                (false, true) => first_not_zero(self.read(self.b, at, buf_b, len)?),
                (true, true) => {
                    first_difference(self.read(self.a, at, buf_a, len)?, self.read(self.b, at, buf_b, len)?)
                }
            };
            if let Some(offset) = difference {
                self.found(at + offset as u64, false);
                return Ok(true);
            }
            at += len;
        }
        Ok(false)
    }
}

/// Where the first sector that is not zero begins.
fn first_not_zero(buf: &[u8]) -> Option<usize> {
    if is_zero(buf) {
        return None;
    }
    buf.chunks(SECTOR).position(|sector| !is_zero(sector)).map(|index| index * SECTOR)
}

/// Where the first sector that differs begins.
fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    a.chunks(SECTOR).zip(b.chunks(SECTOR)).position(|(a, b)| a != b).map(|index| index * SECTOR)
}
