//! `qemu-img commit`.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use cowhand::{Commit, CommitStep, Open, commit};

use super::errors::reason;
use super::source::{Opening, Source};
use super::{Call, Failure, Flag, Outcome, Verb, says, values};
use crate::exit::DONE;
use crate::progress::Meter;

pub(super) const VERB: Verb = Verb {
    name: "commit",
    about: "Move what an image holds down into what it stands on",
    operands: "FILENAME",
    flags: &[
        Flag::both('h', "help", "Show this"),
        Flag::both('q', "quiet", "Print nothing"),
        Flag::long("object", "A secret: secret,id=ID,file=PATH").of("OBJDEF"),
        Flag::both('f', "format", "The image's format").of("FMT"),
        Flag::long("image-opts", "FILENAME is a description of an image, not a path"),
        Flag::both('t', "cache", "The cache mode; writeback if not given").of("CACHE_MODE"),
        Flag::both('d', "drop", "Leave the image as it is: do not empty it"),
        Flag::both('b', "base", "The image further down that takes the data; implies -d").of("BASE_IMG"),
        Flag::both('p', "progress", "Show how far it is"),
        Flag::both('r', "rate", "Accepted; it is done as fast as it can be").of("RATE"),
        Flag::long("report-bytes", "Print \"(MOVED/HELD)\" in bytes, as COWHAND_COMMIT_REPORT=1 does")
            .whole(),
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Outcome {
    let mut how = Opening::default();
    let (mut cache, mut base): (Option<OsString>, Option<PathBuf>) = (None, None);
    let (mut quiet, mut progress, mut keep, mut report) = (false, false, false, false);
    while let Some((flag, value)) = call.next()? {
        if how.take(flag, &value)? {
            continue;
        }
        match flag {
            "help" => return call.help(),
            "quiet" => quiet = true,
            "progress" => progress = true,
            "cache" => cache = Some(value),
            "drop" => keep = true,
            "base" => base = Some(value.into()),
            "rate" => {
                values::size("rate limit", &value, 0..=i64::MAX as u64)?;
            }
            "report-bytes" => report = true,
            _ => {}
        }
    }
    let others = call.others();
    let [word] = others.as_slice() else { return Err(call.usage("Expecting one image file name")) };
    let cache = values::cache("", cache.as_deref())?;
    let source = how.source(word)?;
    source.warn_if_raw_is_guessed();
    // The real one holds the image for writing, emptied or not.
    let open = Open { cache, writable: true, ..source.open.clone() };
    let meter = Meter::waiting(progress && !quiet);
    let done = commit(&source.path, &Commit { open, base, as_named: true, keep, workers: None }, &meter);
    let done = done.map_err(|failed| {
        if failed.step != CommitStep::Open {
            meter.begin();
        }
        complaint(&source, failed.step, &failed.error)
    })?;
    meter.finish();
    if report || env::var_os("COWHAND_COMMIT_REPORT").is_some_and(|value| value == "1") {
        writeln!(call.out, "({}/{})", done.moved, done.held)?;
    }
    if !quiet {
        writeln!(call.out, "Image committed.")?;
    }
    Ok(DONE)
}

fn complaint(source: &Source, step: CommitStep, error: &cowhand::Error) -> Failure {
    match (step, error.os_error()) {
        (CommitStep::Open, _) => source.failed(error),
        (CommitStep::Move, Some(system)) => says(format!("Block job failed: {system}")),
        _ => says(reason(&source.path, error)),
    }
}
