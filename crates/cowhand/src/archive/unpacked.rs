//! An archive's bytes, whatever it is packed in: its front, all of them at random, and a copy.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use cowhand_core::{Access, Cache, Error, FileStorage, Lock, Progress, Result, Storage, Walk, is_zero};
use cowhand_packed::{PackedStorage, Packing, SeekTable};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::plan::report;
use crate::stream::pipe::read_full;

/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;

/// From front to back, for who wants no more than the front.
pub(crate) fn front(file: Arc<dyn Storage>, packing: Option<&dyn Packing>) -> Box<dyn Read + Send> {
    let walk = Box::new(Walk::new(file));
    match packing {
        Some(packing) => packing.front(walk),
        None => walk,
    }
}

/// At random, through the table of places where unpacking can begin.
pub(crate) fn at_random(
    packing: &'static dyn Packing,
    file: &Arc<dyn Storage>,
    table: &Arc<SeekTable>,
) -> Result<Arc<dyn Storage>> {
    Ok(Arc::new(PackedStorage::new(file.clone(), packing, table.clone())?))
}

/// A copy in a file in `folder` that bears no name: it is gone once it is closed, and after a kill too.
pub(crate) fn copy(
    packing: &dyn Packing,
    file: &Arc<dyn Storage>,
    folder: &Path,
    progress: &dyn Progress,
) -> Result<Arc<dyn Storage>> {
    let failed = |error| Error::io("cannot write an unpacked copy there", error).image(folder.display());
    let to = nameless(folder).map_err(failed)?;
    let to = FileStorage::from_file(to, Access::Write, Lock::None, Cache::Unsafe)?;
    let mut from = packing.unpack(Box::new(Walk::new(file.clone())));
    let mut buf = vec![0; CHUNK];
    let mut at = 0;
    loop {
        report(progress, 0, 0)?;
        let n = read_full(from.as_mut(), &mut buf)?;
        if n == 0 {
            break;
        }
        let chunk = buf.get(..n).unwrap_or(&buf);
        if !is_zero(chunk) {
            to.write_at(at, chunk).map_err(failed)?;
        }
        at += n as u64;
    }
    to.set_len(at).map_err(failed)?;
    Ok(Arc::new(to))
}

fn nameless(folder: &Path) -> std::io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags | OFlags::TMPFILE, mode) {
        Ok(file) => Ok(file.into()),
        // A file system without such files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let name = folder.join(format!(".cowhand-unpacked-{:x}", std::process::id()));
            let file = rustix::fs::open(&name, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
            std::fs::remove_file(&name)?;
            Ok(file.into())
        }
        Err(error) => Err(error.into()),
    }
}
