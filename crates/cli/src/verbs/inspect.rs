//! `inspect`: is it safe to take this image from a stranger?

use std::path::{Path, PathBuf};

use cowhand::inspect::{Report, inspect, inspect_storage};
use cowhand::{Access, Cache, Compat, FileStorage, Lock, Result};

use crate::exit::{Failure, Outcome};
use crate::output::{Output, json};
use crate::verbs::Form;

/// Judge an image from a stranger: which format it is, and whether it is safe to use
///
/// The content is seen once, from front to end, and nothing that it names is opened. Unsafe is, among other things: a
/// backing file, a data file, a parent; a content that another program could take for another format; a bad checksum.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 safe, 3 unsafe, 4 ambiguous or unreadable

Examples:
  cowhand inspect upload.img
  curl -s https://example.org/disk.qcow2 | cowhand inspect --json -")]
pub(crate) struct Args {
    /// The image, or - for standard input
    image: PathBuf,

    /// Print for programs; the same as --output=json
    #[arg(long)]
    json: bool,

    /// How to print it
    #[arg(long, value_enum, value_name = "FORM", default_value = "human")]
    output: Form,

    /// Give the verdicts that oslo.utils' format_inspector gives
    #[arg(long)]
    oslo_compat: bool,

    /// Read the image although another program writes to it
    #[arg(short = 'U', long)]
    force_share: bool,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let compat = if args.oslo_compat { Compat::Oslo } else { Compat::Strict };
    let name = args.image.display();
    let (report, failed) = match look(args, compat) {
        Ok(report) => (report, None),
        Err(error) => {
            let error = error.image(&name);
            (Report::unreadable(&error), Some(error))
        }
    };
    if args.json || args.output == Form::Json {
        out.write_all(json(&report.to_json()).as_bytes())?;
    } else if failed.is_none() {
        writeln!(out, "{report}")?;
    }
    match failed {
        None => Ok(report.exit_status()),
        Some(error) => Err(Failure { status: report.exit_status(), error }),
    }
}

fn look(args: &Args, compat: Compat) -> Result<Report> {
    if args.image == Path::new("-") {
        return inspect(&mut std::io::stdin().lock(), compat);
    }
    let lock = if args.force_share { Lock::None } else { Lock::Default };
    let storage = FileStorage::open(&args.image, Access::Read, lock, Cache::default())?;
    inspect_storage(&storage, compat)
}
