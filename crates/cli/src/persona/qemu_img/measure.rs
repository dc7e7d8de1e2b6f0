//! `qemu-img measure`.

use cowhand::{Error, ErrorKind, Measure, Prealloc, Sizes, measure, open};
use serde_json::{Map, Value};

use super::errors::said;
use super::parameters::{self, Lists};
use super::source::Opening;
use super::{Call, Failure, Flag, Outcome, Verb, says, text, values};
use crate::exit::DONE;
use crate::output::json;
use crate::progress::Meter;
use crate::verbs::convert::which_snapshot;

pub(super) const VERB: Verb = Verb {
    name: "measure",
    about: "Tell how large a new image's file will be",
    operands: "(--size SIZE | FILENAME)",
    flags: &[
        Flag::both('h', "help", "Show this"),
        Flag::both('O', "target-format", "The new image's format; raw if not given").of("FMT"),
        Flag::both('f', "format", "The source's format").of("FMT"),
        Flag::long("image-opts", "FILENAME is a description of an image, not a path"),
        Flag::both('o', "options", "Options of the new image's format").of("FMT_OPTS"),
        Flag::both('l', "snapshot", "Measure this snapshot within the source").of("SNAPSHOT"),
        Flag::long("object", "A secret: secret,id=ID,file=PATH").of("OBJDEF"),
        Flag::long("output", "human or json").of("OFMT"),
        Flag::long("size", "No source, but an empty disk of so many bytes").of("SIZE"),
        Flag::both('U', "force-share", "Open the source although another program uses it"),
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Outcome {
    let mut opening = Opening::default();
    let mut lists = Lists::default();
    let (mut target, mut snapshot, mut size, mut as_json) = ("raw".to_owned(), None, None, false);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "help" => return call.help(),
            "target-format" => target = text(&value),
            "options" => lists.add(&value)?,
            "snapshot" => snapshot = Some(text(&value)),
            "size" => size = Some(values::size("image size", &value, 0..=i64::MAX as u64)?),
            "output" => {
                as_json = match text(&value).as_str() {
                    "json" => true,
                    "human" => false,
                    other => {
                        return Err(call.usage(&format!("--output expects 'human' or 'json' not '{other}'")));
                    }
                }
            }
            _ => {
                opening.take(flag, &value)?;
            }
        }
    }
    let others = call.others();
    let image = match others.as_slice() {
        [] => None,
        [image] => Some(image),
        _ => return Err(says("At most one filename argument is allowed.")),
    };
    let about_source = opening.image_opts || opening.format.is_some() || snapshot.is_some();
    match (image, size) {
        (None, _) if about_source => {
            return Err(says("--image-opts, -f, and -l require a filename argument."));
        }
        (None, None) => return Err(says("Either --size N or one filename must be specified.")),
        (Some(_), Some(_)) => return Err(says("--size N cannot be used together with a filename.")),
        _ => {}
    }
    let mut how =
        Measure { format: target.clone(), size, quick: true, qemu_choices: true, ..Measure::default() };
    how.open.secrets = opening.secrets.clone().by_name();
    if let Some(image) = image {
        let source = opening.source(image)?;
        how.open = source.open.clone();
        open(&source.path, &how.open).map_err(|error| source.failed(&error))?;
        if let Some(asked) = snapshot {
            let missing = |error: Error| match error.kind() {
                ErrorKind::NotFound => says("Failed to load snapshot: Can't find snapshot"),
                _ => {
                    says(format!("{}\nqemu-img: Failed in parsing snapshot param '{asked}'", error.message()))
                }
            };
            how.open.snapshot = Some(which_snapshot(&asked, &source.path, &how.open).map_err(missing)?);
            open(&source.path, &how.open).map_err(missing)?;
        }
        how.source = Some(source.path);
    }
    let format =
        parameters::format(&target).ok_or_else(|| says(format!("Unknown file format '{target}'")))?;
    let options = lists
        .read(parameters::of_new(format))
        .map_err(|what| says(format!("{what}\nqemu-img: Invalid options for file format '{target}'")))?;
    if !format.qemu().is_some_and(|driver| driver.measures) {
        return Err(says(format!("Block driver '{target}' does not support size measurement")));
    }
    // Here the mode is looked at by itself.
    if let Some(mode) = options.get("preallocation").filter(|mode| Prealloc::by_name(mode).is_none()) {
        return Err(says(format!("invalid parameter value: {mode}")));
    }
    options.check_choices().map_err(says)?;
    // The size that is measured is the source's.
    how.options = options.given_but(&["size"]);
    let meter = Meter::new(false, true);
    let sizes = measure(&how, &meter);
    meter.finish();
    print(call, &sizes.map_err(refused)?, as_json)
}

fn refused(error: Error) -> Failure {
    match (error.kind(), error.os_error()) {
        (ErrorKind::Cancelled, _) | (_, Some(_)) => error.into(),
        _ => says(said(&error)),
    }
}

fn print(call: &mut Call<'_>, sizes: &Sizes, as_json: bool) -> Outcome {
    let Sizes { required, fully_allocated, bitmaps, .. } = *sizes;
    if as_json {
        let all =
            [("bitmaps", bitmaps), ("required", Some(required)), ("fully-allocated", Some(fully_allocated))];
        let known = all.into_iter().filter_map(|(key, size)| Some((key.to_owned(), size?.into())));
        call.out.write_all(json(&Value::Object(known.collect::<Map<_, _>>())).as_bytes())?;
        return Ok(DONE);
    }
    writeln!(call.out, "required size: {required}")?;
    writeln!(call.out, "fully allocated size: {fully_allocated}")?;
    if let Some(bitmaps) = bitmaps {
        writeln!(call.out, "bitmaps size: {bitmaps}")?;
    }
    Ok(DONE)
}
