//! What is to change of a file's metadata, gathered as the whole sectors of one commit.

use std::collections::BTreeMap;
use std::ops::Range;

use cowhand_core::{Result, Storage};

use crate::bytes;

/// A sector of the file as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sector {
    pub(crate) at: u64,
    pub(crate) bytes: Box<[u8; SECTOR]>,
}

const SECTOR: usize = 4096;

/// Sectors that differ from the file's.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    file: &'a dyn Storage,
    sectors: BTreeMap<u64, Box<[u8; SECTOR]>>,
}

impl<'a> Draft<'a> {
    /// No change yet of `file`, in which all that was committed is applied.
    pub(crate) fn of(file: &'a dyn Storage) -> Self {
        Draft { file, sectors: BTreeMap::new() }
    }

    /// The `what` at `at` shall be `bytes`.
    pub(crate) fn write(&mut self, what: &str, mut at: u64, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let within = (at % SECTOR as u64) as usize;
            let (piece, rest) = bytes.split_at(bytes.len().min(SECTOR - within));
            let start = at - within as u64;
            let range = within..within + piece.len();
            match self.sectors.get_mut(&start) {
                Some(sector) => put(sector, range, piece),
                None => {
                    let mut sector = Box::new([0; SECTOR]);
                    bytes::read(self.file, what, start, sector.as_mut_slice())?;
                    if sector.get(range.clone()) != Some(piece) {
                        put(&mut sector, range, piece);
                        self.sectors.insert(start, sector);
                    }
                }
            }
            at += piece.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// How many sectors change.
    pub(crate) fn len(&self) -> usize {
        self.sectors.len()
    }

    /// What the other changes, which has no sector in common with this one, changes too.
    pub(crate) fn and(&mut self, other: Draft<'_>) {
        self.sectors.extend(other.sectors);
    }

    /// The sectors that change, ascending.
    pub(crate) fn into_sectors(self) -> Vec<Sector> {
        self.sectors.into_iter().map(|(at, bytes)| Sector { at, bytes }).collect()
    }
}

fn put(sector: &mut [u8; SECTOR], range: Range<usize>, piece: &[u8]) {
    // Never short: the piece was cut so.
    sector.get_mut(range).unwrap_or_default().copy_from_slice(piece);
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::MemoryStorage;

    #[test]
    fn gathers_what_differs() {
        let file = MemoryStorage::from_bytes(&[1; 5 * SECTOR]);
        let mut draft = Draft::of(&file);
        draft.write("x", 4090, &[2; 10]).unwrap();
        draft.write("x", 4 * 4096, &[1; 4096]).unwrap();
        draft.write("x", 8191, &[3]).unwrap();
        assert_eq!(draft.len(), 2);
        let sectors = draft.into_sectors();
        assert_eq!((sectors[0].at, sectors[1].at), (0, 4096));
        assert_eq!(sectors[0].bytes[4088..], [1, 1, 2, 2, 2, 2, 2, 2]);
        assert_eq!((sectors[1].bytes[..5].to_vec(), sectors[1].bytes[4095]), (vec![2, 2, 2, 2, 1], 3));
        assert!(Draft::of(&file).write("x", 5 * 4096, &[0]).unwrap_err().to_string().contains("x"));
    }
}
