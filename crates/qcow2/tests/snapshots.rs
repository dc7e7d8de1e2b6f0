//! Internal snapshots: made, applied and deleted, beside QEMU, through power cuts and failures.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::cut::{cut, faults};
use common::{bytes, check, create, disk, how, noise, open, qemu, run};
use cowhand_core::testing::Rng;
use cowhand_core::{Erase, Format, Layer, MemoryStorage, NewSnapshot, NoFiles, Prealloc, Result};
use cowhand_qcow2::Qcow2;

const VARIANTS: [&str; 6] = [
    "cluster_size=64k",
    "cluster_size=512",
    "cluster_size=4k,compat=0.10",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=4k,refcount_bits=64",
    "cluster_size=4k,refcount_bits=4",
];

fn named(name: &str) -> NewSnapshot {
    NewSnapshot { name: name.to_owned(), date_sec: 1_700_000_000, date_nsec: 5 }
}

fn snap(layer: &Arc<dyn Layer>, name: &str) -> Result<String> {
    Ok(layer.as_snapshots().unwrap().create(&named(name))?.id)
}

fn apply(layer: &Arc<dyn Layer>, which: &str) -> Result<()> {
    layer.as_snapshots().unwrap().apply(which)
}

fn delete(layer: &Arc<dyn Layer>, which: &str) -> Result<()> {
    layer.as_snapshots().unwrap().delete(which)
}

fn ids(layer: &Arc<dyn Layer>) -> Vec<String> {
    layer.as_snapshots().unwrap().list().unwrap().into_iter().map(|info| info.id).collect()
}

/// What a snapshot's disk holds.
fn held(layer: &Arc<dyn Layer>, which: &str) -> Vec<u8> {
    bytes(&layer.as_snapshots().unwrap().open(which).unwrap())
}

