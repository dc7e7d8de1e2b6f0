//! Raw: the guest's bytes as they stand. The absence of a format.

mod stream;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{
    Content, CreateOptions, Erase, Error, ErrorKind, Extent, Format, Inspector, Layer, Measured, OpenOptions,
    OptionKind, OptionSpec, Prealloc, Probe, Resolver, Result, Storage, Streams,
};

const SECTOR: u64 = 512;

/// The raw format.
#[derive(Debug)]
pub struct Raw;

impl Format for Raw {
    fn names(&self) -> &'static [&'static str] {
        &["raw"]
    }

    fn extensions(&self) -> &'static [&'static str] {
        &["raw", "img", "dd", "bin"]
    }

    fn probe(&self, _head: &[u8], _storage: &dyn Storage) -> Probe {
        Probe::Possible
    }

    fn is_bare(&self) -> bool {
        true
    }

    fn options(&self) -> &'static [OptionSpec] {
        const OPTIONS: &[OptionSpec] = &[
            OptionSpec::SIZE,
            OptionSpec::new(
                "preallocation",
                OptionKind::Choice(&["off", "falloc", "full"]),
                "Preallocation mode (allowed values: off, falloc, full)",
            )
            .of_file(),
        ];
        OPTIONS
    }

    fn open_options(&self) -> &'static [OptionSpec] {
        const OPTIONS: &[OptionSpec] = &[
            OptionSpec::new("offset", OptionKind::Size, "Where in the file the disk begins, in bytes"),
            OptionSpec::new("size", OptionKind::Size, "Bytes of the disk; without it, up to the file's end"),
        ];
        OPTIONS
    }

    fn defining_options(&self) -> &'static [&'static str] {
        &["offset", "size"]
    }

    fn open(
        &self,
        file: Arc<dyn Storage>,
        _files: &dyn Resolver,
        how: &OpenOptions,
    ) -> Result<Arc<dyn Layer>> {
        let (from, size) = (how.options.size("offset").unwrap_or(0), how.options.size("size"));
        Ok(Arc::new(RawLayer::window(file, from, size, how.writable)?))
    }

    fn create(
        &self,
        file: Arc<dyn Storage>,
        _files: &dyn Resolver,
        how: &CreateOptions,
    ) -> Result<Arc<dyn Layer>> {
        if how.parent.is_some() {
            return Err(Error::unsupported("a raw image cannot have a backing file").hint("choose qcow2"));
        }
        let size = round_up(how.size)?;
        file.set_len(size).map_err(|error| {
            let known = match (error.kind(), error.raw_os_error()) {
                (std::io::ErrorKind::FileTooLarge, _) => Some(TOO_LARGE),
                // The system was not asked: a device is as long as it is.
                (std::io::ErrorKind::StorageFull, None) => Some("Cannot grow device files"),
                _ => None,
            };
            let error = Error::io(format!("cannot make it {size} bytes long"), error);
            known.into_iter().fold(error, Error::known_as)
        })?;
        preallocate(file.as_ref(), 0, size, how.prealloc())?;
        Ok(Arc::new(RawLayer::over(file, true)?))
    }

    fn measure(&self, content: &dyn Content, how: &CreateOptions) -> Result<Measured> {
        // In QEMU the source's size decides, not the option.
        let estimate = round_up(content.size())?;
        Ok(Measured {
            required: estimate,
            fully_allocated: estimate,
            exact: round_up(how.size)?,
            bitmaps: None,
        })
    }

    fn inspector(&self) -> Option<Box<dyn Inspector>> {
        None
    }

    fn streams(&self) -> Option<&dyn Streams> {
        Some(self)
    }
}

const TOO_LARGE: &str = "The image size is too large for file format 'raw'";

fn too_large() -> Error {
    Error::invalid(TOO_LARGE)
}

fn round_up(size: u64) -> Result<u64> {
    size.checked_next_multiple_of(SECTOR).ok_or_else(too_large)
}

