//! What a check finds, and what of it a repair must know.

use cowhand_core::{Fault, Report, Rules, Severity};

/// Stretches of wrong entries that are kept in mind.
pub(super) const MAX_RUNS: usize = 1 << 21;

/// Faults in the order of being found.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    pub(super) report: Report,
    /// What is asked.
    pub(super) rules: Rules,
    /// What says where things stand cannot be believed: nothing is put right by it.
    pub(super) blind: bool,
    /// A block stands where something else does.
    pub(super) shared: bool,
    /// Metadata stands where other metadata does: whatever is written over one changes the other.
    pub(super) tangled: bool,
    /// Before the footer is room for blocks that nothing uses.
    pub(super) tail_is_unused: bool,
    /// The batmap says what the bitmaps do not, or its checksum is wrong; nothing else is wrong with it.
    pub(super) batmap: bool,
}

impl Findings {
    fn add(&mut self, severity: Severity, at: Option<u64>, message: String) {
        self.report.add(Fault::new(severity, at, message));
    }

    /// Something is wrong with what stands at `at`.
    pub(super) fn corrupt(&mut self, at: u64, message: impl FnOnce() -> String) {
        self.add(Severity::Corruption, Some(at), message());
    }

    /// As [`Findings::corrupt`], where perhaps nobody knows the place.
    pub(super) fn corrupt_if_at(&mut self, at: Option<u64>, message: impl FnOnce() -> String) {
        self.add(Severity::Corruption, at, message());
    }

    /// As [`Findings::corrupt`], counted so many times.
    pub(super) fn corrupt_many(&mut self, at: u64, count: u64, message: impl FnOnce() -> String) {
        self.corrupt(at, message);
        self.report.corruptions += count.saturating_sub(1);
    }

    /// So many blocks' room is used by nothing.
    pub(super) fn leak(&mut self, at: u64, count: u64, message: impl FnOnce() -> String) {
        self.add(Severity::Leak, Some(at), message());
        self.report.leaks += count.saturating_sub(1);
    }

    /// What stands at `at` is unusual, and all data is there.
    pub(super) fn note(&mut self, at: u64, message: impl FnOnce() -> String) {
        self.add(Severity::Note, Some(at), message());
    }

    /// XenServer's programs refuse what stands at `at`, though all data is there: as strict as the rules are.
    pub(super) fn refused(&mut self, at: u64, message: impl FnOnce() -> String) {
        if self.rules.strict { self.corrupt(at, message) } else { self.note(at, message) }
    }

    /// What stands at `at` could not be looked at.
    pub(super) fn unread(&mut self, at: u64, message: impl FnOnce() -> String) {
        self.blind = true;
        self.add(Severity::Error, Some(at), message());
    }
}
