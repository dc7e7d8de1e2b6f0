//! `vma create`: the words of the existing tool and those beside them, where the archive goes, and what is left after a
//! failure.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // These are tests, helpers included.

mod common;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use common::{PROGRAM, bad, command, cowhand, finish, good, has, names, noise, one_line, run, wait_until};

const FIXED: [&str; 4] = ["--uuid", "00112233-4455-6677-8899-aabbccddeeff", "--time", "1700000000"];

/// A disk of 4 MiB with data in 1 MiB, and a configuration.
fn scene() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; 4 << 20];
    bytes[1 << 20..2 << 20].copy_from_slice(&noise(1 << 20));
    fs::write(dir.path().join("a.raw"), bytes).unwrap();
    fs::write(dir.path().join("100.conf"), "scsi0: local-lvm:vm-100-disk-0,size=4M\n").unwrap();
    dir
}

fn words<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["vma", "create"];
    all.extend(FIXED);
    all.extend(more);
    all
}

/// The disk of the archive is the file.
fn is_disk(dir: &Path, disk: &str, file: &str) {
    good(dir, &["compare", disk, file]);
}

#[test]
fn the_words_of_the_existing_tool() {
    let dir = scene();
    let dir = dir.path();
    good(dir, &["convert", "-q", "a.raw", "b.qcow2"]);
    let output = cowhand(
        dir,
        &words(&[
            "-v",
            "a.vma",
            "-c",
            "100.conf",
            "-d",
            "format=qcow2:drive-scsi0=b.qcow2",
            "-d",
            "format=raw:a.raw",
            "-d",
            "drive-scsi1=a.raw",
        ]),
    );
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    let (progress, images) = lines.split_at(lines.len() - 3);
    assert_eq!(
        images,
        [
            "image drive-scsi0: size=4194304 zeros=3145728 saved=1048576",
            "image disk1: size=4194304 zeros=3145728 saved=1048576",
            "image drive-scsi1: size=4194304 zeros=3145728 saved=1048576",
        ]
    );
    assert!(progress.iter().all(|line| line.starts_with("progress ") && line.contains("%")), "{said}");
    assert_eq!(progress.last(), Some(&"progress 100% 12582912/12582912 9437184"));
    for disk in ["a.vma#drive-scsi0", "a.vma#disk1", "a.vma#drive-scsi1"] {
        is_disk(dir, disk, "a.raw");
    }
    // As older versions took them: behind the archive, and without a format.
    good(dir, &words(&["old.vma", "-c", "100.conf", "drive-scsi0=b.qcow2", "a.raw", "drive-scsi1=a.raw"]));
    assert!(fs::read(dir.join("old.vma")).unwrap() == fs::read(dir.join("a.vma")).unwrap());
    // What is there stays, but for --force.
    let said = bad(dir, &words(&["a.vma", "-d", "a.raw"]), 1);
    assert!(said.contains("a.vma: is there already") && said.contains("--force"), "{said}");
    good(dir, &words(&["--force", "-q", "a.vma", "-d", "a.raw"]));
    is_disk(dir, "a.vma#disk0", "a.raw");
    // Without a disk it is an archive of configurations.
    assert!(good(dir, &["vma", "create", "-c", "100.conf", "none.vma"]).contains("0 disks"));
    assert_eq!(fs::metadata(dir.join("none.vma")).unwrap().len(), 12288 + 512 + 512);
}

