//! The same work on several threads.

use cowhand_core::{Error, ErrorKind, Result};

/// Runs `work` on so many threads, the caller's among them, and answers what each brought; the first error counts.
pub(super) fn on_threads<T: Send>(threads: usize, work: impl Fn() -> Result<T> + Sync) -> Result<Vec<T>> {
    if threads <= 1 {
        return Ok(vec![work()?]);
    }
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(&work)).collect();
        let mut all = vec![work()];
        all.extend(others.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "a thread of the check ended early")))
        }));
        all.into_iter().collect()
    })
}
