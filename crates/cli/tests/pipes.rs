//! Where the words go: closed pipes, full disks and no terminal, whatever the surroundings are, and nothing where all is well.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // These are tests, helpers included.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use common::{PROGRAM, bad, command, finish, good, has, names, noise};

/// Runs it in a shell, where `$cowhand` is the program and qemu-img is it too.
fn shell(dir: &Path, script: &str) -> Output {
    let bin = dir.join("bin");
    if !bin.exists() {
        fs::create_dir(&bin).unwrap();
        symlink(PROGRAM, bin.join("qemu-img")).unwrap();
        symlink(PROGRAM, bin.join("cowhand")).unwrap();
    }
    let script = format!("PATH='{}':$PATH; {script}", bin.display());
    finish(command("sh", dir, &["-c", &script]).spawn().unwrap())
}

fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8(output.stderr.clone()).unwrap())
}

fn with_image() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    good(dir.path(), &["create", "-q", "a.qcow2", "4M"]);
    dir
}

const CALLS: &[&str] = &[
    "cowhand info a.qcow2",
    "cowhand info --output=json a.qcow2",
    "cowhand --help",
    "cowhand convert --help",
    "cowhand formats",
    "cowhand man -",
    "cowhand completions bash",
    "qemu-img --help",
    "qemu-img snapshot --help",
    "qemu-img snapshot -l a.qcow2",
];

#[test]
fn a_pipe_is_no_target_of_an_image_and_it_is_said_what_writes_into_one() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.raw"), noise(4096)).unwrap();
    assert!(Command::new("mkfifo").arg(dir.path().join("pipe")).status().unwrap().success());
    for target in ["/dev/stdout", "pipe"] {
        let said = bad(dir.path(), &["convert", "-O", "vma", "a.raw", target], 1);
        assert!(said.contains("is a pipe") && said.contains("'cowhand stream'"), "{said}");
        assert!(said.starts_with(&format!("cowhand: {target}: ")), "{said}");
    }
}

#[test]
fn who_reads_no_further_is_no_failure() {
    let dir = with_image();
    for call in CALLS {
        let script = format!("{{ {call}; echo \"status $?\" >&2; }} | head -c 1 >/dev/null");
        assert_eq!(said(&shell(dir.path(), &script)).1, "status 0\n", "{call}");
        let script = format!("{{ {call}; echo \"status $?\" >&2; }} | true");
        assert_eq!(said(&shell(dir.path(), &script)).1, "status 0\n", "{call}");
        assert_eq!(said(&shell(dir.path(), &format!("{call} >&-"))), (Some(0), String::new()), "{call}");
        assert_eq!(said(&shell(dir.path(), &format!("{call} >&- 2>&-"))), (Some(0), String::new()), "{call}");
    }
}

/// What cannot be written is lost, and that is told once; not where everything is to be as QEMU does it.
#[test]
fn a_full_disk_is_told() {
    let dir = with_image();
    good(dir.path(), &["snapshot", "-c", "one", "a.qcow2"]);
    for call in CALLS {
        let (status, text) = said(&shell(dir.path(), &format!("{call} >/dev/full")));
        assert_eq!(status, Some(1), "{call}: {text}");
        assert!(text.contains("standard output: No space left on device"), "{call}: {text}");
        assert_eq!(text.lines().count(), 1, "{call}: {text}");
    }
    let as_qemu = shell(dir.path(), "COWHAND_COMPAT=qemu qemu-img snapshot -l a.qcow2 >/dev/full");
    assert_eq!(said(&as_qemu), (Some(0), String::new()));
}

#[test]
fn complaints_that_nobody_takes_change_nothing() {
    let dir = with_image();
    for call in ["cowhand info nope", "cowhand frobnicate", "qemu-img snapshot nope", "qemu-img frobnicate"] {
        for to in ["/dev/full", "&-"] {
            let output = shell(dir.path(), &format!("{call} 2>{to}"));
            assert_eq!(output.status.code(), Some(1), "{call} 2>{to}: {output:?}");
        }
        let script = format!("{{ {call} 2>&1; echo \"status $?\" >&3; }} 3>&2 | true");
        assert_eq!(said(&shell(dir.path(), &script)).1, "status 1\n", "{call}");
    }
}

