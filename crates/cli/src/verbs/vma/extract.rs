//! `vma extract`: the disks of an archive as images.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cowhand::archive::{Digests, Extract, Extracted, Onlooker, Ranges, Tally, extract};
use cowhand::{Cache, Error, Manifest, Printable, Result, format, parse_option_string};

use super::{FORMAT, from, front, losses, totals};
use crate::exit::{DONE, Outcome, vma::INCOMPLETE};
use crate::keys::Keys;
use crate::output::{Output, json};
use crate::sizes::Size;
use crate::sources::{self, Holes};
use crate::verbs::create::asks_for_help;
use crate::verbs::{Form, formats};
use crate::work::Showing;

/// Extract an archive's disks and configurations
///
/// They go into a new folder: the configurations under their names, each disk as disk-NAME.raw, or .qcow2, .vhd, .vhdx, a
/// machine's memory as vmstate.bin. The folder is whole or absent. Nothing in it has a name that leads elsewhere, or that
/// two things would have: that is refused before anything is written.
///
/// With -r the disks go into images and devices that are there, as a file or named pipe says that is read once the list
/// of disks was printed. A line is
/// [format=FORMAT:][throttling.bps=N:][throttling.group=NAME:][cache=MODE:]{0|1}:DISK=TARGET or skip=DISK; 1 writes zeros
/// too, 0 is for a target that reads zero already. The map ends at its end, at an empty line, or at 'done'. An error
/// leaves such targets half-written.
///
/// With --salvage everything that is intact comes out of a damaged or cut archive. What is missing reads zero, and is
/// listed on standard output and in missing.json beside the disks.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 done, 1 failed, 3 --salvage: the archive is damaged, or with -d: something of these disks is
missing or in doubt

Examples:
  cowhand vma extract vzdump-qemu-100-2026_01_31-12_00_00.vma.zst disks
  cowhand vma extract -d drive-scsi0 -O qcow2 backup.vma disks
  zstd -d -c backup.vma.zst | cowhand vma extract -v -r map.fifo - disks
  cowhand vma extract --salvage cut.vma disks")]
pub(crate) struct Args {
    /// The archive; - is standard input
    #[arg(value_name = "FILE", required_unless_present = "options")]
    file: Option<OsString>,

    /// The folder that is made
    #[arg(value_name = "NEWDIR", required_unless_present = "options")]
    folder: Option<PathBuf>,

    /// Only these disks
    #[arg(short = 'd', value_name = "DISK,...", value_delimiter = ',')]
    disks: Option<Vec<String>>,

    /// A file or named pipe that says where each disk goes
    #[arg(short = 'r', value_name = "MAP", conflicts_with_all = ["format", "options"])]
    map: Option<PathBuf>,

    /// The images' format; raw if not given
    #[arg(short = 'O', value_name = "FORMAT")]
    format: Option<String>,

    /// Options of the images' format; help lists them
    #[arg(short, value_name = "NAME=VALUE,...")]
    options: Vec<String>,

    #[command(flatten)]
    holes: Holes,

    /// Take everything that is intact, and list what is missing
    #[arg(long)]
    salvage: bool,

    /// Compare what comes out with the digests in the file FILE; FILE.digest beside the archive if not given
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    digest: Option<Option<PathBuf>>,

    /// What writes and syncs of the images promise: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 't', value_name = "CACHE", value_parser = sources::cache, default_value = "writeback")]
    cache: Cache,

    /// Tell how far it has come, and how much was zero
    #[arg(short, long, conflicts_with_all = ["quiet", "progress"])]
    verbose: bool,

    /// How to print what was done
    #[arg(long, value_enum, value_name = "FORM", default_value = "human")]
    output: Form,

    #[command(flatten)]
    showing: Showing,

