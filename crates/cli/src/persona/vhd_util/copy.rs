//! `vhd-util copy`: a disk into a new image of its own.

use cowhand::{Convert, convert, open_alone};

use super::percent::Percent;
use super::{
    CREATOR, Call, Done, FORMAT, Failed, Flag, HELP, NAME, Verb, errno, file, look, name_of, opening, options,
};

pub(super) const VERB: Verb = Verb {
    name: "copy",
    about: "copy a disk into a new image",
    flags: &[
        NAME,
        Flag::short('N', "new", "The new image").of("FILE"),
        Flag::short('k', "key", "Encrypt it with the key in this file (not done here)").of("FILE"),
        Flag::short('E', "stdin", "Encrypt it with the key on standard input (not done here)"),
        HELP,
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Done {
    let (mut name, mut new, mut encrypted) = (None, None, false);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "name" => name = Some(file(value)),
            "new" => new = Some(file(value)),
            _ => encrypted = true,
        }
    }
    call.end()?;
    let (Some(path), Some(new)) = (name, new) else {
        return Err(Failed::Usage("both names are needed, of the image and of the new one".to_owned()));
    };
    if encrypted {
        return Err(Failed::says(errno::UNSUPPORTED, "copies are not encrypted here"));
    }
    let source = open_alone(&path, &look()).map_err(opening(&path))?;
    if source.top().layer.parent().is_some() {
        let line = format!("error creating {}: -{}", name_of(&new), errno::INVALID);
        return Err(Failed::says(errno::INVALID, line));
    }
    if new.exists() {
        let line = format!("VHD file {} already exists", name_of(&new));
        return Err(Failed::says(errno::INVALID, line));
    }
    let like = source.top().layer.made_with(false).into_iter().filter(|(name, _)| *name != CREATOR.0);
    let mut given = options(&[CREATOR]);
    given.extend(like.filter(|(name, _)| *name == "subformat").map(|(name, value)| (name.to_owned(), value)));
    drop(source);
    let how = Convert {
        open: look(),
        format: Some(FORMAT.to_owned()),
        options: given,
        ..Convert::new([&path], &new)
    };
    let failed = |error| Failed::of(format!("error creating {}", name_of(&new)), error);
    convert(&how, &Percent::new(false)).map(|_| ()).map_err(|step| failed(step.error))
}
