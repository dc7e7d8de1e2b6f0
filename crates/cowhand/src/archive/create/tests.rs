//! Archives that are made: the same bytes on any number of threads, whole or not there, of sources that hold still.

use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use cowhand_core::testing::Rng;
use cowhand_core::{Chunk, Quiet, Reading};
use tempfile::TempDir;

use super::*;

/// A file of holes, zeros, and data that is nowhere the same.
fn fill(path: &Path, size: u64, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; size as usize];
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let mut at = 0;
    while at < size {
        let len = rng.below(700_000).min(size - at) + 1;
        let range = at as usize..((at + len).min(size)) as usize;
        match rng.below(4) {
            0 => {}
            1 => file.write_all_at(&bytes[range.clone()], at).unwrap(),
            _ => {
                bytes[range.clone()].iter_mut().for_each(|byte| *byte = rng.below(256) as u8);
                file.write_all_at(&bytes[range], at).unwrap();
            }
        }
        at += len;
    }
    bytes
}

fn disk(name: &str, path: &Path) -> DiskToArchive {
    DiskToArchive { name: Some(name.to_owned()), path: path.to_owned(), open: Open::default() }
}

/// Two disks, of which one ends within a sector, and a configuration.
fn scene() -> (TempDir, CreateArchive, Vec<Vec<u8>>) {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.raw"), dir.path().join("b.raw"));
    let mut disks = vec![fill(&a, 9 << 20, 1), fill(&b, 3_000_001, 2)];
    disks[1].resize(3_000_001_usize.next_multiple_of(512), 0);
    let config = dir.path().join("qemu-server.conf");
    std::fs::write(&config, "memory: 512\n").unwrap();
    let how = CreateArchive {
        format: "vma".to_owned(),
        disks: vec![disk("drive-scsi0", &a), disk("drive-scsi1", &b)],
        configs: vec![config],
        id: Some([7; 16]),
        made: Some(1_700_000_000),
        ..CreateArchive::default()
    };
    (dir, how, disks)
}

fn made(how: &CreateArchive) -> (Vec<u8>, ArchiveCreated) {
    let mut bytes = Vec::new();
    let to = ArchiveTo::Bytes { name: "memory".to_owned(), to: &mut bytes };
    let done = create_archive(how, to, &Quiet).unwrap();
    (bytes, done)
}

/// What is in an archive: what its front says, and its disks.
fn read(archive: &[u8]) -> (Manifest, Vec<Vec<u8>>) {
    let archives = able(registry::format("vma").unwrap()).unwrap();
    let mut source = archives.read(Box::new(archive), Reading::Strict).unwrap();
    let manifest = source.manifest().clone();
    let mut disks: Vec<Vec<u8>> = manifest.disks.iter().map(|disk| vec![0xaa; disk.size as usize]).collect();
    while let Some(Chunk { disk, at, body }) = source.next().unwrap() {
        let disk = &mut disks[disk as usize];
        match body {
            Body::Bytes(bytes) => disk[at as usize..at as usize + bytes.len()].copy_from_slice(bytes),
            Body::Zero(len) => disk[at as usize..(at + len) as usize].fill(0),
        }
    }
    (manifest, disks)
}

