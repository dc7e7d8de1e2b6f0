//! Storages, folders and layers that hesitate, so that threads meet where they rarely would.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{io, thread};

use super::Rng;
use crate::{Erase, Extent, Folder, Identity, Layer, Prealloc, Result, Snapshots, Storage};

/// When to hesitate.
#[derive(Clone, Debug)]
pub(super) struct Chance(Arc<AtomicU64>);

impl Chance {
    pub(super) fn new(seed: u64) -> Chance {
        Chance(Arc::new(AtomicU64::new(seed)))
    }

    pub(super) fn folder(&self, inner: Arc<dyn Folder>) -> Arc<dyn Folder> {
        Arc::new(SlowFolder { inner, chance: self.clone() })
    }

    pub(super) fn layer(&self, inner: Arc<dyn Layer>) -> Arc<dyn Layer> {
        Arc::new(SlowLayer { inner, chance: self.clone() })
    }

    /// Now and then lets another thread go first.
    fn hesitate(&self) {
        let mut rng = Rng::new(self.0.fetch_add(0x1234_5679, Ordering::Relaxed));
        match rng.below(8) {
            0..=2 => thread::yield_now(),
            3 => thread::sleep(Duration::from_micros(rng.below(200))),
            _ => {}
        }
    }
}

#[derive(Debug)]
struct SlowFolder {
    inner: Arc<dyn Folder>,
    chance: Chance,
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

#[derive(Debug)]
struct Slow {
    inner: Arc<dyn Storage>,
    chance: Chance,
}

impl Storage for Slow {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.chance.hesitate();
        let done = self.inner.read_at(at, buf);
        self.chance.hesitate();
        done
    }

    fn write_at(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.chance.hesitate();
        let done = self.inner.write_at(at, buf);
        self.chance.hesitate();
        done
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.chance.hesitate();
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.chance.hesitate();
        self.inner.sync()
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<bool> {
        self.chance.hesitate();
        self.inner.punch(at, len)
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<bool> {
        self.chance.hesitate();
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

/// What an image asks of a layer; the rest is as for a layer that cannot do it.
#[derive(Debug)]
struct SlowLayer {
    inner: Arc<dyn Layer>,
    chance: Chance,
}

impl Layer for SlowLayer {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn granule(&self) -> u64 {
        self.inner.granule()
    }

    fn host(&self) -> &Arc<dyn Storage> {
        self.inner.host()
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        let found = self.inner.extent(at, max);
        self.chance.hesitate();
        found
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        let found = self.inner.read(at, buf);
        self.chance.hesitate();
        found
    }

    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.chance.hesitate();
        self.inner.write(at, buf)
    }

    fn write_compressed(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.chance.hesitate();
        self.inner.write_compressed(at, buf)
    }

    fn erase(&self, at: u64, len: u64, how: Erase) -> Result<u64> {
        self.chance.hesitate();
        self.inner.erase(at, len, how)
    }

    fn resize(&self, size: u64, prealloc: Prealloc, below: u64) -> Result<()> {
        self.inner.resize(size, prealloc, below)
    }

    fn as_snapshots(&self) -> Option<&dyn Snapshots> {
        self.inner.as_snapshots()
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn close(&self) -> Result<()> {
        self.inner.close()
    }
}
