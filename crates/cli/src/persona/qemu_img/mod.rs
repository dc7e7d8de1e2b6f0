//! `qemu-img` 10: its verbs, its words, its text. The work is that of the library's verbs.

mod amend;
mod bench;
mod bitmap;
mod check;
mod commit;
mod compare;
mod convert;
mod create;
mod dd;
mod errors;
mod info;
mod json;
mod map;
mod measure;
mod numbers;
mod parameters;
mod rebase;
mod resize;
mod snapshot;
mod source;
mod values;

use std::ffi::{OsStr, OsString};

use cowhand::ErrorKind;

use super::getopt::{Flag, Words};
use super::{Command, Failure, Outcome};
use crate::exit::{DONE, FAILED, STOPPED};
use crate::output::Output;
use crate::verbs::Form;

/// One verb.
struct Verb {
    name: &'static str,
    /// One line for the list of verbs.
    about: &'static str,
    /// What stands behind the flags, for help.
    operands: &'static str,
    flags: &'static [Flag],
    run: fn(&mut Call<'_>) -> Outcome,
}

const VERBS: &[Verb] = &[
    amend::VERB,
    bench::VERB,
    bitmap::VERB,
    check::VERB,
    commit::VERB,
    compare::VERB,
    convert::VERB,
    create::VERB,
    dd::VERB,
    info::VERB,
    map::VERB,
    measure::VERB,
    rebase::VERB,
    resize::VERB,
    snapshot::VERB,
];

/// What the real one prints of itself. Callers look at the number.
const VERSION: &str = "qemu-img version 10.0.2 (Cowhand ";

/// One call of a verb.
struct Call<'a> {
    verb: &'static Verb,
    words: Words,
    out: &'a mut Output,
}

/// The verbs, for completions and the manual.
pub(super) fn commands() -> Vec<Command> {
    VERBS
        .iter()
        .map(|&Verb { name, about, operands, flags, .. }| Command { name, about, operands, flags })
        .collect()
}

pub(super) fn run(words: &[OsString], out: &mut Output) -> Outcome {
    const FLAGS: &[Flag] = &[
        Flag::both('h', "help", "Show this"),
        Flag::both('V', "version", "Show the version"),
        Flag::both('T', "trace", "Accepted; there is nothing to trace").of("TRACE"),
    ];
    let try_help = |text: String| usage("", &text);
    let mut parsed = Words::new("qemu-img", FLAGS, words).strict();
    while let Some((flag, _)) = parsed.next().map_err(try_help)? {
        match flag {
            "help" => return help(out, FLAGS),
            "version" => return version(out),
            _ => {}
        }
    }
    let others = parsed.others();
    let Some((name, words)) = others.split_first() else {
        return Err(try_help("qemu-img: Not enough arguments".to_owned()));
    };
    let Some(verb) = VERBS.iter().find(|verb| verb.name == name) else {
        return Err(try_help(format!("qemu-img: Command not found: {}", name.display())));
    };
    let words = Words::new(format!("qemu-img {}", verb.name), verb.flags, words);
    (verb.run)(&mut Call { verb, words, out })
}

impl Call<'_> {
    /// The next flag. `--help`, which every verb has, is answered by [`Call::help`].
    fn next(&mut self) -> Result<Option<(&'static str, OsString)>, Failure> {
        self.words.next().map_err(|text| usage(self.verb.name, &text))
    }

    /// Right behind the first word that is no flag, `-5` is none either.
    fn take_negative_numbers(&mut self) {
        self.words.take_negative_numbers();
    }

    /// The words that are no flags.
    fn others(&mut self) -> Vec<OsString> {
        self.words.others()
    }

    /// The command line makes no sense, and the verb's help shows how it would.
    fn usage(&self, text: &str) -> Failure {
        usage(self.verb.name, &format!("qemu-img: {text}"))
    }

    /// The value of `--output`.
    fn form(&self, value: &OsStr) -> Result<Form, Failure> {
        match value.as_encoded_bytes() {
            b"human" => Ok(Form::Human),
            b"json" => Ok(Form::Json),
            _ => Err(self.usage(&format!("--output expects 'human' or 'json' not '{}'", value.display()))),
        }
    }

    /// What this verb takes.
    fn help(&mut self) -> Outcome {
        let Verb { name, about, operands, flags, .. } = self.verb;
        let write = |out: &mut Output| -> cowhand::Result<()> {
            writeln!(out, "{about}.  Usage:\n\n  qemu-img {name} [OPTIONS] {operands}\n\nOptions:")?;
            flags.iter().try_for_each(|flag| describe(out, flag))
        };
        write(self.out)?;
        Ok(DONE)
    }
}

/// A failure that says `qemu-img: TEXT`, with exit status 1.
fn says(text: impl std::fmt::Display) -> Failure {
    Failure { status: FAILED, text: format!("qemu-img: {text}") }
}

fn usage(verb: &str, text: &str) -> Failure {
    let name = if verb.is_empty() { String::new() } else { format!(" {verb}") };
    Failure { status: FAILED, text: format!("{text}\nTry 'qemu-img{name} --help' for more info") }
}

/// Where the real one has no words of its own for it, ours.
impl From<cowhand::Error> for Failure {
    fn from(error: cowhand::Error) -> Failure {
        let status = if error.kind() == ErrorKind::Cancelled { STOPPED } else { FAILED };
        Failure { status, text: format!("qemu-img: {}", errors::whole(&error)) }
    }
}

/// A word's text, for messages and names of formats.
fn text(word: &OsStr) -> String {
    word.to_string_lossy().into_owned()
}

/// What goes into an image, or describes one: text that is the word's own.
fn utf8(word: &OsStr) -> Result<String, Failure> {
    word.to_str().map(str::to_owned).ok_or_else(|| says(format!("'{}' is not UTF-8", word.display())))
}

fn version(out: &mut Output) -> Outcome {
    writeln!(out, "{VERSION}{})", env!("CARGO_PKG_VERSION"))?;
    Ok(DONE)
}

fn help(out: &mut Output, flags: &[Flag]) -> Outcome {
    version(out)?;
    let write = |out: &mut Output| -> cowhand::Result<()> {
        writeln!(
            out,
            "Disk images.  Usage:\n\n  qemu-img [OPTIONS] COMMAND [--help | command options]\n\nOptions:"
        )?;
        flags.iter().try_for_each(|flag| describe(out, flag))?;
        writeln!(out, "\nCommands:\n")?;
        VERBS.iter().try_for_each(|verb| writeln!(out, "  {} - {}", verb.name, verb.about))?;
        let names: Vec<&str> =
            cowhand::formats().iter().filter_map(|format| format.names().first()).copied().collect();
        writeln!(out, "\nSupported image formats:\n\n  {}", names.join(" "))
    };
    write(out)?;
    Ok(DONE)
}

fn describe(out: &mut Output, flag: &Flag) -> cowhand::Result<()> {
    let mut forms: Vec<String> = flag.short.iter().map(|short| format!("-{short}")).collect();
    forms.extend(flag.long.then(|| format!("--{}", flag.name)));
    let value = flag.value.map(|value| format!(" {value}")).unwrap_or_default();
    writeln!(out, "  {}{value}\n     {}", forms.join(", "), flag.help)
}
