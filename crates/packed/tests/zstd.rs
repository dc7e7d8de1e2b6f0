//! zstd, against the programs that everybody has, and against bytes that nobody should have.

#![allow(clippy::unwrap_used, clippy::panic)] // These are tests, helpers included.

mod common;

use std::io::Read;

use common::{Noise, pack, peer, sample, unpack};
use cowhand_core::ErrorKind;
use cowhand_packed::{How, Packing, Zstd};

const MIB: usize = 1 << 20;

fn how(level: i32, workers: usize) -> How {
    How { level: Some(level), workers }
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[test]
fn the_zstd_program_reads_what_is_written() {
    for (seed, len) in [0, 1, 17, MIB - 1, MIB, MIB + 1, 5 * MIB + 4711].into_iter().enumerate() {
        let bytes = sample(seed as u64, len);
        let packed = pack(&Zstd, &bytes, how(1, 2));
        let (found, error) = unpack(&Zstd, &packed);
        assert!(error.is_none() && found == bytes, "{len}: {error:?}");
        let Some(theirs) = peer("zstd", &["-dcq"], &packed) else { return };
        assert!(theirs == bytes, "{len}");
        let file = tempfile::Builder::new().suffix(".zst").tempfile().unwrap();
        std::fs::write(file.path(), &packed).unwrap();
        let path = file.path().to_str().unwrap();
        peer("zstd", &["-tq", path], b"");
        let list = String::from_utf8(peer("zstd", &["-lv", path], b"").unwrap()).unwrap();
        assert!(list.contains("XXH64"), "{list}");
        assert!(list.contains(&format!("({len} B)")), "{list}");
    }
}

#[test]
fn what_the_programs_write_is_read() {
    let bytes = sample(1, 8 * MIB + 5);
    let all: [(&str, &[&str]); 9] = [
        ("zstd", &["-cq"]),
        ("zstd", &["-cq", "--no-check", "-1"]),
        ("zstd", &["-cq", "-T2", "--rsyncable"]),
        ("zstd", &["-cq", "--fast=5"]),
        ("zstd", &["-cq", "--long=27", "-3"]),
        ("zstd", &["-cq", "--stream-size=8388613"]),
        ("pzstd", &["-cq", "-p", "2"]),
        ("pzstd", &["-cq", "-p", "2", "-1"]),
        ("zstd", &["-cq", "-15", "--zstd=wlog=15"]),
    ];
    for (program, args) in all {
        let Some(packed) = peer(program, args, &bytes) else { continue };
        assert!(Zstd.probe(&packed[..16]));
        let (found, error) = unpack(&Zstd, &packed);
        assert!(error.is_none() && found == bytes, "{program} {args:?}: {error:?}");
    }
    let Some(packed) = peer("zstd", &["-cq", "--long=28", "--stream-size=8388613", "-1"], &bytes) else {
        return;
    };
    let (found, error) = unpack(&Zstd, &packed);
    // A stream of known size needs no larger window.
    assert!(error.is_none() && found == bytes);
    let packed = peer("zstd", &["-cq", "--long=28", "-1"], &bytes).unwrap();
    let (found, error) = unpack(&Zstd, &packed);
    let error = error.unwrap();
    assert_eq!((found.len(), error.kind()), (0, ErrorKind::Unsupported));
    assert!(error.to_string().contains("256 MiB"), "{error}");
}

#[test]
fn the_bytes_depend_on_the_level_alone() {
    let bytes = sample(2, 9 * MIB + 33);
    for level in [1, 3, 7] {
        let one = pack(&Zstd, &bytes, how(level, 1));
        for workers in [2, 3, 8] {
            assert_eq!(
                crc(&pack(&Zstd, &bytes, how(level, workers))),
                crc(&one),
                "level {level} on {workers}"
            );
        }
    }
    assert!(Zstd.pack(Box::new(std::io::sink()), how(0, 1)).is_err());
    assert!(Zstd.pack(Box::new(std::io::sink()), how(20, 1)).is_err());
}

/// Several frames, small ones and large ones, with and without sizes and checksums, and others between.
fn foreign(bytes: &[u8]) -> Vec<u8> {
    use zstd::stream::Encoder;
    let mut packed = Vec::new();
    let mut noise = Noise::new(bytes.len() as u64);
    let mut at = 0;
    while at < bytes.len() {
        let end = bytes.len().min(at + noise.below(3 * MIB));
        let mut encoder = Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(noise.below(4) > 0).unwrap();
        if noise.below(2) == 0 {
            encoder.set_pledged_src_size(Some((end - at) as u64)).unwrap();
        }
        std::io::Write::write_all(&mut encoder, &bytes[at..end]).unwrap();
        packed.extend(encoder.finish().unwrap());
        if noise.below(2) == 0 {
            packed.extend([0x53, 0x2a, 0x4d, 0x18, 5, 0, 0, 0, 1, 2, 3, 4, 5]);
        }
        at = end;
    }
    packed
}

#[test]
fn frames_of_all_kinds_follow_each_other() {
    for seed in 0..4 {
        let bytes = sample(seed, 12 * MIB + seed as usize);
        let packed = foreign(&bytes);
        let (found, error) = unpack(&Zstd, &packed);
        assert!(error.is_none() && found == bytes, "{error:?}");
        // However few bytes come and go at a time.
        let mut noise = Noise::new(seed);
        let mut slow = Zstd.unpack(Box::new(Few(&packed, Noise::new(seed))));
        let mut found = Vec::<u8>::new();
        loop {
            let mut buf = vec![0; 1 + noise.below(70_000)];
            match slow.read(&mut buf).unwrap() {
                0 => break,
                n => found.extend(&buf[..n]),
            }
        }
        assert!(found == bytes);
    }
}

/// Gives few bytes at a time.
struct Few<'a>(&'a [u8], Noise);

