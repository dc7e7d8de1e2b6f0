//! A fixed disk: the guest's bytes as they stand, and a footer behind them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use cowhand_core::{
    Details, Erase, Error, ErrorKind, Extent, Layer, LayerId, Options, Prealloc, Progress, Result, Secrets,
    Storage,
};

use crate::amend::Amend;
use crate::details::{self, Footers};
use crate::find::Found;
use crate::footer::{DiskType, FOOTER_LEN, Footer};
use crate::geometry::SECTOR;
use crate::like;

/// What file systems share at the least: a range is cut to this before it is cloned.
pub(crate) const SHARED_UNIT: u64 = 4096;

/// A fixed disk.
#[derive(Debug)]
pub(crate) struct Fixed {
    file: Arc<dyn Storage>,
    footer: RwLock<Footer>,
    /// Where it stands.
    footer_at: u64,
    size: u64,
    footers: Footers,
    writable: AtomicBool,
}

impl Fixed {
    /// Opens the disk that `found` describes; `size` is its guest bytes.
    pub(crate) fn open(file: Arc<dyn Storage>, found: Found, size: u64, writable: bool) -> Result<Fixed> {
        if size > found.data_end {
            return Err(Error::corrupt(
                "footer geometry",
                format!("says {size} bytes, and only {} stand before the footer", found.data_end),
            )
            .at(found.at + 56)
            .hint("open it with force_size_calc=current_size"));
        }
        Ok(Fixed {
            file,
            footers: Footers::of(&found),
            footer_at: found.at,
            footer: RwLock::new(found.footer),
            size,
            writable: AtomicBool::new(writable),
        })
    }

    /// Makes a fixed disk on an empty storage: complete from the start, since nothing written later moves the footer.
    pub(crate) fn create(file: Arc<dyn Storage>, footer: Footer, prealloc: Prealloc) -> Result<Fixed> {
        let size = footer.current_size;
        debug_assert_eq!(footer.disk_type, DiskType::Fixed);
        let len = size
            .checked_add(FOOTER_LEN)
            .ok_or_else(|| Error::invalid(format!("a disk of {size} bytes is too large")))?;
        file.set_len(len).map_err(|error| Error::io(format!("cannot make it {len} bytes long"), error))?;
        preallocate(file.as_ref(), size, prealloc)?;
        file.write_at(size, &footer.to_bytes())
            .map_err(|error| Error::io("cannot write the footer", error).at(size))?;
        Ok(Fixed {
            file,
            footer: RwLock::new(footer),
            footer_at: size,
            size,
            footers: Footers::MADE,
            writable: AtomicBool::new(true),
        })
    }

    fn footer(&self) -> Footer {
        self.footer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the footer, durably: it is one sector, which a disk writes whole or not.
    fn rewrite_footer(&self, change: impl FnOnce(&mut Footer)) -> Result<()> {
        self.check_writable()?;
        let mut kept = self.footer.write().unwrap_or_else(PoisonError::into_inner);
        let mut footer = kept.clone();
        change(&mut footer);
        let at = self.footer_at;
        self.file
            .write_at(at, &footer.to_bytes())
            .map_err(|error| Error::io("cannot write the footer", error).at(at))?;
        *kept = footer;
        self.flush()
    }

    fn check_writable(&self) -> Result<()> {
        if self.writable.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Denied, "is not open for writing"))
        }
    }

    /// The footer behind the disk is never written over, whatever is asked for.
    fn check_range(&self, at: u64, len: u64) -> Result<()> {
        match at.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Error::invalid(format!(
                "{len} bytes at {at} go past the end of the disk ({} bytes)",
                self.size
            ))),
        }
    }
}

