//! `formats`: what can be read and written, and with which options.

use cowhand::{OptionKind, OptionSpec, Result};

use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// List the formats, their names and their options
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(out: &mut Output) -> Outcome {
    for (index, format) in cowhand::formats().iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        writeln!(out, "{}", format.names().join(", "))?;
        let extensions: Vec<String> = format.extensions().iter().map(|e| format!(".{e}")).collect();
        writeln!(out, "  files: {}", extensions.join(" "))?;
        if !format.options().is_empty() {
            writeln!(out, "  options (-o):")?;
            list(out, "    ", format.options())?;
        }
    }
    Ok(DONE)
}

/// What `-o help` prints.
pub(crate) fn help(out: &mut Output, format: &dyn cowhand::Format) -> Result<()> {
    const SIZE: OptionSpec = OptionSpec { name: "size", kind: OptionKind::Size, help: "Virtual disk size" };
    writeln!(out, "Supported {} options:", format.names().first().unwrap_or(&""))?; // never empty: every format has a name
    let mut all: Vec<OptionSpec> = format.options().to_vec();
    if !all.iter().any(|spec| spec.name == SIZE.name) {
        all.push(SIZE);
    }
    all.sort_by_key(|spec| spec.name);
    list(out, "  ", &all)
}

fn list(out: &mut Output, indent: &str, options: &[OptionSpec]) -> Result<()> {
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
