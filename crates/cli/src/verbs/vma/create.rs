//! `vma create`: disks of any format into an archive.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use cowhand::archive::{
    ArchiveCreated, CreateArchive, Digests, DiskToArchive, Mapped, WallClock, backup_name,
};
use cowhand::{Cache, Error, Printable, Result};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::json;

use super::FORMAT;
use super::place::Place;
use super::watch::Watch;
use crate::exit::{DONE, Outcome};
use crate::output::{Output, json as indented};
use crate::progress::Meter;
use crate::sizes::Size;
use crate::sources::{self, Parents, Sharing};
use crate::verbs::Form;
use crate::work::Showing;

/// Make an archive of disks and configurations
///
/// Disks are images of any format, with all they stand on, or one disk of another archive (ARCHIVE#DISK). Holes are not
/// read. A disk that ends within a sector of 512 bytes has that sector whole in the archive, as QEMU counts it. A disk
/// without a name is called disk0, disk1 and so on by its place.
///
/// OUT is packed where its name ends with .zst, .gz or .lzo. It must be new, and is whole or absent; a named pipe that is
/// there, - and /dev/stdout take it as it comes, and exec:COMMAND gives it to a shell command.
///
/// For qmrestore an archive needs the name that Proxmox's backups have, the machine's configuration as qemu-server.conf,
/// and in it a line for each disk, '#qmdump#map:DRIVE:NAME:STORAGE:FORMAT:', named drive-DRIVE. --vmid makes that name,
/// --map-lines these lines, and --restorable checks all of it.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "cowhand vma create [OPTIONS] [-c CONFIG]... [-d [format=FORMAT:]NAME=PATH]... OUT",
    after_help = "\
Examples:
  cowhand vma create -c qemu-server.conf -d drive-scsi0=disk.qcow2 \\
    backup.vma.zst
  cowhand vma create --compress zstd:3 \\
    -d format=raw:drive-virtio0=/dev/vg/lv - >backup.vma.zst
  cowhand vma create --vmid 100 --map-lines --restorable --compress zstd \\
    -c /etc/pve/qemu-server/100.conf -d drive-scsi0=disk.vhdx /var/lib/vz/dump
  cowhand vma create --uuid 00112233-4455-6677-8899-aabbccddeeff \\
    --time 2026-11-21T20:00:00Z -d a.raw same.vma"
)]
pub(crate) struct Args {
    /// The archive; with --vmid the folder it is made in; - is standard output
    #[arg(value_name = "OUT")]
    out: OsString,

    /// Disks, as with -d but for format=: how older versions of the tool took them
    #[arg(value_name = "[NAME=]PATH", hide = true)]
    old: Vec<OsString>,

    /// A file that goes beside the disks, under its own name (repeatable)
    #[arg(short = 'c', long = "config", value_name = "CONFIG")]
    configs: Vec<PathBuf>,

    /// A disk: [format=FORMAT:][NAME=]PATH; the format by the content if not given (repeatable)
    #[arg(short = 'd', long = "disk", visible_alias = "drive", value_name = "DISK")]
    disks: Vec<OsString>,

    /// How it is packed: zstd, gzip, lzo or none, and :LEVEL behind; by OUT's extension if not given
    #[arg(long, value_name = "HOW", value_parser = Packed::parse)]
    compress: Option<Packed>,

    /// Threads that read, and as many that pack, 1 to 64; as many as there are processors (at most 8) if not given
    #[arg(short = 'm', long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=64))]
    threads: Option<u8>,

    /// Replace OUT, if it is there, once the new one is whole
    #[arg(long)]
    force: bool,

    /// What tells this archive from others; random if not given
    #[arg(long, value_name = "UUID", value_parser = uuid)]
    uuid: Option<[u8; 16]>,

    /// When it was made: seconds since 1970, or 2026-01-31T12:00:00Z; now if not given
    #[arg(long, value_name = "TIME", value_parser = time)]
    time: Option<Timestamp>,

    /// Write digests of the disks' data to FILE, by which vma verify finds flipped bits; OUT.digest if not given
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    digest: Option<Option<PathBuf>>,

    /// Name the archive in the folder OUT as Proxmox names that machine's backups: vzdump-qemu-NUMBER-DATE.vma
    #[arg(long, value_name = "NUMBER")]
    vmid: Option<u32>,

    /// Put a line for each disk into qemu-server.conf that says where it belongs, by what that says of the drive
    #[arg(long)]
    map_lines: bool,

    /// As --map-lines, and this drive belongs there: DRIVE=STORAGE[:FORMAT], as in scsi0=local-lvm:raw (repeatable)
    #[arg(long, value_name = "PLACE", value_parser = Mapped::parse)]
    map: Vec<Mapped>,

    /// Fail if Proxmox's qmrestore could not restore the archive
    #[arg(long)]
    restorable: bool,

    /// What writes and syncs of OUT promise: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 't', value_name = "CACHE", value_parser = sources::cache, default_value = "writeback")]
    cache: Cache,

