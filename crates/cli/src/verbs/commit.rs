//! `commit`: what an image holds goes down into its parent.

use std::ffi::OsString;
use std::path::PathBuf;

use cowhand::{Commit, Other, Printable, Result, commit};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::sources::note_on_sectors;
use crate::work::Work;

/// Move what an image holds down into its parent
///
/// A parent that is shorter grows first. The disk's content is the same at every moment; stopped anywhere, this can be
/// run again. Once the parent has everything, the image is emptied, unless -d or -b is given. Where other images in the
/// folders of the two stand on what was written to, that is said.
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

    /// Print "(MOVED/HELD)" in bytes too, as does COWHAND_COMMIT_REPORT=1 in the environment
    #[arg(long)]
    report_bytes: bool,

    #[command(flatten)]
    work: Work,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.work.source(&args.image)?;
    let how = Commit {
        open: args.work.writing(&source)?,
        base: args.base.clone(),
        keep: args.drop,
        ..Commit::default()
    };
    let meter = args.work.showing.meter();
    let done = commit(&source.path, &how, &meter)?;
    meter.finish();
    if args.report_bytes || std::env::var_os("COWHAND_COMMIT_REPORT").is_some_and(|value| value == "1") {
        writeln!(out, "({}/{})", done.moved, done.held)?;
    }
    if !args.work.showing.quiet {
        writeln!(out, "Image committed.")?;
        note_on_sectors(out, done.sectors)?;
        done.others.iter().try_for_each(|other| note_on_other(out, other))?;
    }
    Ok(DONE)
}

/// An image that nobody spoke of stands on what was written to.
fn note_on_other(out: &mut Output, other: &Other) -> Result<()> {
    let (image, parent) = (other.image.display().to_string(), other.parent.display().to_string());
    writeln!(
        out,
        "Note: '{}' may show something else now, or be refused: '{}', which was written to, is a parent there too.",
        Printable(&image),
        Printable(&parent)
    )
}
