//! `scan`: the images of a folder, a pattern or a volume group, in a table.

use std::path::PathBuf;

use cowhand::{Cache, Place, Printable, Result, Scanned, scan};

use crate::exit::{DONE, Outcome};
use crate::output::{Output, json};
use crate::sizes::Size;
use crate::sources::{Parents, Sharing, Source};
use crate::verbs::Form;

/// List images: sizes, parents, hidden marks
///
/// Each file is looked at alone: parents are named, and not opened. An image that cannot be read is listed with what is
/// wrong with it. In a folder, raw images (whatever no format claims) and names with a dot in front are left out.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 also where images are broken; 1 where a folder, pattern or volume group cannot be listed

Examples:
  cowhand scan /var/lib/images
  cowhand scan '/srv/sr/*.qcow2' --output=json
  cowhand scan --vg XSLocalLVM -m 'QCOW2-*'")]
pub(crate) struct Args {
    /// Images, folders, patterns with * ? [...]; the current folder if nothing is given
    #[arg(value_name = "PATH")]
    places: Vec<PathBuf>,

    /// The logical volumes of this volume group
    #[arg(long, visible_alias = "lvm", value_name = "NAME")]
    vg: Option<String>,

    /// Of the volume group only volumes whose name fits this
    #[arg(short, long, value_name = "PATTERN", requires = "vg")]
    matching: Option<String>,

    /// Raw images and names with a dot in front too
    #[arg(short, long)]
    all: bool,

    /// How to print it
    #[arg(long, value_enum, value_name = "FORM", default_value = "human")]
    output: Form,

    #[command(flatten)]
    sharing: Sharing,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let mut places: Vec<Place> = args.places.iter().cloned().map(Place::Path).collect();
    if let Some(group) = &args.vg {
        places.push(Place::VolumeGroup(group.clone(), args.matching.clone()));
    }
    if places.is_empty() {
        places.push(Place::Path(PathBuf::from(".")));
    }
    let how = args.sharing.open(&Source::default(), &Parents::default(), Cache::default())?;
    let mut first = true;
    match args.output {
        Form::Human => scan(&places, &how, args.all, |found| {
            if std::mem::take(&mut first) {
                line(out, ["FORMAT", "VIRTUAL", "PHYSICAL", "HIDDEN"], "NAME")?;
            }
            row(out, found)
        })?,
        Form::Json => {
            let mut all = Vec::new();
            scan(&places, &how, args.all, |found| {
                all.push(found.to_json());
                Ok(())
            })?;
            out.write_all(json(&all.into()).as_bytes())?;
        }
    }
    Ok(DONE)
}

fn row(out: &mut Output, found: &Scanned) -> Result<()> {
    let name = found.path.display().to_string();
    let name = Printable(&name);
    match &found.image {
        Err(error) => line(out, ["?", "-", "-", "-"], &format!("{name}  scan-error: {error}")),
        Ok(info) => {
            let hidden = info.hidden.map_or("-", |hidden| if hidden { "yes" } else { "no" });
            let parent = info.backing_filename().map(|parent| format!("  on {}", Printable(&parent)));
            let (size, physical) =
                (Size(info.virtual_size).to_string(), Size(info.physical_size).to_string());
            let name = format!("{name}{}", parent.unwrap_or_default());
            line(out, [info.format, &size, &physical, hidden], &name)
        }
    }
}

fn line(out: &mut Output, columns: [&str; 4], name: &str) -> Result<()> {
    let [format, size, physical, hidden] = columns;
    writeln!(out, "{format:<6} {size:>9} {physical:>9} {hidden:>6}  {name}")
}
