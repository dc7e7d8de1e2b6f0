//! `check`: is everything in an image file as it should be, and what can be put right?

use std::path::Path;

use cowhand_core::{Access, Cache, CheckOptions, Lock, Progress, Repair, Report, Result};

use crate::registry;
use crate::resolve::{Files, Policy};

/// How an image is checked. `Default`: nothing is changed, format by content.
#[derive(Clone, Debug, Default)]
pub struct Check {
    /// The image's format; `None`: by content.
    pub format: Option<String>,
    /// [`Lock::None`] is `--force-share`; not for a repair.
    pub lock: Lock,
    /// What reads, writes and syncs promise.
    pub cache: Cache,
    /// Which files the image may make us open: its data file. Its parents are not looked at.
    pub policy: Policy,
    /// What may be changed, threads, secrets.
    pub options: CheckOptions,
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
    let files = Files::beside(path, how.policy.clone(), how.lock, how.cache);
    let access = if how.options.repair == Repair::Nothing { Access::Read } else { Access::Write };
    let storage = files.trusted(path, access)?;
    let named = |error: cowhand_core::Error| error.image(path.display());
    let format = match &how.format {
        Some(name) => registry::format(name)?,
        None => registry::detect(storage.as_ref()).map_err(named)?,
    };
    let checker = format.checker();
    let report = checker.map(|checker| checker.check(storage, &files, &how.options, progress)).transpose();
    Ok(Checked { format: format.names()[0], report: report.map_err(named)? }) // never empty: every format has a name
}
