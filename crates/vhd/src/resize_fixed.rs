//! Changing a fixed disk's size. It has one footer, at the end of the file, so the file's length decides which counts.
//!
//! Growing: the new footer, written at the new end, says that the old one's sector reads zero; once that is zero, the
//! footer stops saying so. Shrinking: the old footer says first that the sector of the new one reads zero; then the new
//! one is written, and the file cut. Whoever opens the disk after a power cut reads that sector as zero, and makes it so
//! if he may.

use std::sync::PoisonError;

use cowhand_core::{Error, Prealloc, Result, Storage};

use crate::fixed::{Fixed, Now, preallocate};
use crate::footer::{FOOTER_LEN, Footer, RawFooter};
use crate::geometry::SECTOR;
use crate::resize::{refuse_data_in, resized};
use crate::space::make_zero;

/// Where among the disk's sectors a footer of another size stands, as `footer` says: one with its id, or it is the
/// guest's.
pub(crate) fn stale_footer(file: &dyn Storage, footer: &Footer, size: u64) -> Result<Option<u64>> {
    let Some(at) = footer.stale_footer() else { return Ok(None) };
    if !at.is_multiple_of(SECTOR) || at.checked_add(SECTOR).is_none_or(|end| end > size) {
        return Ok(None);
    }
    let mut bytes = [0; FOOTER_LEN as usize];
    file.read_at(at, &mut bytes).map_err(|error| Error::io("cannot read", error).at(at))?;
    let there = RawFooter::with_cookie(&bytes).filter(RawFooter::checksum_is_good);
    let own =
        there.and_then(|raw| raw.parse(at).ok()).is_some_and(|there| there.unique_id == footer.unique_id);
    Ok(own.then_some(at))
}

/// Makes the sector `stale` zero, and the footer at `at` not speak of it any more, durably.
pub(crate) fn finish(file: &dyn Storage, footer: &mut Footer, stale: Option<u64>, at: u64) -> Result<()> {
    if let Some(stale) = stale {
        file.write_at(stale, &[0; FOOTER_LEN as usize])
            .map_err(|error| Error::io("cannot write zeros", error).at(stale))?;
        sync(file)?;
    }
    footer.set_stale_footer(None);
    put(file, footer, at)
}

fn put(file: &dyn Storage, footer: &Footer, at: u64) -> Result<()> {
    file.write_at(at, &footer.to_bytes())
        .map_err(|error| Error::io("cannot write the footer", error).at(at))?;
    sync(file)
}

fn sync(file: &dyn Storage) -> Result<()> {
    file.sync().map_err(|error| Error::io("cannot sync", error))
}

impl Fixed {
    /// See `Layer::resize`.
    pub(crate) fn resize_to(&self, size: u64, prealloc: Prealloc) -> Result<()> {
        self.check_writable()?;
        let size = size
            .checked_next_multiple_of(SECTOR)
            .filter(|size| size.checked_add(FOOTER_LEN).is_some_and(|len| i64::try_from(len).is_ok()))
            .ok_or_else(|| Error::invalid(format!("a disk of {size} bytes is too large")))?;
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        if !now.footer_at.is_multiple_of(SECTOR) {
            return Err(Error::unsupported("the footer does not stand at a whole sector")
                .at(now.footer_at)
                .hint("convert the disk"));
        }
        if size < now.size {
            let range = size..now.size;
            refuse_data_in(
                range,
                |at, max| self.extent_of(&now, at, max),
                |at, buf| self.read_of(&now, at, buf),
            )?;
        } else if size == now.size {
            return Ok(());
        }
        let file = self.file.as_ref();
        // What lies between the disk's end and the footer is nobody's, and is to read zero.
        let behind = now.size.max(size.min(now.footer_at));
        make_zero(file, now.size, behind - now.size)?;
        sync(file)?;
        let old_end = now.footer_at;
        let mut footer = now.footer.clone();
        resized(&mut footer, size);
        if size > old_end {
            self.lengthen(&mut footer, old_end, size)?;
        } else if size < old_end {
            self.shorten(&mut now, &footer, size)?;
        } else {
            put(file, &footer, size)?;
        }
        (now.footer, now.size, now.footer_at) = (footer, size, size);
        if size > old_end && prealloc != Prealloc::Off {
            preallocate(file, old_end, size - old_end, prealloc)?;
            sync(file)?;
        }
        Ok(())
    }

    fn lengthen(&self, footer: &mut Footer, old: u64, new: u64) -> Result<()> {
        let file = self.file.as_ref();
        let len = file.len().map_err(|error| Error::io("cannot find the size", error))?;
        footer.set_stale_footer(Some(old));
        // This write makes the file longer: at no moment does anything else end it.
        if let Err(error) = put(file, footer, new) {
            // The old footer stands where it stood, and counts where it is at the end.
            let _ = file.set_len(len);
            return Err(error);
        }
        finish(file, footer, Some(old), new)
    }

    fn shorten(&self, now: &mut Now, footer: &Footer, new: u64) -> Result<()> {
        let file = self.file.as_ref();
        let failed = |error| Error::io("cannot make it shorter", error);
        if new < now.size {
            let mut noted = now.footer.clone();
            noted.set_stale_footer(Some(new));
            put(file, &noted, now.footer_at)?;
        }
        put(file, footer, new)?;
        file.set_len(new + FOOTER_LEN).map_err(failed)?;
        sync(file)
    }
}
