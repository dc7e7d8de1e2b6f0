//! `create`: a new, empty image.

use std::path::{Path, PathBuf};

use cowhand::{Create, Fitted, Policy, Printable, Result, create_with, parse_option_string, parse_size};

use crate::consumer::For;
use crate::exit::{DONE, Outcome};
use crate::keys::Keys;
use crate::output::Output;
use crate::progress::Meter;
use crate::sources::{note_on_paths, note_on_sectors};
use crate::verbs::formats;

/// Make a new image
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand create disk.qcow2 20G
  cowhand create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2
  cowhand create -f vpc -o subformat=fixed disk.vhd 10G
  cowhand create --for xenserver disk.vhd 100G
  cowhand create --for hyperv disk.vhdx 100G
  cowhand create --key-file passphrase -o encrypt.format=luks vault.qcow2 20G
  cowhand create -f qcow2 -o help")]
pub(crate) struct Args {
    /// The new image
    #[arg(required_unless_present = "options")]
    image: Option<PathBuf>,

    /// Guest bytes: 1048576, 512k, 20M, 1.5G; the backing file's if not given
    #[arg(value_parser = parse_size)]
    size: Option<u64>,

    /// The format; by the file name's extension if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// What the new image stands on, as it is to be written into it
    #[arg(short, long, value_name = "PATH")]
    backing: Option<PathBuf>,

    /// The backing file's format
    #[arg(short = 'F', long, value_name = "FORMAT")]
    backing_format: Option<String>,

    /// Do not look at the backing file: it need not exist
    #[arg(short = 'u')]
    unchecked: bool,

    /// Which files the backing file may make us open: deny, same-dir, allow=DIR (repeatable), local, any
    #[arg(long, value_name = "POLICY", value_parser = Policy::parse, hide_possible_values = true)]
    paths: Vec<Policy>,

    /// Look in this folder for parents of the backing file that are not where their children say (repeatable)
    #[arg(long, value_name = "DIR")]
    search_dir: Vec<PathBuf>,

    /// Options of the format; help lists them
    #[arg(short, value_name = "NAME=VALUE,...")]
    options: Vec<String>,

    #[command(flatten)]
    consumer: For,

    /// Print nothing
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    keys: Keys,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let options: Vec<(String, String)> =
        args.options.iter().flat_map(|text| parse_option_string(text)).collect();
    if asks_for_help(&options) {
        let nowhere = PathBuf::new();
        let image = args.image.as_ref().unwrap_or(&nowhere);
        formats::help(out, args.consumer.fit(args.format.as_deref(), image, Vec::new())?.format)?;
        return Ok(DONE);
    }
    let Some(image) = &args.image else {
        return Err(cowhand::Error::invalid("no image was named").hint("name the file to make").into());
    };
    let Fitted { format, options, solid, title } =
        args.consumer.fit(args.format.as_deref(), image, options)?;
    let how = Create {
        format: format.names().first().copied().unwrap_or_default().to_owned(), // never empty: every format has a name
        size: args.size,
        options,
        backing: args.backing.clone(),
        backing_format: args.backing_format.clone(),
        unchecked: args.unchecked,
        policy: args.paths.iter().cloned().reduce(Policy::and).unwrap_or_default(),
        search: args.search_dir.clone(),
        secrets: args.keys.secrets()?,
        solid,
        ..Create::default()
    };
    let meter = Meter::new(false, args.quiet);
    let made = create_with(image, &how, &meter)?;
    meter.finish();
    if !args.quiet {
        describe(out, image, &how, made.size)?;
        if let Some(backing) = &how.backing {
            note_on_paths(out, image, backing)?;
        }
        note_on_sectors(out, made.sectors)?;
        let asked = args.size.unwrap_or(made.size);
        args.consumer.tell(out, title, image, asked, made.size, made.file_len)?;
    }
    Ok(DONE)
}

pub(crate) fn asks_for_help(options: &[(String, String)]) -> bool {
    options.iter().any(|(name, value)| (name == "help" || name == "?") && value == "on")
}

/// The line that qemu-img prints, with the options that were given.
fn describe(out: &mut Output, image: &Path, how: &Create, size: u64) -> Result<()> {
    let name = image.display().to_string();
    write!(out, "Formatting '{}', fmt={} size={size}", Printable(&name), how.format)?;
    if let Some(backing) = &how.backing {
        write!(out, " backing_file={}", Printable(&backing.display().to_string()))?;
    }
    if let Some(format) = &how.backing_format {
        write!(out, " backing_fmt={format}")?;
    }
    for (name, value) in how.options.iter().filter(|(name, _)| name != "size") {
        write!(out, " {name}={}", Printable(value))?;
    }
    writeln!(out)
}
