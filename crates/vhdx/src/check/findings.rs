//! What a check finds, and what of it a repair must know.

use cowhand_core::{Fault, Report, Severity};

/// Faults in the order of being found.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    pub(super) report: Report,
    /// What says where things stand cannot be believed: nothing is put right by it.
    pub(super) blind: bool,
}

impl Findings {
    fn add(&mut self, severity: Severity, at: Option<u64>, message: String) {
        self.report.add(Fault::new(severity, at, message));
    }

    /// Something is wrong with what stands at `at`.
    pub(super) fn corrupt(&mut self, at: impl Into<Option<u64>>, message: impl FnOnce() -> String) {
        // More than are listed are only counted, and a table may have millions of them.
        if self.report.faults.len() < cowhand_core::MAX_FAULTS {
            self.add(Severity::Corruption, at.into(), message());
        } else {
            self.report.corruptions += 1;
        }
    }

    /// So many MiB at `at` are used by nothing.
    pub(super) fn leak(&mut self, at: u64, mib: u64, message: impl FnOnce() -> String) {
        self.add(Severity::Leak, Some(at), message());
        self.report.leaks += mib.saturating_sub(1);
    }

    /// What stands at `at` is unusual, and all data is there.
    pub(super) fn note(&mut self, at: u64, message: impl FnOnce() -> String) {
        self.add(Severity::Note, Some(at), message());
    }

    /// What stands at `at` could not be looked at.
    pub(super) fn unread(&mut self, at: u64, message: impl FnOnce() -> String) {
        self.blind = true;
        self.add(Severity::Error, Some(at), message());
    }
}

/// Words for one thing, or for any other number of them.
pub(super) fn by_number(number: u64, one: &'static str, more: &'static str) -> &'static str {
    if number == 1 { one } else { more }
}
