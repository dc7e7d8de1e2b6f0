//! Bytes on their way: read ahead on a thread of their own, counted, and held to the length they were said to have.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use cowhand_core::{Error, ErrorKind, Progress, Result};

use crate::plan::report;

/// Bytes that are read at a time.
const CHUNK: usize = 256 << 10;
/// Chunks that are read ahead.
const AHEAD: usize = 8;
/// How often somebody who waits for bytes looks whether to go on waiting.
const PATIENCE: Duration = Duration::from_millis(100);

type Chunk = io::Result<Vec<u8>>;

/// Reads to the end, which an empty chunk tells, or until nobody wants more. Behind an error more may come; where nothing
/// did before the next error, nothing will.
fn pump(mut from: impl Read, to: &SyncSender<Chunk>) {
    let mut failed = false;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let read = from.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
        let again = failed && chunk.is_empty();
        // What came before an error still counts.
        if !chunk.is_empty() && to.send(Ok(chunk)).is_err() {
            return;
        }
        match read {
            Ok(0) => {
                let _ = to.send(Ok(Vec::new()));
                return;
            }
            Ok(_) => failed = false,
            Err(error) => {
                if to.send(Err(error)).is_err() || again {
                    return;
                }
                failed = true;
            }
        }
    }
}

/// What `work` gives, which is done on a thread that is left behind where it waits for what never comes: so a wish to stop
/// is heard meanwhile.
pub(crate) fn aside<T: Send + 'static>(
    progress: &dyn Progress,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let (to, done) = sync_channel(1);
    std::thread::spawn(move || {
        let _ = to.send(work());
    });
    loop {
        match done.recv_timeout(PATIENCE) {
            Ok(done) => return Ok(done),
            Err(RecvTimeoutError::Timeout) => report(progress, 0, 1)?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::new(ErrorKind::Io, "the thread that waits has ended too early"));
            }
        }
    }
}

/// How many bytes went by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counter(Arc<AtomicU64>);

impl Counter {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Bytes that are counted as they go by.
pub(crate) struct Counted<R> {
    pub(crate) from: R,
    pub(crate) counter: Counter,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buf)?;
        self.counter.0.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// What was read ahead.
pub(crate) struct Ahead<'a> {
    from: Receiver<Chunk>,
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
    passed: u64,
    counted: Option<Counter>,
    total: Option<u64>,
    progress: &'a dyn Progress,
}

impl<'a> Ahead<'a> {
    fn new(from: Receiver<Chunk>, total: Option<u64>, progress: &'a dyn Progress) -> Ahead<'a> {
        Ahead { from, chunk: Vec::new(), at: 0, ended: false, passed: 0, counted: None, total, progress }
    }

    /// Reads `from` on a thread that is left behind where it waits for bytes that never come: so a wish to stop is heard
    /// meanwhile. `total`: how many bytes will come, for `progress`.
    pub(crate) fn of(
        from: Box<dyn Read + Send>,
        total: Option<u64>,
        progress: &'a dyn Progress,
    ) -> Ahead<'a> {
        let (to, chunks) = sync_channel(AHEAD);
        std::thread::spawn(move || pump(from, &to));
        Ahead::new(chunks, total, progress)
    }

    /// What `progress` is told is not how many bytes came out of here, but what `counter` says, of the same total.
    pub(crate) fn counting(self, counter: Counter) -> Ahead<'a> {
        Ahead { counted: Some(counter), ..self }
    }

    /// Lets `take` have what is read of `from` at the same time. `total`: how many bytes these are, for `progress`.
    pub(super) fn during<T>(
        from: impl Read + Send,
        total: Option<u64>,
        progress: &dyn Progress,
        take: impl FnOnce(&mut Ahead<'_>) -> Result<T>,
    ) -> Result<T> {
        let (to, chunks) = sync_channel(AHEAD);
        std::thread::scope(|scope| {
            scope.spawn(move || pump(from, &to));
            take(&mut Ahead::new(chunks, total, progress))
        })
    }
}

