//! VHDX files of other programs that grow, shrink, lose their content and are compacted between writes: mirrored in
//! memory, judged after every step by a reader that shares no code with ours.
//!
//! `COWHAND_VHDX_ROUNDS` is how many histories each layout has (1), `COWHAND_SEED` the first one's seed (1).

use std::path::Path;

use cowhand::{Check, Compact, Erase, NewSize, Quiet, Resize, Resized, Result, Severity};
use cowhand_tests::{
    BuiltVhdx, Mirror, Rng, Vhdx, VhdxBlock, VhdxHeader, VhdxKept, VhdxLayout, file_sha256, for_all, temp,
    try_qemu_img, vhdx_chain_layouts, vhdx_content, vhdx_dynamic_layouts, vhdx_fixed_layouts,
};

use crate::vhd_written::number;
use crate::vhdx_read::{qemu_agrees, readable};
use crate::vhdx_written::{assert_clean, history, writable};

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

fn resize(path: &Path, size: u64, force: bool) -> Result<Resized> {
    let how = Resize {
        open: readable(),
        size: NewSize::To(size),
        shrink: true,
        force,
        prealloc: cowhand::Prealloc::Off,
    };
    cowhand::resize(path, &how)
}

/// One file that is worked on, and what a guest must see in it.
struct Scene<'a> {
    layout: &'a VhdxLayout,
    top: &'a Path,
    below: Option<&'a Mirror>,
    mirror: Mirror,
    rng: Rng,
}

impl Scene<'_> {
    fn sector(&self) -> u64 {
        self.layout.top().sectors.0.into()
    }

    fn step(&mut self, step: Step) {
        let before = Vhdx::open(self.top).header().clone();
        match step {
            Step::Write => {
                let disk = cowhand::open(self.top, &writable()).unwrap();
                let block = self.layout.top().block;
                history(&disk, &mut self.mirror, self.below, block, 12, &mut self.rng);
                disk.close().unwrap();
            }
            Step::Grow => self.grow(),
            Step::Shrink => self.shrink(),
            Step::Compact => {
                let same_as_parent = self.rng.below(2) == 0;
                let how = Compact { open: readable(), same_as_parent, ..Compact::default() };
                let done = cowhand::compact(self.top, &how, &Quiet).unwrap();
                assert!(done.after.len <= done.before.len.next_multiple_of(MIB), "{done:?}");
                assert_eq!(done.after.len, self.top.metadata().unwrap().len());
                let now = Vhdx::open(self.top);
                assert_eq!(
                    now.header().data_write,
                    before.data_write,
                    "compacting shows nobody anything new"
                );
            }
            Step::Clear if !self.layout.top().fixed => {
                let disk = cowhand::open(self.top, &writable()).unwrap();
                disk.top().layer.clear().unwrap();
                disk.close().unwrap();
                drop(disk);
                let below = self.below.cloned().unwrap_or_default();
                self.mirror.reveal(&below, 0, self.mirror.size());
                let here = |block: &VhdxBlock| matches!(block, VhdxBlock::Full(_) | VhdxBlock::Partial(_));
                assert!(!Vhdx::open(self.top).blocks().iter().any(here), "blocks, after all was cleared");
            }
            Step::Clear => {}
        }
        if matches!(step, Step::Grow | Step::Shrink) {
            let now = Vhdx::open(self.top);
            assert_ne!(now.header().data_write, before.data_write, "another size, the same DataWriteGuid");
        }
    }

    fn grow(&mut self) {
        // A fixed disk has all that it shows, so it grows by a little. A disk larger than a chunk has sector bitmap entries between the others; one of very many blocks needs a
        // longer table.
        let most = match self.rng.below(3) {
            0 if !self.layout.top().fixed => 200 << 30,
            1 if !self.layout.top().fixed => 6 << 30,
            _ => 5 * MIB,
        };
        let more = self.sector() * (1 + self.rng.below(most / self.sector()));
        let size = self.mirror.size() + more;
        let done = resize(self.top, size, false).unwrap();
        assert_eq!((done.before, done.after), (self.mirror.size(), size));
        self.mirror.resize(size);
    }

    /// Never where something would be lost, but if that is said.
    fn shrink(&mut self) {
        let old = self.mirror.size();
        let half = old / 2 / self.sector();
        let size = self.sector() * (1 + half + self.rng.below(half - 1));
        let lost = !self.mirror.is_zero(size, old - size);
        let before = Vhdx::open(self.top).kept();
        let mut done = resize(self.top, size, false);
        if let Err(error) = &done {
            assert!(lost && error.to_string().contains("--force"), "{error}");
            assert_eq!(Vhdx::open(self.top).kept(), before, "refused");
            if self.rng.below(2) == 0 {
                done = resize(self.top, size, true);
            } else {
                let disk = cowhand::open(self.top, &writable()).unwrap();
                disk.erase(size, old - size, Erase::Free).unwrap();
                disk.close().unwrap();
                drop(disk);
                done = resize(self.top, size, false);
            }
        } else {
            // In a child, it may be the parent's.
            assert!(!lost || self.below.is_some(), "data was cut off");
        }
        assert_eq!(done.unwrap().after, size);
        self.mirror.resize(size);
    }

    fn judge(&self, step: Step, first: &VhdxKept, old: &VhdxHeader) {
        let now = Vhdx::open(self.top);
        // Compacting a file in which nothing is to be gained does not touch it.
        if now.header() != old {
            now.assert_closed();
        }
        assert_eq!(now.size, self.mirror.size(), "the size that the judge finds");
        let kept = now.kept();
        assert_eq!((kept.identifier, kept.unknown), (first.identifier.clone(), first.unknown.clone()));
        let size = cowhand_tests::guid("2FA54224-CD1B-4876-B211-5DBED83BF4B8");
        let others = |items: &[cowhand_tests::VhdxItem]| {
            items.iter().filter(|(id, ..)| *id != size).cloned().collect::<Vec<_>>()
        };
        assert_eq!(others(&kept.items), others(&first.items), "the items but the size");
        let ids = |kept: &[cowhand_tests::VhdxRegion]| {
            kept.iter().map(|(id, _, _, required)| (*id, *required)).collect::<Vec<_>>()
        };
        assert_eq!(ids(&kept.regions), ids(&first.regions), "the regions, wherever they are");
        if self.layout.has_a_way() {
            self.mirror.assert_same(&vhdx_content(self.top), "the judge");
            self.mirror.assert_disk(&cowhand::open(self.top, &readable()).unwrap());
        }
        assert_clean(self.top);
        if matches!(step, Step::Compact | Step::Clear) {
            let how = Check { open: readable(), ..Check::default() };
            if let Some(report) = cowhand::check(self.top, &how, &Quiet).unwrap().report {
                let leaks: Vec<_> =
                    report.faults.iter().filter(|fault| fault.severity == Severity::Leak).collect();
                if !leaks.is_empty() {
                    eprintln!("{}: after {step:?}: {leaks:?}", self.layout.name);
                }
            }
        }
    }
}

