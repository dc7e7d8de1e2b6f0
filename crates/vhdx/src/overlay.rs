//! A file as it will be once its log is replayed: the changes are kept beside it, and the file stays as it is.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use cowhand_core::{Identity, Storage};

/// Bytes of the file that a log's data sector replaces.
pub(crate) const SECTOR: u64 = 4096;
/// Changes that are kept. Each takes some 100 bytes of memory; a log that needs more is not one that a disk's own
/// tables could have asked for.
const MAX_CHANGES: usize = 1 << 20;

/// Zeros written at once, in bytes, where a file system has no better way.
const ZEROS: u64 = 1 << 20;

/// What the log puts in place of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Zeros.
    Zero,
    /// One sector: 8 bytes, then 4084 bytes that stand in the file at `body`, then 4 bytes.
    Sector { leading: [u8; 8], body: u64, trailing: [u8; 4] },
}

/// The changes by their first byte: (end, change). They do not overlap; a sector is always whole.
#[derive(Debug, Default)]
pub(crate) struct Changes(BTreeMap<u64, (u64, Change)>);

impl Changes {
    /// Puts a change over all that were put there before. `range` is whole sectors, for [`Change::Sector`] one.
    /// Answers false where there are too many changes.
    pub(crate) fn put(&mut self, range: Range<u64>, change: Change) -> bool {
        let Range { start, end } = range;
        if start >= end {
            return true;
        }
        // A zero range that begins before is cut, and goes on behind.
        if let Some((&before, &(before_end, old))) = self.0.range(..start).next_back()
            && before_end > start
        {
            self.0.insert(before, (start, old));
            if before_end > end {
                self.0.insert(end, (before_end, old));
            }
        }
        while let Some((&at, &(old_end, old))) = self.0.range(start..end).next() {
            self.0.remove(&at);
            if old_end > end {
                self.0.insert(end, (old_end, old));
            }
        }
        self.0.insert(start, (end, change));
        self.0.len() <= MAX_CHANGES
    }

    /// The first change that ends behind `at`.
    fn next(&self, at: u64) -> Option<(Range<u64>, Change)> {
        let covering = self.0.range(..=at).next_back().filter(|(_, (end, _))| *end > at);
        covering.or_else(|| self.0.range(at..).next()).map(|(&start, &(end, change))| (start..end, change))
    }

    /// The end of the last change.
    pub(crate) fn end(&self) -> u64 {
        self.0.last_key_value().map_or(0, |(_, (end, _))| *end)
    }

    /// How many sectors are changed, and how many bytes become zero.
    pub(crate) fn count(&self) -> (u64, u64) {
        self.0.iter().fold((0, 0), |(sectors, zeros), (at, (end, change))| match change {
            Change::Sector { .. } => (sectors + 1, zeros),
            Change::Zero => (sectors, zeros + (end - at)),
        })
    }

    /// Whether a byte of `range` is changed.
    pub(crate) fn meet(&self, range: &Range<u64>) -> bool {
        self.next(range.start).is_some_and(|(next, _)| next.start < range.end)
    }

    /// Makes the changes in the file they were found in. Where it has holes, or ends, it reads zero already: it grows
    /// only for what is not zero. None of them may change a sector's body before it is used.
    pub(crate) fn apply(&self, file: &dyn Storage) -> io::Result<()> {
        for (&at, &(end, change)) in &self.0 {
            match change {
                Change::Zero => write_zeros(file, at..end)?,
                Change::Sector { .. } => file.write_at(at, &change.sector(file)?)?,
            }
        }
        Ok(())
    }
}

impl Change {
    /// The bytes of a changed sector, whose body is in `file`.
    fn sector(self, file: &dyn Storage) -> io::Result<[u8; SECTOR as usize]> {
        let mut sector = [0; SECTOR as usize];
        if let Change::Sector { leading, body, trailing } = self {
            sector[..8].copy_from_slice(&leading);
            file.read_at(body, &mut sector[8..4092])?;
            sector[4092..].copy_from_slice(&trailing);
        }
        Ok(sector)
    }
}

/// Makes what is not zero in `range` zero, up to the end of the file.
fn write_zeros(file: &dyn Storage, range: Range<u64>) -> io::Result<()> {
    let end = range.end.min(file.len()?);
    let mut at = range.start;
    while at < end {
        let Some(data) = file.data_at(at)?.filter(|data| data.start < end) else { break };
        let data = data.start.max(at)..data.end.min(end);
        let len = data.end - data.start;
        // Rather kept than given back: a file that holds all its space goes on doing so.
        if !file.zero(data.start, len)? && !file.punch(data.start, len)? {
            let zeros = vec![0; len.min(ZEROS) as usize];
            let mut done = 0;
            while done < len {
                let piece = zeros.get(..(len - done).min(ZEROS) as usize).unwrap_or_default();
                file.write_at(data.start + done, piece)?;
                done += piece.len() as u64;
            }
        }
        at = data.end;
    }
    Ok(())
}