fn names(dir: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(dir.path()).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const SCENE: [&str; 3] = ["a.raw", "b.raw", "qemu-server.conf"];

/// Does something once the first bytes are dealt with, and then goes on or stops.
struct Meanwhile<F>(Mutex<Option<F>>, ControlFlow<()>);

impl<F: FnOnce() + Send> Meanwhile<F> {
    fn new(act: F) -> Self {
        Meanwhile(Mutex::new(Some(act)), ControlFlow::Continue(()))
    }
}

impl<F: FnOnce() + Send> Progress for Meanwhile<F> {
    fn at(&self, done: u64, total: u64) -> ControlFlow<()> {
        assert!(done <= total);
        if done > 0
            && let Some(act) = self.0.lock().unwrap().take()
        {
            act();
        }
        self.1
    }
}

#[test]
fn any_number_of_threads_makes_the_same_bytes() {
    let (_dir, mut how, disks) = scene();
    how.workers = Some(1);
    let (bytes, done) = made(&how);
    for workers in [2, 5, 16] {
        how.workers = Some(workers);
        assert!(made(&how) == (bytes.clone(), done.clone()), "{workers} threads");
    }
    let (manifest, found) = read(&bytes);
    assert!(found == disks);
    assert_eq!((manifest.id, manifest.made), ([7; 16], 1_700_000_000));
    assert_eq!(manifest.configs[0].data, b"memory: 512\n");
    assert_eq!((done.unpacked, done.written), (bytes.len() as u64, bytes.len() as u64));
    for (disk, bytes) in done.disks.iter().zip(&disks) {
        let zero = |block: &&[u8]| block.iter().all(|byte| *byte == 0);
        let zeros: usize = bytes.chunks(4096).filter(zero).map(<[u8]>::len).sum();
        assert_eq!((disk.size, disk.zeros), (bytes.len() as u64, zeros as u64), "{}", disk.name);
    }
    assert_eq!(how.zeros.load(Ordering::Relaxed), done.disks.iter().map(|disk| disk.zeros).sum::<u64>());
    // Packed and unpacked again it is the same.
    for packing in cowhand_packed::packings() {
        how.packing = Some(packing.name().to_owned());
        let (packed, done) = made(&how);
        assert_eq!((done.packing, done.written), (Some(packing.name()), packed.len() as u64));
        assert_eq!(done.unpacked, bytes.len() as u64);
        let mut again = Vec::new();
        packing.unpack(Box::new(packed.as_slice())).read_to_end(&mut again).unwrap();
        assert!(again == bytes, "{}", packing.name());
    }
    // Without an id and a time each is another.
    how = CreateArchive { id: None, made: None, packing: None, ..how };
    let other = (read(&made(&how).0).0, read(&made(&how).0).0);
    assert_ne!(other.0.id, other.1.id);
    assert!(other.0.made > 1_700_000_000);
}

#[test]
fn a_chain_is_one_disk() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.raw");
    let mut bytes = fill(&base, 5 << 20, 3);
    let top = dir.path().join("top.qcow2");
    let backing = crate::Create { format: "qcow2".to_owned(), ..crate::Create::default() };
    let backing =
        crate::Create { backing: Some("base.raw".into()), backing_format: Some("raw".to_owned()), ..backing };
    crate::create(&top, &backing).unwrap();
    let image = open(&top, &Open { writable: true, ..Open::default() }).unwrap();
    image.write(1_000_003, &[9; 70_000]).unwrap();
    image.erase(3 << 20, 1 << 20, cowhand_core::Erase::Free).unwrap();
    image.close().unwrap();
    drop(image);
    bytes[1_000_003..1_070_003].fill(9);
    bytes[3 << 20..4 << 20].fill(0);
    let how = CreateArchive {
        format: "vma".to_owned(),
        disks: vec![DiskToArchive { path: top, ..DiskToArchive::default() }],
        ..CreateArchive::default()
    };
    let (manifest, disks) = read(&made(&how).0);
    assert_eq!(manifest.disks[0].name, "disk0");
    assert!(disks[0] == bytes);
}

#[test]
fn holes_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hole.raw");
    File::create(&path).unwrap().set_len(1 << 39).unwrap();
    let how = CreateArchive {
        format: "vma".to_owned(),
        disks: vec![disk("drive-scsi0", &path)],
        ..CreateArchive::default()
    };
    let since = std::time::Instant::now();
    let to = ArchiveTo::Bytes { name: "nowhere".to_owned(), to: &mut io::sink() };
    let done = create_archive(&how, to, &Quiet).unwrap();
    assert_eq!(done.disks[0].zeros, 1 << 39);
    assert!(since.elapsed().as_secs() < 20, "{:?}", since.elapsed());
}

#[test]
fn a_target_is_whole_or_not_there() {
    let (dir, mut how, disks) = scene();
    let path = dir.path().join("out.vma");
    let create = |how: &CreateArchive, progress: &dyn Progress| {
        create_archive(how, ArchiveTo::File(&path), progress).map_err(|error| error.kind())
    };
    // Somebody stops it; the source changes; it ends too early.
    let stop = Meanwhile(Mutex::new(Some(|| {})), ControlFlow::Break(()));
    assert_eq!(create(&how, &stop), Err(ErrorKind::Cancelled));
    assert_eq!(names(&dir), SCENE);
    let source = how.disks[1].path.clone();
    let changes = || {
        let change = || File::options().append(true).open(&source).unwrap().write_all(b"more").unwrap();
        Meanwhile::new(change)
    };
    assert_eq!(create(&how, &changes()), Err(ErrorKind::Changed));
    assert_eq!(names(&dir), SCENE);
    // What is shared is no error, but said.
    how.disks[1].open.lock = Lock::None;
    let warnings = create(&how, &changes()).unwrap().warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("b.raw"), "{warnings:?}");
    std::fs::remove_file(&path).unwrap();
    File::options().write(true).open(&source).unwrap().set_len(3_000_001).unwrap();
    how.disks[1].open.lock = Lock::Default;

    // One that is there is not touched, also where it came meanwhile; and replaced where that is asked for.
    std::fs::write(&path, "old").unwrap();
    assert_eq!(create(&how, &Quiet), Err(ErrorKind::Exists));
    std::fs::remove_file(&path).unwrap();
    let comes = Meanwhile::new(|| std::fs::write(&path, "old").unwrap());
    assert_eq!(create(&how, &comes), Err(ErrorKind::Exists));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    how.replace = true;
    let stop = Meanwhile(Mutex::new(Some(|| {})), ControlFlow::Break(()));
    assert_eq!(create(&how, &stop), Err(ErrorKind::Cancelled));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    create(&how, &Quiet).unwrap();
    assert!(read(&std::fs::read(&path).unwrap()).1 == disks);
    // But not by itself.
    let own = how.disks[0].path.clone();
    let error = create_archive(&how, ArchiveTo::File(&own), &Quiet).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(names(&dir), ["a.raw", "b.raw", "out.vma", "qemu-server.conf"]);
}

