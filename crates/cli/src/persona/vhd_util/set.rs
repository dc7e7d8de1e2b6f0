//! `vhd-util set`: the mark that hides an image, and the marker beside the batmap.

use cowhand::{Amend, Open, Parent, Printable, Quiet, amend, info};

use super::{Call, Done, Failed, Flag, HELP, NAME, Verb, change, file, look, needed, opening, options};

pub(super) const VERB: Verb = Verb {
    name: "set",
    about: "set a field of an image",
    flags: &[
        NAME,
        Flag::short('f', "field", "The field: hidden or marker").of("FIELD"),
        Flag::short('v', "value", "Its value, 0 to 255").of("NUMBER"),
        HELP,
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Done {
    let (mut name, mut field, mut value) = (None, None, None);
    while let Some((flag, word)) = call.next()? {
        match flag {
            "name" => name = Some(file(word)),
            "field" => field = Some(word.to_string_lossy().into_owned()),
            _ => value = Some(word.to_string_lossy().into_owned()),
        }
    }
    call.end()?;
    let (path, field, value) = (needed(name)?, needed(field)?, needed(value)?);
    if !["hidden", "marker"].contains(&field.as_str()) {
        writeln!(call.out, "invalid field {}", Printable(&field))?;
        return Err(super::wrong());
    }
    if !value.trim().parse::<i64>().is_ok_and(|value| (0..256).contains(&value)) {
        writeln!(call.out, "invalid value {}", Printable(&value))?;
        return Err(super::wrong());
    }
    info(&path, &look(), false).map_err(opening(&path))?;
    let open = Open { parent: Parent::Ignored, ..change() };
    let how = Amend { open, options: options(&[(&field, value.trim())]), ..Amend::default() };
    amend(&path, &how, &Quiet).map_err(|error| Failed::of("error writing it", error))
}
