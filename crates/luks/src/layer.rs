//! A LUKS file as a layer: all its sectors behind the header, each encrypted by its number.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cowhand_core::{
    CreateOptions, Details, Error, ErrorKind, Extent, Layer, OpenOptions, Options, Prealloc, Progress,
    Result, Secrets, Storage,
};

use crate::area::Area;
use crate::encrypted::Encrypted;
use crate::options::DETACHED_HEADER;
use crate::sectors::SECTOR;
use crate::volume::{Choice, Volume, candidates, chosen, locked};

const UNIT: u64 = SECTOR as u64;

pub(crate) struct LuksLayer {
    file: Arc<dyn Storage>,
    volume: Volume,
    /// `None`: opened for what the header says alone.
    encrypted: Option<Encrypted>,
    /// Where the disk starts in the file.
    payload: u64,
    size: AtomicU64,
    writable: bool,
}

impl Debug for LuksLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LuksLayer").field("file", &self.file).finish_non_exhaustive()
    }
}

impl LuksLayer {
    pub(crate) fn open(file: Arc<dyn Storage>, how: &OpenOptions) -> Result<LuksLayer> {
        let len = file.len().map_err(|error| Error::io("cannot find the size", error))?;
        let area = Area { storage: file.clone(), base: 0, len };
        let volume = if how.metadata_only {
            Volume::open(area, None)?
        } else {
            Volume::open(area, Some(&candidates(&how.options, "key-secret", &how.secrets)?))?
        };
        let payload = volume.payload();
        let size = len.checked_sub(payload).ok_or_else(|| {
            let text = format!("is {payload}, past the end of the file ({len} bytes)");
            Error::corrupt("payload-offset", text).at(104)
        })?;
        LuksLayer::over(file, volume, size, how.writable)
    }

    fn over(file: Arc<dyn Storage>, volume: Volume, size: u64, writable: bool) -> Result<LuksLayer> {
        Ok(LuksLayer {
            encrypted: volume.encrypted()?,
            payload: volume.payload(),
            size: AtomicU64::new(rounded(size)?),
            file,
            volume,
            writable,
        })
    }

    /// What stands in the file where nothing was written is noise once decrypted, as QEMU has it too.
    pub(crate) fn create(file: Arc<dyn Storage>, how: &CreateOptions) -> Result<LuksLayer> {
        if how.parent.is_some() {
            return Err(Error::unsupported("a LUKS image cannot have a backing file")
                .hint("choose qcow2 with encrypt.format=luks"));
        }
        let choice = Choice::from(&how.options, "")?;
        match how.options.flag(DETACHED_HEADER) {
            None => {}
            Some(false) => {
                return Err(Error::invalid(format!("Parameter '{DETACHED_HEADER}' is unexpected")));
            }
            Some(true) => {
                return Err(Error::unsupported("a LUKS header in a file of its own cannot be made"));
            }
        }
        let passphrase = chosen(&how.options, "key-secret", &how.secrets)?;
        let size = rounded(how.size)?;
        let payload = choice.header_len();
        let len = payload.checked_add(size).ok_or_else(|| too_large(size))?;
        file.set_len(len).map_err(|error| Error::io(format!("cannot make it {len} bytes long"), error))?;
        let area = Area { storage: file.clone(), base: 0, len: payload };
        let volume = Volume::create(area, &choice, passphrase)?;
        let layer = LuksLayer::over(file, volume, size, true)?;
        match how.prealloc() {
            Prealloc::Off | Prealloc::Metadata => {}
            Prealloc::Falloc => {
                let failed = |error| Error::io("cannot reserve the space", error);
                if !layer.file.allocate(payload, size).map_err(failed)? {
                    return Err(Error::unsupported("this file system cannot reserve space")
                        .hint("use preallocation=full or off"));
                }
            }
            Prealloc::Full => layer.zero(0, size)?,
        }
        Ok(layer)
    }

