//! `hidden`, `kill-data` and the like: small changes of one image file, its parents left alone.

use std::path::Path;

use cowhand_core::Result;

use crate::open::{Open, Opened, Parent, open, open_alone};

/// The mark that hides the image from lists of disks; `None`: its format has none. No other file is opened.
pub fn hidden(path: &Path, how: &Open) -> Result<Option<bool>> {
    Ok(open_alone(path, how)?.top().layer.hidden())
}

/// Sets that mark, durably. Errors: the format, or this file, has no place for it.
pub fn set_hidden(path: &Path, hidden: bool, how: &Open) -> Result<()> {
    change(path, how, |image| image.top().layer.set_hidden(hidden))
}

/// Takes all data out of the image, durably: an empty one of the same size and parent is left, or, after a power cut,
/// the image as it was. Errors: the format cannot do that in place.
pub fn kill_data(path: &Path, how: &Open) -> Result<()> {
    change(path, how, |image| image.top().layer.clear())
}

/// Makes the file of the image `len` bytes long, durably, with what the format keeps at its end there; a device is
/// prepared to be made so long. Errors: the image needs more.
pub fn set_file_len(path: &Path, len: u64, how: &Open) -> Result<()> {
    change(path, how, |image| image.top().layer.set_file_len(len))
}

fn change(path: &Path, how: &Open, act: impl Fn(&Opened) -> Result<()>) -> Result<()> {
    let image =
        open(path, &Open { writable: true, parent: Parent::Ignored, metadata_only: true, ..how.clone() })?;
    act(&image).map_err(|error| error.image(path.display()))?;
    image.close()
}
