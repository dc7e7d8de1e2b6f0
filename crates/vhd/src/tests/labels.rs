//! What a file says of itself and its parent changes: all of it or nothing, whenever the power is cut, and the disk's
//! content stays.

use std::sync::Arc;

use cowhand_core::testing::{CrashTest, Failure, FaultTest, Journal, Op, Plan, Shape};
use cowhand_core::{
    CheckOptions, ErrorKind, Folder, Format, Kind, Layer, MemoryFolder, MemoryStorage, NoFiles, Options,
    ParentRef, Quiet, Result, Secrets, Storage,
};
use serde_json::{Value, json};

use super::benches::{Sort, made, parent};
use super::{content, create, open, open_to_write, pairs, sign, small};
use crate::Vhd;
use crate::alloc::{Front, Layout};
use crate::dynamic::Dynamic;
use crate::footer::{DiskType, Footer};
use crate::geometry::Geometry;
use crate::header::Header;
use crate::naming::{Naming, ROOM};

const SIZE: u64 = 24 << 10;

fn named(name: &str) -> ParentRef {
    ParentRef { candidates: vec![name.into()], format: Some("raw".to_owned()), ..ParentRef::default() }
}

/// A child over a raw parent: with room in front of its blocks for other names as those have that are made here, or
/// without, as a disk has that was made to be none.
fn child(file: Arc<dyn Storage>, block_size: u64, room: bool) -> Result<Arc<dyn Layer>> {
    if !room {
        let layer = small(file, SIZE, block_size, false)?;
        layer.set_parent(Some(&named("base.raw")))?;
        return Ok(layer);
    }
    let naming = Naming::of(&named("base.raw"), &[])?;
    let places: Vec<_> =
        naming.needs().zip((4096..).step_by(ROOM as usize)).map(|(_, at)| at..at + ROOM).collect();
    let front = Front { bat_at: places.last().map(|last| last.end), ..Front::default() };
    let layout = Layout::new(SIZE, block_size, front)?;
    let mut header = Header::new(layout.header_at, layout.bat_at, layout.entries, block_size);
    naming.put(&mut header, &places);
    naming.write(file.as_ref(), &places)?;
    let footer = Footer {
        disk_type: DiskType::Differencing,
        ..Footer::new(SIZE, Geometry::MAX, Some(layout.header_at))
    };
    Ok(Arc::new(Dynamic::create(file, footer, header, &layout, false)?))
}

/// What the check says of the file as the power cut left it.
fn sound(file: Arc<dyn Storage>) -> Result<(), Failure> {
    let how = CheckOptions { workers: 1, ..CheckOptions::default() };
    let report = Vhd.checker().unwrap().check(file, &NoFiles, &how, &Quiet)?;
    if report.corruptions + report.check_errors == 0 {
        return Ok(());
    }
    Err(Failure::new(format!("{:?}", report.faults)))
}

fn renames() -> Vec<Op> {
    let write = |at: u64, len| Op::Write { at: at * 512, len };
    vec![
        write(3, 1024),
        Op::Rename { len: 5 },
        Op::Hide { hidden: true },
        write(40, 512),
        Op::Flush,
        Op::Rename { len: 40 },
        Op::Rename { len: 300 },
        write(4, 512),
        Op::Reopen,
        // Longer than the room that a locator has.
        Op::Rename { len: 3000 },
        write(20, 2048),
        Op::Rename { len: 1 },
        Op::Hide { hidden: false },
        Op::Reopen,
        Op::Rename { len: 2000 },
        Op::Rename { len: 2001 },
        write(30, 512),
    ]
}

#[test]
fn a_power_cut_leaves_one_name_or_the_other() {
    for room in [true, false] {
        for block_size in [512, 4096] {
            let make = |file| child(file, block_size, room);
            let counts = CrashTest::new(make, open_to_write)
                .view(open)
                .parent(parent(SIZE))
                .check(|state, _| sound(state.file("disk").unwrap()))
                .script(renames())
                .per_epoch(40)
                .run()
                .unwrap_or_else(|failure| panic!("room {room}, {block_size}: {failure}"));
            assert!(counts.states > 500, "{counts:?}");
        }
    }
}

