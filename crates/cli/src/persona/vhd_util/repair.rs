//! `vhd-util repair`: both footers are written anew, from the one that counts.

use cowhand::{Amend, Open, Parent, Quiet, amend, info};

use super::names::{fact, hidden};
use super::{Call, Done, Failed, Flag, HELP, NAME, Verb, change, file, look, needed, opening, options};

pub(super) const VERB: Verb = Verb {
    name: "repair",
    about: "write both footers anew",
    flags: &[NAME, Flag::short('b', "backup", "Believe the footer's copy at the front"), HELP],
    run,
};

/// What an id looks like that was never set.
const NO_ID: &str = "00000000-0000-0000-0000-000000000000";

fn run(call: &mut Call<'_>) -> Done {
    let (mut name, mut backup) = (None, false);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "name" => name = Some(file(value)),
            _ => backup = true,
        }
    }
    call.end()?;
    let path = needed(name)?;
    let footer = if backup { options(&[("footer", "front")]) } else { Vec::new() };
    let found = info(&path, &Open { options: footer.clone(), ..look() }, false).map_err(opening(&path))?;
    let Some(found) = found.first() else { return Ok(()) };
    let hidden = hidden(found).to_string();
    let mut given = vec![("hidden", hidden.as_str())];
    if fact(found, "uuid").as_deref() == Some(NO_ID) {
        given.push(("unique_id", "new"));
    }
    let open = Open { options: footer, parent: Parent::Ignored, ..change() };
    let how = Amend { open, options: options(&given), ..Amend::default() };
    amend(&path, &how, &Quiet).map_err(|error| Failed::of("error writing footer", error))
}
