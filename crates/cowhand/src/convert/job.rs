//! The copying of `convert`: pieces of a plan, on several threads, into an image.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cowhand_core::{Erase, Error, ErrorKind, Image, Progress, is_zero, zero_prefix};

use super::{CLONE, Convert, ConvertStep, Converted, PIECE, READ, Result, SPARSE, WRITE, workers};
use crate::buffer::Buffer;
use crate::failed::Failed;
use crate::plan::{Concat, Piece, Plan, What};
use crate::resume::Sidecar;

/// The copying itself.
pub(crate) struct Job<'a> {
    pub(super) how: &'a Convert,
    pub(crate) target: &'a Image,
    /// Zeros need not be written.
    pub(crate) reads_zero: bool,
    /// What the source does not reach must be made zero.
    pub(super) rest_must_be_zero: bool,
    /// Holes of the source show what the target stands on.
    on_backing: bool,
    /// What lies around a write does not read zero, so allocation units are written whole.
    pub(crate) whole_blocks: bool,
    /// The file system may share blocks of the source with the target.
    pub(super) shares: bool,
    /// What comes before is in the target already.
    pub(super) start: u64,
    /// Where to note how far it has come.
    pub(super) sidecar: Option<&'a Sidecar>,
    written: AtomicU64,
    cloned: AtomicU64,
    since: Instant,
    /// The first step that failed.
    failed: Mutex<Option<ConvertStep>>,
}

