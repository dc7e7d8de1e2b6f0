//! `doctor`: what a file is, whether it is whole and safe, and what can be done with it; in bounded time, reading only.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cowhand_core::{
    Access, Cache, Compat, Error, ErrorKind, FileStorage, Lock, Printable, Progress, Result, Severity,
    Storage,
};
use cowhand_packed::Packing;
use serde_json::{Map, Value, json};

use crate::archive::content::{Content, packing, unpacked_head};
use crate::archive::front;
use crate::archive::names::names;
use crate::archive::part::Part;
use crate::check::{Check, check};
use crate::consumer::{consumers, verdict};
use crate::info::{Info, info};
use crate::inspect::{Verdict, inspect_storage};
use crate::open::{Open, Parent, open_as_far};
use crate::resolve::{folder_of, folder_to_allow, protocol};
use crate::stream::From;

/// How long the tables of an image are looked at.
const PATIENCE: Duration = Duration::from_secs(20);
/// Names in a folder that are looked through for what was left behind.
const NAMES: usize = 100_000;
/// Findings of one kind that are told.
const TOLD: usize = 5;
/// Bytes by which text is told from a disk.
const HEAD: usize = 4096;

/// What was found of a file.
#[derive(Clone, Debug, Default)]
pub struct Diagnosis {
    /// The file, as it was named.
    pub filename: String,
    /// What it is, in a few words.
    pub what: String,
    /// The format's name; `None`: none that is known here.
    pub format: Option<String>,
    /// How the file is packed, where it is.
    pub packing: Option<&'static str>,
    /// Guest bytes, where there is one answer.
    pub virtual_size: Option<u64>,
    /// Bytes of the file.
    pub file_size: u64,
    /// Bytes of space that it takes.
    pub actual_size: u64,
    /// Everything that was found, the worst first.
    pub findings: Vec<Finding>,
    /// What stands well, in short lines: what it stands on, who takes it.
    pub facts: Vec<(&'static str, String)>,
    /// What was not looked at.
    pub unseen: Vec<String>,
    /// What can be done with it: commands, of which the first words are the program's own.
    pub next: Vec<Advice>,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at: `whole`, `safe`, `parent`, `in use`, `beside it`.
    pub about: &'static str,
    /// What was found, for people.
    pub text: String,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Data is wrong or missing.
    Damaged,
    /// Somebody should know before the file is used.
    Attention,
}

/// A command to type next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// What it does.
    pub what: String,
    /// Its words, not quoted. Capitals stand for what the caller has to put there.
    pub command: Vec<String>,
}

impl Diagnosis {
    /// The worst that was found; `None`: it is whole and safe.
    pub fn worst(&self) -> Option<Level> {
        self.findings.iter().map(|finding| finding.level).min()
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let level = |level| match level {
            Level::Damaged => "damaged",
            Level::Attention => "attention",
        };
        let finding = |finding: &Finding| json!({ "level": level(finding.level), "about": finding.about, "text": finding.text });
        let advice = |advice: &Advice| json!({ "what": advice.what, "command": advice.command });
        json!({
            "filename": self.filename,
            "what": self.what,
            "format": self.format,
            "packing": self.packing,
            "virtual-size": self.virtual_size,
            "file-size": self.file_size,
            "actual-size": self.actual_size,
            "verdict": self.worst().map_or("whole", level),
            "findings": self.findings.iter().map(finding).collect::<Vec<_>>(),
            "facts": self.facts.iter().map(|(name, text)| ((*name).to_owned(), text.as_str().into())).collect::<Map<_, _>>(),
            "not-looked-at": self.unseen,
            "next": self.next.iter().map(advice).collect::<Vec<_>>(),
        })
    }

    fn add(&mut self, level: Level, about: &'static str, text: impl Into<String>) {
        self.findings.push(Finding { level, about, text: text.into() });
    }

