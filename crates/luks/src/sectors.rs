//! Encrypting whole sectors of 512 bytes, each by itself and by its own number.

use std::fmt::{self, Debug};

use aes::{Aes128, Aes192, Aes256};
use cipher::consts::U16;
use cipher::{
    Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, BlockSizeUser,
    InnerIvInit, KeyInit, StreamCipher, StreamCipherCoreWrapper,
};
use cowhand_core::{Error, Result};
use serpent::Serpent;
use twofish::Twofish;
use zeroize::Zeroizing;

use crate::algorithms::{Algorithms, Cipher, Family, IvGen, Mode};
use crate::hash::Hash;

/// Bytes of a sector, whatever the disk's own are.
pub const SECTOR: usize = 512;

type Block = Array<u8, U16>;
const BLOCKS: usize = SECTOR / 16;

/// Encrypts and decrypts sectors with one key. Printing it shows nothing of the key.
pub struct Sectors(Box<dyn Engine>);

impl Debug for Sectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sectors")
    }
}

impl Sectors {
    /// What qcow2 had before LUKS: AES-128 in CBC mode, the sector's number as initial vector.
    pub fn aes_cbc(key: &[u8; 16]) -> Sectors {
        Sectors(Box::new(Cbc { cipher: Aes128::new(&(*key).into()), iv: Iv::Plain64 }))
    }

    pub(crate) fn new(how: &Algorithms, key: &[u8]) -> Result<Sectors> {
        let iv = Iv::new(how, key)?;
        Ok(Sectors(match (how.cipher.family, how.cipher.key) {
            (Family::Aes, 16) => engine::<Aes128>(how.mode, key, iv)?,
            (Family::Aes, 24) => engine::<Aes192>(how.mode, key, iv)?,
            (Family::Aes, _) => engine::<Aes256>(how.mode, key, iv)?,
            (Family::Serpent, _) => engine::<Serpent>(how.mode, key, iv)?,
            (Family::Twofish, _) => engine::<Twofish>(how.mode, key, iv)?,
        }))
    }

    /// Encrypts whole sectors in place, the first of which has the number `first`.
    pub fn encrypt(&self, first: u64, bytes: &mut [u8]) {
        debug_assert!(bytes.len().is_multiple_of(SECTOR));
        self.0.encrypt(first, bytes);
    }

    /// Decrypts what [`Sectors::encrypt`] made.
    pub fn decrypt(&self, first: u64, bytes: &mut [u8]) {
        debug_assert!(bytes.len().is_multiple_of(SECTOR));
        self.0.decrypt(first, bytes);
    }
}

trait Engine: Send + Sync {
    fn encrypt(&self, first: u64, bytes: &mut [u8]);
    fn decrypt(&self, first: u64, bytes: &mut [u8]);
}

/// A block cipher, both ways.
trait Both:
    BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + KeyInit + Send + Sync + 'static
{
}

impl<C> Both for C where
    C: BlockCipherEncrypt
        + BlockCipherDecrypt
        + BlockSizeUser<BlockSize = U16>
        + KeyInit
        + Send
        + Sync
        + 'static
{
}

fn keyed<C: Both>(key: &[u8]) -> Result<C> {
    C::new_from_slice(key)
        .map_err(|_| Error::unsupported(format!("{} bytes are no key of this cipher", key.len())))
}

fn engine<C: Both>(mode: Mode, key: &[u8], iv: Iv) -> Result<Box<dyn Engine>> {
    Ok(match mode {
        Mode::Xts => {
            let (data, tweak) = key.split_at(key.len() / 2);
            Box::new(Xts { data: keyed::<C>(data)?, tweak: keyed::<C>(tweak)?, iv })
        }
        Mode::Cbc => Box::new(Cbc { cipher: keyed::<C>(key)?, iv }),
        Mode::Ctr => Box::new(Ctr { cipher: keyed::<C>(key)?, iv }),
        Mode::Ecb => Box::new(Ecb { cipher: keyed::<C>(key)? }),
    })
}

/// Makes a sector's initial vector.
enum Iv {
    Plain,
    Plain64,
    Essiv(Box<dyn Single>),
}

/// A cipher that only encrypts single blocks.
trait Single: Send + Sync {
    fn block(&self, block: &mut Block);
}

