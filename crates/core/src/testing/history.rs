//! Every value each sector was given, and what the disk as a whole was, and which of it may be seen: the judge of crash
//! and fault tests.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::bench::{Failure, image};
use super::script::{Op, SECTOR, describe, stamp_of};
use crate::{Image, Kind, Layer, Link, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// The parent's bytes, or zeros.
    Below,
    Zero,
    /// The stamp of this version.
    Stamp(u64),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Which operation gave it, from 1.
    op: u64,
    value: Value,
    /// The operation said it went well.
    done: bool,
    /// The operation changes the disk as a whole, and is durable when it has ended.
    whole: bool,
}

/// What is true of the disk as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) size: u64,
    /// The operations that made the snapshots that are there.
    pub(super) snapshots: Vec<u64>,
    pub(super) hidden: Option<bool>,
    /// The parent's name in the file.
    pub(super) parent: Option<PathBuf>,
    /// The operation since which there is an empty bitmap that records writes.
    pub(super) bitmap: Option<u64>,
}

/// The name of the bitmap.
pub(super) const BITMAP: &str = "bench";

impl Facts {
    pub(super) fn of(layer: &Arc<dyn Layer>) -> Facts {
        Facts {
            size: layer.size(),
            snapshots: Vec::new(),
            hidden: layer.hidden(),
            parent: layer.parent().and_then(|parent| parent.candidates.into_iter().next()),
            bitmap: None,
        }
    }
}

/// What a disk holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Held {
    facts: Facts,
    /// Guest offsets, and the bytes where anything was ever written.
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Held {
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pieces.iter().map(|(at, bytes)| (*at, bytes.as_slice()))
    }
}

/// Operations that run at the same time, or one.
#[derive(Clone, Copy, Debug)]
struct Step {
    last: u64,
    whole: bool,
}

/// How far a script had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    /// What was done up to this operation is durable.
    pub(super) flushed: u64,
    /// The operations up to this one had ended, and those of the step behind it may have begun.
    pub(super) reached: u64,
}

const CHUNK: u64 = 65536;
const SECTOR_LEN: usize = SECTOR as usize;

/// What the sectors of one disk were given. Nothing else was ever written to it.
#[derive(Debug)]
pub(super) struct History {
    below: Vec<u8>,
    sectors: BTreeMap<u64, Vec<Entry>>,
    facts: Vec<(u64, Facts)>,
    steps: Vec<Step>,
    /// (operation, what was done up to which operation is durable when it has ended)
    durable: Vec<(u64, u64)>,
}

/// All that a layer holds, as one that reads it piece by piece.
pub(super) fn read_all(layer: &Arc<dyn Layer>, size: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size as usize];
    let len = layer.size().min(size) as usize;
    image(layer.clone(), None)?.read(0, &mut bytes[..len])?;
    Ok(bytes)
}

/// The name of the snapshot that an operation makes.
pub(super) fn snapshot_name(op: u64) -> String {
    format!("snapshot of {op}")
}

impl History {
    /// An untouched disk over `parent`.
    pub(super) fn new(disk: &Image, parent: Option<&Arc<dyn Layer>>) -> Result<History> {
        let below = match parent {
            Some(parent) => read_all(parent, parent.size().next_multiple_of(SECTOR))?,
            None => Vec::new(),
        };
        let facts = vec![(0, Facts::of(&disk.links()[0].layer))];
        Ok(History { below, sectors: BTreeMap::new(), facts, steps: Vec::new(), durable: Vec::new() })
    }

    pub(super) fn below(&self, at: u64, len: usize) -> &[u8] {
        const ZEROS: [u8; SECTOR_LEN] = [0; SECTOR_LEN];
        self.below.get(at as usize..at as usize + len).unwrap_or(&ZEROS[..len.min(SECTOR_LEN)])
    }

    /// Operations up to `last` run now, at the same time where they are several. `whole`: it is one that changes the
    /// disk as a whole, and a power cut leaves what was before it or what is after it.
    pub(super) fn step(&mut self, last: u64, whole: bool) {
        self.steps.push(Step { last, whole });
    }

