//! The power-cut test of VHDX in its configurations: a few states of each in the tests, many in `examples/crash_vhdx.rs`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cowhand_core::testing::{CrashCounts, CrashTest, Failure, Shape, State};
use cowhand_core::{
    Access, Cache, CheckOptions, Error, Fault, FileStorage, Format, Layer, Lock, MemoryStorage, NoFiles,
    Quiet, Result, Severity, Storage,
};
use cowhand_vhdx::Vhdx;

use super::{
    Build, ELSEWHERE, FULL, LINKAGE, MIB, PARTIAL, USUAL, chain, create_options, open, parent_of, reopen,
    stamped,
};

/// What sort of image it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// A dynamic disk whose blocks say that they are zero.
    Dynamic,
    /// One whose blocks say nothing.
    Absent,
    Fixed,
    /// A child.
    Child,
    /// A dynamic disk with its structures where others put them, of which every second block is in the file.
    Elsewhere,
    /// Such a child, whose blocks in the file are full of old bytes, with no sector present.
    Scattered,
}

impl Sort {
    pub fn is_child(self) -> bool {
        matches!(self, Sort::Child | Sort::Scattered)
    }
}

/// What is cut off.
#[derive(Clone, Copy, Debug)]
pub struct Configuration {
    pub name: &'static str,
    pub sort: Sort,
    /// Bytes of a block.
    pub block: u64,
    pub sector: u64,
    /// Guest bytes.
    pub size: u64,
    /// Bytes of the log, where it is made here.
    pub log: u64,
}

const fn of(name: &'static str, sort: Sort, block: u64, sector: u64, size: u64, log: u64) -> Configuration {
    Configuration { name, sort, block: block * MIB, sector, size, log: log * MIB }
}

pub const CONFIGURATIONS: &[Configuration] = &[
    of("dynamic, 1 MiB blocks", Sort::Dynamic, 1, 512, 3 * MIB + 4096, 1),
    of("dynamic, absent blocks", Sort::Absent, 1, 512, 3 * MIB, 1),
    of("dynamic, 2 MiB, sectors of 4096", Sort::Dynamic, 2, 4096, 4 * MIB, 1),
    of("dynamic, log of 8 MiB", Sort::Dynamic, 1, 512, 2 * MIB, 8),
    of("dynamic, structures elsewhere", Sort::Elsewhere, 1, 512, 3 * MIB + 512, 3),
    of("fixed", Sort::Fixed, 1, 512, 2 * MIB + 512, 1),
    of("differencing, 1 MiB", Sort::Child, 1, 512, 3 * MIB + 512, 1),
    of("differencing, 32 MiB", Sort::Child, 32, 512, 3 * MIB, 1),
    of("differencing, 1 MiB, sectors of 4096", Sort::Child, 1, 4096, 3 * MIB, 1),
    of("differencing, blocks in part, structures elsewhere", Sort::Scattered, 1, 512, 3 * MIB + 4096, 3),
];

/// An image of the configuration, without anything of a guest's in it, or with old bytes.
pub fn make(file: Arc<dyn Storage>, how: &Configuration) -> Result<Arc<dyn Layer>> {
    let Configuration { sort, block, sector, size, log, .. } = *how;
    match sort {
        Sort::Elsewhere | Sort::Scattered => {
            let built = build(sort, block, sector, size);
            copy(&built.file, file.as_ref())?;
            reopen(file)
        }
        _ => {
            let (block, log, sector_text) = (block.to_string(), log.to_string(), sector.to_string());
            let mut given =
                vec![("block_size", &block[..]), ("log_size", &log), ("logical_sector_size", &sector_text)];
            match sort {
                Sort::Absent => given.push(("block_state_zero", "off")),
                Sort::Fixed => given.push(("subformat", "fixed")),
                _ => {}
            }
            let mut options = create_options(size, &given);
            options.fresh = false;
            options.parent = sort.is_child().then(|| parent_of(sector));
            Vhdx.create(file, &NoFiles, &options)
        }
    }
}

fn build(sort: Sort, block: u64, sector: u64, size: u64) -> Build {
    let linkage = [("parent_linkage", LINKAGE), ("relative_path", "base.vhdx")];
    let child = sort == Sort::Scattered;
    let mut built = Build::at(ELSEWHERE, size, block, sector, child.then_some(&linkage[..]));
    // In front of the BAT there is room, and behind the structures. What is free holds old bytes.
    let old = vec![0x5a; MIB as usize];
    for free in [USUAL.end, USUAL.end + MIB, ELSEWHERE.metadata - MIB] {
        built.file.write_at(free, &old).unwrap();
    }
    built.end = USUAL.end + MIB;
    for n in (0..size.div_ceil(block)).step_by(2) {
        let at = built.end;
        built.end = if at + block == ELSEWHERE.bat { ELSEWHERE.end + MIB } else { at + block };
        if child {
            built.file.write_at(at, &old.repeat((block / MIB) as usize)).unwrap();
            built.set(n, at | PARTIAL);
        } else {
            built.file.write_at(at, &vec![0; block as usize]).unwrap();
            built.set(n, at | FULL);
        }
    }
    if child {
        // No sector of them is here.
        let at = built.room(MIB);
        built.set_bitmap(0, at | FULL);
    }
    built.file.write_at(built.end, &old).unwrap();
    built
}

