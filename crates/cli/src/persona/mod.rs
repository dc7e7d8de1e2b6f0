//! The other names that the program answers to: called by one of them, it is that tool.

pub(crate) mod compat;
mod getopt;
mod qcow2_helper;
mod qemu_img;
mod vhd_util;
mod vma;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

use self::getopt::Flag;
use crate::output::Output;
use crate::signals;

/// A tool that callers know by its name.
pub(crate) struct Persona {
    /// What it is called by.
    pub(crate) name: &'static str,
    /// Does what the words behind the name say.
    run: fn(&[OsString], &mut Output) -> Outcome,
}

/// All of them.
pub(crate) const PERSONAS: &[Persona] = &[
    Persona { name: "qemu-img", run: qemu_img::run },
    Persona { name: "qcow2_helper", run: qcow2_helper::run },
    Persona { name: "vhd-util", run: vhd_util::run },
    Persona { name: "vma", run: vma::run },
];

/// One of a tool's commands, for its parsing and its help.
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
        signals::fail_at_the_file_size_limit();
        let mut out = if compat::as_qemu() { Output::new().lossy() } else { Output::new() };
        let outcome = (self.run)(words, &mut out);
        // What was printed comes before the complaint, where both go to one place.
        let flushed = out.flush();
        match (outcome, flushed) {
            (Ok(status), Ok(())) => status,
            (Ok(_), Err(error)) => {
                complain(&format!("{}: {error}", self.name));
                crate::exit::FAILED
            }
            (Err(Failure { status, text }), _) => {
                if !text.is_empty() {
                    complain(&text);
                }
                status
            }
        }
    }
}

/// Lines on standard error; where nobody takes them, the exit status tells alone.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
