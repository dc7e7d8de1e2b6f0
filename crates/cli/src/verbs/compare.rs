//! `compare`: do two disks have the same content?

use std::ffi::OsString;

use cowhand::{Cache, Comparison, Difference, Error, Result, compare, open};

use crate::exit::compare::{CANNOT_MAP, CANNOT_OPEN, CANNOT_READ, DIFFERENT};
use crate::exit::{DONE, Failure, Outcome};
use crate::output::Output;
use crate::sources::{self, Parents, Sharing};
use crate::work::Showing;

/// Say whether two disks have the same content
///
/// A disk that is longer than the other is the same if the rest of it is zero.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 same, 1 different, 2 an image cannot be opened, 3 what is where cannot be found out, 4 reading failed

Examples:
  cowhand compare vm.vhdx vm.qcow2
  cowhand compare -q -f raw -F qcow2 disk.img vm.qcow2 || echo different")]
pub(crate) struct Args {
    /// One image
    first: OsString,

    /// The other
    second: OsString,

    /// The first image's format; by its content if not given
    #[arg(short = 'f', value_name = "FORMAT")]
    format: Option<String>,

    /// The second image's format; by its content if not given
    #[arg(short = 'F', value_name = "FORMAT")]
    second_format: Option<String>,

    /// Strict: the sizes, and what is allocated, must be the same too
    #[arg(short, long)]
    strict: bool,

    #[command(flatten)]
    showing: Showing,

    /// The images' cache mode: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 'T', value_name = "CACHE", value_parser = sources::cache, default_value = "writeback")]
    cache: Cache,

    #[command(flatten)]
    sharing: Sharing,

    /// The format of a parent whose child does not state it
    #[arg(long, value_name = "FORMAT")]
    parent_format: Option<String>,

    /// Take a parent although it is not the one the image was made from
    #[arg(long)]
    any_parent: bool,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let cannot_open = |error| Failure::with(CANNOT_OPEN, error);
    let open = |image: &OsString, format: &Option<String>| open_one(args, image, format).map_err(cannot_open);
    let first = open(&args.first, &args.format)?;
    let second = open(&args.second, &args.second_format)?;
    let meter = args.showing.meter();
    for disk in [&first, &second] {
        disk.prepare(&meter).map_err(|error| Failure::with(CANNOT_MAP, error))?;
    }
    let found = compare(&first, &second, args.strict, &meter).map_err(|failed| {
        Failure::with(if failed.reading { CANNOT_READ } else { CANNOT_MAP }, failed.error)
    })?;
    for disk in [&first, &second] {
        match disk.check_unchanged() {
            Err(error) if args.sharing.force_share => say(args, out, &format!("warning: {error}"))?,
            other => other.map_err(|error| Failure::with(CANNOT_READ, error))?,
        }
    }
    meter.finish();
    if !args.showing.quiet {
        for line in told(&found, first.size().min(second.size()), args.strict) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(if found.difference.is_some() { DIFFERENT } else { DONE })
}

/// What was found, as `qemu-img compare` says it. Both disks have the first `common` bytes.
pub(crate) fn told(found: &Comparison, common: u64, strict: bool) -> Vec<String> {
    // qemu-img comes to the longer disk's rest only if all before it is the same.
    let differs_before = matches!(found.difference, Some(Difference::Content(at)) if at < common);
    let warns = found.sizes_differ && !strict && !differs_before;
    let mut lines: Vec<String> =
        warns.then(|| "Warning: Image size mismatch!".to_owned()).into_iter().collect();
    lines.push(match found.difference {
        None => "Images are identical.".to_owned(),
        Some(Difference::Content(at)) => format!("Content mismatch at offset {at}!"),
        Some(Difference::Allocation(at)) => format!("Strict mode: Offset {at} block status mismatch!"),
        Some(Difference::Size) => "Strict mode: Image size mismatch!".to_owned(),
    });
    lines
}

fn open_one(args: &Args, image: &OsString, format: &Option<String>) -> Result<cowhand::Opened> {
    let source = args.sharing.source(image, format.as_deref())?;
    let parents =
        Parents { parent: None, parent_format: args.parent_format.clone(), any_parent: args.any_parent };
    open(&source.path, &args.sharing.open(&source, &parents, args.cache)?)
}

fn say(args: &Args, out: &mut Output, text: &str) -> Result<(), Error> {
    if args.showing.quiet { Ok(()) } else { writeln!(out, "{text}") }
}
