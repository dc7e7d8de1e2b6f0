//! `qemu-img convert`.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::path::PathBuf;

use cowhand::{
    Cache, Convert, ConvertStep, Error, ErrorKind, Failed, Format, Name, Open, Printable, Progress, convert,
    driver, open, parse_option_string,
};

use super::create::help;
use super::errors::{could_not_open, whole, why, why_not_made};
use super::parameters::{self, Lists};
use super::source::{Opening, Source};
use super::{Call, Failure, Flag, Outcome, Verb, says, text, utf8, values};
use crate::exit::DONE;
use crate::persona::compat::replace;
use crate::persona::complain;
use crate::progress::Meter;
use crate::verbs::convert::which_snapshot;

// In the real one's order, which a complaint about a word that is cut too short shows. Behind it what its help calls them.
pub(super) const VERB: Verb = Verb {
    name: "convert",
    about: "Copy images into a new one, of another format or of the same",
    operands: "SRC_FILENAME [SRC_FILENAME2...] TGT_FILENAME",
    flags: &[
        Flag::both('h', "help", "Show this"),
        Flag::both('q', "quiet", "Print nothing"),
        Flag::long("object", "A secret: secret,id=ID,file=PATH").of("OBJDEF"),
        Flag::long("image-opts", "The same as --source-image-opts"),
        Flag::long("source-image-opts", "The sources are descriptions of images, not paths"),
        Flag::both('f', "source-format", "The sources' format").of("SRC_FMT"),
        Flag::both('T', "source-cache", "The sources' cache mode; writeback if not given").of("SRC_CACHE"),
        Flag::both('l', "snapshot", "Convert this snapshot within the source").of("SNAPSHOT_PARAMS"),
        Flag::both('S', "sparse-size", "Zeros of at least so many bytes are not written; 0: write all")
            .of("SPARSE_SIZE"),
        Flag::both('O', "output-format", "The target's format; raw if not given").of("TGT_FMT"),
        Flag::both('o', "options", "Options of the target's format").of("TGT_OPTS"),
        Flag::both('t', "output-cache", "The target's cache mode; unsafe if not given").of("TGT_CACHE"),
        Flag::both('B', "backing", "What the target stands on: only what differs is written")
            .of("BACKING_FILENAME"),
        Flag::both('F', "backing-format", "The backing file's format").of("BACKING_FMT"),
        Flag::both('U', "force-share", "Open the sources although another program uses them"),
        Flag::long("target-image-opts", "The target is a description of an image, not a path; needs -n"),
        Flag::long("salvage", "Go on where a source cannot be read, with zeros"),
        Flag::long("target-is-zero", "The target, which is there, reads zero"),
        Flag::long("bitmaps", "Copy the source's persistent bitmaps too"),
        Flag::long("skip-broken-bitmaps", "Leave out those that are broken"),
        Flag::both('r', "rate", "Write at most so many bytes a second").of("RATE"),
        Flag::both('m', "parallel", "How many pieces are copied at a time").of("NUM_COROUTINES"),
        Flag::both('W', "oob-writes", "Write in any order; accepted, and done always"),
        Flag::both('C', "copy-range-offloading", "Let the system copy; accepted, and done where it can"),
        Flag::both('p', "progress", "Show how far it is").whole(),
        Flag::both('c', "compress", "Compress the target").whole(),
        Flag::both('n', "no-create", "Write into a target that is there").whole(),
        Flag::long("source-snapshot", "The same as --snapshot").of("SNAPSHOT_PARAMS").whole(),
        Flag::long("target-format", "The same as --output-format").of("TGT_FMT").whole(),
        Flag::long("target-options", "The same as --options").of("TGT_OPTS").whole(),
        Flag::long("target-cache", "The same as --output-cache").of("TGT_CACHE").whole(),
    ],
    run,
};

