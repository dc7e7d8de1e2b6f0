//! Encryption: the header that says how, and guest data on its way to and from the clusters it stands in. Only data
//! clusters are encrypted; tables are not, and compressed clusters cannot be.

use std::fmt::Debug;
use std::sync::Arc;

use cowhand_core::{CreateOptions, Error, OpenOptions, Options, Result, Secrets, Storage};
use cowhand_luks::{Area, Choice, Encrypted, Sectors, Volume, candidates, chosen, locked};
use serde_json::{Map, Value};

use crate::header::Header;

/// The prefix of the options' names.
const PREFIX: &str = "encrypt.";
const KEY_SECRET: &str = "encrypt.key-secret";

/// The header's `crypt_method`.
pub(crate) const AES: u32 = 1;
pub(crate) const LUKS: u32 = 2;

/// How an image's guest data is encrypted.
#[derive(Debug)]
pub(crate) struct Crypt {
    /// LUKS; `None`: AES as it was before, without a header.
    volume: Option<Volume>,
    /// `None`: opened for its metadata alone.
    encrypted: Option<Encrypted>,
}

/// What a new image shall be encrypted with.
#[derive(Clone, Debug)]
pub(crate) enum NewCrypt {
    Aes,
    Luks(Choice),
}

impl NewCrypt {
    /// What the options say; `None`: no encryption.
    pub(crate) fn from(options: &Options) -> Result<Option<NewCrypt>> {
        let format = match (options.text("encrypt.format"), options.flag("encryption")) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid(
                    "'encrypt.format' and its alias 'encryption' can't be used at the same time",
                ));
            }
            (Some(format), None) => format,
            (None, Some(true)) => "aes",
            (None, _) => {
                return match options.names().find(|name| name.starts_with(PREFIX)) {
                    Some(name) => Err(Error::invalid("Parameter 'encrypt.format' is missing")
                        .hint(format!("'{name}' needs it: say encrypt.format=luks"))),
                    None => Ok(None),
                };
            }
        };
        if format == "luks" {
            return Ok(Some(NewCrypt::Luks(Choice::from(options, PREFIX)?)));
        }
        let own = |name: &&str| name.starts_with(PREFIX) && !["encrypt.format", KEY_SECRET].contains(name);
        match options.names().find(own) {
            Some(name) => Err(Error::invalid(format!("'{name}' is for encrypt.format=luks"))),
            None => Ok(Some(NewCrypt::Aes)),
        }
    }

    /// The header's `crypt_method`.
    pub(crate) fn method(&self) -> u32 {
        match self {
            NewCrypt::Aes => AES,
            NewCrypt::Luks(_) => LUKS,
        }
    }

    /// Bytes of the full disk encryption header.
    pub(crate) fn header_len(&self) -> Option<u64> {
        match self {
            NewCrypt::Aes => None,
            NewCrypt::Luks(choice) => Some(choice.header_len()),
        }
    }

    /// The secret that opens the new image. Errors: none was given, or none of several was named.
    pub(crate) fn secret<'a>(&self, how: &'a CreateOptions) -> Result<&'a [u8]> {
        chosen(&how.options, KEY_SECRET, &how.secrets)
    }

    /// Writes the full disk encryption header, to clusters at `at` that read zero.
    pub(crate) fn create(&self, file: &Arc<dyn Storage>, at: u64, how: &CreateOptions) -> Result<Crypt> {
        let passphrase = self.secret(how)?;
        match self {
            NewCrypt::Aes => Ok(Crypt::aes(Some(passphrase))),
            NewCrypt::Luks(choice) => {
                let area = Area { storage: file.clone(), base: at, len: choice.header_len() };
                Crypt::luks(Volume::create(area, choice, passphrase)?)
            }
        }
    }
}