    /// When operation `op` has ended, all that was done up to `upto` is durable.
    pub(super) fn durable(&mut self, op: u64, upto: u64) {
        self.durable.push((op, upto));
    }

    /// Operation `op` gave `range` a value. `done`: it said that it went well.
    pub(super) fn give(&mut self, op: u64, range: Range<u64>, value: Value, done: bool) {
        for sector in range.start / SECTOR..range.end.div_ceil(SECTOR) {
            self.sectors.entry(sector).or_default().push(Entry { op, value, done, whole: false });
        }
    }

    /// Operation `op` revealed bytes, and then these were read: a layer reveals what it can.
    pub(super) fn revealed(&mut self, op: u64, at: u64, bytes: &[u8]) {
        for (sector, held) in (at / SECTOR..).zip(bytes.chunks(SECTOR_LEN)) {
            if held == self.below(sector * SECTOR, held.len()) && self.sectors.contains_key(&sector) {
                let start = sector * SECTOR;
                self.give(op, start..start + 1, Value::Below, true);
            }
        }
    }

    /// Operation `op` made the disk as a whole like this. `value` answers what a sector of the size it has now, which
    /// was touched before or is new, holds; `None`: what it held.
    pub(super) fn changed(&mut self, op: u64, facts: Facts, value: impl Fn(&History, u64) -> Option<Value>) {
        let old = self.now().size / SECTOR;
        let new = facts.size.div_ceil(SECTOR);
        let mut given: Vec<(u64, Value)> = Vec::new();
        for sector in self.sectors.range(..old.min(new)).map(|(sector, _)| *sector).chain(old..new) {
            given.extend(value(self, sector).map(|value| (sector, value)));
        }
        for (sector, value) in given {
            let entry = Entry { op, value, done: true, whole: true };
            self.sectors.entry(sector).or_default().push(entry);
        }
        self.facts.push((op, facts));
    }

    pub(super) fn now(&self) -> &Facts {
        self.facts_at(u64::MAX)
    }

    fn facts_at(&self, op: u64) -> &Facts {
        let known = self.facts.iter().rev().find(|(from, _)| *from <= op);
        &known.expect("the first holds from operation 0 on").1
    }

    /// The disk's bytes when operation `op` had ended.
    pub(super) fn size_at(&self, op: u64) -> u64 {
        self.facts_at(op).size
    }

    /// What a sector held when operation `op` had ended.
    pub(super) fn value_at(&self, sector: u64, op: u64) -> Value {
        let entries = self.sectors.get(&sector).map_or(&[][..], Vec::as_slice);
        entries
            .iter()
            .rev()
            .find(|entry| entry.done && entry.op <= op)
            .map_or(Value::Below, |entry| entry.value)
    }

    /// Up to which operation all is durable when `reached` has ended.
    pub(super) fn moment(&self, reached: u64) -> Moment {
        let durable = self.durable.iter().filter(|(op, _)| *op <= reached);
        Moment { flushed: durable.map(|(_, upto)| *upto).max().unwrap_or(0), reached }
    }

    /// Judges the disk: each sector holds what was flushed, or what it was given later; the disk as a whole is as the
    /// operations that have ended made it, or as the one that had begun would have; and so do the snapshots. Answers
    /// what is held.
    pub(super) fn check(&self, disk: &Image, moment: Moment) -> Result<Held, Failure> {
        let held = self.check_disk(disk, moment)?;
        let layer = &disk.links()[0].layer;
        for op in &held.facts.snapshots {
            let name = snapshot_name(*op);
            let mut links = disk.links().to_vec();
            let Some(snapshots) = layer.as_snapshots() else { break };
            links[0] = Link { layer: snapshots.open(&name)?, ..links[0].clone() };
            let then = Moment { flushed: *op, reached: *op };
            self.content(&Image::new(links)?, then, *op)
                .map_err(|failure| failure.during(format!("'{name}'")))?;
        }
        Ok(held)
    }

