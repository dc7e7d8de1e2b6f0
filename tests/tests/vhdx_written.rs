//! Writing into VHDX files that other programs laid out: random histories, mirrored in memory, judged by a reader that
//! shares no code with ours, by `qemu-img` and by `cowhand check`.
//!
//! `COWHAND_VHDX_ROUNDS` is how many histories each layout has (1), `COWHAND_SEED` the first one's seed (1).

use std::ops::Range;
use std::path::Path;

use cowhand::{Check, Erase, Open, Quiet};
use cowhand_tests::{
    BuiltVhdx, Mirror, Rng, Vhdx, VhdxLayout, file_sha256, for_all, qemu_io, samples, temp, try_qemu_img,
    vhdx_chain_layouts, vhdx_content, vhdx_dynamic_layouts, vhdx_fixed_layouts, vhdx_log_cases,
};

use crate::vhd_written::{number, range};
use crate::vhdx_read::{qemu_agrees, readable};

pub(crate) fn writable() -> Open {
    // Foreign programs look at the file between the steps.
    Open { writable: true, ..readable() }
}

/// Writes, zeroes and discards at random; over `below`, uncovers what lies there too. Afterwards the disk holds what
/// `mirror` does.
pub(crate) fn history(
    disk: &cowhand::Image,
    mirror: &mut Mirror,
    below: Option<&Mirror>,
    block: u64,
    steps: u64,
    rng: &mut Rng,
) {
    let sector = u64::from(disk.top().layer.sector());
    for _ in 0..steps {
        let (at, len) = range(rng, mirror.size(), block);
        match rng.below(9) {
            0 | 1 => {
                mirror.zero(at, len);
                disk.erase(at, len, if rng.below(2) == 0 { Erase::Zero } else { Erase::Free }).unwrap();
            }
            2 => {
                // Zeros that are written as data hide what is below, too.
                mirror.zero(at, len);
                disk.write(at, &vec![0; len as usize]).unwrap();
            }
            3 => disk.flush().unwrap(),
            4 => {
                let mut found = vec![0xee; len as usize];
                disk.read(at, &mut found).unwrap();
                assert!(found == mirror.bytes(at, len as usize), "read at {at}, {len} bytes");
            }
            5 if below.is_some() => {
                let from = at / sector * sector;
                let to = (at + len).next_multiple_of(sector).min(mirror.size());
                disk.erase(from, to - from, Erase::Reveal).unwrap();
                uncovered(disk, mirror, below.unwrap(), from..to, sector);
            }
            _ => {
                let bytes = rng.bytes(len as usize);
                mirror.write(at, &bytes);
                disk.write(at, &bytes).unwrap();
            }
        }
    }
}

/// What was to be uncovered shows the parent, but for zeros that may stay: part of a block that is zero cannot be
/// the parent's.
fn uncovered(disk: &cowhand::Image, mirror: &mut Mirror, below: &Mirror, range: Range<u64>, sector: u64) {
    let before = mirror.clone();
    mirror.reveal(below, range.start, range.end - range.start);
    let mut found = vec![0xee; sector as usize];
    for at in range.step_by(sector as usize) {
        disk.read(at, &mut found).unwrap();
        if found != mirror.bytes(at, found.len()) {
            let stays = found == before.bytes(at, found.len()) && before.is_zero(at, sector);
            assert!(stays, "uncovered at {at}: neither the parent nor zeros that were there");
            mirror.zero(at, sector);
        }
    }
}

/// Panics unless `cowhand check` finds no fault; space that nothing uses is none.
pub(crate) fn assert_clean(path: &Path) {
    let found = cowhand::check(path, &Check { open: readable(), ..Check::default() }, &Quiet).unwrap();
    if let Some(report) = found.report {
        assert!(report.corruptions + report.check_errors == 0, "check: {:?}", report.faults);
    }
}

