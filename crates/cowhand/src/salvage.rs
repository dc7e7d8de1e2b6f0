//! Going on where a disk cannot be read: what cannot, down to single sectors, reads zero.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use cowhand_core::{Error, ErrorKind, Kind, Mapped, Progress, Result};

use crate::plan::stopped;

const SECTOR: usize = 512;
/// Where it cannot be found out what is there, so many bytes at most are read at a time to see.
const LOOK: u64 = 64 << 10;

/// Who is told of what is lost, and how much that is.
pub(crate) struct Salvage<'a> {
    progress: &'a dyn Progress,
    lost: AtomicU64,
}

impl<'a> Salvage<'a> {
    pub(crate) fn telling(progress: &'a dyn Progress) -> Salvage<'a> {
        Salvage { progress, lost: AtomicU64::new(0) }
    }

    /// Guest bytes that could not be read.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// What is at `at`, where finding that out failed: data, for all we know.
    pub(crate) fn extent(&self, at: u64, max: u64, error: Error) -> Result<Mapped> {
        if error.kind() == ErrorKind::Cancelled {
            return Err(error);
        }
        let len = max.min(LOOK - at % LOOK);
        Ok(Mapped { len, kind: Kind::Data, depth: 0, compressed: false, host: None })
    }

    /// Fills `buf` by `read`, as far as that goes. Errors: somebody asked to stop.
    pub(crate) fn read(
        &self,
        at: u64,
        buf: &mut [u8],
        read: &dyn Fn(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let Err(error) = read(at, buf) else { return Ok(()) };
        if error.kind() == ErrorKind::Cancelled {
            return Err(error);
        }
        if buf.len() > SECTOR {
            let (front, back) = buf.split_at_mut((buf.len() / 2).next_multiple_of(SECTOR));
            let middle = at + front.len() as u64;
            self.read(at, front, read)?;
            return self.read(middle, back, read);
        }
        buf.fill(0);
        let len = buf.len() as u64;
        self.lost.fetch_add(len, Ordering::Relaxed);
        if self.progress.lost(at, len, &error).is_break() { Err(stopped()) } else { Ok(()) }
    }
}

impl fmt::Debug for Salvage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Salvage {{ lost: {} }}", self.lost())
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Told(Mutex<Vec<(u64, u64)>>);

    impl Progress for Told {
        fn at(&self, _done: u64, _total: u64) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }

        fn lost(&self, at: u64, len: u64, _why: &Error) -> ControlFlow<()> {
            let mut told = self.0.lock().unwrap();
            told.push((at, len));
            if told.len() < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        }
    }

    /// Bytes of 7, but for the sectors `bad`.
    fn reader(bad: &[u64]) -> impl Fn(u64, &mut [u8]) -> Result<()> {
        move |at, buf| {
            let hit = |sector: &u64| at < (sector + 1) * 512 && at + buf.len() as u64 > sector * 512;
            if bad.iter().any(hit) {
                return Err(Error::corrupt("sector", "is bad"));
            }
            buf.fill(7);
            Ok(())
        }
    }

    #[test]
    fn only_what_cannot_be_read_is_zero() {
        let told = Told::default();
        let salvage = Salvage::telling(&told);
        let mut buf = vec![1; 10 * 512 + 100];
        salvage.read(512, &mut buf, &reader(&[3, 11])).unwrap();
        let wanted = |index: usize| if (1024..1536).contains(&index) || index >= 5120 { 0 } else { 7 };
        assert!(buf.iter().enumerate().all(|(index, byte)| *byte == wanted(index)));
        assert_eq!(*told.0.lock().unwrap(), [(1536, 512), (5632, 100)]);
        assert_eq!(salvage.lost(), 612);
    }

    #[test]
    fn who_is_told_may_stop_it() {
        let told = Told::default();
        let mut buf = vec![1; 8 * 512];
        let error = Salvage::telling(&told).read(0, &mut buf, &reader(&[1, 2, 3, 4, 5])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(told.0.lock().unwrap().len(), 3);
    }
}
