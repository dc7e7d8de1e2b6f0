//! `create`: disks of any format, with all they stand on, in one archive.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use cowhand_core::{
    ArchivedDisk, Archives, Body, Cache, ConfigFile, Error, ErrorKind, FileStorage, Lock, Manifest, Progress,
    Result, Storage,
};
use cowhand_packed::{How, Packing};

use super::digest::{Digester, Digests};
use super::feed::{Cut, Disk, feed};
use super::input::able;
use super::naming::{self, Mapped};
use crate::convert::workers;
use crate::open::{Open, Opened, open};
use crate::plan::report;
use crate::registry;
use crate::target::{Target, refuse_one_of};

/// What is to be archived, and how.
#[derive(Clone, Debug, Default)]
pub struct CreateArchive {
    /// The archive's format.
    pub format: String,
    /// The disks, in the archive's order.
    pub disks: Vec<DiskToArchive>,
    /// Files that go beside them, each under its own name.
    pub configs: Vec<PathBuf>,
    /// What tells the archive from others; `None`: random. With this and `made` given, equal sources make equal bytes.
    pub id: Option<[u8; 16]>,
    /// When it was made, in seconds since 1970, UTC; `None`: now.
    pub made: Option<i64>,
    /// How the archive is packed: a name or an extension, or `none`. `None`: by the target's extension.
    pub packing: Option<String>,
    /// How closely it is packed; `None`: what is fast.
    pub level: Option<i32>,
    /// Threads that read, and as many that pack; `None`: as many as there are processors, at most 8.
    pub workers: Option<usize>,
    /// What writes and syncs of a target file promise.
    pub cache: Cache,
    /// A target file that is there is replaced. Without, that is an error.
    pub replace: bool,
    /// Where digests of the disks' data are to be written, by which flipped bits are found: [`Digests::beside`] the target.
    pub digest: Option<PathBuf>,
    /// The machine's configuration gets the lines that Proxmox restores disks by: where each goes is said here, or by the
    /// configuration itself.
    pub map: Option<Vec<Mapped>>,
    /// It is an error if Proxmox could not restore the archive.
    pub restorable: bool,
    /// Says how many guest bytes of those that are dealt with are zero, for who watches.
    pub zeros: Arc<AtomicU64>,
}

/// A disk that is to be archived.
#[derive(Clone, Debug, Default)]
pub struct DiskToArchive {
    /// What the archive is to call it; `None`: `disk` and its place, from 0.
    pub name: Option<String>,
    /// The image, or one disk of another archive.
    pub path: PathBuf,
    /// How it is opened.
    pub open: Open,
}

/// Where an archive goes.
pub enum ArchiveTo<'a> {
    /// A file: whole, or not there. A named pipe is taken for bytes in order.
    File(&'a Path),
    /// Bytes in order. An error leaves what came before it.
    Bytes {
        /// What people call the place.
        name: String,
        /// The place.
        to: &'a mut (dyn Write + Send),
    },
}

/// What was archived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchiveCreated {
    /// The archive's format.
    pub format: &'static str,
    /// How it is packed, where it is.
    pub packing: Option<&'static str>,
    /// What tells it from others.
    pub id: [u8; 16],
    /// Bytes of the archive.
    pub unpacked: u64,
    /// Bytes that were written: fewer, where it is packed.
    pub written: u64,
    /// The disks.
    pub disks: Vec<DiskArchived>,
    /// What should be known, and was no error because images are shared.
    pub warnings: Vec<String>,
}

/// A disk that was archived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskArchived {
    /// What the archive calls it.
    pub name: String,
    /// Guest bytes of it in the archive: the image's, up to whole sectors of 512.
    pub size: u64,
    /// Those of them that are zero, and were left out.
    pub zeros: u64,
}

/// Guest bytes that disks of an archive consist of: QEMU counts a disk that ends within one to that one's end.
const SECTOR: u64 = 512;
/// The longest configuration that is read: no archive takes one that is longer.
const CONFIG: u64 = 1 << 20;