#[test]
fn each_write_that_fails_is_an_error() {
    /// Takes so many writes.
    struct Failing(usize);

    impl Write for Failing {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.checked_sub(1).map(drop).ok_or_else(|| io::ErrorKind::StorageFull.into())
        }
    }
    let (_dir, mut how, _) = scene();
    let ways: Vec<Option<String>> = std::iter::once(None)
        .chain(cowhand_packed::packings().iter().map(|packing| Some(packing.name().to_owned())))
        .collect();
    for packing in ways {
        how.packing.clone_from(&packing);
        let run = |writes: usize| {
            let to = ArchiveTo::Bytes { name: "pipe".to_owned(), to: &mut Failing(writes) };
            create_archive(&how, to, &Quiet)
        };
        let mut writes = 0;
        loop {
            match run(writes) {
                Ok(_) => break,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NoSpace, "{packing:?} {writes}: {error}");
                    assert_eq!(error.image_name(), Some("pipe"));
                }
            }
            writes += 1;
        }
        assert!(writes > 1, "{packing:?}");
    }
}

#[test]
fn digests_are_those_of_the_disks() {
    let (dir, mut how, _) = scene();
    let path = dir.path().join("out.vma");
    how.digest = Some(Digests::beside(&path));
    create_archive(&how, ArchiveTo::File(&path), &Quiet).unwrap();
    let kept = Digests::read(&Digests::beside(&path)).unwrap();
    let (manifest, mut disks) = read(&std::fs::read(&path).unwrap());
    let digests = |disks: &[Vec<u8>]| {
        let digester = Digester::new(&manifest);
        (0..).zip(disks).for_each(|(disk, bytes)| digester.add(disk, 0, Body::Bytes(bytes)).unwrap());
        digester.finish()
    };
    assert_eq!(kept.differing(&digests(&disks)).unwrap(), []);
    disks[1][70_000] ^= 1;
    let found = kept.differing(&digests(&disks)).unwrap();
    assert!(found.len() == 1 && found[0].disk == 1 && found[0].range.contains(&70_000), "{found:?}");
    // Also of what goes elsewhere.
    std::fs::remove_file(Digests::beside(&path)).unwrap();
    made(&how);
    assert_eq!(Digests::read(&Digests::beside(&path)).unwrap(), kept);
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_made() {
    let (dir, how, _) = scene();
    let path = dir.path().join("out.vma");
    let refused = |how: CreateArchive, part: &str| {
        let error = create_archive(&how, ArchiveTo::File(&path), &Quiet).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
        assert_eq!(names(&dir), SCENE);
    };
    refused(CreateArchive { format: "qcow2".to_owned(), ..how.clone() }, "are no archives");
    refused(CreateArchive { packing: Some("rar".to_owned()), ..how.clone() }, "no way of packing");
    refused(CreateArchive { level: Some(1), ..how.clone() }, "nothing is packed");
    let zstd = CreateArchive { packing: Some("zstd".to_owned()), level: Some(99), ..how.clone() };
    refused(zstd, "has no level 99");
    let mut twice = how.clone();
    twice.disks[1].name = Some("drive-scsi0".to_owned());
    refused(twice, "in the archive already");
    let mut empty = how.clone();
    empty.disks[0].path = "/dev/null".into();
    refused(empty, "/dev/null");
    let mut long = how.clone();
    long.configs.push(long.disks[0].path.clone());
    refused(long, "too long for a configuration");
    refused(CreateArchive { restorable: true, ..how }, "no name of an archive that Proxmox restores");
}

#[test]
fn digests_are_never_written_over_what_is_read_nor_over_the_archive() {
    let (dir, mut how, _) = scene();
    // Without locks nothing else is in the way.
    how.disks.iter_mut().for_each(|disk| disk.open.lock = Lock::None);
    let source = how.disks[0].path.clone();
    let before = std::fs::read(&source).unwrap();
    let target = dir.path().join("x.vma");
    for digest in [source.clone(), target.clone()] {
        let how = CreateArchive { digest: Some(digest), ..how.clone() };
        let error = create_archive(&how, ArchiveTo::File(&target), &Quiet).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(!target.exists());
    }
    assert!(std::fs::read(&source).unwrap() == before);
}
