//! `stream`: image files through pipes, HTTP and `tar.gz` archives.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cowhand::stream::{Deliver, From, Http, Incoming, Put, Stream, Streamed, To, front, stream};
use cowhand::{Cache, Error, Open, Printable, Result, parse_option_string, parse_size};

use crate::consumer::For;
use crate::exit::{DONE, Failure, Outcome, stream::CANNOT_KNOW};
use crate::output::{Output, json, standard_output};
use crate::patient::Patient;
use crate::progress::Meter;
use crate::signals::Stop;
use crate::sizes::Size;
use crate::sources::{self, Parents, Sharing, note_on_sectors};
use crate::verbs::Form;
use crate::work::Showing;

/// Send images to pipes, web servers and tar.gz archives, and take them from there
///
/// SOURCE and TARGET are a file, - for standard input and output, or an address that begins with http:// or https://:
/// a source is fetched with GET, a target sent with PUT and its exact length. Nothing is written to a file in between.
///
/// An image file as the source is made into a file of the target's format while it is sent. What comes in order is
/// taken into an image of any format; sent on, it goes as it came. A source that begins as a gzip file, and a target
/// that ends with .tar.gz or .tgz, is an archive of a whole chain: 0.vhd is the leaf, the last the base. It is
/// flattened into an image, or unpacked into a folder that is new, and whose name ends with a slash.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "cowhand stream [OPTIONS] SOURCE TARGET\n       cowhand stream --size|--head [OPTIONS] SOURCE",
    after_help = "\
Exit status: 0 done, 1 failed, 3 --size: the front does not tell

Examples:
  cowhand stream vm.qcow2 - | ssh host 'cowhand stream - vm.vhdx'
  cowhand stream vm.qcow2 \\
    'https://xen/import_raw_vdi?session_id=S&vdi=V&format=vhd'
  cowhand stream \\
    'https://xen/export_raw_vdi?session_id=S&vdi=V&format=vhd' vm.qcow2
  cowhand stream top.vhd chain.tar.gz
  cowhand stream chain.tar.gz disks/
  cowhand stream --size - <vm.vhd"
)]
pub(crate) struct Args {
    /// The source, then the target
    #[arg(required = true, num_args = 1..=2, value_name = "PLACE")]
    places: Vec<OsString>,

    /// The source's format, or its members'; by the content, or their names, if not given
    #[arg(short = 'f', value_name = "FORMAT")]
    format: Option<String>,

    /// The target's format, or its members'; by its extension if not given, and vpc where it has none
    #[arg(short = 'O', value_name = "FORMAT")]
    target_format: Option<String>,

    /// Options of the target's format
    #[arg(short, value_name = "NAME=VALUE,...")]
    options: Vec<String>,

    #[command(flatten)]
    consumer: For,

    /// The target is a tar.gz archive of the chain, whatever its name
    #[arg(long)]
    tar: bool,

    /// Make an archive of one member, which holds the whole disk
    #[arg(long)]
    flat: bool,

    /// So many bytes will come from the source, which does not say so itself
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    length: Option<u64>,

    /// Print the file's length that the front of the source tells, and do no more
    #[arg(long, conflicts_with_all = ["head", "target_format", "options", "tar", "flat", "whom"])]
    size: bool,

    /// Print what the front of the source tells, in JSON, and do no more
    #[arg(long, conflicts_with_all = ["target_format", "options", "tar", "flat", "whom"])]
    head: bool,

    /// Before the first byte goes to standard output, write its length to FILE (/dev/fd/3)
    #[arg(long, value_name = "FILE")]
    size_to: Option<PathBuf>,

    /// The name and password for the server, NAME:PASSWORD
    #[arg(long, value_name = "USER", hide_default_value = true)]
    user: Option<String>,

    /// A further header for the server, 'Name: value'; it is sent to no other, so no redirect is followed
    #[arg(short = 'H', long, value_name = "HEADER")]
    header: Vec<String>,

    /// Trust the certificates in FILE (PEM), and no public authorities
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,

    /// Trust whoever answers
    #[arg(short = 'k', long, conflicts_with = "cacert")]
    insecure: bool,

    /// How many seconds a server may be silent
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,

    /// Threads that pack, 1 to 64; as many as there are processors (at most 8) if not given
    #[arg(short = 'm', value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=64))]
    workers: Option<u8>,

    /// The target file's cache mode: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 't', value_name = "CACHE", value_parser = sources::cache, default_value = "writeback")]
    cache: Cache,

    /// How to print what was done
    #[arg(long, value_enum, value_name = "FORM", default_value = "human")]
    output: Form,

    #[command(flatten)]
    showing: Showing,

    #[command(flatten)]
    sharing: Sharing,

