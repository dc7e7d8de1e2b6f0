//! `flatten`: a chain becomes one image.

use std::ffi::OsString;
use std::path::PathBuf;

use cowhand::{Cache, Flatten, Printable, flatten, parse_option_string};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::progress::Meter;
use crate::sizes::Size;
use crate::sources::{self, Holes, Parents, Sharing};

/// Make one image of an image and its parents
///
/// Without TARGET the new image takes the old one's place once it is whole and on the disk; format, kind, block size,
/// identity and bitmaps are the old one's. The parents stay as they are. A size that no disk geometry can say is kept.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand flatten vm.vhd
  cowhand flatten --verify checkpoint.vhd whole.vhd
  cowhand flatten -O qcow2 checkpoint.vhd whole.qcow2")]
pub(crate) struct Args {
    /// The image
    image: OsString,

    /// Where to; in the image's own place if not given
    target: Option<PathBuf>,

    /// The target's format; by its extension, or the image's, if not given
    #[arg(short = 'O', value_name = "FORMAT", requires = "target")]
    target_format: Option<String>,

    /// Options of the target's format
    #[arg(short, value_name = "NAME=VALUE,...")]
    options: Vec<String>,

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// Read the new image back and compare it before it gets its name
    #[arg(long)]
    verify: bool,

    /// Threads, 1 to 64; as many as there are processors (at most 8) if not given
    #[arg(short = 'm', value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=64))]
    workers: Option<u8>,

    /// The cache mode: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 't', value_name = "CACHE", value_parser = sources::cache, default_value = "writeback")]
    cache: Cache,

    /// Show progress as qemu-img does
    #[arg(short, long)]
    progress: bool,

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
    let how = Flatten {
        open: args.holes.with(match &args.target {
            Some(_) => args.sharing.open(&source, &args.parents, args.cache)?,
            None => args.sharing.writing(&source, &args.parents, args.cache)?,
        }),
        target: args.target.clone(),
        format: args.target_format.clone(),
        options: args.options.iter().flat_map(|text| parse_option_string(text)).collect(),
        verify: args.verify,
        workers: args.workers.map(usize::from),
    };
    let meter = Meter::new(args.progress && !args.quiet, args.quiet);
    let done = flatten(&source.path, &how, &meter)?;
    meter.finish();
    if args.quiet {
        return Ok(DONE);
    }
    match done {
        None => writeln!(out, "Image has no parent: nothing to do.")?,
        Some(done) => {
            let name = how.target.as_ref().unwrap_or(&source.path).display().to_string();
            let physical = Size(done.physical);
            writeln!(
                out,
                "{} ({}): {} disk, {physical} on disk",
                Printable(&name),
                done.to,
                Size(done.size)
            )?;
        }
    }
    Ok(DONE)
}
