//! The tools whose names the program answers to, where a recorded session cannot show it: volume groups, pipes, several
//! programs at once.

#![allow(clippy::unwrap_used)] // These are tests, helpers included.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder with the program under that name.
fn link(folder: &Path, name: &str) -> PathBuf {
    let link = folder.join(name);
    symlink(env!("CARGO_BIN_EXE_cowhand"), &link).unwrap();
    link
}

fn cowhand(folder: &Path, words: &[&str]) {
    let done = Command::new(env!("CARGO_BIN_EXE_cowhand")).args(words).current_dir(folder).output().unwrap();
    assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn scan_lists_a_volume_group_and_all_its_volumes_stand_on() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let helper = link(at, "qcow2_helper");
    // A group whose nodes are links to files, as its volumes' are links to devices.
    let group = format!("cowhand-test-{}", std::process::id());
    let nodes = Path::new("/dev").join(&group);
    if fs::create_dir(&nodes).is_err() {
        return; // Only root may.
    }
    struct Gone<'a>(&'a Path);
    impl Drop for Gone<'_> {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.0);
        }
    }
    let _gone = Gone(&nodes);
    cowhand(&nodes, &["create", "-q", "base", "-f", "qcow2", "1M"]);
    cowhand(&nodes, &["create", "-q", "QCOW2-mid", "-f", "qcow2", "-b", "base", "-F", "qcow2"]);
    cowhand(&nodes, &["create", "-q", "QCOW2-top", "-f", "qcow2", "-b", "QCOW2-mid", "-F", "qcow2", "2M"]);
    cowhand(&nodes, &["hidden", "base", "on"]);
    fs::write(nodes.join("QCOW2-broken"), [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 9]).unwrap();
    fs::write(nodes.join("VHD-other"), [1; 4096]).unwrap();
    let run = |words: &[&str]| -> Output {
        // Without lvm's own list, that of the folder counts.
        Command::new(&helper).args(words).env("PATH", at).output().unwrap()
    };
    let len = |name: &str| fs::metadata(nodes.join(name)).unwrap().len();
    let line = |name: &str, size: u64, hidden: u8, parent: &str| {
        format!("qcow2={name} capacity={size} size={} hidden={hidden} parent={parent}\n", len(name))
    };
    let mid = line("QCOW2-mid", 1 << 20, 0, "base");
    let top = line("QCOW2-top", 2 << 20, 0, "QCOW2-mid");

    let done = run(&["scan", "-l", &group, "-m", "QCOW2-[mt]*"]);
    assert_eq!((done.status.code(), text(&done.stderr)), (Some(0), String::new()));
    assert_eq!(text(&done.stdout), format!("{mid}{top}"));

    // All ancestors, each once, behind what fits.
    let done = run(&["scan", "-a", "-m", "QCOW2-top", "-l", &group]);
    assert_eq!((done.status.code(), text(&done.stderr)), (Some(0), String::new()));
    assert_eq!(text(&done.stdout), format!("{top}{mid}{}", line("base", 1 << 20, 1, "none")));

    // A broken one is told of, and the others are listed.
    let done = run(&["scan", "-l", &group, "-m", "QCOW2-*"]);
    assert_eq!((done.status.code(), text(&done.stdout)), (Some(1), format!("{mid}{top}")));
    assert!(text(&done.stderr).starts_with("scan-error: QCOW2-broken: "), "{}", text(&done.stderr));

    fs::remove_file(nodes.join("base")).unwrap();
    let done = run(&["scan", "-a", "-m", "QCOW2-mid", "-l", &group]);
    assert_eq!(
        (done.status.code(), text(&done.stderr)),
        (Some(1), "scan-error: base not found\n".to_owned())
    );
}

