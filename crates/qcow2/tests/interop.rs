//! QEMU reads what we write, and we read what QEMU writes.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use cowhand_core::{Erase, Kind, Layer};
use std::path::Path;
use std::sync::Arc;

const MIB: u64 = 1 << 20;

/// Every cluster size, with one of the refcount widths each.
const SIZES: [(&str, &str); 13] = [
    ("512", "16"),
    ("1k", "1"),
    ("2k", "2"),
    ("4k", "4"),
    ("8k", "8"),
    ("16k", "32"),
    ("32k", "64"),
    ("64k", "16"),
    ("128k", "1"),
    ("256k", "64"),
    ("512k", "16"),
    ("1M", "2"),
    ("2M", "16"),
];

fn fill(layer: &Arc<dyn Layer>, model: &mut [u8]) {
    let disk = disk(layer.clone());
    let size = layer.size();
    for (at, len, seed) in [
        (0, 700_000, 1),
        (100_000, 4096, 2),
        (size - 300_000, 300_000, 3),
        (2_000_000, 1, 4),
        (1_000_000, 512, 5),
    ] {
        let data = pattern(at, len, seed);
        disk.write(at, &data).unwrap();
        model[at as usize..at as usize + len].copy_from_slice(&data);
    }
    for (at, len, how) in
        [(65536, 131_072, Erase::Free), (262_144, 65536, Erase::Zero), (393_216, 65536, Erase::Reveal)]
    {
        let done = layer.erase(at, len, how).unwrap();
        model[at as usize..(at + done) as usize].fill(0);
    }
    let data = pattern(65536, 30_000, 6);
    disk.write(70_000, &data).unwrap();
    model[70_000..100_000].copy_from_slice(&data);
}

fn compressed(layer: &Arc<dyn Layer>, model: &mut [u8], cluster: u64) {
    let (at, len) = (4 * MIB, 4 * cluster.max(65536));
    let mut data = pattern(at, len as usize, 7);
    let hard = noise(cluster as usize, 9);
    data[cluster as usize..2 * cluster as usize].copy_from_slice(&hard);
    layer.write_compressed(at, &data).unwrap();
    model[at as usize..(at + len) as usize].copy_from_slice(&data);
}

fn written(folder: &Path, name: &str, text: &str, cluster: u64, fresh: bool) {
    let path = folder.join(name);
    let mut how = how(16 * MIB + 1536, text);
    how.fresh = fresh;
    let layer = create(&path, &how);
    let mut model = vec![0; layer.size() as usize];
    fill(&layer, &mut model);
    if !text.contains("data_file") {
        compressed(&layer, &mut model, cluster);
    }
    assert!(bytes(&layer) == model, "{text}: read back");
    layer.close().unwrap();
    check(&path);
    assert!(qemu_bytes(&path) == model, "{text}: QEMU reads something else");
    let again = open(&path, true).unwrap();
    assert!(bytes(&again) == model, "{text}: opened again");
    fill(&again, &mut model);
    assert!(bytes(&again) == model, "{text}: written again");
    again.close().unwrap();
    check(&path);
    assert!(qemu_bytes(&path) == model, "{text}: QEMU, after writing again");
}

#[test]
fn qemu_reads_every_cluster_size_and_refcount_width() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (index, (size, bits)) in SIZES.iter().enumerate() {
        let cluster = cowhand_core::parse_size(size).unwrap();
        let text = format!("cluster_size={size},refcount_bits={bits}");
        written(folder.path(), "a.qcow2", &text, cluster, index % 2 == 0);
    }
}

#[test]
fn qemu_reads_every_variant() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for text in [
        "compat=0.10",
        "compression_type=zstd",
        "extended_l2=on,cluster_size=16k",
        "extended_l2=on",
        "extended_l2=on,cluster_size=2M,compression_type=zstd",
        "data_file=outside.img",
        "data_file=outside.img,data_file_raw=on",
        "data_file=outside.img,extended_l2=on",
        "preallocation=metadata",
        "preallocation=falloc,cluster_size=4k",
        "preallocation=full,extended_l2=on",
        "lazy_refcounts=on",
    ] {
        let cluster = if text.contains("16k") {
            16384
        } else if text.contains("2M") {
            2 << 20
        } else {
            65536
        };
        written(folder.path(), "a.qcow2", text, cluster, text.len() % 2 == 0);
    }
    // A raw data file is the disk.
    let path = folder.path().join("b.qcow2");
    let layer = create(&path, &how(4 * MIB, "data_file=b.img,data_file_raw=on"));
    let mut model = vec![0; layer.size() as usize];
    let data = pattern(0, 200_000, 3);
    layer.write(1000, &data).unwrap();
    model[1000..201_000].copy_from_slice(&data);
    let done = layer.erase(65536, 65536, Erase::Free).unwrap();
    assert_eq!(done, 65536);
    model[65536..131_072].fill(0);
    layer.close().unwrap();
    assert!(std::fs::read(folder.path().join("b.img")).unwrap() == model);
}

