//! `vhd-util modify`: the data goes, the file's end moves, another parent is named.

use std::path::PathBuf;

use cowhand::{Open, Reconnect, info, kill_data, open_alone, reconnect_parent, set_file_len};

use super::names::canonical;
use super::{
    Call, Done, FORMAT, Failed, Flag, HELP, NAME, Verb, change, file, look, name_of, needed, number, opening,
    wrong,
};

pub(super) const VERB: Verb = Verb {
    name: "modify",
    about: "change an image without asking what becomes of its disk",
    flags: &[
        NAME,
        Flag::short('p', "parent", "Name this file as the parent").of("FILE"),
        Flag::short('m', "raw", "That parent is raw"),
        Flag::short('s', "length", "Move the footer to the end of a file of so many bytes").of("BYTES"),
        Flag::short('z', "zero", "Take all data away"),
        HELP,
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Done {
    let (mut name, mut parent, mut len): (_, Option<PathBuf>, _) = (None, None, None);
    let (mut raw, mut zero) = (false, false);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "name" => name = Some(file(value)),
            "parent" => parent = Some(file(value)),
            "length" => len = Some(number(&value)?),
            "raw" => raw = true,
            _ => zero = true,
        }
    }
    // The word that names what -m says.
    if !matches!(call.words.others().as_slice(), [] | [_]) {
        return Err(wrong());
    }
    let path = needed(name)?;
    info(&path, &look(), false).map_err(opening(&path))?;
    let mut outcome = Ok(());
    if zero {
        outcome = kill_data(&path, &change()).map_err(|error| Failed::of("failed to zero VHD", error));
    }
    if let Some(len) = len {
        let done = set_file_len(&path, len, &change())
            .map_err(|error| Failed::of(format!("failed to set physical size to {len}"), error));
        outcome = outcome.and(done);
    }
    if let (Some(parent), Ok(())) = (parent, &outcome) {
        let parent = canonical(&parent);
        let format = if raw { "raw" } else { FORMAT };
        let failed = |error| Failed::of(format!("failed to set parent to '{}'", name_of(&parent)), error);
        // The image's own claims on its parent do not count; what is named has to be of that format.
        open_alone(&parent, &Open { format: Some(format.to_owned()), ..look() }).map_err(failed)?;
        let how = Reconnect {
            open: Open { parent_format: Some(format.to_owned()), ..change() },
            parent: Some(parent.clone()),
            force: true,
            chain: false,
        };
        outcome = reconnect_parent(&path, &how).map(|_| ()).map_err(failed);
    }
    outcome
}
