//! New images, written before anybody sees them.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::Vhdx;
use crate::bytes::MIB;
use cowhand_core::testing::{Fault, FaultTest, Faults, ModelTest, RaceTest, Shape, WRITES, fault_test};
use cowhand_core::{
    Access, Cache, CreateOptions, ErrorKind, FileStorage, Format, Image, Kind, Layer, Link, Lock,
    MemoryStorage, NoFiles, OpenOptions, Options, Result, Storage,
};

fn options(size: u64, given: &[(&str, &str)], fresh: bool) -> CreateOptions {
    let given: Vec<_> = given.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    CreateOptions {
        size,
        options: Options::check(Vhdx.options(), &given).unwrap(),
        fresh,
        ..CreateOptions::default()
    }
}

fn make(file: Arc<dyn Storage>, size: u64, given: &[(&str, &str)]) -> Result<Arc<dyn Layer>> {
    Vhdx.create(file, &NoFiles, &options(size, given, true))
}

fn open(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Vhdx.open(file, &NoFiles, &OpenOptions::default())
}

fn image(layer: Arc<dyn Layer>) -> Image {
    Image::new(vec![Link { layer, name: "x".to_owned(), format: "vhdx" }]).unwrap()
}

const SIZE: u64 = 5 * MIB + 4096;
const SHAPES: &[&[(&str, &str)]] = &[
    &[("block_size", "1M")],
    &[("block_size", "1M"), ("block_state_zero", "off")],
    &[("block_size", "2M"), ("logical_sector_size", "4096"), ("log_size", "2M")],
    &[("block_size", "1M"), ("subformat", "fixed")],
];

fn shape() -> Shape {
    Shape { ops: 40, ..Shape::new(SIZE, MIB) }
}

#[test]
fn behaves_as_a_flat_vector() {
    for given in SHAPES {
        for seed in 0..2 {
            let once = Shape { reopen: false, ..shape() };
            ModelTest::new(|file| make(file, SIZE, given), open).shape(once).seed(seed).run().unwrap();
        }
    }
}

#[test]
fn writers_side_by_side_lose_nothing() {
    for given in SHAPES {
        let test = RaceTest::new(|file| make(file, SIZE, given), open).fresh();
        test.unit(MIB).time(Duration::from_millis(200)).run().unwrap();
    }
}

#[test]
fn whatever_fails_ends_in_an_error() {
    for given in SHAPES {
        let shape = Shape { ops: 16, max_len: 8192, ..shape() };
        FaultTest::new(|file| make(file, SIZE, given), open).shape(shape).fresh().run().unwrap();
    }
}

#[test]
fn whatever_fails_in_making_an_image_ends_in_an_error() {
    for fault in [Fault::EIO, Fault::EIO.torn(), Fault::ENOSPC.only(WRITES).forever()] {
        for given in SHAPES {
            let attempt = |file: &Arc<MemoryStorage>, faults: &Arc<Faults>| {
                let layer =
                    Vhdx.create(faults.storage(file.clone()), &NoFiles, &options(SIZE, given, true))?;
                layer.write(MIB - 5000, &[7; 10000])?;
                layer.close()
            };
            let counts =
                fault_test(fault, || Arc::new(MemoryStorage::new()), attempt, |_, _| Ok(())).unwrap();
            assert!(counts.errors >= 10, "{counts:?}");
        }
    }
}

#[test]
fn a_table_larger_than_what_is_kept_of_it_is_written_whole() {
    // 64 TiB in 1 MiB blocks: 1025 pages, of which 256 are kept. One block in each, written by two threads.
    let file = Arc::new(MemoryStorage::new());
    let layer = make(file.clone(), 64 << 40, &[("block_size", "1M"), ("block_state_zero", "off")]).unwrap();
    let per_page = 8192 * MIB;
    let pages = (64 << 40) / per_page;
    thread::scope(|scope| {
        for thread in 0..2 {
            let layer = &layer;
            scope.spawn(move || {
                for page in (thread..pages).step_by(2) {
                    layer.write(page * per_page + page * 512, &page.to_le_bytes()).unwrap();
                }
            });
        }
    });
    let all_there = |layer: &dyn Layer| {
        for page in 0..pages {
            let mut found = [0; 8];
            assert_eq!(layer.read(page * per_page + page * 512, &mut found).unwrap().kind, Kind::Data);
            assert_eq!(u64::from_le_bytes(found), page);
        }
    };
    all_there(layer.as_ref());
    layer.close().unwrap();
    all_there(open(file.clone()).unwrap().as_ref());
    let entries = (64 << 20) + ((64 << 20) - 1) / 4096;
    let bat = (8u64 * entries).next_multiple_of(MIB);
    assert_eq!(file.len().unwrap(), 3 * MIB + bat + pages * MIB);
}

