//! Cutting a disk into work for several threads: an ordered hand-out of pieces, empty stretches skipped in one step.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use cowhand_core::{Error, ErrorKind, Image, Kind, Mapped, Result};

use cowhand_core::Progress;

use crate::salvage::Salvage;

/// One or several disks, one behind the other, as one.
#[derive(Debug)]
pub(crate) struct Concat<'a> {
    /// (where it starts, the disk)
    parts: Vec<(u64, &'a Image)>,
    size: u64,
    /// How many layers of each are looked at for what is there; reading looks at all.
    depth: usize,
    /// What cannot be read is zero.
    salvage: Option<&'a Salvage<'a>>,
}

impl<'a> Concat<'a> {
    pub(crate) fn new(images: impl IntoIterator<Item = &'a Image>) -> Concat<'a> {
        let mut parts = Vec::new();
        let mut size = 0;
        for image in images {
            parts.push((size, image));
            size += image.size();
        }
        Concat { parts, size, depth: usize::MAX, salvage: None }
    }

    /// Only what the first `depth` layers say counts as being there.
    pub(crate) fn above(self, depth: usize) -> Concat<'a> {
        Concat { depth, ..self }
    }

    /// Only the first `len` bytes.
    pub(crate) fn up_to(self, len: u64) -> Concat<'a> {
        Concat { size: self.size.min(len), ..self }
    }

    /// Goes on where it cannot be read, if `salvage` says so.
    pub(crate) fn salvaging(self, salvage: Option<&'a Salvage<'a>>) -> Concat<'a> {
        Concat { salvage, ..self }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The disk that holds the byte at `at`, and where it starts.
    fn part(&self, at: u64) -> Result<(u64, &'a Image)> {
        let after = self.parts.partition_point(|(start, _)| *start <= at);
        let found = self.parts[..after].iter().rev().find(|(start, image)| at - start < image.size());
        found.copied().ok_or_else(|| Error::invalid(format!("offset {at} is past the end of the source")))
    }

    pub(crate) fn extent(&self, at: u64, max: u64) -> Result<(Mapped, &'a Image)> {
        let (start, image) = self.part(at)?;
        let inside = at - start;
        let max = max.min(image.size() - inside);
        let mut mapped = match (image.extent_above(inside, max, self.depth), self.salvage) {
            (Err(error), Some(salvage)) => salvage.extent(inside, max, error)?,
            (found, _) => found?,
        };
        if mapped.kind == Kind::Hole && self.depth < image.links().len() && mapped.depth + 1 < self.depth {
            // A layer ended before the last one that counts: it hides what the target would show there.
            mapped.kind = Kind::Zero;
        }
        Ok((mapped, image))
    }

    pub(crate) fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        match self.salvage {
            Some(salvage) => salvage.read(at, buf, &|at, buf| self.read_whole(at, buf)),
            None => self.read_whole(at, buf),
        }
    }

    fn read_whole(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let here = at + done as u64;
            let (start, image) = self.part(here)?;
            let n =
                (buf.len() - done).min(usize::try_from(image.size() - (here - start)).unwrap_or(usize::MAX));
            image.read(here - start, &mut buf[done..done + n])?;
            done += n;
        }
        Ok(())
    }
}

/// A piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    pub(crate) at: u64,
    pub(crate) len: u64,
    pub(crate) what: What<'a>,
}

/// What a piece is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What<'a> {
    /// To be read.
    Data,
    /// To be read, or cloned: its bytes stand verbatim in the storage of this disk's layer, at this offset.
    Verbatim { image: &'a Image, depth: usize, host: u64 },
    /// Zero.
    Zero,
    /// Nobody says anything: zero, or what the target stands on.
    Hole,
}

impl PartialEq for What<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl Eq for What<'_> {}