fn histories(layouts: &[VhdxLayout], after: impl Fn(&BuiltVhdx, &Path, &Mirror) + Sync) {
    let folder = temp();
    let first = number("COWHAND_SEED", 1);
    let seeds = first..first + number("COWHAND_VHDX_ROUNDS", 1);
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
            let (before, old) = (Vhdx::open(top).kept(), Vhdx::open(top).header().clone());
            let mut rng = Rng::new(seed * 1000 + *n as u64);
            let start = rng.below(STEPS.len() as u64) as usize;
            let below = parents.last().map(|(_, content)| content);
            let mut scene = Scene { layout: &layouts[*n], top, below, mirror: content.clone(), rng };
            let mut done = Vec::new();
            for step in STEPS.iter().cycle().skip(start).take(6) {
                done.push(*step);
                let what = format!("{done:?}");
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    scene.step(*step);
                    scene.judge(*step, &before, &old);
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

fn qemu(top: &Path, content: &Mirror) {
    if Vhdx::open(top).logical == 512 {
        let check = try_qemu_img(["check", "-f", "vhdx", top.to_str().unwrap()]);
        assert!(check.ok(), "qemu-img check: {}{}", check.out, check.err);
        qemu_agrees(top, content);
    }
}

#[test]
fn fixed_disks() {
    histories(&vhdx_fixed_layouts(), |_, top, content| qemu(top, content));
}

#[test]
fn dynamic_disks() {
    let mut layouts = vhdx_dynamic_layouts();
    layouts.retain(|layout| !matches!(layout.name, "blocks-256m" | "nothing"));
    histories(&layouts, |_, top, content| qemu(top, content));
}

#[test]
fn differencing_disks() {
    let mut layouts = vhdx_chain_layouts();
    layouts.retain(VhdxLayout::has_a_way);
    histories(&layouts, |_, _, _| {});
}
