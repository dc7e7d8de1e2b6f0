//! `stream`: image files on their way through pipes, HTTP and `tar.gz` archives, in one pass and without a file between.

mod give;
#[cfg(feature = "http")]
mod http;
mod parts;
mod pass;
pub(crate) mod pipe;
mod present;
mod take;
mod tar;
mod unpack;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use cowhand_core::{
    Access, Cache, DiskInfo, Error, FileStorage, Format, Lock, MemoryStorage, Probe, Progress, Result,
    Storage, Streams,
};
use cowhand_packed::{Gzip, Packing};
use serde_json::{Value, json};

#[cfg(feature = "http")]
pub use self::http::{Http, Put};
use self::parts::Parts;
use crate::archive::content::Content;
use crate::archive::part::Part;
use crate::open::Open;
use crate::registry;
use crate::sectors::Sectors;

/// Where a stream comes from.
#[derive(Debug)]
pub enum From<'a> {
    /// A file. An image is opened with all it stands on; an archive and a named pipe are read from front to back.
    File(&'a Path),
    /// Bytes in order.
    Bytes(Incoming),
}

/// Bytes that come in order, and cannot be gone back in.
pub struct Incoming {
    /// What people call them.
    pub name: String,
    /// How many will come, where somebody has said so.
    pub len: Option<u64>,
    /// The bytes.
    pub bytes: Box<dyn Read + Send>,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incoming {{ name: {:?}, len: {:?} }}", self.name, self.len)
    }
}

/// Where a stream goes.
#[derive(Debug)]
pub enum To<'a> {
    /// A file, or the folder that an archive is unpacked into: whole, or not there.
    File(&'a Path),
    /// Bytes in order. An error leaves what came before it.
    Bytes(&'a mut dyn Deliver),
}

/// Takes bytes in order.
pub trait Deliver: fmt::Debug {
    /// What people call the place.
    fn name(&self) -> &str;

    /// Takes all of `body`. `len`: so many bytes it has; a `body` of another length fails when it is read.
    fn deliver(&mut self, body: &mut dyn Read, len: Option<u64>) -> Result<()>;
}

/// How something is streamed.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// How the source is opened. Of a stream that is read from front to back, the format and `any_parent` count; the
    /// format is that of an archive's members too.
    pub open: Open,
    /// The target's format, or that of its members. `None`: by the target's name; of bytes, the source's where they pass
    /// through, else the first format that can be streamed.
    pub format: Option<String>,
    /// Options of the target's format.
    pub options: Vec<(String, String)>,
    /// The target is a `tar.gz` archive of the source's whole chain; without it, by the target's name.
    pub archive: bool,
    /// Of an archive: one member, which holds the whole disk.
    pub flat: bool,
    /// What writes and syncs of a target file promise.
    pub cache: Cache,
    /// How many bytes will come from the source, where nobody else says so.
    pub len: Option<u64>,
    /// Threads that pack; `None`: as many as there are processors, at most 8.
    pub workers: Option<usize>,
}

/// What was streamed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streamed {
    /// The source's format.
    pub from: &'static str,
    /// The target's.
    pub to: &'static str,
    /// Guest bytes of the disk; `None`: it passed through, and its front does not tell.
    pub size: Option<u64>,
    /// Layers that were streamed.
    pub layers: usize,
    /// Guest bytes written, of a target that is an image file.
    pub written: Option<u64>,
    /// Bytes of what was sent or unpacked, before it was packed.
    pub bytes: Option<u64>,
    /// The target's sectors are not the source's.
    pub sectors: Option<Sectors>,
}

/// Bytes of the sectors that a streamed disk counts in: the formats that can be streamed know no other.
const SECTOR: u32 = 512;

impl Streamed {
    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({
            "source-format": self.from,
            "target-format": self.to,
            "virtual-size": self.size,
            "layers": self.layers,
            "written": self.written,
            "stream-length": self.bytes,
            "sector-sizes": self.sectors.map(|sectors| json!({ "source": sectors.from, "target": sectors.to })),
        })
    }
}

/// Streams.
///
/// A target that is a file or a folder is whole or absent. What is sent elsewhere is sent once, and short of its last
/// bytes where the source proves to be broken or to have changed.
pub fn stream(from: From<'_>, to: To<'_>, how: &Stream, progress: &dyn Progress) -> Result<Streamed> {
    let incoming = match from {
        From::File(path) => match in_order(path, how, progress)? {
            None => return give::give(path, to, how, progress),
            Some(incoming) => incoming,
        },
        From::Bytes(incoming) => incoming,
    };
    let mut parts = Parts::of(incoming, how, progress)?;
    match to {
        To::Bytes(to) => pass::pass(&mut parts, to, how),
        To::File(path) if is_archive(path, how) => {
            let mut file = give::Whole::begin(path, how.cache)?;
            let done = pass::pass(&mut parts, &mut file, &Stream { archive: true, ..how.clone() })?;
            file.finish()?;
            Ok(done)
        }
        To::File(path) if parts.is_archive() && is_folder(path) => unpack::unpack(&mut parts, path, how),
        To::File(path) => take::take(&mut parts, path, how, progress),
    }
}

