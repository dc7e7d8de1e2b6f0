//! How large a disk may be so that its file stays within a given length.

use std::path::Path;

use cowhand_core::{Error, Image, Result};

use crate::open::{Open, open};

/// The largest disk, in guest bytes, whose file is at most `file_len` bytes long, of the kind and block size of the image
/// `path`; a child's is its parent's. `exact`: with every block written, as images are laid out here; otherwise by the
/// formula of the programs that the format comes from.
pub fn size_by_file(path: &Path, file_len: u64, exact: bool, how: &Open) -> Result<u64> {
    of_chain(&*open(path, how)?, file_len, exact)
}

pub(crate) fn of_chain(chain: &Image, file_len: u64, exact: bool) -> Result<u64> {
    for link in chain.links() {
        if let Some(size) =
            link.layer.size_by_file(file_len, exact).map_err(|error| error.image(&link.name))?
        {
            return Ok(size);
        }
    }
    Err(Error::invalid("is a child whose parent is not there to be asked").image(chain.name()))
}
