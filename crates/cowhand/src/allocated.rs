//! `allocated` and `block-bitmap`: what one file, without its parents, keeps of its disk.

use cowhand_core::{Error, Image, Layer, Result};

/// Guest bytes of a bit where the format has no clusters or blocks.
const RAW_CLUSTER: u64 = 65536;
/// Bytes of a bitmap that are handed on at a time.
const PIECE: u64 = 64 << 10;

/// Bytes that the top file keeps for guest data: whole clusters and blocks, subclusters one by one, compressed clusters
/// as they are stored. What only says zero, or nothing, does not count.
pub fn allocated(image: &Image) -> Result<u64> {
    let mut sum: u64 = 0;
    top(image)
        .allocated(&mut |_, bytes| {
            sum = sum.saturating_add(bytes);
            Ok(())
        })
        .map_err(|error| error.image(image.name()))?;
    Ok(sum)
}

/// Guest bytes that a bit of [`block_bitmap`] stands for.
pub fn bitmap_unit(image: &Image) -> u64 {
    top(image).details().cluster_size.unwrap_or(RAW_CLUSTER).max(1)
}

/// Hands to `out`, piece by piece, one bit for each cluster of the top file, the lowest bit first: set where the file
/// keeps something of it. All in all `ceil(size / bitmap_unit / 8)` bytes.
pub fn block_bitmap(image: &Image, mut out: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let unit = bitmap_unit(image);
    let clusters = image.size().div_ceil(unit);
    let mut piece = Piece { first: 0, bits: clusters.min(PIECE * 8), bytes: Vec::new() };
    piece.clear();
    let mut write = |piece: &mut Piece| {
        out(&piece.bytes)?;
        piece.first += piece.bits;
        piece.bits = (clusters - piece.first).min(PIECE * 8);
        piece.clear();
        Ok::<(), Error>(())
    };
    top(image)
        .allocated(&mut |range, _| {
            let mut first = range.start / unit;
            let end = range.end.div_ceil(unit);
            while first < end {
                while first >= piece.first + piece.bits && piece.bits > 0 {
                    write(&mut piece)?;
                }
                let last = end.min(piece.first + piece.bits);
                if last <= first {
                    break;
                }
                piece.set(first - piece.first, last - piece.first);
                first = last;
            }
            Ok(())
        })
        .map_err(|error| error.image(image.name()))?;
    while piece.bits > 0 {
        write(&mut piece)?;
    }
    Ok(())
}

/// Some of a bitmap's bits.
struct Piece {
    /// The cluster of the first bit.
    first: u64,
    bits: u64,
    bytes: Vec<u8>,
}

impl Piece {
    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.resize(self.bits.div_ceil(8) as usize, 0);
    }

    fn set(&mut self, mut bit: u64, end: u64) {
        while bit < end {
            if let Some(byte) = self.bytes.get_mut((bit / 8) as usize) {
                let n = (8 - bit % 8).min(end - bit);
                *byte |= (((1u16 << n) - 1) << (bit % 8)) as u8;
                bit += n;
            } else {
                break;
            }
        }
    }
}

fn top(image: &Image) -> &dyn Layer {
    image.top().layer.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::{Details, Extent, Link, MemoryStorage, Storage};
    use std::ops::Range;
    use std::sync::Arc;

    /// A disk that keeps these clusters of 512 bytes.
    #[derive(Debug)]
    struct Kept {
        size: u64,
        clusters: Vec<Range<u64>>,
        file: Arc<dyn Storage>,
    }

    impl Layer for Kept {
        fn size(&self) -> u64 {
            self.size
        }
        fn granule(&self) -> u64 {
            512
        }
        fn host(&self) -> &Arc<dyn Storage> {
            &self.file
        }
        fn extent(&self, _at: u64, max: u64) -> Result<Extent> {
            Ok(Extent::hole(max))
        }
        fn read(&self, _at: u64, buf: &mut [u8]) -> Result<Extent> {
            Ok(Extent::hole(buf.len() as u64))
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn details(&self) -> Details {
            Details { cluster_size: Some(512), ..Details::default() }
        }
        fn allocated(&self, see: &mut dyn FnMut(Range<u64>, u64) -> Result<()>) -> Result<()> {
            for run in &self.clusters {
                see(run.start * 512..(run.end * 512).min(self.size), 7)?;
            }
            Ok(())
        }
    }

    fn bits(size: u64, clusters: &[Range<u64>]) -> Vec<u8> {
        let layer =
            Arc::new(Kept { size, clusters: clusters.to_vec(), file: Arc::new(MemoryStorage::new()) });
        let image = Image::new(vec![Link { layer, name: "kept".into(), format: "kept" }]).unwrap();
        assert_eq!(allocated(&image).unwrap(), 7 * clusters.len() as u64);
        let mut all = Vec::new();
        block_bitmap(&image, |bytes| {
            all.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
        all
    }

    #[test]
    fn the_lowest_bit_is_first_and_the_tail_is_there() {
        assert!(bits(0, &[]).is_empty());
        assert_eq!(bits(1, &[]), [0]);
        assert_eq!(bits(512 * 9 - 1, &[0..1, 8..9]), [1, 1]);
        assert_eq!(bits(512 * 24, &[3..4, 4..13]), [0b1111_1000, 0b0001_1111, 0]);
    }

    #[test]
    fn pieces_join() {
        let piece = PIECE * 8;
        let found =
            bits(512 * (3 * piece + 5), &[1..2, piece - 1..2 * piece + 1, 3 * piece + 4..3 * piece + 5]);
        assert_eq!(found.len() as u64, 3 * PIECE + 1);
        let set = |bit: u64| found[(bit / 8) as usize] >> (bit % 8) & 1 == 1;
        for bit in 0..3 * piece + 5 {
            let wanted = bit == 1 || (piece - 1..2 * piece + 1).contains(&bit) || bit == 3 * piece + 4;
            assert_eq!(set(bit), wanted, "{bit}");
        }
    }
}