#[test]
fn blocks_stand_at_the_end_in_whole_and_the_file_ends_with_the_last() {
    let file = Arc::new(MemoryStorage::new());
    let layer = make(file.clone(), 100 * MIB, &[("block_size", "4M")]).unwrap();
    let before = file.len().unwrap();
    assert_eq!(before, 4 * MIB);
    layer.write(50 * MIB, &[1; 512]).unwrap();
    layer.write(7 * MIB, &[2; 3 * MIB as usize]).unwrap();
    layer.flush().unwrap();
    // What a write does not touch of its blocks is a hole of the file.
    assert!(file.physical_size().unwrap() < 4 * MIB);
    assert_eq!(layer.extent(48 * MIB, MIB).unwrap().kind, Kind::Zero);
    let two = layer.extent(7 * MIB, 100 * MIB).unwrap();
    assert_eq!((two.kind, two.len, two.host), (Kind::Data, 3 * MIB, Some(before + 4 * MIB + 3 * MIB)));
    layer.close().unwrap();
    assert_eq!(layer.write(0, &[1]).unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(file.len().unwrap(), before + 3 * 4 * MIB);
}

#[test]
fn bytes_past_the_end_are_refused() {
    let layer = make(Arc::new(MemoryStorage::new()), MIB, &[]).unwrap();
    assert!(layer.write(MIB - 1, &[1, 2]).is_err());
    assert!(layer.write(u64::MAX, &[1, 2]).is_err());
    layer.write(MIB, &[]).unwrap();
}

#[test]
fn a_disk_of_no_bytes_is_legal() {
    let file = Arc::new(MemoryStorage::new());
    make(file.clone(), 0, &[]).unwrap().close().unwrap();
    assert_eq!(open(file).unwrap().size(), 0);
}

#[test]
fn sizes_are_rounded_up_to_the_logical_sector() {
    let size = |size, given| make(Arc::new(MemoryStorage::new()), size, given).unwrap().size();
    assert_eq!(size(1, &[]), 512);
    assert_eq!(size(4097, &[("logical_sector_size", "4096")]), 8192);
}

#[test]
fn a_fixed_image_takes_the_space_that_is_asked_for() {
    let folder = tempfile_folder("prealloc");
    for (prealloc, at_least) in [("off", 0), ("falloc", 8 * MIB), ("full", 8 * MIB)] {
        let file = Arc::new(
            FileStorage::open(&folder.join(prealloc), Access::CreateNew, Lock::None, Cache::Unsafe).unwrap(),
        );
        let layer =
            make(file.clone(), 8 * MIB, &[("subformat", "fixed"), ("preallocation", prealloc)]).unwrap();
        layer.close().unwrap();
        assert_eq!(file.len().unwrap(), 12 * MIB);
        assert!(file.physical_size().unwrap() >= at_least, "{prealloc}");
        assert!(at_least > 0 || file.physical_size().unwrap() < MIB);
        let whole = image(open(file).unwrap());
        let mut all = vec![1; 8 * MIB as usize];
        whole.read(0, &mut all).unwrap();
        assert!(all.iter().all(|byte| *byte == 0));
    }
    std::fs::remove_dir_all(folder).unwrap();
}

fn tempfile_folder(name: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("cowhand-vhdx-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn what_cannot_be_shared_is_not_given_room() {
    let folder = tempfile_folder("share");
    let open_new = |name: &str| {
        Arc::new(FileStorage::open(&folder.join(name), Access::CreateNew, Lock::None, Cache::Unsafe).unwrap())
    };
    let source = open_new("source");
    source.write_at(0, &[3; 4 * MIB as usize]).unwrap();
    let file = open_new("target");
    let layer = make(file.clone(), 64 * MIB, &[]).unwrap();
    let shared =
        (0..4).map(|n| layer.write_from(n * MIB, source.as_ref(), n * MIB, MIB).unwrap()).sum::<u64>();
    // Some file systems share blocks, others do not: the bytes are all there, or the file has not grown.
    layer.flush().unwrap();
    layer.write(5 * MIB, &[4; 512]).unwrap();
    layer.close().unwrap();
    assert_eq!(file.len().unwrap(), 5 * MIB + shared);
    let mut all = vec![1; 6 * MIB as usize];
    image(open(file).unwrap()).read(0, &mut all).unwrap();
    assert!(all[..shared as usize].iter().all(|byte| *byte == 3));
    assert!(all[shared as usize..5 * MIB as usize].iter().all(|byte| *byte == 0));
    assert!(all[5 * MIB as usize..][..512].iter().all(|byte| *byte == 4));
    std::fs::remove_dir_all(folder).unwrap();
}
