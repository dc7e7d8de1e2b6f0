//! VHDX files that grow, shrink and are compacted, made fixed or dynamic, flattened: under QEMU's eyes, with a file system
//! in one of them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use cowhand::{
    Child, Compact, Convert, Create, Flatten, NewSize, Open, Quiet, Resize, child, compact, convert, create,
    flatten, info, open,
};
use cowhand_tests::{assert_holds, options, qemu_img, qemu_io, temp};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn writable() -> Open {
    Open { writable: true, ..Open::default() }
}

fn made(path: &Path, size: u64, given: &str) {
    create(path, &Create { options: options(given), ..Create::new("vhdx", size) }).unwrap();
}

fn resize(path: &Path, size: u64) -> cowhand::Result<()> {
    let how = Resize {
        open: Open::default(),
        size: NewSize::To(size),
        shrink: true,
        force: false,
        prealloc: cowhand::Prealloc::Off,
    };
    cowhand::resize(path, &how).map(drop)
}

fn write(path: &Path, pieces: &[(u64, Vec<u8>)]) {
    let disk = open(path, &writable()).unwrap();
    pieces.iter().for_each(|(at, bytes)| disk.write(*at, bytes).unwrap());
    disk.close().unwrap();
}

fn noise(len: u64, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 56) as u8 | 1
    };
    std::iter::repeat_with(next).take(len as usize).collect()
}

fn check(path: &Path) {
    qemu_img(["check", "-f", "vhdx", path.to_str().unwrap()]);
    let found = cowhand::check(path, &cowhand::Check::default(), &Quiet).unwrap().report.unwrap();
    assert_eq!((found.corruptions, found.leaks, found.check_errors), (0, 0, 0), "{:?}", found.faults);
}

