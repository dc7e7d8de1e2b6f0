//! What a file's metadata says as it stands there: for tools that show it, and for people who look for what is wrong.

use std::fmt::Debug;

use serde_json::{Map, Value};

use crate::Result;

/// A structure of a file's metadata, field by field, as it stands there: unlike [`Details`](crate::Details), which says
/// what it means.
#[derive(Clone, Debug, PartialEq)]
pub struct Structure {
    /// What the format's specification calls it.
    pub name: &'static str,
    /// Its fields, in the file's order.
    pub fields: Map<String, Value>,
}

/// An optional ability of a layer: its table of blocks, and which sectors of each are there.
pub trait Blocks: Send + Sync + Debug {
    /// Guest bytes of a block.
    fn block_size(&self) -> u64;

    /// How many blocks the table has room for, the disk's own among them.
    fn room(&self) -> u64;

    /// Bytes of the bitmap of sectors that stands in front of each block.
    fn bitmap_len(&self) -> u64;

    /// Where the block stands in the file, its bitmap first; `None`: it does not. Errors: no block that the table has
    /// room for; a place outside the file.
    fn place(&self, block: u64) -> Result<Option<u64>>;

    /// A bit for each sector of the block that is there, as the file has them: the highest bit first. `None`: as
    /// [`Blocks::place`].
    fn bitmap(&self, block: u64) -> Result<Option<Vec<u8>>>;

    /// A bit for each block of which every sector is there, as the file has them: the highest bit first. `None`: the
    /// file keeps no such map.
    fn full_blocks(&self) -> Result<Option<Vec<u8>>>;
}
