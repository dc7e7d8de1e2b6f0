//! A fixed disk: the guest's bytes as they stand, and a footer behind them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use cowhand_core::{
    Details, Erase, Error, ErrorKind, Extent, Layer, LayerId, Options, Prealloc, Progress, Result, Secrets,
    Storage, Structure,
};

use crate::amend::Amend;
use crate::details::{self, Footers};
use crate::find::Found;
use crate::footer::{DiskType, FOOTER_LEN, Footer};
use crate::geometry::SECTOR;
use crate::like;
use crate::resize_fixed;
use crate::tables;

/// What file systems share at the least: a range is cut to this before it is cloned.
pub(crate) const SHARED_UNIT: u64 = 4096;

/// A fixed disk.
#[derive(Debug)]
pub(crate) struct Fixed {
    pub(crate) file: Arc<dyn Storage>,
    /// Shared by who writes, held alone by who changes the size.
    pub(crate) now: RwLock<Now>,
    footers: Footers,
    writable: AtomicBool,
}

/// What may change.
#[derive(Clone, Debug)]
pub(crate) struct Now {
    pub(crate) footer: Footer,
    /// Guest bytes.
    pub(crate) size: u64,
    /// Where the footer stands.
    pub(crate) footer_at: u64,
    /// A sector that reads zero though it does not stand so in the file: a footer of another size.
    stale: Option<u64>,
}

impl Now {
    /// Cuts `len` bytes from `at` on where a sector begins or ends that only reads zero; and whether they are in it.
    fn cut(&self, at: u64, len: u64) -> (u64, bool) {
        match self.stale {
            Some(stale) if at < stale => (len.min(stale - at), false),
            Some(stale) if at < stale + SECTOR => (len.min(stale + SECTOR - at), true),
            _ => (len, false),
        }
    }
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
        let footers = Footers::of(&found);
        let stale = resize_fixed::stale_footer(file.as_ref(), &found.footer, size)?;
        let mut now = Now { footer: found.footer, size, footer_at: found.data_end, stale };
        if writable && now.footer.stale_footer().is_some() {
            resize_fixed::finish(file.as_ref(), &mut now.footer, now.stale.take(), now.footer_at)?;
        }
        Ok(Fixed { file, now: RwLock::new(now), footers, writable: AtomicBool::new(writable) })
    }

    pub(crate) fn now(&self) -> RwLockReadGuard<'_, Now> {
        self.now.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a fixed disk on an empty storage: complete from the start, since nothing written later moves the footer.
    pub(crate) fn create(file: Arc<dyn Storage>, footer: Footer, prealloc: Prealloc) -> Result<Fixed> {
        let size = footer.current_size;
        debug_assert_eq!(footer.disk_type, DiskType::Fixed);
        let len = size
            .checked_add(FOOTER_LEN)
            .ok_or_else(|| Error::invalid(format!("a disk of {size} bytes is too large")))?;
        file.set_len(len).map_err(|error| Error::io(format!("cannot make it {len} bytes long"), error))?;
        preallocate(file.as_ref(), 0, size, prealloc)?;
        file.write_at(size, &footer.to_bytes())
            .map_err(|error| Error::io("cannot write the footer", error).at(size))?;
        let now = Now { footer, size, footer_at: size, stale: None };
        Ok(Fixed { file, now: RwLock::new(now), footers: Footers::MADE, writable: AtomicBool::new(true) })
    }

    /// Changes the footer, durably: it is one sector, which a disk writes whole or not.
    fn rewrite_footer(&self, change: impl FnOnce(&mut Footer)) -> Result<()> {
        self.check_writable()?;
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        let mut footer = now.footer.clone();
        change(&mut footer);
        let at = now.footer_at;
        self.file
            .write_at(at, &footer.to_bytes())
            .map_err(|error| Error::io("cannot write the footer", error).at(at))?;
        now.footer = footer;
        self.flush()
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.writable.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Denied, "is not open for writing"))
        }
    }

    /// The footer behind the disk is never written over, whatever is asked for.
    fn check_range(now: &Now, at: u64, len: u64) -> Result<()> {
        match at.checked_add(len) {
            Some(end) if end <= now.size => Ok(()),
            _ => Err(Error::invalid(format!(
                "{len} bytes at {at} go past the end of the disk ({} bytes)",
                now.size
            ))),
        }
    }

    pub(crate) fn extent_of(&self, now: &Now, at: u64, max: u64) -> Result<Extent> {
        let (max, stale) = now.cut(at, max.min(now.size.saturating_sub(at)));
        if stale {
            return Ok(Extent::zero(max));
        }
        let data = self.file.data_at(at).map_err(|error| Error::io("cannot find the holes", error).at(at))?;
        let host = Some(at);
        Ok(match data {
            Some(range) if range.start <= at => Extent::data(max.min(range.end - at), host),
            Some(range) => Extent { host, ..Extent::zero(max.min(range.start - at)) },
            None => Extent { host, ..Extent::zero(max) },
        })
    }

    pub(crate) fn read_of(&self, now: &Now, at: u64, buf: &mut [u8]) -> Result<Extent> {
        let (len, stale) = now.cut(at, buf.len() as u64);
        if stale {
            return Ok(Extent::zero(len));
        }
        let buf = buf.get_mut(..len as usize).unwrap_or_default();
        self.file.read_at(at, buf).map_err(|error| Error::io("cannot read", error).at(at))?;
        Ok(Extent::data(len, Some(at)))
    }
}

