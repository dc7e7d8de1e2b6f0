//! Checking and repairing an image, starting from its file: nothing in it is believed before it was looked at.
//!
//! What a check holds in memory does not depend on how large the image says it is: two bytes for each cluster of the
//! file, at most 128 MiB (`counts`); 24 MiB of L2 tables' places (`walk`); the refcount table's entries, at most 8 MiB;
//! what a snapshot table or bitmap directory says, at most 64 MiB each as in the file; and for each thread 256 KiB or a
//! cluster.

mod bitmaps;
mod changed;
mod compare;
mod counts;
mod entries;
mod findings;
mod layout;
mod rebuild;
mod repair;
mod sparse;
mod walk;
mod workers;

use std::sync::Arc;

use cowhand_core::{
    CheckOptions, Checker, Error, ErrorKind, KnownCheck, Progress, Quiet, Repair, Report, Resolver, Result,
    Severity, Storage,
};

use crate::Qcow2;
use crate::header::Header;
use crate::layer::path_of;
use compare::{Compare, Fix};
use counts::{Counts, WINDOW};
use findings::{Findings, Needs};
use layout::Layout;
use repair::Scope;
use walk::{Job, Tally, Walk};

/// Windows of counts that a file may need. More, and its clusters are scattered as no program does it.
const MAX_WINDOWS: u32 = 64;

/// An image that is looked at.
struct Image<'a> {
    file: &'a dyn Storage,
    /// Bytes of the external data file.
    data_len: Option<u64>,
    workers: usize,
    progress: &'a dyn Progress,
}

/// What was found by looking at all of it.
#[derive(Debug)]
struct Looked {
    report: Report,
    /// Of the corruptions, those that are COPIED flags which do not go with the counts.
    flags: u64,
    needs: Needs,
    layout: Layout,
    /// Behind the last cluster that is used or has a count.
    end: u64,
}

impl Checker for Qcow2 {
    fn known(&self) -> KnownCheck {
        KnownCheck::Counts
    }

    fn check(
        &self,
        file: Arc<dyn Storage>,
        files: &dyn Resolver,
        how: &CheckOptions,
        progress: &dyn Progress,
    ) -> Result<Report> {
        let image = Image::of(file.as_ref(), files, how.workers, progress)?;
        match how.repair {
            Repair::Nothing => Ok(image.look()?.report),
            Repair::Leaks => image.repair(Scope::Leaks),
            Repair::All if how.rules.keep => image.repair(Scope::Kept),
            Repair::All => image.repair(Scope::All),
        }
    }
}

/// Counts anew what is used, and clears the dirty bit if nothing else is wrong with the image.
pub(crate) fn recount(file: &dyn Storage, files: &dyn Resolver) -> Result<Report> {
    Image::of(file, files, 0, &Quiet)?.repair(Scope::Counts)
}

/// Before the first write: refuses an image in which the counts do not cover what is used, something stands where
/// something else does, or an entry leads where it must not. An allocator that trusted it would hand out a cluster that
/// somebody has. Leaks do no harm, nor does a cluster that is copied before it is written though it need not be.
pub(crate) fn audit(file: &dyn Storage, data_len: Option<u64>) -> Result<()> {
    let Looked { report, needs, .. } =
        Image { file, data_len, workers: threads(0), progress: &Quiet }.look()?;
    let harmless = !(needs.entries
        || needs.rebuild
        || needs.raise
        || needs.claims
        || needs.bitmaps
        || needs.unclear
        || needs.blind
        || report.check_errors > 0);
    if harmless {
        return Ok(());
    }
    let fault = report.faults.into_iter().find(|fault| fault.severity != Severity::Leak);
    let (at, message) = fault.map_or((None, String::new()), |fault| (fault.at, fault.message));
    let error = Error::corrupt("image", format!("cannot be written safely: {message}"))
        .hint("it can be read; run a check that repairs before writing to it");
    Err(match at {
        Some(at) => error.at(at),
        None => error,
    })
}

/// How many threads look: those asked for; 0: as many as the machine has, at most 8.
fn threads(asked: usize) -> usize {
    let machine = || std::thread::available_parallelism().map_or(1, usize::from).min(8);
    if asked == 0 { machine() } else { asked }
}

