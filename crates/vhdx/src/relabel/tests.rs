use std::sync::Arc;

use cowhand_core::testing::{CrashTest, Fault, Journal, Op, Plan, Rng, fault_test, fill};
use cowhand_core::{
    CheckOptions, CreateOptions, Erase, ErrorKind, Folder, Format, Image, Kind, Layer, Link, MemoryFolder,
    MemoryStorage, NoFiles, OpenOptions, Options, ParentRef, Quiet, Result, Secrets, Storage, raw::Raw,
};
use serde_json::{Value, json};

use crate::Vhdx;
use crate::bat::Geometry;
use crate::bytes::MIB;

const SIZE: u64 = 5 * MIB;

fn open(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Vhdx.open(file, &NoFiles, &OpenOptions::default())
}

fn open_to_write(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Vhdx.open(file, &NoFiles, &OpenOptions { writable: true, ..OpenOptions::default() })
}

/// A VHDX parent as the verbs name one.
fn named(name: &str, id: u8) -> ParentRef {
    ParentRef {
        candidates: vec![name.into()],
        format: Some("vhdx".to_owned()),
        expected: vec![[id; 16]],
        sector: Some(512),
        ..ParentRef::default()
    }
}

fn options(given: &[(&str, &str)], table: &[cowhand_core::OptionSpec]) -> Result<Options> {
    let given: Vec<_> = given.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    Options::check(table, &given)
}

/// An image, closed.
fn made(size: u64, parent: Option<ParentRef>, given: &[(&str, &str)]) -> Arc<MemoryStorage> {
    let file = Arc::new(MemoryStorage::new());
    let options = options(given, Vhdx.options()).unwrap();
    let how = CreateOptions { size, options, parent, fresh: true, ..CreateOptions::default() };
    Vhdx.create(file.clone(), &NoFiles, &how).unwrap().close().unwrap();
    file
}

/// A raw disk full of stamps: what the parent of any name holds.
fn below(size: u64) -> Arc<dyn Layer> {
    let mut bytes = vec![0; size as usize];
    fill(&mut bytes, 0, 1 << 40);
    Raw.open(Arc::new(MemoryStorage::from_bytes(&bytes)), &NoFiles, &OpenOptions::default()).unwrap()
}

/// The disk, over `below` where the file names a parent.
fn image(layer: &Arc<dyn Layer>, below: &Arc<dyn Layer>) -> Image {
    let below = layer.parent().is_some().then(|| below.clone());
    let link = |layer| Link { layer, name: "x".to_owned(), format: "vhdx" };
    Image::new([layer.clone()].into_iter().chain(below).map(link).collect()).unwrap()
}

/// What the disk holds.
fn disk(layer: &Arc<dyn Layer>) -> Vec<u8> {
    let image = image(layer, &below(layer.size()));
    let mut all = vec![0xa5; image.size() as usize];
    image.read(0, &mut all).unwrap();
    all
}

/// What it holds where blocks meet.
fn glance(layer: &Arc<dyn Layer>, below: &Arc<dyn Layer>) -> Vec<u8> {
    let image = image(layer, below);
    let mut seen = vec![0xa5; 2048 * (SIZE / MIB) as usize];
    for (at, piece) in (0..).step_by(MIB as usize).zip(seen.chunks_mut(2048)) {
        image.read(at, &mut piece[..1024]).unwrap();
        image.read(at + MIB - 1024, &mut piece[1024..]).unwrap();
    }
    seen
}

/// A child with whole blocks, blocks in part, absent ones and zeros.
fn child() -> Arc<MemoryStorage> {
    let file = made(SIZE, Some(named("base.vhdx", 1)), &[]);
    let layer = open_to_write(file.clone()).unwrap();
    layer.write(0, &[1; MIB as usize]).unwrap();
    layer.write(MIB + 512, &[2; 1024]).unwrap();
    layer.write(2 * MIB - 512, &[3; 1024]).unwrap();
    layer.erase(3 * MIB, MIB, Erase::Zero).unwrap();
    layer.close().unwrap();
    file
}

