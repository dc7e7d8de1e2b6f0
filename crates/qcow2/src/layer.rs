//! The layer: one qcow2 file, open.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use cowhand_core::{
    Bitmaps, CreateOptions, Details, Endless, Erase, Error, ErrorKind, Extent, Layer, OpenOptions, Options,
    ParentRef, Prealloc, Progress, Resolver, Result, Secrets, Snapshots, Storage,
};

use crate::alloc::Allocator;
use crate::bitmaps::{self, Tracker};
use crate::check;
use crate::compress::{Codec, Deflater};
use crate::crypt::Crypt;
use crate::header::Header;
use crate::measure;
use crate::options::{self, Chosen};
use crate::runtime;
use crate::snapshot::{self, Snapshot};
use crate::view::{Shared, View};
use crate::writer::Writer;

/// An open image.
#[derive(Debug)]
pub(crate) struct Qcow2Layer {
    pub(crate) view: View,
    pub(crate) snapshots: Mutex<Vec<Snapshot>>,
    pub(crate) writer: Option<Writer>,
    pub(crate) tracker: Tracker,
}

impl Qcow2Layer {
    pub(crate) fn open(
        file: Arc<dyn Storage>,
        files: &dyn Resolver,
        how: &OpenOptions,
    ) -> Result<Qcow2Layer> {
        // What QEMU refuses to write over is refused here too.
        let as_it_stands = how.lenient && !how.writable;
        let file = if as_it_stands { endless(file) } else { file };
        let mut header = Header::read(file.as_ref())?;
        if how.writable {
            refuse_corrupt(&header)?;
            if header.dirty {
                header = recover(file.as_ref(), files)?;
            }
        }
        let (snapshots, snapshot_table) = snapshot::read_table(file.as_ref(), &header)?;
        let data = match (header.has_data_file, header.extensions.data_file()) {
            (false, _) => file.clone(),
            (true, Some(name)) => {
                let data = files.open(&path_of(name), how.writable)?;
                if as_it_stands { endless(data) } else { data }
            }
            (true, None) => {
                return Err(Error::corrupt(
                    "external data file",
                    "is used, and its name is not in the image",
                )
                .at(72)
                .known_as("'data-file' is required for this image"));
            }
        };
        runtime::check(&how.options, header.geometry.cluster_size())?;
        let crypt = Crypt::open(&file, &header, how)?;
        let writer = how.writable.then(|| {
            let alloc = Allocator::open(file.clone(), header.geometry, header.refcount_table_offset);
            Ok::<_, Error>(
                Writer::new(alloc, deflater(header.codec, &how.options)?, false, false).trusting(how.lenient),
            )
        });
        let writer = writer.transpose()?;
        let (size, l1_offset, l1_entries) = (header.size, header.l1_offset, header.l1_entries);
        let tracker = Tracker::new(&header);
        let shared = Shared::new(file, data, crypt, header, snapshot_table, !how.writable);
        let shared = if as_it_stands { shared.unguarded() } else { shared };
        Ok(Qcow2Layer {
            view: View::open(Arc::new(shared), size, l1_offset, l1_entries)?,
            snapshots: Mutex::new(snapshots),
            writer,
            tracker,
        })
    }

    pub(crate) fn snapshots(&self) -> MutexGuard<'_, Vec<Snapshot>> {
        self.snapshots.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn shared(&self) -> &Shared {
        &self.view.shared
    }
}

fn deflater(codec: Codec, options: &Options) -> Result<Deflater> {
    Ok(Deflater::new(codec, options::level(codec, options)?))
}

fn endless(file: Arc<dyn Storage>) -> Arc<dyn Storage> {
    Arc::new(Endless::over(file))
}

fn refuse_corrupt(header: &Header) -> Result<()> {
    if header.corrupt {
        return Err(Error::corrupt(
            "incompatible_features",
            "the image is marked corrupt, so it can only be read",
        )
        .at(72)
        .hint("repair it with a check, or open it read-only")
        .known_as("qcow2: Image is corrupt; cannot be opened read/write"));
    }
    Ok(())
}

/// Puts right what a power cut left of lazy refcounts: counts anew what is used, and clears the dirty bit. Answers the
/// header that stands in the file then.
fn recover(file: &dyn Storage, files: &dyn Resolver) -> Result<Header> {
    let report = check::recount(file, files)?;
    let header = Header::read(file)?;
    if header.dirty {
        let fault =
            report.faults.iter().find(|fault| !fault.fixed).map(|fault| format!(": {}", fault.message));
        return Err(Error::corrupt(
            "incompatible_features",
            format!(
                "the image was not closed cleanly, and more than its refcounts is wrong{}",
                fault.unwrap_or_default()
            ),
        )
        .at(72)
        .hint("repair it with a check, or open it read-only"));
    }
    Ok(header)
}

/// A name from the file as a path: any bytes are one.
pub(crate) fn path_of(name: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(name)).to_owned()
}

pub(crate) fn parent_of(header: &Header) -> Option<ParentRef> {
    let name = header.backing.as_deref()?;
    Some(ParentRef {
        candidates: vec![path_of(name)],
        format: header.extensions.backing_format().map(str::to_owned),
        ..ParentRef::default()
    })
}

