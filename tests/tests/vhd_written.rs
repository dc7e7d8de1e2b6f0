//! Writing into VHD files that other programs laid out: random histories, mirrored in memory, judged by a reader that
//! shares no code with ours, by `qemu-img` and by `cowhand check`.
//!
//! `COWHAND_VHD_ROUNDS` is how many histories each layout has (1), `COWHAND_SEED` the first one's seed (1).

use std::path::Path;

use cowhand::{Check, Erase, Lock, Open, Quiet};
use cowhand_tests::{
    BuiltDisk, Layout, Rng, Vhd, file_sha256, for_all, qemu_img, samples, temp, try_qemu_img,
    vhd_chain_layouts, vhd_content, vhd_dynamic_layouts, vhd_fixed_layouts,
};

use crate::vhd_read::assert_content;

pub(crate) fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn writable() -> Open {
    // Foreign programs look at the file between the steps.
    Open { writable: true, lock: Lock::None, ..Open::default() }
}

/// Somewhere, and not far: half of all steps begin or end at a block's, a sector's or the disk's edge.
pub(crate) fn range(rng: &mut Rng, size: u64, block: u64) -> (u64, u64) {
    let at = match rng.below(4) {
        0 => rng.below(size),
        1 => rng.below(size / 512) * 512,
        2 => (rng.below(size.div_ceil(block)) * block).saturating_sub(rng.below(3) * 700),
        _ => size - 1 - rng.below(size.min(5000)),
    };
    let most = size - at;
    let len = match rng.below(5) {
        0 => 1 + rng.below(511),
        1 => 512 * (1 + rng.below(9)),
        2 => 1 + rng.below(70_000),
        3 => block.min(4 << 20),
        _ => 1 + rng.below(most.min(5 << 20)),
    };
    (at, len.min(most))
}

/// Writes, zeroes and discards at random; afterwards the disk holds what `mirror` does.
pub(crate) fn history(disk: &cowhand::Image, mirror: &mut [u8], block: u64, steps: u64, rng: &mut Rng) {
    for _ in 0..steps {
        let (at, len) = range(rng, mirror.len() as u64, block);
        let there = &mut mirror[at as usize..(at + len) as usize];
        match rng.below(8) {
            0 | 1 => {
                there.fill(0);
                disk.erase(at, len, if rng.below(2) == 0 { Erase::Zero } else { Erase::Free }).unwrap();
            }
            2 => {
                // Zeros that are written as data hide what is below, too.
                there.fill(0);
                disk.write(at, there).unwrap();
            }
            3 => disk.flush().unwrap(),
            4 => {
                let mut found = vec![0; there.len()];
                disk.read(at, &mut found).unwrap();
                assert!(found == there, "read at {at}, {len} bytes");
            }
            _ => {
                rng.fill(there);
                disk.write(at, there).unwrap();
            }
        }
    }
}

/// Panics unless `cowhand check` finds no fault; space that nothing uses is none.
pub(crate) fn assert_clean(path: &Path) {
    let how = Check { open: Open { lock: Lock::None, ..Open::default() }, ..Check::default() };
    let found = cowhand::check(path, &how, &Quiet).unwrap();
    let report = found.report.expect("a check of VHD");
    assert!(report.corruptions + report.check_errors == 0, "check: {:?}", report.faults);
}

/// Panics unless every judge reads `content` from the top, and the file says all it said before.
fn judge(built: &BuiltDisk, content: &[u8], before: &Vhd, blocks: &[(usize, u32)]) {
    let (top, _) = built.top();
    let now = Vhd::open(top);
    assert_eq!(now.kept(), before.kept(), "what writing must not change");
    now.assert_new_blocks_aligned(blocks);
    if has_a_way_for_the_judge(built.name) {
        assert!(vhd_content(top) == content, "the judge reads something else");
    }
    let disk = cowhand::open(top, &Open { lock: Lock::None, ..Open::default() }).unwrap();
    assert_content(&disk, content);
}

/// Where no relative locator leads to the parent, the judge has no rule to follow.
pub(crate) fn has_a_way_for_the_judge(name: &str) -> bool {
    !["w2ru-other-case", "wi2k", "w2ku-only", "name-only", "first-is-missing"].contains(&name)
}

