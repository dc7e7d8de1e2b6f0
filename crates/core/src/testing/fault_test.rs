//! The fault test: lets each single input and output of an operation fail, one after the other.

use std::sync::Arc;

use super::bench::{Failure, Opener, makes, no_panic, opens};
use super::fault::{Fault, Faults, Io, WRITES};
use super::history::{History, Moment, list};
use super::run::Run;
use super::script::{Op, Shape};
use crate::{Error, Folder, Layer, MemoryFolder, Result, Storage};

/// How much a fault test looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Attempts in which something failed.
    pub faults: u64,
    /// Operations that answered an error.
    pub errors: u64,
}

/// Lets the first, the second, ... input or output of any operation fail until it runs through untouched.
///
/// `world` makes what it works on anew each time, `attempt` does it with the faults put in, `check` looks at the world
/// afterwards (the old target is untouched, no partial file is left), knowing the error. Errors: a panic; an
/// attempt that answers success though something failed (other than `Punch` and `Allocate`, which may be only
/// wishes); one that fails though nothing did; what `check` finds.
pub fn fault_test<W>(
    fault: Fault,
    world: impl Fn() -> W,
    attempt: impl Fn(&W, &Arc<Faults>) -> Result<()>,
    check: impl Fn(&W, Option<&Error>) -> Result<(), Failure>,
) -> Result<FaultCounts, Failure> {
    let mut counts = FaultCounts::default();
    for nth in 1.. {
        let made = world();
        let faults = Faults::at(fault, nth);
        let judged = no_panic(|| {
            let done = attempt(&made, &faults).err();
            counts.errors += u64::from(done.is_some());
            expect_error(&faults.fired(), done.as_ref(), TOLERATED)?;
            check(&made, done.as_ref())
        });
        judged.map_err(|failure| {
            failure.during(format!("{fault:?}, number {nth}, {:?} failed", faults.fired()))
        })?;
        if faults.fired().is_empty() {
            break;
        }
        counts.faults += 1;
    }
    Ok(counts)
}

const TOLERATED: &[Io] = &[Io::Punch, Io::Allocate];

fn expect_error(fired: &[Io], error: Option<&Error>, tolerated: &[Io]) -> Result<(), Failure> {
    match error {
        Some(error) if fired.is_empty() => {
            Err(Failure::new(format!("fails though nothing failed: {error:?}")))
        }
        Some(error) if error.to_string().contains(['\n', '\u{1b}']) => {
            Err(Failure::new(format!("the error is not one line: {error:?}")))
        }
        None if fired.iter().any(|io| !tolerated.contains(io)) => {
            Err(Failure::new("success, though something failed"))
        }
        _ => Ok(()),
    }
}

/// A random script on a layer in which the Nth input or output fails, for every N:
///
/// - the operation it happens in answers an error, in one line (failed `Punch` and `Allocate` may be passed over)
/// - in the end every sector holds the last value that was written with success, or one whose writing failed later;
///   read through the same layer (which may answer errors), and opened again without faults: there, what was flushed
/// - after a failed sync every later flush fails
/// - `check`, if given, is content with the image
///
/// Faults that come once (the script goes on after them) and faults that stay, EIO and ENOSPC, writes torn and not.
pub struct FaultTest<'a> {
    make: Opener<'a>,
    reopen: Opener<'a>,
    parent: Option<Arc<dyn Layer>>,
    check: Option<Check<'a>>,
    shape: Shape,
    seed: u64,
    every: u64,
    tolerated: &'static [Io],
    fresh: bool,
}

type Check<'a> = Box<dyn Fn(&Arc<dyn Layer>) -> Result<(), Failure> + 'a>;

impl<'a> FaultTest<'a> {
    /// Tests a format of one file: `make` makes an empty image on an empty storage, `reopen` opens it for writing.
    pub fn new(
        make: impl Fn(Arc<dyn Storage>) -> Result<Arc<dyn Layer>> + Send + Sync + 'a,
        reopen: impl Fn(Arc<dyn Storage>) -> Result<Arc<dyn Layer>> + Send + Sync + 'a,
    ) -> Self {
        Self::boxed(makes(make), opens(reopen))
    }

    /// Tests a format of several files, which it makes and opens in a folder.
    pub fn in_folder(
        make: impl Fn(&Arc<dyn Folder>) -> Result<Arc<dyn Layer>> + Send + Sync + 'a,
        reopen: impl Fn(&Arc<dyn Folder>) -> Result<Arc<dyn Layer>> + Send + Sync + 'a,
    ) -> Self {
        Self::boxed(Box::new(make), Box::new(reopen))
    }

    fn boxed(make: Opener<'a>, reopen: Opener<'a>) -> Self {
        let shape = Shape { ops: 25, ..Shape::new(1 << 20, 65536) };
        FaultTest {
            make,
            reopen,
            parent: None,
            check: None,
            shape,
            seed: 1,
            every: 1,
            tolerated: TOLERATED,
            fresh: false,
        }
    }

    /// Puts the layer over this one.
    #[must_use]
    pub fn parent(mut self, parent: Arc<dyn Layer>) -> Self {
        self.parent = Some(parent);
        self
    }

    /// Called at the end of every attempt with the layer, opened again without faults.
    #[must_use]
    pub fn check(mut self, check: impl Fn(&Arc<dyn Layer>) -> Result<(), Failure> + 'a) -> Self {
        self.check = Some(Box::new(check));
        self
    }

