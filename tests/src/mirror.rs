//! What a disk must hold, kept in memory: only what is not zero takes room, so that disks may be as large as they like.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use cowhand::{Image, Kind};

const PAGE: usize = 64 << 10;
static ZEROS: [u8; PAGE] = [0; PAGE];

/// A disk up to here is read from end to end; of a larger one, all data and the edges of what is said to be zero.
const READ_WHOLE: u64 = 24 << 20;

/// Guest bytes.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    size: u64,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Mirror {
    /// Zeros.
    pub fn new(size: u64) -> Mirror {
        Mirror { size, pages: BTreeMap::new() }
    }

    /// Guest bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Grows with zeros, or loses what is behind.
    pub fn resize(&mut self, size: u64) {
        if size < self.size {
            self.zero(size, self.size - size);
            self.pages.retain(|page, _| page * (PAGE as u64) < size);
        }
        self.size = size;
    }

    /// The pieces of a range that lie in one page each: page, first byte in it, how many.
    fn pieces(at: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
        let mut at = at;
        let end = at + len;
        std::iter::from_fn(move || {
            let (page, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let piece = ((PAGE - within) as u64).min(end - at) as usize;
            at += piece as u64;
            (piece > 0).then_some((page, within, piece))
        })
    }

    /// Puts these bytes there.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        assert!(at + bytes.len() as u64 <= self.size, "{} bytes at {at} of {}", bytes.len(), self.size);
        let mut rest = bytes;
        for (page, within, len) in Self::pieces(at, bytes.len() as u64) {
            let (here, behind) = rest.split_at(len);
            rest = behind;
            if self.pages.contains_key(&page) || here != &ZEROS[..len] {
                let page = self.pages.entry(page).or_insert_with(|| ZEROS.to_vec());
                page[within..within + len].copy_from_slice(here);
            }
        }
    }

    /// Makes them zero.
    pub fn zero(&mut self, at: u64, len: u64) {
        assert!(at + len <= self.size, "{len} bytes at {at} of {}", self.size);
        let end = at + len;
        let touched = at / PAGE as u64..end.div_ceil(PAGE as u64);
        let touched: Vec<u64> = self.pages.range(touched).map(|(page, _)| *page).collect();
        for page in touched {
            let start = page * PAGE as u64;
            let (from, to) = (at.max(start) - start, end.min(start + PAGE as u64) - start);
            if to - from == PAGE as u64 {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                bytes[from as usize..to as usize].fill(0);
            }
        }
    }

    /// Fills `buf` from there.
    pub fn read(&self, at: u64, buf: &mut [u8]) {
        let len = buf.len() as u64;
        let mut rest = buf;
        for (page, within, len) in Self::pieces(at, len) {
            let (here, behind) = rest.split_at_mut(len);
            rest = behind;
            match self.pages.get(&page) {
                Some(page) => here.copy_from_slice(&page[within..within + len]),
                None => here.fill(0),
            }
        }
    }

    /// So many bytes from there.
    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(at, &mut bytes);
        bytes
    }

    /// What `below` has there shows through; zeros behind its end.
    pub fn reveal(&mut self, below: &Mirror, at: u64, len: u64) {
        self.zero(at, len);
        let end = (at + len).min(below.size);
        if at < end {
            let pages = at / PAGE as u64..end.div_ceil(PAGE as u64);
            for (page, bytes) in below.pages.range(pages) {
                let start = page * PAGE as u64;
                let (from, to) = (at.max(start), end.min(start + PAGE as u64));
                self.write(from, &bytes[(from - start) as usize..(to - start) as usize]);
            }
        }
    }

    /// Is everything there zero?
    pub fn is_zero(&self, at: u64, len: u64) -> bool {
        let pages = at / PAGE as u64..(at + len).div_ceil(PAGE as u64);
        self.pages.range(pages).all(|(page, bytes)| {
            let start = page * PAGE as u64;
            let from = at.max(start) - start;
            let to = (at + len).min(start + PAGE as u64) - start;
            bytes[from as usize..to as usize] == ZEROS[..(to - from) as usize]
        })
    }

    /// Where the other differs first.
    fn difference(&self, other: &Mirror) -> Option<u64> {
        let mut pages: Vec<u64> = self.pages.keys().chain(other.pages.keys()).copied().collect();
        pages.sort_unstable();
        pages.dedup();
        let of =
            |mirror: &Mirror, page: u64| mirror.pages.get(&page).map_or(&ZEROS[..], |page| page).to_vec();
        pages.into_iter().find_map(|page| {
            let (a, b) = (of(self, page), of(other, page));
            (0..PAGE).find(|n| a[*n] != b[*n]).map(|n| page * PAGE as u64 + n as u64)
        })
    }

    /// The same bytes, and as many.
    pub fn is_same(&self, other: &Mirror) -> bool {
        self.size == other.size && self.difference(other).is_none()
    }

    /// Panics unless `who` found the same.
    pub fn assert_same(&self, found: &Mirror, who: &str) {
        assert_eq!(found.size, self.size, "{who}: the size");
        if let Some(at) = self.difference(found) {
            let (found, right) = (found.bytes(at, 1)[0], self.bytes(at, 1)[0]);
            panic!("{who}: {found:#04x}, not {right:#04x}, at {at} (sector {})", at / 512);
        }
    }

    /// Panics unless the disk holds this, and what `extent` calls zero is zero.
    pub fn assert_disk(&self, disk: &Image) {
        assert_eq!(disk.size(), self.size, "virtual size");
        let mut found = vec![0; (1 << 20) - 513];
        let mut compare = |from: u64, to: u64| {
            let mut at = from;
            while at < to {
                let found = &mut found[..((1 << 20) - 513).min(to - at) as usize];
                found.fill(0xee);
                disk.read(at, found).unwrap_or_else(|error| panic!("reading at {at}: {error}"));
                let right = self.bytes(at, found.len());
                if *found != right[..] {
                    let n = (0..right.len()).find(|n| found[*n] != right[*n]).unwrap();
                    let here = at + n as u64;
                    panic!("{:#04x}, not {:#04x}, at {here} (sector {})", found[n], right[n], here / 512);
                }
                at += found.len() as u64;
            }
        };
        if self.size <= READ_WHOLE {
            compare(0, self.size);
        }
        let mut at = 0;
        while at < self.size {
            let found =
                disk.extent(at, self.size - at).unwrap_or_else(|error| panic!("extent at {at}: {error}"));
            assert!(found.len > 0 && found.len <= self.size - at, "an extent of {} bytes at {at}", found.len);
            let end = at + found.len;
            if found.kind != Kind::Data {
                assert!(
                    self.is_zero(at, found.len),
                    "{:?} at {at}, {} bytes, holds data",
                    found.kind,
                    found.len
                );
                if self.size > READ_WHOLE {
                    compare(at, end.min(at + 5000));
                    compare(end.saturating_sub(5000).max(at), end);
                }
            } else if self.size > READ_WHOLE {
                compare(at, end);
            }
            at = end;
        }
    }

    /// What a raw file holds.
    pub fn of_file(path: &Path) -> Mirror {
        let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut mirror = Mirror::new(file.metadata().unwrap().len());
        let mut at = 0;
        while let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
            let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)).unwrap();
            at = data;
            while at < hole {
                let mut buf = vec![0; (hole - at).min(1 << 20) as usize];
                file.read_exact_at(&mut buf, at).unwrap();
                mirror.write(at, &buf);
                at += buf.len() as u64;
            }
        }
        mirror
    }

    /// As a raw, sparse file.
    pub fn save(&self, path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(self.size).unwrap();
        for (page, bytes) in &self.pages {
            let at = page * PAGE as u64;
            file.write_all_at(&bytes[..(PAGE as u64).min(self.size - at) as usize], at).unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    #[test]
    fn as_a_flat_vector() {
        let mut rng = Rng::new(3);
        let size = 5 * PAGE + 700;
        let (mut flat, mut mirror) = (vec![0; size], Mirror::new(size as u64));
        let below = {
            let mut below = Mirror::new(3 * PAGE as u64 + 11);
            below.write(PAGE as u64 - 5, &rng.bytes(PAGE));
            below
        };
        let shown = {
            let mut all = below.bytes(0, below.size() as usize);
            all.resize(size, 0);
            all
        };
        for _ in 0..400 {
            let at = rng.below(size as u64) as usize;
            let len = rng.below((size - at) as u64 + 1) as usize;
            match rng.below(3) {
                0 => {
                    let bytes = rng.bytes(len);
                    flat[at..at + len].copy_from_slice(&bytes);
                    mirror.write(at as u64, &bytes);
                }
                1 => {
                    flat[at..at + len].fill(0);
                    mirror.zero(at as u64, len as u64);
                }
                _ => {
                    flat[at..at + len].copy_from_slice(&shown[at..at + len]);
                    mirror.reveal(&below, at as u64, len as u64);
                }
            }
            assert!(mirror.bytes(0, size) == flat);
            let (at, len) = (at as u64, len as u64);
            assert_eq!(
                mirror.is_zero(at, len),
                flat[at as usize..(at + len) as usize].iter().all(|b| *b == 0)
            );
        }
    }
}
