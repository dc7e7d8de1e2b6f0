//! `resize`: a longer or shorter disk.

use std::ffi::OsString;

use cowhand::{Cache, Error, NewSize, Prealloc, Resize, Result, parse_size, resize};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::sources::{Holes, Parents, Sharing};

/// Make a disk longer or shorter
///
/// What is new reads zero, also where the parent is longer. What is cut off is gone, so that has to be asked for.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "cowhand resize [OPTIONS] IMAGE [+|-]SIZE",
    after_help = "\
Examples:
  cowhand resize vm.qcow2 40G
  cowhand resize vm.qcow2 +10G
  cowhand resize --shrink vm.qcow2 -10G
  cowhand resize --size-is-file vm.vhdx 100G"
)]
pub(crate) struct Args {
    /// The image
    image: OsString,

    /// The new size: 1048576, 512k, 20M, 1.5G; with + or - so much more or less
    #[arg(value_parser = new_size, allow_hyphen_values = true)]
    size: NewSize,

    /// The disk may become smaller
    #[arg(long)]
    shrink: bool,

    /// Also where the programs that the format comes from never do that: VHD, of which data is never cut off, and VHDX with
    /// data behind its new end, which is then gone
    #[arg(long, requires = "shrink")]
    force: bool,

    /// SIZE is what the file may grow to: the disk becomes as large as then fits with everything written
    #[arg(long)]
    size_is_file: bool,

    /// How what is new is laid out: off, metadata, falloc or full
    #[arg(long, value_name = "MODE", value_parser = prealloc, default_value = "off")]
    preallocation: Prealloc,

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// Print nothing
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    holes: Holes,

    #[command(flatten)]
    sharing: Sharing,

    #[command(flatten)]
    parents: Parents,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let how = Resize {
        open: args.holes.with(args.sharing.writing(&source, &args.parents, Cache::default())?),
        size: match (args.size_is_file, args.size) {
            (false, size) => size,
            (true, NewSize::To(len)) => NewSize::ByFile(len),
            (true, _) => {
                return Err(
                    Error::invalid("--size-is-file takes the file's whole length, without + or -").into()
                );
            }
        },
        shrink: args.shrink,
        force: args.force,
        prealloc: args.preallocation,
    };
    resize(&source.path, &how)?;
    if !args.quiet {
        writeln!(out, "Image resized.")?;
    }
    Ok(DONE)
}

fn new_size(text: &str) -> Result<NewSize> {
    if let Some(more) = text.strip_prefix('+') {
        return parse_size(more).map(NewSize::Grow);
    }
    match text.strip_prefix('-') {
        Some(fewer) => parse_size(fewer).map(NewSize::Shrink),
        None => parse_size(text).map(NewSize::To),
    }
}

fn prealloc(mode: &str) -> Result<Prealloc> {
    Prealloc::by_name(mode).ok_or_else(|| {
        Error::invalid(format!("Invalid preallocation mode '{mode}'"))
            .hint("use off, metadata, falloc or full")
    })
}