/// Archives. A target file is whole or not there. Its sources are as they were when it began, or that is an error.
pub fn create_archive(
    how: &CreateArchive,
    to: ArchiveTo<'_>,
    progress: &dyn Progress,
) -> Result<ArchiveCreated> {
    let format = registry::format(&how.format)?;
    let archives = able(format)?;
    if let ArchiveTo::File(path) = to
        && std::fs::metadata(path).is_ok_and(|found| takes_bytes_in_order(&found.file_type()))
    {
        let failed = |error| Error::io("cannot open", error).image(path.display());
        let mut pipe = File::options().write(true).open(path).map_err(failed)?;
        let to = ArchiveTo::Bytes { name: path.display().to_string(), to: &mut pipe };
        return create_archive(how, to, progress);
    }
    let name = match &to {
        ArchiveTo::File(path) => path.display().to_string(),
        ArchiveTo::Bytes { name, .. } => name.clone(),
    };
    let named = |error: Error| error.image(&name);
    let packing = packing(how, &name)?;
    let images = how.disks.iter().map(|disk| open(&disk.path, &disk.open)).collect::<Result<Vec<_>>>()?;
    images.iter().try_for_each(|image| image.prepare(progress))?;
    let manifest = manifest(how, &images)?;
    if how.restorable {
        let path = match to {
            ArchiveTo::File(path) => Some(path),
            ArchiveTo::Bytes { .. } => None,
        };
        naming::check_restorable(path, &manifest)?;
    }
    let job = Job { how, archives, packing, images: &images, manifest: &manifest };
    if let Some(digest) = &how.digest {
        let read: Vec<_> = images.iter().flat_map(|image| image.watched()).collect();
        refuse_one_of(digest, &read)?;
        if matches!(to, ArchiveTo::File(path) if path == digest) {
            return Err(Error::invalid("is where the archive goes")
                .image(digest.display())
                .hint("name another file for the digests"));
        }
    }
    let mut done = match to {
        ArchiveTo::Bytes { to, .. } => {
            let (done, digests) = job.run(to, progress).map_err(named)?;
            if let (Some(digests), Some(path)) = (digests, &how.digest) {
                digests.write(path, how.cache)?;
            }
            done
        }
        ArchiveTo::File(path) => job.whole(path, progress).map_err(named)?,
    };
    done.format = format.names()[0]; // never empty: every format has a name
    Ok(done)
}

/// A pipe, a terminal, a socket.
fn takes_bytes_in_order(kind: &std::fs::FileType) -> bool {
    kind.is_fifo() || kind.is_char_device() || kind.is_socket()
}

fn packing(how: &CreateArchive, target: &str) -> Result<Option<&'static dyn Packing>> {
    let packing = match how.packing.as_deref() {
        Some("none") => None,
        Some(name) => {
            let all = cowhand_packed::packings();
            let found =
                all.iter().copied().find(|packing| packing.name() == name || packing.extension() == name);
            Some(found.ok_or_else(|| {
                let names: Vec<&str> = all.iter().map(|packing| packing.name()).collect();
                Error::invalid(format!("'{name}' is no way of packing"))
                    .hint(format!("use {} or none", names.join(", ")))
            })?)
        }
        None => cowhand_packed::by_extension(target),
    };
    match (packing, how.level) {
        (None, Some(_)) => Err(Error::invalid("a level is given, and nothing is packed")
            .hint("say how it is to be packed, or name a target that ends with .zst, .gz or .lzo")),
        (Some(packing), Some(level)) if !packing.levels().contains(&level) => {
            let levels = packing.levels();
            Err(Error::invalid(format!("{} has no level {level}", packing.name())).hint(format!(
                "use {} to {}",
                levels.start(),
                levels.end()
            )))
        }
        (packing, _) => Ok(packing),
    }
}

/// What the archive will say at its front.
fn manifest(how: &CreateArchive, images: &[Opened]) -> Result<Manifest> {
    let disk = |(place, (disk, image)): (usize, (&DiskToArchive, &Opened))| {
        let size = image.size().checked_next_multiple_of(SECTOR);
        Ok(ArchivedDisk {
            name: disk.name.clone().unwrap_or_else(|| format!("disk{place}")),
            size: size.ok_or_else(|| Error::unsupported("is too large").image(image.name()))?,
            ..ArchivedDisk::default()
        })
    };
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = || since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    let mut manifest = Manifest {
        id: how.id.unwrap_or_else(|| uuid::Uuid::new_v4().into_bytes()),
        made: how.made.unwrap_or_else(now),
        configs: how.configs.iter().map(|path| config(path)).collect::<Result<_>>()?,
        disks: how.disks.iter().zip(images).enumerate().map(disk).collect::<Result<_>>()?,
    };
    if let Some(map) = &how.map {
        naming::add_map(&mut manifest, map)?;
    }
    Ok(manifest)
}

fn config(path: &Path) -> Result<ConfigFile> {
    let failed = |error| Error::io("cannot read", error).image(path.display());
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        Error::invalid("is no name for a configuration").hint("name a file, in UTF-8").image(path.display())
    })?;
    let mut data = Vec::new();
    File::open(path).and_then(|file| file.take(CONFIG + 1).read_to_end(&mut data)).map_err(failed)?;
    if data.len() as u64 > CONFIG {
        return Err(Error::unsupported("is too long for a configuration").image(path.display()));
    }
    Ok(ConfigFile { name: name.to_owned(), data })
}

/// The archiving itself.
struct Job<'a> {
    how: &'a CreateArchive,
    archives: &'a dyn Archives,
    packing: Option<&'static dyn Packing>,
    images: &'a [Opened],
    manifest: &'a Manifest,
}

