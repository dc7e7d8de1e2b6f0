//! An archive that is opened to be read from front to back, packed or not, from a file or as it comes.

use std::io::{self, Cursor, Read};
use std::sync::Arc;

use cowhand_core::{
    Access, ArchiveSource, Archives, Cache, Error, ErrorKind, FileStorage, Format, Lock, MemoryStorage,
    Probe, Progress, Reading, Result, Storage, Walk, read_up_to,
};

use super::rescue::Sectors;
use crate::plan::report;
use crate::registry;
use crate::stream::pipe::{Ahead, Counted, Counter, aside};
use crate::stream::{From, Incoming, file_in_order};

/// What a way of packing and a format are told by.
const HEAD: usize = 4096;

/// An archive that is being read.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    /// What people call the file.
    pub(crate) name: String,
    /// The archive's format.
    pub(crate) format: &'static str,
    /// How it is packed, where it is.
    pub(crate) packing: Option<&'static str>,
    /// What comes out.
    pub(crate) source: Box<dyn ArchiveSource + 'a>,
    /// How long the file is, where that is known.
    pub(crate) len: Option<u64>,
    pub(super) counter: Counter,
}

/// What people call it.
pub(crate) fn name(from: &From<'_>) -> String {
    match from {
        From::File(path) => path.display().to_string(),
        From::Bytes(incoming) => incoming.name.clone(),
    }
}

/// Opens an archive of the format of that name; `None`: by its content. `progress` is told how much of the file was read.
pub(crate) fn open<'a>(
    from: From<'_>,
    format: Option<&str>,
    how: Reading,
    progress: &'a dyn Progress,
) -> Result<Input<'a>> {
    let name = name(&from);
    let opened = Unpacked::of(from, how, progress).and_then(|unpacked| unpacked.archive(format, &name, how));
    opened.map_err(|error| error.image(&name))
}

/// Opens an archive to take what is intact out of it. Where its front is damaged, all of it is gone through first, which
/// tells what it holds; what comes in order cannot be gone through twice.
pub(crate) fn rescue<'a>(
    from: From<'_>,
    format: Option<&str>,
    progress: &'a dyn Progress,
) -> Result<Input<'a>> {
    let path = match from {
        From::File(path) if path.is_file() => path,
        other => {
            let hint = "save it to a file: then the rest of it may tell what its front does not";
            return open(other, format, Reading::Salvage, progress).map_err(|error| match error.kind() {
                ErrorKind::Corrupt if error.advice().is_none() => error.hint(hint),
                _ => error,
            });
        }
    };
    let once = open(From::File(path), format, Reading::Salvage, progress);
    match &once {
        Ok(input) if input.source.faults().count == 0 => return once,
        Err(error) if error.kind() != ErrorKind::Corrupt => return once,
        _ => {}
    }
    let unpacked = || Unpacked::of(From::File(path), Reading::Salvage, progress);
    let (found, _, mut bytes) = unpacked()?.format(format)?;
    let Ok(manifest) = able(found)?.survey(&mut bytes) else { return once };
    let (found, Unpacked { packing, len, counter, .. }, bytes) = unpacked()?.format(format)?;
    Ok(Input {
        name: path.display().to_string(),
        format: found.names()[0], // never empty: every format has a name
        packing,
        source: able(found)?.read_as(bytes, &manifest)?,
        len,
        counter,
    })
}

type Bytes<'a> = Box<dyn Read + Send + 'a>;

/// A file's bytes, unpacked.
struct Unpacked<'a> {
    bytes: Bytes<'a>,
    packing: Option<&'static str>,
    len: Option<u64>,
    counter: Counter,
}

