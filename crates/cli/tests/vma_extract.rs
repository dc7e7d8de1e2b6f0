//! `vma extract` as a person and as Proxmox's restore run it: what is printed and when, what it answers, what it leaves.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // These are tests, helpers included.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{PROGRAM, bad, command, cowhand, finish, good, has, names, noise, one_line, wait_until};

const SIZE: usize = 3 << 20;

/// A folder with two disks, a configuration, and an archive of them: `a.vma`.
fn archived(more: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = noise(SIZE);
    disk[1 << 20..2 << 20].fill(0);
    disk[5 * 4096..9 * 4096].fill(0);
    fs::write(dir.path().join("a.raw"), &disk).unwrap();
    fs::write(dir.path().join("b.raw"), vec![7; 100 << 10]).unwrap();
    fs::write(dir.path().join("qemu-server.conf"), "cores: 2\n").unwrap();
    let mut words = vec!["vma", "create", "-c", "qemu-server.conf", "--time", "1690305830"];
    words.extend(["-d", "drive-scsi0=a.raw", "-d", "drive-efidisk0=b.raw"]);
    words.extend(more);
    words.push("a.vma");
    good(dir.path(), &words);
    dir
}

fn same(dir: &Path, a: &str, b: &str) {
    let read = |name: &str| fs::read(dir.join(name)).unwrap();
    assert!(read(a) == read(b), "{a} and {b} differ");
}

fn fifo(dir: &Path, name: &str) {
    assert!(Command::new("mkfifo").arg(dir.join(name)).status().unwrap().success());
}

fn signal(child: &Child, name: &str) {
    let done = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(done.success());
}

#[test]
fn it_prints_what_the_existing_tool_prints() {
    let dir = archived(&[]);
    let said = good(dir.path(), &["vma", "extract", "-v", "a.vma", "out"]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], format!("DEVINFO out/disk-drive-scsi0.raw {SIZE}"));
    assert_eq!(lines[1], "DEVINFO out/disk-drive-efidisk0.raw 102400");
    let progress: Vec<&&str> = lines.iter().filter(|line| line.starts_with("progress ")).collect();
    assert!(!progress.is_empty(), "{said}");
    assert!(progress.last().unwrap().starts_with("progress 100% (read 3276800 bytes, duration "), "{said}");
    assert_eq!(
        lines[lines.len() - 2..],
        [
            "total bytes read 3276800, sparse bytes 1048576 (32%)",
            "space reduction due to 4K zero blocks 2.02%"
        ]
    );
    same(dir.path(), "a.raw", "out/disk-drive-scsi0.raw");
    same(dir.path(), "b.raw", "out/disk-drive-efidisk0.raw");
    same(dir.path(), "qemu-server.conf", "out/qemu-server.conf");
    assert_eq!(good(dir.path(), &["vma", "extract", "-q", "a.vma", "quiet"]), "");
    let json =
        good(dir.path(), &["vma", "extract", "--output", "json", "-d", "drive-scsi0", "a.vma", "json"]);
    assert!(json.starts_with("{\n") && json.contains("\"whole\": true"), "{json}");
    assert_eq!(names(&dir.path().join("json")), ["disk-drive-scsi0.raw", "qemu-server.conf"]);
}

#[test]
fn it_makes_images_of_every_format() {
    let dir = archived(&[]);
    for (format, file) in [("qcow2", "qcow2"), ("vpc", "vhd"), ("vhdx", "vhdx")] {
        let mut words = vec!["vma", "extract", "-O", format, "-t", "unsafe"];
        if format == "vpc" {
            words.extend(["-o", "force_size=on"]);
        }
        words.extend(["a.vma", format]);
        good(dir.path(), &words);
        let disk = format!("{format}/disk-drive-scsi0.{file}");
        good(dir.path(), &["compare", "-f", "raw", "-F", format, "a.raw", &disk]);
    }
    assert!(good(dir.path(), &["vma", "extract", "-O", "qcow2", "-o", "help"]).contains("cluster_size"));
}

