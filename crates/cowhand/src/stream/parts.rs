//! What comes in order: one image file, or those of an archive one after the other, each with what its front tells.

use std::io::{Cursor, Read};

use cowhand_core::{Error, ErrorKind, Format, Head, Probe, Progress, Result, Streams};
use cowhand_packed::{Gzip, Packing};

use super::pipe::{Ahead, read_full};
use super::tar::{Member, Members};
use super::{HEAD, Incoming, Stream, able, format_name, packed, probe};
use crate::registry;

/// Image files in order.
pub(super) struct Parts<'a> {
    /// What people call the whole.
    name: String,
    format: Option<&'static dyn Format>,
    from: From<'a>,
}

type Bytes<'a> = Box<dyn Read + Send + 'a>;

enum From<'a> {
    One { head: Cursor<Vec<u8>>, bytes: Bytes<'a>, len: Option<u64>, given: bool },
    Archive(Box<Members<Bytes<'a>>>),
}

/// One image file; its bytes are [`Parts::body`].
pub(super) struct Part {
    /// Its place in the chain, and its name there; `None`: it is the only one.
    pub(super) member: Option<Member>,
    pub(super) format: &'static dyn Format,
    pub(super) streams: &'static dyn Streams,
    pub(super) front: Head,
    /// Its bytes, where its front or what it came in tells.
    pub(super) len: Option<u64>,
}

impl Part {
    /// It holds only what differs from another.
    pub(super) fn has_parent(&self) -> bool {
        self.front.disk.as_ref().is_some_and(|disk| disk.parent.is_some())
    }
}

impl<'a> Parts<'a> {
    pub(super) fn of(incoming: Incoming, how: &Stream, progress: &'a dyn Progress) -> Result<Parts<'a>> {
        let Incoming { name, len, bytes } = incoming;
        let named = |error: Error| error.image(&name);
        let format = how.open.format.as_deref().map(registry::format).transpose()?;
        if let (Some(len), Some(said)) = (len, how.len)
            && len != said
        {
            let message = format!("{len} bytes will come, and not {said}");
            return Err(named(Error::new(ErrorKind::Mismatch, message)));
        }
        let len = len.or(how.len);
        let mut bytes: Bytes<'a> = Box::new(Ahead::of(bytes, len, progress));
        let mut head = vec![0; HEAD as usize];
        let n = read_full(bytes.as_mut(), &mut head).map_err(named)?;
        head.truncate(n);
        let from = if packed(&head, how)? {
            let all: Bytes<'a> = Box::new(Cursor::new(head).chain(bytes));
            From::Archive(Box::new(Members::new(Gzip.unpack(all))))
        } else {
            From::One { head: Cursor::new(head), bytes, len, given: false }
        };
        Ok(Parts { name, format, from })
    }

    pub(super) fn is_archive(&self) -> bool {
        matches!(self.from, From::Archive(_))
    }

    /// What an error of these bytes is about.
    pub(super) fn named(&self, error: Error) -> Error {
        error.image(&self.name)
    }

    /// The next file. `None`: all were there, to the last byte.
    pub(super) fn next(&mut self) -> Result<Option<Part>> {
        let next = self.look();
        next.map_err(|error| self.named(error))
    }

    /// The first file.
    pub(super) fn first(&mut self) -> Result<Part> {
        let first = self.next()?;
        first.ok_or_else(|| self.named(Error::new(ErrorKind::NotFound, "the archive is empty")))
    }

    fn look(&mut self) -> Result<Option<Part>> {
        let (member, format, len) = match &mut self.from {
            From::One { given: true, bytes, .. } => {
                return match read_full(bytes.as_mut(), &mut [0])? {
                    0 => Ok(None),
                    _ => Err(Error::new(ErrorKind::Mismatch, "the stream goes on behind the image's end")),
                };
            }
            From::One { head, len, given, .. } => {
                *given = true;
                (None, self.format.map_or_else(|| of_front(head.get_ref()), Ok)?, *len)
            }
            From::Archive(members) => {
                let Some(member) = members.next()? else { return Ok(None) };
                let format = self.format.map_or_else(|| of_extension(&member), Ok)?;
                let len = Some(member.len);
                (Some(member), format, len)
            }
        };
        let streams = able(format)?;
        let front = streams.head(&mut *self.bytes())?;
        if let (Some(told), Some(len)) = (front.file_len, len)
            && told != len
        {
            let message = format!("its front tells of {told} bytes, and {len} are to come");
            return Err(Error::new(ErrorKind::Mismatch, message));
        }
        Ok(Some(Part { member, format, streams, len: len.or(front.file_len), front }))
    }

    fn bytes(&mut self) -> Bytes<'_> {
        match &mut self.from {
            From::One { head, bytes, .. } => Box::new(head.chain(bytes)),
            From::Archive(members) => Box::new(members),
        }
    }

    /// All bytes of the part that was given last.
    pub(super) fn body(&mut self, part: &mut Part) -> Bytes<'_> {
        let front = std::mem::take(&mut part.front.bytes);
        Box::new(Cursor::new(front).chain(self.bytes()))
    }
}

/// The format that a stream's first bytes mean.
fn of_front(head: &[u8]) -> Result<&'static dyn Format> {
    let sure: Vec<&'static dyn Format> =
        registry::formats().iter().copied().filter(|format| probe(*format, head) == Probe::Sure).collect();
    match sure.as_slice() {
        [format] => Ok(*format),
        [] => {
            let able = registry::formats().iter().filter(|format| format.streams().is_some());
            let able: Vec<&str> = able.map(|format| format_name(*format)).collect();
            Err(Error::new(ErrorKind::Ambiguous, "the front of the stream does not tell its format")
                .hint(format!("pass -f with one of {}", able.join(", "))))
        }
        several => {
            let names: Vec<&str> = several.iter().map(|format| format_name(*format)).collect();
            Err(Error::new(
                ErrorKind::Ambiguous,
                format!("matches several formats at once: {}", names.join(", ")),
            )
            .hint("pass -f with the one it is"))
        }
    }
}

/// The format that a member's name means.
fn of_extension(member: &Member) -> Result<&'static dyn Format> {
    let meant = |format: &&&'static dyn Format| format.extensions().contains(&member.extension.as_str());
    registry::formats().iter().find(meant).copied().ok_or_else(|| {
        Error::unsupported(format!("the archive holds '{}', of a format that is not known", member.name()))
            .hint("pass -f with the one it is")
    })
}
