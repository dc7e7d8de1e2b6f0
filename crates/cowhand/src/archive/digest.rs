//! Digests of an archive's disks, kept in a file beside it: what changed since is found, and in which disk and range.
//! `docs/digest.md` has the file's layout.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cowhand_core::{Body, Cache, Error, ErrorKind, Manifest, Result, Storage, is_zero};
use sha2::{Digest, Sha256};
use zerocopy::byteorder::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::target::Target;

/// Guest bytes that are hashed together.
const BLOCK: u64 = 4096;
/// Guest bytes that a digest covers at least.
const LEAST: u64 = 65536;
/// Digests of all disks together, or a few more: small disks are told apart finely, large ones coarsely.
const FINE: u64 = 1 << 18;
/// Digests of all disks together at most: a machine's memory may prove to be longer than it says.
const MOST: u64 = 1 << 20;
/// Disks at most.
const DISKS: usize = 4096;
/// The longest file, in bytes.
const LONGEST: u64 = 64 << 20;

const MAGIC: [u8; 8] = *b"CWDIGEST";
const VERSION: u32 = 1;
/// Bytes of the file's own checksum.
const CHECKSUM: usize = 32;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHead {
    magic: [u8; 8],
    version: U32,
    disks: U32,
    archive: [u8; 16],
    range: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawDisk {
    size: U64,
    memory: U32,
    name_len: U32,
    digests: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawDigest {
    number: U32,
    digest: U128,
}

/// Makes digests while an archive's disks go by, from any thread and in any order.
#[derive(Debug)]
pub struct Digester {
    archive: [u8; 16],
    range: u64,
    disks: Vec<Mutex<Disk>>,
}

/// What the digests say of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    archive: [u8; 16],
    range: u64,
    disks: Vec<Disk>,
}

/// A range of a disk that is not what the digests were made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differing {
    /// Which disk of the [`Manifest`].
    pub disk: u32,
    /// Guest bytes, at least one of which differs: as finely as the digests tell.
    pub range: Range<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Disk {
    name: String,
    size: u64,
    memory: bool,
    /// Of each range the sum of its blocks' hashes, so that they may come in any order; zero ones count nothing.
    sums: Vec<u128>,
    /// Ranges of which something is known to be missing: they cannot be judged.
    lost: Vec<bool>,
}

impl Disk {
    /// The place of a range's digest, which is made.
    fn place(&mut self, number: u64) -> Result<&mut u128> {
        let len = self.sums.len() as u64;
        if number >= len {
            if !self.memory || number >= MOST {
                return Err(past_the_end());
            }
            self.sums.resize(number as usize + 1, 0);
        }
        self.sums.get_mut(number as usize).ok_or_else(past_the_end)
    }
}

fn past_the_end() -> Error {
    Error::invalid("a digest is asked for behind the end of the disk")
}

/// Guest bytes that each digest covers. It depends on the disks' sizes alone.
fn range_for(sizes: impl Iterator<Item = u64>) -> u64 {
    let total = sizes.map(u128::from).sum::<u128>();
    let fit = u64::try_from(total.div_ceil(u128::from(FINE))).unwrap_or(u64::MAX);
    fit.max(LEAST).checked_next_power_of_two().unwrap_or(1 << 63)
}

impl Digester {
    /// For the disks of that archive, of which nothing has come yet.
    pub fn new(manifest: &Manifest) -> Digester {
        let range = range_for(manifest.disks.iter().map(|disk| disk.size));
        let disk = |disk: &cowhand_core::ArchivedDisk| {
            Mutex::new(Disk {
                name: disk.name.clone(),
                size: disk.size,
                memory: disk.memory,
                sums: vec![0; disk.size.div_ceil(range) as usize],
                lost: Vec::new(),
            })
        };
        Digester { archive: manifest.id, range, disks: manifest.disks.iter().map(disk).collect() }
    }

    /// Takes bytes of the disk, each of which comes at most once; what never comes is zero. Whole blocks of 4 KiB, but at
    /// the disk's end; what lies behind that counts nothing. Errors: part of a block; no such disk.
    pub fn add(&self, disk: u32, at: u64, body: Body<'_>) -> Result<()> {
        let Body::Bytes(mut bytes) = body else { return Ok(()) };
        let (size, memory) = {
            let disk = self.disk(disk)?;
            (disk.size, disk.memory)
        };
        if !memory {
            let rest = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX);
            bytes = bytes.get(..rest).unwrap_or(bytes);
        }
        let end = at.checked_add(bytes.len() as u64).ok_or_else(past_the_end)?;
        let whole = end.is_multiple_of(BLOCK) || end == size || memory;
        if !at.is_multiple_of(BLOCK) || !whole {
            return Err(Error::unsupported("digests are made of whole blocks of 4 KiB").at(at));
        }
        let mut here = at;
        while !bytes.is_empty() {
            let number = here / self.range;
            let len = (self.range - here % self.range).min(bytes.len() as u64);
            let (part, rest) = bytes.split_at(len as usize); // never out of bounds: not longer than it
            let mut sum = 0_u128;
            for (block, bytes) in (here / BLOCK..).zip(part.chunks(BLOCK as usize)) {
                sum = sum.wrapping_add(hash(block, bytes));
            }
            if sum != 0 {
                let mut disk = self.disk(disk)?;
                let place = disk.place(number)?;
                *place = place.wrapping_add(sum);
            }
            here += len;
            bytes = rest;
        }
        Ok(())
    }

    /// Says that of these bytes of the disk not all came: what they were is not known, so they are not called different.
    pub fn lost(&self, disk: u32, range: Range<u64>) -> Result<()> {
        let mut disk = self.disk(disk)?;
        let len = disk.sums.len();
        disk.lost.resize(len, false);
        let (first, last) = (range.start / self.range, range.end.div_ceil(self.range));
        let place = |number: u64| usize::try_from(number).unwrap_or(usize::MAX).min(len);
        let lost = disk.lost.get_mut(place(first)..place(last)).unwrap_or_default();
        lost.fill(true);
        Ok(())
    }

    /// All came.
    pub fn finish(self) -> Digests {
        let disks =
            self.disks.into_iter().map(|disk| disk.into_inner().unwrap_or_else(PoisonError::into_inner));
        Digests { archive: self.archive, range: self.range, disks: disks.collect() }
    }

    fn disk(&self, disk: u32) -> Result<MutexGuard<'_, Disk>> {
        let disk = self.disks.get(disk as usize).ok_or_else(|| Error::invalid("there is no such disk"))?;
        Ok(disk.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The hash of a block's bytes, which are followed by zeros, and of where it stands. A block of zeros has none.
fn hash(number: u64, bytes: &[u8]) -> u128 {
    if is_zero(bytes) {
        return 0;
    }
    let mut hasher = Sha256::new();
    hasher.update(bytes);
    if let Some(rest) = ZEROS.get(bytes.len()..) {
        hasher.update(rest);
    }
    hasher.update(number.to_le_bytes());
    let hash = hasher.finalize();
    U128::read_from_prefix(&hash).map_or(0, |(half, _)| half.get()) // never 0 for its length: the hash has twice as much
}

const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

impl Digests {
    /// Where the digests of `archive` are looked for: its name, with `.digest` behind.
    pub fn beside(archive: &Path) -> PathBuf {
        let mut name = archive.as_os_str().to_owned();
        name.push(".digest");
        name.into()
    }

    /// Reads the file that [`Digests::write`] made. Errors: it is none, or was damaged.
    pub fn read(path: &Path) -> Result<Digests> {
        let failed = |error| Error::io("cannot read the digests", error).image(path.display());
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(failed)?;
        file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
        Digests::from_bytes(&bytes).map_err(|error| error.image(path.display()))
    }

    /// Writes them as the file `path`, whole or not at all.
    pub fn write(&self, path: &Path, cache: Cache) -> Result<()> {
        let target = Target::begin(path, cache)?;
        let written = target.storage().write_at(0, &self.to_bytes());
        written.map_err(|error| Error::io("cannot write the digests", error).image(path.display()))?;
        target.finish()
    }

    /// They are of the archive that says that at its front, or this fails.
    pub fn belong_to(&self, archive: &Manifest) -> Result<()> {
        self.same_archive(archive.id, archive.disks.iter().map(|disk| (&*disk.name, disk.size, disk.memory)))
    }

    fn same_archive<'a>(
        &self,
        archive: [u8; 16],
        disks: impl ExactSizeIterator<Item = (&'a str, u64, bool)>,
    ) -> Result<()> {
        let other = |what: String| {
            let message = format!("the digests are of another archive: {what}");
            Err(Error::new(ErrorKind::Mismatch, message))
        };
        if self.archive != archive {
            return other("its uuid differs".to_owned());
        }
        if self.disks.len() != disks.len() {
            return other("it has more disks, or fewer".to_owned());
        }
        for (own, (name, size, memory)) in self.disks.iter().zip(disks) {
            if (own.name.as_str(), own.size, own.memory) != (name, size, memory) {
                return other(format!("its disk '{name}' differs in name or size"));
            }
        }
        Ok(())
    }

    /// The disks whose bytes in `found`, made of the archive as it is now, are not those that these were made of.
    /// Ascending; neighbours are one. Errors: they are of two archives.
    pub fn differing(&self, found: &Digests) -> Result<Vec<Differing>> {
        self.same_archive(
            found.archive,
            found.disks.iter().map(|disk| (&*disk.name, disk.size, disk.memory)),
        )?;
        let mut differing: Vec<Differing> = Vec::new();
        for (number, (was, is)) in (0..).zip(self.disks.iter().zip(&found.disks)) {
            for place in 0..was.sums.len().max(is.sums.len()) {
                let sum = |disk: &Disk| disk.sums.get(place).copied().unwrap_or(0);
                let lost = [was, is].iter().any(|disk| disk.lost.get(place).is_some_and(|lost| *lost));
                if lost || sum(was) == sum(is) {
                    continue;
                }
                let start = place as u64 * self.range;
                let end = start.saturating_add(self.range);
                let end = if is.memory { end } else { end.min(is.size) };
                match differing.last_mut().filter(|last| last.disk == number && last.range.end == start) {
                    Some(last) => last.range.end = end,
                    None => differing.push(Differing { disk: number, range: start..end }),
                }
            }
        }
        Ok(differing)
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let head = RawHead {
            magic: MAGIC,
            version: VERSION.into(),
            disks: (self.disks.len() as u32).into(),
            archive: self.archive,
            range: self.range.into(),
        };
        let mut bytes = head.as_bytes().to_vec();
        for disk in &self.disks {
            let there = || (0_u32..).zip(&disk.sums).filter(|(_, sum)| **sum != 0);
            let raw = RawDisk {
                size: disk.size.into(),
                memory: u32::from(disk.memory).into(),
                name_len: (disk.name.len() as u32).into(),
                digests: (there().count() as u32).into(),
            };
            bytes.extend(raw.as_bytes());
            bytes.extend(disk.name.as_bytes());
            for (number, sum) in there() {
                bytes.extend(RawDigest { number: number.into(), digest: (*sum).into() }.as_bytes());
            }
        }
        let checksum = Sha256::digest(&bytes);
        bytes.extend(checksum);
        bytes
    }

    /// What the file's bytes say. They came from outside: nothing is taken for granted.
    pub fn from_bytes(bytes: &[u8]) -> Result<Digests> {
        if bytes.len() as u64 > LONGEST {
            return Err(Error::corrupt("digests", "the file is longer than digests ever are"));
        }
        if !bytes.starts_with(&MAGIC) {
            return Err(Error::corrupt("magic", "this is no file of digests"));
        }
        let cut = || Error::corrupt("digests", "the file is cut");
        let (content, checksum) =
            bytes.len().checked_sub(CHECKSUM).and_then(|at| bytes.split_at_checked(at)).ok_or_else(cut)?;
        let (head, mut rest) = RawHead::read_from_prefix(content).map_err(|_| cut())?;
        if head.version.get() != VERSION {
            return Err(Error::unsupported(format!(
                "digests of version {} are not known",
                head.version.get()
            ))
            .field("version"));
        }
        if checksum != Sha256::digest(content).as_slice() {
            return Err(Error::corrupt("checksum", "the digests themselves were damaged")
                .hint("the archive may be whole all the same: leave out --digest"));
        }
        if head.disks.get() as usize > DISKS {
            return Err(Error::corrupt("disks", format!("more than {DISKS}")));
        }
        let range = head.range.get();
        if !range.is_power_of_two() || range < LEAST {
            return Err(Error::corrupt("range", "no power of two of at least 64 KiB"));
        }
        let mut disks = Vec::new();
        let mut total = 0;
        for _ in 0..head.disks.get() {
            let (disk, after) = Disk::parse(rest, range, &mut total)?;
            disks.push(disk);
            rest = after;
        }
        if !rest.is_empty() {
            return Err(Error::corrupt("digests", "something follows the last disk"));
        }
        if range != range_for(disks.iter().map(|disk| disk.size)) {
            return Err(Error::corrupt("range", "is not what the disks' sizes make it"));
        }
        Ok(Digests { archive: head.archive, range, disks })
    }
}

impl Disk {
    /// The disk that `bytes` begin with, and what follows. `total`: digests there are so far.
    fn parse<'a>(bytes: &'a [u8], range: u64, total: &mut u64) -> Result<(Disk, &'a [u8])> {
        let cut = || Error::corrupt("disk", "is cut");
        let (raw, rest) = RawDisk::read_from_prefix(bytes).map_err(|_| cut())?;
        let (name, mut rest) = rest.split_at_checked(raw.name_len.get() as usize).ok_or_else(cut)?;
        let name = std::str::from_utf8(name).map_err(|_| Error::corrupt("disk", "its name is no text"))?;
        let (size, memory) = (raw.size.get(), raw.memory.get() != 0);
        let mut grow = |len: u64| {
            *total += len;
            if *total > MOST {
                Err(Error::corrupt("disk", "has more digests than there can be"))
            } else {
                Ok(())
            }
        };
        let len = size.div_ceil(range);
        grow(len)?;
        let mut sums = vec![0; len as usize];
        let mut last = None;
        for _ in 0..raw.digests.get() {
            let (digest, after) = RawDigest::read_from_prefix(rest).map_err(|_| cut())?;
            rest = after;
            let number = digest.number.get();
            if last.is_some_and(|last| number <= last) {
                return Err(Error::corrupt("digest", "the ranges are out of order"));
            }
            last = Some(number);
            let place = number as usize;
            if place >= sums.len() {
                if !memory {
                    return Err(Error::corrupt("digest", "lies behind the disk's end"));
                }
                grow((place + 1 - sums.len()) as u64)?;
                sums.resize(place + 1, 0);
            }
            if let Some(sum) = sums.get_mut(place) {
                *sum = digest.digest.get();
            }
        }
        Ok((Disk { name: name.to_owned(), size, memory, sums, lost: Vec::new() }, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::ArchivedDisk;

    fn manifest(sizes: &[u64]) -> Manifest {
        let disk = |(number, size): (u32, &u64)| ArchivedDisk {
            number,
            name: format!("disk{number}"),
            size: *size,
            memory: false,
        };
        Manifest { id: [7; 16], disks: (1..).zip(sizes).map(disk).collect(), ..Manifest::default() }
    }

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn of(manifest: &Manifest, disk: &[u8]) -> Digests {
        let digester = Digester::new(manifest);
        digester.add(0, 0, Body::Bytes(disk)).unwrap();
        digester.finish()
    }

    #[test]
    fn the_order_and_the_cut_of_chunks_count_nothing() {
        const SIZE: usize = (1 << 20) + 700;
        let what = manifest(&[SIZE as u64, 5000]);
        let mut disk = noise(SIZE, 1);
        disk[70_000..300_000].fill(0);
        let whole = of(&what, &disk);
        for (chunk, threads) in [(4096, 1), (65536, 3), (12288, 2)] {
            let digester = Digester::new(&what);
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let (digester, disk) = (&digester, &disk);
                    scope.spawn(move || {
                        let chunks: Vec<_> = disk.chunks(chunk).enumerate().collect();
                        for (number, bytes) in chunks.into_iter().rev().filter(|(n, _)| n % threads == thread)
                        {
                            let at = (number * chunk) as u64;
                            let body = if is_zero(bytes) {
                                Body::Zero(bytes.len() as u64)
                            } else {
                                Body::Bytes(bytes)
                            };
                            digester.add(0, at, body).unwrap();
                        }
                    });
                }
            });
            assert_eq!(digester.finish(), whole, "{chunk}");
        }
        // An archive pads the last block with zeros.
        let mut padded = disk.clone();
        padded.resize(SIZE.next_multiple_of(4096), 0);
        assert_eq!(of(&what, &padded), whole);
        let digester = Digester::new(&what);
        assert!(digester.add(0, 512, Body::Bytes(&disk[..4096])).is_err());
        assert!(digester.add(0, 0, Body::Bytes(&disk[..4095])).is_err());
        assert!(digester.add(2, 0, Body::Bytes(&disk[..4096])).is_err());
    }

    #[test]
    fn any_flipped_bit_is_found_where_it_is() {
        const SIZE: usize = 300_000;
        let what = manifest(&[SIZE as u64]);
        let mut disk = noise(SIZE, 2);
        disk[131_072..200_000].fill(0);
        let was = of(&what, &disk);
        for at in (0..SIZE).step_by(997).chain([0, 65535, 65536, 131_072, SIZE - 1]) {
            disk[at] ^= 1 << (at % 8);
            let start = at as u64 / 65536 * 65536;
            let found = was.differing(&of(&what, &disk)).unwrap();
            let range = start..(start + 65536).min(SIZE as u64);
            assert_eq!(found, [Differing { disk: 0, range }], "byte {at}");
            disk[at] ^= 1 << (at % 8);
        }
        // Two blocks that changed places.
        let (front, back) = disk.split_at_mut(4096);
        front.swap_with_slice(&mut back[..4096]);
        assert_eq!(was.differing(&of(&what, &disk)).unwrap().len(), 1);
        assert_eq!(was.differing(&was).unwrap(), []);
    }

    #[test]
    fn what_is_missing_is_not_called_different() {
        let what = manifest(&[1 << 20]);
        let disk = noise(1 << 20, 3);
        let was = of(&what, &disk);
        let digester = Digester::new(&what);
        digester.add(0, 0, Body::Bytes(&disk[..200_704])).unwrap();
        digester.add(0, 1 << 19, Body::Bytes(&disk[..1 << 19])).unwrap();
        digester.lost(0, 200_704..1 << 19).unwrap();
        let found = was.differing(&digester.finish()).unwrap();
        assert_eq!(found, [Differing { disk: 0, range: 1 << 19..1 << 20 }]);
    }

    #[test]
    fn other_archives_are_not_compared() {
        let what = manifest(&[1 << 20]);
        let disk = noise(1 << 20, 3);
        let was = of(&what, &disk);
        for other in [
            Manifest { id: [8; 16], ..what.clone() },
            manifest(&[(1 << 20) + 512]),
            manifest(&[1 << 20, 1 << 20]),
        ] {
            assert_eq!(was.differing(&of(&other, &disk)).unwrap_err().kind(), ErrorKind::Mismatch);
        }
    }

    #[test]
    fn large_disks_take_little() {
        let what = manifest(&[1 << 40, 1 << 30]);
        let digester = Digester::new(&what);
        assert_eq!(digester.range, 8 << 20);
        digester.add(0, (1 << 40) - 4096, Body::Bytes(&[1; 4096])).unwrap();
        assert!(digester.finish().to_bytes().len() < 300);
        assert_eq!(Digester::new(&manifest(&[16 << 30])).range, 65536);
        // What a hostile archive claims.
        let claims = Digester::new(&manifest(&[1 << 48; 254]));
        assert!(claims.disks.iter().map(|disk| disk.lock().unwrap().sums.len() as u64).sum::<u64>() < MOST);
    }

    #[test]
    fn a_machine_s_memory_may_be_longer_than_it_says() {
        let mut what = manifest(&[100]);
        what.disks[0].memory = true;
        let digester = Digester::new(&what);
        digester.add(0, 10 << 20, Body::Bytes(&[1; 4096])).unwrap();
        assert!(digester.add(0, 1 << 60, Body::Bytes(&[1; 4096])).is_err());
        let digests = digester.finish();
        assert_eq!(Digests::from_bytes(&digests.to_bytes()).unwrap(), digests);
        let none = Digester::new(&what).finish();
        assert_eq!(
            digests.differing(&none).unwrap(),
            [Differing { disk: 0, range: 10 << 20..(10 << 20) + 65536 }]
        );
    }

    #[test]
    fn the_file_is_what_was_written_or_refused() {
        let what = manifest(&[300_000, 1]);
        let digests = of(&what, &noise(300_000, 4));
        let bytes = digests.to_bytes();
        assert_eq!(Digests::from_bytes(&bytes).unwrap(), digests);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x20;
            assert!(Digests::from_bytes(&damaged).is_err(), "byte {at}");
            assert!(Digests::from_bytes(&bytes[..at]).is_err(), "cut at {at}");
            // With a checksum that fits, it is refused or means something else, and takes no memory.
            let end = damaged.len() - CHECKSUM;
            let checksum = Sha256::digest(&damaged[..end]);
            damaged[end..].copy_from_slice(&checksum);
            if let Ok(other) = Digests::from_bytes(&damaged)
                && at < end
            {
                assert_ne!(other, digests, "byte {at}");
            }
        }
        // A disk that claims to be huge.
        let mut huge = bytes.clone();
        let at = size_of::<RawHead>();
        huge[at..at + 8].fill(0xff);
        let end = huge.len() - CHECKSUM;
        let checksum = Sha256::digest(&huge[..end]);
        huge[end..].copy_from_slice(&checksum);
        assert!(Digests::from_bytes(&huge).is_err());
    }
}
