//! Secrets on the command line: what opens encrypted images.

use std::path::PathBuf;

use clap::Args;
use cowhand::{Error, Result, Secrets};

use crate::objects::SecretObject;

/// What opens encrypted images, and what new ones are encrypted with.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Keys {
    /// A secret: secret,id=ID,file=PATH or secret,id=ID,data=TEXT, and format=base64 (repeatable)
    ///
    /// Options like encrypt.key-secret=ID name it; where none is named, each is tried. The file's bytes count as they
    /// stand, a line's end too. What stands on a command line others may see: file= is safer than data=. With keyid=ID and
    /// iv=BASE64 the secret itself is encrypted (AES-256, CBC) with the 32 bytes of another one.
    #[arg(long, value_name = "OBJECT", value_parser = SecretObject::parse, hide_possible_values = true)]
    object: Vec<SecretObject>,

    /// The file with the secret of encrypted images: its bytes as they stand, a line's end too
    #[arg(long, value_name = "PATH")]
    key_file: Option<PathBuf>,
}

impl Keys {
    /// All that were given. Errors: a file cannot be read, an id is given twice.
    pub(crate) fn secrets(&self) -> Result<Secrets> {
        let mut secrets = Secrets::default();
        for object in &self.object {
            object.add_to(&mut secrets)?;
        }
        if let Some(path) = &self.key_file {
            let secret = std::fs::read(path)
                .map_err(|error| Error::io("cannot read the secret", error).image(path.display()))?;
            secrets.add("key-file", secret)?;
        }
        Ok(secrets)
    }
}
