//! Checking and repairing: damaged images of every kind, what a repair keeps, power cuts and failing disks in it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Here, qemu, run};
use cowhand_core::testing::{Fault, Io, Journal, Plan, Rng, fault_test};
use cowhand_core::{
    CheckOptions, Error, Format, Layer, MemoryFolder, MemoryStorage, NoFiles, OpenOptions, Quiet, Repair,
    Report, Resolver, Result, Rules, Storage,
};
use cowhand_qcow2::Qcow2;

fn check_in(file: &Arc<dyn Storage>, files: &dyn Resolver, repair: Repair) -> Result<Report> {
    let how = CheckOptions { repair, workers: 2, ..CheckOptions::default() };
    Qcow2.checker().unwrap().check(file.clone(), files, &how, &Quiet)
}

fn check(file: &Arc<dyn Storage>, repair: Repair) -> Result<Report> {
    check_in(file, &NoFiles, repair)
}

fn memory(bytes: &[u8]) -> Arc<dyn Storage> {
    Arc::new(MemoryStorage::from_bytes(bytes))
}

fn get(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

/// Disk kinds that QEMU makes: (name, options, what qemu-io writes, snapshots and bitmaps).
const KINDS: [(&str, &str, bool); 10] = [
    ("plain", "cluster_size=4k", false),
    ("snapshots", "cluster_size=4k", true),
    ("v2", "cluster_size=4k,compat=0.10", true),
    ("one", "cluster_size=4k,refcount_bits=1", false),
    ("narrow", "cluster_size=2k,refcount_bits=8", true),
    ("wide", "cluster_size=512,refcount_bits=64", true),
    ("extended", "cluster_size=16k,extended_l2=on", true),
    ("zstd", "cluster_size=4k,compression_type=zstd", true),
    ("outside", "cluster_size=4k,data_file=outside.data", false),
    ("raw", "cluster_size=4k,data_file=raw.data,data_file_raw=on", false),
];

const SIZE: &str = "1M";

fn make(folder: &Path, name: &str, options: &str, snapshots: bool) -> Vec<u8> {
    let image = format!("{name}.qcow2");
    let img = |arguments: &[&str]| run(folder, "qemu-img", arguments);
    let io = |commands: &[&str]| {
        let mut arguments = Vec::new();
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(&image);
        run(folder, "qemu-io", &arguments);
    };
    img(&["create", "-q", "-f", "qcow2", "-o", options, &image, SIZE]);
    io(&[
        "write -P 1 0 64k",
        "write -P 2 300k 33k",
        "write -P 3 700k 5k",
        "write -z 128k 32k",
        "discard 16k 16k",
    ]);
    if !options.contains("data_file") {
        io(&["write -c -P 4 512k 64k", "write -c -P 5 576k 64k"]);
    }
    if snapshots {
        img(&["snapshot", "-c", "first", &image]);
        io(&["write -P 6 32k 20k", "write -P 7 900k 64k"]);
        img(&["snapshot", "-c", "second", &image]);
        io(&["write -P 8 0 4k"]);
    }
    if !options.contains("compat=0.10") {
        img(&["bitmap", "--add", "-g", "64k", &image, "map"]);
        io(&["write -P 9 320k 4k"]);
    }
    std::fs::read(folder.join(&image)).unwrap()
}

/// Where metadata stands, found in a way of its own: whatever is no data, and the header's first words.
fn metadata(bytes: &[u8]) -> Vec<usize> {
    let size = 1usize << get(bytes, 20, 4);
    let offset = |at: usize| (get(bytes, at, 8) & 0x00ff_ffff_ffff_fe00) as usize;
    let mut found = vec![24, 32, 40, 44, 48, 56, 60, 64, 68, 72, 88, 96];
    let mut table = |at: usize, len: usize| {
        (at..(at + len).min(bytes.len())).step_by(8).for_each(|at| found.push(at));
    };
    let (l1, l1_len) = (offset(40), get(bytes, 36, 4) as usize * 8);
    table(l1, l1_len);
    (l1..l1 + l1_len).step_by(8).filter(|at| offset(*at) > 0).for_each(|at| table(offset(at), size));
    let counts = offset(48);
    table(counts, 64);
    (counts..counts + size).step_by(8).filter(|at| offset(*at) > 0).for_each(|at| table(offset(at), 512));
    if get(bytes, 60, 4) > 0 {
        table(offset(64), 160);
        let snapshot = offset(offset(64));
        table(snapshot, l1_len);
        (snapshot..snapshot + l1_len)
            .step_by(8)
            .filter(|at| offset(*at) > 0)
            .for_each(|at| table(offset(at), size));
    }
    // Entries that say something are more telling than empty ones.
    found.retain(|at| at + 8 <= bytes.len());
    let said: Vec<usize> = found.iter().copied().filter(|at| get(bytes, *at, 8) != 0).collect();
    found.extend(said.repeat(4));
    found
}

fn damage(bytes: &mut [u8], places: &[usize], rng: &mut Rng) {
    for _ in 0..1 + rng.below(3) {
        let at = places[rng.below(places.len() as u64) as usize];
        let old = get(bytes, at, 8);
        let cluster = 1u64 << get(bytes, 20, 4).clamp(9, 21);
        let other = get(bytes, places[rng.below(places.len() as u64) as usize], 8);
        let new = match rng.below(8) {
            0 => 0,
            1 => old ^ 1 << rng.below(64),
            2 => other,
            3 => old.wrapping_add(cluster),
            4 => old ^ 1 << 63,
            5 => old.wrapping_add(512),
            6 => (old & !0x00ff_ffff_ffff_fe00) | (cluster * rng.below(bytes.len() as u64 / cluster + 2)),
            _ => rng.any(),
        };
        bytes[at..at + 8].copy_from_slice(&new.to_be_bytes());
    }
}

/// What each guest sector reads; `None`: an error.
fn sectors(file: &Arc<dyn Storage>, files: &dyn Resolver) -> Option<Vec<Option<[u8; 512]>>> {
    let layer: Arc<dyn Layer> = Qcow2.open(file.clone(), files, &OpenOptions::default()).ok()?;
    if layer.size() > 64 << 20 {
        return None;
    }
    let disk = common::disk(layer);
    let mut all = Vec::new();
    for at in (0..disk.size() / 512 * 512).step_by(512) {
        let mut sector = [0; 512];
        all.push(disk.read(at, &mut sector).ok().map(|()| sector));
    }
    Some(all)
}

/// The guest ranges that a repair says are lost.
fn lost(report: &Report) -> Vec<(u64, u64)> {
    let range = |message: &str| {
        let rest = message.strip_prefix("guest bytes ")?;
        let (from, rest) = rest.split_once(" to ")?;
        let (to, _) = rest.split_once(" are lost")?;
        Some((from.parse().ok()?, to.parse().ok()?))
    };
    report.faults.iter().filter_map(|fault| range(&fault.message)).collect()
}

/// Any few words of metadata may be anything: a check ends, changes nothing, and a repair gives an image in which QEMU
/// finds nothing wrong either, and which still reads all that could be read.
#[test]
fn any_damage_is_found_and_what_is_repaired_is_right() {
    if !qemu() {
        return;
    }
    let rounds: u64 = std::env::var("COWHAND_CHECK_ROUNDS").map_or(8, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let here = Here(folder.path().to_owned());
    let path = folder.path().join("damaged.qcow2");
    let (mut clean, mut opened) = (0, 0);
    for (name, options, snapshots) in KINDS {
        let good = make(folder.path(), name, options, snapshots);
        let report = check_in(&memory(&good), &here, Repair::Nothing).unwrap();
        assert!(report.is_clean(), "{name}: {:?}", report.faults);
        let places = metadata(&good);
        for round in 0..rounds {
            let told = format!("{name}, round {round}");
            let mut rng = Rng::new(round.wrapping_mul(977).wrapping_add(name.len() as u64));
            let mut bytes = good.clone();
            damage(&mut bytes, &places, &mut rng);
            let file = Arc::new(MemoryStorage::from_bytes(&bytes));
            let storage: Arc<dyn Storage> = file.clone();
            let Ok(first) = check_in(&storage, &here, Repair::Nothing) else { continue };
            assert!(file.to_vec() == bytes, "{told}: a check changed the image");
            let before = sectors(&storage, &here);
            opened += u64::from(before.is_some());
            let Ok(repaired) = check_in(&storage, &here, Repair::All) else { continue };
            let again = check_in(&storage, &here, Repair::Nothing).unwrap();
            assert_eq!(
                (again.corruptions, again.leaks, again.check_errors),
                (repaired.corruptions, repaired.leaks, repaired.check_errors),
                "{told}: {:?}",
                repaired.faults
            );
            if let Some(before) = before {
                let after =
                    sectors(&storage, &here).unwrap_or_else(|| panic!("{told}: does not open any more"));
                let lost = lost(&repaired);
                assert!(lost.is_empty() || repaired.lost > 0, "{told}: {repaired:?}");
                if repaired.lost > 0 {
                    let kept: Arc<dyn Storage> = Arc::new(MemoryStorage::from_bytes(&bytes));
                    let how = CheckOptions {
                        repair: Repair::All,
                        rules: Rules { keep: true, ..Rules::default() },
                        ..CheckOptions::default()
                    };
                    let report = Qcow2.checker().unwrap().check(kept.clone(), &here, &how, &Quiet).unwrap();
                    assert!(report.lost == 0 && report.corruptions > 0, "{told}: {report:?}");
                    let after = sectors(&kept, &here).unwrap();
                    let same = before.iter().zip(&after).all(|(old, new)| old.is_none() || old == new);
                    assert!(same, "{told}: something is gone that was kept\n{report:#?}");
                }
                for (number, (before, after)) in before.iter().zip(&after).enumerate() {
                    let at = number as u64 * 512;
                    if before.is_some()
                        && repaired.faults.len() < 1000
                        && !lost.iter().any(|(from, to)| (*from..=*to).contains(&at))
                    {
                        assert!(
                            before == after,
                            "{told}: guest offset {at} changed\n{:#?}\n{repaired:#?}",
                            first.faults
                        );
                    }
                }
            }
            if again.is_clean() {
                clean += 1;
                std::fs::write(&path, file.to_vec()).unwrap();
                let out = Command::new("qemu-img")
                    .args(["check", "-f", "qcow2"])
                    .current_dir(folder.path())
                    .arg(&path)
                    .output()
                    .unwrap();
                assert!(
                    out.status.success(),
                    "{told}: QEMU still finds something\n{}{}\n{:#?}\n{:#?}",
                    String::from_utf8_lossy(&out.stdout),
                    String::from_utf8_lossy(&out.stderr),
                    first.faults,
                    repaired
                );
            }
        }
    }
    println!("{clean} repaired, {opened} opened before");
    assert!(clean > rounds * 4, "only {clean} were repaired");
}

/// An image in memory, of 64 clusters of 4 KiB that hold data, and what is wrong with it.
fn damaged() -> Vec<(&'static str, Vec<u8>)> {
    let file = Arc::new(MemoryStorage::new());
    let how = common::how(1 << 20, "cluster_size=4k");
    let layer = Qcow2.create(file.clone(), &NoFiles, &how).unwrap();
    layer.write(0, &common::pattern(0, 256 << 10, 0)).unwrap();
    layer.close().unwrap();
    let mut good = file.to_vec();
    good.resize(128 << 12, 0);
    let l1 = get(&good, 40, 8) as usize;
    let l2 = (get(&good, l1, 8) & 0x00ff_ffff_ffff_fe00) as usize;
    let table = get(&good, 48, 8) as usize;
    let block = get(&good, table, 8) as usize;
    let host = |index: usize| (get(&good, l2 + 8 * index, 8) & 0x00ff_ffff_ffff_fe00) as usize >> 12;
    let spoil = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let put =
        |bytes: &mut Vec<u8>, at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    let count = |bytes: &mut Vec<u8>, cluster: usize, value: u16| {
        bytes[block + 2 * cluster..block + 2 * cluster + 2].copy_from_slice(&value.to_be_bytes());
    };
    let dirty = |bytes: &mut Vec<u8>| put(bytes, 72, 3);
    vec![
        ("leaks", spoil(&|bytes| (90..120).for_each(|cluster| count(bytes, cluster, 1)))),
        ("counts too low", spoil(&|bytes| (0..40).for_each(|index| count(bytes, host(index), 0)))),
        ("counts too high", spoil(&|bytes| (0..40).for_each(|index| count(bytes, host(index), 7)))),
        (
            "a cluster with two owners",
            spoil(&|bytes| {
                put(bytes, l2 + 8 * 100, get(bytes, l2, 8));
                dirty(bytes);
            }),
        ),
        (
            "flags missing",
            spoil(&|bytes| {
                (0..64)
                    .for_each(|index| put(bytes, l2 + 8 * index, get(bytes, l2 + 8 * index, 8) & !(1 << 63)));
            }),
        ),
        ("no refcount block", spoil(&|bytes| put(bytes, table, 0))),
        (
            "no refcount table",
            spoil(&|bytes| {
                put(bytes, 48, 1 << 40);
                dirty(bytes);
            }),
        ),
        (
            "entries past the end, lost counts and leaks",
            spoil(&|bytes| {
                put(bytes, l2 + 8 * 70, 1 << 63 | 1 << 40);
                put(bytes, l2 + 8 * 71, 1 << 63 | 4096);
                (0..20).for_each(|index| count(bytes, host(index), 0));
                (90..120).for_each(|cluster| count(bytes, cluster, 3));
                dirty(bytes);
            }),
        ),
    ]
}

fn first_bytes(file: &Arc<dyn Storage>) -> Vec<u8> {
    let layer: Arc<dyn Layer> = Qcow2.open(file.clone(), &NoFiles, &OpenOptions::default()).unwrap();
    let mut bytes = vec![0; 256 << 10];
    common::disk(layer).read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_wrong_is_put_right_and_nothing_is_lost() {
    for (name, bytes) in damaged() {
        let file = memory(&bytes);
        let before = check(&file, Repair::Nothing).unwrap();
        assert!(!before.is_clean(), "{name}");
        let after = check(&file, Repair::All).unwrap();
        assert!(after.is_clean(), "{name}: {:#?}", after.faults);
        assert!(after.corruptions_fixed + after.leaks_fixed > 0, "{name}");
        assert!(check(&file, Repair::Nothing).unwrap().is_clean(), "{name}");
        assert!(first_bytes(&file) == common::pattern(0, 256 << 10, 0), "{name}: data changed");
        // It can be written again, which a dirty or corrupt image cannot.
        let layer = Qcow2
            .open(file.clone(), &NoFiles, &OpenOptions { writable: true, ..OpenOptions::default() })
            .unwrap();
        layer.write(512 << 10, &[7; 8192]).unwrap();
        layer.close().unwrap();
        assert!(check(&file, Repair::Nothing).unwrap().is_clean(), "{name}: written");
    }
}

/// A repair of leaks alone touches no entry, and nothing at all where it cannot see all references.
#[test]
fn leaks_alone_are_given_back_only_where_everything_is_seen() {
    for (name, bytes) in damaged() {
        let file = memory(&bytes);
        let before = check(&file, Repair::Nothing).unwrap();
        let after = check(&file, Repair::Leaks).unwrap();
        assert!(after.corruptions <= before.corruptions && after.leaks <= before.leaks, "{name}");
        if name.starts_with("entries") || name == "no refcount table" {
            assert_eq!(after.leaks_fixed, 0, "{name}");
            let now = (0..bytes.len() as u64).step_by(4096).map(|at| {
                let mut cluster = vec![0; 4096];
                file.read_at(at, &mut cluster).unwrap();
                cluster
            });
            assert!(now.flatten().collect::<Vec<u8>>() == bytes, "{name}: changed");
        } else {
            assert_eq!(after.leaks, 0, "{name}");
        }
    }
}

/// The power goes at any moment of a repair: what was readable is, and running it again ends clean.
#[test]
fn a_power_cut_in_a_repair_leaves_nothing_worse() {
    for (name, bytes) in damaged() {
        let folder = MemoryFolder::new();
        folder.insert("disk", Arc::new(MemoryStorage::from_bytes(&bytes)));
        let journal = Journal::over(&folder);
        let file = cowhand_core::Folder::open(journal.folder().as_ref(), "disk", true).unwrap();
        check(&file, Repair::All).unwrap();
        drop(file);
        let whole = common::pattern(0, 256 << 10, 0);
        let plan = Plan { random: 20, exhaustive: 8, max_states: 400, ..Plan::default() };
        let mut seen = 0;
        for state in journal.states(&plan) {
            let told = format!("{name}, {state}");
            let file = cowhand_core::Folder::open(state.folder().as_ref(), "disk", true).unwrap();
            if name != "no refcount table"
                || Qcow2.open(file.clone(), &NoFiles, &OpenOptions::default()).is_ok()
            {
                assert!(first_bytes(&file) == whole, "{told}: data changed");
            }
            let after = check(&file, Repair::All).unwrap();
            assert!(after.is_clean(), "{told}: {:#?}", after.faults);
            assert!(first_bytes(&file) == whole, "{told}: data changed by the second repair");
            seen += 1;
        }
        assert!(seen > 0, "{name}: {seen} states");
    }
}

/// Any input or output of a repair fails: it says so, nothing readable is lost, and the next repair ends clean.
#[test]
fn a_failing_disk_in_a_repair_leaves_nothing_worse() {
    let whole = common::pattern(0, 256 << 10, 0);
    for (name, bytes) in damaged() {
        for fault in [Fault::EIO, Fault::EIO.forever(), Fault::EIO.only(&[Io::Write]).torn()] {
            fault_test(
                fault,
                || Arc::new(MemoryStorage::from_bytes(&bytes)),
                |file, faults| {
                    let file: Arc<dyn Storage> = faults.storage(file.clone());
                    let how = CheckOptions { repair: Repair::All, workers: 1, ..CheckOptions::default() };
                    let report = Qcow2.checker().unwrap().check(file, &NoFiles, &how, &Quiet)?;
                    match report.check_errors {
                        0 => Ok(()),
                        _ => Err(Error::invalid("something could not be looked at")),
                    }
                },
                |file, _| {
                    let file: Arc<dyn Storage> = file.clone();
                    let after = check(&file, Repair::All)?;
                    assert!(after.is_clean(), "{name}: {:#?}", after.faults);
                    assert!(first_bytes(&file) == whole, "{name}: data changed");
                    Ok(())
                },
            )
            .unwrap_or_else(|failure| panic!("{name}: {failure}"));
        }
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, value: u64) {
    if bytes.len() < at + 8 {
        bytes.resize(at + 8, 0);
    }
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// What is said large, shared or far away takes neither time nor memory.
#[test]
fn hostile_images_are_bounded() {
    let file = Arc::new(MemoryStorage::new());
    let layer = Qcow2.create(file.clone(), &NoFiles, &common::how(2 << 40, "cluster_size=64k")).unwrap();
    layer.write(0, &common::pattern(0, 1 << 20, 0)).unwrap();
    layer.close().unwrap();
    let good = file.to_vec();
    let l1 = get(&good, 40, 8) as usize;
    let entry = get(&good, l1, 8);
    let l2 = (entry & 0x00ff_ffff_ffff_fe00) as usize;
    let timed = |name: &str, file: &Arc<dyn Storage>| {
        let since = Instant::now();
        let report = check(file, Repair::Nothing).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(since.elapsed() < Duration::from_secs(2), "{name}: {:?}", since.elapsed());
        report
    };
    // 4096 L1 entries share one L2 table: its clusters have as many references.
    let mut bytes = good.clone();
    (0..4096).for_each(|index| put(&mut bytes, l1 + 8 * index, entry & !(1 << 63)));
    let report = timed("shared table", &memory(&bytes));
    assert!(
        report.faults.iter().any(|fault| fault.message.ends_with("reference=4096")),
        "{:?}",
        report.faults
    );
    assert_eq!(report.allocated_units, Some(16 * 4096));
    // 65536 snapshots whose L1 tables lie over each other.
    let mut bytes = good.clone();
    let snapshots = bytes.len().next_multiple_of(65536);
    for index in 0..65536 {
        put(&mut bytes, snapshots + 40 * index, l1 as u64);
        put(&mut bytes, snapshots + 40 * index + 8, 4096 << 32);
        put(&mut bytes, snapshots + 40 * index + 32, 0);
    }
    bytes[60..64].copy_from_slice(&65536u32.to_be_bytes());
    put(&mut bytes, 64, snapshots as u64);
    let report = timed("snapshots over each other", &memory(&bytes));
    assert!(report.corruptions > 0);
    // A file of 2^60 bytes in which entries stand far from each other.
    let far = MemoryStorage::from_bytes(&good);
    far.set_len(1 << 60).unwrap();
    for index in 0..8192u64 {
        // The offset's bits end below 2^56.
        far.write_at(l2 as u64 + 8 * index, &((index + 1) << 42 | 1 << 63).to_be_bytes()).unwrap();
    }
    let report = timed("far apart", &(Arc::new(far) as Arc<dyn Storage>));
    assert!(report.corruptions > 0);
    // A refcount table whose million blocks are holes, in a file that has room for them all.
    let far = MemoryStorage::from_bytes(&good);
    far.set_len(1 << 60).unwrap();
    let at = 1u64 << 50;
    let blocks: Vec<u8> =
        (0..1u64 << 20).flat_map(|index| (at + ((index + 1000) << 16)).to_be_bytes()).collect();
    far.write_at(at, &blocks).unwrap();
    far.write_at(48, &at.to_be_bytes()).unwrap();
    far.write_at(56, &128u32.to_be_bytes()).unwrap();
    timed("a million refcount blocks", &(Arc::new(far) as Arc<dyn Storage>));
    // A LUKS header and a bitmap directory that are said to be huge.
    let mut bytes = good;
    let mut extensions = [0x0537_be77_u32.to_be_bytes(), 16u32.to_be_bytes()].concat();
    extensions.extend_from_slice(&[65536u64.to_be_bytes(), (1u64 << 62).to_be_bytes()].concat());
    extensions.extend_from_slice(&[0x2385_2875_u32.to_be_bytes(), 24u32.to_be_bytes()].concat());
    extensions.extend_from_slice(
        &[(65535u64 << 32).to_be_bytes(), (1u64 << 62).to_be_bytes(), 65536u64.to_be_bytes()].concat(),
    );
    extensions.extend_from_slice(&[0; 8]);
    bytes[112..112 + extensions.len()].copy_from_slice(&extensions);
    put(&mut bytes, 88, 1);
    let report = timed("huge extensions", &memory(&bytes));
    assert_eq!(report.corruptions, 2, "{:?}", report.faults);
}