/// Gives `len` bytes from `at` on their space.
fn preallocate(file: &dyn Storage, at: u64, len: u64, how: Prealloc) -> Result<()> {
    let failed = |error: io::Error| {
        let error = Error::io("cannot reserve the space", error);
        match error.os_error() {
            Some(system) => error.known_as(format!("{}: {system}", how.known_failure())),
            None => error,
        }
    };
    match how {
        Prealloc::Off | Prealloc::Metadata => {}
        Prealloc::Falloc => {
            if !file.allocate(at, len).map_err(failed)? {
                return Err(Error::unsupported("this file system cannot reserve space")
                    .hint("use preallocation=full or off"));
            }
        }
        Prealloc::Full => {
            // Some file systems take room for a range at once where they can; writing then makes it real.
            file.allocate(at, len).map_err(failed)?;
            let zeros = vec![0; 1 << 20];
            let mut done = 0;
            while done < len {
                let n = (len - done).min(zeros.len() as u64);
                file.write_at(at + done, &zeros[..n as usize]).map_err(failed)?;
                done += n;
            }
        }
    }
    Ok(())
}

/// A storage as a layer. It never has a hole of the kind that shows a parent: what is not there is zero.
#[derive(Debug)]
pub struct RawLayer {
    file: Arc<dyn Storage>,
    /// Where in the file the disk begins.
    from: u64,
    /// Guest bytes: the file's, rounded up to a sector.
    size: AtomicU64,
    /// The file's bytes, from `from` on: from here to `size` the guest reads zero.
    len: AtomicU64,
    /// What lies behind the disk in the file is not its own.
    fixed: bool,
    writable: bool,
}

impl RawLayer {
    /// The whole of `file` as a disk.
    pub fn over(file: Arc<dyn Storage>, writable: bool) -> Result<RawLayer> {
        RawLayer::window(file, 0, None, writable)
    }

    /// What of `file` begins at `from`, as a disk: `size` bytes, or all up to its end. Errors: there is not so much.
    fn window(file: Arc<dyn Storage>, from: u64, size: Option<u64>, writable: bool) -> Result<RawLayer> {
        let there = file.len().map_err(|error| Error::io("cannot find the size", error))?;
        let Some(behind) = there.checked_sub(from) else {
            return Err(Error::invalid(format!(
                "Offset ({from}) cannot be greater than size of the containing file ({there})"
            )));
        };
        if let Some(size) = size {
            if size > behind {
                return Err(Error::invalid(format!(
                    "The sum of offset ({from}) and size ({size}) has to be smaller or equal to the  actual size of the \
                     containing file ({there})"
                )));
            }
            if size % SECTOR != 0 {
                return Err(Error::invalid(format!("Specified size is not multiple of {SECTOR}")));
            }
        }
        let len = size.unwrap_or(behind);
        Ok(RawLayer {
            file,
            from,
            size: AtomicU64::new(round_up(len)?),
            len: AtomicU64::new(len),
            fixed: size.is_some(),
            writable,
        })
    }

    fn check_writable(&self) -> Result<()> {
        if self.writable { Ok(()) } else { Err(Error::new(ErrorKind::Denied, "is open read-only")) }
    }

    /// The write may have made the file longer, up to the rounded size.
    fn reached(&self, end: u64) {
        self.len.fetch_max(end, Ordering::Relaxed);
    }
}

impl Layer for RawLayer {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn granule(&self) -> u64 {
        SECTOR
    }

