//! `check`: is everything in an image file as it should be, and what can be put right?

use std::path::Path;

use cowhand_core::{
    CheckOptions, Error, ErrorKind, Fault, KnownCheck, Link, Progress, Repair, Report, Result, Rules,
    Severity,
};

use crate::archive::content::Content;
use crate::archive::part::Part;
use crate::open::{Open, Opened, access, open_as_far};
use crate::registry;
use crate::resolve::Files;

/// How an image is checked. `Default`: nothing is changed, format by content.
#[derive(Clone, Debug, Default)]
pub struct Check {
    /// How the file is opened: its format, lock, cache mode, and which data file it may name. [`check`] does not look
    /// at its parents.
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
    /// What users of QEMU know of that.
    pub known: KnownCheck,
}

/// Checks one image file, and repairs it as far as `how` says. What is wrong with the image is in the report; an error
/// means that the check could not be done.
pub fn check(path: &Path, how: &Check, progress: &dyn Progress) -> Result<Checked> {
    check_by(path, how, Rules::default(), progress)
}

/// As [`check`], asking more or less than usual.
pub fn check_by(path: &Path, how: &Check, rules: Rules, progress: &dyn Progress) -> Result<Checked> {
    let writable = how.repair != Repair::Nothing;
    let open = &Open { writable, ..how.open.clone() };
    let open = &*open.sharing(path);
    let format = open.format.as_deref().map(registry::format).transpose()?;
    let part = Part::of(path);
    let files = Files::beside(part.file, open);
    let storage = files.top(&part, open, access(writable))?;
    let named = |error: Error| error.image(path.display());
    let Content { format, packing } = Content::of(&storage, format, open.probing).map_err(named)?;
    if packing.is_some() {
        let name = format.names()[0]; // never empty: every format has a name
        return Err(named(Error::unsupported("is packed, and is checked as it is unpacked"))
            .hint(format!("use cowhand {name} verify")));
    }
    if format.archives().is_none() {
        part.refuse_disk(format)?;
    }
    let options =
        CheckOptions { repair: how.repair, workers: how.workers, secrets: open.secrets.clone(), rules };
    let checker = format.checker();
    let report = checker.map(|checker| checker.check(storage, &files, &options, progress)).transpose();
    let known = checker.map_or(KnownCheck::Absent, |checker| checker.known());
    Ok(Checked { format: format.names()[0], report: report.map_err(named)?, known }) // never empty: every format has a name
}

/// What came of checking a chain.
#[derive(Clone, Debug)]
pub struct ChainChecked {
    /// What the top's own check found.
    pub top: Checked,
    /// Every file that was reached, the top first.
    pub files: Vec<ChainFile>,
}

/// One file of a chain.
#[derive(Clone, Debug)]
pub struct ChainFile {
    /// The file, as it was named or found.
    pub filename: String,
    /// The format's name.
    pub format: &'static str,
    /// Images of this format can be checked; otherwise no more was seen than whether it opens.
    pub has_check: bool,
    /// What its own check found, and what is wrong with the way to its parent.
    pub report: Report,
    /// A command that would mend that way, `FILE` standing for this file.
    pub remedy: Option<&'static str>,
}

/// Checks an image and all that it stands on: each file by itself, and whether each parent is there, may be opened, is
/// the one its child remembers, and does not stand in the chain twice. Only the top is repaired, before the rest is
/// looked at. Errors: the top could not be checked.
pub fn check_chain(path: &Path, how: &Check, progress: &dyn Progress) -> Result<ChainChecked> {
    let top = check(path, how, progress)?;
    let look = Open { writable: false, metadata_only: true, ..how.open.clone() };
    let first = ChainFile::of(path.display().to_string(), top.clone());
    let (opened, broken) = match open_as_far(path, &look) {
        Ok(found) => found,
        Err(error) => {
            let mut files = vec![first];
            add(&mut files, "what it stands on was not looked at, for it cannot be opened", &error);
            return Ok(ChainChecked { top, files });
        }
    };
    let links = opened.links().iter().skip(1);
    let mut found: Vec<(String, Option<String>)> =
        links.map(|link| (link.name.clone(), Some(link.format.to_owned()))).collect();
    let whole = found.len();
    found.extend(broken.as_ref().and_then(|error| damaged(&opened, error)));
    // Their locks are given back: each check opens its file for itself.
    drop(opened);

    let mut files = vec![first];
    for (number, (name, format)) in found.into_iter().enumerate() {
        if let Some(error) = broken.as_ref().filter(|_| number == whole) {
            add(&mut files, "its parent cannot be opened", error);
        }
        let open = Open { format: format.clone(), options: Vec::new(), ..how.open.clone() };
        let alone = Check { open, repair: Repair::Nothing, workers: how.workers };
        match check(Path::new(&name), &alone, progress) {
            Ok(checked) => files.push(ChainFile::of(name, checked)),
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => {
                let format =
                    format.map_or(Ok("unknown"), |name| registry::format(&name).map(|f| f.names()[0]))?; // never empty: every format has a name
                files.push(ChainFile::of(
                    name,
                    Checked { format, report: Some(Report::default()), known: KnownCheck::Absent },
                ));
                let error = error.with_kind(ErrorKind::Io);
                add(&mut files, "could not be checked", &error);
            }
        }
    }
    if let Some(error) = broken.filter(|_| files.len() == whole + 1) {
        let own = files.last().map(|file| file.filename.as_str()) == error.image_name();
        add(&mut files, "its parent cannot be used", &error);
        if let Some(last) = files.last_mut().filter(|_| own && severity(&error) == Severity::Corruption) {
            last.remedy = Some("cowhand reconnect-parent FILE PARENT");
        }
    }
    Ok(ChainChecked { top, files })
}

impl ChainFile {
    fn of(filename: String, checked: Checked) -> ChainFile {
        let Checked { format, report, .. } = checked;
        let has_check = report.is_some();
        ChainFile { filename, format, has_check, report: report.unwrap_or_default(), remedy: None }
    }
}

/// The file that was opened as a parent and then turned out to be damaged, and the format its child says it has.
fn damaged(opened: &Opened, error: &Error) -> Option<(String, Option<String>)> {
    let name = error.image_name().filter(|_| error.kind() == ErrorKind::Corrupt)?;
    let same = |link: &Link| link.name == name;
    if opened.links().iter().any(same) || !opened.watched().iter().any(|file| file.name == name) {
        return None;
    }
    let stated =
        opened.links().last().and_then(|child| child.layer.parent()).and_then(|parent| parent.format);
    Some((name.to_owned(), stated))
}

/// Puts a fault down to the last of the files. Advice that is about other verbs' options stays away.
fn add(files: &mut [ChainFile], what: &str, error: &Error) {
    let Some(file) = files.last_mut() else { return };
    let text = error.to_string();
    let useful = error.kind() == ErrorKind::Denied;
    let advice = error.advice().filter(|_| !useful).map(|advice| format!("; {advice}"));
    let said = advice.and_then(|advice| text.strip_suffix(&advice)).unwrap_or(&text);
    let message = format!("{what}: {said}");
    file.report.add(Fault::new(severity(error), error.offset(), message));
}

/// What is wrong with a chain endangers its disk; what could not be looked at may be right.
fn severity(error: &Error) -> Severity {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::Mismatch | ErrorKind::Corrupt | ErrorKind::ChainTooLong => {
            Severity::Corruption
        }
        _ => Severity::Error,
    }
}
