//! Secrets: passphrases and keys, named by whoever gives them, and never printed.

use std::collections::BTreeMap;
use std::fmt;

use crate::{Error, ErrorKind, Result};

/// Secrets by their ids (`--object secret,id=ID,...`), as bytes. Printing one shows its ids alone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets {
    all: BTreeMap<String, Vec<u8>>,
    by_name: bool,
}

impl Secrets {
    /// None of them is tried where no option names it.
    #[must_use]
    pub fn by_name(self) -> Secrets {
        Secrets { by_name: true, ..self }
    }

    /// Whether those that no option names may be tried.
    pub fn may_be_tried(&self) -> bool {
        !self.by_name
    }

    /// Adds a secret. Errors: the id is taken.
    pub fn add(&mut self, id: impl Into<String>, secret: Vec<u8>) -> Result<()> {
        let id = id.into();
        if self.all.contains_key(&id) {
            return Err(Error::invalid(format!("the secret '{id}' is given twice")));
        }
        self.all.insert(id, secret);
        Ok(())
    }

    /// The secret of that id.
    pub fn get(&self, id: &str) -> Result<&[u8]> {
        self.all
            .get(id)
            .map(Vec::as_slice)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("No secret with id '{id}'")))
    }

    /// All of them, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.all.iter().map(|(id, secret)| (id.as_str(), secret.as_slice()))
    }

    /// None was given.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.all.keys()).finish()
    }
}
