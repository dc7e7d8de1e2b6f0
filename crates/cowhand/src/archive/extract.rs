//! `extract`: the disks of an archive, all or some, made into images of any format in one pass.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowhand_core::{
    ArchiveFaults, ArchiveSource, Body, Cache, Chunk, Error, ErrorKind, Format, Manifest, Printable,
    Progress, Reading, Result, Secrets,
};
use serde_json::{Value, json};

use super::input::{self, Input};
use super::map::{self, MapLine, MapTarget};
use super::names::{MISSING, Named, Names, names};
use super::pace::Pace;
use super::pump::{Memory, Outlet, To, pump};
use super::ranges::{Ranges, fault_json, range_json};
use super::{Differing, Digester, Digests, Tally};
use crate::fill::{Filling, Wanted};
use crate::open::Open;
use crate::plan::report;
use crate::registry;
use crate::stream::From;
use crate::target_folder::TargetFolder;

/// Bytes that a target that is there may have more than its disk.
const ROUNDED: u64 = 4 << 20;
/// Bytes of the sectors that an archive's disks count in.
const SECTOR: u32 = 512;

/// How an archive is extracted.
#[derive(Clone, Debug, Default)]
pub struct Extract {
    /// The archive's format; `None`: by its content.
    pub archive: Option<String>,
    /// The names of the disks that come out; `None`: all.
    pub disks: Option<Vec<String>>,
    /// The images' format; `None`: the first there is, which is raw.
    pub format: Option<String>,
    /// Options of the images' format.
    pub options: Vec<(String, String)>,
    /// The images are to have no holes.
    pub solid: bool,
    /// What writes and syncs promise.
    pub cache: Cache,
    /// For images that are to be encrypted.
    pub secrets: Secrets,
    /// A file or named pipe that says which images and devices that are there take the disks: lines of [`MapLine`].
    pub map: Option<PathBuf>,
    /// Names in `disks` and in the map that no disk bears are passed over, and of two lines for a disk the later counts.
    /// Without, these are errors.
    pub lenient: bool,
    /// What is wrong is noted, and all that is intact comes out.
    pub salvage: bool,
    /// Where the digests stand that what comes out is compared with.
    pub digests: Option<PathBuf>,
}

/// Who looks on while an archive is extracted. An error ends that.
pub trait Onlooker {
    /// The archive's front was read, and its configurations stand in the folder; the map was not read yet.
    fn front(&mut self, what: &Manifest) -> Result<()> {
        let _ = what;
        Ok(())
    }

    /// The disk will stand at `path`. `zeros`: whether zeros are written into what is there; `None`: it is new.
    fn disk(&mut self, name: &str, size: u64, path: &Path, zeros: Option<bool>) -> Result<()> {
        let _ = (name, size, path, zeros);
        Ok(())
    }

    /// What takes the disks is ready, and the archive's data comes next.
    fn filling(&mut self) -> Result<()> {
        Ok(())
    }

    /// So much went by.
    fn passed(&mut self, tally: &Tally) -> Result<()> {
        let _ = tally;
        Ok(())
    }
}

/// Nobody looks.
impl Onlooker for () {}

/// What came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// The archive's [`Manifest::id`], as its format spells it.
    pub uuid: String,
    /// The configurations' files.
    pub configs: Vec<ExtractedFile>,
    /// The disks that were extracted, in the archive's order.
    pub disks: Vec<ExtractedDisk>,
    /// How much went by.
    pub tally: Tally,
    /// What was wrong with the archive.
    pub faults: ArchiveFaults,
}

/// A configuration that came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtractedFile {
    /// What the archive calls it.
    pub name: String,
    /// Where it stands.
    pub path: PathBuf,
    /// Its name is not the archive's, which could not be one.
    pub renamed: bool,
}

/// A disk that came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtractedDisk {
    /// Which of [`Manifest::disks`].
    pub number: u32,
    /// Its name and where it stands.
    pub file: ExtractedFile,
    /// The image's format.
    pub format: &'static str,
    /// Guest bytes in the archive.
    pub size: u64,
    /// Guest bytes of the image.
    pub image_size: u64,
    /// Guest bytes written.
    pub written: u64,
    /// What the archive did not have: it reads zero.
    pub missing: Ranges,
    /// What may be wrong, since bytes of the archive may be lost or have come in between where it stands.
    pub doubtful: Ranges,
    /// What is not what its digest was made of.
    pub differing: Ranges,
}