/// Gives `len` bytes from `at` on their space.
pub(crate) fn preallocate(file: &dyn Storage, at: u64, len: u64, how: Prealloc) -> Result<()> {
    let failed = |error| Error::io("cannot reserve the space", error);
    if matches!(how, Prealloc::Off | Prealloc::Metadata) || len == 0 {
        return Ok(());
    }
    let reserved = file.allocate(at, len).map_err(failed)?;
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
    while done < len {
        let piece = zeros.get(..(len - done).min(1 << 20) as usize).unwrap_or(&zeros);
        file.write_at(at + done, piece).map_err(failed)?;
        done += piece.len() as u64;
    }
    Ok(())
}

impl Layer for Fixed {
    fn size(&self) -> u64 {
        self.now().size
    }

    fn granule(&self) -> u64 {
        SECTOR
    }

    fn host(&self) -> &Arc<dyn Storage> {
        &self.file
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        self.extent_of(&self.now(), at, max)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        self.read_of(&self.now(), at, buf)
    }

    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        self.check_writable()?;
        let now = self.now();
        Fixed::check_range(&now, at, buf.len() as u64)?;
        self.file.write_at(at, buf).map_err(|error| Error::io("cannot write", error).at(at))
    }

    fn write_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> Result<u64> {
        self.check_writable()?;
        let now = self.now();
        Fixed::check_range(&now, at, len)?;
        let whole = len - len % SHARED_UNIT;
        self.file
            .copy_from(at, src, src_at, whole)
            .map_err(|error| Error::io("cannot share blocks", error).at(at))
    }

    fn erase(&self, at: u64, len: u64, how: Erase) -> Result<u64> {
        self.check_writable()?;
        let now = self.now();
        Fixed::check_range(&now, at, len)?;
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

    fn resize(&self, size: u64, prealloc: Prealloc, _below: u64) -> Result<()> {
        self.resize_to(size, prealloc)
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
        details::of_fixed(&self.now().footer, self.footers)
    }

    fn made_with(&self, replacing: bool) -> Vec<(&'static str, String)> {
        let now = self.now();
        like::options(&now.footer, None, now.size, replacing)
    }

    fn size_by_file(&self, file_len: u64, exact: bool) -> Result<Option<u64>> {
        like::largest_fixed(file_len, exact).map(Some)
    }

    fn may_shrink(&self, _size: u64) -> Result<()> {
        Err(like::never_shrinks())
    }

    fn identity(&self) -> LayerId {
        LayerId(Some(self.now().footer.unique_id))
    }

    fn set_file_len(&self, len: u64) -> Result<()> {
        self.end_file_at(len)
    }

    fn structures(&self) -> Result<Vec<Structure>> {
        tables::structures(self.file.as_ref(), &[], None)
    }

    fn hidden(&self) -> Option<bool> {
        Some(self.now().footer.hidden != 0)
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
