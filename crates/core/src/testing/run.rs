//! Runs a script on a disk, one operation after the other or several at once, and notes in its history what came of it.

use std::sync::Arc;
use std::thread;

use super::bench::{Opener, image};
use super::history::{BITMAP, Facts, History, Value, snapshot_name};
use super::script::{Op, fill};
use crate::{Erase, Error, ErrorKind, Folder, Image, Layer, NewSnapshot, ParentRef, Prealloc, Quiet, Result};

/// So many snapshots are kept at most.
const SNAPSHOTS: usize = 3;

/// A disk that a script runs on, opened again where the script says so.
pub(super) struct Run<'a> {
    pub(super) folder: Arc<dyn Folder>,
    pub(super) reopen: &'a Opener<'a>,
    pub(super) parent: Option<&'a Arc<dyn Layer>>,
    pub(super) image: Image,
}

/// What an operation on some guest bytes did.
enum Did {
    Nothing,
    Gave(Value),
    Showed(Vec<u8>),
}

impl<'a> Run<'a> {
    /// Opens it.
    pub(super) fn open(
        folder: Arc<dyn Folder>,
        reopen: &'a Opener<'a>,
        parent: Option<&'a Arc<dyn Layer>>,
    ) -> Result<Self> {
        let image = image(reopen(&folder)?, parent)?;
        Ok(Run { folder, reopen, parent, image })
    }

    /// Does one operation. Operation numbers begin at 1 and grow.
    pub(super) fn step(&mut self, history: &mut History, number: u64, op: Op) -> Result<()> {
        match op {
            Op::Reopen => {
                history.step(number, false);
                self.image.close()?;
                self.image = image((self.reopen)(&self.folder)?, self.parent)?;
                history.durable(number, number);
                Ok(())
            }
            Op::Flush => {
                history.step(number, false);
                self.image.flush()?;
                history.durable(number, number);
                Ok(())
            }
            Op::Write { .. } | Op::Compressed { .. } | Op::Erase { .. } => {
                history.step(number, false);
                let (did, done) = on_range(&self.image, number, op);
                note(history, number, op, did, done.is_ok());
                done
            }
            _ => whole(&self.image, history, number, op),
        }
    }

    /// Does operations that have nothing to do with each other in several threads, flushes among them. Calls `flushed`
    /// with the number of a flush that has ended.
    pub(super) fn together(
        &self,
        history: &mut History,
        first: u64,
        ops: &[Op],
        threads: usize,
        flushed: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        history.step(first + ops.len() as u64 - 1, false);
        let work = |thread: usize| {
            let mut done = Vec::new();
            for (number, op) in (first..).zip(ops).skip(thread).step_by(threads) {
                let (did, result) = match op {
                    Op::Flush => (Did::Nothing, self.image.flush()),
                    op => on_range(&self.image, number, *op),
                };
                if *op == Op::Flush && result.is_ok() {
                    flushed(number);
                }
                done.push((number, *op, did, result));
            }
            done
        };
        let mut done: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        done.sort_by_key(|(number, ..)| *number);
        for (number, op, did, result) in done {
            note(history, number, op, did, result.is_ok());
            result?;
            if op == Op::Flush {
                history.durable(number, first - 1);
            }
        }
        Ok(())
    }
}

fn unsupported(done: &Result<()>) -> bool {
    done.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unsupported)
}

fn on_range(image: &Image, number: u64, op: Op) -> (Did, Result<()>) {
    // A script does not know which size a snapshot brought back.
    if op.range().is_none_or(|range| range.end > image.size()) {
        return (Did::Nothing, Ok(()));
    }
    match op {
        Op::Write { at, len } | Op::Compressed { at, len } => {
            let mut buf = vec![0; len as usize];
            fill(&mut buf, at, number);
            let done = if matches!(op, Op::Write { .. }) {
                image.write(at, &buf)
            } else {
                image.write_compressed(at, &buf)
            };
            if unsupported(&done) { (Did::Nothing, Ok(())) } else { (Did::Gave(Value::Stamp(number)), done) }
        }
        Op::Erase { at, len, how: Erase::Reveal } => {
            let mut now = vec![0; len as usize];
            match image.erase(at, len, Erase::Reveal).and_then(|()| image.read(at, &mut now)) {
                Ok(()) => (Did::Showed(now), Ok(())),
                Err(error) => (Did::Gave(Value::Below), Err(error)),
            }
        }
        Op::Erase { at, len, how } => (Did::Gave(Value::Zero), image.erase(at, len, how)),
        _ => (Did::Nothing, Ok(())),
    }
}

