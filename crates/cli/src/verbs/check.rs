//! `check`: what is wrong with an image, and its repair.

use std::ffi::OsString;
use std::path::Path;

use cowhand::{
    Cache, ChainChecked, ChainFile, Check, Error, Fault, KnownCheck, MAX_FAULTS, Objection, Printable,
    Repair, Report, Result, Severity, Verdict, check, check_chain, verdict,
};
use serde_json::{Map, Value, json};

use crate::exit::check::{CORRUPT, LEAKS, NO_CHECK};
use crate::exit::{DONE, FAILED, Failure, Outcome};
use crate::output::{self, Output};
use crate::progress::Meter;
use crate::sources::{self, Parents, Sharing, quoted};
use crate::verbs::Form;

/// Find out what is wrong with an image, and repair it
///
/// Only this file is looked at; with --chain, what it stands on too. Without -r nothing is changed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 nothing is wrong (any more), 1 the check could not be done, 2 there are errors, or -r gave up guest data (--for: it would
be refused), 3 space is lost and
nothing else, 63 images of this format cannot be checked

Examples:
  cowhand check vm.qcow2
  cowhand check --output=json vm.qcow2
  cowhand check -r leaks vm.qcow2
  cowhand check -r all vm.qcow2
  cowhand check --chain newest.avhd
  cowhand check --for azure upload.vhd")]
pub(crate) struct Args {
    /// The image
    image: OsString,

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// How to print it
    #[arg(long, value_enum, value_name = "FORM", default_value = "human")]
    output: Form,

    /// Give back space that nothing uses, or repair all that can be repaired
    #[arg(short, long, value_enum, value_name = "WHAT")]
    repair: Option<What>,

    /// Also each file that the image stands on, and whether it is there and the right one; -r repairs the image alone
    #[arg(long)]
    chain: bool,

    /// Say what this program or service would refuse, and what to type: azure, hyperv, virtualbox, virtualpc, xenserver
    #[arg(long = "for", value_name = "WHOM", conflicts_with_all = ["repair", "chain"])]
    whom: Option<String>,

    /// Print nothing
    #[arg(short, long)]
    quiet: bool,

    /// The image's cache mode: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 'T', value_name = "CACHE", value_parser = sources::cache, default_value = "writeback")]
    cache: Cache,

    /// Threads; as many as the machine has, at most 8, if not given
    #[arg(short = 'm', long, value_name = "N", default_value = "0", hide_default_value = true)]
    threads: usize,

    #[command(flatten)]
    sharing: Sharing,
}

/// What a repair may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Space that nothing uses
    Leaks,
    /// All that can be repaired
    All,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let repair = match args.repair {
        None => Repair::Nothing,
        Some(What::Leaks) => Repair::Leaks,
        Some(What::All) => Repair::All,
    };
    let parents = Parents::default();
    if let Some(whom) = &args.whom {
        let found = verdict(&source.path, &args.sharing.open(&source, &parents, args.cache)?, whom)?;
        let name = source.path.display().to_string();
        match args.output {
            _ if args.quiet => {}
            Form::Human => advise(out, whom, &name, &found)?,
            Form::Json => out.write_all(output::json(&verdict_json(whom, &name, &found)).as_bytes())?,
        }
        return Ok(if found.objections.is_empty() { DONE } else { CORRUPT });
    }
    let open = match repair {
        Repair::Nothing => args.sharing.open(&source, &parents, args.cache)?,
        _ => args.sharing.writing(&source, &parents, args.cache)?,
    };
    let how = Check { open, repair, workers: args.threads };
    let meter = Meter::new(false, args.quiet);
    if args.chain {
        let found = check_chain(&source.path, &how, &meter)?;
        meter.finish();
        return tell_chain(args, out, &found);
    }
    let checked = check(&source.path, &how, &meter)?;
    meter.finish();
    let name = source.path.display().to_string();
    let Some(report) = checked.report else {
        let error = Error::unsupported("This image format does not support checks").image(name);
        return Err(Failure::with(NO_CHECK, error));
    };
    match args.output {
        _ if args.quiet => {}
        Form::Human => describe(out, &report)?,
        Form::Json => out.write_all(output::json(&object(&report, &name, checked.format)).as_bytes())?,
    }
    Ok(status([&report]))
}

/// The worst of them decides. What a repair gave up is no error any more, and nobody may take that for a success.
pub(crate) fn status<'a>(reports: impl IntoIterator<Item = &'a Report> + Clone) -> u8 {
    let any = |bad: fn(&Report) -> bool| reports.clone().into_iter().any(bad);
    if any(|report| report.check_errors > 0) {
        FAILED
    } else if any(|report| report.corruptions + report.lost > 0) {
        CORRUPT
    } else if any(|report| report.leaks > 0) {
        LEAKS
    } else {
        DONE
    }
}

