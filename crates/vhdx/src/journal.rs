//! The journal: the only one who changes metadata of a file that others can see. The headers in turn, all else through
//! the log.
//!
//! An entry is written only when all earlier ones stand in place durably, so each is its own tail, and two places in the
//! ring are enough, which take turns: an entry is never written over the one before it. Nothing wraps, and no entry has
//! more descriptors than its first sector holds, so whoever replays logs at all replays these.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowhand_core::{Error, ErrorKind, Result, Storage};

use crate::bytes::{self, MIB};
use crate::draft::Sector;
use crate::guid::Guid;
use crate::header::{HEADERS, Header, LogPlace};
use crate::log::{self, Label, Pending};
use crate::overlay::Changes;
use crate::region::{Regions, TABLES};

/// Sectors that one commit changes at most.
pub(crate) const MOST: usize = log::FIRST_DESCRIPTORS;
/// Headers whose sequence number is higher cannot be written any more.
pub(crate) const LAST_SEQUENCE: u64 = u64::MAX - 2;
/// The ring's first places for entries begin this many bytes apart: room for the longest, and never one right behind
/// the other, which would make two entries a sequence.
const TURN: u32 = 512 << 10;

/// How far the headers say that this session writes.
const UNTOUCHED: u8 = 0;
const TOUCHED: u8 = 1;
const VISIBLY: u8 = 2;

/// The headers and the log of a file that is open for writing. One lock, held while it writes and waits for the disk;
/// whoever holds it takes no other.
#[derive(Debug)]
pub(crate) struct Journal {
    file: Arc<dyn Storage>,
    /// The DataWriteGuid that the first visible change takes.
    next: Guid,
    touched: AtomicU8,
    /// What the headers or the file hold is not known.
    failed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    header: Header,
    /// Which of [`HEADERS`] it stands in.
    slot: usize,
    ring: Option<Ring>,
    /// What is in the log, and not in place since writing it there failed.
    unapplied: Vec<Sector>,
}

/// The log in use.
#[derive(Clone, Copy, Debug)]
struct Ring {
    guid: Guid,
    /// That of the last entry, which may be a torn one.
    sequence_number: u64,
}

