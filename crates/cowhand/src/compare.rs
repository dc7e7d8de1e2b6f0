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
    /// Which of the two disks it was, 0 or 1.
    pub disk: usize,
    /// Where, in guest bytes.
    pub at: u64,
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
    let (a, b) = if a.size() >= b.size() { (Disk(0, a), Disk(1, b)) } else { (Disk(1, b), Disk(0, a)) };
    let comparing = Comparing {
        a,
        b,
        strict,
        first: AtomicU64::new(u64::MAX),
        allocation: Mutex::new(false),
        failed: Mutex::new(None),
    };
    let plan = Plan::new(a.1, SECTOR as u64, PIECE, 0).with_empty(most_empty(a.1.size()));
    plan.run(threads, |plan| {
        let mut bufs = (Buffer::default(), Buffer::default());
        let next = || plan.next().inspect_err(|_| comparing.failed(a, plan.reached(), false));
        while let Some(piece) = next()? {
            if comparing.piece(piece, &mut bufs)? {
                plan.stop();
            } else {
                plan.advance(piece.len, progress)?;
            }
        }
        Ok(())
    })
    .map_err(|error| {
        let failed = *comparing.failed.lock().unwrap_or_else(|p| p.into_inner());
        let (disk, at, reading) = failed.unwrap_or_default();
        CompareError { reading, disk, at, error }
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

/// One of the two, with its place among the caller's.
#[derive(Clone, Copy)]
struct Disk<'a>(usize, &'a Concat<'a>);

struct Comparing<'a> {
    a: Disk<'a>,
    b: Disk<'a>,
    strict: bool,
    /// The first difference found so far. Pieces are handed out in order, so what comes before it is being looked at
    /// by somebody.
    first: AtomicU64,
    allocation: Mutex<bool>,
    /// The first failure: which disk, where, and whether it was read.
    failed: Mutex<Option<(usize, u64, bool)>>,
}

impl Comparing<'_> {
    fn found(&self, at: u64, allocation: bool) {
        let mut kind = self.allocation.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if at < self.first.load(Ordering::Relaxed) {
            self.first.store(at, Ordering::Relaxed);
            *kind = allocation;
        }
    }

    fn failed(&self, disk: Disk<'_>, at: u64, reading: bool) {
        let mut failed = self.failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        failed.get_or_insert((disk.0, at, reading));
    }

    /// What `disk` has at `at`, nothing past its end, and whether it is compressed.
    fn look(&self, disk: Disk<'_>, at: u64, max: u64) -> Result<(u64, Kind, bool)> {
        let size = disk.1.size();
        if at >= size {
            return Ok((max, Kind::Hole, false));
        }
        let found = disk.1.extent(at, max.min(size - at));
        let (mapped, _) = found.inspect_err(|_| self.failed(disk, at, false))?;
        Ok((mapped.len, mapped.kind, mapped.compressed))
    }

    fn read<'b>(&self, disk: Disk<'_>, at: u64, buf: &'b mut Buffer, len: u64) -> Result<&'b [u8]> {
        let buf = buf.get(len as usize);
        disk.1.read(at, buf).inspect_err(|_| self.failed(disk, at, true))?;
        Ok(buf)
    }

    /// True: the piece differs.
    fn piece(&self, piece: Piece<'_>, bufs: &mut (Buffer, Buffer)) -> Result<bool> {
        let end = piece.at + piece.len;
        let mut at = piece.at;
        while at < end {
            let (len_a, kind_a, compressed_a) = self.look(self.a, at, end - at)?;
            let (len_b, kind_b, compressed_b) = self.look(self.b, at, len_a)?;
            if self.strict && (kind_a, compressed_a) != (kind_b, compressed_b) {
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
