//! The race test: threads that write, read, erase and flush one disk at once.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::bench::{Failure, Opener, Rng, image, makes, no_panic, opens};
use super::history::read_all;
use super::script::{SECTOR, describe, fill, stamp_of};
use super::slow::Chance;
use crate::{Erase, Folder, Image, Layer, MemoryFolder, NewSnapshot, Prealloc, Result, Storage};

/// Threads on one disk, in rounds of a fresh image each.
///
/// Most sectors belong to one thread each, in turn or in odd runs, so that neighbours share allocation units: what
/// their owner reads is always what it wrote (or erased) last, or what the image began with. The others belong to
/// all: each holds what somebody wrote to it, whole; some of these are erased too. In the end everything is read again
/// (if asked for, while the disk's size changes and snapshots are made, gone back to and taken away), flushed, opened
/// again and read once more. Storages and layers hesitate at random, so that what can overlap does.
pub struct RaceTest<'a> {
    make: Opener<'a>,
    reopen: Opener<'a>,
    parent: Option<Arc<dyn Layer>>,
    unit: u64,
    seed: u64,
    threads: u64,
    time: Duration,
    erase: bool,
    compressed: bool,
    resize: bool,
    snapshots: bool,
    fresh: bool,
    torn: bool,
}

impl<'a> RaceTest<'a> {
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
        let time = Duration::from_millis(700);
        RaceTest {
            make,
            reopen,
            parent: None,
            unit: 65536,
            seed: 1,
            threads: 4,
            time,
            erase: true,
            compressed: false,
            resize: false,
            snapshots: false,
            fresh: false,
            torn: false,
        }
    }

    /// Puts the layer over this one.
    #[must_use]
    pub fn parent(mut self, parent: Arc<dyn Layer>) -> Self {
        self.parent = Some(parent);
        self
    }

    /// The allocation unit (cluster, block) in bytes, at least 512: four of them are fought over.
    #[must_use]
    pub fn unit(mut self, unit: u64) -> Self {
        self.unit = unit;
        self
    }

    /// The seed of what the threads do, not of how they meet.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// How long it goes on: at least one round.
    #[must_use]
    pub fn time(mut self, time: Duration) -> Self {
        self.time = time;
        self
    }

    /// How many threads.
    #[must_use]
    pub fn threads(mut self, threads: u64) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Whether they erase too.
    #[must_use]
    pub fn erase(mut self, erase: bool) -> Self {
        self.erase = erase;
        self
    }

    /// Whether they write whole units compressed too.
    #[must_use]
    pub fn compressed(mut self, compressed: bool) -> Self {
        self.compressed = compressed;
        self
    }

    /// Whether the disk's size changes while they read.
    #[must_use]
    pub fn resize(mut self, resize: bool) -> Self {
        self.resize = resize;
        self
    }

    /// Whether snapshots are made, gone back to and taken away while they read.
    #[must_use]
    pub fn snapshots(mut self, snapshots: bool) -> Self {
        self.snapshots = snapshots;
        self
    }

    /// Uses the layer that `make` answers: for a format that is only written fresh. `reopen` may open read-only.
    #[must_use]
    pub fn fresh(mut self) -> Self {
        self.fresh = true;
        self
    }

    /// The storage may show a sector that is being written by halves, as the kernel does with its files. That is over once
    /// the writer is.
    #[must_use]
    pub fn torn(mut self) -> Self {
        self.torn = true;
        self
    }

    /// Runs it.
    pub fn run(&self) -> Result<(), Failure> {
        let since = Instant::now();
        for round in 0.. {
            no_panic(|| self.round(self.seed + round))
                .map_err(|failure| failure.during(format!("seed {}, round {round}", self.seed)))?;
            if since.elapsed() >= self.time {
                break;
            }
        }
        Ok(())
    }

    fn round(&self, seed: u64) -> Result<(), Failure> {
        let memory: Arc<dyn Folder> = Arc::new(MemoryFolder::new());
        let chance = Chance::new(seed);
        let slow = chance.folder(memory.clone());
        let layer = if self.fresh {
            (self.make)(&slow)?
        } else {
            (self.make)(&memory)?.close()?;
            (self.reopen)(&slow)?
        };
        let disk =
            image(chance.layer(layer), self.parent.clone().map(|parent| chance.layer(parent)).as_ref())?;
        let sectors = (disk.size().min(4 * self.unit) / SECTOR).max(1);
        let start = match &self.parent {
            Some(parent) => read_all(parent, sectors * SECTOR)?,
            None => vec![0; (sectors * SECTOR) as usize],
        };
        let field = Field {
            disk: &disk,
            start,
            owners: self.owners(sectors, seed),
            torn: self.torn,
            stop: AtomicBool::new(false),
        };
        let ends: Vec<Result<Thread<'_>, Failure>> = thread::scope(|scope| {
            let start = |number| {
                let field = &field;
                scope.spawn(move || {
                    let done = no_panic(|| Thread::new(field, number, self.threads, seed).work(self));
                    field.stop.fetch_or(done.is_err(), Ordering::Relaxed);
                    done
                })
            };
            let threads: Vec<_> = (0..self.threads).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut ends = ends.into_iter().collect::<Result<Vec<Thread<'_>>, Failure>>()?;
        for thread in &mut ends {
            thread.check(0..sectors).map_err(|failure| failure.during("when all had ended"))?;
        }
        if self.resize || self.snapshots {
            self.read_on(&field, &mut ends, sectors).map_err(|failure| failure.during("reading on"))?;
        }
        disk.close()?;
        let known: Vec<_> = ends.into_iter().map(|thread| (thread.number, thread.own)).collect();
        let Field { start, owners, .. } = field;
        drop(disk);
        let again = image((self.reopen)(&memory)?, self.parent.as_ref())?;
        let field = Field { disk: &again, start, owners, torn: false, stop: AtomicBool::new(false) };
        for (number, own) in known {
            let mut thread = Thread { own, ..Thread::new(&field, number, self.threads, seed) };
            thread.check(0..sectors).map_err(|failure| failure.during("closed and opened again"))?;
        }
        Ok(())
    }

    /// Everybody reads while the disk as a whole is changed, and what they read is not.
    fn read_on(&self, field: &Field<'_>, threads: &mut [Thread<'_>], sectors: u64) -> Result<(), Failure> {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let readers: Vec<_> = threads
                .iter_mut()
                .map(|thread| {
                    let over = &over;
                    scope.spawn(move || {
                        no_panic(|| {
                            while !over.load(Ordering::Relaxed) {
                                let from = thread.rng.below(sectors);
                                let to = from + 1 + thread.rng.below(sectors - from);
                                thread.check(from..to)?;
                            }
                            thread.check(0..sectors)
                        })
                    })
                })
                .collect();
            let changed = no_panic(|| self.change(field.disk));
            over.store(true, Ordering::Relaxed);
            readers.into_iter().try_for_each(|reader| reader.join().unwrap())?;
            changed
        })
    }

    fn change(&self, disk: &Image) -> Result<(), Failure> {
        let size = disk.size();
        for round in 1..=3 {
            if self.resize {
                disk.resize(size + round * self.unit, Prealloc::Off)?;
                let mut new = vec![0xee; (round * self.unit) as usize];
                disk.read(size, &mut new)?;
                if !crate::is_zero(&new) {
                    return Err(Failure::new("what the disk grew by is not zero"));
                }
                fill(&mut new, size, round);
                disk.write(size, &new)?;
                disk.resize(size, Prealloc::Off)?;
            }
            if self.snapshots {
                let layer = &disk.links()[0].layer;
                let snapshots = layer.as_snapshots().ok_or_else(|| Failure::new("has no snapshots"))?;
                let made =
                    snapshots.create(&NewSnapshot { name: format!("{round}"), ..NewSnapshot::default() })?;
                disk.flush()?;
                snapshots.apply(&made.id)?;
                snapshots.delete(&made.id)?;
            }
        }
        Ok(())
    }

    /// Who owns each sector: a thread, or (this many) nobody, or (one more) nobody, and it may be erased.
    fn owners(&self, sectors: u64, seed: u64) -> Vec<u64> {
        let mut rng = Rng::new(seed);
        let mut owners = Vec::new();
        while (owners.len() as u64) < sectors {
            let unit = self.unit / SECTOR;
            let longest = if rng.chance(1, 2) { 3 } else { unit };
            let whole = self.compressed && (owners.len() as u64).is_multiple_of(unit) && rng.chance(1, 2);
            let run = if whole { unit } else { 1 + rng.below(longest) };
            let owner = rng.below(self.threads + 2);
            owners.extend((0..run).map(|_| owner));
        }
        owners.truncate(sectors as usize);
        owners
    }
}