/// The check finds no fault in the file.
fn sound(file: &Arc<MemoryStorage>) {
    let how = CheckOptions { workers: 1, ..CheckOptions::default() };
    let report = Vhdx.checker().unwrap().check(file.clone(), &NoFiles, &how, &Quiet).unwrap();
    assert!(report.corruptions + report.check_errors == 0, "{:?}", report.faults);
}

fn says(file: &Arc<MemoryStorage>, key: &str) -> Value {
    open(file.clone()).unwrap().details().specific.get(key).cloned().unwrap_or_default()
}

fn identity(file: &Arc<MemoryStorage>) -> Option<[u8; 16]> {
    open(file.clone()).unwrap().identity().0
}

#[test]
fn another_name_changes_nothing_else() {
    let file = child();
    let (before, id) = (disk(&open(file.clone()).unwrap()), identity(&file));
    for name in ["b.vhdx", &"long/".repeat(500), "c.vhdx"] {
        let name = format!("{name}x");
        let layer = open_to_write(file.clone()).unwrap();
        layer.set_parent(Some(&named(&name, 7))).unwrap();
        assert_eq!(layer.parent().unwrap().candidates, [std::path::PathBuf::from(&name)]);
        layer.close().unwrap();
        let layer = open(file.clone()).unwrap();
        let found = layer.parent().unwrap();
        assert_eq!((found.candidates, found.expected), (vec![name.into()], vec![[7; 16]]));
        assert!(disk(&layer) == before);
    }
    assert_eq!(identity(&file), id, "children of this one know it still");
}

#[test]
fn what_the_parent_may_become_is_noted_until_it_is_named_again() {
    let file = child();
    let layer = open_to_write(file.clone()).unwrap();
    for _ in 0..2 {
        layer.expect_parent([9; 16]).unwrap();
        assert_eq!(layer.parent().unwrap().expected, [[1; 16], [9; 16]]);
    }
    drop(layer);
    let layer = open_to_write(file.clone()).unwrap();
    assert_eq!(layer.parent().unwrap().expected, [[1; 16], [9; 16]], "durable without a flush");
    layer.expect_parent([8; 16]).unwrap();
    assert_eq!(layer.parent().unwrap().expected, [[1; 16], [8; 16]]);
    layer.set_parent(Some(&named("base.vhdx", 8))).unwrap();
    assert_eq!(layer.parent().unwrap().expected, [[8; 16]]);
    layer.close().unwrap();
    assert_eq!(
        says(&file, "parent-locator")["parent_linkage2"],
        json!("{00000000-0000-0000-0000-000000000000}")
    );
    let alone = made(MIB, None, &[]);
    let layer = open_to_write(alone.clone()).unwrap();
    layer.expect_parent([9; 16]).unwrap();
    layer.close().unwrap();
    assert_eq!(open(alone).unwrap().parent(), None);
}

#[test]
fn a_disk_that_loses_its_parent_has_zeros_where_that_showed_through() {
    let file = child();
    let len = file.len().unwrap();
    let before = disk(&open(file.clone()).unwrap());
    let layer = open_to_write(file.clone()).unwrap();
    let kinds: Vec<Kind> = (0..SIZE).step_by(512).map(|at| layer.extent(at, 512).unwrap().kind).collect();
    layer.set_parent(None).unwrap();
    // Nothing to do.
    layer.set_parent(None).unwrap();
    layer.close().unwrap();
    let layer = open(file.clone()).unwrap();
    assert_eq!(layer.parent(), None);
    assert_eq!(says(&file, "subformat"), json!("dynamic"));
    let expected: Vec<u8> =
        (0..SIZE as usize).map(|at| if kinds[at / 512] == Kind::Hole { 0 } else { before[at] }).collect();
    assert!(expected.contains(&2) && expected.contains(&3));
    assert!(disk(&layer) == expected);
    sound(&file);
    // The sector bitmap's place is used again.
    let layer = open_to_write(file.clone()).unwrap();
    layer.write(4 * MIB, &[4; 512]).unwrap();
    layer.close().unwrap();
    assert_eq!(file.len().unwrap(), len);
    assert_eq!(disk(&open(file.clone()).unwrap())[4 * MIB as usize], 4);

    // And back: blocks that are not present show the parent, whole ones do not.
    let layer = open_to_write(file.clone()).unwrap();
    layer.set_parent(Some(&named("again.vhdx", 3))).unwrap();
    layer.close().unwrap();
    sound(&file);
    let layer = open(file.clone()).unwrap();
    assert_eq!(says(&file, "subformat"), json!("differencing"));
    assert_eq!(layer.extent(MIB, SIZE).unwrap().kind, Kind::Data);
    assert_eq!(disk(&layer)[..4 * MIB as usize], expected[..4 * MIB as usize]);
}

