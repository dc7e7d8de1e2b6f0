//! What must hold of every layer that opens, whatever its bytes: the contract of `Layer`, and nothing of any format.

use std::sync::Arc;

use cowhand::{Error, ErrorKind, Extent, Format, Kind, Layer, NoFiles, OpenOptions, Storage};

use crate::mutate::Random;
use crate::printable;

/// Extents looked at, in all. An image may have more: it is then not looked at to its end.
const EXTENTS: usize = 10_000;
/// Of those, the ones that are also read.
const READS: usize = 500;
/// Bytes read of an extent.
const PIECE: u64 = 64 << 10;
/// What a buffer holds before it is read into.
const UNTOUCHED: u8 = 0xa5;

/// Opens what `storage` holds for reading, and looks at all of it. False where it does not open.
pub(crate) fn examine(format: &dyn Format, storage: &Arc<dyn Storage>, random: &mut Random) -> bool {
    let layer = match format.open(Arc::clone(storage), &NoFiles, &OpenOptions::default()) {
        Ok(layer) => layer,
        Err(error) => {
            refused(&error);
            return false;
        }
    };
    walk(&*layer, random, EXTENTS, READS);
    layer.details();
    layer.parent();
    layer.identity();
    if let Some(snapshots) = layer.as_snapshots() {
        match snapshots.list() {
            Err(error) => refused(&error),
            Ok(list) => {
                for snapshot in list.iter().take(4) {
                    match snapshots.open(&snapshot.id) {
                        Err(error) => refused(&error),
                        Ok(disk) => walk(&*disk, random, EXTENTS / 10, READS / 10),
                    }
                }
            }
        }
    }
    if layer.size() > 0 {
        assert!(layer.write(0, &[1]).is_err(), "a layer open for reading was written");
    }
    true
}

/// An error of what an image holds has a fitting kind and can be printed.
pub(crate) fn refused(error: &Error) {
    use ErrorKind::{Corrupt, Denied, Io, NotFound, Unsupported};
    let kind = error.kind();
    assert!(
        matches!(kind, Corrupt | Unsupported | Denied | Io | NotFound),
        "{kind:?} for bad bytes: {error}"
    );
    printable(&error.to_string());
}

/// Looks at so many extents of a layer, and reads some of them.
pub(crate) fn walk(layer: &dyn Layer, random: &mut Random, mut extents: usize, mut reads: usize) {
    let (size, granule) = (layer.size(), layer.granule());
    assert!(granule.is_power_of_two(), "a granule of {granule}");
    let mut at = 0;
    while at < size && extents > 0 {
        extents -= 1;
        let all = size - at;
        let extent = match layer.extent(at, all) {
            Ok(extent) => extent,
            Err(error) => {
                refused(&error);
                let read = layer.read(at, &mut [UNTOUCHED]);
                assert!(read.is_err(), "no extent at {at} ({error}), and yet it is read as {read:?}");
                at = (at / granule).saturating_add(1).saturating_mul(granule);
                continue;
            }
        };
        assert!((1..=all).contains(&extent.len), "{extent:?} at {at} of {size}");
        assert!(
            extent.host.is_none() || (extent.kind != Kind::Hole && !extent.compressed),
            "{extent:?} at {at}"
        );
        assert!(!extent.compressed || extent.kind == Kind::Data, "{extent:?} at {at}");
        less_is_alike(layer, at, extent, random);
        if reads > 0 {
            reads -= 1;
            read(layer, at, extent.len.min(PIECE), extent, random);
            let last = extent.len.min(1 + random.below(1000));
            let into = extent.len - last;
            if into > 0 {
                let host = extent.host.map(|host| host + into);
                read(layer, at + into, last, Extent { len: last, host, ..extent }, random);
            }
        }
        at += extent.len;
    }
}

/// Asking for less gives a part of the same answer.
fn less_is_alike(layer: &dyn Layer, at: u64, whole: Extent, random: &mut Random) {
    for (skip, max) in [(0, 1 + random.below(whole.len)), (random.below(whole.len), whole.len)] {
        let max = max.min(whole.len - skip);
        let part = layer.extent(at + skip, max).expect("an extent that was there a moment ago");
        assert!((1..=max).contains(&part.len), "{part:?} at {}, asked for {max}", at + skip);
        // A long run of zeros may leave out that a part of it is preallocated.
        let host = if whole.kind == Kind::Zero && whole.host.is_none() { None } else { part.host };
        let expected = Extent { len: part.len, host: whole.host.map(|host| host + skip), ..whole };
        assert_eq!(
            Extent { host, ..part },
            expected,
            "{skip} bytes into the extent at {at}, asked for {max}"
        );
    }
}

/// Reads the first `len` bytes of an extent at once and in odd pieces: the same bytes, those the host has if it has
/// them; or nothing is touched; or both ways fail.
fn read(layer: &dyn Layer, at: u64, len: u64, extent: Extent, random: &mut Random) {
    let whole = read_all(layer, at, len, extent, &mut || len);
    let pieces = read_all(layer, at, len, extent, &mut || 1 + random.below(1500));
    let (whole, pieces) = match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => (whole, pieces),
        (Err(_), Err(_)) => return,
        // A piece that is whole may come before one that is broken.
        (Err(error), Ok(_)) => panic!("whole: {error}; in pieces it is read"),
        (Ok(_), Err(error)) => panic!("in pieces: {error}; whole it is read"),
    };
    assert!(whole == pieces, "{len} bytes at {at} read otherwise in pieces");
    if extent.kind == Kind::Data
        && let Some(host) = extent.host
    {
        // A file may end inside its last cluster or block: what is missing reads zero.
        let end = layer.host().len().expect("the host has a length");
        let there_are = end.saturating_sub(host).min(whole.len() as u64);
        assert!(there_are > 0, "{extent:?} at {at} is behind the end of the host, which is {end}");
        let mut there = vec![0; whole.len()];
        layer.host().read_at(host, &mut there[..there_are as usize]).expect("the host has what it says");
        assert!(whole == there, "{len} bytes at {at} are not those at {host} in the host");
    }
}

fn read_all(
    layer: &dyn Layer,
    at: u64,
    len: u64,
    extent: Extent,
    piece: &mut dyn FnMut() -> u64,
) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![UNTOUCHED; len as usize];
    let mut done = 0;
    while done < len {
        let end = done.saturating_add(piece()).min(len);
        let buf = &mut bytes[done as usize..end as usize];
        let got = layer.read(at + done, buf).inspect_err(refused)?;
        assert!((1..=buf.len() as u64).contains(&got.len), "{got:?} for {} bytes", buf.len());
        // A hole of the file inside allocated data may be called zero by one and be read by the other.
        if extent.kind == Kind::Zero && got.kind == Kind::Data && got.host.is_some() {
            let (zero, _) = buf.split_at_mut(got.len as usize);
            assert!(zero.iter().all(|byte| *byte == 0), "no zeros are read at {}", at + done);
            zero.fill(UNTOUCHED);
        } else {
            assert_eq!(got.kind, extent.kind, "read at {}", at + done);
        }
        if extent.kind == Kind::Data {
            assert_eq!(got.host, extent.host.map(|host| host + done), "read at {}", at + done);
        }
        assert_eq!(got.compressed, extent.compressed, "read at {}", at + done);
        if got.kind != Kind::Data {
            assert!(buf.iter().all(|byte| *byte == UNTOUCHED), "{got:?} at {} touched the buffer", at + done);
        }
        done += got.len;
    }
    Ok(bytes)
}
