//! The benches are put to the test: each must catch the mistakes planted in the paged format, and pass the right one.

use std::sync::Arc;
use std::time::Duration;

use super::paged::{Mistake, PAGE, Paged};
use super::*;
use crate::raw::{Raw, RawLayer};
use crate::{
    CreateOptions, Error, Folder, Format, Layer, MemoryStorage, NoFiles, OpenOptions, Result, Storage,
};

const SIZE: u64 = 24 * PAGE + 1024;

type Open = Box<dyn Fn(Arc<dyn Storage>) -> Result<Arc<dyn Layer>> + Send + Sync>;

fn paged(mistake: Mistake) -> (Open, Open) {
    (
        Box::new(move |file| Paged::create(file, SIZE, Mistake::None)),
        Box::new(move |file| Paged::open(file, mistake)),
    )
}

fn shape() -> Shape {
    Shape { ops: 30, ..Shape::new(SIZE, PAGE) }
}

/// A raw disk full of stamps, of a size other than the child's.
fn parent(size: u64) -> Arc<dyn Layer> {
    let mut bytes = vec![0; size as usize];
    fill(&mut bytes, 0, 1 << 40);
    // Zeros in the middle: a child need not copy them.
    bytes[5 * PAGE as usize..9 * PAGE as usize].fill(0);
    Arc::new(RawLayer::over(Arc::new(MemoryStorage::from_bytes(&bytes)), false).unwrap())
}

fn model(mistake: Mistake, seeds: u64) -> Result<(), Failure> {
    for seed in 0..seeds {
        for size in [None, Some(SIZE / 2), Some(SIZE * 2)] {
            let (make, open) = paged(mistake);
            let make: Open = if mistake == Mistake::None {
                make
            } else {
                Box::new(move |file| Paged::create(file, SIZE, mistake))
            };
            let mut test = ModelTest::new(make, open).shape(shape()).seed(seed);
            if let Some(size) = size {
                test = test.parent(parent(size));
            }
            test.run()?;
        }
    }
    Ok(())
}

fn crash(mistake: Mistake, seeds: u64) -> Result<CrashCounts, Failure> {
    let mut counts = CrashCounts::default();
    for seed in 0..seeds {
        for size in [None, Some(SIZE / 2)] {
            let (make, open) = paged(mistake);
            let mut test = CrashTest::new(make, open)
                .view(|file| Paged::open(file, Mistake::None))
                .shape(shape())
                .seed(seed)
                .per_epoch(60);
            if let Some(size) = size {
                test = test.parent(parent(size));
            }
            counts += test.run()?;
        }
    }
    Ok(counts)
}

fn fault(mistake: Mistake) -> Result<FaultCounts, Failure> {
    let mut counts = FaultCounts::default();
    for seed in 0..3 {
        for size in [None, Some(SIZE / 2)] {
            let (make, open) = paged(mistake);
            let mut test = FaultTest::new(make, open).shape(shape()).seed(seed);
            if let Some(size) = size {
                test = test.parent(parent(size));
            }
            let more = test.run()?;
            counts.faults += more.faults;
            counts.errors += more.errors;
        }
    }
    Ok(counts)
}

fn race(mistake: Mistake, parent: Option<Arc<dyn Layer>>, time: u64) -> Result<(), Failure> {
    let (make, open) = paged(mistake);
    let test = RaceTest::new(make, open).unit(PAGE).time(Duration::from_millis(time));
    match parent {
        Some(parent) => test.parent(parent).run(),
        None => test.run(),
    }
}

fn caught<T: std::fmt::Debug>(outcome: Result<T, Failure>, words: &str) {
    let text = outcome.expect_err("the bench did not see the mistake").to_string();
    assert!(text.contains(words), "caught for another reason than '{words}': {text}");
}

#[test]
fn the_right_one_passes_them_all() {
    model(Mistake::None, 20).unwrap();
    let counts = crash(Mistake::None, 6).unwrap();
    assert!(counts.states > 4000 && counts.epochs > 50, "{counts:?}");
    let counts = fault(Mistake::None).unwrap();
    assert!(counts.faults > 200 && counts.errors >= counts.faults, "{counts:?}");
    race(Mistake::None, None, 500).unwrap();
    race(Mistake::None, Some(parent(SIZE)), 500).unwrap();
}

