//! `info`: what an image says of itself.

use std::ffi::OsString;
use std::fmt;

use cowhand::{Cache, Info, Printable, Result, SnapshotInfo, info};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::Value;

use crate::exit::{DONE, Outcome};
use crate::output::{Output, json};
use crate::sizes::Size;
use crate::sources::{Parents, Sharing};
use crate::verbs::Form;

/// Tell what an image is
///
/// Only the image itself is opened; --backing-chain looks at what it stands on too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand info vm.qcow2
  cowhand info --output=json --backing-chain overlay.qcow2
  cowhand info -U running.qcow2")]
pub(crate) struct Args {
    /// The image
    image: OsString,

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// How to print it
    #[arg(long, value_enum, value_name = "FORM", default_value = "human")]
    output: Form,

    /// Look at what the image stands on too
    #[arg(long)]
    backing_chain: bool,

    #[command(flatten)]
    sharing: Sharing,

    #[command(flatten)]
    parents: Parents,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let how = args.sharing.open(source.format.as_deref(), &args.parents, Cache::default());
    let found = info(&source.path, &how, args.backing_chain)?;
    match args.output {
        Form::Human => {
            for (index, image) in found.iter().enumerate() {
                if index > 0 {
                    writeln!(out)?;
                }
                describe(out, image)?;
            }
        }
        Form::Json => {
            let mut all: Vec<Value> = found.iter().map(Info::to_json).collect();
            let value = if args.backing_chain { Value::Array(all) } else { all.swap_remove(0) }; // never empty: at least the image itself
            out.write_all(json(&value).as_bytes())?;
        }
    }
    Ok(DONE)
}

/// Line for line what qemu-img prints; a parent that was not looked up is said in a line of its own.
fn describe(out: &mut Output, info: &Info) -> Result<()> {
    let Info { virtual_size, file_size, .. } = *info;
    let (name, actual) = (Printable(&info.filename), Size(info.actual_size));
    writeln!(out, "image: {name}")?;
    writeln!(out, "file format: {}", info.format)?;
    writeln!(out, "virtual size: {} ({virtual_size} bytes)", Size(virtual_size))?;
    writeln!(out, "disk size: {actual}")?;
    if info.details.encrypted {
        writeln!(out, "encrypted: yes")?;
    }
    if let Some(size) = info.details.cluster_size {
        writeln!(out, "cluster_size: {size}")?;
    }
    if info.details.dirty {
        writeln!(out, "cleanly shut down: no")?;
    }
    parent(out, info)?;
    if !info.snapshots.is_empty() {
        writeln!(out, "Snapshot list:")?;
        snapshot_line(out, ["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"])?;
        info.snapshots.iter().try_for_each(|snapshot| snapshot_of(out, snapshot))?;
    }
    if !info.details.specific.is_empty() {
        writeln!(out, "Format specific information:")?;
        for (key, value) in &info.details.specific {
            nested(out, &key.replace('-', " "), value, 4)?;
        }
    }
    writeln!(out, "Child node '/file':")?;
    writeln!(out, "    filename: {name}")?;
    writeln!(out, "    protocol type: file")?;
    writeln!(out, "    file length: {} ({file_size} bytes)", Size(file_size))?;
    writeln!(out, "    disk size: {actual}")
}

fn parent(out: &mut Output, info: &Info) -> Result<()> {
    let Some(parent) = &info.parent else { return Ok(()) };
    if let Some(name) = info.backing_filename() {
        write!(out, "backing file: {}", Printable(&name))?;
        match info.full_backing_filename().map(|full| full.display().to_string()) {
            Some(full) if full != name => writeln!(out, " (actual path: {})", Printable(&full))?,
            _ => writeln!(out)?,
        }
    }
    if let Some(format) = &parent.format {
        writeln!(out, "backing file format: {}", Printable(format))?;
    }
    if !info.parent_looked_up {
        writeln!(out, "backing file state: not looked up (--backing-chain looks)")?;
    }
    Ok(())
}

fn snapshot_of(out: &mut Output, snapshot: &SnapshotInfo) -> Result<()> {
    let seconds = snapshot.vm_clock_nsec / 1_000_000_000;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let thousandths = snapshot.vm_clock_nsec / 1_000_000 % 1000;
    snapshot_line(
        out,
        [
            &Printable(&snapshot.id).to_string(),
            &Printable(&snapshot.name).to_string(),
            &Size(snapshot.vm_state_size).to_string(),
            &local_time(snapshot.date_sec),
            &format!("{hours:04}:{minutes:02}:{:02}.{thousandths:03}", seconds % 60),
            &snapshot.icount.map_or_else(|| "--".to_owned(), |count| count.to_string()),
        ],
    )
}

fn snapshot_line(out: &mut Output, columns: [&str; 6]) -> Result<()> {
    let [id, name, size, date, clock, count] = columns;
    writeln!(out, "{id:<7} {name:<16} {size:>8} {date:>19} {clock:>15} {count:>10}")
}

fn local_time(seconds: u32) -> String {
    let at = Timestamp::from_second(i64::from(seconds)).unwrap_or_default(); // never: 32 bits end in 2106
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// `key: value`, and what has parts beneath its key.
fn nested(out: &mut Output, key: &str, value: &Value, indent: usize) -> Result<()> {
    match value {
        Value::Object(fields) => {
            writeln!(out, "{:indent$}{}:", "", Printable(key))?;
            fields.iter().try_for_each(|(key, value)| nested(out, &key.replace('-', " "), value, indent + 4))
        }
        Value::Array(items) => {
            writeln!(out, "{:indent$}{}:", "", Printable(key))?;
            items
                .iter()
                .enumerate()
                .try_for_each(|(index, value)| nested(out, &format!("[{index}]"), value, indent + 4))
        }
        _ => writeln!(out, "{:indent$}{}: {}", "", Printable(key), Plain(value)),
    }
}

/// A value without parts: text without its quotes.
struct Plain<'a>(&'a Value);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::String(text) => write!(f, "{}", Printable(text)),
            other => write!(f, "{other}"),
        }
    }
}