#[test]
fn the_surroundings_change_no_word() {
    let dir = with_image();
    for call in CALLS.iter().chain(&["cowhand info nope", "qemu-img snapshot nope"]) {
        // More than a pipe holds.
        let words = |around: &str| {
            let status = shell(dir.path(), &format!("{around} {call} >said 2>&1")).status;
            (status.code(), fs::read(dir.path().join("said")).unwrap())
        };
        let plain = words("LC_ALL=C");
        assert!(!plain.1.contains(&0x1b), "{call}");
        for around in [
            "LC_ALL=de_DE.UTF-8 LANGUAGE=de",
            "LC_ALL=tr_TR.UTF-8",
            "LC_ALL=C.UTF-8",
            "LC_ALL=C NO_COLOR=1",
            "LC_ALL=C TERM=xterm-256color CLICOLOR=1",
            "LC_ALL=C TERM=dumb",
        ] {
            assert!(words(around) == plain, "{around} {call}");
        }
    }
}

#[test]
fn no_colour_on_a_terminal_that_wants_none() {
    let dir = with_image();
    if !has("script") {
        return;
    }
    for call in CALLS {
        let script = format!("NO_COLOR=1 TERM=xterm-256color script -qec '{call}' said >/dev/null");
        let output = shell(dir.path(), &script);
        assert!(output.status.success(), "{call}: {output:?}");
        assert!(!fs::read(dir.path().join("said")).unwrap().contains(&0x1b), "{call}");
    }
}

/// Every verb at its work: what goes well says nothing on standard error.
#[test]
fn success_is_silent() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.raw"), noise(1 << 20)).unwrap();
    let calls = [
        "create a.qcow2 4M",
        "create -f vpc -o subformat=fixed fixed.vhd 1M",
        "convert a.raw base.qcow2",
        "convert -p -c a.raw packed.qcow2",
        "convert a.raw a.vhdx",
        "convert a.raw flat.vhd",
        "inspect a.qcow2",
        "info a.qcow2",
        "map base.qcow2",
        "compare a.raw base.qcow2",
        "bench -f raw -c 8 a.raw",
        "check base.qcow2",
        "child base.qcow2 top.qcow2",
        "child top.qcow2 upper.qcow2",
        "chain upper.qcow2",
        "commit upper.qcow2",
        "rebase -b base.qcow2 -F qcow2 upper.qcow2",
        "reconnect-parent upper.qcow2 base.qcow2",
        "merge top.qcow2",
        "flatten upper.qcow2 flat.qcow2",
        "compact flat.qcow2",
        "resize flat.qcow2 8M",
        "amend -o lazy_refcounts=on flat.qcow2",
        "snapshot -c one flat.qcow2",
        "dd if=a.raw of=copy.raw bs=64k count=2",
        "stream flat.vhd flat.tar.gz",
        "measure -O qcow2 a.raw",
        "bitmap --add base.qcow2 monday",
        "scan .",
        "allocated base.qcow2",
        "block-bitmap base.qcow2",
        "hidden fixed.vhd on",
        "kill-data flat.qcow2",
        "round-size 10000000",
        "size-by-file a.qcow2 10M",
        "vma create -d one=a.raw a.vma",
        "vma list a.vma",
        "vma verify a.vma",
        "vma extract a.vma disks",
        "formats",
        "install-links pages",
        "completions zsh",
        "doctor base.qcow2",
        "man pages",
    ];
    fs::create_dir(dir.path().join("pages")).unwrap();
    good(dir.path(), &["man", "pages"]);
    let verbs: Vec<String> = names(&dir.path().join("pages"))
        .iter()
        .filter_map(|page| Some(page.strip_prefix("cowhand-")?.strip_suffix(".1")?.to_owned()))
        .filter(|verb| !verb.starts_with("vma-") && !verb.starts_with("as-"))
        .collect();
    let verb_of = |call: &&str| call.split(' ').next().unwrap_or_default().to_owned();
    for verb in &verbs {
        assert!(calls.iter().any(|call| verb_of(call) == *verb), "nothing is tried of {verb}");
    }
    for call in calls.iter().filter(|call| verbs.contains(&verb_of(call))) {
        let output = shell(dir.path(), &format!("cowhand {call} >/dev/null"));
        assert!(output.status.success() && output.stderr.is_empty(), "{call}: {output:?}");
    }
}
