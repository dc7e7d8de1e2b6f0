//! Who else stands on an image, as far as it lies where one looks first.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cowhand_core::{LayerId, Lock, Result};

use crate::open::{Open, open_alone};
use crate::resolve::{folder_of, in_folder};
use crate::shelf::files_of;

/// A file: device and inode.
pub(crate) type File = (u64, u64);

pub(crate) fn file(path: &Path) -> Option<File> {
    std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// An image that others may stand on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// The file, for who knows it by a name.
    pub(crate) file: File,
    /// What a child remembers of it.
    pub(crate) id: LayerId,
}

/// The images in `folders` that stand on one of `parents`, each with that one's number; the files of `but` left out.
pub(crate) fn who_stands_on(
    parents: &[Known],
    folders: &[PathBuf],
    but: &[File],
) -> Result<Vec<(PathBuf, usize)>> {
    let all = files_of(folders)?.into_iter().filter(|(_, file)| !but.contains(file));
    Ok(all.filter_map(|(path, _)| stands_on(&path, parents).map(|number| (path, number))).collect())
}

/// Which of `parents` the image at `path`, if it is one, has: by a name it gives, or by the identity that it remembers.
fn stands_on(path: &Path, parents: &[Known]) -> Option<usize> {
    let how = Open { lock: Lock::None, ..Open::default() };
    let named = open_alone(path, &how).ok()?.top().layer.parent()?;
    let folder = folder_of(path);
    let files: Vec<File> =
        named.candidates.iter().filter_map(|name| file(&in_folder(&folder, name))).collect();
    parents.iter().position(|parent| {
        parent.id.0.is_some_and(|id| named.expected.contains(&id)) || files.contains(&parent.file)
    })
}