/// Gives the disk's bytes their space.
fn preallocate(file: &dyn Storage, size: u64, how: Prealloc) -> Result<()> {
    let failed = |error| Error::io("cannot reserve the space", error);
    if matches!(how, Prealloc::Off | Prealloc::Metadata) || size == 0 {
        return Ok(());
    }
    let reserved = file.allocate(0, size).map_err(failed)?;
    if how == Prealloc::Falloc {
        return if reserved {
            Ok(())
        } else {
            Err(Error::unsupported("this file system cannot reserve space")
                .hint("use preallocation=full or off"))
        };
    }
    let zeros = vec![0; 1 << 20];
    let mut done = 0;
    while done < size {
        let piece = zeros.get(..(size - done).min(1 << 20) as usize).unwrap_or(&zeros);
        file.write_at(done, piece).map_err(failed)?;
        done += piece.len() as u64;
    }
    Ok(())
}

impl Layer for Fixed {
    fn size(&self) -> u64 {
        self.size
    }

    fn granule(&self) -> u64 {
        SECTOR
    }

    fn host(&self) -> &Arc<dyn Storage> {
        &self.file
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        let max = max.min(self.size.saturating_sub(at));
        let data = self.file.data_at(at).map_err(|error| Error::io("cannot find the holes", error).at(at))?;
        let host = Some(at);
        Ok(match data {
            Some(range) if range.start <= at => Extent::data(max.min(range.end - at), host),
            Some(range) => Extent { host, ..Extent::zero(max.min(range.start - at)) },
            None => Extent { host, ..Extent::zero(max) },
        })
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        self.file.read_at(at, buf).map_err(|error| Error::io("cannot read", error).at(at))?;
        Ok(Extent::data(buf.len() as u64, Some(at)))
    }

    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.check_writable()?;
        self.check_range(at, buf.len() as u64)?;
        self.file.write_at(at, buf).map_err(|error| Error::io("cannot write", error).at(at))
    }

    fn write_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> Result<u64> {
        self.check_writable()?;
        self.check_range(at, len)?;
        let whole = len - len % SHARED_UNIT;
        self.file
            .copy_from(at, src, src_at, whole)
            .map_err(|error| Error::io("cannot share blocks", error).at(at))
    }

    fn erase(&self, at: u64, len: u64, how: Erase) -> Result<u64> {
        self.check_writable()?;
        self.check_range(at, len)?;
        let failed = |error| Error::io("cannot write zeros", error).at(at);
        let done = match how {
            Erase::Zero => self.file.zero(at, len).map_err(failed)?,
            Erase::Free => {
                self.file.punch(at, len).map_err(failed)? || self.file.zero(at, len).map_err(failed)?
            }
            // Nothing lies below that could show.
            Erase::Reveal => false,
        };
        Ok(if done { len } else { 0 })
    }

    fn flush(&self) -> Result<()> {
        if !self.writable.load(Ordering::Acquire) {
            return Ok(());
        }
        self.file.sync().map_err(|error| Error::io("cannot sync", error))
    }

    fn close(&self) -> Result<()> {
        self.flush()?;
        self.writable.store(false, Ordering::Release);
        Ok(())
    }

    fn details(&self) -> Details {
        details::of_fixed(&self.footer(), self.footers)
    }

    fn made_with(&self, replacing: bool) -> Vec<(&'static str, String)> {
        like::options(&self.footer(), None, self.size, replacing)
    }

    fn size_by_file(&self, file_len: u64, exact: bool) -> Result<Option<u64>> {
        like::largest_fixed(file_len, exact).map(Some)
    }

    fn may_shrink(&self, _size: u64) -> Result<()> {
        Err(like::never_shrinks())
    }

    fn identity(&self) -> LayerId {
        LayerId(Some(self.footer().unique_id))
    }

    fn hidden(&self) -> Option<bool> {
        Some(self.footer().hidden != 0)
    }

    fn set_hidden(&self, hidden: bool) -> Result<()> {
        if self.hidden() == Some(hidden) {
            return self.flush();
        }
        self.rewrite_footer(|footer| footer.hidden = hidden.into())
    }

    fn amend(&self, options: &Options, _secrets: &Secrets, _progress: &dyn Progress) -> Result<()> {
        let amend = Amend::of(options, false)?;
        self.rewrite_footer(|footer| amend.change_footer(footer))
    }
}
