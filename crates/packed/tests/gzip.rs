//! gzip, against the programs that everybody has, and against bytes that nobody should have.

#![allow(clippy::unwrap_used, clippy::panic)] // These are tests, helpers included.

mod common;

use common::{Noise, pack, peer, sample, unpack};
use cowhand_core::ErrorKind;
use cowhand_packed::{Gzip, How, Packed, Packing};
use std::io::Read;

const PIECE: usize = 512 << 10;

fn how(level: i32, workers: usize) -> How {
    How { level: Some(level), workers }
}

#[test]
fn everybody_reads_what_is_written() {
    for (seed, len) in [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 17].into_iter().enumerate() {
        let bytes = sample(seed as u64, len);
        let packed = pack(&Gzip, &bytes, how(6, 2));
        assert!(Gzip.probe(&packed));
        // This decoder stops behind the first member.
        let mut found = Vec::new();
        flate2::bufread::GzDecoder::new(packed.as_slice()).read_to_end(&mut found).unwrap();
        assert!(found == bytes, "{len}");
        let (found, error) = unpack(&Gzip, &packed);
        assert!(error.is_none() && found == bytes, "{len}: {error:?}");
        for (program, args) in [("gzip", ["-dcq"]), ("pigz", ["-dcq"])] {
            let Some(theirs) = peer(program, &args, &packed) else { continue };
            assert!(theirs == bytes, "{len} with {program}");
        }
        for level in [1, 6, 9] {
            let one = pack(&Gzip, &bytes, how(level, 1));
            assert!(pack(&Gzip, &bytes, how(level, 3)) == one, "{len} at level {level}");
            let mut read = Vec::new();
            Packed::new(bytes.as_slice(), &Gzip, how(level, 2)).unwrap().read_to_end(&mut read).unwrap();
            assert!(read == one, "{len} at level {level}, read");
        }
    }
    assert!(Gzip.pack(Box::new(std::io::sink()), how(0, 1)).is_err());
    assert!(Gzip.pack(Box::new(std::io::sink()), how(10, 1)).is_err());
}

#[test]
fn what_the_programs_write_is_read() {
    let bytes = sample(1, 3 << 20);
    let mut members = Vec::new();
    for (program, args) in [
        ("gzip", &["-c"][..]),
        ("gzip", &["-c", "-1"]),
        ("gzip", &["-c", "--rsyncable"]),
        ("pigz", &["-c", "-p", "2"]),
        ("pigz", &["-c", "-i", "-p", "2"]),
    ] {
        let Some(packed) = peer(program, args, &bytes) else { continue };
        let (found, error) = unpack(&Gzip, &packed);
        assert!(error.is_none() && found == bytes, "{program} {args:?}: {error:?}");
        members.push(packed);
    }
    let (found, error) = unpack(&Gzip, &members.concat());
    assert!(error.is_none() && found == bytes.repeat(members.len()));
}

#[test]
fn what_follows_is_an_error_but_zeros() {
    let bytes = sample(2, 100_000);
    let packed = pack(&Gzip, &bytes, How::default());
    let with = |behind: &[u8]| unpack(&Gzip, &[&packed, behind].concat());
    for zeros in [1, 511, 300_000] {
        let (found, error) = with(&vec![0; zeros]);
        assert!(error.is_none() && found == bytes, "{error:?}");
    }
    for behind in
        [&b"x"[..], b"\0\0x", b"\x1f\x8b", b"\x1f\x8c----------------", &[&[0; 512][..], &packed].concat()]
    {
        let (found, error) = with(behind);
        assert!(found == bytes && error.is_some());
    }
    assert_eq!(unpack(&Gzip, b"").1.unwrap().kind(), ErrorKind::Changed);
    assert_eq!(unpack(&Gzip, b"something else").1.unwrap().kind(), ErrorKind::Corrupt);
}

#[test]
fn what_is_cut_or_flipped_is_never_silent() {
    let bytes = sample(3, 2 * PIECE);
    let packed = pack(&Gzip, &bytes, how(1, 2));
    let mut noise = Noise::new(3);
    for round in 0..100 {
        let cut = if round < 30 { packed.len() - 1 - round } else { noise.below(packed.len()) };
        let (found, error) = unpack(&Gzip, &packed[..cut]);
        assert!(bytes.starts_with(&found));
        assert_eq!(error.unwrap().kind(), ErrorKind::Changed, "cut at {cut}");
        let mut flipped = packed.clone();
        let at = if round < 8 { packed.len() - 1 - round } else { noise.below(packed.len()) };
        flipped[at] ^= 1 << noise.below(8);
        let (found, error) = unpack(&Gzip, &flipped);
        assert!(error.is_some() || found == bytes, "byte {at}");
        if round < 8 {
            assert_eq!(error.unwrap().kind(), ErrorKind::Corrupt, "byte {at}");
        }
    }
}