/// What the front of a stream tells, read no further than that takes.
pub fn front(from: From<'_>, how: &Stream, progress: &dyn Progress) -> Result<Front> {
    let incoming = match from {
        From::File(path) => file_in_order(Part::of(path).file, progress)?,
        From::Bytes(incoming) => incoming,
    };
    let mut parts = Parts::of(incoming, how, progress)?;
    let first = parts.first()?;
    Ok(Front {
        format: format_name(first.format),
        file_len: first.front.file_len,
        disk: first.front.disk,
        read: first.front.bytes.len() as u64,
    })
}

/// The front of a stream.
#[derive(Clone, Debug)]
pub struct Front {
    /// The format.
    pub format: &'static str,
    /// The whole file's length in bytes; `None`: the layout does not tell.
    pub file_len: Option<u64>,
    /// The disk; `None`: only the end tells.
    pub disk: Option<DiskInfo>,
    /// How many bytes had to be read.
    pub read: u64,
}

impl Front {
    /// For programs.
    pub fn to_json(&self) -> Value {
        let parent = self.disk.as_ref().and_then(|disk| disk.parent.as_ref());
        let parents = parent.map(|parent| {
            parent.candidates.iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        });
        json!({
            "format": self.format,
            "file-length": self.file_len,
            "virtual-size": self.disk.as_ref().map(|disk| disk.size),
            "parent": parents,
            "read": self.read,
        })
    }
}

/// What of `path` is read from front to back: all but an image, which can be gone back and forth in.
fn in_order(path: &Path, how: &Stream, progress: &dyn Progress) -> Result<Option<Incoming>> {
    // A disk of an archive is found in it as an image's blocks are.
    if Part::of(path).disk.is_some() {
        return Ok(None);
    }
    let failed = |error| Error::io("cannot open", error).image(path.display());
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if kind.is_fifo() || kind.is_char_device() || kind.is_socket() {
        return file_in_order(path, progress).map(Some);
    }
    if !kind.is_file() {
        return Ok(None);
    }
    let mut head = Vec::new();
    File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head)).map_err(failed)?;
    let as_it_comes = packed(&head, how)? && !holds_disks(path, how)?;
    as_it_comes.then(|| file_in_order(path, progress)).transpose()
}

/// What is packed in the file is a backup archive.
fn holds_disks(path: &Path, how: &Stream) -> Result<bool> {
    let file: Arc<dyn Storage> =
        Arc::new(FileStorage::open(path, Access::Read, Lock::None, Cache::Writeback)?);
    let format = how.open.format.as_deref().map(registry::format).transpose()?;
    let content = Content::of(&file, format, how.open.probing);
    Ok(content.map_err(|error| error.image(path.display()))?.packing.is_some())
}

pub(crate) fn file_in_order(path: &Path, progress: &dyn Progress) -> Result<Incoming> {
    let failed = |error| Error::io("cannot open", error).image(path.display());
    // A named pipe is not open before somebody opens its other end.
    let waits = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
    let owned = path.to_owned();
    let file = if waits { pipe::aside(progress, move || File::open(owned))? } else { File::open(path) };
    let file = file.map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let len = metadata.is_file().then_some(metadata.len());
    Ok(Incoming { name: path.display().to_string(), len, bytes: Box::new(file) })
}

/// It is an archive: packed, and not of a format that somebody named and that may begin so.
fn packed(head: &[u8], how: &Stream) -> Result<bool> {
    if !Gzip.probe(head) {
        return Ok(false);
    }
    match &how.open.format {
        Some(name) => Ok(probe(registry::format(name)?, head) == Probe::No),
        None => Ok(true),
    }
}

/// What a content's first bytes alone say of it.
fn probe(format: &dyn Format, head: &[u8]) -> Probe {
    format.probe(head, &MemoryStorage::from_bytes(head))
}

/// What `Format::probe` is shown of a stream.
const HEAD: u64 = 4096;

fn is_archive(path: &Path, how: &Stream) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_ascii_lowercase();
    how.archive || name.ends_with(".tar.gz") || name.ends_with(".tgz")
}

/// A folder that is there, or one that is to be made, which ends with a slash.
fn is_folder(path: &Path) -> bool {
    path.is_dir() || path.as_os_str().as_bytes().ends_with(b"/")
}

fn format_name(format: &dyn Format) -> &'static str {
    format.names()[0] // never empty: every format has a name
}

/// The format's ability to be streamed.
fn able(format: &'static dyn Format) -> Result<&'static dyn Streams> {
    format.streams().ok_or_else(|| {
        if format.archives().is_some() {
            let name = format_name(format);
            return Error::unsupported(format!("{name} files hold several disks, and one image is streamed"))
                .hint(format!("cowhand {name} extract takes the disks out, from a pipe too"));
        }
        let able: Vec<&str> = registry::formats()
            .iter()
            .filter(|format| format.streams().is_some())
            .map(|format| format_name(*format))
            .collect();
        Error::unsupported(format!("{} files cannot be made or read from front to back", format_name(format)))
            .hint(format!(
                "what can is {}; cowhand convert does the rest, from file to file",
                able.join(", ")
            ))
    })
}
