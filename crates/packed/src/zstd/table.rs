//! The places where frames begin: from the seek table that the file ends with, or from the headers of all frames.

use cowhand_core::{Error, ErrorKind, Result, Storage};

use super::frame::{BLOCK_HEAD, Head, LONGEST, SKIP_HEAD, block, le};
use super::pack::{FOOTER, MOST_FRAMES, SEEKABLE, TABLE_FRAME};
use super::unpack::APART;
use crate::storage::WHOLE;
use crate::table::{Point, Points, SeekTable};

/// Bytes of the stored table that are read at a time; a whole number of entries, of either size.
const PART: usize = 24 << 10;
/// How far the first frame may reach, in packed bytes and in reads, where somebody asks if there is another.
const FAR: u64 = 256 << 20;
const OFTEN: usize = 1 << 16;

fn failed(error: std::io::Error) -> Error {
    Error::io("cannot read", error)
}

/// The table that the file ends with. `None`: it has none, or one that is not about this file.
pub(super) fn stored(file: &dyn Storage) -> Result<Option<SeekTable>> {
    let file_len = file.len().map_err(failed)?;
    let mut footer = [0; FOOTER];
    let Some(end) = file_len.checked_sub(FOOTER as u64) else { return Ok(None) };
    file.read_at(end, &mut footer).map_err(failed)?;
    let [n0, n1, n2, n3, descriptor, magic @ ..] = footer;
    let count = u32::from_le_bytes([n0, n1, n2, n3]);
    // Bits 2 to 6 would mean something else.
    if u32::from_le_bytes(magic) != SEEKABLE || descriptor & 0x7c != 0 || count as usize > MOST_FRAMES {
        return Ok(None);
    }
    let entry = if descriptor & 0x80 == 0 { 8 } else { 12 };
    let size = u64::from(count) * entry;
    let Some(begin) = end.checked_sub(size + SKIP_HEAD as u64) else { return Ok(None) };
    let mut head = [0; SKIP_HEAD];
    file.read_at(begin, &mut head).map_err(failed)?;
    let stated = le(&head, 4, 4);
    if le(&head, 0, 4) != Some(u64::from(TABLE_FRAME)) || stated != Some(size + FOOTER as u64) {
        return Ok(None);
    }
    let mut points = Points::new(APART);
    let (mut packed, mut unpacked, mut done) = (0_u64, 0_u64, 0_u64);
    let mut part = vec![0; PART];
    while done < size {
        let n = (size - done).min(PART as u64) as usize;
        let part = &mut part[..n]; // never out of bounds: at most its length
        file.read_at(begin + SKIP_HEAD as u64 + done, part).map_err(failed)?;
        for entry in part.chunks_exact(entry as usize) {
            let (Some(one), Some(other)) = (le(entry, 0, 4), le(entry, 4, 4)) else { return Ok(None) };
            // One that is wrong would shift what stands in all the frames behind it.
            if other > 0 && !holds(file, packed, one.min(begin.saturating_sub(packed)), other)? {
                return Ok(None);
            }
            if other > 0 {
                points.add(Point { packed, unpacked, state: Vec::new() });
            }
            // Never too large: at most 2^27 numbers of 32 bits.
            packed += one;
            unpacked += other;
        }
        done += n as u64;
    }
    let table = points.table(unpacked);
    Ok((packed == begin && table.check(begin).is_ok()).then_some(table))
}

/// Whether the frame at `at`, of `len` bytes, may hold that much: many do not say.
fn holds(file: &dyn Storage, at: u64, len: u64, content: u64) -> Result<bool> {
    let mut head = [0; LONGEST];
    let head = &mut head[..len.min(LONGEST as u64) as usize]; // never out of bounds: at most its length
    file.read_at(at, head).map_err(failed)?;
    let Ok(Some(Head::Frame { content: stated, .. })) = Head::parse(head) else { return Ok(false) };
    Ok(stated.is_none_or(|stated| stated == content))
}

/// A file's bytes here and there: a small piece is read at a time, and what lies between is not.
struct Here<'a> {
    file: &'a dyn Storage,
    len: u64,
    begin: u64,
    bytes: Vec<u8>,
    reads: usize,
}

