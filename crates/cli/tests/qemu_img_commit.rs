//! Called `qemu-img`, as XCP-ng's storage manager calls it: what its build of the tool prints more than the real one.
#![allow(clippy::unwrap_used)] // These are tests.

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

use common::{PROGRAM, command, finish, good};

fn qemu_img(dir: &Path, words: &[&str], report: Option<&str>) -> Output {
    let mut command = command(dir.join("qemu-img").to_str().unwrap(), dir, words);
    match report {
        Some(value) => command.env("COWHAND_COMMIT_REPORT", value),
        None => command.env_remove("COWHAND_COMMIT_REPORT"),
    };
    finish(command.spawn().unwrap())
}

fn printed(output: &Output) -> &str {
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    std::str::from_utf8(&output.stdout).unwrap()
}

#[test]
fn the_bytes_are_reported_only_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    symlink(PROGRAM, dir.join("qemu-img")).unwrap();
    good(dir, &["create", "-f", "qcow2", "base.qcow2", "1M"]);
    std::fs::write(dir.join("data"), vec![7; 192 << 10]).unwrap();
    good(dir, &["convert", "-f", "raw", "-O", "qcow2", "data", "data.qcow2"]);
    good(dir, &["rebase", "-u", "-b", "base.qcow2", "-F", "qcow2", "data.qcow2"]);

    // The words in sm's order; the flags stand behind the image.
    let words = ["commit", "-f", "qcow2", "data.qcow2", "-d"];
    assert_eq!(printed(&qemu_img(dir, &words, Some("1"))), "(196608/196608)\nImage committed.\n");
    // All of it is there by now.
    let asked: Vec<&str> = words.into_iter().chain(["--report-bytes"]).collect();
    assert_eq!(printed(&qemu_img(dir, &asked, None)), "(0/196608)\nImage committed.\n");
    let quiet: Vec<&str> = asked.iter().copied().chain(["-q"]).collect();
    assert_eq!(printed(&qemu_img(dir, &quiet, None)), "(0/196608)\n");
    for not in [None, Some(""), Some("0")] {
        assert_eq!(printed(&qemu_img(dir, &words, not)), "Image committed.\n");
    }
}