#[test]
fn the_crash_test_sees_a_map_before_its_data() {
    caught(crash(Mistake::MapBeforeData, 20), "power cut");
}

#[test]
fn the_crash_test_sees_a_missing_sync_between() {
    caught(crash(Mistake::NoSyncBetween, 20), "power cut");
}

#[test]
fn the_crash_test_sees_a_missing_last_sync() {
    caught(crash(Mistake::NoLastSync, 20), "is lost");
}

#[test]
fn the_crash_test_sees_a_page_reused_at_once() {
    caught(crash(Mistake::ReusedAtOnce, 20), "is misplaced");
}

#[test]
fn the_crash_test_sees_a_recovery_that_goes_on() {
    caught(crash(Mistake::RecoveryGoesOn, 20), "opened a second time");
}

#[test]
fn the_crash_test_sees_a_recovery_that_is_not_atomic() {
    caught(crash(Mistake::RecoveryNotAtomic, 20), "during recovery");
}

#[test]
fn a_recovery_that_writes_is_cut_too() {
    let counts = crash(Mistake::NoneButRecoveryWrites, 2).unwrap();
    assert!(counts.nested > 300, "{counts:?}");
}

#[test]
fn the_crash_test_sees_a_view_that_writes() {
    let (make, open) = paged(Mistake::None);
    let test = CrashTest::new(make, open).shape(shape()).view(|file| {
        file.write_at(8, &(SIZE + 1).to_le_bytes()).unwrap();
        file.write_at(8, &SIZE.to_le_bytes()).unwrap();
        file.write_at(TABLE_END, &[1]).unwrap();
        Paged::open(file, Mistake::None)
    });
    const TABLE_END: u64 = 2 * PAGE - 1;
    caught(test.run(), "opened read-only");
}

#[test]
fn the_crash_test_asks_the_check() {
    let (make, open) = paged(Mistake::None);
    let test = CrashTest::new(make, open).shape(shape()).check(|state, layer| {
        assert_eq!(layer.size(), SIZE);
        if state.epoch() == 2 { Err(Failure::new("no")) } else { Ok(()) }
    });
    caught(test.run(), "the check: no");
}

#[test]
fn the_model_test_sees_stale_bytes_around_a_write() {
    caught(model(Mistake::StaleAround, 20), "byte");
}

#[test]
fn the_model_test_sees_a_wrong_host_offset() {
    caught(model(Mistake::WrongHost, 3), "host");
}

#[test]
fn the_model_test_sees_the_parent_through_what_was_freed() {
    caught(model(Mistake::FreeReveals, 20), "byte");
}

#[test]
fn the_fault_test_sees_a_dropped_error() {
    caught(fault(Mistake::WriteErrorDropped), "success, though something failed");
}

#[test]
fn the_fault_test_sees_a_mapping_without_its_data() {
    caught(fault(Mistake::MappedAfterError), "opened again");
}

#[test]
fn the_fault_test_sees_a_forgotten_sync() {
    caught(fault(Mistake::SyncErrorForgotten), "a flush goes well after a sync has failed");
}

#[test]
fn the_race_test_sees_a_lost_update() {
    caught(race(Mistake::LostUpdate, None, 5000), "sector");
}

#[test]
fn the_race_test_sees_a_mapping_published_first() {
    // A new page at the file's end cannot be read yet; a page used before shows what it held.
    caught(race(Mistake::PublishedFirst, None, 5000), "seed 1, round");
}

#[test]
fn raw_passes_them_all() {
    let make = |file: Arc<dyn Storage>| {
        file.set_len(SIZE).unwrap();
        open_raw(file)
    };
    for seed in 0..10 {
        ModelTest::new(make, open_raw).shape(Shape { resize: true, ..shape() }).seed(seed).run().unwrap();
        CrashTest::new(make, open_raw).shape(shape()).seed(seed).per_epoch(30).run().unwrap();
    }
    FaultTest::new(make, open_raw).shape(shape()).run().unwrap();
    RaceTest::new(make, open_raw).unit(PAGE).run().unwrap();
}

