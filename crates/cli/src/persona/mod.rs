//! The other names that the program answers to: called by one of them, it is that tool.

pub(crate) mod compat;
pub(crate) mod getopt;
mod qcow2_helper;
mod qemu_img;
mod vhd_util;
mod vma;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

use cowhand::Error;

use self::getopt::Flag;
use crate::exit::{DONE, FAILED};
use crate::output::Output;
use crate::signals;

/// A tool that callers know by its name.
pub(crate) struct Persona {
    /// What it is called by.
    pub(crate) name: &'static str,
    /// One line for the manual.
    pub(crate) about: &'static str,
    /// What it does, for completions and the manual.
    pub(crate) commands: fn() -> Vec<Command>,
    /// Does what the words behind the name say.
    run: fn(&[OsString], &mut Output) -> Outcome,
    /// What is said where standard output takes no more.
    failure: fn(&Error) -> Failure,
    /// With `COWHAND_COMPAT`, that is not said.
    lossy: fn() -> bool,
}

/// All of them.
pub(crate) const PERSONAS: &[Persona] = &[
    Persona {
        name: "qemu-img",
        about: "QEMU's tool for disk images",
        commands: qemu_img::commands,
        run: qemu_img::run,
        failure: |error| unwritten("qemu-img", error),
        lossy: compat::as_qemu,
    },
    Persona {
        name: "qcow2_helper",
        about: "XCP-ng's helper for qcow2 images",
        commands: || qcow2_helper::COMMANDS.to_vec(),
        run: qcow2_helper::run,
        failure: |error| unwritten("qcow2_helper", error),
        lossy: || false,
    },
    Persona {
        name: "vhd-util",
        about: "XenServer's tool for VHD images",
        commands: vhd_util::commands,
        run: vhd_util::run,
        failure: vhd_util::failure,
        lossy: || false,
    },
    Persona {
        name: "vma",
        about: "Proxmox's tool for backup archives",
        commands: || vma::COMMANDS.to_vec(),
        run: vma::run,
        failure: |error| unwritten("vma", error),
        lossy: || false,
    },
];

/// One of a tool's commands, for its parsing and its help.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    pub(crate) name: &'static str,
    /// One line for the list of commands.
    pub(crate) about: &'static str,
    /// What stands behind it.
    pub(crate) operands: &'static str,
    pub(crate) flags: &'static [Flag],
}

/// What a tool that failed says on standard error, without the last line's end, and its exit status.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: u8,
    pub(crate) text: String,
}

/// What a tool answers: its exit status.
pub(crate) type Outcome = Result<u8, Failure>;

/// The tool that a program called `name` is; `None`: it is cowhand itself.
pub(crate) fn called(name: &OsString) -> Option<&'static Persona> {
    let name = Path::new(name).file_name()?;
    PERSONAS.iter().find(|persona| persona.name == name)
}

impl Persona {
    /// Does what `words`, those behind the name, say. The answer is the exit status.
    pub(crate) fn run(&self, words: &[OsString]) -> u8 {
        signals::outlive();
        let mut out = if (self.lossy)() { Output::new().lossy() } else { Output::new() };
        let outcome = (self.run)(words, &mut out);
        // What was printed comes before the complaint, where both go to one place.
        let flushed = out.flush();
        match (outcome, flushed) {
            (Ok(status), Ok(())) => status,
            (Ok(DONE), Err(error)) => told((self.failure)(&error)),
            // What went wrong before counts more.
            (Ok(status), Err(error)) => {
                told((self.failure)(&error));
                status
            }
            (Err(failure), _) => told(failure),
        }
    }
}

/// Says it. The answer is the exit status.
fn told(Failure { status, text }: Failure) -> u8 {
    if !text.is_empty() {
        complain(&text);
    }
    status
}

fn unwritten(name: &str, error: &Error) -> Failure {
    Failure { status: FAILED, text: format!("{name}: {error}") }
}

/// Lines on standard error; where nobody takes them, the exit status tells alone.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
