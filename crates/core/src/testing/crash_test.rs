//! The crash test: cuts the power at every moment of a script, recovers, and judges what is there.

use std::ops::Range;
use std::sync::Arc;

use super::bench::{Failure, Opener, Rng, image, makes, no_panic, opens};
use super::crash::{Journal, LeftOut};
use super::history::{Held, History, Moment, list};
use super::rough::DeviceFolder;
use super::run::Run;
use super::script::{Op, Shape};
use super::slow::Chance;
use super::states::{Plan, State};
use crate::{Folder, Layer, MemoryFolder, MemoryStorage, Result, Storage};

type Check<'a> = Box<dyn Fn(&State, &Arc<dyn Layer>) -> Result<(), Failure> + 'a>;

/// A random script on a layer (over a parent, if one is given), cut off at every moment. In each state that a power
/// cut may leave:
///
/// - it opens for writing, and every sector holds what was flushed before the cut or a value written later
/// - what changes the disk as a whole (its size, its snapshots, the parent's name) is done or not begun, and done once
///   the operation had ended; each snapshot holds what the disk held when it was made
/// - `view`, if given, sees such values too and changes no byte
/// - `check`, if given, is content
/// - opening it a second time shows the same, and changes no byte
/// - of some states: written on, it holds that still
/// - where opening wrote something: of some states, every state that a power cut during that leaves is well too
pub struct CrashTest<'a> {
    make: Opener<'a>,
    reopen: Opener<'a>,
    view: Option<Opener<'a>>,
    parent: Option<Arc<dyn Layer>>,
    check: Option<Check<'a>>,
    shape: Shape,
    script: Option<Vec<Op>>,
    seed: u64,
    units: Vec<u64>,
    plan: Plan,
    nested: usize,
    same_bytes: bool,
    fresh: bool,
    threads: usize,
    device: Option<u64>,
    left_out: Option<LeftOut>,
}

/// How much a crash test looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CrashCounts {
    /// Crash states.
    pub states: usize,
    /// Epochs, of each unit size.
    pub epochs: usize,
    /// States of power cuts during recovery.
    pub nested: usize,
}

impl std::ops::AddAssign for CrashCounts {
    fn add_assign(&mut self, more: Self) {
        self.states += more.states;
        self.epochs += more.epochs;
        self.nested += more.nested;
    }
}

