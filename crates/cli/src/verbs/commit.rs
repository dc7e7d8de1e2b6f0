//! `commit`: what an image holds goes down into its parent.

use std::ffi::OsString;
use std::path::PathBuf;

use cowhand::{Cache, Commit, commit};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::progress::Meter;
use crate::sources::{self, Holes, Parents, Sharing};

/// Move what an image holds down into its parent
///
/// A parent that is shorter grows first. The disk's content is the same at every moment; stopped anywhere, this can be
/// run again. Once the parent has everything, the image is emptied, unless -d or -b is given.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand commit overlay.qcow2
  cowhand commit -d overlay.qcow2 && rm overlay.qcow2
  cowhand commit -b base.qcow2 overlay.qcow2")]
pub(crate) struct Args {
    /// The image
    image: OsString,

    /// Commit into this image further down; what lies between no longer reads as it did, and -d is implied
    #[arg(short, long, value_name = "PATH")]
    base: Option<PathBuf>,

    /// Leave the image as it is: do not empty it
    #[arg(short)]
    drop: bool,

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// The cache mode: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 't', value_name = "CACHE", value_parser = sources::cache, default_value = "writeback")]
    cache: Cache,

    /// Show progress as qemu-img does
    #[arg(short, long)]
    progress: bool,

    /// Print nothing
    #[arg(short, long)]
    quiet: bool,

    /// Print "(MOVED/HELD)" in bytes too, as does COWHAND_COMMIT_REPORT=1 in the environment
    #[arg(long)]
    report_bytes: bool,

    #[command(flatten)]
    holes: Holes,

    #[command(flatten)]
    sharing: Sharing,

    #[command(flatten)]
    parents: Parents,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let how = Commit {
        open: args.holes.with(args.sharing.writing(&source, &args.parents, args.cache)?),
        base: args.base.clone(),
        keep: args.drop,
        workers: None,
    };
    let meter = Meter::new(args.progress && !args.quiet, args.quiet);
    let done = commit(&source.path, &how, &meter)?;
    meter.finish();
    if args.report_bytes || std::env::var_os("COWHAND_COMMIT_REPORT").is_some_and(|value| value == "1") {
        writeln!(out, "({}/{})", done.moved, done.held)?;
    }
    if !args.quiet {
        writeln!(out, "Image committed.")?;
    }
    Ok(DONE)
}
