//! `qemu-img amend`.

use std::ffi::OsStr;

use cowhand::{Amend, ErrorKind, Format, Open, Parent, amend, open};

use super::errors::said;
use super::parameters::{self, Lists};
use super::source::{Opening, Source};
use super::{Call, Failure, Flag, Outcome, Verb, says, values};
use crate::exit::DONE;
use crate::output::Output;
use crate::progress::Meter;

pub(super) const VERB: Verb = Verb {
    name: "amend",
    about: "Change options of an image",
    operands: "FILENAME",
    flags: &[
        Flag::both('h', "help", "Show this"),
        Flag::both('q', "quiet", "Print nothing"),
        Flag::both('p', "progress", "Show how far it is"),
        Flag::long("object", "A secret: secret,id=ID,file=PATH").of("OBJDEF"),
        Flag::both('f', "format", "The image's format").of("FMT"),
        Flag::both('t', "cache", "The cache mode; writeback if not given").of("CACHE"),
        Flag::both('o', "options", "The options and their new values; help lists them").of("OPTIONS"),
        Flag::long("image-opts", "FILENAME is a description of an image, not a path"),
        Flag::long("force", "Also what loses data"),
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Outcome {
    let mut opening = Opening::default();
    let mut lists = Lists::default();
    let (mut quiet, mut progress, mut force, mut cache) = (false, false, false, None);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "help" => return call.help(),
            "quiet" => quiet = true,
            "progress" => progress = true,
            "force" => force = true,
            "cache" => cache = Some(value),
            "options" => lists.add(&value)?,
            _ => {
                opening.take(flag, &value)?;
            }
        }
    }
    if lists.is_empty() {
        return Err(call.usage("Must specify options (-o)"));
    }
    if let Some(name) = opening.format.as_deref().filter(|_| lists.ask_for_help()) {
        let format = parameters::format(name).ok_or_else(|| says(format!("Unknown file format '{name}'")))?;
        return help(call.out, format);
    }
    let others = call.others();
    let [image] = others.as_slice() else { return Err(says("Expecting one image file name")) };
    let cache = values::cache("", cache.as_deref())?;
    let (source, format) = find(&opening, image)?;
    if lists.ask_for_help() {
        return help(call.out, format);
    }
    let table = amendable(format)?;
    let meter = Meter::new(progress && !quiet, !progress || quiet);
    let options = lists.read(table).map_err(|what| {
        let created = lists.read(parameters::of_new(format)).is_ok();
        says(if created { format!("{what}\nThis option is only supported for image creation") } else { what })
    })?;
    options.check_choices().map_err(says)?;
    if options.get("backing_file").is_some() || options.get("backing_fmt").is_some() {
        return Err(says("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead."));
    }
    let open = Open { cache, ..source.open.clone() };
    let how = Amend { open, options: options.given_but(&[]), force, shrink: true };
    amend(&source.path, &how, &meter).map_err(|error| match (error.kind(), error.os_error()) {
        (ErrorKind::Cancelled, _) | (_, Some(_)) => error.into(),
        _ => says(said(&error)),
    })?;
    meter.finish();
    Ok(DONE)
}

/// The image that `word` names, and its format.
fn find(opening: &Opening, word: &OsStr) -> Result<(Source, &'static dyn Format), Failure> {
    let source = opening.source(word)?;
    source.warn_if_raw_is_guessed();
    let how = Open { writable: true, parent: Parent::Ignored, ..source.open.clone() };
    let image = open(&source.path, &how).map_err(|error| source.failed(&error))?;
    let format = cowhand::format(image.top().format)?;
    Ok((source, format))
}

/// What can be changed. Errors: nothing can.
fn amendable(format: &'static dyn Format) -> Result<Vec<&'static cowhand::OptionSpec>, Failure> {
    let table = parameters::of_driver(format.amend_options());
    if table.is_empty() {
        let name = format.names().first().unwrap_or(&""); // never empty: every format has a name
        return Err(says(format!("Format driver '{name}' does not support option amendment")));
    }
    Ok(table)
}

fn help(out: &mut Output, format: &'static dyn Format) -> Outcome {
    let table = amendable(format)?;
    writeln!(out, "Amend options for '{}':", format.names().first().unwrap_or(&""))?; // never empty: every format has a name
    parameters::list(out, table)?;
    Ok(DONE)
}
