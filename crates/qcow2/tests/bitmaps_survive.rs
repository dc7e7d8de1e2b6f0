//! Persistent dirty bitmaps through power cuts, faults, threads and hostile bytes: whatever happens, a bitmap that says
//! it can be trusted has every write.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::cut::{cut, faults};
use common::stored::*;
use common::*;
use cowhand_core::testing::{CrashTest, Failure, FaultTest, ModelTest, RaceTest, Rng, Shape, State};
use cowhand_core::{
    CheckOptions, Erase, ErrorKind, Format, Layer, MemoryStorage, NoFiles, OpenOptions, Prealloc, Quiet,
    Result, Storage,
};
use cowhand_qcow2::Qcow2;

fn reopen(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Qcow2.open(file, &NoFiles, &OpenOptions { writable: true, ..OpenOptions::default() })
}

fn view(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Qcow2.open(file, &NoFiles, &OpenOptions::default())
}

/// A new image with bitmaps: two that record writes, one that does not and holds something.
fn with_bitmaps(size: u64, text: &str) -> impl Fn(Arc<dyn Storage>) -> Result<Arc<dyn Layer>> + Send + Sync {
    let how = how(size, text);
    move |file| {
        let layer = Qcow2.create(file, &NoFiles, &how)?;
        let all = bitmaps(&layer);
        all.add("fine", Some(512), true)?;
        all.add("off", Some(4096), false)?;
        all.add("coarse", Some(65536), true)?;
        mark(&layer, "off", &[0..5000, size - 1..size])?;
        Ok(layer)
    }
}

/// Where a bitmap that records writes can be trusted, everything that is not zero any more is in it. Answers how many
/// can be trusted.
fn covered(layer: &Arc<dyn Layer>) -> Result<usize, Failure> {
    let held = bytes(layer);
    let mut trusted = 0;
    for bitmap in seen(layer).into_iter().filter(|bitmap| bitmap.auto && !bitmap.in_use) {
        trusted += 1;
        for (granule, piece) in (0u64..).zip(held.chunks(bitmap.granularity as usize)) {
            if piece.iter().any(|byte| *byte != 0) && !bitmap.dirty.contains(&granule) {
                return Err(Failure::new(format!("'{}' has not learnt of granule {granule}", bitmap.name)));
            }
        }
    }
    Ok(trusted)
}

/// What `with_bitmaps` left in the one that is not enabled is there.
fn kept(layer: &Arc<dyn Layer>) -> Result<(), Failure> {
    let all = seen(layer);
    let off = all.iter().find(|bitmap| bitmap.name == "off");
    match off {
        Some(off) if all.len() == 3 && !off.in_use && off.dirty.contains(&0) && off.dirty.contains(&1) => {
            Ok(())
        }
        _ => Err(Failure::new(format!("the bitmaps are {all:?}"))),
    }
}

fn checked(file: Arc<dyn Storage>) -> Result<(), Failure> {
    let Some(checker) = Qcow2.checker() else { return Ok(()) };
    let how = CheckOptions { workers: 1, ..CheckOptions::default() };
    let report = checker.check(file, &NoFiles, &how, &Quiet)?;
    if report.corruptions == 0 && report.check_errors == 0 {
        return Ok(());
    }
    Err(Failure::new(format!("the check finds {:?}", report.faults)))
}

const VARIANTS: [(&str, u64, u64); 4] = [
    ("cluster_size=64k", 65536, 1 << 20),
    ("cluster_size=4k", 4096, 1 << 18),
    ("cluster_size=16k,extended_l2=on", 16384, 1 << 19),
    ("cluster_size=2k,refcount_bits=1", 2048, 1 << 17),
];

fn shape(size: u64, unit: u64) -> Shape {
    Shape { compressed: true, ..Shape::new(size, unit) }
}

#[test]
fn after_a_power_cut_a_bitmap_has_all_writes_or_says_that_it_has_not() {
    for (text, unit, size) in VARIANTS {
        let trusted = Cell::new(0);
        let check = |state: &State, layer: &Arc<dyn Layer>| {
            checked(state.file("disk").unwrap())?;
            kept(layer)?;
            trusted.set(trusted.get() + covered(layer)?);
            Ok(())
        };
        for seed in 0..3 {
            let test = CrashTest::new(with_bitmaps(size, text), reopen).view(view).check(check);
            let test = test.shape(shape(size, unit)).seed(seed).per_epoch(20);
            let counts = test.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
            println!("{text}, seed {seed}: {counts:?}, {} trusted", trusted.get());
            assert!(counts.states > 100, "{text}: {counts:?}");
        }
        assert!(trusted.get() > 20, "{text}: {} were to be trusted", trusted.get());
    }
}

