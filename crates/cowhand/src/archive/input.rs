//! An archive that is opened to be read from front to back, packed or not, from a file or as it comes.

use std::io::{self, Cursor, Read};

use cowhand_core::{
    ArchiveSource, Archives, Error, Format, MemoryStorage, Probe, Progress, Reading, Result, read_up_to,
};

use crate::plan::report;
use crate::registry;
use crate::stream::pipe::{Ahead, Counted, Counter};
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
    let incoming = match from {
        From::File(path) => file_in_order(path)?,
        From::Bytes(incoming) => incoming,
    };
    let Incoming { name, len, bytes } = incoming;
    begin(bytes, len, format, how, progress, &name).map_err(|error| error.image(&name))
}

fn begin<'a>(
    bytes: Box<dyn Read + Send>,
    len: Option<u64>,
    format: Option<&str>,
    how: Reading,
    progress: &'a dyn Progress,
    name: &str,
) -> Result<Input<'a>> {
    let counter = Counter::default();
    let mut bytes = Counted { from: bytes, counter: counter.clone() };
    let head = head_of(&mut bytes)?;
    let packing = cowhand_packed::detect(&head);
    let bytes: Box<dyn Read + Send> = Box::new(Cursor::new(head).chain(bytes));
    let mut unpacked: Box<dyn Read + Send + 'a> = match packing {
        Some(packing) => Box::new(Ahead::of(packing.unpack(bytes), len, progress).counting(counter.clone())),
        // What is known to have a length is a file, which never lets anybody wait.
        None if len.is_some() => Box::new(Watched { bytes, counter: counter.clone(), len, progress }),
        None => Box::new(Ahead::of(bytes, len, progress)),
    };
    let (format, archives, input): (_, _, Box<dyn Read + Send + 'a>) = match format {
        Some(name) => {
            let format = registry::format(name)?;
            (format, able(format)?, unpacked)
        }
        None => {
            let head = head_of(&mut unpacked)?;
            let format = detect(&head)?;
            (format, able(format)?, Box::new(Cursor::new(head).chain(unpacked)))
        }
    };
    Ok(Input {
        name: name.to_owned(),
        format: format.names()[0], // never empty: every format has a name
        packing: packing.map(|packing| packing.name()),
        source: archives.read(input, how)?,
        len,
        counter,
    })
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
