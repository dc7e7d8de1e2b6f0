//! Images made to do harm: each is refused with an error that says why, and nothing is read past its bounds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::how;
use cowhand_core::{
    Erase, ErrorKind, Format, Kind, Layer, MemoryStorage, NoFiles, OpenOptions, Result, Storage,
};
use cowhand_qcow2::Qcow2;

const CLUSTER: usize = 65536;

/// An image with some data, closed: its bytes.
fn image(size: u64, text: &str) -> Vec<u8> {
    let file = Arc::new(MemoryStorage::new());
    let layer = Qcow2.create(file.clone(), &NoFiles, &how(size, text)).unwrap();
    layer.write(0, &common::pattern(0, 200_000, 1)).unwrap();
    layer.write_compressed(8 * CLUSTER as u64, &common::pattern(0, 2 * CLUSTER, 2)).unwrap();
    layer.close().unwrap();
    file.to_vec()
}

fn open(bytes: &[u8], writable: bool) -> Result<Arc<dyn Layer>> {
    let file = Arc::new(MemoryStorage::from_bytes(bytes));
    Qcow2.open(file, &NoFiles, &OpenOptions { writable, ..OpenOptions::default() })
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn get64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Where the first L2 table stands.
fn l2(bytes: &[u8]) -> usize {
    (get64(bytes, get64(bytes, 40) as usize) & 0x00ff_ffff_ffff_fe00) as usize
}

fn refused(bytes: &[u8], kind: ErrorKind, says: &str) {
    for writable in [false, true] {
        let error = open(bytes, writable).expect_err(says);
        assert_eq!(error.kind(), kind, "{says}: {error}");
        assert!(error.to_string().contains(says), "'{says}' is not in '{error}'");
    }
}

#[test]
fn bad_headers_are_refused_at_open() {
    use ErrorKind::{Corrupt, Denied, Unsupported};
    let good = image(16 << 20, "cluster_size=64k");
    assert!(open(&good, true).is_ok());
    let fields: &[(usize, u32, ErrorKind, &str)] = &[
        (0, 7, Corrupt, "magic"),
        (4, 4, Unsupported, "unknown version 4"),
        (4, 1, Unsupported, "version 1"),
        (20, 8, Corrupt, "cluster_bits"),
        (20, 22, Corrupt, "cluster_bits"),
        (20, u32::MAX, Corrupt, "cluster_bits"),
        (100, 96, Corrupt, "header_length"),
        (100, 109, Corrupt, "header_length"),
        (100, 65544, Corrupt, "header_length"),
        (96, 7, Corrupt, "refcount_order"),
        (32, 1, Denied, "no secret was given"),
        (32, 2, Corrupt, "encryption header"),
        (32, 3, Corrupt, "crypt_method"),
        (36, 0, Corrupt, "do not cover"),
        (36, (4 << 20) + 1, Corrupt, "32 MiB"),
        (36, 4 << 20, Corrupt, "past the end"),
        (56, 0, Corrupt, "no refcount table"),
        (56, 129, Corrupt, "8 MiB"),
        (60, 65537, Corrupt, "nb_snapshots"),
        (60, 1, Corrupt, "snapshot table"),
        (104, 0x0200_0000, Unsupported, "compression type 2"),
        (104, 0x0100_0000, Corrupt, "feature bit"),
    ];
    for (at, value, kind, says) in fields {
        let mut bytes = good.clone();
        put32(&mut bytes, *at, *value);
        refused(&bytes, *kind, says);
    }
    let wide: &[(usize, u64, ErrorKind, &str)] = &[
        (24, 1 << 63, Corrupt, "2^63"),
        (24, u64::MAX, Corrupt, "2^63"),
        (40, 0x30200, Corrupt, "L1 table"),
        (40, 0, Corrupt, "over the header"),
        (40, 1 << 62, Corrupt, "L1 table"),
        (40, u64::MAX - 65535, Corrupt, "L1 table"),
        (48, 0x10001, Corrupt, "refcount table"),
        (48, 1 << 40, Corrupt, "refcount table"),
        (72, 1 << 5, Unsupported, "bit 5"),
        (72, 1 << 63, Unsupported, "bit 63"),
        (72, 1 << 3, Corrupt, "compression_type"),
        (72, 1 << 2, Corrupt, "external data file"),
    ];
    for (at, value, kind, says) in wide {
        let mut bytes = good.clone();
        put64(&mut bytes, *at, *value);
        refused(&bytes, *kind, says);
    }
    // A backing name that is too long, or not in the first cluster.
    for (offset, size, says) in [(600, 1024, "1023"), (65530, 10, "outside"), (1 << 60, 10, "outside")] {
        let mut bytes = good.clone();
        put64(&mut bytes, 8, offset);
        put32(&mut bytes, 16, size);
        refused(&bytes, Corrupt, says);
    }
    // An unknown feature is called by the name that the image gives it.
    let mut bytes = good.clone();
    bytes[72] = 1 << 4;
    bytes[120] = 0;
    bytes[121] = 60;
    bytes[122..127].copy_from_slice(b"magic");
    refused(&bytes, Unsupported, "'magic");
    // An extension that is longer than the cluster.
    let mut bytes = good.clone();
    put32(&mut bytes, 116, 70_000);
    refused(&bytes, Corrupt, "header extension");
    for len in [0, 3, 7, 50, 103] {
        assert!(open(&good[..len], false).is_err());
    }
}

#[test]
fn marks_of_trouble_allow_reading_alone() {
    let good = image(16 << 20, "cluster_size=64k");
    for (bit, says) in [(0, ""), (1, "marked corrupt")] {
        let mut bytes = good.clone();
        put64(&mut bytes, 72, 1 << bit);
        assert!(common::bytes(&open(&bytes, false).unwrap()) == common::bytes(&open(&good, false).unwrap()));
        assert_eq!(open(&bytes, false).unwrap().details().dirty, bit == 0);
        let opened = open(&bytes, true);
        assert_eq!(opened.as_ref().is_err_and(|error| error.to_string().contains(says)), bit == 1);
        assert!(opened.is_err() || !opened.unwrap().details().dirty);
    }
}

#[test]
fn bad_entries_are_errors_and_never_data() {
    let good = image(16 << 20, "cluster_size=64k");
    let table = l2(&good);
    let l1 = get64(&good, 40) as usize;
    let copied = 1u64 << 63;
    let host = get64(&good, table) & !copied;
    let packed = get64(&good, table + 64);
    for (at, value, says) in [
        (l1, copied | 0x40200, "no cluster's start"),
        (l1, copied | (1 << 50), "past the end"),
        (l1, copied | 0x10000, "refcount table"),
        (l1, copied | l1 as u64, "L1 table"),
        (table, copied | (host + 512), "no cluster's start"),
        (table, copied | (good.len() as u64).next_multiple_of(65536), "past the end"),
        (table, copied | (1 << 55), "past the end"),
        (table, copied | 0x10000, "into the refcount table"),
        (table, copied | 0x30000, "into the L1 table"),
        (table + 64, packed + (1 << 40), "past the end"),
        (table + 64, packed + 3, ""),
        (table + 64, 1 << 62 | 5, "into the header"),
    ] {
        let mut bytes = good.clone();
        put64(&mut bytes, at, value);
        let layer = open(&bytes, false).unwrap();
        let guest = if at == table + 64 { 8 * CLUSTER as u64 } else { 0 };
        let mut buf = vec![0x5a; CLUSTER];
        let error = layer.read(guest, &mut buf).expect_err(says);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains(says), "'{says}' is not in '{error}'");
        // Nor is it written to.
        let layer = open(&bytes, true).unwrap();
        assert!(layer.write(guest, &[1; 512]).is_err(), "{says}");
        // Only inflating shows that a compressed cluster is not one; no other cluster is in danger from that.
        assert_eq!(layer.write(12 << 20, &[1; 512]).is_ok(), says.is_empty(), "{says}: written elsewhere");
    }
    // What lies before a bad entry is still read.
    let mut bytes = good.clone();
    put64(&mut bytes, table + 8, copied | (1 << 55));
    let layer = open(&bytes, false).unwrap();
    let mut buf = vec![0; 3 * CLUSTER];
    assert_eq!(layer.read(0, &mut buf).unwrap().len, CLUSTER as u64);
    assert!(layer.read(CLUSTER as u64, &mut buf).is_err());
}

