//! Repair, step by step: each puts one kind of fault right, is durable before the next, and everything is looked at anew
//! in between. So a power cut leaves an image that is no worse than before, and running it again finishes.
//!
//! The order: what is redundant yields first (bitmaps, then the refcount structure), so that the guest's mapping is only
//! judged against what is sound; wrong entries go; counts that are too low are raised, and only then those that are too
//! high lowered; last come the COPIED flags, which rely on the counts. While something that may refer to clusters
//! cannot be looked at, nothing is lowered and no cluster is said to have one owner.

use std::collections::HashSet;

use cowhand_core::{Class, Error, Fault, MAX_FAULTS, Report, Result};

use super::compare::Fix;
use super::findings::Findings;
use super::layout::Layout;
use super::walk::Job;
use super::{Image, Looked};
use crate::header::{
    AT_AUTOCLEAR, AT_INCOMPATIBLE, AUTOCLEAR_BITMAPS, AUTOCLEAR_DATA_FILE_RAW, AUTOCLEAR_KNOWN,
    INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY,
};

/// What may be put right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Leaks,
    /// Refcounts and what follows from them; nothing is given up that may be the guest's.
    Counts,
    /// All but entries by which the guest would lose something.
    Kept,
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The bitmaps are no longer said to be in step with the data.
    DropBitmaps,
    /// The data file is no longer said to be raw.
    DropRaw,
    Rebuild,
    Entries,
    Raise,
    Lower,
    Flags,
}

impl Image<'_> {
    /// Repairs as far as `scope` allows. The report is of a look afterwards.
    pub(super) fn repair(&self, scope: Scope) -> Result<Report> {
        let mut looked = self.look()?;
        let first = (looked.report.clone(), looked.flags);
        let mut flags = 0;
        let mut marks = Vec::new();
        let mut lost = Findings::default();
        let mut done = Vec::new();
        while let Some(step) = next(&looked, scope, &done) {
            if done.is_empty() {
                // Who changes an image says so to programs whose marks are not known here.
                self.clear(&looked.layout, AT_AUTOCLEAR, looked.layout.header.autoclear & !AUTOCLEAR_KNOWN)?;
            }
            if step == Step::Flags {
                flags = flags.max(looked.flags);
                marks.extend(looked.report.faults.iter().filter(|fault| fault.class == Class::Mark).cloned());
            }
            self.step(step, scope, &looked, &mut lost)?;
            self.sync()?;
            done.push(step);
            looked = self.look()?;
        }
        if looked.report.corruptions + looked.report.check_errors == 0 {
            self.clear(&looked.layout, AT_INCOMPATIBLE, INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT)?;
        }
        let fixed = (first.0.corruptions - first.1)
            .saturating_sub(looked.report.corruptions - looked.flags)
            .saturating_add(flags.saturating_sub(looked.flags));
        // Flags that only the counts made wrong were never put right by themselves.
        let mut first = first.0;
        first.faults.retain(|fault| fault.class != Class::Mark);
        first.faults.extend(marks);
        Ok(settle(first, fixed, lost.into_report(), looked.report))
    }

    fn step(&self, step: Step, scope: Scope, looked: &Looked, lost: &mut Findings) -> Result<()> {
        let layout = &looked.layout;
        match step {
            Step::DropBitmaps => return self.clear(layout, AT_AUTOCLEAR, AUTOCLEAR_BITMAPS),
            Step::DropRaw => return self.clear(layout, AT_AUTOCLEAR, AUTOCLEAR_DATA_FILE_RAW),
            Step::Rebuild => return self.rebuild(looked),
            Step::Entries | Step::Raise | Step::Lower | Step::Flags => {}
        }
        self.windows(layout, true, &mut |counts, first| {
            let Some(counts) = counts else { return Ok(()) };
            self.walk(layout, counts, Job::Count(false))?.found.complete()?;
            let found = match step {
                Step::Entries => {
                    let job = Job::Mend { alone: first, keep: scope == Scope::Kept };
                    lost.join(vec![self.walk(layout, counts, job)?.found.complete()?]);
                    return Ok(());
                }
                Step::Raise => self.compare(layout, counts, Fix::Raise)?.found,
                Step::Lower => self.compare(layout, counts, Fix::Lower)?.found,
                _ => {
                    self.compare(layout, counts, Fix::Nothing)?.found.complete()?;
                    self.walk(layout, counts, Job::Flags)?.found
                }
            };
            found.complete().map(drop)
        })
    }

    /// Clears `bits` of a field of 64 bits of the header, durably, after all that was written before.
    fn clear(&self, layout: &Layout, at: u64, bits: u64) -> Result<()> {
        if layout.header.version < 3 {
            return Ok(());
        }
        let mut field = [0; 8];
        self.file
            .read_at(at, &mut field)
            .map_err(|error| Error::io("cannot read the header", error).at(at))?;
        let old = u64::from_be_bytes(field);
        if old & bits == 0 {
            return Ok(());
        }
        self.sync()?;
        let new = (old & !bits).to_be_bytes();
        self.file.write_at(at, &new).map_err(|error| Error::io("cannot write the header", error).at(at))?;
        self.sync()
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|error| Error::io("cannot make the repair durable", error))
    }
}

/// The next step, if one helps. None is taken again and again: what it cannot put right stays.
fn next(looked: &Looked, scope: Scope, done: &[Step]) -> Option<Step> {
    if looked.report.check_errors > 0 {
        return None;
    }
    let needs = looked.needs;
    let redundant = needs.bitmaps | needs.raw | needs.rebuild;
    let sighted = !needs.blind && !needs.entries;
    let (all, counts) = (matches!(scope, Scope::Kept | Scope::All), scope != Scope::Leaks);
    // Those that are kept are not put right by looking again.
    let rounds = if scope == Scope::Kept { 1 } else { 4 };
    // Before a step that judges by the counts, all that is redundant has yielded.
    let wanted = [
        (Step::DropBitmaps, all && needs.bitmaps, 1),
        (Step::DropRaw, all && needs.raw, 1),
        (Step::Rebuild, counts && needs.rebuild, 2),
        (Step::Entries, all && needs.entries && !needs.unclear, rounds),
        (Step::Raise, counts && needs.raise, 2),
        (Step::Lower, needs.lower && sighted && !redundant, 3),
        (Step::Flags, needs.flags && sighted && !redundant && (counts || !needs.raise), 3),
    ];
    let again = |step: Step, most: usize| done.iter().filter(|other| **other == step).count() < most;
    wanted.into_iter().find(|(step, needed, most)| *needed && again(*step, *most)).map(|(step, ..)| step)
}

/// What was found first, as far as it is still there, and what the repair cost. `fixed`: corruptions, among them the
/// COPIED flags that were still wrong once the counts were right.
fn settle(first: Report, corruptions_fixed: u64, lost: Report, last: Report) -> Report {
    let left: HashSet<&str> = last.faults.iter().map(|fault| fault.message.as_str()).collect();
    let fixed = first.faults.into_iter().filter(|fault| !left.contains(fault.message.as_str()));
    let mut faults: Vec<Fault> = fixed.map(|fault| Fault { fixed: true, ..fault }).collect();
    faults.extend(lost.faults);
    faults.extend(last.faults.iter().cloned());
    faults.truncate(MAX_FAULTS);
    let leaks_fixed = first.leaks.saturating_sub(last.leaks);
    Report { corruptions_fixed, leaks_fixed, lost: lost.corruptions, faults, ..last }
}