    /// As [`History::check`], without looking into the snapshots that are listed.
    pub(super) fn check_disk(&self, disk: &Image, moment: Moment) -> Result<Held, Failure> {
        let Moment { flushed, reached } = moment;
        match self.steps.iter().find(|step| step.last > reached) {
            Some(Step { last, whole: true }) => self.judge(disk, moment, reached).or_else(|before| {
                let after = Moment { flushed: flushed.max(self.moment(*last).flushed), reached: *last };
                self.judge(disk, after, *last).map_err(|failure| {
                    failure.during(format!("not as before operation {last} ({before}), nor as after it"))
                })
            }),
            step => self.judge(disk, moment, step.map_or(u64::MAX, |step| step.last)),
        }
    }

    /// Judges the disk, no operation after `limit` having begun.
    fn judge(&self, disk: &Image, moment: Moment, limit: u64) -> Result<Held, Failure> {
        let wanted = self.facts_at(moment.reached);
        let layer = &disk.links()[0].layer;
        let facts = Facts { snapshots: wanted.snapshots.clone(), bitmap: wanted.bitmap, ..Facts::of(layer) };
        if facts != *wanted {
            return Err(Failure::new(format!("the disk is {facts:?}, not {wanted:?}")));
        }
        let pieces = self.content(disk, moment, limit)?;
        self.bitmap(layer, wanted, &pieces).map_err(|failure| failure.during("the bitmap"))?;
        // One that cannot be trusted does not tell since when it is there.
        let facts = Facts { bitmap: None, ..facts };
        let Some(snapshots) = layer.as_snapshots() else { return Ok(Held { facts, pieces }) };
        let list: Vec<String> = snapshots.list()?.into_iter().map(|snapshot| snapshot.name).collect();
        let names: Vec<String> = wanted.snapshots.iter().map(|op| snapshot_name(*op)).collect();
        if list != names {
            return Err(Failure::new(format!("the snapshots are {list:?}, not {names:?}")));
        }
        Ok(Held { facts, pieces })
    }

