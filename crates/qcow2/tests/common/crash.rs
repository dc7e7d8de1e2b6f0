//! The power-cut test of qcow2 in its configurations: a few states of each in the tests, many in `examples/crash_qcow2.rs`.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cowhand_core::testing::{CrashCounts, CrashTest, Failure, Shape, State};
use cowhand_core::{
    CheckOptions, CreateOptions, Folder, Format, Layer, MemoryStorage, NoFiles, OpenOptions, Quiet, Resolver,
    Result, Storage,
};
use cowhand_qcow2::Qcow2;

/// Gives an image the files of its folder.
#[derive(Debug)]
pub(crate) struct In<'a>(pub(crate) &'a Arc<dyn Folder>);

impl Resolver for In<'_> {
    fn open(&self, name: &Path, writable: bool) -> Result<Arc<dyn Storage>> {
        self.0.open(name.to_str().unwrap(), writable)
    }

    fn create(&self, name: &Path) -> Result<Arc<dyn Storage>> {
        self.0.create_new(name.to_str().unwrap())
    }
}

/// What is cut off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Configuration {
    pub(crate) name: &'static str,
    pub(crate) options: &'static str,
    /// Bytes of a cluster.
    pub(crate) unit: u64,
    /// Guest bytes.
    pub(crate) size: u64,
}

const fn of(name: &'static str, options: &'static str, unit: u64, size: u64) -> Configuration {
    Configuration { name, options, unit, size }
}

pub(crate) const CONFIGURATIONS: &[Configuration] = &[
    of("64 KiB clusters", "cluster_size=64k", 65536, 12 << 16),
    of("4 KiB clusters", "cluster_size=4k", 4096, 1 << 18),
    of("512-byte clusters", "cluster_size=512", 512, 1 << 17),
    of("extended L2, 64 KiB", "cluster_size=64k,extended_l2=on", 65536, 12 << 16),
    of("extended L2, 16 KiB", "cluster_size=16k,extended_l2=on", 16384, 1 << 19),
    of("version 2, 4 KiB", "cluster_size=4k,compat=0.10", 4096, 1 << 18),
    of("refcounts of 1 bit, 4 KiB", "cluster_size=4k,refcount_bits=1", 4096, 1 << 18),
    of("refcounts of 64 bits, 512", "cluster_size=512,refcount_bits=64", 512, 1 << 17),
    of("lazy refcounts, 64 KiB", "cluster_size=64k,lazy_refcounts=on", 65536, 12 << 16),
    of("lazy refcounts, 4 KiB", "cluster_size=4k,lazy_refcounts=on", 4096, 1 << 18),
    of("data file, 64 KiB", "cluster_size=64k,data_file=data", 65536, 12 << 16),
    of("raw data file, 64 KiB", "cluster_size=64k,data_file=data,data_file_raw=on", 65536, 12 << 16),
    of("AES, 4 KiB", "cluster_size=4k,encrypt.format=aes", 4096, 1 << 18),
    of("LUKS, extended L2, 16 KiB", LUKS, 16384, 1 << 19),
];

/// Cheap to make and to open.
const LUKS: &str = "cluster_size=16k,extended_l2=on,encrypt.format=luks,encrypt.iter-time=1,\
                    encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.hash-alg=sha1";

/// A parent that holds data.
pub(crate) fn parent(size: u64) -> Arc<dyn Layer> {
    let file = Arc::new(MemoryStorage::from_bytes(&super::pattern(0, size as usize, 0x77)));
    cowhand_core::raw::Raw.open(file, &NoFiles, &OpenOptions::default()).unwrap()
}

