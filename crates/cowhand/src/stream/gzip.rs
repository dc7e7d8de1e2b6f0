//! gzip: unpacked as it comes, and packed on several threads into one member, which every program reads.

use std::collections::VecDeque;
use std::io::{self, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, channel};

use cowhand_core::{Error, ErrorKind};
use flate2::bufread::MultiGzDecoder;
use flate2::{Compress, Compression, Crc, FlushCompress};

/// What every gzip file begins with.
pub(super) const SIGNATURE: [u8; 2] = [0x1f, 0x8b];

/// Bytes that one thread packs at a time: few are lost for the next chunk's not knowing this one.
const CHUNK: usize = 512 << 10;

/// What is packed in a gzip file, of one member or several.
pub(super) struct Gunzip<R>(MultiGzDecoder<BufReader<R>>);

impl<R: Read> Gunzip<R> {
    pub(super) fn new(packed: R) -> Gunzip<R> {
        Gunzip(MultiGzDecoder::new(BufReader::with_capacity(128 << 10, packed)))
    }
}

impl<R: Read> Read for Gunzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::new(ErrorKind::Changed, "the gzip file ends before its end").into()
            }
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                Error::corrupt("gzip", error.to_string()).into()
            }
            _ => error,
        })
    }
}

/// A gzip file that is made while it is read.
pub(super) struct Gzip<R> {
    from: R,
    workers: Vec<Sender<Work>>,
    /// Whose turn it is.
    turn: usize,
    /// What is being packed, in order.
    packing: VecDeque<Receiver<Packed>>,
    all_read: bool,
    all_out: bool,
    crc: Crc,
    out: Vec<u8>,
    at: usize,
}

struct Work {
    bytes: Vec<u8>,
    last: bool,
    to: Sender<Packed>,
}

struct Packed {
    bytes: Vec<u8>,
    crc: Crc,
    last: bool,
}

impl<R: Read> Gzip<R> {
    /// Packs on `workers` threads, which end when this is dropped.
    pub(super) fn new(from: R, workers: usize) -> Gzip<R> {
        let worker = |_| {
            let (to, work) = channel();
            std::thread::spawn(move || pack_all(&work));
            to
        };
        Gzip {
            from,
            workers: (0..workers.max(1)).map(worker).collect(),
            turn: 0,
            packing: VecDeque::new(),
            all_read: false,
            all_out: false,
            crc: Crc::new(),
            // Deflate, no name, no time, the fastest and the best not used, made on Unix.
            out: vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3],
            at: 0,
        }
    }

    /// Gives every worker something to do, and a little more.
    fn fill(&mut self) -> io::Result<()> {
        while !self.all_read && self.packing.len() < 2 * self.workers.len() {
            let mut bytes = Vec::with_capacity(CHUNK);
            self.from.by_ref().take(CHUNK as u64).read_to_end(&mut bytes)?;
            self.all_read = bytes.len() < CHUNK;
            let (to, packed) = channel();
            let worker = self.workers.get(self.turn).ok_or_else(gone)?;
            worker.send(Work { bytes, last: self.all_read, to }).map_err(|_| gone())?;
            self.turn = (self.turn + 1) % self.workers.len();
            self.packing.push_back(packed);
        }
        Ok(())
    }
}

impl<R: Read> Read for Gzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.out.len() && !self.all_out {
            self.fill()?;
            let packed = self.packing.pop_front().ok_or_else(gone)?.recv().map_err(|_| gone())?;
            self.crc.combine(&packed.crc);
            self.out = packed.bytes;
            self.at = 0;
            if packed.last {
                self.all_out = true;
                self.out.extend(self.crc.sum().to_le_bytes());
                self.out.extend(self.crc.amount().to_le_bytes());
            }
        }
        let rest = self.out.get(self.at..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]); // never out of bounds: not longer than either
        self.at += n;
        Ok(n)
    }
}

fn gone() -> io::Error {
    io::Error::other("a thread that packs has ended too early")
}

fn pack_all(work: &Receiver<Work>) {
    let mut packer = Compress::new(Compression::default(), false);
    for Work { bytes, last, to } in work {
        let mut crc = Crc::new();
        crc.update(&bytes);
        // More than the worst input becomes: a packer that ran out of space cannot be used again.
        let mut packed = Vec::with_capacity(bytes.len() + bytes.len() / 8 + 1024);
        packer.reset();
        let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
        let done = packer.compress_vec(&bytes, &mut packed, flush);
        if done.is_err() || packer.total_in() != bytes.len() as u64 || packed.len() == packed.capacity() {
            return;
        }
        // Where nobody wants it any more, the next work does not come.
        let _ = to.send(Packed { bytes: packed, crc, last });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_into_one_member_whatever_the_length() {
        let mut state = 1_u32;
        let mut noise = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 17] {
            let bytes: Vec<u8> = (0..len).map(|i| if i % 4096 < 1000 { noise() } else { 7 }).collect();
            for workers in [1, 3] {
                let mut packed = Vec::new();
                Gzip::new(bytes.as_slice(), workers).read_to_end(&mut packed).unwrap();
                let mut found = Vec::new();
                // This decoder stops behind the first member.
                flate2::bufread::GzDecoder::new(packed.as_slice()).read_to_end(&mut found).unwrap();
                assert!(found == bytes, "{len} on {workers}");
                let cut = &packed[..packed.len() - 1];
                let error = Gunzip::new(cut).read_to_end(&mut Vec::new()).unwrap_err();
                assert_eq!(Error::io("reading", error).kind(), ErrorKind::Changed, "{len}");
                *packed.last_mut().unwrap() ^= 1;
                let error = Gunzip::new(packed.as_slice()).read_to_end(&mut Vec::new()).unwrap_err();
                assert_eq!(Error::io("reading", error).kind(), ErrorKind::Corrupt, "{len}");
            }
        }
    }
}
