//! Where two pieces of memory are the same and where they differ, in runs of whole units.

/// Splits both after their first run of `unit`-byte pieces that are alike: (length of the run, they are the same).
/// The last piece may be short. Both are equally long and not empty; `unit` is not 0.
pub(crate) fn same_prefix(a: &[u8], b: &[u8], unit: usize) -> (usize, bool) {
    if a == b {
        return (a.len(), true);
    }
    let mut pieces = a.chunks(unit).zip(b.chunks(unit));
    let Some((first_a, first_b)) = pieces.next() else { return (0, true) };
    let same = first_a == first_b;
    let mut len = first_a.len();
    for (piece_a, piece_b) in pieces {
        if (piece_a == piece_b) != same {
            break;
        }
        len += piece_a.len();
    }
    (len, same)
}

#[cfg(test)]
mod tests {
    use super::same_prefix;

    #[test]
    fn splits_at_units() {
        let a = vec![7; 5 * 512 + 3];
        let mut b = a.clone();
        assert_eq!(same_prefix(&a, &b, 512), (a.len(), true));
        b[1100] = 0;
        b[1600] = 0;
        assert_eq!(same_prefix(&a, &b, 512), (1024, true));
        assert_eq!(same_prefix(&a[1024..], &b[1024..], 512), (1024, false));
        assert_eq!(same_prefix(&a[2048..], &b[2048..], 512), (515, true));
        assert_eq!(same_prefix(&a[1500..], &b[1500..], 4096), (a.len() - 1500, false));
    }
}
