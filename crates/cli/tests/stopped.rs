//! What is left when the program is stopped, or has no room: the old target, untouched, and nothing else.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // These are tests, helpers included.

mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{PROGRAM, bad, command, finish, good, names, noise, one_line, wait_until};

const OLD: &[u8] = b"what was there before";

/// A folder with a source of 4 MiB and an old target, and a conversion under way that would take a minute.
fn under_way(words: &[&str]) -> (tempfile::TempDir, Child) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("source.raw"), noise(4 << 20)).unwrap();
    fs::write(dir.path().join("target.qcow2"), OLD).unwrap();
    let mut all = vec!["convert", "-r", "64k", "source.raw", "target.qcow2"];
    all.extend(words);
    let child = command(PROGRAM, dir.path(), &all).spawn().unwrap();
    wait_until(|| partial(dir.path()).is_some_and(|name| size(&dir.path().join(name)) > 0));
    assert!(partial(dir.path()).is_some(), "{:?}", names(dir.path()));
    (dir, child)
}

fn partial(dir: &Path) -> Option<String> {
    names(dir).into_iter().find(|name| name.starts_with(".target.qcow2.partial-"))
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}

fn signal(child: &Child, name: &str) {
    let done = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(done.success());
}

#[test]
fn an_interrupt_takes_the_partial_away() {
    for name in ["INT", "TERM", "HUP", "QUIT", "XCPU", "ALRM"] {
        let (dir, child) = under_way(&[]);
        signal(&child, name);
        let said = one_line(&finish(child), 130);
        assert!(said.contains("stopped on request"), "{said}");
        assert_eq!(names(dir.path()), ["source.raw", "target.qcow2"]);
        assert_eq!(fs::read(dir.path().join("target.qcow2")).unwrap(), OLD);
    }
}

/// Both come before the program can go on: the first asks it to tidy up, the second does not wait for that.
#[test]
fn a_second_signal_ends_it_at_once() {
    let (dir, child) = under_way(&[]);
    // More than it has threads: two that are handled at once would each be the first.
    for name in ["STOP", "INT", "TERM", "HUP", "QUIT", "XCPU", "ALRM", "CONT"] {
        signal(&child, name);
    }
    let output = finish(child);
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(130), &b""[..]));
    assert!(partial(dir.path()).is_some());
    assert_eq!(fs::read(dir.path().join("target.qcow2")).unwrap(), OLD);
}

#[test]
fn an_interrupt_is_heard_while_standard_input_gives_nothing() {
    for name in ["INT", "TERM"] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("target.qcow2"), OLD).unwrap();
        let mut waiting = command(PROGRAM, dir.path(), &["dd", "-O", "qcow2", "of=target.qcow2", "osize=4M"]);
        let child = waiting.stdin(Stdio::piped()).spawn().unwrap();
        wait_until(|| partial(dir.path()).is_some_and(|name| size(&dir.path().join(name)) > 0));
        signal(&child, name);
        // Standard input stays open until it has ended.
        let said = one_line(&finish(child), 130);
        assert!(said.contains("stopped on request"), "{said}");
        assert_eq!(names(dir.path()), ["target.qcow2"]);
        assert_eq!(fs::read(dir.path().join("target.qcow2")).unwrap(), OLD);
    }
}

#[test]
fn what_was_to_be_ignored_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("source.raw"), noise(1 << 20)).unwrap();
    let script = format!("trap '' HUP; exec '{PROGRAM}' convert -r 512k source.raw target.qcow2");
    let child = command("sh", dir.path(), &["-c", &script]).spawn().unwrap();
    wait_until(|| partial(dir.path()).is_some());
    signal(&child, "HUP");
    signal(&child, "HUP");
    let output = finish(child);
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    assert_eq!(names(dir.path()), ["source.raw", "target.qcow2"]);
}