#[test]
fn what_meant_nothing_is_gone_when_a_disk_gets_a_parent() {
    // Two chunks of 16 blocks; the entries of bitmaps and those behind the last block have old bytes.
    let (block, size) = (256 * MIB, 18 * 256 * MIB);
    let file = made(size, None, &[("block_size", "256M"), ("block_state_zero", "off")]);
    let bat = 3 * MIB;
    for entry in [16, 19, 25, 33] {
        file.write_at(bat + 8 * entry, &0x0123_4560_0006_u64.to_le_bytes()).unwrap();
    }
    let layer = open_to_write(file.clone()).unwrap();
    layer.set_parent(Some(&named("base.vhdx", 1))).unwrap();
    layer.close().unwrap();
    let geometry = Geometry { size, block_size: block, sector: 512 };
    let mut entries = vec![1; geometry.entries(true) as usize * 8];
    file.read_at(bat, &mut entries).unwrap();
    assert!(entries.iter().all(|byte| *byte == 0));
    let layer = open(file).unwrap();
    assert_eq!(layer.extent(0, size).unwrap().len, size);
}

#[test]
fn parents_that_a_disk_cannot_have() {
    let says = |file: Arc<MemoryStorage>, parent: &ParentRef| {
        let before = file.to_vec();
        let layer = open_to_write(file.clone()).unwrap();
        let error = layer.set_parent(Some(parent)).unwrap_err();
        layer.close().unwrap();
        assert!(file.to_vec() == before, "{error}");
        (error.kind(), error.to_string())
    };
    let (kind, text) = says(made(MIB, None, &[("subformat", "fixed")]), &named("b", 1));
    assert!(kind == ErrorKind::Unsupported && text.contains("fixed"), "{text}");
    let (_, text) = says(child(), &ParentRef { sector: Some(4096), ..named("b", 1) });
    assert!(text.contains("logical sector, which is 4096"), "{text}");
    let (_, text) = says(child(), &ParentRef { format: Some("raw".to_owned()), ..named("b", 1) });
    assert!(text.contains("which is raw"), "{text}");
    let (_, text) = says(child(), &ParentRef { expected: Vec::new(), ..named("b", 1) });
    assert!(text.contains("not known"), "{text}");
    let read_only = open(child()).unwrap();
    assert_eq!(read_only.set_parent(Some(&named("b", 1))).unwrap_err().kind(), ErrorKind::Denied);
}

/// 131,041 blocks, and the 31 entries between, are a BAT of a MiB exactly: a child's has 32 entries more.
fn full_bat() -> Arc<MemoryStorage> {
    let file = made(131_041 * MIB, None, &[("block_size", "1M"), ("block_state_zero", "off")]);
    let layer = open_to_write(file.clone()).unwrap();
    for at in [0, 3 * MIB, 70_000 * MIB, 131_040 * MIB] {
        layer.write(at, &[6; 5000]).unwrap();
    }
    layer.close().unwrap();
    file
}

