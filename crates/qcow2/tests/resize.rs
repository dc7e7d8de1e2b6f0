//! Changing the disk's size: against QEMU, over parents, with what stands beyond the end, and through power cuts.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use common::cut::{cut, faults};
use common::{bytes, check, create, disk, how, named, noise, open, pattern, qemu, qemu_bytes, run};
use cowhand_core::testing::{ModelTest, Shape};
use cowhand_core::{
    CreateOptions, Format, Image, Kind, Layer, Link, MemoryStorage, NoFiles, OpenOptions, Prealloc, Storage,
};
use cowhand_qcow2::Qcow2;

const ALL: [Prealloc; 4] = [Prealloc::Off, Prealloc::Metadata, Prealloc::Falloc, Prealloc::Full];

fn reopen(file: Arc<dyn Storage>) -> cowhand_core::Result<Arc<dyn Layer>> {
    Qcow2.open(file, &NoFiles, &OpenOptions { writable: true, ..OpenOptions::default() })
}

/// A disk over a parent of which every byte is 0x77.
fn over(layer: Arc<dyn Layer>, parent: u64) -> Image {
    let file = Arc::new(MemoryStorage::from_bytes(&vec![0x77; parent as usize]));
    let parent = cowhand_core::raw::Raw.open(file, &NoFiles, &OpenOptions::default()).unwrap();
    let link = |layer, format| Link { layer, name: "test".into(), format };
    Image::new(vec![link(layer, "qcow2"), link(parent, "raw")]).unwrap()
}

fn patch(path: &Path, at: u64, bytes: &[u8]) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

const VARIANTS: [&str; 7] = [
    "cluster_size=64k",
    "cluster_size=512",
    "cluster_size=4k,compat=0.10",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=4k,refcount_bits=1",
    "data_file=data",
    "data_file=data,data_file_raw=on",
];

#[test]
fn every_size_and_preallocation_reads_as_it_should_and_checks_clean() {
    let qemu = qemu();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    for text in VARIANTS {
        for prealloc in ALL {
            let layer = create(&path, &how(300 << 10, text));
            let image = disk(layer.clone());
            let mut wanted = noise(300 << 10, 3);
            image.write(0, &wanted).unwrap();
            for kib in [301, 900, 705, 50, 1300, 0, 130] {
                // Half a KiB so that ends are cut anywhere.
                let size = kib * 1024 + if kib % 2 == 1 { 512 } else { 0 };
                let prealloc = if size > layer.size() { prealloc } else { Prealloc::Off };
                layer.resize(size, prealloc, 0).unwrap();
                wanted.resize(size as usize, 0);
                assert!(bytes(&layer) == wanted, "{text} {prealloc:?} {size}");
                if size > 9000 {
                    let piece = noise(8000, size);
                    image.write(size - 8888, &piece).unwrap();
                    wanted[size as usize - 8888..size as usize - 888].copy_from_slice(&piece);
                }
                layer.flush().unwrap();
                let again = open(&path, false).unwrap();
                assert!(bytes(&again) == wanted, "{text} {prealloc:?} {size} opened again");
                if qemu && (kib == 1300 || kib == 50) {
                    check(&path);
                    assert!(qemu_bytes(&path) == wanted, "{text} {prealloc:?} {size}");
                }
                if text.contains("raw") {
                    assert!(std::fs::read(folder.path().join("data")).unwrap() == wanted);
                }
            }
            layer.close().unwrap();
            if qemu {
                check(&path);
            }
        }
    }
}

#[test]
fn what_is_laid_out_is_written_without_new_clusters() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    for text in ["cluster_size=4k", "cluster_size=4k,compat=0.10", "cluster_size=16k,extended_l2=on"] {
        for prealloc in [Prealloc::Metadata, Prealloc::Falloc, Prealloc::Full] {
            let layer = create(&path, &how(1 << 20, text));
            // Clusters that held something are free again: what is laid out there must not show it.
            layer.write(0, &noise(1 << 20, 5)).unwrap();
            layer.resize(65536, Prealloc::Off, 0).unwrap();
            layer.flush().unwrap();
            layer.flush().unwrap();
            layer.resize(1 << 20, prealloc, 0).unwrap();
            let mut wanted = noise(1 << 20, 5);
            wanted[65536..].fill(0);
            assert!(bytes(&layer) == wanted, "{text} {prealloc:?}");
            let mut at = 0;
            while at < 1 << 20 {
                let extent = layer.extent(at, (1 << 20) - at).unwrap();
                assert!(extent.kind == Kind::Data && extent.host.is_some(), "{text} {prealloc:?} at {at}");
                at += extent.len;
            }
            let before = std::fs::metadata(&path).unwrap().len();
            layer.write(65536, &noise(100_000, 6)).unwrap();
            layer.close().unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), before);
        }
    }
}