/// Most threads, as the real one counts its coroutines.
const MOST_PARALLEL: u64 = 16;
/// Runs of zeros are looked for up to so many bytes.
const MOST_SPARSE: u64 = 16 << 20;
const SECTOR: u64 = 512;
/// Begins what names a snapshot for sure.
const SNAPSHOT: &str = "snapshot.";

#[derive(Default)]
struct Asked {
    opening: Opening,
    target_format: Option<String>,
    target_image_opts: bool,
    options: Lists,
    cache: Option<OsString>,
    source_cache: Option<OsString>,
    snapshot: Option<OsString>,
    backing: Option<PathBuf>,
    backing_format: Option<String>,
    sparse: Option<u64>,
    rate: Option<u64>,
    parallel: Option<u64>,
    compress: bool,
    offload: bool,
    no_create: bool,
    target_is_zero: bool,
    bitmaps: bool,
    skip_broken_bitmaps: bool,
    salvage: bool,
    progress: bool,
    quiet: bool,
}

fn run(call: &mut Call<'_>) -> Outcome {
    let Some(asked) = Asked::of(call)? else { return call.help() };
    asked.check()?;
    let others = call.others();
    let (target, sources) = match others.split_last() {
        Some((target, sources)) if !sources.is_empty() => (Some(target), sources),
        _ => (None, &[][..]),
    };
    if asked.options.ask_for_help() {
        return help(call.out, asked.format_name().unwrap_or_default(), target);
    }
    let Some(target) = target else { return Err(says("Must specify image file name")) };
    let source_cache = values::cache("source ", asked.source_cache.as_deref())?;
    let meter = Meter::waiting(asked.progress && !asked.quiet);
    meter.begin();
    let sources: Vec<Source> = sources
        .iter()
        .map(|word| asked.opening.source(word).map(Source::unshared))
        .collect::<Result<_, _>>()?;
    let job = asked.job(&sources, target, source_cache)?;
    let shown = Shown { meter: &meter, quiet: asked.quiet };
    let done =
        convert(&job, &shown).map_err(|failed| asked.complaint(&job, &sources, &text(target), failed))?;
    for warning in &done.warnings {
        complain(&format!("qemu-img: warning: {warning}"));
    }
    meter.finish();
    Ok(DONE)
}

impl Asked {
    /// What the flags say. `None`: help is wanted.
    fn of(call: &mut Call<'_>) -> Result<Option<Asked>, Failure> {
        let mut asked = Asked::default();
        while let Some((flag, value)) = call.next()? {
            match flag {
                "help" => return Ok(None),
                "quiet" => asked.quiet = true,
                "progress" => asked.progress = true,
                "source-format" => asked.opening.format = Some(text(&value)),
                "image-opts" | "source-image-opts" => asked.opening.image_opts = true,
                "source-cache" => asked.source_cache = Some(value),
                "snapshot" | "source-snapshot" => {
                    check_snapshot(&text(&value))?;
                    asked.snapshot = Some(value);
                }
                "target-image-opts" => asked.target_image_opts = true,
                "output-format" | "target-format" => asked.target_format = Some(text(&value)),
                "options" | "target-options" => asked.options.add(&value)?,
                "output-cache" | "target-cache" => asked.cache = Some(value),
                "backing" => asked.backing = Some(value.into()),
                "backing-format" => asked.backing_format = Some(text(&value)),
                "target-is-zero" => asked.target_is_zero = true,
                "sparse-size" => asked.sparse = Some(sparse(&value)?),
                "bitmaps" => asked.bitmaps = true,
                "skip-broken-bitmaps" => asked.skip_broken_bitmaps = true,
                "rate" => asked.rate = Some(values::size("rate limit", &value, 0..=i64::MAX as u64)?),
                "parallel" => {
                    asked.parallel = Some(values::number("number of coroutines", &value, 1..=MOST_PARALLEL)?)
                }
                "copy-range-offloading" => asked.offload = true,
                "salvage" => asked.salvage = true,
                "compress" => asked.compress = true,
                "no-create" => asked.no_create = true,
                "oob-writes" => {}
                _ => {
                    asked.opening.take(flag, &value)?;
                }
            }
        }
        Ok(Some(asked))
    }

