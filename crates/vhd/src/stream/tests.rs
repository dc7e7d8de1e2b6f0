//! Streams against flat bytes, against what is written to a file, and against real files.

use std::io::Read;
use std::sync::Arc;

use cowhand_core::testing::Rng;
use cowhand_core::{
    Body, CreateOptions, Encoded, ErrorKind, Format, Image, Layer, Link, MemoryStorage, Options, Result,
    Streams,
};

use super::encode;
use crate::Vhd;
use crate::alloc::{Front, Layout};
use crate::footer::Footer;
use crate::geometry::Geometry;
use crate::tests::{content, create, open_bytes, pairs, small};

/// A stream that comes in pieces of at most `step` bytes.
struct Dribble<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl Read for Dribble<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let step = self.step.min(buf.len());
        self.bytes.read(&mut buf[..step])
    }
}

fn image(layer: Arc<dyn Layer>) -> Image {
    Image::new(vec![Link { layer, name: "test".to_owned(), format: "vpc" }]).unwrap()
}

/// All of a stream that is encoded.
fn all(mut encoded: Box<dyn Encoded + '_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encoded.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, encoded.file_len());
    bytes
}

/// What a source holds, and which sectors it names, out of a stream that comes in pieces of `step` bytes.
fn taken(bytes: &[u8], step: usize, file_len: Option<u64>) -> Result<(Vec<u8>, Vec<bool>)> {
    let mut source = Vhd.source(Box::new(Dribble { bytes, step }), file_len)?;
    let size = source.disks()[0].size as usize;
    let mut disk = vec![0; size];
    let mut named = vec![false; size / 512];
    while let Some(chunk) = source.next()? {
        let at = chunk.at as usize;
        let len = match chunk.body {
            Body::Bytes(bytes) => {
                assert!(bytes.len() <= 1 << 20);
                disk[at..at + bytes.len()].copy_from_slice(bytes);
                bytes.len()
            }
            Body::Zero(len) => len as usize,
        };
        for sector in &mut named[at / 512..(at + len) / 512] {
            assert!(!*sector, "sector {} comes twice", at / 512);
            *sector = true;
        }
    }
    assert!(source.next()?.is_none());
    Ok((disk, named))
}

/// A disk that was written at random, in blocks of any size, and its content.
fn scribbled(size: u64, block_size: u64, seed: u64) -> (Vec<u8>, Arc<dyn Layer>) {
    let layer = small(Arc::new(MemoryStorage::new()), size, block_size, true).unwrap();
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; size as usize];
    for n in 0..1 + rng.below(8) {
        let at = rng.below(size);
        let len = (1 + rng.below(2 * block_size)).min(size - at);
        let piece = &mut bytes[at as usize..(at + len) as usize];
        piece.fill(n as u8 + 1);
        layer.write(at, piece).unwrap();
    }
    (bytes, layer)
}

/// The file without what is random: its footers' times and ids.
fn without_ids(mut bytes: Vec<u8>) -> Vec<u8> {
    for footer in [0, bytes.len() - 512] {
        for (from, len) in [(24, 4), (64, 20)] {
            bytes[footer + from..footer + from + len].fill(0);
        }
    }
    bytes
}

#[test]
fn what_is_encoded_is_what_would_be_written() {
    for seed in 0..60 {
        let block_size = 512 << (seed % 8);
        let size = (1 + Rng::new(seed).below(40)) * 512;
        let (bytes, layer) = scribbled(size, 1 << (9 + seed % 5), seed);
        let disk = image(layer);
        let layout = Layout::new(size, block_size, Front::default()).unwrap();
        let footer = Footer::new(size, Geometry::MAX, Some(layout.header_at));
        let made = all(Box::new(encode::blocky(&disk, footer, layout, None).unwrap()));

        // The same blocks, written in ascending order.
        let file = Arc::new(MemoryStorage::new());
        let written = small(file.clone(), size, block_size, true).unwrap();
        let mut at = 0;
        while at < size {
            let found = disk.extent(at, size - at).unwrap();
            if found.kind == cowhand_core::Kind::Data {
                written.write(at, &bytes[at as usize..(at + found.len) as usize]).unwrap();
            }
            at += found.len;
        }
        written.close().unwrap();
        // Before its first block the file has what is left of the footer that it had when it was empty.
        let (a, mut b) = (without_ids(made.clone()), without_ids(file.to_vec()));
        b[layout.bat_end as usize..layout.bat_end as usize + 512].fill(0);
        let differ = a.iter().zip(&b).position(|(a, b)| a != b);
        assert_eq!((a.len(), differ), (b.len(), None), "seed {seed}");

        assert!(content(vec![open_bytes(&made).unwrap()]).unwrap() == bytes, "seed {seed}");
        for step in [1, 7, 4096, usize::MAX] {
            assert!(taken(&made, step, None).unwrap().0 == bytes, "seed {seed}");
        }
        let head = Vhd.head(&mut &made[..]).unwrap();
        assert_eq!(head.file_len, Some(made.len() as u64), "seed {seed}");
        assert_eq!(head.disk.clone().unwrap().size, size);
        let read = head.bytes.len();
        assert_eq!(read, 1536 + 4 * layout.blocks as usize);
        let mut again = Vec::new();
        head.replay(&made[read..]).read_to_end(&mut again).unwrap();
        assert!(again == made);
    }
}

fn encoded<'a>(disk: &'a Image, size: u64, options: &[(&str, &str)]) -> Result<Box<dyn Encoded + 'a>> {
    let options = Options::check(Vhd.options(), &pairs(options))?;
    Vhd.encode(disk, &CreateOptions { size, options, ..Default::default() })
}

#[test]
fn every_make_of_a_disk_goes_through_a_stream() {
    let size = 3_000_320;
    let (bytes, layer) = scribbled(size, 65536, 5);
    let disk = image(layer);
    let cases: [&[(&str, &str)]; 6] = [
        &[],
        &[("force_size", "on")],
        &[("block_size", "512k"), ("force_size", "on")],
        &[("size_align", "1M")],
        &[("subformat", "fixed")],
        &[("subformat", "fixed"), ("size_align", "1M")],
    ];
    for options in cases {
        let file = Arc::new(MemoryStorage::new());
        let size_made = create(file, size, options).unwrap().size();
        let stream = encoded(&disk, size, options).unwrap();
        assert!(stream.identity().0.is_some());
        let identity = stream.identity();
        let made = all(stream);
        let mut expected = bytes.clone();
        expected.resize(size_made as usize, 0);
        let opened = open_bytes(&made).unwrap();
        assert_eq!(opened.identity(), identity);
        assert!(content(vec![opened]).unwrap() == expected, "{options:?}");
        assert!(taken(&made, 100_000, Some(made.len() as u64)).unwrap().0 == expected, "{options:?}");
        if options.contains(&("subformat", "fixed")) {
            let error = taken(&made, 512, None).unwrap_err().to_string();
            assert!(error.contains("say how many bytes will come"), "{error}");
            let head = Vhd.head(&mut &made[..]).unwrap();
            assert_eq!((head.file_len, head.disk, head.bytes.len()), (None, None, 512));
        }
    }
    let error = encoded(&disk, size / 2, &[]).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}