#[test]
fn resized_is_a_flat_vector() {
    for text in VARIANTS.iter().filter(|text| !text.contains("data_file")) {
        let unit = if text.contains("64k") { 65536 } else { 16384 };
        for seed in 0..3 {
            for parent in [None, Some(200_000 / 512 * 512), Some(1 << 20)] {
                let make =
                    CreateOptions { parent: parent.and_then(|_| named("base", "raw")), ..how(1 << 18, text) };
                let make = move |file| Qcow2.create(file, &NoFiles, &make);
                let shape = Shape { resize: true, compressed: true, ..Shape::new(1 << 18, unit) };
                let mut test = ModelTest::new(make, reopen).shape(shape).seed(seed);
                if let Some(size) = parent {
                    let file = Arc::new(MemoryStorage::from_bytes(&pattern(0, size, 0x77)));
                    test = test.parent(
                        cowhand_core::raw::Raw.open(file, &NoFiles, &OpenOptions::default()).unwrap(),
                    );
                }
                test.run().unwrap_or_else(|failure| panic!("{text} over {parent:?}: {failure}"));
            }
        }
    }
}

#[test]
fn a_longer_parent_does_not_show() {
    for text in VARIANTS.iter().filter(|text| !text.contains("data_file")) {
        for (old, new, below) in [
            (65536, 1 << 20, 1 << 20),
            (70_144, 1 << 20, 300_032),
            (512, 65536, 1 << 20),
            (0, 131_072, 131_072),
        ] {
            for prealloc in ALL {
                let make = CreateOptions { parent: named("base", "raw"), ..how(old, text) };
                let file = Arc::new(MemoryStorage::new());
                let layer = Qcow2.create(file.clone(), &NoFiles, &make).unwrap();
                let image = over(layer.clone(), below);
                if prealloc == Prealloc::Falloc {
                    // Memory cannot reserve space.
                    continue;
                }
                image.resize(new, prealloc).unwrap();
                let mut all = vec![1; new as usize];
                image.read(0, &mut all).unwrap();
                let (before, after) = all.split_at(old as usize);
                let told = format!("{text} {old} {new} {below} {prealloc:?}");
                assert!(before.iter().all(|byte| *byte == 0x77), "{told}");
                assert!(after.iter().all(|byte| *byte == 0), "{told}");
                image.close().unwrap();
            }
        }
    }
}

#[test]
fn what_others_left_beyond_the_end_does_not_come_back() {
    let qemu = qemu();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    for text in VARIANTS.iter().filter(|text| !text.contains("data_file")) {
        for compressed in [false, true] {
            let layer = create(&path, &how(1 << 20, text));
            let wanted = pattern(0, 1 << 20, 9);
            if compressed {
                layer.write_compressed(0, &wanted).unwrap();
            } else {
                layer.write(0, &wanted).unwrap();
            }
            layer.close().unwrap();
            drop(layer);
            // The size alone, as a power cut may leave it, or an applied snapshot with a machine's state.
            let old = 100_352;
            patch(&path, 24, &u64::to_be_bytes(old));
            let layer = open(&path, true).unwrap();
            layer.resize(1 << 20, Prealloc::Off, 0).unwrap();
            let all = bytes(&layer);
            assert!(all[..old as usize] == wanted[..old as usize], "{text}");
            assert!(all[old as usize..].iter().all(|byte| *byte == 0), "{text} compressed {compressed}");
            layer.close().unwrap();
            if qemu {
                check(&path);
                assert!(qemu_bytes(&path) == all, "{text}");
            }
        }
    }
}

#[test]
fn a_large_l1_table_grows_and_too_large_a_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let layer = create(&path, &how(65536, "cluster_size=512"));
    layer.write(0, &[5; 65536]).unwrap();
    // 32 KiB for each L1 entry; 4 Mi entries are 32 MiB.
    layer.resize(1 << 36, Prealloc::Off, 0).unwrap();
    disk(layer.clone()).write((1 << 36) - 4096, &[6; 4096]).unwrap();
    layer.flush().unwrap();
    for size in [128 << 30, (128 << 30) + 512, u64::MAX - 511, 1000] {
        let refused = layer.resize(size, Prealloc::Off, 0).is_err();
        assert_eq!(refused, size != 128 << 30, "{size}");
    }
    layer.close().unwrap();
    let layer = open(&path, false).unwrap();
    assert_eq!(layer.size(), 128 << 30);
    let mut buf = [0; 4096];
    disk(layer).read((1 << 36) - 4096, &mut buf).unwrap();
    assert_eq!(buf, [6; 4096]);
    if qemu() {
        check(&path);
    }
}

