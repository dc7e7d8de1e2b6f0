//! Amending: what QEMU makes of it, what it refuses, and power cuts and faults on the way.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::cut::{cut, faults};
use common::{bytes, check, create, how, named, noise, open, pattern, qemu, qemu_bytes, run};
use cowhand_core::{
    CreateOptions, Erase, Format, Layer, MemoryStorage, NoFiles, OpenOptions, Options, Quiet, Result,
    Secrets, parse_option_string,
};
use cowhand_qcow2::Qcow2;

fn amend(layer: &dyn Layer, text: &str) -> Result<()> {
    let options = Options::check(Qcow2.amend_options(), &parse_option_string(text))?;
    layer.amend(&options, &Secrets::default(), &Quiet)
}

const SIZE: u64 = 1 << 20;

/// Data, compressed data, zeros with and without a place.
fn fill(layer: &Arc<dyn Layer>) -> Result<()> {
    let unit = 65536;
    layer.write(1000, &pattern(1000, 150_000, 3))?;
    layer.write(6 * unit, &noise(65536, 4))?;
    // QEMU refuses to compress where there is a data file, and so do we.
    let _ = layer.write_compressed(4 * unit, &pattern(4 * unit, 65536, 9));
    layer.erase(unit, unit, Erase::Zero)?;
    layer.erase(8 * unit, 2 * unit, Erase::Free)?;
    layer.flush()
}

fn info(path: &Path) -> String {
    let folder = path.parent().unwrap();
    let text = run(folder, "qemu-img", &["info", "-f", "qcow2", path.to_str().unwrap()]);
    let other = ["image:", "filename", "disk size", "file length"];
    text.lines().filter(|line| !other.iter().any(|word| line.contains(word))).collect::<Vec<_>>().join("\n")
}

#[test]
fn amended_as_qemu_amends() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (folder.path().join("ours.qcow2"), folder.path().join("theirs.qcow2"));
    std::fs::write(folder.path().join("base"), pattern(0, SIZE as usize, 0x55)).unwrap();
    for (made, amended) in [
        ("", "lazy_refcounts=on"),
        ("lazy_refcounts=on", "lazy_refcounts=off"),
        ("compat=0.10", "compat=1.1"),
        ("compat=0.10,cluster_size=4k", "compat=v3,lazy_refcounts=on,refcount_bits=64"),
        ("compat=0.10,cluster_size=512", "compat=1.1"),
        ("", "compat=0.10"),
        ("cluster_size=4k", "compat=v2"),
        ("lazy_refcounts=on,refcount_bits=8,cluster_size=8k", "compat=0.10,refcount_bits=16"),
        ("", "refcount_bits=64"),
        ("cluster_size=4k,refcount_bits=1", "refcount_bits=64"),
        ("cluster_size=512,refcount_bits=64", "refcount_bits=8"),
        ("cluster_size=512,refcount_bits=1", "refcount_bits=64"),
        ("extended_l2=on,cluster_size=16k", "refcount_bits=32"),
        ("data_file=d,cluster_size=4k", "refcount_bits=32,lazy_refcounts=on"),
        ("data_file=d,data_file_raw=on", "data_file_raw=off"),
        ("data_file=d", "data_file=./d"),
        ("", "compat=1.1,refcount_bits=16,lazy_refcounts=off"),
    ] {
        for backed in [false, true] {
            // A parent matters where zeros are written out.
            if backed && !amended.contains("compat=") {
                continue;
            }
            let parent = if backed { named("base", "raw") } else { None };
            let with = CreateOptions { parent, ..how(SIZE, made) };
            let mut want = Vec::new();
            for path in [&theirs, &ours] {
                let layer = create(path, &with);
                fill(&layer).unwrap();
                layer.close().unwrap();
                // Both use one data file.
                if path == &theirs {
                    want = qemu_bytes(path);
                    run(
                        folder.path(),
                        "qemu-img",
                        &["amend", "-t", "unsafe", "-f", "qcow2", "-o", amended, "theirs.qcow2"],
                    );
                }
            }
            let what = format!("{made} -> {amended}, backed: {backed}");
            let layer = open(&ours, true).unwrap();
            amend(layer.as_ref(), amended).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(layer.write(0, &[1; 512]).is_err(), "it is closed");
            drop(layer);
            assert_eq!(info(&ours), info(&theirs), "{what}");
            check(&ours);
            assert!(qemu_bytes(&ours) == want, "{what}");
            // It is written as any other.
            let layer = open(&ours, true).unwrap();
            fill(&layer).unwrap();
            layer.write(700_000, &noise(200_000, 1)).unwrap();
            layer.close().unwrap();
            check(&ours);
            assert_eq!(qemu_bytes(&ours)[700_000..900_000], noise(200_000, 1));
        }
    }
}