#[test]
fn extended_entries_that_contradict_themselves_are_errors() {
    let good = image(16 << 20, "extended_l2=on");
    let table = l2(&good);
    let mut bytes = good.clone();
    put64(&mut bytes, table + 8, 1 << 32 | 1);
    let layer = open(&bytes, false).unwrap();
    assert_eq!(layer.extent(0, 512).unwrap_err().kind(), ErrorKind::Corrupt);
}

/// Breaks an image.
type Spoil = Box<dyn Fn(&mut Vec<u8>)>;

#[test]
fn writing_is_refused_where_refcounts_do_not_cover_what_is_used() {
    let good = image(16 << 20, "cluster_size=64k");
    let table = l2(&good);
    let copied = 1u64 << 63;
    let block = get64(&good, 0x10000) as usize;
    let host = (get64(&good, table) & !copied) as usize / CLUSTER;
    let sixteen = move |cluster: usize| block + 2 * cluster;
    let cases: Vec<(&str, Spoil)> = vec![
        ("refcount=0 reference=1", Box::new(move |bytes| bytes[sixteen(host)..sixteen(host) + 2].fill(0))),
        ("refcount=0 reference=1", Box::new(move |bytes| bytes[sixteen(3)..sixteen(3) + 2].fill(0))),
        ("OFLAG_COPIED data cluster", Box::new(move |bytes| bytes[sixteen(host) + 1] = 2)),
        (
            "refcount=1 reference=2",
            Box::new(move |bytes| {
                let other = get64(bytes, table);
                put64(bytes, table + 8, other);
            }),
        ),
        ("refcount=1 reference=2", Box::new(move |bytes| put64(bytes, table + 8, copied | table as u64))),
        ("refcount=1 reference=2", Box::new(move |bytes| put64(bytes, table + 8, copied | block as u64))),
        (
            "refcount=1 reference=2",
            Box::new(move |bytes| {
                let first = get64(bytes, 0x30000);
                let mut longer = bytes.clone();
                put32(&mut longer, 36, 2);
                put64(&mut longer, 0x30008, first);
                *bytes = longer;
            }),
        ),
        ("no cluster's start", Box::new(|bytes| put64(bytes, 0x10000, 0x20200))),
        ("past the end", Box::new(|bytes| put64(bytes, 0x10000, 1 << 40))),
    ];
    for (says, spoil) in cases {
        let mut bytes = good.clone();
        spoil(&mut bytes);
        let file = Arc::new(MemoryStorage::from_bytes(&bytes));
        let layer = Qcow2
            .open(file.clone(), &NoFiles, &OpenOptions { writable: true, ..OpenOptions::default() })
            .unwrap();
        for attempt in [layer.write(12 << 20, &[1; 512]), layer.erase(0, 65536, Erase::Free).map(|_| ())] {
            let error = attempt.expect_err(says);
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.to_string().contains(says), "'{says}' is not in '{error}'");
        }
        layer.close().unwrap();
        assert!(file.to_vec() == bytes, "{says}: the image was changed");
    }
}

