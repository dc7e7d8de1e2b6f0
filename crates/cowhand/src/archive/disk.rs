//! A disk of an archive as a layer: what the archive's front says is known at once, where the disk's bytes stand is found
//! out when they are first asked for.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use cowhand_core::{
    ArchiveIndex, Archives, Details, Error, Extent, Format, Forward, Identity, Kind, Layer, Manifest,
    Options, Progress, Quiet, Reading, Result, Storage, Walk,
};
use cowhand_packed::{Packing, SeekTable};
use serde_json::Map;

use super::content::Content;
use super::input::{self, Input};
use super::kept::Kept;
use super::listed::facts;
use super::part::Part;
use super::unpacked;
use crate::plan::report;
use crate::stream::{From, Incoming};

/// How the places of an archive's bytes are found, so that it can be read at random.
#[derive(Clone, Debug, Default)]
pub struct Indexing {
    /// Keep what was found in a file beside the archive, `ARCHIVE.index`, so that the next who opens it need not look
    /// again. One that is there, and is of this archive as it is now, is used always.
    pub keep: bool,
    /// The folder for a copy of an archive that is packed in one piece, unpacked, which is gone once nobody reads it any
    /// more. Without it such an archive cannot be read at random.
    pub unpack_to: Option<PathBuf>,
    /// Archives that are open, so that several disks of one take one look.
    open: Arc<Mutex<Vec<Weak<Archive>>>>,
}

impl PartialEq for Indexing {
    fn eq(&self, other: &Indexing) -> bool {
        (self.keep, &self.unpack_to) == (other.keep, &other.unpack_to)
    }
}

impl Eq for Indexing {}

/// Bytes of a sector: a disk has whole ones, as that of a raw file has.
const SECTOR: u64 = 512;

/// An archive that is open.
#[derive(Debug)]
pub(crate) struct Archive {
    identity: Identity,
    format: &'static dyn Format,
    archives: &'static dyn Archives,
    packing: Option<&'static dyn Packing>,
    file: Arc<dyn Storage>,
    manifest: Manifest,
    /// Where its index is kept.
    sidecar: PathBuf,
    keep: bool,
    unpack_to: Option<PathBuf>,
    found: Mutex<Option<Found>>,
}

/// Where its bytes stand.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The archive's bytes, unpacked.
    pub(crate) bytes: Arc<dyn Storage>,
    pub(crate) index: Arc<dyn ArchiveIndex>,
}