    fn next(&mut self, what: impl Into<String>, command: &[&str]) {
        // The file's own name is none of the flags.
        let word = |word: &&str| match *word == self.filename && word.starts_with('-') {
            true => format!("./{word}"),
            false => (*word).to_owned(),
        };
        let command = command.iter().map(word).collect();
        let advice = Advice { what: what.into(), command };
        if !self.next.iter().any(|known| known.command == advice.command) {
            self.next.push(advice);
        }
    }
}

/// Looks at the file `path`: what it is, whether it is whole, whether a stranger's could be used, and what can be done
/// with it. Nothing is written; what an image names is opened under `how`'s policy alone, and what it stands on is not
/// checked. Errors: the file could not be looked at at all.
pub fn doctor(path: &Path, how: &Open, progress: &dyn Progress) -> Result<Diagnosis> {
    let part = Part::of(path);
    if part.disk.is_some() {
        return Err(Error::invalid("is one disk of an archive, and a doctor looks at the whole of it")
            .hint("name the archive alone")
            .image(path.display()));
    }
    let named = |error: Error| error.image(path.display());
    if std::fs::metadata(path).is_ok_and(|there| there.is_dir()) {
        return Err(named(Error::invalid("is a folder")).hint("'cowhand scan' lists the images in one"));
    }
    let mut found = Diagnosis { filename: path.display().to_string(), ..Diagnosis::default() };
    let mut how = Open { metadata_only: true, writable: false, ..how.clone() };
    let file: Arc<dyn Storage> = match FileStorage::open(path, Access::Read, how.lock, Cache::default()) {
        Ok(file) => Arc::new(file),
        Err(error) if error.kind() == ErrorKind::Locked => {
            found.add(Level::Attention, "in use", error.message());
            found.unseen.push("its tables, which change while another program writes".to_owned());
            found.next(
                "look at them as they are now",
                &["cowhand", "doctor", "-U", &path.display().to_string()],
            );
            how.lock = Lock::None;
            Arc::new(FileStorage::open(path, Access::Read, Lock::None, Cache::default())?)
        }
        Err(error) => return Err(error),
    };
    let failed = |error| named(Error::io("cannot look at", error));
    found.file_size = file.len().map_err(failed)?;
    found.actual_size = file.physical_size().map_err(failed)?;
    let mut exam = Exam { path, how: &how, busy: !found.findings.is_empty(), found, progress };
    exam.gate(file.as_ref())?;
    match (exam.found.file_size, Content::of(&file, exam.format()?, how.probing)) {
        (0, _) => {
            exam.found.what = "an empty file".to_owned();
            exam.found.virtual_size = None;
            exam.found.add(Level::Attention, "whole", "there is nothing in it: no disk, and no archive");
        }
        (_, Err(error)) => exam.nothing_known(&error),
        (_, Ok(content)) => exam.content(content, &file)?,
    }
    drop(file);
    exam.beside();
    let mut found = exam.found;
    found.findings.sort_by_key(|finding| finding.level);
    Ok(found)
}

/// The looking itself.
struct Exam<'a> {
    path: &'a Path,
    how: &'a Open,
    /// Another program writes to it.
    busy: bool,
    found: Diagnosis,
    progress: &'a dyn Progress,
}

