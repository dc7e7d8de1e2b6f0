//! A refcount block: counters of 1 to 64 bits, side by side.

use crate::geometry::Geometry;

/// Reads and writes counters of one width.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Width(u32);

impl Width {
    pub(crate) fn of(geometry: Geometry) -> Width {
        Width(geometry.refcount_order())
    }

    /// The counter at `index`; 0 where the block has none.
    pub(crate) fn get(self, block: &[u8], index: usize) -> u64 {
        let wide = |bytes: usize| {
            let start = index * bytes;
            let value = block.get(start..start + bytes).unwrap_or_default();
            value.iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
        };
        match self.0 {
            order @ 0..=2 => {
                let (byte, shift, mask) = narrow(order, index);
                u64::from(block.get(byte).copied().unwrap_or(0) >> shift & mask)
            }
            order => wide(1 << (order - 3)),
        }
    }

    /// Sets the counter at `index`; `value` fits.
    pub(crate) fn set(self, block: &mut [u8], index: usize, value: u64) {
        match self.0 {
            order @ 0..=2 => {
                let (byte, shift, mask) = narrow(order, index);
                if let Some(byte) = block.get_mut(byte) {
                    *byte = *byte & !(mask << shift) | (value as u8 & mask) << shift;
                }
            }
            order => {
                let bytes = 1usize << (order - 3);
                let start = index * bytes;
                if let Some(place) = block.get_mut(start..start + bytes) {
                    place.copy_from_slice(&value.to_be_bytes()[8 - bytes..]);
                }
            }
        }
    }

    /// The byte in which the counter at `index` starts.
    pub(crate) fn byte(self, index: usize) -> usize {
        (index << self.0) / 8
    }
}

/// Counters of less than a byte fill it from the low end: (byte, shift, mask).
fn narrow(order: u32, index: usize) -> (usize, u32, u8) {
    let per_byte = 8 >> order;
    let bits = 1u32 << order;
    (index / per_byte, (index % per_byte) as u32 * bits, ((1u16 << bits) - 1) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_keeps_neighbours() {
        for order in 0..=6 {
            let geometry = Geometry::new(9, false, order);
            let width = Width::of(geometry);
            let entries = geometry.block_entries() as usize;
            let mut block = vec![0; 512];
            let value = |i: usize| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) & geometry.refcount_max();
            for i in 0..entries {
                width.set(&mut block, i, value(i));
            }
            for i in 0..entries {
                assert_eq!(width.get(&block, i), value(i), "order {order} entry {i}");
            }
            assert_eq!(width.get(&block, entries), 0);
            assert_eq!(width.byte(entries), 512);
        }
        let mut block = [0; 2];
        Width(1).set(&mut block, 1, 3);
        assert_eq!(block, [0b1100, 0]);
        Width(4).set(&mut block, 0, 0x102);
        assert_eq!(block, [1, 2]);
    }
}
