//! An image is emptied: all guest data gone, the size, the parent and the snapshots as they were.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::cut::{cut, faults};
use common::{bytes, check, create, disk, how, named, noise, open, qemu, run};
use cowhand_core::{CreateOptions, Kind, Layer, NewSnapshot, Prealloc, Result};

const VARIANTS: [&str; 7] = [
    "cluster_size=64k",
    "cluster_size=512",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=4k,compat=0.10",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=4k,refcount_bits=1",
    "cluster_size=4k,preallocation=full",
];

fn is_empty(layer: &Arc<dyn Layer>) {
    let mut at = 0;
    while at < layer.size() {
        let extent = layer.extent(at, layer.size() - at).unwrap();
        assert_eq!(extent.kind, Kind::Hole, "at {at}");
        at += extent.len;
    }
}

#[test]
fn nothing_is_left_and_the_file_is_small() {
    let qemu = qemu();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    for text in VARIANTS {
        let size = if text.contains("=512") { 4 << 20 } else { 24 << 20 };
        let layer = create(&path, &how(size, text));
        disk(layer.clone()).write(0, &noise(size as usize / 2, 1)).unwrap();
        layer.write_compressed(size / 2, &vec![5; 1 << 20]).unwrap();
        layer.clear().unwrap();
        assert_eq!(layer.size(), size);
        is_empty(&layer);
        layer.close().unwrap();
        drop(layer);
        let len = std::fs::metadata(&path).unwrap().len();
        if qemu {
            check(&path);
        }
        // What was there stood in the way of what replaced it, once.
        let new = folder.path().join("new.qcow2");
        create(&new, &how(size, text.split(",pre").next().unwrap())).close().unwrap();
        let cluster = open(&new, false).unwrap().details().cluster_size.unwrap();
        let wanted = std::fs::metadata(&new).unwrap().len().next_multiple_of(cluster);
        assert!(len <= 2 * wanted, "{text}: {len} bytes, where a new one has {wanted}");
        // It can be used on.
        let layer = open(&path, true).unwrap();
        is_empty(&layer);
        layer.write(size / 3 / 512 * 512, &noise(300_000, 2)).unwrap();
        let mut all = vec![0; size as usize];
        let at = size as usize / 3 / 512 * 512;
        all[at..at + 300_000].copy_from_slice(&noise(300_000, 2));
        assert!(bytes(&layer) == all, "{text}");
        layer.clear().unwrap();
        layer.clear().unwrap();
        layer.close().unwrap();
        if qemu {
            check(&path);
        }
    }
}

#[test]
fn parent_and_snapshots_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    for text in ["cluster_size=4k", "cluster_size=16k,extended_l2=on", "cluster_size=4k,compat=0.10"] {
        let how = CreateOptions { parent: named("base", "raw"), ..how(1 << 20, text) };
        std::fs::write(folder.path().join("base"), noise(1 << 20, 9)).unwrap();
        let layer = create(&path, &how);
        layer.write(0, &noise(1 << 20, 1)).unwrap();
        layer
            .as_snapshots()
            .unwrap()
            .create(&NewSnapshot { name: "kept".into(), ..Default::default() })
            .unwrap();
        layer.write(100_000, &noise(500_000, 2)).unwrap();
        layer.clear().unwrap();
        is_empty(&layer);
        assert_eq!(layer.parent().unwrap().candidates, ["base"].map(std::path::PathBuf::from));
        let kept = layer.as_snapshots().unwrap().open("kept").unwrap();
        assert!(bytes(&kept) == noise(1 << 20, 1));
        drop(kept);
        layer.flush().unwrap();
        if qemu() {
            check(&path);
            run(folder.path(), "qemu-img", &["compare", "-q", "-F", "raw", "a.qcow2", "base"]);
        }
        layer.as_snapshots().unwrap().apply("kept").unwrap();
        layer.as_snapshots().unwrap().delete("kept").unwrap();
        assert!(bytes(&layer) == noise(1 << 20, 1));
        layer.clear().unwrap();
        layer.close().unwrap();
        if qemu() {
            check(&path);
        }
    }
}

#[test]
fn a_data_file_is_emptied_and_a_raw_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let layer = create(&path, &how(1 << 20, "data_file=data"));
    layer.write(0, &noise(1 << 20, 1)).unwrap();
    layer.clear().unwrap();
    is_empty(&layer);
    layer.write(70_000, &[1; 1000]).unwrap();
    let mut all = vec![0; 1 << 20];
    all[70_000..71_000].fill(1);
    assert!(bytes(&layer) == all);
    layer.close().unwrap();
    if qemu() {
        check(&path);
    }
    let layer = create(&path, &how(1 << 20, "data_file=data,data_file_raw=on"));
    assert!(layer.clear().is_err());
}

fn filled(layer: &Arc<dyn Layer>) -> Result<()> {
    layer.write(0, &noise(300_000, 1))?;
    layer.write_compressed(327_680, &[3; 65536])?;
    layer.flush()
}

#[test]
fn a_power_cut_leaves_all_or_nothing() {
    for text in ["cluster_size=64k", "cluster_size=512", "cluster_size=4k,compat=0.10"] {
        cut(
            text,
            1 << 19,
            true,
            filled,
            |layer| layer.clear(),
            |layer, mark| {
                let all = bytes(layer);
                let done = all.iter().all(|byte| *byte == 0);
                assert!(done || mark.is_none());
                if !done {
                    assert!(
                        all[..300_000] == noise(300_000, 1) && all[327_680..393_216].iter().all(|b| *b == 3)
                    );
                }
                layer.write(1000, &noise(400_000, 2)).unwrap();
                layer.clear().unwrap();
                is_empty(layer);
            },
        );
    }
}

#[test]
fn a_failing_input_or_output_leaves_all_or_nothing() {
    for text in ["cluster_size=512", "cluster_size=16k,extended_l2=on"] {
        faults(
            text,
            1 << 19,
            true,
            filled,
            |layer| layer.clear(),
            |layer, failed| {
                let all = bytes(layer);
                let done = all.iter().all(|byte| *byte == 0);
                assert!(done || failed);
                assert!(done || all[..300_000] == noise(300_000, 1));
            },
        );
    }
}

#[test]
fn readers_see_what_was_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let layer = create(&path, &how(1 << 18, "cluster_size=4k"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (layer, done) = (&layer, &done);
            scope.spawn(move || {
                let mut buf = vec![0; 4096];
                for round in reader.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let cluster: u64 = round * 7 % 64;
                    disk(layer.clone()).read(cluster * 4096, &mut buf).unwrap();
                    let own = buf[0] == 0 || u64::from(buf[0]) == cluster + 1;
                    assert!(own && buf.iter().all(|byte| *byte == buf[0]), "cluster {cluster}: {}", buf[0]);
                }
            });
        }
        for round in 0..60 {
            // Another order each time, so that clusters change their places.
            for index in 0..64 {
                let cluster = (index * 13 + round) % 64;
                layer.write(cluster * 4096, &[cluster as u8 + 1; 4096]).unwrap();
            }
            layer.clear().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    layer.resize(1 << 19, Prealloc::Off, 0).unwrap();
    layer.close().unwrap();
    if qemu() {
        check(&path);
    }
}