#[test]
fn a_bat_that_is_too_short_for_a_child_goes_elsewhere() {
    let file = full_bat();
    let layer = open_to_write(file.clone()).unwrap();
    layer.set_parent(Some(&named("base.vhdx", 1))).unwrap();
    layer.write(70_001 * MIB, &[5; 512]).unwrap();
    layer.close().unwrap();
    sound(&file);
    let layer = open(file).unwrap();
    let mut bytes = [0; 5001];
    for at in [0, 3 * MIB, 70_000 * MIB, 131_040 * MIB] {
        assert_eq!(layer.read(at, &mut bytes).unwrap().kind, Kind::Data);
        assert!(bytes[..5000] == [6; 5000] && bytes[5000] == 0, "{at}");
        let rest = layer.extent(at + MIB - 1, 1).unwrap();
        assert_ne!(rest.kind, Kind::Hole, "blocks that were whole are so still");
    }
    assert_eq!(layer.extent(70_001 * MIB, MIB).unwrap().len, 512);
    assert_eq!(layer.extent(2 * MIB, 512).unwrap().kind, Kind::Hole);
}

#[test]
fn what_is_written_after_a_refused_name_is_there() {
    let file = full_bat();
    // Items of users with gaps between, none of which has room for a locator: all of them would have to move.
    let (mut table, mut at) = (vec![0; 64 << 10], (64 << 10) + 40);
    file.read_at(2 * MIB, &mut table).unwrap();
    for id in 1..=4u8 {
        let length: u32 = 245_605;
        let entry = [&[id; 16][..], &u32::to_le_bytes(at), &length.to_le_bytes(), &[1, 0, 0, 0, 0, 0, 0, 0]];
        let start = 32 + 32 * usize::from(table[10]);
        table[start..start + 32].copy_from_slice(&entry.concat());
        table[10] += 1;
        // Nowhere the same.
        let bytes: Vec<u8> =
            (at..at + length).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
        file.write_at(2 * MIB + u64::from(at), &bytes[..length as usize]).unwrap();
        at += length + 120;
    }
    file.write_at(2 * MIB, &table).unwrap();
    let layer = open_to_write(file.clone()).unwrap();
    let name = named("base.vhdx", 1);
    let error = layer.set_parent(Some(&name)).unwrap_err();
    assert!(error.to_string().contains("does not fit into the log"), "{error}");
    layer.write(9 * MIB, &[9; 512]).unwrap();
    layer.close().unwrap();
    let mut found = [0; 512];
    open(file.clone()).unwrap().read(9 * MIB, &mut found).unwrap();
    assert_eq!(found, [9; 512]);
    sound(&file);
}

type Change = fn(&Arc<dyn Layer>) -> Result<()>;

/// What is changed of a child; `first` and `longer`: of a disk without a parent, whose BAT has room for one or not.
const CHANGES: [(&str, Change); 5] = [
    ("none", |layer| layer.set_parent(None)),
    ("another", |layer| layer.set_parent(Some(&named(&"long/".repeat(300), 5)))),
    ("noted", |layer| layer.expect_parent([5; 16])),
    ("first", |layer| layer.set_parent(Some(&named("base.vhdx", 5)))),
    ("longer", |layer| layer.set_parent(Some(&named("base.vhdx", 5)))),
];

/// What each of them begins with.
fn before(what: &str) -> Arc<MemoryStorage> {
    if what == "longer" {
        return full_bat();
    }
    let file = child();
    if what == "first" {
        let layer = open_to_write(file.clone()).unwrap();
        layer.set_parent(None).unwrap();
        layer.close().unwrap();
    }
    file
}

