//! An image that is filled with chunks of any order: a new one of any format, or one that is there.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cowhand_core::{Body, Cache, Erase, Error, Image, Layer, Progress, Result, Secrets};

use crate::convert::{Convert, Job};
use crate::create::Base;
use crate::gate::Before;
use crate::open::{Open, Opened, open};
use crate::registry;
use crate::sectors::Sectors;
use crate::target::{Target, TargetFiles};

/// Runs of zeros of this size are not written.
const UNIT: usize = 4096;

/// What kind of image is made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// `None`: by the image's name.
    pub(crate) format: Option<String>,
    /// Options of the format.
    pub(crate) options: Vec<(String, String)>,
    pub(crate) cache: Cache,
    /// The file is to have no holes.
    pub(crate) solid: bool,
    pub(crate) secrets: Secrets,
    /// Bytes of the sectors that the disk counts in.
    pub(crate) sector: u32,
}

/// An image that is being filled, by several threads at once. What never comes is zero in a new one, and stays as it is
/// in one that was there.
#[derive(Debug)]
pub(crate) struct Filling {
    path: PathBuf,
    kind: Kind,
    /// Zeros need not be written.
    reads_zero: bool,
    /// Bytes of the sectors that what comes counts in.
    sector: u32,
    written: AtomicU64,
}

#[derive(Debug)]
enum Kind {
    New(Box<New>),
    There(Opened),
}

#[derive(Debug)]
struct New {
    target: Target,
    files: TargetFiles,
    image: Image,
    format: &'static str,
}

/// An image that was filled.
#[derive(Debug)]
pub(crate) struct Filled {
    pub(crate) format: &'static str,
    pub(crate) size: u64,
    /// Guest bytes written.
    pub(crate) written: u64,
    /// Its sectors are not those of what came.
    pub(crate) sectors: Option<Sectors>,
}

impl Filling {
    /// A new image of at least `size` guest bytes: whole once it is finished, or absent.
    pub(crate) fn new(path: &Path, how: &Wanted, size: u64, progress: &dyn Progress) -> Result<Filling> {
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
        let target = Target::begin(path, how.cache)?;
        let files = TargetFiles::beside(path, how.cache, false, Vec::new()).solid(how.solid);
        let before = Before { progress, total: wanted };
        let layer: Arc<dyn Layer> =
            base.make(format, &target, &files, wanted, &how.secrets, &before).map_err(named)?;
        let on_device = target.is_device() || files.have_device();
        let zero = layer.new_reads_zero();
        if on_device && layer.details().cluster_size.is_some() {
            return Err(named(Error::unsupported("a device takes a stream as raw bytes only"))
                .hint("stream it to a file, and convert that"));
        }
        let image = crate::convert::chain(path, layer, format, &[])?;
        if on_device || !zero {
            // What comes says nothing of what is zero, and comes in any order.
            image.erase(0, image.size(), Erase::Free)?;
        }
        let format = format.names()[0]; // never empty: every format has a name
        Ok(Filling {
            path: path.to_owned(),
            kind: Kind::New(Box::new(New { target, files, image, format })),
            reads_zero: true,
            sector: how.sector,
            written: AtomicU64::new(0),
        })
    }

    /// The image `path`, which is written in place. `reads_zero`: it does so already, everywhere.
    pub(crate) fn there(path: &Path, how: &Open, reads_zero: bool, sector: u32) -> Result<Filling> {
        let image = open(path, &Open { writable: true, ..how.clone() })?;
        Ok(Filling {
            path: path.to_owned(),
            kind: Kind::There(image),
            reads_zero,
            sector,
            written: AtomicU64::new(0),
        })
    }

    fn image(&self) -> &Image {
        match &self.kind {
            Kind::New(new) => &new.image,
            Kind::There(image) => image,
        }
    }

    /// Guest bytes.
    pub(crate) fn size(&self) -> u64 {
        self.image().size()
    }

    /// Takes what stands at `at`. Each byte comes at most once.
    pub(crate) fn put(&self, at: u64, body: Body<'_>) -> Result<()> {
        match body {
            Body::Zero(_) if self.reads_zero => Ok(()),
            Body::Zero(len) => self.image().erase(at, len, Erase::Free),
            Body::Bytes(bytes) => {
                let plain = Convert::default();
                let mut job = Job::new(&plain, self.image(), false);
                job.reads_zero = self.reads_zero;
                job.put(at, bytes, UNIT, false)?;
                self.written.fetch_add(job.written(), Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// All came. `progress` may stop what the file is to have beside that.
    pub(crate) fn finish(self, progress: &dyn Progress) -> Result<Filled> {
        let size = self.size();
        let sectors = Sectors::differing(self.sector, self.image().top().layer.sector());
        let written = self.written.into_inner();
        let named = |error: Error| error.image(self.path.display());
        let format = match self.kind {
            Kind::New(new) => {
                let New { target, files, image, format } = *new;
                let before = Before { progress, total: size };
                files.gate().during(&before, size, || image.close()).map_err(named)?;
                drop(image);
                files.finish()?;
                target.finish()?;
                format
            }
            Kind::There(image) => {
                image.close().map_err(named)?;
                image.top().format
            }
        };
        Ok(Filled { format, size, written, sectors })
    }
}
