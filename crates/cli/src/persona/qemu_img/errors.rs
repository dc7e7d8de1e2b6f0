//! What went wrong, in the words that callers look for.

use std::path::Path;

use cowhand::{Error, ErrorKind, Printable};
use rustix::io::Errno;

use super::{Failure, says};

/// No file can be as long as this one was to be.
pub(super) fn is_too_long(error: &Error) -> bool {
    error.code() == Some(Errno::FBIG.raw_os_error())
}

/// An image, called `name` by the caller, could not be opened.
pub(super) fn could_not_open(name: &str, path: &Path, error: &Error) -> Failure {
    says(format!("Could not open '{name}': {}", why(path, error)))
}

/// As [`could_not_open`], where the real one opens the files of a chain one by one.
pub(super) fn could_not_open_one(name: &str, path: &Path, error: &Error) -> Failure {
    match (error.lower(), error.field_name(), error.sentence()) {
        (Some(_), Some("parent"), Some(sentence)) => says(sentence),
        (Some((_, file)), _, _) => says(format!("Could not open '{file}': {}", reason(path, error))),
        (None, _, _) => could_not_open(name, path, error),
    }
}

/// What is wrong, in the words by which users of QEMU know it, or else in ours.
pub(super) fn said(error: &Error) -> &str {
    error.sentence().unwrap_or(error.message())
}

/// All of it but the advice, which is for users of cowhand's own words.
pub(super) fn whole(error: &Error) -> String {
    match error.image_name() {
        Some(image) => format!("{}: {}", Printable(image), error.without_image()),
        None => error.without_image().to_string(),
    }
}

/// Why the file `path` cannot be opened as an image, or what it stands on cannot.
pub(super) fn why(path: &Path, error: &Error) -> String {
    if path.as_os_str().is_empty() {
        return "The 'file' block driver requires a file name".to_owned();
    }
    let layers = error.lower().map_or(0, |(layers, _)| layers);
    "Could not open backing file: ".repeat(layers) + &reason(path, error)
}

/// The same, wherever in its chain it is.
pub(super) fn reason(path: &Path, error: &Error) -> String {
    let name = error.image_name().map_or_else(|| path.display().to_string(), str::to_owned);
    match (error.sentence(), error.os_error()) {
        (Some(sentence), _) if error.kind() == ErrorKind::Locked => {
            format!("{sentence}\nIs another process using the image [{name}]?")
        }
        (Some(sentence), _) => sentence.to_owned(),
        (None, Some(system)) => format!("Could not open '{name}': {system}"),
        (None, None) => error.without_image().to_string(),
    }
}

/// Why the target `name` could not be made.
pub(super) fn why_not_made(name: &str, error: &Error) -> String {
    // Of several files it may be another one.
    let name = error.image_name().unwrap_or(name);
    match (error.kind(), error.os_error()) {
        (ErrorKind::Locked, _) => why(name.as_ref(), error),
        (_, Some(system)) if is_too_long(error) => format!("Could not resize file: {system}"),
        (_, Some(system)) => format!("Could not create '{name}': {system}"),
        (_, None) => said(error).to_owned(),
    }
}