#[test]
fn it_goes_anywhere_with_the_same_bytes() {
    let dir = scene();
    let dir = dir.path();
    good(dir, &words(&["a.vma", "-d", "drive-scsi0=a.raw"]));
    let wanted = fs::read(dir.join("a.vma")).unwrap();
    for out in ["-", "/dev/stdout"] {
        let mut child = command(PROGRAM, dir, &words(&[out, "-d", "drive-scsi0=a.raw"])).spawn().unwrap();
        let mut bytes = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
        let output = finish(child);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert!(bytes == wanted, "{out}");
    }
    good(dir, &words(&["exec:cat >piped.vma", "-d", "drive-scsi0=a.raw", "-m", "3"]));
    assert!(fs::read(dir.join("piped.vma")).unwrap() == wanted);
    let said = bad(dir, &words(&["exec:cat >piped.vma; exit 3", "-d", "drive-scsi0=a.raw"]), 1);
    assert!(said.contains("exit status: 3"), "{said}");
    let made = run("mkfifo", dir, &["fifo"]);
    assert!(made.status.success());
    let child = command(PROGRAM, dir, &words(&["fifo", "-d", "drive-scsi0=a.raw"])).spawn().unwrap();
    assert!(fs::read(dir.join("fifo")).unwrap() == wanted);
    assert!(finish(child).status.success());
    // Nobody there to take it, no room, and words that do not go together.
    let full = command(PROGRAM, dir, &words(&["-", "-d", "a.raw"]));
    let mut full = full;
    if let Ok(to) = fs::File::options().write(true).open("/dev/full") {
        let said = one_line(&finish(full.stdout(Stdio::from(to)).spawn().unwrap()), 1);
        assert!(said.contains("No space left on device"), "{said}");
    }
    assert!(bad(dir, &words(&["-", "--output", "json", "-d", "a.raw"]), 1).contains("nothing else"));
    assert!(bad(dir, &words(&["-", "--digest", "-d", "a.raw"]), 1).contains("--digest=FILE"));
    let facts = good(dir, &words(&["x.vma", "--output", "json", "--digest", "-d", "a.raw"]));
    assert!(facts.contains("\"uuid\": \"00112233-4455-6677-8899-aabbccddeeff\""), "{facts}");
    assert!(facts.contains("\"zeros\": 3145728"), "{facts}");
    assert!(names(dir).contains(&"x.vma.digest".to_owned()));
}

#[test]
fn it_is_packed_in_one_go() {
    let dir = scene();
    let dir = dir.path();
    good(dir, &words(&["a.vma", "-d", "drive-scsi0=a.raw"]));
    let wanted = fs::read(dir.join("a.vma")).unwrap();
    for (out, how, tool) in
        [("b.vma.zst", "zstd:3", "zstd"), ("b.vma.gz", "gzip:1", "gzip"), ("b.vma.lzo", "lzo", "lzop")]
    {
        good(dir, &words(&[out, "-d", "drive-scsi0=a.raw"]));
        is_disk(dir, &format!("{out}#drive-scsi0"), "a.raw");
        if !has(tool) {
            continue;
        }
        let piped = words(&["--compress", how, "-", "-d", "drive-scsi0=a.raw"]).join(" ");
        for script in [format!("{tool} -dc <{out}"), format!("'{PROGRAM}' {piped} | {tool} -dc")] {
            let output = run("sh", dir, &["-c", &format!("({script}) >unpacked.vma")]);
            assert!(output.status.success() && output.stderr.is_empty(), "{script}: {output:?}");
            assert!(fs::read(dir.join("unpacked.vma")).unwrap() == wanted, "{script}");
        }
    }
    good(dir, &words(&["plain.vma.gz", "--compress", "none", "-d", "drive-scsi0=a.raw"]));
    assert!(fs::read(dir.join("plain.vma.gz")).unwrap() == wanted);
    assert!(bad(dir, &words(&["c.vma", "--compress", "rar", "-d", "a.raw"]), 1).contains("rar"));
    assert!(bad(dir, &words(&["c.vma", "--compress", "zstd:77", "-d", "a.raw"]), 1).contains("level 77"));
}

