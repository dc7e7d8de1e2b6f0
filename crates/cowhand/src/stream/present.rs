//! Which bytes of a disk are there already: the sectors that a younger layer gave.

use std::collections::HashMap;

use cowhand_core::{Error, ErrorKind, Result};

const SECTOR: u64 = 512;
/// Sectors that are noted together.
const BLOCK: u64 = 4096;
const WORDS: usize = (BLOCK / 64) as usize;
/// Most blocks that are there in part: 256 MiB of bits. A block that is there as a whole takes no bits.
const MOST_PARTS: usize = (256 << 20) / (WORDS * 8);

/// A set of sectors. It takes a bit for each sector of a block of 2 MiB that is there in part, and some 16 bytes for
/// each that is there as a whole: at most 256 MiB and 1/131072 of the disk's size.
#[derive(Debug, Default)]
pub(super) struct Present {
    blocks: HashMap<u64, Block>,
    parts: usize,
}

#[derive(Debug)]
enum Block {
    Whole,
    Part(Box<[u64; WORDS]>),
}

impl Present {
    /// Notes `len` bytes at `at`, and calls `missing` for each run of them that was not there. What begins inside a
    /// sector cannot be noted; what ends there counts as ending with it.
    pub(super) fn add(
        &mut self,
        at: u64,
        len: u64,
        mut missing: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        if !at.is_multiple_of(SECTOR) {
            return Err(Error::unsupported(
                "layers that begin inside sectors cannot be laid over each other",
            ));
        }
        let end = at + len;
        let (mut sector, last) = (at / SECTOR, end.div_ceil(SECTOR));
        while sector < last {
            let number = sector / BLOCK;
            let stop = last.min((number + 1) * BLOCK);
            let (from, to) = (sector % BLOCK, (stop - number * BLOCK));
            let mut run = |from: u64, to: u64| {
                let start = (number * BLOCK + from) * SECTOR;
                missing(start, end.min((number * BLOCK + to) * SECTOR) - start)
            };
            if to - from == BLOCK && !self.blocks.contains_key(&number) {
                self.blocks.insert(number, Block::Whole);
                run(0, BLOCK)?;
            } else {
                self.add_part(number, from, to, &mut run)?;
            }
            sector = stop;
        }
        Ok(())
    }

    fn add_part(
        &mut self,
        number: u64,
        from: u64,
        to: u64,
        run: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let parts = &mut self.parts;
        let block = self.blocks.entry(number).or_insert_with(|| {
            *parts += 1;
            Block::Part(Box::new([0; WORDS]))
        });
        if *parts > MOST_PARTS {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the layers are too scattered to be laid over each other in memory",
            )
            .hint("unpack the archive into a folder, and convert from there"));
        }
        let Block::Part(bits) = block else { return Ok(()) };
        let mut begun = None;
        for sector in from..to {
            let (word, bit) = (&mut bits[(sector / 64) as usize], 1 << (sector % 64)); // never out of bounds: a sector of the block
            if *word & bit == 0 {
                *word |= bit;
                begun.get_or_insert(sector);
            } else if let Some(begun) = begun.take() {
                run(begun, sector)?;
            }
        }
        if let Some(begun) = begun {
            run(begun, to)?;
        }
        if bits.iter().all(|word| *word == u64::MAX) {
            *block = Block::Whole;
            self.parts -= 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_each_byte_once() {
        const DISK: usize = 5 << 20;
        let mut state = 7_u64;
        let mut random = move |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        let mut present = Present::default();
        let mut there = vec![false; DISK];
        for round in 0..400 {
            let at = random(DISK as u64 / 512) * 512;
            let most = if round % 10 == 0 { DISK as u64 } else { 40_000 };
            // The disk's end is no sector's end.
            let len = random(most).next_multiple_of(512).min(DISK as u64 - 100 - at.min(DISK as u64 - 512));
            let len = len.min((DISK as u64).saturating_sub(at));
            let mut told = vec![false; DISK];
            present
                .add(at, len, |at, len| {
                    assert!(len > 0);
                    for byte in &mut told[at as usize..(at + len) as usize] {
                        assert!(!*byte);
                        *byte = true;
                    }
                    Ok(())
                })
                .unwrap();
            let sectors_end = (at + len).next_multiple_of(512) as usize;
            for (byte, was) in there.iter_mut().enumerate().take(sectors_end).skip(at as usize) {
                assert_eq!(told[byte], !*was && (byte as u64) < at + len, "byte {byte} in round {round}");
                *was = true;
            }
        }
        assert!(present.add(100, 10, |_, _| Ok(())).is_err());
    }
}
