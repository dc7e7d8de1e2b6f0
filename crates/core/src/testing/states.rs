//! What a power cut may leave of what a journal recorded.
//!
//! An epoch ends with each sync (of any file, or of the folder) and with the recording. Its crash states hold all that
//! is durable, and of what is not (which may reach back over several epochs, where another file was synced) any
//! selection of units: a 512-byte or 4 KiB unit holds what it held durably or one of the versions it had since; a
//! `set_len`, a large `punch` and a change of names are units of their own. A write past the end that is kept makes the file long
//! enough for it.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use super::Rng;
use super::crash::{Event, Files};
use crate::{MemoryFolder, MemoryStorage, Storage};

/// Which crash states are made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// For what is chosen at random.
    pub seed: u64,
    /// The bytes that a disk writes whole: 512 or 4096.
    pub unit: u64,
    /// In an epoch of up to this many units, all selections; in a larger one `random` ones.
    pub exhaustive: usize,
    /// How many random selections.
    pub random: usize,
    /// At most this many states of one epoch, chosen at random, "nothing" and "all" among them.
    pub per_epoch: usize,
    /// At most this many states at all.
    pub max_states: usize,
}

impl Default for Plan {
    /// The test model in full, with 512-byte units.
    fn default() -> Self {
        Plan { seed: 1, unit: 512, exhaustive: 12, random: 40, per_epoch: usize::MAX, max_states: usize::MAX }
    }
}

/// Which units of an epoch are kept. Numbers are positions among the epoch's events.
#[derive(Clone, Copy, Debug)]
enum Pick {
    Nothing,
    All,
    /// Up to this event.
    Prefix(usize),
    Without(usize),
    Alone(usize),
    /// Half of this event; the others up to it (`before`) or all.
    Torn {
        event: usize,
        first: bool,
        before: bool,
    },
    /// The number in a mixed radix of each unit's versions.
    Subset(u64),
    Random(u64),
}

#[derive(Debug)]
struct Epoch {
    number: usize,
    mark: Option<u64>,
    base: Files,
    events: Vec<Event>,
    /// For each event its units in order: (the unit's number in this epoch, which version of it this event makes).
    parts: Vec<Vec<(usize, u32)>>,
    /// How many versions each unit has.
    versions: Vec<u32>,
    unit: u64,
}

const LARGE: u64 = 256;

impl Epoch {
    fn new(number: usize, mark: Option<u64>, base: Files, events: Vec<Event>, unit: u64) -> Epoch {
        let mut versions: Vec<u32> = Vec::new();
        let mut known: BTreeMap<(usize, u64), usize> = BTreeMap::new();
        let mut parts = Vec::new();
        for event in &events {
            let mut own = Vec::new();
            match touched(event, unit) {
                Some((file, units)) => {
                    for at in units {
                        let id = *known.entry((file, at)).or_insert_with(|| {
                            versions.push(0);
                            versions.len() - 1
                        });
                        versions[id] += 1;
                        own.push((id, versions[id]));
                    }
                }
                None => {
                    versions.push(1);
                    own.push((versions.len() - 1, 1));
                }
            }
            parts.push(own);
        }
        Epoch { number, mark, base, events, parts, versions, unit }
    }

    fn picks(&self, plan: &Plan) -> Vec<Pick> {
        let mut picks = Vec::new();
        if !self.events.is_empty() {
            let last = self.events.len() - 1;
            for event in 0..self.events.len() {
                picks.extend([Pick::Without(event), Pick::Alone(event)]);
                if event != last {
                    picks.push(Pick::Prefix(event));
                }
                if self.parts[event].len() > 1 {
                    for (first, before) in [(true, true), (true, false), (false, true), (false, false)] {
                        picks.push(Pick::Torn { event, first, before });
                    }
                }
            }
            let all = self.versions.iter().try_fold(1u64, |all, n| all.checked_mul(u64::from(*n) + 1));
            match all
                .filter(|all| self.versions.len() <= plan.exhaustive && *all <= 1 << plan.exhaustive.min(20))
            {
                Some(all) => picks.extend((0..all).map(Pick::Subset)),
                None => {
                    let mut rng = Rng::new(plan.seed ^ self.number as u64);
                    picks.extend((0..plan.random).map(|_| Pick::Random(rng.any())));
                }
            }
        }
        let mut rng = Rng::new(!plan.seed ^ self.number as u64);
        let room = plan.per_epoch.saturating_sub(2);
        if picks.len() > room {
            for place in 0..room {
                let other = place + rng.below((picks.len() - place) as u64) as usize;
                picks.swap(place, other);
            }
            picks.truncate(room);
        }
        picks.extend([Pick::Nothing, Pick::All]);
        picks
    }

