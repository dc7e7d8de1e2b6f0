//! `size-by-file`: the disk that goes with a file's length.

use std::ffi::OsString;

use cowhand::{Cache, parse_size, size_by_file};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::sources::{Parents, Sharing};

/// Print the size of the largest disk whose file cannot become longer than SIZE
///
/// The file is of the image's format, kind and block size, as cowhand lays it out, with every block written. A child's
/// size is its parent's. Where a size is to be kept exactly, create the VHD with -o force_size=on.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand size-by-file vm.vhd 10G
  cowhand size-by-file --compat hyperv vm.vhdx 10G
  cowhand resize --size-is-file vm.vhdx 10G")]
pub(crate) struct Args {
    /// The image
    image: OsString,

    /// The file's length
    #[arg(value_parser = parse_size)]
    size: u64,

    /// Answer as another program does, whose formula leaves out sector bitmaps and alignment
    #[arg(long, value_enum, value_name = "PROGRAM")]
    compat: Option<Formula>,

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    #[command(flatten)]
    sharing: Sharing,

    #[command(flatten)]
    parents: Parents,
}

/// Whose formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Formula {
    /// Hyper-V's utilities
    Hyperv,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let mut how = args.sharing.open(&source, &args.parents, Cache::default())?;
    how.metadata_only = true;
    writeln!(out, "{}", size_by_file(&source.path, args.size, args.compat.is_none(), &how)?)?;
    Ok(DONE)
}