impl Extracted {
    /// Every byte of the disks is there beyond doubt, and is what its digest was made of.
    pub fn is_whole(&self) -> bool {
        self.disks.iter().all(|disk| disk.missing.count + disk.doubtful.count + disk.differing.count == 0)
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let file = |file: &ExtractedFile| json!({ "name": file.name, "filename": file.path.display().to_string(), "renamed": file.renamed });
        let disk = |disk: &ExtractedDisk| {
            let mut value = file(&disk.file);
            value["format"] = json!(disk.format);
            value["size"] = json!(disk.size);
            value["virtual-size"] = json!(disk.image_size);
            value["written"] = json!(disk.written);
            value["missing"] = disk.missing.to_json();
            value["doubtful"] = disk.doubtful.to_json();
            value["differing"] = disk.differing.to_json();
            value
        };
        json!({
            "uuid": self.uuid,
            "whole": self.is_whole(),
            "configs": self.configs.iter().map(file).collect::<Vec<_>>(),
            "disks": self.disks.iter().map(disk).collect::<Vec<_>>(),
            "bytes-read": self.tally.read,
            "zero-bytes": self.tally.zero + self.tally.partial,
            "fault-count": self.faults.count,
            "faults": self.faults.list.iter().map(fault_json).collect::<Vec<_>>(),
        })
    }
}

/// Extracts into the new folder `to`, which is whole or absent; what a map names is written in place.
///
/// With a map the folder bears its name from the start, since who writes the map looks into it.
pub fn extract(
    from: From<'_>,
    to: &Path,
    how: &Extract,
    onlooker: &mut dyn Onlooker,
    progress: &dyn Progress,
) -> Result<Extracted> {
    let archive = match &from {
        From::File(path) => std::fs::metadata(path).ok().map(|there| (there.dev(), there.ino())),
        From::Bytes(_) => None,
    };
    let format = how.archive.as_deref();
    let input = match how.salvage {
        true => input::rescue(from, format, progress)?,
        false => input::open(from, format, Reading::Strict, progress)?,
    };
    let Input { name, format, mut source, counter, len, .. } = input;
    let format = registry::format(format)?;
    let idle = || {
        let read = counter.get();
        report(progress, read, len.unwrap_or(read).max(read))
    };
    let work = Work { archive: &name, format, file: archive, to, how, progress, idle: &idle };
    work.run(source.as_mut(), onlooker)
}

struct Work<'a> {
    /// What people call the archive.
    archive: &'a str,
    format: &'static dyn Format,
    /// The archive's device and inode, where it is a file.
    file: Option<(u64, u64)>,
    to: &'a Path,
    how: &'a Extract,
    progress: &'a dyn Progress,
    /// Asks whether to go on.
    idle: &'a dyn Fn() -> Result<()>,
}

