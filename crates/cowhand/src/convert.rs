//! `convert`: the content of any disk into a new image of any format, whole or not at all.

mod job;
mod once;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowhand_core::{Cache, Error, ErrorKind, Format, Image, Layer, Link, Lock, OpenOptions, Storage};

pub(crate) use self::job::Job;
use crate::archive::disk::ArchiveDisk;
use crate::bitmap::Carried;
use crate::compare::{Difference, compare_sources};
use crate::create::Base;
use crate::failed::Failed;
use crate::gate::Before;
use crate::open::{Open, Opened, open};
use crate::plan::Concat;
use crate::registry;
use crate::resolve::Watched;
use crate::resume::{Sidecar, key};
use crate::salvage::Salvage;
use crate::sectors::Sectors;
use crate::target::{Replace, Target, TargetFiles, refuse_one_of};
use cowhand_core::{Progress, Quiet};

/// What is to be converted, and how.
#[derive(Clone, Debug, Default)]
pub struct Convert {
    /// The sources; several are put one behind the other.
    pub sources: Vec<PathBuf>,
    /// How the sources are opened.
    pub open: Open,
    /// How each of them is, where that is not the same: as many as there are sources, in place of `open`.
    pub opens: Vec<Open>,
    /// The target.
    pub target: PathBuf,
    /// The target is the source's own top file, which the new image replaces once it is whole.
    pub replace_source: bool,
    /// The target's format; `None`: by the target's extension.
    pub format: Option<String>,
    /// Options of the target's format.
    pub options: Vec<(String, String)>,
    /// What the target stands on: only what differs from it in the source's own layers is written.
    pub backing: Option<PathBuf>,
    /// That file's format.
    pub backing_format: Option<String>,
    /// What writes and syncs of the target promise.
    pub cache: Cache,
    /// The target's file is to have no holes: every byte of it is written.
    pub solid: bool,
    /// Write into an image that is there (`-n`). What it has past the sources' end stays as it is.
    pub no_create: bool,
    /// How that image is opened; `None`: as `format` and `cache` say, and by the policy and the secrets of `open`.
    pub target_open: Option<Open>,
    /// What the options leave open is as QEMU chooses it, for programs that look at it. So a target of the sources' own
    /// format is rounded as any other is.
    pub qemu_choices: bool,
    /// The target reads zero everywhere already.
    pub target_is_zero: bool,
    /// Write compressed clusters.
    pub compress: bool,
    /// Go on where a source cannot be read, which is then zero; [`Progress::lost`] is told.
    pub salvage: bool,
    /// Runs of zeros of at least so many bytes (at most 16 MiB) become holes; `Some(0)`: none do, everything is written. `None`: 4 KiB,
    /// and data that can be shared with the source by the file system is, without being looked at.
    pub sparse: Option<u64>,
    /// Threads; `None`: as many as there are processors, at most 8.
    pub workers: Option<usize>,
    /// Write at most so many guest bytes a second; what the file system shares is not counted.
    pub rate: Option<u64>,
    /// Copy the persistent dirty bitmaps of the source, of which there is one.
    pub bitmaps: bool,
    /// Of these leave out what is inconsistent, which is an error otherwise.
    pub skip_broken_bitmaps: bool,
    /// Read the target back and compare it with the source before it gets its name.
    pub verify: bool,
    /// Leave the partial target there after an error.
    pub keep_partial: bool,
    /// How it takes the place of a file that is there.
    pub replace: Replace,
    /// Go on where an earlier run with this, the same sources and options ended; and leave what is needed to go on when
    /// this one is stopped. Costs a flush from time to time. What cannot be gone on with is begun anew.
    pub resume: bool,
}

impl Convert {
    /// `sources` one behind the other into `target`, with the defaults of everything.
    pub fn new<P: Into<PathBuf>>(
        sources: impl IntoIterator<Item = P>,
        target: impl Into<PathBuf>,
    ) -> Convert {
        Convert {
            sources: sources.into_iter().map(Into::into).collect(),
            target: target.into(),
            ..Convert::default()
        }
    }

    /// How the source of this number is opened.
    fn open_of(&self, index: usize) -> &Open {
        self.opens.get(index).unwrap_or(&self.open)
    }
}

