//! `bench`: how fast a disk answers requests of one size, several at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cowhand_core::{Error, ErrorKind, Image, Progress, Result};

use crate::buffer::Buffer;
use crate::plan::report;

/// What is asked of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bench {
    /// Requests, at least 1.
    pub count: u64,
    /// How many are under way at a time, at least 1: a thread each, [`MOST_THREADS`](Bench::MOST_THREADS) at most.
    pub depth: u64,
    /// Bytes of a request, at least 1 and less than 2 GiB.
    pub len: u64,
    /// Where the first begins.
    pub offset: u64,
    /// How much further each begins than the one before; past the disk's end, from its front again.
    pub step: u64,
    /// Write this byte; `None`: read.
    pub write: Option<u8>,
    /// Flush after each so many requests; 0: only at the end.
    pub flush_interval: u64,
    /// Flush while other requests are under way; otherwise they are waited for, and no others begin before.
    pub no_drain: bool,
}

impl Default for Bench {
    fn default() -> Self {
        Bench {
            count: 75_000,
            depth: 64,
            len: 4096,
            offset: 0,
            step: 4096,
            write: None,
            flush_interval: 0,
            no_drain: false,
        }
    }
}

impl Bench {
    /// More requests at a time are taken one after the other.
    pub const MOST_THREADS: u64 = 256;

    /// Where the request behind the one at `at` begins.
    fn behind(&self, at: u64, size: u64) -> u64 {
        if size <= self.len { 0 } else { at.saturating_add(self.step) % size }
    }
}

/// Sends the requests, and answers how long that took. What is written overwrites the disk. Errors: the first request that
/// failed.
pub fn bench(disk: &Image, how: &Bench, progress: &dyn Progress) -> Result<Duration> {
    if how.count == 0 || how.depth == 0 || how.len == 0 || how.len > i32::MAX as u64 {
        return Err(Error::invalid(
            "a benchmark needs requests of 1 to 2147483647 bytes, at least one at a time",
        ));
    }
    let threads = how.depth.min(how.count).min(Bench::MOST_THREADS) as usize;
    let since = Instant::now();
    let run = Run {
        disk,
        how,
        progress,
        cursor: Mutex::new(Cursor { at: how.offset, taken: 0, done: 0 }),
        failed: Mutex::new(None),
        stop: AtomicBool::new(false),
        together: Barrier::new(threads),
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| run.work())).collect();
        run.work();
        for other in others {
            if other.join().is_err() {
                run.fail(Error::new(
                    ErrorKind::Io,
                    "a worker thread panicked; this is a mistake in the program",
                ));
            }
        }
    });
    let failed = run.failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.map_or(Ok(since.elapsed()), Err)
}

struct Run<'a> {
    disk: &'a Image,
    how: &'a Bench,
    progress: &'a dyn Progress,
    cursor: Mutex<Cursor>,
    /// The first failure.
    failed: Mutex<Option<Error>>,
    stop: AtomicBool,
    /// Where all threads wait for each other when what is under way is flushed.
    together: Barrier,
}

struct Cursor {
    /// Where the next request begins.
    at: u64,
    taken: u64,
    done: u64,
}