/// The same words as QEMU's, and nothing changes.
#[test]
fn refused_as_qemu_refuses() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let img = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        run(folder.path(), "qemu-img", &arguments);
    };
    let snapshot = || img("snapshot -c s a.qcow2");
    let other_size = || {
        snapshot();
        img("resize -q -f qcow2 a.qcow2 2M");
    };
    let nothing = || ();
    let cases: [(&str, &str, &dyn Fn()); 15] = [
        ("compat=0.10", "lazy_refcounts=on", &nothing),
        ("compat=0.10", "refcount_bits=8", &nothing),
        ("", "compat=0.9", &nothing),
        ("", "refcount_bits=3", &nothing),
        ("", "refcount_bits=128", &nothing),
        ("", "compat=0.10,lazy_refcounts=on", &nothing),
        ("refcount_bits=8", "compat=0.10", &nothing),
        ("", "compat=0.10,refcount_bits=8", &nothing),
        ("extended_l2=on", "compat=0.10", &nothing),
        ("", "data_file=x", &nothing),
        ("", "data_file_raw=on", &nothing),
        ("data_file=d", "data_file_raw=on", &nothing),
        ("data_file=d", "compat=0.10", &nothing),
        ("", "compat=0.10", &other_size),
        ("", "refcount_bits=1", &snapshot),
    ];
    for (made, amended, prepare) in cases {
        create(&path, &how(SIZE, made)).close().unwrap();
        let layer = open(&path, true).unwrap();
        layer.write(0, &[7; 65536]).unwrap();
        layer.close().unwrap();
        prepare();
        let before = std::fs::read(&path).unwrap();
        let error = amend(open(&path, true).unwrap().as_ref(), amended).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), before, "{made} -> {amended}");
        let arguments = ["amend", "-f", "qcow2", "-o", amended, "a.qcow2"];
        let out = Command::new("qemu-img").current_dir(folder.path()).args(arguments).output().unwrap();
        let theirs = String::from_utf8_lossy(&out.stderr).trim_start_matches("qemu-img: ").trim().to_owned();
        let plain = error.to_string().split(';').next().unwrap().to_owned();
        assert_eq!(plain, theirs, "{made} -> {amended}");
    }

    let packed = |layer: &Arc<dyn Layer>| layer.write_compressed(0, &pattern(0, 65536, 1));
    let layer = create(&path, &how(SIZE, "compression_type=zstd"));
    packed(&layer).unwrap();
    layer.close().unwrap();
    let error = amend(open(&path, true).unwrap().as_ref(), "compat=0.10").unwrap_err();
    assert!(error.to_string().contains("zstd compression type and existing compressed clusters"), "{error}");
    let layer = create(&path, &how(SIZE, "compression_type=zstd"));
    amend(layer.as_ref(), "compat=0.10").unwrap();
    let layer = open(&path, true).unwrap();
    packed(&layer).unwrap();
    layer.close().unwrap();
    check(&path);
    assert_eq!(qemu_bytes(&path)[..65536], pattern(0, 65536, 1));
}

/// In every state the content is the same, and one of the two headers holds.
#[test]
fn a_power_cut_leaves_it_as_it_was_or_as_it_is_wanted() {
    for (made, backed, amended) in [
        ("cluster_size=4k", false, "refcount_bits=64"),
        ("cluster_size=512,refcount_bits=1", false, "refcount_bits=32"),
        ("", true, "compat=0.10"),
        ("cluster_size=4k", true, "compat=0.10"),
        ("cluster_size=4k", false, "compat=0.10"),
        ("compat=0.10", true, "compat=1.1,lazy_refcounts=on,refcount_bits=8"),
    ] {
        let small = |layer: &Arc<dyn Layer>| {
            layer.write(1000, &pattern(1000, 30_000, 3))?;
            layer.write_compressed(65536, &pattern(65536, 65536, 9))?;
            layer.erase(8192, 8192, Erase::Zero)?;
            layer.erase(131_072, 65536, Erase::Free).map(drop)
        };
        let file = Arc::new(MemoryStorage::new());
        let layer = Qcow2.create(file, &NoFiles, &how(1 << 18, made)).unwrap();
        small(&layer).unwrap();
        let v2 = made.contains("0.10");
        let want = bytes(&layer);
        let judge = |layer: &Arc<dyn Layer>, _: Option<u64>| {
            // Version 2 cannot say zero over a parent, and `small` then leaves a hole.
            if !backed || !v2 {
                let mut all = vec![0; want.len()];
                common::disk(layer.clone()).read(0, &mut all).unwrap();
                assert!(all == want, "the content is another");
            }
            layer.write(200_000, &noise(20_000, 1)).unwrap();
            layer.close().unwrap();
        };
        cut(made, 1 << 18, backed, small, |layer| amend(layer.as_ref(), amended), judge);
        faults(
            made,
            1 << 18,
            backed,
            small,
            |layer| amend(layer.as_ref(), amended),
            |layer, _| {
                judge(layer, None);
            },
        );
    }
}

#[test]
fn the_level_is_set_where_an_image_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let mut sizes = Vec::new();
    let text: Vec<u8> =
        (0..1 << 20).flat_map(|n: u32| format!("{n:x} ").into_bytes()).take(1 << 20).collect();
    for level in ["1", "9"] {
        create(&path, &how(SIZE, "")).close().unwrap();
        let given = [("compression_level".to_owned(), level.to_owned())];
        let options = Options::check(Qcow2.open_options(), &given).unwrap();
        let file = common::file(&path, cowhand_core::Access::Write);
        let how = OpenOptions { writable: true, options, ..OpenOptions::default() };
        let layer = Qcow2.open(file, &NoFiles, &how).unwrap();
        layer.write_compressed(0, &text).unwrap();
        layer.close().unwrap();
        assert!(bytes(&open(&path, false).unwrap()) == text);
        sizes.push(std::fs::metadata(&path).unwrap().len());
    }
    assert!(sizes[1] < sizes[0], "{sizes:?}");
    let options = Options::check(Qcow2.open_options(), &parse_option_string("compression_level=10")).unwrap();
    let how = OpenOptions { writable: true, options, ..OpenOptions::default() };
    let error = Qcow2.open(common::file(&path, cowhand_core::Access::Write), &NoFiles, &how).unwrap_err();
    assert!(error.to_string().contains("compression_level of zlib is 1 to 9"), "{error}");
}
