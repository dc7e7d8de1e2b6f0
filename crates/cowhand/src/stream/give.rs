//! Images that can be opened, made into streams: one file, or an archive of the whole chain.

use std::io::Read;
use std::path::Path;

use cowhand_core::{Encoded, Error, Image, ParentRef, Progress, Result};
use cowhand_packed::{Gzip, How, Packed};

use super::pipe::{Ahead, Exactly};
use super::tar::{Archive, MOST, member_name};
use super::{Deliver, SECTOR, Stream, Streamed, To, able, format_name, is_archive};
use crate::convert::workers;
use crate::create::Base;
use crate::open::{Opened, open};
use crate::registry;
use crate::sectors::Sectors;
use crate::target::{Target, refuse_one_of};

/// Streams the disk whose top is `source`.
pub(super) fn give(source: &Path, to: To<'_>, how: &Stream, progress: &dyn Progress) -> Result<Streamed> {
    let disk = open(source, &how.open)?;
    if !matches!(to, To::File(path) if !is_archive(path, how)) {
        disk.prepare(progress)?;
    }
    match to {
        To::Bytes(to) if how.archive => chain(&disk, to, how, progress),
        To::Bytes(to) => single(&disk, to, how, progress),
        To::File(path) if is_archive(path, how) => {
            refuse_one_of(path, &disk.watched())?;
            let mut file = Whole::begin(path, how.cache)?;
            let done = chain(&disk, &mut file, how, progress)?;
            file.finish()?;
            Ok(done)
        }
        To::File(path) => Err(Error::invalid("an image file and another are converted, and not streamed")
            .image(path.display())
            .hint("use cowhand convert; or name a target that ends with .tar.gz, - or an address")),
    }
}

fn format(how: &Stream) -> Result<&'static dyn cowhand_core::Format> {
    match &how.format {
        Some(name) => registry::format(name),
        None => registry::formats()
            .iter()
            .copied()
            .find(|format| format.streams().is_some())
            .ok_or_else(|| Error::unsupported("no format can be streamed")),
    }
}

/// Makes the files of `disks`, which are a chain's layers with the top first, or one disk.
fn encode<'a>(disks: &'a [Image], how: &Stream) -> Result<Vec<Box<dyn Encoded + 'a>>> {
    let format = format(how)?;
    let streams = able(format)?;
    let base = Base::of(how.options.clone(), None, None)?;
    let mut made: Vec<Box<dyn Encoded + 'a>> = Vec::new();
    // From the base up: a child remembers its parent.
    for (number, disk) in disks.iter().enumerate().rev() {
        let mut options = base.create_options(format, disk.size(), &how.open.secrets)?;
        if let Some(parent) = made.last() {
            options.parent = Some(ParentRef {
                candidates: vec![member_name(number + 1, extension(format)).into()],
                format: Some(format_name(format).to_owned()),
                expected: parent.identity().0.into_iter().collect(),
                ..ParentRef::default()
            });
        }
        made.push(streams.encode(disk, &options).map_err(|error| error.image(disk.name()))?);
    }
    made.reverse();
    Ok(made)
}

fn extension(format: &dyn cowhand_core::Format) -> &'static str {
    format.extensions().first().copied().unwrap_or_else(|| format_name(format))
}

fn single(disk: &Opened, to: &mut dyn Deliver, how: &Stream, progress: &dyn Progress) -> Result<Streamed> {
    let encoded = encode(std::slice::from_ref(&**disk), how)?.swap_remove(0); // never empty: a file for each disk
    let len = encoded.file_len();
    let body = Exactly::new(encoded, len);
    Ahead::during(body, Some(len), progress, |body| to.deliver(body, Some(len)))?;
    summary(disk, how, 1, len)
}

fn chain(disk: &Opened, to: &mut dyn Deliver, how: &Stream, progress: &dyn Progress) -> Result<Streamed> {
    let layers: Vec<Image> = if how.flat {
        vec![Image::new(disk.links().to_vec())?]
    } else {
        disk.links().iter().map(|link| Image::new(vec![link.clone()])).collect::<Result<_>>()?
    };
    if layers.len() > MOST {
        return Err(Error::unsupported("the chain is too long for an archive").image(disk.name()));
    }
    let extension = extension(format(how)?);
    let mut archive = Archive::default();
    let mut total = 0;
    for (number, encoded) in encode(&layers, how)?.into_iter().enumerate() {
        let len = encoded.file_len();
        total += len;
        let body = Exactly::new(encoded, len);
        archive.add(&member_name(number, extension), body, len)?;
    }
    Ahead::during(archive.finish(), Some(total), progress, |bytes| {
        to.deliver(&mut packed(bytes, how)?, None)
    })?;
    summary(disk, how, layers.len(), total)
}

/// An archive's bytes as they go out.
pub(super) fn packed<'a>(bytes: impl Read + Send + 'a, how: &Stream) -> Result<impl Read + Send + 'a> {
    Packed::new(bytes, &Gzip, How { level: None, workers: workers(how.workers) })
}

fn summary(disk: &Opened, how: &Stream, layers: usize, bytes: u64) -> Result<Streamed> {
    let to = format_name(format(how)?);
    Ok(Streamed {
        from: disk.top().format,
        to,
        size: Some(disk.size()),
        layers,
        written: None,
        bytes: Some(bytes),
        sectors: Sectors::differing(disk.top().layer.sector(), SECTOR),
    })
}

/// A file that takes a stream: whole, or not there.
#[derive(Debug)]
pub(super) struct Whole {
    name: String,
    target: Target,
}

/// Bytes that are written at a time.
const CHUNK: usize = 1 << 20;

impl Whole {
    pub(super) fn begin(path: &Path, cache: cowhand_core::Cache) -> Result<Whole> {
        let target = Target::begin(path, cache)?;
        Ok(Whole { name: path.display().to_string(), target })
    }

    pub(super) fn finish(self) -> Result<()> {
        self.target.finish()
    }
}

impl Deliver for Whole {
    fn name(&self) -> &str {
        &self.name
    }

    fn deliver(&mut self, body: &mut dyn Read, _len: Option<u64>) -> Result<()> {
        use cowhand_core::Storage;
        let mut buf = vec![0; CHUNK];
        let mut at = 0;
        loop {
            let n = super::pipe::read_full(body, &mut buf)?;
            if n == 0 {
                return Ok(());
            }
            let written = self.target.storage().write_at(at, &buf[..n]); // never out of bounds: at most its length
            written.map_err(|error| Error::io("cannot write", error).image(&self.name))?;
            at += n as u64;
        }
    }
}
