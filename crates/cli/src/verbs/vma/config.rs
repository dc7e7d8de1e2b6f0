//! `vma config`: a configuration that an archive holds.

use std::ffi::OsString;

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::progress::Meter;

use super::{FORMAT, from};

/// Print a configuration that an archive holds
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand vma config backup.vma.zst
  cowhand vma config backup.vma -c qemu-server.fw")]
pub(crate) struct Args {
    /// The archive; - is standard input
    file: OsString,

    /// Which one; qemu-server.conf if not given, or the only one there is
    #[arg(short = 'c', value_name = "NAME")]
    config: Option<String>,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let found = cowhand::archive::front(from(&args.file), Some(FORMAT), &Meter::new(false, true))?;
    out.write_all(&found.config(args.config.as_deref())?.data)?;
    Ok(DONE)
}
