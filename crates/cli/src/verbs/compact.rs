//! `compact`: an image that takes no more space than it needs.

use std::ffi::OsString;

use cowhand::{Cache, Compact, Compacted, compact};
use serde_json::json;

use crate::exit::{DONE, Outcome};
use crate::output::{self, Output};
use crate::progress::Meter;
use crate::sizes::Size;
use crate::sources::{self, Holes, Parents, Sharing};
use crate::verbs::Form;

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

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

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

    /// How to print what was done
    #[arg(long, value_enum, value_name = "FORM", default_value = "human")]
    output: Form,

    #[command(flatten)]
    holes: Holes,

    #[command(flatten)]
    sharing: Sharing,

    #[command(flatten)]
    parents: Parents,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let how = Compact {
        open: args.holes.with(args.sharing.writing(&source, &args.parents, args.cache)?),
        same_as_parent: args.same_as_parent,
        workers: args.workers.map(usize::from),
    };
    let meter = Meter::new(args.progress && !args.quiet, args.quiet);
    let done = compact(&source.path, &how, &meter)?;
    meter.finish();
    if !args.quiet {
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