/// Hands out pieces in order. Data begins and ends at multiples of `unit`, so that no two threads write one unit of
/// the target; what is empty comes in pieces as long as it is.
pub(crate) struct Plan<'a> {
    source: &'a Concat<'a>,
    unit: u64,
    /// Most bytes of data in one piece; a multiple of `unit`.
    most: u64,
    /// Most bytes of an empty stretch in one piece.
    most_empty: u64,
    /// Most bytes in a piece that can be cloned; 0 once it is known that nothing can.
    most_cloned: AtomicU64,
    state: Mutex<State<'a>>,
    done: AtomicU64,
    stopped: AtomicBool,
}

/// Least bytes of an empty stretch in one piece: another disk may have data there, which is shared among threads.
const EMPTY: u64 = 64 << 20;
/// Most pieces that a disk is cut into where it is empty: an empty one of any size is over at once.
const PIECES: u64 = 4096;

/// Says how far it has come. Errors: somebody asked to stop.
pub(crate) fn report(progress: &dyn Progress, done: u64, total: u64) -> Result<()> {
    match progress.at(done, total) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(stopped()),
    }
}

/// Somebody asked to stop.
pub(crate) fn stopped() -> Error {
    Error::new(ErrorKind::Cancelled, "stopped on request")
}

/// For [`Plan::with_empty`], for a disk of `size` bytes: a multiple of every unit.
pub(crate) fn most_empty(size: u64) -> u64 {
    (size / PIECES).max(EMPTY) / EMPTY * EMPTY
}

struct State<'a> {
    at: u64,
    /// Where the pieces begin that were handed out and are not said to be finished.
    out: BTreeSet<u64>,
    /// What is known from `at` on, so that the tables are looked at once.
    known: Option<(u64, Found<'a>)>,
}

type Found<'a> = (Mapped, &'a Image);

