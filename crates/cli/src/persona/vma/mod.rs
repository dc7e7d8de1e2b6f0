//! `vma` of Proxmox: its commands, its words, its text. The work is that of `cowhand vma`.

mod create;
mod extract;
mod verify;

use std::ffi::{OsStr, OsString};

use cowhand::archive::{Front, front};
use cowhand::{Error, ErrorKind};

use super::getopt::{Flag, Words};
use super::{Command, Failure, Outcome};
use crate::exit::{DONE, FAILED, STOPPED};
use crate::output::Output;
use crate::progress::Meter;
use crate::verbs::vma::{FORMAT, from, front as lines};

/// What `abort` ends a program with after it said why: SIGTRAP.
const TRAPPED: u8 = 133;
/// There is no such configuration.
const NO_CONFIG: u8 = 255;
/// The configuration that is meant where none is named.
const USUAL: &str = "qemu-server.conf";

const HELP: Flag = Flag::short('h', "help", "Show this");
const VERBOSE: Flag = Flag::short('v', "verbose", "Tell how far it has come, and how much was zero");

pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "list",
        about: "List what an archive holds, and when it was made",
        operands: "FILE",
        flags: &[HELP],
    },
    Command {
        name: "config",
        about: "Print a configuration that an archive holds",
        operands: "FILE [-c CONFIG]",
        flags: &[HELP, Flag::short('c', "config", "Which one, by its name").of("CONFIG")],
    },
    Command {
        name: "create",
        about: "Make an archive of disks and configurations",
        operands: "OUT [-v] [-c CONFIG]... [-d format=FORMAT:NAME=PATH]...",
        flags: &[
            HELP,
            VERBOSE,
            Flag::short('c', "config", "A file that goes beside the disks").of("CONFIG"),
            Flag::short('d', "disk", "A disk: format=FORMAT:NAME=PATH").of("DISK"),
        ],
    },
    Command {
        name: "extract",
        about: "Extract an archive's disks and configurations into a new folder",
        operands: "FILE [-v] [-d NAME,...] [-r MAP] NEWDIR",
        flags: &[
            HELP,
            VERBOSE,
            Flag::short('d', "disks", "Only these disks").of("NAMES"),
            Flag::short('r', "map", "A file or named pipe that says where the disks go").of("MAP"),
        ],
    },
    Command {
        name: "verify",
        about: "Read an archive to its end, and say what is wrong",
        operands: "FILE [-v]",
        flags: &[HELP, VERBOSE],
    },
];

pub(super) fn run(words: &[OsString], out: &mut Output) -> Outcome {
    let Some((name, words)) = words.split_first() else { return help(out) };
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else { return help(out) };
    let mut call = Call { words: Words::new(command.name, command.flags, words), out };
    let done = match command.name {
        "list" => call.list(),
        "config" => call.config(),
        "create" => create::run(&mut call),
        "extract" => extract::run(&mut call),
        _ => verify::run(&mut call),
    };
    match done {
        Err(Ended::Help(complaint)) => {
            if !complaint.is_empty() {
                super::complain(&complaint);
            }
            help(out)
        }
        Err(Ended::Failed(failure)) => Err(failure),
        Ok(status) => Ok(status),
    }
}

fn help(out: &mut Output) -> Outcome {
    let write = |out: &mut Output| -> cowhand::Result<()> {
        writeln!(out, "usage: vma command [command options]\n")?;
        COMMANDS.iter().try_for_each(|Command { name, operands, about, .. }| {
            writeln!(out, "vma {name} {operands}\n    {about}")
        })
    };
    write(out).map_err(|error| failed("", &error))?;
    Ok(FAILED)
}

/// One call of a command.
struct Call<'a> {
    words: Words,
    out: &'a mut Output,
}

/// Why a command came to no end of its own.
enum Ended {
    /// The command line makes no sense, or help is wanted: it is shown, below this complaint.
    Help(String),
    Failed(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended::Failed(failure)
    }
}

impl From<Error> for Ended {
    fn from(error: Error) -> Ended {
        Ended::Failed(failed("", &error))
    }
}

impl Call<'_> {
    /// The next flag.
    fn next(&mut self) -> Result<Option<(&'static str, OsString)>, Ended> {
        match self.words.next().map_err(Ended::Help)? {
            Some(("help", _)) => Err(Ended::Help(String::new())),
            flag => Ok(flag),
        }
    }

    /// The words that are no flags: so many of them.
    fn others<const N: usize>(&mut self) -> Result<[OsString; N], Ended> {
        self.words.others().try_into().map_err(|_| Ended::Help(String::new()))
    }

    fn front(&mut self, file: &OsStr) -> Result<Front, Failure> {
        let file = file.to_owned();
        front(from(&file), Some(FORMAT), &Meter::new(false, true)).map_err(|error| unreadable(&file, &error))
    }

    fn list(&mut self) -> Result<u8, Ended> {
        while self.next()?.is_some() {}
        let [file] = self.others()?;
        let found = self.front(&file)?;
        lines::print(self.out, &found.manifest)?;
        Ok(DONE)
    }

    fn config(&mut self) -> Result<u8, Ended> {
        let mut name = USUAL.to_owned();
        while let Some((_, value)) = self.next()? {
            name = text(&value);
        }
        let [file] = self.others()?;
        let found = self.front(&file)?;
        match found.config(Some(&name)) {
            Ok(config) => self.out.write_all(&config.data)?,
            Err(_) => {
                let text = format!("unable to find configuration data '{name}'");
                return Err(Failure { status: NO_CONFIG, text }.into());
            }
        }
        Ok(DONE)
    }
}

/// What ends the real one with a trap.
fn fatal(text: impl std::fmt::Display) -> Failure {
    Failure { status: TRAPPED, text: format!("vma: {text}") }
}

/// As the real one says it, where it has words for it, and with `front` before them.
fn failed(front: &str, error: &Error) -> Failure {
    if error.kind() == ErrorKind::Cancelled {
        return Failure { status: STOPPED, text: format!("vma: {}", error.without_advice()) };
    }
    match error.sentence() {
        Some(words) => fatal(format_args!("{front}{words}")),
        None => fatal(format_args!("{front}{}", error.without_advice())),
    }
}

/// An archive whose front cannot be read.
fn unreadable(file: &OsStr, error: &Error) -> Failure {
    match (error.os_error(), error.sentence()) {
        (Some(said), None) if error.image_name().is_some_and(|name| OsStr::new(name) == file) => {
            cannot_open(file, &said)
        }
        _ => failed("", error),
    }
}

/// Its line ends twice, there too.
fn cannot_open(file: &OsStr, said: &str) -> Failure {
    fatal(format_args!("can't open file {} - {said}\n", file.display()))
}

/// A word's text.
fn text(word: &OsStr) -> String {
    word.to_string_lossy().into_owned()
}
