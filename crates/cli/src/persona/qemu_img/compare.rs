//! `qemu-img compare`.

use std::ffi::OsString;

use cowhand::{CompareError, Error, ErrorKind, Lock, Open, Opened, compare, open};

use super::errors::whole;
use super::source::{Opening, Source};
use super::{Call, Failure, Flag, Outcome, Verb, says, text, values};
use crate::exit::compare::{CANNOT_MAP, CANNOT_OPEN, CANNOT_READ, DIFFERENT};
use crate::exit::{DONE, STOPPED};
use crate::progress::Meter;
use crate::verbs::compare::told;

pub(super) const VERB: Verb = Verb {
    name: "compare",
    about: "Say whether two disks have the same content",
    operands: "FILENAME1 FILENAME2",
    flags: &[
        Flag::both('h', "help", "Show this"),
        Flag::both('q', "quiet", "Print nothing; the exit status tells"),
        Flag::long("object", "A secret: secret,id=ID,file=PATH").of("OBJDEF"),
        Flag::both('T', "cache", "The images' cache mode; writeback if not given").of("CACHE_MODE"),
        Flag::long("image-opts", "The images are descriptions, not paths"),
        Flag::both('f', "a-format", "The first image's format").of("FMT"),
        Flag::long("left-format", "The same as --a-format").of("FMT"),
        Flag::both('F', "b-format", "The second image's format").of("FMT"),
        Flag::long("right-format", "The same as --b-format").of("FMT"),
        Flag::both('U', "force-share", "Open the images although another program uses them"),
        Flag::both('s', "strict", "The sizes, and what is allocated, must be the same too"),
        Flag::both('p', "progress", "Show how far it is"),
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Outcome {
    let (mut how, mut second_format) = (Opening::default(), None);
    let mut cache: Option<OsString> = None;
    let (mut quiet, mut progress, mut strict) = (false, false, false);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "help" => return call.help(),
            "quiet" => quiet = true,
            "progress" => progress = true,
            "a-format" | "left-format" => how.format = Some(text(&value)),
            "b-format" | "right-format" => second_format = Some(text(&value)),
            "strict" => strict = true,
            "cache" => cache = Some(value),
            _ => {
                how.take(flag, &value).map_err(cannot_open)?;
            }
        }
    }
    let others = call.others();
    let [first, second] = others.as_slice() else { return Err(call.usage("Expecting two image file names")) };
    let cache = values::cache("source ", cache.as_deref()).map_err(cannot_open)?;
    let progress = progress && !quiet;
    let both = || -> Result<_, Failure> {
        let open = |how: &Opening, word: &OsString| -> Result<(Source, Opened), Failure> {
            let source = how.source(word)?;
            let opened = open(&source.path, &Open { cache, ..source.open.clone() });
            let opened = opened.map_err(|error| source.failed(&error))?;
            Ok((source, opened))
        };
        let first = open(&how, first)?;
        Ok([first, open(&Opening { format: second_format, ..how.clone() }, second)?])
    };
    let images = both().map_err(cannot_open);
    if progress && images.is_err() {
        // The real one ends the line of its progress.
        writeln!(call.out)?;
    }
    let images = images?;
    let meter = Meter::waiting(progress);
    meter.begin();
    let [first, second] = images.each_ref().map(|(_, image)| image);
    let found = compare(first, second, strict, &meter).map_err(|failed| complaint(&images, failed))?;
    if !quiet {
        for line in told(&found, first.size().min(second.size()), strict) {
            writeln!(call.out, "{line}")?;
        }
    }
    call.out.flush()?;
    drop(meter);
    for (source, image) in &images {
        if source.open.lock != Lock::None {
            image.check_unchanged().map_err(|error| failure(CANNOT_READ, error))?;
        }
    }
    Ok(if found.difference.is_some() { DIFFERENT } else { DONE })
}

fn cannot_open(failure: Failure) -> Failure {
    Failure { status: CANNOT_OPEN, ..failure }
}

fn failure(status: u8, error: Error) -> Failure {
    let status = if error.kind() == ErrorKind::Cancelled { STOPPED } else { status };
    Failure { status, ..error.into() }
}

fn complaint(images: &[(Source, Opened); 2], failed: CompareError) -> Failure {
    let CompareError { reading, disk, at, error } = failed;
    if error.kind() == ErrorKind::Cancelled {
        return failure(STOPPED, error);
    }
    let name = images.get(disk).map_or("", |(source, _)| source.name.as_str());
    let told = error.os_error().unwrap_or_else(|| whole(&error));
    let (status, text) = match reading {
        true => (CANNOT_READ, format!("Error while reading offset {at} of {name}: {told}")),
        false => (CANNOT_MAP, format!("Sector allocation test failed for {name}")),
    };
    Failure { status, ..says(text) }
}