fn histories(layouts: &[Layout], steps: u64, after: impl Fn(&BuiltDisk, &[u8]) + Sync) {
    let folder = temp();
    let first = number("COWHAND_SEED", 1);
    let seeds = first..first + number("COWHAND_VHD_ROUNDS", 1);
    let cases: Vec<(u64, &Layout)> =
        seeds.flat_map(|seed| layouts.iter().map(move |layout| (seed, layout))).collect();
    for_all(
        &cases,
        |(seed, layout)| format!("{} with COWHAND_SEED={seed}", layout.name),
        |(seed, layout)| {
            let own = tempfile::tempdir_in(folder.path()).unwrap();
            let built = layout.build(own.path());
            let (top, content) = built.top();
            let mut mirror = content.to_vec();
            let below: Vec<String> =
                built.files[..built.files.len() - 1].iter().map(|(path, _)| file_sha256(path)).collect();
            let before = Vhd::open(top);
            let blocks = before.blocks();
            let mut rng = Rng::new(*seed);
            for _ in 0..2 {
                let disk = cowhand::open(top, &writable()).unwrap();
                history(&disk, &mut mirror, u64::from(layout.top().block), steps, &mut rng);
                disk.close().unwrap();
                drop(disk);
                judge(&built, &mirror, &before, &blocks);
            }
            for ((path, _), hash) in built.files.iter().zip(below) {
                assert_eq!(file_sha256(path), hash, "a parent was written to: {}", path.display());
            }
            after(&built, &mirror);
            drop(own);
        },
    );
}

#[test]
fn fixed_disks() {
    histories(&vhd_fixed_layouts(), 30, |built, content| qemu_agrees(built.name, built.top().0, content));
}

#[test]
fn dynamic_disks() {
    let layouts: Vec<Layout> =
        vhd_dynamic_layouts().into_iter().filter(|layout| layout.name != "blocks-256m").collect();
    histories(&layouts, 30, |built, content| {
        assert_clean(built.top().0);
        // QEMU knows no bitmaps: it reads what stands in sectors that are not there, and bits that others left at 0
        // over other bytes than zeros show it something else than the disk.
        if !built.name.contains("garbage") && built.name != "shuffled" {
            qemu_agrees(built.name, built.top().0, content);
        }
    });
}

#[test]
fn blocks_of_256_mib() {
    let layouts: Vec<Layout> =
        vhd_dynamic_layouts().into_iter().filter(|layout| layout.name == "blocks-256m").collect();
    histories(&layouts, 4, |built, _| assert_clean(built.top().0));
}

#[test]
fn differencing_disks() {
    histories(&vhd_chain_layouts(), 30, |built, _| assert_clean(built.top().0));
}

/// Real files of other programs: a copy of each is written into.
#[test]
fn real_files() {
    let folder = temp();
    for sample in samples() {
        if sample.format != "vhd" || sample.virtual_size.is_none_or(|size| size > 200 << 20) {
            continue;
        }
        let file = folder.path().join(sample.file.file_name().unwrap());
        std::fs::copy(&sample.file, &file).unwrap();
        if !sample.parent.is_empty() {
            let parent = sample.file.with_file_name(&sample.parent);
            std::fs::copy(parent, folder.path().join(&sample.parent)).unwrap();
        }
        let mut mirror = vhd_content(&file);
        let before = Vhd::open(&file);
        let blocks = before.blocks();
        let disk = cowhand::open(&file, &writable()).unwrap();
        history(&disk, &mut mirror, 2 << 20, 40, &mut Rng::new(number("COWHAND_SEED", 1)));
        disk.close().unwrap();
        drop(disk);
        let now = Vhd::open(&file);
        assert_eq!(now.kept(), before.kept(), "{}", sample.path);
        now.assert_new_blocks_aligned(&blocks);
        assert!(vhd_content(&file) == mirror, "{}: the judge reads something else", sample.path);
        assert_clean(&file);
    }
}

/// QEMU reads the same, where it takes the file at all.
pub(crate) fn qemu_agrees(name: &str, top: &Path, content: &[u8]) {
    let info = try_qemu_img(["info", "--output=json", "-f", "vpc", top.to_str().unwrap()]);
    if !info.ok() {
        // A footer of 511 bytes, creators that it does not know.
        eprintln!("qemu-img refuses {}: {}", name, info.err.trim());
        return;
    }
    let raw = top.with_extension("mirror");
    std::fs::write(&raw, content).unwrap();
    let size =
        serde_json::from_str::<serde_json::Value>(&info.out).unwrap()["virtual-size"].as_u64().unwrap();
    if size != content.len() as u64 {
        eprintln!("qemu-img finds {size} bytes in {}, not {}", name, content.len());
        return;
    }
    qemu_img(["compare", "-f", "raw", "-F", "vpc", raw.to_str().unwrap(), top.to_str().unwrap()]);
    std::fs::remove_file(raw).unwrap();
}
