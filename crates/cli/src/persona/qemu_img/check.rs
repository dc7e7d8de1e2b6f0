//! `qemu-img check`.

use cowhand::{
    Check, Checked, Class, ErrorKind, Fault, KnownCheck, Open, Quiet, Repair, Report, Rules, Severity,
    check_by, guess, open,
};

use super::source::{Opening, Source};
use super::values::cache;
use super::{Call, Failure, Flag, Form, Outcome, Verb, json, says};
use crate::exit::check::NO_CHECK;
use crate::persona::complain;
use crate::verbs::check::{object, status, summary};

pub(super) const VERB: Verb = Verb {
    name: "check",
    about: "Look for what is wrong with an image, and repair it",
    operands: "FILENAME",
    flags: &[
        Flag::both('h', "help", "Show this"),
        Flag::both('q', "quiet", "Print nothing but faults"),
        Flag::both('f', "format", "The image's format; by its content if not given").of("FMT"),
        Flag::both('T', "cache", "The image's cache mode").of("CACHE_MODE"),
        Flag::both('r', "repair", "Give back lost space (leaks), or repair what can be repaired (all)")
            .of("WHAT"),
        Flag::long("output", "How to print it: human or json").of("OFMT"),
        Flag::long("object", "A secret: secret,id=ID,file=PATH").of("OBJDEF"),
        Flag::long("image-opts", "FILENAME is a description of an image, not a path"),
        Flag::both('U', "force-share", "Look at the image although another program uses it"),
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Outcome {
    let mut how = Opening::default();
    let (mut form, mut quiet, mut mode) = (Form::Human, false, None);
    let mut repair = Repair::Nothing;
    while let Some((flag, value)) = call.next()? {
        match flag {
            "help" => return call.help(),
            _ if how.take(flag, &value)? => {}
            "quiet" => quiet = true,
            "cache" => mode = Some(value),
            "output" => form = call.form(&value)?,
            "repair" => {
                repair = match value.as_encoded_bytes() {
                    b"leaks" => Repair::Leaks,
                    b"all" => Repair::All,
                    _ => {
                        let value = value.display();
                        let said = format!("--repair (-r) expects 'leaks' or 'all' not '{value}'");
                        return Err(call.usage(&said));
                    }
                }
            }
            _ => {}
        }
    }
    let others = call.others();
    let [word] = others.as_slice() else { return Err(call.usage("Expecting one image file name")) };
    let mode = cache("source ", mode.as_deref())?;
    let source = how.source(word)?;
    let source = Source { open: Open { cache: mode, ..source.open }, ..source };
    let name = &source.name;
    if how.force_share && repair != Repair::Nothing {
        return Err(says(format!(
            "Could not open '{name}': force-share=on can only be used with read-only images"
        )));
    }
    openable(&source)?;
    if repair != Repair::Nothing {
        source.warn_if_raw_is_guessed();
    }
    // The real one changes nothing that it cannot check, and gives up nothing of the guest's.
    let unchecked = guess(&source.path, &source.open)
        .is_ok_and(|format| format.checker().is_none_or(|checker| checker.known() == KnownCheck::Absent));
    let repair = if unchecked { Repair::Nothing } else { repair };
    let rules = Rules { keep: true, ..Rules::default() };
    let asked = Check { open: source.open.clone(), repair, workers: 0 };
    let Checked { format, report, known } =
        check_by(&source.path, &asked, rules, &Quiet).map_err(|error| match error.kind() {
            ErrorKind::Cancelled => Failure::from(error),
            _ => source.failed(&error),
        })?;
    let Some(mut report) = report.filter(|_| known != KnownCheck::Absent) else {
        return Err(Failure {
            status: NO_CHECK,
            text: "qemu-img: This image format does not support checks".to_owned(),
        });
    };
    if known == KnownCheck::Verdict {
        // QEMU does not look for space that nothing uses.
        report.faults.retain(|fault| fault.severity != Severity::Leak);
        (report.leaks, report.leaks_fixed) = (0, 0);
    }
    tell(&report, repair != Repair::Nothing);
    match form {
        _ if quiet => {}
        Form::Human => summary(call.out, &report, known)?,
        Form::Json => {
            let mut report = report.clone();
            if known != KnownCheck::Counts {
                report.image_end = None;
                (report.total_units, report.allocated_units) = (None, None);
                (report.fragmented_units, report.compressed_units) = (None, None);
            }
            json::print(call.out, &object(&report, name, format))?;
        }
    }
    Ok(status([&report]))
}

/// The real one opens the image, and what it stands on, before it looks at it. What it would open all the same is for the
/// check to judge.
fn openable(source: &Source) -> Result<(), Failure> {
    match open(&source.path, &source.open) {
        Ok(_) => Ok(()),
        Err(error) => {
            let known = error.sentence().is_some() || error.os_error().is_some() || error.lower().is_some();
            let judged = error.kind() == ErrorKind::Corrupt && !known;
            if judged { Ok(()) } else { Err(source.failed(&error)) }
        }
    }
}

/// Every fault in a line of its own, in the order in which the real one comes across them: it counts, counts again while
/// it repairs, and looks anew once it has repaired something.
fn tell(report: &Report, repair: bool) {
    let of = |class: Class| {
        let mut found: Vec<&Fault> = report.faults.iter().filter(|fault| fault.class == class).collect();
        found.sort_by_key(|fault| fault.at);
        found
    };
    let [structure, counts, marks] = [of(Class::Structure), of(Class::Count), of(Class::Mark)];
    let told = |faults: &[&Fault], repair: bool| faults.iter().for_each(|fault| line(fault, repair));
    told(&structure, repair);
    told(&counts, false);
    if repair {
        told(&counts, true);
    }
    told(&marks, repair);
    if report.corruptions_fixed + report.leaks_fixed > 0 {
        report.faults.iter().filter(|fault| !fault.fixed).for_each(|fault| line(fault, false));
    }
}

fn line(fault: &Fault, repair: bool) {
    let what = match (fault.fixed && repair, fault.severity) {
        (true, _) => "Repairing",
        (false, Severity::Leak) => "Leaked",
        (false, Severity::Corruption | Severity::Error) => "ERROR",
        (false, Severity::Note) => return,
    };
    complain(&format!("{what} {}", cowhand::Printable(&fault.message)));
}
