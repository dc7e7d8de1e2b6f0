//! Is this all zeros? Asked of every byte that is converted, so it must run at memory speed.

/// True where every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // A non-zero byte is nearly always near the front or the end; look there before the whole run.
    match bytes {
        [] => return true,
        [first, .., last] if *first | *last != 0 => return false,
        _ => {}
    }
    let mut chunks = bytes.chunks_exact(256);
    chunks.by_ref().all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
        && chunks.remainder().iter().all(|byte| *byte == 0)
}

/// Splits `bytes` after its first run of `unit`-byte pieces that are alike: (length of the run, it is zero).
/// The last piece may be short. `bytes` must not be empty, `unit` not 0.
pub fn zero_prefix(bytes: &[u8], unit: usize) -> (usize, bool) {
    let mut pieces = bytes.chunks(unit);
    let Some(first) = pieces.next() else { return (0, true) };
    let zero = is_zero(first);
    let mut len = first.len();
    for piece in pieces {
        if is_zero(piece) != zero {
            break;
        }
        len += piece.len();
    }
    (len, zero)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_any_single_byte() {
        for len in [1, 2, 255, 256, 257, 4096, 5000] {
            let mut bytes = vec![0u8; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn splits_at_units() {
        let mut bytes = vec![0u8; 10 * 512 + 7];
        bytes[1030] = 1;
        assert_eq!(zero_prefix(&bytes, 512), (1024, true));
        assert_eq!(zero_prefix(&bytes[1024..], 512), (512, false));
        assert_eq!(zero_prefix(&bytes[1536..], 512), (bytes.len() - 1536, true));
    }
}