    /// What cannot be asked for together.
    fn check(&self) -> Result<(), Failure> {
        let wrong = [
            (self.no_create && !self.options.is_empty(), "-o has no effect when skipping image creation"),
            (self.target_is_zero && !self.no_create, "--target-is-zero requires use of -n flag"),
            (self.compress && self.offload, "Cannot enable copy offloading when -c is used"),
            (self.sparse.is_some() && self.offload, "Cannot enable copy offloading when -S is used"),
            (self.salvage && self.offload, "Cannot use copy offloading in salvaging mode"),
            (self.target_image_opts && !self.no_create, "--target-image-opts requires use of -n flag"),
            (self.skip_broken_bitmaps && !self.bitmaps, "Use of --skip-broken-bitmaps requires --bitmaps"),
        ];
        wrong.into_iter().find(|(wrong, _)| *wrong).map_or(Ok(()), |(_, text)| Err(says(text)))
    }

    /// What the target is made or opened as; `None`: its description says it.
    fn format_name(&self) -> Option<&str> {
        match (&self.target_format, self.target_image_opts) {
            (Some(name), _) => Some(name),
            (None, true) => None,
            (None, false) => Some("raw"),
        }
    }

    fn job(&self, sources: &[Source], target: &OsStr, source_cache: Cache) -> Result<Convert, Failure> {
        let mut opens: Vec<Open> =
            sources.iter().map(|source| Open { cache: source_cache, ..source.open.clone() }).collect();
        if let (Some(snapshot), Some(open)) = (&self.snapshot, opens.first_mut()) {
            open.snapshot = Some(self.which_snapshot(&text(snapshot), sources)?);
        }
        let mut job = Convert::new(sources.iter().map(|source| &source.path), target);
        job.open = opens.first().cloned().unwrap_or_default(); // never empty: the caller looked
        job.opens = opens;
        job.format = self.format_name().map(str::to_owned);
        job.qemu_choices = true;
        job.no_create = self.no_create;
        job.target_is_zero = self.target_is_zero;
        job.compress = self.compress;
        job.sparse = self.sparse;
        job.rate = self.rate.filter(|rate| *rate > 0);
        job.workers = self.parallel.map(|number| number as usize);
        job.bitmaps = self.bitmaps;
        job.skip_broken_bitmaps = self.skip_broken_bitmaps;
        job.salvage = self.salvage;
        job.replace = replace();
        job.cache = Cache::Unsafe;
        // What is wrong with the target is said once the sources are open.
        self.take_target(&mut job, target).map_err(|failure| opened_first(sources, failure))?;
        Ok(job)
    }

    fn take_target(&self, job: &mut Convert, target: &OsStr) -> Result<(), Failure> {
        if !self.no_create {
            self.take_options(job, target)?;
        } else if self.target_is_zero && self.backing.is_some() {
            return Err(says("Cannot use --target-is-zero when the destination image has a backing file"));
        }
        if let Some(cache) = &self.cache {
            job.cache = values::cache("", Some(cache))?;
        }
        if self.no_create {
            let opening = Opening {
                format: self.format_name().map(str::to_owned),
                image_opts: self.target_image_opts,
                force_share: false,
                secrets: self.opening.secrets.clone(),
            };
            let described = opening.source(target)?;
            job.target = described.path;
            job.target_open = Some(Open { cache: job.cache, ..described.open });
        }
        Ok(())
    }

