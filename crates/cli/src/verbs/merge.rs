//! `merge`: an image goes down into its parent, and away.

use std::ffi::OsString;
use std::path::PathBuf;

use cowhand::{Merge, merge};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::sources::note_on_sectors;
use crate::work::Work;

/// Merge an image into its parent
///
/// What the image holds, and nothing else, is written into the parent; a parent that is shorter grows first. Images
/// that stand on this one and are named with --child get that parent in its place, and read as before. With --delete
/// the image is removed once all of that is durable; otherwise it is left as it is, and still reads the same.
///
/// What else stood on the parent would show something else, or not know it again: where other images in the two folders
/// do, nothing is done without --force. An image that stands on the deleted one and was not named can be put on the
/// parent later with 'cowhand reconnect-parent --force'. Stopped anywhere, this can be run again.
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

    #[command(flatten)]
    work: Work,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.work.source(&args.image)?;
    let how = Merge {
        open: args.work.writing(&source)?,
        base: args.into.clone(),
        children: args.child.clone(),
        delete: args.delete,
        force: args.force,
        workers: None,
    };
    let meter = args.work.showing.meter();
    let done = merge(&source.path, &how, &meter)?;
    meter.finish();
    if !args.work.showing.quiet {
        let and = if done.deleted { " and deleted" } else { "" };
        writeln!(out, "Image merged{and}: {} bytes written of {} held.", done.moved, done.held)?;
        note_on_sectors(out, done.sectors)?;
    }
    Ok(DONE)
}
