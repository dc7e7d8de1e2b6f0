//! `dd`: a range of blocks of a disk into a new image, from and to streams too.

use std::fmt;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use cowhand_core::{Cache, Error, ErrorKind, Extent, Image, Layer, Link, Progress, Result, Storage};

use crate::convert::{Convert, ConvertStep, Job};
use crate::create::Base;
use crate::failed::Failed;
use crate::gate::Before;
use crate::open::{Open, Opened, open};
use crate::plan::{Concat, report};
use crate::registry;
use crate::sectors::Sectors;
use crate::stream::pipe::{Ahead, read_full};
use crate::target::{Replace, Target, TargetFiles, refuse_one_of};

/// Where the bytes come from.
pub enum DdInput<'a> {
    /// An image.
    Image(&'a Path),
    /// Raw bytes in order, as standard input gives them. They are read on a thread that is left behind where it waits for
    /// bytes that never come: so a wish to stop is heard meanwhile.
    Stream(Box<dyn Read + Send>),
}

/// Where the bytes go.
pub enum DdOutput<'a> {
    /// An image.
    Image(&'a Path),
    /// Raw bytes in order, as standard output takes them.
    Stream(&'a mut dyn Write),
}

impl fmt::Debug for DdInput<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DdInput::Image(path) => write!(f, "Image({path:?})"),
            DdInput::Stream(_) => write!(f, "Stream"),
        }
    }
}

impl fmt::Debug for DdOutput<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DdOutput::Image(path) => write!(f, "Image({path:?})"),
            DdOutput::Stream(_) => write!(f, "Stream"),
        }
    }
}

/// Which blocks are copied, and how.
#[derive(Clone, Debug)]
pub struct Dd {
    /// How a source image is opened.
    pub open: Open,
    /// The target's format; a stream is raw.
    pub format: String,
    /// What writes and syncs of the target promise.
    pub cache: Cache,
    /// Bytes of a block, at most 2 GiB - 1.
    pub block_size: u64,
    /// Only the first so many blocks of the source are looked at, those that are skipped included, as `qemu-img dd`
    /// counts them.
    pub count: Option<u64>,
    /// The first blocks of the source, which are left out.
    pub skip: u64,
    /// Bytes of the source; a stream that ends before is an error.
    pub input_size: Option<u64>,
    /// Bytes of the target; what is not copied reads zero.
    pub output_size: Option<u64>,
    /// Write into an image that is there. What lies behind the copied bytes stays as it is.
    pub no_create: bool,
    /// How it takes the place of a file that is there.
    pub replace: Replace,
    /// Where more is skipped than there is, nothing is copied, and that is no failure.
    pub skip_past_end: bool,
    /// What the format leaves open is as QEMU chooses it, for programs that look at it.
    pub qemu_choices: bool,
}

impl Default for Dd {
    fn default() -> Self {
        Dd {
            open: Open::default(),
            format: registry::bare().names()[0].to_owned(), // never empty: every format has a name
            cache: Cache::default(),
            block_size: 512,
            count: None,
            skip: 0,
            input_size: None,
            output_size: None,
            no_create: false,
            replace: Replace::default(),
            skip_past_end: false,
            qemu_choices: false,
        }
    }
}

/// The steps of a copy, for who wants to know in which one it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DdStep {
    /// The source is opened.
    Source,
    /// The target is made.
    Create,
    /// The target that is there is opened.
    Target,
    /// The blocks are copied.
    Copy,
}

impl From<Error> for Failed<DdStep> {
    fn from(error: Error) -> Self {
        Failed { step: DdStep::Copy, error }
    }
}

impl From<Failed<ConvertStep>> for Failed<DdStep> {
    fn from(failed: Failed<ConvertStep>) -> Self {
        failed.error.into()
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Guest bytes copied.
    pub bytes: u64,
    /// More was to be skipped than there is.
    pub skipped_past_end: bool,
    /// The target's sectors are not the source's.
    pub sectors: Option<Sectors>,
}

/// Bytes that pass through memory at a time.
const CHUNK: usize = 1 << 20;
/// Runs of zeros of this size are not written.
const UNIT: usize = 4096;

/// Copies blocks. A target that is made is whole or absent; a stream has what came before an error.
pub fn dd(
    from: DdInput<'_>,
    to: DdOutput<'_>,
    how: &Dd,
    progress: &dyn Progress,
) -> Result<Copied, Failed<DdStep>> {
    if how.block_size == 0 || how.block_size > i32::MAX as u64 {
        let message = format!("Invalid bs specified. Must be between 1 and {}", i32::MAX);
        return Err(Error::invalid(message).into());
    }
    let mut source = Source::of(from, how, progress)?;
    let skipped_past_end = source.skipped_past_end;
    if let Bytes::Disk { disk, .. } = &source.bytes {
        disk.prepare(progress)?;
    }
    let done = match to {
        DdOutput::Stream(stream) => into_stream(&mut source, stream, how, progress)?,
        DdOutput::Image(path) if how.no_create => into_existing(&mut source, path, how, progress)?,
        DdOutput::Image(path) => into_new(&mut source, path, how, progress)?,
    };
    Ok(Copied { skipped_past_end, ..done })
}

/// What is copied.
struct Source<'a> {
    bytes: Bytes<'a>,
    /// How many bytes there are; `None`: as many as come.
    len: Option<u64>,
    /// Bytes taken so far.
    at: u64,
    /// A stream must not end before.
    whole: bool,
    skipped_past_end: bool,
}