    /// Tell on standard error how far it has come, and how much was zero, in the lines of Proxmox's tool
    #[arg(short, long, conflicts_with = "progress")]
    verbose: bool,

    /// How to print what was done
    #[arg(long, value_enum, value_name = "FORM", default_value = "human")]
    output: Form,

    #[command(flatten)]
    showing: Showing,

    #[command(flatten)]
    sharing: Sharing,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let made = args.time.unwrap_or_else(Timestamp::now);
    let place = place(args, made)?;
    if matches!(place, Place::Stdout) && (args.output == Form::Json || args.showing.progress) {
        return Err(Error::invalid("standard output takes the archive, and nothing else")
            .hint("leave out --output and -p")
            .into());
    }
    let how = CreateArchive {
        format: FORMAT.to_owned(),
        disks: args
            .disks
            .iter()
            .map(|word| disk(word, true, &args.sharing))
            .chain(args.old.iter().map(|word| disk(word, false, &args.sharing)))
            .collect::<Result<_>>()?,
        configs: args.configs.clone(),
        id: args.uuid,
        made: Some(made.as_second()),
        packing: args.compress.as_ref().map(|packed| packed.name.clone()),
        level: args.compress.as_ref().and_then(|packed| packed.level),
        workers: args.threads.map(usize::from),
        cache: args.cache,
        replace: args.force,
        digest: digest(args, &place)?,
        map: (args.map_lines || !args.map.is_empty()).then(|| args.map.clone()),
        restorable: args.restorable,
        zeros: Arc::default(),
    };
    let since = Instant::now();
    let meter = if args.verbose { Meter::new(false, true) } else { args.showing.meter() };
    let watch = Watch::new(meter, how.zeros.clone(), args.verbose);
    let done = place.make(&how, &watch)?;
    watch.finish(&done.disks);
    if args.output == Form::Json {
        out.write_all(indented(&facts(&done, &place)).as_bytes())?;
    } else if !args.showing.quiet && !matches!(place, Place::Stdout) {
        for warning in &done.warnings {
            writeln!(out, "warning: {warning}")?;
        }
        summary(out, &done, &place, since)?;
    }
    Ok(DONE)
}

/// Where the archive goes.
fn place(args: &Args, made: Timestamp) -> Result<Place> {
    let word = &args.out;
    if let Some(vmid) = args.vmid {
        let folder = Path::new(word);
        if !folder.is_dir() {
            return Err(Error::invalid("is no folder")
                .hint("with --vmid the archive is named in the folder that is given")
                .image(folder.display()));
        }
        let packing = args.compress.as_ref().map(|packed| packed.name.as_str());
        return Ok(Place::File(folder.join(backup_name(vmid, wall_clock(made), packing)?)));
    }
    if word == "-" { Ok(Place::Stdout) } else { Place::named(word) }
}

/// Where the digests go.
fn digest(args: &Args, place: &Place) -> Result<Option<PathBuf>> {
    match (&args.digest, place) {
        (None, _) => Ok(None),
        (Some(Some(file)), _) => Ok(Some(file.clone())),
        (Some(None), Place::File(archive)) => Ok(Some(Digests::beside(archive))),
        (Some(None), _) => {
            Err(Error::invalid("digests need a file of their own, where the archive has none")
                .hint("name it with --digest=FILE"))
        }
    }
}

/// `[format=FORMAT:][NAME=]PATH`. A word with a slash is no name, so a path may hold what ends one.
pub(crate) fn disk(word: &OsStr, with_format: bool, sharing: &Sharing) -> Result<DiskToArchive> {
    let mut rest = word.as_bytes();
    let mut format = None;
    if let Some(named) = rest.strip_prefix(b"format=").filter(|_| with_format) {
        let (name, path) = split(named, b':').ok_or_else(|| {
            Error::invalid(format!("'{}' names a format, and no disk", word.to_string_lossy()))
                .hint("a disk is format=FORMAT:NAME=PATH")
        })?;
        format = Some(utf8(name)?);
        rest = path;
    }
    let (name, path) = match split(rest, b'=') {
        Some((name, path)) if !name.contains(&b'/') => (Some(utf8(name)?), path),
        _ => (None, rest),
    };
    if path.is_empty() {
        return Err(Error::invalid(format!("'{}' names no disk", word.to_string_lossy()))
            .hint("a disk is format=FORMAT:NAME=PATH"));
    }
    let source = sharing.source(&OsString::from_vec(path.to_vec()), format.as_deref())?;
    let open = sharing.open(&source, &Parents::default(), Cache::default())?;
    Ok(DiskToArchive { name, path: source.path, open })
}

fn split(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let place = text.iter().position(|byte| *byte == at)?;
    Some((text.get(..place)?, text.get(place + 1..)?))
}

fn utf8(bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::invalid("names are in UTF-8"))
}

/// `zstd`, `gzip:9`.
#[derive(Clone, Debug)]
struct Packed {
    name: String,
    level: Option<i32>,
}

