//! Streams taken into an image of any format: one disk, or a chain whose layers come with the youngest first.

use std::path::Path;

use cowhand_core::{Body, DiskInfo, Error, ErrorKind, LayerId, Progress, Result, Source};

use super::parts::Parts;
use super::present::Present;
use super::{SECTOR, Stream, Streamed, format_name};
use crate::fill::{Filled, Filling, Wanted};

/// Takes what comes into the image `path`.
pub(super) fn take(
    parts: &mut Parts<'_>,
    path: &Path,
    how: &Stream,
    progress: &dyn Progress,
) -> Result<Streamed> {
    let mut layers = 0;
    let mut writing: Option<Writing> = None;
    let mut from = None;
    let mut below = Below::default();
    while let Some(mut part) = parts.next()? {
        if let Some(member) = part.member.as_ref().filter(|member| member.number != layers) {
            let message = format!("'{}' comes where {layers} has to", member.name());
            return Err(parts
                .named(Error::unsupported(message))
                .hint("stream the archive into a folder, and convert from there"));
        }
        from.get_or_insert(format_name(part.format));
        let (streams, len, alone) = (part.streams, part.len, part.member.is_none());
        let body = parts.body(&mut part);
        let read = || -> Result<()> {
            let mut source = streams.source(body, len)?;
            let disk = only(source.as_ref())?;
            if alone && disk.parent.is_some() {
                return Err(Error::unsupported("the stream holds only what differs from its parent")
                    .hint("stream the whole chain, as an archive"));
            }
            let writing = match &mut writing {
                Some(writing) => writing,
                none => none.insert(Writing::begin(path, how, disk.size, progress)?),
            };
            below.lay(&disk)?;
            let record = layers > 0 || disk.parent.is_some();
            while let Some(chunk) = source.next()? {
                writing.put(chunk.at, chunk.body, below.visible, record)?;
            }
            // What only the end tells is known now.
            below.check(&only(source.as_ref())?, how)
        };
        read().map_err(|error| parts.named(error))?;
        layers += 1;
    }
    let Some(writing) = writing.filter(|_| below.wanted.is_none()) else {
        let message = match layers {
            0 => "the archive is empty".to_owned(),
            _ => format!("the chain's layer {layers}, on which the others stand, is not in the archive"),
        };
        return Err(parts.named(Error::new(ErrorKind::NotFound, message)));
    };
    let mut done = writing.finish(progress)?;
    done.from = from.unwrap_or_default();
    done.layers = layers;
    Ok(done)
}

/// The one disk of a stream.
fn only(source: &dyn Source) -> Result<DiskInfo> {
    match source.disks() {
        [disk] => Ok(disk.clone()),
        disks => Err(Error::unsupported(format!("the stream holds {} disks, and not one", disks.len()))),
    }
}

/// What the layers that came so far say of the next.
#[derive(Default)]
struct Below {
    /// Whom the last layer stands on.
    wanted: Option<Vec<[u8; 16]>>,
    any: bool,
    /// Guest bytes that a layer below may still give: what a shorter one in between does not reach is zero.
    visible: Option<u64>,
}

impl Below {
    fn lay(&mut self, disk: &DiskInfo) -> Result<()> {
        if self.any && self.wanted.is_none() {
            return Err(Error::corrupt("archive", "another member follows the base of the chain"));
        }
        self.any = true;
        self.visible = Some(self.visible.map_or(disk.size, |visible| visible.min(disk.size)));
        Ok(())
    }

    /// After the layer was read: it is the one that its child was made from, and stands on what it says.
    fn check(&mut self, disk: &DiskInfo, how: &Stream) -> Result<()> {
        let wanted = self.wanted.take().unwrap_or_default();
        let LayerId(found) = disk.identity;
        if !how.open.any_parent && !wanted.is_empty() && !found.is_some_and(|id| wanted.contains(&id)) {
            return Err(Error::new(
                ErrorKind::Mismatch,
                "a layer of the archive is not the parent that the one above was made from (its identity differs)",
            )
            .hint("pass --any-parent to take it all the same"));
        }
        self.wanted = disk.parent.as_ref().map(|parent| parent.expected.clone());
        Ok(())
    }
}

/// An image that is being filled.
struct Writing {
    image: Filling,
    present: Present,
}

impl Writing {
    fn begin(path: &Path, how: &Stream, size: u64, progress: &dyn Progress) -> Result<Writing> {
        let wanted = Wanted {
            format: how.format.clone(),
            options: how.options.clone(),
            cache: how.cache,
            solid: how.open.solid,
            secrets: how.open.secrets.clone(),
            sector: SECTOR,
        };
        Ok(Writing { image: Filling::new(path, &wanted, size, progress)?, present: Present::default() })
    }

    /// Writes what no younger layer gave. `record`: older ones may follow.
    fn put(&mut self, at: u64, body: Body<'_>, visible: Option<u64>, record: bool) -> Result<()> {
        let len = match body {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::Zero(len) => len,
        };
        let end = visible.unwrap_or(u64::MAX).min(at.saturating_add(len));
        let Some(len) = end.checked_sub(at).filter(|len| *len > 0) else { return Ok(()) };
        let Writing { image, present } = self;
        let write = |from: u64, len: u64| {
            let Body::Bytes(bytes) = body else { return Ok(()) };
            let start = (from - at) as usize;
            image.put(from, Body::Bytes(&bytes[start..start + len as usize])) // never out of bounds: a part of what was given
        };
        if record { present.add(at, len, write) } else { write(at, len) }
    }

    fn finish(self, progress: &dyn Progress) -> Result<Streamed> {
        let Filled { format, size, written, sectors } = self.image.finish(progress)?;
        Ok(Streamed { to: format, size: Some(size), written: Some(written), sectors, ..Streamed::default() })
    }
}
