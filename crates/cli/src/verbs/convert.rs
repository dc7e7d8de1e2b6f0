//! `convert`: one or more images into a new one.

use std::ffi::OsString;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use cowhand::{
    Cache, Convert, Converted, Error, Fitted, Open, Printable, Progress, Result, convert, format,
    format_for_target, info, parse_option_string, parse_size,
};

use crate::consumer::For;
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::progress::Meter;
use crate::sizes::Size;
use crate::sources::{self, Parents, Sharing, Source, note_on_sectors};
use crate::verbs::create::asks_for_help;
use crate::verbs::formats;
use crate::work::{Showing, Threads};

/// Convert images into a new one of any format
///
/// The formats of the sources are known by their content, the target's by its extension. Several sources are put one
/// behind the other. A target that is there already is replaced once the new one is whole, and not touched before.
///
/// As with qemu-img, a new VHD is rounded up to a size that a disk geometry can say; -o force_size=on keeps the size as
/// it is. A VHD made of a VHD has that one's size, unless -o force_size=off. -o subformat=fixed or dynamic makes the one
/// of the other.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "cowhand convert [OPTIONS] SOURCE... TARGET",
    after_help = "\
Examples:
  cowhand convert vm.vhdx vm.qcow2
  cowhand convert -c -o compression_type=zstd vm.img vm.qcow2
  cowhand convert --verify --for azure vm.qcow2 azure.vhd
  cowhand convert -l before-upgrade vm.qcow2 before.raw
  cowhand convert 'backup.vma.zst#drive-scsi0' disk.qcow2
  cowhand convert -n -O raw vm.qcow2 /dev/vg/lv"
)]
pub(crate) struct Args {
    /// The sources, then the target
    #[arg(required_unless_present = "options", value_name = "IMAGE")]
    images: Vec<OsString>,

    /// The sources' format; by their content if not given
    #[arg(short = 'f', value_name = "FORMAT")]
    format: Option<String>,

    /// The target's format; by its extension if not given
    #[arg(short = 'O', value_name = "FORMAT")]
    target_format: Option<String>,

    /// Options of the target's format; help lists them
    #[arg(short, value_name = "NAME=VALUE,...")]
    options: Vec<String>,

    #[command(flatten)]
    consumer: For,

    /// Compress the target
    #[arg(short)]
    compress: bool,

    /// Write into a target that is there, in place
    #[arg(short, conflicts_with = "whom")]
    no_create: bool,

    /// The target (with -n) reads zero everywhere already
    #[arg(long)]
    target_is_zero: bool,

    /// Zeros of at least so many bytes become holes, 4k if not given; 0: write everything
    #[arg(short = 'S', value_name = "SIZE", value_parser = parse_size)]
    sparse: Option<u64>,

    #[command(flatten)]
    threads: Threads,

    /// Write in any order; accepted, and done always
    #[arg(short = 'W')]
    out_of_order: bool,

    /// Share blocks with the source where the file system can; accepted, and done by default
    #[arg(short = 'C', conflicts_with_all = ["compress", "sparse"])]
    copy_offload: bool,

    /// Write at most so many bytes a second
    #[arg(short = 'r', value_name = "SIZE", value_parser = rate)]
    rate: Option<u64>,

    /// The target's cache mode: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 't', value_name = "CACHE", value_parser = sources::cache, default_value = "writeback")]
    cache: Cache,

    /// The sources' cache mode
    #[arg(short = 'T', value_name = "CACHE", value_parser = sources::cache, default_value = "writeback")]
    source_cache: Cache,

    /// An internal snapshot of the source: its id or name, snapshot.id=ID or snapshot.name=NAME
    #[arg(short = 'l', value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    /// What the target stands on: only what differs from it is written
    #[arg(short = 'B', short_alias = 'b', value_name = "PATH", conflicts_with = "no_create")]
    backing: Option<PathBuf>,

    /// The backing file's format
    #[arg(short = 'F', value_name = "FORMAT", requires = "backing")]
    backing_format: Option<String>,

    /// Copy the source's persistent dirty bitmaps
    #[arg(long)]
    bitmaps: bool,

    /// Of these leave out what is inconsistent
    #[arg(long)]
    skip_broken_bitmaps: bool,

    /// Go on where a source cannot be read: what cannot, down to single sectors, becomes zeros
    #[arg(long, conflicts_with = "copy_offload")]
    salvage: bool,

    /// The target (with -n) is "driver=FORMAT,file.filename=PATH" in place of a path
    #[arg(long, requires = "no_create", conflicts_with = "target_format")]
    target_image_opts: bool,