/// The steps of a conversion, for who wants to know in which one it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvertStep {
    /// The source of this number, counted from 0, is opened.
    Source(usize),
    /// The snapshot of that source is.
    Snapshot(usize),
    /// The target's format is looked up.
    Format,
    /// What the target stands on is opened.
    Backing,
    /// The target is made.
    Create,
    /// The target that is there is opened.
    Target,
    /// It is seen whether that is large enough.
    Room,
    /// It is seen whether the target can hold compressed data.
    Compress,
    /// It is seen what the sources have at this offset.
    Map(u64),
    /// The sources are read there.
    Read(u64),
    /// The target is written there.
    Write(u64),
    /// It is seen which bitmaps go along.
    Bitmaps,
    /// They are put into the target, after it was seen whether it takes any.
    PutBitmaps,
    /// All that is left: looking at what is asked for, and giving the target its name.
    Rest,
}

impl From<Error> for Failed<ConvertStep> {
    fn from(error: Error) -> Self {
        Failed { step: ConvertStep::Rest, error }
    }
}

type Result<T, E = Failed<ConvertStep>> = std::result::Result<T, E>;

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// The sources' formats.
    pub from: Vec<&'static str>,
    /// The target's format.
    pub to: &'static str,
    /// Guest bytes of the target.
    pub size: u64,
    /// Guest bytes of the sources.
    pub source_size: u64,
    /// The length of the target's new file in bytes.
    pub file_len: u64,
    /// Guest bytes written.
    pub written: u64,
    /// Guest bytes shared with the source by the file system.
    pub cloned: u64,
    /// Bytes of space the target takes.
    pub physical: u64,
    /// Guest bytes that an earlier run had dealt with.
    pub resumed: u64,
    /// Guest bytes that could not be read, and are zero.
    pub lost: u64,
    /// The target was read back and is the same.
    pub verified: bool,
    /// The target, or its data file, is a device, and was written in place.
    pub in_place: bool,
    /// The target's sectors are not the sources'.
    pub sectors: Option<Sectors>,
    /// What should be known, and was no error because `--force-share` was given.
    pub warnings: Vec<String>,
}

/// Most guest bytes of data that one thread is given at a time.
pub(crate) const PIECE: u64 = 1 << 20;
/// Guest bytes that are read and looked at for zeros at a time: few enough to be still in the processor's cache.
pub(crate) const READ: u64 = 128 << 10;
/// Guest bytes that are written at a time, or a little more.
const WRITE: u64 = 512 << 10;
/// Most guest bytes that are shared by one call: the file system does it at once, but progress should still move.
const CLONE: u64 = 64 << 20;
/// Guest bytes that are looked at for zeros by themselves, where nobody says otherwise.
pub(crate) const SPARSE: u64 = 4096;
/// The longest run of zeros that can be asked for: so much is held in memory by each thread.
const MAX_SPARSE: u64 = 16 << 20;

/// Converts. Errors leave no target, and the one that was there before untouched; a device, and an image written with
/// `no_create`, excepted.
pub fn convert(how: &Convert, progress: &dyn Progress) -> Result<Converted> {
    if how.sources.is_empty() {
        return Err(Error::invalid("nothing to convert").hint("name a source and a target").into());
    }
    if how.sparse.is_some_and(|sparse| sparse > MAX_SPARSE) {
        return Err(Error::invalid("runs of zeros are looked for up to 16 MiB")
            .hint("choose a size up to 16M, or 0 to write everything")
            .into());
    }
    let sources: Vec<Opened> = open_sources(how)?;
    if how.replace_source && (how.no_create || how.resume || how.sources.first() != Some(&how.target)) {
        return Err(Error::invalid("only a new image can take its source's place")
            .hint("leave out resume and no_create, and name the source as the target")
            .into());
    }
    let once = once::best_read_once(how, &sources);
    if once.is_none() {
        sources.iter().try_for_each(|source| source.prepare(progress))?;
    }
    let bitmaps = carried(how, &sources).map_err(Failed::at(ConvertStep::Bitmaps))?;
    if how.resume && bitmaps.is_some() {
        return Err(Error::invalid("a conversion that takes bitmaps along cannot be gone on with")
            .hint("leave out --resume or --bitmaps")
            .into());
    }
    let mut done = if how.no_create {
        into_existing(how, &sources, bitmaps.as_ref(), progress)?
    } else {
        into_new(how, &sources, once, bitmaps.as_ref(), progress)?
    };
    done.warnings.extend(bitmaps.into_iter().flat_map(|bitmaps| bitmaps.skipped));
    done.from = sources.iter().map(|source| source.links()[0].format).collect(); // never empty: every image has a layer
    Ok(done)
}