/// What QEMU's list says, but for the dates.
fn qemu_list(folder: &Path, image: &str) -> Vec<String> {
    let list = run(folder, "qemu-img", &["snapshot", "-l", image]);
    list.lines().skip(2).map(|line| line.split_whitespace().take(4).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn every_state_comes_back() {
    let qemu = qemu();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    for (number, text) in VARIANTS.iter().enumerate() {
        let v2 = text.contains("0.10");
        let unit = if text.contains("64k") { 65536 } else { 16384 };
        let mut rng = Rng::new(number as u64 + 1);
        let mut layer = create(&path, &how(400 << 10, text));
        let mut now = vec![0; 400 << 10];
        let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
        for round in 0..60 {
            let len = rng.below(60_000).min(now.len() as u64 / 2);
            let at = rng.below(now.len() as u64 - len);
            let range = at as usize..(at + len) as usize;
            let told = format!("{text} round {round}");
            match rng.below(10) {
                0..=3 => {
                    let piece = noise(len as usize, round);
                    disk(layer.clone()).write(at, &piece).unwrap();
                    now[range].copy_from_slice(&piece);
                }
                4 => {
                    disk(layer.clone()).erase(at, len, Erase::Free).unwrap();
                    now[range].fill(0);
                }
                5 => {
                    let at = at / unit * unit;
                    let end = (at + unit).min(now.len() as u64);
                    let piece = vec![round as u8; (end - at) as usize];
                    layer.write_compressed(at, &piece).unwrap();
                    now[at as usize..end as usize].copy_from_slice(&piece);
                }
                6 if kept.len() < 6 => {
                    let id = snap(&layer, "name").unwrap();
                    kept.push((id, now.clone()));
                }
                7 if !kept.is_empty() => {
                    let (id, content) = rng.pick(&kept).clone();
                    apply(&layer, &id).unwrap();
                    now = content;
                    assert_eq!(layer.size(), now.len() as u64);
                }
                8 if kept.len() > 2 => {
                    let (id, _) = kept.remove(rng.below(kept.len() as u64) as usize);
                    delete(&layer, &id).unwrap();
                }
                9 if !v2 => {
                    let size = (200 + rng.below(400)) << 10;
                    layer.resize(size, Prealloc::Off, 0).unwrap();
                    now.resize(size as usize, 0);
                }
                _ => layer.flush().unwrap(),
            }
            if rng.chance(1, 6) {
                layer.close().unwrap();
                layer = open(&path, true).unwrap();
            }
            assert!(bytes(&layer) == now, "{told}");
            assert_eq!(ids(&layer), kept.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>());
            for (id, content) in &kept {
                assert!(held(&layer, id) == *content, "{told}: snapshot {id}");
            }
            if qemu && round % 12 == 11 {
                layer.close().unwrap();
                check(&path);
                layer = open(&path, true).unwrap();
            }
        }
        while let Some((id, _)) = kept.pop() {
            delete(&layer, &id).unwrap();
        }
        layer.close().unwrap();
        if qemu {
            check(&path);
        }
        assert!(bytes(&open(&path, false).unwrap()) == now);
    }
}

#[test]
fn as_qemu_does() {
    if !qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (folder.path().join("ours.qcow2"), folder.path().join("theirs.qcow2"));
    for text in ["cluster_size=4k,compat=0.10", "cluster_size=16k,extended_l2=on"] {
        run(folder.path(), "qemu-img", &["create", "-q", "-f", "qcow2", "-o", text, "theirs.qcow2", "3M"]);
        run(folder.path(), "qemu-io", &["-c", "write -P 5 0 1M", "theirs.qcow2"]);
        std::fs::copy(&theirs, &ours).unwrap();
        // Each step is done by us on one and by QEMU on the other.
        let io = |command: &str| {
            for image in ["ours.qcow2", "theirs.qcow2"] {
                run(folder.path(), "qemu-io", &["-c", command, image]);
            }
        };
        let both = |argument: &str, which: &str| {
            run(folder.path(), "qemu-img", &["snapshot", "-q", argument, which, "theirs.qcow2"]);
            let layer = open(&ours, true).unwrap();
            match argument {
                "-c" => drop(snap(&layer, which).unwrap()),
                "-a" => apply(&layer, which).unwrap(),
                _ => delete(&layer, which).unwrap(),
            }
            layer.close().unwrap();
            drop(layer);
            check(&ours);
            assert_eq!(qemu_list(folder.path(), "ours.qcow2"), qemu_list(folder.path(), "theirs.qcow2"));
            run(folder.path(), "qemu-img", &["compare", "-q", "ours.qcow2", "theirs.qcow2"]);
            // A list's last one is the one that is easily forgotten.
            for line in qemu_list(folder.path(), "ours.qcow2").into_iter().rev().take(2) {
                let id = format!("snapshot.id={}", line.split(' ').next().unwrap());
                let dump = |image: &str| {
                    let to = format!("{image}.raw");
                    run(folder.path(), "qemu-img", &["convert", "-l", &id, "-O", "raw", image, &to]);
                    std::fs::read(folder.path().join(to)).unwrap()
                };
                assert!(dump("ours.qcow2") == dump("theirs.qcow2"), "{text} {argument} {which}: {line}");
            }
        };
        both("-c", "one");
        io("write -P 6 500k 1M");
        both("-c", "two");
        both("-c", "two");
        io("discard 0 2M");
        both("-c", "4");
        both("-a", "one");
        io("write -P 7 10k 100k");
        both("-d", "two");
        both("-a", "3");
        both("-c", "again");
        both("-d", "4");
        both("-d", "one");
        io("write -P 8 0 3M");
        both("-a", "again");
        both("-d", "again");
    }
}

/// Puts a machine's state behind the disk of the only snapshot: what `savevm` leaves, made by a larger disk.
fn with_state(path: &Path) -> (Vec<u8>, Vec<u8>) {
    // 4 KiB clusters: an L1 entry maps 2 MiB.
    let layer = create(path, &how(6 << 20, "cluster_size=4k"));
    let (guest, state) = (noise(1 << 20, 1), noise(100 << 10, 2));
    layer.write(0, &guest).unwrap();
    layer.write(2 << 20, &state).unwrap();
    snap(&layer, "vm").unwrap();
    layer.close().unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut at = [0; 8];
    file.read_exact_at(&mut at, 64).unwrap();
    let at = u64::from_be_bytes(at);
    let size = u64::to_be_bytes(2 << 20);
    file.write_all_at(&size, 24).unwrap();
    file.write_all_at(&u32::to_be_bytes(100 << 10), at + 32).unwrap();
    file.write_all_at(&u64::to_be_bytes(100 << 10), at + 40).unwrap();
    file.write_all_at(&size, at + 48).unwrap();
    let mut wanted = guest;
    wanted.resize(2 << 20, 0);
    (wanted, state)
}

#[test]
fn a_machines_state_goes_along() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let (guest, state) = with_state(&path);
    let layer = open(&path, true).unwrap();
    assert_eq!(layer.as_snapshots().unwrap().list().unwrap()[0].vm_state_size, 100 << 10);
    snap(&layer, "plain").unwrap();
    layer.write(0, &[1; 70000]).unwrap();
    layer.resize(5 << 20, Prealloc::Off, 0).unwrap();
    assert!(bytes(&layer)[2 << 20..].iter().all(|byte| *byte == 0));
    snap(&layer, "larger").unwrap();
    delete(&layer, "plain").unwrap();
    apply(&layer, "vm").unwrap();
    assert!(bytes(&layer) == guest);
    layer.flush().unwrap();
    if qemu() {
        check(&path);
    }
    // The state is there for who applied the snapshot: beyond the end, in the image's own tables.
    layer.close().unwrap();
    drop(layer);
    let copy = folder.path().join("copy.qcow2");
    std::fs::copy(&path, &copy).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&copy).unwrap();
    file.write_all_at(&u64::to_be_bytes(6 << 20), 24).unwrap();
    assert!(bytes(&open(&copy, false).unwrap())[2 << 20..][..state.len()] == state);
    // It goes with the next change of what it belongs to, and the snapshot keeps it.
    let layer = open(&path, true).unwrap();
    delete(&layer, "larger").unwrap();
    layer.resize(4 << 20, Prealloc::Off, 0).unwrap();
    assert!(bytes(&layer)[2 << 20..].iter().all(|byte| *byte == 0));
    apply(&layer, "vm").unwrap();
    delete(&layer, "vm").unwrap();
    assert!(bytes(&layer) == guest);
    layer.close().unwrap();
    if qemu() {
        check(&path);
    }
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    // One reference is all that a counter of one bit can say.
    let layer = create(&path, &how(1 << 20, "cluster_size=4k,refcount_bits=1"));
    layer.write(0, &noise(1 << 20, 1)).unwrap();
    layer.flush().unwrap();
    assert!(snap(&layer, "one").unwrap_err().to_string().contains("refcount_bits"));
    assert!(ids(&layer).is_empty());
    layer.write(5000, &[7; 5000]).unwrap();
    layer.close().unwrap();
    if qemu() {
        check(&path);
    }
    let layer = create(&path, &how(1 << 20, "cluster_size=4k,refcount_bits=2"));
    layer.write(0, &noise(1 << 20, 1)).unwrap();
    for name in ["one", "two"] {
        snap(&layer, name).unwrap();
    }
    let before = layer.host().len().unwrap();
    assert!(snap(&layer, "three").is_err());
    assert!(apply(&layer, "three").is_err());
    assert!(delete(&layer, "three").is_err());
    // Of one that is full, another can be applied.
    apply(&layer, "one").unwrap();
    assert!(snap(&layer, &"n".repeat(256)).is_err());
    assert!(layer.host().len().unwrap() < before + (1 << 20));
    let one = layer.as_snapshots().unwrap().open("one").unwrap();
    assert!(delete(&layer, "one").is_err());
    drop(one);
    delete(&layer, "one").unwrap();
    layer.close().unwrap();
    if qemu() {
        check(&path);
    }
    let layer = create(&path, &how(1 << 20, "data_file=data"));
    assert!(snap(&layer, "one").is_err());
    let layer = open(&path, false).unwrap();
    assert!(delete(&layer, "one").is_err());
}