impl Run<'_> {
    fn cursor(&self) -> MutexGuard<'_, Cursor> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: Error) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop.store(true, Ordering::SeqCst);
    }

    /// What one thread does. A panic in one would leave the others waiting, so nothing here may.
    fn work(&self) {
        let interval = self.how.flush_interval;
        let drains = interval > 0 && !self.how.no_drain;
        let mut buf = Buffer::default();
        let buf = buf.get(usize::try_from(self.how.len).unwrap_or(0)); // never 0: `bench` looked
        buf.fill(self.how.write.unwrap_or(0));
        let mut until = if drains { interval } else { self.how.count };
        loop {
            while let Some(at) = self.take(until.min(self.how.count)) {
                if let Err(error) = self.request(at, buf) {
                    self.fail(error);
                }
            }
            if !drains {
                return;
            }
            if self.together.wait().is_leader()
                && !self.stop.load(Ordering::SeqCst)
                && let Err(error) = self.disk.flush()
            {
                self.fail(error);
            }
            self.together.wait();
            if self.stop.load(Ordering::SeqCst) || until >= self.how.count {
                return;
            }
            until = until.saturating_add(interval);
        }
    }

    /// Where the next request begins, of those that come before the one with this number.
    fn take(&self, until: u64) -> Option<u64> {
        let mut cursor = self.cursor();
        if cursor.taken >= until || self.stop.load(Ordering::SeqCst) {
            return None;
        }
        cursor.taken += 1;
        let next = self.how.behind(cursor.at, self.disk.size());
        Some(std::mem::replace(&mut cursor.at, next))
    }

    fn request(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        match self.how.write {
            Some(_) => self.disk.write(at, buf)?,
            None => self.disk.read(at, buf)?,
        }
        let done = {
            let mut cursor = self.cursor();
            cursor.done += 1;
            cursor.done
        };
        if self.how.no_drain && self.how.flush_interval > 0 && done.is_multiple_of(self.how.flush_interval) {
            self.disk.flush()?;
        }
        report(self.progress, done, self.how.count)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use cowhand_core::{Extent, Layer, Link, Quiet, Storage};

    use super::*;

    /// Remembers what was asked of it.
    #[derive(Debug)]
    struct Asked {
        requests: Mutex<Vec<(u64, usize, Option<u8>)>>,
        under_way: AtomicU64,
        /// How many requests were under way at each flush, and how many were done.
        flushes: Mutex<Vec<(u64, usize)>>,
        file: Arc<dyn Storage>,
    }

    const SIZE: u64 = 64 << 10;

    impl Asked {
        fn note(&self, at: u64, len: usize, byte: Option<u8>) {
            self.under_way.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_micros(50));
            self.requests.lock().unwrap().push((at, len, byte));
            self.under_way.fetch_sub(1, Ordering::SeqCst);
        }
    }

    impl Layer for Asked {
        fn size(&self) -> u64 {
            SIZE
        }

        fn granule(&self) -> u64 {
            512
        }

        fn host(&self) -> &Arc<dyn Storage> {
            &self.file
        }

        fn extent(&self, _at: u64, max: u64) -> Result<Extent> {
            Ok(Extent::data(max, None))
        }

        fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
            self.note(at, buf.len(), None);
            Ok(Extent::data(buf.len() as u64, None))
        }

        fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
            self.note(at, buf.len(), buf.first().copied());
            Ok(())
        }

        fn flush(&self) -> Result<()> {
            let done = self.requests.lock().unwrap().len();
            self.flushes.lock().unwrap().push((self.under_way.load(Ordering::SeqCst), done));
            Ok(())
        }
    }

    fn asked(how: &Bench) -> (Arc<Asked>, Result<Duration>) {
        let layer = Arc::new(Asked {
            requests: Mutex::default(),
            under_way: AtomicU64::new(0),
            flushes: Mutex::default(),
            file: Arc::new(cowhand_core::MemoryStorage::new()),
        });
        let link = Link { layer: layer.clone(), name: "asked".into(), format: "asked" };
        let done = bench(&Image::new(vec![link]).unwrap(), how, &Quiet);
        (layer, done)
    }

    #[test]
    fn requests_wrap_at_the_end() {
        let how = Bench { count: 40, depth: 5, len: 4096, step: 12 << 10, offset: 4096, ..Bench::default() };
        let (layer, done) = asked(&how);
        done.unwrap();
        let mut wanted = Vec::new();
        let mut at = 4096;
        for _ in 0..40 {
            wanted.push((at, 4096, None));
            at = (at + (12 << 10)) % SIZE;
        }
        let mut found = layer.requests.lock().unwrap().clone();
        found.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(found, wanted);
    }

    #[test]
    fn draining_waits_for_what_is_under_way() {
        let how =
            Bench { count: 50, depth: 4, len: 512, write: Some(9), flush_interval: 8, ..Bench::default() };
        let (layer, done) = asked(&how);
        done.unwrap();
        let flushes = layer.flushes.lock().unwrap().clone();
        assert_eq!(flushes, [(0, 8), (0, 16), (0, 24), (0, 32), (0, 40), (0, 48), (0, 50)]);
        assert!(layer.requests.lock().unwrap().iter().all(|(_, _, byte)| *byte == Some(9)));
        let (layer, done) = asked(&Bench { no_drain: true, ..how });
        done.unwrap();
        assert_eq!(layer.flushes.lock().unwrap().len(), 6);
    }

    #[test]
    fn the_first_failure_ends_it() {
        let past =
            Bench { count: 1000, offset: SIZE, write: Some(0), flush_interval: 100, ..Bench::default() };
        let (layer, done) = asked(&past);
        assert_eq!(done.unwrap_err().kind(), ErrorKind::Invalid);
        assert!(layer.requests.lock().unwrap().len() < 1000);
        let (_, done) = asked(&Bench { len: 2 * SIZE, ..Bench::default() });
        assert!(done.is_err());
        assert!(asked(&Bench { count: 0, ..Bench::default() }).1.is_err());
    }
}