enum Bytes<'a> {
    Disk { window: Image, disk: Arc<Opened> },
    Stream(Ahead<'a>),
}

impl<'a> Source<'a> {
    fn of(from: DdInput<'_>, how: &Dd, progress: &'a dyn Progress) -> Result<Source<'a>, Failed<DdStep>> {
        let skip = how.skip.saturating_mul(how.block_size);
        let most = how.count.map(|count| count.saturating_mul(how.block_size));
        let end = [most, how.input_size].into_iter().flatten().min();
        let nothing = || Error::invalid("cannot skip to specified offset").hint("skip fewer blocks");
        match from {
            DdInput::Image(path) => {
                let disk = Arc::new(open(path, &how.open).map_err(Failed::at(DdStep::Source))?);
                let end = end.map_or(disk.size(), |end| end.min(disk.size()));
                let left = end.checked_sub(skip);
                let skipped_past_end = left.is_none();
                let len = match left {
                    Some(len) => len,
                    None if how.skip_past_end => 0,
                    None => return Err(nothing().image(path.display()).into()),
                };
                let layer = Arc::new(Window { disk: disk.clone(), from: skip, len });
                let format = disk.links()[0].format; // never empty: every image has a layer
                let window = Image::new(vec![Link { layer, name: disk.name().to_owned(), format }])?;
                let bytes = Bytes::Disk { window, disk };
                Ok(Source { bytes, len: Some(len), at: 0, whole: true, skipped_past_end })
            }
            DdInput::Stream(stream) => {
                if let Some(name) = &how.open.format {
                    bare_alone(name, "-f")?;
                }
                let len = match end {
                    Some(end) => Some(end.checked_sub(skip).ok_or_else(nothing)?),
                    None => None,
                };
                // What is not copied is left for others to read.
                let total = end.or(how.output_size).unwrap_or(u64::MAX);
                let stream = Ahead::of(Box::new(stream.take(end.unwrap_or(u64::MAX))), Some(total), progress);
                let mut source = Source {
                    bytes: Bytes::Stream(stream),
                    len: Some(skip),
                    at: 0,
                    whole: false,
                    skipped_past_end: false,
                };
                let mut buf = vec![0; CHUNK];
                while source.next(&mut buf)? > 0 {}
                if source.at < skip {
                    return Err(nothing().into());
                }
                Ok(Source { len, at: 0, whole: how.input_size.is_some(), ..source })
            }
        }
    }

    /// Fills the front of `buf`; 0 bytes: that was all.
    fn next(&mut self, buf: &mut [u8]) -> Result<usize> {
        let left = self.len.map_or(u64::MAX, |len| len - self.at);
        let most = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = match &mut self.bytes {
            Bytes::Disk { window, .. } => {
                window.read(self.at, &mut buf[..most])?;
                most
            }
            Bytes::Stream(stream) => read_full(stream, &mut buf[..most])?,
        };
        self.at += n as u64;
        match self.len {
            Some(len) if n < most && self.whole => Err(Error::new(
                ErrorKind::Changed,
                format!("the stream ended after {} bytes of {len}", self.at),
            )),
            _ => Ok(n),
        }
    }

    fn files(&self) -> Vec<crate::resolve::Watched> {
        match &self.bytes {
            Bytes::Disk { disk, .. } => disk.watched(),
            Bytes::Stream(_) => Vec::new(),
        }
    }

    fn check_unchanged(&self) -> Result<()> {
        match &self.bytes {
            Bytes::Disk { disk, .. } => disk.check_unchanged(),
            Bytes::Stream(_) => Ok(()),
        }
    }

    /// Puts all of it to the front of the job's target.
    fn put_into(&mut self, job: &Job<'_>, progress: &dyn Progress) -> Result<Copied> {
        if let Bytes::Disk { window, .. } = &self.bytes {
            job.run(&Concat::new([window]), progress)?;
            let sectors = Sectors::between([window], job.target);
            return Ok(Copied { bytes: window.size(), sectors, ..Copied::default() });
        }
        let size = job.target.size();
        let mut buf = vec![0; CHUNK];
        loop {
            let at = self.at;
            let n = self.next(&mut buf)?;
            if n == 0 {
                return Ok(Copied { bytes: at, ..Copied::default() });
            }
            if self.at > size {
                return Err(too_small(job.target.name(), size, None));
            }
            job.put(at, &buf[..n], UNIT, false)?;
            report(progress, self.at, self.len.unwrap_or(size))?;
        }
    }
}

fn too_small(target: &str, size: u64, wanted: Option<u64>) -> Error {
    let wanted = wanted.map_or("more".to_owned(), |wanted| format!("{wanted} bytes"));
    Error::invalid(format!("is too small: {size} bytes, and {wanted} are to be copied")).image(target)
}

