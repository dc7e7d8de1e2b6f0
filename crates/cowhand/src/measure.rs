//! `measure`: how large the file of a new image will be, before it is made.

use std::path::PathBuf;
use std::sync::Mutex;

use cowhand_core::{BitmapInfo, Content, CreateOptions, Error, Lock, Progress, Result, zero_prefix};

use crate::buffer::Buffer;
use crate::convert::{PIECE, READ, SPARSE};
use crate::create::Base;
use crate::open::{Open, Opened, open, open_alone};
use crate::plan::{Concat, Plan, What};
use crate::registry;

/// What is to be measured.
#[derive(Clone, Debug, Default)]
pub struct Measure {
    /// The target's format.
    pub format: String,
    /// Options of the target's format.
    pub options: Vec<(String, String)>,
    /// The source; `None`: an empty disk.
    pub source: Option<PathBuf>,
    /// Guest bytes of the empty disk.
    pub size: Option<u64>,
    /// How the source is opened.
    pub open: Open,
    /// Look at the source's tables only, and leave out what needs its data to be read.
    pub quick: bool,
    /// What QEMU wants to know for this must be known too, and what nobody said is as QEMU chooses it.
    pub qemu_choices: bool,
}

/// File lengths, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// As `qemu-img measure` computes it, where it does: an upper bound, by what the source's tables call data.
    pub required: u64,
    /// Once every guest byte was written.
    pub fully_allocated: u64,
    /// What the source's dirty bitmaps add to `required`, where there can be any.
    pub bitmaps: Option<u64>,
    /// As [`convert`](crate::convert()) makes it with the same options, to the byte. It writes what is not zero;
    /// where the file system shares blocks it takes zeros with the data that they stand in, unless
    /// [`Convert::sparse`](crate::Convert) is set. `None`: it was not asked for, or the new image has a backing file.
    pub exact: Option<u64>,
}

/// Measures.
pub fn measure(how: &Measure, progress: &dyn Progress) -> Result<Sizes> {
    let format = registry::format(&how.format)?;
    let mut base = Base::of(how.options.clone(), None, None)?;
    let source = match (&how.source, how.size) {
        (Some(path), None) => Some(open(path, &how.open)?),
        (None, Some(_)) => None,
        (Some(_), Some(_)) => {
            return Err(Error::invalid("--size N cannot be used together with a filename."));
        }
        (None, None) => return Err(Error::invalid("Either --size N or one filename must be specified.")),
    };
    let content = source.as_ref().map_or(how.size.unwrap_or(0), |source| source.size());
    let size = base.size().unwrap_or(content);
    if size < content {
        return Err(Error::invalid(format!(
            "a target of {size} bytes cannot take the source's {content} bytes"
        )));
    }
    base.takes_over(&source, format);
    base.qemu_choices = how.qemu_choices;
    let options = base.create_options(format, size, &how.open.secrets)?;
    let Some(source) = source else {
        // Where nothing is read, nothing says what a parent would show.
        let alone = CreateOptions { parent: None, ..options };
        let found = format.measure(&Empty(content), &alone)?;
        let exact = (!base.has_backing()).then_some(found.exact);
        let (required, fully_allocated) = (found.required, found.fully_allocated);
        return Ok(Sizes { required, fully_allocated, bitmaps: found.bitmaps, exact });
    };
    source.prepare(progress)?;
    let bitmaps = bitmaps(how, &source)?;
    let disk = Concat::new([&*source]);
    let found = format.measure(&Stated { disk: &disk, bitmaps }, &options)?;
    let exact = if how.quick || base.has_backing() {
        None
    } else {
        let read = format.measure(&Written::of(&disk, progress), &options)?.exact;
        source.check_unchanged()?;
        Some(read)
    };
    let (required, fully_allocated) = (found.required, found.fully_allocated);
    Ok(Sizes { required, fully_allocated, bitmaps: found.bitmaps, exact })
}

