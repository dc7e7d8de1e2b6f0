//! Where an archive goes that is made: a file, standard output, a command.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use cowhand::archive::{ArchiveCreated, ArchiveTo, CreateArchive, create_archive};
use cowhand::{Error, Progress, Result};

use crate::output::standard_output;

/// Where the archive goes.
pub(crate) enum Place {
    File(PathBuf),
    Stdout,
    /// A shell command takes it.
    Command(OsString),
}

impl Place {
    /// What `word` means: a file's name, `/dev/stdout`, or `exec:COMMAND`.
    pub(crate) fn named(word: &OsStr) -> Result<Place> {
        if let Some(command) = word.as_bytes().strip_prefix(b"exec:") {
            return Ok(Place::Command(OsStr::from_bytes(command).to_owned()));
        }
        if word.as_bytes().starts_with(b"/dev/fdset/") {
            return Err(
                Error::unsupported("sets of file descriptors are QEMU's own").hint("name /dev/fd/NUMBER")
            );
        }
        Ok(if word == "/dev/stdout" { Place::Stdout } else { Place::File(word.into()) })
    }

    /// Makes the archive there.
    pub(crate) fn make(&self, how: &CreateArchive, progress: &dyn Progress) -> Result<ArchiveCreated> {
        match self {
            Place::File(path) => create_archive(how, ArchiveTo::File(path), progress),
            Place::Stdout => {
                let name = "standard output".to_owned();
                create_archive(how, ArchiveTo::Bytes { name, to: &mut standard_output()? }, progress)
            }
            Place::Command(command) => {
                let mut taker = Taker::start(command)?;
                let name = command.to_string_lossy().into_owned();
                let done = create_archive(how, ArchiveTo::Bytes { name, to: &mut taker }, progress);
                let ended = taker.end();
                // A command that fails takes no more, which would only say that the pipe is broken.
                ended.and(done)
            }
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::File(path) => path.display().fmt(f),
            Place::Stdout => f.write_str("standard output"),
            Place::Command(command) => write!(f, "exec:{}", command.to_string_lossy()),
        }
    }
}

/// A command that takes the archive.
struct Taker {
    child: Child,
    name: String,
}

impl Taker {
    fn start(command: &OsStr) -> Result<Taker> {
        let name = command.to_string_lossy().into_owned();
        let started = Command::new("sh").arg("-c").arg(command).stdin(Stdio::piped()).spawn();
        let child = started.map_err(|error| Error::io("cannot start", error).image(&name))?;
        Ok(Taker { child, name })
    }

    /// Waits until it has ended.
    fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let ended =
            self.child.wait().map_err(|error| Error::io("cannot wait for", error).image(&self.name))?;
        if ended.success() {
            return Ok(());
        }
        Err(Error::new(cowhand::ErrorKind::Io, format!("the command failed: {ended}")).image(&self.name))
    }
}

impl Write for Taker {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.child.stdin.as_mut().map_or(Ok(0), |to| to.write(buf))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.child.stdin.as_mut().map_or(Ok(()), Write::flush)
    }
}
