//! What is in a packed file, read at random.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use cowhand_core::{Error, Identity, Result, Storage};

use crate::{Packing, SeekTable, Span};

/// Spans up to that many bytes are unpacked whole before anything of them is given out: so their checksums were looked at.
pub(crate) const WHOLE: u64 = 8 << 20;
/// Longer ones are unpacked by so many bytes at a time.
const PAGE: u64 = 1 << 20;
/// Unpacked bytes that are kept, unless these are fewer pieces than [`FEW`].
const KEPT: u64 = 24 << 20;
const FEW: usize = 4;
/// Readers that stand in the middle of a long span and may be gone on with.
const RUNNING: usize = 4;

/// The unpacked bytes of a file, at offsets. Reading forward, with gaps or on several threads, unpacks nothing twice.
/// It cannot be written to.
pub struct PackedStorage {
    file: Arc<dyn Storage>,
    packing: &'static dyn Packing,
    table: Arc<SeekTable>,
    state: Mutex<State>,
    /// Somebody has unpacked something, or gave up.
    done: Condvar,
}

/// A span's number, and that of a piece in it.
type Key = (usize, u64);

#[derive(Default)]
struct State {
    /// What is kept, each with when it was last used.
    kept: HashMap<Key, (u64, Arc<Vec<u8>>)>,
    size: u64,
    clock: u64,
    /// Spans that somebody is unpacking. Others wait, for what they want comes out on the way.
    busy: HashSet<usize>,
    /// The one that was used last comes last.
    running: Vec<Running>,
}

/// Unpacks a span from a piece on.
struct Running {
    span: usize,
    piece: u64,
    bytes: Box<dyn Read + Send>,
}

impl fmt::Debug for PackedStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, packing) = (&self.file, &self.packing);
        f.debug_struct("PackedStorage").field("file", file).field("packing", packing).finish_non_exhaustive()
    }
}

impl PackedStorage {
    /// What is in `file`, which is packed so. Errors: `table` cannot be one of it.
    pub fn new(
        file: Arc<dyn Storage>,
        packing: &'static dyn Packing,
        table: Arc<SeekTable>,
    ) -> Result<PackedStorage> {
        table.check(file.len().map_err(|error| Error::io("cannot read the length", error))?)?;
        Ok(PackedStorage { file, packing, table, state: Mutex::default(), done: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn span(&self, number: usize) -> Result<Span<'_>> {
        self.table.span(number).ok_or_else(|| Error::corrupt("seek table", "it does not cover the file"))
    }

    /// A piece. It is the one that `key` names, of a span that is cut into pieces of `len` bytes.
    fn piece(&self, key: Key, len: u64) -> Result<Arc<Vec<u8>>> {
        let (number, piece) = key;
        let mut state = self.lock();
        loop {
            if let Some(kept) = state.get(key) {
                return Ok(kept);
            }
            if state.busy.insert(number) {
                break;
            }
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let _busy = Busy { storage: self, number };
        let running = state.go_on(key);
        drop(state);
        let span = self.span(number)?;
        let mut running = match running {
            Some(running) => running,
            None => {
                let bytes = self.packing.unpack_from(self.file.clone(), span)?;
                Running { span: number, piece: 0, bytes }
            }
        };
        loop {
            let at = running.piece;
            let rest = span.len - (at * len).min(span.len);
            let bytes = Arc::new(self.unpack(&mut running, rest.min(len), rest <= len, span)?);
            running.piece += 1;
            let mut state = self.lock();
            state.keep((number, at), bytes.clone());
            if at == piece {
                if rest > len {
                    state.running.push(running);
                    if state.running.len() > RUNNING {
                        state.running.remove(0);
                    }
                }
                return Ok(bytes);
            }
        }
    }

    fn unpack(&self, running: &mut Running, len: u64, last: bool, span: Span<'_>) -> Result<Vec<u8>> {
        let wrong =
            || Error::corrupt("packed file", "the table of it says something else").at(span.from.packed);
        // Never more than WHOLE.
        let mut bytes = vec![0; len as usize];
        match running.bytes.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(wrong()),
            Err(error) => return Err(Error::io("cannot unpack", error)),
        }
        if last {
            let more = running.bytes.read(&mut [0]).map_err(|error| Error::io("cannot unpack", error))?;
            if more > 0 {
                return Err(wrong());
            }
        }
        Ok(bytes)
    }
}

impl State {
    fn get(&mut self, key: Key) -> Option<Arc<Vec<u8>>> {
        let (used, bytes) = self.kept.get_mut(&key)?;
        self.clock += 1;
        *used = self.clock;
        Some(bytes.clone())
    }

    fn keep(&mut self, key: Key, bytes: Arc<Vec<u8>>) {
        self.clock += 1;
        self.size += bytes.len() as u64;
        if let Some((_, old)) = self.kept.insert(key, (self.clock, bytes)) {
            self.size -= old.len() as u64;
        }
        while self.size > KEPT && self.kept.len() > FEW {
            let oldest = self.kept.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key);
            let Some((_, old)) = oldest.and_then(|key| self.kept.remove(&key)) else { return };
            self.size -= old.len() as u64;
        }
    }

    /// Who stands in that span before that piece, and the nearest.
    fn go_on(&mut self, (span, piece): Key) -> Option<Running> {
        let fits = |running: &&(usize, &Running)| running.1.span == span && running.1.piece <= piece;
        let found = self.running.iter().enumerate().filter(|one| fits(&one)).max_by_key(|one| one.1.piece);
        found.map(|(at, _)| at).map(|at| self.running.remove(at))
    }
}

/// A span that is being unpacked.
struct Busy<'a> {
    storage: &'a PackedStorage,
    number: usize,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.storage.lock().busy.remove(&self.number);
        self.storage.done.notify_all();
    }
}

fn read_only() -> io::Error {
    Error::unsupported("a packed file cannot be written to").into()
}

impl Storage for PackedStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.table.len)
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > self.table.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut at, mut buf) = (at, buf);
        while !buf.is_empty() {
            let number = self.table.find(at).ok_or(io::ErrorKind::UnexpectedEof)?;
            let span = self.span(number)?;
            let len = if span.len <= WHOLE { span.len } else { PAGE };
            let within = at - span.from.unpacked;
            let bytes = self.piece((number, within / len), len)?;
            let bytes = bytes.get((within % len) as usize..).unwrap_or_default();
            let n = bytes.len().min(buf.len());
            let (now, later) = buf.split_at_mut(n);
            now.copy_from_slice(&bytes[..n]); // never out of bounds: at most its length
            at += n as u64;
            buf = later;
        }
        Ok(())
    }

    fn write_at(&self, _at: u64, _buf: &[u8]) -> io::Result<()> {
        Err(read_only())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    /// Nothing was written.
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    /// What the packed file takes.
    fn physical_size(&self) -> io::Result<u64> {
        self.file.physical_size()
    }

    /// The packed file's.
    fn identity(&self) -> io::Result<Identity> {
        self.file.identity()
    }
}
