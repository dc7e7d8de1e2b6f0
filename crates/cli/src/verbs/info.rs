//! `info`: what an image says of itself.

use std::ffi::OsString;
use std::fmt;

use cowhand::archive::{Listed, listed};
use cowhand::{Cache, Info, ParentState, Printable, Result, info, info_with_parent};
use serde_json::{Map, Value};

use crate::exit::{DONE, Outcome};
use crate::output::{Output, json};
use crate::sizes::Size;
use crate::sources::{Parents, Sharing};
use crate::verbs::{Form, snapshot};

/// Tell what an image is
///
/// Only the image itself is opened; --resolve looks whether its parent is there, --backing-chain at all it stands on.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand info vm.qcow2
  cowhand info --output=json --backing-chain overlay.qcow2
  cowhand info --resolve --search-dir /srv/checkpoints newest.avhdx
  cowhand info -U running.qcow2
  cowhand info backup.vma.zst
  cowhand info 'backup.vma.zst#drive-scsi0'")]
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

    /// Look whether the image's parent is there, and is the one
    #[arg(long, conflicts_with = "backing_chain")]
    resolve: bool,

    #[command(flatten)]
    sharing: Sharing,

    #[command(flatten)]
    parents: Parents,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let how = args.sharing.open(&source, &args.parents, Cache::default())?;
    if let Some(archive) = listed(&source.path, &how)? {
        return list(args, &archive, out);
    }
    let found = match args.resolve {
        true => vec![info_with_parent(&source.path, &how)?],
        false => info(&source.path, &how, args.backing_chain)?,
    };
    match args.output {
        Form::Human => {
            for (index, image) in found.iter().enumerate() {
                if index > 0 {
                    writeln!(out)?;
                }
                let note = if args.resolve { ParentNote::Always } else { ParentNote::Unless };
                describe(out, &image.filename, image, note)?;
            }
        }
        Form::Json => {
            let mut all: Vec<Value> = found.iter().map(Info::to_json).collect();
            if let ([image], [value]) = (found.as_slice(), all.as_mut_slice())
                && args.resolve
            {
                value["parent"] = image.parent_state.to_json();
            }
            let value = if args.backing_chain { Value::Array(all) } else { all.swap_remove(0) }; // never empty: at least the image itself
            out.write_all(json(&value).as_bytes())?;
        }
    }
    Ok(DONE)
}

/// An archive of several disks, none of which was named.
fn list(args: &Args, archive: &Listed, out: &mut Output) -> Outcome {
    if args.output == Form::Json {
        let value = archive.to_json();
        let value = if args.backing_chain { Value::Array(vec![value]) } else { value };
        out.write_all(json(&value).as_bytes())?;
        return Ok(DONE);
    }
    writeln!(out, "image: {}", Printable(&archive.filename))?;
    writeln!(out, "file format: {}", archive.format)?;
    writeln!(out, "file length: {} ({} bytes)", Size(archive.file_size), archive.file_size)?;
    writeln!(out, "disk size: {}", Size(archive.actual_size))?;
    for (name, size) in &archive.disks {
        writeln!(out, "disk: {}, {} ({size} bytes)", Printable(name), Size(*size))?;
    }
    // The disks are said already.
    let mut facts = archive.facts.clone();
    facts.shift_remove("disks");
    specific(out, &facts)?;
    Ok(DONE)
}

/// What is said of a parent beside its name, in a line of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParentNote {
    /// Nothing.
    None,
    /// That it is not there, or was not looked for.
    Unless,
    /// Where it is, too.
    Always,
}

/// Line for line what qemu-img prints of an image that is to be called `name`.
pub(crate) fn describe(out: &mut Output, name: &str, info: &Info, note: ParentNote) -> Result<()> {
    let Info { virtual_size, file_size, .. } = *info;
    let (name, actual) = (Printable(name), Size(info.actual_size));
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
    parent(out, info, note)?;
    snapshot::list(out, &info.snapshots)?;
    specific(out, &info.details.specific)?;
    if info.is_file() {
        return Ok(());
    }
    writeln!(out, "Child node '/file':")?;
    writeln!(out, "    filename: {}", Printable(&info.file))?;
    writeln!(out, "    protocol type: {}", info.protocol)?;
    writeln!(out, "    file length: {} ({file_size} bytes)", Size(file_size))?;
    writeln!(out, "    disk size: {actual}")
}

fn parent(out: &mut Output, info: &Info, note: ParentNote) -> Result<()> {
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
    match &info.parent_state {
        _ if note == ParentNote::None => Ok(()),
        ParentState::NotLookedUp => {
            writeln!(out, "backing file state: not looked up (--resolve and --backing-chain look)")
        }
        ParentState::Found(path) if note == ParentNote::Always => {
            writeln!(out, "backing file state: found, {}", Printable(&path.display().to_string()))
        }
        ParentState::Found(_) => Ok(()),
        ParentState::Lost(why) => writeln!(out, "backing file state: not found: {}", Printable(why)),
    }
}

fn specific(out: &mut Output, facts: &Map<String, Value>) -> Result<()> {
    if !facts.is_empty() {
        writeln!(out, "Format specific information:")?;
    }
    facts.iter().try_for_each(|(key, value)| nested(out, &key.replace('-', " "), value, 4))
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