#[test]
fn we_read_every_image_qemu_writes() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let mut content = vec![0; 6 * MIB as usize + 512];
    for (at, len, seed) in [(0, 500_000, 1), (1_000_000, 70_000, 2), (5 * MIB, 1_000_000, 3)] {
        content[at as usize..at as usize + len].copy_from_slice(&pattern(at, len, seed));
    }
    content[3 * MIB as usize..3 * MIB as usize + 200_000].copy_from_slice(&noise(200_000, 4));
    std::fs::write(dir.join("content.raw"), &content).unwrap();
    let mut variants: Vec<(String, bool)> = SIZES
        .iter()
        .map(|(size, bits)| (format!("cluster_size={size},refcount_bits={bits}"), false))
        .collect();
    variants.extend(SIZES.iter().map(|(size, _)| (format!("cluster_size={size}"), true)));
    variants.extend(
        [
            ("compat=0.10", false),
            ("compat=0.10", true),
            ("compression_type=zstd", true),
            ("compression_type=zstd,cluster_size=2M", true),
            ("compression_type=zstd,cluster_size=512", true),
            ("extended_l2=on", false),
            ("extended_l2=on", true),
            ("data_file=other.img", false),
            ("data_file=other.img,data_file_raw=on", false),
            ("preallocation=metadata", false),
            ("preallocation=falloc", false),
            ("preallocation=full", false),
        ]
        .map(|(text, packed)| (text.to_owned(), packed)),
    );
    for (text, packed) in variants {
        let mut arguments = vec!["convert", "-q", "-f", "raw", "-O", "qcow2", "-o", &text];
        arguments.extend(packed.then_some("-c"));
        arguments.extend(["content.raw", "a.qcow2"]);
        run(dir, "qemu-img", &arguments);
        let layer = open(&dir.join("a.qcow2"), false).unwrap();
        assert!(bytes(&layer) == content, "{text} {packed}");
        // Small reads too, of compressed clusters above all.
        let disk = disk(layer.clone());
        for at in (0..content.len() - 5000).step_by(70_001) {
            let mut small = vec![1; 4999];
            disk.read(at as u64, &mut small).unwrap();
            assert!(small == content[at..at + 4999], "{text} at {at}");
        }
        let first = layer.extent(0, u64::MAX).unwrap();
        assert_eq!((first.kind, first.compressed), (Kind::Data, packed), "{text}");
        if !text.contains("data_file") {
            // And go on writing in it.
            let writable = open(&dir.join("a.qcow2"), true).unwrap();
            let mut model = content.clone();
            fill(&writable, &mut model);
            assert!(bytes(&writable) == model, "{text} {packed}: written");
            writable.close().unwrap();
            check(&dir.join("a.qcow2"));
            assert!(qemu_bytes(&dir.join("a.qcow2")) == model, "{text} {packed}: QEMU, after writing");
        }
        std::fs::remove_file(dir.join("a.qcow2")).unwrap();
    }
}

#[test]
fn snapshots_stay_while_the_disk_is_written() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    for text in ["cluster_size=64k", "cluster_size=4k", "extended_l2=on", "cluster_size=512"] {
        let path = dir.join("a.qcow2");
        run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", text, "a.qcow2", "4M"]);
        run(dir, "qemu-io", &["-f", "qcow2", "-c", "write -P 1 0 1M", "-c", "write -P 2 3M 300k", "a.qcow2"]);
        run(dir, "qemu-io", &["-f", "qcow2", "-c", "write -c -P 5 2M 512k", "a.qcow2"]);
        run(dir, "qemu-img", &["snapshot", "-c", "one", "a.qcow2"]);
        run(dir, "qemu-img", &["resize", "-q", "-f", "qcow2", "a.qcow2", "6M"]);
        run(dir, "qemu-io", &["-f", "qcow2", "-c", "write -P 3 500k 1M", "a.qcow2"]);
        run(dir, "qemu-img", &["snapshot", "-c", "two", "a.qcow2"]);

        let mut one = vec![0; 4 * MIB as usize];
        one[..MIB as usize].fill(1);
        one[2 << 20..(2 << 20) + (512 << 10)].fill(5);
        one[3 << 20..(3 << 20) + (300 << 10)].fill(2);
        let mut two = one.clone();
        two.resize(6 << 20, 0);
        two[500 << 10..(500 << 10) + (1 << 20)].fill(3);
        let layer = open(&path, true).unwrap();
        let mut now = two.clone();
        fill(&layer, &mut now);
        layer.flush().unwrap();
        fill(&layer, &mut now);
        assert!(bytes(&layer) == now, "{text}");
        for layer in [layer.clone(), open(&path, false).unwrap()] {
            let snapshots = layer.as_snapshots().unwrap();
            let list = snapshots.list().unwrap();
            let names: Vec<_> =
                list.iter().map(|info| (info.id.as_str(), info.name.as_str(), info.disk_size)).collect();
            assert_eq!(names, [("1", "one", 4 << 20), ("2", "two", 6 << 20)]);
            assert!(bytes(&snapshots.open("one").unwrap()) == one, "{text}: snapshot one");
            assert!(bytes(&snapshots.open("2").unwrap()) == two, "{text}: snapshot two");
            assert!(snapshots.open("three").is_err());
        }
        layer.close().unwrap();
        check(&path);
        assert!(qemu_bytes(&path) == now, "{text}: QEMU");
        run(dir, "qemu-img", &["snapshot", "-a", "one", "a.qcow2"]);
        assert!(qemu_bytes(&path) == one, "{text}: QEMU, snapshot one");
        run(dir, "qemu-img", &["snapshot", "-d", "two", "a.qcow2"]);
        check(&path);
    }
}

