//! `vma list`, `config` and `verify`, and what `extract --salvage` rescues: archives made here, whole and damaged.

#![allow(clippy::unwrap_used, clippy::panic)] // Tests panic where they must.

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use common::{PROGRAM, bad, command, cowhand, good};

const UUID: &str = "00112233-4455-6677-8899-aabbccddeeff";
const CONFIG: &str = "memory: 512\nscsi0: local-lvm:vm-100-disk-0,size=8M\n";
const SIZE: usize = 8 << 20;

fn noise(len: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A disk with a hole in it, and an archive of it in that file.
fn archive(dir: &Path, name: &str, more: &[&str]) -> Vec<u8> {
    let mut disk = noise(SIZE);
    disk[3 << 20..4 << 20].fill(0);
    fs::write(dir.join("disk.raw"), &disk).unwrap();
    fs::write(dir.join("qemu-server.conf"), CONFIG).unwrap();
    let mut words = vec!["vma", "create", "-q", "--uuid", UUID, "--time", "1690305830"];
    words.extend(["-c", "qemu-server.conf", "-d", "format=raw:drive-scsi0=disk.raw"]);
    words.extend(more);
    words.push(name);
    good(dir, &words);
    disk
}

/// What a verb prints where it finds faults.
fn faulty(dir: &Path, words: &[&str]) -> String {
    let output = cowhand(dir, words);
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(2), &b""[..]), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_list_is_that_of_the_existing_tool() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    archive(dir, "a.vma", &[]);
    archive(dir, "a.vma.zst", &[]);
    let list = format!(
        "CFG: size: {} name: qemu-server.conf\nDEV: dev_id=1 size: {SIZE} devname: drive-scsi0\n\
         CTIME: Tue Jul 25 17:23:50 2023\n",
        CONFIG.len()
    );
    for name in ["a.vma", "a.vma.zst"] {
        assert_eq!(good(dir, &["vma", "list", name]), list);
        assert_eq!(good(dir, &["vma", "config", name]), CONFIG);
        let facts = good(dir, &["vma", "list", "--output", "json", name]);
        for fact in [UUID, "1690305830", "drive-scsi0", "\"dev-id\": 1"] {
            assert!(facts.contains(fact), "{facts}");
        }
        let input = fs::File::open(dir.join(name)).unwrap();
        let mut piped = command(PROGRAM, dir, &["vma", "list", "-"]);
        let output = piped.stdin(Stdio::from(input)).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), list);
    }
    assert_eq!(
        bad(dir, &["vma", "config", "a.vma", "-c", "x"], 1),
        "cowhand: a.vma: the archive has no configuration 'x'; it has qemu-server.conf\n"
    );
    assert!(bad(dir, &["vma", "list", "disk.raw"], 1).contains("this is no such archive"));
}

#[test]
fn verify_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    archive(dir, "a.vma", &["--digest"]);
    let whole = fs::read(dir.join("a.vma")).unwrap();
    assert_eq!(
        good(dir, &["vma", "verify", "a.vma"]),
        "a.vma: nothing is wrong; 1 disk of 8 MiB and 1 configuration, and every byte is what its digest was made of\n"
    );
    assert_eq!(good(dir, &["vma", "verify", "-q", "a.vma"]), "");
    let verbose = good(dir, &["vma", "verify", "-v", "a.vma"]);
    assert!(verbose.contains("progress 100% (read 8388608 bytes, duration 0 sec)\n"), "{verbose}");
    assert!(verbose.contains("total bytes read 8388608, sparse bytes 1048576 (12.5%)\n"), "{verbose}");

    // A flipped bit in the disk's data: only the digest knows.
    let mut flipped = whole.clone();
    let at = flipped.len() - 5000;
    flipped[at] ^= 1;
    fs::write(dir.join("a.vma"), &flipped).unwrap();
    let said = faulty(dir, &["vma", "verify", "a.vma"]);
    assert!(
        said.contains("differs from its digest: disk drive-scsi0 offset 8323072 length 65536\n"),
        "{said}"
    );
    let facts = faulty(dir, &["vma", "verify", "--output", "json", "a.vma"]);
    assert!(facts.contains("\"sound\": false") && facts.contains("\"start\": 8323072"), "{facts}");
    fs::rename(dir.join("a.vma.digest"), dir.join("other")).unwrap();
    assert!(good(dir, &["vma", "verify", "a.vma"]).contains("have no digests"));
    faulty(dir, &["vma", "verify", "--digest", "other", "a.vma"]);

    // Trailing bytes, a cut, a header that is damaged.
    let mut longer = whole.clone();
    longer.extend([1; 700]);
    fs::write(dir.join("a.vma"), &longer).unwrap();
    let said = faulty(dir, &["vma", "verify", "a.vma"]);
    assert!(said.starts_with(&format!("damaged at offset {}: extent: ", whole.len())), "{said}");
    assert!(said.ends_with("a.vma: 1 fault, 0 B missing\n"), "{said}");
    fs::write(dir.join("a.vma"), &whole[..whole.len() - 10_000]).unwrap();
    let said = faulty(dir, &["vma", "verify", "a.vma"]);
    assert!(said.contains("\nmissing: disk drive-scsi0 offset 8376320 length 12288\n"), "{said}");
    let mut renamed = whole.clone();
    renamed[24] ^= 1;
    fs::write(dir.join("a.vma"), &renamed).unwrap();
    let said = faulty(dir, &["vma", "verify", "a.vma"]);
    assert_eq!(
        said,
        "damaged at offset 32: md5sum: is not that of the header\na.vma: 1 fault, 0 B missing\n"
    );
    fs::write(dir.join("a.vma"), b"VMA").unwrap();
    assert!(faulty(dir, &["vma", "verify", "a.vma"]).contains("the archive ends there"));
    bad(dir, &["vma", "verify", "nowhere"], 1);
}

