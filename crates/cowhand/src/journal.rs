//! An undo journal in a file of the caller's: begun, done with, taken back.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use cowhand_core::{
    Access, Cache, DirFolder, Error, ErrorKind, FileStorage, Folder, Format, Lock, Progress, Result, Storage,
};

use crate::archive::content::Content;
use crate::open::{Open, Parent, open_alone};
use crate::registry;
use crate::resize::{Resize, Resized, resize};
use crate::resolve::folder_of;
use crate::undo::{Front, SECTOR, Undo, end, take_back};

/// The field that an error of [`resize_with_journal`] names where the work was done and the journal could not be ended.
pub const JOURNAL_END: &str = "end of the journal";

/// As [`resize`], with what it writes over noted in `journal` first: a new file, or a device. While that is there,
/// [`revert`] brings the image back as it was, byte for byte. It goes away once the new size is durable; after an error
/// the image is as it was, and the journal gone too: so also where `progress` asks to stop.
pub fn resize_with_journal(
    path: &Path,
    how: &Resize,
    journal: &Path,
    progress: &dyn Progress,
) -> Result<Resized> {
    let open = Open { undo: Some(journal.to_owned()), ..how.open.clone() };
    let stopped = |done: &Resized| match progress.at(done.after, done.after) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => {
            Err(Error::new(ErrorKind::Cancelled, "stopped on request").image(path.display()))
        }
    };
    let done = resize(path, &Resize { open, ..how.clone() });
    match done.and_then(|done| stopped(&done).map(|()| done)) {
        Ok(done) => match discard(journal) {
            Ok(()) => Ok(done),
            Err((error, true)) => revert(path, journal, &how.open).and(Err(error)),
            // Nothing is certain of the journal, so the image, which is whole, stays.
            Err((error, false)) => Err(error),
        },
        // It was there before, or there is none: the image was not touched.
        Err(error) if error.image_name() == Some(&*journal.to_string_lossy()) => Err(error),
        Err(error) if !is_there(journal) => Err(error),
        Err(error) => revert(path, journal, &how.open).and(Err(error)),
    }
}

/// Takes back what was written into `path` since `journal` was begun, and does away with the journal. Stopped anywhere,
/// it can be run again. A journal that is empty, or that was ended, notes nothing: it is done away with.
///
/// Errors: [`ErrorKind::NotFound`] where there is no journal; [`ErrorKind::Corrupt`] where the file is none, or is
/// damaged; [`ErrorKind::Mismatch`] for another image's: then nothing was changed.
pub fn revert(path: &Path, journal: &Path, how: &Open) -> Result<()> {
    let of_journal = |error: Error| error.image(journal.display());
    let notes = FileStorage::open(journal, Access::Read, Lock::None, Cache::Writeback)?;
    let unread = |error| of_journal(Error::io("cannot read the journal", error));
    let (front, len) = (Front::of(&notes).map_err(unread)?, notes.len().map_err(unread)?);
    let image = |error: Error| error.image(path.display());
    let file: Arc<dyn Storage> = Arc::new(FileStorage::open(path, Access::Write, how.lock, how.cache)?);
    match front {
        Front::Ended => {}
        Front::Blank if is_device(journal) => return Ok(()),
        Front::Blank if len <= SECTOR => {}
        _ => {
            let format = how.format.as_deref().map(registry::format).transpose()?;
            let format = Content::of(&file, format, how.probing).map_err(image)?.format;
            let key = format.identity(file.as_ref()).map_err(image)?.0;
            take_back(file.as_ref(), &notes, key).map_err(|error| match error.kind() {
                ErrorKind::Corrupt | ErrorKind::Mismatch => of_journal(error),
                _ => image(error),
            })?;
        }
    }
    drop((file, notes));
    // The journal stays until it is certain that it is not needed.
    open_alone(path, &Open { parent: Parent::Ignored, writable: false, ..how.clone() })?;
    discard(journal).map_err(|(error, _)| error)
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

/// Does away with a journal: what it notes is not wanted back. The mark that says so is durable; that the file goes away
/// too is as good, and no more. Errors: with whether the journal counts again.
fn discard(journal: &Path) -> Result<(), (Error, bool)> {
    let open = || FileStorage::open(journal, Access::Write, Lock::None, Cache::Writeback);
    let said = |error| Error::io("cannot end the journal", error).image(journal.display()).field(JOURNAL_END);
    let notes = open().map_err(|error| (error.field(JOURNAL_END), true))?;
    let mut front = vec![0; notes.len().unwrap_or(0).min(SECTOR) as usize];
    notes.read_at(0, &mut front).map_err(|error| (said(error), true))?;
    if let Err(error) = end(&notes) {
        // After a sync that failed, only a new handle can sync again.
        let again =
            open().and_then(|notes| notes.write_at(0, &front).and_then(|()| notes.sync()).map_err(said));
        return Err((said(error), again.is_ok()));
    }
    if !is_device(journal) {
        let _ = std::fs::remove_file(journal).map(|()| sync_folder(journal));
    }
    Ok(())
}

fn sync_folder(journal: &Path) -> Result<()> {
    DirFolder::new(folder_of(journal), Cache::Writeback).sync()
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|there| there.file_type().is_block_device())
}

/// There is a journal that notes something, or may do so.
fn is_there(journal: &Path) -> bool {
    let notes = FileStorage::open(journal, Access::Read, Lock::None, Cache::Writeback);
    notes.is_ok_and(|notes| Front::of(&notes).is_ok_and(|front| front == Front::Other))
}

#[cfg(test)]
mod tests {
    use cowhand_core::{Prealloc, Quiet};

    use super::*;
    use crate::child::{Child, child_with};
    use crate::create::{Create, create, create_with};
    use crate::resize::NewSize;

    struct Stop;

    impl Progress for Stop {
        fn at(&self, _done: u64, _total: u64) -> ControlFlow<()> {
            ControlFlow::Break(())
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn who_stops_it_finds_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let [image, journal, new] = ["a.vhd", "j", "b.vhd"].map(|name| dir.path().join(name));
        let how = Create { format: "vpc".to_owned(), size: Some(4 << 20), ..Create::default() };
        create(&image, &how).unwrap();
        let before = std::fs::read(&image).unwrap();
        let stopped = |error: Error| {
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
            assert_eq!(names(dir.path()), ["a.vhd"]);
            assert!(std::fs::read(&image).unwrap() == before);
        };
        let resize = Resize {
            open: Open::default(),
            size: NewSize::To(1 << 40),
            shrink: false,
            force: false,
            prealloc: Prealloc::Off,
        };
        stopped(resize_with_journal(&image, &resize, &journal, &Stop).unwrap_err());
        stopped(create_with(&new, &how, &Stop).unwrap_err());
        stopped(child_with(&image, &new, &Child::default(), &Stop).unwrap_err());
        assert_eq!(resize_with_journal(&image, &resize, &journal, &Quiet).unwrap().after, 1 << 40);
        assert_eq!(names(dir.path()), ["a.vhd"]);
    }
}
