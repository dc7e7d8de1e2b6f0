//! A disk of an archive that is taken into an image as it comes, and held against it in the same way.

use cowhand_core::{Body, Image, Kind, Progress, Result, is_zero};

use super::{Convert, Job, READ, SPARSE, WRITE, mismatch};
use crate::archive::disk::ArchiveDisk;
use crate::buffer::Buffer;
use crate::open::Opened;
use crate::plan::report;

/// The source, where it is a disk of an archive that costs least when it is taken out of it as it comes: to find where its
/// bytes stand would take as long again, if that could be found at all.
pub(super) fn best_read_once<'a>(how: &Convert, sources: &'a [Opened]) -> Option<&'a ArchiveDisk> {
    let [source] = sources else { return None };
    let disk = source.archived()?;
    let into_new_alone = !how.no_create && how.backing.is_none();
    let in_any_order = !how.resume && !how.compress && !how.salvage;
    (into_new_alone && in_any_order && disk.is_best_read_once()).then_some(disk)
}

/// Gives `see` the disk's content as it comes, every byte once.
fn each(
    disk: &ArchiveDisk,
    progress: &dyn Progress,
    mut see: impl FnMut(u64, Body<'_>, &dyn Fn() -> Result<()>) -> Result<()>,
) -> Result<()> {
    let mut input = disk.in_order(progress)?;
    let len = input.len;
    while let Some(chunk) = input.source.next().map_err(|error| error.image(disk.name()))? {
        if chunk.disk == disk.number() {
            see(chunk.at, chunk.body, &|| report(progress, 0, len.unwrap_or(0)))?;
        }
    }
    Ok(())
}

impl Job<'_> {
    /// Takes the disk out of its archive.
    pub(super) fn take(&self, disk: &ArchiveDisk, progress: &dyn Progress) -> Result<()> {
        let mut run = Run { job: self, at: 0, bytes: Vec::new(), zeros: 0 };
        each(disk, progress, |at, body, go_on| {
            run.add(at, body)?;
            self.pace(go_on)
        })?;
        run.end()
    }
}

/// What came last and follows on each other: bytes, or zeros.
struct Run<'a, 'j> {
    job: &'a Job<'j>,
    at: u64,
    bytes: Vec<u8>,
    zeros: u64,
}

impl Run<'_, '_> {
    fn add(&mut self, at: u64, body: Body<'_>) -> Result<()> {
        let end = self.at.saturating_add(self.bytes.len() as u64).saturating_add(self.zeros);
        let goes_on = match body {
            Body::Bytes(_) => self.zeros == 0 && (self.bytes.len() as u64) < WRITE,
            Body::Zero(_) => self.bytes.is_empty(),
        };
        if at != end || !goes_on {
            self.end()?;
            self.at = at;
        }
        match body {
            Body::Bytes(bytes) => self.bytes.extend_from_slice(bytes),
            Body::Zero(len) => self.zeros = self.zeros.saturating_add(len),
        }
        Ok(())
    }

    /// Writes it.
    fn end(&mut self) -> Result<()> {
        let least = self.job.how.sparse.unwrap_or(SPARSE);
        let everything = least == 0;
        let unit = least.max(512).next_power_of_two() as usize;
        self.job.put(self.at, &self.bytes, unit, everything)?;
        self.bytes.clear();
        let zeros = std::mem::take(&mut self.zeros);
        if !everything && zeros >= self.job.how.sparse.unwrap_or(0) {
            return if zeros == 0 { Ok(()) } else { self.job.zero(self.at, zeros) };
        }
        // Fewer than become a hole.
        let block = vec![0; zeros.min(WRITE) as usize];
        let mut done = 0;
        while done < zeros {
            let n = (zeros - done).min(WRITE);
            self.job.put(self.at + done, block.get(..n as usize).unwrap_or(&block), unit, true)?;
            done += n;
        }
        Ok(())
    }
}

/// Reads the archive once more, and sees that `target` has the disk, with nothing but zeros up to `len` behind it.
pub(super) fn verify(disk: &ArchiveDisk, target: &Image, len: u64, progress: &dyn Progress) -> Result<()> {
    let mut buf = Buffer::default();
    let mut size = 0;
    each(disk, progress, |at, body, _| {
        let same = match body {
            Body::Bytes(bytes) => {
                size = size.max(at.saturating_add(bytes.len() as u64));
                let read = buf.get(bytes.len());
                target.read(at, read)?;
                read == bytes
            }
            Body::Zero(len) => {
                size = size.max(at.saturating_add(len));
                zeros(target, at, len, &mut buf)?
            }
        };
        if same { Ok(()) } else { Err(mismatch(at)) }
    })?;
    let rest = target.size().min(len).saturating_sub(size);
    if zeros(target, size, rest, &mut buf)? { Ok(()) } else { Err(mismatch(size)) }
}

/// All of it reads zero.
fn zeros(image: &Image, at: u64, len: u64, buf: &mut Buffer) -> Result<bool> {
    let mut done = 0;
    while done < len {
        let found = image.extent(at + done, len - done)?;
        let n = if found.kind == Kind::Data { found.len.min(READ) } else { found.len };
        if found.kind == Kind::Data {
            let read = buf.get(n as usize);
            image.read(at + done, read)?;
            if !is_zero(read) {
                return Ok(false);
            }
        }
        done += n;
    }
    Ok(true)
}
