//! `rebase`: an image gets another parent, or none, and its disk stays as it is.
//!
//! Where the new chain would show something else than the old one, the top is given what the old one shows: that
//! changes nothing while the old parent is there, and everything is durable before the parent's name changes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use cowhand_core::{
    Cache, Erase, Error, ErrorKind, Image, Kind, Layer, Link, Lock, ParentRef, Progress, Result, zero_prefix,
};

use crate::buffer::Buffer;
use crate::convert::{PIECE, workers};
use crate::create::Base;
use crate::failed::Failed;
use crate::open::{Open, Opened, Parent, open};
use crate::plan::{Concat, Piece, Plan, most_empty};
use crate::registry;
use crate::runs::same_prefix;
use crate::sectors::Sectors;

/// Which parent an image gets, and how.
#[derive(Clone, Debug, Default)]
pub struct Rebase {
    /// How the image and its old chain are opened; which layers are writable is decided here.
    pub open: Open,
    /// The new parent, as it is to be written into the image: a relative name starts at the image's folder. `None`:
    /// no parent.
    pub backing: Option<PathBuf>,
    /// The new parent's format.
    pub backing_format: Option<String>,
    /// What reads of the new parent promise.
    pub backing_cache: Cache,
    /// How the new parent is held: [`Lock::None`] is `--force-share`.
    pub backing_lock: Lock,
    /// Only change the name (`-u`): neither parent need exist, and the disk's content may change.
    pub unchecked: bool,
    /// Write compressed clusters.
    pub compress: bool,
    /// Threads; `None`: as many as there are processors, at most 8.
    pub workers: Option<usize>,
}

/// The steps of a rebase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebaseStep {
    /// The image is opened, and what it stands on.
    Image,
    /// It is to be compressed.
    Compress,
    /// The new parent's format is looked up.
    Format,
    /// The new parent is opened.
    Parent,
    /// The content is kept.
    Copy,
    /// The new parent is named.
    Name,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rebased {
    /// Guest bytes written into the image, zeros too.
    pub written: u64,
    /// The image's sectors are not the new parent's.
    pub sectors: Option<Sectors>,
}

/// Guest bytes that are read and compared at a time.
const CHUNK: u64 = 512 << 10;

/// Gives `path` another parent. An error, or a kill, leaves the old parent and, unless `unchecked`, the disk's content
/// as it is.
pub fn rebase(path: &Path, how: &Rebase, progress: &dyn Progress) -> Result<Rebased, Failed<RebaseStep>> {
    let (opening, naming) = (Failed::at(RebaseStep::Parent), Failed::at(RebaseStep::Name));
    let parent = if how.unchecked { Parent::Ignored } else { how.open.parent.clone() };
    let chain = Open { writable: true, parent, ..how.open.clone() };
    let chain = open(path, &chain).map_err(Failed::at(RebaseStep::Image))?;
    if how.compress {
        // A format that cannot says so now, also where there is nothing to write.
        chain.write_compressed(0, &[]).map_err(Failed::at(RebaseStep::Compress))?;
    }
    if let Some(name) = &how.backing_format {
        registry::format(name).map_err(Failed::at(RebaseStep::Format))?;
    }
    let format = how.backing_format.clone().filter(|_| how.backing.is_some());
    let mut base = Base::of(Vec::new(), how.backing.clone(), format).map_err(&opening)?;
    base.refuse_itself(path).map_err(|error| opening(error.known_as(held_by_us(path))))?;
    let below = if how.unchecked { None } else { open_parent(&mut base, path, how).map_err(&opening)? };
    if let (Some(backing), None) = (&how.backing, &how.backing_format) {
        return Err(naming(format_missing(path, backing)));
    }
    if how.unchecked {
        base.glance(path, &how.open.policy);
        name(&chain, base.parent().as_ref()).map_err(&naming)?;
        return Ok(Rebased { written: 0, sectors: base.sectors_in(chain.top().layer.as_ref()) });
    }
    let below_links = below.as_ref().map(|below| below.links()).unwrap_or_default();
    let links = chain.links().iter().take(1).chain(below_links).cloned().collect();
    let new = Image::new(links).map_err(&opening)?;
    let shared = shared(&chain, below.as_ref());
    let parent = base.parent();
    let written =
        rebase_chain(&chain, &new, shared, parent.as_ref(), how.compress, workers(how.workers), progress)?;
    Ok(Rebased { written, sectors: base.sectors_in(chain.top().layer.as_ref()) })
}

