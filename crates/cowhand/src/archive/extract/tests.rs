//! Archives that stand in memory, extracted.

use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use cowhand_core::{ArchivedDisk, Body, Chunk, ConfigFile, DiskInfo, Fault, Quiet, Source};
use tempfile::TempDir;

use super::*;
use crate::create::{Create, create};
use crate::open::open;

#[derive(Clone, Debug, Default)]
struct Fake {
    what: Manifest,
    /// Bytes, or so many zeros; `Err`: reading fails here.
    chunks: VecDeque<(u32, u64, Result<Vec<u8>, u64>)>,
    now: Vec<u8>,
    missing: Vec<(u32, Range<u64>)>,
    faults: ArchiveFaults,
    fails: bool,
}

impl Source for Fake {
    fn disks(&self) -> &[DiskInfo] {
        &[]
    }

    fn next(&mut self) -> cowhand_core::Result<Option<Chunk<'_>>> {
        match self.chunks.pop_front() {
            None if self.fails => Err(Error::corrupt("extent", "is cut").at(77)),
            None => Ok(None),
            Some((disk, at, Err(len))) => Ok(Some(Chunk { disk, at, body: Body::Zero(len) })),
            Some((disk, at, Ok(bytes))) => {
                self.now = bytes;
                Ok(Some(Chunk { disk, at, body: Body::Bytes(&self.now) }))
            }
        }
    }
}

impl ArchiveSource for Fake {
    fn manifest(&self) -> &Manifest {
        &self.what
    }

    fn position(&self) -> u64 {
        0
    }

    fn faults(&self) -> &ArchiveFaults {
        &self.faults
    }

    fn missing(
        &self,
        disk: u32,
        see: &mut dyn FnMut(Range<u64>) -> cowhand_core::Result<()>,
    ) -> cowhand_core::Result<()> {
        self.missing.iter().filter(|(of, _)| *of == disk).try_for_each(|(_, range)| see(range.clone()))
    }
}

fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |n| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % n
    }
}

const CLUSTER: usize = 65536;
const SIZES: [usize; 2] = [5 * CLUSTER + 1024, 3 << 20];

/// Two disks, partly zero, their clusters in any order; a machine's memory, and a configuration.
fn fake(seed: u64) -> (Fake, Vec<Vec<u8>>) {
    let mut random = random(seed);
    let mut what = Manifest {
        id: [9; 16],
        made: 5,
        configs: vec![ConfigFile { name: "qemu-server.conf".to_owned(), data: b"cores: 2\n".to_vec() }],
        disks: Vec::new(),
    };
    let mut chunks = Vec::new();
    let mut disks = Vec::new();
    for (number, size) in SIZES.into_iter().enumerate() {
        let name = format!("drive-scsi{number}");
        let number = number as u32;
        what.disks.push(ArchivedDisk { number: number + 1, name, size: size as u64, memory: false });
        let mut disk = vec![0; size];
        for (cluster, bytes) in disk.chunks_mut(CLUSTER).enumerate() {
            let at = (cluster * CLUSTER) as u64;
            match random(4) {
                0 => chunks.push((number, at, Err(bytes.len() as u64))),
                1 => {
                    // One block alone, the last of them filled up with what is none of the disk's.
                    let from = bytes.len() / 4096 * 4096 % CLUSTER;
                    bytes[from..].fill(random(255) as u8 + 1);
                    let mut block = bytes[from..].to_vec();
                    block.resize(block.len().next_multiple_of(4096), 0xee);
                    chunks.push((number, at + from as u64, Ok(block)));
                    if from > 0 {
                        chunks.push((number, at, Err(from as u64)));
                    }
                }
                _ => {
                    bytes.iter_mut().for_each(|byte| *byte = random(256) as u8);
                    chunks.push((number, at, Ok(bytes.to_vec())));
                }
            }
        }
        disks.push(disk);
    }
    what.disks.push(ArchivedDisk { number: 3, name: "vmstate".to_owned(), size: 1, memory: true });
    let memory: Vec<u8> = (0..2 * CLUSTER).map(|at| (at % 251) as u8).collect();
    chunks.push((2, 0, Ok(memory.clone())));
    chunks.push((2, 2 * CLUSTER as u64, Err(4096)));
    disks.push([memory, vec![0; 4096]].concat());
    for at in (1..chunks.len()).rev() {
        chunks.swap(at, random(at as u64 + 1) as usize);
    }
    (Fake { what, chunks: chunks.into(), ..Fake::default() }, disks)
}

fn run(fake: &mut Fake, to: &Path, how: &Extract) -> Result<Extracted> {
    run_watched(fake, to, how, &mut (), &Quiet)
}

