//! What the verbs have in common that take an image and their time.

use std::ffi::OsString;

use cowhand::{Cache, Open, Result};

use crate::progress::Meter;
use crate::sources::{self, Holes, Parents, Sharing, Source};

/// What a person is shown.
#[derive(clap::Args, Debug)]
pub(crate) struct Showing {
    /// Show progress as qemu-img does
    #[arg(short, long)]
    pub(crate) progress: bool,

    /// Print nothing
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

impl Showing {
    pub(crate) fn meter(&self) -> Meter {
        Meter::new(self.progress && !self.quiet, self.quiet)
    }
}

/// How many threads do it.
#[derive(clap::Args, Debug)]
pub(crate) struct Threads {
    /// Threads, 1 to 64; as many as there are processors (at most 8) if not given
    #[arg(short = 'm', value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=64))]
    workers: Option<u8>,
}

impl Threads {
    pub(crate) fn count(&self) -> Option<usize> {
        self.workers.map(usize::from)
    }
}

/// How an image is opened that is changed, or gone through as a whole.
#[derive(clap::Args, Debug)]
pub(crate) struct Work {
    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,

    /// The cache mode: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 't', value_name = "CACHE", value_parser = sources::cache, default_value = "writeback")]
    cache: Cache,

    #[command(flatten)]
    pub(crate) showing: Showing,

    #[command(flatten)]
    holes: Holes,

    #[command(flatten)]
    pub(crate) sharing: Sharing,

    #[command(flatten)]
    pub(crate) parents: Parents,
}

impl Work {
    /// The image that `word` names.
    pub(crate) fn source(&self, word: &OsString) -> Result<Source> {
        self.sharing.source(word, self.format.as_deref())
    }

    /// Opens it for reading.
    pub(crate) fn reading(&self, source: &Source) -> Result<Open> {
        Ok(self.holes.with(self.sharing.open(source, &self.parents, self.cache)?))
    }

    /// Opens it to be changed.
    pub(crate) fn writing(&self, source: &Source) -> Result<Open> {
        Ok(self.holes.with(self.sharing.writing(source, &self.parents, self.cache)?))
    }
}
