//! `vma list`: what an archive holds.

use std::ffi::OsString;

use crate::exit::{DONE, Outcome};
use crate::output::{Output, json};
use crate::progress::Meter;
use crate::verbs::Form;

use super::{FORMAT, from, front};

/// List what an archive holds: configurations, disks, and when it was made
///
/// Only the archive's front is read.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand vma list vzdump-qemu-100-2026_01_31-12_00_00.vma.zst
  ssh host cat backup.vma.gz | cowhand vma list -")]
pub(crate) struct Args {
    /// The archive; - is standard input
    file: OsString,

    /// How to print it
    #[arg(long, value_enum, value_name = "FORM", default_value = "human")]
    output: Form,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let found = cowhand::archive::front(from(&args.file), Some(FORMAT), &Meter::new(false, true))?;
    match args.output {
        Form::Human => front::print(out, &found.manifest)?,
        Form::Json => out.write_all(json(&found.to_json()).as_bytes())?,
    }
    Ok(DONE)
}
