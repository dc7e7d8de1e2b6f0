//! A least mapping format, and mistakes that can be planted in it: what the benches themselves are tested on.
//!
//! File: a header page (magic, guest size), the table (an 8-byte entry for each 4 KiB guest page: 0 hole, 1 zero,
//! else the page's offset), then pages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};

use crate::{Erase, Error, Extent, Kind, Layer, Result, Storage};

pub(super) const PAGE: u64 = 4096;
const TABLE: u64 = PAGE;
const MAGIC: u64 = 0x0064_6567_6170;
const ZERO: u64 = 1;

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mistake {
    None,
    /// Nothing: opening writes the table again, as it is.
    NoneButRecoveryWrites,
    /// The table is written, and synced, when a page is allocated: before its data.
    MapBeforeData,
    /// No sync between the data and the table.
    NoSyncBetween,
    /// The flush ends without the last sync.
    NoLastSync,
    /// A freed page is given out again before the table that frees it is durable.
    ReusedAtOnce,
    /// The mapping is seen by readers before the data is there.
    PublishedFirst,
    /// Two writers may allocate one page, each its own.
    LostUpdate,
    /// What is allocated around the bytes is whatever the page held before.
    StaleAround,
    /// The error of a data write is dropped.
    WriteErrorDropped,
    /// The mapping is published though the data could not be written.
    MappedAfterError,
    /// A sync is not tried again after it failed, and the flush then goes well.
    SyncErrorForgotten,
    /// The host offset is one page off.
    WrongHost,
    /// `Hole` where it should say `Zero`: the parent shows.
    FreeReveals,
    /// Opening turns one page of zeros into a hole, each time.
    RecoveryGoesOn,
    /// Opening writes the table again, first empty, then whole.
    RecoveryNotAtomic,
}

#[derive(Debug, Default)]
struct Table {
    entries: Vec<u64>,
    /// Sectors of the table that are not written yet.
    dirty: BTreeSet<u64>,
    /// Guest pages that an operation is changing.
    busy: BTreeMap<u64, ()>,
    free: Vec<u64>,
    /// Freed, but the durable table may still name them.
    quarantine: Vec<u64>,
    end: u64,
    sync_failed: bool,
}

#[derive(Debug)]
pub(super) struct Paged {
    file: Arc<dyn Storage>,
    size: u64,
    mistake: Mistake,
    table: Mutex<Table>,
    idle: Condvar,
    /// Readers share it; who gives quarantined pages back waits for them.
    readers: RwLock<()>,
    flushing: Mutex<()>,
}

fn failed(error: std::io::Error) -> Error {
    Error::io("paged", error)
}

impl Paged {
    pub(super) fn create(file: Arc<dyn Storage>, size: u64, mistake: Mistake) -> Result<Arc<dyn Layer>> {
        let pages = size.div_ceil(PAGE);
        file.set_len((TABLE + pages * 8).next_multiple_of(PAGE)).map_err(failed)?;
        file.write_at(0, &[MAGIC.to_le_bytes(), size.to_le_bytes()].concat()).map_err(failed)?;
        Self::open(file, mistake)
    }

