//! `snapshot`: the internal snapshots of an image.

use std::ffi::OsString;

use cowhand::{
    Cache, Printable, Result, SnapshotInfo, apply_snapshot, create_snapshot, delete_snapshot, list_snapshots,
    snapshot_json,
};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::Value;

use crate::exit::{DONE, Outcome};
use crate::output::{Output, json};
use crate::sizes::Size;
use crate::sources::{Parents, Sharing};
use crate::verbs::Form;

/// List, make, go back to or take away internal snapshots
///
/// A snapshot is named by its id or its name; without a flag they are listed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand snapshot vm.qcow2
  cowhand snapshot -c before-upgrade vm.qcow2
  cowhand snapshot -a before-upgrade vm.qcow2
  cowhand snapshot -d before-upgrade vm.qcow2")]
pub(crate) struct Args {
    /// The image
    image: OsString,

    #[command(flatten)]
    action: Action,

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// How to print the list
    #[arg(long, value_enum, value_name = "FORM", default_value = "human")]
    output: Form,

    /// Print nothing but the list
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    sharing: Sharing,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Action {
    /// List them
    #[arg(short, long)]
    list: bool,

    /// Keep the disk's present state under this name
    #[arg(short, long, value_name = "NAME")]
    create: Option<String>,

    /// The disk is again as this snapshot holds it
    #[arg(short, long, value_name = "SNAPSHOT")]
    apply: Option<String>,

    /// Take this snapshot away
    #[arg(short, long, value_name = "SNAPSHOT")]
    delete: Option<String>,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let path = &source.path;
    let parents = Parents::default();
    let Action { create, apply, delete, .. } = &args.action;
    if create.is_none() && apply.is_none() && delete.is_none() {
        let found = list_snapshots(path, &args.sharing.open(&source, &parents, Cache::default())?)?;
        match args.output {
            Form::Human => list(out, &found)?,
            Form::Json => {
                let all = Value::Array(found.iter().map(snapshot_json).collect());
                out.write_all(json(&all).as_bytes())?;
            }
        }
        return Ok(DONE);
    }
    let how = args.sharing.writing(&source, &parents, Cache::default())?;
    if let Some(name) = create {
        create_snapshot(path, &how, name)?;
    }
    if let Some(which) = apply {
        apply_snapshot(path, &how, which)?;
    }
    if let Some(which) = delete {
        delete_snapshot(path, &how, which)?;
    }
    Ok(DONE)
}

/// The table that qemu-img prints, with its heading; nothing where there are none.
pub(crate) fn list(out: &mut Output, snapshots: &[SnapshotInfo]) -> Result<()> {
    if snapshots.is_empty() {
        return Ok(());
    }
    writeln!(out, "Snapshot list:")?;
    line(out, ["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"])?;
    snapshots.iter().try_for_each(|snapshot| one(out, snapshot))
}

fn one(out: &mut Output, snapshot: &SnapshotInfo) -> Result<()> {
    let seconds = snapshot.vm_clock_nsec / 1_000_000_000;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let thousandths = snapshot.vm_clock_nsec / 1_000_000 % 1000;
    line(
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

fn line(out: &mut Output, columns: [&str; 6]) -> Result<()> {
    let [id, name, size, date, clock, count] = columns;
    writeln!(out, "{id:<7} {name:<16} {size:>8} {date:>19} {clock:>15} {count:>10}")
}

fn local_time(seconds: u32) -> String {
    let at = Timestamp::from_second(i64::from(seconds)).unwrap_or_default(); // never: 32 bits end in 2106
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}