impl<'a> CrashTest<'a> {
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
        CrashTest {
            make,
            reopen,
            view: None,
            parent: None,
            check: None,
            shape: Shape::new(1 << 20, 65536),
            script: None,
            seed: 1,
            units: vec![512, 4096],
            plan: Plan::default(),
            nested: 8,
            same_bytes: true,
            fresh: false,
            threads: 1,
            device: None,
            left_out: None,
        }
    }

    /// Puts the layer over this one.
    #[must_use]
    pub fn parent(mut self, parent: Arc<dyn Layer>) -> Self {
        self.parent = Some(parent);
        self
    }

    /// Opens read-only (a format of one file).
    #[must_use]
    pub fn view(
        mut self,
        view: impl Fn(Arc<dyn Storage>) -> Result<Arc<dyn Layer>> + Send + Sync + 'a,
    ) -> Self {
        self.view = Some(opens(view));
        self
    }

    /// Opens read-only (a format of several files).
    #[must_use]
    pub fn view_in_folder(
        mut self,
        view: impl Fn(&Arc<dyn Folder>) -> Result<Arc<dyn Layer>> + Send + Sync + 'a,
    ) -> Self {
        self.view = Some(Box::new(view));
        self
    }

    /// Called for every state with what was opened for writing there; [`State::file`] gives the bytes before that.
    #[must_use]
    pub fn check(mut self, check: impl Fn(&State, &Arc<dyn Layer>) -> Result<(), Failure> + 'a) -> Self {
        self.check = Some(Box::new(check));
        self
    }

    /// Runs what has nothing to do with each other in this many threads.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Puts every file on a device of this many bytes, which is full of old bytes and cannot be punched.
    #[must_use]
    pub fn device(mut self, len: u64) -> Self {
        self.device = Some(len);
        self
    }

    /// Plants a mistake: a sync that a write follows at once is left out where `left_out`, told what the file holds and
    /// where it is written, says so. The sync that ends an operation is never left out.
    #[must_use]
    pub fn without_barrier(
        mut self,
        left_out: impl Fn(&MemoryStorage, u64) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.left_out = Some(Arc::new(left_out));
        self
    }

    /// The shape of the random script. `align` is ignored.
    #[must_use]
    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// These operations instead of random ones: whole sectors.
    #[must_use]
    pub fn script(mut self, script: Vec<Op>) -> Self {
        self.script = Some(script);
        self
    }

    /// The seed of the script and of what is chosen at random.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// At most this many states of each epoch: for a test that runs every time.
    #[must_use]
    pub fn per_epoch(mut self, states: usize) -> Self {
        self.plan.per_epoch = states;
        self
    }

    /// At most this many states of each unit size.
    #[must_use]
    pub fn max_states(mut self, states: usize) -> Self {
        self.plan.max_states = states;
        self
    }

    /// What a disk writes whole, in bytes. Unless told: 512, and again 4096.
    #[must_use]
    pub fn units(mut self, units: &[u64]) -> Self {
        self.units = units.to_vec();
        self
    }

    /// Cuts the power during recovery too, in every `nested`th state (8 unless told; 0: never).
    #[must_use]
    pub fn nested(mut self, nested: usize) -> Self {
        self.nested = nested;
        self
    }

    /// For a format that is only written fresh: what was recovered is not written on.
    #[must_use]
    pub fn fresh(mut self) -> Self {
        self.fresh = true;
        self
    }

    /// `false`: a second recovery may change bytes (a format that counts how often it was opened), not content.
    #[must_use]
    pub fn same_bytes(mut self, same: bool) -> Self {
        self.same_bytes = same;
        self
    }

    /// Runs it. The failure says which state and why.
    pub fn run(&self) -> Result<CrashCounts, Failure> {
        let script =
            self.script.clone().unwrap_or_else(|| Shape { align: 512, ..self.shape }.script(self.seed));
        no_panic(|| self.run_script(&script))
            .map_err(|failure| failure.with(format!("seed {}, script:\n{}", self.seed, list(&script))))
    }

    /// What the files of a folder stand on.
    fn rough(&self, folder: Arc<dyn Folder>) -> Arc<dyn Folder> {
        match self.device {
            Some(len) => Arc::new(DeviceFolder { inner: folder, len }),
            None => folder,
        }
    }

    /// How many of the first operations may run at once: each on bytes of its own, or a flush.
    fn alongside(&self, script: &[Op]) -> usize {
        let mut taken: Vec<Range<u64>> = Vec::new();
        let free = |op: &&Op| match op.range() {
            Some(range) => {
                let free = taken.iter().all(|other| range.end <= other.start || other.end <= range.start);
                taken.push(range);
                free
            }
            None => **op == Op::Flush,
        };
        script.iter().take(3 * self.threads).take_while(free).count()
    }

    fn run_script(&self, script: &[Op]) -> Result<CrashCounts, Failure> {
        let folder = Arc::new(MemoryFolder::new());
        (self.make)(&self.rough(folder.clone()))?.close()?;
        let journal = Journal::over(&folder);
        if let Some(left_out) = &self.left_out {
            journal.leave_out(left_out.clone());
        }
        let mut files: Arc<dyn Folder> = journal.folder();
        if self.threads > 1 {
            files = Chance::new(self.seed).folder(files);
        }
        let mut run = Run::open(self.rough(files), &self.reopen, self.parent.as_ref())?;
        let mut history = History::new(&run.image, self.parent.as_ref())?;
        let mut done = 0;
        while done < script.len() {
            let first = done as u64 + 1;
            let some = if self.threads > 1 { self.alongside(&script[done..]) } else { 1 };
            let went = if some > 1 {
                let ops = &script[done..done + some];
                run.together(&mut history, first, ops, self.threads, &|number| journal.mark(number))
            } else {
                run.step(&mut history, first, script[done])
            };
            went.map_err(|error| Failure::from(error).during(format!("operation {first}")))?;
            done += some.max(1);
            journal.mark(done as u64);
        }
        let all = script.len() as u64;
        let now = Moment { flushed: all, reached: all };
        history.check(&run.image, now).map_err(|failure| failure.during("before any power cut"))?;
        run.image.close()?;
        history.step(all + 1, false);
        history.durable(all + 1, all + 1);
        journal.mark(all + 1);
        drop(run);

        let mut counts = CrashCounts::default();
        for unit in &self.units {
            let mut states = journal.states(&Plan { unit: *unit, seed: self.seed, ..self.plan.clone() });
            for state in states.by_ref() {
                counts.states += 1;
                let nested = self.nested != 0 && counts.states % self.nested == 0;
                counts.nested += no_panic(|| {
                    self.judge(&state, &history, history.moment(state.mark().unwrap_or(0)), nested)
                })
                .map_err(|failure| failure.with(&state))?;
            }
            counts.epochs += states.epochs();
        }
        Ok(counts)
    }

    /// Judges one state. Answers how many nested ones it went through.
    fn judge(
        &self,
        state: &State,
        history: &History,
        moment: Moment,
        nested: bool,
    ) -> Result<usize, Failure> {
        let parent = self.parent.as_ref();
        if let Some(view) = &self.view {
            let folder = state.folder();
            let seen = image(view(&self.rough(folder.clone()))?, parent)?;
            history.check_disk(&seen, moment).map_err(|failure| failure.during("opened read-only"))?;
            drop(seen);
            same(&folder, &state.folder()).map_err(|failure| failure.during("opened read-only"))?;
        }

        let journal = Journal::over(&state.folder());
        let folder = self.rough(journal.folder());
        let layer = (self.reopen)(&folder).map_err(|error| Failure::from(error).during("does not open"))?;
        let recovery = (nested && !journal.is_empty()).then(|| Plan {
            seed: self.seed,
            per_epoch: 12,
            unit: 512,
            ..Plan::default()
        });
        let recovery = recovery.map(|plan| journal.states(&plan));
        let first = image(layer.clone(), parent)?;
        let held = history.check(&first, moment)?;
        if let Some(check) = &self.check {
            check(state, &layer).map_err(|failure| failure.during("the check"))?;
        }
        first.close()?;
        drop((first, layer));
        let once = journal.live();

        let second = image(
            (self.reopen)(&folder).map_err(|error| Failure::from(error).during("does not open twice"))?,
            parent,
        )?;
        if history.check_disk(&second, moment)? != held {
            return Err(Failure::new("opened a second time it holds something else"));
        }
        second.close()?;
        drop(second);
        if self.same_bytes {
            same(&once, &journal.live()).map_err(|failure| failure.during("opened a second time"))?;
        }

        if nested && !self.fresh {
            self.go_on(&journal.live(), history, moment, &held)?;
        }

        let mut nested = 0;
        for state in recovery.into_iter().flatten() {
            nested += 1;
            self.judge(&state, history, moment, false)
                .map_err(|failure| failure.with(format!("during recovery: {state}")))?;
        }
        Ok(nested)
    }
}

