//! Streams taken into an image of any format: one disk, or a chain whose layers come with the youngest first.

use std::path::Path;
use std::sync::Arc;

use cowhand_core::{
    Body, DiskInfo, Erase, Error, ErrorKind, Image, Layer, LayerId, Progress, Result, Source,
};

use super::parts::Parts;
use super::present::Present;
use super::{SECTOR, Stream, Streamed, format_name};
use crate::convert::{Convert, Job};
use crate::create::Base;
use crate::gate::Before;
use crate::registry;
use crate::sectors::Sectors;
use crate::target::{Target, TargetFiles};

/// Runs of zeros of this size are not written.
const UNIT: usize = 4096;

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
    let mut done = writing.finish(path)?;
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
    target: Target,
    files: TargetFiles,
    image: Image,
    format: &'static str,
    present: Present,
    written: u64,
}

impl Writing {
    fn begin(path: &Path, how: &Stream, size: u64, progress: &dyn Progress) -> Result<Writing> {
        let format = match &how.format {
            Some(name) => registry::format(name)?,
            None => registry::format_for_target(path)?,
        };
        let named = |error: Error| error.image(path.display());
        let base = Base::of(how.options.clone(), None, None)?;
        let wanted = base.size().unwrap_or(size);
        if base.has_backing() || wanted < size {
            return Err(named(Error::invalid(format!("the target must take {size} bytes, and stand alone"))));
        }
        let target = Target::begin(path, how.cache, false)?;
        let files = TargetFiles::beside(path, how.cache, false, Vec::new()).solid(how.open.solid);
        let before = Before { progress, total: wanted };
        let layer: Arc<dyn Layer> =
            base.make(format, &target, &files, wanted, &how.open.secrets, &before).map_err(named)?;
        let on_device = target.is_device() || files.have_device();
        let zero = layer.new_reads_zero();
        if on_device && layer.details().cluster_size.is_some() {
            return Err(named(Error::unsupported("a device takes a stream as raw bytes only"))
                .hint("stream it to a file, and convert that"));
        }
        let image = crate::convert::chain(path, layer, format, &[])?;
        if on_device || !zero {
            // The stream says nothing of what is zero, and comes in any order.
            image.erase(0, image.size(), Erase::Free)?;
        }
        Ok(Writing {
            target,
            files,
            image,
            format: format_name(format),
            present: Present::default(),
            written: 0,
        })
    }

    /// Writes what no younger layer gave. `record`: older ones may follow.
    fn put(&mut self, at: u64, body: Body<'_>, visible: Option<u64>, record: bool) -> Result<()> {
        let plain = Convert::default();
        let mut job = Job::new(&plain, &self.image, false);
        job.reads_zero = true;
        let len = match body {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::Zero(len) => len,
        };
        let end = visible.unwrap_or(u64::MAX).min(at.saturating_add(len));
        let Some(len) = end.checked_sub(at).filter(|len| *len > 0) else { return Ok(()) };
        let write = |from: u64, len: u64| {
            let Body::Bytes(bytes) = body else { return Ok(()) };
            let start = (from - at) as usize;
            job.put(from, &bytes[start..start + len as usize], UNIT, false) // never out of bounds: a part of what was given
        };
        if record {
            self.present.add(at, len, write)?
        } else {
            write(at, len)?
        }
        self.written += job.written();
        Ok(())
    }

    fn finish(self, path: &Path) -> Result<Streamed> {
        let size = self.image.size();
        let sectors = Sectors::differing(SECTOR, self.image.top().layer.sector());
        self.image.close().map_err(|error| error.image(path.display()))?;
        drop(self.image);
        self.files.finish()?;
        self.target.finish()?;
        let written = Some(self.written);
        Ok(Streamed { to: self.format, size: Some(size), written, sectors, ..Streamed::default() })
    }
}