#[test]
fn archives_that_proxmox_restores() {
    let dir = scene();
    let dir = dir.path();
    fs::create_dir(dir.join("dump")).unwrap();
    let create = ["-c", "100.conf", "-d", "drive-scsi0=a.raw", "--vmid", "100", "--restorable"];
    let said = bad(dir, &words(&[&create[..], &["dump"]].concat()), 1);
    assert!(said.contains("without a qemu-server.conf"), "{said}");
    good(dir, &words(&[&create[..], &["--map-lines", "--compress", "zstd", "dump"]].concat()));
    assert_eq!(names(&dir.join("dump")), ["vzdump-qemu-100-2023_11_14-22_13_20.vma.zst"]);
    let more = ["--map", "scsi0=ceph:qcow2", "dump"];
    good(dir, &words(&[&create[..], &more].concat()));
    let archive = fs::read(dir.join("dump/vzdump-qemu-100-2023_11_14-22_13_20.vma")).unwrap();
    let front = String::from_utf8_lossy(&archive[12288..13312]).into_owned();
    assert!(front.contains("qemu-server.conf\0"), "{front}");
    assert!(front.contains("size=4M\n#qmdump#map:scsi0:drive-scsi0:ceph:qcow2:\n"), "{front}");
    let said = bad(dir, &words(&[&create[..], &["a.vma"]].concat()), 1);
    assert!(said.contains("is no folder"), "{said}");
    let said = bad(dir, &words(&["-c", "100.conf", "--map", "scsi0", "-d", "a.raw", "a.vma"]), 1);
    assert!(said.contains("DRIVE=STORAGE"), "{said}");
    let said = bad(dir, &words(&["--restorable", "-d", "drive-scsi0=a.raw", "a.vma"]), 1);
    assert!(said.contains("'a.vma' is no name of an archive that Proxmox restores"), "{said}");
    assert_eq!(names(dir), ["100.conf", "a.raw", "dump"]);
}

/// The limit of sizes stands for a full disk: every place where it can strike leaves what was there, and nothing else.
#[test]
fn without_room_nothing_is_left() {
    let dir = scene();
    let dir = dir.path();
    let mut struck = 0;
    for out in ["a.vma", "a.vma.zst", "a.vma.gz", "a.vma.lzo"] {
        for blocks in (0..2600).step_by(250) {
            let words = words(&["-q", "--force", "-t", "unsafe", out, "-d", "a.raw"]).join(" ");
            let script = format!("ulimit -f {blocks}; exec '{PROGRAM}' {words}");
            let output = finish(command("sh", dir, &["-c", &script]).spawn().unwrap());
            if output.status.success() {
                is_disk(dir, &format!("{out}#disk0"), "a.raw");
                fs::remove_file(dir.join(out)).unwrap();
                break;
            }
            assert!(one_line(&output, 1).contains("File too large"), "{output:?}");
            assert_eq!(names(dir), ["100.conf", "a.raw"]);
            struck += 1;
        }
    }
    assert!(struck > 15, "{struck}");
}

#[test]
fn a_kill_leaves_the_partial_name_and_an_interrupt_nothing() {
    for signal in ["KILL", "INT"] {
        let dir = scene();
        let dir = dir.path();
        // A command that takes nothing lets it wait; a file that is there is replaced at the end alone.
        fs::write(dir.join("a.vma"), "old").unwrap();
        let big = fs::File::create(dir.join("big.raw")).unwrap();
        big.set_len(1 << 43).unwrap();
        let child =
            command(PROGRAM, dir, &["vma", "create", "--force", "-t", "unsafe", "a.vma", "-d", "big.raw"]);
        let mut child = child;
        let child = child.spawn().unwrap();
        let partial = || names(dir).into_iter().find(|name| name.starts_with(".a.vma.partial-"));
        wait_until(|| {
            partial().is_some_and(|name| fs::metadata(dir.join(name)).is_ok_and(|found| found.len() > 0))
        });
        assert!(run("kill", dir, &["-s", signal, &child.id().to_string()]).status.success());
        let output = finish(child);
        assert_eq!(fs::read(dir.join("a.vma")).unwrap(), b"old");
        if signal == "INT" {
            assert!(one_line(&output, 130).contains("stopped on request"));
            assert_eq!(partial(), None);
        } else {
            assert!(partial().is_some());
        }
    }
}