impl<C: Both> Single for C {
    fn block(&self, block: &mut Block) {
        self.encrypt_block(block);
    }
}

impl Iv {
    fn new(how: &Algorithms, key: &[u8]) -> Result<Iv> {
        Ok(match how.ivgen {
            IvGen::Plain => Iv::Plain,
            IvGen::Plain64 => Iv::Plain64,
            IvGen::Essiv => {
                // The digest's length, not the key's, says which of the family it is.
                let key = Zeroizing::new(how.ivgen_hash.unwrap_or(Hash::Sha256).digest(&[key]));
                let cipher = Cipher { key: key.len(), ..how.cipher };
                Iv::Essiv(match (cipher.family, cipher.key) {
                    (Family::Aes, 16) => Box::new(keyed::<Aes128>(&key)?),
                    (Family::Aes, 24) => Box::new(keyed::<Aes192>(&key)?),
                    (Family::Aes, _) => Box::new(keyed::<Aes256>(&key)?),
                    (Family::Serpent, _) => Box::new(keyed::<Serpent>(&key)?),
                    (Family::Twofish, _) => Box::new(keyed::<Twofish>(&key)?),
                })
            }
        })
    }

    fn of(&self, sector: u64) -> Block {
        let number = if matches!(self, Iv::Plain) { sector & 0xffff_ffff } else { sector };
        let mut block = Block::from(u128::from(number).to_le_bytes());
        if let Iv::Essiv(cipher) = self {
            cipher.block(&mut block);
        }
        block
    }
}

/// XTS without stealing: sectors are whole blocks. The blocks of several sectors go through the cipher together.
struct Xts<C> {
    data: C,
    tweak: C,
    iv: Iv,
}

/// Sectors that XTS does at once.
const BATCH: usize = 8;

impl<C: Both> Xts<C> {
    fn run(&self, first: u64, bytes: &mut [u8], cipher: impl Fn(&mut [Block])) {
        let mut tweaks = [0u128; BATCH * BLOCKS];
        for (batch, bytes) in (0u64..).zip(bytes.chunks_mut(BATCH * SECTOR)) {
            let mut number = first.wrapping_add(batch * BATCH as u64);
            for tweaks in tweaks.chunks_exact_mut(BLOCKS).take(bytes.len() / SECTOR) {
                let mut block = self.iv.of(number);
                self.tweak.encrypt_block(&mut block);
                let mut tweak = u128::from_le_bytes(block.into());
                for place in tweaks {
                    *place = tweak;
                    tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
                }
                number = number.wrapping_add(1);
            }
            let (blocks, _) = Block::slice_as_chunks_mut(bytes);
            add(blocks, &tweaks);
            cipher(blocks);
            add(blocks, &tweaks);
        }
    }
}

fn add(blocks: &mut [Block], tweaks: &[u128]) {
    for (block, tweak) in blocks.iter_mut().zip(tweaks) {
        *block = (u128::from_le_bytes((*block).into()) ^ tweak).to_le_bytes().into();
    }
}

impl<C: Both> Engine for Xts<C> {
    fn encrypt(&self, first: u64, bytes: &mut [u8]) {
        self.run(first, bytes, |blocks| self.data.encrypt_blocks(blocks));
    }

    fn decrypt(&self, first: u64, bytes: &mut [u8]) {
        self.run(first, bytes, |blocks| self.data.decrypt_blocks(blocks));
    }
}

/// The sectors of `bytes` with their numbers.
fn numbered(first: u64, bytes: &mut [u8]) -> impl Iterator<Item = (u64, &mut [u8])> {
    (0..).map(move |index| first.wrapping_add(index)).zip(bytes.chunks_exact_mut(SECTOR))
}

struct Cbc<C> {
    cipher: C,
    iv: Iv,
}

impl<C: Both> Engine for Cbc<C> {
    fn encrypt(&self, first: u64, bytes: &mut [u8]) {
        for (number, sector) in numbered(first, bytes) {
            let (blocks, _) = Block::slice_as_chunks_mut(sector);
            cbc::Encryptor::inner_iv_init(&self.cipher, &self.iv.of(number)).encrypt_blocks(blocks);
        }
    }