impl Read for Few<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = (1 + self.1.below(9000)).min(buf.len());
        self.0.read(&mut buf[..n])
    }
}

#[test]
fn what_is_cut_gives_what_is_there_and_fails() {
    let bytes = sample(3, 3 * MIB);
    let ours = pack(&Zstd, &bytes, how(1, 2));
    for packed in [ours, foreign(&bytes)] {
        let mut noise = Noise::new(4);
        let cuts: Vec<usize> = (0..12)
            .chain((0..150).map(|_| noise.below(packed.len())))
            .chain(packed.len() - 40..packed.len())
            .collect();
        for cut in cuts {
            let (found, error) = unpack(&Zstd, &packed[..cut]);
            assert!(bytes.starts_with(&found), "cut at {cut}");
            // Between frames nobody can tell; and the table of them is no frame that is needed.
            match error {
                None => assert!(zstd::stream::decode_all(&packed[..cut]).unwrap() == found, "cut at {cut}"),
                Some(error) => assert_eq!(error.kind(), ErrorKind::Changed, "cut at {cut}: {error}"),
            }
            if cut > packed.len() / 2 {
                assert!(found.len() > MIB, "cut at {cut}: {}", found.len());
            }
        }
    }
}

#[test]
fn a_flipped_bit_is_never_silent() {
    let bytes = sample(5, 2 * MIB + 100);
    let packed = pack(&Zstd, &bytes, how(1, 2));
    let mut noise = Noise::new(6);
    for round in 0..200 {
        let mut packed = packed.clone();
        let at = if round < 60 { round % packed.len() } else { noise.below(packed.len()) };
        packed[at] ^= 1 << noise.below(8);
        let (found, error) = unpack(&Zstd, &packed);
        if error.is_none() {
            assert!(found == bytes, "byte {at}");
        } else {
            // Nothing of a frame goes out before all of it was looked at.
            assert!(bytes.starts_with(&found), "byte {at}");
        }
    }
    // One large frame: what is wrong is told, if late.
    let packed = zstd::stream::encode_all(bytes.as_slice(), 1).unwrap();
    let mut with_sum = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    with_sum.include_checksum(true).unwrap();
    std::io::Write::write_all(&mut with_sum, &bytes).unwrap();
    let with_sum = with_sum.finish().unwrap();
    assert_eq!(with_sum.len(), packed.len() + 4);
    for round in 0..200 {
        let mut packed = with_sum.clone();
        let at = if round < 4 { packed.len() - 1 - round } else { noise.below(packed.len()) };
        packed[at] ^= 1 << noise.below(8);
        let (found, error) = unpack(&Zstd, &packed);
        assert!(error.is_some() || found == bytes, "byte {at}");
        if round < 4 {
            assert_eq!(error.unwrap().kind(), ErrorKind::Corrupt);
        }
    }
}

