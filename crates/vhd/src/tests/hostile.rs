//! Damaged and hostile images: each rule has a file that breaks it, an error that names field and offset, and no panic.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cowhand_core::testing::Rng;
use cowhand_core::{
    CheckOptions, Checker, ErrorKind, Extent, Format, Kind, Layer, MemoryStorage, NoFiles, OpenOptions,
    Options, Probe, Quiet, Result, Storage,
};

use super::{content, create, open, open_bytes, pairs, sign, small};
use crate::Vhd;

/// 16 blocks of 4 KiB, of which 0, 1 and 15 are in the file: table at 1536, blocks behind it.
fn image() -> Vec<u8> {
    let file = Arc::new(MemoryStorage::new());
    let layer = small(file.clone(), 64 << 10, 4096, true).unwrap();
    for block in [15, 0, 1] {
        layer.write(block * 4096, &[block as u8 + 1; 4096]).unwrap();
    }
    layer.close().unwrap();
    file.to_vec()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn each_rule_at_open() {
    let footers = |at: usize, value: &'static [u8]| {
        move |bytes: &mut Vec<u8>| {
            let end = bytes.len() - 512;
            put(bytes, at, value);
            put(bytes, end + at, value);
            sign(bytes);
        }
    };
    let header = |at: usize, value: &'static [u8]| {
        move |bytes: &mut Vec<u8>| {
            put(bytes, 512 + at, value);
            sign(bytes);
        }
    };
    let plain = |at: usize, value: &'static [u8]| move |bytes: &mut Vec<u8>| put(bytes, at, value);
    type Case<'a> = (Box<dyn Fn(&mut Vec<u8>) + 'a>, &'static str);
    // The trailing footer stands at 24576 in what `image` makes, and is the one that counts.
    let cases: [Case<'_>; 19] = [
        (Box::new(plain(512 + 100, &[9])), "dynamic header checksum at offset 548: is 0x"),
        (Box::new(plain(512, b"cxsparsE")), "dynamic header cookie at offset 512"),
        (Box::new(header(24, &[0, 2, 0, 0])), "dynamic header version at offset 536: version 2.0"),
        (Box::new(header(32, &[0, 0, 1, 0])), "block size at offset 544: is 256 bytes"),
        (Box::new(header(32, &[0, 0, 0, 0])), "block size at offset 544: is 0 bytes"),
        (Box::new(header(32, &[0, 0, 0x30, 0])), "block size at offset 544: is 12288 bytes"),
        (Box::new(header(32, &[0x20, 0, 0, 0])), "block size at offset 544: is 536870912 bytes"),
        (
            Box::new(header(28, &[0, 0, 0, 15])),
            "max table entries at offset 540: 15 blocks of 4096 bytes do not cover",
        ),
        (
            Box::new(header(28, &[0xff; 4])),
            "table offset at offset 528: puts 4294967295 entries at 1536, past",
        ),
        (
            Box::new(header(16, &[0, 0, 0, 1, 0, 0, 0, 0])),
            "table offset at offset 528: puts 16 entries at 4294967296, past",
        ),
        (Box::new(header(16, &[0xff; 8])), "table offset at offset 528"),
        (Box::new(header(16, &[0; 8])), "table offset at offset 528: puts the table at 0, over"),
        (Box::new(header(22, &[3, 0])), "table offset at offset 528: puts the table at 768, over"),
        (Box::new(footers(16, &[0xff; 8])), "footer data offset at offset 24592"),
        (
            Box::new(footers(16, &[0, 0, 0, 0, 0, 1, 0, 0])),
            "footer data offset at offset 24592: puts the dynamic header at 65536",
        ),
        (Box::new(footers(16, &[0; 8])), "footer data offset at offset 24592: puts the dynamic header at 0"),
        (
            Box::new(footers(48, &[0, 0, 1, 0xfe, 0, 0, 2, 0])),
            "disk size at offset 24624: is 2190433321472 bytes",
        ),
        (
            Box::new(footers(54, &[1, 1])),
            "footer current size at offset 24624: is 65793 bytes, which is not a multiple",
        ),
        (Box::new(footers(12, &[0, 2])), "footer version at offset 24588: version 2.0"),
    ];
    let good = image();
    assert_eq!(good.len(), 24576 + 512);
    for (break_it, expected) in cases {
        let mut bytes = good.clone();
        break_it(&mut bytes);
        assert_eq!(Vhd.probe(&[], &MemoryStorage::from_bytes(&bytes)), Probe::Sure);
        let error = open_bytes(&bytes).unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{error:?}");
    }
}