/// Copies what is not a hole.
fn copy(from: &MemoryStorage, to: &dyn Storage) -> Result<()> {
    let failed = |error| Error::io("cannot make it", error);
    let len = from.len().map_err(failed)?;
    to.set_len(len).map_err(failed)?;
    let mut at = 0;
    while let Some(data) = from.data_at(at).map_err(failed)? {
        let mut bytes = vec![0; (data.end - data.start) as usize];
        from.read_at(data.start, &mut bytes).map_err(failed)?;
        to.write_at(data.start, &bytes).map_err(failed)?;
        at = data.end;
    }
    Ok(())
}

/// The parent that a seed's child stands on: longer than it, or shorter.
pub fn below(how: &Configuration, seed: u64) -> Arc<dyn Layer> {
    let size = if seed.is_multiple_of(2) { how.size * 3 / 2 } else { how.size / 2 };
    stamped(size / 4096 * 4096)
}

/// Runs one seed, alone or with several threads, by turns. Each state is checked by our own check, and each
/// `sample`th by qemu-img's (0: none); the power fails during the recovery of each `nested`th too.
pub fn cut(
    how: &Configuration,
    seed: u64,
    per_epoch: usize,
    sample: u64,
    nested: usize,
) -> Result<CrashCounts, Failure> {
    let shape = Shape { ops: 30, max_len: 8192, align: 512, ..Shape::new(how.size, how.block) };
    let states = AtomicU64::new(0);
    let mut test = CrashTest::new(|file| make(file, how), reopen)
        .view(open)
        .shape(shape)
        .seed(seed)
        .per_epoch(per_epoch)
        .nested(nested)
        .check(|state, layer| {
            check(state)?;
            let nth = states.fetch_add(1, Ordering::Relaxed) + 1;
            let theirs =
                sample > 0 && nth.is_multiple_of(sample) && !how.sort.is_child() && how.sector == 512;
            if theirs { qemu_agrees(state, layer) } else { Ok(()) }
        });
    if how.sort.is_child() {
        test = test.parent(below(how, seed));
    }
    if seed % 2 == 1 {
        test = test.threads(3);
    }
    test.run().map_err(|failure| failure.during(format!("{}, seed {seed}", how.name)))
}

/// Our own check finds nothing but lost space.
pub fn check(state: &State) -> Result<(), Failure> {
    let Some(checker) = Vhdx.checker() else { return Ok(()) };
    let Some(file) = state.file("disk") else { return Err(Failure::new("the image is gone")) };
    let how = CheckOptions { workers: 1, ..CheckOptions::default() };
    let report = checker.check(file, &NoFiles, &how, &Quiet)?;
    let bad = |fault: &Fault| matches!(fault.severity, Severity::Corruption | Severity::Error);
    if report.check_errors == 0 && !report.faults.iter().any(bad) {
        return Ok(());
    }
    Err(Failure::new(format!("the check finds {:?}", report.faults)))
}

/// qemu-img replays the log to the same content, and finds nothing wrong.
pub fn qemu_agrees(state: &State, layer: &Arc<dyn Layer>) -> Result<(), Failure> {
    let Some(file) = state.file("disk") else { return Err(Failure::new("the image is gone")) };
    let path = Scratch::new();
    let copied = File::create(&path.0)?;
    copied.set_len(file.len()?)?;
    let mut at = 0;
    while let Some(data) = file.data_at(at)? {
        let mut bytes = vec![0; (data.end - data.start) as usize];
        file.read_at(data.start, &mut bytes)?;
        copied.write_all_at(&bytes, data.start)?;
        at = data.end;
    }
    drop(copied);
    let Ok(said) = Command::new("qemu-img").args(["check", "-r", "all"]).arg(&path.0).output() else {
        return Ok(());
    };
    if !said.status.success() {
        return Err(Failure::new(format!("qemu-img check says {said:?}")));
    }
    let theirs = FileStorage::open(&path.0, Access::Read, Lock::None, Cache::Unsafe)?;
    let theirs = chain(vec![open(Arc::new(theirs))?]);
    let ours = chain(vec![layer.clone()]);
    let (mut one, mut other) = (vec![0; ours.size() as usize], vec![0; theirs.size() as usize]);
    ours.read(0, &mut one)?;
    theirs.read(0, &mut other)?;
    let at = one.iter().zip(&other).position(|(a, b)| a != b);
    if one.len() != other.len() || at.is_some() {
        return Err(Failure::new(format!("qemu-img replays the log to something else, at {at:?}")));
    }
    Ok(())
}

/// A file's name that nobody else has; the file goes with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (own, nth) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Scratch(std::env::temp_dir().join(format!("cowhand-vhdx-crash-{own}-{nth}.vhdx")))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
