//! L2 tables in memory, in slices of at most 64 KiB: a bounded cache that several threads share.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use cowhand_core::{Error, Result, Storage};

use crate::entry::Words;
use crate::geometry::Geometry;

/// All slices together, in bytes.
const CACHE_BYTES: u64 = 16 << 20;
const SHARDS: usize = 16;

/// A piece of one L2 table.
#[derive(Debug)]
pub(crate) struct Slice {
    /// Where it stands in the file.
    at: u64,
    body: RwLock<Option<Body>>,
}

/// The words of a slice.
#[derive(Debug)]
pub(crate) struct Body {
    words: Box<[u64]>,
    /// Words that the file does not have yet.
    dirty: Range<usize>,
}

impl Body {
    /// The entry's words; zero where the slice has no such entry.
    pub(crate) fn get(&self, index: usize, per_entry: usize) -> Words {
        let word = |at: usize| self.words.get(at).copied().unwrap_or(0);
        if per_entry == 1 { Words(word(index), 0) } else { Words(word(2 * index), word(2 * index + 1)) }
    }

    fn set(&mut self, index: usize, per_entry: usize, words: Words) {
        let start = index * per_entry;
        for (at, word) in [words.0, words.1].into_iter().take(per_entry).enumerate() {
            if let Some(place) = self.words.get_mut(start + at) {
                *place = word;
            }
        }
        self.soil(start..start + per_entry);
    }

    fn soil(&mut self, range: Range<usize>) {
        self.dirty = if self.dirty.is_empty() {
            range
        } else {
            self.dirty.start.min(range.start)..self.dirty.end.max(range.end)
        };
    }
}

/// Words to be written, copied at one moment.
#[derive(Debug)]
pub(crate) struct Copied {
    slice: Arc<Slice>,
    first: usize,
    bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct Shard {
    slices: HashMap<u64, (Arc<Slice>, u64)>,
}

/// The cache. Slices that were changed stay until they are written.
#[derive(Debug)]
pub(crate) struct Slices {
    geometry: Geometry,
    shards: Vec<Mutex<Shard>>,
    per_shard: usize,
    clock: AtomicU64,
    dirty: Mutex<Vec<Arc<Slice>>>,
    dirty_count: AtomicUsize,
}

impl Slices {
    pub(crate) fn new(geometry: Geometry) -> Slices {
        let slices = (CACHE_BYTES / geometry.slice_bytes()) as usize;
        Slices {
            geometry,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            per_shard: slices / SHARDS,
            clock: AtomicU64::new(0),
            dirty: Mutex::default(),
            dirty_count: AtomicUsize::new(0),
        }
    }

    fn shard(&self, at: u64) -> MutexGuard<'_, Shard> {
        let number = at / self.geometry.slice_bytes();
        // Tables often stand at regular distances: mix before choosing.
        let index = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as usize % SHARDS;
        let shard = &self.shards[index]; // invariant: there are SHARDS of them
        // A panic leaves at worst a slice that is not in the map and will be read again.
        shard.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The slice that stands at `at`; its body may not be there yet.
    fn slice(&self, at: u64) -> Arc<Slice> {
        let stamp = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut shard = self.shard(at);
        if let Some((slice, used)) = shard.slices.get_mut(&at) {
            *used = stamp;
            return slice.clone();
        }
        let slice = Arc::new(Slice { at, body: RwLock::new(None) });
        shard.insert(slice.clone(), stamp, self.per_shard);
        slice
    }

    /// Looks at the slice at `at`, reading it from `file` where it is not in memory.
    pub(crate) fn look<T>(&self, file: &dyn Storage, at: u64, f: impl FnOnce(&Body) -> T) -> Result<T> {
        let slice = self.slice(at);
        {
            let body = slice.body.read().unwrap_or_else(|poisoned| poisoned.into_inner());
            if let Some(body) = body.as_ref() {
                return Ok(f(body));
            }
        }
        let mut body = slice.body.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let body = self.fill(&mut body, file, at)?;
        Ok(f(body))
    }