impl<'a> Here<'a> {
    fn new(file: &'a dyn Storage) -> Result<Here<'a>> {
        Ok(Here { file, len: file.len().map_err(failed)?, begin: 0, bytes: Vec::new(), reads: 0 })
    }

    /// Up to `most` bytes from `at` on: fewer where the file ends.
    fn get(&mut self, at: u64, most: usize) -> Result<&[u8]> {
        const PIECE: u64 = 4096;
        let most = (self.len.saturating_sub(at)).min(most as u64) as usize;
        let end = self.begin + self.bytes.len() as u64;
        if at < self.begin || at + most as u64 > end {
            self.bytes.resize(self.len.saturating_sub(at).min(PIECE) as usize, 0);
            self.file.read_at(at, &mut self.bytes).map_err(failed)?;
            self.begin = at;
            self.reads += 1;
        }
        let from = (at - self.begin) as usize;
        Ok(self.bytes.get(from..from + most).unwrap_or_default())
    }

    /// The header of the frame at `at`. `None`: the file ends there.
    fn head(&mut self, at: u64) -> Result<Option<Head>> {
        if at == self.len {
            return Ok(None);
        }
        let head = Head::parse(self.get(at, LONGEST)?).map_err(|error| error.at(at))?;
        head.map(Some).ok_or_else(|| self.cut())
    }

    /// Where a frame ends whose first block is at `at`. `None`: `enough` says that it is not worth while.
    fn end(&mut self, mut at: u64, tail: usize, enough: impl Fn(&Self, u64) -> bool) -> Result<Option<u64>> {
        loop {
            if enough(self, at) {
                return Ok(None);
            }
            let header = self.get(at, BLOCK_HEAD)?.first_chunk().copied();
            let (last, len) = block(header.ok_or_else(|| self.cut())?).map_err(|error| error.at(at))?;
            at += (BLOCK_HEAD + len) as u64;
            if last {
                at += tail as u64;
                return if at > self.len { Err(self.cut()) } else { Ok(Some(at)) };
            }
        }
    }

    fn skip(&self, at: u64, len: u32) -> Result<u64> {
        let end = at + SKIP_HEAD as u64 + u64::from(len);
        if end > self.len { Err(self.cut()) } else { Ok(end) }
    }

    fn cut(&self) -> Error {
        Error::new(ErrorKind::Changed, "the zstd file ends before its end")
    }
}

/// From the headers of all frames and their blocks, with nothing unpacked. `None`: a frame does not say how much it holds,
/// or holds too much for reading at random.
pub(super) fn walked(file: &dyn Storage) -> Result<Option<SeekTable>> {
    let mut here = Here::new(file)?;
    let mut points = Points::new(APART);
    let (mut at, mut unpacked) = (0, 0_u64);
    while let Some(head) = here.head(at)? {
        at = match head {
            Head::Skippable(len) => here.skip(at, len)?,
            Head::Frame { head, content, tail } => {
                let Some(content) = content.filter(|content| *content <= WHOLE) else { return Ok(None) };
                if content > 0 {
                    points.add(Point { packed: at, unpacked, state: Vec::new() });
                }
                unpacked += content; // never too large: a frame of 8 MiB takes hundreds of bytes of the file
                let Some(end) = here.end(at + head as u64, tail, |_, _| false)? else { return Ok(None) };
                end
            }
        };
    }
    Ok(Some(points.table(unpacked)))
}

/// Whether it has more than one frame with content. Where the first is very long the others, if there are any, are no help.
pub(super) fn several(file: &dyn Storage) -> Result<bool> {
    let mut here = Here::new(file)?;
    let mut found = false;
    let mut at = 0;
    while let Some(head) = here.head(at)? {
        at = match head {
            Head::Skippable(len) => here.skip(at, len)?,
            Head::Frame { .. } if found => return Ok(true),
            Head::Frame { head, tail, .. } => {
                found = true;
                let far = |here: &Here<'_>, at| at > FAR || here.reads > OFTEN;
                let Some(end) = here.end(at + head as u64, tail, far)? else { return Ok(false) };
                end
            }
        };
    }
    Ok(false)
}
