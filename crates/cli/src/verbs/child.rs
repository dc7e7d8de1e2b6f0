//! `child`: a new image over a parent.

use std::ffi::OsString;
use std::path::PathBuf;

use cowhand::{Cache, Child, Printable, child, parse_option_string, parse_size};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::sources::{Holes, Parents, Sharing, note_on_paths, note_on_sectors};

/// Make a new, empty image over a parent
///
/// It has the parent's size and, where both are of one format, its cluster size. A parent that holds nothing is passed
/// over: the child then stands on that one's own parent.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand child base.qcow2 vm.qcow2
  cowhand child --mirror --limit 30 vm.qcow2 copy.qcow2")]
pub(crate) struct Args {
    /// The parent
    parent: OsString,

    /// The new image
    image: PathBuf,

    /// The new image's format; by its name, else the parent's if not given
    #[arg(short = 'O', value_name = "FORMAT")]
    target_format: Option<String>,

    /// The parent's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// Options of the new image's format
    #[arg(short, value_name = "NAME=VALUE,...")]
    options: Vec<String>,

    /// Guest bytes; the parent's if not given
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,

    /// For mirroring into: clusters of 16 KiB with extended L2 entries
    #[arg(long)]
    mirror: bool,

    /// Take the parent though it holds nothing
    #[arg(short = 'e', long)]
    keep_empty: bool,

    /// Fail where the chain would have more layers than this; a base alone counts 1
    #[arg(long, value_name = "LAYERS")]
    limit: Option<usize>,

    /// Print nothing
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    holes: Holes,

    #[command(flatten)]
    sharing: Sharing,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.sharing.source(&args.parent, args.format.as_deref())?;
    let how = Child {
        open: args.holes.with(args.sharing.open(&source, &Parents::default(), Cache::default())?),
        format: args.target_format.clone(),
        options: args.options.iter().flat_map(|text| parse_option_string(text)).collect(),
        size: args.size,
        mirror: args.mirror,
        keep_empty: args.keep_empty,
        limit: args.limit,
    };
    let made = child(&source.path, &args.image, &how)?;
    if !args.quiet {
        let (image, parent) = (args.image.display().to_string(), made.parent.display().to_string());
        writeln!(
            out,
            "Formatting '{}', fmt={} size={} backing_file={} backing_fmt={}",
            Printable(&image),
            made.format,
            made.size,
            Printable(&parent),
            made.parent_format
        )?;
        note_on_paths(out, &args.image, &made.parent)?;
        note_on_sectors(out, made.sectors)?;
    }
    Ok(DONE)
}
