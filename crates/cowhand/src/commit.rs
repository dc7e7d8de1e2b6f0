//! `commit`: what the upper layers of a chain hold goes down into one of its parents.
//!
//! The parent is written only where the layers above hide it, so the disk's content is the same at every moment. The
//! top is emptied once the parent is durable. Who knows the parent by an identity that changes with it is told before and
//! after. Stopped anywhere, it can be run again.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use cowhand_core::{
    Erase, Error, ErrorKind, Image, Kind, LayerId, ParentRef, Prealloc, Progress, Result, is_zero,
    zero_prefix,
};

use crate::buffer::Buffer;
use crate::convert::{PIECE, workers};
use crate::failed::Failed;
use crate::kinship::{Kinship, must_be_told};
use crate::open::{Open, Opened, open};
use crate::parent::{itself, relative_name, remembered};
use crate::plan::{Concat, Piece, Plan, What, most_empty};
use crate::resolve::{folder_of, in_folder};
use crate::runs::same_prefix;
use crate::sectors::Sectors;
use crate::siblings::{File, Known, file, who_stands_on};

/// How an image is committed.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// How the chain is opened. Of its layers those are writable that are written to, and the top where this says so.
    pub open: Open,
    /// The parent that takes the data, by its path or as an image of the chain names it; `None`: the top's own. What
    /// lies between top and parent no longer reads as it did, so a parent that is named implies `keep`.
    pub base: Option<PathBuf>,
    /// `base` is looked for only from the folders of the images that might name it, and not from where the caller stands.
    pub as_named: bool,
    /// Leave the top as it is; otherwise it is emptied once the parent has all it held.
    pub keep: bool,
    /// Threads; `None`: as many as there are processors, at most 8.
    pub workers: Option<usize>,
}

/// The steps of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitStep {
    /// The chain is opened.
    Open,
    /// The parent is found that takes the data, and opened for writing.
    Parent,
    /// The data moves, and the top is emptied.
    Move,
}

/// What was done, in guest bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Written into the parent, zeros too.
    pub moved: u64,
    /// Held by the layers above the parent; what is not moved was there already.
    pub held: u64,
    /// The top was emptied.
    pub emptied: bool,
    /// Other images, in the folders of top and parent and those of [`Open::search`], that stand on the parent, which was
    /// written to: they may show something else now, or take it for another file.
    pub others: Vec<Other>,
    /// The parent's sectors are not the top's.
    pub sectors: Option<Sectors>,
}

/// An image that stands on one that was written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// The image.
    pub image: PathBuf,
    /// What it stands on.
    pub parent: PathBuf,
}

/// Guest bytes that are read and compared at a time.
const CHUNK: u64 = 512 << 10;
/// Where the parent has data, differences are found and written in units of this, within what the layers above hold.
const UNIT: usize = 4096;
/// What a layer holds is whole sectors.
const SECTOR: u64 = 512;

/// Commits `path` into its parent. An error, or a kill, leaves the disk's content as it is.
pub fn commit(path: &Path, how: &Commit, progress: &dyn Progress) -> Result<Committed, Failed<CommitStep>> {
    let job = Job::of(path, how)?;
    let others = job.others(path, how);
    let before = job.base_id();
    let mut done = job.run(how, progress)?;
    if done.moved > 0 || job.base_id() != before {
        done.others = others;
    }
    Ok(done)
}

/// As [`commit`], for who has looked around.
pub(crate) fn commit_alone(path: &Path, how: &Commit, progress: &dyn Progress) -> Result<Committed> {
    Ok(Job::of(path, how)?.run(how, progress)?)
}

/// A chain that is open as the commit needs it.
struct Job {
    chain: Opened,
    /// Where in it the parent stands that takes the data.
    depth: usize,
    empty: bool,
    /// What the layer above that parent is to call it.
    names: ParentRef,
}

impl Job {
    fn of(path: &Path, how: &Commit) -> Result<Job, Failed<CommitStep>> {
        let found = Failed::at(CommitStep::Parent);
        let depth = match &how.base {
            Some(base) => {
                let chain = open(path, &how.open).map_err(Failed::at(CommitStep::Open))?;
                depth_of(base, how.as_named, &chain).map_err(&found)?
            }
            None => 1,
        };
        let empty = !how.keep && how.base.is_none();
        let top = empty || how.open.writable;
        let writable = Open { writable: top, writable_parents: vec![depth], ..how.open.clone() };
        let mut chain = open(path, &writable).map_err(|error| step_of(error, path, &writable))?;
        if must_be_told(&chain, depth).map_err(&found)? {
            drop(chain);
            let child = depth - 1;
            let parents = [child, depth].into_iter().filter(|depth| *depth > 0).collect();
            let told = Open { writable: top || child == 0, writable_parents: parents, ..writable };
            chain = open(path, &told).map_err(&found)?;
        }
        let names = match chain.links().get(depth - 1..=depth) {
            Some([child, parent]) => {
                let (child, format) = (itself(Path::new(&child.name)), parent.format.to_owned());
                let name = relative_name(&child, Path::new(&parent.name));
                remembered(&child, &name, Some(format), chain.seen(depth))
            }
            _ => ParentRef::default(), // never: the parent at that depth was opened
        };
        Ok(Job { chain, depth, empty, names })
    }