#[test]
fn an_empty_disk_has_snapshots_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let layer = create(&path, &how(0, "cluster_size=64k"));
    snap(&layer, "nothing").unwrap();
    layer.resize(1 << 20, Prealloc::Off, 0).unwrap();
    layer.write(0, &[5; 1 << 20]).unwrap();
    snap(&layer, "something").unwrap();
    apply(&layer, "nothing").unwrap();
    assert_eq!(layer.size(), 0);
    layer.flush().unwrap();
    if qemu() {
        check(&path);
    }
    apply(&layer, "something").unwrap();
    delete(&layer, "nothing").unwrap();
    assert!(bytes(&layer).iter().all(|byte| *byte == 5));
    layer.close().unwrap();
    if qemu() {
        check(&path);
    }
}

#[test]
fn what_an_entry_says_beyond_what_is_known_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let layer = create(&path, &how(1 << 20, "cluster_size=4k"));
    snap(&layer, "abcdefghijklmnopqrstuvwxyz0123456789").unwrap();
    layer.close().unwrap();
    drop(layer);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let table = |of: &std::fs::File| {
        let mut at = [0; 8];
        of.read_exact_at(&mut at, 64).unwrap();
        u64::from_be_bytes(at)
    };
    // 16 of the name's bytes become extra data that nobody knows.
    file.write_all_at(&u32::to_be_bytes(40), table(&file) + 36).unwrap();
    file.write_all_at(&u16::to_be_bytes(20), table(&file) + 14).unwrap();
    let mut before = [0; 101];
    file.read_exact_at(&mut before, table(&file)).unwrap();
    let layer = open(&path, true).unwrap();
    snap(&layer, "other").unwrap();
    apply(&layer, "other").unwrap();
    delete(&layer, "other").unwrap();
    layer.close().unwrap();
    let mut after = [0; 101];
    file.read_exact_at(&mut after, table(&file)).unwrap();
    assert_eq!(before, after);
    if qemu() {
        check(&path);
    }
}