/// Panics unless every judge reads `content` from the top, and the file is one that was closed well.
pub(crate) fn judge(layout: &VhdxLayout, top: &Path, content: &Mirror) -> Vhdx {
    let now = Vhdx::open(top);
    now.assert_closed();
    if !layout.top().cut {
        now.assert_whole();
    }
    if layout.has_a_way() {
        content.assert_same(&vhdx_content(top), "the judge");
        content.assert_disk(&cowhand::open(top, &readable()).unwrap());
    }
    assert_clean(top);
    now
}

fn histories(layouts: &[VhdxLayout], steps: u64, after: impl Fn(&VhdxLayout, &BuiltVhdx, &Mirror) + Sync) {
    let folder = temp();
    let first = number("COWHAND_SEED", 1);
    let seeds = first..first + number("COWHAND_VHDX_ROUNDS", 1);
    let cases: Vec<(u64, &VhdxLayout)> =
        seeds.flat_map(|seed| layouts.iter().map(move |layout| (seed, layout))).collect();
    for_all(
        &cases,
        |(seed, layout)| format!("{} with COWHAND_SEED={seed}", layout.name),
        |(seed, layout)| {
            let own = tempfile::tempdir_in(folder.path()).unwrap();
            let built = layout.build(own.path());
            let (top, content) = built.top();
            let mut mirror = content.clone();
            let parents = &built.files[..built.files.len() - 1];
            let hashes: Vec<String> = parents.iter().map(|(path, _)| file_sha256(path)).collect();
            let below = parents.last().map(|(_, content)| content);
            let first = Vhdx::open(top);
            let mut rng = Rng::new(*seed);
            for _ in 0..2 {
                let before = Vhdx::open(top);
                let disk = cowhand::open(top, &writable()).unwrap();
                history(&disk, &mut mirror, below, layout.top().block, steps, &mut rng);
                disk.close().unwrap();
                drop(disk);
                let now = judge(layout, top, &mirror);
                assert_eq!(now.kept(), first.kept(), "what writing must not change");
                let (old, new) = (before.header(), now.header());
                assert!(new.sequence > old.sequence, "header {} after {}", new.sequence, old.sequence);
                assert_ne!(new.file_write, old.file_write, "FileWriteGuid");
                assert_ne!(new.data_write, old.data_write, "DataWriteGuid");
            }
            for ((path, _), hash) in parents.iter().zip(hashes) {
                assert_eq!(file_sha256(path), hash, "a parent was written to: {}", path.display());
            }
            after(layout, &built, &mirror);
        },
    );
}

/// QEMU reads the same, where it takes the file at all.
fn qemu_accepts(layout: &VhdxLayout, built: &BuiltVhdx, content: &Mirror) {
    if layout.top().sectors.0 != 512 || content.size() == 0 {
        return;
    }
    let top = built.top().0;
    let check = try_qemu_img(["check", "-f", "vhdx", top.to_str().unwrap()]);
    assert!(check.ok(), "qemu-img check: {}{}", check.out, check.err);
    qemu_agrees(top, content);
}

#[test]
fn fixed_disks() {
    histories(&vhdx_fixed_layouts(), 30, qemu_accepts);
}

#[test]
fn dynamic_disks() {
    let mut layouts = vhdx_dynamic_layouts();
    layouts.retain(|layout| !matches!(layout.name, "blocks-256m" | "nothing"));
    histories(&layouts, 30, qemu_accepts);
}

#[test]
fn blocks_of_256_mib() {
    let mut layouts = vhdx_dynamic_layouts();
    layouts.retain(|layout| layout.name == "blocks-256m");
    histories(&layouts, 6, qemu_accepts);
}

#[test]
fn differencing_disks() {
    let mut layouts = vhdx_chain_layouts();
    layouts.retain(VhdxLayout::has_a_way);
    histories(&layouts, 30, |_, _, _| {});
}