impl Work<'_> {
    fn named(&self, error: Error) -> Error {
        error.image(self.archive)
    }

    fn run(&self, source: &mut dyn ArchiveSource, onlooker: &mut dyn Onlooker) -> Result<Extracted> {
        let how = self.how;
        let what = source.manifest().clone();
        let chosen = self.chosen(&what).map_err(|error| self.named(error))?;
        let digests = how.digests.as_deref().map(Digests::read).transpose()?;
        if let Some(digests) = &digests {
            digests.belong_to(&what).map_err(|error| self.named(error))?;
        }
        let is_file = |at: usize| {
            let memory = what.disks.get(at).is_some_and(|disk| disk.memory);
            chosen.get(at) == Some(&true) && (how.map.is_none() || memory)
        };
        let extension = self.extension()?;
        let files = names(&what, is_file, extension, how.salvage).map_err(|error| self.named(error))?;
        let folder = match how.map {
            Some(_) => TargetFolder::at_once(self.to)?,
            None => TargetFolder::begin(self.to, false)?,
        };
        let configs = self.configs(&what, &files, &folder)?;
        onlooker.front(&what)?;
        let places = self.places(&what, &chosen, &files, &folder)?;
        for (disk, place) in what.disks.iter().zip(&places) {
            let Some(place) = place else { continue };
            let zeros = place.into.as_ref().map(|into| into.zeros);
            onlooker.disk(&disk.name, disk.size, &place.path, zeros)?;
        }
        let outlets = self.outlets(&what, &places)?;
        onlooker.filling()?;

        let digester = digests.as_ref().map(|_| Digester::new(&what));
        let there = || what.disks.iter().zip(&outlets).filter(|(_, outlet)| outlet.is_some());
        let mut tally = Tally::of(there().map(|(disk, _)| disk.size));
        let mut shown = 0;
        let mut each = |size: u64, chunk: Chunk<'_>| {
            tally.add(size, chunk.at, chunk.body);
            if tally.percent() != shown {
                shown = tally.percent();
                onlooker.passed(&tally)?;
            }
            Ok(())
        };
        pump(source, &outlets, digester.as_ref(), &mut each, self.idle).map_err(|error| self.named(error))?;

        let mut done = Extracted { uuid: self.format.spell(what.id), configs, tally, ..Extracted::default() };
        for ((number, disk), (outlet, place)) in (0..).zip(&what.disks).zip(outlets.into_iter().zip(places)) {
            let (Some(outlet), Some(place)) = (outlet, place) else { continue };
            let mut missing = Ranges::default();
            source.missing(number, &mut |range| {
                if let Some(digester) = &digester {
                    digester.lost(number, range.clone())?;
                }
                if let To::Image(image) = &outlet.to {
                    // Whatever stood in a target that was there is none of the disk's.
                    image.put(range.start, Body::Zero(range.end - range.start))?;
                }
                missing.add(range);
                Ok(())
            })?;
            let mut doubtful = Ranges::default();
            source.doubtful(number, &mut |range| {
                doubtful.add(range);
                Ok(())
            })?;
            let (format, image_size, written) = match outlet.to {
                To::Memory(memory) => {
                    let (len, written) = memory.finish()?;
                    ("raw", len, written)
                }
                To::Image(image) => {
                    let filled = image.finish(self.progress)?;
                    (filled.format, filled.size, filled.written)
                }
            };
            let file = ExtractedFile { name: disk.name.clone(), path: place.path, renamed: place.renamed };
            let size = disk.size;
            done.disks.push(ExtractedDisk {
                number,
                file,
                format,
                size,
                image_size,
                written,
                missing,
                doubtful,
                ..ExtractedDisk::default()
            });
        }
        if let (Some(digests), Some(digester)) = (digests, digester) {
            let differing = digests.differing(&digester.finish()).map_err(|error| self.named(error))?;
            self.judge(&differing, &mut done)?;
        }
        done.faults = source.faults().clone();
        if how.salvage {
            self.write_missing(source, &done, &folder)?;
        }
        folder.finish(how.cache)?;
        Ok(done)
    }

    /// Which of the disks come out.
    fn chosen(&self, what: &Manifest) -> Result<Vec<bool>> {
        let Some(wanted) = &self.how.disks else { return Ok(vec![true; what.disks.len()]) };
        let mut chosen = vec![false; what.disks.len()];
        for name in wanted {
            if self.how.lenient && !what.disks.iter().any(|disk| disk.name == *name) {
                continue;
            }
            let number = what.disk(Some(name))?;
            if let Some(chosen) = chosen.get_mut(number as usize) {
                *chosen = true;
            }
        }
        Ok(chosen)
    }

    fn images(&self) -> Result<&'static dyn Format> {
        registry::format(self.how.format.as_deref().unwrap_or("raw"))
    }

    fn extension(&self) -> Result<&'static str> {
        let format = self.images()?;
        Ok(format.extensions().first().copied().unwrap_or_else(|| format.names()[0])) // never empty: every format has a name
    }

    fn configs(&self, what: &Manifest, files: &Names, folder: &TargetFolder) -> Result<Vec<ExtractedFile>> {
        let mut written = Vec::new();
        for (config, Named { file, made_up }) in what.configs.iter().zip(&files.configs) {
            let at = folder.now().join(file);
            write_new(&at, self.how.cache, |to| to.write_all(&config.data))?;
            let path = folder.path().join(file);
            written.push(ExtractedFile { name: config.name.clone(), path, renamed: *made_up });
        }
        Ok(written)
    }

    /// Where each disk goes that comes out.
    fn places(
        &self,
        what: &Manifest,
        chosen: &[bool],
        files: &Names,
        folder: &TargetFolder,
    ) -> Result<Vec<Option<Place>>> {
        let mut places: Vec<Option<Place>> = files
            .disks
            .iter()
            .map(|named| {
                let Named { file, made_up } = named.as_ref()?;
                let (now, path) = (folder.now().join(file), folder.path().join(file));
                Some(Place { now, path, renamed: *made_up, into: None })
            })
            .collect();
        let Some(path) = &self.how.map else { return Ok(places) };
        let wrong = |what: String| Error::invalid(what).image(path.display());
        let mut lines: HashMap<String, MapLine> = HashMap::new();
        for line in map::read(path, self.progress)? {
            if !self.how.lenient {
                if !what.disks.iter().any(|disk| disk.name == line.disk()) {
                    return Err(wrong(format!("the archive has no disk '{}'", line.disk())));
                }
                if lines.contains_key(line.disk()) {
                    let disk = Printable(line.disk());
                    return Err(wrong(format!("the map has two lines for the disk '{disk}'")));
                }
            }
            lines.insert(line.disk().to_owned(), line);
        }
        for ((disk, chosen), place) in what.disks.iter().zip(chosen).zip(&mut places) {
            match lines.get(&disk.name) {
                _ if !chosen => {}
                Some(MapLine::Skip(_)) => *place = None,
                Some(MapLine::Into(_)) if disk.memory => {
                    return Err(wrong(format!(
                        "'{}' is a machine's memory, which goes into the folder",
                        disk.name
                    )));
                }
                Some(MapLine::Into(into)) => {
                    what.disk(Some(&disk.name)).map_err(|error| self.named(error))?;
                    let to = into.target.clone();
                    *place =
                        Some(Place { now: to.clone(), path: to, renamed: false, into: Some(into.clone()) });
                }
                None if disk.memory => {}
                None => {
                    return Err(wrong(format!("the map has no line for the disk '{}'", disk.name))
                        .hint(format!("add 0:{0}=TARGET, 1:{0}=TARGET or skip={0}", disk.name))
                        .known_as(format!("no device name mapping for {}", disk.name)));
                }
            }
        }
        Ok(places)
    }

    fn outlets(&self, what: &Manifest, places: &[Option<Place>]) -> Result<Vec<Option<Outlet>>> {
        let mut groups: HashMap<String, Arc<Pace>> = HashMap::new();
        for into in places.iter().flatten().filter_map(|place| place.into.as_ref()) {
            if let (Some(group), Some(bps)) = (&into.group, into.bps) {
                groups.entry(group.clone()).or_insert_with(|| Arc::new(Pace::new(bps)));
            }
        }
        let mut outlets = Vec::new();
        for (disk, place) in what.disks.iter().zip(places) {
            let Some(place) = place else {
                outlets.push(None);
                continue;
            };
            let into = place.into.as_ref();
            let pace = into.and_then(|into| match &into.group {
                Some(group) => groups.get(group).cloned(),
                None => into.bps.map(|bps| Arc::new(Pace::new(bps))),
            });
            let to = match into {
                Some(into) => To::Image(Box::new(self.there(into, disk.size)?)),
                None if disk.memory => To::Memory(Memory::new(&place.now, self.how.cache)?),
                None => {
                    let image = Filling::new(&place.now, &self.wanted()?, disk.size, self.progress)?;
                    To::Image(Box::new(image))
                }
            };
            outlets.push(Some(Outlet { to, size: disk.size, pace }));
        }
        Ok(outlets)
    }

    fn wanted(&self) -> Result<Wanted> {
        Ok(Wanted {
            format: Some(self.images()?.names()[0].to_owned()), // never empty: every format has a name
            options: self.how.options.clone(),
            cache: self.how.cache,
            solid: self.how.solid,
            secrets: self.how.secrets.clone(),
            sector: SECTOR,
        })
    }

    /// The image or device of a map's line.
    fn there(&self, into: &MapTarget, size: u64) -> Result<Filling> {
        let named = |error: Error| error.image(into.target.display());
        let there = std::fs::metadata(&into.target).map_err(|error| {
            named(Error::io("cannot look at", error)).hint("what a map names has to be there already")
        })?;
        if self.file == Some((there.dev(), there.ino())) {
            return Err(named(Error::invalid("is the archive itself")));
        }
        let how = Open {
            format: Some(into.format.clone()),
            cache: into.cache,
            secrets: self.how.secrets.clone(),
            solid: self.how.solid,
            ..Open::default()
        };
        let image = Filling::there(&into.target, &how, !into.zeros, SECTOR)?;
        let has = image.size();
        if has < size || has - size > ROUNDED {
            let message = format!("has {has} bytes, and the disk '{}' has {size}", into.disk);
            return Err(named(Error::invalid(message))
                .hint("a target has the disk's size, or at most 4 MiB more")
                .known_as(format!(
                    "vma_reader_register_bs for stream {} failed - unexpected size {has} != {size}",
                    into.disk
                )));
        }
        Ok(image)
    }

    /// Notes what differs of the disks that came out; without salvage that is an error.
    fn judge(&self, differing: &[Differing], done: &mut Extracted) -> Result<()> {
        for disk in &mut done.disks {
            for found in differing.iter().filter(|found| found.disk == disk.number) {
                disk.differing.add(found.range.clone());
            }
            if let (Some(first), false) = (disk.differing.list.first(), self.how.salvage) {
                let more = match disk.differing.count {
                    1 => String::new(),
                    count => format!(", and in {} more ranges", count - 1),
                };
                let message = format!(
                    "the disk '{}' is not what its digests were made of between {} and {}{more}",
                    disk.file.name, first.start, first.end
                );
                return Err(self
                    .named(Error::new(ErrorKind::Mismatch, message))
                    .hint("--salvage takes it as it is, and lists all such ranges"));
            }
        }
        Ok(())
    }

    /// The list of what is missing, as a file beside what came out.
    fn write_missing(
        &self,
        source: &dyn ArchiveSource,
        done: &Extracted,
        folder: &TargetFolder,
    ) -> Result<()> {
        let path = folder.now().join(MISSING);
        let failed = |error| Error::io("cannot write", error).image(path.display());
        let file = File::create_new(&path).map_err(failed)?;
        let mut to = BufWriter::new(file);
        let head = json!({
            "archive": self.archive,
            "uuid": done.uuid,
            "whole": done.is_whole(),
            "fault-count": done.faults.count,
            "faults": done.faults.list.iter().map(fault_json).collect::<Vec<_>>(),
        });
        // Ranges are written as they come: there may be more of them than memory should hold.
        let head = head.to_string();
        write!(to, "{},\"disks\":[", head.strip_suffix('}').unwrap_or(&head)).map_err(failed)?;
        let mut between = "";
        for disk in &done.disks {
            let value = json!({
                "name": disk.file.name,
                "filename": disk.file.path.display().to_string(),
                "size": disk.size,
                "missing-bytes": disk.missing.bytes,
                "doubtful": disk.doubtful.list.iter().map(range_json).collect::<Vec<_>>(),
                "differing": disk.differing.list.iter().map(range_json).collect::<Vec<_>>(),
            });
            let value = value.to_string();
            let front = value.strip_suffix('}').unwrap_or(&value);
            write!(to, "{between}\n{front},\"missing\":[").map_err(failed)?;
            between = ",";
            let mut comma = "";
            source.missing(disk.number, &mut |range| {
                write!(to, "{comma}\n{}", range_json(&range)).map_err(failed)?;
                comma = ",";
                Ok(())
            })?;
            write!(to, "]}}").map_err(failed)?;
        }
        writeln!(to, "]}}").map_err(failed)?;
        let file = to.into_inner().map_err(|error| failed(error.into_error()))?;
        sync(&file, self.how.cache).map_err(failed)
    }
}

/// Where a disk goes.
#[derive(Debug)]
struct Place {
    /// Where it is written.
    now: PathBuf,
    /// Where it stands once all is done.
    path: PathBuf,
    renamed: bool,
    /// It is there already, and this is what the map says of it.
    into: Option<MapTarget>,
}

fn write_new(path: &Path, cache: Cache, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    let written = File::create_new(path).and_then(|mut file| {
        write(&mut file)?;
        sync(&file, cache)
    });
    written.map_err(|error| Error::io("cannot write", error).image(path.display()))
}

fn sync(file: &File, cache: Cache) -> std::io::Result<()> {
    if cache == Cache::Unsafe { Ok(()) } else { file.sync_all() }
}

#[cfg(test)]
mod tests;