fn run_watched(
    fake: &mut Fake,
    to: &Path,
    how: &Extract,
    onlooker: &mut dyn Onlooker,
    progress: &dyn Progress,
) -> Result<Extracted> {
    let idle = || report(progress, 1, 2);
    let format = registry::format("vma").unwrap();
    Work { archive: "fake", format, file: None, to, how, progress, idle: &idle }.run(fake, onlooker)
}

/// Nothing but `names` is in the folder.
fn assert_only(folder: &TempDir, names: &[&str]) {
    let mut found: Vec<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, names);
}

fn assert_disk(path: &Path, format: &str, disk: &[u8]) {
    let image = open(path, &Open { format: Some(format.to_owned()), ..Open::default() }).unwrap();
    let mut found = vec![0; disk.len()];
    image.read(0, &mut found).unwrap();
    let wrong = (0..disk.len()).find(|at| found[*at] != disk[*at]);
    assert_eq!(wrong, None, "{}", path.display());
    let mut rest = vec![1; (image.size() as usize) - disk.len()];
    image.read(disk.len() as u64, &mut rest).unwrap();
    assert!(rest.iter().all(|byte| *byte == 0), "{}", path.display());
}

#[test]
fn every_format_takes_the_disks_in_any_order() {
    for (seed, (format, option, extension)) in
        [("raw", "", "raw"), ("qcow2", "", "qcow2"), ("vpc", "force_size=on", "vhd"), ("vhdx", "", "vhdx")]
            .into_iter()
            .enumerate()
    {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("out");
        let (mut source, disks) = fake(seed as u64);
        let how = Extract {
            format: Some(format.to_owned()),
            options: cowhand_core::parse_option_string(option),
            ..Extract::default()
        };
        let done = run(&mut source, &to, &how).unwrap();
        assert!(done.is_whole());
        assert_eq!(done.tally.percent(), 100);
        assert_only(&folder, &["out"]);
        assert_eq!(std::fs::read(to.join("qemu-server.conf")).unwrap(), b"cores: 2\n");
        for (number, disk) in disks[..2].iter().enumerate() {
            let path = to.join(format!("disk-drive-scsi{number}.{extension}"));
            assert_eq!(done.disks[number].file.path, path);
            assert_disk(&path, format, disk);
        }
        assert!(std::fs::read(to.join("vmstate.bin")).unwrap() == disks[2]);
        assert_eq!(std::fs::read_dir(&to).unwrap().count(), 4);
        if format == "raw" {
            let there = std::fs::metadata(to.join("disk-drive-scsi1.raw")).unwrap();
            assert_eq!(there.len(), SIZES[1] as u64);
            assert!(there.blocks() * 512 < there.len(), "zeros were written");
        }
    }
}

#[test]
fn some_of_the_disks_come_out_and_who_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out");
    let (source, disks) = fake(10);
    let only = |names: &[&str]| Extract {
        disks: Some(names.iter().map(|name| (*name).to_owned()).collect()),
        ..Extract::default()
    };
    let error = run(&mut source.clone(), &to, &only(&["drive-scsi1", "drive-ide0"])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("drive-ide0") && error.to_string().contains("drive-scsi0"), "{error}");
    assert_only(&folder, &[]);
    let done = run(&mut source.clone(), &to, &only(&["drive-scsi1"])).unwrap();
    assert_eq!((done.disks.len(), done.tally.total), (1, SIZES[1] as u64));
    assert_disk(&to.join("disk-drive-scsi1.raw"), "raw", &disks[1]);
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 2);
    // What is there is not touched.
    let error = run(&mut source.clone(), &to, &Extract::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 2);
}

#[test]
fn names_that_lead_elsewhere_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out");
    let (mut source, disks) = fake(11);
    source.what.disks[0].name = "../../etc/shadow".to_owned();
    source.what.configs[0].name = "../escaped".to_owned();
    let error = run(&mut source.clone(), &to, &Extract::default()).unwrap_err();
    assert!(error.to_string().contains("--salvage"), "{error}");
    assert_only(&folder, &[]);
    let how = Extract { salvage: true, ..Extract::default() };
    let done = run(&mut source, &to, &how).unwrap();
    assert!(done.disks[0].file.renamed && done.configs[0].renamed && !done.disks[1].file.renamed);
    assert_disk(&to.join("disk-1.raw"), "raw", &disks[0]);
    assert!(to.join("config-0").exists());
    assert_only(&folder, &["out"]);
}

