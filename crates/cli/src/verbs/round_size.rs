//! `round-size`: the size that a disk gets.

use cowhand::{SizeRule, parse_size, round_size};

use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// Print the next size up that a disk may have
///
/// The limits, if not given, are XCP-ng's for qcow2: 64 KiB to 16 TiB, in steps of 64 KiB.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand round-size 10000000
  cowhand create disk.qcow2 $(cowhand round-size --unit 2M 10000000)")]
pub(crate) struct Args {
    /// Guest bytes asked for
    #[arg(value_parser = parse_size)]
    size: u64,

    /// A smaller size becomes this one
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "64k")]
    least: u64,

    /// A larger size is an error
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "16T")]
    most: u64,

    /// Sizes are multiples of this
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "64k")]
    unit: u64,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let rule = SizeRule { least: args.least, most: args.most, unit: args.unit };
    writeln!(out, "{}", round_size(args.size, &rule)?)?;
    Ok(DONE)
}
