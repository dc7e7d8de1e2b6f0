//! `flatten`: a chain becomes one image.

use std::ffi::OsString;
use std::path::PathBuf;

use cowhand::{Flatten, Printable, flatten, parse_option_string};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::sizes::Size;
use crate::sources::note_on_sectors;
use crate::work::{Threads, Work};

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

    /// Read the new image back and compare it before it gets its name
    #[arg(long)]
    verify: bool,

    #[command(flatten)]
    threads: Threads,

    #[command(flatten)]
    work: Work,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.work.source(&args.image)?;
    let how = Flatten {
        open: match &args.target {
            Some(_) => args.work.reading(&source)?,
            None => args.work.writing(&source)?,
        },
        target: args.target.clone(),
        format: args.target_format.clone(),
        options: args.options.iter().flat_map(|text| parse_option_string(text)).collect(),
        verify: args.verify,
        workers: args.threads.count(),
    };
    let meter = args.work.showing.meter();
    let done = flatten(&source.path, &how, &meter)?;
    meter.finish();
    if args.work.showing.quiet {
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
            note_on_sectors(out, done.sectors)?;
        }
    }
    Ok(DONE)
}
