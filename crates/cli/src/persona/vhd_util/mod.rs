//! `vhd-util` of XenServer and XCP-ng: its verbs, its words, its lines. Its exit status is the number of what went wrong.

mod check;
mod coalesce;
mod copy;
mod create;
mod errno;
mod fill;
mod headers;
mod key;
mod modify;
mod names;
mod percent;
mod query;
mod read;
mod repair;
mod resize;
mod revert;
mod scan;
mod set;
mod snapshot;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use cowhand::{Error, ErrorKind, Lock, Open, Policy, Printable};

use super::getopt::{Flag, Words};
use super::{Command, Failure, complain};
use crate::exit::DONE;
use crate::output::Output;

/// What `-s` and the like count in.
const MIB: u64 = 1 << 20;
/// What disks are rounded up to.
const BLOCK: u64 = 2 << 20;
/// What a length in sectors counts in.
const SECTOR: u64 = 512;

/// One verb.
struct Verb {
    name: &'static str,
    /// One line for help.
    about: &'static str,
    flags: &'static [Flag],
    run: fn(&mut Call<'_>) -> Done,
}

const VERBS: &[Verb] = &[
    create::VERB,
    snapshot::VERB,
    query::VERB,
    read::VERB,
    set::VERB,
    repair::VERB,
    resize::VERB,
    fill::VERB,
    coalesce::VERB,
    modify::VERB,
    scan::VERB,
    check::VERB,
    revert::VERB,
    key::VERB,
    copy::VERB,
];

const NAME: Flag = Flag::short('n', "name", "The image").of("FILE");
const HELP: Flag = Flag::short('h', "help", "Show this");

/// What a verb answers.
type Done = Result<(), Failed>;

/// Why a verb ends early.
enum Failed {
    /// Its help was asked for.
    Help,
    /// The command line makes no sense, and what there is to say of that.
    Usage(String),
    /// A line on standard output, where callers look for it, and the exit status.
    Says { status: u8, line: String, error: Option<Error> },
}

impl Failed {
    /// `WHAT: -NUMBER` on standard output.
    fn of(what: impl std::fmt::Display, error: Error) -> Failed {
        let status = errno::of(&error);
        // Who stopped it knows.
        let stopped = error.kind() == ErrorKind::Cancelled;
        let line = if stopped { String::new() } else { format!("{what}: -{status}") };
        Failed::Says { status, line, error: Some(error) }
    }

    /// A line of its own, with this status.
    fn says(status: u8, line: impl Into<String>) -> Failed {
        Failed::Says { status, line: line.into(), error: None }
    }
}

/// Where a verb has no line of its own: what could not be written to standard output above all.
impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed::Says { status: errno::of(&error), line: String::new(), error: Some(error) }
    }
}

/// One call of a verb.
struct Call<'a> {
    words: Words,
    out: &'a mut Output,
    /// `--debug`: what went wrong is told in full on standard error.
    debug: bool,
}

/// The verbs, for completions and the manual.
pub(super) fn commands() -> Vec<Command> {
    VERBS
        .iter()
        .map(|&Verb { name, about, flags, .. }| Command { name, about, operands: "", flags })
        .collect()
}

/// What is said where standard output takes no more.
pub(super) fn failure(error: &Error) -> Failure {
    Failure { status: errno::of(error), text: format!("vhd-util: {}", error.without_advice()) }
}

pub(super) fn run(words: &[OsString], out: &mut Output) -> Result<u8, Failure> {
    answer(words, out).map_err(|error| failure(&error))
}

/// The exit status. Errors: standard output takes no more, and the status is not worse than that.
fn answer(words: &[OsString], out: &mut Output) -> cowhand::Result<u8> {
    let debug = words.iter().any(|word| word == "--debug");
    let words: Vec<OsString> = words.iter().filter(|word| *word != "--debug").cloned().collect();
    let Some((name, words)) = words.split_first() else { return help(out) };
    let Some(verb) = VERBS.iter().find(|verb| verb.name == name) else {
        complain(&format!("invalid COMMAND {}", name_of(Path::new(name))));
        return help(out);
    };
    let mut call = Call { words: Words::new(verb.name, verb.flags, words), out, debug };
    match (verb.run)(&mut call) {
        Ok(()) => Ok(DONE),
        Err(Failed::Help) => usage(call.out, verb).map(|()| DONE),
        Err(Failed::Usage(text)) => {
            if !text.is_empty() {
                complain(&text);
            }
            // That nobody can read it is said when all is done.
            let _ = usage(call.out, verb);
            Ok(errno::INVALID)
        }
        Err(Failed::Says { status, line, error }) => {
            if !line.is_empty() {
                let _ = writeln!(call.out, "{line}").and_then(|()| call.out.flush());
            }
            call.explain(error.as_ref());
            Ok(status)
        }
    }
}

