//! The command line as a whole: the one definition that parsing, help, manual and completions come from.

use std::ffi::OsString;
use std::io::Write;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use cowhand::Error;

use crate::exit::{self, Failure, Outcome};
use crate::output::Output;
use crate::page;
use crate::signals;
use crate::verbs::*;

/// Virtual disks: look at, make, convert and compare qcow2, VHD, VHDX, raw and LUKS images, and VMA archives.
///
/// The verbs and their flags are those of qemu-img where it has them. A target is whole or absent: it is written under
/// another name beside the old one, and takes its place once it is complete.
#[derive(Debug, Parser)]
#[command(name = "cowhand", version, arg_required_else_help = true, override_help = page::page())]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Doctor(doctor::Args),
    Inspect(inspect::Args),
    Info(info::Args),
    Create(create::Args),
    Convert(convert::Args),
    Map(map::Args),
    Compare(compare::Args),
    Check(check::Args),
    Commit(commit::Args),
    Compact(compact::Args),
    Merge(merge::Args),
    Flatten(flatten::Args),
    Rebase(rebase::Args),
    ReconnectParent(reconnect_parent::Args),
    Resize(resize::Args),
    Amend(amend::Args),
    Snapshot(snapshot::Args),
    Child(child::Args),
    Dd(dd::Args),
    Bench(bench::Args),
    Stream(stream::Args),
    Measure(measure::Args),
    Bitmap(bitmap::Args),
    Chain(chain::Args),
    Scan(scan::Args),
    Allocated(allocated::Args),
    BlockBitmap(block_bitmap::Args),
    Hidden(hidden::Args),
    KillData(kill_data::Args),
    RoundSize(round_size::Args),
    SizeByFile(size_by_file::Args),
    Vma(vma::Args),
    Formats(formats::Args),
    InstallLinks(install_links::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// The definition itself, for those who describe it.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

/// Does what `words` say. The answer is the exit status.
pub(crate) fn run(words: Vec<OsString>) -> u8 {
    signals::outlive();
    let mut out = Output::new();
    let outcome = parse(&words).and_then(|cli| match cli {
        Parsed::Verb(verb) => perform(*verb, &mut out),
        Parsed::Text(text) => Ok(write!(out, "{text}").map(|()| exit::DONE)?),
    });
    let outcome = match (outcome, out.flush()) {
        (Ok(_), Err(error)) => Err(error.into()),
        (outcome, _) => outcome,
    };
    outcome.unwrap_or_else(|Failure { status, error }| {
        complain(&error);
        status
    })
}

fn perform(verb: Verb, out: &mut Output) -> Outcome {
    match verb {
        Verb::Doctor(args) => doctor::run(&args, out),
        Verb::Inspect(args) => inspect::run(&args, out),
        Verb::Info(args) => info::run(&args, out),
        Verb::Create(args) => create::run(&args, out),
        Verb::Convert(args) => convert::run(&args, out),
        Verb::Map(args) => map::run(&args, out),
        Verb::Compare(args) => compare::run(&args, out),
        Verb::Check(args) => check::run(&args, out),
        Verb::Commit(args) => commit::run(&args, out),
        Verb::Compact(args) => compact::run(&args, out),
        Verb::Merge(args) => merge::run(&args, out),
        Verb::Flatten(args) => flatten::run(&args, out),
        Verb::Rebase(args) => rebase::run(&args, out),
        Verb::ReconnectParent(args) => reconnect_parent::run(&args, out),
        Verb::Resize(args) => resize::run(&args, out),
        Verb::Amend(args) => amend::run(&args, out),
        Verb::Child(args) => child::run(&args, out),
        Verb::Dd(args) => dd::run(&args, out),
        Verb::Bench(args) => bench::run(&args, out),
        Verb::Stream(args) => stream::run(&args, out),
        Verb::Snapshot(args) => snapshot::run(&args, out),
        Verb::Measure(args) => measure::run(&args, out),
        Verb::Bitmap(args) => bitmap::run(&args, out),
        Verb::Chain(args) => chain::run(&args, out),
        Verb::Scan(args) => scan::run(&args, out),
        Verb::Allocated(args) => allocated::run(&args, out),
        Verb::BlockBitmap(args) => block_bitmap::run(&args, out),
        Verb::Hidden(args) => hidden::run(&args, out),
        Verb::RoundSize(args) => round_size::run(&args, out),
        Verb::SizeByFile(args) => size_by_file::run(&args, out),
        Verb::KillData(args) => kill_data::run(&args, out),
        Verb::Vma(args) => vma::run(&args, out),
        Verb::Formats(_) => formats::run(out),
        Verb::InstallLinks(args) => install_links::run(&args, out),
        Verb::Completions(args) => completions::run(&args, out),
        Verb::Man(args) => man::run(&args, out),
    }
}

enum Parsed {
    Verb(Box<Verb>),
    /// Help or the version.
    Text(String),
}

fn parse(words: &[OsString]) -> Result<Parsed, Failure> {
    // Who asks for help twice wants it once.
    let helps = words.get(1).is_some_and(|word| word == "help");
    let words: Vec<_> = words.iter().filter(|word| !helps || *word != "--help" && *word != "-h").collect();
    let error = match Cli::try_parse_from(&words) {
        Ok(cli) => return Ok(Parsed::Verb(Box::new(cli.verb))),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            return Ok(Parsed::Text(format!("{}\n", error.render().to_string().trim_end())));
        }
        _ => {}
    }
    let verb = words.iter().skip(1).find_map(|word| word.to_str().filter(|word| !word.starts_with('-')));
    let known = verb.filter(|verb| command().find_subcommand(verb).is_some());
    let status = if known == Some("compare") { exit::compare::CANNOT_OPEN } else { exit::FAILED };
    let help = match known {
        Some(verb) => format!("'cowhand {verb} --help' shows how"),
        None => "'cowhand --help' shows the verbs".to_owned(),
    };
    let text = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "no verb was given".to_owned(),
        _ => one_line(&error),
    };
    Err(Failure { status, error: Error::invalid(text).hint(help) })
}

/// clap's words without its layout: what is wrong, and its tip.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let mut line = String::new();
    for part in text.lines().map(str::trim).take_while(|part| !part.starts_with("Usage:")) {
        let part = part.strip_prefix("error: ").unwrap_or(part);
        // How to pass a word that looks like a flag is no help to who mistyped a flag.
        if part.is_empty() || part.starts_with("For more information") || part.contains("as a value, use") {
            continue;
        }
        let part = part.strip_prefix("tip: ").unwrap_or(part);
        if !line.is_empty() {
            line.push_str(if line.ends_with(':') || part.starts_with('[') { " " } else { ", " });
        }
        line.push_str(part);
    }
    line
}

/// One line on standard error; where nobody takes it, the exit status tells alone.
fn complain(error: &Error) {
    let _ = writeln!(std::io::stderr(), "cowhand: {error}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definition_holds_together() {
        super::command().debug_assert();
    }
}