fn note(history: &mut History, number: u64, op: Op, did: Did, done: bool) {
    let Some(range) = op.range() else { return };
    match did {
        Did::Nothing => {}
        Did::Gave(value) => history.give(number, range, value, done),
        Did::Showed(bytes) => history.revealed(number, range.start, &bytes),
    }
}

/// Does what changes the disk as a whole.
fn whole(image: &Image, history: &mut History, number: u64, op: Op) -> Result<()> {
    let mut facts = history.now().clone();
    let layer = &image.links()[0].layer;
    let nth = |nth: usize| facts.snapshots.get(nth % facts.snapshots.len().max(1)).copied();
    let snapshots =
        || layer.as_snapshots().ok_or_else(|| Error::unsupported("there are no snapshots in this format"));
    let bitmaps =
        || layer.as_bitmaps().ok_or_else(|| Error::unsupported("there are no bitmaps in this format"));
    let named = |of: u64| snapshot_name(of);
    let (chosen, done) = match op {
        Op::Resize { size } => (0, image.resize(size, Prealloc::Off)),
        Op::Snapshot if facts.snapshots.len() < SNAPSHOTS => {
            let new = NewSnapshot { name: named(number), ..NewSnapshot::default() };
            (number, snapshots().and_then(|snapshots| snapshots.create(&new)).map(drop))
        }
        Op::Apply { nth: which } if !facts.snapshots.is_empty() => {
            let of = nth(which).unwrap_or(0);
            (of, snapshots().and_then(|snapshots| snapshots.apply(&named(of))))
        }
        Op::Delete { nth: which } if !facts.snapshots.is_empty() => {
            let of = nth(which).unwrap_or(0);
            (of, snapshots().and_then(|snapshots| snapshots.delete(&named(of))))
        }
        Op::Hide { hidden } => (0, layer.set_hidden(hidden)),
        Op::Rename { len } if facts.parent.is_some() => {
            let name = "p".repeat(len).into();
            let parent = ParentRef { candidates: vec![name], ..layer.parent().unwrap_or_default() };
            (0, layer.set_parent(Some(&parent)))
        }
        Op::Clear if facts.snapshots.is_empty() => (0, layer.clear()),
        Op::Compact => (0, layer.compact(&Quiet)),
        Op::Bitmap => match facts.bitmap {
            // A bit for each sector, or as many as the format likes.
            None => (
                0,
                bitmaps().and_then(|maps| maps.add(BITMAP, number.is_multiple_of(2).then_some(512), true)),
            ),
            Some(_) => (0, bitmaps().and_then(|maps| maps.clear(BITMAP))),
        },
        Op::NoBitmap if facts.bitmap.is_some() => (0, bitmaps().and_then(|maps| maps.remove(BITMAP))),
        _ => {
            history.step(number, false);
            return Ok(());
        }
    };
    let unsupported = unsupported(&done);
    history.step(number, !unsupported);
    if unsupported {
        return Ok(());
    }
    match op {
        Op::Resize { size } => {
            facts.size = if done.is_ok() { layer.size() } else { size };
            let old = history.now().size / super::script::SECTOR;
            history.changed(number, facts, |_, sector| (sector >= old).then_some(Value::Zero));
        }
        Op::Snapshot => {
            facts.snapshots.push(number);
            history.changed(number, facts, |_, _| None);
            // It holds what was written before, which is therefore there.
            history.durable(number, number);
        }
        Op::Apply { .. } => {
            facts.size = history.size_at(chosen);
            history.changed(number, facts, |history, sector| Some(history.value_at(sector, chosen)));
        }
        Op::Delete { .. } => {
            facts.snapshots.retain(|of| *of != chosen);
            history.changed(number, facts, |_, _| None);
        }
        Op::Bitmap | Op::NoBitmap => {
            facts.bitmap = (op == Op::Bitmap).then_some(number);
            history.changed(number, facts, |_, _| None);
        }
        Op::Clear => history.changed(number, facts, |_, _| Some(Value::Below)),
        _ => {
            let told = Facts::of(layer);
            facts = Facts { snapshots: facts.snapshots, bitmap: facts.bitmap, ..told };
            if let Op::Hide { hidden } = op {
                facts.hidden = Some(hidden);
            }
            if let Op::Rename { len } = op {
                facts.parent = Some("p".repeat(len).into());
            }
            history.changed(number, facts, |_, _| None);
        }
    }
    done
}
