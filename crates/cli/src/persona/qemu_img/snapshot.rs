//! `qemu-img snapshot`.

use std::ffi::OsString;

use cowhand::{Error, ErrorKind, Open, Snapshotted};

use super::source::Opening;
use super::{Call, Flag, Outcome, Verb, says, text};
use crate::exit::DONE;
use crate::verbs::snapshot::list;

pub(super) const VERB: Verb = Verb {
    name: "snapshot",
    about: "List or change the snapshots within an image",
    operands: "FILENAME",
    flags: &[
        Flag::both('h', "help", "Show this"),
        Flag::both('q', "quiet", "Print nothing but the list"),
        Flag::long("object", "A secret: secret,id=ID,file=PATH").of("OBJDEF"),
        Flag::both('f', "format", "The image's format").of("FMT"),
        Flag::long("image-opts", "FILENAME is a description of an image, not a path"),
        Flag::both('U', "force-share", "Open the image although another program uses it"),
        Flag::both('l', "list", "List them (this is done where nothing else is asked for)"),
        Flag::both('a', "apply", "Go back to one").of("SNAPSHOT"),
        Flag::both('c', "create", "Make one").of("SNAPSHOT"),
        Flag::both('d', "delete", "Take one away").of("SNAPSHOT"),
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Outcome {
    let mut how = Opening::default();
    let mut action: Option<(&str, OsString)> = None;
    while let Some((flag, value)) = call.next()? {
        match flag {
            "help" => return call.help(),
            _ if how.take(flag, &value)? => {}
            "list" | "create" | "apply" | "delete" if action.is_some() => {
                return Err(call.usage("Cannot mix '-l', '-a', '-c', '-d'"));
            }
            "list" | "create" | "apply" | "delete" => action = Some((flag, value)),
            _ => {}
        }
    }
    let others = call.others();
    let [word] = others.as_slice() else { return Err(call.usage("Expecting one image file name")) };
    let source = how.source(word)?;
    let failed = |error| source.failed(&error);
    let open = |writable: bool| {
        Snapshotted::open(&source.path, &Open { writable, ..source.open.clone() }).map_err(failed)
    };
    let Some((action, value)) = action.filter(|(action, _)| *action != "list") else {
        list(call.out, &open(false)?.list()?)?;
        return Ok(DONE);
    };
    if how.force_share {
        return Err(says(format!(
            "Could not open '{}': force-share=on can only be used with read-only images",
            source.name
        )));
    }
    let image = open(true)?;
    source.warn_if_raw_is_guessed();
    let which = text(&value);
    let done = match action {
        "create" => image.create(fitting(&which)).map(|_| ()),
        "apply" => image.apply(&which),
        // By its name alone, as QEMU does.
        _ => match image.list()?.into_iter().find(|snapshot| snapshot.name == which) {
            Some(found) => image.delete(&found.id),
            None => Err(Error::new(ErrorKind::NotFound, "")),
        },
    };
    done.map_err(|error| {
        if action == "apply" && error.sentence().is_some() {
            // The real one opens it again before it gives up.
            source.warn_if_raw_is_guessed();
        }
        says(format!("Could not {action} snapshot '{which}': {}", why(action, &error)))
    })?;
    Ok(DONE)
}

/// As much of a name as QEMU takes.
fn fitting(name: &str) -> &str {
    const MOST: usize = 255;
    if name.len() <= MOST {
        return name;
    }
    let end = (0..=MOST).rev().find(|at| name.is_char_boundary(*at));
    name.get(..end.unwrap_or(0)).unwrap_or(name)
}

fn why(action: &str, error: &Error) -> String {
    let known = match error.kind() {
        ErrorKind::Unsupported => Some("Operation not supported".to_owned()),
        ErrorKind::NotFound => Some("No such file or directory".to_owned()),
        _ => error.os_error(),
    };
    let told = known.unwrap_or_else(|| error.without_image().to_string());
    match (action, error.sentence()) {
        ("apply", Some(sentence)) => sentence.to_owned(),
        ("apply", None) => format!("Failed to load snapshot: {told}"),
        ("delete", Some(_)) => "snapshot not found".to_owned(),
        ("delete", None) if error.kind() == ErrorKind::NotFound => "snapshot not found".to_owned(),
        _ => told,
    }
}