#[test]
fn a_broken_archive_leaves_nothing_and_salvage_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out");
    let (mut source, mut disks) = fake(12);
    let error = run(&mut Fake { fails: true, ..source.clone() }, &to, &Extract::default()).unwrap_err();
    assert_eq!((error.kind(), error.image_name()), (ErrorKind::Corrupt, Some("fake")));
    assert_only(&folder, &[]);

    let lost = CLUSTER as u64..3 * CLUSTER as u64;
    source.chunks.retain(|(disk, at, _)| *disk != 1 || !lost.contains(at));
    source.missing.push((1, lost.clone()));
    disks[1][lost.start as usize..lost.end as usize].fill(0);
    source.faults.add(Fault::new(cowhand_core::Severity::Corruption, Some(5), "extent: wrong checksum"));
    let how = Extract { salvage: true, ..Extract::default() };
    let done = run(&mut source.clone(), &to, &how).unwrap();
    assert!(!done.is_whole());
    let missing = Ranges { count: 1, bytes: 2 * CLUSTER as u64, list: vec![lost] };
    assert_eq!((&done.disks[0].missing, &done.disks[1].missing), (&Ranges::default(), &missing));
    assert_disk(&to.join("disk-drive-scsi0.raw"), "raw", &disks[0]);
    assert_disk(&to.join("disk-drive-scsi1.raw"), "raw", &disks[1]);
    let listed: Value = serde_json::from_slice(&std::fs::read(to.join(MISSING)).unwrap()).unwrap();
    assert_eq!(listed["whole"], false);
    assert_eq!(listed["faults"][0]["offset"], 5);
    assert_eq!(listed["disks"][0]["missing"], json!([]));
    assert_eq!(listed["disks"][1]["missing"], json!([{ "start": 65536, "length": 131072 }]));
    assert_eq!(done.to_json()["disks"][1]["missing"]["bytes"], 131072);
    // Only what was asked for counts.
    let one = Extract { disks: Some(vec!["drive-scsi0".to_owned()]), ..how };
    assert!(run(&mut source, &folder.path().join("one"), &one).unwrap().is_whole());
}

#[test]
fn who_is_stopped_leaves_nothing() {
    struct Stops;
    impl Progress for Stops {
        fn at(&self, _done: u64, _total: u64) -> ControlFlow<()> {
            ControlFlow::Break(())
        }
    }
    struct Looks(Option<PathBuf>);
    impl Onlooker for Looks {
        fn front(&mut self, _: &Manifest) -> Result<()> {
            assert!(self.0.as_ref().is_some_and(|path| path.join("qemu-server.conf").exists()));
            Ok(())
        }
        fn passed(&mut self, _: &Tally) -> Result<()> {
            Err(Error::new(ErrorKind::Cancelled, "enough"))
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let (source, _) = fake(13);
    let to = folder.path().join("out");
    // A map that nobody ever writes, and the folder that stood under its name meanwhile.
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let how = Extract { map: Some(fifo), ..Extract::default() };
    let error =
        run_watched(&mut source.clone(), &to, &how, &mut Looks(Some(to.clone())), &Stops).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_only(&folder, &["fifo"]);
    struct Counts;
    impl Onlooker for Counts {
        fn passed(&mut self, _: &Tally) -> Result<()> {
            Err(Error::new(ErrorKind::Cancelled, "enough"))
        }
    }
    let error = run_watched(&mut source.clone(), &to, &Extract::default(), &mut Counts, &Quiet).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_only(&folder, &["fifo"]);
}

/// Targets that a map names: one that is full of old bytes, and a qcow2 a little larger than its disk.
fn targets(folder: &TempDir) -> (PathBuf, PathBuf) {
    let (raw, qcow2) = (folder.path().join("a.raw"), folder.path().join("b.qcow2"));
    std::fs::write(&raw, vec![0xaa; SIZES[0]]).unwrap();
    create(&qcow2, &Create::new("qcow2", SIZES[1] as u64 + (1 << 20))).unwrap();
    (raw, qcow2)
}

fn map(folder: &TempDir, lines: &str) -> Extract {
    let path = folder.path().join("map");
    let lines = lines.replace('@', folder.path().to_str().unwrap());
    std::fs::write(&path, lines).unwrap();
    Extract { map: Some(path), ..Extract::default() }
}

#[test]
fn a_map_leads_disks_into_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, qcow2) = targets(&folder);
    let (source, disks) = fake(14);
    let to = folder.path().join("out");
    let how =
        map(&folder, "1:drive-scsi0=@/a.raw\nformat=qcow2:cache=unsafe:0:drive-scsi1=@/b.qcow2\ndone\n");
    let done = run(&mut source.clone(), &to, &how).unwrap();
    assert_eq!(done.disks[0].file.path, raw);
    assert_disk(&raw, "raw", &disks[0]);
    assert_disk(&qcow2, "qcow2", &disks[1]);
    assert!(std::fs::read(to.join("vmstate.bin")).unwrap() == disks[2]);
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 2);

    std::fs::write(&raw, vec![0xaa; SIZES[0]]).unwrap();
    let how = map(&folder, "skip=drive-scsi1\n0:drive-scsi0=@/a.raw\n");
    let done = run(&mut source.clone(), &folder.path().join("two"), &how).unwrap();
    assert_eq!(done.disks.len(), 2);
    let found = std::fs::read(&raw).unwrap();
    for (was, is) in disks[0].chunks(4096).zip(found.chunks(4096)) {
        let zero = was.iter().all(|byte| *byte == 0);
        assert!(if zero { is.iter().all(|byte| *byte == 0xaa) } else { is == was });
    }
}

