//! The judges, each with the range it is waiting for, and what their findings together mean.

use std::ops::Range;

use cowhand_core::{Compat, Ending, Finding, Inspector, MAX_WINDOW, Place};

use super::report::{Failed, Report, Verdict};
use super::{foreign, vmdk};
use crate::registry;

/// A judge, and what has been collected of the range it wants.
pub(super) struct Slot {
    name: &'static str,
    judge: Box<dyn Inspector>,
    /// Where the last range ended: nothing before is shown again.
    seen: u64,
    collected: Vec<u8>,
    ended: bool,
}

/// Every judge, in the order in which formats are reported: containers first. The names are oslo.utils', which are the
/// last of each format's own.
pub(super) fn all() -> Vec<Slot> {
    let foreign: [(&'static str, Box<dyn Inspector>); 6] = [
        ("qed", Box::new(foreign::Qed::default())),
        ("vmdk", Box::new(vmdk::Vmdk::default())),
        ("vdi", Box::new(foreign::Vdi::default())),
        ("luks", Box::new(foreign::Luks::default())),
        ("iso", Box::new(foreign::Iso::default())),
        ("gpt", Box::new(foreign::Gpt::default())),
    ];
    let ours =
        registry::formats().iter().filter_map(|format| Some((*format.names().last()?, format.inspector()?)));
    ours.chain(foreign).map(|(name, judge)| Slot::new(name, judge)).collect()
}

impl Slot {
    fn new(name: &'static str, judge: Box<dyn Inspector>) -> Self {
        Slot { name, judge, seen: 0, collected: Vec::new(), ended: false }
    }

    /// The range to collect, if there is one that can still be seen.
    pub(super) fn wants(&self) -> Option<Range<u64>> {
        let range = self.judge.wants().filter(|range| !self.ended && range.start >= self.seen)?;
        Some(range.start..range.end.min(range.start.saturating_add(MAX_WINDOW)))
    }

    /// Takes what it wants of `chunk`, which stands at `at`.
    pub(super) fn feed(&mut self, at: u64, chunk: &[u8]) {
        let end = at.saturating_add(chunk.len() as u64);
        while let Some(range) = self.wants() {
            if range.end <= range.start {
                self.show(range.end, &[]);
                continue;
            }
            let from = range.start.saturating_add(self.collected.len() as u64);
            if from >= end {
                return;
            }
            let part =
                chunk.get(index(from.saturating_sub(at))..index(range.end.min(end) - at)).unwrap_or_default();
            if range.end > end {
                let len = index(range.end - range.start);
                self.collected.reserve_exact(len.saturating_sub(self.collected.len()));
                self.collected.extend_from_slice(part);
                return;
            }
            if self.collected.is_empty() {
                self.show(range.end, part);
            } else {
                let mut whole = std::mem::take(&mut self.collected);
                whole.extend_from_slice(part);
                self.show(range.end, &whole);
            }
        }
    }

    fn show(&mut self, end: u64, bytes: &[u8]) {
        self.judge.see(bytes);
        self.seen = end;
    }

    /// The content has ended: shows what there is of the range it is waiting for.
    pub(super) fn end(&mut self) {
        self.ended = true;
        let rest = std::mem::take(&mut self.collected);
        if self.judge.wants().is_some() {
            self.judge.see(&rest);
        }
    }

    pub(super) fn held(&self) -> usize {
        self.collected.capacity()
    }
}

/// An offset inside a chunk.
fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

/// Asks every judge, and weighs what they found.
pub(super) fn report(slots: &mut [Slot], end: &Ending<'_>, compat: Compat) -> Report {
    let mut found: Vec<(&'static str, Finding)> = Vec::new();
    for slot in slots {
        if let Some(finding) = slot.judge.finish(end, compat) {
            found.push((slot.name, finding));
        }
    }
    let ambiguous = match compat {
        Compat::Strict => {
            let count = |place| found.iter().filter(|(_, finding)| finding.place == place).count();
            count(Place::Front) > 0 && found.len() > 1
        }
        Compat::Oslo => found.len() > 1,
    };
    // An ISO image that boots from a disk too has a partition table of its own making.
    let hybrid = compat == Compat::Strict && found.iter().any(|(name, _)| *name == "iso");
    let mut failed: Vec<Failed> = Vec::new();
    for (name, finding) in &found {
        if hybrid && *name == "gpt" {
            continue;
        }
        let format = (*name).to_owned();
        failed.extend(finding.problems.iter().map(|problem| Failed {
            format: format.clone(),
            check: problem.check,
            reason: problem.reason.clone(),
        }));
        if finding.incomplete {
            let reason = format!("the content ends at {}, before what has to be checked", end.len);
            failed.push(Failed { format, check: "incomplete", reason });
        }
    }
    let formats: Vec<String> = found.iter().map(|(name, _)| (*name).to_owned()).collect();
    if ambiguous {
        let reason = format!("it can be taken for {}", formats.join(" and for "));
        failed.push(Failed { format: formats.join("+"), check: "ambiguous", reason });
    }
    let verdict = if ambiguous {
        Verdict::Ambiguous
    } else if found.iter().any(|(_, finding)| finding.incomplete) {
        Verdict::Unreadable
    } else if !failed.is_empty() {
        Verdict::Unsafe
    } else {
        Verdict::Safe
    };
    let virtual_size = match found.iter().find(|(_, finding)| finding.place != Place::Guest) {
        _ if ambiguous => None,
        Some((_, container)) => container.virtual_size,
        None => match (compat, found.first()) {
            (Compat::Oslo, Some((_, finding))) => finding.virtual_size,
            (Compat::Oslo, None) => Some(end.len),
            // To every program that runs it, it is a raw disk, in sectors.
            (Compat::Strict, _) => end.len.checked_next_multiple_of(512),
        },
    };
    let formats = if formats.is_empty() { vec!["raw".to_owned()] } else { formats };
    Report { formats, virtual_size, file_size: Some(end.len), verdict, failed }
}