fn open_sources(how: &Convert) -> Result<Vec<Opened>> {
    let one = |(index, path): (usize, &PathBuf)| {
        let wanted = how.open_of(index);
        open(path, wanted).map_err(|error| {
            let present = Open { snapshot: None, ..wanted.clone() };
            let step = match wanted.snapshot.is_some() && open(path, &present).is_ok() {
                true => ConvertStep::Snapshot(index),
                false => ConvertStep::Source(index),
            };
            Failed { step, error }
        })
    };
    how.sources.iter().enumerate().map(one).collect()
}

/// The bitmaps that go along.
fn carried<'a>(how: &Convert, sources: &'a [Opened]) -> Result<Option<Carried<'a>>, Error> {
    if !how.bitmaps {
        return if how.skip_broken_bitmaps {
            Err(Error::invalid("Use of --skip-broken-bitmaps requires --bitmaps"))
        } else {
            Ok(None)
        };
    }
    match sources {
        [_] if how.open_of(0).snapshot.is_some() => {
            Err(Error::invalid("bitmaps belong to the present state, and a snapshot is converted")
                .hint("leave out --bitmaps"))
        }
        [source] => Carried::of(source.top(), how.skip_broken_bitmaps).map(Some),
        _ => Err(Error::invalid("Copying bitmaps only possible with single source")),
    }
}

fn into_new(
    how: &Convert,
    sources: &[Opened],
    once: Option<&ArchiveDisk>,
    bitmaps: Option<&Carried<'_>>,
    progress: &dyn Progress,
) -> Result<Converted> {
    let format = match &how.format {
        Some(name) => registry::format(name),
        None => registry::format_for_target(&how.target),
    };
    let format = format.map_err(Failed::at(ConvertStep::Format))?;
    let mut base = Base::of(how.options.clone(), how.backing.clone(), how.backing_format.clone())?;
    // What is gone on with is opened in the state that a kill left it in.
    base.fresh = !how.resume;
    base.takes_over(sources, format);
    base.keep_size &= !how.qemu_choices;
    base.qemu_choices = how.qemu_choices;
    let content = total(sources)?;
    let size = base.size().unwrap_or(content);
    let named = |error: Error| error.image(how.target.display());
    if size < content {
        return Err(named(Error::invalid(format!(
            "a target of {size} bytes cannot take the source's {content} bytes"
        )))
        .into());
    }
    let backing = base.open(&how.target, &how.open).map_err(Failed::at(ConvertStep::Backing))?;
    refuse_own_source(how, sources, backing.as_ref()).map_err(Failed::at(ConvertStep::Create))?;
    let read = read_by(sources, backing.as_ref());
    let target = if how.resume {
        Target::resumable(&how.target, how.cache)
    } else if how.replace_source {
        Target::in_place_of_source(&how.target, how.cache)
    } else {
        Target::replacing(&how.target, how.cache, how.keep_partial, how.replace)
    };
    let target = target.map_err(Failed::at(ConvertStep::Create))?;
    let sidecar = match how.resume {
        true => Some(Sidecar::beside(&target, key(how, format, size, &read))?),
        false => None,
    };
    let files = TargetFiles::beside(&how.target, how.cache, how.keep_partial, read)
        .solid(how.solid)
        .replacing(how.replace);
    let below = backing.as_ref().map(|backing| backing.links().to_vec()).unwrap_or_default();
    let shared = shared_below(how, sources, backing.as_ref());
    let salvage = how.salvage.then(|| Salvage::telling(progress));
    let source = Concat::new(sources.iter().map(|source| &**source))
        .above(shared.unwrap_or(usize::MAX))
        .salvaging(salvage.as_ref());

    let there = sidecar.as_ref().and_then(|sidecar| {
        let (layer, done) = sidecar.go_on(how, &source, format, &target, &files, &below)?;
        Some((layer, done, false))
    });
    let (layer, resumed, shares) = match there {
        Some(there) => there,
        None => {
            if let Some(sidecar) = &sidecar {
                sidecar.remove()?;
                target.start_anew()?;
            }
            let links = || sources.iter().flat_map(|source| source.links());
            let shares = links().any(|link| target.can_share(link.layer.host().as_ref()));
            let before = Before { progress, total: content };
            let layer = base
                .make(format, &target, &files, size, &how.open.secrets, &before)
                .map_err(|error| Failed { step: ConvertStep::Create, error: named(error) })?;
            (layer, 0, shares)
        }
    };
    let bitmaps_failed = |error| Failed { step: ConvertStep::PutBitmaps, error: named(error) };
    bitmaps.map_or(Ok(()), |bitmaps| bitmaps.check(layer.as_ref())).map_err(bitmaps_failed)?;
    if sidecar.is_some() && files.have_any() {
        return Err(named(Error::unsupported("a target of several files cannot be gone on with"))
            .hint("leave out --resume")
            .into());
    }
    let layer_reads_zero = layer.new_reads_zero();
    let written = chain(&how.target, layer, format, &below)?;

    let mut job = Job::new(how, &written, shared.is_some());
    // A device holds what it held before, also where it is only the data file.
    let on_device = target.is_device() || files.have_device();
    job.reads_zero = !base.has_backing() && layer_reads_zero && (!on_device || how.target_is_zero);
    job.rest_must_be_zero = backing.as_ref().is_some_and(|backing| backing.size() > content);
    job.whole_blocks = on_device;
    job.shares = shares;
    job.start = resumed;
    job.sidecar = sidecar.as_ref();
    // What lies around a write on a device is not zero, so its blocks are written whole: in order.
    let in_blocks = on_device && written.top().layer.details().cluster_size.is_some();
    let once = once.filter(|_| !in_blocks && !base.has_backing());
    match once {
        Some(disk) => job.take(disk, progress)?,
        None => {
            sources.iter().try_for_each(|source| source.prepare(progress))?;
            job.run(&source, progress)?;
        }
    }
    bitmaps.map_or(Ok(()), |bitmaps| bitmaps.put(written.top().layer.as_ref())).map_err(bitmaps_failed)?;
    // What the file is to have beside what was written may take long too.
    files.gate().during(&Before { progress, total: content }, content, || written.close())?;
    let mut done = job.summary(format.names()[0], &written); // never empty: every format has a name
    done.in_place = on_device;
    done.resumed = resumed;
    done.lost = salvage.as_ref().map_or(0, Salvage::lost);
    done.sectors = Sectors::between(sources.iter().map(|source| &**source), &written);
    drop(written);

    if how.verify {
        let read_back = OpenOptions { secrets: how.open.secrets.clone(), ..OpenOptions::default() };
        let layer = format.open(target.storage().clone(), &files, &read_back).map_err(named)?;
        let read_back = chain(&how.target, layer, format, &below)?;
        // What a device has behind the source is not written, and not looked at.
        let len = if target.is_device() { content } else { u64::MAX };
        match once {
            Some(disk) => once::verify(disk, &read_back, len, progress).map_err(named)?,
            None => verify(how, sources, &Concat::new([&read_back]).up_to(len), progress)?,
        }
        done.verified = true;
    }
    done.warnings = check_sources(how, sources)?;
    done.physical = target.storage().physical_size().unwrap_or(0);
    done.file_len = target.storage().len().unwrap_or(0);
    done.source_size = content;
    files.finish()?;
    target.finish()?;
    if let Some(sidecar) = &sidecar {
        sidecar.remove()?;
    }
    Ok(done)
}