/// The source's bitmaps. A snapshot has none of its own; those of its image are what QEMU counts.
fn bitmaps(how: &Measure, source: &Opened) -> Result<Option<Vec<BitmapInfo>>> {
    let list = |image: &Opened| image.top().layer.as_bitmaps().map(|bitmaps| bitmaps.list()).transpose();
    match &how.source {
        Some(path) if how.open.snapshot.is_some() => {
            let image = Open { snapshot: None, metadata_only: true, lock: Lock::None, ..how.open.clone() };
            list(&open_alone(path, &image)?)
        }
        _ => list(source),
    }
}

/// Nothing.
struct Empty(u64);

impl Content for Empty {
    fn size(&self) -> u64 {
        self.0
    }

    fn next(&self, _at: u64) -> Result<Option<(u64, u64)>> {
        Ok(None)
    }
}

/// What the source's tables call data.
struct Stated<'a> {
    disk: &'a Concat<'a>,
    bitmaps: Option<Vec<BitmapInfo>>,
}

impl Content for Stated<'_> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn next(&self, mut at: u64) -> Result<Option<(u64, u64)>> {
        let mut run: Option<(u64, u64)> = None;
        while at < self.disk.size() {
            let (found, _) = self.disk.extent(at, self.disk.size() - at)?;
            match (&mut run, found.kind == cowhand_core::Kind::Data) {
                (Some(_), false) => break,
                (Some((_, len)), true) => *len += found.len,
                (None, true) => run = Some((at, found.len)),
                (None, false) => {}
            }
            at += found.len;
        }
        Ok(run)
    }

    fn bitmaps(&self) -> Option<&[BitmapInfo]> {
        self.bitmaps.as_deref()
    }
}

/// What `convert` would write, found as it finds it: by reading what the tables call data. It looks at units as large as
/// the target's granule; a granule that holds a smaller unit which is not zero is written, so these units do for all.
struct Written<'a> {
    disk: &'a Concat<'a>,
    plan: Plan<'a>,
    progress: &'a dyn Progress,
    walk: Mutex<Walk>,
}

#[derive(Default)]
struct Walk {
    buf: Buffer,
    /// The bytes of `buf` that were read, and where they stand on the disk.
    read: std::ops::Range<usize>,
    at: u64,
    /// What is left of the piece behind them.
    left: u64,
    /// A run that was found and not handed out.
    held: Option<(u64, u64)>,
}

impl<'a> Written<'a> {
    fn of(disk: &'a Concat<'a>, progress: &'a dyn Progress) -> Written<'a> {
        Written { disk, plan: Plan::new(disk, SPARSE, PIECE, 0), progress, walk: Mutex::default() }
    }

    /// The next run within what is read at a time.
    fn step(&self, walk: &mut Walk) -> Result<Option<(u64, u64)>> {
        if let Some(run) = walk.held.take() {
            return Ok(Some(run));
        }
        loop {
            if !walk.read.is_empty() {
                let bytes = &walk.buf.get(READ as usize)[walk.read.clone()]; // never out of bounds: it was filled
                let (len, zero) = zero_prefix(bytes, SPARSE as usize);
                let run = (walk.at, len as u64);
                walk.at += run.1;
                walk.read.start += len;
                if !zero {
                    return Ok(Some(run));
                }
            } else if walk.left > 0 {
                let len = walk.left.min(READ);
                self.disk.read(walk.at, &mut walk.buf.get(READ as usize)[..len as usize])?;
                walk.read = 0..len as usize;
                walk.left -= len;
                self.plan.advance(len, self.progress)?;
            } else {
                let Some(piece) = self.plan.next()? else { return Ok(None) };
                match piece.what {
                    What::Data | What::Verbatim { .. } => (walk.at, walk.left) = (piece.at, piece.len),
                    What::Zero | What::Hole => self.plan.advance(piece.len, self.progress)?,
                }
            }
        }
    }
}

impl Content for Written<'_> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn next(&self, _at: u64) -> Result<Option<(u64, u64)>> {
        let mut walk = self.walk.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut run: Option<(u64, u64)> = None;
        while let Some((start, len)) = self.step(&mut walk)? {
            match &mut run {
                None => run = Some((start, len)),
                Some((first, sum)) if *first + *sum == start => *sum += len,
                Some(_) => {
                    walk.held = Some((start, len));
                    break;
                }
            }
        }
        Ok(run)
    }
}
