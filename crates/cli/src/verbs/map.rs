//! `map`: where guest bytes stand.

use std::ffi::OsString;

use cowhand::{Cache, Error, MapEntry, Printable, map, open, parse_size};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::sources::{Parents, Sharing};
use crate::verbs::Form;
use crate::verbs::convert::which_snapshot;

/// Show which parts of a disk are there, and where they stand
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand map vm.qcow2
  cowhand map --output=json -s 1G -l 64M vm.qcow2")]
pub(crate) struct Args {
    /// The image
    image: OsString,

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// Where to begin, in guest bytes
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size, default_value = "0")]
    start_offset: u64,

    /// How many guest bytes to look at; all if not given
    #[arg(short = 'l', long, value_name = "SIZE", value_parser = parse_size)]
    max_length: Option<u64>,

    /// An internal snapshot: its id or name, snapshot.id=ID or snapshot.name=NAME
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    /// How to print it
    #[arg(long, value_enum, value_name = "FORM", default_value = "human")]
    output: Form,

    #[command(flatten)]
    sharing: Sharing,

    #[command(flatten)]
    parents: Parents,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let mut how = args.sharing.open(&source, &args.parents, Cache::default())?;
    if let Some(snapshot) = &args.snapshot {
        how.snapshot = Some(which_snapshot(snapshot, &source.path, &how)?);
    }
    let disk = open(&source.path, &how)?;
    let length = args.max_length.unwrap_or(u64::MAX);
    match args.output {
        Form::Human => {
            heading(out)?;
            map(&disk, args.start_offset, length, |entry| match is_shown(entry) {
                true => line(entry, out),
                false => Ok(()),
            })?;
        }
        Form::Json => {
            write!(out, "[")?;
            let mut first = true;
            map(&disk, args.start_offset, length, |entry| {
                write!(out, "{}", if first { "" } else { ",\n" })?;
                first = false;
                object(entry, out)
            })?;
            writeln!(out, "]")?;
        }
    }
    Ok(DONE)
}

pub(crate) fn heading(out: &mut Output) -> cowhand::Result<()> {
    writeln!(out, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to")
}

/// What does not hold data is not mentioned.
pub(crate) fn is_shown(entry: &MapEntry) -> bool {
    entry.data && !entry.zero
}

/// Where it stands.
pub(crate) fn line(entry: &MapEntry, out: &mut Output) -> cowhand::Result<()> {
    let Some(offset) = entry.offset else {
        return Err(Error::unsupported("File contains external, encrypted or compressed clusters."));
    };
    let (start, length) = (entry.start, entry.length);
    writeln!(
        out,
        "{:<16}{:<16}{:<16}{}",
        Hex(start).to_string(),
        Hex(length).to_string(),
        Hex(offset).to_string(),
        Printable(&entry.filename)
    )
}

pub(crate) fn object(entry: &MapEntry, out: &mut Output) -> cowhand::Result<()> {
    let MapEntry { start, length, depth, present, zero, data, compressed, .. } = entry;
    write!(
        out,
        "{{ \"start\": {start}, \"length\": {length}, \"depth\": {depth}, \"present\": {present}, \"zero\": {zero}, \
         \"data\": {data}, \"compressed\": {compressed}"
    )?;
    if let Some(offset) = entry.offset {
        write!(out, ", \"offset\": {offset}")?;
    }
    write!(out, "}}")
}

/// As C's `%#x`: 0 bears no `0x`.
struct Hex(u64);

impl std::fmt::Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == 0 { f.write_str("0") } else { write!(f, "{:#x}", self.0) }
    }
}