impl Job<'_> {
    /// Into a file.
    fn whole(&self, path: &Path, progress: &dyn Progress) -> Result<ArchiveCreated> {
        match std::fs::symlink_metadata(path) {
            Ok(_) if !self.how.replace => {
                return Err(Error::new(ErrorKind::Exists, "is there already")
                    .hint("name a new file, or pass --force to replace it"));
            }
            Ok(found) if found.file_type().is_block_device() => {
                return Err(Error::unsupported("is a device, which would hold more than the archive")
                    .hint("name a file"));
            }
            _ => {}
        }
        let read: Vec<_> = self.images.iter().flat_map(|image| image.watched()).collect();
        refuse_one_of(path, &read)?;
        let target = Target::begin(path, self.how.cache)?;
        let mut file = InOrder { to: target.storage().clone(), at: 0 };
        let (done, digests) = self.run(&mut file, progress)?;
        if let (Some(digests), Some(path)) = (digests, &self.how.digest) {
            // An archive that bears its name has its digests.
            target.storage().sync().map_err(|error| Error::io("cannot sync", error))?;
            digests.write(path, self.how.cache)?;
        }
        if self.how.replace {
            target.finish()?
        } else {
            target.finish_new()?
        }
        Ok(done)
    }

    /// Into anything. The digests were not written yet.
    fn run(
        &self,
        output: &mut (dyn Write + Send),
        progress: &dyn Progress,
    ) -> Result<(ArchiveCreated, Option<Digests>)> {
        let digester = self.how.digest.as_ref().map(|_| Digester::new(self.manifest));
        let failed = |error| Error::io("cannot write the archive", error);
        let mut written = Counted { to: output, bytes: 0 };
        let mut done = ArchiveCreated { id: self.manifest.id, ..ArchiveCreated::default() };
        match self.packing {
            None => {
                done.disks = self.fill(&mut written, digester.as_ref(), progress)?;
                done.unpacked = written.bytes;
            }
            Some(packing) => {
                let how = How { level: self.how.level, workers: workers(self.how.workers) };
                let mut pack = packing.pack(Box::new(&mut written), how)?;
                let mut unpacked = Counted { to: &mut pack, bytes: 0 };
                done.disks = self.fill(&mut unpacked, digester.as_ref(), progress)?;
                done.unpacked = unpacked.bytes;
                done.packing = Some(packing.name());
                pack.finish().map_err(failed)?;
            }
        }
        written.to.flush().map_err(failed)?;
        done.written = written.bytes;
        done.warnings = self.check_sources()?;
        Ok((done, digester.map(Digester::finish)))
    }

    /// Writes the archive's bytes.
    fn fill(
        &self,
        output: &mut (dyn Write + Send),
        digester: Option<&Digester>,
        progress: &dyn Progress,
    ) -> Result<Vec<DiskArchived>> {
        let mut sink = self.archives.write(Box::new(output), self.manifest)?;
        let sizes = || self.manifest.disks.iter().map(|disk| disk.size);
        let disks: Vec<Disk<'_>> =
            self.images.iter().zip(sizes()).map(|(image, size)| Disk { image, size }).collect();
        let cut = Cut { granule: sink.granule(), batch: sink.batch(), workers: workers(self.how.workers) };
        let total = sizes().fold(0, u64::saturating_add);
        let mut dealt_with = 0;
        let mut zeros = vec![0; disks.len()];
        feed(
            &disks,
            cut,
            &|chunk| digester.map_or(Ok(()), |digester| digester.add(chunk.disk, chunk.at, chunk.body)),
            |chunk| {
                sink.put(chunk)?;
                if let Some(zeros) = zeros.get_mut(chunk.disk as usize) {
                    *zeros = sink.zeros(chunk.disk);
                }
                self.how.zeros.store(zeros.iter().sum(), Ordering::Relaxed);
                dealt_with += match chunk.body {
                    Body::Bytes(bytes) => bytes.len() as u64,
                    Body::Zero(len) => len,
                };
                report(progress, dealt_with, total)
            },
        )?;
        sink.finish()?;
        let disk = |(disk, zeros): (&ArchivedDisk, u64)| DiskArchived {
            name: disk.name.clone(),
            size: disk.size,
            zeros,
        };
        Ok(self.manifest.disks.iter().zip(zeros).map(disk).collect())
    }

    fn check_sources(&self) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for (disk, image) in self.how.disks.iter().zip(self.images) {
            match image.check_unchanged() {
                Err(error) if disk.open.lock == Lock::None && error.kind() == ErrorKind::Changed => {
                    warnings.push(error.to_string());
                }
                other => other?,
            }
        }
        Ok(warnings)
    }
}

/// Counts what goes by.
struct Counted<W> {
    to: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.to.write(buf)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let n = self.to.write_vectored(bufs)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A file that is written from front to back.
struct InOrder {
    to: Arc<FileStorage>,
    at: u64,
}

/// Bytes that are written at a time: for more the kernel looks for longer runs of memory, which takes it several times as
/// long.
const WRITE: u64 = 256 << 10;

impl Write for InOrder {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut rest = buf;
        while !rest.is_empty() {
            let n = rest.len().min((WRITE - self.at % WRITE) as usize);
            let (now, later) = rest.split_at(n); // never out of bounds: not longer than it
            self.to.write_at(self.at, now)?;
            self.at += n as u64;
            rest = later;
        }
        Ok(buf.len())
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut n = 0;
        for buf in bufs {
            n += self.write(buf)?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