    /// The bitmap is there, and does not claim to know what it does not: either it says that it cannot be trusted, or
    /// what was written since it was empty is dirty.
    fn bitmap(&self, layer: &Arc<dyn Layer>, facts: &Facts, held: &[(u64, Vec<u8>)]) -> Result<(), Failure> {
        let Some(bitmaps) = layer.as_bitmaps() else { return Ok(()) };
        // Others are the test's own.
        let found = bitmaps.list()?.into_iter().find(|info| info.name == BITMAP);
        let (since, info) = match (facts.bitmap, found) {
            (None, None) => return Ok(()),
            (Some(since), Some(info)) => (since, info),
            (wanted, found) => {
                return Err(Failure::new(format!("the bitmap is {found:?}, where {wanted:?} was wanted")));
            }
        };
        if info.inconsistent {
            return Ok(());
        }
        let mut dirty: Vec<Range<u64>> = Vec::new();
        bitmaps.dirty(BITMAP, &mut |range| {
            dirty.push(range);
            Ok(())
        })?;
        for (at, bytes) in held {
            for (sector, held) in (at / SECTOR..).zip(bytes.chunks(SECTOR_LEN)) {
                let start = sector * SECTOR;
                let written =
                    stamp_of(held).filter(|(number, version)| *number == sector && *version > since);
                if let Some((_, version)) = written
                    && !dirty.iter().any(|range| range.contains(&start))
                {
                    return Err(Failure::new(format!(
                        "empty since operation {since}, it does not know that sector {sector} was written by {version}"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Judges each sector. Answers the bytes that were ever touched.
    fn content(&self, disk: &Image, moment: Moment, limit: u64) -> Result<Vec<(u64, Vec<u8>)>, Failure> {
        let size = self.facts_at(moment.reached).size;
        if disk.size() != size {
            return Err(Failure::new(format!("the disk has {} bytes, not {size}", disk.size())));
        }
        let mut touched = Vec::new();
        let mut at = 0;
        while at < size {
            let chunk_end = (at / CHUNK + 1) * CHUNK;
            if self.sectors.range(at / SECTOR..chunk_end / SECTOR).next().is_some() {
                let mut bytes = vec![0; (chunk_end.min(size) - at) as usize];
                disk.read(at, &mut bytes)?;
                self.check_bytes(at, &bytes, moment, limit)?;
                touched.push((at, bytes));
                at = chunk_end;
            } else {
                let end = self
                    .sectors
                    .range(at / SECTOR..)
                    .next()
                    .map_or(size, |(sector, _)| sector * SECTOR / CHUNK * CHUNK)
                    .min(size);
                at += self.check_untouched(disk, at, end, moment, limit)?;
            }
        }
        Ok(touched)
    }

    /// Where nothing was ever written the top has nothing, or what lies below. Answers how far it looked.
    fn check_untouched(
        &self,
        disk: &Image,
        at: u64,
        end: u64,
        moment: Moment,
        limit: u64,
    ) -> Result<u64, Failure> {
        let found = disk.extent_above(at, end - at, 1)?;
        if found.len == 0 || found.len > end - at {
            return Err(Failure::new(format!(
                "the extent at {at} has {} bytes where {} were asked for",
                found.len,
                end - at
            )));
        }
        if found.kind == Kind::Hole {
            return Ok(found.len);
        }
        let mut bytes = vec![0; found.len.min(CHUNK) as usize];
        // Whole sectors, so that each is judged whole; an extent ends where it likes.
        let len = bytes.len().next_multiple_of(SECTOR_LEN).min((end - at) as usize);
        bytes.resize(len, 0);
        disk.read(at, &mut bytes)?;
        self.check_bytes(at, &bytes, moment, limit)?;
        Ok(len as u64)
    }

    /// A sector's bytes are this value.
    pub(super) fn is(&self, sector: u64, held: &[u8], value: Value) -> bool {
        match value {
            Value::Below => held == self.below(sector * SECTOR, held.len()),
            Value::Zero => crate::is_zero(held),
            Value::Stamp(version) => stamp_of(held) == Some((sector, version)),
        }
    }

    /// Judges whole sectors from `at` on.
    fn check_bytes(&self, at: u64, bytes: &[u8], moment: Moment, limit: u64) -> Result<(), Failure> {
        let mut touched = self.sectors.range(at / SECTOR..).peekable();
        for (sector, held) in (at / SECTOR..).zip(bytes.chunks(SECTOR_LEN)) {
            let entries = touched.next_if(|(number, _)| **number == sector);
            let entries = entries.map_or(&[][..], |(_, entries)| entries.as_slice());
            let begun = match entries.last() {
                Some(last) if last.op > limit => {
                    &entries[..entries.partition_point(|entry| entry.op <= limit)]
                }
                _ => entries,
            };
            let durable = |entry: &Entry| {
                entry.done && entry.op <= if entry.whole { moment.reached } else { moment.flushed }
            };
            let flushed = begun.iter().rposition(durable);
            let allowed = &begun[flushed.unwrap_or(0)..];
            let below = flushed.is_none().then_some(Value::Below);
            if below
                .into_iter()
                .chain(allowed.iter().map(|entry| entry.value))
                .any(|value| self.is(sector, held, value))
            {
                continue;
            }
            let mut wanted: Vec<String> =
                below.map(|_| "what it was made with".to_owned()).into_iter().collect();
            wanted.extend(allowed.iter().map(|entry| match entry.value {
                Value::Below => format!("what lies below (operation {})", entry.op),
                Value::Zero => format!("zeros (operation {})", entry.op),
                Value::Stamp(version) if version == entry.op => format!("version {version}"),
                Value::Stamp(version) => format!("version {version} (operation {})", entry.op),
            }));
            let sort = match stamp_of(held) {
                Some((number, _)) if number != sector => "misplaced",
                Some(_) => "stale",
                None if crate::is_zero(held) => "lost",
                None => "mixed",
            };
            return Err(Failure::new(format!(
                "sector {sector} (byte {}) is {sort}: it holds {}; flushed up to operation {}, it may hold {}",
                sector * SECTOR,
                describe(held),
                moment.flushed,
                wanted.join(" or ")
            )));
        }
        Ok(())
    }
}

/// The script with its numbers, for a failure's text.
pub(super) fn list(script: &[Op]) -> String {
    (1..).zip(script).map(|(number, op): (u64, _)| format!("  {number:3}: {op:?}\n")).collect()
}
