//! Waiting that a wish to stop ends: for a pipe whose other end does nothing, and for a command.

use std::io::{self, IoSlice, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use cowhand::{Error, ErrorKind, Result};

use crate::signals::Stop;

/// How often who waits looks whether to go on waiting.
const PATIENCE: Duration = Duration::from_millis(50);
/// Pieces that are on their way at a time, and bytes of one at most.
const PIECES: usize = 4;
const PIECE: usize = 256 << 10;

/// What `work` gives. It is done on a thread that is left behind, waiting, once somebody asks to stop.
pub(crate) fn unless_stopped<T: Send + 'static>(
    stop: &Stop,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let (to, done) = channel();
    std::thread::spawn(move || {
        let _ = to.send(work());
    });
    wait(&done, stop)?.ok_or_else(|| Error::new(ErrorKind::Io, "the thread that waits has ended too early"))
}

/// `None`: nobody sends any more.
fn wait<T>(from: &Receiver<T>, stop: &Stop) -> Result<Option<T>> {
    loop {
        match from.recv_timeout(PATIENCE) {
            Ok(done) => return Ok(Some(done)),
            Err(RecvTimeoutError::Timeout) if stop.is_set() => return Err(stopped()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

pub(crate) fn stopped() -> Error {
    Error::new(ErrorKind::Cancelled, "stopped on request")
}

/// Writes on a thread of its own. What was written is there once it was flushed, and not before.
#[derive(Debug)]
pub(crate) struct Patient {
    to: Sender<Vec<u8>>,
    back: Receiver<io::Result<Vec<u8>>>,
    /// Pieces that are free.
    free: Vec<Vec<u8>>,
    stop: Stop,
}

impl Patient {
    pub(crate) fn over(mut place: impl Write + Send + 'static, stop: Stop) -> Patient {
        let (to, pieces) = channel::<Vec<u8>>();
        let (done, back) = channel();
        std::thread::spawn(move || {
            for piece in pieces {
                let written = place.write_all(&piece).and_then(|()| place.flush());
                let failed = written.is_err();
                if done.send(written.map(|()| piece)).is_err() || failed {
                    return;
                }
            }
        });
        Patient { to, back, free: vec![Vec::new(); PIECES], stop }
    }

    fn take_back(&self) -> io::Result<Vec<u8>> {
        // It ended when it said what went wrong.
        wait(&self.back, &self.stop)?.unwrap_or_else(|| Err(io::ErrorKind::BrokenPipe.into()))
    }
}

impl Write for Patient {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut piece = match self.free.pop() {
            Some(piece) => piece,
            None => self.take_back()?,
        };
        piece.clear();
        for buf in bufs {
            let n = buf.len().min(PIECE - piece.len());
            piece.extend_from_slice(buf.get(..n).unwrap_or(buf));
        }
        let n = piece.len();
        // Where the thread has ended, it said why.
        if self.to.send(piece).is_err() {
            self.take_back()?;
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.free.len() < PIECES {
            let piece = self.take_back()?;
            self.free.push(piece);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_was_flushed_is_there_in_order() {
        let (mut reader, writer) = io::pipe().unwrap();
        let read = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes)
        });
        let bytes: Vec<u8> = (0..3 * PIECE + 7).map(|i| (i % 251) as u8).collect();
        let mut patient = Patient::over(writer, Stop::default());
        patient.write_all(&bytes).unwrap();
        assert_eq!(patient.write_vectored(&[IoSlice::new(b"ab"), IoSlice::new(b"c")]).unwrap(), 3);
        patient.flush().unwrap();
        drop(patient);
        assert!(read.join().unwrap().unwrap() == [bytes.as_slice(), b"abc"].concat());
    }

    #[test]
    fn an_error_is_told_by_the_next_who_writes_or_flushes() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut patient = Patient::over(writer, Stop::default());
        let done = patient.write_all(b"x").and_then(|()| patient.flush());
        assert_eq!(done.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let mut again = || patient.write_all(&[0; PIECE]);
        while again().is_ok() {}
        assert_eq!(again().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_wish_to_stop_ends_the_waiting() {
        let stop = Stop::default();
        let (_reader, writer) = io::pipe().unwrap();
        let mut patient = Patient::over(writer, stop.clone());
        stop.set();
        let error = loop {
            if let Err(error) = patient.write_all(&[0; PIECE]) {
                break error;
            }
        };
        assert_eq!(Error::io("writing", error).kind(), ErrorKind::Cancelled);
        let (mut silent, _writer) = io::pipe().unwrap();
        let error = unless_stopped(&stop, move || silent.read(&mut [0]).is_ok()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    }
}