/// `qemu-io` and we write into one file in turns.
#[test]
fn in_turns_with_qemu() {
    let folder = temp();
    let mut layouts: Vec<VhdxLayout> =
        [vhdx_dynamic_layouts(), vhdx_fixed_layouts()].into_iter().flatten().collect();
    layouts.retain(|layout| {
        [
            "qemu",
            "qemu-zero",
            "hyper-v",
            "virtualbox",
            "log-8m",
            "bat-behind-blocks",
            "fixed-qemu",
            "shuffled",
        ]
        .contains(&layout.name)
    });
    for_all(
        &layouts,
        |layout| layout.name.to_owned(),
        |layout| {
            let built = layout.build(folder.path());
            let (top, content) = built.top();
            let mut mirror = content.clone();
            let mut rng = Rng::new(number("COWHAND_SEED", 1));
            for _ in 0..3 {
                let disk = cowhand::open(top, &writable()).unwrap();
                history(&disk, &mut mirror, None, layout.top().block, 10, &mut rng);
                disk.close().unwrap();
                drop(disk);
                judge(layout, top, &mirror);
                let mut commands = Vec::new();
                for _ in 0..6 {
                    let (at, len) = range(&mut rng, mirror.size() / 512 * 512, layout.top().block);
                    let (at, len) = (at / 512 * 512, len.next_multiple_of(512));
                    let len = len.min(mirror.size() - at);
                    let pattern = 1 + rng.below(255);
                    commands.push(format!("write -P {pattern} {at} {len}"));
                    mirror.write(at, &vec![pattern as u8; len as usize]);
                }
                commands.push("flush".to_owned());
                qemu_io(["-f", "vhdx"], top, &commands);
                if layout.has_a_way() {
                    mirror.assert_same(&vhdx_content(top), "the judge, behind qemu-io");
                }
                mirror.assert_disk(&cowhand::open(top, &readable()).unwrap());
            }
            qemu_accepts(layout, &built, &mirror);
        },
    );
}

/// What a session that changes nothing leaves, what the first change of one does, and what the next.
#[test]
fn identities() {
    let folder = temp();
    let names = ["openvmm", "hyper-v-4kn", "fixed-with-gaps", "windows-child"];
    let layouts = [vhdx_dynamic_layouts(), vhdx_fixed_layouts(), vhdx_chain_layouts()].into_iter().flatten();
    let layouts: Vec<VhdxLayout> = layouts.filter(|layout| names.contains(&layout.name)).collect();
    assert_eq!(layouts.len(), names.len());
    for_all(
        &layouts,
        |layout| layout.name.to_owned(),
        |layout| {
            let built = layout.build(folder.path());
            let (top, content) = built.top();
            let mut mirror = content.clone();
            let hash = file_sha256(top);
            let guids = || {
                let header = Vhdx::open(top).header().clone();
                (header.file_write, header.data_write)
            };
            let first = guids();
            cowhand::open(top, &writable()).unwrap().close().unwrap();
            assert_eq!(file_sha256(top), hash, "opened for writing, and closed");
            let disk = cowhand::open(top, &writable()).unwrap();
            mirror.assert_disk(&disk);
            disk.flush().unwrap();
            disk.close().unwrap();
            drop(disk);
            assert_eq!(file_sha256(top), hash, "opened for writing, read, flushed and closed");

            let mut old = first;
            for round in 0..2 {
                let disk = cowhand::open(top, &writable()).unwrap();
                let mut write = |at: u64, bytes: &[u8]| {
                    mirror.write(at, bytes);
                    disk.write(at, bytes).unwrap();
                    disk.flush().unwrap();
                    // What was flushed is there for everybody, through the log.
                    mirror.assert_same(&vhdx_content(top), "the judge, within a session");
                    guids()
                };
                let during = write(5000, &[1 + round; 100]);
                assert!(during.0 != old.0 && during.1 != old.1, "the first change of a session");
                assert_eq!(write(3 << 20, &[7; 9000]), during, "the second change of a session");
                disk.close().unwrap();
                drop(disk);
                assert_eq!(guids(), during, "closed");
                judge(layout, top, &mirror);
                old = during;
            }
            // Zeros where there are zeros: no child could tell.
            if layout.name == "openvmm" {
                let disk = cowhand::open(top, &writable()).unwrap();
                assert!(mirror.is_zero(7 << 20, 1 << 20));
                disk.erase(7 << 20, 1 << 20, Erase::Zero).unwrap();
                disk.close().unwrap();
                drop(disk);
                assert_eq!(guids().1, old.1, "DataWriteGuid, where nothing that can be seen was changed");
            }
        },
    );
}