/// The barrier behind the footers that name the spare header, before it goes home where the old one stands.
#[test]
fn the_crash_test_sees_a_header_that_goes_home_too_early() {
    let run = |left_out: bool| {
        let test = CrashTest::new(|file| child(file, 512, true), open_to_write).parent(parent(SIZE));
        let test = test.script(renames()).per_epoch(200);
        if left_out { test.without_barrier(|_, at| at == 512) } else { test }.run()
    };
    run(false).unwrap();
    let failure = run(true).unwrap_err().to_string();
    assert!(failure.contains("dynamic header checksum"), "{failure}");
}

/// With COWHAND_SLOW in the environment some hundred thousand states, which takes minutes.
#[test]
fn a_power_cut_among_writes_leaves_one_name_or_the_other() {
    let slow = std::env::var_os("COWHAND_SLOW").is_some();
    let mut states = 0;
    for seed in 0..if slow { 72 } else { 4 } {
        let block_size = [2048, 512, 4096, 16384][seed as usize / 2 % 4];
        let make = |file| child(file, block_size, seed % 2 == 0);
        let shape = Shape { header: true, ops: if slow { 60 } else { 40 }, ..Shape::new(SIZE, block_size) };
        let test =
            CrashTest::new(make, open_to_write).view(open).parent(parent(SIZE)).shape(shape).seed(seed);
        states += if slow { test } else { test.per_epoch(20) }.run().unwrap().states;
    }
    assert!(states > if slow { 200_000 } else { 1000 }, "{states}");
}

#[test]
fn each_failure_is_an_error() {
    for room in [true, false] {
        let make = |file| child(file, 2048, room);
        let shape = Shape { header: true, ops: 30, ..Shape::new(SIZE, 2048) };
        FaultTest::new(make, open_to_write).parent(parent(SIZE)).shape(shape).seed(3).run().unwrap();
    }
}

/// Sectors of blocks that no bit is set for, over old bytes: in a differencing disk or a dynamic one.
fn partial(differencing: bool) -> Arc<MemoryStorage> {
    let file = Arc::new(MemoryStorage::new());
    let layer = made(file.clone(), Sort::Partial, SIZE, 4096).unwrap();
    layer.write(512, &[7; 1024]).unwrap();
    layer.write(SIZE - 4096, &[8; 512]).unwrap();
    layer.close().unwrap();
    let mut bytes = file.to_vec();
    let end = bytes.len() - 512;
    if differencing {
        (bytes[63], bytes[end + 63]) = (4, 4);
        bytes[512 + 64..512 + 66].copy_from_slice(b"\0p");
    }
    sign(&mut bytes);
    Arc::new(MemoryStorage::from_bytes(&bytes))
}

fn kinds(layer: &Arc<dyn Layer>) -> Vec<Kind> {
    (0..SIZE).step_by(512).map(|at| layer.extent(at, 512).unwrap().kind).collect()
}

/// What the disk holds over a raw parent full of stamps, or alone where the file names no parent.
fn disk(layer: &Arc<dyn Layer>) -> Vec<u8> {
    let below = layer.parent().is_some().then(|| parent(SIZE));
    content([layer.clone()].into_iter().chain(below).collect()).unwrap()
}

/// The file's payload as QEMU reads it: without a look at the bits.
fn payload(file: &MemoryStorage) -> Vec<u8> {
    let bytes = file.to_vec();
    let mut all = vec![0; SIZE as usize];
    for (block, to) in all.chunks_mut(4096).enumerate() {
        let at = u64::from_be_bytes(bytes[512 + 16..512 + 24].try_into().unwrap()) as usize + 4 * block;
        let sector = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        if sector != u32::MAX {
            let start = sector as usize * 512 + 512;
            to.copy_from_slice(&bytes[start..start + to.len()]);
        }
    }
    all
}

