//! What must hold of an archive of any bytes: whoever reads it strictly, salvages it, checks it or goes through its index
//! sees the same, and none sees more than there is.

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use cowhand::{
    ArchiveIndex, ArchiveSource, Archives, Body, CheckOptions, Error, ErrorKind, Image, Kind, Layer, Link,
    Manifest, NoFiles, OpenOptions, Options, Quiet, Reading, Storage, Walk,
};
use md5::{Digest, Md5};

use crate::layer::{refused, walk};
use crate::mutate::Random;
use crate::stream::Pieces;
use crate::{printable, sparse};

/// Longer archives are cut: they are read whole.
const LONGEST: u64 = 8 << 20;

/// Changes that are made to the kept index of one archive.
const CHANGES: u32 = 20;

/// The bytes of a disk from some place on; none: so many zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Came {
    disk: u32,
    at: u64,
    len: u64,
    bytes: Option<Vec<u8>>,
}

/// What one reading gave.
struct Given {
    manifest: Manifest,
    came: Vec<Came>,
    missing: Vec<(u32, Range<u64>)>,
    faults: u64,
}

/// Puts an archive through everything that reads one. True where a part of it at least makes sense.
pub(crate) fn examine(input: &[u8]) -> bool {
    let storage: Arc<dyn Storage> = Arc::new(sparse::unpack(input, LONGEST));
    let bytes = all(&storage);
    let random = &mut Random::new(input);
    let format = cowhand::format("vma").expect("the format is registered");
    let archives = format.archives().expect("the format has archives");
    let stream = || Box::new(Pieces(&bytes, Random::new(input))) as Box<dyn Read + Send>;

    let strict = give(archives, stream(), Reading::Strict);
    let salvaged = give(archives, stream(), Reading::Salvage);
    let index = archives.index(&mut Walk::new(storage.clone()));
    let checked = format
        .checker()
        .expect("the format has a check")
        .check(storage.clone(), &NoFiles, &CheckOptions::default(), &Quiet)
        .expect("memory can be read");
    checked.faults.iter().for_each(|fault| printable(&cowhand::Printable(&fault.message).to_string()));

    match (&strict, &index) {
        (Ok(_), Err(error)) => panic!("it can be read, and has no index: {error}"),
        (Err(error), Ok(_)) => panic!("it has an index, and cannot be read: {error}"),
        _ => assert_eq!(strict.is_ok(), checked.is_clean(), "the check sees something else: {checked:?}"),
    }
    let salvaged = match salvaged {
        Ok(salvaged) => salvaged,
        Err(error) => {
            refused(&error);
            assert!(strict.is_err(), "it can be read, and not be salvaged: {error}");
            return false;
        }
    };
    bounded(&salvaged, bytes.len() as u64);
    let (strict, index) = match (strict, index) {
        (Ok(strict), Ok(index)) => (strict, index),
        (strict, index) => {
            strict.err().iter().for_each(refused);
            index.err().iter().for_each(refused);
            assert!(
                salvaged.faults > 0 || !salvaged.missing.is_empty(),
                "nothing is wrong, and yet it is refused"
            );
            return !salvaged.came.is_empty();
        }
    };
    assert_eq!((salvaged.faults, &salvaged.missing), (0, &Vec::new()), "what is whole has faults");
    assert_eq!(salvaged.manifest, strict.manifest);
    assert!(salvaged.came == strict.came, "salvaging gives something else");
    assert_eq!(*index.manifest(), strict.manifest);
    for (number, disk) in (0..).zip(&strict.manifest.disks) {
        let indexed = index.clone().layer(storage.clone(), number);
        let given = [("disk".to_owned(), disk.name.clone())];
        let options = Options::check(format.open_options(), &given).expect("the option is known");
        let opened =
            format.open(storage.clone(), &NoFiles, &OpenOptions { options, ..OpenOptions::default() });
        if disk.memory {
            assert!(indexed.is_err() && opened.is_err(), "memory is a disk");
            continue;
        }
        let layer = indexed.expect("a disk of the archive");
        holds(&layer, number, &strict);
        walk(&*layer, random, 1000, 50);
        match opened {
            Ok(layer) => holds(&layer, number, &strict),
            // Two disks may bear one name.
            Err(error) => refused(&error),
        }
    }
    true
}

/// Keeps the index of an archive, changes what was kept, and reads what is believed of it. True where any was.
pub(crate) fn kept(input: &[u8]) -> bool {
    let storage: Arc<dyn Storage> = Arc::new(sparse::unpack(input, LONGEST));
    let format = cowhand::format("vma").expect("the format is registered");
    let archives = format.archives().expect("the format has archives");
    let Ok(index) = archives.index(&mut Walk::new(storage.clone())) else { return false };
    let kept = index.to_bytes();
    let again = archives.index_from(&kept).expect("what was kept is believed");
    assert_eq!(again.manifest(), index.manifest());
    assert!(again.to_bytes() == kept, "it is kept otherwise the second time");

    let random = &mut Random::new(input);
    let mut believed = false;
    for _ in 0..CHANGES {
        let mut bytes = kept.clone();
        damage(&mut bytes, random);
        match archives.index_from(&bytes) {
            Err(error) => refused(&error),
            Ok(index) => believed |= look(&index, &storage, random),
        }
    }
    // An archive that has nothing at all leaves little to change.
    believed || index.manifest().disks.is_empty()
}

