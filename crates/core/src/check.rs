//! Checking and repairing one image file. It starts from the storage, because what is broken may not open.

use std::fmt::Debug;
use std::sync::Arc;

use crate::{Progress, Resolver, Result, Secrets, Storage};

/// What a check may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Repair {
    /// Nothing: the file is only read.
    #[default]
    Nothing,
    /// Space that nothing uses is given back.
    Leaks,
    /// All that can be put right is.
    All,
}

/// How an image is checked.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// What may be changed. Anything but [`Repair::Nothing`] needs a storage that is open for writing.
    pub repair: Repair,
    /// Threads; 0: as many as the machine has, at most 8.
    pub workers: usize,
    /// For what is encrypted.
    pub secrets: Secrets,
    /// What is asked beyond that, or left out.
    pub rules: Rules,
}

/// What a check asks beyond the usual, or leaves out. Formats that know nothing of it go on as usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rules {
    /// What the programs that the format comes from refuse is a corruption, though all data is there and reads alike.
    pub strict: bool,
    /// Times may be in the future.
    pub any_time: bool,
    /// What the format keeps at the file's end may be damaged or missing, where a good copy is elsewhere.
    pub any_end: bool,
    /// Whether two things stand in one place is not asked.
    pub no_overlaps: bool,
    /// Guest data is read too: what stands where the image says that nothing is, is zero.
    pub data: bool,
    /// A repair gives up nothing of the guest's: what leads nowhere, or where it must not, stays as it is and counts as wrong.
    pub keep: bool,
}

/// How bad a fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Space is taken that nothing uses; no data is in danger.
    Leak,
    /// Data is wrong or in danger.
    Corruption,
    /// Something could not be looked at.
    Error,
    /// Unusual, or not redundant as it should be: all data is there and read alike. It is listed and not counted.
    Note,
}

/// What sort of thing a fault is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Class {
    /// What a structure says, or where it stands.
    #[default]
    Structure,
    /// How often a unit is said to be in use, and is.
    Count,
    /// A mark that follows from such counts.
    Mark,
}

/// One fault that a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What it is about.
    pub class: Class,
    /// How bad it is.
    pub severity: Severity,
    /// Offset in the file, in bytes, of what is wrong, where it has one.
    pub at: Option<u64>,
    /// What is wrong, for people.
    pub message: String,
    /// It was put right.
    pub fixed: bool,
}

impl Fault {
    /// A fault of a structure, not put right.
    pub fn new(severity: Severity, at: Option<u64>, message: impl Into<String>) -> Fault {
        Fault { class: Class::Structure, severity, at, message: message.into(), fixed: false }
    }
}

/// What users of QEMU know of a format's check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KnownCheck {
    /// QEMU has none.
    #[default]
    Absent,
    /// Whether something is wrong.
    Verdict,
    /// That, and how much of the image is in use.
    Counts,
}

/// Faults that a report lists; what comes after them is only counted.
pub const MAX_FAULTS: usize = 1000;

/// What a check found. The counts are of what is still there; what was put right is counted apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Places that could not be looked at.
    pub check_errors: u64,
    /// Faults that endanger data.
    pub corruptions: u64,
    /// Clusters that nothing uses.
    pub leaks: u64,
    /// Faults that were put right.
    pub corruptions_fixed: u64,
    /// Leaks that were put right.
    pub leaks_fixed: u64,
    /// What the repair gave up of the guest's; the first ones are listed among the faults.
    pub lost: u64,
    /// Offset in the file behind the last byte in use.
    pub image_end: Option<u64>,
    /// Allocation units of the guest's disk.
    pub total_units: Option<u64>,
    /// Those that are stored.
    pub allocated_units: Option<u64>,
    /// Those of them that do not stand behind their predecessor.
    pub fragmented_units: Option<u64>,
    /// Those of them that are compressed.
    pub compressed_units: Option<u64>,
    /// The first [`MAX_FAULTS`] faults, in the order of being found.
    pub faults: Vec<Fault>,
}

impl Report {
    /// Counts a fault unless it is a note, and lists it while there is room.
    pub fn add(&mut self, fault: Fault) {
        let count = match (fault.severity, fault.fixed) {
            (Severity::Leak, false) => &mut self.leaks,
            (Severity::Leak, true) => &mut self.leaks_fixed,
            (Severity::Corruption, false) => &mut self.corruptions,
            (Severity::Corruption, true) => &mut self.corruptions_fixed,
            (Severity::Error, _) => &mut self.check_errors,
            (Severity::Note, _) => return self.list(fault),
        };
        *count += 1;
        self.list(fault);
    }

    fn list(&mut self, fault: Fault) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        }
    }

    /// Nothing is wrong (any more).
    pub fn is_clean(&self) -> bool {
        self.check_errors == 0 && self.corruptions == 0 && self.leaks == 0
    }
}

/// An optional ability of a format: checking its images.
pub trait Checker: Send + Sync + Debug {
    /// What users of QEMU know of it.
    fn known(&self) -> KnownCheck {
        KnownCheck::Absent
    }

    /// Looks at everything in the file, and repairs as far as `how` allows. What is wrong with the image is in the
    /// report; an error means that the check itself could not be done.
    fn check(
        &self,
        file: Arc<dyn Storage>,
        files: &dyn Resolver,
        how: &CheckOptions,
        progress: &dyn Progress,
    ) -> Result<Report>;
}
