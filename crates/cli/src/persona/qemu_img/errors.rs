//! What went wrong, in the words that callers look for.

use std::path::Path;

use cowhand::{Error, ErrorKind};

use super::{Failure, says};

/// An image, called `name` by the caller, could not be opened.
pub(super) fn could_not_open(name: &str, path: &Path, error: &Error) -> Failure {
    says(format!("Could not open '{name}': {}", why(path, error)))
}

/// Why the file `path` cannot be opened as an image.
fn why(path: &Path, error: &Error) -> String {
    let name = path.display();
    match (error.kind(), error.os_error()) {
        (ErrorKind::Locked, _) => {
            format!("Failed to get shared \"write\" lock\nIs another process using the image [{name}]?")
        }
        (_, Some(system)) => format!("Could not open '{name}': {system}"),
        _ => error.to_string(),
    }
}
