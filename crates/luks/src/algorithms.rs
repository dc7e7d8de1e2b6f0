//! Which cipher, which mode, which initial vectors, which hash: as the header and as the options name them.

use std::fmt;

use cowhand_core::{Error, Options, Result};

use crate::hash::Hash;

/// A family of ciphers with blocks of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Aes,
    Serpent,
    Twofish,
}

/// A cipher: its family, and its key's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cipher {
    pub(crate) family: Family,
    /// 16, 24 or 32.
    pub(crate) key: usize,
}

/// The ciphers that `cipher-alg` takes, as QEMU names them.
pub const CIPHERS: &[&str] = &[
    "aes-128",
    "aes-192",
    "aes-256",
    "serpent-128",
    "serpent-192",
    "serpent-256",
    "twofish-128",
    "twofish-192",
    "twofish-256",
];

/// The modes that `cipher-mode` takes.
pub const MODES: &[&str] = &["ecb", "cbc", "xts", "ctr"];

/// What `ivgen-alg` takes.
pub const IVGENS: &[&str] = &["plain", "plain64", "essiv"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Ecb,
    Cbc,
    Xts,
    Ctr,
}

/// How a sector's initial vector comes from its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IvGen {
    /// Its low 32 bits, little-endian.
    Plain,
    /// All 64 bits, little-endian.
    Plain64,
    /// The same, encrypted with the hash of the key.
    Essiv,
}

/// All that says how a volume is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Algorithms {
    pub(crate) cipher: Cipher,
    pub(crate) mode: Mode,
    pub(crate) ivgen: IvGen,
    /// Given for ESSIV; kept, and of no use, with the others.
    pub(crate) ivgen_hash: Option<Hash>,
    /// For PBKDF2 and the splitter.
    pub(crate) hash: Hash,
}

impl Family {
    const ALL: [(Family, &'static str); 3] =
        [(Family::Aes, "aes"), (Family::Serpent, "serpent"), (Family::Twofish, "twofish")];

    fn name(self) -> &'static str {
        Family::ALL.iter().find(|(family, _)| *family == self).map_or("", |(_, name)| name)
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.family.name(), self.key * 8)
    }
}

impl Mode {
    fn by_name(name: &str) -> Option<Mode> {
        let all = [Mode::Ecb, Mode::Cbc, Mode::Xts, Mode::Ctr];
        all.into_iter().find(|mode| mode.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Ecb => "ecb",
            Mode::Cbc => "cbc",
            Mode::Xts => "xts",
            Mode::Ctr => "ctr",
        }
    }
}

impl IvGen {
    fn by_name(name: &str) -> Option<IvGen> {
        let all = [IvGen::Plain, IvGen::Plain64, IvGen::Essiv];
        all.into_iter().find(|ivgen| ivgen.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            IvGen::Plain => "plain",
            IvGen::Plain64 => "plain64",
            IvGen::Essiv => "essiv",
        }
    }
}

impl Algorithms {
    /// What the header says. Errors: something that is not known here, by its name.
    pub(crate) fn parse(cipher: &str, mode: &str, hash: &str, key_bytes: u32) -> Result<Algorithms> {
        let unknown = |what: &str, name: &str| {
            Error::unsupported(format!("is encrypted with the {what} '{name}', which is not read here"))
        };
        let family = Family::ALL.iter().find(|(_, name)| *name == cipher);
        let (family, _) = family.ok_or_else(|| unknown("cipher", cipher).at(8))?;
        let (name, rest) = mode.split_once('-').unwrap_or((mode, "plain"));
        let (ivgen, ivgen_hash) = match rest.split_once(':') {
            Some((ivgen, hash)) => (ivgen, Some(Hash::by_name(hash).map_err(|error| error.at(40))?)),
            None => (rest, None),
        };
        let mode = Mode::by_name(name).ok_or_else(|| unknown("cipher mode", mode).at(40))?;
        let ivgen = IvGen::by_name(ivgen).ok_or_else(|| unknown("IV generator", ivgen).at(40))?;
        let hash = Hash::by_name(hash).map_err(|error| error.at(72))?;
        let key = if mode == Mode::Xts { key_bytes / 2 } else { key_bytes };
        let odd = mode == Mode::Xts && !key_bytes.is_multiple_of(2);
        if !matches!(key, 16 | 24 | 32) || odd {
            return Err(Error::corrupt(
                "key-bytes",
                format!("{key_bytes} bytes are no key of {cipher} in mode {name}"),
            )
            .at(108));
        }
        Algorithms { cipher: Cipher { family: *family, key: key as usize }, mode, ivgen, ivgen_hash, hash }
            .fitting()
    }