    /// The shape of the random script. `align` is ignored; at most 25 operations.
    #[must_use]
    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = Shape { ops: shape.ops.min(25), ..shape };
        self
    }

    /// The seed of the script.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Only every this many-th N: for a slow format.
    #[must_use]
    pub fn every(mut self, every: u64) -> Self {
        self.every = every.max(1);
        self
    }

    /// Runs the script on the layer that `make` answers, with faults in the making too: for a format that is only
    /// written fresh. Such a file has no barriers before the one in `close`: what a flush before it promised counts
    /// for nothing, and after an error it is never opened again. `reopen` may open read-only.
    #[must_use]
    pub fn fresh(mut self) -> Self {
        self.fresh = true;
        self
    }

    /// What may fail without an error (unless told: `Punch`, `Allocate`).
    #[must_use]
    pub fn tolerate(mut self, tolerated: &'static [Io]) -> Self {
        self.tolerated = tolerated;
        self
    }

    /// Runs it. The failure says which fault, and what came of it.
    pub fn run(&self) -> Result<FaultCounts, Failure> {
        let reopen = self.shape.reopen && !self.fresh;
        let script = Shape { align: 512, reopen, ..self.shape }.script(self.seed);
        let folder = Arc::new(MemoryFolder::new());
        if !self.fresh {
            (self.make)(&(folder.clone() as Arc<dyn Folder>))?.close()?;
        }
        let mut counts = FaultCounts::default();
        let torn = Fault::EIO.only(&[Io::Write]).torn();
        for fault in [
            Fault::EIO,
            Fault::EIO.forever(),
            Fault::EIO.only(&[Io::Sync]),
            torn,
            torn.forever(),
            Fault::ENOSPC.only(WRITES).forever(),
        ] {
            for nth in (1..).step_by(self.every as usize) {
                let faults = Faults::at(fault, nth);
                counts.errors +=
                    no_panic(|| self.attempt(&script, &folder, &faults, fault)).map_err(|failure| {
                        failure
                            .during(format!("{fault:?}, number {nth}, {:?} failed", faults.fired()))
                            .with(format!("seed {}, script:\n{}", self.seed, list(&script)))
                    })?;
                if faults.fired().is_empty() {
                    break;
                }
                counts.faults += 1;
            }
        }
        Ok(counts)
    }

    /// Answers how many operations failed.
    fn attempt(
        &self,
        script: &[Op],
        made: &MemoryFolder,
        faults: &Arc<Faults>,
        fault: Fault,
    ) -> Result<u64, Failure> {
        let inner = Arc::new(MemoryFolder::new());
        for (name, file) in made.entries() {
            inner.insert(&name, Arc::new(file.snapshot()));
        }
        let parent = self.parent.as_ref();
        // Where it does not even open, nothing was written.
        let mut history = None;
        let open = if self.fresh { &self.make } else { &self.reopen };
        let (errors, moment) = match Run::open(faults.folder(inner.clone()), open, parent) {
            Err(error) => {
                expect_error(&faults.fired(), Some(&error), self.tolerated)?;
                (1, Moment { flushed: 0, reached: 0 })
            }
            Ok(mut run) => {
                let opened = faults.fired();
                expect_error(&opened, None, self.tolerated).map_err(|failure| failure.during("opening"))?;
                let history = history.insert(History::new(&run.image, parent)?);
                self.script(&mut run, history, script, faults, fault)?
            }
        };
        faults.disarm();
        if self.fresh && errors > 0 {
            return Ok(errors);
        }
        let folder: Arc<dyn Folder> = inner;
        let run = Run::open(folder, &self.reopen, parent)
            .map_err(|error| Failure::from(error).during("opened again"))?;
        let history = match history {
            Some(history) => history,
            None => History::new(&run.image, parent)?,
        };
        history.check(&run.image, moment).map_err(|failure| failure.during("opened again"))?;
        if let Some(check) = &self.check {
            check(&run.image.links()[0].layer).map_err(|failure| failure.during("the check"))?;
        }
        run.image.close()?;
        Ok(errors)
    }

    /// Runs the script, reads, closes. Answers how many operations failed, and how far it had come.
    fn script(
        &self,
        run: &mut Run<'_>,
        history: &mut History,
        script: &[Op],
        faults: &Faults,
        fault: Fault,
    ) -> Result<(u64, Moment), Failure> {
        let (mut errors, mut reached) = (0, 0);
        let mut usable = true;
        for (number, op) in (1..).zip(script) {
            let before = faults.fired();
            let done = run.step(history, number, *op);
            let fired = faults.fired();
            let during = |failure: Failure| failure.during(format!("operation {number}, {op:?}"));
            match done {
                Ok(()) => {
                    reached = number;
                    expect_error(&fired[before.len()..], None, self.tolerated).map_err(during)?;
                    if *op == Op::Flush && before.contains(&Io::Sync) {
                        return Err(during(Failure::new("a flush goes well after a sync has failed")));
                    }
                }
                Err(error) => {
                    expect_error(&fired, Some(&error), self.tolerated).map_err(during)?;
                    errors += 1;
                    // What was being closed and opened is in neither state; what changes the disk as a whole is in
                    // one of two.
                    usable = *op != Op::Reopen;
                    if fault.forever || !usable || (op.range().is_none() && *op != Op::Flush) {
                        break;
                    }
                    reached = number;
                }
            }
        }
        faults.disarm();
        let mut moment = history.moment(reached);
        if usable {
            // A layer may refuse everything after a failure; what it does read must be right.
            let now = Moment { flushed: reached, reached };
            if let Err(failure) = history.check(&run.image, now)
                && !failure.is_error()
            {
                return Err(failure.during("read through the same layer"));
            }
            if run.image.close().is_ok() {
                moment = now;
            }
        }
        Ok((errors, moment))
    }
}
