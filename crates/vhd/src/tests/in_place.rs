//! Images that were there, written in place: footers put right, space used again, what is refused, what stays as it was.

use std::sync::Arc;

use cowhand_core::testing::fill;
use cowhand_core::{Erase, ErrorKind, Image, Kind, Layer, Link, MemoryStorage, OpenOptions, Storage};

use super::benches::{Sort, made, parent};
use super::{content, create, open, open_to_write, small};
use crate::find::{CopyState, find};
use crate::footer::Footer;
use crate::geometry::Geometry;

const SIZE: u64 = 64 << 10;

/// 16 blocks of 4 KiB, of which 0, 1 and 15 are in the file.
fn image() -> (Vec<u8>, Vec<u8>) {
    let file = Arc::new(MemoryStorage::new());
    let layer = small(file.clone(), SIZE, 4096, true).unwrap();
    let mut bytes = vec![0; SIZE as usize];
    for block in [15, 0, 1] {
        let piece = &mut bytes[block * 4096..(block + 1) * 4096];
        fill(piece, block as u64 * 4096, 1);
        layer.write(block as u64 * 4096, piece).unwrap();
    }
    layer.close().unwrap();
    (file.to_vec(), bytes)
}

fn storage(bytes: &[u8]) -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::from_bytes(bytes))
}

#[test]
fn both_footers_are_made_right_before_the_first_write() {
    let (good, bytes) = image();
    let end = good.len() - 512;
    let other = Footer { hidden: 1, ..Footer::new(SIZE, Geometry::MAX, Some(512)) }.to_bytes();
    let cases: [(&str, Vec<u8>); 7] = [
        ("a bad copy", [&[&good[..100], &[9]].concat(), &good[101..]].concat()),
        ("another copy", [&other, &good[512..]].concat()),
        ("a bad end", [&good[..end + 100], &[9], &good[end + 101..]].concat()),
        ("no end", good[..end].to_vec()),
        ("an end full of zeros", [&good[..end], &[0; 5 << 9]].concat()),
        ("an end within a sector", [&good[..end], &[0; 100]].concat()),
        ("511 bytes", good[..good.len() - 1].to_vec()),
    ];
    for (name, broken) in cases {
        let file = storage(&broken);
        assert!(content(vec![open(file.clone()).unwrap()]).unwrap() == bytes, "{name}");
        let layer = open_to_write(file.clone()).unwrap();
        layer.flush().unwrap();
        assert!(file.to_vec() == broken, "{name}: nothing was written, and something changed");
        layer.write(5000, &bytes[5000..5001]).unwrap();
        let found = find(file.as_ref()).unwrap();
        assert_eq!(
            (found.end, found.front, found.short),
            (CopyState::Good, CopyState::Good, false),
            "{name}"
        );
        layer.write(8 * 4096, &[0; 512]).unwrap();
        layer.close().unwrap();
        let found = find(file.as_ref()).unwrap();
        assert_eq!(
            (found.end, found.front, found.short),
            (CopyState::Good, CopyState::Good, false),
            "{name}"
        );
        assert!(content(vec![open(file).unwrap()]).unwrap() == bytes, "{name}");
    }
}

#[test]
fn what_stands_over_something_else_is_read_and_not_written() {
    let (good, _) = image();
    for (entry, what) in [
        (8u32, "image at offset 4096: block 15 and block 1 share bytes"),
        (3, "BAT entry at offset 1540: puts block 1 at 1536"),
        (400, "BAT entry at offset 1540: puts block 1 at 204800, past the file's end"),
    ] {
        let mut bytes = good.clone();
        bytes[1540..1544].copy_from_slice(&entry.to_be_bytes());
        let file = storage(&bytes);
        let layer = open_to_write(file.clone()).unwrap();
        let mut block = [0; 4096];
        layer.read(0, &mut block).unwrap();
        assert!(block[..] == good[0x2e00 + 512..][..4096] || block != [0; 4096]);
        for _ in 0..2 {
            let error = layer.write(0, &[1; 512]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains(what), "{error}");
            assert!(error.advice().unwrap().contains("cowhand check"), "{error}");
        }
        layer.erase(0, 4096, Erase::Free).unwrap_err();
        layer.close().unwrap();
        assert!(file.to_vec() == bytes);
    }
}

/// Where the block stands, by the table in the file.
fn entry(file: &MemoryStorage, block: u64) -> u32 {
    let mut entry = [0; 4];
    file.read_at(1536 + 4 * block, &mut entry).unwrap();
    u32::from_be_bytes(entry)
}