impl<'a> Unpacked<'a> {
    fn of(from: From<'_>, how: Reading, progress: &'a dyn Progress) -> Result<Unpacked<'a>> {
        match from {
            From::File(path) if how == Reading::Salvage && path.is_file() => {
                let file = FileStorage::open(path, Access::Read, Lock::None, Cache::default())?;
                Unpacked::rescued(Arc::new(file), progress)
            }
            From::File(path) => Unpacked::in_order(file_in_order(path, progress)?, progress),
            From::Bytes(incoming) => Unpacked::in_order(incoming, progress),
        }
    }

    fn in_order(incoming: Incoming, progress: &'a dyn Progress) -> Result<Unpacked<'a>> {
        let Incoming { len, bytes, .. } = incoming;
        let counter = Counter::default();
        let mut bytes = Counted { from: bytes, counter: counter.clone() };
        let (head, bytes) = match len {
            Some(_) => (head_of(&mut bytes), bytes),
            None => aside(progress, move || (head_of(&mut bytes), bytes))?,
        };
        let head = head?;
        let packing = cowhand_packed::detect(&head);
        let bytes: Box<dyn Read + Send> = Box::new(Cursor::new(head).chain(bytes));
        let bytes: Bytes<'a> = match packing {
            Some(packing) => {
                Box::new(Ahead::of(packing.unpack(bytes), len, progress).counting(counter.clone()))
            }
            // What is known to have a length is a file, which never lets anybody wait.
            None if len.is_some() => Box::new(Watched { bytes, counter: counter.clone(), len, progress }),
            None => Box::new(Ahead::of(bytes, len, progress)),
        };
        Ok(Unpacked { bytes, packing: packing.map(|packing| packing.name()), len, counter })
    }

    /// As far as they can be had.
    fn rescued(file: Arc<dyn Storage>, progress: &'a dyn Progress) -> Result<Unpacked<'a>> {
        let len = file.len().map_err(|error| Error::io("cannot find the size", error))?;
        let counter = Counter::default();
        let sectors = || Sectors { file: file.clone(), at: 0, len };
        // What cannot be read of the front is said when the archive is.
        let packing = cowhand_packed::detect(&head_of(&mut sectors()).unwrap_or_default());
        let Some(packing) = packing else {
            let bytes = Box::new(Counted { from: sectors(), counter: counter.clone() });
            let bytes = Watched { bytes, counter: counter.clone(), len: Some(len), progress };
            return Ok(Unpacked { bytes: Box::new(bytes), packing: None, len: Some(len), counter });
        };
        // Behind what cannot be unpacked it goes on by itself.
        let bytes = packing.unpack(Box::new(Counted { from: Walk::new(file), counter: counter.clone() }));
        let bytes = Ahead::of(bytes, Some(len), progress).counting(counter.clone());
        Ok(Unpacked { bytes: Box::new(bytes), packing: Some(packing.name()), len: Some(len), counter })
    }

    /// The format of that name, or by the content; the bytes from the first on.
    fn format(mut self, named: Option<&str>) -> Result<(&'static dyn Format, Unpacked<'a>, Bytes<'a>)> {
        let bytes = std::mem::replace(&mut self.bytes, Box::new(io::empty()));
        match named {
            Some(name) => Ok((registry::format(name)?, self, bytes)),
            None => {
                let mut bytes = bytes;
                let head = head_of(&mut bytes)?;
                let format = detect(&head)?;
                Ok((format, self, Box::new(Cursor::new(head).chain(bytes))))
            }
        }
    }

    fn archive(self, format: Option<&str>, name: &str, how: Reading) -> Result<Input<'a>> {
        let (format, Unpacked { packing, len, counter, .. }, bytes) = self.format(format)?;
        Ok(Input {
            name: name.to_owned(),
            format: format.names()[0], // never empty: every format has a name
            packing,
            source: able(format)?.read(bytes, how)?,
            len,
            counter,
        })
    }
}

fn head_of(bytes: &mut dyn Read) -> Result<Vec<u8>> {
    let mut head = vec![0; HEAD];
    let n = read_up_to(bytes, &mut head, 0)?;
    head.truncate(n);
    Ok(head)
}

/// The format of archives that begins so.
fn detect(head: &[u8]) -> Result<&'static dyn Format> {
    let storage = MemoryStorage::from_bytes(head);
    let claims =
        |format: &&dyn Format| format.archives().is_some() && format.probe(head, &storage) > Probe::Possible;
    let found = registry::formats().iter().copied().find(claims);
    found.ok_or_else(|| Error::corrupt("head", "this is no backup archive"))
}

pub(super) fn able(format: &'static dyn Format) -> Result<&'static dyn Archives> {
    let name = format.names()[0]; // never empty: every format has a name
    format.archives().ok_or_else(|| Error::unsupported(format!("{name} files are no archives")))
}

/// A file's bytes; who reads them is asked whether to go on.
struct Watched<'a> {
    bytes: Box<dyn Read + Send>,
    pub(super) counter: Counter,
    len: Option<u64>,
    progress: &'a dyn Progress,
}

impl Read for Watched<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let passed = self.counter.get();
        report(self.progress, passed, self.len.unwrap_or(passed).max(passed))?;
        self.bytes.read(buf)
    }
}