/// A disk with two snapshots and much between them.
fn filled(layer: &Arc<dyn Layer>) -> Result<()> {
    layer.write(0, &noise(200_000, 1))?;
    layer.write_compressed(131_072, &[3; 65536])?;
    snap(layer, "one")?;
    layer.write(10_000, &noise(50_000, 2))?;
    layer.erase(65536, 32768, Erase::Free)?;
    snap(layer, "two")?;
    layer.write(100_000, &noise(100_000, 3))?;
    Ok(())
}

/// (the snapshots' names, what they hold, what the disk holds)
type Held = Vec<(String, Vec<u8>)>;

fn all(layer: &Arc<dyn Layer>) -> Held {
    let mut all = vec![(String::new(), bytes(layer))];
    all.extend(ids(layer).into_iter().map(|id| (id.clone(), held(layer, &id))));
    all
}

fn states(text: &str, change: impl Fn(&Arc<dyn Layer>) -> Result<()>) -> (Held, Held) {
    let layer = Qcow2.create(Arc::new(MemoryStorage::new()), &NoFiles, &how(262_144, text)).unwrap();
    filled(&layer).unwrap();
    let before = all(&layer);
    change(&layer).unwrap();
    (before, all(&layer))
}

type Change = fn(&Arc<dyn Layer>) -> Result<()>;

const CHANGES: [(&str, Change); 5] = [
    ("create", |layer| snap(layer, "three").map(drop)),
    ("apply", |layer| apply(layer, "one")),
    ("apply the last", |layer| apply(layer, "two")),
    ("delete", |layer| delete(layer, "one")),
    ("delete the last", |layer| delete(layer, "two")),
];