struct Field<'a> {
    disk: &'a Image,
    start: Vec<u8>,
    owners: Vec<u64>,
    torn: bool,
    stop: AtomicBool,
}

struct Thread<'a> {
    field: &'a Field<'a>,
    number: u64,
    threads: u64,
    rng: Rng,
    /// The version of each own sector: its last one; 0 where it is erased; `None`: as it began.
    own: Vec<Option<u64>>,
    version: u64,
}

const OPERATIONS: usize = 60;

/// How long a write of one sector may take.
const PATIENCE: Duration = Duration::from_secs(10);

impl<'a> Thread<'a> {
    fn new(field: &'a Field<'a>, number: u64, threads: u64, seed: u64) -> Self {
        let own = vec![None; field.owners.len()];
        Thread { field, number, threads, rng: Rng::new(seed.wrapping_mul(1000) + number), own, version: 0 }
    }

    fn work(mut self, test: &RaceTest<'_>) -> Result<Self, Failure> {
        for _ in 0..OPERATIONS {
            if self.field.stop.load(Ordering::Relaxed) {
                break;
            }
            let range = self.range();
            let (at, len) = (range.start * SECTOR, (range.end - range.start) * SECTOR);
            let owner = self.field.owners[range.start as usize];
            match self.rng.below(20) {
                0 => self.field.disk.flush()?,
                1..=3 if test.erase && owner != self.threads => {
                    let how = *self.rng.pick(&[Erase::Zero, Erase::Free, Erase::Reveal]);
                    self.field.disk.erase(at, len, how)?;
                    if owner == self.number && how == Erase::Reveal {
                        self.learn(range)?;
                    } else {
                        self.own[range.start as usize..range.end as usize].fill(Some(0));
                    }
                }
                4..=8 => self.check(range)?,
                _ => {
                    // A version says who wrote it.
                    self.version += 1;
                    let version = self.version * self.threads + self.number + 1;
                    let mut buf = vec![0; len as usize];
                    fill(&mut buf, at, version);
                    let whole = at.is_multiple_of(test.unit) && len == test.unit;
                    if test.compressed && whole && self.rng.chance(1, 2) {
                        self.field.disk.write_compressed(at, &buf)?;
                    } else {
                        self.field.disk.write(at, &buf)?;
                    }
                    self.own[range.start as usize..range.end as usize].fill(Some(version));
                }
            }
        }
        Ok(self)
    }