/// A few changes, and mostly the right checksum.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    const SUM: usize = 16;
    let end = bytes.len().saturating_sub(SUM);
    for _ in 0..=random.below(3) {
        // The lists stand at the end, the fields at the front; between them is much of the archive's own header.
        let span = if random.one_in(2) { 64 } else { 512 };
        let back = random.below(span.min(end as u64)) as usize;
        let at = if random.one_in(4) { back } else { end - 1 - back };
        bytes[at] = if random.one_in(2) { bytes[at] ^ 1 << random.below(8) } else { random.below(256) as u8 };
    }
    if random.one_in(8) {
        let len = random.below(bytes.len() as u64) as usize;
        bytes.truncate(len);
    }
    let front = bytes.len().saturating_sub(SUM);
    let (front, sum) = bytes.split_at_mut(front);
    if !random.one_in(8) && sum.len() == SUM {
        sum.copy_from_slice(&Md5::digest(front));
    }
}

/// Looks at all disks of an index that was believed.
fn look(index: &Arc<dyn ArchiveIndex>, storage: &Arc<dyn Storage>, random: &mut Random) -> bool {
    let mut any = false;
    for (number, _) in (0..).zip(&index.manifest().disks) {
        match index.clone().layer(storage.clone(), number) {
            Ok(layer) => {
                walk(&*layer, random, 500, 20);
                any = true;
            }
            Err(error) if error.kind() == ErrorKind::Mismatch => printable(&error.to_string()),
            Err(error) => refused(&error),
        }
    }
    any
}

fn give(archives: &dyn Archives, input: Box<dyn Read + Send + '_>, how: Reading) -> Result<Given, Error> {
    let mut source = archives.read(input, how)?;
    let mut came: Vec<Came> = Vec::new();
    while let Some(chunk) = source.next()? {
        let (len, bytes) = match chunk.body {
            Body::Bytes(bytes) => (bytes.len() as u64, Some(bytes.to_vec())),
            Body::Zero(len) => (len, None),
        };
        came.push(Came { disk: chunk.disk, at: chunk.at, len, bytes });
    }
    came.sort_by_key(|came| (came.disk, came.at));
    let manifest = source.manifest().clone();
    let missing = missing(&*source, &manifest)?;
    let faults = source.faults();
    assert!(faults.list.len() as u64 <= faults.count);
    faults.list.iter().for_each(|fault| printable(&cowhand::Printable(&fault.message).to_string()));
    Ok(Given { faults: faults.count, manifest, came, missing })
}

fn missing(source: &dyn ArchiveSource, manifest: &Manifest) -> Result<Vec<(u32, Range<u64>)>, Error> {
    let mut all = Vec::new();
    for (number, _) in (0..).zip(&manifest.disks) {
        source.missing(number, &mut |range| {
            all.push((number, range));
            Ok(())
        })?;
    }
    Ok(all)
}

/// Nothing comes twice, or beyond a disk's end, and no more than `len` bytes; what did not come is missing, and the other
/// way round.
fn bounded(given: &Given, len: u64) {
    let stored: u64 = given.came.iter().filter(|came| came.bytes.is_some()).map(|came| came.len).sum();
    assert!(stored <= len, "{stored} bytes come out of {len}");
    for (number, disk) in (0..).zip(&given.manifest.disks) {
        let came =
            given.came.iter().filter(|came| came.disk == number).map(|came| came.at..came.at + came.len);
        let lost = given.missing.iter().filter(|(disk, _)| *disk == number).map(|(_, range)| range.clone());
        let mut all: Vec<Range<u64>> = came.chain(lost).collect();
        all.sort_by_key(|range| range.start);
        let mut at = 0;
        for range in all {
            assert!(range.start < range.end, "{range:?} of disk {number}");
            assert_eq!(range.start, at, "{range:?} of disk {number}, and {at} bytes before it");
            at = range.end;
        }
        assert!(disk.memory || at == disk.size, "{at} bytes of disk {number}, which has {}", disk.size);
    }
}

/// The layer has what came, and nothing besides.
fn holds(layer: &Arc<dyn Layer>, disk: u32, given: &Given) {
    let link = Link { layer: layer.clone(), name: "disk".to_owned(), format: "vma" };
    let image = Image::new(vec![link]).expect("one layer makes a disk");
    let mut end = 0;
    for came in given.came.iter().filter(|came| came.disk == disk) {
        end = came.at + came.len;
        match &came.bytes {
            Some(bytes) => {
                let mut there = vec![0; bytes.len()];
                image.read(came.at, &mut there).expect("what came can be read");
                assert!(there == *bytes, "{} bytes at {} are others", came.len, came.at);
            }
            None => empty(&image, came.at..end),
        }
    }
    empty(&image, end..image.size());
}

fn empty(image: &Image, range: Range<u64>) {
    let mut at = range.start;
    while at < range.end {
        let found = image.extent(at, range.end - at).expect("what came can be read");
        assert_ne!(found.kind, Kind::Data, "{} bytes at {at} are no zeros", found.len);
        at += found.len;
    }
}

fn all(storage: &Arc<dyn Storage>) -> Vec<u8> {
    let mut bytes = vec![0; storage.len().expect("memory has a length") as usize];
    storage.read_at(0, &mut bytes).expect("memory can be read");
    bytes
}