fn tell_chain(args: &Args, out: &mut Output, found: &ChainChecked) -> Outcome {
    let ChainChecked { top, files } = found;
    match args.output {
        _ if args.quiet => {}
        Form::Human => files.iter().try_for_each(|file| describe_file(out, file))?,
        Form::Json => {
            let name = files.first().map_or("", |file| &file.filename);
            let mut all = object(top.report.as_ref().unwrap_or(&Report::default()), name, top.format);
            if let Some(all) = all.as_object_mut() {
                all.insert("chain".to_owned(), files.iter().map(file_object).collect());
            }
            out.write_all(output::json(&all).as_bytes())?;
        }
    }
    let found = status(files.iter().map(|file| &file.report));
    Ok(if found == DONE && !files.iter().any(|file| file.has_check) { NO_CHECK } else { found })
}

/// The answer, then every fault in a line of its own.
fn describe_file(out: &mut Output, file: &ChainFile) -> Result<()> {
    let ChainFile { filename, format, has_check, report, remedy } = file;
    let counts = [
        (report.corruptions, "error", "errors"),
        (report.leaks, "leaked cluster", "leaked clusters"),
        (report.check_errors, "thing could not be looked at", "things could not be looked at"),
        (report.corruptions_fixed + report.leaks_fixed, "fault repaired", "faults repaired"),
    ];
    let counts = counts.into_iter().filter(|(count, ..)| *count > 0);
    let said: Vec<String> =
        counts.map(|(count, one, many)| format!("{count} {}", if count == 1 { one } else { many })).collect();
    let answer = match (said.is_empty(), has_check) {
        (true, true) => "no errors were found".to_owned(),
        (true, false) => format!("can be opened; {format} images have nothing to be checked"),
        (false, _) => said.join(", "),
    };
    writeln!(out, "{}: {answer}", Printable(filename))?;
    for fault in &report.faults {
        write!(out, "    ")?;
        line(out, fault)?;
    }
    unlisted(out, report, "    ")?;
    match remedy {
        None => Ok(()),
        Some(remedy) => writeln!(out, "    Type: {}", remedy.replace("FILE", &quoted(filename))),
    }
}

/// How many faults are counted and not listed.
fn unlisted(out: &mut Output, report: &Report, indent: &str) -> Result<()> {
    // One that is listed may count for many; only a list that is full leaves some out.
    if report.faults.len() < MAX_FAULTS {
        return Ok(());
    }
    let found = report.corruptions + report.leaks + report.check_errors;
    let all = found + report.corruptions_fixed + report.leaks_fixed;
    let listed = report.faults.iter().filter(|fault| fault.severity != Severity::Note).count() as u64;
    match all.saturating_sub(listed) {
        0 => Ok(()),
        more => writeln!(out, "{indent}... and {more} more"),
    }
}

/// As for the image itself, what could be checked and what is wrong.
fn file_object(file: &ChainFile) -> Value {
    let ChainFile { filename, format, has_check, report, remedy } = file;
    let mut value = object(report, filename, format);
    let Some(all) = value.as_object_mut() else { return value };
    all.insert("checked".to_owned(), (*has_check).into());
    let severity = |fault: &Fault| match fault.severity {
        Severity::Leak => "leak",
        Severity::Corruption => "corruption",
        Severity::Error => "check-error",
        Severity::Note => "note",
    };
    let fault = |fault: &Fault| json!({ "severity": severity(fault), "fixed": fault.fixed, "offset": fault.at, "message": fault.message });
    all.insert("faults".to_owned(), report.faults.iter().map(fault).collect());
    if let Some(remedy) = remedy {
        all.insert("remedy".to_owned(), remedy.replace("FILE", &quoted(filename)).into());
    }
    value
}

/// Every fault in a line of its own, then line for line what qemu-img prints.
fn describe(out: &mut Output, report: &Report) -> Result<()> {
    report.faults.iter().try_for_each(|fault| line(out, fault))?;
    unlisted(out, report, "")?;
    summary(out, report, KnownCheck::Counts)
}