#[test]
fn a_disk_that_gets_a_parent_keeps_what_it_holds() {
    let file = partial(false);
    let layer = open_to_write(file.clone()).unwrap();
    let (before, held) = (kinds(&layer), disk(&layer));
    assert!(before.contains(&Kind::Zero) && before.contains(&Kind::Hole));
    layer.set_parent(Some(&named("base.raw"))).unwrap();
    let below = content(vec![parent(SIZE)]).unwrap();
    let expected: Vec<u8> = (0..SIZE as usize)
        .map(|at| if before[at / 512] == Kind::Hole { below[at] } else { held[at] })
        .collect();
    assert!(disk(&layer) == expected);
    layer.write(SIZE - 512, &[9; 512]).unwrap();
    layer.close().unwrap();
    let layer = open(file.clone()).unwrap();
    assert_eq!(layer.details().specific.get("subformat"), Some(&json!("differencing")));
    assert!(disk(&layer)[..SIZE as usize - 512] == expected[..SIZE as usize - 512]);

    // And back: where the parent showed it is zero.
    let layer = open_to_write(file.clone()).unwrap();
    layer.set_parent(None).unwrap();
    layer.close().unwrap();
    let layer = open(file.clone()).unwrap();
    assert_eq!(layer.parent(), None);
    let mut alone = held;
    alone[SIZE as usize - 512..].fill(9);
    assert!(disk(&layer) == alone);
    assert!(payload(&file) == alone);
}

#[test]
fn a_disk_without_a_parent_holds_zeros_where_no_bit_is_set() {
    let file = partial(true);
    let layer = open_to_write(file.clone()).unwrap();
    assert!(payload(&file).contains(&0x5a));
    layer.set_parent(None).unwrap();
    // Nothing to do.
    layer.set_parent(None).unwrap();
    layer.close().unwrap();
    let alone = disk(&open(file.clone()).unwrap());
    assert!(!alone.contains(&0x5a) && alone.contains(&7) && alone.contains(&8));
    assert!(payload(&file) == alone);
}

#[test]
fn a_power_cut_leaves_a_parent_or_none() {
    for (differencing, unit) in [(false, 512), (false, 4096), (true, 512), (true, 4096)] {
        let parent = (!differencing).then(|| named("base.raw"));
        let folder = Arc::new(MemoryFolder::new());
        folder.create_new("disk").unwrap().write_at(0, &partial(differencing).to_vec()).unwrap();
        let before = disk(&open(folder.open("disk", false).unwrap()).unwrap());
        let journal = Journal::over(&folder);
        let layer = open_to_write(journal.folder().open("disk", true).unwrap()).unwrap();
        layer.set_parent(parent.as_ref()).unwrap();
        let after = disk(&layer);
        layer.close().unwrap();
        let mut seen = [0, 0];
        for state in journal.states(&Plan { unit, per_epoch: 100, ..Plan::default() }) {
            let file = state.file("disk").unwrap();
            let check = |layer: Result<Arc<dyn Layer>>| {
                let layer = layer.unwrap_or_else(|error| panic!("{error}\n{state}"));
                let now = layer.parent().is_some();
                let expected = if now == differencing { &before } else { &after };
                assert!(disk(&layer) == *expected, "{state}");
                (layer, now)
            };
            sound(file.clone()).unwrap_or_else(|failure| panic!("{failure}\n{state}"));
            let (_, now) = check(open(file.clone()));
            seen[usize::from(now)] += 1;
            // It can be done again, and then is.
            let (layer, _) = check(open_to_write(file.clone()));
            layer.set_parent(parent.as_ref()).unwrap();
            layer.close().unwrap();
            assert!(disk(&open(file).unwrap()) == after, "{state}");
        }
        assert!(seen.iter().all(|count| *count > 5), "{seen:?}");
    }
}

#[test]
fn the_header_goes_back_to_where_all_programs_write_it() {
    for room in [true, false] {
        let file = Arc::new(MemoryStorage::new());
        let layer = child(file.clone(), 4096, room).unwrap();
        let mut lens = Vec::new();
        for name in ["a", "bb", "long.raw", "d", "e", "f", "g", "h"] {
            layer.set_parent(Some(&named(name))).unwrap();
            lens.push(file.len().unwrap());
            let says = layer.details().specific;
            assert_eq!((&says["header-offset"], &says["parent-name"]), (&json!(512), &json!(name)));
        }
        // Names that are changed again and again take no more room each time.
        assert_eq!(lens[3], lens[7], "{room}: {lens:?}");
        layer.close().unwrap();
        let bytes = file.to_vec();
        assert_eq!(bytes[..512], bytes[bytes.len() - 512..]);
        assert_eq!(open(file).unwrap().parent().unwrap().candidates, [std::path::PathBuf::from("h")]);
    }
}