impl<'a> Image<'a> {
    /// `workers`: 0 for as many as the machine has, at most 8.
    fn of(
        file: &'a dyn Storage,
        files: &dyn Resolver,
        workers: usize,
        progress: &'a dyn Progress,
    ) -> Result<Image<'a>> {
        let header = Header::read_with(file, &mut |_| Ok(()))?;
        let data_len = match header.extensions.data_file().filter(|_| header.has_data_file) {
            Some(name) => {
                let data = files.open(&path_of(name), false)?;
                Some(data.len().map_err(|error| Error::io("cannot find the data file's size", error))?)
            }
            None => None,
        };
        Ok(Image { file, data_len, workers: threads(workers), progress })
    }
}

impl Image<'_> {
    /// Looks at everything. Errors: the header does not say enough, or the check was stopped.
    fn look(&self) -> Result<Looked> {
        let mut found = Findings::default();
        let header = Header::read_with(self.file, &mut |wrong| {
            // What only cannot be read here, encryption, is no fault.
            if wrong.kind() == ErrorKind::Corrupt {
                found.corrupt_if_at(wrong.offset(), || wrong.to_string());
            }
            Ok(())
        })?;
        if header.has_data_file && self.data_len.is_none() {
            found.needs.blind = true;
            found.corrupt(72, || {
                "the external data file is used, and its name is not in the image".to_owned()
            });
        }
        let layout = Layout::read(self.file, self.data_len, header, &mut found)?;
        let mut tally = Tally::default();
        let mut end = 0;
        self.windows(&layout, true, &mut |counts, first| {
            let Some(counts) = counts else {
                found.unread(0, || {
                    "the clusters in use stand too far from each other to be counted".to_owned()
                });
                return Ok(());
            };
            let work = self.walk(&layout, counts, Job::Count(first))?;
            if first {
                tally = work.tally;
            }
            found.join(vec![work.found]);
            if counts.is_full() {
                found.unread(0, || "too many clusters are referred to too often to be counted".to_owned());
            }
            let mut compared = self.compare(&layout, counts, Fix::Nothing)?;
            compared.overlaps(&layout, counts);
            end = end.max(compared.end);
            found.join(vec![compared.found]);
            if compared.suspects {
                found.join(vec![self.walk(&layout, counts, Job::Compare)?.found]);
            }
            Ok(())
        })?;
        let (needs, flags) = (found.needs, found.flags);
        let mut report = found.into_report();
        report.image_end = Some(end << layout.bits());
        report.total_units = Some(layout.header.size.div_ceil(1 << layout.bits()));
        report.allocated_units = Some(tally.allocated);
        report.fragmented_units = Some(tally.fragmented);
        report.compressed_units = Some(tally.compressed);
        Ok(Looked { report, flags, needs, layout, end })
    }

    fn walk(&self, layout: &Layout, counts: &Counts, job: Job) -> Result<walk::Work> {
        Walk { file: self.file, layout, counts, job, workers: self.workers }.run(self.progress)
    }

    fn compare(&self, layout: &Layout, counts: &Counts, fix: Fix) -> Result<compare::Compared> {
        Compare { file: self.file, layout, counts, fix, workers: self.workers }.run()
    }

    /// Calls `see` with cells for each stretch of the file in which something is used or has a count. The flag: it is the
    /// first. `None`: there are more that cannot be looked at. `refcounts`: the refcount structure is counted too.
    fn windows(
        &self,
        layout: &Layout,
        refcounts: bool,
        see: &mut dyn FnMut(Option<&Counts>, bool) -> Result<()>,
    ) -> Result<()> {
        let limit = layout.clusters() + 1;
        let each = layout.rules.geometry.block_entries();
        let mut start = 0;
        for _ in 0..MAX_WINDOWS {
            let counts = Counts::new(start..limit.min(start + WINDOW))
                .ok_or_else(|| Error::unsupported("there is not enough memory to check this image"))?;
            layout.count(&counts, refcounts);
            see(Some(&counts), start == 0)?;
            let end = counts.clusters().end;
            let next = counts.beyond().min(layout.next_block(end / each).saturating_mul(each));
            if end >= limit || next >= limit {
                return Ok(());
            }
            start = next / each * each;
        }
        see(None, false)
    }
}
