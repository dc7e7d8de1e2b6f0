//! Disks that count in sectors of different lengths: the same bytes, of which a guest makes something else.

use std::fmt;

use cowhand_core::Image;

/// Data came from a disk of one kind of sectors to a disk of another, or shows on one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sectors {
    /// Bytes of a sector of the disk that the data comes from.
    pub from: u32,
    /// Bytes of a sector of the disk that it is on now.
    pub to: u32,
}

impl Sectors {
    /// `None`: both are the same.
    pub(crate) fn differing(from: u32, to: u32) -> Option<Sectors> {
        (from != to).then_some(Sectors { from, to })
    }

    /// What becomes of the data of `from`, the first that is not like `to`.
    pub(crate) fn between<'a>(from: impl IntoIterator<Item = &'a Image>, to: &Image) -> Option<Sectors> {
        let to = to.top().layer.sector();
        from.into_iter().find_map(|from| Sectors::differing(from.top().layer.sector(), to))
    }
}

/// What a guest will make of it.
impl fmt::Display for Sectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sectors { from, to } = self;
        write!(
            f,
            "the data comes from a disk with sectors of {from} bytes, and is on one with sectors of {to} now: \
             partition tables and file systems count in sectors, so a guest will not find them, unless it is given \
             a disk with sectors of {from} bytes"
        )
    }
}