#[test]
fn a_failing_input_or_output_leaves_no_bitmap_that_misses_a_write() {
    for (text, unit, size) in VARIANTS {
        let check = |layer: &Arc<dyn Layer>| {
            kept(layer)?;
            covered(layer).map(|_| ())
        };
        let shape = Shape { ops: 40, ..shape(size, unit) };
        let test =
            FaultTest::new(with_bitmaps(size, text), reopen).shape(shape).seed(3).every(3).check(check);
        let counts = test.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
        assert!(counts.errors > 30, "{text}: {counts:?}");
    }
}

#[test]
fn the_disk_is_what_it_is_without_bitmaps() {
    for (text, unit, size) in VARIANTS {
        for seed in 0..2 {
            let shape = Shape { resize: true, ..shape(size, unit) };
            let test = ModelTest::new(with_bitmaps(size, text), reopen).shape(shape).seed(seed);
            test.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
        }
        let time = Duration::from_millis(150);
        let test = RaceTest::new(with_bitmaps(1 << 20, text), reopen).unit(unit).time(time).compressed(true);
        test.run().unwrap_or_else(|failure| panic!("{text}: {failure}"));
    }
}

/// Threads write, one changes bitmaps meanwhile: what records all the time has all, what is cleared or enabled in
/// between has what came after.
#[test]
fn threads_that_write_while_bitmaps_change() {
    let size = 4 << 20;
    for seed in 0..4 {
        let file = Arc::new(MemoryStorage::new());
        let layer = with_bitmaps(size, "cluster_size=4k")(file.clone()).unwrap();
        layer.close().unwrap();
        let layer = reopen(file.clone()).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..3u64 {
                let (layer, stop) = (&layer, &stop);
                scope.spawn(move || {
                    let mut rng = Rng::new(seed * 10 + thread);
                    while !stop.load(Ordering::Relaxed) {
                        let at = rng.below(size / 2048 / 3) * 2048 * 3 + thread * 2048;
                        match rng.below(8) {
                            0 if at.is_multiple_of(4096) => {
                                layer.erase(at, 4096.min(size - at), Erase::Zero).unwrap();
                            }
                            1 => layer.flush().unwrap(),
                            _ if at + 2048 <= size => layer.write(at, &[thread as u8 + 1; 2048]).unwrap(),
                            _ => {}
                        }
                    }
                });
            }
            let mut rng = Rng::new(seed + 99);
            for step in 0..60 {
                let all = bitmaps(&layer);
                match rng.below(5) {
                    0 => all.enable("off", rng.chance(1, 2)).unwrap(),
                    1 => all.add(&format!("{step}"), None, true).unwrap(),
                    2 => mark(&layer, "off", &[0..5000, 6000..6001]).unwrap(),
                    3 => all.clear("off").unwrap(),
                    _ => drop(seen(&layer)),
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        layer.close().unwrap();
        checked(file.clone()).unwrap();
        let layer = view(file).unwrap();
        let held = bytes(&layer);
        let all = seen(&layer);
        for name in ["fine", "coarse"] {
            let bitmap = all.iter().find(|bitmap| bitmap.name == name).unwrap();
            assert!(bitmap.auto && !bitmap.in_use);
            for (granule, piece) in (0u64..).zip(held.chunks(bitmap.granularity as usize)) {
                assert!(
                    piece.iter().all(|byte| *byte == 0) || bitmap.dirty.contains(&granule),
                    "{name} {granule}"
                );
            }
        }
    }
}

/// An image whose bitmaps hold something.
fn filled(layer: &Arc<dyn Layer>) -> Result<()> {
    let all = bitmaps(layer);
    all.add("one", Some(512), true)?;
    all.add(&"long ".repeat(100), None, false)?;
    all.add("two", Some(4096), false)?;
    layer.write(70_000, &[1; 30_000])?;
    mark(layer, "two", &[0..1, 150_000..200_000])
}

type Change = fn(&Arc<dyn Layer>) -> Result<()>;

const CHANGES: [(&str, Change); 9] = [
    ("add", |layer| bitmaps(layer).add("three", None, true)),
    ("remove", |layer| bitmaps(layer).remove("two")),
    ("clear", |layer| bitmaps(layer).clear("one")),
    ("enable", |layer| bitmaps(layer).enable("two", true)),
    ("disable", |layer| bitmaps(layer).enable("one", false)),
    ("mark", |layer| mark(layer, "two", &[5000..10_000, 100_000..160_000])),
    ("merge", |layer| bitmaps(layer).mark("two", &mut |see| bitmaps(layer).dirty("one", see))),
    ("grow", |layer| layer.resize(20 << 20, Prealloc::Off, 0)),
    ("shrink", |layer| layer.resize(80_384, Prealloc::Off, 0)),
];

/// Before and after a change.
fn both(text: &str, size: u64, change: Change) -> [(u64, Vec<Stored>); 2] {
    let file = Arc::new(MemoryStorage::new());
    let layer = Qcow2.create(file.clone(), &NoFiles, &how(size, text)).unwrap();
    filled(&layer).unwrap();
    layer.close().unwrap();
    let layer = reopen(file).unwrap();
    let before = (layer.size(), seen(&layer));
    change(&layer).unwrap();
    [before, (layer.size(), seen(&layer))]
}

#[test]
fn a_change_is_whole_or_not_there() {
    let size = 256 << 10;
    for text in ["cluster_size=4k", "cluster_size=2k,refcount_bits=1"] {
        for (what, change) in CHANGES {
            let [before, after] = both(text, size, change);
            assert_ne!(before, after, "{what}");
            cut(text, size, false, filled, change, |layer, mark| {
                let now = (layer.size(), seen(layer));
                assert!(now == after || (mark.is_none() && now == before), "{what}: {now:?}");
            });
            faults(text, size, false, filled, change, |layer, failed| {
                let now = (layer.size(), seen(layer));
                assert!(now == after || (failed && now == before), "{what}: {now:?}");
            });
        }
    }
    // The first and the last: the header's extension comes and goes.
    let text = "cluster_size=4k";
    let first = |layer: &Arc<dyn Layer>| bitmaps(layer).add("one", None, false);
    cut(
        text,
        size,
        true,
        |_| Ok(()),
        first,
        |layer, mark| {
            assert!(seen(layer).len() == 1 || (mark.is_none() && seen(layer).is_empty()));
            assert!(layer.parent() == named("base", "raw"));
        },
    );
    cut(
        text,
        size,
        true,
        first,
        |layer| bitmaps(layer).remove("one"),
        |layer, mark| {
            assert!(seen(layer).is_empty() || (mark.is_none() && seen(layer).len() == 1));
            assert!(layer.parent() == named("base", "raw"));
        },
    );
}

/// What is written over in place reaches the disk at once: a bitmap must say before that it is in use.
#[test]
fn no_write_comes_before_the_word_that_bitmaps_are_in_use() {
    let size = 64 << 10;
    let fill = |layer: &Arc<dyn Layer>| {
        layer.write(0, &pattern(0, size as usize, 1))?;
        bitmaps(layer).add("one", Some(512), true)?;
        bitmaps(layer).add("two", Some(8192), true)
    };
    let change = |layer: &Arc<dyn Layer>| {
        layer.write(1024, &[7; 512])?;
        layer.write(40_000, &[8; 3000])?;
        layer.flush()?;
        layer.write(20_480, &[9; 512])?;
        layer.erase(4096, 4096, Erase::Zero)?;
        layer.close()
    };
    let judge = |layer: &Arc<dyn Layer>, trusted: &Cell<usize>| {
        let was = pattern(0, size as usize, 1);
        let held = bytes(layer);
        for bitmap in seen(layer).into_iter().filter(|bitmap| !bitmap.in_use) {
            trusted.set(trusted.get() + 1);
            let granularity = bitmap.granularity as usize;
            for (granule, (was, now)) in (0..).zip(was.chunks(granularity).zip(held.chunks(granularity))) {
                assert!(was == now || bitmap.dirty.contains(&granule), "'{}': {granule}", bitmap.name);
            }
        }
    };
    let trusted = Cell::new(0);
    cut("cluster_size=4k", size, false, fill, change, |layer, _| judge(layer, &trusted));
    faults("cluster_size=4k", size, false, fill, change, |layer, _| judge(layer, &trusted));
    assert!(trusted.get() > 20);
}

/// Where the directory's parts of an image stand: the extension's data, the first entry, its table.
fn places(image: &[u8]) -> (usize, usize, usize) {
    let extension = extension(image).unwrap();
    let directory = number(image, extension + 16, 8) as usize;
    (extension, directory, number(image, directory, 8) as usize)
}

#[test]
fn hostile_bitmaps_are_errors_and_the_disk_can_be_read() {
    let file = Arc::new(MemoryStorage::new());
    let layer = Qcow2.create(file.clone(), &NoFiles, &how(256 << 10, "cluster_size=4k")).unwrap();
    filled(&layer).unwrap();
    layer.close().unwrap();
    let good = file.to_vec();
    let (extension, entry, table) = places(&good);
    let l1 = number(&good, 40, 8);
    let name = entry + good[entry..].windows(3).position(|name| name == b"two").unwrap();
    let held = bytes(&view(file).unwrap());
    // (what, where, the bytes there)
    let cases: Vec<(&str, usize, Vec<u8>)> = vec![
        ("no bitmaps", extension, vec![0; 4]),
        ("more than there are", extension, vec![0, 0, 0, 4]),
        ("fewer than there are", extension, vec![0, 0, 0, 2]),
        ("as many as a number can say", extension, vec![0xff; 4]),
        ("a huge directory", extension + 8, vec![0xff; 8]),
        ("64 MiB of directory", extension + 8, (1u64 << 26).to_be_bytes().to_vec()),
        ("a directory of nothing", extension + 8, vec![0; 8]),
        ("the header as directory", extension + 16, vec![0; 8]),
        ("inside a cluster", extension + 16, 4104u64.to_be_bytes().to_vec()),
        ("past the end", extension + 16, (1u64 << 40).to_be_bytes().to_vec()),
        ("beyond all numbers", extension + 16, (u64::MAX << 12).to_be_bytes().to_vec()),
        ("a table nowhere", entry, vec![0; 8]),
        ("a table inside a cluster", entry, 4104u64.to_be_bytes().to_vec()),
        ("a table past the end", entry, (1u64 << 50).to_be_bytes().to_vec()),
        ("a table beyond all numbers", entry, (u64::MAX << 12).to_be_bytes().to_vec()),
        ("a table of nothing", entry + 8, vec![0; 4]),
        ("a huge table", entry + 8, vec![0xff; 4]),
        ("unknown flags", entry + 12, vec![0x80]),
        ("an unknown type", entry + 16, vec![9]),
        ("granules of a byte", entry + 17, vec![0]),
        ("huge granules", entry + 17, vec![255]),
        ("no name", entry + 18, vec![0; 2]),
        ("a long name", entry + 18, vec![0xff; 2]),
        ("much extra data", entry + 20, vec![0xff; 4]),
        ("a table that is the L1 table", entry, l1.to_be_bytes().to_vec()),
        ("unknown bits in the table", table, vec![0x80]),
        ("bits inside a cluster", table, 4104u64.to_be_bytes().to_vec()),
        ("bits past the end", table, (1u64 << 40).to_be_bytes().to_vec()),
        ("bits in the L1 table", table, l1.to_be_bytes().to_vec()),
        ("bits in a free cluster", table, (good.len() as u64 + 4096).to_be_bytes().to_vec()),
        ("another's name", name, b"one".to_vec()),
    ];
    for (what, at, bytes_there) in cases {
        let mut bad = good.clone();
        bad[at..at + bytes_there.len()].copy_from_slice(&bytes_there);
        let file = Arc::new(MemoryStorage::from_bytes(&bad));
        for writable in [false, true] {
            let layer = if writable { reopen(file.clone()) } else { view(file.clone()) };
            let layer = layer.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(bytes(&layer) == held, "{what}");
            let _ = layer.details();
            let listed = bitmaps(&layer).list();
            let read = bitmaps(&layer).dirty("one", &mut |_| Ok(()));
            if !what.contains("L1 table") {
                let error = listed.err().or(read.err()).unwrap_or_else(|| panic!("{what}: no error"));
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
            }
            if writable {
                let error = layer.write(0, &[9; 512]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
                assert!(bitmaps(&layer).remove("one").is_err(), "{what}");
                layer.close().unwrap();
            }
        }
        assert!(file.to_vec() == bad, "{what}: something was written");
    }
}

/// Extra data that nobody here knows: left as it is, and used only where it says that this does no harm.
#[test]
fn what_is_not_known_is_left_as_it_is() {
    let file = Arc::new(MemoryStorage::new());
    let layer = Qcow2.create(file.clone(), &NoFiles, &how(256 << 10, "cluster_size=4k")).unwrap();
    bitmaps(&layer).add("name", None, true).unwrap();
    layer.close().unwrap();
    let mut image = file.to_vec();
    let (extension, entry, _) = places(&image);
    // 8 bytes of extra data before the name.
    image[extension + 15] = 40;
    image[entry + 23] = 8;
    image[entry + 24..entry + 36].copy_from_slice(b"whateverthat");
    for compatible in [false, true] {
        image[entry + 15] = if compatible { 6 } else { 2 };
        let file = Arc::new(MemoryStorage::from_bytes(&image));
        let layer = reopen(file.clone()).unwrap();
        let list = bitmaps(&layer).list().unwrap();
        assert_eq!((list[0].name.as_str(), list[0].inconsistent), ("that", !compatible));
        assert_eq!(bitmaps(&layer).clear("that").is_ok(), compatible);
        layer.write(5000, &[1; 10]).unwrap();
        layer.close().unwrap();
        let now = file.to_vec();
        let (_, entry, _) = places(&now);
        assert_eq!(&now[entry + 24..entry + 36], b"whateverthat");
        // It missed a write where it was not used.
        assert_eq!(now[entry + 15], if compatible { 6 } else { 3 });
        let layer = reopen(file.clone()).unwrap();
        bitmaps(&layer).remove("that").unwrap();
        layer.close().unwrap();
        checked(file).unwrap();
    }
}

/// A program that does not know bitmaps wrote: they are gone for good.
#[test]
fn bitmaps_that_missed_writes_are_gone() {
    let file = Arc::new(MemoryStorage::new());
    let layer = Qcow2.create(file.clone(), &NoFiles, &how(256 << 10, "cluster_size=4k")).unwrap();
    bitmaps(&layer).add("one", None, true).unwrap();
    layer.close().unwrap();
    file.write_at(95, &[0]).unwrap();
    let layer = reopen(file.clone()).unwrap();
    assert_eq!(bitmaps(&layer).list().unwrap(), []);
    assert!(layer.details().specific.get("bitmaps").is_none());
    layer.write(0, &[1; 512]).unwrap();
    // Not even the way to them is left.
    let header = file.to_vec()[..4096].to_vec();
    assert!(!header.windows(4).any(|kind| kind == 0x2385_2875u32.to_be_bytes()));
    bitmaps(&layer).add("two", None, true).unwrap();
    layer.close().unwrap();
    let names: Vec<String> = stored(&file.to_vec()).into_iter().map(|bitmap| bitmap.name).collect();
    assert_eq!(names, ["two"]);
    checked(file).unwrap();
}

#[test]
fn what_cannot_be_is_refused() {
    let layer =
        |text: &str, size| Qcow2.create(Arc::new(MemoryStorage::new()), &NoFiles, &how(size, text)).unwrap();
    let old = layer("compat=0.10", 1 << 20);
    assert_eq!(bitmaps(&old).add("one", None, true).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(bitmaps(&old).list().unwrap(), []);
    let empty = layer("cluster_size=4k", 0);
    assert_eq!(bitmaps(&empty).add("one", None, true).unwrap_err().kind(), ErrorKind::Unsupported);
    let huge = layer("cluster_size=2M", 64 << 40);
    assert_eq!(bitmaps(&huge).add("one", Some(4096), true).unwrap_err().kind(), ErrorKind::Unsupported);
    bitmaps(&huge).add("one", Some(65536), true).unwrap();
    huge.erase(0, 64 << 40, Erase::Zero).unwrap();
    assert_eq!(seen_ranges(&huge, "one"), vec![0..64 << 40; 1]);
    huge.close().unwrap();
    let disk = layer("cluster_size=4k", 1 << 20);
    let all = bitmaps(&disk);
    for (name, granularity) in
        [("", None), ("a", Some(256)), ("a", Some(3000)), ("a", Some(1 << 32)), ("a", Some(0))]
    {
        assert_eq!(all.add(name, granularity, true).unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert_eq!(all.add(&"x".repeat(1024), None, true).unwrap_err().kind(), ErrorKind::Invalid);
    for error in [all.remove("a"), all.clear("a"), all.enable("a", true), all.dirty("a", &mut |_| Ok(()))] {
        assert_eq!(error.unwrap_err().kind(), ErrorKind::NotFound);
    }
    // What `ranges` says stops it, and nothing is marked.
    all.add("a", None, false).unwrap();
    let stopped = all.mark("a", &mut |see| {
        see(0..4096)?;
        Err(cowhand_core::Error::new(ErrorKind::Cancelled, "stopped"))
    });
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(seen_ranges(&disk, "a"), vec![]);
    disk.close().unwrap();
}
