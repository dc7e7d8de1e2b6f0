//! `vhd-util create`.

use cowhand::{Create, Error, ErrorKind, create_with};

use super::percent::Percent;
use super::{
    CREATOR, Call, Done, FORMAT, Failed, Flag, HELP, NAME, Verb, errno, file, mebibytes, name_of, needed,
    options,
};

pub(super) const VERB: Verb = Verb {
    name: "create",
    about: "make an empty image",
    flags: &[
        NAME,
        Flag::short('s', "size", "The disk's size, rounded up to 2 MiB").of("MIB"),
        Flag::short('r', "reserve", "A fixed disk, with its space reserved"),
        Flag::short('S', "room", "Keep room for metadata of a disk this large, for resize -f").of("MIB"),
        HELP,
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Done {
    let (mut name, mut size, mut room, mut fixed) = (None, None, None, false);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "name" => name = Some(file(value)),
            "size" => size = Some(mebibytes(&value)?),
            "room" => room = Some(mebibytes(&value)?).filter(|room| *room > 0),
            _ => fixed = true,
        }
    }
    call.end()?;
    let (path, size) = (needed(name)?, needed(size)?);
    if room.is_some_and(|room| room < size) {
        return Err(Failed::says(errno::INVALID, "-S must not be less than -s"));
    }
    let room = room.filter(|_| !fixed).map(|room| room.to_string());
    let progress = Percent::new(false);
    let make = |preallocation: &str| {
        let mut given = vec![CREATOR];
        given.extend(room.as_deref().map(|room| ("max_size", room)));
        if fixed {
            given.extend([("subformat", "fixed"), ("preallocation", preallocation)]);
        }
        let how = Create {
            format: FORMAT.to_owned(),
            size: Some(size),
            options: options(&given),
            ..Create::default()
        };
        create_with(&path, &how, &progress)
    };
    // Where the file system cannot reserve space, writing zeros does.
    let made = match make("falloc") {
        Err(error) if fixed && error.kind() == ErrorKind::Unsupported => make("full"),
        made => made,
    };
    made.map(|_| ()).map_err(|error: Error| Failed::of(format!("error creating {}", name_of(&path)), error))
}