    /// Read the target back and compare it before it gets its name
    #[arg(long)]
    verify: bool,

    /// After an error leave what was written so far, under its partial name
    #[arg(long)]
    keep_partial: bool,

    /// Go on where a run with --resume was stopped, and leave what is needed to go on
    #[arg(long, conflicts_with = "no_create")]
    resume: bool,

    #[command(flatten)]
    showing: Showing,

    #[command(flatten)]
    sharing: Sharing,

    #[command(flatten)]
    parents: Parents,
}

/// What a salvage lost: how many places of it are listed.
const MOST_LISTED: usize = 100;

/// Takes down what cannot be read, one line for what lies together.
struct Losses<'a> {
    meter: &'a Meter,
    lost: Mutex<Vec<Loss>>,
}

struct Loss {
    range: Range<u64>,
    why: String,
}

impl Losses<'_> {
    fn tell(self, out: &mut Output, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let lost = self.lost.into_inner().unwrap_or_else(PoisonError::into_inner);
        for Loss { range, why } in lost.iter().take(MOST_LISTED) {
            let len = range.end - range.start;
            writeln!(
                out,
                "warning: {len} bytes of the disk at offset {} could not be read: {why}",
                range.start
            )?;
        }
        let more = if lost.len() > MOST_LISTED { "at these places and more " } else { "" };
        writeln!(out, "warning: {bytes} bytes that could not be read {more}are zero in the target")
    }
}

impl Progress for Losses<'_> {
    fn at(&self, done: u64, total: u64) -> ControlFlow<()> {
        self.meter.at(done, total)
    }

    fn lost(&self, at: u64, len: u64, why: &Error) -> ControlFlow<()> {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loss) = lost.iter_mut().rev().find(|loss| loss.range.end == at) {
            loss.range.end += len;
        } else if lost.len() <= MOST_LISTED {
            lost.push(Loss { range: at..at + len, why: why.to_string() });
        }
        ControlFlow::Continue(())
    }
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let options: Vec<(String, String)> =
        args.options.iter().flat_map(|text| parse_option_string(text)).collect();
    if asks_for_help(&options) {
        formats::help(out, target_format(args)?)?;
        return Ok(DONE);
    }
    if args.no_create && !options.is_empty() {
        return Err(Error::invalid("-o has no effect when skipping image creation")
            .hint("leave out -o or -n")
            .into());
    }
    if args.target_is_zero && !args.no_create {
        return Err(Error::invalid("--target-is-zero requires use of -n flag").into());
    }
    let Some((target, sources)) = args.images.split_last().filter(|(_, sources)| !sources.is_empty()) else {
        return Err(Error::invalid("Must specify image file name").hint("name a source and a target").into());
    };
    let target = PathBuf::from(target);
    let sources: Vec<Source> = sources
        .iter()
        .map(|word| args.sharing.source(word, args.format.as_deref()))
        .collect::<Result<_>>()?;
    let fitted = match args.no_create {
        true => None,
        false => Some(args.consumer.fit(args.target_format.as_deref(), &target, options)?),
    };
    let how = job(args, &sources, &target, fitted.as_ref())?;
    if is_device(&target) && !args.showing.quiet {
        let name = target.display().to_string();
        writeln!(
            out,
            "{} is a device: it is written in place, and holds part of the disk if this is stopped",
            Printable(&name)
        )?;
    }
    out.flush()?;
    let since = Instant::now();
    let meter = args.showing.meter();
    let losses = Losses { meter: &meter, lost: Mutex::default() };
    let done = convert(&how, &losses)?;
    if !args.showing.quiet {
        losses.tell(out, done.lost)?;
    }
    meter.finish();
    if !args.showing.quiet {
        for warning in &done.warnings {
            writeln!(out, "warning: {warning}")?;
        }
        summary(out, &how, &done, since)?;
        note_on_sectors(out, done.sectors)?;
        let title = fitted.map_or("", |fitted| fitted.title);
        args.consumer.tell(out, title, &target, done.source_size, done.size, done.file_len)?;
    }
    Ok(DONE)
}