impl Call<'_> {
    /// The next flag.
    fn next(&mut self) -> Result<Option<(&'static str, OsString)>, Failed> {
        match self.words.next().map_err(Failed::Usage)? {
            Some(("help", _)) => Err(Failed::Help),
            flag => Ok(flag),
        }
    }

    /// No words are left but flags.
    fn end(&mut self) -> Done {
        if self.words.others().is_empty() { Ok(()) } else { Err(wrong()) }
    }

    /// With `--debug`, what went wrong.
    fn explain(&self, error: Option<&Error>) {
        if let Some(error) = error.filter(|_| self.debug) {
            complain(&error.without_advice().to_string());
        }
    }
}

/// The command line makes no sense.
fn wrong() -> Failed {
    Failed::Usage(String::new())
}

/// A flag that must be there.
fn needed<T>(value: Option<T>) -> Result<T, Failed> {
    value.ok_or_else(wrong)
}

/// A number as the C library reads it: up to the first character that is no digit.
fn number(word: &OsStr) -> Result<u64, Failed> {
    let text = word.to_string_lossy();
    let text = text.trim_start();
    let digits: &str = &text[..text.bytes().take_while(u8::is_ascii_digit).count()];
    digits.parse().map_err(|_| wrong())
}

/// So many MiB in bytes, whole blocks of a disk.
fn mebibytes(word: &OsStr) -> Result<u64, Failed> {
    let bytes = number(word)?.checked_mul(MIB).and_then(|size| size.checked_next_multiple_of(BLOCK));
    bytes.ok_or_else(|| Failed::says(errno::INVALID, "no disk can be that large"))
}

/// How an image is looked at: also while somebody uses it, as storage managers do.
fn look() -> Open {
    Open {
        format: Some(FORMAT.to_owned()),
        lock: Lock::None,
        policy: Policy::Local,
        // What names no format is how this tool marks a raw parent.
        parent_format: Some("raw".to_owned()),
        ..Open::default()
    }
}

/// How an image is changed.
fn change() -> Open {
    Open { lock: Lock::Default, ..look() }
}

/// The format that this tool is for.
const FORMAT: &str = "vpc";

/// Whose images these are.
const CREATOR: (&str, &str) = ("creator", "tap");

/// Options by name and value.
fn options(given: &[(&str, &str)]) -> Vec<(String, String)> {
    given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The error of opening `path`.
fn opening(path: &Path) -> impl Fn(Error) -> Failed {
    let shown = name_of(path);
    // A folder, a pipe and the like: no image, and none that something else could open.
    let odd = std::fs::metadata(path).is_ok_and(|there| !there.is_file() && !is_device(&there));
    move |error| {
        let error = if odd { error.with_kind(ErrorKind::Invalid) } else { error };
        Failed::of(format!("error opening {shown}"), error)
    }
}

fn is_device(there: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    there.file_type().is_block_device()
}

/// A file's name as it may be shown: it may come from an image, or from whoever names files.
fn name_of(path: &Path) -> String {
    Printable(&path.display().to_string()).to_string()
}

/// An image's name, from a word.
fn file(word: OsString) -> PathBuf {
    PathBuf::from(word)
}

fn help(out: &mut Output) -> cowhand::Result<u8> {
    let names: Vec<&str> = VERBS.iter().map(|verb| verb.name).collect();
    writeln!(out, "usage: vhd-util COMMAND [OPTIONS]\nCOMMAND := {{ {} }}", names.join(" | "))?;
    Ok(DONE)
}

fn usage(out: &mut Output, verb: &Verb) -> cowhand::Result<()> {
    writeln!(out, "vhd-util {}: {}\noptions:", verb.name, verb.about)?;
    for flag in verb.flags {
        let short = flag.short.unwrap_or(' ');
        let form = flag.value.map_or_else(|| format!("-{short}"), |value| format!("-{short} {value}"));
        writeln!(out, "  {form:<12} {}", flag.help)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_end_where_their_digits_do() {
        for (text, wanted) in
            [("10", Some(10)), (" 7MB", Some(7)), ("0x1", Some(0)), ("", None), ("x1", None), ("-1", None)]
        {
            assert_eq!(number(OsStr::new(text)).ok(), wanted, "{text}");
        }
        assert_eq!(mebibytes(OsStr::new("3")).ok(), Some(4 << 20));
        assert!(mebibytes(OsStr::new("18446744073709551615")).is_err());
    }

    #[test]
    fn every_verb_has_help_and_a_name_flag_that_means_one_thing() {
        for verb in VERBS {
            let letters: Vec<char> = verb.flags.iter().filter_map(|flag| flag.short).collect();
            let mut once = letters.clone();
            once.sort_unstable();
            once.dedup();
            assert_eq!(once.len(), letters.len(), "{}", verb.name);
            assert!(letters.contains(&'h') && letters.contains(&'n') || verb.name == "scan", "{}", verb.name);
        }
    }
}
