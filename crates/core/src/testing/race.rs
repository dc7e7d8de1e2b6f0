//! The race test: threads that write, read, erase and flush one disk at once.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{io, thread};

use super::bench::{Failure, Opener, Rng, image, makes, no_panic, opens};
use super::history::read_all;
use super::script::{SECTOR, describe, fill, stamp_of};
use crate::{Erase, Folder, Identity, Image, Layer, MemoryFolder, Result, Storage};

/// Threads on one disk, in rounds of a fresh image each.
///
/// Most sectors belong to one thread each, in turn or in odd runs, so that neighbours share allocation units: what
/// their owner reads is always what it wrote (or erased) last, or what the image began with. The others belong to
/// all: each holds what somebody wrote to it, whole. In the end everything is read again, flushed, opened again and
/// read once more. The storage hesitates at random, so that what can overlap does.
pub struct RaceTest<'a> {
    make: Opener<'a>,
    reopen: Opener<'a>,
    parent: Option<Arc<dyn Layer>>,
    unit: u64,
    seed: u64,
    threads: u64,
    time: Duration,
    erase: bool,
}

impl<'a> RaceTest<'a> {
    /// Tests a format of one file: `make` makes an empty image on an empty storage, `reopen` opens it for writing.
    pub fn new(
        make: impl Fn(Arc<dyn Storage>) -> Result<Arc<dyn Layer>> + Send + Sync + 'a,
        reopen: impl Fn(Arc<dyn Storage>) -> Result<Arc<dyn Layer>> + Send + Sync + 'a,
    ) -> Self {
        let (make, reopen) = (makes(make), opens(reopen));
        let time = Duration::from_millis(700);
        RaceTest { make, reopen, parent: None, unit: 65536, seed: 1, threads: 4, time, erase: true }
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
        (self.make)(&memory)?.close()?;
        let slow: Arc<dyn Folder> =
            Arc::new(SlowFolder { inner: memory.clone(), chance: Arc::new(AtomicU64::new(seed)) });
        let disk = image((self.reopen)(&slow)?, self.parent.as_ref())?;
        let sectors = (disk.size().min(4 * self.unit) / SECTOR).max(1);
        let start = match &self.parent {
            Some(parent) => read_all(parent, sectors * SECTOR)?,
            None => vec![0; (sectors * SECTOR) as usize],
        };
        let field =
            Field { disk: &disk, start, owners: self.owners(sectors, seed), stop: AtomicBool::new(false) };
        let ends: Vec<Result<Thread<'_>, Failure>> = thread::scope(|scope| {
            let start = |number| {
                let field = &field;
                scope.spawn(move || {
                    let done = no_panic(|| Thread::new(field, number, self.threads, seed).work(self.erase));
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
        disk.close()?;
        let again = image((self.reopen)(&memory)?, self.parent.as_ref())?;
        let field = Field {
            disk: &again,
            start: field.start.clone(),
            owners: field.owners.clone(),
            stop: AtomicBool::new(false),
        };
        for thread in ends {
            let mut thread = Thread { field: &field, ..thread };
            thread.check(0..sectors).map_err(|failure| failure.during("closed and opened again"))?;
        }
        again.close()?;
        Ok(())
    }

    /// Who owns each sector: a thread, or (this many) nobody.
    fn owners(&self, sectors: u64, seed: u64) -> Vec<u64> {
        let mut rng = Rng::new(seed);
        let mut owners = Vec::new();
        while (owners.len() as u64) < sectors {
            let longest = if rng.chance(1, 2) { 3 } else { self.unit / SECTOR };
            let run = 1 + rng.below(longest);
            let owner = rng.below(self.threads + 1);
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

impl<'a> Thread<'a> {
    fn new(field: &'a Field<'a>, number: u64, threads: u64, seed: u64) -> Self {
        let own = vec![None; field.owners.len()];
        Thread { field, number, threads, rng: Rng::new(seed.wrapping_mul(1000) + number), own, version: 0 }
    }

    fn work(mut self, erase: bool) -> Result<Self, Failure> {
        for _ in 0..OPERATIONS {
            if self.field.stop.load(Ordering::Relaxed) {
                break;
            }
            let range = self.range();
            let (at, len) = (range.start * SECTOR, (range.end - range.start) * SECTOR);
            let owned = self.field.owners[range.start as usize] == self.number;
            match self.rng.below(20) {
                0 => self.field.disk.flush()?,
                1..=3 if erase && owned => {
                    let how = *self.rng.pick(&[Erase::Zero, Erase::Free]);
                    self.field.disk.erase(at, len, how)?;
                    self.own[range.start as usize..range.end as usize].fill(Some(0));
                }
                4..=8 => self.check(range)?,
                _ => {
                    // A version says who wrote it.
                    self.version += 1;
                    let version = self.version * self.threads + self.number + 1;
                    let mut buf = vec![0; len as usize];
                    fill(&mut buf, at, version);
                    self.field.disk.write(at, &buf)?;
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
            if owner == self.number || owner == self.threads {
                let run = owners[start as usize..].iter().take_while(|other| **other == owner).count() as u64;
                let max = if self.rng.chance(1, 2) { run } else { run.min(3) };
                return start..start + 1 + self.rng.below(max);
            }
            if !owners.iter().any(|owner| *owner == self.number || *owner == self.threads) {
                return 0..0;
            }
        }
    }

    /// Reads sectors and judges those that are this thread's or nobody's.
    fn check(&mut self, range: Range<u64>) -> Result<(), Failure> {
        let mut buf = vec![0; ((range.end - range.start) * SECTOR) as usize];
        self.field.disk.read(range.start * SECTOR, &mut buf)?;
        for (sector, held) in range.zip(buf.chunks(SECTOR as usize)) {
            let start = &self.field.start[(sector * SECTOR) as usize..][..SECTOR as usize];
            let stamp = stamp_of(held).filter(|_| held != start);
            let wanted = match self.own[sector as usize] {
                _ if self.field.owners[sector as usize] == self.threads => {
                    let written = self.own[sector as usize].is_some();
                    // Once this thread has written it, what the disk began with can never come back.
                    if stamp.is_some_and(|(number, _)| number == sector) || (held == start && !written) {
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

/// A folder whose files hesitate.
#[derive(Debug)]
struct SlowFolder {
    inner: Arc<dyn Folder>,
    chance: Arc<AtomicU64>,
}

impl Folder for SlowFolder {
    fn open(&self, name: &str, write: bool) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(Slow { inner: self.inner.open(name, write)?, chance: self.chance.clone() }))
    }

    fn create_new(&self, name: &str) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(Slow { inner: self.inner.create_new(name)?, chance: self.chance.clone() }))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.inner.remove(name)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
}

/// A storage that now and then lets another thread go first.
#[derive(Debug)]
struct Slow {
    inner: Arc<dyn Storage>,
    chance: Arc<AtomicU64>,
}

impl Slow {
    fn hesitate(&self) {
        let mut rng = Rng::new(self.chance.fetch_add(0x1234_5679, Ordering::Relaxed));
        match rng.below(8) {
            0..=2 => thread::yield_now(),
            3 => thread::sleep(Duration::from_micros(rng.below(200))),
            _ => {}
        }
    }
}

impl Storage for Slow {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.hesitate();
        let done = self.inner.read_at(at, buf);
        self.hesitate();
        done
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.hesitate();
        let done = self.inner.write_at(at, buf);
        self.hesitate();
        done
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.hesitate();
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.hesitate();
        self.inner.sync()
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<bool> {
        self.hesitate();
        self.inner.punch(at, len)
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<bool> {
        self.hesitate();
        self.inner.zero(at, len)
    }

    fn data_at(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.data_at(at)
    }

    fn physical_size(&self) -> io::Result<u64> {
        self.inner.physical_size()
    }

    fn identity(&self) -> io::Result<Identity> {
        self.inner.identity()
    }
}