fn job(args: &Args, sources: &[Source], target: &Path, fitted: Option<&Fitted>) -> Result<Convert> {
    let Some(first) = sources.first() else {
        return Err(Error::invalid("Must specify image file name").hint("name a source and a target"));
    };
    let open = |source| args.sharing.open(source, &args.parents, args.source_cache);
    let opens: Vec<Open> = sources.iter().map(open).collect::<Result<_>>()?;
    let mut open = open(first)?;
    if let Some(snapshot) = &args.snapshot {
        let [source] = sources else {
            return Err(Error::invalid("-l names a snapshot of one source, and there are several"));
        };
        open.snapshot = Some(which_snapshot(snapshot, &source.path, &open)?);
    }
    let mut how = Convert::new(sources.iter().map(|source| &source.path), target);
    if sources.len() > 1 {
        how.opens = opens;
    }
    if args.target_image_opts {
        let described = Sharing { image_opts: true, ..args.sharing.clone() }.source(&target.into(), None)?;
        how.target_open = Some(Open {
            cache: args.cache,
            ..args.sharing.writing(&described, &Parents::default(), args.cache)?
        });
        how.target = described.path;
    }
    how.open = open;
    how.format = args.target_format.clone();
    if let Some(fitted) = fitted {
        how.format = fitted.format.names().first().map(|name| (*name).to_owned());
        how.options = fitted.options.clone();
    }
    how.backing = args.backing.clone();
    how.backing_format = args.backing_format.clone();
    how.cache = args.cache;
    how.solid = fitted.map_or(args.consumer.non_sparse(), |fitted| fitted.solid);
    how.no_create = args.no_create;
    how.target_is_zero = args.target_is_zero;
    how.compress = args.compress;
    how.salvage = args.salvage;
    how.sparse = args.sparse;
    how.workers = args.threads.count();
    how.rate = args.rate;
    how.bitmaps = args.bitmaps;
    how.skip_broken_bitmaps = args.skip_broken_bitmaps;
    how.verify = args.verify;
    how.keep_partial = args.keep_partial;
    how.resume = args.resume;
    Ok(how)
}

fn target_format(args: &Args) -> Result<&'static dyn cowhand::Format> {
    match (&args.target_format, args.images.last()) {
        (Some(name), _) => format(name),
        (None, Some(target)) => format_for_target(Path::new(target)),
        (None, None) => format("raw"),
    }
}

/// `snapshot.id=ID` and `snapshot.name=NAME` name one for sure; a bare word is an id or else a name.
pub(crate) fn which_snapshot(text: &str, path: &Path, open: &cowhand::Open) -> Result<String> {
    if !text.starts_with("snapshot.") {
        return Ok(text.to_owned());
    }
    let (mut id, mut name) = (None, None);
    for (key, value) in parse_option_string(text) {
        match key.as_str() {
            "snapshot.id" => id = Some(value),
            "snapshot.name" => name = Some(value),
            _ => {
                return Err(Error::invalid(format!("Invalid parameter '{key}'"))
                    .hint("use snapshot.id=ID, snapshot.name=NAME, or the id or name alone"));
            }
        }
    }
    let found = info(path, open, false)?;
    let mut snapshots = found.iter().flat_map(|image| &image.snapshots);
    let wanted = |asked: &Option<String>, has: &String| asked.as_ref().is_none_or(|asked| asked == has);
    snapshots
        .find(|snapshot| wanted(&id, &snapshot.id) && wanted(&name, &snapshot.name))
        .map(|snapshot| snapshot.id.clone())
        .ok_or_else(|| {
            Error::new(cowhand::ErrorKind::NotFound, format!("has no snapshot '{text}'"))
                .image(path.display())
                .hint("'cowhand info' lists them")
        })
}

fn rate(text: &str) -> Result<u64> {
    match parse_size(text)? {
        0 => Err(Error::invalid("nothing would ever be written")),
        bytes => Ok(bytes),
    }
}

fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

/// What was done, in one line.
fn summary(out: &mut Output, how: &Convert, done: &Converted, since: Instant) -> Result<()> {
    for (index, (path, format)) in how.sources.iter().zip(&done.from).enumerate() {
        let name = path.display().to_string();
        write!(out, "{}{} ({format})", if index > 0 { " + " } else { "" }, Printable(&name))?;
    }
    let target = how.target.display().to_string();
    write!(out, " -> {} ({}): {} disk, ", Printable(&target), done.to, Size(done.size))?;
    write!(out, "{} written", Size(done.written))?;
    if done.cloned > 0 {
        write!(out, ", {} shared with the source", Size(done.cloned))?;
    }
    if done.resumed > 0 {
        write!(out, ", {} done before", Size(done.resumed))?;
    }
    if done.physical > 0 {
        write!(out, ", {} on disk", Size(done.physical))?;
    }
    if done.verified {
        write!(out, ", read back and the same")?;
    }
    writeln!(out, " in {:.2} s", since.elapsed().as_secs_f64())
}
