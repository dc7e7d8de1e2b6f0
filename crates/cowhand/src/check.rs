//! `check`: is everything in an image file as it should be, and what can be put right?

use std::path::Path;

use cowhand_core::{Access, CheckOptions, Error, Progress, Repair, Report, Result};

use crate::open::Open;
use crate::registry;
use crate::resolve::Files;

/// How an image is checked. `Default`: nothing is changed, format by content.
#[derive(Clone, Debug, Default)]
pub struct Check {
    /// How the file is opened: its format, lock, cache mode, and which data file it may name. Its parents are not
    /// looked at.
    pub open: Open,
    /// What may be changed.
    pub repair: Repair,
    /// Threads; 0: as many as the machine has, at most 8.
    pub workers: usize,
}

/// What came of a check.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The format's name.
    pub format: &'static str,
    /// What was found; `None`: images of this format cannot be checked.
    pub report: Option<Report>,
}

/// Checks one image file, and repairs it as far as `how` says. What is wrong with the image is in the report; an error
/// means that the check could not be done.
pub fn check(path: &Path, how: &Check, progress: &dyn Progress) -> Result<Checked> {
    let open = &how.open;
    let files = Files::beside(path, open.policy.clone(), open.lock, open.cache);
    let access = if how.repair == Repair::Nothing { Access::Read } else { Access::Write };
    let storage = files.trusted(path, access)?;
    let named = |error: Error| error.image(path.display());
    let format = match &open.format {
        Some(name) => registry::format(name)?,
        None => registry::detect(storage.as_ref()).map_err(named)?,
    };
    let options = CheckOptions { repair: how.repair, workers: how.workers, secrets: open.secrets.clone() };
    let checker = format.checker();
    let report = checker.map(|checker| checker.check(storage, &files, &options, progress)).transpose();
    Ok(Checked { format: format.names()[0], report: report.map_err(named)? }) // never empty: every format has a name
}