    #[command(flatten)]
    parents: Parents,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let mut places = args.places.iter();
    let (Some(source), target) = (places.next(), places.next()) else {
        return Err(Error::invalid("no source was named").into());
    };
    let file = args.sharing.source(source, args.format.as_deref())?;
    let options: Vec<(String, String)> =
        args.options.iter().flat_map(|text| parse_option_string(text)).collect();
    let place = target.map(Path::new).unwrap_or(Path::new(""));
    let fitted = args.consumer.whom(args.target_format.as_deref(), place, &options)?;
    let solid = fitted.as_ref().map_or(args.consumer.non_sparse(), |fitted| fitted.solid);
    let (format, options) = match fitted {
        Some(fitted) => (fitted.format.names().first().map(|name| (*name).to_owned()), fitted.options),
        None => (args.target_format.clone(), options),
    };
    let how = Stream {
        open: Open { solid, ..args.sharing.open(&file, &args.parents, Cache::default())? },
        format,
        options,
        archive: args.tar,
        flat: args.flat,
        cache: args.cache,
        len: args.length,
        workers: args.workers.map(usize::from),
    };
    let Some(target) = target.filter(|_| !args.size && !args.head) else {
        return look(args, source, &file.path, &how, out);
    };
    let to_stdout = target == "-";
    if to_stdout && (args.output == Form::Json || args.showing.progress) {
        return Err(Error::invalid("standard output takes the stream, and nothing else")
            .hint("leave out --output and -p")
            .into());
    }
    if args.size_to.is_some() && !to_stdout {
        return Err(Error::invalid("--size-to is for what goes to standard output").into());
    }
    let since = Instant::now();
    let (mut pipe, mut put): (Pipe, Put);
    let to = match url(target) {
        _ if to_stdout => {
            pipe = Pipe::new(args.size_to.as_deref())?;
            To::Bytes(&mut pipe)
        }
        Some(url) => {
            put = http(args).put(url)?;
            To::Bytes(&mut put)
        }
        None => To::File(Path::new(target)),
    };
    let target_name = name(&to);
    let meter = args.showing.meter();
    let from = from(args, source, &file.path)?;
    let source_name = match &from {
        From::File(path) => path.display().to_string(),
        From::Bytes(bytes) => bytes.name.clone(),
    };
    let done = stream(from, to, &how, &meter)?;
    meter.finish();
    if args.output == Form::Json {
        out.write_all(json(&done.to_json()).as_bytes())?;
    } else if !args.showing.quiet && !to_stdout {
        summary(out, &source_name, &target_name, &done, since)?;
        note_on_sectors(out, done.sectors)?;
    }
    Ok(DONE)
}

/// What the front tells.
fn look(args: &Args, source: &OsStr, file: &Path, how: &Stream, out: &mut Output) -> Outcome {
    if !args.size && !args.head {
        return Err(Error::invalid("no target was named").hint("- is standard output").into());
    }
    let from = from(args, source, file)?;
    let name = source.to_string_lossy().into_owned();
    let found = front(from, how, &Meter::new(false, true))?;
    if args.head {
        out.write_all(json(&found.to_json()).as_bytes())?;
        return Ok(DONE);
    }
    match found.file_len {
        Some(len) => {
            writeln!(out, "{len}")?;
            Ok(DONE)
        }
        None => {
            let error = Error::unsupported("cannot know how long it is: the front does not tell")
                .hint("save it to a file first");
            let shown = if url(source).is_some() { "the answer".to_owned() } else { name };
            Err(Failure { status: CANNOT_KNOW, error: error.image(shown) })
        }
    }
}

fn url(place: &OsStr) -> Option<&str> {
    place.to_str().filter(|place| Http::is_url(place))
}

fn http(args: &Args) -> Http {
    Http {
        user: args.user.clone(),
        headers: args.header.clone(),
        cacert: args.cacert.clone(),
        insecure: args.insecure,
        timeout: Duration::from_secs(args.timeout),
    }
}

fn from<'a>(args: &Args, place: &OsStr, file: &'a Path) -> Result<From<'a>> {
    Ok(match url(place) {
        _ if place == "-" => From::Bytes(Incoming {
            name: "standard input".to_owned(),
            len: None,
            bytes: Box::new(std::io::stdin()),
        }),
        Some(url) => From::Bytes(http(args).get(url)?),
        None => From::File(file),
    })
}

fn name(to: &To<'_>) -> String {
    match to {
        To::File(path) => path.display().to_string(),
        To::Bytes(to) => to.name().to_owned(),
    }
}

/// What was done, in one line.
fn summary(out: &mut Output, source: &str, target: &str, done: &Streamed, since: Instant) -> Result<()> {
    let (source, target) = (Printable(source), Printable(target));
    write!(out, "{source} ({}) -> {target} ({}): ", done.from, done.to)?;
    if let Some(size) = done.size {
        write!(out, "{} disk, ", Size(size))?;
    }
    if done.layers > 1 {
        write!(out, "{} layers, ", done.layers)?;
    }
    if let Some(written) = done.written {
        write!(out, "{} written, ", Size(written))?;
    }
    if let Some(bytes) = done.bytes {
        write!(out, "{} streamed, ", Size(bytes))?;
    }
    writeln!(out, "in {:.2} s", since.elapsed().as_secs_f64())
}

/// Standard output.
#[derive(Debug)]
struct Pipe {
    to: Patient,
    size_to: Option<File>,
}

/// Bytes that are written at a time.
const CHUNK: usize = 256 << 10;

impl Pipe {
    fn new(size_to: Option<&Path>) -> Result<Pipe> {
        let to = Patient::over(standard_output()?, Stop::on_signals());
        let size_to = match size_to {
            Some(path) => {
                let file = File::options().write(true).create(true).truncate(true).open(path);
                Some(file.map_err(|error| Error::io("cannot write", error).image(path.display()))?)
            }
            None => None,
        };
        Ok(Pipe { to, size_to })
    }
}

impl Deliver for Pipe {
    fn name(&self) -> &str {
        "standard output"
    }

    fn deliver(&mut self, body: &mut dyn Read, len: Option<u64>) -> Result<()> {
        let failed = |error| Error::io("cannot write to standard output", error);
        if let Some(mut size_to) = self.size_to.take() {
            let len = len.ok_or_else(|| {
                Error::unsupported("how long the stream will be is not known").hint("leave out --size-to")
            })?;
            writeln!(size_to, "{len}").map_err(|error| Error::io("cannot write the size", error))?;
        }
        let mut buf = vec![0; CHUNK];
        loop {
            let n = match body.read(&mut buf) {
                Ok(0) => return self.to.flush().map_err(failed),
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::io("cannot read the stream", error)),
            };
            self.to.write_all(buf.get(..n).unwrap_or(&buf)).map_err(failed)?;
        }
    }
}
