//! The hashes: by their names, as digests, and as PBKDF2 with HMAC.

use cowhand_core::{Error, Result};
use md5::Md5;
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::Digest;
use sha2::{Sha224, Sha256, Sha384, Sha512};

/// A hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Md5,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Ripemd160,
}

/// The hashes that `hash-alg` and `ivgen-hash-alg` take, as QEMU names them.
pub const HASHES: &[&str] = &["md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"];

const ALL: [Hash; 7] =
    [Hash::Md5, Hash::Sha1, Hash::Sha224, Hash::Sha256, Hash::Sha384, Hash::Sha512, Hash::Ripemd160];

impl Hash {
    /// The hash of that name. Errors: one that is not known here.
    pub(crate) fn by_name(name: &str) -> Result<Hash> {
        let found = HASHES.iter().zip(ALL).find(|(known, _)| **known == name);
        found.map(|(_, hash)| hash).ok_or_else(|| {
            Error::unsupported(format!("the hash '{name}' is not known here"))
                .hint(format!("known are {}", HASHES.join(", ")))
        })
    }

    pub(crate) fn name(self) -> &'static str {
        let found = ALL.iter().zip(HASHES).find(|(hash, _)| **hash == self);
        found.map_or("", |(_, name)| name)
    }

    /// Bytes of a digest.
    pub(crate) fn digest_len(self) -> usize {
        match self {
            Hash::Md5 => 16,
            Hash::Sha1 | Hash::Ripemd160 => 20,
            Hash::Sha224 => 28,
            Hash::Sha256 => 32,
            Hash::Sha384 => 48,
            Hash::Sha512 => 64,
        }
    }

    /// The digest of the parts, one behind the other.
    pub(crate) fn digest(self, parts: &[&[u8]]) -> Vec<u8> {
        match self {
            Hash::Md5 => digest::<Md5>(parts),
            Hash::Sha1 => digest::<Sha1>(parts),
            Hash::Sha224 => digest::<Sha224>(parts),
            Hash::Sha256 => digest::<Sha256>(parts),
            Hash::Sha384 => digest::<Sha384>(parts),
            Hash::Sha512 => digest::<Sha512>(parts),
            Hash::Ripemd160 => digest::<Ripemd160>(parts),
        }
    }

    /// PBKDF2 with this hash's HMAC; fills `out`.
    pub(crate) fn pbkdf2(self, passphrase: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) {
        match self {
            Hash::Md5 => pbkdf2::pbkdf2_hmac::<Md5>(passphrase, salt, iterations, out),
            Hash::Sha1 => pbkdf2::pbkdf2_hmac::<Sha1>(passphrase, salt, iterations, out),
            Hash::Sha224 => pbkdf2::pbkdf2_hmac::<Sha224>(passphrase, salt, iterations, out),
            Hash::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(passphrase, salt, iterations, out),
            Hash::Sha384 => pbkdf2::pbkdf2_hmac::<Sha384>(passphrase, salt, iterations, out),
            Hash::Sha512 => pbkdf2::pbkdf2_hmac::<Sha512>(passphrase, salt, iterations, out),
            Hash::Ripemd160 => pbkdf2::pbkdf2_hmac::<Ripemd160>(passphrase, salt, iterations, out),
        }
    }
}

fn digest<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
    let mut hash = D::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_lengths_agree() {
        for (name, hash) in HASHES.iter().zip(ALL) {
            assert_eq!((Hash::by_name(name).unwrap(), hash.name()), (hash, *name));
            assert_eq!(hash.digest(&[b"a", b"b"]).len(), hash.digest_len());
            assert_eq!(hash.digest(&[b"a", b"b"]), hash.digest(&[b"ab"]));
        }
        assert!(Hash::by_name("sm3").unwrap_err().to_string().contains("sm3"));
    }
}
