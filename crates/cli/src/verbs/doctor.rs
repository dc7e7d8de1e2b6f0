//! `doctor`: what a file is, whether it is whole and safe, and what to type next.

use std::ffi::OsString;

use cowhand::{Advice, Cache, Diagnosis, Level, Printable, Result, doctor};

use crate::exit::doctor::{ATTENTION, DAMAGED};
use crate::exit::{DONE, Outcome};
use crate::output::{Output, json};
use crate::progress::Meter;
use crate::sizes::Size;
use crate::sources::{Parents, Sharing, quoted};
use crate::verbs::Form;

/// Tell what a file is, whether it is whole and safe, and what can be done with it
///
/// The answer stands first. Nothing is written, and it takes at most half a minute: the tables of an image are checked,
/// what a guest wrote into its disk is not, and of an archive only the front is read. What was not looked at is said.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 whole and safe, 1 it could not be looked at, 2 damaged, 3 whole, but somebody should know something
first: it names other files, it is in use, it was not closed cleanly, its format is not sure

Examples:
  cowhand doctor vm.qcow2
  cowhand doctor --paths=local newest.avhdx
  cowhand doctor --output=json upload.img
  cowhand doctor vzdump-qemu-100-2026_01_31-12_00_00.vma.zst")]
pub(crate) struct Args {
    /// The file
    image: OsString,

    /// Its format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// How to print it
    #[arg(long, value_enum, value_name = "FORM", default_value = "human")]
    output: Form,

    #[command(flatten)]
    sharing: Sharing,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let how = args.sharing.open(&source, &Parents::default(), Cache::default())?;
    let meter = Meter::new(false, true);
    let found = doctor(&source.path, &how, &meter)?;
    match args.output {
        Form::Human => page(out, &found)?,
        Form::Json => out.write_all(json(&found.to_json()).as_bytes())?,
    }
    Ok(match found.worst() {
        None => DONE,
        Some(Level::Damaged) => DAMAGED,
        Some(Level::Attention) => ATTENTION,
    })
}

/// Columns of what stands in front of each line.
const HEAD: usize = 14;

fn page(out: &mut Output, found: &Diagnosis) -> Result<()> {
    let answer = match found.worst() {
        None if found.unseen.is_empty() => "WHOLE AND SAFE",
        None => "WHOLE AND SAFE, as far as was looked at",
        Some(Level::Damaged) => "DAMAGED",
        Some(Level::Attention) => "LOOK BEFORE YOU USE IT",
    };
    writeln!(out, "{}: {answer}", Printable(&found.filename))?;
    let disk = found.virtual_size.map(|size| format!("{} of disk, ", Size(size))).unwrap_or_default();
    let (file, space) = (found.file_size, Size(found.actual_size));
    line(out, "what", &format!("{}: {disk}a file of {file} bytes, which takes {space}", found.what))?;
    for finding in &found.findings {
        let mark = if finding.level == Level::Damaged { "!! " } else { "" };
        line(out, finding.about, &format!("{mark}{}", finding.text))?;
    }
    for (name, text) in &found.facts {
        line(out, name, text)?;
    }
    for text in &found.unseen {
        line(out, "not seen", text)?;
    }
    if !found.next.is_empty() {
        writeln!(out, "what to type next:")?;
    }
    let typed: Vec<String> = found.next.iter().map(typed).collect();
    let wide = typed.iter().map(|command| command.chars().count()).max().unwrap_or(0).min(52);
    for (advice, command) in found.next.iter().zip(&typed) {
        writeln!(out, "  {command:wide$}  # {}", Printable(&advice.what))?;
    }
    Ok(())
}

fn line(out: &mut Output, head: &str, text: &str) -> Result<()> {
    writeln!(out, "  {head:HEAD$} {}", Printable(text))
}

/// As a shell takes it.
fn typed(advice: &Advice) -> String {
    advice.command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}