    /// A run of sectors that all are this thread's, or all nobody's; an empty one where there are none.
    fn range(&mut self) -> Range<u64> {
        let owners = &self.field.owners;
        loop {
            let start = self.rng.below(owners.len() as u64);
            let owner = owners[start as usize];
            if owner == self.number || owner >= self.threads {
                let run = owners[start as usize..].iter().take_while(|other| **other == owner).count() as u64;
                let max = if self.rng.chance(1, 2) { run } else { run.min(3) };
                return start..start + 1 + self.rng.below(max);
            }
            if !owners.iter().any(|owner| *owner == self.number || *owner >= self.threads) {
                return 0..0;
            }
        }
    }

    /// Each of these own sectors shows what the image began with, or what it held: a layer reveals what it can.
    fn learn(&mut self, range: Range<u64>) -> Result<(), Failure> {
        for sector in range {
            let mut held = [0; SECTOR as usize];
            self.field.disk.read(sector * SECTOR, &mut held)?;
            if held == self.field.start[(sector * SECTOR) as usize..][..SECTOR as usize] {
                self.own[sector as usize] = None;
            }
            self.check(sector..sector + 1)?;
        }
        Ok(())
    }

    /// Whether a sector that nobody wrote like this is one that somebody is writing: it is whole soon after. However busy the
    /// machine is, its writer has its turn meanwhile.
    fn is_being_written(&self, sector: u64, start: &[u8]) -> Result<bool, Failure> {
        let since = Instant::now();
        let mut now = [0; SECTOR as usize];
        while self.field.torn && since.elapsed() < PATIENCE {
            self.field.disk.read(sector * SECTOR, &mut now)?;
            if now == start
                || crate::is_zero(&now)
                || stamp_of(&now).is_some_and(|(number, _)| number == sector)
            {
                return Ok(true);
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(false)
    }

    /// Reads sectors and judges those that are this thread's or nobody's.
    fn check(&mut self, range: Range<u64>) -> Result<(), Failure> {
        let mut buf = vec![0; ((range.end - range.start) * SECTOR) as usize];
        self.field.disk.read(range.start * SECTOR, &mut buf)?;
        for (sector, held) in range.zip(buf.chunks(SECTOR as usize)) {
            let start = &self.field.start[(sector * SECTOR) as usize..][..SECTOR as usize];
            let stamp = stamp_of(held).filter(|_| held != start);
            let wanted = match self.own[sector as usize] {
                _ if self.field.owners[sector as usize] == self.threads + 1 => {
                    let theirs = stamp.is_some_and(|(number, _)| number == sector);
                    if theirs
                        || held == start
                        || crate::is_zero(held)
                        || self.is_being_written(sector, start)?
                    {
                        continue;
                    }
                    "what one of the threads wrote there, or nothing".to_owned()
                }
                _ if self.field.owners[sector as usize] == self.threads => {
                    let written = self.own[sector as usize].is_some();
                    // Once this thread has written it, what the disk began with can never come back.
                    let begun = held == start && !written;
                    if stamp.is_some_and(|(number, _)| number == sector)
                        || begun
                        || (held != start && self.is_being_written(sector, start)?)
                    {
                        continue;
                    }
                    "what one of the threads wrote there".to_owned()
                }
                _ if self.field.owners[sector as usize] != self.number => continue,
                Some(0) if crate::is_zero(held) => continue,
                None if held == start => continue,
                Some(version) if version != 0 && stamp == Some((sector, version)) => continue,
                Some(0) => "zeros".to_owned(),
                None => "what it began with".to_owned(),
                Some(version) => format!("version {version}"),
            };
            return Err(Failure::new(format!(
                "sector {sector} of thread {}: it holds {}, wanted {wanted}",
                self.number,
                describe(held)
            )));
        }
        Ok(())
    }
}
