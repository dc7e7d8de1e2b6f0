//! Bytes as disks have them, and the programs that everybody packs with.

#![allow(dead_code, unreachable_pub)] // Each test uses some of it.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

use cowhand_core::MemoryStorage;
use cowhand_packed::{How, Packing};

/// Numbers that look random, and are the same each time.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, most: usize) -> usize {
        (self.next() >> 16) as usize % most.max(1)
    }
}

/// So many bytes: text, noise and zeros by turns.
pub fn sample(seed: u64, len: usize) -> Vec<u8> {
    let mut noise = Noise::new(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        let end = len.min(bytes.len() + 1 + noise.below(30_000));
        match noise.below(3) {
            0 => bytes.resize(end, 0),
            1 => {
                while bytes.len() < end {
                    bytes.extend(noise.next().to_le_bytes());
                }
            }
            _ => {
                while bytes.len() < end {
                    let word: &[u8] =
                        [&b"cluster "[..], b"extent ", b"of the disk ", b"and ", b"\n"][noise.below(5)];
                    bytes.extend(word);
                }
            }
        }
        bytes.truncate(len);
    }
    bytes
}

pub fn pack(packing: &dyn Packing, bytes: &[u8], how: How) -> Vec<u8> {
    let mut packed = Vec::new();
    let mut pack = packing.pack(Box::new(&mut packed), how).unwrap();
    pack.write_all(bytes).unwrap();
    pack.finish().unwrap();
    packed
}

/// The bytes that came, and the error that ended them.
pub fn unpack(packing: &dyn Packing, packed: &[u8]) -> (Vec<u8>, Option<cowhand_core::Error>) {
    let mut bytes = Vec::new();
    let done = packing.unpack(Box::new(packed)).read_to_end(&mut bytes);
    (bytes, done.err().map(|error| cowhand_core::Error::io("unpacking", error)))
}

pub fn storage(bytes: &[u8]) -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::from_bytes(bytes))
}

/// What another program makes of `input`. `None`: there is no such program here.
pub fn peer(program: &str, args: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let mut command = Command::new(program);
    let started = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut running) = started else {
        eprintln!("skipped: {program} is not installed");
        return None;
    };
    let mut to = running.stdin.take().unwrap();
    let done = std::thread::scope(|scope| {
        scope.spawn(move || to.write_all(input));
        running.wait_with_output().unwrap()
    });
    assert!(done.status.success(), "{program} {args:?}");
    Some(done.stdout)
}
