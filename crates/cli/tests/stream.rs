//! `stream` as a shell user has it: pipes, the size beforehand, and where it says no.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // These are tests, helpers included.

mod common;

use std::fs;
use std::path::Path;

use common::{PROGRAM, bad, command, cowhand, finish, good, names, noise, one_line, run};

fn disk(dir: &Path) {
    let mut bytes = noise(1 << 20);
    bytes.resize(5 << 20, 0);
    fs::write(dir.join("a.raw"), bytes).unwrap();
}

/// What the shell printed; `cowhand` is the program.
fn shell(dir: &Path, script: &str) -> String {
    let script = format!("set -e; set -o pipefail; cowhand() {{ '{PROGRAM}' \"$@\"; }}; {script}");
    let output = run("bash", dir, &["-c", &script]);
    assert!(output.status.success() && output.stderr.is_empty(), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn through_pipes_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    disk(dir);
    shell(dir, "cowhand stream -o force_size=on a.raw - | cowhand stream -q - b.qcow2");
    good(dir, &["compare", "a.raw", "b.qcow2"]);
    // The size is there before the bytes are, for who needs it first.
    let script = "cowhand stream --size-to /dev/fd/3 b.qcow2 - 3>size >c.vhd; cowhand stream --size - <c.vhd; cat size";
    let sizes = shell(dir, script);
    let len = fs::metadata(dir.join("c.vhd")).unwrap().len();
    assert_eq!(sizes, format!("{len}\n{len}\n"));
    // Named pipes are streams too.
    shell(dir, "cowhand stream -q <(cat c.vhd) d.raw && cowhand stream -q -O raw a.raw chain.tgz");
    good(dir, &["compare", "a.raw", "d.raw"]);
    let head = shell(dir, "cowhand stream --head - <c.vhd");
    let head: serde_json::Value = serde_json::from_str(&head).unwrap();
    assert_eq!((head["format"].as_str(), head["file-length"].as_u64()), (Some("vpc"), Some(len)));
    let done = good(dir, &["stream", "--output=json", "chain.tgz", "e.qcow2"]);
    let done: serde_json::Value = serde_json::from_str(&done).unwrap();
    assert_eq!((done["layers"].as_u64(), done["virtual-size"].as_u64()), (Some(1), Some(5 << 20)));
    let said = good(dir, &["stream", "c.vhd", "f.tar.gz"]);
    assert!(said.starts_with("c.vhd (vpc) -> f.tar.gz (vpc): 5") && said.lines().count() == 1, "{said}");
    let said = good(dir, &["stream", "f.tar.gz", "out/"]);
    assert!(said.starts_with("f.tar.gz (vpc) -> out/ (vpc): 5"), "{said}");
    assert_eq!(names(&dir.join("out")), ["0.vhd"]);
}

#[test]
fn what_cannot_be_known_has_a_status_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    assert!(bad(dir.path(), &["stream", "--size", "-f", "raw", "a.raw"], 3).contains("cannot know"));
    assert!(bad(dir.path(), &["stream", "--size", "a.raw"], 1).contains("pass -f with one of vpc, raw"));
    assert!(bad(dir.path(), &["stream", "--size", "gone"], 1).contains("No such file or directory"));
}

#[test]
fn what_makes_no_sense_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    disk(dir);
    for (words, part) in [
        (&["stream", "a.raw"][..], "no target was named"),
        (&["stream", "a.raw", "b.qcow2"], "use cowhand convert"),
        (&["stream", "-O", "qcow2", "a.raw", "-"], "what can is vpc, raw"),
        (&["stream", "-O", "nothing", "a.raw", "-"], "Unknown file format"),
        (&["stream", "--output=json", "a.raw", "-"], "standard output takes the stream"),
        (&["stream", "--size-to", "x", "a.raw", "b.tgz"], "--size-to"),
        (&["stream", "-", "b.qcow2"], "does not tell its format"),
        (&["stream", "-f", "vpc", "-", "b.qcow2"], "standard input"),
        (&["stream", "a.raw", "http:///x"], "names no server"),
        (&["stream", "-H", "nothing", "http://127.0.0.1:1/", "b.raw"], "colon"),
        (&["stream", "--cacert", "a.raw", "https://127.0.0.1:1/", "b.raw"], "no certificate"),
        (
            &["stream", "http://127.0.0.1:1/?secret=abcdef", "b.raw"],
            "http://127.0.0.1:1/: cannot get it: Connection refused",
        ),
    ] {
        let said = bad(dir, words, 1);
        assert!(said.contains(part) && !said.contains("abcdef"), "{words:?}: {said}");
        assert_eq!(names(dir), ["a.raw"], "{words:?}");
    }
}

#[test]
fn a_wish_to_stop_is_heard_while_nothing_comes() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    assert!(cowhand(dir.path(), &["stream", "-O", "raw", "a.raw", "a.tgz"]).status.success());
    let mut child = command(PROGRAM, dir.path(), &["stream", "-f", "raw", "--length", "8M", "-", "b.qcow2"]);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let child = child.stdin(reader).spawn().unwrap();
    std::io::Write::write_all(&mut writer, &noise(600_000)).unwrap();
    common::wait_until(|| names(dir.path()).len() > 2);
    assert!(run("kill", dir.path(), &["-INT", &child.id().to_string()]).status.success());
    let said = one_line(&finish(child), 130);
    assert!(said.contains("stopped on request"), "{said}");
    assert_eq!(names(dir.path()), ["a.raw", "a.tgz"]);
}