/// Line for line what qemu-img prints of a report, the faults' own lines left out.
pub(crate) fn summary(out: &mut Output, report: &Report, known: KnownCheck) -> Result<()> {
    let found = report.corruptions + report.leaks + report.check_errors;
    if report.corruptions_fixed + report.leaks_fixed > 0 {
        writeln!(
            out,
            "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n\
             Double checking the fixed image now...",
            report.leaks_fixed, report.corruptions_fixed
        )?;
    }
    if found == 0 {
        writeln!(out, "No errors were found on the image.")?;
    }
    if report.corruptions > 0 {
        writeln!(
            out,
            "\n{} errors were found on the image.\n\
             Data may be corrupted, or further writes to the image may corrupt it.",
            report.corruptions
        )?;
    }
    if report.leaks > 0 {
        writeln!(
            out,
            "\n{} leaked clusters were found on the image.\n\
             This means waste of disk space, but no harm to data.",
            report.leaks
        )?;
    }
    if report.check_errors > 0 {
        writeln!(out, "\n{} internal errors have occurred during the check.", report.check_errors)?;
    }
    if known != KnownCheck::Counts {
        return Ok(());
    }
    let count = |units: Option<u64>| units.unwrap_or(0);
    let (total, allocated) = (count(report.total_units), count(report.allocated_units));
    if total > 0 && allocated > 0 {
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        writeln!(
            out,
            "{allocated}/{total} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            percent(allocated, total),
            percent(count(report.fragmented_units), allocated),
            percent(count(report.compressed_units), allocated)
        )?;
    }
    match count(report.image_end) {
        0 => Ok(()),
        end => writeln!(out, "Image end offset: {end}"),
    }
}

fn line(out: &mut Output, fault: &Fault) -> Result<()> {
    let kind = match (fault.fixed, fault.severity) {
        (true, _) => "Repaired",
        (false, Severity::Leak) => "Leaked",
        (false, Severity::Corruption | Severity::Error) => "ERROR",
        (false, Severity::Note) => "Note",
    };
    writeln!(out, "{kind} {}", Printable(&fault.message))
}

/// What a consumer would refuse, the answer first, and what to type.
fn advise(out: &mut Output, whom: &str, name: &str, found: &Verdict) -> Result<()> {
    let Verdict { title, objections, file_len, extension, .. } = found;
    if objections.is_empty() {
        let name = Printable(name);
        return writeln!(
            out,
            "{name}: nothing is known that {title} would refuse; {file_len} bytes to upload"
        );
    }
    writeln!(out, "{}: {title} would refuse it, or take it for something else:", Printable(name))?;
    let word = quoted(name);
    // What mends one thing is of no use where another asks for a new image.
    let mendable = objections.iter().all(|objection| objection.remedy.is_some());
    for Objection { what, remedy } in objections {
        writeln!(out, "- {}", Printable(what))?;
        if let Some(remedy) = remedy.as_ref().filter(|_| mendable) {
            writeln!(out, "    {}", remedy.replace("FILE", &word))?;
        }
    }
    let new = Path::new(name).with_extension(format!("{whom}.{extension}"));
    let new = quoted(&new.display().to_string());
    writeln!(
        out,
        "{} one that it takes:\n    cowhand convert --for {whom} {word} {new}",
        if mendable { "Or make" } else { "This makes" }
    )
}

fn verdict_json(whom: &str, name: &str, found: &Verdict) -> Value {
    let objections: Vec<Value> = found
        .objections
        .iter()
        .map(|objection| {
            let remedy = objection.remedy.as_ref().map(|remedy| remedy.replace("FILE", &quoted(name)));
            json!({ "what": objection.what, "remedy": remedy })
        })
        .collect();
    json!({
        "filename": name,
        "format": found.format,
        "for": whom,
        "accepted": objections.is_empty(),
        "objections": objections,
        "upload-size": found.file_len,
    })
}

/// QEMU's keys in QEMU's order; what is 0 is left out, but for `check-errors`.
pub(crate) fn object(report: &Report, name: &str, format: &str) -> Value {
    let count = |count: Option<u64>| count.filter(|count| *count > 0).map(Value::from);
    let keys = [
        ("image-end-offset", count(report.image_end)),
        ("compressed-clusters", count(report.compressed_units)),
        ("total-clusters", count(report.total_units)),
        ("corruptions", count(Some(report.corruptions))),
        ("corruptions-fixed", count(Some(report.corruptions_fixed))),
        ("check-errors", Some(report.check_errors.into())),
        ("leaks", count(Some(report.leaks))),
        ("leaks-fixed", count(Some(report.leaks_fixed))),
        ("allocated-clusters", count(report.allocated_units)),
        ("filename", Some(name.into())),
        ("format", Some(format.into())),
        ("fragmented-clusters", count(report.fragmented_units)),
    ];
    let said = keys.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    said.collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repair_that_gave_something_up_is_no_success() {
        let lost = Report { corruptions_fixed: 1, lost: 1, ..Report::default() };
        assert_eq!(status([&lost]), CORRUPT);
        assert_eq!(status([&Report { lost: 0, ..lost }]), DONE);
    }
}