#[test]
fn a_table_entry_is_judged_when_it_is_used() {
    let good = image();
    let expected = content(vec![open_bytes(&good).unwrap()]).unwrap();
    assert_eq!((expected[4096], expected[2 * 4096], expected[15 * 4096]), (2, 0, 16));
    for (sector, what) in [
        (0u32, "puts block 1 at 0, over the footer's copy, the header or the table"),
        (1, "puts block 1 at 512, over"),
        (3, "puts block 1 at 1536, over"),
        (48, "puts block 1 at 24576..29184, and the blocks' room ends at 24576"),
        (49, "puts block 1 at 25088, past the file's end at 25088"),
        (40, "puts block 1 at 20480..25088, and the blocks' room ends at 24576"),
        (0xffff_fffe, "past the file's end"),
    ] {
        let mut bytes = good.clone();
        put(&mut bytes, 1540, &sector.to_be_bytes());
        let layer = open_bytes(&bytes).unwrap();
        let mut buf = [0; 4096];
        layer.read(0, &mut buf).unwrap();
        assert_eq!(buf, [1; 4096]);
        for error in [layer.read(4096, &mut buf).unwrap_err(), layer.extent(5000, 10).unwrap_err()] {
            assert!(error.to_string().contains(what), "{what}: {error}");
            assert!(error.to_string().starts_with("BAT entry at offset 1540: "), "{error}");
        }
        assert_eq!(buf, [1; 4096], "an error leaves the buffer alone");
    }
}

#[test]
fn a_file_that_was_cut_is_an_error_where_blocks_are_missing() {
    // Both footers would go with the blocks; the copy at the front is left.
    let mut bytes = image();
    bytes.truncate(12288);
    let layer = open_bytes(&bytes).unwrap();
    let mut buf = [0; 4096];
    assert_eq!(layer.read(15 * 4096, &mut buf).unwrap(), Extent::data(4096, Some(4096)));
    assert!(layer.read(4096, &mut buf).unwrap_err().to_string().contains("past the file's end at 12288"));
}

#[test]
fn the_last_block_may_end_with_the_disk() {
    // A disk of 3.5 blocks of 4 KiB whose last block ends where the disk does.
    let file = Arc::new(MemoryStorage::new());
    let layer = small(file.clone(), 7 * 2048, 4096, true).unwrap();
    layer.write(3 * 4096, &[7; 2048]).unwrap();
    layer.close().unwrap();
    let mut bytes = file.to_vec();
    let end = bytes.len() - 512;
    let footer = bytes.split_off(end);
    bytes.truncate(end - 2048);
    bytes.extend_from_slice(&footer);
    assert_eq!(content(vec![open_bytes(&bytes).unwrap()]).unwrap()[3 * 4096..], [7; 2048]);
    bytes.drain(end - 2048 - 512..end - 2048);
    assert!(content(vec![open_bytes(&bytes).unwrap()]).is_err());
}

/// The image as a differencing disk with this parent locator: code, length, offset.
fn with_locator(code: &[u8; 4], len: u32, at: u64) -> Result<Arc<dyn Layer>> {
    let mut bytes = image();
    let end = bytes.len() - 512;
    bytes[63] = 4;
    bytes[end + 63] = 4;
    put(&mut bytes, 512 + 576 + 24, code);
    put(&mut bytes, 512 + 576 + 24 + 4, &[0, 0, 2, 0]);
    put(&mut bytes, 512 + 576 + 24 + 8, &len.to_be_bytes());
    put(&mut bytes, 512 + 576 + 24 + 16, &at.to_be_bytes());
    sign(&mut bytes);
    open_bytes(&bytes)
}

