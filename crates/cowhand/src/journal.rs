//! An undo journal in a file of the caller's: begun, done with, taken back.

use std::path::Path;
use std::sync::Arc;

use cowhand_core::{
    Access, Cache, DirFolder, Error, ErrorKind, FileStorage, Folder, Format, Lock, Result, Storage,
};

use crate::archive::content::Content;
use crate::open::Open;
use crate::registry;
use crate::resize::{Resize, Resized, resize};
use crate::resolve::folder_of;
use crate::undo::{Undo, take_back};

/// The first bytes of a journal: without them it is none.
const FRONT: usize = 512;

/// As [`resize`], with what it writes over noted in `journal` first: a new file, or a device. While that is there,
/// [`revert`] brings the image back as it was, byte for byte. It goes away once the new size is durable; after an error
/// the image is as it was, and the journal gone too.
pub fn resize_with_journal(path: &Path, how: &Resize, journal: &Path) -> Result<Resized> {
    let open = Open { undo: Some(journal.to_owned()), ..how.open.clone() };
    let done = resize(path, &Resize { open, ..how.clone() });
    match done {
        Ok(done) => discard(journal).map(|()| done),
        // It was there before, or there is none: the image was not touched.
        Err(error) if error.image_name() == Some(&*journal.to_string_lossy()) => Err(error),
        Err(error) if !is_there(journal) => Err(error),
        Err(error) => revert(path, journal, &how.open).and(Err(error)),
    }
}

/// Takes back what was written into `path` since `journal` was begun, and does away with the journal. Stopped anywhere,
/// it can be run again.
///
/// Errors: [`ErrorKind::NotFound`] where there is no journal; [`ErrorKind::Corrupt`] where the file is none, or not yet
/// one, and so nothing was changed; [`ErrorKind::Mismatch`] for another image's.
pub fn revert(path: &Path, journal: &Path, how: &Open) -> Result<()> {
    let of_journal = |error: Error| error.image(journal.display());
    let notes = FileStorage::open(journal, Access::Read, Lock::None, Cache::Writeback)?;
    let image = |error: Error| error.image(path.display());
    let file: Arc<dyn Storage> = Arc::new(FileStorage::open(path, Access::Write, how.lock, how.cache)?);
    let format = how.format.as_deref().map(registry::format).transpose()?;
    let format = Content::of(&file, format, how.probing).map_err(image)?.format;
    let key = format.identity(file.as_ref()).map_err(image)?.0;
    take_back(file.as_ref(), &notes, key).map_err(|error| match error.kind() {
        ErrorKind::Corrupt | ErrorKind::Mismatch => of_journal(error),
        _ => image(error),
    })?;
    drop((file, notes));
    discard(journal)
}

/// The storage of an image of that format, which notes in `journal` what is written over.
pub(crate) fn noted(file: Arc<dyn Storage>, format: &dyn Format, journal: &Path) -> Result<Arc<dyn Storage>> {
    let named = |error: Error| error.image(journal.display());
    let is_device = is_device(journal);
    let access = if is_device { Access::Write } else { Access::CreateNew };
    let key = format.identity(file.as_ref())?.0;
    let notes = Arc::new(FileStorage::open(journal, access, Lock::None, Cache::Writeback)?);
    let undo =
        Undo::begin(file, notes, key).map_err(|error| named(Error::io("cannot begin the journal", error)));
    let undo = undo.and_then(|undo| if is_device { Ok(undo) } else { sync_folder(journal).map(|()| undo) });
    if undo.is_err() && !is_device {
        // The error says what is wrong.
        let _ = std::fs::remove_file(journal);
    }
    Ok(Arc::new(undo?))
}

/// Does away with a journal, durably: what it notes is not wanted back.
fn discard(journal: &Path) -> Result<()> {
    let named = |error: Error| error.image(journal.display());
    if is_device(journal) {
        let notes = FileStorage::open(journal, Access::Write, Lock::None, Cache::Writeback)?;
        let done = notes.write_at(0, &[0; FRONT]).and_then(|()| notes.sync());
        return done.map_err(|error| named(Error::io("cannot end the journal", error)));
    }
    std::fs::remove_file(journal).map_err(|error| named(Error::io("cannot remove the journal", error)))?;
    sync_folder(journal)
}

fn sync_folder(journal: &Path) -> Result<()> {
    DirFolder::new(folder_of(journal), Cache::Writeback).sync()
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|there| there.file_type().is_block_device())
}

fn is_there(journal: &Path) -> bool {
    let begun = || -> Option<bool> {
        let notes = FileStorage::open(journal, Access::Read, Lock::None, Cache::Writeback).ok()?;
        let mut front = [0; FRONT];
        notes.read_at(0, &mut front).ok()?;
        Some(front != [0; FRONT])
    };
    begun().unwrap_or(false)
}