#[test]
fn each_failure_is_an_error_and_leaves_one_or_the_other() {
    let below = below(SIZE);
    let told = |file: &Arc<MemoryStorage>| {
        let layer = open(file.clone()).unwrap();
        (layer.parent(), glance(&layer, &below))
    };
    for (what, change) in CHANGES {
        let start = before(what);
        let done = Arc::new(start.snapshot());
        let attempt = |file: Arc<dyn Storage>| {
            let layer = open_to_write(file)?;
            change(&layer)?;
            layer.close()
        };
        attempt(done.clone()).unwrap();
        for fault in [Fault::EIO, Fault::EIO.forever(), Fault::EIO.torn(), Fault::ENOSPC.forever()] {
            let counts = fault_test(
                fault,
                || Arc::new(start.snapshot()),
                |file, faults| attempt(faults.storage(file.clone())),
                |file, error| {
                    let now = told(file);
                    assert!(now == told(&done) || error.is_some() && now == told(&start), "{what}");
                    Ok(())
                },
            );
            assert!(counts.unwrap().errors > 5, "{what}");
        }
    }
}

#[test]
fn a_power_cut_leaves_one_parent_or_the_other() {
    let below = below(SIZE);
    for (what, change) in CHANGES {
        for unit in [512, 4096] {
            let start = before(what);
            let folder = Arc::new(MemoryFolder::new());
            folder.create_new("disk").unwrap().write_at(0, &start.to_vec()).unwrap();
            let told = |layer: &Arc<dyn Layer>| (layer.parent(), glance(layer, &below));
            let before = told(&open(start).unwrap());
            let journal = Journal::over(&folder);
            let layer = open_to_write(journal.folder().open("disk", true).unwrap()).unwrap();
            change(&layer).unwrap();
            let after = told(&layer);
            journal.mark(1);
            layer.close().unwrap();
            drop(layer);
            let mut seen = [0, 0];
            for state in journal.states(&Plan { unit, per_epoch: 40, ..Plan::default() }) {
                let file = state.file("disk").unwrap();
                let check = |layer: Result<Arc<dyn Layer>>| {
                    let layer = layer.unwrap_or_else(|error| panic!("{what}: {error}\n{state}"));
                    let now = told(&layer);
                    let new = now == after;
                    assert!(new || now == before, "{what}: {:?}\n{state}", now.0);
                    assert!(new || state.mark().is_none(), "{what} was done\n{state}");
                    (layer, new)
                };
                let (_, new) = check(open(file.clone()));
                seen[usize::from(new)] += 1;
                sound(&file);
                // It can be done again, and then is.
                let (layer, again) = check(open_to_write(file.clone()));
                assert_eq!(new, again, "{state}");
                change(&layer).unwrap();
                layer.close().unwrap();
                assert!(told(&open(file).unwrap()) == after, "{what} again\n{state}");
            }
            assert!(seen.iter().all(|count| *count > 5), "{what}: {seen:?}");
        }
    }
}

/// Names that change between writes, longer and shorter, over blocks that are made meanwhile. With COWHAND_SLOW in the
/// environment some thousand states.
#[test]
fn a_power_cut_among_writes_leaves_one_name_or_the_other() {
    let slow = std::env::var_os("COWHAND_SLOW").is_some();
    let size = 2 * MIB + 4096;
    let make = |file: Arc<dyn Storage>| {
        let parent = Some(named("base.vhdx", 1));
        Vhdx.create(file, &NoFiles, &CreateOptions { size, parent, ..CreateOptions::default() })
    };
    let write = |at: u64, len| Op::Write { at, len };
    let script = vec![
        write(1024, 1024),
        Op::Rename { len: 5 },
        write(MIB - 512, 2048),
        Op::Flush,
        Op::Rename { len: 3000 },
        Op::Reopen,
        write(0, 512),
        Op::Rename { len: 40 },
        Op::Erase { at: MIB, len: MIB, how: Erase::Zero },
        Op::Rename { len: 5000 },
        write(2 * MIB, 4096),
        Op::Reopen,
        Op::Rename { len: 1 },
        write(MIB, 512),
    ];
    let counts = CrashTest::new(make, open_to_write)
        .view(open)
        .parent(below(size))
        .check(|state, _| {
            sound(&state.file("disk").unwrap());
            Ok(())
        })
        .script(script)
        .units(if slow { &[512, 4096] } else { &[512] })
        .per_epoch(if slow { 200 } else { 6 })
        // Recovery itself is cut where all states are.
        .nested(if slow { 8 } else { 0 })
        .run()
        .unwrap_or_else(|failure| panic!("{failure}"));
    assert!(counts.states > if slow { 3000 } else { 100 }, "{counts:?}");
}

