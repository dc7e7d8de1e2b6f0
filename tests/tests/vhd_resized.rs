//! VHD files of other programs that grow, shrink, lose their content and are compacted between writes: mirrored in
//! memory, judged after every step by a reader that shares no code with ours.
//!
//! `COWHAND_VHD_ROUNDS` is how many histories each layout has (1), `COWHAND_SEED` the first one's seed (1).

use std::path::Path;

use cowhand::{Check, Compact, Erase, Lock, NewSize, Open, Quiet, Resize, Resized, Result, Severity};
use cowhand_tests::{
    BuiltDisk, Kept, Layout, Rng, Vhd, file_sha256, for_all, temp, vhd_chain_layouts, vhd_content,
    vhd_dynamic_layouts, vhd_fixed_layouts,
};

use crate::vhd_read::assert_content;
use crate::vhd_written::{assert_clean, has_a_way_for_the_judge, history, number, qemu_agrees};

const MIB: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Write,
    Grow,
    Shrink,
    Compact,
    Clear,
}

/// Each history has six of them, and begins anywhere in the circle.
const STEPS: [Step; 9] = [
    Step::Write,
    Step::Grow,
    Step::Write,
    Step::Shrink,
    Step::Grow,
    Step::Compact,
    Step::Write,
    Step::Compact,
    Step::Clear,
];

fn open() -> Open {
    // A judge looks at the file between the steps.
    Open { lock: Lock::None, ..Open::default() }
}

fn writable() -> Open {
    Open { writable: true, ..open() }
}

fn resize(path: &Path, size: u64, force: bool) -> Result<Resized> {
    let how = Resize {
        open: open(),
        size: NewSize::To(size),
        shrink: true,
        force,
        prealloc: cowhand::Prealloc::Off,
    };
    cowhand::resize(path, &how)
}

/// One file that is worked on, and what a guest must see in it.
struct Scene<'a> {
    layout: &'a Layout,
    top: &'a Path,
    below: Option<&'a [u8]>,
    mirror: Vec<u8>,
    rng: Rng,
}

impl Scene<'_> {
    fn step(&mut self, step: Step) {
        match step {
            Step::Write => self.write(),
            Step::Grow => self.grow(),
            Step::Shrink => self.shrink(),
            Step::Compact => {
                let same_as_parent = self.rng.below(2) == 0;
                let how = Compact { open: open(), same_as_parent, ..Compact::default() };
                let done = cowhand::compact(self.top, &how, &Quiet).unwrap();
                // The first change makes a footer of 511 bytes whole.
                assert!(done.after.len <= done.before.len.next_multiple_of(512), "{done:?}");
                assert_eq!(done.after.len, self.top.metadata().unwrap().len());
            }
            Step::Clear if !self.layout.top().fixed => {
                let disk = cowhand::open(self.top, &writable()).unwrap();
                disk.top().layer.clear().unwrap();
                disk.close().unwrap();
                self.reveal(0, self.mirror.len());
                assert_eq!(Vhd::open(self.top).blocks(), []);
            }
            Step::Clear => {}
        }
    }

    fn write(&mut self) {
        let disk = cowhand::open(self.top, &writable()).unwrap();
        history(&disk, &mut self.mirror, u64::from(self.layout.top().block), 12, &mut self.rng);
        for _ in 0..if self.below.is_some() { 4 } else { 0 } {
            let sectors = self.mirror.len() as u64 / 512;
            let from = self.rng.below(sectors);
            let count = 1 + self.rng.below((sectors - from).min(6000));
            disk.erase(from * 512, count * 512, Erase::Reveal).unwrap();
            self.reveal((from * 512) as usize, ((from + count) * 512) as usize);
        }
        disk.close().unwrap();
    }

    /// What lies below shows through.
    fn reveal(&mut self, from: usize, to: usize) {
        let below = self.below.unwrap_or_default();
        let there = below.get(from..to.min(below.len())).unwrap_or_default();
        let (shown, behind) = self.mirror[from..to].split_at_mut(there.len());
        shown.copy_from_slice(there);
        behind.fill(0);
    }

    fn grow(&mut self) {
        // Small blocks: more than one sector of the table is filled.
        let most = if self.layout.top().block < 1 << 20 && self.rng.below(2) == 0 { 66 } else { 5 };
        let size = self.mirror.len() as u64 + 512 * (1 + self.rng.below(most * MIB / 512));
        let done = resize(self.top, size, false).unwrap();
        assert_eq!((done.before, done.after), (self.mirror.len() as u64, size));
        self.mirror.resize(size as usize, 0);
    }

    /// Never without being told twice, and never where something would be lost.
    fn shrink(&mut self) {
        let old = self.mirror.len() as u64;
        let size = 512 * (1 + old / 1024 + self.rng.below(old / 1024 - 1));
        let before = file_sha256(self.top);
        resize(self.top, size, false).unwrap_err();
        let lost = self.mirror[size as usize..].iter().any(|byte| *byte != 0);
        let mut done = resize(self.top, size, true);
        if let Err(error) = &done {
            assert!(lost && error.to_string().contains("holds data"), "{error}");
            if !self.layout.top().short_footer {
                assert_eq!(file_sha256(self.top), before, "a refused shrink");
            }
            let disk = cowhand::open(self.top, &writable()).unwrap();
            disk.erase(size, old - size, Erase::Free).unwrap();
            disk.close().unwrap();
            drop(disk);
            done = resize(self.top, size, true);
        } else {
            // In a child, it may be the parent's.
            assert!(!lost || self.below.is_some(), "data was cut off");
        }
        assert_eq!(done.unwrap().after, size);
        self.mirror.truncate(size as usize);
    }

    fn judge(&self, step: Step, first: &Vhd) {
        let now = Vhd::open(self.top);
        assert_eq!(now.size, self.mirror.len() as u64, "the size that the judge finds");
        let (then, kept) = (first.kept(), now.kept());
        assert_eq!(kept.sizes.0, then.sizes.0, "the original size");
        if let (Some((count, block)), Some((_, same))) = (kept.table, then.table) {
            assert_eq!(block, same, "the block size");
            assert!(u64::from(count) * u64::from(block) >= now.size);
        }
        let others = |kept: Kept| Kept { sizes: (0, 0), geometry: (0, 0, 0), table: None, ..kept };
        assert_eq!(others(kept), others(then), "what must not change");
        now.assert_new_blocks_aligned(&first.blocks());
        now.assert_table_padded();
        if has_a_way_for_the_judge(self.layout.name) {
            assert!(vhd_content(self.top) == self.mirror, "the judge reads something else");
        }
        assert_content(&cowhand::open(self.top, &open()).unwrap(), &self.mirror);
        assert_clean(self.top);
        if matches!(step, Step::Compact | Step::Clear) {
            self.assert_nothing_leaks_behind(now.table_at().unwrap_or(0));
        }
    }

    /// A table that growing put behind the blocks stays there: what is free in front of it may be more than fits.
    fn assert_nothing_leaks_behind(&self, table: u64) {
        let how = Check { open: open(), ..Check::default() };
        let report = cowhand::check(self.top, &how, &Quiet).unwrap().report.unwrap();
        let mut leaks = report.faults.iter().filter(|fault| fault.severity == Severity::Leak);
        assert!(leaks.all(|fault| fault.at.is_some_and(|at| at < table)), "{:?}", report.faults);
    }
}