    /// Nothing that goes wrong here is a reason not to commit.
    fn others(&self, path: &Path, how: &Commit) -> Vec<Other> {
        let files = self.chain.layer_files();
        let Some((base, file)) = self.chain.links().get(self.depth).zip(files.get(self.depth)) else {
            return Vec::new();
        };
        let mut folders = vec![folder_of(path), folder_of(Path::new(&base.name))];
        folders.extend(how.open.search.iter().cloned());
        let known = Known { file: *file, id: base.layer.identity() };
        let found = who_stands_on(&[known], &folders, &files).unwrap_or_default();
        let parent = PathBuf::from(&base.name);
        found.into_iter().map(|(image, _)| Other { image, parent: parent.clone() }).collect()
    }

    fn base_id(&self) -> Option<LayerId> {
        Some(self.chain.links().get(self.depth)?.layer.identity())
    }

    fn run(&self, how: &Commit, progress: &dyn Progress) -> Result<Committed, Failed<CommitStep>> {
        let Job { chain, depth, empty, names } = self;
        commit_chain(chain, *depth, *empty, names, workers(how.workers), progress)
            .map_err(Failed::at(CommitStep::Move))
    }
}

/// Whether it was writing that failed: then the chain can be read.
fn step_of(error: Error, path: &Path, writable: &Open) -> Failed<CommitStep> {
    match open(path, &Open { writable_parents: Vec::new(), ..writable.clone() }) {
        Ok(_) => Failed { step: CommitStep::Parent, error },
        Err(error) => Failed { step: CommitStep::Open, error },
    }
}

/// Where the file `base` stands in the chain, the top excluded. Unless it is to be `as_named` by a child, its name counts
/// from where the caller stands too.
pub(crate) fn depth_of(base: &Path, as_named: bool, chain: &Opened) -> Result<usize> {
    let files: Vec<File> = chain.layer_files();
    let is_it = |depth: usize| {
        let child = chain.links().get(depth - 1).map(|link| folder_of(Path::new(&link.name)));
        let from_child = child.and_then(|folder| file(&in_folder(&folder, base)));
        let from_here = if as_named { None } else { file(base) };
        [from_here, from_child].into_iter().flatten().any(|wanted| files.get(depth) == Some(&wanted))
    };
    (1..files.len()).find(|depth| is_it(*depth)).ok_or_else(|| {
        let said = format!("Did not find '{}' in the backing chain of '{}'", base.display(), chain.name());
        Error::new(ErrorKind::NotFound, said.clone()).known_as(said)
    })
}

/// Commits the layers above `depth` into the one there, which is open for writing, as is the top where it is to be
/// emptied, and the layer above that one where it [must be told](must_be_told). `names`: what that layer is to call it.
pub(crate) fn commit_chain(
    chain: &Image,
    depth: usize,
    empty: bool,
    names: &ParentRef,
    workers: usize,
    progress: &dyn Progress,
) -> Result<Committed> {
    let base = Image::new(chain.links().get(depth..).unwrap_or_default().to_vec())?;
    let kinship = Kinship::of(chain, depth, names)?;
    kinship.as_ref().map_or(Ok(()), Kinship::tell_before)?;
    let done = move_down(chain, &base, depth, workers, progress);
    let closed = base.flush();
    let mut done = done?;
    closed?;
    kinship.as_ref().map_or(Ok(()), Kinship::tell_after)?;
    if empty {
        let top = chain.top();
        // The parent shows all that it held.
        top.layer.keeps_looks();
        top.layer.clear().and_then(|()| top.layer.close()).map_err(|error| error.image(&top.name))?;
        done.emptied = true;
    }
    kinship.filter(|_| !empty || depth > 1).map_or(Ok(()), |kinship| kinship.close())?;
    base.close()?;
    done.sectors = Sectors::between([chain], &base);
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
    let job = Mover { source: &source, base, unit, moved: AtomicU64::new(0), held: AtomicU64::new(0) };
    let plan = Plan::new(&source, granule, PIECE.max(granule), 0).with_empty(most_empty(chain.size()));
    plan.run(workers, |plan| {
        let mut bufs = (Buffer::default(), Buffer::default());
        while let Some(piece) = plan.next()? {
            job.piece(plan, piece, &mut bufs, progress)?;
        }
        Ok(())
    })?;
    let (moved, held) = (job.moved.into_inner(), job.held.into_inner());
    Ok(Committed { moved, held, ..Committed::default() })
}

struct Mover<'a> {
    source: &'a Concat<'a>,
    base: &'a Image,
    unit: u64,
    moved: AtomicU64,
    held: AtomicU64,
}

impl Mover<'_> {
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