#[test]
fn freed_places_are_used_again_when_that_is_durable() {
    let (good, mut bytes) = image();
    let file = storage(&good);
    let (one, fifteen) = (entry(&file, 1), entry(&file, 15));
    let layer = open_to_write(file.clone()).unwrap();
    assert_eq!(layer.erase(15 * 4096, 4096, Erase::Free).unwrap(), 4096);
    assert_eq!(layer.extent(15 * 4096, 4096).unwrap().kind, Kind::Hole);
    bytes[15 * 4096..].fill(0);
    // Not before: a power cut would show the one's bytes in the other.
    layer.write(5 * 4096 + 600, &[7; 100]).unwrap();
    layer.flush().unwrap();
    assert_ne!(entry(&file, 5), fifteen);
    assert_eq!(entry(&file, 15), u32::MAX);
    layer.write(6 * 4096 + 600, &[8; 100]).unwrap();
    layer.flush().unwrap();
    assert_eq!(entry(&file, 6), fifteen);
    bytes[5 * 4096 + 600..][..100].fill(7);
    bytes[6 * 4096 + 600..][..100].fill(8);
    assert!(content(vec![layer.clone()]).unwrap() == bytes);
    // A file whose end is free ends before.
    assert!(entry(&file, 5) > one);
    layer.erase(5 * 4096, 4096, Erase::Free).unwrap();
    layer.close().unwrap();
    bytes[5 * 4096..6 * 4096].fill(0);
    assert_eq!(file.to_vec().len(), good.len());
    assert!(content(vec![open(file.clone()).unwrap()]).unwrap() == bytes);
    // A hole that is found when it is opened is filled, too, and shows nothing of what it held.
    let layer = open_to_write(file.clone()).unwrap();
    layer.erase(0, 4096, Erase::Free).unwrap();
    layer.close().unwrap();
    let place = u64::from(entry(&storage(&good), 0)) * 512;
    file.write_at(place, &[0x77; 4608]).unwrap();
    let layer = open_to_write(file.clone()).unwrap();
    layer.write(9 * 4096 + 5, &[9]).unwrap();
    layer.close().unwrap();
    assert_eq!(u64::from(entry(&file, 9)) * 512, place);
    bytes[..4096].fill(0);
    bytes[9 * 4096 + 5] = 9;
    assert!(content(vec![open(file.clone()).unwrap()]).unwrap() == bytes);
}

#[test]
fn the_file_ends_behind_its_last_block() {
    // As Windows leaves it: 3584 bytes between the last block and the footer.
    let (good, mut bytes) = image();
    let end = good.len() - 512;
    let gap = [&good[..end], &[0xee; 3584], &good[end..]].concat();
    let file = storage(&gap);
    let layer = open_to_write(file.clone()).unwrap();
    layer.write(4096, &[3; 4096]).unwrap();
    bytes[4096..8192].fill(3);
    layer.close().unwrap();
    assert_eq!(file.to_vec().len(), gap.len());
    let layer = open_to_write(file.clone()).unwrap();
    for block in [7, 8] {
        layer.write(block * 4096 + 1000, &[4]).unwrap();
        bytes[block as usize * 4096 + 1000] = 4;
    }
    layer.close().unwrap();
    let place = u64::from(entry(&file, 8)) * 512;
    assert_eq!((place + 512) % 4096, 0);
    assert_eq!(file.to_vec().len() as u64, place + 512 + 4096 + 512);
    assert!(content(vec![open(file).unwrap()]).unwrap() == bytes);
}

/// A child's disk over a raw parent.
fn over(child: Arc<dyn Layer>, parent: Arc<dyn Layer>) -> Image {
    let link = |layer| Link { layer, name: "test".to_owned(), format: "vpc" };
    Image::new(vec![link(child), link(parent)]).unwrap()
}

#[test]
fn a_child_has_the_bits_of_what_was_written() {
    for sort in [Sort::Child, Sort::Lsb] {
        let file = Arc::new(MemoryStorage::new());
        let disk = over(made(file.clone(), sort, SIZE, 8192).unwrap(), parent(SIZE));
        disk.write(8192 + 512 * 9 + 100, &[1; 500]).unwrap();
        disk.flush().unwrap();
        let at = u64::from(entry(&file, 1)) * 512;
        let mut bitmap = [0; 512];
        file.read_at(at, &mut bitmap).unwrap();
        assert_eq!(bitmap[..3], if sort == Sort::Lsb { [0, 0b110, 0] } else { [0, 0b0110_0000, 0] });
        disk.erase(8192, 512 * 4, Erase::Zero).unwrap();
        disk.erase(8192 + 512 * 9, 512, Erase::Reveal).unwrap();
        disk.flush().unwrap();
        file.read_at(at, &mut bitmap).unwrap();
        assert_eq!(bitmap[..3], if sort == Sort::Lsb { [0xf, 0b100, 0] } else { [0xf0, 0b0010_0000, 0] });
        // With no bit left the block is gone.
        disk.erase(8192, 8192, Erase::Reveal).unwrap();
        disk.close().unwrap();
        assert_eq!(entry(&file, 1), u32::MAX);
        assert_eq!(file.to_vec().len(), 2048 + 512);
    }
}