    /// What `-o`, `-B` and `-F` say of a target that is to be made.
    fn take_options(&self, job: &mut Convert, target: &OsStr) -> Result<(), Failure> {
        let name = self.format_name().unwrap_or_default();
        let known = parameters::format(name).or_else(|| driver_of_files(name));
        let known = known.ok_or_else(|| says(format!("Unknown file format '{name}'")))?;
        job.target = Name::of_target(target.as_ref()).map_err(|error| says(error.message()))?;
        let mut options = self.options.read(parameters::of_new(known)).map_err(says)?;
        let not_supported =
            |what: &str| says(format!("Backing {what} not supported for file format '{name}'"));
        if let Some(backing) = &self.backing {
            let backing = utf8(backing.as_os_str())?;
            options.set("backing_file", &backing).map_err(|_| not_supported("file"))?;
        }
        if let Some(format) = &self.backing_format {
            options.set("backing_fmt", format).map_err(|_| not_supported("file format"))?;
        }
        let backing = options.get("backing_file").map(PathBuf::from);
        let backing_format = options.get("backing_fmt").map(str::to_owned);
        if backing.is_some() && job.sources.len() > 1 {
            return Err(says(
                "Having a backing file for the target makes no sense when concatenating multiple input images",
            ));
        }
        if backing.is_some() && backing_format.is_none() {
            return Err(says("Use of backing file requires explicit backing format"));
        }
        if self.compress {
            let encrypts = options.get("encrypt.format").is_some()
                || options.get("encryption").is_some_and(|value| value != "off");
            if encrypts {
                return Err(says("Compression and encryption not supported at the same time"));
            }
            if options.get("preallocation").is_some_and(|how| how != "off") {
                return Err(says("Compression and preallocation not supported at the same time"));
            }
        }
        let unusable = match backing_format.as_deref() {
            Some(format) if parameters::format(format).is_none() => {
                Err(format!("Parameter 'backing-fmt' does not accept value '{format}'"))
            }
            Some(_) if backing.is_none() => {
                Err("Backing format cannot be used without backing file".to_owned())
            }
            _ => options.check_choices(),
        };
        unusable.map_err(|why| says(format!("{}: error while converting {name}: {why}", text(target))))?;
        // The target has the sources' size, whatever is said here.
        job.options = options.given_but(&["size", "backing_file", "backing_fmt"]);
        (job.backing, job.backing_format) = (backing, backing_format);
        Ok(())
    }

    /// Which snapshot the word means. One of several sources is known by `snapshot.` alone.
    fn which_snapshot(&self, word: &str, sources: &[Source]) -> Result<String, Failure> {
        let Some(source) = sources.first() else { return Ok(word.to_owned()) };
        if word.starts_with(SNAPSHOT) {
            // Where there is no such snapshot, opening it says so.
            return Ok(which_snapshot(word, &source.path, &source.open).unwrap_or_else(|_| word.to_owned()));
        }
        if sources.len() > 1 {
            for source in sources {
                open(&source.path, &source.open).map_err(|error| source.failed(&error))?;
            }
            return Err(says("No support for concatenating multiple snapshot"));
        }
        Ok(word.to_owned())
    }

    fn complaint(
        &self,
        job: &Convert,
        sources: &[Source],
        target: &str,
        Failed { step, error }: Failed<ConvertStep>,
    ) -> Failure {
        if error.kind() == ErrorKind::Cancelled {
            return error.into();
        }
        let format = self.format_name().unwrap_or_default();
        let told = why_copying(&error);
        match step {
            ConvertStep::Source(index) => match sources.get(index) {
                Some(source) => source.failed(&error),
                None => error.into(),
            },
            ConvertStep::Snapshot(index) => {
                says(format!("Failed to load snapshot: {}", why_no_snapshot(sources.get(index), &error)))
            }
            ConvertStep::Format => says(format!("Unknown file format '{format}'")),
            ConvertStep::Backing => {
                let backing = job.backing.clone().unwrap_or_default();
                let told = why(&backing, &error);
                says(format!("Could not open '{target}': Could not open backing file: {told}"))
            }
            ConvertStep::Create => {
                let told = why_not_made(target, &error);
                says(format!("{target}: error while converting {format}: {told}"))
            }
            ConvertStep::Target => could_not_open(target, &job.target, &error),
            ConvertStep::Room => says("output file is smaller than input file"),
            ConvertStep::Compress => says("Compression not supported for this file format"),
            ConvertStep::Map(at) => says(format!("error while reading block status at offset {at}: {told}")),
            ConvertStep::Read(at) => says(format!("error while reading at byte {at}: {told}")),
            ConvertStep::Write(at) => says(format!("error while writing at byte {at}: {told}")),
            ConvertStep::Bitmaps if error.kind() == ErrorKind::Unsupported => {
                says("Source lacks bitmap support")
            }
            ConvertStep::PutBitmaps if error.kind() == ErrorKind::Unsupported => {
                says(format!("Format driver '{format}' does not support bitmaps"))
            }
            ConvertStep::Rest if error.sentence().is_none() => says(whole(&error)),
            ConvertStep::Bitmaps | ConvertStep::PutBitmaps | ConvertStep::Rest => says(told),
        }
    }
}

