//! Where an archive goes that is made: a file, standard output, a command.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use cowhand::archive::{ArchiveCreated, ArchiveTo, CreateArchive, create_archive};
use cowhand::{Error, ErrorKind, Result};

use super::watch::Watch;
use crate::output::standard_output;
use crate::patient::{Patient, stopped, unless_stopped};

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

    /// Makes the archive there. A wish to stop is heard while the other end of a pipe takes nothing.
    pub(crate) fn make(&self, how: &CreateArchive, watch: &Watch) -> Result<ArchiveCreated> {
        let stop = watch.stop();
        match self {
            Place::File(path) if is_pipe(path) => {
                let failed = |error| Error::io("cannot open", error).image(path.display());
                let name = path.clone();
                let pipe = unless_stopped(&stop, move || File::options().write(true).open(name))?;
                give(how, path.display().to_string(), Patient::over(pipe.map_err(failed)?, stop), watch)
            }
            Place::File(path) => create_archive(how, ArchiveTo::File(path), watch),
            Place::Stdout => {
                give(how, "standard output".to_owned(), Patient::over(standard_output()?, stop), watch)
            }
            Place::Command(command) => {
                let name = command.to_string_lossy().into_owned();
                let (mut taker, pipe) = start(command).map_err(|error| error.image(&name))?;
                let done = give(how, name.clone(), Patient::over(pipe, stop.clone()), watch);
                // Who stops us may have stopped the command too, which is why it fails.
                if done.is_err() && stop.is_set() {
                    return Err(stopped());
                }
                let ended = unless_stopped(&stop, move || taker.wait())?;
                let ended = ended.map_err(|error| Error::io("cannot wait for", error).image(&name))?;
                match ended.success() {
                    // A command that fails takes no more, which would only say that the pipe is broken.
                    false if stop.is_set() => Err(stopped()),
                    false => {
                        Err(Error::new(ErrorKind::Io, format!("the command failed: {ended}")).image(&name))
                    }
                    true => done,
                }
            }
        }
    }
}

fn give(how: &CreateArchive, name: String, mut to: Patient, watch: &Watch) -> Result<ArchiveCreated> {
    create_archive(how, ArchiveTo::Bytes { name, to: &mut to }, watch)
}

/// It is one that has a name.
fn is_pipe(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
}

/// A command that takes the archive, and where it takes it.
fn start(command: &OsStr) -> Result<(Child, ChildStdin)> {
    let failed = |error| Error::io("cannot start", error);
    let mut child =
        Command::new("sh").arg("-c").arg(command).stdin(Stdio::piped()).spawn().map_err(failed)?;
    let pipe = child.stdin.take().ok_or_else(|| failed(std::io::ErrorKind::BrokenPipe.into()))?;
    Ok((child, pipe))
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
