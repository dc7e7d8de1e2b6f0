//! What disks are filled with: small, seeded, named.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A seeded source of chance (xorshift64*): the same seed, the same bytes, on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.any() % end
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// Fills `buf`.
    pub fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            chunk.copy_from_slice(&self.any().to_le_bytes()[..chunk.len()]);
        }
    }

    /// So many bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }
}

/// A disk's content: its size, and runs of bytes. What no run covers is a hole.
#[derive(Clone, Debug)]
pub struct Content {
    /// What it is called in messages.
    pub name: &'static str,
    /// Bytes.
    pub size: u64,
    runs: Vec<(u64, Vec<u8>)>,
}

impl Content {
    /// A hole of `size` bytes.
    pub fn empty(name: &'static str, size: u64) -> Content {
        Content { name, size, runs: Vec::new() }
    }

    /// Under another name.
    #[must_use]
    pub fn named(self, name: &'static str) -> Content {
        Content { name, ..self }
    }

    /// With a hole behind it, up to `size` bytes.
    #[must_use]
    pub fn grown(self, size: u64) -> Content {
        Content { size, ..self }
    }

    /// With these bytes there.
    #[must_use]
    pub fn with(mut self, at: u64, bytes: Vec<u8>) -> Content {
        assert!(at + bytes.len() as u64 <= self.size);
        self.runs.push((at, bytes));
        self
    }

    /// `step` bytes of data, `step` bytes of hole, and so on.
    pub fn striped(name: &'static str, size: u64, step: u64, seed: u64) -> Content {
        let mut rng = Rng::new(seed);
        let mut content = Content::empty(name, size);
        let mut at = 0;
        while at < size {
            content = content.with(at, rng.bytes(step.min(size - at) as usize));
            at += 2 * step;
        }
        content
    }

    /// Random bytes from end to end.
    pub fn random(name: &'static str, size: u64, seed: u64) -> Content {
        Content::empty(name, size).with(0, Rng::new(seed).bytes(size as usize))
    }

    /// Words from a small dictionary: what compresses well.
    pub fn text(name: &'static str, size: u64) -> Content {
        const WORDS: [&str; 8] =
            ["cluster ", "block ", "footer ", "the ", "of ", "table\n", "entry ", "disk "];
        let mut rng = Rng::new(7);
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < size {
            bytes.extend_from_slice(rng.pick(&WORDS).as_bytes());
        }
        bytes.truncate(size as usize);
        Content::empty(name, size).with(0, bytes)
    }

    /// Writes it as a raw, sparse file `NAME.raw` into `folder`.
    pub fn raw_in(&self, folder: &Path) -> PathBuf {
        let path = folder.join(format!("{}.raw", self.name.replace(' ', "-")));
        let file = File::create(&path).unwrap();
        file.set_len(self.size).unwrap();
        for (at, bytes) in &self.runs {
            file.write_all_at(bytes, *at).unwrap();
        }
        path
    }
}

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;

/// Every kind of content.
pub fn contents() -> Vec<Content> {
    let ends = |name, size: u64| {
        Content::empty(name, size).with(0, vec![1; 512]).with(size - 513, Rng::new(3).bytes(513))
    };
    vec![
        Content::empty("empty", 4 * M),
        Content::empty("nothing", 0),
        Content::random("full", 3 * M, 1),
        Content::empty("zeros written", 3 * M).with(0, vec![0; 3 << 20]),
        Content::striped("stripes 512", M, 512, 2),
        Content::striped("stripes 4K", 3 * M + 4 * K, 4 * K, 3),
        Content::striped("stripes 64K", 8 * M, 64 * K, 4),
        Content::empty("one byte", 1).with(0, vec![0xa5]),
        Content::random("511", 511, 5),
        Content::random("513", 513, 6),
        Content::random("1M and 1", M + 1, 7),
        Content::striped("odd", 5 * M + 3 * K + 17, 96 * K, 8),
        Content::text("text", 2 * M + 700),
        ends("ends", 40 * M),
        Content::empty("far apart", 64 * M).with(33 * M - 300, Rng::new(9).bytes(100 * 1024)),
    ]
}

/// The few that find most, where a whole matrix would take too long.
pub fn fast_contents() -> Vec<Content> {
    contents()
        .into_iter()
        .filter(|content| ["empty", "stripes 4K", "odd", "ends", "513"].contains(&content.name))
        .collect()
}
