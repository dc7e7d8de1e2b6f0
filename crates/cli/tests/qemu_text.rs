//! Word for word what qemu-img 10 prints, where both print the same thing.
#![allow(clippy::unwrap_used)] // These are tests, helpers included.

mod common;

use std::path::Path;

use common::{cowhand, good, has, has_qemu_img_10, noise, run};
use serde_json::Value;

fn qemu(dir: &Path, words: &[&str]) -> String {
    let output = run("qemu-img", dir, words);
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn qemu_io(dir: &Path, image: &str, commands: &[&str]) {
    let mut words = Vec::new();
    for command in commands {
        words.extend(["-c", *command]);
    }
    words.push(image);
    let output = run("qemu-io", dir, &words);
    assert!(output.status.success(), "{output:?}");
}

/// Images of many kinds, made by qemu-img.
fn images(dir: &Path) -> Vec<&'static str> {
    qemu(dir, &["create", "-q", "-f", "qcow2", "base.qcow2", "16M"]);
    qemu_io(dir, "base.qcow2", &["write -P 1 0 1M", "write -P 2 5M 64k", "write -z 8M 1M"]);
    qemu(dir, &["snapshot", "-c", "first", "base.qcow2"]);
    qemu_io(dir, "base.qcow2", &["write -P 3 64k 64k"]);
    qemu(dir, &["snapshot", "-c", "a name that is longer than its column", "base.qcow2"]);
    qemu(dir, &["bitmap", "--add", "base.qcow2", "b1"]);
    qemu(dir, &["bitmap", "--add", "base.qcow2", "b2"]);
    qemu(dir, &["bitmap", "--disable", "base.qcow2", "b2"]);
    qemu(dir, &["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"]);
    qemu_io(dir, "top.qcow2", &["write -P 4 3M 1000"]);
    std::fs::create_dir(dir.join("sub")).unwrap();
    qemu(dir, &["create", "-q", "-f", "qcow2", "-b", "../base.qcow2", "-F", "qcow2", "sub/up.qcow2"]);
    let options = "cluster_size=128k,extended_l2=on,compression_type=zstd,lazy_refcounts=on";
    qemu(dir, &["create", "-q", "-f", "qcow2", "-o", options, "new.qcow2", "1.5G"]);
    qemu(dir, &["create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old.qcow2", "1G"]);
    qemu(
        dir,
        &["create", "-q", "-f", "qcow2", "-o", "data_file=data.raw,data_file_raw=on", "ext.qcow2", "8M"],
    );
    qemu(dir, &["create", "-q", "-f", "raw", "a.raw", "10M"]);
    std::fs::write(dir.join("odd.raw"), noise(1_234_567)).unwrap();
    vec!["base.qcow2", "top.qcow2", "sub/up.qcow2", "new.qcow2", "old.qcow2", "ext.qcow2", "a.raw", "odd.raw"]
}

#[test]
fn info_says_the_same() {
    if !has_qemu_img_10() || !has("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for image in images(dir) {
        let format = if image.ends_with("raw") { "raw" } else { "qcow2" };
        for words in [&["info", "-f", format, image][..], &["info", image, "-U", "--backing-chain"]] {
            let mut ours = vec!["--paths", "local"];
            ours.splice(0..0, words.iter().copied());
            let text: String = good(dir, &ours)
                .lines()
                .filter(|line| !line.starts_with("backing file state: "))
                .flat_map(|line| [line, "\n"])
                .collect();
            assert_eq!(text, qemu(dir, words), "{words:?}");

            let mut words = words.to_vec();
            words.push("--output=json");
            ours.push("--output=json");
            let ours: Value = serde_json::from_str(&good(dir, &ours)).unwrap();
            let theirs: Value = serde_json::from_str(&qemu(dir, &words)).unwrap();
            assert_eq!(ours, theirs, "{words:?}");
        }
    }
}

#[test]
fn map_says_the_same() {
    if !has_qemu_img_10() || !has("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // qemu-img names the data file, and splits the sector that a file ends in.
    for image in images(dir).into_iter().filter(|image| !["ext.qcow2", "odd.raw"].contains(image)) {
        for words in [
            &["map", image][..],
            &["map", "--output=json", image],
            &["map", image, "--output=json", "-s", "64k", "--max-length=1M"],
        ] {
            let mut words = words.to_vec();
            if image.ends_with("raw") {
                words.extend(["-f", "raw"]);
            }
            let theirs = qemu(dir, &words);
            words.extend(["--paths", "local"]);
            assert_eq!(good(dir, &words), theirs, "{words:?}");
        }
    }
    qemu(dir, &["convert", "-c", "-O", "qcow2", "base.qcow2", "packed.qcow2"]);
    let theirs = run("qemu-img", dir, &["map", "packed.qcow2"]);
    let ours = cowhand(dir, &["map", "packed.qcow2"]);
    assert_eq!(theirs.status.code(), ours.status.code());
    assert_eq!(ours.stdout, theirs.stdout);
    let said = |output: &[u8]| String::from_utf8_lossy(output).split_once(": ").unwrap().1.to_owned();
    assert_eq!(said(&ours.stderr), said(&theirs.stderr));
}

#[test]
fn compare_says_the_same() {
    if !has_qemu_img_10() || !has("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    images(dir);
    qemu(dir, &["convert", "-O", "raw", "base.qcow2", "flat.raw"]);
    std::fs::copy(dir.join("flat.raw"), dir.join("other.raw")).unwrap();
    qemu_io(dir, "other.raw", &["write -P 9 5120k 512"]);
    qemu(dir, &["create", "-q", "-f", "raw", "longer.raw", "12M"]);
    for words in [
        &["compare", "base.qcow2", "flat.raw"][..],
        &["compare", "top.qcow2", "flat.raw"],
        &["compare", "flat.raw", "other.raw"],
        &["compare", "-q", "flat.raw", "other.raw"],
        &["compare", "a.raw", "longer.raw"],
        &["compare", "longer.raw", "a.raw"],
        &["compare", "a.raw", "longer.raw", "-s"],
        &["compare", "a.raw", "base.qcow2", "-f", "raw", "-F", "qcow2"],
        &["compare", "a.raw", "nowhere"],
    ] {
        let (theirs, ours) = (run("qemu-img", dir, words), cowhand(dir, words));
        assert_eq!(ours.status.code(), theirs.status.code(), "{words:?}");
        assert_eq!(
            String::from_utf8_lossy(&ours.stdout),
            String::from_utf8_lossy(&theirs.stdout),
            "{words:?}"
        );
    }
}

#[test]
fn snapshots_are_converted_by_id_and_by_name() {
    if !has("qemu-img") || !has("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    images(dir);
    // A name that is another one's id.
    qemu(dir, &["snapshot", "-c", "1", "base.qcow2"]);
    for (ours, theirs) in [
        ("first", "first"),
        ("1", "snapshot.id=1"),
        ("snapshot.id=2", "snapshot.id=2"),
        ("snapshot.name=1", "snapshot.name=1"),
        ("snapshot.id=1,snapshot.name=first", "snapshot.id=1"),
    ] {
        good(dir, &["convert", "-q", "-l", ours, "base.qcow2", "ours.raw"]);
        qemu(dir, &["convert", "-O", "raw", "-l", theirs, "base.qcow2", "theirs.raw"]);
        let same =
            std::fs::read(dir.join("ours.raw")).unwrap() == std::fs::read(dir.join("theirs.raw")).unwrap();
        assert!(same, "{ours}");
    }
}
