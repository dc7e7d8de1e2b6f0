//! `allocated`: how many bytes a file keeps of its disk.

use std::ffi::OsString;

use cowhand::{Cache, allocated, open_alone};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::sources::{Parents, Sharing};

/// Print how many bytes an image keeps for guest data
///
/// Of this file alone, whatever it stands on: whole clusters and blocks, with extended L2 tables the subclusters that
/// are there, compressed clusters as they are stored. What only says zero does not count.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand allocated vm.qcow2")]
pub(crate) struct Args {
    /// The image
    image: OsString,

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    #[command(flatten)]
    sharing: Sharing,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let how = args.sharing.open(&source, &Parents::default(), Cache::default())?;
    let image = open_alone(&source.path, &how)?;
    writeln!(out, "{}", allocated(&image)?)?;
    Ok(DONE)
}
