//! lzop's files: parts of a header and blocks that are packed each by itself, so that unpacking can begin at any of them.

mod blocks;
mod pack;
mod rescue;
mod unpack;

use std::io::{BufReader, Read, Write};
use std::ops::RangeInclusive;
use std::sync::Arc;

use cowhand_core::{Error, Result, Storage};

use crate::pieces::InPieces;
use crate::{How, Pack, Packing, SeekTable, Span, Survey};
use blocks::{Blocks, MAGIC, Steps};
use pack::InBlocks;
use rescue::Rescue;
use unpack::Unpack;

/// Unpacked bytes between two points, at least.
const APART: u64 = 1 << 20;

/// Bytes that are read ahead.
const AHEAD: usize = 64 << 10;

/// lzop's files, which end in `.lzo`.
#[derive(Clone, Copy, Debug)]
pub struct Lzop;

impl Packing for Lzop {
    fn name(&self) -> &'static str {
        "lzo"
    }

    fn extension(&self) -> &'static str {
        "lzo"
    }

    fn probe(&self, head: &[u8]) -> bool {
        head.starts_with(&MAGIC)
    }

    fn levels(&self) -> RangeInclusive<i32> {
        1..=1
    }

    fn unpack<'a>(&self, input: Box<dyn Read + Send + 'a>) -> Box<dyn Read + Send + 'a> {
        Box::new(Rescue::new(BufReader::with_capacity(AHEAD, input)))
    }

    fn pack<'a>(&self, output: Box<dyn Write + Send + 'a>, how: How) -> Result<Box<dyn Pack + 'a>> {
        how.level_of(self, 1)?;
        Ok(Box::new(InPieces::new(InBlocks, output, how.threads())?))
    }

    fn table(&self, file: &dyn Storage) -> Result<Option<SeekTable>> {
        Unpack::new(Blocks::new(Steps { file, at: 0 }), APART).rest().map(Some)
    }

    fn survey(&self, file: Arc<dyn Storage>) -> Result<Option<Box<dyn Survey>>> {
        Ok(Some(Box::new(Unpack::new(Blocks::new(Steps { file, at: 0 }), APART))))
    }

    fn unpack_from(&self, file: Arc<dyn Storage>, span: Span<'_>) -> Result<Box<dyn Read + Send>> {
        let Span { from, len, .. } = span;
        let flags = from.state.as_slice().try_into().map_err(|_| {
            let bytes = from.state.len();
            Error::corrupt(
                "seek table of an lzop file",
                format!("a point's state has {bytes} bytes instead of 4"),
            )
        })?;
        let input = BufReader::with_capacity(AHEAD, Steps { file, at: from.packed });
        let blocks = Blocks::within_part(input, from.packed, u32::from_be_bytes(flags));
        Ok(Box::new(Unpack::new(blocks, u64::MAX).take(len)))
    }
}

#[cfg(test)]
mod tests {
    use super::blocks::ADLER_OF_DATA;
    use super::*;
    use crate::Point;
    use cowhand_core::testing::Rng;
    use cowhand_core::{ErrorKind, MemoryStorage};
    use libdeflater::{adler32, crc32};

    fn stored(bytes: &[u8]) -> Arc<dyn Storage> {
        let storage = MemoryStorage::new();
        storage.write_at(0, bytes).unwrap();
        Arc::new(storage)
    }

    /// Half of it is noise.
    fn bytes(len: usize) -> Vec<u8> {
        let mut random = Rng::new(len as u64);
        (0..len).map(|at| if at / 500 % 2 == 0 { random.below(256) as u8 } else { (at / 7) as u8 }).collect()
    }

    fn packed(bytes: &[u8], workers: usize) -> Vec<u8> {
        let mut file = Vec::new();
        let mut pack = Lzop.pack(Box::new(&mut file), How { workers, ..How::default() }).unwrap();
        pack.write_all(bytes).unwrap();
        pack.finish().unwrap();
        file
    }

    fn unpacked(file: &[u8]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        Lzop.unpack(Box::new(file)).read_to_end(&mut bytes).map_err(|error| Error::io("reading", error))?;
        Ok(bytes)
    }

