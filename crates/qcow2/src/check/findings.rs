//! What a check finds: faults in the order of where they stand, however many threads look, and what would repair them.

use cowhand_core::{Class, Error, ErrorKind, Fault, MAX_FAULTS, Report, Result, Severity};

/// The rounds of a repair that faults call for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// L1, L2 entries and the like are wrong in themselves, or lead where they must not.
    pub(super) entries: bool,
    /// The refcount structure cannot be mended in place.
    pub(super) rebuild: bool,
    /// Counts are too low.
    pub(super) raise: bool,
    /// Counts are too high.
    pub(super) lower: bool,
    /// COPIED flags do not go with the counts.
    pub(super) flags: bool,
    /// A COPIED flag calls a cluster its entry's own that is not, or not known to be.
    pub(super) claims: bool,
    /// The bitmaps cannot be trusted.
    pub(super) bitmaps: bool,
    /// The external data file is not the raw image that it is said to be.
    pub(super) raw: bool,
    /// Of two structures in one place nobody can say which is wrong, so that entries cannot be judged.
    pub(super) unclear: bool,
    /// Something that may refer to clusters could not be looked at: what nothing seems to use may be in use.
    pub(super) blind: bool,
}

impl Needs {
    fn join(self, other: Needs) -> Needs {
        Needs {
            entries: self.entries | other.entries,
            rebuild: self.rebuild | other.rebuild,
            raise: self.raise | other.raise,
            lower: self.lower | other.lower,
            flags: self.flags | other.flags,
            claims: self.claims | other.claims,
            bitmaps: self.bitmaps | other.bitmaps,
            raw: self.raw | other.raw,
            unclear: self.unclear | other.unclear,
            blind: self.blind | other.blind,
        }
    }
}

/// Faults of one thread's work, or of all. The first ones are listed, all are counted.
#[derive(Debug, Default)]
pub(super) struct Findings {
    listed: Vec<(u64, Fault)>,
    /// Leaks, corruptions and errors.
    counts: [u64; 3],
    item: u64,
    /// Of the corruptions, those that are COPIED flags which do not go with the counts.
    pub(super) flags: u64,
    pub(super) needs: Needs,
}

impl Findings {
    /// What is found from here on belongs to this piece of work; one thread's pieces ascend.
    pub(super) fn begin(&mut self, item: u64) {
        self.item = item;
    }

    fn note(&mut self, class: Class, severity: Severity, at: Option<u64>, message: impl FnOnce() -> String) {
        let [leaks, corruptions, errors] = &mut self.counts;
        match severity {
            Severity::Leak => *leaks += 1,
            Severity::Corruption => *corruptions += 1,
            Severity::Error => *errors += 1,
            Severity::Note => {}
        }
        if self.listed.len() < MAX_FAULTS {
            self.listed.push((self.item, Fault { class, ..Fault::new(severity, at, message()) }));
        }
    }

    /// Something is wrong with what stands at `at`.
    pub(super) fn corrupt(&mut self, at: u64, message: impl FnOnce() -> String) {
        self.note(Class::Structure, Severity::Corruption, Some(at), message);
    }

    /// The COPIED flag that stands at `at` does not go with the counts.
    pub(super) fn flag(&mut self, at: u64, copied: bool, message: impl FnOnce() -> String) {
        self.flags += 1;
        self.needs.flags = true;
        self.needs.claims |= copied;
        self.note(Class::Mark, Severity::Corruption, Some(at), message);
    }

    /// As [`Findings::corrupt`], where perhaps nobody knows the place.
    pub(super) fn corrupt_if_at(&mut self, at: Option<u64>, message: impl FnOnce() -> String) {
        self.note(Class::Structure, Severity::Corruption, at, message);
    }

    /// The cluster at `at` is held by nothing, or counted too often.
    pub(super) fn leak(&mut self, at: u64, message: impl FnOnce() -> String) {
        self.note(Class::Count, Severity::Leak, Some(at), message);
    }

    /// The cluster at `at` is counted too seldom.
    pub(super) fn uncounted(&mut self, at: u64, message: impl FnOnce() -> String) {
        self.note(Class::Count, Severity::Corruption, Some(at), message);
    }

    /// What stands at `at` could not be looked at.
    pub(super) fn unread(&mut self, at: u64, message: impl FnOnce() -> String) {
        self.needs.blind = true;
        self.note(Class::Structure, Severity::Error, Some(at), message);
    }

    /// Fails where something could not be looked at: who changes the image must know everything. Otherwise the answer is
    /// what was found.
    pub(super) fn complete(self) -> Result<Findings> {
        let [.., errors] = self.counts;
        if errors == 0 {
            return Ok(self);
        }
        let unread = self.listed.into_iter().find(|(_, fault)| fault.severity == Severity::Error);
        let message = unread.map(|(_, fault)| fault.message);
        Err(Error::new(ErrorKind::Io, message.unwrap_or_else(|| "not everything can be read".to_owned())))
    }

    /// Adds what several threads found in pieces of one piece of work.
    pub(super) fn join(&mut self, threads: Vec<Findings>) {
        let mut all = Vec::new();
        for thread in threads {
            for (sum, count) in self.counts.iter_mut().zip(thread.counts) {
                *sum += count;
            }
            self.flags += thread.flags;
            self.needs = self.needs.join(thread.needs);
            all.extend(thread.listed);
        }
        all.sort_by_key(|(item, _)| *item);
        all.truncate(MAX_FAULTS.saturating_sub(self.listed.len()));
        self.listed.extend(all);
    }

    /// The report, its faults sorted into their order.
    pub(super) fn into_report(self) -> Report {
        let [leaks, corruptions, check_errors] = self.counts;
        Report {
            leaks,
            corruptions,
            check_errors,
            faults: self.listed.into_iter().map(|(_, fault)| fault).collect(),
            ..Report::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_join_in_the_order_of_their_work() {
        let (mut even, mut odd) = (Findings::default(), Findings::default());
        for item in 0..2000 {
            let mine = if item % 2 == 0 { &mut even } else { &mut odd };
            mine.begin(item);
            mine.leak(item, || item.to_string());
        }
        let mut all = Findings::default();
        all.join(vec![odd, even]);
        let report = all.into_report();
        assert_eq!((report.leaks, report.faults.len()), (2000, MAX_FAULTS));
        assert!((0..).zip(&report.faults).all(|(at, fault)| fault.at == Some(at)));
    }
}