    /// The version each unit has; 0: the durable one.
    fn choose(&self, pick: Pick) -> Vec<u32> {
        let mut chosen = vec![0; self.versions.len()];
        let set = |chosen: &mut Vec<u32>, parts: &[(usize, u32)], back: u32| {
            for (unit, version) in parts {
                chosen[*unit] = version - back;
            }
        };
        match pick {
            Pick::Nothing => {}
            Pick::All => chosen.clone_from(&self.versions),
            Pick::Prefix(event) => self.parts[..=event].iter().for_each(|parts| set(&mut chosen, parts, 0)),
            Pick::Without(event) => {
                chosen.clone_from(&self.versions);
                set(&mut chosen, &self.parts[event], 1);
            }
            Pick::Alone(event) => set(&mut chosen, &self.parts[event], 0),
            Pick::Torn { event, first, before } => {
                let (one, two) = self.parts[event].split_at(self.parts[event].len() / 2);
                let (kept, lost) = if first { (one, two) } else { (two, one) };
                if before {
                    self.parts[..event].iter().for_each(|parts| set(&mut chosen, parts, 0));
                    set(&mut chosen, kept, 0);
                } else {
                    chosen.clone_from(&self.versions);
                    set(&mut chosen, lost, 1);
                }
            }
            Pick::Subset(mut number) => {
                for (choice, versions) in chosen.iter_mut().zip(&self.versions) {
                    let radix = u64::from(*versions) + 1;
                    *choice = (number % radix) as u32;
                    number /= radix;
                }
            }
            Pick::Random(seed) => {
                let mut rng = Rng::new(seed);
                let (n, of) = *rng.pick(&[(1, 8), (1, 2), (7, 8)]);
                for (choice, versions) in chosen.iter_mut().zip(&self.versions) {
                    if rng.chance(n, of) {
                        // The newest version most of the time, and any older one.
                        *choice = if rng.chance(2, 3) {
                            *versions
                        } else {
                            rng.below(u64::from(*versions) + 1) as u32
                        };
                    }
                }
            }
        }
        chosen
    }

    fn apply(&self, chosen: &[u32]) -> Files {
        let mut files = self.base.snapshot();
        for (event, parts) in self.events.iter().zip(&self.parts) {
            let kept = |part: &(usize, u32)| chosen[part.0] >= part.1;
            if parts.iter().all(kept) {
                apply(&mut files, event, None, self.unit);
                continue;
            }
            let mut first = 0;
            while first < parts.len() {
                let n = parts[first..].iter().take_while(|part| kept(part)).count();
                if n > 0 {
                    apply(&mut files, event, Some(first as u64..(first + n) as u64), self.unit);
                }
                first += n.max(1);
            }
        }
        files
    }
}

/// The file and units that an event writes; `None` for an event that is one unit of its own.
fn touched(event: &Event, unit: u64) -> Option<(usize, Range<u64>)> {
    let (file, at, len) = match event {
        Event::Write { file, at, bytes } => (*file, *at, bytes.len() as u64),
        Event::Zero { file, at, len, .. } if len / unit <= LARGE => (*file, *at, *len),
        _ => return None,
    };
    Some((file, at / unit..if len == 0 { at / unit } else { at.saturating_add(len).div_ceil(unit) }))
}

/// Does the event, or only some of its units (counted from its first), to `files`.
fn apply(files: &mut Files, event: &Event, units: Option<Range<u64>>, unit: u64) {
    let cut = |at: u64, len: u64| match &units {
        None => at..at.saturating_add(len),
        Some(units) => {
            let first = at / unit;
            ((first + units.start) * unit).max(at)..((first + units.end) * unit).min(at + len)
        }
    };
    let done = match event {
        Event::Write { file, at, bytes } => {
            let range = cut(*at, bytes.len() as u64);
            files.files[*file]
                .write_at(range.start, &bytes[(range.start - at) as usize..(range.end - at) as usize])
        }
        Event::Zero { file, at, len, grows } => {
            let range = cut(*at, *len);
            let file = &files.files[*file];
            let len = range.end - range.start;
            if *grows { file.zero(range.start, len) } else { file.punch(range.start, len) }.map(drop)
        }
        Event::SetLen { file, len } => files.files[*file].set_len(*len),
        Event::Name { from, to } => {
            files.rename(from.as_ref(), to.as_ref());
            Ok(())
        }
        Event::Sync { .. } | Event::SyncNames | Event::Mark(_) => Ok(()),
    };
    // It went well once, when it was recorded.
    done.unwrap();
}

/// One state that a power cut may leave.
#[derive(Debug)]
pub struct State {
    files: Files,
    epoch: Arc<Epoch>,
    pick: Pick,
    chosen: Vec<u32>,
}

impl State {
    /// The folder as it was left: a copy of its own at every call.
    pub fn folder(&self) -> Arc<MemoryFolder> {
        self.files.to_folder()
    }

    /// One file as it was left: a copy of its own at every call. `None` where no file has that name.
    pub fn file(&self, name: &str) -> Option<Arc<MemoryStorage>> {
        Some(Arc::new(self.files.files[*self.files.names.get(name)?].snapshot()))
    }