#[test]
fn it_says_how_far_it_has_come_when_it_is_asked() {
    let (_dir, child) = under_way(&[]);
    signal(&child, "USR1");
    std::thread::sleep(Duration::from_millis(200));
    signal(&child, "INT");
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    let first = said.lines().next().unwrap();
    assert!(first.starts_with("    (") && first.ends_with("/100%)"), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
}

/// The program catches that signal by now.
fn listens(child: &Child, signal: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let caught =
        status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim().to_owned();
    u64::from_str_radix(&caught, 16).unwrap() & (1 << (signal - 1)) != 0
}

/// Standard input that gives nothing, standard output that is full, and named pipes with no other end.
#[test]
fn an_interrupt_is_heard_while_the_other_end_of_a_pipe_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.raw"), noise(16 << 20)).unwrap();
    assert!(Command::new("mkfifo").arg(dir.path().join("pipe")).status().unwrap().success());
    let before = names(dir.path());
    let disk = "disk=a.raw";
    for words in [
        &["vma", "list", "-"][..],
        &["vma", "config", "-"],
        &["vma", "verify", "-"],
        &["vma", "extract", "-", "out"],
        &["vma", "extract", "-r", "pipe", "-", "out"],
        &["vma", "list", "pipe"],
        &["vma", "create", "pipe", "-d", disk],
        &["vma", "create", "-", "-d", disk],
        &["vma", "create", "/dev/stdout", "-d", disk],
        &["vma", "create", "exec:exec sleep 20 2>&-", "-d", disk],
        &["stream", "pipe", "b.raw"],
        &["stream", "a.raw", "-"],
        &["dd", "if=a.raw", "bs=1M"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut waiting = command(PROGRAM, dir.path(), words);
        let child = waiting.stdin(Stdio::piped()).stdout(writer).spawn().unwrap();
        wait_until(|| listens(&child, 2));
        std::thread::sleep(Duration::from_millis(150));
        let since = Instant::now();
        signal(&child, "INT");
        let said = one_line(&finish(child), 130);
        assert!(said.contains("stopped on request"), "{words:?}: {said}");
        assert!(since.elapsed() < Duration::from_secs(10), "{words:?}");
        assert_eq!(names(dir.path()), before, "{words:?}");
        drop(reader);
    }
}

/// Ctrl-C ends the command that takes the archive too, which is not why there is none.
#[test]
fn an_interrupt_of_all_is_no_fault_of_the_command() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.raw"), noise(16 << 20)).unwrap();
    let words = ["vma", "create", "exec:sleep 20; cat >out", "-d", "disk=a.raw"];
    let child = command(PROGRAM, dir.path(), &words).process_group(0).spawn().unwrap();
    wait_until(|| listens(&child, 2));
    std::thread::sleep(Duration::from_millis(300));
    let all = format!("-{}", child.id());
    assert!(Command::new("kill").args(["-s", "INT", "--", &all]).status().unwrap().success());
    let said = one_line(&finish(child), 130);
    assert!(said.contains("stopped on request"), "{said}");
}

/// Stopped in the middle, the disk reads the same, and the work can be done again.
#[test]
fn an_interrupt_of_what_changes_a_chain_loses_nothing() {
    for words in [
        &["commit", "-t", "directsync", "top.qcow2"][..],
        &["rebase", "-t", "directsync", "-b", "other.qcow2", "-F", "qcow2", "top.qcow2"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        fs::write(at.join("noise.raw"), noise(16 << 20)).unwrap();
        good(at, &["convert", "-o", "cluster_size=4k", "noise.raw", "base.qcow2"]);
        good(at, &["create", "-q", "-o", "cluster_size=4k", "other.qcow2", "16M"]);
        good(at, &["child", "base.qcow2", "top.qcow2"]);
        if words.contains(&"commit") {
            fs::write(at.join("more.raw"), [noise(16 << 20), vec![0; 1 << 20]].concat()).unwrap();
            good(at, &["resize", "-q", "top.qcow2", "17M"]);
            good(at, &["convert", "-n", "-O", "qcow2", "more.raw", "top.qcow2"]);
        }
        let before = good(at, &["convert", "top.qcow2", "before.raw"]);
        let file = if words.contains(&"commit") { "base.qcow2" } else { "top.qcow2" };
        let written = || fs::metadata(at.join(file)).map(|found| found.modified().unwrap()).unwrap();
        let old = written();
        let child = command(PROGRAM, at, words).spawn().unwrap();
        wait_until(|| written() != old);
        signal(&child, "INT");
        let output = finish(child);
        assert_eq!(output.status.code(), Some(130), "{before}{words:?}: {output:?}");
        good(at, &["compare", "top.qcow2", "before.raw"]);
        good(at, &["check", "-q", "top.qcow2"]);
        good(at, words);
        good(
            at,
            &["compare", if words.contains(&"commit") { "base.qcow2" } else { "top.qcow2" }, "before.raw"],
        );
    }
}

#[test]
fn an_interrupt_ends_the_writing_of_space_in_advance() {
    for target in ["target.raw", "target.qcow2", "target.vhd", "target.vhdx"] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(target), OLD).unwrap();
        let fixed = if target.contains("vhd") { ",subformat=fixed" } else { "" };
        let options = format!("preallocation=full{fixed}");
        // So much that it is not written before it is stopped.
        let child = command(PROGRAM, dir.path(), &["create", target, "4G", "-o", &options]).spawn().unwrap();
        let partial = || names(dir.path()).into_iter().find(|name| name.contains(".partial-"));
        wait_until(|| partial().is_some_and(|name| size(&dir.path().join(name)) > 0));
        signal(&child, "INT");
        let said = one_line(&finish(child), 130);
        assert!(said.contains("stopped on request"), "{said}");
        assert_eq!(names(dir.path()), [target]);
        assert_eq!(fs::read(dir.path().join(target)).unwrap(), OLD);
    }
}

