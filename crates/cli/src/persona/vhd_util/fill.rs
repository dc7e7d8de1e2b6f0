//! `vhd-util fill`: every block of an image gets its place in the file.

use cowhand::{open_alone, populate};

use super::percent::Percent;
use super::{Call, Done, Failed, HELP, NAME, Verb, change, file, look, name_of, needed, opening};

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
    open_alone(&path, &look()).map_err(opening(&path))?;
    let filling = |error| Failed::of(format!("error filling {}", name_of(&path)), error);
    populate(&path, &change(), &Percent::new(false)).map_err(filling)
}
