//! `vma`: backup archives of virtual machines, as Proxmox makes them.

mod create;
mod extract;
mod front;
mod totals;

use crate::exit::Outcome;
use crate::output::Output;

/// The archives' format.
const FORMAT: &str = "vma";

/// Backup archives of virtual machines, as Proxmox makes them
///
/// The words are those of Proxmox's own tool, and more. An archive may be packed (.zst, .gz, .lzo), which is seen by its
/// content; - is standard input.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = false, subcommand_required = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Create(create::Args),
    Extract(extract::Args),
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    match &args.verb {
        Verb::Create(args) => create::run(args, out),
        Verb::Extract(args) => extract::run(args, out),
    }
}
