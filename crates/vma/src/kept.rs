//! An index as bytes, to be kept beside its archive. What is read back came from outside, and is looked at as an archive
//! is.
//!
//! ```text
//! RawKept · runs of each disk, u32 each · the archive's header · extents · masks · runs · MD5 of all before
//! ```
//!
//! All numbers are little-endian.

use cowhand_core::{Error, Result};
use md5::{Digest, Md5};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::header;
use crate::index::Index;
use crate::layout::MAX_HEADER;
use crate::places::{BUDGET, Places};

const MAGIC: [u8; 8] = *b"cowh-vma";
const VERSION: u32 = 1;
/// The checksum at the end.
const SUM: usize = 16;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawKept {
    magic: [u8; 8],
    version: U32,
    /// Bytes of the archive's header.
    front: U32,
    /// The archive's bytes.
    len: U64,
    stored: U32,
    masks: U32,
    disks: U32,
}

/// The index as bytes.
pub(crate) fn to_bytes(index: &Index) -> Vec<u8> {
    let (stored, masks, runs) = index.places.parts();
    // Never more: the budget of all of them is less.
    let count = |len: usize| U32::new(u32::try_from(len).unwrap_or(u32::MAX));
    let raw = RawKept {
        magic: MAGIC,
        version: VERSION.into(),
        front: count(index.front.len()),
        len: index.len.into(),
        stored: count(stored.len()),
        masks: count(masks.len()),
        disks: count(runs.len()),
    };
    let counts: Vec<U32> = runs.iter().map(|runs| count(runs.len())).collect();
    let lists = [raw.as_bytes(), counts.as_bytes(), &index.front, stored.as_bytes(), masks.as_bytes()];
    let lists = || lists.into_iter().chain(runs.iter().map(|runs| runs.as_bytes()));
    let mut bytes = Vec::with_capacity(lists().map(<[u8]>::len).sum::<usize>() + SUM);
    lists().for_each(|list| bytes.extend_from_slice(list));
    let sum = Md5::digest(&bytes);
    bytes.extend_from_slice(&sum);
    bytes
}

/// The index of such bytes. Errors: they are none, or contradict themselves.
pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Index> {
    if bytes.len() > BUDGET + MAX_HEADER as usize + (1 << 20) {
        return Err(wrong(format!("{} bytes are too many", bytes.len())));
    }
    let whole = bytes.split_last_chunk::<SUM>().filter(|(front, _)| front.starts_with(&MAGIC));
    let (mut rest, sum) = whole.ok_or_else(|| wrong("it is none"))?;
    let raw = RawKept::ref_from_prefix(rest).map(|(raw, _)| *raw).map_err(|_| ends())?;
    if raw.version.get() != VERSION {
        return Err(wrong(format!("its version is {}, and only {VERSION} is known", raw.version)));
    }
    if *sum != *Md5::digest(rest) {
        return Err(wrong("its checksum is wrong"));
    }
    take::<RawKept>(&mut rest, 1)?;
    let counts: Vec<U32> = take(&mut rest, raw.disks.get())?;
    let front = take(&mut rest, raw.front.get())?;
    let header = header::parse(&front)?;
    if header.size != front.len() as u64 || header.manifest.disks.len() != counts.len() {
        return Err(wrong("the archive's header says otherwise"));
    }
    let stored = take(&mut rest, raw.stored.get())?;
    let masks = take(&mut rest, raw.masks.get())?;
    let runs: Result<Vec<_>> = counts.iter().map(|count| take(&mut rest, count.get())).collect();
    let runs = runs?;
    if !rest.is_empty() {
        return Err(wrong("something follows its end"));
    }
    let places = Places::of_parts(stored, masks, runs);
    places.check(&header, raw.len.get()).map_err(wrong)?;
    Ok(Index { front, header, len: raw.len.get(), places })
}

/// The next `count` of them.
fn take<'a, T>(rest: &mut &'a [u8], count: u32) -> Result<Vec<T>>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned + Clone + 'a,
{
    let (list, behind) = <[T]>::ref_from_prefix_with_elems(rest, count as usize).map_err(|_| ends())?;
    *rest = behind;
    Ok(list.to_vec())
}

fn ends() -> Error {
    wrong("it ends within its lists")
}

fn wrong(what: impl Into<String>) -> Error {
    Error::corrupt("kept index", what).hint("remove it, and it is made again")
}