impl Journal {
    /// The journal of a file whose current header is `header`, in that slot, with nothing pending.
    pub(crate) fn new(file: Arc<dyn Storage>, header: Header, slot: usize) -> Journal {
        let state = State { header, slot, ring: None, unapplied: Vec::new() };
        Journal {
            file,
            next: Guid::random(),
            touched: AtomicU8::new(UNTOUCHED),
            failed: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    /// The journal of a file that may have changes pending in its log: these are put in place first, durably. A power cut
    /// within leaves them pending, or in place. Errors: those of the headers and of the log; the log would change itself
    /// or the headers.
    pub(crate) fn open(file: Arc<dyn Storage>) -> Result<Journal> {
        let (header, slot) = Header::current(file.as_ref())?;
        let journal = Journal::new(file, header, slot);
        if header.log.is_pending() {
            journal.replay()?;
        }
        Ok(journal)
    }

    fn replay(&self) -> Result<()> {
        let mut state = self.lock()?;
        let place = state.header.log;
        let Pending { changes, len } = log::pending(self.file.as_ref(), place)?;
        unfit(&changes, &place).map_or(Ok(()), Err)?;
        self.write_headers(&mut state, |header| header.file_write_guid = Guid::random())?;
        let failed = |error| Error::io("cannot put in place what the log holds", error);
        if len > self.file.len().map_err(failed)? {
            self.file.set_len(len).map_err(failed)?;
        }
        changes.apply(self.file.as_ref()).map_err(failed)?;
        self.sync()?;
        self.write_headers(&mut state, |header| header.log.guid = Guid::ZERO)
    }

    /// Comes before the first change of a session: FileWriteGuid becomes new, and with the first one that is `visible`
    /// (the disk reads otherwise, or is another one to its children) DataWriteGuid too. Durable in both headers when it
    /// returns, and what is damaged of headers and region tables is whole. Nearly free from the second call on.
    pub(crate) fn touch(&self, visible: bool) -> Result<()> {
        let wanted = if visible { VISIBLY } else { TOUCHED };
        if self.touched.load(Ordering::Acquire) >= wanted {
            return Ok(());
        }
        let mut state = self.lock()?;
        let before = self.touched.load(Ordering::Acquire);
        if before >= wanted {
            return Ok(());
        }
        if state.header.log.length == 0 {
            return Err(Error::unsupported("has no log, without which nothing can be changed safely")
                .hint("convert it into a new file"));
        }
        self.write_headers(&mut state, |header| {
            if before == UNTOUCHED {
                header.file_write_guid = Guid::random();
            }
            if visible {
                header.data_write_guid = self.next;
            }
        })?;
        if before == UNTOUCHED {
            Regions::mend(self.file.as_ref(), || self.sync())?;
        }
        self.touched.store(wanted, Ordering::Release);
        Ok(())
    }

    /// DataWriteGuid becomes `guid`, durably, and no other while this session lasts.
    pub(crate) fn identify(&self, guid: Guid) -> Result<()> {
        self.touch(false)?;
        let mut state = self.lock()?;
        self.write_headers(&mut state, |header| header.data_write_guid = guid)?;
        self.touched.store(VISIBLY, Ordering::Release);
        Ok(())
    }

    /// The DataWriteGuid that the file bears behind the next visible change: a session's first one takes a new one.
    pub(crate) fn next_identity(&self) -> Guid {
        match self.touched.load(Ordering::Acquire) {
            VISIBLY => self.header().data_write_guid,
            _ => self.next,
        }
    }

    /// The header as it stands in the file.
    pub(crate) fn header(&self) -> Header {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).header
    }

    /// Makes all `sectors`, at most [`MOST`] and none twice, change in one step, and durable. All that was written to the
    /// file before is durable first. `end`: where that ends which is in use of the file, in bytes.
    ///
    /// Errors: `Unsupported` where there are more sectors, and nothing was changed. Otherwise reading or writing failed,
    /// and the step is taken or not: nothing that either state of the file names may be used for something else before a
    /// later commit goes well. After a sync has failed nothing goes well any more.
    pub(crate) fn commit(&self, sectors: &[Sector], end: u64) -> Result<()> {
        if sectors.len() > MOST {
            return Err(Error::unsupported(format!(
                "a change of {} sectors of metadata at once does not fit into the log",
                sectors.len()
            )));
        }
        let mut state = self.lock()?;
        self.apply_rest(&mut state)?;
        // Durable with the next sync, as nobody cuts the file while the log is in use.
        let len = self.file.len().map_err(|error| Error::io("cannot find the size", error))?;
        self.sync()?;
        if sectors.is_empty() {
            return Ok(());
        }
        let place = state.header.log;
        let ring = match state.ring {
            Some(ring) => Ring { sequence_number: ring.sequence_number + 1, ..ring },
            None => Ring { guid: Guid::random(), sequence_number: 1 },
        };
        let at = if ring.sequence_number % 2 == 1 { 0 } else { TURN };
        let label = Label {
            log_guid: ring.guid,
            sequence_number: ring.sequence_number,
            at,
            flushed_file_offset: len / MIB * MIB,
            last_file_offset: end.next_multiple_of(MIB),
        };
        let entry = log::entry(&label, sectors.iter().map(|sector| (sector.at, &*sector.bytes)));
        bytes::write(self.file.as_ref(), "log", place.offset + u64::from(at), &entry)?;
        self.sync()?;
        // From here on the entry counts, or will with the headers.
        state.ring = Some(ring);
        if state.header.log.guid != ring.guid {
            self.write_headers(&mut state, |header| header.log.guid = ring.guid)?;
        }
        let done = self.put_in_place(sectors);
        if done.is_err() {
            state.unapplied = sectors.to_vec();
        }
        done
    }

    /// All that was committed is in place, durably, and the log is empty: the file may be cut, and written by others.
    pub(crate) fn settle(&self) -> Result<()> {
        let mut state = self.lock()?;
        self.apply_rest(&mut state)?;
        self.sync()?;
        if state.header.log.is_pending() {
            self.write_headers(&mut state, |header| header.log.guid = Guid::ZERO)?;
        }
        state.ring = None;
        Ok(())
    }

    /// What the file holds is not known to who writes it: nothing more is written until it is opened again.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// Errors: something has failed so that what the file holds is not known.
    pub(crate) fn check(&self) -> Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Err(Error::new(
                ErrorKind::Io,
                "an earlier write could not be made durable, so what was written may be lost",
            )
            .hint("close it, and check it before it is written again"));
        }
        Ok(())
    }

    fn lock(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        Ok(state)
    }

    /// Does what is left to do of an entry that could not be put in place.
    fn apply_rest(&self, state: &mut State) -> Result<()> {
        self.put_in_place(&state.unapplied)?;
        state.unapplied = Vec::new();
        Ok(())
    }

    /// Writes an entry's sectors to their places. The next sync makes them durable; until then the log has them.
    fn put_in_place(&self, sectors: &[Sector]) -> Result<()> {
        let mut run = Vec::new();
        let mut sectors = sectors.iter().peekable();
        while let Some(first) = sectors.next() {
            run.clear();
            run.extend_from_slice(&first.bytes[..]);
            while let Some(next) = sectors.next_if(|next| next.at == first.at.wrapping_add(run.len() as u64))
            {
                run.extend_from_slice(&next.bytes[..]);
            }
            bytes::write(self.file.as_ref(), "metadata", first.at, &run)?;
        }
        Ok(())
    }

    /// All that was written before is durable.
    fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|error| {
            self.fail();
            Error::io("cannot make what was written durable", error)
        })
    }

    /// Changes both headers, the one that does not count first, each durably: at every moment one of them is good.
    fn write_headers(&self, state: &mut State, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut header = state.header;
        change(&mut header);
        if header.sequence_number > LAST_SEQUENCE {
            return Err(Error::corrupt("header", "has the last sequence number that there is")
                .at(HEADERS[state.slot])
                .hint("let a repair begin to count anew"));
        }
        for slot in [1 - state.slot, state.slot] {
            header.sequence_number += 1;
            if let Err(error) = bytes::write(self.file.as_ref(), "header", HEADERS[slot], &header.to_bytes())
            {
                self.fail();
                return Err(error);
            }
            self.sync()?;
        }
        state.header = header;
        Ok(())
    }
}

/// Why these changes cannot be put in place: replaying must be possible again, whatever a power cut leaves of it.
pub(crate) fn unfit(changes: &Changes, place: &LogPlace) -> Option<Error> {
    let log = place.offset..place.offset.saturating_add(place.length);
    let (_, name) = [(0..TABLES[0], "the headers"), (log, "itself")]
        .into_iter()
        .find(|(range, _)| changes.meet(range))?;
    let error = Error::corrupt("log", format!("would change {name}")).at(place.offset);
    Some(error.hint("it can be read: convert it into a new file"))
}

#[cfg(test)]
mod tests;