/// Opens the new parent, while the image is held for writing.
fn open_parent(base: &mut Base, path: &Path, how: &Rebase) -> Result<Option<Opened>> {
    let open = Open { cache: how.backing_cache, lock: how.backing_lock, ..how.open.clone() };
    let below = base.look(path, &open).map_err(|error| {
        // It may be held by nobody but us: then it stands on the image.
        let free = Open { lock: Lock::None, ..open };
        let stands_on_it = || refuse_loop(path, base.look(path, &free).ok()?.as_ref()).err();
        (error.kind() == ErrorKind::Locked).then(stands_on_it).flatten().unwrap_or(error)
    })?;
    refuse_loop(path, below.as_ref())?;
    Ok(below)
}

/// What QEMU says of an image that is to be its own parent: that somebody writes to it, which is right.
fn held_by_us(path: &Path) -> String {
    format!("Failed to get shared \"write\" lock\nIs another process using the image [{}]?", path.display())
}

fn format_missing(path: &Path, backing: &Path) -> Error {
    let said = format!(
        "Could not change the backing file to '{}': backing format must be specified",
        backing.display()
    );
    Error::invalid(said)
        .hint("pass -F with the format it has")
        .image(path.display())
        .known_as("backing format must be specified")
}

/// Gives the top, which both chains have in common and which is open for writing, the parent of the new one. The last
/// `shared` layers of both are the same. Answers the guest bytes written.
pub(crate) fn rebase_chain(
    old: &Image,
    new: &Image,
    shared: usize,
    parent: Option<&ParentRef>,
    compress: bool,
    workers: usize,
    progress: &dyn Progress,
) -> Result<u64, Failed<RebaseStep>> {
    let copying = Failed::at(RebaseStep::Copy);
    old.top().layer.keeps_looks();
    let done = keep_content(old, new, shared, compress, workers, progress);
    let flushed = old.flush();
    let written = done.map_err(&copying)?;
    flushed.map_err(&copying)?;
    name(old, parent).map_err(Failed::at(RebaseStep::Name))?;
    Ok(written)
}

fn name(top: &Image, parent: Option<&ParentRef>) -> Result<()> {
    let link = &top.links()[0]; // never empty: every image has a layer
    link.layer.set_parent(parent).map_err(|error| error.image(&link.name))?;
    top.close()
}

fn refuse_loop(path: &Path, below: Option<&Opened>) -> Result<()> {
    let (Some(below), Ok(there)) = (below, std::fs::metadata(path)) else { return Ok(()) };
    let there = (there.dev(), there.ino());
    let Some(depth) = below.layer_files().iter().position(|file| *file == there) else { return Ok(()) };
    Err(Error::invalid(format!(
        "'{}' stands on this image, which would stand in its own chain",
        below.name()
    ))
    .hint("choose another parent")
    .image(path.display())
    .known_as(held_by_us(path))
    .below(depth, path.display()))
}

/// How many layers at the bottom of both chains are the same files.
fn shared(old: &Opened, new: Option<&Opened>) -> usize {
    let Some(new) = new else { return 0 };
    let files = |chain: &Opened, from: usize| -> Vec<((u64, u64), &'static str)> {
        let formats = chain.links().iter().map(|link| link.format);
        chain.layer_files().into_iter().zip(formats).skip(from).collect()
    };
    let (old, new) = (files(old, 1), files(new, 0));
    old.iter().rev().zip(new.iter().rev()).take_while(|(old, new)| old == new).count()
}

/// Writes into the top what `old` shows and `new` would not. Answers the guest bytes written.
fn keep_content(
    old: &Image,
    new: &Image,
    shared: usize,
    compress: bool,
    workers: usize,
    progress: &dyn Progress,
) -> Result<u64> {
    let top = &old.links()[0]; // never empty: every image has a layer
    let alone = Image::new(vec![top.clone()])?;
    let above = |chain| Concat::new([chain]).above(chain.links().len().saturating_sub(shared));
    let granule = old.granule();
    let packed = compress.then(|| top.layer.details().cluster_size.unwrap_or(granule).max(granule));
    let job = Job {
        top,
        alone: &alone,
        old,
        new,
        old_own: above(old),
        new_own: above(new),
        granule,
        packed,
        written: AtomicU64::new(0),
    };
    let source = Concat::new([&alone]);
    let unit = packed.unwrap_or(granule);
    let plan = Plan::new(&source, unit, PIECE.max(unit), 0).with_empty(most_empty(old.size()));
    plan.run(workers, |plan| {
        let mut bufs = (Buffer::default(), Buffer::default());
        while let Some(piece) = plan.next()? {
            job.piece(plan, piece, &mut bufs, progress)?;
        }
        Ok(())
    })?;
    Ok(job.written.into_inner())
}

