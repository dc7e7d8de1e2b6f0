//! What `qemu-img` under that name does beside the real one, or that a list of command lines cannot show: Proxmox's streams,
//! signals, salvage of a disk that fails.
#![allow(clippy::unwrap_used)] // These are tests, helpers included.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{PROGRAM, command, finish, names, noise, wait_until};

/// A folder with the program under the name `qemu-img`.
fn folder() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    let link = dir.path().join("bin/qemu-img");
    symlink(PROGRAM, &link).unwrap();
    let link = link.to_str().unwrap().to_owned();
    (dir, link)
}

fn fed(program: &str, dir: &Path, words: &[&str], bytes: &[u8]) -> Output {
    let mut command = command(program, dir, words);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // It may end before it has taken all.
    let _ = input.write_all(bytes);
    drop(input);
    finish(child)
}

fn silent(output: &Output) {
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn dd_takes_and_gives_streams_as_proxmox_calls_it() {
    let (dir, qemu_img) = folder();
    let at = dir.path();
    let bytes = noise(300 << 10);
    fs::write(at.join("a.raw"), &bytes).unwrap();
    for words in [
        &["dd", "-O", "qcow2", "osize=1M", "of=b.qcow2"][..],
        &["dd", "of=b.qcow2", "if=-", "-O", "qcow2", "isize=307200", "osize=1M", "bs=64k"],
    ] {
        silent(&fed(&qemu_img, at, words, &bytes));
        let out = finish(command(&qemu_img, at, &["dd", "if=b.qcow2", "bs=64k", "count=5"]).spawn().unwrap());
        silent(&out);
        assert_eq!(out.stdout[..bytes.len()], bytes, "{words:?}");
        assert!(out.stdout[bytes.len()..].iter().all(|byte| *byte == 0) && out.stdout.len() == 320 << 10);
    }
    let out = finish(
        command(&qemu_img, at, &["dd", "-f", "raw", "if=a.raw", "of=-", "bs=1k", "skip=299"])
            .spawn()
            .unwrap(),
    );
    silent(&out);
    assert_eq!(out.stdout, bytes[299 << 10..]);
    // -n leaves what lies behind.
    fs::write(at.join("there.raw"), vec![7; 400 << 10]).unwrap();
    silent(&fed(&qemu_img, at, &["dd", "-n", "of=there.raw", "isize=300k"], &bytes));
    let there = fs::read(at.join("there.raw")).unwrap();
    assert!(there[..bytes.len()] == bytes && there[bytes.len()..].iter().all(|byte| *byte == 7));
    // A stream that ends too soon leaves nothing.
    let cut = fed(&qemu_img, at, &["dd", "of=cut.raw", "isize=400k"], &bytes);
    assert_eq!(cut.status.code(), Some(1), "{cut:?}");
    assert!(cut.stderr.starts_with(b"qemu-img: ") && !at.join("cut.raw").exists());
    let neither = finish(command(&qemu_img, at, &["dd"]).spawn().unwrap());
    assert_eq!(neither.stderr, b"qemu-img: Must specify both input and output files\n");
}

#[test]
fn an_interrupted_conversion_leaves_what_was_there() {
    let (dir, qemu_img) = folder();
    let at = dir.path();
    fs::write(at.join("source.raw"), noise(4 << 20)).unwrap();
    fs::write(at.join("target.qcow2"), b"what was there before").unwrap();
    let before = names(at);
    for name in ["INT", "TERM"] {
        let words = ["convert", "-O", "qcow2", "-r", "64k", "source.raw", "target.qcow2"];
        let child = command(&qemu_img, at, &words).spawn().unwrap();
        wait_until(|| names(at).len() > before.len());
        let sent = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let output = finish(child);
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(130), &b""[..]), "{output:?}");
        assert_eq!(names(at), before);
        assert_eq!(fs::read(at.join("target.qcow2")).unwrap(), b"what was there before");
    }
}

#[test]
fn salvage_makes_zeros_of_what_cannot_be_read_and_says_where() {
    let (dir, qemu_img) = folder();
    let at = dir.path();
    let bytes = noise(256 << 10);
    fs::write(at.join("a.raw"), &bytes).unwrap();
    silent(&finish(
        command(
            &qemu_img,
            at,
            &["convert", "-c", "-O", "qcow2", "-o", "cluster_size=4k", "a.raw", "a.qcow2"],
        )
        .spawn()
        .unwrap(),
    ));
    // One cluster's compressed bytes are no longer what they were.
    let mut image = fs::read(at.join("a.qcow2")).unwrap();
    let deflated = image.len() / 2;
    image[deflated..deflated + 256].fill(0);
    fs::write(at.join("a.qcow2"), image).unwrap();
    let strict = finish(command(&qemu_img, at, &["convert", "a.qcow2", "b.raw"]).spawn().unwrap());
    assert_eq!(strict.status.code(), Some(1));
    assert!(strict.stderr.starts_with(b"qemu-img: error while reading at byte "), "{strict:?}");
    assert!(!at.join("b.raw").exists());
    let lenient =
        finish(command(&qemu_img, at, &["convert", "--salvage", "a.qcow2", "b.raw"]).spawn().unwrap());
    assert!(lenient.status.success() && lenient.stdout.is_empty(), "{lenient:?}");
    let said = String::from_utf8(lenient.stderr).unwrap();
    let made = fs::read(at.join("b.raw")).unwrap();
    let mut lost = 0;
    for (index, (was, is)) in bytes.chunks(512).zip(made.chunks(512)).enumerate() {
        let line = format!("qemu-img: warning: error while reading offset {}: ", index * 512);
        assert_eq!(said.contains(&line), was != is, "{index}: {said}");
        assert!(was == is || is.iter().all(|byte| *byte == 0));
        lost += usize::from(was != is);
    }
    assert!(lost > 0 && lost < 32, "{lost}");
    let quiet =
        finish(command(&qemu_img, at, &["convert", "--salvage", "-q", "a.qcow2", "c.raw"]).spawn().unwrap());
    silent(&quiet);
    // cowhand itself says how much it is.
    let own = common::good(at, &["convert", "--salvage", "--verify", "a.qcow2", "d.raw"]);
    assert!(
        own.contains(&format!("warning: {} bytes that could not be read are zero in the target", lost * 512)),
        "{own}"
    );
    assert_eq!(fs::read(at.join("d.raw")).unwrap(), made);
}
