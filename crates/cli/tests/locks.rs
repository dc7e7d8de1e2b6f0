//! QEMU and this program keep each other from an image in use.
#![allow(clippy::unwrap_used)] // These are tests, helpers included.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};

use common::{PROGRAM, bad, command, finish, good, has, names, noise, run, wait_until};

/// qemu-io with the image open for writing, until its input is closed.
fn qemu_io(dir: &Path, image: &str) -> Child {
    let mut child = command("qemu-io", dir, &[image]).stdin(Stdio::piped()).spawn().unwrap();
    // It answers once the image is open and locked.
    child.stdin.as_mut().unwrap().write_all(b"write -P 1 0 512\n").unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("wrote 512/512"), "{line}");
    child
}

#[test]
fn an_image_that_qemu_writes_is_refused_by_every_verb() {
    if !has("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(dir, &["create", "-q", "used.qcow2", "1M"]);
    good(dir, &["create", "-q", "other.raw", "1M"]);
    let holder = qemu_io(dir, "used.qcow2");
    for (words, status) in [
        (&["info", "used.qcow2"][..], 1),
        (&["convert", "used.qcow2", "new.raw"], 1),
        (&["convert", "other.raw", "used.qcow2"], 1),
        (&["convert", "-n", "other.raw", "used.qcow2"], 1),
        (&["create", "used.qcow2", "1M"], 1),
        (&["map", "used.qcow2"], 1),
        (&["compare", "used.qcow2", "other.raw"], 2),
        (&["inspect", "used.qcow2"], 4),
    ] {
        let said = bad(dir, words, status);
        assert!(said.contains("lock") && said.contains(&holder.id().to_string()), "{said}");
    }
    good(dir, &["info", "-U", "used.qcow2"]);
    good(dir, &["map", "--force-share", "used.qcow2"]);
    good(dir, &["convert", "-U", "used.qcow2", "new.raw"]);
    finish(end(holder));
    good(dir, &["info", "used.qcow2"]);
    assert_eq!(names(dir), ["new.raw", "other.raw", "used.qcow2"]);
}

fn end(mut child: Child) -> Child {
    drop(child.stdin.take());
    child
}

#[test]
fn qemu_is_refused_while_this_program_works() {
    if !has("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("source.raw"), noise(4 << 20)).unwrap();
    good(dir, &["create", "-q", "target.qcow2", "4M"]);
    let mut working =
        command(PROGRAM, dir, &["convert", "-n", "-r", "64k", "source.raw", "target.qcow2"]).spawn().unwrap();
    // Locked before the first byte is written.
    wait_until(|| std::fs::metadata(dir.join("target.qcow2")).is_ok_and(|found| found.len() > 1 << 20));
    for image in ["source.raw", "target.qcow2"] {
        let output = run("qemu-io", dir, &["-c", "write 0 512", image]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("lock"), "{image}: {said}");
    }
    // What is only read may be read by others too.
    assert!(run("qemu-img", dir, &["map", "-f", "raw", "source.raw"]).status.success());
    working.kill().unwrap();
    working.wait().unwrap();
}