struct Job<'a> {
    top: &'a Link,
    /// The top as if nothing lay below.
    alone: &'a Image,
    old: &'a Image,
    new: &'a Image,
    /// Both without what they share: a hole in both is the same in both.
    old_own: Concat<'a>,
    new_own: Concat<'a>,
    /// The top's. Only whole granules are written: the layer fills nothing up, which it could only from one of the
    /// chains, and the content must be right with both.
    granule: u64,
    /// Whole stretches of so many bytes are written compressed.
    packed: Option<u64>,
    written: AtomicU64,
}

impl Job<'_> {
    fn piece(
        &self,
        plan: &Plan<'_>,
        piece: Piece<'_>,
        bufs: &mut (Buffer, Buffer),
        progress: &dyn Progress,
    ) -> Result<()> {
        let (mut at, end) = (piece.at, piece.at + piece.len);
        while at < end {
            let found = self.alone.extent(at, end - at)?;
            let hole_end = at + found.len;
            if found.kind == Kind::Hole {
                while at < hole_end {
                    let n = self.hole(at, hole_end - at, bufs)?;
                    at += n;
                    plan.advance(n, progress)?;
                }
            } else {
                at = hole_end;
                plan.advance(found.len, progress)?;
            }
        }
        Ok(())
    }

    /// Deals with the front of a hole of the top; answers how many bytes that was.
    fn hole(&self, at: u64, len: u64, bufs: &mut (Buffer, Buffer)) -> Result<u64> {
        let (n, same) = self.look(at, len)?;
        let whole = if n == len { n } else { n - n % self.granule };
        if same && whole > 0 {
            return Ok(whole);
        }
        let most = CHUNK.max(self.packed.unwrap_or(self.granule));
        let n = n.next_multiple_of(self.granule).min(most - at % most).min(len);
        let (wanted, there) = (bufs.0.get(n as usize), bufs.1.get(n as usize));
        self.old.read(at, wanted)?;
        self.new.read(at, there)?;
        let unit = self.packed.filter(|unit| at.is_multiple_of(*unit)).unwrap_or(self.granule) as usize;
        let mut done = 0;
        while done < wanted.len() {
            let (run, same) = same_prefix(&wanted[done..], &there[done..], unit);
            if !same {
                self.put(at + done as u64, &wanted[done..done + run], unit)?;
            }
            done += run;
        }
        Ok(n)
    }

    /// How far, from `at` on, the chains are known to be the same, or not known to be.
    fn look(&self, at: u64, max: u64) -> Result<(u64, bool)> {
        let (old, _) = self.old_own.extent(at, max)?;
        let (new, _) = self.new_own.extent(at, old.len)?;
        if (old.kind, new.kind) == (Kind::Hole, Kind::Hole) {
            return Ok((new.len, true));
        }
        let old = self.old.extent(at, new.len)?;
        let new = self.new.extent(at, old.len)?;
        Ok((new.len, old.kind != Kind::Data && new.kind != Kind::Data))
    }

    /// Writes whole granules into the top.
    fn put(&self, at: u64, bytes: &[u8], unit: usize) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let here = at + done as u64;
            let (n, zero) = zero_prefix(&bytes[done..], unit);
            let run = &bytes[done..done + n];
            if zero {
                self.zero(here, run)
            } else if self.packed.is_some_and(|packed| self.is_whole(here, run, packed)) {
                self.top.layer.write_compressed(here, run)
            } else {
                self.top.layer.write(here, run)
            }
            .map_err(|error| error.image(&self.top.name))?;
            self.written.fetch_add(n as u64, Ordering::Relaxed);
            done += n;
        }
        Ok(())
    }

    fn is_whole(&self, at: u64, run: &[u8], unit: u64) -> bool {
        let end = at + run.len() as u64;
        at.is_multiple_of(unit) && (end.is_multiple_of(unit) || end == self.old.size())
    }

    /// Makes the top say zero.
    fn zero(&self, at: u64, zeros: &[u8]) -> Result<()> {
        let top: &dyn Layer = self.top.layer.as_ref();
        let mut done = 0;
        while done < zeros.len() {
            let (here, rest) = (at + done as u64, &zeros[done..]);
            let erased = top.erase(here, rest.len() as u64, Erase::Zero)?;
            // A layer that has no parent yet and cannot say zero takes a hole for it, which it is no longer over the
            // new one.
            let said = match erased {
                0 => 0,
                n => {
                    let found = top.extent(here, n)?;
                    if found.kind == Kind::Hole { 0 } else { found.len as usize }
                }
            };
            if said > 0 {
                done += said;
            } else {
                top.write(here, rest)?;
                done = zeros.len();
            }
        }
        Ok(())
    }
}
