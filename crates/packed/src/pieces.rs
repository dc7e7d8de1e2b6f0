//! What is written is cut into pieces, which threads pack apart from each other; they go out in order.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use cowhand_core::{Error, Result};

use crate::ordered::Ordered;
use crate::{How, Pack, Packing};

/// How a stream is packed in pieces.
pub(crate) trait Pieces: Send {
    /// Bytes of each piece but the last.
    const LEN: usize;

    /// What a thread packs with.
    type Packer: Packer;

    /// Makes one.
    fn packer(&self) -> Self::Packer;

    /// What stands before the first piece.
    fn head(&mut self) -> Vec<u8> {
        Vec::new()
    }

    /// Hears of each piece, in order.
    fn passed(&mut self, unpacked: usize, packed: usize, note: <Self::Packer as Packer>::Note);

    /// What stands behind the last piece.
    fn tail(&mut self) -> Vec<u8>;
}

/// Packs pieces in one thread.
pub(crate) trait Packer: Send + 'static {
    /// What is to be told of a piece beside its bytes.
    type Note: Send + 'static;

    /// Packs into `out`, which is empty. A stream of no bytes is one empty piece.
    fn pack(&mut self, piece: &[u8], last: bool, out: &mut Vec<u8>) -> io::Result<Self::Note>;
}

/// More pieces than threads are on their way, so that no thread waits for one that takes longer, or for who writes.
pub(crate) const AHEAD: usize = 6;

struct Job {
    piece: Vec<u8>,
    last: bool,
}

struct Done<N> {
    packed: Vec<u8>,
    unpacked: usize,
    note: N,
}

/// Packs what is written into it.
pub(crate) struct InPieces<'a, P: Pieces> {
    pieces: P,
    output: Box<dyn Write + Send + 'a>,
    threads: Ordered<Job, io::Result<Done<<P::Packer as Packer>::Note>>>,
    /// Pieces that may be on their way at once.
    most: usize,
    filling: Vec<u8>,
    /// Buffers go round: from here to a thread, which packs the next piece into what the last one stood in.
    spare: Vec<Vec<u8>>,
    failed: bool,
}

impl<'a, P: Pieces> InPieces<'a, P> {
    /// Packs into `output`, on that many threads.
    pub(crate) fn new(
        mut pieces: P,
        mut output: Box<dyn Write + Send + 'a>,
        threads: usize,
    ) -> Result<InPieces<'a, P>> {
        output.write_all(&pieces.head()).map_err(|error| Error::io("cannot write", error))?;
        let worker = || {
            let mut packer = pieces.packer();
            let mut out = Vec::new();
            move |job: Job| {
                out.clear();
                let note = packer.pack(&job.piece, job.last, &mut out)?;
                let unpacked = job.piece.len();
                let packed = std::mem::replace(&mut out, job.piece);
                Ok(Done { packed, unpacked, note })
            }
        };
        let running =
            Ordered::new(threads, worker).map_err(|error| Error::io("cannot start a thread", error))?;
        let most = threads + AHEAD;
        Ok(InPieces {
            pieces,
            output,
            threads: running,
            most,
            filling: Vec::new(),
            spare: Vec::new(),
            failed: false,
        })
    }

    /// Sends the piece off, and writes what has come back.
    fn send(&mut self, last: bool) -> io::Result<()> {
        while let Some(done) =
            if self.threads.waiting() < self.most { self.threads.ready() } else { self.threads.next() }
        {
            self.put(done?)?;
        }
        let next = self.spare.pop().unwrap_or_default();
        let piece = std::mem::replace(&mut self.filling, next);
        self.threads.put(Job { piece, last })
    }

    fn put(&mut self, done: io::Result<Done<<P::Packer as Packer>::Note>>) -> io::Result<()> {
        let Done { mut packed, unpacked, note } = done?;
        self.output.write_all(&packed)?;
        self.pieces.passed(unpacked, packed.len(), note);
        packed.clear();
        self.spare.push(packed);
        Ok(())
    }
}

impl<P: Pieces> Write for InPieces<'_, P> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other("packing has failed before"));
        }
        // A full piece waits until more comes: it may be the last one.
        if self.filling.len() == P::LEN && !buf.is_empty() {
            self.failed = true;
            self.send(false)?;
            self.failed = false;
        }
        let n = buf.len().min(P::LEN - self.filling.len());
        if self.filling.capacity() < P::LEN {
            self.filling.reserve_exact(P::LEN - self.filling.len());
        }
        self.filling.extend_from_slice(&buf[..n]); // never out of bounds: at most its length
        Ok(n)
    }

    /// Nothing: a piece that is not full cannot be packed yet.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<P: Pieces> Pack for InPieces<'_, P> {
    fn finish(mut self: Box<Self>) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("packing has failed before"));
        }
        self.send(true)?;
        while let Some(done) = self.threads.next() {
            self.put(done?)?;
        }
        let tail = self.pieces.tail();
        self.output.write_all(&tail)?;
        self.output.flush()
    }
}

/// Bytes that are read at a time, to be packed.
const CHUNK: usize = 128 << 10;

/// A stream that is packed while it is read.
pub struct Packed<'a, R> {
    from: R,
    /// `None`: it is finished.
    pack: Option<Box<dyn Pack + 'a>>,
    made: Made,
    out: Vec<u8>,
    at: usize,
    chunk: Vec<u8>,
}

/// What was packed and not read yet.
#[derive(Clone, Default)]
struct Made(Arc<Mutex<Vec<u8>>>);

impl Made {
    fn take(&self, into: &mut Vec<u8>) {
        into.clear();
        std::mem::swap(into, &mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Write for Made {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<R: Read> Packed<'_, R> {
    /// What is in `from`, packed. Errors: as of [`Packing::pack`].
    pub fn new(from: R, packing: &dyn Packing, how: How) -> Result<Self> {
        let made = Made::default();
        let pack = packing.pack(Box::new(made.clone()), how)?;
        Ok(Packed { from, pack: Some(pack), made, out: Vec::new(), at: 0, chunk: vec![0; CHUNK] })
    }
}

impl<R: Read> Read for Packed<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.out.len() {
            let Some(pack) = &mut self.pack else { return Ok(0) };
            match self.from.read(&mut self.chunk) {
                Ok(0) => {
                    if let Some(pack) = self.pack.take() {
                        pack.finish()?;
                    }
                }
                Ok(n) => pack.write_all(&self.chunk[..n])?, // never out of bounds: at most its length
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            self.made.take(&mut self.out);
            self.at = 0;
        }
        let rest = self.out.get(self.at..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]); // never out of bounds: not longer than either
        self.at += n;
        Ok(n)
    }
}
