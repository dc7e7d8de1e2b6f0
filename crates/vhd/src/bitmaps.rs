//! The sector bitmaps that are in memory: those lately looked at, and those that changed since the file was written.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowhand_core::{Error, Result, Storage};

/// Bitmaps that are kept though the file has them, in bytes: those of 8 GiB in 2 MiB blocks.
const CLEAN: u64 = 2 << 20;
/// Bitmaps that may wait to be written, in bytes.
const DIRTY: u64 = 4 << 20;
const SHARDS: u64 = 16;

/// What the file has of a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// It.
    Clean,
    /// An older one, of the block in this place.
    Dirty,
    /// Nothing: the place is new, and no table in the file leads there.
    New,
}

#[derive(Debug)]
struct Held {
    /// Where the bitmap stands in the file.
    at: u64,
    bits: Arc<[u8]>,
    mark: Mark,
    /// Somebody is writing it to the file.
    leaving: bool,
}

/// Some blocks' bitmaps. While it is locked, no block of them gets another place or another bitmap.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    held: HashMap<u64, Held>,
    /// Oldest first.
    order: VecDeque<u64>,
}

/// The bitmaps of one layer, in shards.
#[derive(Debug)]
pub(crate) struct Bitmaps {
    shards: Box<[Mutex<Shard>]>,
    /// Bytes of each.
    len: usize,
    /// Clean ones of a shard.
    most: usize,
    changed: AtomicUsize,
}

/// A bitmap that changed, as it is to stand in the file.
#[derive(Debug)]
pub(crate) struct ChangedBitmap {
    block: u64,
    at: u64,
    bits: Arc<[u8]>,
    mark: Mark,
}

impl ChangedBitmap {
    /// No table in the file leads to it yet.
    pub(crate) fn is_new(&self) -> bool {
        self.mark == Mark::New
    }

    pub(crate) fn write(&self, file: &dyn Storage) -> Result<()> {
        file.write_at(self.at, &self.bits)
            .map_err(|error| Error::io("cannot write a sector bitmap", error).at(self.at))
    }
}

impl Bitmaps {
    /// For bitmaps of `len` bytes.
    pub(crate) fn new(len: u64) -> Bitmaps {
        let most = usize::try_from(CLEAN / SHARDS / len.max(1)).unwrap_or(usize::MAX).max(1);
        Bitmaps {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            len: len as usize,
            most,
            changed: AtomicUsize::new(0),
        }
    }

    /// Locks what concerns `block`.
    pub(crate) fn shard(&self, block: u64) -> MutexGuard<'_, Shard> {
        let shard = &self.shards[(block % SHARDS) as usize]; // never out of bounds: that many were made
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many wait to be written that they should be.
    pub(crate) fn too_dirty(&self) -> bool {
        (self.changed.load(Ordering::Relaxed) as u64).saturating_mul(self.len as u64) > DIRTY
    }

    /// The bitmap of `block`, which stands at `at`; from the file where it is not here.
    pub(crate) fn get(
        &self,
        shard: &mut Shard,
        file: &dyn Storage,
        block: u64,
        at: u64,
    ) -> Result<Arc<[u8]>> {
        if let Some(held) = shard.held.get(&block).filter(|held| held.at == at) {
            return Ok(held.bits.clone());
        }
        let mut bits = vec![0; self.len];
        file.read_at(at, &mut bits)
            .map_err(|error| Error::io("cannot read a sector bitmap", error).at(at))?;
        let bits: Arc<[u8]> = bits.into();
        // Who looks for another place than the one that is known came late: the block has moved since.
        if !shard.held.contains_key(&block) {
            self.put(shard, block, at, bits.clone(), Mark::Clean);
        }
        Ok(bits)
    }

    /// Takes the bitmap of `block`, which stands at `at`, in the place of any other.
    pub(crate) fn put(&self, shard: &mut Shard, block: u64, at: u64, bits: Arc<[u8]>, mark: Mark) {
        let old = shard.held.insert(block, Held { at, bits, mark, leaving: false });
        match old {
            Some(old) if old.mark != Mark::Clean => self.fewer(1),
            Some(_) => {}
            None => shard.order.push_back(block),
        }
        if mark != Mark::Clean {
            self.changed.fetch_add(1, Ordering::Relaxed);
        }
        // Changed ones stay, at the end of the row.
        for _ in 0..shard.order.len() {
            if shard.order.len() <= self.most {
                break;
            }
            let Some(oldest) = shard.order.pop_front() else { break };
            let stays = shard.held.get(&oldest).is_some_and(|held| held.mark != Mark::Clean || held.leaving);
            if stays || oldest == block {
                shard.order.push_back(oldest);
            } else {
                shard.held.remove(&oldest);
            }
        }
    }

    /// Changes the bitmap of `block`, which `get` has just answered.
    pub(crate) fn change(&self, shard: &mut Shard, block: u64, at: u64, bits: Arc<[u8]>) {
        let mark = match shard.held.get(&block).filter(|held| held.at == at) {
            Some(held) if held.leaving => {
                // It is written as it was. What it is marked as tells what the file has when that has failed, too.
                let held = shard.held.get_mut(&block);
                if let Some(held) = held {
                    held.bits = bits;
                    if held.mark == Mark::Clean {
                        held.mark = Mark::Dirty;
                        self.changed.fetch_add(1, Ordering::Relaxed);
                    }
                }
                return;
            }
            Some(held) if held.mark == Mark::New => Mark::New,
            _ => Mark::Dirty,
        };
        self.put(shard, block, at, bits, mark);
    }

    /// Forgets the bitmap of a block that is no more.
    pub(crate) fn forget(&self, shard: &mut Shard, block: u64) {
        if let Some(held) = shard.held.remove(&block) {
            shard.order.retain(|other| *other != block);
            self.fewer(usize::from(held.mark != Mark::Clean));
        }
    }

    fn fewer(&self, n: usize) {
        self.changed.fetch_sub(n, Ordering::Relaxed);
    }

    /// Takes the bitmaps that changed, as what is to be written; the caller keeps others from changing them meanwhile,
    /// and says [`Bitmaps::written`] of them.
    pub(crate) fn take_changed(&self) -> Vec<ChangedBitmap> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for (block, held) in shard.held.iter_mut().filter(|(_, held)| held.mark != Mark::Clean) {
                let Held { at, ref bits, mark, .. } = *held;
                all.push(ChangedBitmap { block: *block, at, bits: bits.clone(), mark });
                held.mark = Mark::Clean;
                held.leaving = true;
            }
        }
        self.fewer(all.len());
        // In the file's order: neighbours go together.
        all.sort_unstable_by_key(|changed| changed.at);
        all
    }

    /// They were written, or could not be.
    pub(crate) fn written(&self, changed: &[ChangedBitmap], done: bool) {
        for one in changed {
            let mut shard = self.shard(one.block);
            if let Some(held) = shard.held.get_mut(&one.block).filter(|held| held.at == one.at) {
                held.leaving = false;
                if !done {
                    if held.mark == Mark::Clean {
                        self.changed.fetch_add(1, Ordering::Relaxed);
                    }
                    held.mark = one.mark;
                }
            }
        }
    }
}
