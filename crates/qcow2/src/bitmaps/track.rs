//! Writes are recorded: which bitmaps are in memory while the disk is written, and how they come there and back.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cowhand_core::{Error, ErrorKind, Result};

use crate::bitmaps::bits::Bits;
use crate::bitmaps::directory::{self, Directory, Entry};
use crate::bitmaps::store::Change;
use crate::header::Header;
use crate::layer::Qcow2Layer;
use crate::writer::Writer;

/// No bitmap records writes.
const OFF: u8 = 0;
/// Whether one does is not known before the first write.
const IDLE: u8 = 1;
/// Bitmaps are in memory, and marked as being in use in the file.
const ON: u8 = 2;
const CLOSED: u8 = 3;

/// An enabled bitmap while the disk is written.
#[derive(Clone, Debug)]
struct Recorded {
    name: Vec<u8>,
    bits: Arc<Bits>,
}

/// What is known of the bitmaps.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// As the file has it, but for the bitmaps recorded, which are in use there. `None`: it was not needed so far.
    directory: Option<Directory>,
    recorded: Vec<Recorded>,
}

/// The bitmaps of an open layer. Its lock is taken behind claims and before all others of the writer.
#[derive(Debug)]
pub(crate) struct Tracker {
    state: AtomicU8,
    known: RwLock<Known>,
}

impl Tracker {
    pub(crate) fn new(header: &Header) -> Tracker {
        let state = if directory::place(header).is_some() { IDLE } else { OFF };
        Tracker { state: AtomicU8::new(state), known: RwLock::default() }
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Release);
    }

    /// The bits of a bitmap that records writes now.
    pub(crate) fn recorded(&self, name: &str) -> Option<Arc<Bits>> {
        let known = self.known();
        let found = known.recorded.iter().find(|recorded| recorded.name == name.as_bytes());
        found.map(|recorded| recorded.bits.clone())
    }
}

impl Qcow2Layer {
    /// The bitmaps as they would be in the file if the layer were closed now.
    pub(crate) fn directory(&self) -> Result<Directory> {
        let known = self.tracker.known();
        match &known.directory {
            Some(directory) => Ok(directory.clone()),
            None => Directory::read(self.view.shared.file.as_ref(), &self.view.shared.header()),
        }
    }

    /// To be called before guest bytes change, under a claim that covers them: bitmaps that record writes learn of it,
    /// and the file says that they are in use.
    pub(crate) fn record(&self, writer: &Writer, at: u64, len: u64) -> Result<()> {
        loop {
            match self.tracker.state.load(Ordering::Acquire) {
                OFF => return Ok(()),
                IDLE => self.start_recording(writer)?,
                ON => break,
                _ => return Err(Error::new(ErrorKind::Denied, "is closed")),
            }
        }
        let known = self.tracker.known();
        known.recorded.iter().for_each(|recorded| recorded.bits.mark(at..at.saturating_add(len)));
        Ok(())
    }

    fn start_recording(&self, writer: &Writer) -> Result<()> {
        let mut known = self.tracker.known_mut();
        if self.tracker.state.load(Ordering::Acquire) != IDLE {
            return Ok(());
        }
        let shared = &self.view.shared;
        let old = match &known.directory {
            Some(directory) => directory.clone(),
            None => Directory::read(shared.file.as_ref(), &shared.header())?,
        };
        let (mut in_use, mut saved) = (old.clone(), old.clone());
        let mut recorded = Vec::new();
        let entries = in_use.entries.iter_mut().zip(&mut saved.entries);
        for (entry, saved) in entries.filter(|(entry, _)| entry.is_auto() && !entry.in_use()) {
            if entry.is_usable() {
                recorded.push(Recorded { name: entry.name.clone(), bits: Arc::new(self.bits_of(entry)?) });
            } else {
                // What cannot be used here misses writes from here on.
                saved.set_in_use(true);
            }
            entry.set_in_use(true);
        }
        if in_use != old {
            self.write_flags(writer, &in_use)?;
        }
        known.directory = Some(saved);
        self.tracker.set(if recorded.is_empty() { OFF } else { ON });
        known.recorded = recorded;
        Ok(())
    }