#[test]
fn a_fresh_layer_is_tested_without_opening_it_for_writing() {
    let read_only = |file| Raw.open(file, &NoFiles, &OpenOptions::default());
    let make = |file: Arc<dyn Storage>| {
        Raw.create(file, &NoFiles, &CreateOptions { size: SIZE, ..Default::default() })
    };
    ModelTest::new(make, read_only).shape(Shape { reopen: false, ..shape() }).run().unwrap();
    RaceTest::new(make, read_only).unit(PAGE).fresh().run().unwrap();
    let counts = FaultTest::new(make, read_only).shape(shape()).fresh().run().unwrap();
    assert!(counts.faults > 50 && counts.errors >= counts.faults, "{counts:?}");
    let careless = |file| Paged::create(file, SIZE, Mistake::WriteErrorDropped);
    let test = FaultTest::new(careless, |file| Paged::open(file, Mistake::None)).shape(shape()).fresh();
    caught(test.run(), "success, though something failed");
}

fn open_raw(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Raw.open(file, &NoFiles, &OpenOptions { writable: true, ..Default::default() })
}

/// Whole target or none: what `convert` does in a folder.
fn replace(folder: &dyn Folder, synced: bool) -> Result<()> {
    let file = folder.create_new(".new.partial")?;
    let written = (|| {
        file.write_at(0, &[2; 3000]).map_err(|error| Error::io("cannot write", error))?;
        if synced {
            file.sync().map_err(|error| Error::io("cannot sync", error))?;
        }
        folder.rename(".new.partial", "target")
    })();
    if let Err(error) = written {
        // Nothing more can be done for it.
        let _ = folder.remove(".new.partial");
        return Err(error);
    }
    folder.sync()
}

fn old_target() -> Arc<crate::MemoryFolder> {
    let folder = crate::MemoryFolder::new();
    folder.insert("target", Arc::new(MemoryStorage::from_bytes(&[1; 2000])));
    Arc::new(folder)
}

fn replaced_states(synced: bool) -> Result<usize, Failure> {
    let journal = Journal::over(&old_target());
    replace(journal.folder().as_ref(), synced)?;
    journal.mark(1);
    let mut states = 0;
    for state in journal.states(&Plan::default()) {
        states += 1;
        let target = state.file("target").map(|file| file.to_vec());
        let new = target.as_deref() == Some(&[2; 3000]);
        let old = target.as_deref() == Some(&[1; 2000]) && state.mark().is_none();
        if !new && !old {
            return Err(Failure::new(format!("neither the old nor the new target\n{state}")));
        }
    }
    Ok(states)
}

#[test]
fn crash_states_know_folders() {
    assert!(replaced_states(true).unwrap() > 10);
    caught(replaced_states(false), "neither the old nor the new target");
}

#[test]
fn the_fault_test_takes_any_operation() {
    let check = |folder: &Arc<crate::MemoryFolder>, error: Option<&Error>| {
        let target = folder.open("target", false)?;
        let renamed = target.len()? == 3000;
        match error {
            None if renamed => Ok(()),
            // The folder's sync comes after the rename.
            Some(_) if folder.names() == ["target"] => Ok(()),
            _ => Err(Failure::new(format!("left {:?}, renamed {renamed}", folder.names()))),
        }
    };
    let counts = fault_test(
        Fault::EIO,
        old_target,
        |folder, faults| replace(faults.folder(folder.clone()).as_ref(), true),
        check,
    )
    .unwrap();
    assert_eq!((counts.faults, counts.errors), (5, 5));
    let careless = fault_test(
        Fault::EIO,
        old_target,
        |folder, faults| {
            let folder = faults.folder(folder.clone());
            let file = folder.create_new(".new.partial")?;
            file.write_at(0, &[2; 3000]).map_err(|error| Error::io("cannot write", error))?;
            folder.rename(".new.partial", "target")
        },
        check,
    );
    caught(careless, "left [\".new.partial\", \"target\"]");
    caught(fault_test(Fault::EIO, old_target, |_, _| panic!("oh"), check), "panicked: oh");
}

