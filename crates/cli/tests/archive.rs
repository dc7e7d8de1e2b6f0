//! A backup archive is read by every verb that reads images, and changed by none.
#![allow(clippy::unwrap_used)] // These are tests.

mod common;

use std::fs::{self, File};
use std::path::Path;

use ::cowhand::{ArchivedDisk, Body, Chunk, ConfigFile, Manifest};
use common::{bad, cowhand, good};

/// `x.vma` with a disk, of which `a.raw` is a copy.
fn make(dir: &Path) {
    let mut disk = vec![0; 1 << 20];
    disk[100_000..300_000].fill(7);
    let size = disk.len() as u64;
    fs::write(dir.join("a.raw"), &disk).unwrap();
    let named = ArchivedDisk { name: "drive-scsi0".to_owned(), size, ..ArchivedDisk::default() };
    let config = ConfigFile { name: "qemu-server.conf".to_owned(), data: b"cores: 2\n".to_vec() };
    let what = Manifest { id: [7; 16], made: 1_700_000_000, configs: vec![config], disks: vec![named] };
    let format = ::cowhand::format("vma").unwrap().archives().unwrap();
    let file = File::create(dir.join("x.vma")).unwrap();
    let mut sink = format.write(Box::new(file), &what).unwrap();
    sink.put(Chunk { disk: 0, at: 0, body: Body::Bytes(&disk) }).unwrap();
    sink.finish().unwrap();
}

#[test]
fn every_verb_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make(dir);
    good(dir, &["compare", "x.vma", "a.raw"]);
    good(
        dir,
        &[
            "compare",
            "--image-opts",
            "driver=vma,disk=drive-scsi0,file.filename=x.vma",
            "driver=raw,file.filename=a.raw",
        ],
    );
    for target in ["a.qcow2", "a.vhd", "a.vhdx", "b.raw"] {
        good(dir, &["convert", "-q", "--verify", "x.vma", target]);
        good(dir, &["compare", "x.vma", target]);
    }
    good(dir, &["dd", "if=x.vma", "of=d.raw"]);
    good(dir, &["compare", "d.raw", "a.raw"]);
    good(dir, &["create", "-q", "-f", "qcow2", "-b", "x.vma", "-F", "vma", "over.qcow2"]);
    good(dir, &["compare", "over.qcow2", "a.raw"]);
    let map = good(dir, &["map", "x.vma"]);
    assert_eq!(map.lines().last().unwrap().split_whitespace().last(), Some("x.vma"), "{map}");
    let told = good(dir, &["info", "x.vma"]);
    assert!(told.contains("uuid: 07070707-0707-0707-0707-070707070707"), "{told}");
    assert!(told.contains("virtual size: 1 MiB (1048576 bytes)\n"), "{told}");
    good(dir, &["measure", "-O", "qcow2", "x.vma"]);
}

#[test]
fn a_check_finds_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make(dir);
    assert_eq!(
        good(dir, &["check", "x.vma"]),
        "No errors were found on the image.\nImage end offset: 218112\n"
    );
    let file = File::options().write(true).open(dir.join("x.vma")).unwrap();
    file.set_len(218_112 - 4096).unwrap();
    let output = cowhand(dir, &["check", "x.vma"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("bytes 299008 to 303103 of drive-scsi0 are missing"), "{said}");
    let refused = bad(dir, &["check", "-r", "all", "x.vma"], 1);
    assert!(refused.ends_with("cowhand vma extract --salvage takes out what is intact\n"), "{refused}");
}

#[test]
fn no_verb_changes_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make(dir);
    let before = fs::read(dir.join("x.vma")).unwrap();
    for words in [
        "resize x.vma 2M",
        "resize --shrink x.vma 512k",
        "snapshot -c one x.vma",
        "bitmap --add x.vma one",
        "compact x.vma",
        "amend -f vma -o size=1M x.vma",
        "commit x.vma",
        "rebase -u -b a.raw -F raw x.vma",
        "rebase -b a.raw -F raw x.vma",
        "convert -n -O vma a.raw x.vma",
        "merge x.vma",
        "reconnect-parent x.vma a.raw",
    ] {
        let said = bad(dir, &words.split(' ').collect::<Vec<_>>(), 1);
        let written =
            said.contains("a backup archive can be read, and not written; convert its disk to an image");
        assert!(
            written || ["merge", "reconnect-parent"].iter().any(|verb| words.starts_with(verb)),
            "{words}: {said}"
        );
        assert_eq!(fs::read(dir.join("x.vma")).unwrap(), before, "{words}");
    }
}

#[test]
fn it_is_made_by_a_verb_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make(dir);
    let names = || fs::read_dir(dir).unwrap().count();
    let before = names();
    for words in [
        "create -f vma y.vma 1M",
        "convert -O vma a.raw y",
        "convert a.raw y.vma",
        "convert a.raw y.vma.zst",
        "child a.raw y.vma",
        "dd -O vma if=a.raw of=y.vma",
    ] {
        let said = bad(dir, &words.split(' ').collect::<Vec<_>>(), 1);
        let made = "a backup archive is made as a whole; cowhand vma create ARCHIVE NAME=IMAGE does that\n";
        assert!(said.ends_with(made), "{words}: {said}");
        assert_eq!(names(), before, "{words}");
    }
    let listed = good(dir, &["formats"]);
    let expected = "vma\n  files: .vma\n  an archive of disks: FILE#DISK is one of them; 'cowhand vma' makes and extracts\n";
    assert!(listed.contains(expected), "{listed}");
}