    /// What the options say whose names begin with `prefix`; what they leave open is as QEMU has it.
    pub(crate) fn chosen(options: &Options, prefix: &str) -> Result<Algorithms> {
        let text = |name: &str, default| options.text(&format!("{prefix}{name}")).unwrap_or(default);
        let unknown = |name: &str| Error::invalid(format!("'{name}' is not known here"));
        let name = text("cipher-alg", "aes-256");
        let cipher = name.split_once('-').and_then(|(family, bits)| {
            let (family, _) = Family::ALL.iter().find(|(_, name)| *name == family)?;
            Some(Cipher { family: *family, key: bits.parse::<usize>().ok()? / 8 })
        });
        let mode = text("cipher-mode", "xts");
        let ivgen = text("ivgen-alg", "plain64");
        let ivgen_hash = match text("ivgen-hash-alg", if ivgen == "essiv" { "sha256" } else { "" }) {
            "" => None,
            name => Some(Hash::by_name(name)?),
        };
        Algorithms {
            cipher: cipher.ok_or_else(|| unknown(name))?,
            mode: Mode::by_name(mode).ok_or_else(|| unknown(mode))?,
            ivgen: IvGen::by_name(ivgen).ok_or_else(|| unknown(ivgen))?,
            ivgen_hash,
            hash: Hash::by_name(text("hash-alg", "sha256"))?,
        }
        .fitting()
    }

    /// ESSIV's hash is its cipher's key, so it must have a key's length.
    fn fitting(self) -> Result<Algorithms> {
        if self.ivgen == IvGen::Essiv {
            let hash = self.ivgen_hash.ok_or_else(|| Error::unsupported("ESSIV needs the name of a hash"))?;
            if !matches!(hash.digest_len(), 16 | 24 | 32) {
                return Err(Error::unsupported(format!(
                    "no cipher takes a key of {} bytes, so ESSIV cannot use {}",
                    hash.digest_len(),
                    hash.name()
                ))
                .hint("use sha256"));
            }
        }
        Ok(self)
    }

    /// Bytes of the volume's key.
    pub(crate) fn key_bytes(&self) -> usize {
        if self.mode == Mode::Xts { self.cipher.key * 2 } else { self.cipher.key }
    }

    /// The header's `cipher-name`.
    pub(crate) fn cipher_name(&self) -> &'static str {
        self.cipher.family.name()
    }

    /// The header's `cipher-mode`.
    pub(crate) fn cipher_mode(&self) -> String {
        match self.ivgen_hash {
            Some(hash) => format!("{}-{}:{}", self.mode.name(), self.ivgen.name(), hash.name()),
            None => format!("{}-{}", self.mode.name(), self.ivgen.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_words_survive() {
        for (cipher, mode, key_bytes) in [
            ("aes", "xts-plain64", 64),
            ("aes", "cbc-essiv:sha256", 16),
            ("serpent", "xts-plain64:sha256", 48),
            ("twofish", "ctr-plain", 32),
        ] {
            let read = Algorithms::parse(cipher, mode, "sha1", key_bytes).unwrap();
            assert_eq!((read.cipher_name(), read.cipher_mode().as_str()), (cipher, mode));
            assert_eq!(read.key_bytes(), key_bytes as usize);
        }
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (cipher, mode, hash, key_bytes, said) in [
            ("camellia", "xts-plain64", "sha256", 64, "camellia"),
            ("aes", "lrw-benbi", "sha256", 32, "lrw-benbi"),
            ("aes", "xts-plain64be", "sha256", 64, "plain64be"),
            ("aes", "xts-plain64", "whirlpool", 64, "whirlpool"),
            ("aes", "cbc-essiv:sha1", "sha1", 16, "20 bytes"),
            ("aes", "cbc-essiv", "sha1", 16, "ESSIV"),
            ("aes", "xts-plain64", "sha1", 33, "33 bytes"),
            ("aes", "xts-plain64", "sha1", u32::MAX, "bytes are no key"),
            ("aes", "cbc-plain64", "sha1", 64, "64 bytes"),
        ] {
            let error = Algorithms::parse(cipher, mode, hash, key_bytes).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