#[test]
fn what_proxmox_needs_is_looked_at_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    archive(dir, "a.vma", &[]);
    good(dir, &["vma", "verify", "a.vma"]);
    let said = faulty(dir, &["vma", "verify", "--restorable", "a.vma"]);
    assert!(said.contains("does not begin with vzdump-qemu-"), "{said}");
    let name = "vzdump-qemu-100-2026_01_31-12_00_00.vma.zst";
    archive(dir, name, &["--map-lines"]);
    good(dir, &["vma", "verify", "--restorable", name]);
    let unmapped = "vzdump-qemu-101-2026_01_31-12_00_00.vma";
    fs::copy(dir.join("a.vma"), dir.join(unmapped)).unwrap();
    let said = faulty(dir, &["vma", "verify", "--restorable", unmapped]);
    assert!(said.contains("drive-scsi0"), "{said}");
}

/// What a rescue leaves out is what it lists, and the rest is right. How many bytes came.
fn rescued(dir: &Path, name: &str, disk: &[u8], as_disk: &str) -> usize {
    let out = dir.join("out");
    let output = cowhand(dir, &["vma", "extract", "--salvage", "--output", "json", name, "out"]);
    assert!(matches!(output.status.code(), Some(0 | 3)) && output.stderr.is_empty(), "{output:?}");
    let facts = String::from_utf8(output.stdout).unwrap();
    let found = fs::read(out.join(format!("disk-{as_disk}.raw"))).unwrap();
    assert_eq!(found.len(), disk.len(), "{facts}");
    let missing = fs::read_to_string(out.join("missing.json")).unwrap();
    let number = |line: &str, key: &str| -> Option<usize> {
        let (_, rest) = line.split_once(&format!("\"{key}\":"))?;
        rest.trim().trim_end_matches(',').parse().ok()
    };
    let starts = facts.lines().filter_map(|line| number(line, "start"));
    let lengths = facts.lines().filter_map(|line| number(line, "length"));
    let mut right = disk.to_vec();
    let mut lost = 0;
    for (start, len) in starts.zip(lengths) {
        right[start..start + len].fill(0);
        lost += len;
    }
    assert!(found == right, "{facts} {missing}");
    fs::remove_dir_all(out).unwrap();
    disk.len() - lost
}

#[test]
fn a_packed_archive_that_is_damaged_loses_what_is_packed_with_the_damage() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for name in ["a.vma.zst", "a.vma.lzo"] {
        let disk = archive(dir, name, &[]);
        assert_eq!(rescued(dir, name, &disk, "drive-scsi0"), SIZE);
        let whole = fs::read(dir.join(name)).unwrap();
        let middle = whole.len() / 2;
        for damage in [middle..middle + 1, middle..middle + 3000] {
            let mut damaged = whole.clone();
            damaged[damage].iter_mut().for_each(|byte| *byte ^= 0x55);
            fs::write(dir.join(name), damaged).unwrap();
            let came = rescued(dir, name, &disk, "drive-scsi0");
            assert!((1 << 20..SIZE).contains(&came), "{name}: {came}");
            let said = faulty(dir, &["vma", "verify", name]);
            assert!(said.contains("missing: disk drive-scsi0 "), "{said}");
        }
    }
}

#[test]
fn without_its_front_an_archive_tells_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let disk = archive(dir, "a.vma", &[]);
    let whole = fs::read(dir.join("a.vma")).unwrap();
    let mut zeroed = whole.clone();
    zeroed[..12_800].fill(0);
    fs::write(dir.join("a.vma"), &zeroed).unwrap();
    assert_eq!(rescued(dir, "a.vma", &disk, "disk-1"), SIZE);
    // The size alone is damaged.
    let mut shrunk = whole.clone();
    shrunk[4096 + 32 + 13] ^= 0x40;
    fs::write(dir.join("a.vma"), &shrunk).unwrap();
    assert_eq!(rescued(dir, "a.vma", &disk, "drive-scsi0"), SIZE);
    // A pipe cannot be gone through twice.
    fs::write(dir.join("a.vma"), &zeroed).unwrap();
    let mut piped = command(PROGRAM, dir, &["vma", "extract", "--salvage", "-", "out"]);
    let input = fs::File::open(dir.join("a.vma")).unwrap();
    let output = piped.stdin(Stdio::from(input)).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("save it to a file"), "{said}");
}
