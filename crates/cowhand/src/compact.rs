//! `compact`: what an image holds although it need not loses its space, and the file its unused end.
//!
//! What reads zero is taken away where nothing below shows through, and stays hidden where something does. So the
//! disk's content is the same at every moment, and this can be stopped anywhere and run again.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use cowhand_core::{Erase, Error, Image, Kind, Progress, Result, Storage, is_zero};

use crate::buffer::Buffer;
use crate::convert::{PIECE, READ, SPARSE, workers};
use crate::open::{Open, open};
use crate::plan::{Concat, Plan, What};

/// How an image is compacted.
#[derive(Clone, Debug, Default)]
pub struct Compact {
    /// How the image and its chain are opened; it is writable always.
    pub open: Open,
    /// Take away too what the layers below have all the same, byte for byte.
    pub same_as_parent: bool,
    /// Threads; `None`: as many as there are processors, at most 8.
    pub workers: Option<usize>,
}

/// What a file takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The file's length.
    pub len: u64,
    /// What the file system keeps for it.
    pub physical: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Guest bytes that the image held and does not any more.
    pub freed: u64,
    /// The image's file as it was.
    pub before: Taken,
    /// The image's file now.
    pub after: Taken,
}

/// Compacts `path`, its parents left alone. `progress` is told how much of the disk was looked at, and then what the
/// format moves within the file. An error, or a kill, leaves the disk's content as it is.
pub fn compact(path: &Path, how: &Compact, progress: &dyn Progress) -> Result<Compacted> {
    let chain = open(path, &Open { writable: true, ..how.open.clone() })?;
    let file = chain.watched().into_iter().next().map(|file| file.storage);
    let taken = || match &file {
        Some(file) => Taken::by(file.as_ref()).map_err(|error| error.image(path.display())),
        None => Ok(Taken::default()), // never: the image's own file was opened
    };
    let before = taken()?;
    chain.top().layer.keeps_looks();
    let freed = compact_chain(&chain, how.same_as_parent, workers(how.workers), progress)?;
    chain.close()?;
    Ok(Compacted { freed, before, after: taken()? })
}

impl Taken {
    fn by(file: &dyn Storage) -> Result<Taken> {
        let failed = |error| Error::io("cannot find the size", error);
        Ok(Taken { len: file.len().map_err(failed)?, physical: file.physical_size().map_err(failed)? })
    }
}

/// Compacts the chain's top, which is open for writing. Answers the guest bytes that were taken away.
pub(crate) fn compact_chain(
    chain: &Image,
    same_as_parent: bool,
    workers: usize,
    progress: &dyn Progress,
) -> Result<u64> {
    let source = Concat::new([chain]).above(1);
    let top = chain.top();
    // Only whole units give their space back.
    let unit = top.layer.details().cluster_size.unwrap_or(SPARSE).max(chain.granule());
    let below = match chain.links().get(1..).unwrap_or_default() {
        [] => None,
        links => Some(Image::new(links.to_vec())?),
    };
    let job = Job { chain, below, same_as_parent, unit, freed: AtomicU64::new(0) };
    let plan = Plan::new(&source, unit, PIECE.max(unit), 0);
    plan.run(workers, |plan| {
        let mut view = View::default();
        while let Some(piece) = plan.next()? {
            if matches!(piece.what, What::Data | What::Verbatim { .. }) {
                job.piece(piece.at, piece.at + piece.len, &mut view)?;
            }
            plan.advance(piece.len, progress)?;
        }
        Ok(())
    })?;
    top.layer.compact(progress).map_err(|error| error.image(&top.name))?;
    Ok(job.freed.into_inner())
}

/// What may become of a unit, the most that may be done first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// What lies below is the same.
    Reveal,
    /// It is zero, and what lies below is not.
    Hide,
    Stay,
}

struct Job<'a> {
    chain: &'a Image,
    below: Option<Image>,
    same_as_parent: bool,
    unit: u64,
    freed: AtomicU64,
}