fn amend(layer: &Arc<dyn Layer>, given: &[(&str, &str)]) -> Result<()> {
    let options = Options::check(Vhd.amend_options(), &pairs(given))?;
    layer.amend(&options, &Secrets::default(), &Quiet)
}

fn says(file: &Arc<MemoryStorage>, key: &str) -> Value {
    open(file.clone()).unwrap().details().specific.get(key).cloned().unwrap_or_default()
}

#[test]
fn marks_ids_and_times_can_be_set_in_every_sort_of_disk() {
    let id = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    for options in [&[("subformat", "fixed")][..], &[("creator", "tap")], &[]] {
        let file = Arc::new(MemoryStorage::new());
        create(file.clone(), 1 << 20, options).unwrap().close().unwrap();
        let layer = open_to_write(file.clone()).unwrap();
        assert_eq!(layer.hidden(), Some(false));
        layer.set_hidden(true).unwrap();
        assert_eq!(says(&file, "hidden"), 1);
        amend(
            &layer,
            &[("hidden", "2"), ("saved_state", "on"), ("unique_id", id), ("timestamp", "1700000000")],
        )
        .unwrap();
        layer.set_hidden(true).unwrap();
        layer.close().unwrap();
        for (key, value) in [
            ("hidden", json!(2)),
            ("saved-state", json!(true)),
            ("uuid", json!(id)),
            ("creation-time", json!(1_700_000_000)),
            ("footer-at-end", json!("good")),
        ] {
            assert_eq!(says(&file, key), value, "{options:?} {key}");
        }
        let layer = open_to_write(file.clone()).unwrap();
        assert_eq!(layer.hidden(), Some(true));
        layer.set_hidden(false).unwrap();
        amend(&layer, &[("unique_id", "new")]).unwrap();
        layer.close().unwrap();
        assert_eq!(says(&file, "hidden"), Value::Null);
        assert_ne!(says(&file, "uuid"), id);
        let read_only = open(file.clone()).unwrap();
        assert_eq!(read_only.set_hidden(true).unwrap_err().kind(), ErrorKind::Denied);

        let layer = open_to_write(file.clone()).unwrap();
        let key = format!("{}:{}", "ab".repeat(32), "cd".repeat(32));
        let done = amend(&layer, &[("marker", "200"), ("key_hash", &key)]);
        if options.contains(&("creator", "tap")) {
            done.unwrap();
            layer.close().unwrap();
            assert_eq!(
                (says(&file, "batmap-marker"), says(&file, "batmap-key-hash")),
                (json!(200), json!("cd".repeat(32)))
            );
            let layer = open_to_write(file.clone()).unwrap();
            amend(&layer, &[("key_hash", "none")]).unwrap();
            assert_eq!(layer.details().specific.get("batmap-key-hash"), None);
            assert_eq!(
                (says(&file, "batmap-marker"), says(&file, "batmap-key-hash")),
                (json!(200), Value::Null)
            );
        } else {
            assert!(done.unwrap_err().to_string().contains("batmap"));
        }
    }
}

/// A footer that cannot be written is an error, and the one before stays.
#[test]
fn a_fixed_disks_footer_is_written_whole_or_not() {
    let make = |file| create(file, 64 << 10, &[("subformat", "fixed"), ("force_size", "on")]);
    let shape = Shape { header: true, ops: 30, ..Shape::new(64 << 10, 4096) };
    let counts = CrashTest::new(make, open_to_write).shape(shape).per_epoch(30).run().unwrap();
    assert!(counts.states > 100, "{counts:?}");
    FaultTest::new(make, open_to_write).shape(shape).run().unwrap();
}
