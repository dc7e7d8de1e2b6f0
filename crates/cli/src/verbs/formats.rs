//! `formats`: what can be read and written, and with which options.

use cowhand::{OptionKind, OptionSpec, Result};

use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// List the formats, their names and their options
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand formats
  cowhand create -f vhdx -o help")]
pub(crate) struct Args {}

pub(crate) fn run(out: &mut Output) -> Outcome {
    for (index, format) in cowhand::formats().iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        writeln!(out, "{}", format.names().join(", "))?;
        let extensions: Vec<String> = format.extensions().iter().map(|e| format!(".{e}")).collect();
        writeln!(out, "  files: {}", extensions.join(" "))?;
        if format.archives().is_some() {
            let name = format.names().first().unwrap_or(&""); // never empty: every format has a name
            writeln!(
                out,
                "  an archive of disks: FILE#DISK is one of them; 'cowhand {name}' makes and extracts"
            )?;
        }
        if !format.options().is_empty() {
            writeln!(out, "  options (-o):")?;
            list(out, "    ", format.options())?;
        }
    }
    Ok(DONE)
}

/// What `amend -o help` prints.
pub(crate) fn amend_help(out: &mut Output, format: &dyn cowhand::Format) -> Result<()> {
    let name = format.names().first().unwrap_or(&""); // never empty: every format has a name
    if format.amend_options().is_empty() {
        return Err(cowhand::Error::unsupported(format!(
            "Format driver '{name}' does not support option amendment"
        )));
    }
    const COMMON: [OptionSpec; 3] = [OptionSpec::BACKING_FILE, OptionSpec::BACKING_FMT, OptionSpec::SIZE];
    writeln!(out, "Amend options for '{name}':")?;
    let mut all: Vec<OptionSpec> = format.amend_options().to_vec();
    all.extend(
        COMMON.iter().filter(|common| all.iter().all(|spec| spec.name != common.name)).collect::<Vec<_>>(),
    );
    all.sort_by_key(|spec| spec.name);
    list(out, "  ", &all)
}

/// What `-o help` prints.
pub(crate) fn help(out: &mut Output, format: &dyn cowhand::Format) -> Result<()> {
    writeln!(out, "Supported {} options:", format.names().first().unwrap_or(&""))?; // never empty: every format has a name
    let mut all: Vec<OptionSpec> = format.options().to_vec();
    all.sort_by_key(|spec| spec.name);
    list(out, "  ", &all)
}

/// A line for each.
pub(crate) fn list<'a>(
    out: &mut Output,
    indent: &str,
    options: impl IntoIterator<Item = &'a OptionSpec>,
) -> Result<()> {
    for spec in options {
        let value = match spec.kind {
            OptionKind::Size => "<size>",
            OptionKind::Number => "<num>",
            OptionKind::Flag => "<bool (on/off)>",
            OptionKind::Choice(_) | OptionKind::Text => "<str>",
        };
        let name = format!("{}={value}", spec.name);
        writeln!(out, "{indent}{name:<22} - {}", spec.help)?;
    }
    Ok(())
}