    /// The last mark reached before the power cut.
    pub fn mark(&self) -> Option<u64> {
        self.epoch.mark
    }

    /// In which epoch the power was cut, from 0.
    pub fn epoch(&self) -> usize {
        self.epoch.number
    }
}

impl fmt::Display for State {
    /// The epoch, which selection, and each event of the epoch with what is kept of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "power cut in epoch {}, mark {:?}, {:?} of these (kept units / units of {}):",
            self.epoch.number, self.epoch.mark, self.pick, self.epoch.unit
        )?;
        for (number, (event, parts)) in self.epoch.events.iter().zip(&self.epoch.parts).enumerate() {
            let kept = parts.iter().filter(|(unit, version)| self.chosen[*unit] >= *version).count();
            write!(f, "  {number:3}: {kept}/{} ", parts.len())?;
            match event {
                Event::Write { file, at, bytes } => {
                    writeln!(f, "write file {file} at {at} len {}", bytes.len())?
                }
                other => writeln!(f, "{other:?}")?,
            }
        }
        Ok(())
    }
}

/// The states, one after the other: [`Journal::states`](super::Journal::states).
#[derive(Debug)]
pub struct States {
    plan: Plan,
    events: std::vec::IntoIter<Event>,
    durable: Files,
    pending: Vec<Event>,
    mark: Option<u64>,
    /// Something happened since the last epoch's states.
    news: bool,
    over: bool,
    made: usize,
    epochs: usize,
    now: Option<(Arc<Epoch>, std::vec::IntoIter<Pick>, HashSet<u64>)>,
}

impl States {
    pub(super) fn new(durable: Files, events: Vec<Event>, plan: Plan) -> States {
        States {
            plan,
            events: events.into_iter(),
            durable,
            pending: Vec::new(),
            mark: None,
            news: true,
            over: false,
            made: 0,
            epochs: 0,
            now: None,
        }
    }

    /// How many epochs were seen so far.
    pub fn epochs(&self) -> usize {
        self.epochs
    }

    /// Reads on to the end of an epoch that has something to tell.
    fn next_epoch(&mut self) -> Option<Arc<Epoch>> {
        let mut found = None;
        while found.is_none() {
            match self.events.next() {
                Some(Event::Mark(label)) => {
                    self.mark = Some(label);
                    self.news = true;
                }
                Some(Event::Sync { file }) => {
                    found = self.end_epoch();
                    self.settle(|event| match event {
                        Event::Write { file: of, .. }
                        | Event::Zero { file: of, .. }
                        | Event::SetLen { file: of, .. } => *of == file,
                        _ => false,
                    });
                }
                Some(Event::SyncNames) => {
                    found = self.end_epoch();
                    self.settle(|event| matches!(event, Event::Name { .. }));
                }
                Some(event) => {
                    // A new file is there, empty and without a durable name.
                    if let Event::Name { to: Some((_, file)), .. } = &event {
                        while self.durable.files.len() <= *file {
                            self.durable.files.push(MemoryStorage::new());
                        }
                    }
                    self.pending.push(event);
                    self.news = true;
                }
                None if self.over => return None,
                None => {
                    self.over = true;
                    found = self.end_epoch();
                }
            }
        }
        found
    }

    fn end_epoch(&mut self) -> Option<Arc<Epoch>> {
        if !std::mem::take(&mut self.news) {
            return None;
        }
        self.epochs += 1;
        let epoch = Epoch::new(
            self.epochs - 1,
            self.mark,
            self.durable.snapshot(),
            self.pending.clone(),
            self.plan.unit,
        );
        Some(Arc::new(epoch))
    }

    /// Makes durable what is pending and of that kind.
    fn settle(&mut self, of_kind: impl Fn(&Event) -> bool) {
        let unit = self.plan.unit;
        let durable = &mut self.durable;
        self.pending.retain(|event| {
            let now = of_kind(event);
            if now {
                apply(durable, event, None, unit);
            }
            !now
        });
    }
}

impl Iterator for States {
    type Item = State;

    fn next(&mut self) -> Option<State> {
        if self.made >= self.plan.max_states {
            return None;
        }
        loop {
            if let Some((epoch, picks, seen)) = &mut self.now {
                for pick in picks {
                    let chosen = epoch.choose(pick);
                    let mut hasher = DefaultHasher::new();
                    chosen.hash(&mut hasher);
                    if seen.insert(hasher.finish()) {
                        self.made += 1;
                        return Some(State {
                            files: epoch.apply(&chosen),
                            epoch: epoch.clone(),
                            pick,
                            chosen,
                        });
                    }
                }
            }
            let epoch = self.next_epoch()?;
            let picks = epoch.picks(&self.plan);
            self.now = Some((epoch, picks.into_iter(), HashSet::new()));
        }
    }
}