#[test]
fn what_is_missing_reads_zero_in_a_target_that_was_full_too() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, _) = targets(&folder);
    let (mut source, mut disks) = fake(14);
    let lost = CLUSTER as u64..3 * CLUSTER as u64;
    source.chunks.retain(|(disk, at, _)| *disk != 0 || !lost.contains(at));
    source.missing.push((0, lost.clone()));
    disks[0][lost.start as usize..lost.end as usize].fill(0);
    let how = map(&folder, "1:drive-scsi0=@/a.raw\nskip=drive-scsi1\n");
    let done = run(&mut source, &folder.path().join("out"), &Extract { salvage: true, ..how }).unwrap();
    assert!(!done.is_whole());
    assert_disk(&raw, "raw", &disks[0]);
}

#[test]
fn digests_take_disks_that_end_within_a_block_and_stand_in_front_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = [CLUSTER + 512, 3 << 20, 700];
    let mut fake = Fake::default();
    for (number, size) in (0_u32..).zip(sizes) {
        let name = format!("drive-scsi{number}");
        fake.what.disks.push(ArchivedDisk { number: number + 1, name, size: size as u64, memory: false });
        let bytes: Vec<u8> = (0..size).map(|at| (at % 253) as u8 + 1).collect();
        fake.chunks.push_back((number, 0, Ok(bytes)));
    }
    let digester = Digester::new(&fake.what);
    for (disk, at, bytes) in &fake.chunks {
        digester.add(*disk, *at, Body::Bytes(bytes.as_ref().unwrap())).unwrap();
    }
    let path = folder.path().join("digest");
    digester.finish().write(&path, Cache::Unsafe).unwrap();
    let how = Extract { digests: Some(path), ..Extract::default() };
    assert!(run(&mut fake, &folder.path().join("out"), &how).unwrap().is_whole());
}

#[test]
fn a_map_that_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, _) = targets(&folder);
    let small = folder.path().join("small");
    std::fs::write(&small, vec![0; SIZES[0] - 512]).unwrap();
    std::fs::File::create(folder.path().join("large"))
        .unwrap()
        .set_len(SIZES[0] as u64 + (4 << 20) + 1)
        .unwrap();
    std::fs::File::create(folder.path().join("fits")).unwrap().set_len(SIZES[0] as u64 + (4 << 20)).unwrap();
    let (source, _) = fake(15);
    let to = folder.path().join("out");
    for (lines, part) in [
        ("0:drive-scsi0=@/a.raw\n", "no line for the disk 'drive-scsi1'"),
        ("0:drive-scsi0=@/a.raw\nskip=drive-scsi1\nskip=drive-ide0\n", "no disk 'drive-ide0'"),
        (
            "skip=drive-scsi0\nskip=drive-scsi1\n0:drive-scsi0=@/a.raw\n",
            "two lines for the disk 'drive-scsi0'",
        ),
        ("0:drive-scsi0=@/small\nskip=drive-scsi1\n", "has 328192 bytes"),
        ("0:drive-scsi0=@/large\nskip=drive-scsi1\n", "at most 4 MiB more"),
        ("0:drive-scsi0=@/nowhere\nskip=drive-scsi1\n", "has to be there"),
        ("0:drive-scsi0=@/fits\n0:drive-scsi1=@/fits\n", "fits"),
        ("format=qcow2:0:drive-scsi0=@/a.raw\nskip=drive-scsi1\n", "a.raw"),
        ("format=what:0:drive-scsi0=@/a.raw\nskip=drive-scsi1\n", "what"),
        ("0:drive-scsi0=@/a.raw\nskip=drive-scsi1\n0:vmstate=@/fits\n", "memory"),
    ] {
        let error = run(&mut source.clone(), &to, &map(&folder, lines)).unwrap_err();
        assert!(error.to_string().contains(part), "{lines}: {error}");
        assert!(!to.exists(), "{lines}");
        assert!(std::fs::read(&raw).unwrap().iter().all(|byte| *byte == 0xaa), "{lines}");
    }
    let how = map(&folder, "0:drive-scsi0=@/fits\nskip=drive-scsi1\n");
    run(&mut source.clone(), &to, &how).unwrap();
}

