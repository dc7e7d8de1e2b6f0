//! `compact`: an image that takes no more space than it needs.

use std::ffi::OsString;

use cowhand::{Compact, Compacted, compact};
use serde_json::json;

use crate::exit::{DONE, Outcome};
use crate::output::{self, Output};
use crate::sizes::Size;
use crate::verbs::Form;
use crate::work::{Threads, Work};

/// Give back the space that an image takes and does not need
///
/// Clusters and blocks that read zero throughout are taken away (where a parent has data, they stay hidden), and what
/// stands at the file's end moves into the gaps, for the formats whose files can become shorter. The disk's content is
/// the same at every moment; stopped anywhere, this can be run again. Parents are read and not changed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand compact vm.vhd
  cowhand compact --same-as-parent overlay.qcow2
  cowhand compact --output=json vm.qcow2")]
pub(crate) struct Args {
    /// The image
    image: OsString,

    /// Take away too what the parents have all the same
    #[arg(long)]
    same_as_parent: bool,

    #[command(flatten)]
    threads: Threads,

    /// How to print what was done
    #[arg(long, value_enum, value_name = "FORM", default_value = "human")]
    output: Form,

    #[command(flatten)]
    work: Work,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.work.source(&args.image)?;
    let how = Compact {
        open: args.work.writing(&source)?,
        same_as_parent: args.same_as_parent,
        workers: args.threads.count(),
    };
    let meter = args.work.showing.meter();
    let done = compact(&source.path, &how, &meter)?;
    meter.finish();
    if !args.work.showing.quiet {
        print(out, args.output, &done)?;
    }
    Ok(DONE)
}

fn print(out: &mut Output, form: Form, done: &Compacted) -> cowhand::Result<()> {
    let Compacted { freed, before, after } = done;
    match form {
        Form::Human => writeln!(
            out,
            "Image compacted: {} of the disk taken away; the file is {} long, was {}, and takes {}, took {}.",
            Size(*freed),
            Size(after.len),
            Size(before.len),
            Size(after.physical),
            Size(before.physical)
        ),
        Form::Json => write!(
            out,
            "{}",
            output::json(&json!({
                "freed": freed,
                "file-size-before": before.len,
                "file-size": after.len,
                "actual-size-before": before.physical,
                "actual-size": after.physical,
            }))
        ),
    }
}
