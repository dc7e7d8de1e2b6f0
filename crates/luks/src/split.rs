//! The anti-forensic splitter (LUKS1 specification, 2.4): a key spread over many stripes, all of which are needed.

use cowhand_core::Result;
use zeroize::Zeroizing;

use crate::hash::Hash;
use crate::random;

/// Spreads `key` over `stripes` stripes of its length.
pub(crate) fn split(hash: Hash, key: &[u8], stripes: usize) -> Result<Zeroizing<Vec<u8>>> {
    let mut split = Zeroizing::new(vec![0; key.len() * stripes]);
    let (first, last) = split.split_at_mut(key.len() * (stripes - 1));
    random(first)?;
    let mixed = mix(hash, first, key.len());
    for ((last, mixed), key) in last.iter_mut().zip(mixed.iter()).zip(key) {
        *last = mixed ^ key;
    }
    Ok(split)
}

/// The key of `len` bytes that was spread over `split`, whole stripes.
pub(crate) fn merge(hash: Hash, split: &[u8], len: usize) -> Zeroizing<Vec<u8>> {
    let (first, last) = split.split_at(split.len().saturating_sub(len));
    let mut key = mix(hash, first, len);
    key.iter_mut().zip(last).for_each(|(key, last)| *key ^= last);
    key
}

/// All stripes but the last, each added to what was diffused before.
fn mix(hash: Hash, stripes: &[u8], len: usize) -> Zeroizing<Vec<u8>> {
    let mut mixed = Zeroizing::new(vec![0; len]);
    for stripe in stripes.chunks_exact(len) {
        mixed.iter_mut().zip(stripe).for_each(|(mixed, byte)| *mixed ^= byte);
        for (index, part) in (0u32..).zip(mixed.chunks_mut(hash.digest_len())) {
            let digest = Zeroizing::new(hash.digest(&[&index.to_be_bytes(), part]));
            part.iter_mut().zip(digest.iter()).for_each(|(part, byte)| *part = *byte);
        }
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_split_is_merged_and_every_stripe_counts() {
        for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha512] {
            for len in [16, 24, 32, 48, 64] {
                let key: Vec<u8> = (0..len as u8).collect();
                let mut split = split(hash, &key, 7).unwrap();
                assert_eq!(*merge(hash, &split, len), key);
                split[len * 3 + 1] ^= 1;
                assert_ne!(*merge(hash, &split, len), key);
            }
        }
    }
}