/// A stream is the disk's bytes as they stand.
fn bare_alone(format: &str, flag: &str) -> Result<()> {
    match registry::format(format)?.is_bare() {
        true => Ok(()),
        false => Err(Error::invalid("a stream is raw").hint(format!("leave out {flag}"))),
    }
}

fn into_stream(
    source: &mut Source<'_>,
    stream: &mut dyn Write,
    how: &Dd,
    progress: &dyn Progress,
) -> Result<Copied> {
    bare_alone(&how.format, "-O")?;
    let failed = |error| Error::io("cannot write the stream", error);
    let mut buf = vec![0; CHUNK];
    loop {
        let n = source.next(&mut buf)?;
        if n == 0 {
            break;
        }
        stream.write_all(&buf[..n]).map_err(failed)?;
        report(progress, source.at, source.len.unwrap_or(source.at))?;
    }
    buf.fill(0);
    let mut rest = how.output_size.unwrap_or(0).saturating_sub(source.at);
    while rest > 0 {
        let n = rest.min(buf.len() as u64);
        stream.write_all(&buf[..n as usize]).map_err(failed)?;
        rest -= n;
    }
    stream.flush().map_err(failed)?;
    source.check_unchanged()?;
    Ok(Copied { bytes: source.at, ..Copied::default() })
}

fn into_new(
    source: &mut Source<'_>,
    path: &Path,
    how: &Dd,
    progress: &dyn Progress,
) -> Result<Copied, Failed<DdStep>> {
    let making = Failed::at(DdStep::Create);
    let format = registry::format(&how.format).map_err(&making)?;
    let named = |error: Error| error.image(path.display());
    let size = how.output_size.or(source.len).ok_or_else(|| {
        named(
            Error::invalid("how much will come from the stream is not known")
                .hint("say it with osize=, or with isize="),
        )
    })?;
    if source.len.is_some_and(|len| len > size) {
        return Err(too_small(&path.display().to_string(), size, source.len).into());
    }
    let read = source.files();
    refuse_one_of(path, &read).map_err(&making)?;
    let target = Target::replacing(path, how.cache, false, how.replace).map_err(&making)?;
    let files = TargetFiles::beside(path, how.cache, false, read).replacing(how.replace);
    let mut base = Base::of(Vec::new(), None, None)?;
    base.qemu_choices = how.qemu_choices;
    if let Bytes::Disk { disk, .. } = &source.bytes {
        base.counts_in(disk.top().layer.sector(), format);
    }
    let before = Before { progress, total: size };
    let layer = base
        .make(format, &target, &files, size, &how.open.secrets, &before)
        .map_err(|error| making(named(error)))?;
    let name = format.names()[0]; // never empty: every format has a name
    let image = Image::new(vec![Link { layer, name: path.display().to_string(), format: name }])?;
    let plain = Convert::default();
    let mut job = Job::new(&plain, &image, false);
    job.reads_zero = !target.is_device();
    job.whole_blocks = target.is_device();
    let done = source.put_into(&job, progress)?;
    image.close()?;
    drop(image);
    source.check_unchanged()?;
    files.finish()?;
    target.finish()?;
    Ok(done)
}

fn into_existing(
    source: &mut Source<'_>,
    path: &Path,
    how: &Dd,
    progress: &dyn Progress,
) -> Result<Copied, Failed<DdStep>> {
    let opening = Failed::at(DdStep::Target);
    refuse_one_of(path, &source.files()).map_err(&opening)?;
    let target = Open {
        format: Some(how.format.clone()),
        writable: true,
        cache: how.cache,
        policy: how.open.policy.clone(),
        secrets: how.open.secrets.clone(),
        probing: how.open.probing,
        lenient: how.open.lenient,
        ..Open::default()
    };
    let target = open(path, &target).map_err(&opening)?;
    if let Some(len) = source.len.filter(|len| *len > target.size()) {
        return Err(too_small(target.name(), target.size(), Some(len)).into());
    }
    let plain = Convert::default();
    let job = Job::new(&plain, &target, false);
    let done = source.put_into(&job, progress)?;
    target.close()?;
    source.check_unchanged()?;
    Ok(done)
}

/// Part of a disk, as a disk.
#[derive(Debug)]
struct Window {
    disk: Arc<Opened>,
    from: u64,
    len: u64,
}

impl Layer for Window {
    fn size(&self) -> u64 {
        self.len
    }

    fn granule(&self) -> u64 {
        1
    }

    fn sector(&self) -> u32 {
        self.disk.top().layer.sector()
    }

    fn host(&self) -> &Arc<dyn Storage> {
        self.disk.links()[0].layer.host() // never empty: every image has a layer
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        let found = self.disk.extent(self.from + at, max)?;
        Ok(Extent { len: found.len, kind: found.kind, compressed: found.compressed, host: None })
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        self.disk.read(self.from + at, buf)?;
        Ok(Extent::data(buf.len() as u64, None))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}
