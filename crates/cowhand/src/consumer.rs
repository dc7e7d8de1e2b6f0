//! `--for`: images as some program or service wants them, and what it would refuse.

use std::path::Path;

use cowhand_core::{Access, Consumer, Error, Format, Objection, Result, Storage, hole_at};

use crate::archive::content::Content;
use crate::archive::part::Part;
use crate::open::Open;
use crate::registry;
use crate::resolve::Files;

/// The words for all consumers that are known, each once.
pub fn consumers() -> Vec<&'static str> {
    let mut names = Vec::new();
    for (_, consumer) in all() {
        if !names.contains(&consumer.name) {
            names.push(consumer.name);
        }
    }
    names
}

/// How an image for a consumer is made.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The format.
    pub format: &'static dyn Format,
    /// The options: what the caller gave, and what the consumer asks for beside it.
    pub options: Vec<(String, String)>,
    /// Its file must have no holes.
    pub solid: bool,
    /// What people call the consumer.
    pub title: &'static str,
}

/// How `target` is made for `consumer`. `format`: the caller's choice; else the extension decides, where the consumer
/// takes what it means, and the first format that it takes otherwise. An option that the caller gave stays as it is.
pub fn fitted(
    consumer: &str,
    format: Option<&str>,
    target: &Path,
    given: Vec<(String, String)>,
) -> Result<Fitted> {
    let takes = taken_by(consumer)?;
    let wanted = match format {
        Some(name) => registry::format(name)?,
        None => registry::format_for_target(target)?,
    };
    let found = takes.iter().find(|(format, _)| format.names() == wanted.names());
    let chosen = found.or(takes.first().filter(|_| format.is_none()));
    let Some((format, consumer)) = chosen else {
        return Err(Error::invalid(refusal(wanted.names()[0], &takes)).hint("leave out the format")); // never empty: every format has a name
    };
    let mut options = given;
    for (name, value) in consumer.options {
        if !options.iter().any(|(given, _)| given == name) {
            options.push(((*name).to_owned(), (*value).to_owned()));
        }
    }
    Ok(Fitted { format: *format, options, solid: consumer.solid, title: consumer.title })
}

/// What a consumer says of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The image's format.
    pub format: &'static str,
    /// What people call the consumer.
    pub title: &'static str,
    /// What it would refuse, or take for something else. Empty: nothing is known that it would.
    pub objections: Vec<Objection>,
    /// The file's length: the bytes to hand over.
    pub file_len: u64,
    /// The file name extension of what it takes.
    pub extension: &'static str,
}

/// What `consumer` says of the image `path`. Nothing in it changes, and no parent is looked at.
pub fn verdict(path: &Path, open: &Open, consumer: &str) -> Result<Verdict> {
    let takes = taken_by(consumer)?;
    let part = Part::of(path);
    let files = Files::beside(part.file, open);
    let storage = files.top(&part, open, Access::Read)?;
    let named = |error: Error| error.image(path.display());
    let format = open.format.as_deref().map(registry::format).transpose()?;
    let format = Content::of(&storage, format, open.probing).map_err(named)?.format;
    let name = format.names()[0]; // never empty: every format has a name
    let found = takes.iter().find(|(taken, _)| taken.names() == format.names());
    let objections = match found {
        Some((_, consumer)) => {
            let mut objections = (consumer.judge)(storage.as_ref()).map_err(named)?;
            if consumer.solid {
                objections.extend(holes(storage.as_ref(), consumer.title).map_err(named)?);
            }
            objections
        }
        None => vec![Objection::new(refusal(name, &takes))],
    };
    let (taken, consumer) = found.unwrap_or(&takes[0]); // never empty: see taken_by
    Ok(Verdict {
        format: name,
        title: consumer.title,
        objections,
        file_len: storage.len().map_err(|error| named(Error::io("cannot find the size", error)))?,
        extension: taken.extensions().first().copied().unwrap_or_default(),
    })
}

/// What a consumer says that refuses sparse files.
fn holes(file: &dyn Storage, title: &str) -> Result<Option<Objection>> {
    let hole = hole_at(file, 0).map_err(|error| Error::io("cannot find its holes", error))?;
    Ok(hole.map(|hole| {
        Objection::new(format!(
            "the file has holes (the first at {}), and {title} refuses a file that is sparse where it lies",
            hole.start
        ))
        .remedy("cowhand compact --non-sparse FILE")
    }))
}

fn all() -> impl Iterator<Item = (&'static dyn Format, &'static Consumer)> {
    registry::formats().iter().flat_map(|format| format.consumers().iter().map(move |each| (*format, each)))
}

/// The formats that a consumer takes; at least one.
fn taken_by(name: &str) -> Result<Vec<(&'static dyn Format, &'static Consumer)>> {
    let found: Vec<_> = all().filter(|(_, consumer)| consumer.name == name).collect();
    if found.is_empty() {
        return Err(Error::invalid(format!("nothing is known of what '{name}' takes"))
            .hint(format!("known are {}", consumers().join(", "))));
    }
    Ok(found)
}

fn refusal(format: &str, takes: &[(&'static dyn Format, &'static Consumer)]) -> String {
    let title = takes.first().map_or("", |(_, consumer)| consumer.title); // never empty: see taken_by
    let formats: Vec<&str> = takes.iter().map(|(format, _)| format.names()[0]).collect(); // never empty: every format has a name
    format!("{title} takes {}, and this is {format}", formats.join(" and "))
}
