//! Streams against flat bytes, against what is written to a file, and against real files.

use std::io::Read;
use std::sync::Arc;

use cowhand_core::raw::Raw;
use cowhand_core::testing::Rng;
use cowhand_core::{
    Body, CreateOptions, Encoded, ErrorKind, Format, Image, Layer, Link, MemoryStorage, NoFiles, OpenOptions,
    Options, Result, Storage, Streams,
};

use super::encode;
use crate::Vhd;
use crate::alloc::{Front, Layout};
use crate::footer::{Footer, checksum};
use crate::geometry::Geometry;
use crate::header::Header;
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

#[test]
fn every_cut_is_an_error() {
    let (bytes, layer) = scribbled(9 * 512, 1024, 3);
    let disk = image(layer);
    let layout = Layout::new(9 * 512, 1024, Front::default()).unwrap();
    let footer = Footer::new(9 * 512, Geometry::MAX, Some(layout.header_at));
    let made = all(Box::new(encode::blocky(&disk, footer, layout, None).unwrap()));
    let whole = made.len();
    for len in 0..whole {
        let cut = taken(&made[..len], 4096, None);
        if len == whole - 1 {
            // A footer of 511 bytes, which is what Virtual PC wrote at first.
            assert!(cut.unwrap().0 == bytes);
        } else {
            assert!(cut.is_err(), "after {len} of {whole} bytes");
        }
        assert!(taken(&made[..len], 4096, Some(whole as u64)).is_err(), "after {len} of {whole} bytes");
    }
    for more in [1, 511, 512, 4096, 3 << 20] {
        let mut long = made.clone();
        long.resize(whole + more, 0);
        assert!(taken(&long, 4096, None).is_err(), "{more} bytes follow");
        assert!(taken(&long, 4096, Some(whole as u64)).is_err(), "{more} bytes follow");
    }
    let fixed = all(encoded(&disk, 9 * 512, &[("subformat", "fixed"), ("force_size", "on")]).unwrap());
    let whole = fixed.len() as u64;
    for len in 0..fixed.len() {
        assert!(taken(&fixed[..len], 4096, Some(whole)).is_err(), "after {len} of {whole} bytes");
    }
    assert!(taken(&[&fixed[..], &[0]].concat(), 4096, Some(whole)).is_err());
}

/// A front that claims what it likes, and no data.
fn front(size: u64, change: impl Fn(&mut Header)) -> Vec<u8> {
    let footer = Footer::new(size, Geometry::MAX, Some(512)).to_bytes();
    let mut header = Header::new(512, 1536, 1, 2 << 20);
    change(&mut header);
    [&footer[..], &header.to_bytes()].concat()
}

/// Zeros without an end, and how many were read.
struct Endless<'a>(&'a [u8], u64);

impl Read for Endless<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let done = self.0.read(buf)?;
        buf[done..].fill(0);
        self.1 += buf.len() as u64;
        Ok(buf.len())
    }
}

#[test]
fn what_a_front_claims_is_not_believed_before_it_comes() {
    let full = u32::try_from((2040u64 << 30) / (2 << 20)).unwrap();
    for (name, front, error) in [
        ("table of 16 GiB", front(512, |h| h.max_entries = u32::MAX), "too long to be kept"),
        ("table behind data", front(512, |h| h.bat_at = 2 << 20), "behind data"),
        ("table at the end of numbers", front(512, |h| h.bat_at = u64::MAX - 2), "past the file's end"),
        (
            "no entries at the end of numbers",
            front(0, |h| (h.max_entries, h.bat_at) = (0, u64::MAX)),
            "footer",
        ),
        ("too few entries", front(2040 << 30, |_| ()), "do not cover"),
        ("table over the header", front(512, |h| h.bat_at = 1024), "over the footer or the header"),
        ("blocks over the front", front(2040 << 30, |h| h.max_entries = full), "cannot be read in one pass"),
    ] {
        let mut endless = Endless(&front, 0);
        let head = Vhd.head(&mut endless);
        assert!(endless.1 < 6 << 20, "{name}: {} bytes were read", endless.1);
        if let Ok(head) = head {
            // Of zeros no layout is made.
            let known = name.starts_with("no entries");
            assert_eq!(head.file_len.is_some(), known, "{name}");
        }
        // With an end soon after.
        let zeros = vec![0; 5 << 20];
        let found = taken(&[&front[..], &zeros].concat(), 65536, None).unwrap_err().to_string();
        assert!(found.contains(error), "{name}: {found}");
    }
    for short in [0, 100, 510] {
        assert!(Vhd.head(&mut &front(512, |_| ())[..short]).is_err());
    }
    let mut bad = front(512, |_| ());
    bad[100] ^= 1;
    let error = Vhd.head(&mut &bad[..]).unwrap_err().to_string();
    assert!(error.contains("footer checksum at offset 64"), "{error}");
}

#[test]
fn the_largest_disks_front_is_answered_at_once() {
    let blocks = (2040u64 << 30) / (2 << 20);
    let mut bytes = front(2040 << 30, |h| h.max_entries = blocks as u32);
    bytes.resize(1536 + 4 * blocks as usize, 0xff);
    let began = std::time::Instant::now();
    let head = Vhd.head(&mut &bytes[..]).unwrap();
    let took = began.elapsed();
    assert_eq!(head.file_len, Some(1536 + 4 * blocks + 512));
    assert_eq!(head.bytes.len() as u64, 1536 + 4 * blocks);
    assert!(took.as_millis() < 500, "{took:?}");
}

#[test]
fn the_example_of_the_original_is_2560_bytes_long() {
    // 20 MiB as qemu-img makes them: 11 entries, no block. The original answers 2604.
    let mut bytes = front(11 * (2 << 20), |h| h.max_entries = 11);
    bytes.resize(2048, 0xff);
    assert_eq!(Vhd.head(&mut &bytes[..]).unwrap().file_len, Some(2560));
    assert_eq!(Vhd.head(&mut &bytes[..1580]).unwrap().bytes.len(), 1580);
    for (creator, known) in [(b"qemu", true), (b"win ", false), (b"vpc ", false), (b"tap\0", false)] {
        bytes[28..32].copy_from_slice(creator);
        let mut copy = bytes[..512].to_vec();
        copy[64..68].fill(0);
        let sum = checksum(&copy, [0; 4]).to_be_bytes();
        bytes[64..68].copy_from_slice(&sum);
        assert_eq!(Vhd.head(&mut &bytes[..]).unwrap().file_len.is_some(), known);
    }
}

#[test]
fn a_disk_that_changes_is_never_whole() {
    let file = Arc::new(MemoryStorage::from_bytes(&[1; 4 << 20]));
    let layer = Raw.open(file.clone(), &NoFiles, &OpenOptions::default()).unwrap();
    let disk = image(layer);
    for format in [&Vhd as &dyn Streams, &Raw] {
        let how = CreateOptions { size: 4 << 20, ..Default::default() };
        let mut encoded = format.encode(&disk, &how).unwrap();
        let mut bytes = vec![0; 1 << 20];
        encoded.read_exact(&mut bytes).unwrap();
        file.write_at(0, &[2]).unwrap();
        let error = cowhand_core::Error::io("reading", encoded.read_to_end(&mut bytes).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
        assert!((bytes.len() as u64) < encoded.file_len());
        assert!(encoded.read(&mut [0]).is_err());
    }
}