    /// Writes zeros, encrypted.
    fn zero(&self, at: u64, len: u64) -> Result<()> {
        let zeros = vec![0; len.min(1 << 20) as usize];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(zeros.len() as u64);
            self.put_guest(at + done, zeros.get(..n as usize).unwrap_or_default())?;
            done += n;
        }
        Ok(())
    }

    fn encrypted(&self) -> Result<&Encrypted> {
        self.encrypted.as_ref().ok_or_else(locked)
    }

    fn put_guest(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.encrypted()?.write(at, buf, |at, buf| self.get(at, buf), |at, buf| self.put(at, buf))
    }

    fn check_writable(&self) -> Result<()> {
        if self.writable { Ok(()) } else { Err(Error::new(ErrorKind::Denied, "is open read-only")) }
    }

    /// Fills `buf`, whole sectors, with what stands in the file; past its end it reads zero.
    fn get(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let failed = |error| Error::io("cannot read", error).at(self.payload + at);
        let there = match self.file.read_at(self.payload + at, buf) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                let len = self.file.len().map_err(failed)?;
                let there = len.saturating_sub(self.payload + at);
                // Only the last sector may be cut.
                let missing = (buf.len() as u64).saturating_sub(there);
                if missing >= UNIT {
                    return Err(failed(error));
                }
                there as usize
            }
            Err(error) => return Err(failed(error)),
        };
        let (stored, tail) = buf.split_at_mut(there.min(buf.len()));
        self.file.read_at(self.payload + at, stored).map_err(failed)?;
        tail.fill(0);
        Ok(())
    }

    fn put(&self, at: u64, buf: &[u8]) -> Result<()> {
        let failed = |error| Error::io("cannot write", error).at(self.payload + at);
        self.file.write_at(self.payload + at, buf).map_err(failed)
    }
}

pub(crate) fn rounded(size: u64) -> Result<u64> {
    size.checked_next_multiple_of(UNIT).filter(|size| *size <= i64::MAX as u64).ok_or_else(|| too_large(size))
}

pub(crate) fn too_large(size: u64) -> Error {
    Error::invalid(format!("a disk of {size} bytes is too large"))
}

impl Layer for LuksLayer {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn granule(&self) -> u64 {
        UNIT
    }

    fn host(&self) -> &Arc<dyn Storage> {
        &self.file
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        Ok(Extent::data(max.min(self.size().saturating_sub(at)), None))
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        self.encrypted()?.read(at, buf, |at, buf| self.get(at, buf))?;
        Ok(Extent::data(buf.len() as u64, None))
    }

    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.check_writable()?;
        self.put_guest(at, buf)
    }

    fn resize(&self, size: u64, _prealloc: Prealloc, _below: u64) -> Result<()> {
        self.check_writable()?;
        let (old, size) = (self.size(), rounded(size)?);
        let len = self.payload.checked_add(size).ok_or_else(|| too_large(size))?;
        if size > old {
            self.encrypted()?;
            // What is new reads zero only once that is written: the file grows as it goes, and has its space by that.
            self.zero(old, size - old)?;
        } else {
            self.file
                .set_len(len)
                .map_err(|error| Error::io(format!("cannot make it {len} bytes long"), error))?;
        }
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.file.sync().map_err(|error| Error::io("cannot sync", error))
    }

    fn size_by_file(&self, file_len: u64, _exact: bool) -> Result<Option<u64>> {
        Ok(Some(file_len.saturating_sub(self.payload) / UNIT * UNIT))
    }

    fn new_reads_zero(&self) -> bool {
        false
    }

    fn details(&self) -> Details {
        Details { encrypted: true, specific: self.volume.details(None), ..Details::default() }
    }

    fn amend(&self, options: &Options, secrets: &Secrets, _progress: &dyn Progress) -> Result<()> {
        self.check_writable()?;
        self.volume.amend(options, "", secrets)
    }
}