    /// A part with these flags, of blocks that are stored and of packed ones in turn.
    fn part(flags: u32, blocks: &[&[u8]]) -> Vec<u8> {
        let mut fields = vec![0x10, 0x40, 0x20, 0xa0, 0x09, 0x40, 3, 9];
        fields.extend(flags.to_be_bytes());
        fields.extend([0; 12]);
        fields.extend(b"\x05a.raw");
        let sum = |bytes: &[u8]| if flags & 0x1000 == 0 { adler32(bytes) } else { crc32(bytes) };
        let mut part = [&MAGIC[..], &fields, &sum(&fields).to_be_bytes()].concat();
        if flags & 0x40 != 0 {
            let extra = b"\0\0\0\x03abc";
            part.extend([&extra[..], &sum(extra).to_be_bytes()].concat());
        }
        for (number, block) in blocks.iter().enumerate() {
            let mut packed = Vec::new();
            crate::lzo1x::Packer::new().pack(block, &mut packed);
            let store = number % 2 == 0 || packed.len() >= block.len();
            let packed = if store { block } else { packed.as_slice() };
            part.extend([block.len() as u32, packed.len() as u32].map(u32::to_be_bytes).as_flattened());
            let sums =
                [(1, adler32(block)), (0x100, crc32(block)), (2, adler32(packed)), (0x200, crc32(packed))];
            for (bit, sum) in sums {
                if flags & bit != 0 && (bit & 0x101 != 0 || !store) {
                    part.extend(sum.to_be_bytes());
                }
            }
            part.extend(packed);
        }
        part.extend([0; 4]);
        part
    }

    #[test]
    fn what_is_packed_unpacks_whatever_the_length_and_the_threads() {
        for len in [0, 1, 3, 5000, (256 << 10) - 1, 256 << 10, (256 << 10) + 1, 1_500_000] {
            let bytes = bytes(len);
            let file = packed(&bytes, 1);
            assert_eq!(packed(&bytes, 3), file, "{len}");
            assert!(unpacked(&file).unwrap() == bytes, "{len}");
            for cut in [0, 1, 20, file.len() - 5, file.len() - 1] {
                assert_eq!(
                    unpacked(&file[..cut]).unwrap_err().kind(),
                    ErrorKind::Changed,
                    "{len} cut to {cut}"
                );
            }
            let longer = [&file[..], &[0x89]].concat();
            assert_eq!(unpacked(&longer).unwrap_err().kind(), ErrorKind::Changed, "{len}");
            assert!(unpacked(&[&file[..], &[0; 70_000]].concat()).unwrap() == bytes);
            let longer = [&file[..], &[0; 70_000], b"x"].concat();
            assert_eq!(unpacked(&longer).unwrap_err().kind(), ErrorKind::Corrupt, "{len}");
            let longer = [&file[..], b"x"].concat();
            assert_eq!(unpacked(&longer).unwrap_err().kind(), ErrorKind::Corrupt, "{len}");
        }
    }

    #[test]
    fn every_sort_of_checksum_is_verified() {
        let (first, second) = (bytes(900), vec![7; 900]);
        for sums in 0..16 {
            let flags = (sums & 3) | (sums >> 2) << 8 | 0x0300_0000;
            for more in [0, 0x40, 0x1000, 0x1040] {
                let file = part(flags | more, &[&first, &second]);
                let found =
                    unpacked(&file).map_err(|error| format!("{flags:#x} {more:#x}: {error}")).unwrap();
                assert!(found == [&first[..], &second].concat(), "{flags:#x}");
                let mut missed = 0;
                for at in 0..file.len() {
                    let mut broken = file.clone();
                    broken[at] ^= 0x40;
                    missed += usize::from(unpacked(&broken).is_ok());
                }
                // Without checksums of data nothing is known of it.
                assert_eq!(missed > 0, sums & 0b0101 == 0, "{flags:#x}: {missed}");
            }
        }
    }