    fn decrypt(&self, first: u64, bytes: &mut [u8]) {
        for (number, sector) in numbered(first, bytes) {
            let (blocks, _) = Block::slice_as_chunks_mut(sector);
            cbc::Decryptor::inner_iv_init(&self.cipher, &self.iv.of(number)).decrypt_blocks(blocks);
        }
    }
}

/// The initial vector is the counter's first value, counted as one big-endian number.
struct Ctr<C> {
    cipher: C,
    iv: Iv,
}

impl<C: Both> Engine for Ctr<C> {
    fn encrypt(&self, first: u64, bytes: &mut [u8]) {
        for (number, sector) in numbered(first, bytes) {
            let core =
                ctr::CtrCore::<_, ctr::flavors::Ctr128BE>::inner_iv_init(&self.cipher, &self.iv.of(number));
            StreamCipherCoreWrapper::from_core(core).apply_keystream(sector);
        }
    }

    fn decrypt(&self, first: u64, bytes: &mut [u8]) {
        self.encrypt(first, bytes);
    }
}

/// Every block by itself: hides little, and is read where it was used.
struct Ecb<C> {
    cipher: C,
}

impl<C: Both> Engine for Ecb<C> {
    fn encrypt(&self, _first: u64, bytes: &mut [u8]) {
        let (blocks, _) = Block::slice_as_chunks_mut(bytes);
        self.cipher.encrypt_blocks(blocks);
    }

    fn decrypt(&self, _first: u64, bytes: &mut [u8]) {
        let (blocks, _) = Block::slice_as_chunks_mut(bytes);
        self.cipher.decrypt_blocks(blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(cipher: &str, mode: &str, key_bytes: u32) -> Sectors {
        let how = Algorithms::parse(cipher, mode, "sha256", key_bytes).unwrap();
        let key: Vec<u8> = (0..key_bytes as u8).map(|byte| byte.wrapping_mul(37) ^ 0x5a).collect();
        Sectors::new(&how, &key).unwrap()
    }

    /// IEEE 1619-2007, vector 10: XTS-AES-256, data unit 0xff, 512 bytes that count up.
    #[test]
    fn the_standards_own_vector() {
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
        };
        let how = Algorithms::parse("aes", "xts-plain64", "sha256", 64).unwrap();
        let key = hex("2718281828459045235360287471352662497757247093699959574966967627\
             3141592653589793238462643383279502884197169399375105820974944592");
        let mut bytes: Vec<u8> = (0..512).map(|i| i as u8).collect();
        Sectors::new(&how, &key).unwrap().encrypt(0xff, &mut bytes);
        assert_eq!(bytes[..16], hex("1c3b3a102f770386e4836c99e370cf9b")[..]);
        assert_eq!(bytes[496..], hex("c4f36ffda9fcea70b9c6e693e148c151")[..]);
    }

    #[test]
    fn every_mode_there_and_back_and_each_sector_by_itself() {
        let plain: Vec<u8> = (0..20 * SECTOR).map(|i| (i / 512 * 7 + i % 13) as u8).collect();
        for (cipher, mode, key_bytes) in [
            ("aes", "xts-plain64", 32),
            ("aes", "xts-plain", 48),
            ("aes", "xts-essiv:sha256", 64),
            ("aes", "cbc-essiv:md5", 16),
            ("aes", "cbc-plain64", 24),
            ("aes", "ctr-plain64", 32),
            ("aes", "ecb", 16),
            ("serpent", "xts-plain64", 64),
            ("serpent", "cbc-essiv:sha256", 16),
            ("twofish", "xts-plain64", 32),
            ("twofish", "cbc-plain", 24),
        ] {
            let sectors = made(cipher, mode, key_bytes);
            let mut whole = plain.clone();
            sectors.encrypt(0xffff_fffe, &mut whole);
            assert_ne!(whole, plain);
            for (index, sector) in whole.chunks_exact(SECTOR).enumerate() {
                let mut one = plain[index * SECTOR..][..SECTOR].to_vec();
                sectors.encrypt(0xffff_fffe + index as u64, &mut one);
                assert_eq!(one, sector, "{cipher} {mode} sector {index}");
            }
            sectors.decrypt(0xffff_fffe, &mut whole);
            assert_eq!(whole, plain, "{cipher} {mode}");
        }
    }
}