#[test]
fn a_fault_comes_once_or_stays_and_tears() {
    let file: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let faults = Faults::at(Fault::ENOSPC.only(&[Io::Write]).torn(), 2);
    let storage = faults.storage(file.clone());
    storage.write_at(0, &[1; 2048]).unwrap();
    storage.sync().unwrap();
    assert_eq!(storage.write_at(0, &[2; 2048]).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    let mut bytes = [0; 2048];
    file.read_at(0, &mut bytes).unwrap();
    assert!(bytes[..1024].iter().all(|byte| *byte == 2) && bytes[1024..].iter().all(|byte| *byte == 1));
    storage.write_at(0, &[3; 2048]).unwrap();
    assert_eq!((faults.seen(), faults.fired()), (3, vec![Io::Write]));
    faults.arm(Fault::EIO.only(SYNCS).forever(), 2);
    storage.sync().unwrap();
    assert!(storage.sync().is_err() && storage.sync().is_err());
    faults.disarm();
    assert!(storage.sync().is_err(), "a sync that failed stays failed");
}

/// Every selection of the units of one small epoch, and nothing else.
#[test]
fn all_selections_of_a_small_epoch() {
    let journal = Journal::new();
    let file = journal.folder().create_new("a").unwrap();
    file.set_len(1536).unwrap();
    journal.settle();
    file.write_at(0, &[1; 1536]).unwrap();
    file.write_at(256, &[2; 256]).unwrap();
    let mut seen: Vec<[u8; 4]> = journal
        .states(&Plan::default())
        .map(|state| {
            let bytes = state.file("a").unwrap().to_vec();
            [bytes[0], bytes[300], bytes[600], bytes[1100]]
        })
        .collect();
    seen.sort_unstable();
    // The first unit is old, of the first write, or of both; the second write alone never was in the page cache.
    let mut wanted = Vec::new();
    for first in [[0, 0], [1, 1], [1, 2]] {
        for (second, third) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            wanted.push([first[0], first[1], second, third]);
        }
    }
    assert_eq!(seen, wanted);
}

/// A sync is the one file's, and the same seed makes the same states.
#[test]
fn a_sync_makes_one_file_durable() {
    let journal = Journal::new();
    let folder = journal.folder();
    let (one, two) = (folder.create_new("one").unwrap(), folder.create_new("two").unwrap());
    folder.sync().unwrap();
    journal.settle();
    one.write_at(0, &[1; 512]).unwrap();
    two.write_at(0, &[2; 512]).unwrap();
    one.sync().unwrap();
    one.set_len(0).unwrap();
    journal.mark(7);
    let states = || -> Vec<(usize, Option<u64>, u64, u64)> {
        let len = |state: &State, name| state.file(name).unwrap().len().unwrap();
        journal
            .states(&Plan::default())
            .map(|state| (state.epoch(), state.mark(), len(&state, "one"), len(&state, "two")))
            .collect()
    };
    let mut seen = states();
    assert_eq!(seen, states());
    seen.sort_unstable();
    let both = |epoch, mark, one: u64| [(epoch, mark, one, 0), (epoch, mark, one, 512)];
    let wanted = [both(0, None, 0), both(0, None, 512), both(1, Some(7), 0), both(1, Some(7), 512)].concat();
    assert_eq!(seen, wanted);
}

/// Twenty thousand small states a second is what crash tests count on; a tenth of it on a busy machine.
#[test]
fn states_are_made_fast() {
    let journal = Journal::new();
    let file = journal.folder().create_new("a").unwrap();
    for round in 0..40 {
        for write in 0..20 {
            file.write_at((write * 7 + round) * 512, &[1; 1024]).unwrap();
        }
        file.sync().unwrap();
    }
    let since = std::time::Instant::now();
    let states = journal.states(&Plan::default()).count();
    let rate = states as f64 / since.elapsed().as_secs_f64();
    assert!(states > 3000 && rate > 2000.0, "{states} states, {rate:.0} a second");
}