    fn host(&self) -> &Arc<dyn Storage> {
        &self.file
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        let max = max.min(self.size().saturating_sub(at));
        let at = self.from + at;
        let data = self.file.data_at(at).map_err(|error| Error::io("cannot find the holes", error).at(at))?;
        let host = Some(at);
        Ok(match data {
            Some(range) if range.start <= at => Extent::data(max.min(range.end - at), host),
            Some(range) => Extent { host, ..Extent::zero(max.min(range.start - at)) },
            None => Extent { host, ..Extent::zero(max) },
        })
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        let len = self.len.load(Ordering::Relaxed);
        let there = usize::try_from(len.saturating_sub(at)).unwrap_or(usize::MAX).min(buf.len());
        let (stored, tail) = buf.split_at_mut(there);
        if !stored.is_empty() {
            let host = self.from + at;
            self.file.read_at(host, stored).map_err(|error| Error::io("cannot read", error).at(host))?;
        }
        tail.fill(0);
        Ok(Extent::data(buf.len() as u64, Some(self.from + at)))
    }

    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.check_writable()?;
        let host = self.from + at;
        self.file.write_at(host, buf).map_err(|error| Error::io("cannot write", error).at(host))?;
        self.reached(at + buf.len() as u64);
        Ok(())
    }

    fn write_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> Result<u64> {
        self.check_writable()?;
        let done = self
            .file
            .copy_from(self.from + at, src, src_at, len)
            .map_err(|error| Error::io("cannot share blocks", error).at(at))?;
        if done > 0 {
            self.reached(at + done);
        }
        Ok(done)
    }

    fn erase(&self, at: u64, len: u64, how: Erase) -> Result<u64> {
        self.check_writable()?;
        let failed = |error| Error::io("cannot write zeros", error).at(at);
        // What lies past the file's end reads zero as it is.
        let inside = len.min(self.len.load(Ordering::Relaxed).saturating_sub(at));
        if inside == 0 {
            return Ok(len);
        }
        let at = self.from + at;
        let done = match how {
            Erase::Zero => self.file.zero(at, inside).map_err(failed)?,
            Erase::Free => {
                self.file.punch(at, inside).map_err(failed)? || self.file.zero(at, inside).map_err(failed)?
            }
            // Nothing lies below that could show.
            Erase::Reveal => false,
        };
        Ok(if done { len } else { 0 })
    }

    fn resize(&self, size: u64, prealloc: Prealloc, _below: u64) -> Result<()> {
        self.check_writable()?;
        if self.fixed {
            return Err(Error::unsupported("Cannot resize fixed-size raw disks"));
        }
        let rounded = round_up(size)?;
        let end = self
            .from
            .checked_add(size)
            .ok_or_else(|| Error::invalid("Disk size too large for the chosen offset"))?;
        let old = self.len.load(Ordering::Relaxed);
        self.file.set_len(end).map_err(|error| Error::io("Could not resize file", error))?;
        if size > old {
            let done = preallocate(self.file.as_ref(), self.from + old, size - old, prealloc);
            done.inspect_err(|_| {
                // Its disk would be longer. Where that cannot be taken back, the first error is the one to tell.
                let _ = self.file.set_len(self.from + old);
            })?;
        }
        self.flush()?;
        self.len.store(size, Ordering::Relaxed);
        self.size.store(rounded, Ordering::Relaxed);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.file.sync().map_err(|error| Error::io("cannot sync", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Image, Kind, Link, MemoryStorage, NoFiles};

    #[test]
    fn a_size_that_is_no_multiple_of_512_is_rounded_up_and_the_tail_is_zero() {
        let file = Arc::new(MemoryStorage::from_bytes(&[9; 1000]));
        let layer = Raw.open(file, &NoFiles, &OpenOptions::default()).unwrap();
        assert_eq!(layer.size(), 1024);
        let image = Image::new(vec![Link { layer, name: "x".into(), format: "raw" }]).unwrap();
        let mut buf = [1; 1024];
        image.read(0, &mut buf).unwrap();
        assert!(buf[..1000].iter().all(|b| *b == 9) && buf[1000..].iter().all(|b| *b == 0));
        let stored = image.extent(0, 1024).unwrap();
        assert_eq!((stored.kind, stored.len, stored.host), (Kind::Data, 1000, Some(0)));
        let tail = image.extent(1000, 24).unwrap();
        assert_eq!((tail.kind, tail.len), (Kind::Zero, 24));
        assert!(image.read(1000, &mut buf).is_err());
    }

    /// A file on a disk that is full.
    #[derive(Debug)]
    struct Full(MemoryStorage);

    impl Storage for Full {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }

        fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
            self.0.read_at(at, buf)
        }

        fn write_at(&self, _at: u64, _buf: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }

        fn sync(&self) -> io::Result<()> {
            self.0.sync()
        }

        fn identity(&self) -> io::Result<crate::Identity> {
            self.0.identity()
        }
    }

    #[test]
    fn a_disk_for_which_there_is_no_space_keeps_its_size() {
        let file = Arc::new(Full(MemoryStorage::from_bytes(&[9; 1500])));
        let layer = RawLayer::over(file.clone(), true).unwrap();
        let error = layer.resize(8192, Prealloc::Full, 0).unwrap_err();
        assert_eq!((error.kind(), file.len().unwrap(), layer.size()), (ErrorKind::NoSpace, 1500, 1536));
        layer.resize(3001, Prealloc::Off, 0).unwrap();
        assert_eq!((file.len().unwrap(), layer.size()), (3001, 3072));
    }

    #[test]
    fn a_file_that_shrank_is_an_error() {
        let file = Arc::new(MemoryStorage::from_bytes(&[9; 4096]));
        let layer = Raw.open(file.clone(), &NoFiles, &OpenOptions::default()).unwrap();
        file.set_len(100).unwrap();
        assert_eq!(layer.read(0, &mut [0; 512]).unwrap_err().kind(), ErrorKind::Changed);
    }
}