fn histories(layouts: &[Layout], after: impl Fn(&BuiltDisk, &Path, &[u8]) + Sync) {
    let folder = temp();
    let first = number("COWHAND_SEED", 1);
    let seeds = first..first + number("COWHAND_VHD_ROUNDS", 1);
    let cases: Vec<(u64, usize)> =
        seeds.flat_map(|seed| (0..layouts.len()).map(move |n| (seed, n))).collect();
    for_all(
        &cases,
        |(seed, n)| format!("{} with COWHAND_SEED={seed}", layouts[*n].name),
        |(seed, n)| {
            let own = tempfile::tempdir_in(folder.path()).unwrap();
            let built = layouts[*n].build(own.path());
            let (top, content) = built.top();
            let parents = &built.files[..built.files.len() - 1];
            let hashes: Vec<String> = parents.iter().map(|(path, _)| file_sha256(path)).collect();
            let before = Vhd::open(top);
            let mut rng = Rng::new(seed * 1000 + *n as u64);
            let start = rng.below(STEPS.len() as u64) as usize;
            let below = parents.last().map(|(_, content)| &content[..]);
            let mut scene = Scene { layout: &layouts[*n], top, below, mirror: content.to_vec(), rng };
            let mut done = Vec::new();
            for step in STEPS.iter().cycle().skip(start).take(6) {
                done.push(*step);
                let what = format!("{done:?}");
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    scene.step(*step);
                    scene.judge(*step, &before);
                }));
                if let Err(panic) = result {
                    eprintln!("{}, seed {seed}: failed after {what}", layouts[*n].name);
                    std::panic::resume_unwind(panic);
                }
            }
            for ((path, _), hash) in parents.iter().zip(hashes) {
                assert_eq!(file_sha256(path), hash, "a parent was written to: {}", path.display());
            }
            after(&built, top, &scene.mirror);
        },
    );
}

#[test]
fn fixed_disks() {
    histories(&vhd_fixed_layouts(), |built, top, content| qemu_agrees(built.name, top, content));
}

#[test]
fn dynamic_disks() {
    let layouts: Vec<Layout> =
        vhd_dynamic_layouts().into_iter().filter(|layout| layout.name != "blocks-256m").collect();
    histories(&layouts, |built, top, content| {
        // QEMU reads what stands in sectors that are not there.
        if !built.name.contains("garbage") && built.name != "shuffled" {
            qemu_agrees(built.name, top, content);
        }
    });
}

#[test]
fn differencing_disks() {
    histories(&vhd_chain_layouts(), |_, _, _| {});
}
