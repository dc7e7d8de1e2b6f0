//! What shells complete and the manual describes: the program as its one definition has it, and the tools whose names it
//! answers to, as their tables have them.

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, Command, ValueHint};

use crate::cli;
use crate::persona::getopt::Flag;
use crate::persona::{PERSONAS, Persona};

/// The names that can be described.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    std::iter::once("cowhand").chain(PERSONAS.iter().map(|persona| persona.name))
}

/// The program of that name: one of [`names`].
pub(crate) fn command(name: &str) -> Command {
    match PERSONAS.iter().find(|persona| persona.name == name) {
        Some(persona) => tool(persona),
        None => cli::command().mut_subcommands(known_values),
    }
    .disable_help_subcommand(name != "cowhand")
}

/// With the values that an argument may have, where its own type does not know them.
fn known_values(verb: Command) -> Command {
    verb.mut_args(|arg| {
        let plain = arg.get_action().takes_values() && arg.get_possible_values().is_empty();
        let name = arg.get_value_names().and_then(<[_]>::first).map(|name| name.to_string());
        match name.filter(|_| plain) {
            Some(name) => with_values(arg, &name),
            None => arg,
        }
    })
    .mut_subcommands(known_values)
}

/// `name`: what its value is called.
fn with_values(arg: Arg, name: &str) -> Arg {
    let formats = || -> Vec<&'static str> {
        cowhand::formats().iter().flat_map(|format| format.names()).copied().collect()
    };
    let values: Vec<&'static str> = match name {
        "FORMAT" | "FMT" => formats(),
        "CACHE" => vec!["none", "writeback", "writethrough", "directsync", "unsafe"],
        "POLICY" => vec!["deny", "same-dir", "allow=", "local", "any"],
        "WHOM" => cowhand::consumers(),
        "OFMT" => vec!["human", "json"],
        "DIR" | "NEWDIR" | "FOLDER" => return arg.value_hint(ValueHint::DirPath),
        "IMAGE" | "PATH" | "FILE" | "FILENAME" | "CONFIG" | "MAP" | "OUT" => {
            return arg.value_hint(ValueHint::FilePath);
        }
        _ => return arg,
    };
    arg.value_parser(PossibleValuesParser::new(values)).hide_possible_values(true)
}

/// A tool, as its table has it.
fn tool(persona: &Persona) -> Command {
    let verbs = (persona.commands)().into_iter().map(|verb| {
        let flags = verb.flags.iter().map(argument);
        let operands = Arg::new("operands").value_name(verb.operands).num_args(0..);
        Command::new(verb.name)
            .about(verb.about)
            .disable_help_flag(true)
            .args(flags)
            .arg(operands.value_hint(ValueHint::FilePath).hide(verb.operands.is_empty()))
    });
    Command::new(persona.name)
        .about(persona.about)
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        .disable_help_flag(true)
        .subcommands(verbs)
}

fn argument(flag: &Flag) -> Arg {
    let mut arg = Arg::new(flag.name).help(flag.help);
    if let Some(short) = flag.short {
        arg = arg.short(short);
    }
    if flag.long {
        arg = arg.long(flag.name);
    }
    match flag.value {
        Some(value) => with_values(arg.action(ArgAction::Append).value_name(value), value),
        None => arg.action(ArgAction::Count),
    }
}