#[test]
fn parent_locators_stay_within_the_file() {
    for (len, at, expected) in [
        (20, 1 << 40, "parent locator 2 at offset 1112: has its 20 bytes at 1099511627776, past"),
        (20, u64::MAX, "parent locator 2 at offset 1112"),
        (65537, 0, "parent locator 2 at offset 1112: is 65537 bytes long"),
    ] {
        let error = with_locator(b"W2ku", len, at).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // What holds no path that this code reads is left alone.
    assert!(with_locator(b"Mac ", 20, u64::MAX).is_ok());
    assert!(with_locator(b"W2ru", 0, u64::MAX).is_ok());
}

#[test]
fn sizes_by_rule() {
    let open_by = |bytes: &[u8], rule: &str| {
        let options = Options::check(Vhd.open_options(), &pairs(&[("force_size_calc", rule)])).unwrap();
        let file = Arc::new(MemoryStorage::from_bytes(bytes));
        Vhd.open(file, &NoFiles, &OpenOptions { options, ..Default::default() })
    };
    let mut bytes = image();
    let end = bytes.len() - 512;
    // 1*4*17 sectors by geometry.
    for footer in [0, end] {
        put(&mut bytes, footer + 28, b"vpc ");
        put(&mut bytes, footer + 56, &[0, 1, 4, 17]);
    }
    sign(&mut bytes);
    for (rule, size) in [("auto", 34816), ("chs", 34816), ("current_size", 65536)] {
        assert_eq!(open_by(&bytes, rule).unwrap().size(), size, "{rule}");
    }
    // A fixed disk whose geometry says more than the file holds.
    let file = Arc::new(MemoryStorage::new());
    create(file.clone(), 1 << 20, &[("subformat", "fixed"), ("force_size", "on")]).unwrap().close().unwrap();
    let fixed = file.to_vec();
    assert_eq!(open_by(&fixed, "auto").unwrap().size(), 1 << 20);
    // The largest geometry says nothing.
    assert_eq!(open_by(&fixed, "chs").unwrap().size(), 1 << 20);
}

#[test]
fn an_empty_disk_is_one_extent_and_costs_little() {
    let file = Arc::new(MemoryStorage::new());
    let size = 2040u64 << 30;
    let layer = create(file.clone(), size, &[("block_size", "512k")]).unwrap();
    layer.close().unwrap();
    let layer = open(file).unwrap();
    let since = Instant::now();
    assert_eq!(layer.extent(0, u64::MAX).unwrap(), Extent::hole(size));
    assert_eq!(layer.extent(size - 1, 1).unwrap(), Extent::hole(1));
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
}

/// Reads all of a disk that is not large, the way a verb does.
fn walk(layer: &dyn Layer) {
    let mut buf = vec![0; 65536];
    let mut at = 0;
    for _ in 0..1000 {
        if at >= layer.size() {
            break;
        }
        match layer.extent(at, u64::MAX) {
            Ok(found) => {
                assert!(found.len > 0 && found.len <= layer.size() - at);
                let len = found.len.min(65536);
                if let Ok(read) = layer.read(at, &mut buf[..len as usize]) {
                    assert!(read.len > 0 && read.len <= len && read.kind == found.kind);
                }
                at += found.len;
            }
            Err(error) => {
                assert!(!error.to_string().contains('\n'), "{error}");
                at += 4096;
            }
        }
    }
    assert!(!layer.details().specific.is_empty());
    layer.parent();
}

#[test]
fn damage_anywhere_ends_in_an_error_or_in_data() {
    let good = image();
    let mut rng = Rng::new(1);
    let interesting = [0, 1, 0x7f, 0x80, 0xff];
    let mut opened = 0;
    for round in 0..4000 {
        let mut bytes = good.clone();
        for _ in 0..1 + rng.below(4) {
            // Half of the damage is where the structures are.
            let at = if rng.chance(1, 2) { rng.below(1600) } else { rng.below(bytes.len() as u64) } as usize;
            bytes[at] = if rng.chance(1, 2) { *rng.pick(&interesting) } else { rng.below(256) as u8 };
        }
        if rng.chance(1, 8) {
            bytes[63] = 4;
            let end = bytes.len() - 512;
            bytes[end + 63] = 4;
        }
        // Behind good checksums the fields themselves are reached.
        if rng.chance(3, 4) {
            sign(&mut bytes);
        }
        if rng.chance(1, 8) {
            let len = rng.below(bytes.len() as u64) as usize;
            bytes.truncate(len);
        }
        let file = MemoryStorage::from_bytes(&bytes);
        Vhd.probe(&[], &file);
        if let Ok(layer) = open(Arc::new(file)) {
            opened += 1;
            walk(layer.as_ref());
        }
        assert!(round < 100 || opened > 10);
    }
}

#[test]
fn what_cannot_be_made_is_refused_by_name() {
    let error = |size: u64, options: &[(&str, &str)]| {
        create(Arc::new(MemoryStorage::new()), size, options).unwrap_err().to_string()
    };
    for (size, options, expected) in [
        ((2040u64 << 30) + 512, &[][..], "a dynamic VHD has at most 2040 GiB"),
        (1 << 20, &[("block_size", "256k")], "block_size=262144"),
        (1 << 20, &[("block_size", "3M")], "block_size=3145728"),
        (1 << 20, &[("block_size", "512M")], "block_size=536870912"),
        (1 << 20, &[("subformat", "fixed"), ("block_size", "2M")], "a fixed VHD has no blocks"),
        (1 << 20, &[("preallocation", "full")], "preallocation of a dynamic VHD"),
        (1 << 20, &[("size_align", "100")], "size_align=100"),
        (u64::MAX, &[("subformat", "fixed")], "too large"),
    ] {
        let said = error(size, options);
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let full = Arc::new(MemoryStorage::from_bytes(&[0]));
    assert!(
        create(full, 512, &[("subformat", "fixed")])
            .unwrap_err()
            .to_string()
            .contains("made in an empty file")
    );
}

#[test]
fn a_device_full_of_noise_becomes_an_empty_disk() {
    for options in [&[][..], &[("creator", "tap")][..], &[("creator", "tap"), ("max_size", "2T")][..]] {
        let file = Arc::new(MemoryStorage::from_bytes(&vec![0xa5; 6 << 20]));
        create(file.clone(), 8 << 20, options).unwrap().close().unwrap();
        let report = Vhd.check(file.clone(), &NoFiles, &CheckOptions::default(), &Quiet).unwrap();
        assert!(report.is_clean() && report.faults.is_empty(), "{options:?}: {:?}", report.faults);
        let layer = open(file as Arc<dyn Storage>).unwrap();
        assert_eq!(layer.extent(0, 8 << 20).unwrap().kind, Kind::Hole);
    }
}

#[test]
fn what_is_written_past_the_end_or_after_the_end_is_refused() {
    for options in [&[("subformat", "dynamic")], &[("subformat", "fixed")]] {
        let file = Arc::new(MemoryStorage::new());
        let layer = create(file.clone(), 1 << 20, options).unwrap();
        let size = layer.size();
        assert_eq!(layer.write(size - 1, &[1, 2]).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(layer.write(u64::MAX, &[1]).unwrap_err().kind(), ErrorKind::Invalid);
        layer.write(size - 1, &[1]).unwrap();
        layer.close().unwrap();
        let before = file.to_vec();
        assert_eq!(layer.write(0, &[1]).unwrap_err().kind(), ErrorKind::Denied);
        layer.flush().unwrap();
        assert!(file.to_vec() == before);
        let again = open(file as Arc<dyn Storage>).unwrap();
        assert_eq!(again.extent(size - 1, 1).unwrap().kind, Kind::Data);
        assert_eq!(again.identity(), layer.identity());
    }
}