fn into_existing(
    how: &Convert,
    sources: &[Opened],
    bitmaps: Option<&Carried<'_>>,
    progress: &dyn Progress,
) -> Result<Converted> {
    let named = |error: Error| error.image(how.target.display());
    if how.resume {
        return Err(named(Error::invalid("an image that is written in place cannot be gone on with"))
            .hint("leave out --resume or -n")
            .into());
    }
    let target_how = how.target_open.clone().unwrap_or_else(|| Open {
        format: how.format.clone(),
        cache: how.cache,
        policy: how.open.policy.clone(),
        secrets: how.open.secrets.clone(),
        probing: how.open.probing,
        lenient: how.open.lenient,
        ..Open::default()
    });
    let target_how = Open { writable: true, solid: how.solid, ..target_how };
    let opening = Failed::at(ConvertStep::Target);
    refuse_own_source(how, sources, None).map_err(&opening)?;
    let target = open(&how.target, &target_how).map_err(&opening)?;
    let bitmaps_failed = |error| Failed { step: ConvertStep::PutBitmaps, error: named(error) };
    bitmaps.map_or(Ok(()), |bitmaps| bitmaps.check(target.top().layer.as_ref())).map_err(bitmaps_failed)?;
    let content = total(sources)?;
    if target.size() < content {
        let short = format!("is too small: {} bytes for the source's {content}", target.size());
        return Err(Failed { step: ConvertStep::Room, error: named(Error::invalid(short)) });
    }
    let salvage = how.salvage.then(|| Salvage::telling(progress));
    let source = Concat::new(sources.iter().map(|source| &**source)).salvaging(salvage.as_ref());
    let mut job = Job::new(how, &target, false);
    job.reads_zero = how.target_is_zero;
    job.run(&source, progress)?;
    bitmaps.map_or(Ok(()), |bitmaps| bitmaps.put(target.top().layer.as_ref())).map_err(bitmaps_failed)?;
    target.close()?;
    let mut done = job.summary(target.links()[0].format, &target); // never empty: every image has a layer
    done.source_size = content;
    done.in_place = true;
    done.lost = salvage.as_ref().map_or(0, Salvage::lost);
    done.sectors = Sectors::between(sources.iter().map(|source| &**source), &target);
    if how.verify {
        let again = Open { writable: false, ..target_how };
        drop(target);
        let read_back = open(&how.target, &again)?;
        verify(how, sources, &Concat::new([&*read_back]).up_to(content), progress)?;
        done.verified = true;
    }
    done.warnings = check_sources(how, sources)?;
    Ok(done)
}