/// Runs one seed: alone, over a parent, on devices that hold old bytes, or with several threads, by turns. Each state
/// is checked by our own check, every `sample`th also by QEMU's.
pub(crate) fn cut(
    configuration: &Configuration,
    seed: u64,
    per_epoch: usize,
    sample: usize,
) -> Result<CrashCounts, Failure> {
    let Configuration { options, unit, size, .. } = *configuration;
    // What a raw data file holds is the disk: it has no parent, and a device shows what it held.
    let turn = if options.contains("data_file_raw") { 3 * (seed % 2) } else { seed % 4 };
    let below = turn == 1;
    let how = CreateOptions {
        parent: if below { super::named("base", "raw") } else { None },
        ..super::how(size + 512 * (seed / 4 % 2), options)
    };
    let make = move |folder: &Arc<dyn Folder>| Qcow2.create(folder.create_new("disk")?, &In(folder), &how);
    let open = |folder: &Arc<dyn Folder>, writable| {
        Qcow2.open(folder.open("disk", writable)?, &In(folder), &super::with(writable))
    };
    let shape = Shape {
        ops: 40,
        compressed: !options.contains("encrypt"),
        resize: true,
        snapshots: true,
        bitmaps: true,
        header: true,
        ..Shape::new(size, unit)
    };
    let seen = AtomicUsize::new(0);
    let check = |state: &State, layer: &Arc<dyn Layer>| {
        let seen = seen.fetch_add(1, Ordering::Relaxed);
        check(state)?;
        if sample > 0 && seen % sample == sample / 2 { check_by_qemu(state, layer) } else { Ok(()) }
    };
    let mut test = CrashTest::in_folder(make, move |folder| open(folder, true))
        .view_in_folder(move |folder| open(folder, false))
        .shape(shape)
        .seed(seed)
        .per_epoch(per_epoch)
        .check(check);
    match turn {
        1 => test = test.parent(parent(size * 3 / 2)),
        2 => test = test.device(4 * size),
        3 => test = test.threads(3),
        _ => {}
    }
    test.run().map_err(|failure| failure.during(format!("{}, seed {seed}", configuration.name)))
}

/// The refcounts may be too low, and are counted anew when the image is opened for writing.
fn is_dirty(state: &State) -> bool {
    let mut head = [0; 80];
    state.file("disk").is_some_and(|file| file.read_at(0, &mut head).is_ok())
        && head[7] == 3
        && head[79] & 1 != 0
}

/// Our own check finds leaks at most; of what has lazy refcounts, once it was opened.
fn check(state: &State) -> Result<(), Failure> {
    let Some(checker) = Qcow2.checker() else { return Ok(()) };
    let Some(file) = state.file("disk") else { return Err(Failure::new("the image is gone")) };
    let folder: Arc<dyn Folder> = state.folder();
    if is_dirty(state) {
        let how = OpenOptions { writable: true, ..OpenOptions::default() };
        drop(Qcow2.open(file.clone(), &In(&folder), &how)?);
    }
    let how = CheckOptions { workers: 1, ..CheckOptions::default() };
    let report = checker.check(file, &In(&folder), &how, &Quiet)?;
    if report.corruptions == 0 && report.check_errors == 0 {
        return Ok(());
    }
    Err(Failure::new(format!("the check finds {:?}", report.faults)))
}

fn check_by_qemu(state: &State, layer: &Arc<dyn Layer>) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    for (name, file) in state.folder().entries() {
        std::fs::write(folder.path().join(name), file.to_vec())?;
    }
    for name in layer.parent().into_iter().flat_map(|parent| parent.candidates) {
        std::fs::write(folder.path().join(name), [0; 512])?;
    }
    let secret = format!("secret,id=s,data={}", super::SECRET);
    let opened = if layer.details().encrypted {
        "driver=qcow2,encrypt.key-secret=s,file.filename=disk"
    } else {
        "driver=qcow2,file.filename=disk"
    };
    let repair: &[&str] = if is_dirty(state) { &["-r", "all"] } else { &[] };
    let out = Command::new("qemu-img")
        .current_dir(folder.path())
        .args(["check", "--object", &secret])
        .args(repair)
        .args(["--image-opts", opened])
        .output()?;
    match out.status.code() {
        Some(0 | 3) => Ok(()),
        _ => Err(Failure::new(String::from_utf8_lossy(&[out.stdout, out.stderr].concat()))),
    }
}
