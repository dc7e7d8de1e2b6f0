//! `vhd-util revert`: a resize that did not come to its end is taken back.

use cowhand::revert;

use super::{Call, Done, Failed, Flag, HELP, NAME, Verb, change, file, needed};

pub(super) const VERB: Verb = Verb {
    name: "revert",
    about: "take back a resize by its journal",
    flags: &[NAME, Flag::short('j', "journal", "The journal that resize was given").of("FILE"), HELP],
    run,
};

fn run(call: &mut Call<'_>) -> Done {
    let (mut name, mut journal) = (None, None);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "name" => name = Some(file(value)),
            _ => journal = Some(file(value)),
        }
    }
    call.end()?;
    let (path, journal) = (needed(name)?, needed(journal)?);
    let of_journal = journal.display().to_string();
    revert(&path, &journal, &change()).map_err(|error| {
        let what = if error.image_name() == Some(&of_journal) {
            "opening journal failed"
        } else {
            "reverting journal failed"
        };
        Failed::of(what, error)
    })
}
