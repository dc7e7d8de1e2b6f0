//! `commit`: what the upper layers of a chain hold goes down into one of its parents.
//!
//! The parent is written only where the layers above hide it, so the disk's content is the same at every moment. The
//! top is emptied once the parent is durable. Stopped anywhere, it can be run again.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use cowhand_core::{Erase, Error, ErrorKind, Image, Kind, Prealloc, Progress, Result, is_zero, zero_prefix};

use crate::buffer::Buffer;
use crate::convert::{PIECE, workers};
use crate::open::{Open, Opened, open};
use crate::plan::{Concat, Piece, Plan, What, most_empty};
use crate::resolve::{folder_of, in_folder};
use crate::runs::same_prefix;

/// How an image is committed.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// How the chain is opened; which layers are writable is decided here.
    pub open: Open,
    /// The parent that takes the data, by its path or as an image of the chain names it; `None`: the top's own. What
    /// lies between top and parent no longer reads as it did, so a parent that is named implies `keep`.
    pub base: Option<PathBuf>,
    /// Leave the top as it is; otherwise it is emptied once the parent has all it held.
    pub keep: bool,
    /// Threads; `None`: as many as there are processors, at most 8.
    pub workers: Option<usize>,
}

/// What was done, in guest bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Written into the parent, zeros too.
    pub moved: u64,
    /// Held by the layers above the parent; what is not moved was there already.
    pub held: u64,
    /// The top was emptied.
    pub emptied: bool,
}

/// Guest bytes that are read and compared at a time.
const CHUNK: u64 = 512 << 10;
/// Where the parent has data, differences are found and written in units of this, within what the layers above hold.
const UNIT: usize = 4096;
/// What a layer holds is whole sectors.
const SECTOR: u64 = 512;

/// Commits `path` into its parent. An error, or a kill, leaves the disk's content as it is.
pub fn commit(path: &Path, how: &Commit, progress: &dyn Progress) -> Result<Committed> {
    let depth = match &how.base {
        Some(base) => depth_of(base, &open(path, &how.open)?)?,
        None => 1,
    };
    let empty = !how.keep && how.base.is_none();
    let chain = open(path, &Open { writable: empty, writable_parent: Some(depth), ..how.open.clone() })?;
    commit_chain(&chain, depth, empty, workers(how.workers), progress)
}

/// Where the file `base` stands in the chain, the top excluded.
pub(crate) fn depth_of(base: &Path, chain: &Opened) -> Result<usize> {
    let file = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let files = chain.layer_files();
    let is_it = |depth: usize| {
        let child = chain.links().get(depth - 1).map(|link| folder_of(Path::new(&link.name)));
        let from_child = child.and_then(|folder| file(&in_folder(&folder, base)));
        [file(base), from_child].into_iter().flatten().any(|wanted| files.get(depth) == Some(&wanted))
    };
    (1..files.len()).find(|depth| is_it(*depth)).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("Did not find '{}' in the backing chain of '{}'", base.display(), chain.name()),
        )
    })
}

/// Commits the layers above `depth` into the one there, which is open for writing, as is the top where it is to be
/// emptied.
pub(crate) fn commit_chain(
    chain: &Image,
    depth: usize,
    empty: bool,
    workers: usize,
    progress: &dyn Progress,
) -> Result<Committed> {
    let base = Image::new(chain.links().get(depth..).unwrap_or_default().to_vec())?;
    let done = move_down(chain, &base, depth, workers, progress);
    let closed = base.flush();
    let mut done = done?;
    closed?;
    if empty {
        let top = &chain.links()[0]; // never empty: every image has a layer
        top.layer.clear().and_then(|()| top.layer.close()).map_err(|error| error.image(&top.name))?;
        done.emptied = true;
    }
    base.close()?;
    Ok(done)
}

