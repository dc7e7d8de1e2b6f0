//! `measure`: how large a new image's file will be.

use std::ffi::OsString;

use cowhand::{Cache, Measure, Sizes, format, measure, parse_option_string, parse_size};
use serde_json::{Map, Value};

use crate::exit::{DONE, Outcome};
use crate::output::{Output, json};
use crate::progress::Meter;
use crate::sources::{Parents, Sharing};
use crate::verbs::convert::which_snapshot;
use crate::verbs::create::asks_for_help;
use crate::verbs::{Form, formats};

/// Tell how large a new image's file will be
///
/// The required size is as qemu-img reckons it, by what the source's tables call data. The exact size is that of the
/// file which convert makes: to know it, the data is read and looked at for zeros. (Where the file system shares blocks,
/// convert takes them unread, zeros too, unless it is given -S.) Formats that qemu-img cannot measure are measured too.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "cowhand measure [OPTIONS] <--size SIZE|IMAGE>",
    after_help = "\
Examples:
  cowhand measure -O qcow2 vm.vhdx
  cowhand measure -O qcow2 -o cluster_size=2M --size 16T --output=json
  cowhand measure -O vpc -o subformat=fixed vm.qcow2"
)]
pub(crate) struct Args {
    /// The source
    #[arg(value_name = "IMAGE")]
    images: Vec<OsString>,

    /// No source, but an empty disk of so many bytes
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,

    /// The new image's format
    #[arg(short = 'O', value_name = "FORMAT", default_value = "raw")]
    target_format: String,

    /// Options of the new image's format; help lists them
    #[arg(short, value_name = "NAME=VALUE,...")]
    options: Vec<String>,

    /// The source's format; by its content if not given
    #[arg(short = 'f', value_name = "FORMAT")]
    format: Option<String>,

    /// An internal snapshot of the source: its id or name, snapshot.id=ID or snapshot.name=NAME
    #[arg(short = 'l', value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    /// Do not read the source's data: leave out the exact size
    #[arg(long)]
    quick: bool,

    /// How to print it
    #[arg(long, value_enum, value_name = "FORM", default_value = "human")]
    output: Form,

    #[command(flatten)]
    sharing: Sharing,

    #[command(flatten)]
    parents: Parents,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let options: Vec<(String, String)> =
        args.options.iter().flat_map(|text| parse_option_string(text)).collect();
    if asks_for_help(&options) {
        formats::help(out, format(&args.target_format)?)?;
        return Ok(DONE);
    }
    if args.images.len() > 1 {
        return Err(cowhand::Error::invalid("At most one filename argument is allowed.").into());
    }
    let mut how = Measure {
        format: args.target_format.clone(),
        options,
        size: args.size,
        quick: args.quick,
        ..Measure::default()
    };
    if let Some(image) = args.images.first() {
        let source = args.sharing.source(image, args.format.as_deref())?;
        how.open = args.sharing.open(&source, &args.parents, Cache::default())?;
        if let Some(snapshot) = &args.snapshot {
            how.open.snapshot = Some(which_snapshot(snapshot, &source.path, &how.open)?);
        }
        how.source = Some(source.path);
    }
    let meter = Meter::new(false, false);
    let sizes = measure(&how, &meter)?;
    meter.finish();
    let Sizes { required, fully_allocated, bitmaps, exact } = sizes;
    let all = [
        ("bitmaps", bitmaps, "bitmaps size"),
        ("required", Some(required), "required size"),
        ("fully-allocated", Some(fully_allocated), "fully allocated size"),
        ("exact", exact, "exact size"),
    ];
    match args.output {
        Form::Human => {
            for at in [1, 2, 0, 3] {
                if let (_, Some(size), name) = all[at] {
                    writeln!(out, "{name}: {size}")?;
                }
            }
        }
        Form::Json => {
            let known = all.into_iter().filter_map(|(key, size, _)| Some((key.to_owned(), size?.into())));
            out.write_all(json(&Value::Object(known.collect::<Map<_, _>>())).as_bytes())?;
        }
    }
    Ok(DONE)
}
