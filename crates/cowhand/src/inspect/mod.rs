//! The safety gate: sees a content once, names every format it could be taken for, and says whether to take it.
//!
//! An image from a stranger is more than bytes: it can name other files, or be one format to the program that checks it
//! and another to the program that runs it. Every format has a judge ([`Inspector`](cowhand_core::Inspector)) that asks for the few ranges it
//! has to see. What drives the judges collects those ranges, out of a stream or out of a [`Storage`], so that the
//! report depends on the content alone. At most 1.5 MiB are held, whatever the content says of itself.

mod foreign;
mod judges;
mod report;
#[cfg(test)]
mod tests;
mod vmdk;

use std::io::{self, Read};

use cowhand_core::{Compat, Ending, Error, Result, Storage, TAIL};

use judges::Slot;
pub use report::{Failed, Report, Verdict};

/// How much of a stream is read at a time, in bytes.
const CHUNK: usize = 256 << 10;

/// A content on its way through the gate, for callers that have it in pieces.
pub struct Inspection {
    slots: Vec<Slot>,
    at: u64,
    tail: Tail,
}

impl Default for Inspection {
    fn default() -> Self {
        Inspection::new()
    }
}

impl Inspection {
    /// Nothing has been seen.
    pub fn new() -> Self {
        Inspection { slots: judges::all(), at: 0, tail: Tail::default() }
    }

    /// The next bytes of the content, as many as there happen to be.
    pub fn feed(&mut self, chunk: &[u8]) {
        for slot in &mut self.slots {
            slot.feed(self.at, chunk);
        }
        self.tail.feed(chunk);
        self.at = self.at.saturating_add(chunk.len() as u64);
    }

    /// The content has ended.
    pub fn finish(mut self, compat: Compat) -> Report {
        for slot in &mut self.slots {
            slot.end();
        }
        let end = Ending { len: self.at, tail: self.tail.bytes() };
        judges::report(&mut self.slots, &end, compat)
    }

    /// How many bytes of the content are held at the moment.
    pub fn held(&self) -> usize {
        self.slots.iter().map(Slot::held).sum::<usize>() + self.tail.kept.capacity()
    }
}

/// Judges what a reader gives. Errors: what reading says.
pub fn inspect(reader: &mut dyn Read, compat: Compat) -> Result<Report> {
    let mut inspection = Inspection::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return Ok(inspection.finish(compat)),
            Ok(len) => inspection.feed(chunk.get(..len).unwrap_or(&chunk)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(format!("cannot read at offset {}", inspection.at), error)),
        }
    }
}

/// Judges what a storage holds, with the same result as [`inspect`], and reads nothing but what a judge asks for.
/// Errors: what reading says.
pub fn inspect_storage(storage: &dyn Storage, compat: Compat) -> Result<Report> {
    let cannot_read = |at: u64| move |error| Error::io(format!("cannot read at offset {at}"), error);
    let len = storage.len().map_err(|error| Error::io("cannot tell the length", error))?;
    let mut slots = judges::all();
    for slot in &mut slots {
        while let Some(range) = slot.wants().filter(|range| range.start < len) {
            let take = usize::try_from(range.end.min(len) - range.start).unwrap_or(0); // never: a window is at most 1 MiB
            let mut bytes = vec![0; take];
            storage.read_at(range.start, &mut bytes).map_err(cannot_read(range.start))?;
            slot.feed(range.start, &bytes);
            if range.end > len {
                break;
            }
        }
        slot.end();
    }
    let mut tail = vec![0; usize::try_from(len).unwrap_or(TAIL).min(TAIL)];
    let at = len - tail.len() as u64;
    storage.read_at(at, &mut tail).map_err(cannot_read(at))?;
    Ok(judges::report(&mut slots, &Ending { len, tail: &tail }, compat))
}

/// The last bytes of what has passed. It holds up to twice as many, so that single bytes cost little.
#[derive(Default)]
struct Tail {
    kept: Vec<u8>,
}

impl Tail {
    fn feed(&mut self, chunk: &[u8]) {
        let chunk = chunk.get(chunk.len().saturating_sub(TAIL)..).unwrap_or(chunk);
        if self.kept.len() + chunk.len() > 2 * TAIL {
            let keep = TAIL - chunk.len();
            self.kept.drain(..self.kept.len() - keep);
        }
        self.kept.reserve_exact((2 * TAIL).saturating_sub(self.kept.capacity()));
        self.kept.extend_from_slice(chunk);
    }

    fn bytes(&self) -> &[u8] {
        self.kept.get(self.kept.len().saturating_sub(TAIL)..).unwrap_or_default()
    }
}
