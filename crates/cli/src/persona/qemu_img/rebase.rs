//! `qemu-img rebase`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cowhand::{Error, ErrorKind, Lock, Open, Rebase, RebaseStep, rebase};

use super::errors::why;
use super::source::{Opening, Source};
use super::{Call, Failure, Flag, Outcome, Verb, says, text, values};
use crate::exit::DONE;
use crate::progress::Meter;

pub(super) const VERB: Verb = Verb {
    name: "rebase",
    about: "Give an image another backing file, or none",
    operands: "FILENAME",
    flags: &[
        Flag::both('h', "help", "Show this"),
        Flag::both('q', "quiet", "Print nothing"),
        Flag::both('p', "progress", "Show how far it is"),
        Flag::long("object", "A secret: secret,id=ID,file=PATH").of("OBJDEF"),
        Flag::long("image-opts", "FILENAME is a description of an image, not a path"),
        Flag::both('U', "force-share", "Open the backing file although another program uses it"),
        Flag::both('f', "format", "The image's format").of("FMT"),
        Flag::both('t', "cache", "The image's cache mode; writeback if not given").of("CACHE"),
        Flag::both('c', "compress", "Write what has to be written compressed"),
        Flag::both('b', "backing", "The new backing file, as the image is to name it; \"\" for none")
            .of("BACKING_FILENAME"),
        Flag::both('F', "backing-format", "The new backing file's format").of("BACKING_FMT"),
        Flag::both('T', "backing-cache", "The new backing file's cache mode; writeback if not given")
            .of("CACHE"),
        Flag::both('u', "backing-unsafe", "Only change the name: the disk is whatever the new one makes it"),
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Outcome {
    let mut how = Opening::default();
    let (mut cache, mut backing_cache): (Option<OsString>, Option<OsString>) = (None, None);
    let (mut backing, mut backing_format): (Option<OsString>, Option<String>) = (None, None);
    let mut backing_lock = Lock::Default;
    let (mut quiet, mut progress, mut unchecked, mut compress) = (false, false, false, false);
    while let Some((flag, value)) = call.next()? {
        // Only the new parent is shared.
        if flag != "force-share" && how.take(flag, &value)? {
            continue;
        }
        match flag {
            "help" => return call.help(),
            "quiet" => quiet = true,
            "progress" => progress = true,
            "cache" => cache = Some(value),
            "backing" => backing = Some(value),
            "backing-format" => backing_format = Some(text(&value)),
            "backing-cache" => backing_cache = Some(value),
            "backing-unsafe" => unchecked = true,
            "compress" => compress = true,
            "force-share" => backing_lock = Lock::None,
            _ => {}
        }
    }
    let others = call.others();
    let [word] = others.as_slice() else { return Err(call.usage("Expecting one image file name")) };
    if backing.is_none() && !unchecked {
        return Err(call.usage("Must specify backing file (-b) or use unsafe mode (-u)"));
    }
    let meter = Meter::waiting(progress && !quiet);
    meter.begin();
    let cache = values::cache("", cache.as_deref())?;
    let backing_cache = values::cache("source ", backing_cache.as_deref())?;
    let source = how.source(word)?;
    source.warn_if_raw_is_guessed();
    let rebased = Rebase {
        open: Open { cache, ..source.open.clone() },
        backing: backing.clone().map(PathBuf::from).filter(|name| !name.as_os_str().is_empty()),
        backing_format,
        backing_cache,
        backing_lock,
        unchecked,
        compress,
        workers: None,
    };
    match rebase(&source.path, &rebased, &meter) {
        Ok(_) => meter.finish(),
        Err(failed) => {
            if failed.step == RebaseStep::Name {
                meter.finish();
            }
            return Err(complaint(
                &source,
                backing.as_deref().map(Path::new),
                &rebased,
                failed.step,
                &failed.error,
            ));
        }
    }
    Ok(DONE)
}

/// `backing` is what `-b` says.
fn complaint(
    source: &Source,
    backing: Option<&Path>,
    how: &Rebase,
    step: RebaseStep,
    error: &Error,
) -> Failure {
    // So the real one prints what was not given.
    let backing = backing.unwrap_or(Path::new("(null)"));
    let name = backing.display();
    match step {
        RebaseStep::Image => source.failed(error),
        RebaseStep::Format => {
            says(format!("Invalid format name: '{}'", how.backing_format.as_deref().unwrap_or_default()))
        }
        RebaseStep::Parent => {
            says(format!("Could not open new backing file '{name}': {}", why(backing, error)))
        }
        RebaseStep::Name => {
            says(format!("Could not change the backing file to '{name}': {}", why_not(error)))
        }
        RebaseStep::Compress | RebaseStep::Copy => match (error.kind(), error.os_error()) {
            // What is full is what is written to.
            (ErrorKind::NoSpace, Some(system)) => says(format!("Error while writing to COW image: {system}")),
            _ => says(why(&source.path, error)),
        },
    }
}

fn why_not(error: &Error) -> String {
    let words = match error.kind() {
        ErrorKind::Invalid => "Invalid argument",
        ErrorKind::NoSpace => "No space left in the file header",
        _ => "Operation not supported",
    };
    let known = error.sentence().map(str::to_owned).or_else(|| error.os_error());
    known.unwrap_or_else(|| words.to_owned())
}