impl Exam<'_> {
    fn format(&self) -> Result<Option<&'static dyn cowhand_core::Format>> {
        self.how.format.as_deref().map(crate::registry::format).transpose()
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// What the safety gate says.
    fn gate(&mut self, file: &dyn Storage) -> Result<()> {
        let report =
            inspect_storage(file, Compat::Strict).map_err(|error| error.image(self.path.display()))?;
        self.found.virtual_size = report.virtual_size;
        if report.verdict != Verdict::Safe {
            for failed in report.failed.iter().take(TOLD) {
                let text = format!("{} ({})", failed.reason, failed.check);
                self.found.add(Level::Attention, "safe", text);
            }
            if report.failed.is_empty() {
                let formats = report.formats.join(", ");
                self.found.add(Level::Attention, "safe", format!("it could be taken for {formats}"));
            }
        }
        self.found.what = format!("a file that begins as {} does", report.formats.join(" and "));
        Ok(())
    }

    /// It is no format that is known here, or several.
    fn nothing_known(&mut self, error: &Error) {
        let name = self.name();
        self.found.virtual_size = None;
        let advice = error.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
        let level = if error.kind() == ErrorKind::Corrupt { Level::Damaged } else { Level::Attention };
        self.found.add(level, "whole", format!("{}{advice}", error.message()));
        self.found.unseen.push("whether it is whole: nobody here knows its format for sure".to_owned());
        self.found.next("judge it as a stranger's image", &["cowhand", "inspect", &name]);
    }

    fn content(&mut self, content: Content, file: &Arc<dyn Storage>) -> Result<()> {
        let Content { format, packing } = content;
        let name = format.names()[0]; // never empty: every format has a name
        self.found.format = Some(name.to_owned());
        self.found.packing = packing.map(|packing| packing.name());
        if format.archives().is_some() {
            return self.archive(name);
        }
        let other = if format.is_bare() { no_disk(file)? } else { None };
        self.image(name, other.is_some())?;
        if let Some(NoDisk { what, why, packing }) = other {
            self.found.what = what;
            self.found.virtual_size = None;
            self.found.facts.clear();
            self.found.add(Level::Attention, "whole", why);
            self.found.next.clear();
            self.unpack(packing);
        }
        Ok(())
    }

    /// How to get at what is packed: the program of that name does it, where the file has its extension.
    fn unpack(&mut self, packing: Option<&dyn Packing>) {
        let (name, Some(packing)) = (self.name(), packing) else { return };
        if cowhand_packed::by_extension(&name).is_some_and(|named| named.name() == packing.name()) {
            self.found
                .next("unpack it beside itself, and look at that", &[packing.name(), "-dk", "--", &name]);
        }
    }

    /// An archive: its front alone is read.
    fn archive(&mut self, format: &'static str) -> Result<()> {
        let name = self.name();
        // The gate takes no archive for a disk, and nor does anybody here.
        self.found.findings.retain(|finding| finding.about != "safe");
        let packed = self.found.packing.map(|packing| format!(", packed with {packing}")).unwrap_or_default();
        self.found.what = format!("a {format} backup archive{packed}");
        let verify = ["cowhand", format, "verify", &name];
        match front(From::File(self.path), Some(format), &Limited::new(self.progress)) {
            Ok(front) => {
                let what = &front.manifest;
                let disks: Vec<String> = what.disks.iter().map(|disk| disk.name.clone()).collect();
                self.found.virtual_size =
                    what.disks.iter().try_fold(0_u64, |sum, disk| sum.checked_add(disk.size));
                self.found.facts.push(("disks", list(&disks)));
                let configs: Vec<String> = what.configs.iter().map(|config| config.name.clone()).collect();
                self.found.facts.push(("configurations", list(&configs)));
                self.found.unseen.push("all but its front: whether its disks are all there".to_owned());
                self.found.next("read it to its end: is every byte there?", &verify);
                self.found.next("list what it holds", &["cowhand", format, "list", &name]);
                match names(what, |_| true, "raw", false) {
                    Ok(_) => {
                        self.found
                            .next("take its disks out", &["cowhand", format, "extract", &name, "NEWDIR"]);
                    }
                    Err(error) => {
                        self.found.add(Level::Attention, "safe", error.message());
                        let renamed = ["cowhand", format, "extract", "--salvage", &name, "NEWDIR"];
                        self.found.next("take its disks out under other names", &renamed);
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => {
                self.found.add(level(&error), "whole", without_name(&error, &name));
                self.found.next("tell all that is wrong with it", &verify);
                let salvage = ["cowhand", format, "extract", "--salvage", &name, "NEWDIR"];
                self.found.next("take out what is intact", &salvage);
            }
        }
        Ok(())
    }

    /// An image: what it says, its tables, its parent, and who takes it. `other`: it is hardly one.
    fn image(&mut self, format: &'static str, other: bool) -> Result<()> {
        let name = self.name();
        let opened = match info(self.path, &Open { parent: Parent::Ignored, ..self.how.clone() }, false) {
            Ok(mut found) => {
                let image = found.swap_remove(0); // never empty: the image itself
                self.describe(format, &image);
                Some(image.details.encrypted)
            }
            Err(error) => {
                self.found.what = format!("a {format} image that cannot be opened");
                self.found.add(level(&error), "whole", without_name(&error, &name));
                None
            }
        };
        if !self.busy {
            self.tables(format)?;
        }
        if let Some(encrypted) = opened {
            self.parent()?;
            if !other {
                self.takers(format);
                self.uses(format, encrypted);
            }
        }
        Ok(())
    }

    fn describe(&mut self, format: &'static str, image: &Info) {
        self.found.what = format!("a {format} image");
        self.found.virtual_size = Some(image.virtual_size);
        if image.details.encrypted {
            self.found.facts.push(("encrypted", "yes: reading it takes a secret".to_owned()));
            self.found.unseen.push("whether a secret opens it".to_owned());
        }
        if !image.snapshots.is_empty() {
            let names: Vec<String> = image.snapshots.iter().map(|snapshot| snapshot.name.clone()).collect();
            self.found.facts.push(("snapshots", list(&names)));
        }
        if image.hidden == Some(true) {
            self.found.facts.push(("hidden", "yes: lists of disks leave it out".to_owned()));
        }
        if image.details.dirty && !self.busy {
            self.found.add(
                Level::Attention,
                "whole",
                "it was not closed cleanly: the next program that opens it for writing puts it right",
            );
            let name = self.name();
            self.found.next("put it right now", &["cowhand", "check", "-r", "all", &name]);
        }
    }

    /// Every table of the file, as far as the time reaches.
    fn tables(&mut self, format: &'static str) -> Result<()> {
        let name = self.name();
        let how = Check { open: self.how.clone(), ..Check::default() };
        let limited = Limited::new(self.progress);
        let report = match check(self.path, &how, &limited) {
            Ok(checked) => checked.report,
            Err(error) if error.kind() == ErrorKind::Cancelled && limited.is_over() => {
                let seconds = PATIENCE.as_secs();
                self.found.unseen.push(format!("all its tables: they take longer than {seconds} s"));
                self.found.next("look at all its tables", &["cowhand", "check", &name]);
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => {
                // What keeps it from being opened is told already.
                if !self.found.findings.iter().any(|finding| finding.about == "whole") {
                    self.found.add(level(&error), "whole", without_name(&error, &name));
                }
                return Ok(());
            }
        };
        let Some(report) = report else {
            self.found.facts.push(("tables", format!("a {format} image has none that could be checked")));
            return Ok(());
        };
        let worst = |severity: Severity| report.faults.iter().filter(move |fault| fault.severity == severity);
        for fault in worst(Severity::Corruption).chain(worst(Severity::Error)).take(TOLD) {
            let at = fault.at.map(|at| format!(" (at offset {at})")).unwrap_or_default();
            self.found.add(Level::Damaged, "whole", format!("{}{at}", fault.message));
        }
        if report.corruptions + report.check_errors > 0 {
            let count = report.corruptions + report.check_errors;
            if count as usize > TOLD {
                self.found.add(Level::Damaged, "whole", format!("{count} faults in all"));
            }
            self.found.next("list all that is wrong", &["cowhand", "check", &name]);
            self.found.next("keep a copy before it is repaired", &["cp", "--", &name, "COPY"]);
            self.found.next("repair what can be repaired", &["cowhand", "check", "-r", "all", &name]);
        } else if report.leaks > 0 {
            self.found.facts.push(("space lost", format!("{} clusters that nothing uses", report.leaks)));
            self.found.next("give back the lost space", &["cowhand", "check", "-r", "leaks", &name]);
        } else {
            self.found.facts.push(("tables", "all of them were checked, and are right".to_owned()));
        }
        Ok(())
    }

    /// Whether what it stands on is there, and is the one.
    fn parent(&mut self) -> Result<()> {
        let name = self.name();
        let look = Open { lock: Lock::None, ..self.how.clone() };
        let (opened, lost) = match open_as_far(self.path, &look) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(_) => return Ok(()), // told already
        };
        let named = opened.links().first().and_then(|top| top.layer.parent());
        let Some(named) = named else { return Ok(()) };
        let remembers = !named.expected.is_empty();
        let Some(parent) = named.candidates.into_iter().next() else { return Ok(()) };
        let parent = parent.display().to_string();
        self.found.unseen.push("what it stands on: 'cowhand check --chain' does".to_owned());
        let Some(error) = lost else {
            let files = opened.links().len() - 1;
            let above = opened.links().get(1).map_or(parent, |link| link.name.clone());
            let more = if files > 1 { format!(", the first of {files} files") } else { String::new() };
            self.found.facts.push(("stands on", format!("{above}, which is there{more}")));
            self.found.next("look at all that it stands on", &["cowhand", "check", "--chain", &name]);
            self.found.next("see the chain", &["cowhand", "chain", &name]);
            self.found.next("move its data down into its parent", &["cowhand", "commit", &name]);
            return Ok(());
        };
        let why = without_name(&error, &name);
        if error.kind() == ErrorKind::Denied {
            self.found.add(Level::Attention, "parent", format!("{parent} was not looked at: {why}"));
            let paths = match (protocol(&parent), folder_to_allow(self.path, Path::new(&parent))) {
                (Some(("file", _)), _) => Some("--paths=any".to_owned()),
                (Some(_), _) => None, // no policy makes us follow it
                (None, Some(folder)) => Some(format!("--paths=allow={}", folder.display())),
                (None, None) => Some("--paths=local".to_owned()),
            };
            if let Some(paths) = paths {
                self.found.next("look there, if you trust it", &["cowhand", "doctor", &paths, &name]);
            }
            return Ok(());
        }
        let level = if error.kind() == ErrorKind::NotFound { Level::Damaged } else { level(&error) };
        self.found.add(level, "parent", format!("{parent} cannot be used: {why}"));
        // Where it does not remember which one it was, nobody but the caller can tell.
        let force: &[&str] = if remembers { &[] } else { &["--force"] };
        let say = [&["cowhand", "reconnect-parent"], force, &[&name, "PARENT"]].concat();
        self.found.next("say where its parent is now", &say);
        Ok(())
    }

    /// Who takes it as it is, of those who take its format.
    fn takers(&mut self, format: &'static str) {
        let name = self.name();
        let takes = |whom: &str| {
            let formats = crate::registry::formats().iter().filter(|known| known.names().contains(&format));
            formats.flat_map(|known| known.consumers()).any(|consumer| consumer.name == whom)
        };
        let alone = Open { format: Some(format.to_owned()), ..self.how.clone() };
        let (mut yes, mut no) = (Vec::new(), Vec::new());
        for whom in consumers().into_iter().filter(|whom| takes(whom)) {
            match verdict(self.path, &alone, whom) {
                Ok(verdict) if verdict.objections.is_empty() => yes.push(whom.to_owned()),
                Ok(verdict) => {
                    no.push(whom.to_owned());
                    let what = format!("tell what {} would refuse", verdict.title);
                    self.found.next(what, &["cowhand", "check", "--for", whom, &name]);
                }
                Err(_) => {} // what keeps it from being read is told already
            }
        }
        if !yes.is_empty() {
            self.found.facts.push(("taken by", list(&yes)));
        }
        if !no.is_empty() {
            self.found.facts.push(("refused by", list(&no)));
        }
    }

    /// What it is good for.
    fn uses(&mut self, format: &'static str, encrypted: bool) {
        if self.busy || self.found.worst() == Some(Level::Damaged) {
            return;
        }
        let name = self.name();
        let extension = if format == "raw" { "NEW.qcow2" } else { "NEW.raw" };
        let key: &[&str] = if encrypted { &["--key-file", "SECRETFILE"] } else { &[] };
        let convert = [&["cowhand", "convert"], key, &[&name, extension]].concat();
        self.found.next("make an image of another format of it", &convert);
    }

    /// What was left behind beside it.
    fn beside(&mut self) {
        let Some(name) = self.path.file_name().and_then(|name| name.to_str()) else { return };
        let Ok(folder) = std::fs::read_dir(folder_of(self.path)) else { return };
        let partial = format!(".{name}.partial-");
        let left: Vec<PathBuf> = folder
            .take(NAMES)
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&partial))
            .map(|entry| self.path.with_file_name(entry.file_name()))
            .collect();
        for path in left.iter().take(TOLD) {
            let shown = path.display().to_string();
            let size = std::fs::metadata(path).map_or(0, |there| there.len());
            self.found.add(
                Level::Attention,
                "beside it",
                format!(
                    "{shown} ({size} bytes) is being written, or was left behind when that was broken off"
                ),
            );
            self.found.next("take it away, if nothing writes to it any more", &["rm", "-r", "--", &shown]);
        }
    }
}