    /// Stores the bitmaps that record writes and marks them as saved. The caller has the layer alone. The next write
    /// begins to record anew.
    pub(crate) fn settle_bitmaps(&self, writer: &Writer) -> Result<()> {
        let mut known = self.tracker.known_mut();
        self.settle(writer, &mut known)
    }

    fn settle(&self, writer: &Writer, known: &mut Known) -> Result<()> {
        if self.tracker.state.load(Ordering::Acquire) != ON {
            return Ok(());
        }
        let recorded = known.recorded.clone();
        self.commit(writer, known, |change| {
            for Recorded { name, bits } in recorded {
                self.change_entry(change, &name, |change, entry| {
                    self.put_bits(writer, change, entry, &bits)
                })?;
            }
            Ok(())
        })?;
        known.recorded.clear();
        self.tracker.set(IDLE);
        Ok(())
    }

    /// Changes one entry of a directory.
    pub(crate) fn change_entry(
        &self,
        change: &mut Change,
        name: &[u8],
        how: impl FnOnce(&mut Change, &mut Entry) -> Result<()>,
    ) -> Result<()> {
        let Some(index) = change.directory.entries.iter().position(|entry| entry.name == name) else {
            return Ok(());
        };
        let mut entry = change.directory.entries.remove(index);
        let done = how(change, &mut entry);
        change.directory.entries.insert(index, entry);
        done
    }

    /// Changes the directory, all or nothing. The caller has the layer alone.
    fn commit(
        &self,
        writer: &Writer,
        known: &mut Known,
        how: impl FnOnce(&mut Change) -> Result<()>,
    ) -> Result<()> {
        let shared = &self.view.shared;
        let old = match &known.directory {
            Some(directory) => directory.clone(),
            None => Directory::read(shared.file.as_ref(), &shared.header())?,
        };
        let mut change = Change::new(&old);
        if let Err(error) = how(&mut change) {
            self.abandon(writer, change);
            return Err(error);
        }
        known.directory = Some(self.commit_bitmaps(writer, change, &old)?);
        Ok(())
    }

    /// Changes bitmaps, all of it or nothing, durably, while nobody writes; what records writes is stored first.
    pub(crate) fn change_bitmaps(&self, how: impl FnOnce(&Writer, &mut Change) -> Result<()>) -> Result<()> {
        let (writer, _alone) = self.alone()?;
        let mut known = self.tracker.known_mut();
        self.settle(writer, &mut known)?;
        self.commit(writer, &mut known, |change| how(writer, change))?;
        let any = known.directory.as_ref().is_some_and(|directory| !directory.entries.is_empty());
        self.tracker.set(if any { IDLE } else { OFF });
        Ok(())
    }

    /// Changes the disk's size in the header, and with the same write its bitmaps: what is new is clean. What else is to
    /// be durable before is the caller's matter, who has the layer alone.
    pub(crate) fn switch_size(&self, writer: &Writer, size: u64) -> Result<()> {
        if !self.has_bitmaps() {
            return self.change_fields(writer, |header| header.size = size);
        }
        let mut known = self.tracker.known_mut();
        self.settle(writer, &mut known)?;
        self.commit(writer, &mut known, |change| {
            change.size = Some(size);
            for name in change.directory.entries.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>() {
                self.change_entry(change, &name, |change, entry| {
                    let old = self.bits_of(entry)?;
                    let new = Bits::new(size, entry.granularity_bits());
                    new.merge(&old)?;
                    new.all_changed();
                    self.put_bits(writer, change, entry, &new)
                })?;
            }
            Ok(())
        })
    }

    /// Stores what records writes, for the last time.
    pub(crate) fn close_bitmaps(&self, writer: &Writer) -> Result<()> {
        if self.tracker.state.load(Ordering::Acquire) != ON {
            return Ok(());
        }
        let _alone = writer.claims.take(0..=u64::MAX, true);
        self.settle_bitmaps(writer)?;
        self.tracker.set(CLOSED);
        Ok(())
    }
}