#[test]
fn large_and_shared_structures_take_no_time() {
    let since = Instant::now();
    // 4096 L1 entries share one L2 table.
    let mut bytes = image(2 << 40, "cluster_size=64k");
    let first = get64(&bytes, 0x30000);
    for index in 0..4096 {
        put64(&mut bytes, 0x30000 + 8 * index, first & !(1 << 63));
    }
    let layer = open(&bytes, false).unwrap();
    let (mut at, mut calls) = (0, 0);
    while at < layer.size() {
        at += layer.extent(at, layer.size() - at).unwrap().len;
        calls += 1;
    }
    assert!(calls < 5 * 4096, "{calls} calls");
    // 65536 empty snapshots.
    let mut bytes = image(1 << 20, "cluster_size=64k");
    let table = bytes.len().next_multiple_of(CLUSTER);
    bytes.resize(table + 65536 * 40, 0);
    put32(&mut bytes, 60, 65536);
    put64(&mut bytes, 64, table as u64);
    let layer = open(&bytes, false).unwrap();
    assert_eq!(layer.as_snapshots().unwrap().list().unwrap().len(), 65536);
    // Too much extra data.
    put32(&mut bytes, table + 36, 1025);
    assert!(open(&bytes, false).unwrap_err().to_string().contains("1025 bytes of extra data"));
    // An empty disk of 1 TiB, and of 1 PiB.
    for (size, text) in [(1 << 40, "cluster_size=64k"), (1 << 50, "cluster_size=2M")] {
        let file = Arc::new(MemoryStorage::new());
        let layer = Qcow2.create(file, &NoFiles, &how(size, text)).unwrap();
        let all = layer.extent(0, u64::MAX).unwrap();
        assert_eq!((all.kind, all.len), (Kind::Hole, size));
    }
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
}