#[test]
fn a_power_cut_leaves_it_done_or_not_begun() {
    for (number, text) in [VARIANTS[0], VARIANTS[1], VARIANTS[2], VARIANTS[3]].into_iter().enumerate() {
        // All of them on the first two, one on each other.
        for (name, change) in CHANGES.into_iter().filter(|(name, _)| number < 2 || name.len() == 6) {
            let (before, after) = states(text, change);
            cut(text, 262_144, false, filled, change, |layer, mark| {
                let found = all(layer);
                assert!(found == after || (mark.is_none() && found == before), "{name}");
                // What it left can be used.
                layer.write(0, &noise(200_000, 9)).unwrap();
                let id = snap(layer, "more").unwrap();
                delete(layer, "1").or_else(|_| delete(layer, "2")).unwrap();
                assert!(held(layer, &id) == bytes(layer));
            });
        }
    }
}

#[test]
fn a_failing_input_or_output_leaves_it_done_or_not_begun() {
    for text in [VARIANTS[1], VARIANTS[2], VARIANTS[3]] {
        for (name, change) in CHANGES {
            let (before, after) = states(text, change);
            faults(text, 262_144, false, filled, change, |layer, failed| {
                let found = all(layer);
                assert!(found == after || (failed && found == before), "{name}");
            });
        }
    }
}

#[test]
fn an_image_goes_on_after_a_failure() {
    for text in [VARIANTS[1], VARIANTS[4]] {
        for (name, change) in CHANGES {
            for nth in 1..60 {
                let folder = Arc::new(cowhand_core::MemoryFolder::new());
                let file = cowhand_core::Folder::create_new(folder.as_ref(), "disk").unwrap();
                filled(&Qcow2.create(file, &NoFiles, &how(262_144, text)).unwrap()).unwrap();
                let faults = cowhand_core::testing::Faults::none();
                let file = cowhand_core::Folder::open(faults.folder(folder.clone()).as_ref(), "disk", true);
                let writable = cowhand_core::OpenOptions { writable: true, ..Default::default() };
                let layer = Qcow2.open(file.unwrap(), &NoFiles, &writable).unwrap();
                layer.write(0, &[1; 512]).unwrap();
                layer.flush().unwrap();
                let before = all(&layer);
                faults.arm(cowhand_core::testing::Fault::ENOSPC, nth);
                let done = change(&layer);
                let fired = !faults.fired().is_empty();
                if !fired {
                    break;
                }
                if done.is_ok() {
                    continue;
                }
                assert!(all(&layer) == before, "{text} {name} {nth}");
                // The same again, and it goes well, unless the header's write was what failed.
                if change(&layer).is_ok() {
                    assert!(all(&layer) != before || name == "apply the last", "{text} {name} {nth}");
                    layer.write(0, &noise(262_144, 4)).unwrap();
                    layer.close().unwrap();
                }
            }
        }
    }
}