impl Layer for Qcow2Layer {
    fn size(&self) -> u64 {
        self.view.size()
    }

    fn granule(&self) -> u64 {
        self.shared().geometry().subcluster_size()
    }

    fn kept_for_hole(&self, at: u64, max: u64) -> Result<(u64, Option<u64>)> {
        self.view.kept_for_hole(at, max)
    }

    fn host_name(&self) -> Option<PathBuf> {
        let header = self.shared().header();
        header.extensions.data_file().filter(|_| header.has_data_file).map(path_of)
    }

    fn host(&self) -> &Arc<dyn Storage> {
        &self.shared().data
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        let _operation = self.writer.as_ref().map(|writer| writer.epochs.enter());
        self.view.extent(at, max)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        let _operation = self.writer.as_ref().map(|writer| writer.epochs.enter());
        self.view.read(at, buf)
    }

    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.write_at(at, buf)
    }

    fn write_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> Result<u64> {
        self.clone_from(at, src, src_at, len)
    }

    fn write_compressed(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.write_packed(at, buf)
    }

    fn erase(&self, at: u64, len: u64, how: Erase) -> Result<u64> {
        self.erase_at(at, len, how)
    }

    fn resize(&self, size: u64, prealloc: Prealloc, below: u64) -> Result<()> {
        self.resize_to(size, prealloc, below)
    }

    fn flush(&self) -> Result<()> {
        self.flush_all()
    }

    fn close(&self) -> Result<()> {
        self.close_all()
    }

    fn clear(&self) -> Result<()> {
        self.clear_disk()
    }

    fn made_with(&self, _replacing: bool) -> Vec<(&'static str, String)> {
        options::like(&self.shared().header())
    }

    fn size_by_file(&self, file_len: u64, exact: bool) -> Result<Option<u64>> {
        let header = self.shared().header().clone();
        if header.crypt_method != 0 || header.has_data_file {
            return Err(Error::unsupported(
                "how large the file of an encrypted image, or of one with a data file, becomes cannot be told here",
            ));
        }
        let given: Vec<_> =
            options::like(&header).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let options = Options::check(options::OPTIONS, &given)?;
        let chosen = Chosen::from(&CreateOptions { options, ..CreateOptions::default() })?;
        let found = measure::largest_disk(&chosen, file_len, exact);
        found
            .map(Some)
            .ok_or_else(|| Error::invalid(format!("{file_len} bytes are too few for any image of this kind")))
    }

    fn details(&self) -> Details {
        let header = self.shared().header().clone();
        let mut details = Details {
            cluster_size: Some(header.geometry.cluster_size()),
            encrypted: self.shared().crypt.is_some(),
            dirty: header.dirty,
            ..Details::default()
        };
        let facts = &mut details.specific;
        let mut put = |name: &str, value: serde_json::Value| facts.insert(name.to_owned(), value);
        put("compat", if header.version == 2 { "0.10" } else { "1.1" }.into());
        put("compression-type", header.codec.name().into());
        if header.version > 2 {
            put("lazy-refcounts", header.lazy_refcounts.into());
        }
        if let Some(list) = bitmaps::details(self) {
            put("bitmaps", list);
        }
        put("refcount-bits", (1u64 << header.geometry.refcount_order()).into());
        if let Some(crypt) = &self.shared().crypt {
            put("encrypt", crypt.details().into());
        }
        if let Some(name) = header.extensions.data_file().filter(|_| header.has_data_file) {
            put("data-file", String::from_utf8_lossy(name).into());
            put("data-file-raw", header.data_file_raw().into());
        }
        if header.version > 2 {
            put("corrupt", header.corrupt.into());
            put("extended-l2", header.geometry.extended().into());
        }
        details
    }

    fn parent(&self) -> Option<ParentRef> {
        parent_of(&self.shared().header())
    }

    fn allocated(&self, see: &mut dyn FnMut(Range<u64>, u64) -> Result<()>) -> Result<()> {
        self.each_allocated(see)
    }

    fn set_parent(&self, parent: Option<&ParentRef>) -> Result<()> {
        self.name_parent(parent)
    }

    fn amend(&self, options: &Options, secrets: &Secrets, progress: &dyn Progress) -> Result<()> {
        self.amend_with(options, secrets, progress)
    }

    fn hidden(&self) -> Option<bool> {
        Some(self.shared().header().hidden())
    }

    fn set_hidden(&self, hidden: bool) -> Result<()> {
        self.mark_hidden(hidden)
    }

    fn as_snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn as_bitmaps(&self) -> Option<&dyn Bitmaps> {
        Some(self)
    }
}

impl Qcow2Layer {
    /// Refuses a range that is not on the disk. Who waited for a claim asks again: the disk may have become shorter.
    pub(crate) fn check_range(&self, at: u64, len: u64) -> Result<()> {
        match at.checked_add(len) {
            Some(end) if end <= self.view.size() => Ok(()),
            _ => Err(Error::new(
                ErrorKind::Invalid,
                format!("{len} bytes at {at} go past the end of the disk ({} bytes)", self.view.size()),
            )),
        }
    }
}