/// Opening for writing puts a pending log's changes where they belong; what cannot be replayed stays as it is.
#[test]
fn pending_logs_are_replayed_on_disk() {
    let folder = temp();
    for_all(
        &vhdx_log_cases(),
        |case| case.name.to_owned(),
        |case| {
            let path = folder.path().join(format!("{}.vhdx", case.name.replace(' ', "-")));
            let mut mirror = case.build(&path);
            let before = file_sha256(&path);
            let found = cowhand::open(&path, &writable());
            if !case.good {
                let error = found.unwrap_err();
                assert_eq!(error.kind(), cowhand::ErrorKind::Corrupt, "{error}");
                assert_eq!(file_sha256(&path), before, "refused, and yet changed");
                return;
            }
            let data_write = Vhdx::open(&path).header().data_write;
            found.unwrap().close().unwrap();
            let now = Vhdx::open(&path);
            now.assert_closed();
            assert_eq!(now.header().data_write, data_write, "a replay shows nobody anything new");
            mirror.assert_same(&vhdx_content(&path), "the judge");
            assert_clean(&path);
            let disk = cowhand::open(&path, &writable()).unwrap();
            history(&disk, &mut mirror, None, 1 << 20, 10, &mut Rng::new(5));
            disk.close().unwrap();
            drop(disk);
            Vhdx::open(&path).assert_closed();
            mirror.assert_same(&vhdx_content(&path), "the judge, after more was written");
        },
    );
}

/// Real files of other programs: a copy of each is opened for writing, which changes nothing that is seen, and then
/// written into.
#[test]
fn real_files() {
    let folder = temp();
    let real: Vec<_> = samples().into_iter().filter(|sample| sample.format == "vhdx").collect();
    if real.is_empty() {
        return;
    }
    for_all(
        &real,
        |sample| sample.path.clone(),
        |sample| {
            let own = tempfile::tempdir_in(folder.path()).unwrap();
            let file = own.path().join(sample.file.file_name().unwrap());
            std::fs::copy(&sample.file, &file).unwrap();
            if !sample.parent.is_empty() {
                let parent = sample.file.with_file_name(&sample.parent);
                std::fs::copy(parent, own.path().join(&sample.parent)).unwrap();
            }
            let mut mirror = vhdx_content(&file);
            let before = Vhdx::open(&file);
            cowhand::open(&file, &writable()).unwrap().close().unwrap();
            mirror.assert_same(&vhdx_content(&file), "the judge, once it was opened for writing");
            if sample.path.contains("dirtylog") {
                Vhdx::open(&file).assert_closed();
            } else {
                assert_eq!(file_sha256(&file), sample.sha256_file, "opened for writing, and closed");
            }
            let below = Vhdx::open(&file).parent().map(|parent| vhdx_content(&parent));
            let disk = cowhand::open(&file, &writable()).unwrap();
            let mut rng = Rng::new(number("COWHAND_SEED", 1));
            history(&disk, &mut mirror, below.as_ref(), before.block, 20, &mut rng);
            disk.close().unwrap();
            drop(disk);
            let now = Vhdx::open(&file);
            now.assert_closed();
            assert_eq!(now.kept(), before.kept());
            mirror.assert_same(&vhdx_content(&file), "the judge");
            mirror.assert_disk(&cowhand::open(&file, &readable()).unwrap());
            assert_clean(&file);
            if sample.parent.is_empty() && now.logical == 512 {
                qemu_agrees(&file, &mirror);
            }
        },
    );
}