impl Archive {
    /// The archive that `content` says the open `file` is, of which no more is read than its front. `None`: it is none.
    pub(crate) fn open(
        part: &Part<'_>,
        file: &Arc<dyn Storage>,
        content: Content,
        how: &Indexing,
    ) -> Result<Option<Arc<Archive>>> {
        let Content { format, packing } = content;
        let Some(archives) = format.archives() else { return Ok(None) };
        let identity = file.identity().map_err(|error| Error::io("cannot look at", error))?;
        let mut open = how.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|archive| archive.strong_count() > 0);
        let same =
            |archive: &Arc<Archive>| archive.identity == identity && archive.format.names() == format.names();
        if let Some(there) = open.iter().filter_map(Weak::upgrade).find(same) {
            return Ok(Some(there));
        }
        let front = unpacked::front(file.clone(), packing);
        let manifest = archives.read(front, Reading::Strict)?.manifest().clone();
        let mut sidecar = part.file.as_os_str().to_owned();
        sidecar.push(".index");
        let archive = Arc::new(Archive {
            identity,
            format,
            archives,
            packing,
            file: file.clone(),
            manifest,
            sidecar: sidecar.into(),
            keep: how.keep,
            unpack_to: how.unpack_to.clone(),
            found: Mutex::default(),
        });
        open.push(Arc::downgrade(&archive));
        Ok(Some(archive))
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn packing(&self) -> Option<&'static dyn Packing> {
        self.packing
    }

    pub(crate) fn format(&self) -> &'static dyn Format {
        self.format
    }

    /// The disk that the name says, or the option of the format; with neither the only one.
    pub(crate) fn disk(self: &Arc<Archive>, part: &Part<'_>, options: &Options) -> Result<Arc<ArchiveDisk>> {
        let option = self.format.disk_option().and_then(|name| options.text(name));
        let name = match (part.disk, option) {
            (Some(one), Some(other)) if one != other => {
                return Err(Error::invalid(format!(
                    "its name says disk '{one}', and the options say '{other}'"
                ))
                .hint("say it once"));
            }
            (one, other) => one.or(other),
        };
        let number = self.manifest.disk(name)?;
        let Some(disk) = self.manifest.disks.get(number as usize) else {
            return Err(Error::invalid(format!("the archive has no disk number {number}"))); // never: it was just found
        };
        if disk.memory {
            return Err(Error::unsupported(format!(
                "'{}' is a running machine's memory, and no disk",
                disk.name
            ))
            .hint("cowhand vma extract makes a file of it"));
        }
        let size = disk.size.checked_next_multiple_of(SECTOR).ok_or_else(|| {
            Error::unsupported(format!("the disk '{}' is too large: {} bytes", disk.name, disk.size))
        })?;
        let is_named = name.is_some();
        let name = part.name.display().to_string();
        Ok(Arc::new(ArchiveDisk {
            name,
            is_named,
            archive: self.clone(),
            number,
            size,
            layer: OnceLock::new(),
        }))
    }

    /// Where its bytes stand; `progress` can stop the search.
    fn find(&self, progress: &dyn Progress) -> Result<Found> {
        let mut found = self.found();
        if let Some(found) = found.as_ref() {
            return Ok(found.clone());
        }
        let looked = match self.kept() {
            Some(kept) => kept,
            None => self.look(progress)?,
        };
        Ok(found.insert(looked).clone())
    }

    /// That was found before, by this run or one whose index was kept.
    fn is_found(&self) -> bool {
        let mut found = self.found();
        if found.is_none() {
            *found = self.kept();
        }
        found.is_some()
    }

    fn found(&self) -> MutexGuard<'_, Option<Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept beside it. `None`: nothing that is of use.
    fn kept(&self) -> Option<Found> {
        let kept = Kept::load(&self.sidecar, self.file.as_ref(), self.identity, self.packing)?;
        let index = self.archives.index_from(&kept.index).ok()?;
        if *index.manifest() != self.manifest {
            return None;
        }
        let bytes = match (self.packing, kept.table) {
            (Some(packing), Some(table)) => unpacked::at_random(packing, &self.file, &table).ok()?,
            _ => self.file.clone(),
        };
        Some(Found { bytes, index })
    }

    fn look(&self, progress: &dyn Progress) -> Result<Found> {
        let total = self.manifest.disks.iter().fold(0, |sum: u64, disk| sum.saturating_add(disk.size));
        let index_of = |bytes: &Arc<dyn Storage>| {
            let mut walk = Walk::new(bytes.clone());
            self.archives.index(&mut Heeding { forward: &mut walk, progress, total })
        };
        let Some(packing) = self.packing else {
            let (bytes, index) = (self.file.clone(), index_of(&self.file)?);
            self.keep(None, index.as_ref())?;
            return Ok(Found { bytes, index });
        };
        if let Some(table) = packing.table(self.file.as_ref())?.map(Arc::new) {
            let bytes = unpacked::at_random(packing, &self.file, &table)?;
            let index = index_of(&bytes)?;
            self.keep(Some(&table), index.as_ref())?;
            return Ok(Found { bytes, index });
        }
        if let Some(mut survey) = packing.survey(self.file.clone())? {
            let index = self.archives.index(&mut Heeding { forward: survey.as_mut(), progress, total })?;
            let table = Arc::new(survey.finish()?);
            self.keep(Some(&table), index.as_ref())?;
            let bytes = unpacked::at_random(packing, &self.file, &table)?;
            return Ok(Found { bytes, index });
        }
        let Some(folder) = &self.unpack_to else {
            let packing = packing.name();
            return Err(Error::unsupported(format!(
                "is packed in one piece ({packing}), and can be read from front to back only"
            ))
            .hint("pass --unpack-to DIR for a copy there, unpacked, while this runs; or convert the disk to a new image"));
        };
        let bytes = unpacked::copy(packing, &self.file, folder, &Stopping { progress, total })?;
        let index = index_of(&bytes)?;
        Ok(Found { bytes, index })
    }

    fn keep(&self, table: Option<&Arc<SeekTable>>, index: &dyn ArchiveIndex) -> Result<()> {
        if !self.keep {
            return Ok(());
        }
        Kept { table: table.cloned(), index: index.to_bytes() }.save(
            &self.sidecar,
            self.file.as_ref(),
            self.identity,
            self.packing,
        )
    }
}