/// What keeps a file's bytes as they stand is a driver too.
fn driver_of_files(name: &str) -> Option<&'static dyn Format> {
    let format = driver(name).ok()?;
    (!format.names().contains(&name)).then_some(format)
}

/// `failure`, unless a source cannot be opened: that is said before.
fn opened_first(sources: &[Source], failure: Failure) -> Failure {
    let broken =
        sources.iter().find_map(|source| Some(source.failed(&open(&source.path, &source.open).err()?)));
    broken.unwrap_or(failure)
}

/// Says what is lost, a line for each sector, as the real one does.
struct Shown<'a> {
    meter: &'a Meter,
    quiet: bool,
}

impl Progress for Shown<'_> {
    fn at(&self, done: u64, total: u64) -> ControlFlow<()> {
        self.meter.at(done, total)
    }

    fn lost(&self, at: u64, len: u64, error: &Error) -> ControlFlow<()> {
        if !self.quiet {
            let told = why_copying(error);
            for sector in (0..len).step_by(SECTOR as usize) {
                let at = at + sector;
                complain(&format!("qemu-img: warning: error while reading offset {at}: {told}"));
            }
        }
        self.meter.at(0, 0)
    }
}

/// Why data could not be copied: what the system says, else what is wrong.
fn why_copying(error: &Error) -> String {
    let known = error.sentence().map(str::to_owned).or_else(|| error.os_error());
    known.unwrap_or_else(|| whole(error))
}

fn why_no_snapshot(source: Option<&Source>, error: &Error) -> String {
    let format = source.map_or("", format_of);
    match error.kind() {
        ErrorKind::NotFound => "Can't find snapshot".to_owned(),
        ErrorKind::Unsupported => format!(
            "Block format '{format}' used by device '' does not support temporarily loading internal snapshots"
        ),
        _ => whole(error),
    }
}

/// The format that the source has.
fn format_of(source: &Source) -> &'static str {
    let opened = open(&source.path, &source.open);
    opened.ok().and_then(|opened| Some(opened.links().first()?.format)).unwrap_or_default()
}

/// Errors: `snapshot.` before something that names no snapshot.
fn check_snapshot(word: &str) -> Result<(), Failure> {
    let names = || parse_option_string(word).into_iter().map(|(name, _)| name);
    let known = |name: &String| name == "snapshot.id" || name == "snapshot.name";
    match names().find(|name| !known(name)).filter(|_| word.starts_with(SNAPSHOT)) {
        None => Ok(()),
        Some(name) => Err(says(format!(
            "Invalid parameter '{}'\nqemu-img: Failed in parsing snapshot param '{}'",
            Printable(&name),
            Printable(word)
        ))),
    }
}

fn sparse(word: &OsStr) -> Result<u64, Failure> {
    const WHAT: &str = "buffer size for sparse output";
    let size = values::size(WHAT, word, 0..=i64::MAX as u64)?;
    if size % SECTOR == 0 && size <= MOST_SPARSE {
        return Ok(size);
    }
    Err(says(format!(
        "Invalid {WHAT} specified. Valid sizes are multiples of {SECTOR} up to {MOST_SPARSE}. Select 0 to disable sparse \
         detection (fully allocates output)."
    )))
}