fn move_down(
    chain: &Image,
    base: &Image,
    depth: usize,
    workers: usize,
    progress: &dyn Progress,
) -> Result<Committed> {
    if base.size() < chain.size() {
        base.resize(chain.size(), Prealloc::Off)?;
    }
    let source = Concat::new([chain]).above(depth);
    // Pieces are whole granules of the base, so that no two threads fill one, and no more than what is held where its
    // granules are sectors.
    let granule = base.granule().max(SECTOR);
    let unit = granule.max(UNIT as u64);
    let job = Job { source: &source, base, unit, moved: AtomicU64::new(0), held: AtomicU64::new(0) };
    let plan = Plan::new(&source, granule, PIECE.max(granule), 0).with_empty(most_empty(chain.size()));
    plan.run(workers, |plan| {
        let mut bufs = (Buffer::default(), Buffer::default());
        while let Some(piece) = plan.next()? {
            job.piece(plan, piece, &mut bufs, progress)?;
        }
        Ok(())
    })?;
    let (moved, held) = (job.moved.into_inner(), job.held.into_inner());
    Ok(Committed { moved, held, emptied: false })
}

struct Job<'a> {
    source: &'a Concat<'a>,
    base: &'a Image,
    unit: u64,
    moved: AtomicU64,
    held: AtomicU64,
}

impl Job<'_> {
    fn piece(
        &self,
        plan: &Plan<'_>,
        piece: Piece<'_>,
        bufs: &mut (Buffer, Buffer),
        progress: &dyn Progress,
    ) -> Result<()> {
        let Piece { at, len, what } = piece;
        if what == What::Hole {
            return plan.advance(len, progress);
        }
        self.held.fetch_add(len, Ordering::Relaxed);
        if what == What::Zero {
            self.zero(at, len)?;
            return plan.advance(len, progress);
        }
        let mut done = 0;
        while done < len {
            let n = (len - done).min(CHUNK.max(self.unit));
            self.data(at + done, n, bufs)?;
            done += n;
            plan.advance(n, progress)?;
        }
        Ok(())
    }

    /// Makes `len` bytes of the base zero, where they are not known to be.
    fn zero(&self, at: u64, len: u64) -> Result<()> {
        let (mut at, end) = (at, at + len);
        while at < end {
            let found = self.base.extent(at, end - at)?;
            if found.kind == Kind::Data {
                self.base.erase(at, found.len, Erase::Free)?;
                self.moved.fetch_add(found.len, Ordering::Relaxed);
            }
            at += found.len;
        }
        Ok(())
    }

    /// Reads `len` bytes and writes what the base has otherwise.
    fn data(&self, at: u64, len: u64, bufs: &mut (Buffer, Buffer)) -> Result<()> {
        let wanted = bufs.0.get(len as usize);
        self.source.read(at, wanted)?;
        let mut done = 0;
        while done < wanted.len() {
            let here = at + done as u64;
            let found = self.base.extent(here, len - done as u64)?;
            let wanted = &wanted[done..done + found.len as usize];
            if found.kind == Kind::Data {
                let there = bufs.1.get(wanted.len());
                self.base.read(here, there)?;
                self.put(here, wanted, |rest, done| same_prefix(rest, &there[done..], UNIT))?;
            } else {
                self.put(here, wanted, |rest, _| zero_prefix(rest, self.unit as usize))?;
            }
            done += wanted.len();
        }
        Ok(())
    }

    /// Writes the runs that are not the same; `split` tells the first one's length, of what is left from an offset on.
    fn put(&self, at: u64, wanted: &[u8], split: impl Fn(&[u8], usize) -> (usize, bool)) -> Result<()> {
        let mut done = 0;
        while done < wanted.len() {
            let rest = &wanted[done..];
            let (n, same) = split(rest, done);
            if !same {
                let (here, bytes) = (at + done as u64, &rest[..n]);
                if is_zero(bytes) {
                    self.base.erase(here, n as u64, Erase::Free)?;
                } else {
                    self.base.write(here, bytes)?;
                }
                self.moved.fetch_add(n as u64, Ordering::Relaxed);
            }
            done += n;
        }
        Ok(())
    }
}