#[test]
fn as_qemu_does() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (folder.path().join("ours.qcow2"), folder.path().join("theirs.qcow2"));
    for (text, snapshots) in [("cluster_size=64k", true), ("cluster_size=4k,compat=0.10", false)] {
        run(folder.path(), "qemu-img", &["create", "-q", "-f", "qcow2", "-o", text, "theirs.qcow2", "3M"]);
        run(folder.path(), "qemu-io", &["-c", "write -P 5 0 3M", "theirs.qcow2"]);
        run(folder.path(), "qemu-img", &["snapshot", "-c", "s", "theirs.qcow2"]);
        std::fs::copy(&theirs, &ours).unwrap();
        let layer = open(&ours, true).unwrap();
        if !snapshots {
            assert!(layer.resize(8 << 20, Prealloc::Off, 0).is_err());
            continue;
        }
        for size in ["1M", "700M", "2M", "4M"] {
            run(
                folder.path(),
                "qemu-img",
                &["resize", "-q", "--shrink", "-f", "qcow2", "theirs.qcow2", size],
            );
            let mib: u64 = size.trim_end_matches('M').parse().unwrap();
            layer.resize(mib << 20, Prealloc::Off, 0).unwrap();
            layer.flush().unwrap();
            check(&ours);
            run(folder.path(), "qemu-img", &["compare", "-q", "ours.qcow2", "theirs.qcow2"]);
        }
        // The snapshot has what it had.
        layer.close().unwrap();
        for image in ["ours.qcow2", "theirs.qcow2"] {
            run(folder.path(), "qemu-img", &["snapshot", "-q", "-a", "s", image]);
        }
        run(folder.path(), "qemu-img", &["compare", "-q", "ours.qcow2", "theirs.qcow2"]);
        assert_eq!(open(&ours, false).unwrap().size(), 3 << 20);
    }
}

#[test]
fn a_power_cut_leaves_one_size_or_the_other() {
    for text in [
        "cluster_size=4k",
        "cluster_size=512",
        "cluster_size=4k,compat=0.10",
        "cluster_size=16k,extended_l2=on",
    ] {
        for parent in [false, true] {
            for (old, new) in [(70_144u64, 300_032u64), (300_032, 70_144)] {
                for prealloc in [Prealloc::Off, Prealloc::Full] {
                    let prealloc = if new > old { prealloc } else { Prealloc::Off };
                    cut(
                        text,
                        old,
                        parent,
                        |layer| {
                            layer.write(0, &noise(old as usize, 4))?;
                            // Something beyond the end, so that it has to go.
                            let all = layer.size();
                            layer.resize(all - 5120, Prealloc::Off, 0)?;
                            layer.resize(all, Prealloc::Off, 1 << 20)?;
                            layer.write(all - 5120, &noise(old as usize, 4)[old as usize - 5120..])
                        },
                        |layer| {
                            let image = over(layer.clone(), 1 << 20);
                            image.resize(new, prealloc)
                        },
                        |layer, mark| {
                            let size = layer.size();
                            assert!(size == new || (size == old && mark.is_none()), "{size}");
                            let image =
                                if parent { over(layer.clone(), 1 << 20) } else { disk(layer.clone()) };
                            let mut all = vec![1; size as usize];
                            image.read(0, &mut all).unwrap();
                            let mut wanted = noise(old as usize, 4);
                            wanted.resize(size as usize, 0);
                            assert!(all == wanted, "the content");
                            // Whatever it left, the next change gets along with it.
                            let larger = size + 50_176;
                            image.resize(larger, Prealloc::Off).unwrap();
                            wanted.resize(larger as usize, 0);
                            all.resize(larger as usize, 1);
                            image.read(0, &mut all).unwrap();
                            assert!(all == wanted, "grown once more");
                        },
                    );
                }
            }
        }
    }
}

#[test]
fn a_failing_input_or_output_leaves_one_size_or_the_other() {
    for (text, parent) in [("cluster_size=4k", true), ("cluster_size=512", false)] {
        for (old, new) in [(70_144u64, 300_032u64), (300_032, 70_144)] {
            faults(
                text,
                old,
                parent,
                |layer| layer.write(0, &noise(old as usize, 4)),
                |layer| layer.resize(new, Prealloc::Off, 1 << 20),
                |layer, failed| {
                    let size = layer.size();
                    assert!(size == new || (size == old && failed), "{size}");
                    let mut wanted = noise(old as usize, 4);
                    wanted.resize(size as usize, 0);
                    let image = if parent { over(layer.clone(), 1 << 20) } else { disk(layer.clone()) };
                    let mut all = vec![1; size as usize];
                    image.read(0, &mut all).unwrap();
                    assert!(all == wanted, "the content");
                },
            );
        }
    }
}
