//! `kill-data`: an image emptied in place.

use std::ffi::OsString;

use cowhand::{Cache, kill_data};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::sources::{Parents, Sharing};

/// Take all data out of an image: an empty one of the same size and parent is left
///
/// What the image stands on shows through everywhere. There is no way back; after a power cut the image is as it was,
/// or empty.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand kill-data overlay.qcow2")]
pub(crate) struct Args {
    /// The image
    image: OsString,

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    #[command(flatten)]
    sharing: Sharing,
}

pub(crate) fn run(args: &Args, _out: &mut Output) -> Outcome {
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let how = args.sharing.open(&source, &Parents::default(), Cache::default())?;
    kill_data(&source.path, &how)?;
    Ok(DONE)
}