    #[command(flatten)]
    keys: Keys,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let options: Vec<(String, String)> =
        args.options.iter().flat_map(|text| parse_option_string(text)).collect();
    if asks_for_help(&options) {
        formats::help(out, format(args.format.as_deref().unwrap_or("raw"))?)?;
        return Ok(DONE);
    }
    let (Some(file), Some(folder)) = (&args.file, &args.folder) else {
        return Err(Error::invalid("no archive or no folder was named").into());
    };
    let for_programs = args.output == Form::Json;
    if for_programs && (args.map.is_some() || args.verbose || args.showing.progress) {
        return Err(Error::invalid("standard output takes JSON, and nothing else")
            .hint("leave out -r, -v and -p, or --output json")
            .into());
    }
    let how = Extract {
        archive: Some(FORMAT.to_owned()),
        disks: args.disks.clone(),
        format: args.format.clone(),
        options,
        solid: args.holes.non_sparse,
        cache: args.cache,
        secrets: args.keys.secrets()?,
        map: args.map.clone(),
        lenient: false,
        salvage: args.salvage,
        digests: digests(args, file)?,
    };
    let meter = args.showing.meter();
    let mut teller = Teller {
        out: &mut *out,
        map: args.map.is_some(),
        devices: !for_programs && !args.showing.quiet,
        verbose: args.verbose,
        since: Instant::now(),
    };
    let done = extract(from(file), folder, &how, &mut teller, &meter)?;
    meter.finish();
    if for_programs {
        out.write_all(json(&done.to_json()).as_bytes())?;
    } else {
        tell(args, folder, &done, out)?;
    }
    // Who wants all of a damaged archive cannot know whether that was all of it.
    let damaged = done.faults.count > 0 && args.disks.is_none();
    Ok(if args.salvage && (damaged || !done.is_whole()) { INCOMPLETE } else { DONE })
}

fn digests(args: &Args, file: &OsString) -> Result<Option<PathBuf>> {
    match &args.digest {
        None => Ok(None),
        Some(Some(path)) => Ok(Some(path.clone())),
        Some(None) if file == "-" => Err(Error::invalid("the digests of standard input are not beside it")
            .hint("name them with --digest=FILE")),
        Some(None) => Ok(Some(Digests::beside(Path::new(file)))),
    }
}

/// Prints what other programs wait for while the archive is extracted.
struct Teller<'a> {
    out: &'a mut Output,
    /// Somebody waits for the list, to write the map.
    map: bool,
    devices: bool,
    verbose: bool,
    since: Instant,
}

impl Onlooker for Teller<'_> {
    fn front(&mut self, what: &Manifest) -> Result<()> {
        if self.map {
            front::print(self.out, what)?;
        }
        self.out.flush()
    }

    fn disk(&mut self, name: &str, size: u64, path: &Path, zeros: Option<bool>) -> Result<()> {
        if !self.devices {
            return Ok(());
        }
        let path = path.display().to_string();
        match zeros {
            None => writeln!(self.out, "DEVINFO {} {size}", Printable(&path))?,
            Some(zeros) => writeln!(
                self.out,
                "map '{}' to '{}' (write zeros = {})",
                Printable(name),
                Printable(&path),
                u8::from(zeros)
            )?,
        }
        self.out.flush()
    }

    fn passed(&mut self, tally: &Tally) -> Result<()> {
        if self.verbose { totals::progress(self.out, tally, self.since) } else { Ok(()) }
    }
}

/// What was done.
fn tell(args: &Args, folder: &Path, done: &Extracted, out: &mut Output) -> Result<()> {
    if args.verbose {
        totals::print(out, &done.tally)?;
    }
    if args.showing.quiet && !args.salvage {
        return Ok(());
    }
    let files = done.configs.iter().chain(done.disks.iter().map(|disk| &disk.file));
    for file in files.filter(|file| file.renamed) {
        let path = file.path.display().to_string();
        writeln!(
            out,
            "'{}' cannot be a file's name, and became {}",
            Printable(&file.name),
            Printable(&path)
        )?;
    }
    if !args.salvage {
        return Ok(());
    }
    losses::faults(out, &done.faults)?;
    for disk in &done.disks {
        losses::ranges(out, "missing", &disk.file.name, &disk.missing)?;
        losses::ranges(out, "may be wrong", &disk.file.name, &disk.doubtful)?;
        losses::ranges(out, losses::DIFFERS, &disk.file.name, &disk.differing)?;
    }
    let name = folder.display().to_string();
    if done.is_whole() {
        // What is wrong elsewhere may be all there was of a disk that nothing names any more.
        let of = if done.faults.count == 0 { "" } else { " of these disks" };
        return writeln!(out, "{}: nothing is missing{of}", Printable(&name));
    }
    let sum = |of: fn(&Extracted) -> Vec<&Ranges>| of(done).iter().map(|ranges| ranges.bytes).sum::<u64>();
    let missing = sum(|done| done.disks.iter().map(|disk| &disk.missing).collect());
    let doubtful = sum(|done| done.disks.iter().map(|disk| &disk.doubtful).collect());
    let differing = sum(|done| done.disks.iter().map(|disk| &disk.differing).collect());
    write!(out, "{}: {} missing", Printable(&name), Size(missing))?;
    if doubtful > 0 {
        write!(out, ", {} in doubt", Size(doubtful))?;
    }
    if differing > 0 {
        write!(out, ", {} in which something differs", Size(differing))?;
    }
    writeln!(out, "; all of it is listed in missing.json")
}