impl Read for Ahead<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() && !self.ended {
            let passed = self.counted.as_ref().map_or(self.passed, Counter::get);
            report(self.progress, passed, self.total.unwrap_or(passed).max(passed))?;
            match self.from.recv_timeout(PATIENCE) {
                Ok(chunk) => {
                    self.chunk = chunk?;
                    self.at = 0;
                    self.passed += self.chunk.len() as u64;
                    self.ended = self.chunk.is_empty();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("the thread that reads has ended too early"));
                }
            }
        }
        let rest = self.chunk.get(self.at..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]); // never out of bounds: not longer than either
        self.at += n;
        Ok(n)
    }
}

/// Exactly so many bytes: fewer, and more, are errors.
pub(super) struct Exactly<R> {
    from: R,
    len: u64,
    passed: u64,
}

impl<R: Read> Exactly<R> {
    pub(super) fn new(from: R, len: u64) -> Exactly<R> {
        Exactly { from, len, passed: 0 }
    }
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.len - self.passed;
        if buf.is_empty() {
            return Ok(0);
        }
        if left == 0 {
            return match self.from.read(&mut [0])? {
                0 => Ok(0),
                _ => Err(Error::new(
                    ErrorKind::Mismatch,
                    format!("the stream goes on behind the {} bytes that its front tells of", self.len),
                )
                .into()),
            };
        }
        let most = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = self.from.read(&mut buf[..most])?; // never out of bounds: at most its length
        if n == 0 {
            let message = format!("the stream ended after {} bytes of {}", self.passed, self.len);
            return Err(Error::new(ErrorKind::Changed, message).into());
        }
        self.passed += n as u64;
        Ok(n)
    }
}

/// Fills the front of `buf` as far as there are bytes. How many that are.
pub(crate) fn read_full(from: &mut dyn Read, buf: &mut [u8]) -> Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match from.read(&mut buf[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("cannot read the stream", error)),
        }
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::Quiet;
    use std::ops::ControlFlow;

    #[test]
    fn what_is_read_ahead_is_what_was_there() {
        let bytes: Vec<u8> = (0..3 * CHUNK + 7).map(|i| (i % 251) as u8).collect();
        let mut read = Vec::new();
        Ahead::of(Box::new(io::Cursor::new(bytes.clone())), None, &Quiet).read_to_end(&mut read).unwrap();
        assert!(read == bytes);
        let again = Ahead::during(bytes.as_slice(), None, &Quiet, |ahead| {
            let mut read = Vec::new();
            ahead.read_to_end(&mut read).map_err(|error| Error::io("reading", error))?;
            Ok(read)
        });
        assert!(again.unwrap() == bytes);
        // Who takes no more does not wait for ever.
        Ahead::during(io::repeat(1), None, &Quiet, |ahead| {
            read_full(ahead, &mut [0; 10])?;
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn who_waits_can_be_stopped() {
        struct Stop;
        impl Progress for Stop {
            fn at(&self, done: u64, _total: u64) -> ControlFlow<()> {
                if done > 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
        }
        let (reader, _writer) = io::pipe().unwrap();
        let first: &[u8] = &[1; CHUNK];
        let mut ahead = Ahead::of(Box::new(first.chain(reader)), None, &Stop);
        let error = read_full(&mut ahead, &mut [0; 2 * CHUNK]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }

    #[test]
    fn lengths_are_kept_to() {
        let read = |len| {
            let mut bytes = Vec::new();
            let done = Exactly::new(&b"12345"[..], len).read_to_end(&mut bytes);
            done.map_err(|error| Error::io("reading", error).kind()).map(|_| bytes)
        };
        assert_eq!(read(5), Ok(b"12345".to_vec()));
        assert_eq!(read(6), Err(ErrorKind::Changed));
        assert_eq!(read(4), Err(ErrorKind::Mismatch));
    }
}