#[test]
fn images_are_made_as_qemu_makes_them() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    for (text, size) in [
        ("cluster_size=64k", 1 << 30),
        ("compat=0.10", 1 << 30),
        ("compat=v2,cluster_size=4k", 77 << 20),
        // Larger ones of small clusters begin with a longer refcount table here.
        ("cluster_size=512", 4 << 20),
        ("cluster_size=512,refcount_bits=64", 1 << 20),
        ("cluster_size=2M,refcount_bits=1", 1 << 40),
        ("extended_l2=on,cluster_size=128k,compression_type=zstd,lazy_refcounts=on", 1 << 30),
        ("data_file=x.img", 1 << 20),
        ("data_file=x.img,data_file_raw=on", 64 << 20),
        ("preallocation=metadata", 64 << 20),
        ("preallocation=metadata,cluster_size=4k", 8 << 20),
        ("cluster_size=64k", 0),
    ] {
        run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", text, "theirs.qcow2", &size.to_string()]);
        let ours = create(&dir.join("ours.qcow2"), &how(size, text));
        ours.close().unwrap();
        let (theirs, ours) = (
            std::fs::read(dir.join("theirs.qcow2")).unwrap(),
            std::fs::read(dir.join("ours.qcow2")).unwrap(),
        );
        let differs = theirs.iter().zip(&ours).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{text} {size}: first difference");
        assert_eq!(theirs.len(), ours.len(), "{text} {size}: length");
    }
    std::fs::write(dir.join("base.raw"), vec![0; 1 << 20]).unwrap();
    for text in
        ["cluster_size=64k", "compat=0.10", "cluster_size=512", "extended_l2=on,preallocation=metadata"]
    {
        let arguments =
            ["create", "-q", "-f", "qcow2", "-o", text, "-b", "base.raw", "-F", "raw", "theirs.qcow2", "4M"];
        run(dir, "qemu-img", &arguments);
        let mut how = how(4 << 20, text);
        how.parent = named("base.raw", "raw");
        create(&dir.join("ours.qcow2"), &how).close().unwrap();
        let (theirs, ours) = (
            std::fs::read(dir.join("theirs.qcow2")).unwrap(),
            std::fs::read(dir.join("ours.qcow2")).unwrap(),
        );
        let length = theirs.len().min(ours.len());
        assert!(theirs[..length] == ours[..length], "{text}");
        let layer = open(&dir.join("theirs.qcow2"), false).unwrap();
        assert_eq!(layer.parent(), how.parent);
    }
}

#[test]
fn info_says_what_qemu_says() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    for text in [
        "cluster_size=64k",
        "compat=0.10",
        "lazy_refcounts=on,extended_l2=on,compression_type=zstd,refcount_bits=1",
        "data_file=x.img,data_file_raw=on",
        "data_file=x.img",
        "bitmaps",
    ] {
        let options = if text == "bitmaps" { "compat=1.1" } else { text };
        run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "8M"]);
        if text == "bitmaps" {
            run(dir, "qemu-img", &["bitmap", "--add", "-g", "128k", "a.qcow2", "first"]);
            run(dir, "qemu-img", &["bitmap", "--add", "--disable", "a.qcow2", "second"]);
        }
        let said = |path: &str| -> serde_json::Value {
            let text = run(dir, "qemu-img", &["info", "--output=json", path]);
            let all: serde_json::Value = serde_json::from_str(&text).unwrap();
            all["format-specific"]["data"].clone()
        };
        let layer = open(&dir.join("a.qcow2"), true).unwrap();
        let ours = serde_json::Value::Object(layer.details().specific);
        assert_eq!(ours.to_string(), said("a.qcow2").to_string(), "{text}");
        // Bitmaps are kept in step with what is written here.
        layer.write(0, &[1; 512]).unwrap();
        layer.close().unwrap();
        check(&dir.join("a.qcow2"));
        assert_eq!(said("a.qcow2").get("bitmaps"), ours.get("bitmaps"));
        assert_eq!(said("a.qcow2").get("data-file-raw"), ours.get("data-file-raw"));
    }
}
