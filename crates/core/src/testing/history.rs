//! Every value each sector was given, and which of them it may hold: the judge of crash and fault tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bench::{Failure, Opener, image};
use super::script::{Op, SECTOR, describe, fill, stamp_of};
use crate::{Erase, ErrorKind, Folder, Image, Kind, Layer, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// The parent's bytes, or zeros.
    Below,
    Zero,
    Stamp,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Which operation gave it, from 1; also the stamp's version.
    op: u64,
    value: Value,
    /// The operation said it went well.
    done: bool,
}

const CHUNK: u64 = 65536;
const SECTOR_LEN: usize = SECTOR as usize;

/// What the sectors of one disk were given. Nothing else was ever written to it.
#[derive(Debug)]
pub(super) struct History {
    size: u64,
    below: Vec<u8>,
    sectors: BTreeMap<u64, Vec<Entry>>,
}

/// All that a layer holds, as one that reads it piece by piece.
pub(super) fn read_all(layer: &Arc<dyn Layer>, size: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size as usize];
    let len = layer.size().min(size) as usize;
    image(layer.clone(), None)?.read(0, &mut bytes[..len])?;
    Ok(bytes)
}

impl History {
    /// An untouched disk of `size` bytes over `parent`.
    pub(super) fn new(size: u64, parent: Option<&Arc<dyn Layer>>) -> Result<History> {
        let below = match parent {
            Some(parent) => read_all(parent, size)?,
            None => Vec::new(),
        };
        Ok(History { size, below, sectors: BTreeMap::new() })
    }

    fn below(&self, at: u64, len: usize) -> &[u8] {
        const ZEROS: [u8; SECTOR_LEN] = [0; SECTOR_LEN];
        self.below.get(at as usize..at as usize + len).unwrap_or(&ZEROS[..len.min(SECTOR_LEN)])
    }

    fn note(&mut self, at: u64, len: u64, entry: Entry) {
        for sector in at / SECTOR..(at + len).div_ceil(SECTOR) {
            self.sectors.entry(sector).or_default().push(entry);
        }
    }

