//! Secrets that are themselves encrypted: AES-256 in CBC mode, filled up to whole blocks as PKCS #7 has it.

use aes::Aes256;
use cipher::consts::U16;
use cipher::{Array, BlockModeDecrypt, KeyIvInit};
use cowhand_core::{Error, Result};
use zeroize::Zeroizing;

const BLOCK: usize = 16;

/// The secret that `data` hides: `key` has 32 bytes, `iv` 16. Errors are in QEMU's words.
pub fn unwrap_secret(key: &[u8], iv: &[u8], data: &[u8]) -> Result<Vec<u8>> {
    let key: &[u8; 32] = key.try_into().map_err(|_| Error::invalid("Key should be 32 bytes in length"))?;
    let iv: &[u8; BLOCK] = iv
        .try_into()
        .map_err(|_| Error::invalid(format!("IV should be {BLOCK} bytes in length not {}", iv.len())))?;
    let mut plain = Zeroizing::new(data.to_vec());
    let (blocks, rest) = Array::<u8, U16>::slice_as_chunks_mut(&mut plain);
    if !rest.is_empty() {
        let len = data.len();
        return Err(Error::invalid(format!("Length {len} must be a multiple of block size {BLOCK}")));
    }
    cbc::Decryptor::<Aes256>::new(key.into(), iv.into()).decrypt_blocks(blocks);
    let padding = usize::from(plain.last().copied().unwrap_or(0));
    let kept = plain.len().checked_sub(padding).filter(|_| padding <= BLOCK);
    kept.and_then(|len| Some(plain.get(..len)?.to_vec())).ok_or_else(|| {
        Error::invalid(format!("Incorrect number of padding bytes ({padding}) found on decrypted data"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cipher::BlockModeEncrypt;

    #[test]
    fn what_was_hidden_comes_out() {
        let (key, iv) = ([7; 32], [9; 16]);
        let mut hidden = b"sixteen bytes!!!hush".to_vec();
        hidden.resize(32, 12);
        let (blocks, _) = Array::<u8, U16>::slice_as_chunks_mut(&mut hidden);
        cbc::Encryptor::<Aes256>::new((&key).into(), (&iv).into()).encrypt_blocks(blocks);
        assert_eq!(unwrap_secret(&key, &iv, &hidden).unwrap(), b"sixteen bytes!!!hush");
        for (key, iv, data, said) in [
            (&key[1..], &iv[..], &hidden[..], "Key should be 32 bytes in length"),
            (&key[..], &iv[1..], &hidden[..], "IV should be 16 bytes in length not 15"),
            (&key[..], &iv[..], &hidden[1..], "Length 31 must be a multiple of block size 16"),
            (&[8; 32][..], &iv[..], &hidden[..], "Incorrect number of padding bytes"),
        ] {
            let error = unwrap_secret(key, iv, data).unwrap_err();
            assert!(error.message().starts_with(said), "{error}");
        }
    }
}
