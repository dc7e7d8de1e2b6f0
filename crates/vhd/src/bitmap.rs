//! Sector bitmaps: which sectors of a block are present, in runs.

/// Which bit of a byte is the first sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BitOrder {
    /// Bit 7, as the specification has it.
    Msb,
    /// Bit 0, as XenServer's first blktap had it.
    Lsb,
}

/// How many sectors from `from` on, of `end` in all, are alike in `bitmap`, and whether they are present. The run may
/// end inside a byte. `from` must be before `end`; sectors past the bitmap's last bit count as absent.
pub(crate) fn run(bitmap: &[u8], order: BitOrder, from: u64, end: u64) -> (u64, bool) {
    // With the first sector in the highest bit, a run's length is a count of leading bits.
    let byte = |index: u64| {
        let byte = usize::try_from(index).ok().and_then(|index| bitmap.get(index)).copied().unwrap_or(0);
        if order == BitOrder::Msb { byte } else { byte.reverse_bits() }
    };
    let present = byte(from / 8) << (from % 8) & 0x80 != 0;
    let mut at = from;
    while at < end {
        let bits = byte(at / 8) << (at % 8);
        let alike =
            u64::from(if present { bits.leading_ones() } else { bits.leading_zeros() }).min(8 - at % 8);
        at += alike;
        if alike == 0 || !at.is_multiple_of(8) {
            break;
        }
    }
    (at.min(end) - from, present)
}

/// Says of the sectors `from..end` that they are present, or that they are not. Those past the bitmap's last bit are
/// passed over.
pub(crate) fn set(bitmap: &mut [u8], order: BitOrder, from: u64, end: u64, present: bool) {
    let mut at = from;
    while at < end {
        let n = (8 - at % 8).min(end - at);
        // `n` bits from `at` on, with the first sector in the highest bit.
        let mask = (0xff00u16 >> n) as u8 >> (at % 8);
        let mask = if order == BitOrder::Msb { mask } else { mask.reverse_bits() };
        if let Some(byte) = usize::try_from(at / 8).ok().and_then(|index| bitmap.get_mut(index)) {
            if present { *byte |= mask } else { *byte &= !mask }
        }
        at += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_those_of_single_bits() {
        let bitmap = [0xff, 0xff, 0x80, 0x01, 0x00, 0x00, 0x3c, 0xfe, 0x55];
        for order in [BitOrder::Msb, BitOrder::Lsb] {
            let bit = |at: u64| {
                let byte = bitmap[at as usize / 8];
                let shift = if order == BitOrder::Msb { 7 - at % 8 } else { at % 8 };
                byte >> shift & 1 == 1
            };
            for end in 1..=72 {
                for from in 0..end {
                    let expected = (from..end).take_while(|at| bit(*at) == bit(from)).count() as u64;
                    assert_eq!(
                        run(&bitmap, order, from, end),
                        (expected, bit(from)),
                        "{order:?} {from}..{end}"
                    );
                }
            }
        }
    }

    #[test]
    fn ranges_are_set_bit_by_bit() {
        for order in [BitOrder::Msb, BitOrder::Lsb] {
            for (from, end) in (0..40).flat_map(|from| (from..=40).map(move |end| (from, end))) {
                for present in [false, true] {
                    let mut bitmap = [if present { 0 } else { 0xff }; 5];
                    set(&mut bitmap, order, from, end, present);
                    for at in 0..40 {
                        let (_, is) = run(&bitmap, order, at, 40);
                        assert_eq!(is, (from..end).contains(&at) == present, "{order:?} {from}..{end} {at}");
                    }
                }
            }
        }
        set(&mut [0], BitOrder::Msb, 7, 100, true);
    }

    #[test]
    fn past_the_bitmap_nothing_is_present() {
        assert_eq!(run(&[0xff], BitOrder::Msb, 8, 20), (12, false));
        assert_eq!(run(&[0xff], BitOrder::Msb, 4, 20), (4, true));
    }
}