impl CrashTest<'_> {
    /// What was recovered can be written: everything is written over with what it holds, and holds it still.
    fn go_on(
        &self,
        folder: &Arc<MemoryFolder>,
        history: &History,
        moment: Moment,
        held: &Held,
    ) -> Result<(), Failure> {
        let during = |failure: Failure| failure.during("written on");
        let failed = |error| during(Failure::from(error));
        let folder = self.rough(folder.clone());
        let disk = image((self.reopen)(&folder)?, self.parent.as_ref())?;
        let mut rng = Rng::new(self.seed);
        for (at, bytes) in held.pieces() {
            // Some of it stays where it is, and must not be given to others.
            let (from, to) = (rng.below(bytes.len() as u64) as usize, rng.below(bytes.len() as u64) as usize);
            let range = from.min(to)..from.max(to);
            disk.write(at + range.start as u64, &bytes[range]).map_err(failed)?;
        }
        disk.flush().map_err(failed)?;
        if history.check(&disk, moment).map_err(during)? != *held {
            return Err(during(Failure::new("it holds something else")));
        }
        disk.close().map_err(failed)
    }
}

/// Both folders hold the same files.
fn same(one: &MemoryFolder, two: &MemoryFolder) -> Result<(), Failure> {
    let (one, two) = (one.entries(), two.entries());
    if one.len() != two.len() {
        return Err(Failure::new("the folder holds other files than before"));
    }
    for ((name, file), (other_name, other)) in one.iter().zip(&two) {
        if name != other_name || !file.same_bytes(other) {
            let at = file.to_vec().iter().zip(other.to_vec()).position(|(a, b)| *a != b);
            return Err(Failure::new(format!("{name} is not what it was (first at byte {at:?})")));
        }
    }
    Ok(())
}