#[test]
fn an_image_in_use_is_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let helper = link(at, "qcow2_helper");
    cowhand(at, &["create", "-q", "a.qcow2", "1M", "-o", "preallocation=full"]);
    if !common::has("qemu-io") {
        return;
    }
    let mut holder = Command::new("qemu-io")
        .arg(at.join("a.qcow2"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It answers once the image is open and locked.
    let mut words = holder.stdin.take().unwrap();
    words.write_all(b"write -P 1 0 512\n").unwrap();
    let mut said = BufReader::new(holder.stdout.take().unwrap());
    said.read_line(&mut String::new()).unwrap();
    let done = Command::new(&helper).args(["allocated", "a.qcow2"]).current_dir(at).output().unwrap();
    assert_eq!((text(&done.stdout), text(&done.stderr)), ("1048576\n".to_owned(), String::new()));
    let done = Command::new(&helper).args(["bitmap", "-f", "a.qcow2"]).current_dir(at).output().unwrap();
    assert_eq!(done.stdout, [0xff, 0xff]);
    drop(words);
    holder.wait().unwrap();
}

/// As `qmrestore` does it: the archive comes by a pipe, the list goes out at once, and the map is written to a named pipe
/// once the list was read.
#[test]
fn a_restore_by_pipes() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let vma = link(at, "vma");
    let data: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    fs::write(at.join("a.raw"), &data).unwrap();
    let made = Command::new(&vma)
        .args(["create", "pipe.vma", "-d", "format=raw:drive-scsi0=a.raw", "-v"])
        .current_dir(at)
        .output()
        .unwrap();
    assert_eq!((made.status.code(), text(&made.stdout)), (Some(0), String::new()));
    assert!(text(&made.stderr).ends_with("image drive-scsi0: size=300032 zeros=0 saved=300032\n"));
    fs::write(at.join("target.raw"), vec![0; 300_032]).unwrap();
    assert!(Command::new("mkfifo").arg(at.join("map")).status().unwrap().success());

    let mut restore = Command::new(&vma)
        .args(["extract", "-v", "-r", "map", "-", "dir"])
        .current_dir(at)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut archive = restore.stdin.take().unwrap();
    let bytes = fs::read(at.join("pipe.vma")).unwrap();
    let feeder = std::thread::spawn(move || archive.write_all(&bytes));
    let mut lines = BufReader::new(restore.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("CTIME:") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0);
        if line.starts_with("DEV:") {
            assert_eq!(line, "DEV: dev_id=1 size: 300032 devname: drive-scsi0\n");
        }
    }
    fs::write(at.join("map"), "format=raw:1:drive-scsi0=target.raw\ndone\n").unwrap();
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    feeder.join().unwrap().unwrap();
    let ended = restore.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), text(&ended.stderr)), (Some(0), String::new()));
    assert!(rest.contains("progress 100% (read 327680 bytes, duration "), "{rest}");
    assert!(rest.contains("total bytes read 327680, sparse bytes 0 (0%)\n"), "{rest}");
    let mut there = fs::read(at.join("target.raw")).unwrap();
    there.truncate(data.len());
    assert!(there == data);
}

#[test]
fn archives_go_to_commands_and_named_pipes() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let vma = link(at, "vma");
    fs::write(at.join("a.raw"), [7; 10_000]).unwrap();
    let create = |to: &str| {
        let words = ["create", to, "-d", "format=raw:a=a.raw"];
        let done = Command::new(&vma).args(words).current_dir(at).output().unwrap();
        assert_eq!((done.status.code(), text(&done.stderr)), (Some(0), String::new()));
        assert!(done.stdout.is_empty());
    };
    create("exec:cat >by-command.vma");
    assert!(Command::new("mkfifo").arg(at.join("pipe")).status().unwrap().success());
    let pipe = at.join("pipe");
    let reader = std::thread::spawn(move || fs::read(pipe).unwrap());
    create("pipe");
    fs::write(at.join("by-pipe.vma"), reader.join().unwrap()).unwrap();
    for name in ["by-command.vma", "by-pipe.vma"] {
        let done = Command::new(&vma).args(["verify", name]).current_dir(at).output().unwrap();
        assert_eq!(done.status.code(), Some(0), "{name}");
    }
}

/// Where an archive is damaged, the words are those that callers know, and nothing is left behind.
#[test]
fn damage_is_told_in_the_words_that_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let vma = link(at, "vma");
    fs::write(at.join("a.raw"), [7; 200_000]).unwrap();
    let done = Command::new(&vma)
        .args(["create", "a.vma", "-d", "format=raw:a=a.raw"])
        .current_dir(at)
        .status()
        .unwrap();
    assert!(done.success());
    let whole = fs::read(at.join("a.vma")).unwrap();
    let extent = whole.windows(4).position(|bytes| bytes == b"VMAE").unwrap();
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        fs::write(at.join("b.vma"), bytes).unwrap();
    };
    let says = |words: &[&str], said: &str| {
        let done = Command::new(&vma).args(words).current_dir(at).output().unwrap();
        assert_eq!(done.status.code(), Some(133), "{words:?}");
        assert_eq!(text(&done.stderr), format!("vma: {said}\n"));
        assert!(!at.join("out").exists());
    };
    damaged(&|bytes| bytes[100] ^= 1);
    says(&["list", "b.vma"], "wrong vma header chechsum");
    says(&["extract", "b.vma", "out"], "wrong vma header chechsum");
    damaged(&|bytes| bytes.truncate(5000));
    says(&["verify", "b.vma"], "can't read vma header - got EOF");
    damaged(&|bytes| bytes[0] = b'X');
    says(&["config", "b.vma"], "not a vma file - wrong magic number");
    damaged(&|bytes| bytes[56..60].fill(0));
    says(&["list", "b.vma"], "wrong vma header size 0");
    damaged(&|bytes| bytes[extent] ^= 1);
    says(&["verify", "b.vma"], "verify failed - wrong vma extent header chechsum");
    says(&["extract", "b.vma", "out"], "restore failed - wrong vma extent header chechsum");
    damaged(&|bytes| bytes.truncate(extent + 100));
    says(&["extract", "b.vma", "out"], "restore failed - read short extent (100 bytes)");
    let len = whole.len() - extent;
    damaged(&|bytes| bytes.truncate(extent + 4608));
    says(&["verify", "b.vma"], &format!("verify failed - short vma extent (4608 < {len})"));
    damaged(&|bytes| bytes.truncate(extent));
    says(&["extract", "b.vma", "out"], "restore failed - detected missing cluster 0 for stream a");
}