#[test]
fn readers_and_writers_go_on_meanwhile() {
    const CLUSTERS: u64 = 64;
    let qemu = qemu();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    for text in ["cluster_size=4k", "cluster_size=16k,extended_l2=on"] {
        let layer = create(&path, &how(CLUSTERS * 4096, text));
        let done = AtomicBool::new(false);
        // What each cluster was last written with: one writer has one half.
        let written: Vec<AtomicU64> = (0..CLUSTERS).map(|_| AtomicU64::new(0)).collect();
        let rounds = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for writer in 0..2 {
                let (layer, done, written) = (&layer, &done, &written);
                scope.spawn(move || {
                    let mut rng = Rng::new(writer + 1);
                    while !done.load(Ordering::Relaxed) {
                        let cluster = rng.below(CLUSTERS / 2) * 2 + writer;
                        let value = rng.below(250) + 1;
                        layer.write(cluster * 4096, &vec![value as u8; 4096]).unwrap();
                        written[cluster as usize].store(value, Ordering::Relaxed);
                    }
                });
            }
            let (layer, done) = (&layer, &done);
            scope.spawn(move || {
                let mut rng = Rng::new(7);
                let mut buf = vec![0; 4096];
                while !done.load(Ordering::Relaxed) {
                    let cluster = rng.below(CLUSTERS);
                    buf.fill(0);
                    disk(layer.clone()).read(cluster * 4096, &mut buf).unwrap();
                    layer.extent(cluster * 4096, 4096).unwrap();
                }
            });
            let since = Instant::now();
            while since.elapsed() < Duration::from_millis(600) {
                let id = snap(layer, "s").unwrap();
                let first = held(layer, &id);
                // It is one moment: it does not change any more.
                assert!(held(layer, &id) == first);
                if rounds.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                    layer.resize(CLUSTERS * 4096 + 1024, Prealloc::Off, 0).unwrap();
                    layer.resize(CLUSTERS * 4096, Prealloc::Off, 0).unwrap();
                }
                assert!(held(layer, &id) == first);
                delete(layer, &id).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(rounds.load(Ordering::Relaxed) > 3);
        let all = bytes(&layer);
        for (cluster, value) in all.chunks(4096).zip(&written) {
            assert!(cluster.iter().all(|byte| u64::from(*byte) == value.load(Ordering::Relaxed)), "{text}");
        }
        layer.close().unwrap();
        if qemu {
            check(&path);
        }
    }
}

#[test]
fn bitmaps_are_kept_by_all_but_apply() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let layer = create(&path, &how(1 << 20, "cluster_size=4k"));
    layer.as_bitmaps().unwrap().add("b", Some(65536), true).unwrap();
    layer.write(0, &noise(100_000, 1)).unwrap();
    let id = snap(&layer, "one").unwrap();
    layer.write(300_000, &noise(100_000, 2)).unwrap();
    let told = apply(&layer, &id).unwrap_err().to_string();
    assert!(told.contains("bitmaps"), "{told}");
    delete(&layer, &id).unwrap();
    let dirty = |layer: &Arc<dyn Layer>| {
        let mut all = Vec::new();
        let mut see = |range: std::ops::Range<u64>| {
            all.push(range);
            Ok(())
        };
        layer.as_bitmaps().unwrap().dirty("b", &mut see).unwrap();
        all.iter().map(|range| range.end - range.start).sum::<u64>()
    };
    assert_eq!(dirty(&layer), 5 * 65536);
    layer.close().unwrap();
    drop(layer);
    if qemu() {
        check(&path);
    }
    let layer = open(&path, true).unwrap();
    assert_eq!(dirty(&layer), 5 * 65536);
    // All of the disk changes when it is emptied.
    layer.clear().unwrap();
    layer.close().unwrap();
    drop(layer);
    if qemu() {
        check(&path);
    }
    assert_eq!(dirty(&open(&path, false).unwrap()), 1 << 20);
}

#[test]
fn an_l1_table_that_names_one_table_often_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let layer = create(&path, &how(8 << 20, "cluster_size=4k"));
    layer.write(0, &noise(4096, 1)).unwrap();
    layer.close().unwrap();
    drop(layer);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let word = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let l1 = word(40);
    let table = word(l1) & 0x00ff_ffff_ffff_fe00;
    for index in 0..4 {
        file.write_all_at(&table.to_be_bytes(), l1 + 8 * index).unwrap();
    }
    let block = word(word(48));
    file.write_all_at(&4u16.to_be_bytes(), block + 2 * (table / 4096)).unwrap();
    let data = word(table) & 0x00ff_ffff_ffff_fe00;
    file.write_all_at(&data.to_be_bytes(), table).unwrap();
    file.write_all_at(&4u16.to_be_bytes(), block + 2 * (data / 4096)).unwrap();
    let before = std::fs::read(&path).unwrap();
    let layer = open(&path, true).unwrap();
    let told = snap(&layer, "one").unwrap_err().to_string();
    assert!(told.contains("another entry has"), "{told}");
    assert!(layer.clear().is_err());
    layer.close().unwrap();
    assert!(std::fs::read(&path).unwrap() == before);
}