    pub(super) fn open(file: Arc<dyn Storage>, mistake: Mistake) -> Result<Arc<dyn Layer>> {
        let mut header = [0; 16];
        file.read_at(0, &mut header).map_err(failed)?;
        if header[..8] != MAGIC.to_le_bytes() {
            return Err(Error::corrupt("magic", "is another"));
        }
        let size = u64::from_le_bytes(header[8..].try_into().unwrap());
        let mut bytes = vec![0; (size.div_ceil(PAGE) * 8) as usize];
        file.read_at(TABLE, &mut bytes).map_err(failed)?;
        let mut entries: Vec<u64> =
            bytes.chunks(8).map(|entry| u64::from_le_bytes(entry.try_into().unwrap())).collect();
        let used: BTreeSet<u64> = entries.iter().copied().filter(|entry| *entry > ZERO).collect();
        let first = (TABLE + bytes.len() as u64).next_multiple_of(PAGE);
        let end = file.len().map_err(failed)?.max(first).next_multiple_of(PAGE);
        let free = (first..end).step_by(PAGE as usize).filter(|page| !used.contains(page)).collect();
        match mistake {
            Mistake::RecoveryGoesOn => {
                if let Some(last) = entries.iter_mut().rfind(|entry| **entry == ZERO) {
                    *last = 0;
                    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
                    file.write_at(TABLE, &bytes).map_err(failed)?;
                    file.sync().map_err(failed)?;
                }
            }
            Mistake::RecoveryNotAtomic | Mistake::NoneButRecoveryWrites => {
                if mistake == Mistake::RecoveryNotAtomic {
                    file.write_at(TABLE, &vec![0; bytes.len()]).map_err(failed)?;
                    file.sync().map_err(failed)?;
                }
                file.write_at(TABLE, &bytes).map_err(failed)?;
                file.sync().map_err(failed)?;
            }
            _ => {}
        }
        let table = Table { entries, free, end, ..Table::default() };
        Ok(Arc::new(Paged {
            file,
            size,
            mistake,
            table: Mutex::new(table),
            idle: Condvar::new(),
            readers: RwLock::default(),
            flushing: Mutex::default(),
        }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until nobody changes the page, and changes it from now on.
    fn claim(&self, page: u64) -> MutexGuard<'_, Table> {
        let mut table = self.table();
        if self.mistake == Mistake::LostUpdate {
            return table;
        }
        while table.busy.contains_key(&page) {
            table = self.idle.wait(table).unwrap();
        }
        table.busy.insert(page, ());
        table
    }

    fn release(&self, mut table: MutexGuard<'_, Table>, page: u64) {
        table.busy.remove(&page);
        drop(table);
        self.idle.notify_all();
    }

    fn map(table: &mut Table, page: u64, entry: u64, now: Option<&dyn Storage>) -> Result<()> {
        table.entries[page as usize] = entry;
        table.dirty.insert(page * 8 / 512);
        if let Some(file) = now {
            write_table(file, table)?;
            file.sync().map_err(failed)?;
        }
        Ok(())
    }

    /// Writes within one page.
    fn write_page(&self, page: u64, offset: u64, buf: &[u8]) -> Result<()> {
        let mut table = self.claim(page);
        let entry = table.entries[page as usize];
        if entry > ZERO {
            drop(table);
            let done = self.data(entry + offset, buf);
            self.release(self.table(), page);
            return done;
        }
        let host = table.free.pop().unwrap_or_else(|| {
            table.end += PAGE;
            table.end - PAGE
        });
        match self.mistake {
            Mistake::MapBeforeData => Self::map(&mut table, page, host, Some(self.file.as_ref()))?,
            Mistake::PublishedFirst => Self::map(&mut table, page, host, None)?,
            _ => {}
        }
        drop(table);
        let mut whole = vec![0; PAGE as usize];
        if self.mistake == Mistake::StaleAround {
            // Past the file's end there is nothing stale.
            let _ = self.file.read_at(host, &mut whole);
        }
        whole[offset as usize..offset as usize + buf.len()].copy_from_slice(buf);
        let done = self.data(host, &whole);
        let mut table = self.table();
        if done.is_ok() || self.mistake == Mistake::MappedAfterError {
            Self::map(&mut table, page, host, None)?;
        } else {
            table.free.push(host);
        }
        self.release(table, page);
        done
    }

    fn data(&self, at: u64, buf: &[u8]) -> Result<()> {
        let done = self.file.write_at(at, buf).map_err(failed);
        if self.mistake == Mistake::WriteErrorDropped { Ok(()) } else { done }
    }

    fn sync(&self) -> Result<()> {
        self.file.sync().map_err(failed)
    }
}

fn write_table(file: &dyn Storage, table: &mut Table) -> Result<()> {
    while let Some(sector) = table.dirty.first().copied() {
        let first = (sector * 64) as usize;
        let last = (first + 64).min(table.entries.len());
        let bytes: Vec<u8> =
            table.entries[first..last].iter().flat_map(|entry| entry.to_le_bytes()).collect();
        file.write_at(TABLE + sector * 512, &bytes).map_err(failed)?;
        table.dirty.remove(&sector);
    }
    Ok(())
}

impl Layer for Paged {
    fn size(&self) -> u64 {
        self.size
    }

    fn granule(&self) -> u64 {
        PAGE
    }

    fn host(&self) -> &Arc<dyn Storage> {
        &self.file
    }

    fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        let len = (PAGE - at % PAGE).min(max).min(self.size - at);
        let entry = self.table().entries[(at / PAGE) as usize];
        let off = if self.mistake == Mistake::WrongHost { PAGE } else { 0 };
        Ok(match entry {
            0 => Extent::hole(len),
            ZERO => Extent::zero(len),
            host => Extent::data(len, Some(host + at % PAGE - off)),
        })
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent> {
        let _reading = self.readers.read().unwrap();
        let len = (PAGE - at % PAGE).min(buf.len() as u64);
        let entry = self.table().entries[(at / PAGE) as usize];
        Ok(match entry {
            0 => Extent::hole(len),
            ZERO => Extent::zero(len),
            host => {
                let host = host + at % PAGE;
                self.file.read_at(host, &mut buf[..len as usize]).map_err(failed)?;
                Extent { kind: Kind::Data, ..Extent::data(len, Some(host)) }
            }
        })
    }

    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let here = at + done as u64;
            let n = ((PAGE - here % PAGE) as usize).min(buf.len() - done);
            self.write_page(here / PAGE, here % PAGE, &buf[done..done + n])?;
            done += n;
        }
        Ok(())
    }

    fn erase(&self, at: u64, len: u64, how: Erase) -> Result<u64> {
        // Whole pages; the disk's last one may be short.
        if !at.is_multiple_of(PAGE) || (len < PAGE && at + len != self.size) {
            return Ok(0);
        }
        let pages = if at + len == self.size { len.div_ceil(PAGE) } else { len / PAGE };
        for page in at / PAGE..at / PAGE + pages {
            let mut table = self.claim(page);
            let old = table.entries[page as usize];
            let reveals =
                how == Erase::Reveal || (how == Erase::Free && self.mistake == Mistake::FreeReveals);
            Self::map(&mut table, page, if reveals { 0 } else { ZERO }, None)?;
            if old > ZERO {
                match self.mistake {
                    Mistake::ReusedAtOnce => table.free.push(old),
                    _ => table.quarantine.push(old),
                }
            }
            self.release(table, page);
        }
        Ok((pages * PAGE).min(len))
    }

    fn flush(&self) -> Result<()> {
        let _alone = self.flushing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if self.mistake == Mistake::SyncErrorForgotten && self.table().sync_failed {
            return Ok(());
        }
        let synced = match self.mistake {
            Mistake::NoSyncBetween => Ok(()),
            _ => self.sync(),
        };
        if let Err(error) = synced {
            self.table().sync_failed = true;
            return Err(error);
        }
        let mut table = self.table();
        write_table(self.file.as_ref(), &mut table)?;
        // What was freed before the table was written is free in it.
        let freed = std::mem::take(&mut table.quarantine);
        drop(table);
        if self.mistake != Mistake::NoLastSync {
            self.sync()?;
        }
        drop(self.readers.write());
        self.table().free.extend(freed);
        Ok(())
    }
}