/// What Proxmox's restore does: it reads the list, looks into the folder, and then writes the map.
#[test]
fn a_restore_through_a_pipe_and_a_fifo() {
    if !has("zstd") {
        return;
    }
    let dir = archived(&[]);
    let zstd = Command::new("zstd").args(["-q", "a.vma"]).current_dir(dir.path()).status().unwrap();
    assert!(zstd.success());
    fs::File::create(dir.path().join("target.raw")).unwrap().set_len((4 << 20) - 512).unwrap();
    good(dir.path(), &["create", "-q", "-f", "qcow2", "target.qcow2", "1M"]);
    fifo(dir.path(), "map");
    let mut unpack = Command::new("zstd")
        .args(["-q", "-d", "-c", "a.vma.zst"])
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut restore = command(PROGRAM, dir.path(), &["vma", "extract", "-v", "-r", "map", "-", "out"])
        .stdin(unpack.stdout.take().unwrap())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(restore.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let list: Vec<String> = said.by_ref().take(4).collect();
    assert_eq!(
        list,
        [
            "CFG: size: 9 name: qemu-server.conf",
            "DEV: dev_id=1 size: 3145728 devname: drive-scsi0",
            "DEV: dev_id=2 size: 102400 devname: drive-efidisk0",
            "CTIME: Tue Jul 25 17:23:50 2023"
        ]
    );
    same(dir.path(), "qemu-server.conf", "out/qemu-server.conf");
    let mut map = fs::File::options().write(true).open(dir.path().join("map")).unwrap();
    writeln!(map, "format=raw:throttling.bps=1073741824:throttling.group=a:0:drive-scsi0=target.raw")
        .unwrap();
    writeln!(map, "format=qcow2:cache=unsafe:1:drive-efidisk0=target.qcow2").unwrap();
    writeln!(map, "done").unwrap();
    // The pipe stays open behind that.
    let rest: Vec<String> = said.collect();
    assert_eq!(rest[0], "map 'drive-scsi0' to 'target.raw' (write zeros = 0)");
    assert_eq!(rest[1], "map 'drive-efidisk0' to 'target.qcow2' (write zeros = 1)");
    assert!(rest.last().unwrap().starts_with("space reduction"), "{rest:?}");
    let output = finish(restore);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(unpack.wait().unwrap().success());
    drop(map);
    assert!(
        fs::read(dir.path().join("target.raw")).unwrap()[..SIZE]
            == fs::read(dir.path().join("a.raw")).unwrap()
    );
    good(dir.path(), &["convert", "-O", "raw", "target.qcow2", "back.raw"]);
    assert!(fs::read(dir.path().join("back.raw")).unwrap()[..100 << 10] == vec![7; 100 << 10]);
    assert_eq!(names(&dir.path().join("out")), ["qemu-server.conf"]);
}

#[test]
fn what_makes_no_sense_is_refused_and_leaves_nothing() {
    let dir = archived(&[]);
    fs::create_dir(dir.path().join("there")).unwrap();
    fs::write(dir.path().join("map"), "0:drive-scsi0=a.vma\nskip=drive-efidisk0\n").unwrap();
    let before = names(dir.path());
    for (words, part) in [
        (&["-d", "drive-scsi1", "a.vma", "out"][..], "drive-scsi1"),
        (&["a.vma", "there"], "is there already"),
        (&["nowhere.vma", "out"], "nowhere.vma"),
        (&["a.raw", "out"], "magic"),
        (&["-O", "tar", "a.vma", "out"], "tar"),
        (&["-o", "cluster_size=4k", "a.vma", "out"], "cluster_size"),
        (&["-r", "map", "a.vma", "out"], "archive itself"),
        (&["-r", "map", "-O", "qcow2", "a.vma", "out"], "-O"),
        (&["-r", "nomap", "a.vma", "out"], "nomap"),
        (&["--digest", "a.vma", "out"], "a.vma.digest"),
        (&["--digest", "-", "out"], "--digest=FILE"),
        (&["--output", "json", "-v", "a.vma", "out"], "JSON"),
        (&["a.vma"], "NEWDIR"),
    ] {
        let said = bad(dir.path(), &[&["vma", "extract"], words].concat(), 1);
        assert!(said.contains(part), "{words:?}: {said}");
        assert_eq!(names(dir.path()), before, "{words:?}");
    }
}

#[test]
fn salvage_lists_what_is_missing_and_answers_3() {
    let dir = archived(&[]);
    let mut bytes = fs::read(dir.path().join("a.vma")).unwrap();
    let all = good(dir.path(), &["vma", "extract", "--salvage", "a.vma", "all"]);
    assert!(all.ends_with("all: nothing is missing\n"), "{all}");
    bytes.truncate(bytes.len() - 5000);
    fs::write(dir.path().join("cut.vma"), &bytes).unwrap();
    bad(dir.path(), &["vma", "extract", "cut.vma", "out"], 1);
    assert!(!dir.path().join("out").exists());
    let output = cowhand(dir.path(), &["vma", "extract", "--salvage", "cut.vma", "out"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("missing: disk drive-efidisk0 offset "), "{said}");
    assert!(said.ends_with("missing; all of it is listed in missing.json\n"), "{said}");
    same(dir.path(), "a.raw", "out/disk-drive-scsi0.raw");
    assert!(fs::read_to_string(dir.path().join("out/missing.json")).unwrap().contains("\"missing\":[\n{"));
    // A disk that is whole is no reason to complain.
    good(dir.path(), &["vma", "extract", "--salvage", "-d", "drive-scsi0", "cut.vma", "one"]);
}

#[test]
fn digests_of_create_are_those_of_extract() {
    for more in [&[][..], &["--compress", "zstd"]] {
        let dir = archived(&[&["--digest"], more].concat());
        good(dir.path(), &["vma", "extract", "--digest", "a.vma", "out"]);
        good(
            dir.path(),
            &["vma", "extract", "--digest=a.vma.digest", "-d", "drive-efidisk0", "a.vma", "one"],
        );
        if more.is_empty() {
            let mut bytes = fs::read(dir.path().join("a.vma")).unwrap();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            fs::write(dir.path().join("a.vma"), &bytes).unwrap();
            good(dir.path(), &["vma", "extract", "a.vma", "unaware"]);
            let said = bad(dir.path(), &["vma", "extract", "--digest", "a.vma", "aware"], 1);
            assert!(said.contains("'drive-efidisk0'") && said.contains("between 65536 and 102400"), "{said}");
        }
    }
}

#[test]
fn an_interrupt_leaves_nothing() {
    let dir = archived(&[]);
    let before = names(dir.path());
    // Bytes that never end: the archive's front, and then nothing.
    let front = fs::read(dir.path().join("a.vma")).unwrap()[..400_000].to_vec();
    for name in ["INT", "TERM", "HUP"] {
        let mut child = command(PROGRAM, dir.path(), &["vma", "extract", "-", "out"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&front).unwrap();
        wait_until(|| names(dir.path()).len() > before.len());
        assert!(names(dir.path()).iter().any(|name| name.starts_with(".out.partial-")));
        signal(&child, name);
        let said = one_line(&finish(child), 130);
        assert!(said.contains("stopped on request"), "{said}");
        assert_eq!(names(dir.path()), before);
        drop(stdin);
    }
    // One that waits for a map, and one that may write but slowly.
    fifo(dir.path(), "fifo");
    fs::write(dir.path().join("target"), vec![0; SIZE]).unwrap();
    fs::write(dir.path().join("map"), "throttling.bps=20000:0:drive-scsi0=target\nskip=drive-efidisk0\n")
        .unwrap();
    let before = names(dir.path());
    for map in ["fifo", "map"] {
        let child =
            command(PROGRAM, dir.path(), &["vma", "extract", "-r", map, "a.vma", "out"]).spawn().unwrap();
        wait_until(|| dir.path().join("out/qemu-server.conf").exists());
        std::thread::sleep(std::time::Duration::from_millis(300));
        signal(&child, "INT");
        let said = one_line(&finish(child), 130);
        assert!(said.contains("stopped on request"), "{said}");
        assert_eq!(names(dir.path()), before);
    }
}

#[test]
fn a_full_disk_leaves_nothing() {
    let dir = archived(&[]);
    let before = names(dir.path());
    // In blocks of 1024 bytes: less than the disks have, and room for the rest.
    for (limit, format) in [(64, "raw"), (1024, "raw"), (1024, "qcow2"), (1024, "vhdx")] {
        let script = format!("ulimit -f {limit}; exec \"$0\" vma extract -O {format} a.vma out");
        let child = command("bash", dir.path(), &["-c", &script, PROGRAM]).spawn().unwrap();
        let said = one_line(&finish(child), 1);
        assert!(said.contains("too large") || said.contains("size limit"), "{said}");
        assert_eq!(names(dir.path()), before, "{limit} {format}");
    }
}
