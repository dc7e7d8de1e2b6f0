//! `rebase`: another parent for an image.

use std::ffi::OsString;
use std::path::PathBuf;

use cowhand::{Cache, Error, Rebase, rebase};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::sources::{self, Holes, Parents, Sharing, note_on_sectors};
use crate::work::Showing;

/// Give an image another parent, or none
///
/// The disk's content stays: what the new parent would show otherwise is written into the image before its parent's
/// name changes. Stopped before, the image stands on its old parent as it did.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand rebase -b base.qcow2 -F qcow2 overlay.qcow2
  cowhand rebase -b '' overlay.qcow2
  cowhand rebase -u -b moved/base.qcow2 -F qcow2 overlay.qcow2")]
pub(crate) struct Args {
    /// The image
    image: OsString,

    /// The new parent, as it is to be written into the image; '' for none
    #[arg(short, long, value_name = "PATH")]
    backing: Option<OsString>,

    /// The new parent's format
    #[arg(short = 'F', long, value_name = "FORMAT")]
    backing_format: Option<String>,

    /// Only change the name: the parents need not exist, and the disk's content is whatever the new one makes it
    #[arg(short, long = "unsafe")]
    unchecked: bool,

    /// Write compressed clusters
    #[arg(short, long)]
    compress: bool,

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// The image's cache mode: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 't', value_name = "CACHE", value_parser = sources::cache, default_value = "writeback")]
    cache: Cache,

    /// The new parent's cache mode
    #[arg(short = 'T', value_name = "CACHE", value_parser = sources::cache, default_value = "writeback")]
    source_cache: Cache,

    #[command(flatten)]
    showing: Showing,

    #[command(flatten)]
    holes: Holes,

    #[command(flatten)]
    sharing: Sharing,

    #[command(flatten)]
    parents: Parents,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    if args.backing.is_none() && !args.unchecked {
        return Err(Error::invalid("Must specify backing file (-b) or use unsafe mode (-u)").into());
    }
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let how = Rebase {
        open: args.holes.with(args.sharing.writing(&source, &args.parents, args.cache)?),
        backing: args.backing.as_ref().filter(|backing| !backing.is_empty()).map(PathBuf::from),
        backing_format: args.backing_format.clone(),
        backing_cache: args.source_cache,
        unchecked: args.unchecked,
        compress: args.compress,
        ..Rebase::default()
    };
    let meter = args.showing.meter();
    let done = rebase(&source.path, &how, &meter)?;
    meter.finish();
    if !args.showing.quiet {
        note_on_sectors(out, done.sectors)?;
    }
    Ok(DONE)
}