impl<'a> Plan<'a> {
    pub(crate) fn new(source: &'a Concat<'a>, unit: u64, most: u64, most_cloned: u64) -> Plan<'a> {
        let unit = unit.max(1);
        let most = (most / unit).max(1) * unit;
        Plan {
            source,
            unit,
            most,
            most_empty: u64::MAX,
            most_cloned: AtomicU64::new(most_cloned / unit * unit),
            state: Mutex::new(State { at: 0, out: BTreeSet::new(), known: None }),
            done: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        }
    }

    /// Cuts empty stretches too, into pieces of at most `most` bytes (a multiple of the unit).
    pub(crate) fn with_empty(self, most: u64) -> Plan<'a> {
        Plan { most_empty: most, ..self }
    }

    /// Leaves out what comes before `at`, a multiple of the unit.
    pub(crate) fn starting_at(self, at: u64) -> Plan<'a> {
        self.state().at = at;
        self.done.store(at, Ordering::Relaxed);
        self
    }

    fn state(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn clones(&self) -> bool {
        self.most_cloned.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn no_more_clones(&self) {
        self.most_cloned.store(0, Ordering::Relaxed);
    }

    /// Nobody gets another piece.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// The next piece; `None` at the end, or when somebody stopped.
    pub(crate) fn next(&self) -> Result<Option<Piece<'a>>> {
        let mut state = self.state();
        let size = self.source.size();
        if state.at >= size || self.stopped.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let at = state.at;
        let mut found = self.look(&mut state, at)?;
        let mut end = found.0;
        let first = found.1;
        let empty = |kind| matches!(kind, Kind::Zero | Kind::Hole);
        // A stretch that is empty ends where its last whole unit ends: the rest belongs to the data behind it.
        if empty(first.0.kind) {
            while end < size && end - at < self.most_empty {
                found = self.look(&mut state, end)?;
                if found.1.0.kind != first.0.kind {
                    break;
                }
                end = found.0;
            }
            end = end.min(at.saturating_add(self.most_empty));
            let whole = if end == size { end } else { end - end % self.unit };
            if whole > at {
                let what = if first.0.kind == Kind::Zero { What::Zero } else { What::Hole };
                return Ok(Some(self.hand_out(&mut state, at, whole, what)));
            }
        }
        // Verbatim data of whole units can be cloned in one long piece.
        let cloned = self.most_cloned.load(Ordering::Relaxed);
        if let (Kind::Data, false, Some(host), true) =
            (first.0.kind, first.0.compressed, first.0.host, cloned > 0)
        {
            let mut whole = end.min(at + cloned);
            if whole < size {
                whole -= whole % self.unit;
            }
            if whole > at {
                let what = What::Verbatim { image: first.1, depth: first.0.depth, host };
                return Ok(Some(self.hand_out(&mut state, at, whole, what)));
            }
        }
        // Data, up to the unit in which it ends, or over small gaps up to the most that one piece may have.
        // Pieces end at multiples of the most, where formats begin their blocks.
        let limit = ((at / self.most + 1) * self.most).min(size);
        while end < limit {
            found = self.look(&mut state, end)?;
            let next_unit = end.next_multiple_of(self.unit);
            if empty(found.1.0.kind) && found.0.min(limit) > next_unit {
                end = next_unit;
                break;
            }
            end = found.0;
        }
        let end = end.next_multiple_of(self.unit).min(limit);
        Ok(Some(self.hand_out(&mut state, at, end, What::Data)))
    }

    fn hand_out(&self, state: &mut State<'a>, at: u64, end: u64, what: What<'a>) -> Piece<'a> {
        state.at = end;
        state.out.insert(at);
        Piece { at, len: end - at, what }
    }

    /// What is at `at`, and where that ends.
    fn look(&self, state: &mut State<'a>, at: u64) -> Result<(u64, Found<'a>)> {
        if let Some((start, (mapped, image))) = state.known
            && (start..start + mapped.len).contains(&at)
        {
            let skip = at - start;
            let rest = Mapped { len: mapped.len - skip, host: mapped.host.map(|host| host + skip), ..mapped };
            return Ok((start + mapped.len, (rest, image)));
        }
        let (mapped, image) = self.source.extent(at, self.source.size() - at)?;
        state.known = Some((at, (mapped, image)));
        Ok((at + mapped.len, (mapped, image)))
    }

    /// How far pieces were handed out.
    pub(crate) fn reached(&self) -> u64 {
        self.state().at
    }

    /// A piece is done.
    pub(crate) fn finished(&self, piece: Piece<'_>) {
        self.state().out.remove(&piece.at);
    }

    /// All before this is finished.
    pub(crate) fn frontier(&self) -> u64 {
        let state = self.state();
        state.out.first().copied().unwrap_or(state.at)
    }

    /// Says that `len` bytes are dealt with. Errors: somebody asked to stop.
    pub(crate) fn advance(&self, len: u64, progress: &dyn Progress) -> Result<()> {
        let done = self.done.fetch_add(len, Ordering::Relaxed) + len;
        report(progress, done.min(self.source.size()), self.source.size())
    }

    /// Lets `workers` threads work off the plan; the first error stops all.
    pub(crate) fn run(&self, workers: usize, work: impl Fn(&Plan<'a>) -> Result<()> + Sync) -> Result<()> {
        let one = || work(self).inspect_err(|_| self.stop());
        if workers <= 1 {
            return one();
        }
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..workers).map(|_| scope.spawn(one)).collect();
            let mut result = one();
            for other in others {
                let ended = other.join().unwrap_or_else(|_| {
                    Err(Error::new(
                        ErrorKind::Io,
                        "a worker thread panicked; this is a mistake in the program",
                    ))
                });
                result = result.and(ended);
            }
            result
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::Quiet;
    use cowhand_core::{Extent, Layer, Link, MemoryStorage, Storage};
    use std::sync::Arc;

    /// Data, zeros and holes by a list of lengths.
    #[derive(Debug)]
    struct Striped {
        runs: Vec<(u64, Kind)>,
        file: Arc<dyn Storage>,
    }

    impl Layer for Striped {
        fn size(&self) -> u64 {
            self.runs.iter().map(|(len, _)| len).sum()
        }

        fn granule(&self) -> u64 {
            512
        }

        fn host(&self) -> &Arc<dyn Storage> {
            &self.file
        }

        fn extent(&self, at: u64, max: u64) -> Result<Extent> {
            let mut start = 0;
            for (len, kind) in &self.runs {
                if at < start + len {
                    let host = (*kind == Kind::Data).then_some(at + 4096);
                    return Ok(Extent {
                        len: max.min(start + len - at),
                        kind: *kind,
                        compressed: false,
                        host,
                    });
                }
                start += len;
            }
            Err(Error::invalid("past the end"))
        }

        fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
            self.extent(at, buf.len() as u64)
        }

        fn flush(&self) -> Result<()> {
            Ok(())
        }
    }

    fn striped(seed: u64, runs: usize) -> Image {
        let mut state = seed;
        let mut random = move |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        let kinds = [Kind::Data, Kind::Zero, Kind::Hole];
        let runs = (0..runs).map(|_| ((random(300) + 1) * 512, kinds[random(3) as usize])).collect();
        let layer = Arc::new(Striped { runs, file: Arc::new(MemoryStorage::new()) });
        Image::new(vec![Link { layer, name: "striped".into(), format: "striped" }]).unwrap()
    }

    #[test]
    fn pieces_tile_the_disk_and_no_unit_is_shared() {
        for seed in 0..200 {
            let images = [striped(seed, 40), striped(seed + 1000, 7)];
            let source = Concat::new(&images);
            let unit = [512, 4096, 65536][seed as usize % 3];
            let cloned = if seed % 2 == 0 { 256 << 10 } else { 0 };
            let plan = Plan::new(&source, unit, 128 << 10, cloned);
            let mut at = 0;
            while let Some(piece) = plan.next().unwrap() {
                assert_eq!(piece.at, at, "seed {seed}");
                assert!(piece.len > 0 && (piece.at.is_multiple_of(unit)), "seed {seed}: {piece:?}");
                if piece.what == What::Data {
                    assert!(piece.len <= 128 << 10, "seed {seed}: {piece:?}");
                }
                let mut here = at;
                while here < at + piece.len {
                    let (mapped, _) = source.extent(here, at + piece.len - here).unwrap();
                    match piece.what {
                        What::Data => {}
                        What::Verbatim { host, .. } => {
                            assert_eq!(
                                (mapped.kind, mapped.host),
                                (Kind::Data, Some(host + here - at)),
                                "seed {seed}"
                            );
                        }
                        What::Zero => assert_eq!(mapped.kind, Kind::Zero, "seed {seed}"),
                        What::Hole => assert_eq!(mapped.kind, Kind::Hole, "seed {seed}"),
                    }
                    here += mapped.len;
                }
                at += piece.len;
            }
            assert_eq!(at, source.size(), "seed {seed}");
        }
    }

    #[test]
    fn threads_get_every_piece_once_and_an_error_stops_them() {
        let image = striped(7, 400);
        let source = Concat::new([&image]);
        let seen = AtomicU64::new(0);
        let plan = Plan::new(&source, 4096, 1 << 20, 0);
        let all = |plan: &Plan<'_>| {
            while let Some(piece) = plan.next()? {
                seen.fetch_add(piece.len, Ordering::Relaxed);
                plan.advance(piece.len, &Quiet)?;
            }
            Ok(())
        };
        plan.run(4, all).unwrap();
        assert_eq!(seen.load(Ordering::Relaxed), source.size());
        let plan = Plan::new(&source, 4096, 1 << 20, 0);
        assert!(plan.run(4, |_| Err(Error::invalid("no"))).is_err());
        assert!(plan.next().unwrap().is_none());
    }
}