/// A few names of many.
fn list(names: &[String]) -> String {
    const MOST: usize = 8;
    let shown: Vec<String> = names.iter().take(MOST).map(|name| Printable(name).to_string()).collect();
    match (shown.is_empty(), names.len() - shown.len()) {
        (true, _) => "none".to_owned(),
        (false, 0) => shown.join(", "),
        (false, more) => format!("{} and {more} more", shown.join(", ")),
    }
}

/// What keeps a file from being looked at is damage only where its own bytes do.
fn level(error: &Error) -> Level {
    match error.kind() {
        ErrorKind::Corrupt | ErrorKind::Mismatch | ErrorKind::Changed | ErrorKind::Io => Level::Damaged,
        _ => Level::Attention,
    }
}

/// The page is about one file, which its head names.
fn without_name(error: &Error, name: &str) -> String {
    let text = error.to_string();
    text.strip_prefix(&format!("{}: ", Printable(name))).unwrap_or(&text).to_owned()
}

/// What is hardly a disk, although nothing else claims its content.
struct NoDisk {
    what: String,
    why: String,
    packing: Option<&'static dyn Packing>,
}

/// As far as the front tells.
fn no_disk(file: &Arc<dyn Storage>) -> Result<Option<NoDisk>> {
    if let Some(packing) = packing(file.as_ref())? {
        let name = packing.name();
        let why = match unpacked_head(file, packing).is_empty() {
            true => {
                format!("it is packed with {name}, and nothing of it can be unpacked: cut off, or damaged")
            }
            false => format!(
                "it is packed with {name}: what is in it was not looked at, and is no disk as it stands"
            ),
        };
        let what = format!("a file packed with {name}, or a disk that begins so");
        return Ok(Some(NoDisk { what, why, packing: Some(packing) }));
    }
    let mut head = vec![0; file.len().unwrap_or(0).min(HEAD as u64) as usize];
    if head.is_empty() || file.read_at(0, &mut head).is_err() {
        return Ok(None);
    }
    Ok(if is_text(&head) {
        let what = "a text file, or a disk that begins with text".to_owned();
        Some(NoDisk { what, why: "it is text at its front: hardly a disk".to_owned(), packing: None })
    } else {
        crate::registry::no_disk(&head).map(|kind| NoDisk {
            what: format!("{kind}, or a disk that begins so"),
            why: format!("it begins as {kind} does: hardly a disk"),
            packing: None,
        })
    })
}

/// Text; never of nothing.
fn is_text(head: &[u8]) -> bool {
    // A character may be cut at the end.
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(head.get(..error.valid_up_to()).unwrap_or_default()).unwrap_or_default()
        }
        Err(_) => return false,
    };
    text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\r' | '\t'))
}

/// Stops when the time is over, or somebody asks.
struct Limited<'a> {
    inner: &'a dyn Progress,
    until: Instant,
}

impl<'a> Limited<'a> {
    fn new(inner: &'a dyn Progress) -> Limited<'a> {
        Limited { inner, until: Instant::now() + PATIENCE }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }
}

impl Progress for Limited<'_> {
    fn at(&self, done: u64, total: u64) -> ControlFlow<()> {
        if self.is_over() { ControlFlow::Break(()) } else { self.inner.at(done, total) }
    }
}