#[test]
fn who_is_lenient_passes_over_disks_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out");
    let (source, disks) = fake(18);
    let names = ["drive-nothing", "drive-scsi1"].map(str::to_owned);
    let how = Extract { disks: Some(names.into()), lenient: true, ..Extract::default() };
    let done = run(&mut source.clone(), &to, &how).unwrap();
    assert_eq!(done.disks.len(), 1);
    assert_disk(&to.join("disk-drive-scsi1.raw"), "raw", &disks[1]);

    // In a map too, where the later of two lines counts.
    let to = folder.path().join("mapped");
    let (raw, _) = targets(&folder);
    let lines = "skip=drive-scsi0\n0:drive-ide0=@/nowhere\n1:drive-scsi0=@/a.raw\nskip=drive-scsi1\n";
    let how = Extract { lenient: true, ..map(&folder, lines) };
    run(&mut source.clone(), &to, &how).unwrap();
    assert_disk(&raw, "raw", &disks[0]);
}

#[test]
fn a_limit_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    targets(&folder);
    let (source, disks) = fake(16);
    let to = folder.path().join("out");
    let there =
        |disk: &Vec<u8>| disk.chunks(4096).filter(|block| block.iter().any(|byte| *byte != 0)).count() * 4096;
    let bytes = there(&disks[0]) + there(&disks[1]);
    let limit = bytes * 2;
    let lines = format!(
        "throttling.bps={limit}:throttling.group=a:0:drive-scsi0=@/a.raw\n\
         throttling.bps={limit}:throttling.group=a:format=qcow2:0:drive-scsi1=@/b.qcow2\n"
    );
    let since = Instant::now();
    run(&mut source.clone(), &to, &map(&folder, &lines)).unwrap();
    // Half a second, but for the last run, which nobody waits for.
    assert!(since.elapsed() > Duration::from_millis(300), "{:?}", since.elapsed());
}

#[test]
fn digests_find_what_changed() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out");
    let (source, disks) = fake(17);
    let digester = Digester::new(&source.what);
    for (number, disk) in (0..).zip(&disks) {
        digester.add(number, 0, Body::Bytes(disk)).unwrap();
    }
    let path = folder.path().join("fake.digest");
    digester.finish().write(&path, Cache::Unsafe).unwrap();
    let how = Extract { digests: Some(path), ..Extract::default() };
    assert!(run(&mut source.clone(), &to, &how).unwrap().is_whole());
    std::fs::remove_dir_all(&to).unwrap();

    let mut flipped = source.clone();
    let bytes = flipped.chunks.iter_mut().find_map(|(disk, at, body)| match body {
        Ok(bytes) if *disk == 1 => Some((*at, bytes)),
        _ => None,
    });
    let (at, bytes) = bytes.unwrap();
    bytes[100] ^= 4;
    let start = at / CLUSTER as u64 * CLUSTER as u64;
    let error = run(&mut flipped.clone(), &to, &how).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(error.to_string().contains("'drive-scsi1'") && error.to_string().contains(&start.to_string()));
    assert_only(&folder, &["fake.digest"]);
    let salvage = Extract { salvage: true, ..how.clone() };
    let done = run(&mut flipped.clone(), &to, &salvage).unwrap();
    assert!(!done.is_whole());
    assert_eq!(
        done.disks[1].differing.list,
        std::iter::once(start..start + CLUSTER as u64).collect::<Vec<_>>()
    );
    std::fs::remove_dir_all(&to).unwrap();
    let other = Extract { disks: Some(vec!["drive-scsi0".to_owned()]), ..how.clone() };
    assert!(run(&mut flipped.clone(), &to, &other).unwrap().is_whole());
    flipped.what.id = [1; 16];
    let error = run(&mut flipped, &folder.path().join("two"), &how).unwrap_err();
    assert!(error.to_string().contains("another archive"), "{error}");
}

#[test]
fn a_full_disk_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("out");
    let (mut source, _) = fake(18);
    // More than any file can hold.
    source.what.disks[0].size = 1 << 62;
    let error = run(&mut source, &to, &Extract::default()).unwrap_err();
    assert!(error.to_string().contains("disk-drive-scsi0.raw"), "{error}");
    assert_only(&folder, &[]);
}