    /// Does one operation and notes what it did. Operation numbers begin at 1 and grow.
    pub(super) fn run(&mut self, image: &Image, number: u64, op: Op) -> Result<()> {
        match op {
            Op::Write { at, len } | Op::Compressed { at, len } => {
                let mut buf = vec![0; len as usize];
                fill(&mut buf, at, number);
                let done = if matches!(op, Op::Write { .. }) {
                    image.write(at, &buf)
                } else {
                    image.write_compressed(at, &buf)
                };
                if done.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unsupported) {
                    return Ok(());
                }
                self.note(at, len, Entry { op: number, value: Value::Stamp, done: done.is_ok() });
                done
            }
            Op::Erase { at, len, how: Erase::Reveal } => {
                // A layer reveals what it can; reading tells which sectors.
                let mut now = vec![0; len as usize];
                let done = image.erase(at, len, Erase::Reveal).and_then(|()| image.read(at, &mut now));
                if done.is_err() {
                    self.note(at, len, Entry { op: number, value: Value::Below, done: false });
                    return done;
                }
                for (sector, bytes) in (at / SECTOR..).zip(now.chunks(SECTOR_LEN)) {
                    let revealed = bytes == self.below(sector * SECTOR, bytes.len());
                    if revealed && self.sectors.contains_key(&sector) {
                        self.note(sector * SECTOR, 1, Entry { op: number, value: Value::Below, done: true });
                    }
                }
                Ok(())
            }
            Op::Erase { at, len, how } => {
                let done = image.erase(at, len, how);
                self.note(at, len, Entry { op: number, value: Value::Zero, done: done.is_ok() });
                done
            }
            Op::Flush => image.flush(),
            Op::Resize { .. } | Op::Reopen => Ok(()),
        }
    }

    /// Reads the disk and judges every sector: it holds the value it had when operation `mark` had ended, or one given
    /// later. Answers the bytes that were ever touched.
    pub(super) fn check(&self, image: &Image, mark: u64) -> Result<Vec<u8>, Failure> {
        if image.size() != self.size {
            return Err(Failure::new(format!("the disk has {} bytes, not {}", image.size(), self.size)));
        }
        let mut touched = Vec::new();
        let mut at = 0;
        while at < self.size {
            let chunk_end = (at / CHUNK + 1) * CHUNK;
            if self.sectors.range(at / SECTOR..chunk_end / SECTOR).next().is_some() {
                let start = touched.len();
                touched.resize(start + (chunk_end.min(self.size) - at) as usize, 0);
                image.read(at, &mut touched[start..])?;
                self.check_bytes(at, &touched[start..], mark)?;
                at = chunk_end;
            } else {
                let end = self
                    .sectors
                    .range(at / SECTOR..)
                    .next()
                    .map_or(self.size, |(sector, _)| sector * SECTOR / CHUNK * CHUNK);
                at += self.check_untouched(image, at, end, mark)?;
            }
        }
        Ok(touched)
    }

    /// Where nothing was ever written the top has nothing, or what lies below. Answers how far it looked.
    fn check_untouched(&self, image: &Image, at: u64, end: u64, mark: u64) -> Result<u64, Failure> {
        let found = image.extent_above(at, end - at, 1)?;
        if found.len == 0 || found.len > end - at {
            return Err(Failure::new(format!(
                "the extent at {at} has {} bytes where {} were asked for",
                found.len,
                end - at
            )));
        }
        if found.kind == Kind::Hole {
            return Ok(found.len);
        }
        let mut bytes = vec![0; found.len.min(CHUNK) as usize];
        // Whole sectors, so that each is judged whole; an extent ends where it likes.
        let len = bytes.len().next_multiple_of(SECTOR_LEN).min((end - at) as usize);
        bytes.resize(len, 0);
        image.read(at, &mut bytes)?;
        self.check_bytes(at, &bytes, mark)?;
        Ok(len as u64)
    }

    /// Judges whole sectors from `at` on.
    pub(super) fn check_bytes(&self, at: u64, bytes: &[u8], mark: u64) -> Result<(), Failure> {
        for (sector, held) in (at / SECTOR..).zip(bytes.chunks(SECTOR_LEN)) {
            let entries = self.sectors.get(&sector).map_or(&[][..], Vec::as_slice);
            let flushed = entries.iter().rposition(|entry| entry.done && entry.op <= mark);
            let allowed = &entries[flushed.unwrap_or(0)..];
            let below = (flushed.is_none()).then_some(Value::Below);
            if below.into_iter().chain(allowed.iter().map(|entry| entry.value)).any(|value| match value {
                Value::Below => held == self.below(sector * SECTOR, held.len()),
                Value::Zero => crate::is_zero(held),
                Value::Stamp => false,
            }) {
                continue;
            }
            let stamp = stamp_of(held);
            if allowed.iter().any(|entry| entry.value == Value::Stamp && stamp == Some((sector, entry.op))) {
                continue;
            }
            let mut wanted: Vec<String> =
                below.map(|_| "what it was made with".to_owned()).into_iter().collect();
            wanted.extend(allowed.iter().map(|entry| match entry.value {
                Value::Below => format!("what lies below (operation {})", entry.op),
                Value::Zero => format!("zeros (operation {})", entry.op),
                Value::Stamp => format!("version {}", entry.op),
            }));
            let sort = match stamp {
                Some((number, _)) if number != sector => "misplaced",
                Some(_) => "stale",
                None if crate::is_zero(held) => "lost",
                None => "mixed",
            };
            return Err(Failure::new(format!(
                "sector {sector} (byte {}) is {sort}: it holds {}; flushed up to operation {mark}, it may hold {}",
                sector * SECTOR,
                describe(held),
                wanted.join(" or ")
            )));
        }
        Ok(())
    }
}

/// A disk that a script runs on, opened again where the script says so.
pub(super) struct Run<'a> {
    pub(super) folder: Arc<dyn Folder>,
    pub(super) reopen: &'a Opener<'a>,
    pub(super) parent: Option<&'a Arc<dyn Layer>>,
    pub(super) image: Image,
}

impl<'a> Run<'a> {
    /// Opens it.
    pub(super) fn open(
        folder: Arc<dyn Folder>,
        reopen: &'a Opener<'a>,
        parent: Option<&'a Arc<dyn Layer>>,
    ) -> Result<Self> {
        let image = image(reopen(&folder)?, parent)?;
        Ok(Run { folder, reopen, parent, image })
    }

    /// Does one operation. True: what was done before is durable now.
    pub(super) fn step(&mut self, history: &mut History, number: u64, op: Op) -> Result<bool> {
        if op == Op::Reopen {
            self.image.close()?;
            self.image = image((self.reopen)(&self.folder)?, self.parent)?;
            return Ok(true);
        }
        history.run(&self.image, number, op)?;
        Ok(op == Op::Flush)
    }
}

/// The script with its numbers, for a failure's text.
pub(super) fn list(script: &[Op]) -> String {
    (1..).zip(script).map(|(number, op): (u64, _)| format!("  {number:3}: {op:?}\n")).collect()
}
