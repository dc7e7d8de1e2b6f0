//! `vma`: backup archives of virtual machines, as Proxmox makes them.

#![allow(rustdoc::broken_intra_doc_links)] // Doc comments are the words of the help: their brackets are no links.

mod config;
pub(crate) mod create;
mod extract;
pub(crate) mod front;
mod list;
mod losses;
pub(crate) mod place;
pub(crate) mod totals;
mod verify;
pub(crate) mod watch;

use std::ffi::OsString;
use std::path::Path;

use cowhand::stream::{From, Incoming};

use crate::exit::Outcome;
use crate::output::Output;

/// The archives' format.
pub(crate) const FORMAT: &str = "vma";

/// Backup archives of virtual machines, as Proxmox makes them
///
/// The words are those of Proxmox's own tool, and more. An archive may be packed (.zst, .gz, .lzo), which is seen by its
/// content; - is standard input.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = false,
    subcommand_required = true,
    after_help = "\
Examples:
  cowhand vma list vzdump-qemu-100-2026_01_31-12_00_00.vma.zst
  cowhand vma extract backup.vma.zst newdir
  cowhand vma create -c qemu-server.conf -d drive-scsi0=disk.qcow2 new.vma.zst"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Create(create::Args),
    List(list::Args),
    Config(config::Args),
    Extract(extract::Args),
    Verify(verify::Args),
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    match &args.verb {
        Verb::Create(args) => create::run(args, out),
        Verb::List(args) => list::run(args, out),
        Verb::Config(args) => config::run(args, out),
        Verb::Extract(args) => extract::run(args, out),
        Verb::Verify(args) => verify::run(args, out),
    }
}

/// An archive on the command line.
pub(crate) fn from(file: &OsString) -> From<'_> {
    if file == "-" {
        From::Bytes(Incoming {
            name: "standard input".to_owned(),
            len: None,
            bytes: Box::new(std::io::stdin()),
        })
    } else {
        From::File(Path::new(file))
    }
}
