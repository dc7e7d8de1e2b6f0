//! `vma verify`: what is wrong with an archive.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cowhand::archive::{Digests, Onlooker, Tally, VerifiedArchive, VerifyArchive, verify_archive};
use cowhand::{Printable, Result};

use super::{FORMAT, from, losses, totals};
use crate::exit::{DONE, Outcome, vma::FAULTY};
use crate::output::{Output, json};
use crate::sizes::Size;
use crate::verbs::Form;
use crate::work::Showing;

/// Find out what is wrong with an archive
///
/// It is read once, to its end: every cluster of every disk is there once, all checksums are right, of how it is packed
/// too, and nothing follows. The format has no checksums of the disks' bytes: only with digests, which are made with the
/// archive, flipped bits in them are found. They are taken from FILE.digest where that is there.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 nothing is wrong, 1 it could not be looked at, 2 something is wrong

Examples:
  cowhand vma verify backup.vma.zst
  ssh host cat backup.vma.zst | \\
    cowhand vma verify --digest backup.vma.zst.digest -
  cowhand vma verify --restorable vzdump-qemu-100-2026_01_31-12_00_00.vma.zst")]
pub(crate) struct Args {
    /// The archive; - is standard input
    file: OsString,

    /// Compare the disks with the digests in FILE; with FILE.digest beside the archive if not given
    #[arg(long, value_name = "FILE")]
    digest: Option<PathBuf>,

    /// Also whether Proxmox can restore it: the file's name, and the lines that say where the disks belong
    #[arg(long, visible_alias = "proxmox")]
    restorable: bool,

    /// Tell how far it has come, and how much was zero
    #[arg(short, long, conflicts_with_all = ["quiet", "progress"])]
    verbose: bool,

    /// How to print it
    #[arg(long, value_enum, value_name = "FORM", default_value = "human", conflicts_with_all = ["verbose", "progress"])]
    output: Form,

    #[command(flatten)]
    showing: Showing,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let beside = || {
        let digests = Digests::beside(Path::new(&args.file));
        (args.file != "-" && digests.is_file()).then_some(digests)
    };
    let how = VerifyArchive {
        archive: Some(FORMAT.to_owned()),
        digests: args.digest.clone().or_else(beside),
        restorable: args.restorable,
        strict: false,
    };
    let meter = args.showing.meter();
    let mut teller = Teller { out: &mut *out, verbose: args.verbose, since: Instant::now() };
    let found = verify_archive(from(&args.file), &how, &mut teller, &meter)?;
    meter.finish();
    match args.output {
        Form::Json => out.write_all(json(&found.to_json()).as_bytes())?,
        Form::Human => tell(args, &found, out)?,
    }
    Ok(if found.is_sound() { DONE } else { FAULTY })
}

struct Teller<'a> {
    out: &'a mut Output,
    verbose: bool,
    since: Instant,
}

impl Onlooker for Teller<'_> {
    fn passed(&mut self, tally: &Tally) -> Result<()> {
        if self.verbose { totals::progress(self.out, tally, self.since) } else { Ok(()) }
    }
}

fn tell(args: &Args, found: &VerifiedArchive, out: &mut Output) -> Result<()> {
    if args.verbose {
        totals::print(out, &found.tally)?;
    }
    if args.showing.quiet {
        return Ok(());
    }
    losses::faults(out, &found.faults)?;
    for disk in &found.disks {
        losses::ranges(out, "missing", &disk.name, &disk.missing)?;
        losses::ranges(out, losses::DIFFERS, &disk.name, &disk.differing)?;
    }
    for note in &found.notes {
        writeln!(out, "note: {note}")?;
    }
    write!(out, "{}: ", Printable(&found.name))?;
    let size: u64 = found.disks.iter().fold(0, |sum, disk| sum.saturating_add(disk.size));
    if found.is_sound() {
        let of =
            |count: usize, one: &str, more: &str| format!("{count} {}", if count == 1 { one } else { more });
        let disks = of(found.disks.len(), "disk", "disks");
        let configs = of(found.configs, "configuration", "configurations");
        write!(out, "nothing is wrong; {disks} of {} and {configs}", Size(size))?;
        return match found.digested {
            true => writeln!(out, ", and every byte is what its digest was made of"),
            false => writeln!(out, "; the disks' bytes have no digests to be compared with"),
        };
    }
    let sum = |of: fn(&cowhand::archive::VerifiedDisk) -> u64| {
        found.disks.iter().map(of).fold(0, u64::saturating_add)
    };
    write!(out, "{} {}", found.faults.count, if found.faults.count == 1 { "fault" } else { "faults" })?;
    write!(out, ", {} missing", Size(sum(|disk| disk.missing.bytes)))?;
    match sum(|disk| disk.differing.bytes) {
        0 => writeln!(out),
        differing => writeln!(out, ", {} in which something differs", Size(differing)),
    }
}