#[test]
fn options_that_do_not_fit_are_refused() {
    for (text, says) in [
        ("cluster_size=256", "power of two between 512 and 2048k"),
        ("cluster_size=3000", "power of two between 512 and 2048k"),
        ("cluster_size=4M", "power of two between 512 and 2048k"),
        ("cluster_size=8k,extended_l2=on", "at least 16384 bytes"),
        ("compat=0.10,refcount_bits=8", "Different refcount widths"),
        ("compat=v2,lazy_refcounts=on", "Lazy refcounts only supported"),
        ("compat=0.10,compression_type=zstd", "Non-zlib compression type is only supported"),
        ("compat=0.10,extended_l2=on", "Extended L2 entries are only supported"),
        ("compat=0.10,data_file=x", "External data files are only supported"),
        ("data_file_raw=on", "data-file-raw requires data-file"),
        ("refcount_bits=3", "Refcount width must be a power of two"),
        ("compression_level=10", "compression_level"),
        ("cluster_size=512", "too large"),
    ] {
        let size = if says == "too large" { 1 << 40 } else { 1 << 20 };
        let error = Qcow2.create(Arc::new(MemoryStorage::new()), &NoFiles, &how(size, text)).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{text}: {error}");
        assert!(error.to_string().contains(says), "{text}: {error}");
    }
}

#[test]
fn refcount_tables_grow() {
    // With clusters of 512 bytes and counters of 64 bits a table of one cluster covers 2 MiB; it is made for a disk of
    // 1 MiB, which then grows.
    let file = Arc::new(MemoryStorage::new());
    let layer =
        Qcow2.create(file.clone(), &NoFiles, &how(1 << 20, "cluster_size=512,refcount_bits=64")).unwrap();
    layer.resize(24 << 20, cowhand_core::Prealloc::Off, 0).unwrap();
    let data = common::noise(1 << 20, 5);
    for at in 0..20 {
        layer.write(at << 20, &data).unwrap();
    }
    layer.close().unwrap();
    assert!(get64(&file.to_vec(), 48) > 512, "the table did not move");
    let again = open(&file.to_vec(), true).unwrap();
    let all = common::bytes(&again);
    assert!(
        all.chunks(1 << 20).take(20).all(|piece| piece == data)
            && all[20 << 20..].iter().all(|byte| *byte == 0)
    );
    if common::qemu() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.qcow2"), file.to_vec()).unwrap();
        common::check(&folder.path().join("a.qcow2"));
    }
}

#[test]
fn nothing_is_written_by_reading() {
    let bytes = image(16 << 20, "cluster_size=64k");
    let file = Arc::new(MemoryStorage::from_bytes(&bytes));
    let layer = Qcow2.open(file.clone(), &NoFiles, &OpenOptions::default()).unwrap();
    common::bytes(&layer);
    assert_eq!(layer.write(0, &[1]).unwrap_err().kind(), ErrorKind::Denied);
    layer.close().unwrap();
    assert!(file.to_vec() == bytes);
    let before = file.identity().unwrap();
    drop(layer);
    assert_eq!(file.identity().unwrap(), before);
}