fn compare(path: &Path, raw: &Path) {
    qemu_img(["compare", "-f", "vhdx", "-F", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
}

#[test]
fn qemu_goes_on_with_what_was_resized() {
    let folder = temp();
    let path = folder.path().join("disk.vhdx");
    made(&path, GIB, "block_size=1M");
    write(&path, &[(0, noise(3 * MIB, 1)), (700 * MIB + 512, vec![7; 4096]), (GIB - 512, vec![8; 512])]);
    // Its table was 1 MiB long, which is enough for 128 GiB.
    resize(&path, 200 * GIB).unwrap();
    check(&path);
    qemu_io(
        ["-f", "vhdx"],
        &path,
        [
            "read -P 7 734003712 4096".to_owned(),
            format!("read -P 8 {} 512", GIB - 512),
            format!("read -P 0 {GIB} 4096"),
            format!("write -P 9 {} 4096", 190 * GIB),
            format!("write -P 6 {} 4096", GIB + 1),
        ],
    );
    check(&path);
    assert!(resize(&path, 2 * GIB).unwrap_err().to_string().contains("would be lost"));
    let disk = open(&path, &writable()).unwrap();
    disk.erase(190 * GIB, 4096, cowhand::Erase::Zero).unwrap();
    disk.close().unwrap();
    drop(disk);
    resize(&path, 2 * GIB).unwrap();
    compact(&path, &Compact::default(), &Quiet).unwrap();
    check(&path);
    let raw = folder.path().join("raw");
    let truth = File::create(&raw).unwrap();
    truth.set_len(2 * GIB).unwrap();
    for (at, bytes) in [
        (0, noise(3 * MIB, 1)),
        (700 * MIB + 512, vec![7; 4096]),
        (GIB - 512, vec![8; 512]),
        (GIB + 1, vec![6; 4096]),
    ] {
        truth.write_all_at(&bytes, at).unwrap();
    }
    compare(&path, &raw);
    // Six blocks, the header section, the log, the metadata, and the table that became longer.
    assert_eq!(path.metadata().unwrap().len(), (6 + 5) * MIB);
}

/// WSL's disk: files were deleted in it, their room zeroed by the guest, and the file is as long as ever.
#[test]
fn a_file_system_whose_files_went_becomes_small() {
    let folder = temp();
    let (raw, big) = (folder.path().join("fs.raw"), folder.path().join("big"));
    let run = |program: &str, args: &[&str]| {
        let ran = Command::new(program).args(args).output();
        ran.ok()
            .filter(|ran| ran.status.success())
            .map(|ran| String::from_utf8_lossy(&ran.stdout).into_owned())
    };
    File::create(&raw).unwrap().set_len(300 * MIB).unwrap();
    std::fs::write(&big, noise(120 * MIB, 3)).unwrap();
    let fs = raw.to_str().unwrap();
    let wrote = run("mkfs.ext4", &["-q", "-F", "-b", "4096", fs])
        .and_then(|_| run("debugfs", &["-w", "-R", &format!("write {} big", big.display()), fs]));
    if wrote.is_none() {
        eprintln!("SKIPPED: e2fsprogs make no file system here");
        return;
    }
    for block in ["1M", "32M"] {
        let path = folder.path().join(format!("ext4-{block}.vhdx"));
        let how = Convert { options: options(&format!("block_size={block}")), ..Convert::new([&raw], &path) };
        convert(&how, &Quiet).unwrap();
        let before = path.metadata().unwrap().len();
        // The guest deletes the file and zeroes what is free.
        let after = folder.path().join("after.raw");
        std::fs::copy(&raw, &after).unwrap();
        let now = after.to_str().unwrap();
        run("debugfs", &["-w", "-R", "rm big", now]).unwrap();
        let listed = run("dumpe2fs", &[now]).unwrap();
        let file = File::options().read(true).write(true).open(&after).unwrap();
        // Of each group; how many there are in all stands in front, not indented.
        let free = listed.lines().filter_map(|line| line.strip_prefix("  Free blocks: "));
        for range in free.flat_map(|line| line.trim().split(", ")).filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
            file.write_all_at(&vec![0; ((last + 1 - first) * 4096) as usize], first * 4096).unwrap();
        }
        let disk = open(&path, &writable()).unwrap();
        let mut piece = vec![0; MIB as usize];
        for at in (0..300 * MIB).step_by(MIB as usize) {
            file.read_exact_at(&mut piece, at).unwrap();
            let mut old = vec![0; MIB as usize];
            disk.read(at, &mut old).unwrap();
            if old != piece {
                disk.write(at, &piece).unwrap();
            }
        }
        disk.close().unwrap();
        drop(disk);
        assert_eq!(path.metadata().unwrap().len(), before);
        compact(&path, &Compact::default(), &Quiet).unwrap();
        check(&path);
        compare(&path, &after);
        let len = path.metadata().unwrap().len();
        let gone = if block == "1M" { 115 * MIB } else { 64 * MIB };
        assert!(len + gone <= before, "{block}: {len} of {before}");
    }
}

#[test]
fn fixed_becomes_dynamic_and_a_chain_one_disk() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let raw = at("raw");
    std::fs::write(&raw, [noise(5 * MIB, 1), vec![0; 9 * MIB as usize], noise(1024, 2)].concat()).unwrap();
    let made = |from: &str, to: &str, given: &str| {
        let how = Convert { options: options(given), ..Convert::new([at(from)], at(to)) };
        convert(&how, &Quiet).unwrap();
        check(&at(to));
        compare(&at(to), &raw);
        info(&at(to), &Open::default(), false).unwrap()[0].details.specific["subformat"].clone()
    };
    assert_eq!(made("raw", "fixed.vhdx", "subformat=fixed,block_size=1M"), "fixed");
    assert_eq!(made("fixed.vhdx", "dynamic.vhdx", "subformat=dynamic,block_size=1M"), "dynamic");
    assert_eq!(at("dynamic.vhdx").metadata().unwrap().len(), (4 + 6) * MIB);
    assert_eq!(made("dynamic.vhdx", "again.vhdx", "subformat=fixed,block_size=2M"), "fixed");

    child(&at("dynamic.vhdx"), &at("middle.avhdx"), &Child::default()).unwrap();
    write(&at("middle.avhdx"), &[(MIB + 512, vec![7; 3 * MIB as usize])]);
    child(&at("middle.avhdx"), &at("top.avhdx"), &Child::default()).unwrap();
    write(&at("top.avhdx"), &[(14 * MIB + 512, vec![8; 512])]);
    resize(&at("top.avhdx"), 20 * MIB).unwrap();
    let mut truth = std::fs::read(&raw).unwrap();
    truth[MIB as usize + 512..][..3 * MIB as usize].fill(7);
    truth[14 * MIB as usize + 512..].fill(8);
    truth.resize(20 * MIB as usize, 0);
    std::fs::write(&raw, &truth).unwrap();
    assert_holds(&open(&at("top.avhdx"), &Open::default()).unwrap(), &raw);
    flatten(&at("top.avhdx"), &Flatten { target: Some(at("whole.vhdx")), ..Flatten::default() }, &Quiet)
        .unwrap();
    check(&at("whole.vhdx"));
    compare(&at("whole.vhdx"), &raw);
    // In its own place: it stands alone then.
    flatten(&at("top.avhdx"), &Flatten::default(), &Quiet).unwrap();
    check(&at("top.avhdx"));
    compare(&at("top.avhdx"), &raw);
}