#[test]
fn an_interrupt_leaves_the_partial_where_that_was_asked_for() {
    let (dir, child) = under_way(&["--keep-partial"]);
    signal(&child, "INT");
    one_line(&finish(child), 130);
    assert!(partial(dir.path()).is_some());
    assert_eq!(fs::read(dir.path().join("target.qcow2")).unwrap(), OLD);
}

#[test]
fn a_kill_leaves_only_the_partial_name() {
    let (dir, mut child) = under_way(&[]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(names(dir.path()).len(), 3, "{:?}", names(dir.path()));
    assert!(partial(dir.path()).is_some());
    assert_eq!(fs::read(dir.path().join("target.qcow2")).unwrap(), OLD);
    // Nothing stands in the way of trying again.
    good(dir.path(), &["convert", "--verify", "source.raw", "target.qcow2"]);
}

/// The limit of sizes stands for a full disk where no small file system can be mounted.
#[test]
fn at_the_file_size_limit_the_old_target_stays() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("source.raw"), noise(4 << 20)).unwrap();
    for target in ["target.raw", "target.qcow2", "target.vhd", "target.vhdx"] {
        fs::write(dir.path().join(target), OLD).unwrap();
        let script = format!("ulimit -f 2048; exec '{PROGRAM}' convert source.raw {target}");
        let output = finish(command("sh", dir.path(), &["-c", &script]).spawn().unwrap());
        let said = one_line(&output, 1);
        assert!(said.contains("File too large"), "{said}");
        assert_eq!(names(dir.path()), ["source.raw", target]);
        assert_eq!(fs::read(dir.path().join(target)).unwrap(), OLD);
        fs::remove_file(dir.path().join(target)).unwrap();
    }
}

#[test]
fn on_a_full_disk_the_old_target_stays() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("source.raw"), noise(4 << 20)).unwrap();
    let small = dir.path().join("small");
    fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "none"]).arg(&small).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        println!("skipped: a small file system cannot be mounted here");
        return;
    }
    let target = small.join("target.qcow2");
    let name = target.to_str().unwrap();
    fs::write(&target, OLD).unwrap();
    let said = std::panic::catch_unwind(|| {
        let said = bad(dir.path(), &["convert", "source.raw", name], 1);
        let created = bad(dir.path(), &["create", "-f", "raw", "-o", "preallocation=full", name, "4M"], 1);
        (said, created, names(&small), fs::read(&target).unwrap())
    });
    let gone = Command::new("umount").arg(&small).status().unwrap();
    assert!(gone.success());
    let (said, created, left, old) = said.unwrap();
    assert!(said.contains("No space left on device"), "{said}");
    assert!(created.contains("No space left on device"), "{created}");
    assert_eq!(left, ["target.qcow2"]);
    assert_eq!(old, OLD);
}
