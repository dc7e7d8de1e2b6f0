//! The images that a command line names, and how they are opened.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use cowhand::{
    Error, ImageOptions, Lock, Name, Open, Policy, Probing, ReadNode, Secrets, driver, guess, image_name,
};

use super::errors::could_not_open;
use super::{Failure, says, text, utf8};
use crate::objects::SecretObject;
use crate::persona::compat::as_qemu;
use crate::persona::complain;

/// One image as the caller names it.
pub(super) struct Source {
    /// For messages: the word as it stands.
    pub(super) name: String,
    /// The file that holds it, whatever describes it.
    pub(super) path: PathBuf,
    pub(super) open: Open,
}

impl Source {
    /// Says so, where the image is to be written and is taken for raw only because it says nothing else of itself.
    pub(super) fn warn_if_raw_is_guessed(&self) {
        if self.open.format.is_none() && guess(&self.path, &self.open).is_ok_and(|format| format.is_bare()) {
            let name = &self.name;
            complain(&format!(
                "WARNING: Image format was not specified for '{name}' and probing guessed raw.\n         \
                 Automatically detecting the format is dangerous for raw images, write operations on block 0 will be \
                 restricted.\n         \
                 Specify the 'raw' format explicitly to remove the restrictions."
            ));
        }
    }
}

/// What the verbs' flags say of how images are opened.
#[derive(Clone, Default)]
pub(super) struct Opening {
    pub(super) format: Option<String>,
    pub(super) image_opts: bool,
    pub(super) force_share: bool,
    pub(super) secrets: Secrets,
}

impl Opening {
    /// Takes what the flags `format`, `image-opts`, `force-share` and `object` say. False: the flag is another.
    pub(super) fn take(&mut self, flag: &str, value: &OsStr) -> Result<bool, Failure> {
        match flag {
            "format" => self.format = Some(text(value)),
            "image-opts" => self.image_opts = true,
            "force-share" => self.force_share = true,
            "object" => SecretObject::parse(&text(value))
                .and_then(|object| object.add_to(&mut self.secrets))
                .map_err(|error| says(error.message()))?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The image that `word` names or describes. What its file names is followed, as callers of this tool expect: local
    /// files only, unless all is to be as QEMU does it.
    pub(super) fn source(&self, word: &OsStr) -> Result<Source, Failure> {
        let name = text(word);
        let failed = |error: Error| says(format!("Could not open '{name}': {}", error.message()));
        let open = Open {
            format: self.format.clone(),
            lock: if self.force_share { Lock::None } else { Lock::Default },
            share_raw: true,
            policy: if as_qemu() { Policy::Any } else { Policy::Local },
            probing: if as_qemu() { Probing::Trusting } else { Probing::Front },
            lenient: as_qemu(),
            secrets: self.secrets.clone().by_name(),
            ..Open::default()
        };
        let meant = if self.image_opts {
            Name::Node(self.described(&utf8(word)?)?.node().map_err(failed)?)
        } else {
            Name::of(Path::new(word), self.format.as_deref()).map_err(failed)?
        };
        if let Some(format) = &self.format {
            driver(format).map_err(failed)?;
        }
        Ok(match meant {
            Name::Path(path) => Source { name, path, open },
            Name::Node(ReadNode { node, warnings }) => {
                warnings.iter().for_each(|warning| complain(&format!("qemu-img: warning: {warning}")));
                Source { name, path: node.path().to_owned(), open: node.open(open) }
            }
        })
    }

    /// What `--image-opts` makes of the word.
    fn described(&self, word: &str) -> Result<ImageOptions, Failure> {
        if self.format.is_some() {
            return Err(says("--image-opts and --format are mutually exclusive"));
        }
        let mut options = ImageOptions::parse(word).map_err(|error| says(error.message()))?;
        if self.force_share {
            options.share().map_err(|error| says(error.message()))?;
        }
        Ok(options)
    }
}

impl Source {
    /// Nobody may write to a file of it meanwhile, be it raw.
    pub(super) fn unshared(self) -> Source {
        Source { open: Open { share_raw: false, ..self.open }, ..self }
    }

    /// The name that is printed of the image, once it is known what format it has.
    pub(super) fn shown(&self, format: &str) -> String {
        image_name(&self.path, &self.open, format)
    }

    /// It could not be opened.
    pub(super) fn failed(&self, error: &Error) -> Failure {
        could_not_open(&self.name, &self.path, error)
    }
}