impl Crypt {
    /// What the header says, unlocked unless only metadata is wanted. `None`: the image is not encrypted.
    pub(crate) fn open(file: &Arc<dyn Storage>, header: &Header, how: &OpenOptions) -> Result<Option<Crypt>> {
        let format = match header.crypt_method {
            0 => {
                return match how.options.text("encrypt.format") {
                    Some(asked) => Err(Error::invalid(format!(
                        "No encryption in image header, but options specified format '{asked}'"
                    ))),
                    None => Ok(None),
                };
            }
            AES => "aes",
            _ => "luks",
        };
        if let Some(asked) = how.options.text("encrypt.format").filter(|asked| *asked != format) {
            return Err(Error::invalid(format!(
                "Header reported '{format}' encryption format but options specify '{asked}'"
            )));
        }
        let secrets =
            if how.metadata_only { None } else { Some(candidates(&how.options, KEY_SECRET, &how.secrets)?) };
        if header.crypt_method == AES {
            // Any passphrase opens it, and only the right one shows the disk.
            return match secrets.as_deref() {
                None => Ok(Some(Crypt::aes(None))),
                Some([one]) => Ok(Some(Crypt::aes(Some(one)))),
                Some(_) => Err(Error::invalid(
                    "is encrypted with AES, which cannot tell which of several secrets is right",
                )
                .hint("give one alone, or name it with encrypt.key-secret in --image-opts")),
            };
        }
        let at = header.extensions.crypto_header().ok_or_else(|| {
            Error::corrupt("crypt_method", "says LUKS, and there is no full disk encryption header pointer")
                .at(32)
        })?;
        let area = Area { storage: file.clone(), base: at.offset, len: at.length };
        Ok(Some(Crypt::luks(Volume::open(area, secrets.as_deref())?)?))
    }

    fn aes(passphrase: Option<&[u8]>) -> Crypt {
        let key = |passphrase: &[u8]| {
            let mut key = [0; 16];
            key.iter_mut().zip(passphrase).for_each(|(place, byte)| *place = *byte);
            Encrypted::new(Sectors::aes_cbc(&key))
        };
        Crypt { volume: None, encrypted: passphrase.map(key) }
    }

    fn luks(volume: Volume) -> Result<Crypt> {
        Ok(Crypt { encrypted: volume.encrypted()?, volume: Some(volume) })
    }

    fn encrypted(&self) -> Result<&Encrypted> {
        self.encrypted.as_ref().ok_or_else(locked)
    }

    /// Where bytes stand in the row of sectors that are numbered: LUKS counts them in the file, AES on the disk.
    fn numbered(&self, guest: u64, host: u64) -> u64 {
        if self.volume.is_some() { host } else { guest }
    }

    /// Fills `buf` with the bytes of guest offset `guest`, which stand at `host`. `get` reads what stands there.
    pub(crate) fn read(
        &self,
        guest: u64,
        host: u64,
        buf: &mut [u8],
        get: impl FnOnce(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let from = self.numbered(guest, host);
        self.encrypted()?.read(from, buf, |at, buf| get(host - (from - at), buf))
    }

    /// Writes the bytes of guest offset `guest` to `host`. `get` reads what stands there, `put` writes it.
    pub(crate) fn write(
        &self,
        guest: u64,
        host: u64,
        buf: &[u8],
        get: impl Fn(u64, &mut [u8]) -> Result<()>,
        put: impl Fn(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let from = self.numbered(guest, host);
        // Clusters are whole sectors, so a sector begins at the same distance in both.
        let host_of = |at: u64| (host + at).wrapping_sub(from);
        self.encrypted()?.write(from, buf, |at, buf| get(host_of(at), buf), |at, buf| put(host_of(at), buf))
    }

    /// The facts for `info`.
    pub(crate) fn details(&self) -> Map<String, Value> {
        match &self.volume {
            Some(volume) => volume.details(Some("luks")),
            None => Map::from_iter([("format".to_owned(), "aes".into())]),
        }
    }

    /// Changes keys as the options say.
    pub(crate) fn amend(&self, options: &Options, secrets: &Secrets) -> Result<()> {
        match &self.volume {
            Some(volume) => volume.amend(options, PREFIX, secrets),
            None => Err(Error::unsupported("Only LUKS encryption has keyslots, and this image has AES")),
        }
    }
}

/// The options speak of keys.
pub(crate) fn is_about_keys(options: &Options) -> bool {
    options.names().any(|name| name.starts_with(PREFIX))
}
