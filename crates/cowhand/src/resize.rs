//! `resize`: a disk becomes longer, or, if that is asked for, shorter.

use std::path::Path;

use cowhand_core::{Error, Prealloc, Result};

use crate::open::{Open, Opened, open};
use crate::registry;
use crate::size_by_file::of_chain;

/// The size a disk shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    /// So many guest bytes.
    To(u64),
    /// So many more.
    Grow(u64),
    /// So many fewer.
    Shrink(u64),
    /// As many as fit into a file of so many bytes, with everything written.
    ByFile(u64),
}

/// How a disk is resized.
#[derive(Clone, Debug)]
pub struct Resize {
    /// How the image and its chain are opened; it is writable always.
    pub open: Open,
    /// The new size; rounded up to whole sectors of 512 bytes, but for a raw file, which may end anywhere.
    pub size: NewSize,
    /// It may become smaller: what is cut off is gone.
    pub shrink: bool,
    /// Also where the programs that the format comes from would never make it smaller.
    pub force: bool,
    /// How what is new is laid out.
    pub prealloc: Prealloc,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resized {
    /// Guest bytes before.
    pub before: u64,
    /// Guest bytes now.
    pub after: u64,
}

/// Gives the disk `path` another size. What is new reads zero, also over a longer parent. The size it has is no change.
pub fn resize(path: &Path, how: &Resize) -> Result<Resized> {
    resize_opened(open(path, &Open { writable: true, ..how.open.clone() })?, path, how)
}

/// As [`resize`], of a disk that was opened for writing already: what the caller saw of it still holds.
pub fn resize_opened(disk: Opened, path: &Path, how: &Resize) -> Result<Resized> {
    let named = |error: Error| error.image(path.display());
    let before = disk.size();
    let asked = match how.size {
        NewSize::To(size) => Some(size),
        NewSize::Grow(more) => before.checked_add(more),
        NewSize::Shrink(fewer) => Some(before.saturating_sub(fewer)),
        NewSize::ByFile(file_len) => Some(of_chain(&disk, file_len, true)?),
    };
    let bare = registry::format(disk.top().format).is_ok_and(|format| format.is_bare());
    let after = asked
        .and_then(|size| if bare { Some(size) } else { size.checked_next_multiple_of(512) })
        .filter(|size| i64::try_from(*size).is_ok())
        .ok_or_else(|| named(Error::invalid("no disk can be that large")))?;
    if after == 0 {
        return Err(named(Error::invalid("New image size must be positive")));
    }
    if after <= before && how.prealloc != Prealloc::Off {
        return Err(named(Error::invalid("Preallocation can only be used for growing images")));
    }
    if after < before && !how.shrink {
        return Err(named(Error::invalid("Use the --shrink option to perform a shrink operation").hint(
            "Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an \
             operation, make sure there is no important data there",
        )));
    }
    let on_device = |image: &Opened| {
        let top = &image.top().name;
        image.watched().iter().any(|file| file.device && file.name == *top)
    };
    if bare && after != before && on_device(&disk) {
        return Err(named(Error::unsupported("Cannot resize device files")));
    }
    if after < before && !how.force {
        disk.top().layer.may_shrink(after).map_err(named)?;
    }
    // A raw file may end within the last sector of its disk.
    if after != before || bare {
        disk.resize(after, how.prealloc)?;
    }
    let after = disk.size();
    disk.close()?;
    Ok(Resized { before, after })
}