    #[test]
    fn nothing_comes_out_of_a_broken_block_that_is_stored() {
        let (long, short) = (bytes(900), bytes(300));
        for (blocks, broken) in [([&long, &short], 0), ([&short, &long], 0), ([&long, &short], 1)] {
            let intact = blocks[1 - broken];
            let bad = blocks[broken];
            // Each in a part of its own: so it is stored.
            let mut parts = blocks.map(|block| part(ADLER_OF_DATA, &[block]));
            let at = parts[broken].len() - 4 - bad.len() / 2;
            parts[broken][at] ^= 1;
            let file = parts.concat();
            let (mut found, mut errors) = (Vec::new(), 0);
            let mut unpack = Lzop.unpack(Box::new(file.as_slice()));
            while errors < 2 {
                match unpack.read_to_end(&mut found) {
                    Ok(_) => break,
                    Err(_) => errors += 1,
                }
            }
            assert_eq!(errors, 1);
            assert!(found == *intact, "{} bytes", found.len());
            // Who goes on at random is told again, and not that it is the end.
            let mut survey = Lzop.survey(stored(&file)).unwrap().unwrap();
            let mut passed = vec![0; if broken == 0 { 0 } else { intact.len() }];
            survey.read_exact(&mut passed).unwrap();
            survey.read(&mut [0; 10]).unwrap_err();
            let next = survey.skip(1);
            assert_eq!(next.is_ok(), broken == 0, "{next:?}");
        }
    }

    #[test]
    fn what_cannot_be_unpacked_is_refused() {
        let kind = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut file = part(1, &[b"some bytes"]);
            let header = file.len() - 4 - 10 - 12;
            change(&mut file);
            let sum = adler32(&file[9..header - 4]);
            file[header - 4..header].copy_from_slice(&sum.to_be_bytes());
            unpacked(&file).unwrap_err().kind()
        };
        assert_eq!(kind(&|file| file[9] = 0x08), ErrorKind::Unsupported);
        assert_eq!(kind(&|file| file[13] = 0x20), ErrorKind::Unsupported);
        assert_eq!(kind(&|file| file[15] = 128), ErrorKind::Unsupported);
        // A block of 64 MiB and a byte; one that is longer than what it unpacks to; one of no bytes.
        for (unpacked, packed) in [((64 << 20) + 1_u32, 10_u32), (u32::MAX, 10), (9, 10), (10, 0)] {
            let lengths = [unpacked, packed].map(u32::to_be_bytes);
            let at = |file: &Vec<u8>| file.len() - 4 - 10 - 12;
            let change = |file: &mut Vec<u8>| {
                let at = at(file);
                file[at..at + 8].copy_from_slice(lengths.as_flattened());
            };
            assert_eq!(kind(&change), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn unpacking_begins_at_any_point() {
        let whole = bytes(5_000_000);
        let parts = [packed(&whole[..1_700_000], 1), part(0x301, &[&whole[1_700_000..1_900_000]])];
        let file = [parts.concat(), packed(b"", 1), packed(&whole[1_900_000..], 2)].concat();
        let file = stored(&file);
        let table = Lzop.table(&*file).unwrap().unwrap();
        assert_eq!(table.len, whole.len() as u64);
        assert!(table.points.len() >= 4, "{}", table.points.len());
        table.check(file.len().unwrap()).unwrap();
        for number in 0..table.points.len() {
            let span = table.span(number).unwrap();
            let from = span.from.unpacked as usize;
            let mut found = Vec::new();
            Lzop.unpack_from(file.clone(), span).unwrap().read_to_end(&mut found).unwrap();
            assert!(found == whole[from..from + span.len as usize], "{span:?}");
        }
        let mut survey = Lzop.survey(file.clone()).unwrap().unwrap();
        let mut random = Rng::new(1);
        let mut at = 0;
        while at < whole.len() {
            let most = *random.pick(&[100, 1_000_000]);
            let len = (1 + random.below(most) as usize).min(whole.len() - at);
            if random.chance(1, 2) {
                survey.skip(len as u64).unwrap();
            } else {
                let mut found = vec![0; len];
                survey.read_exact(&mut found).unwrap();
                assert!(found == whole[at..at + len], "{at}");
            }
            at += len;
        }
        assert_eq!(survey.skip(1).unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
        assert_eq!(Lzop.survey(file.clone()).unwrap().unwrap().finish().unwrap(), table);
        for state in [vec![], vec![1, 2, 3], vec![0; 5]] {
            let from = &Point { state, ..table.points[0].clone() };
            let span = Span { from, ..table.span(0).unwrap() };
            assert!(Lzop.unpack_from(file.clone(), span).is_err());
        }
    }
}
