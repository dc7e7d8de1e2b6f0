//! `bench`: how fast a disk answers requests.

use std::ffi::OsString;
use std::time::Duration;

use cowhand::{Bench, Cache, Error, Opened, Result, bench, open, parse_size};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::progress::Meter;
use crate::sources::{self, Parents, Sharing};

/// Measure how fast a disk answers requests
///
/// Requests of one size are sent to one place after the other, several at a time, each by a thread of its own (at most 256).
/// With -w they write, and what the image held is lost.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand bench vm.qcow2
  cowhand bench -c 1000 -d 1 -s 64k -t none vm.vhdx
  cowhand bench -w --pattern 65 --flush-interval 100 -d 16 scratch.qcow2")]
pub(crate) struct Args {
    /// The image
    image: OsString,

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// Requests
    #[arg(short, long, default_value_t = Bench::default().count, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,

    /// Requests under way at a time
    #[arg(short, long, default_value_t = Bench::default().depth, value_parser = clap::value_parser!(u64).range(1..))]
    depth: u64,

    /// Where the first request begins
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size, default_value = "0")]
    offset: u64,

    /// Bytes of a request
    #[arg(short = 's', long, value_name = "SIZE", value_parser = parse_size, default_value = "4k")]
    buffer_size: u64,

    /// How much further each request begins; a request's size if not given
    #[arg(short = 'S', long, value_name = "SIZE", value_parser = parse_size)]
    step_size: Option<u64>,

    /// Write, and lose what the image held
    #[arg(short, long)]
    write: bool,

    /// The byte that is written
    #[arg(long, value_name = "BYTE", default_value_t = 0)]
    pattern: u8,

    /// Flush after each so many requests that write
    #[arg(long, value_name = "REQUESTS", requires = "write", default_value_t = 0)]
    flush_interval: u64,

    /// Go on with other requests while flushing
    #[arg(long)]
    no_drain: bool,

    /// The cache mode: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 't', value_name = "CACHE", value_parser = sources::cache, default_value = "writeback")]
    cache: Cache,

    /// Print nothing
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    sharing: Sharing,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let how = Bench {
        count: args.count,
        depth: args.depth,
        len: args.buffer_size,
        offset: args.offset,
        step: args.step_size.filter(|step| *step > 0).unwrap_or(args.buffer_size),
        write: args.write.then_some(args.pattern),
        flush_interval: args.flush_interval,
        no_drain: args.no_drain,
    };
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let parents = Parents::default();
    let mut open_how = match args.write {
        true => args.sharing.writing(&source, &parents, args.cache)?,
        false => args.sharing.open(&source, &parents, args.cache)?,
    };
    open_how.writable = args.write;
    let disk = open(&source.path, &open_how)?;
    let meter = Meter::new(false, true);
    disk.prepare(&meter)?;
    if !args.quiet {
        sending(out, &how)?;
    }
    let took = timed(&disk, &how, &meter)?;
    if !args.quiet {
        completed(out, took)?;
    }
    Ok(DONE)
}

/// What is about to be sent, as `qemu-img bench` says it.
pub(crate) fn sending(out: &mut Output, how: &Bench) -> Result<()> {
    let Bench { count, depth, len, offset, step, flush_interval, .. } = how;
    let what = if how.write.is_some() { "write" } else { "read" };
    writeln!(
        out,
        "Sending {count} {what} requests, {len} bytes each, {depth} in parallel (starting at offset {offset}, step \
         size {step})"
    )?;
    if *flush_interval > 0 {
        writeln!(out, "Sending flush every {flush_interval} requests")?;
    }
    out.flush()
}

/// Runs it; what it wrote is flushed when that is over.
pub(crate) fn timed(disk: &Opened, how: &Bench, meter: &Meter) -> Result<Duration, Error> {
    let took = bench(disk, how, meter)?;
    if how.write.is_some() {
        disk.close()?;
    }
    Ok(took)
}

pub(crate) fn completed(out: &mut Output, took: Duration) -> Result<()> {
    writeln!(out, "Run completed in {:.3} seconds.", took.as_secs_f64())
}
