//! Compressed clusters: raw deflate with a window of 4 KiB, or zstd. Each cluster stands alone.

use std::sync::{Mutex, MutexGuard};

use cowhand_core::{Error, Result};

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    Zlib,
    Zstd,
}

impl Codec {
    pub(crate) fn by_number(number: u8) -> Option<Codec> {
        match number {
            0 => Some(Codec::Zlib),
            1 => Some(Codec::Zstd),
            _ => None,
        }
    }

    pub(crate) fn number(self) -> u8 {
        match self {
            Codec::Zlib => 0,
            Codec::Zstd => 1,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Codec::Zlib => "zlib",
            Codec::Zstd => "zstd",
        }
    }

    /// The levels that a user may ask for, and the one used without a wish.
    pub(crate) fn levels(self) -> (std::ops::RangeInclusive<u32>, u32) {
        match self {
            Codec::Zlib => (1..=9, 6),
            Codec::Zstd => (1..=22, 3),
        }
    }
}

/// Things that are costly to make, kept for the next one who needs one.
#[derive(Debug)]
struct Pool<T>(Mutex<Vec<T>>);

impl<T> Pool<T> {
    const KEPT: usize = 64;

    fn new() -> Self {
        Pool(Mutex::new(Vec::new()))
    }

    // A panic while the list is held can only have lost one spare.
    fn list(&self) -> MutexGuard<'_, Vec<T>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn take(&self) -> Option<T> {
        self.list().pop()
    }

    fn give(&self, thing: T) {
        let mut list = self.list();
        if list.len() < Self::KEPT {
            list.push(thing);
        }
    }
}

/// Inflates clusters, from any number of threads.
pub(crate) struct Inflater {
    codec: Codec,
    zlib: Pool<libdeflater::Decompressor>,
    zstd: Pool<zstd::stream::raw::Decoder<'static>>,
}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflater").field("codec", &self.codec).finish_non_exhaustive()
    }
}

fn bad(why: &str) -> Error {
    Error::corrupt("compressed cluster", why.to_owned())
        .hint("the image is damaged there; restore that part from a copy")
}

impl Inflater {
    pub(crate) fn new(codec: Codec) -> Self {
        Inflater { codec, zlib: Pool::new(), zstd: Pool::new() }
    }

    /// Fills the whole of `cluster` from `packed`, which may have anything behind the stream's end.
    pub(crate) fn inflate(&self, packed: &[u8], cluster: &mut [u8]) -> Result<()> {
        match self.codec {
            Codec::Zlib => self.inflate_zlib(packed, cluster),
            Codec::Zstd => self.inflate_zstd(packed, cluster),
        }
    }

    fn inflate_zlib(&self, packed: &[u8], cluster: &mut [u8]) -> Result<()> {
        use libdeflater::DecompressionError::{BadData, InsufficientSpace};
        let mut inflater = self.zlib.take().unwrap_or_default();
        let done = inflater.deflate_decompress(packed, cluster);
        self.zlib.give(inflater);
        match done {
            Ok(len) if len == cluster.len() => Ok(()),
            Ok(len) => Err(bad(&format!("inflates to {len} bytes, less than its {}", cluster.len()))),
            Err(InsufficientSpace) => Err(bad(&format!("inflates to more than its {} bytes", cluster.len()))),
            Err(BadData) => Err(bad("is not valid deflate data")),
        }
    }

    fn inflate_zstd(&self, packed: &[u8], cluster: &mut [u8]) -> Result<()> {
        use zstd::stream::raw::{InBuffer, Operation, OutBuffer};
        let mut inflater = match self.zstd.take() {
            Some(inflater) => inflater,
            None => {
                zstd::stream::raw::Decoder::new().map_err(|error| Error::io("cannot start zstd", error))?
            }
        };
        inflater.reinit().map_err(|error| Error::io("cannot start zstd", error))?;
        let whole = cluster.len();
        let mut input = InBuffer::around(packed);
        let mut output = OutBuffer::around(cluster);
        // A cluster may be several frames. The last must end exactly with the cluster.
        loop {
            let before = (input.pos(), output.pos());
            let left = inflater.run(&mut input, &mut output).map_err(|_| bad("is not valid zstd data"))?;
            if output.pos() == whole && left == 0 {
                break;
            }
            if (input.pos(), output.pos()) == before {
                let what = if output.pos() == whole { "more" } else { "less" };
                return Err(bad(&format!("inflates to {what} than its {whole} bytes")));
            }
        }
        self.zstd.give(inflater);
        Ok(())
    }
}

