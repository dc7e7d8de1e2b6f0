//! Making an image may take long, where space is written in advance: what is written is counted, and can be made to end.

use std::io;
use std::ops::{ControlFlow, Range};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use cowhand_core::{Error, ErrorKind, Identity, Progress, Result, Storage};

/// How often somebody is asked whether to go on.
const PAUSE: Duration = Duration::from_millis(50);

/// What the storages of one target go through. A clone is the same gate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<State>);

#[derive(Debug, Default)]
struct State {
    written: AtomicU64,
    closed: AtomicBool,
}

impl Gate {
    /// `storage`, whose writes this gate counts, and lets fail once it is closed.
    pub(crate) fn over(&self, storage: Arc<dyn Storage>) -> Arc<dyn Storage> {
        Arc::new(Gated { storage, gate: self.clone() })
    }

    /// Does `work`, and tells `progress` meanwhile how much of `total` bytes was written. Where that asks to stop, the
    /// gate closes, and that is what this fails with.
    pub(crate) fn during<T>(
        &self,
        progress: &dyn Progress,
        total: u64,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let (done, ended) = mpsc::channel::<()>();
        let outcome = std::thread::scope(|scope| {
            scope.spawn(move || {
                while ended.recv_timeout(PAUSE) == Err(mpsc::RecvTimeoutError::Timeout) {
                    let written = self.0.written.load(Ordering::Relaxed).min(total);
                    if progress.at(written, total) == ControlFlow::Break(()) {
                        self.0.closed.store(true, Ordering::Relaxed);
                        return;
                    }
                }
            });
            let outcome = work();
            drop(done);
            outcome
        });
        if self.0.closed.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Cancelled, "stopped on request"));
        }
        outcome
    }

    fn pass(&self, len: u64) -> io::Result<()> {
        if self.0.closed.load(Ordering::Relaxed) {
            return Err(io::Error::other("stopped on request"));
        }
        self.0.written.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }
}

/// For what goes before the work that `progress` counts to `total`: it can be stopped, and nothing is done yet.
pub(crate) struct Before<'a> {
    pub(crate) progress: &'a dyn Progress,
    pub(crate) total: u64,
}

impl Progress for Before<'_> {
    fn at(&self, _done: u64, _total: u64) -> ControlFlow<()> {
        self.progress.at(0, self.total)
    }
}

#[derive(Debug)]
struct Gated {
    storage: Arc<dyn Storage>,
    gate: Gate,
}

impl Storage for Gated {
    fn len(&self) -> io::Result<u64> {
        self.storage.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.storage.read_at(at, buf)
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.gate.pass(buf.len() as u64)?;
        self.storage.write_at(at, buf)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.storage.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.storage.sync()
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<bool> {
        self.storage.punch(at, len)
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<bool> {
        self.gate.pass(len)?;
        self.storage.zero(at, len)
    }

    fn allocate(&self, at: u64, len: u64) -> io::Result<bool> {
        self.gate.pass(0)?;
        self.storage.allocate(at, len)
    }

    fn data_at(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        self.storage.data_at(at)
    }

    fn copy_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> io::Result<u64> {
        self.storage.copy_from(at, src, src_at, len)
    }

    fn physical_size(&self) -> io::Result<u64> {
        self.storage.physical_size()
    }

    fn identity(&self) -> io::Result<Identity> {
        self.storage.identity()
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.storage.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::{MemoryStorage, Quiet};

    struct Stops;

    impl Progress for Stops {
        fn at(&self, done: u64, total: u64) -> ControlFlow<()> {
            assert!(done <= total);
            ControlFlow::Break(())
        }
    }

    #[test]
    fn a_wish_to_stop_ends_the_work() {
        let gate = Gate::default();
        let storage = gate.over(Arc::new(MemoryStorage::new()));
        let failed = gate.during(&Stops, 1 << 40, || {
            (0..60_000).try_for_each(|_| {
                std::thread::sleep(Duration::from_millis(1));
                storage.write_at(0, &[0; 512]).map_err(|error| Error::io("cannot write", error))
            })
        });
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Cancelled);
    }

    #[test]
    fn what_fails_by_itself_keeps_its_reason() {
        let gate = Gate::default();
        let failed = gate.during(&Quiet, 1, || Err::<(), _>(Error::invalid("no")));
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(gate.during(&Stops, 1, || Ok(7)).unwrap(), 7);
    }
}