/// One disk of an archive.
#[derive(Debug)]
pub(crate) struct ArchiveDisk {
    name: String,
    /// It was named beside the file.
    is_named: bool,
    archive: Arc<Archive>,
    number: u32,
    size: u64,
    layer: OnceLock<Arc<dyn Layer>>,
}

impl ArchiveDisk {
    /// The file's name alone says it: nothing is packed, and no other disk has to be told from it.
    pub(crate) fn is_whole_file(&self) -> bool {
        !self.is_named && self.archive.packing.is_none()
    }

    /// What people call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Which of the archive's disks it is.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Finds out where its bytes stand, which `progress` can stop.
    pub(crate) fn prepare(&self, progress: &dyn Progress) -> Result<()> {
        self.archive.find(progress).map(|_| ())
    }

    /// Its archive from front to back, unpacked on another thread.
    pub(crate) fn in_order<'a>(&self, progress: &'a dyn Progress) -> Result<Input<'a>> {
        let archive = &self.archive;
        let incoming = Incoming {
            name: self.name.clone(),
            len: Some(archive.identity.len),
            bytes: Box::new(Walk::new(archive.file.clone())),
        };
        let format = archive.format.names().first().copied();
        input::open(From::Bytes(incoming), format, Reading::Strict, progress)
    }

    /// Who wants the whole disk once does better to read the archive from front to back, unless an index is to be kept of
    /// it, where there can be one.
    pub(crate) fn is_best_read_once(&self) -> bool {
        let Archive { packing: Some(packing), file, keep, .. } = self.archive.as_ref() else { return false };
        let has_places = || {
            let told = packing.table(file.as_ref()).is_ok_and(|table| table.is_some());
            told || packing.survey(file.clone()).is_ok_and(|survey| survey.is_some())
        };
        !(self.archive.is_found() || *keep && has_places())
    }

    fn layer(&self) -> Result<&Arc<dyn Layer>> {
        if let Some(layer) = self.layer.get() {
            return Ok(layer);
        }
        let Found { bytes, index } = self.archive.find(&Quiet)?;
        let layer = index.layer(bytes, self.number)?;
        Ok(self.layer.get_or_init(|| layer))
    }

    /// As the file has it: what is packed does not stand there as it is.
    fn in_file(&self, found: Extent) -> Extent {
        match self.archive.packing {
            Some(_) => Extent { host: None, compressed: found.kind == Kind::Data, ..found },
            None => found,
        }
    }
}

impl Layer for ArchiveDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn granule(&self) -> u64 {
        SECTOR
    }

    fn host(&self) -> &Arc<dyn Storage> {
        &self.archive.file
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        Ok(self.in_file(self.layer()?.extent(at, max)?))
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        Ok(self.in_file(self.layer()?.read(at, buf)?))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn details(&self) -> Details {
        let disk = self.archive.manifest.disks.get(self.number as usize);
        let mut specific = Map::new();
        specific.insert("disk".to_owned(), disk.map_or("", |disk| disk.name.as_str()).into());
        specific.extend(facts(&self.archive));
        Details { specific, ..Details::default() }
    }
}

/// A search whose end is not known, which can be stopped.
struct Stopping<'a> {
    progress: &'a dyn Progress,
    total: u64,
}

impl Progress for Stopping<'_> {
    fn at(&self, _done: u64, _total: u64) -> ControlFlow<()> {
        self.progress.at(0, self.total)
    }
}

/// Bytes that are gone through until somebody asks to stop.
struct Heeding<'a> {
    forward: &'a mut dyn Forward,
    progress: &'a dyn Progress,
    total: u64,
}

impl Read for Heeding<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        report(self.progress, 0, self.total)?;
        self.forward.read(buf)
    }
}

impl Forward for Heeding<'_> {
    fn skip(&mut self, len: u64) -> io::Result<()> {
        report(self.progress, 0, self.total)?;
        self.forward.skip(len)
    }
}