/// Compresses clusters, from any number of threads.
pub(crate) struct Deflater {
    codec: Codec,
    level: u32,
    zlib: Pool<flate2::Compress>,
    zstd: Pool<zstd::bulk::Compressor<'static>>,
}

impl std::fmt::Debug for Deflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deflater")
            .field("codec", &self.codec)
            .field("level", &self.level)
            .finish_non_exhaustive()
    }
}

/// The decoders of qcow2 look back at most this many bytes, as a power of two.
const WINDOW_BITS: u8 = 12;

impl Deflater {
    pub(crate) fn new(codec: Codec, level: u32) -> Self {
        Deflater { codec, level, zlib: Pool::new(), zstd: Pool::new() }
    }

    /// Appends the compressed cluster to `out`. False, and `out` as it was: it would not be smaller.
    pub(crate) fn deflate(&self, cluster: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let start = out.len();
        let fits = match self.codec {
            Codec::Zlib => self.deflate_zlib(cluster, out)?,
            Codec::Zstd => self.deflate_zstd(cluster, out)?,
        };
        let smaller = fits && out.len() - start < cluster.len();
        if !smaller {
            out.truncate(start);
        }
        Ok(smaller)
    }

    fn deflate_zlib(&self, cluster: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let start = out.len();
        let mut deflater = match self.zlib.take() {
            Some(mut deflater) => {
                deflater.reset();
                deflater
            }
            None => flate2::Compress::new_with_window_bits(
                flate2::Compression::new(self.level),
                false,
                WINDOW_BITS,
            ),
        };
        // Room for what does not shrink: a stream that could not end leaves a compressor that must not be used again.
        out.resize(start + 2 * cluster.len() + 64, 0);
        let room = out.get_mut(start..).unwrap_or_default();
        let status = deflater.compress(cluster, room, flate2::FlushCompress::Finish);
        let status = status.map_err(|error| Error::io("cannot compress", std::io::Error::other(error)))?;
        out.truncate(start + deflater.total_out() as usize);
        let ended = status == flate2::Status::StreamEnd;
        if ended {
            self.zlib.give(deflater);
        }
        Ok(ended)
    }

    fn deflate_zstd(&self, cluster: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let failed = |error| Error::io("cannot compress", error);
        let start = out.len();
        let mut deflater = match self.zstd.take() {
            Some(deflater) => deflater,
            None => zstd::bulk::Compressor::new(self.level as i32).map_err(failed)?,
        };
        out.resize(start + zstd::zstd_safe::compress_bound(cluster.len()), 0);
        let room = out.get_mut(start..).unwrap_or_default();
        let done = deflater.compress_to_buffer(cluster, room).map_err(failed)?;
        out.truncate(start + done);
        self.zstd.give(deflater);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|i| b"abcdefgh"[(i * i / 7) % 8] ^ (i / 1000) as u8).collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 88172645463325252u64;
        std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .take(len)
        .collect()
    }

    #[test]
    fn both_codecs_there_and_back() {
        for codec in [Codec::Zlib, Codec::Zstd] {
            let (deflater, inflater) = (Deflater::new(codec, codec.levels().1), Inflater::new(codec));
            for len in [512, 65536, 2 << 20] {
                for _ in 0..3 {
                    let cluster = text(len);
                    let mut packed = vec![1, 2, 3];
                    assert!(deflater.deflate(&cluster, &mut packed).unwrap());
                    packed.extend_from_slice(&[0xa5; 300]);
                    let mut back = vec![0; len];
                    inflater.inflate(&packed[3..], &mut back).unwrap();
                    assert!(back == cluster);
                    let mut out = vec![9];
                    assert!(!deflater.deflate(&noise(len), &mut out).unwrap());
                    assert_eq!(out, [9]);
                }
            }
        }
    }

    #[test]
    fn wrong_lengths_and_garbage_are_errors() {
        for codec in [Codec::Zlib, Codec::Zstd] {
            let (deflater, inflater) = (Deflater::new(codec, codec.levels().1), Inflater::new(codec));
            let mut packed = Vec::new();
            deflater.deflate(&text(4096), &mut packed).unwrap();
            packed.resize(packed.len() + 20, 0);
            let said = |len: usize| inflater.inflate(&packed, &mut vec![0; len]).unwrap_err().to_string();
            assert!(said(4095).contains("more"), "{}", said(4095));
            assert!(said(4097).contains("less") || said(4097).contains("not valid"), "{}", said(4097));
            assert!(inflater.inflate(&[0xff; 600], &mut [0; 4096]).is_err());
            assert!(inflater.inflate(&[], &mut [0; 4096]).is_err());
        }
    }
}