#[test]
fn what_follows_is_an_error() {
    let bytes = sample(7, MIB);
    let packed = pack(&Zstd, &bytes, How::default());
    for behind in [&b"x"[..], b"some text that is no frame", &[0; 512]] {
        let mut packed = packed.clone();
        packed.extend(behind);
        let (found, error) = unpack(&Zstd, &packed);
        assert!(found == bytes && error.is_some());
    }
    assert_eq!(unpack(&Zstd, b"").1.unwrap().kind(), ErrorKind::Changed);
    assert_eq!(unpack(&Zstd, b"something else").1.unwrap().kind(), ErrorKind::Corrupt);
}

/// What comes out of `packed`, piece by piece, and how often something was wrong in between.
fn rescued(packed: &[u8]) -> (Vec<Vec<u8>>, usize) {
    let mut unpacked = Zstd.unpack(Box::new(packed));
    let (mut pieces, mut errors) = (vec![Vec::new()], 0);
    let mut failed = false;
    let mut buf = vec![0; 100_000];
    loop {
        match unpacked.read(&mut buf) {
            Ok(0) => return (pieces, errors),
            Ok(n) => {
                failed = false;
                pieces.last_mut().unwrap().extend(&buf[..n]);
            }
            Err(_) if failed => return (pieces, errors),
            Err(_) => {
                failed = true;
                errors += 1;
                pieces.push(Vec::new());
            }
        }
    }
}

#[test]
fn who_reads_on_gets_what_is_behind_the_damage() {
    let bytes = sample(13, 6 * MIB);
    let packed = pack(&Zstd, &bytes, how(1, 2));
    let frames: Vec<Vec<u8>> = bytes.chunks(MIB).map(|part| pack(&Zstd, part, how(1, 1))).collect();
    // Without its own table of 8 bytes for a frame.
    let lens: Vec<usize> = frames.iter().map(|frame| frame.len() - 8 - 8 - 9).collect();
    let begin = |frame: usize| lens[..frame].iter().sum::<usize>();
    let mut noise = Noise::new(14);
    for round in 0..60 {
        let frame = noise.below(6);
        let mut broken = packed.clone();
        // A bit, a sector of zeros, or bytes that are gone, within one frame.
        let within = noise.below(lens[frame] - 600);
        let at = begin(frame) + if round < 20 { round } else { within };
        match round % 3 {
            0 => broken[at] ^= 1 << noise.below(8),
            1 => broken[at..at + 512].fill(0),
            _ => drop(broken.drain(at..at + 1 + noise.below(500))),
        }
        let (pieces, errors) = rescued(&broken);
        if pieces.concat() == bytes {
            continue;
        }
        let (before, behind) = (&bytes[..frame * MIB], &bytes[(frame + 1) * MIB..]);
        assert!(errors >= 1, "frame {frame}, byte {at}");
        // Where the last frame seems to go on behind the end it looks as if the file were cut, and what is there of it comes.
        let as_far = if frame == 5 { &bytes } else { before };
        let came = &pieces[0];
        assert!(came.starts_with(before) && as_far.starts_with(came), "frame {frame}, byte {at}");
        let found = pieces[1..].concat();
        assert!(found == behind, "frame {frame}, byte {at}: {} of {}", found.len(), behind.len());
    }
    // Several in a row are one gap.
    let mut broken = packed;
    for frame in [1, 2, 3] {
        broken[begin(frame) + lens[frame] / 2] ^= 1;
    }
    let (pieces, errors) = rescued(&broken);
    assert!(errors == 1 && pieces[0] == bytes[..MIB] && pieces[1] == bytes[4 * MIB..]);
}
