//! `qemu-img bench`.

use std::ffi::OsString;

use cowhand::{Bench, Cache, Open, open};

use super::source::Opening;
use super::{Call, Flag, Outcome, Verb, says, values};
use crate::exit::{DONE, STOPPED};
use crate::persona::Failure;
use crate::progress::Meter;
use crate::verbs::bench::{completed, sending, timed};

pub(super) const VERB: Verb = Verb {
    name: "bench",
    about: "Measure how fast a disk answers requests",
    operands: "FILENAME",
    flags: &[
        Flag::both('h', "help", "Show this"),
        Flag::both('f', "format", "The image's format").of("FMT"),
        Flag::long("image-opts", "FILENAME is a description of an image, not a path"),
        Flag::both('t', "cache", "The image's cache mode; writeback if not given").of("CACHE"),
        Flag::both('c', "count", "How many requests; 75000 if not given").of("COUNT"),
        Flag::both('d', "depth", "How many of them at a time; 64 if not given").of("DEPTH"),
        Flag::both('o', "offset", "Where the first begins").of("OFFSET"),
        Flag::both('s', "buffer-size", "Bytes of each; 4k if not given").of("BUFFER_SIZE"),
        Flag::both('S', "step-size", "How much further each begins; BUFFER_SIZE if not given")
            .of("STEP_SIZE"),
        Flag::both('i', "aio", "threads, native or io_uring; threads do it all").of("AIO"),
        Flag::both('n', "native", "The same as -i native"),
        Flag::both('w', "write", "Write, and lose what the image held"),
        Flag::long("pattern", "The byte that is written").of("PATTERN"),
        Flag::long("flush-interval", "Flush after each so many requests").of("FLUSH_INTERVAL"),
        Flag::long("no-drain", "Flush while other requests are under way"),
        Flag::both('U', "force-share", "Open the image although another program uses it"),
        Flag::short('q', "quiet", "Accepted"),
    ],
    run,
};

const MOST: u64 = i32::MAX as u64;

fn run(call: &mut Call<'_>) -> Outcome {
    let mut how = Opening::default();
    let mut bench = Bench::default();
    let (mut step, mut pattern) = (0, 0);
    let (mut write, mut native, mut flushes) = (false, false, false);
    let mut cache = Cache::default();
    while let Some((flag, value)) = call.next()? {
        match flag {
            "help" => return call.help(),
            "cache" => cache = cache_mode(&value)?,
            "count" => bench.count = values::number("request count", &value, 1..=MOST)?,
            "depth" => bench.depth = values::number("queue depth", &value, 1..=MOST)?,
            "offset" => bench.offset = values::size("offset", &value, 0..=i64::MAX as u64)?,
            "buffer-size" => bench.len = values::size("buffer size", &value, 1..=MOST)?,
            "step-size" => step = values::size("step size", &value, 0..=MOST)?,
            "write" => write = true,
            "pattern" => pattern = values::number("pattern byte", &value, 0..=255)? as u8,
            "flush-interval" => {
                flushes = true;
                bench.flush_interval = values::number("flush interval", &value, 0..=MOST)?;
            }
            "no-drain" => bench.no_drain = true,
            "native" => native = true,
            "aio" => native = is_native(&value)?,
            _ => {
                how.take(flag, &value)?;
            }
        }
    }
    let others = call.others();
    let [word] = others.as_slice() else { return Err(call.usage("Expecting one image file name")) };
    let wrong = [
        (!write && flushes && bench.flush_interval > 0, "--flush-interval is only available in write tests"),
        (
            bench.flush_interval > 0 && bench.flush_interval < bench.depth,
            "Flush interval can't be smaller than depth",
        ),
    ];
    if let Some((_, text)) = wrong.into_iter().find(|(wrong, _)| *wrong) {
        return Err(says(text));
    }
    bench.step = if step == 0 { bench.len } else { step };
    bench.write = write.then_some(pattern);
    let source = how.source(word)?;
    let refuse = |why: &str| Err(says(format!("Could not open '{}': {why}", source.name)));
    if write && how.force_share {
        return refuse("force-share=on can only be used with read-only images");
    }
    if native && !matches!(cache, Cache::None | Cache::DirectSync) {
        return refuse("aio=native was specified, but it requires cache.direct=on, which was not specified.");
    }
    let disk = open(&source.path, &Open { writable: write, cache, ..source.open.clone() });
    let disk = disk.map_err(|error| source.failed(&error))?;
    if write {
        source.warn_if_raw_is_guessed();
    }
    sending(call.out, &bench)?;
    let meter = Meter::waiting(false);
    let took = timed(&disk, &bench, &meter).map_err(|error| {
        let failure = Failure::from(error);
        // Past the end is an error of the device there.
        match failure.status {
            STOPPED => failure,
            _ => says("Failed request: Input/output error"),
        }
    })?;
    completed(call.out, took)?;
    Ok(DONE)
}

fn cache_mode(word: &OsString) -> Result<Cache, Failure> {
    word.to_str().and_then(Cache::by_name).ok_or_else(|| says("Invalid cache mode"))
}

fn is_native(word: &OsString) -> Result<bool, Failure> {
    match word.to_str() {
        Some("native") => Ok(true),
        Some("threads" | "io_uring") => Ok(false),
        _ => Err(says(format!("Invalid aio option: {}", word.display()))),
    }
}