impl Packed {
    fn parse(text: &str) -> Result<Packed> {
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => {
                let level = level.parse().map_err(|_| Error::invalid(format!("'{level}' is no level")))?;
                (name, Some(level))
            }
            None => (text, None),
        };
        Ok(Packed { name: name.to_owned(), level })
    }
}

/// 32 hexadecimal digits, in groups or not.
fn uuid(text: &str) -> Result<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let hex = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u128::from_str_radix(&digits, 16).ok().filter(|_| hex);
    number.map(u128::to_be_bytes).ok_or_else(|| {
        Error::invalid(format!("'{text}' is no UUID"))
            .hint("it has 32 hexadecimal digits, as in 00112233-4455-6677-8899-aabbccddeeff")
    })
}

fn uuid_text(uuid: &[u8; 16]) -> String {
    let group = |(place, byte): (usize, &u8)| match place {
        4 | 6 | 8 | 10 => format!("-{byte:02x}"),
        _ => format!("{byte:02x}"),
    };
    uuid.iter().enumerate().map(group).collect()
}

fn time(text: &str) -> Result<Timestamp> {
    let time = match text.parse() {
        Ok(seconds) => Timestamp::from_second(seconds).ok(),
        Err(_) => text.parse().ok(),
    };
    time.ok_or_else(|| {
        Error::invalid(format!("'{text}' is no time"))
            .hint("say the seconds since 1970, or a date and time as in 2026-01-31T12:00:00Z")
    })
}

/// As a clock on this machine's wall shows it, which is what Proxmox names backups by.
fn wall_clock(at: Timestamp) -> WallClock {
    let at = at.to_zoned(TimeZone::system());
    // Never out of bounds: each of them is within what it may be, but for years before 0, which are no backup's.
    WallClock {
        year: u16::try_from(at.year()).unwrap_or(0),
        month: at.month().unsigned_abs(),
        day: at.day().unsigned_abs(),
        hour: at.hour().unsigned_abs(),
        minute: at.minute().unsigned_abs(),
        second: at.second().unsigned_abs(),
    }
}

fn facts(done: &ArchiveCreated, place: &Place) -> serde_json::Value {
    let disks: Vec<_> = done
        .disks
        .iter()
        .map(|disk| json!({ "name": disk.name, "virtual-size": disk.size, "zeros": disk.zeros }))
        .collect();
    json!({
        "filename": place.to_string(),
        "format": done.format,
        "packing": done.packing,
        "uuid": uuid_text(&done.id),
        "disks": disks,
        "archive-length": done.unpacked,
        "written": done.written,
        "warnings": done.warnings,
    })
}

/// What was done, in one line.
fn summary(out: &mut Output, done: &ArchiveCreated, place: &Place, since: Instant) -> Result<()> {
    let name = place.to_string();
    write!(out, "{} ({}", Printable(&name), done.format)?;
    if let Some(packing) = done.packing {
        write!(out, ", {packing}")?;
    }
    let count = done.disks.len();
    write!(out, "): {count} {}, ", if count == 1 { "disk" } else { "disks" })?;
    let sum = |part: fn(&cowhand::archive::DiskArchived) -> u64| done.disks.iter().map(part).sum::<u64>();
    write!(out, "{} disk, {} zero, ", Size(sum(|disk| disk.size)), Size(sum(|disk| disk.zeros)))?;
    writeln!(out, "{} written in {:.2} s", Size(done.written), since.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_as_the_existing_tool_takes_them() {
        let read = |word: &str, with_format| {
            let disk = disk(OsStr::new(word), with_format, &Sharing::default())?;
            Ok::<_, Error>((disk.open.format, disk.name, disk.path.display().to_string()))
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            read("format=raw:drive-scsi0=/dev/vg/a=b", true).unwrap(),
            (text("raw"), text("drive-scsi0"), "/dev/vg/a=b".into())
        );
        assert_eq!(
            read("drive-scsi0=a.qcow2", false).unwrap(),
            (None, text("drive-scsi0"), "a.qcow2".into())
        );
        assert_eq!(read("/x=y/a.raw", true).unwrap(), (None, None, "/x=y/a.raw".into()));
        assert_eq!(read("format=a.raw", false).unwrap(), (None, text("format"), "a.raw".into()));
        for word in ["format=raw", "a=", ""] {
            assert!(read(word, true).is_err(), "{word}");
        }
    }

    #[test]
    fn uuids_and_times_are_read() {
        let bytes = uuid("00112233-4455-6677-8899-aabbccddeeff").unwrap();
        assert_eq!((bytes[1], bytes[15]), (0x11, 0xff));
        assert_eq!(uuid_text(&bytes), "00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(uuid("00112233445566778899AABBCCDDEEFF").unwrap(), bytes);
        assert!(uuid("0011").is_err() && uuid("+0112233445566778899aabbccddeeff").is_err());
        assert_eq!(time("1700000000").unwrap(), time("2023-11-14T22:13:20Z").unwrap());
        assert!(time("yesterday").is_err());
    }
}
