//! `merge`: an image goes down into its parent, and away.

use std::ffi::OsString;
use std::path::PathBuf;

use cowhand::{Cache, Merge, merge};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::progress::Meter;
use crate::sources::{self, Holes, Parents, Sharing};

/// Merge an image into its parent
///
/// What the image holds, and nothing else, is written into the parent; a parent that is shorter grows first. Images
/// that stand on this one and are named with --child get that parent in its place, and read as before. With --delete
/// the image is removed once all of that is durable; otherwise it is left as it is, and still reads the same.
///
/// The parent keeps its identity, so what stood on it still finds it, and would show something else: where other images
/// in the two folders do, nothing is done without --force. An image that stands on the deleted one and was not named
/// can be put on the parent later with 'cowhand reconnect-parent --force'.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand merge checkpoint.avhd
  cowhand merge --delete checkpoint.avhd
  cowhand merge --delete middle.vhd --child top.vhd
  cowhand merge --into base.vhd top.vhd")]
pub(crate) struct Args {
    /// The image
    image: OsString,

    /// Merge into this image further down; what lies between no longer reads as it did
    #[arg(long, value_name = "PATH")]
    into: Option<PathBuf>,

    /// An image that stands on this one, and is to stand on the parent (repeatable)
    #[arg(long, value_name = "PATH")]
    child: Vec<PathBuf>,

    /// Remove the image in the end
    #[arg(long)]
    delete: bool,

    /// Go on although other images stand on what changes or is removed
    #[arg(long)]
    force: bool,

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

    #[command(flatten)]
    holes: Holes,

    #[command(flatten)]
    sharing: Sharing,

    #[command(flatten)]
    parents: Parents,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let how = Merge {
        open: args.holes.with(args.sharing.writing(&source, &args.parents, args.cache)?),
        base: args.into.clone(),
        children: args.child.clone(),
        delete: args.delete,
        force: args.force,
        workers: None,
    };
    let meter = Meter::new(args.progress && !args.quiet, args.quiet);
    let done = merge(&source.path, &how, &meter)?;
    meter.finish();
    if !args.quiet {
        let and = if done.deleted { " and deleted" } else { "" };
        writeln!(out, "Image merged{and}: {} bytes written of {} held.", done.moved, done.held)?;
    }
    Ok(DONE)
}