    fn fill<'a>(&self, body: &'a mut Option<Body>, file: &dyn Storage, at: u64) -> Result<&'a mut Body> {
        if body.is_none() {
            let mut bytes = vec![0; self.geometry.slice_bytes() as usize];
            read_to_end(file, at, &mut bytes)
                .map_err(|error| Error::io("cannot read an L2 table", error).at(at))?;
            let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect();
            *body = Some(Body { words, dirty: 0..0 });
        }
        body.as_mut().ok_or_else(|| Error::corrupt("L2 table", "could not be read").at(at))
    }

    /// Changes entries of the slice at `at`: calls `change` with each index from `first` on, `count` times, and puts
    /// what it answers.
    pub(crate) fn change(
        &self,
        file: &dyn Storage,
        at: u64,
        range: Range<usize>,
        mut change: impl FnMut(usize, Words) -> Words,
    ) -> Result<()> {
        let per_entry = self.geometry.entry_words();
        let slice = self.slice(at);
        let mut body = slice.body.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let body = self.fill(&mut body, file, at)?;
        let clean = body.dirty.is_empty();
        for index in range {
            let old = body.get(index, per_entry);
            let new = change(index, old);
            if new != old {
                body.set(index, per_entry, new);
            }
        }
        if clean && !body.dirty.is_empty() {
            self.remember(slice.clone());
        }
        Ok(())
    }

    /// Puts a whole slice of a new table.
    pub(crate) fn put_new(&self, at: u64, words: Box<[u64]>) {
        let dirty = 0..words.len();
        let slice = Arc::new(Slice { at, body: RwLock::new(Some(Body { words, dirty })) });
        let stamp = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut shard = self.shard(at);
        shard.slices.remove(&at);
        shard.insert(slice.clone(), stamp, self.per_shard);
        drop(shard);
        self.remember(slice);
    }

    /// Forgets the slices of the table at `at`, whose place got another content. Nothing of them may be dirty.
    pub(crate) fn forget(&self, at: u64) {
        let step = self.geometry.slice_bytes() as usize;
        for at in (at..at + self.geometry.cluster_size()).step_by(step) {
            self.shard(at).slices.remove(&at);
        }
    }

    /// A copy of a slice's words.
    pub(crate) fn words(&self, file: &dyn Storage, at: u64) -> Result<Box<[u64]>> {
        self.look(file, at, |body| body.words.clone())
    }

    fn remember(&self, slice: Arc<Slice>) {
        self.dirty.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(slice);
        self.dirty_count.fetch_add(1, Ordering::Relaxed);
    }

    /// So much is dirty that it should be written before more is changed.
    pub(crate) fn too_dirty(&self) -> bool {
        self.dirty_count.load(Ordering::Relaxed) as u64 * self.geometry.slice_bytes() > CACHE_BYTES / 2
    }

    /// Copies all that is dirty, and holds it for clean. Nobody may be changing a slice.
    pub(crate) fn copy_dirty(&self) -> Vec<Copied> {
        let slices = std::mem::take(&mut *self.dirty.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        self.dirty_count.store(0, Ordering::Relaxed);
        let mut copies: Vec<Copied> = slices
            .into_iter()
            .filter_map(|slice| {
                let mut guard = slice.body.write().unwrap_or_else(|poisoned| poisoned.into_inner());
                let body = guard.as_mut()?;
                // Whole sectors: an entry is never torn, and neighbours are written as they are.
                let first = body.dirty.start / 64 * 64;
                let end = body.dirty.end.next_multiple_of(64).min(body.words.len());
                body.dirty = 0..0;
                let bytes = body.words.get(first..end)?.iter().flat_map(|word| word.to_be_bytes()).collect();
                drop(guard);
                Some(Copied { slice, first, bytes })
            })
            .collect();
        copies.sort_unstable_by_key(|copy| copy.slice.at);
        copies
    }

    /// Takes copies back that could not be written.
    pub(crate) fn restore(&self, copies: &[Copied]) {
        for copy in copies {
            let mut guard = copy.slice.body.write().unwrap_or_else(|poisoned| poisoned.into_inner());
            let Some(body) = guard.as_mut() else { continue };
            let clean = body.dirty.is_empty();
            body.soil(copy.first..copy.first + copy.bytes.len() / 8);
            if clean {
                self.remember(copy.slice.clone());
            }
        }
    }
}

impl Copied {
    pub(crate) fn write(&self, file: &dyn Storage) -> Result<()> {
        let at = self.slice.at + 8 * self.first as u64;
        file.write_at(at, &self.bytes).map_err(|error| Error::io("cannot write an L2 table", error).at(at))
    }
}

impl Shard {
    fn insert(&mut self, slice: Arc<Slice>, stamp: u64, room: usize) {
        if self.slices.len() >= room {
            // What somebody uses or what is dirty has another owner. Half go at once, so that looking for them is rare.
            let mut idle: Vec<(u64, u64)> = (self.slices.iter())
                .filter(|(_, (slice, _))| Arc::strong_count(slice) == 1)
                .map(|(at, (_, used))| (*used, *at))
                .collect();
            idle.sort_unstable();
            for (_, at) in idle.iter().take(idle.len().div_ceil(2)) {
                self.slices.remove(at);
            }
        }
        self.slices.insert(slice.at, (slice, stamp));
    }
}

/// Fills `buf`, with zeros where the file ends before. Errors: nothing is there at all.
pub(crate) fn read_to_end(file: &dyn Storage, at: u64, buf: &mut [u8]) -> std::io::Result<()> {
    match file.read_at(at, buf) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            // It may be longer now: then all of it is there.
            let there = file.len()?.saturating_sub(at).min(buf.len() as u64);
            if there == 0 {
                return Err(error);
            }
            let (stored, tail) = buf.split_at_mut(there as usize);
            file.read_at(at, stored)?;
            tail.fill(0);
            Ok(())
        }
        other => other,
    }
}