impl<'a> Job<'a> {
    pub(crate) fn new(how: &'a Convert, target: &'a Image, on_backing: bool) -> Job<'a> {
        Job {
            how,
            target,
            reads_zero: false,
            rest_must_be_zero: false,
            on_backing,
            whole_blocks: false,
            shares: true,
            start: 0,
            sidecar: None,
            written: AtomicU64::new(0),
            cloned: AtomicU64::new(0),
            since: Instant::now(),
            failed: Mutex::default(),
        }
    }

    /// For `map_err`: what fails there fails in `step`.
    fn in_step(&self, step: ConvertStep) -> impl FnOnce(Error) -> Error {
        move |error| {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(step);
            error
        }
    }

    /// Guest bytes written.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    pub(super) fn summary(&self, to: &'static str, target: &Image) -> Converted {
        Converted {
            to,
            size: target.size(),
            written: self.written(),
            cloned: self.cloned.load(Ordering::Relaxed),
            ..Converted::default()
        }
    }

    pub(crate) fn run(&self, source: &Concat<'_>, progress: &dyn Progress) -> Result<()> {
        self.copy(source, progress).map_err(|error| {
            let step = *self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            Failed { step: step.unwrap_or(ConvertStep::Rest), error }
        })
    }

    fn copy(&self, source: &Concat<'_>, progress: &dyn Progress) -> Result<(), Error> {
        if self.how.compress {
            // A format that cannot compress says so now, also where there is nothing to write.
            self.target.write_compressed(0, &[]).map_err(self.in_step(ConvertStep::Compress))?;
        }
        let block = self.target.links()[0].layer.details().cluster_size.unwrap_or(1); // never empty: every image has a layer
        let granule = if self.how.compress || self.whole_blocks {
            block.max(self.target.granule())
        } else {
            self.target.granule()
        };
        let unit = granule.max(self.how.sparse.unwrap_or(SPARSE).max(512).next_power_of_two());
        // Sharing keeps the source's zeros, which -S asks to find, and shares what cannot be read.
        let reads = self.how.compress || self.how.sparse.is_some() || self.how.salvage;
        let clone = if reads || !self.shares { 0 } else { CLONE };
        let plan = Plan::new(source, unit, PIECE.max(unit), clone).starting_at(self.start);
        let done = plan.run(workers(self.how.workers), |plan| {
            let mut buf = Buffer::default();
            let next = || plan.next().map_err(|error| self.in_step(ConvertStep::Map(plan.reached()))(error));
            while let Some(piece) = next()? {
                self.piece(plan, source, piece, unit as usize, &mut buf, progress)?;
                plan.finished(piece);
                if let Some(sidecar) = self.sidecar {
                    sidecar.tick(|| plan.frontier(), || self.target.flush())?;
                }
            }
            Ok(())
        });
        if let (Err(error), Some(sidecar)) = (&done, self.sidecar)
            && error.kind() == ErrorKind::Cancelled
        {
            sidecar.stop(plan.frontier(), || self.target.flush())?;
        }
        done?;
        if self.rest_must_be_zero && self.target.size() > source.size() {
            self.target.erase(source.size(), self.target.size() - source.size(), Erase::Free)?;
        }
        Ok(())
    }

    fn piece(
        &self,
        plan: &Plan<'_>,
        source: &Concat<'_>,
        piece: Piece<'_>,
        unit: usize,
        buf: &mut Buffer,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let Piece { at, len, what } = piece;
        let everything = self.how.sparse == Some(0);
        match what {
            What::Hole if self.on_backing && !everything => plan.advance(len, progress),
            What::Hole | What::Zero if !everything => {
                self.zero(at, len)?;
                plan.advance(len, progress)
            }
            What::Verbatim { image, depth, host } if self.share(plan, image, depth, host, at, len)? => {
                plan.advance(len, progress)
            }
            _ => {
                let (step, most) = (READ.max(unit as u64), WRITE.max(unit as u64) as usize);
                let buf = buf.get(most + step as usize);
                let mut done = 0;
                // Bytes at the front of `buf` that were read and not written yet.
                let mut held = 0;
                while done < len {
                    let n = (len - done).min(step);
                    let read = &mut buf[held..held + n as usize];
                    source.read(at + done, read).map_err(self.in_step(ConvertStep::Read(at + done)))?;
                    let zero = !everything && is_zero(read);
                    if zero {
                        self.put(at + done - held as u64, &buf[..held], unit, everything)?;
                        self.zero(at + done, n)?;
                        held = 0;
                    } else {
                        held += n as usize;
                    }
                    done += n;
                    if held >= most || done == len {
                        self.put(at + done - held as u64, &buf[..held], unit, everything)?;
                        held = 0;
                    }
                    self.pace(|| plan.advance(0, progress))?;
                    plan.advance(n, progress)?;
                }
                Ok(())
            }
        }
    }

    /// Tries to let the file system share the bytes. False: they must be copied.
    fn share(
        &self,
        plan: &Plan<'_>,
        image: &Image,
        depth: usize,
        host: u64,
        at: u64,
        len: u64,
    ) -> Result<bool, Error> {
        if !plan.clones() {
            return Ok(false);
        }
        let Some(link) = image.links().get(depth) else { return Ok(false) };
        let host_storage = link.layer.host().as_ref();
        let done = self
            .target
            .write_from(at, host_storage, host, len)
            .map_err(self.in_step(ConvertStep::Write(at)))?;
        if done == len {
            self.cloned.fetch_add(len, Ordering::Relaxed);
            return Ok(true);
        }
        // Once something was shared, a refusal is about that range alone (its alignment); before, about the file system.
        if self.cloned.load(Ordering::Relaxed) == 0 {
            plan.no_more_clones();
        }
        Ok(false)
    }

    /// Waits until what was written so far keeps to the rate that was asked for.
    pub(super) fn pace(&self, go_on: impl Fn() -> Result<(), Error>) -> Result<(), Error> {
        let Some(rate) = self.how.rate.filter(|rate| *rate > 0) else { return Ok(()) };
        let seconds = self.written.load(Ordering::Relaxed) as f64 / rate as f64;
        let due = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        while let Some(rest) = due.checked_sub(self.since.elapsed()).filter(|rest| !rest.is_zero()) {
            std::thread::sleep(rest.min(Duration::from_millis(100)));
            go_on()?;
        }
        Ok(())
    }

    pub(super) fn zero(&self, at: u64, len: u64) -> Result<(), Error> {
        if self.reads_zero {
            return Ok(());
        }
        self.target.erase(at, len, Erase::Free).map_err(self.in_step(ConvertStep::Write(at)))
    }

    /// Writes what is not zero, in runs of `unit`.
    pub(crate) fn put(&self, at: u64, buf: &[u8], unit: usize, everything: bool) -> Result<(), Error> {
        let mut done = 0;
        while done < buf.len() {
            let rest = &buf[done..];
            let (n, zero) = if everything { (rest.len(), false) } else { zero_prefix(rest, unit) };
            let here = at + done as u64;
            if zero {
                self.zero(here, n as u64)?;
            } else {
                let written = match self.how.compress {
                    true => self.target.write_compressed(here, &rest[..n]),
                    false => self.target.write(here, &rest[..n]),
                };
                written.map_err(self.in_step(ConvertStep::Write(here)))?;
                self.written.fetch_add(n as u64, Ordering::Relaxed);
            }
            done += n;
        }
        Ok(())
    }
}
