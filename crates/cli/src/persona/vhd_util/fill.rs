//! `vhd-util fill`: every block of an image gets its place in the file.

use cowhand::populate;

use super::percent::Percent;
use super::{Call, Done, HELP, NAME, Verb, change, file, needed, opening};

pub(super) const VERB: Verb = Verb {
    name: "fill",
    about: "give every block of a disk its place in the file",
    flags: &[NAME, HELP],
    run,
};

fn run(call: &mut Call<'_>) -> Done {
    let mut name = None;
    while let Some((_, value)) = call.next()? {
        name = Some(file(value));
    }
    call.end()?;
    let path = needed(name)?;
    populate(&path, &change(), &Percent::new(false)).map_err(opening(&path))
}
