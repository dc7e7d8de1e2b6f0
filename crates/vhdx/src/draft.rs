//! What is to change of a file's metadata, gathered as the whole sectors of one commit.

use std::collections::BTreeMap;

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
            let known = self.sectors.get(&start).cloned();
            let is_new = known.is_none();
            let mut sector = match known {
                Some(sector) => sector,
                None => {
                    let mut sector = Box::new([0; SECTOR]);
                    bytes::read(self.file, what, start, sector.as_mut_slice())?;
                    sector
                }
            };
            let part = sector.get_mut(within..within + piece.len()).unwrap_or_default(); // never short: it was cut so
            if part != piece || !is_new {
                part.copy_from_slice(piece);
                self.sectors.insert(start, sector);
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

    /// The sectors that change, ascending.
    pub(crate) fn into_sectors(self) -> Vec<Sector> {
        self.sectors.into_iter().map(|(at, bytes)| Sector { at, bytes }).collect()
    }
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