#[test]
fn blocks_of_256_mib_and_tables_of_many() {
    let file = Arc::new(MemoryStorage::new());
    let layer = create(file.clone(), 1 << 31, &[("block_size", "256M"), ("force_size", "on")]).unwrap();
    layer.close().unwrap();
    let layer = open_to_write(file.clone()).unwrap();
    layer.write((256 << 20) - 5, &[1; 10]).unwrap();
    layer.close().unwrap();
    let layer = open(file.clone()).unwrap();
    let mut bytes = [0; 12];
    layer.read((256 << 20) - 6, &mut bytes[..6]).unwrap();
    layer.read(256 << 20, &mut bytes[6..]).unwrap();
    assert_eq!(bytes, [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
    assert!(file.physical_size().unwrap() < 1 << 20);
    // Emptied, it is as long as when it was made.
    let layer = open_to_write(file.clone()).unwrap();
    assert_eq!(layer.erase(0, 1 << 31, Erase::Free).unwrap(), 1 << 31);
    layer.close().unwrap();
    assert_eq!(file.len().unwrap(), 1536 + 512 + 512);
    // Hiding all of a large parent is done in bounded pieces.
    let file = Arc::new(MemoryStorage::new());
    let child = made(file, Sort::Child, 96 << 20, 4096).unwrap();
    let done = child.erase(0, 96 << 20, Erase::Zero).unwrap();
    assert!((1 << 20..96 << 20).contains(&done), "{done}");
}

#[test]
fn a_batmap_never_lies() {
    let file = Arc::new(MemoryStorage::new());
    let layer = create(file.clone(), 8 << 20, &[("creator", "tap"), ("block_size", "512k")]).unwrap();
    layer.write(0, &vec![1; 8 << 20]).unwrap();
    layer.close().unwrap();
    // As XenServer leaves it: all 16 blocks are full, and there is a hash of a key.
    let mut bytes = file.to_vec();
    assert_eq!(bytes[2048..2056], *b"tdbatmap");
    bytes[2048 + 28..2048 + 94].fill(1);
    bytes[2560..2562].fill(0xff);
    bytes[2048 + 24..2048 + 28].copy_from_slice(&(!(2 * 0xffu32)).to_be_bytes());
    let file = storage(&bytes);
    let layer = open_to_write(file.clone()).unwrap();
    layer.write(100, &[2]).unwrap();
    layer.erase(512 << 10, 512 << 10, Erase::Zero).unwrap();
    layer.flush().unwrap();
    assert!(file.to_vec()[2048..3072] == bytes[2048..3072]);
    layer.erase(2 * (512 << 10), 2 * (512 << 10), Erase::Free).unwrap();
    layer.close().unwrap();
    bytes[2560] = 0b1100_1111;
    bytes[2048 + 24..2048 + 28].copy_from_slice(&(!(0xcf + 0xffu32)).to_be_bytes());
    assert!(file.to_vec()[2048..3072] == bytes[2048..3072]);
    // A map that does not match its header is emptied.
    file.write_at(2048 + 24, &[1]).unwrap();
    let layer = open_to_write(file.clone()).unwrap();
    layer.write(100, &[3]).unwrap();
    layer.close().unwrap();
    bytes[2560..2562].fill(0);
    bytes[2048 + 24..2048 + 28].fill(0xff);
    assert!(file.to_vec()[2048..3072] == bytes[2048..3072]);
}

#[test]
fn blocks_are_moved_and_heads_rewritten() {
    let (good, bytes) = image();
    let file = storage(&good);
    let dynamic = |file: Arc<MemoryStorage>| {
        let found = find(file.as_ref()).unwrap();
        crate::dynamic::Dynamic::open(
            file,
            found,
            SIZE,
            &OpenOptions { writable: true, ..OpenOptions::default() },
        )
        .unwrap()
    };
    let layer = dynamic(file.clone());
    layer.erase(15 * 4096, 4096, Erase::Free).unwrap();
    let alone = layer.alone().unwrap();
    let last = u64::from(entry(&file, 1)) * 512;
    assert!(layer.move_block(&alone, 1, last).unwrap());
    assert!(!layer.move_block(&alone, 0, 0).unwrap());
    layer.rewrite_footers(&alone, |footer| footer.hidden = 1).unwrap();
    layer.rewrite_header(&alone, |header| header.parent_timestamp = 5).unwrap();
    drop(alone);
    layer.close().unwrap();
    assert_eq!(file.to_vec().len(), good.len() - 8192);
    let again = dynamic(file.clone());
    assert_eq!((again.state().footer.hidden, again.state().header.parent_timestamp), (1, 5));
    let mut bytes = bytes;
    bytes[15 * 4096..].fill(0);
    assert!(content(vec![Arc::new(again)]).unwrap() == bytes);
}
