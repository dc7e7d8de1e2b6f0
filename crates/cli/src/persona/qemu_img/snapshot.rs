//! `qemu-img snapshot`.

use std::ffi::OsString;

use cowhand::{ErrorKind, apply_snapshot, create_snapshot, delete_snapshot, list_snapshots};

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
        Flag::both('f', "format", "The image's format").of("FMT"),
        Flag::long("image-opts", "FILENAME is a description of an image, not a path"),
        Flag::both('U', "force-share", "Open the image although another program uses it"),
        Flag::both('l', "list", "List them (this is done where nothing else is asked for)"),
        Flag::both('c', "create", "Make one").of("SNAPSHOT"),
        Flag::both('a', "apply", "Go back to one").of("SNAPSHOT"),
        Flag::both('d', "delete", "Take one away").of("SNAPSHOT"),
        Flag::long("object", "A secret: secret,id=ID,file=PATH").of("OBJDEF"),
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
    let Some((action, value)) = action.filter(|(action, _)| *action != "list") else {
        list(call.out, &list_snapshots(&source.path, &source.open).map_err(failed)?)?;
        return Ok(DONE);
    };
    let which = text(&value);
    let done = match action {
        "create" => create_snapshot(&source.path, &source.open, &which).map(|_| ()),
        "apply" => apply_snapshot(&source.path, &source.open, &which),
        _ => delete_snapshot(&source.path, &source.open, &which),
    };
    done.map_err(|error| match (error.kind(), action) {
        (ErrorKind::NotFound, "delete") => {
            says(format!("Could not delete snapshot '{which}': snapshot not found"))
        }
        _ => says(format!("Could not {action} snapshot '{which}': {error}")),
    })?;
    Ok(DONE)
}
