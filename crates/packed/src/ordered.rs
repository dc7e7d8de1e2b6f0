//! Work that several threads do, and whose results come in the order in which it was given.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Threads that make a `D` of each `J`. They end when this is dropped.
pub(crate) struct Ordered<J, D> {
    /// `None` once it is being dropped.
    jobs: Option<Sender<(J, SyncSender<D>)>>,
    /// Where the results will come, in order.
    waiting: VecDeque<Receiver<D>>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl<J: Send + 'static, D: Send + 'static> Ordered<J, D> {
    /// Starts that many threads, at least one; `worker` makes what each of them works with.
    pub(crate) fn new<W>(threads: usize, worker: impl Fn() -> W) -> io::Result<Ordered<J, D>>
    where
        W: FnMut(J) -> D + Send + 'static,
    {
        let (jobs, queue) = channel::<(J, SyncSender<D>)>();
        // The threads alone hold it: once none is left, what still waits for one is told so.
        let queue = Arc::new(Mutex::new(queue));
        let stop = Arc::new(AtomicBool::new(false));
        let mut ordered =
            Ordered { jobs: Some(jobs), waiting: VecDeque::new(), threads: Vec::new(), stop: stop.clone() };
        for _ in 0..threads.max(1) {
            let (queue, stop, mut work) = (queue.clone(), stop.clone(), worker());
            let thread = std::thread::Builder::new().spawn(move || {
                loop {
                    // One waits with the lock, the others for it.
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((job, to)) = job else { return };
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // Where nobody wants it any more, the next job does not come.
                    let _ = to.send(work(job));
                }
            })?;
            ordered.threads.push(thread);
        }
        Ok(ordered)
    }
}

impl<J, D> Ordered<J, D> {
    /// How many results were not taken yet.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Gives the threads something to do. Who gives them more than they can do holds all of it in memory.
    pub(crate) fn put(&mut self, job: J) -> io::Result<()> {
        let (to, done) = sync_channel(1);
        self.jobs.as_ref().ok_or_else(gone)?.send((job, to)).map_err(|_| gone())?;
        self.waiting.push_back(done);
        Ok(())
    }

    /// The next result in order, if it is there. An error: the thread that had it has panicked.
    pub(crate) fn ready(&mut self) -> Option<io::Result<D>> {
        let done = match self.waiting.front()?.try_recv() {
            Ok(done) => Ok(done),
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Err(gone()),
        };
        self.waiting.pop_front();
        Some(done)
    }

    /// The next result in order, which is waited for. `None`: all were taken.
    pub(crate) fn next(&mut self) -> Option<io::Result<D>> {
        let done = self.waiting.pop_front()?;
        Some(done.recv().map_err(|_| gone()))
    }
}

impl<J, D> Drop for Ordered<J, D> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // What it has to say if it panicked stands on standard error.
            let _ = thread.join();
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("a thread has ended before its work was done")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order() {
        let mut doubled = Ordered::new(3, || {
            |n: u64| {
                std::thread::sleep(std::time::Duration::from_micros(n * 7919 % 500));
                2 * n
            }
        })
        .unwrap();
        let mut found = Vec::new();
        for n in 0..200 {
            doubled.put(n).unwrap();
            if let Some(done) = doubled.ready() {
                found.push(done.unwrap());
            }
        }
        while let Some(done) = doubled.next() {
            found.push(done.unwrap());
        }
        assert!(found.iter().copied().eq((0..200).map(|n| 2 * n)));
    }

    #[test]
    fn a_panic_is_an_error_and_no_hang() {
        for threads in [1, 2] {
            let mut picky = Ordered::new(threads, || {
                |n: u64| {
                    assert_ne!(n % 3, 1, "this panic is part of the test");
                    n
                }
            })
            .unwrap();
            let mut failed = 0;
            for n in 0..10 {
                failed += usize::from(picky.put(n).is_err());
            }
            while let Some(done) = picky.next() {
                failed += usize::from(done.is_err());
            }
            assert!(failed > 0);
        }
    }

    #[test]
    fn what_is_dropped_leaves_no_thread() {
        let alive = Arc::new(());
        let mut slow = Ordered::new(2, || {
            let alive = alive.clone();
            move |n: u64| {
                let _ = &alive;
                std::thread::sleep(std::time::Duration::from_millis(20));
                n
            }
        })
        .unwrap();
        for n in 0..1000 {
            slow.put(n).unwrap();
        }
        let since = std::time::Instant::now();
        drop(slow);
        assert!(since.elapsed() < std::time::Duration::from_secs(5));
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