pub(crate) fn chain(
    path: &Path,
    layer: Arc<dyn Layer>,
    format: &dyn Format,
    below: &[Link],
) -> Result<Image, Error> {
    let top = Link { layer, name: path.display().to_string(), format: format.names()[0] }; // never empty: every format has a name
    Image::new(std::iter::once(top).chain(below.iter().cloned()).collect())
}

/// To be asked before the target is opened: its lock and the source's exclude each other, and would only say that
/// somebody uses it.
fn refuse_own_source(how: &Convert, sources: &[Opened], backing: Option<&Opened>) -> Result<(), Error> {
    if how.replace_source {
        return Ok(());
    }
    refuse_one_of(&how.target, &read_by(sources, backing))
}

fn read_by(sources: &[Opened], backing: Option<&Opened>) -> Vec<Watched> {
    sources.iter().chain(backing).flat_map(|source| source.watched()).collect()
}

/// How many layers of the source stand above what the target stands on too, so that their holes may stay holes.
/// `None`: the target stands on something else, and every byte of the source counts.
fn shared_below(how: &Convert, sources: &[Opened], backing: Option<&Opened>) -> Option<usize> {
    let (Some(backing), [source]) = (backing, sources) else { return None };
    let chain = |links: &[Link]| -> Option<Vec<_>> {
        let file = |link: &Link| {
            let identity = link.layer.host().identity().ok()?;
            Some((identity.device, identity.inode, link.format))
        };
        links.iter().map(file).collect()
    };
    let (all, wanted) = (chain(source.links())?, chain(backing.links())?);
    let depth = all.len().checked_sub(wanted.len()).filter(|depth| all.get(*depth..) == Some(&wanted))?;
    // An earlier state of the file is another content.
    let other_state = depth == 0 && how.open_of(0).snapshot.is_some();
    (!other_state).then_some(depth)
}

/// Guest bytes of all sources.
fn total(sources: &[Opened]) -> Result<u64, Error> {
    let sum = sources.iter().try_fold(0, |sum: u64, source| sum.checked_add(source.size()));
    sum.filter(|sum| *sum <= i64::MAX as u64)
        .ok_or_else(|| Error::invalid("the sources together are larger than any disk can be"))
}

fn check_sources(how: &Convert, sources: &[Opened]) -> Result<Vec<String>, Error> {
    let mut warnings = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        match source.check_unchanged() {
            Err(error) if how.open_of(index).lock == Lock::None && error.kind() == ErrorKind::Changed => {
                warnings.push(error.to_string())
            }
            other => other?,
        }
    }
    Ok(warnings)
}

fn verify(
    how: &Convert,
    sources: &[Opened],
    target: &Concat<'_>,
    progress: &dyn Progress,
) -> Result<(), Error> {
    // What was lost was said once.
    let salvage = how.salvage.then(|| Salvage::telling(&Quiet));
    let source = Concat::new(sources.iter().map(|source| &**source)).salvaging(salvage.as_ref());
    let found = compare_sources(&source, target, false, workers(how.workers), progress)
        .map_err(|failed| failed.error)?;
    match found.difference {
        None => Ok(()),
        Some(Difference::Content(at) | Difference::Allocation(at)) => {
            Err(mismatch(at).image(how.target.display()))
        }
        Some(Difference::Size) => {
            Err(Error::new(ErrorKind::Mismatch, "the target has another size than the source")
                .image(how.target.display()))
        }
    }
}

fn mismatch(at: u64) -> Error {
    Error::new(ErrorKind::Mismatch, "what was read back is not what was written")
        .at(at)
        .hint("the disk or the memory of this machine may be failing")
}

pub(crate) fn workers(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from).min(8)).clamp(1, 64)
}
