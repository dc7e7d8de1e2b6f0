//! Where an image's own tables stand, so that none is handed out as guest data.

use cowhand_core::{Error, Result, Storage};

use crate::cache::read_to_end;
use crate::entry::OFFSET;
use crate::header::Header;

/// The clusters of L2 tables and refcount blocks, sorted. Those that only snapshots have are not among them.
#[derive(Debug)]
pub(crate) struct Tables {
    l2: Vec<u64>,
    blocks: Vec<u64>,
}

impl Tables {
    /// Reads the L1 table and the refcount table, whose bounds were checked: at most 40 MiB.
    pub(crate) fn read(file: &dyn Storage, header: &Header) -> Result<Tables> {
        let refcounts = u64::from(header.refcount_table_clusters) << header.geometry.cluster_bits();
        Ok(Tables {
            l2: targets(file, "L1 table", header.l1_offset, u64::from(header.l1_entries) * 8)?,
            blocks: targets(file, "refcount table", header.refcount_table_offset, refcounts)?,
        })
    }

    /// What an L1 entry must not point at.
    pub(crate) fn is_block(&self, cluster: u64) -> bool {
        self.blocks.binary_search(&cluster).is_ok()
    }

    /// What an L2 entry must not point at.
    pub(crate) fn at(&self, cluster: u64) -> Option<&'static str> {
        if self.is_block(cluster) {
            Some("a refcount block")
        } else if self.l2.binary_search(&cluster).is_ok() {
            Some("an L2 table")
        } else {
            None
        }
    }
}

/// Where the entries of the table at `at` point, each once. What the file is too short to have is zero.
fn targets(file: &dyn Storage, what: &str, at: u64, len: u64) -> Result<Vec<u64>> {
    let mut bytes = vec![0; len as usize];
    read_to_end(file, at, &mut bytes)
        .map_err(|error| Error::io(format!("cannot read the {what}"), error).at(at))?;
    let mut found: Vec<u64> = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|word| u64::from_be_bytes(*word) & OFFSET)
        .filter(|to| *to != 0)
        .collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}
