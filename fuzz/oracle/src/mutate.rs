//! Small changes to an input, the same for the same seed: what an ordinary test can do of a fuzzer's work.

use crate::sparse::{HEADER, MEND, RECORD};

/// A sequence of numbers that looks random (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence that belongs to these bytes.
    pub fn new(seed: &[u8]) -> Self {
        // FNV-1a.
        Random(seed.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        }))
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// Changes one to four things in `input`.
pub fn mutate(input: &mut Vec<u8>, random: &mut Random) {
    if let Some(flags) = input.first_mut() {
        *flags = if random.one_in(4) { 0 } else { MEND };
    }
    for _ in 0..=random.below(4) {
        change(input, random);
    }
}

fn change(input: &mut Vec<u8>, random: &mut Random) {
    let records = input.len().saturating_sub(HEADER) / RECORD;
    if records == 0 {
        return;
    }
    let record = HEADER + random.below(records as u64) as usize * RECORD;
    match random.below(10) {
        // One bit of a sector.
        0..=2 => {
            let at = record + 4 + random.below(512) as usize;
            input[at] ^= 1 << random.below(8);
        }
        // A number in a sector, of any width and byte order; mostly near the front, where headers have their fields.
        3..=7 => {
            let width = [1, 2, 4, 8][random.below(4) as usize];
            let span = if random.one_in(2) { 128 } else { 512 };
            let at = record + 4 + random.below(span / width) as usize * width as usize;
            let mut field = [0; 8];
            let field = &mut field[..width as usize];
            field.copy_from_slice(&input[at..at + width as usize]);
            let big = random.one_in(2);
            let old = field.iter().enumerate().fold(0u64, |old, (index, byte)| {
                let place = if big { field.len() - 1 - index } else { index };
                old | u64::from(*byte) << (8 * place)
            });
            let new = interesting(old, random);
            for (index, byte) in field.iter_mut().enumerate() {
                let place = if big { width as usize - 1 - index } else { index };
                *byte = (new >> (8 * place)) as u8;
            }
            input[at..at + width as usize].copy_from_slice(field);
        }
        // The file's length.
        8 => {
            let (len, _) = input[1..].split_first_chunk_mut::<8>().expect("records stand behind the length");
            let old = u64::from_le_bytes(*len);
            *len = match random.below(3) {
                0 => old.saturating_sub(random.below(2048)),
                1 => random.below(old.max(1)),
                _ => interesting(old, random),
            }
            .to_le_bytes();
        }
        // Where a sector stands, or that it stands in two places.
        _ => {
            let number = random.below(1 << 12) as u32;
            if random.one_in(2) {
                input[record..record + 4].copy_from_slice(&number.to_le_bytes());
            } else {
                let mut twin = input[record..record + RECORD].to_vec();
                twin[..4].copy_from_slice(&number.to_le_bytes());
                input.truncate(HEADER + records * RECORD);
                input.extend(twin);
            }
        }
    }
}

fn interesting(old: u64, random: &mut Random) -> u64 {
    match random.below(8) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << random.below(64),
        3 => (1 << random.below(64)) - 1,
        4 => old.wrapping_add(1),
        5 => old.wrapping_sub(1),
        6 => old.wrapping_add(512 << random.below(16)),
        _ => random.number() >> random.below(64),
    }
}