/// A file with changes over it, read-only.
#[derive(Debug)]
pub(crate) struct Overlay {
    file: Arc<dyn Storage>,
    changes: Changes,
    len: u64,
}

impl Overlay {
    /// `file` with `changes`, `len` bytes long; what neither has is zero.
    pub(crate) fn new(file: Arc<dyn Storage>, changes: Changes, len: u64) -> Self {
        Overlay { file, changes, len }
    }

    /// Fills `buf` from the file alone.
    fn read_file(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let there = self.file.len()?.saturating_sub(at);
        let (stored, tail) = buf.split_at_mut(usize::try_from(there).unwrap_or(usize::MAX).min(buf.len()));
        tail.fill(0);
        if stored.is_empty() { Ok(()) } else { self.file.read_at(at, stored) }
    }
}

impl Storage for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut at, mut buf) = (at, buf);
        while !buf.is_empty() {
            let next = self.changes.next(at);
            let span =
                |end: u64| usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(buf.len());
            let len = match &next {
                Some((range, _)) if range.start <= at => span(range.end),
                Some((range, _)) => span(range.start),
                None => buf.len(),
            };
            let (piece, rest) = buf.split_at_mut(len);
            match next {
                Some((range, Change::Zero)) if range.start <= at => piece.fill(0),
                Some((range, change)) if range.start <= at => {
                    let sector = change.sector(self.file.as_ref())?;
                    let from = (at - range.start) as usize;
                    piece.copy_from_slice(sector.get(from..from + len).ok_or(io::ErrorKind::UnexpectedEof)?);
                }
                _ => self.read_file(at, piece)?,
            }
            at += len as u64;
            buf = rest;
        }
        Ok(())
    }

    fn write_at(&self, _at: u64, _buf: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn data_at(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        let mut from = at;
        let changed = loop {
            match self.changes.next(from) {
                Some((range, Change::Zero)) => from = range.end,
                Some((range, Change::Sector { .. })) => break Some(range.start.max(at)..range.end),
                None => break None,
            }
        };
        let stored = self.file.data_at(at)?;
        let first = match (stored, changed) {
            (Some(stored), Some(changed)) => {
                Some(if stored.start <= changed.start { stored } else { changed })
            }
            (stored, changed) => stored.or(changed),
        };
        Ok(first.map(|range| range.start..range.end.min(self.len)).filter(|range| range.start < range.end))
    }

    fn physical_size(&self) -> io::Result<u64> {
        self.file.physical_size()
    }

    fn identity(&self) -> io::Result<Identity> {
        self.file.identity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::MemoryStorage;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn reads_as_the_changed_file_would(
            changes in prop::collection::vec((0u64..12, 1u64..8, any::<u8>(), any::<bool>()), 0..20),
            reads in prop::collection::vec((0u64..60000, 1usize..20000), 1..10),
        ) {
            let len = 20 * SECTOR;
            let mut model: Vec<u8> = (0..10 * SECTOR).map(|n| (n % 251) as u8 | 1).collect();
            let file = Arc::new(MemoryStorage::from_bytes(&model));
            // Bodies stand at the file's start, one after the other.
            let bodies = model.clone();
            model.resize(len as usize, 0);
            let mut all = Changes::default();
            for (sector, sectors, byte, zero) in changes {
                let start = sector * SECTOR;
                let (end, change) = if zero {
                    (start + sectors * SECTOR, Change::Zero)
                } else {
                    (start + SECTOR, Change::Sector { leading: [byte; 8], body: 17 * u64::from(byte), trailing: [byte ^ 255; 4] })
                };
                prop_assert!(all.put(start..end, change));
                let target = &mut model[start as usize..end as usize];
                if zero {
                    target.fill(0);
                } else {
                    target[..8].fill(byte);
                    let body = 17 * usize::from(byte);
                    target[8..4092].copy_from_slice(&bodies[body..body + 4084]);
                    target[4092..].fill(byte ^ 255);
                }
            }
            let overlay = Overlay::new(file, all, len);
            for (at, n) in reads {
                let n = n.min((len - at) as usize);
                let mut buf = vec![0xaa; n];
                overlay.read_at(at, &mut buf).unwrap();
                prop_assert_eq!(&buf, &model[at as usize..at as usize + n]);
            }
            // What is said to be a hole is zero.
            let mut at = 0;
            while at < len {
                let data = overlay.data_at(at).unwrap().unwrap_or(len..len);
                prop_assert!(model[at as usize..data.start as usize].iter().all(|b| *b == 0));
                at = data.end;
            }
            prop_assert!(overlay.read_at(len - 1, &mut [0; 2]).is_err());
        }
    }
}
