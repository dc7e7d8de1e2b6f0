//! What stands before the content of a zstd frame and of its blocks (RFC 8878, section 3.1).

use cowhand_core::{Error, Result};

/// Magic numbers, little-endian; a skippable frame's last four bits are free.
pub(super) const MAGIC: u32 = 0xfd2f_b528;
const SKIPPABLE: u32 = 0x184d_2a50;
/// The largest window that is unpacked: as the zstd program, which also needs telling where there is more.
const WINDOW: u64 = 128 << 20;
/// Content of a block, at most.
const BLOCK: u32 = 128 << 10;
/// Bytes of the longest header.
pub(super) const LONGEST: usize = 18;
/// Bytes of a skippable frame's header, and of a block's.
pub(super) const SKIP_HEAD: usize = 8;
pub(super) const BLOCK_HEAD: usize = 3;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// That many bytes of something else follow its 8.
    Skippable(u32),
    /// Blocks follow.
    Frame {
        /// Bytes of the header.
        head: usize,
        /// Bytes of the content, where it says so.
        content: Option<u64>,
        /// Bytes behind the last block.
        tail: usize,
    },
}

/// Whether a file may begin so.
pub(super) fn probe(head: &[u8]) -> bool {
    match le(head, 0, 4).map(|magic| magic as u32) {
        Some(MAGIC) => true,
        Some(magic) if magic & !15 == SKIPPABLE => {
            // What it says is something else's; where the next frame can be seen, it is looked at.
            let next = le(head, 4, 4).and_then(|len| head.get(SKIP_HEAD.checked_add(len as usize)?..));
            next.is_none_or(|next| next.len() < 4 || probe(next))
        }
        _ => false,
    }
}

impl Head {
    /// Reads the header that `bytes` begin with. `None`: it is longer than they are.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Head>> {
        let Some(magic) = le(bytes, 0, 4) else { return Ok(None) };
        let magic = magic as u32;
        if magic & !15 == SKIPPABLE {
            return Ok(le(bytes, 4, 4).map(|len| Head::Skippable(len as u32)));
        }
        if magic != MAGIC {
            return Err(Error::corrupt("zstd frame", "what stands here is no frame"));
        }
        let Some(descriptor) = le(bytes, 4, 1) else { return Ok(None) };
        if descriptor & 8 != 0 {
            return Err(Error::unsupported("the zstd frame is of a kind that is not known"));
        }
        let single = descriptor & 0x20 != 0;
        let dictionary = [0, 1, 2, 4][descriptor as usize & 3]; // never out of bounds: two bits
        let content = match descriptor >> 6 {
            0 => usize::from(single),
            1 => 2,
            2 => 4,
            _ => 8,
        };
        let window = usize::from(!single);
        let mut at = 5;
        let mut field = |len: usize| {
            let value = le(bytes, at, len);
            at += len;
            value
        };
        let (Some(window), Some(id), Some(size)) = (field(window), field(dictionary), field(content)) else {
            return Ok(None);
        };
        let size = if content == 2 { size + 256 } else { size };
        let window = if single { size } else { (8 + (window & 7)) << (7 + (window >> 3)) };
        if window > WINDOW {
            let message = format!("unpacking needs {} MiB of memory", window.div_ceil(1 << 20));
            return Err(Error::unsupported(message)
                .field("zstd frame")
                .hint("at most 128 MiB are used; unpack it with 'zstd -d --long=31' first"));
        }
        if id != 0 {
            return Err(Error::unsupported("it was packed with a dictionary").field("zstd frame"));
        }
        let tail = if descriptor & 4 != 0 { 4 } else { 0 };
        Ok(Some(Head::Frame { head: at, content: (content > 0).then_some(size), tail }))
    }
}

/// A block's header: whether it is the last one, and how many bytes follow.
pub(super) fn block(bytes: [u8; BLOCK_HEAD]) -> Result<(bool, usize)> {
    let [low, middle, high] = bytes;
    let header = u32::from_le_bytes([low, middle, high, 0]);
    let size = header >> 3;
    let kind = header >> 1 & 3;
    if kind == 3 || size > BLOCK {
        return Err(Error::corrupt("zstd block", "what stands here is none"));
    }
    // A block of one byte over and over holds it once.
    let len = if kind == 1 { 1 } else { size };
    Ok((header & 1 != 0, len as usize))
}

/// The number of that many bytes. `None`: they are not all there.
pub(super) fn le(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(len)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_encoder_wrote() {
        for (len, level) in [(0, 1), (1, 1), (255, 3), (256, 3), (70_000, 1), (300_000, 19), (2_000_000, 1)] {
            let bytes: Vec<u8> = (0..len).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 20) as u8).collect();
            let mut packed = zstd::bulk::compress(&bytes, level).unwrap();
            let Head::Frame { head, content, tail } = Head::parse(&packed).unwrap().unwrap() else {
                panic!()
            };
            assert_eq!((content, tail), (Some(u64::from(len)), 0));
            for cut in 0..head {
                assert_eq!(Head::parse(&packed[..cut]).unwrap(), None);
            }
            let mut at = head;
            loop {
                let (last, len) = block(packed[at..at + 3].try_into().unwrap()).unwrap();
                at += 3 + len;
                if last {
                    break;
                }
            }
            assert_eq!(at, packed.len());
            packed[0] ^= 1;
            Head::parse(&packed).unwrap_err();
        }
    }

    #[test]
    fn large_windows_are_refused() {
        let frame = |window: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, window, 0, 0, 0];
        Head::parse(&frame(17 << 3)).unwrap().unwrap();
        for window in [17 << 3 | 1, 18 << 3, 0xff] {
            let error = Head::parse(&frame(window)).unwrap_err();
            assert_eq!(error.kind(), cowhand_core::ErrorKind::Unsupported);
        }
    }

    #[test]
    fn a_file_may_begin_with_something_else() {
        assert!(probe(&[0x28, 0xb5, 0x2f, 0xfd]));
        assert!(probe(&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4, 0x28, 0xb5, 0x2f, 0xfd]));
        assert!(!probe(&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4, 0x04, 0x22, 0x4d, 0x18]));
        assert!(!probe(b"QFI\xfb") && !probe(b"") && !probe(&[0x28, 0xb5]));
    }
}