impl Job<'_> {
    /// Deals with `at..end`, which begins at a unit.
    fn piece(&self, at: u64, end: u64, view: &mut View) -> Result<()> {
        view.begin(end);
        let (mut from, mut fate, mut here) = (at, Fate::Stay, at);
        while here < end {
            let next = (here + self.unit).min(end);
            let found = self.fate(here, next, view)?;
            if found != fate {
                self.take(from, here, fate)?;
                (from, fate) = (here, found);
            }
            here = next;
        }
        self.take(from, end, fate)
    }

    /// What may become of `at..end`; what the top does not hold as data there has no say.
    fn fate(&self, at: u64, end: u64, view: &mut View) -> Result<Fate> {
        let (mut here, mut fate) = (at, Fate::Reveal);
        while here < end && fate != Fate::Stay {
            let (kind, len) = self.known_extent(here, end, view)?;
            let n = len.min(READ);
            if kind == Kind::Data {
                fate = fate.max(self.fate_of_data(here, n, view)?);
            }
            here += if kind == Kind::Data { n } else { len };
        }
        Ok(fate)
    }

    fn fate_of_data(&self, at: u64, len: u64, view: &mut View) -> Result<Fate> {
        let mine = view.own.get(self.chain, at, len)?;
        let zero = is_zero(mine);
        let Some(below) = &self.below else {
            return Ok(if zero { Fate::Hide } else { Fate::Stay });
        };
        if !zero && !self.same_as_parent {
            return Ok(Fate::Stay);
        }
        Ok(match is_same(below, at, mine, zero, &mut view.below)? {
            true => Fate::Reveal,
            false if zero => Fate::Hide,
            false => Fate::Stay,
        })
    }

    /// As [`Job::top_extent`], from what is known already: asking a file for its holes costs as much as reading a unit.
    fn known_extent(&self, at: u64, end: u64, view: &mut View) -> Result<(Kind, u64)> {
        if at < view.known.0 || at >= view.known.1 {
            let (kind, len) = self.top_extent(at, view.own.end)?;
            view.known = (at, at + len, kind);
        }
        Ok((view.known.2, view.known.1.min(end) - at))
    }

    fn top_extent(&self, at: u64, end: u64) -> Result<(Kind, u64)> {
        let found = self.chain.extent_above(at, end - at, 1)?;
        Ok((found.kind, found.len))
    }

    /// Takes away what the top holds as data of `at..end`.
    fn take(&self, at: u64, end: u64, fate: Fate) -> Result<()> {
        if fate == Fate::Stay {
            return Ok(());
        }
        let mut here = at;
        while here < end {
            let (kind, len) = self.top_extent(here, end)?;
            if kind == Kind::Data {
                let mut done = if fate == Fate::Reveal { self.erase(here, len, Erase::Reveal)? } else { 0 };
                let zero = fate == Fate::Hide || !self.same_as_parent;
                if done < len && (zero || self.is_zero(here + done, len - done)?) {
                    done += self.erase(here + done, len - done, Erase::Free)?;
                }
                self.freed.fetch_add(done, Ordering::Relaxed);
            }
            here += len;
        }
        Ok(())
    }

    /// Whether hiding is as good as revealing: where the format cannot reveal, what is not zero stays.
    fn is_zero(&self, at: u64, len: u64) -> Result<bool> {
        let mut window = Window { end: at + len, ..Window::default() };
        let mut done = 0;
        while done < len {
            let n = (len - done).min(READ);
            if !is_zero(window.get(self.chain, at + done, n)?) {
                return Ok(false);
            }
            done += n;
        }
        Ok(true)
    }

    /// Erases a prefix. What cannot be said at this granularity stays as it is: writing zeros over zeros gains nothing.
    fn erase(&self, at: u64, len: u64, how: Erase) -> Result<u64> {
        let top = self.chain.top();
        let mut done = 0;
        while done < len {
            match top.layer.erase(at + done, len - done, how).map_err(|error| error.image(&top.name))? {
                0 => break,
                more => done += more,
            }
        }
        Ok(done)
    }
}

/// Whether `below` reads as `mine` from `at` on; past its end it is zero. `zero`: that is what `mine` is.
fn is_same(below: &Image, at: u64, mine: &[u8], zero: bool, window: &mut Window) -> Result<bool> {
    let inside = below.size().saturating_sub(at).min(mine.len() as u64);
    let (mine, past) = mine.split_at(inside as usize);
    if !zero && !is_zero(past) {
        return Ok(false);
    }
    let mut done = 0;
    while done < mine.len() {
        let here = at + done as u64;
        let found = below.extent(here, (mine.len() - done) as u64)?;
        let piece = &mine[done..done + found.len as usize];
        let same = match found.kind {
            Kind::Data => {
                window.end = window.end.min(below.size());
                window.get(below, here, found.len)? == piece
            }
            Kind::Zero | Kind::Hole => zero || is_zero(piece),
        };
        if !same {
            return Ok(false);
        }
        done += piece.len();
    }
    Ok(true)
}

/// What one thread has read of the disk, and of what lies below its top.
struct View {
    own: Window,
    below: Window,
    /// What the top has from here to there.
    known: (u64, u64, Kind),
}

impl Default for View {
    fn default() -> View {
        View { own: Window::default(), below: Window::default(), known: (0, 0, Kind::Hole) }
    }
}

impl View {
    /// From here on, nothing past `end` is asked for.
    fn begin(&mut self, end: u64) {
        for window in [&mut self.own, &mut self.below] {
            (window.len, window.end) = (0, end);
        }
        self.known = (0, 0, Kind::Hole);
    }
}

/// Bytes that were read ahead, so that small units do not take a call each.
#[derive(Default)]
struct Window {
    buf: Buffer,
    at: u64,
    len: u64,
    end: u64,
}

impl Window {
    /// `len` bytes at `at`, at most `READ`, not past `end`.
    fn get(&mut self, image: &Image, at: u64, len: u64) -> Result<&[u8]> {
        if at < self.at || at + len > self.at + self.len {
            self.len = 0;
            let n = (self.end - at).min(READ);
            image.read(at, self.buf.get(n as usize))?;
            (self.at, self.len) = (at, n);
        }
        let skip = (at - self.at) as usize;
        Ok(&self.buf.get(self.len as usize)[skip..skip + len as usize]) // never out of bounds: at most READ bytes are asked for
    }
}