#[test]
fn more_entries_than_a_commit_takes_change_one_after_the_other() {
    // 70,000 blocks in part: 137 sectors of the BAT. The file is as sparse as its blocks are.
    let (blocks, sector) = (70_000u64, 512);
    let file = made(blocks * MIB, Some(named("base.vhdx", 1)), &[("block_size", "1M")]);
    let geometry = Geometry { size: blocks * MIB, block_size: MIB, sector };
    let (bat, mut end) = (3 * MIB, 5 * MIB);
    let mut set = |entry: u64, state: u64| {
        file.write_at(bat + 8 * entry, &(end | state).to_le_bytes()).unwrap();
        end += MIB;
        end - MIB
    };
    let mut rng = Rng::new(1);
    let chosen: Vec<u64> = (0..20).map(|_| rng.below(blocks)).collect();
    for block in 0..blocks {
        let place = set(geometry.entry_of(block), 7);
        if chosen.contains(&block) {
            file.write_at(place, &[7; 1024]).unwrap();
        }
        if block % geometry.chunk_ratio() == 0 {
            set(geometry.bitmap_entry_of(block), 6);
        }
    }
    let len = end;
    file.set_len(len).unwrap();
    for block in &chosen {
        let mut entry = [0; 8];
        file.read_at(bat + 8 * geometry.bitmap_entry_of(*block), &mut entry).unwrap();
        let bitmap = u64::from_le_bytes(entry) & !(MIB - 1);
        // The second sector of the two.
        file.write_at(bitmap + geometry.bit_of(block * MIB) / 8, &[2]).unwrap();
    }
    let layer = open_to_write(file.clone()).unwrap();
    layer.set_parent(None).unwrap();
    layer.close().unwrap();
    let layer = open(file).unwrap();
    assert_eq!(layer.parent(), None);
    let mut bytes = [1; 1536];
    for block in &chosen {
        layer.read(block * MIB, &mut bytes).unwrap();
        assert_eq!((bytes[511], bytes[512], bytes[1023], bytes[1024]), (0, 7, 7, 0), "{block}");
    }
}

fn amend(file: &Arc<MemoryStorage>, given: &[(&str, &str)]) -> Result<()> {
    let layer = open_to_write(file.clone())?;
    let options = options(given, Vhdx.amend_options())?;
    layer.amend(&options, &Secrets::default(), &Quiet)?;
    layer.close()
}

#[test]
fn ids_and_the_physical_sector_can_be_changed() {
    let id = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    for file in [made(MIB, None, &[]), made(MIB, None, &[("subformat", "fixed")]), child()] {
        let first = identity(&file);
        amend(&file, &[("disk_id", id), ("physical_sector_size", "512")]).unwrap();
        assert_eq!(says(&file, "virtual-disk-id"), json!(id));
        assert_eq!(says(&file, "physical-sector-size"), json!(512));
        let second = identity(&file);
        assert_ne!(second, first, "the disk is another to its guest");
        // What is so already changes nothing.
        amend(&file, &[("disk_id", id)]).unwrap();
        assert_eq!(identity(&file), second);
        amend(&file, &[("data_write_guid", id)]).unwrap();
        assert_eq!(says(&file, "data-write-guid"), json!(id));
        amend(&file, &[("disk_id", "new"), ("data_write_guid", id)]).unwrap();
        assert_ne!(says(&file, "virtual-disk-id"), json!(id));
        assert_eq!(says(&file, "data-write-guid"), json!(id));
        amend(&file, &[("data_write_guid", "new")]).unwrap();
        assert_ne!(says(&file, "data-write-guid"), json!(id));
        let wrong = amend(&file, &[("disk_id", "old")]).unwrap_err().to_string();
        assert!(wrong.contains("not a UUID"), "{wrong}");
    }
}
