//! `convert --resume`: killed at any moments, run again until it is done.
#![allow(clippy::panic, clippy::print_stdout, clippy::unwrap_used)] // These are tests, helpers included.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{PROGRAM, bad, command, finish, good, has, names, noise, run, wait_until};

/// 6 MiB of which every third is zero.
fn source(dir: &Path) -> Vec<u8> {
    let mut bytes = noise(6 << 20);
    for third in bytes.chunks_mut(3 << 18) {
        let len = third.len();
        third[len / 3 * 2..].fill(0);
    }
    fs::write(dir.join("source.raw"), &bytes).unwrap();
    bytes
}

/// Kills it a while after it has noted that it came further than before.
fn attempt(dir: &Path, words: &[&str], after: u64) {
    let target = words.last().unwrap();
    let noted = || fs::read(dir.join(format!(".{target}.resume"))).ok();
    let before = noted();
    let mut child = command(PROGRAM, dir, words).spawn().unwrap();
    wait_until(|| noted().is_some_and(|now| Some(now) != before) || child.try_wait().unwrap().is_some());
    std::thread::sleep(Duration::from_millis(after));
    assert!(child.try_wait().unwrap().is_none(), "it ended before: {:?}", finish(child));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The bytes that the last run wrote, and those that it found there, from its one line.
fn in_mib(line: &str, what: &str) -> f64 {
    let end = line.find(what).unwrap_or_else(|| panic!("{line}"));
    let start = line[..end].trim_end().rfind([',', ':']).unwrap() + 1;
    let (number, unit) = line[start..end].trim().split_once(' ').unwrap();
    let scale = match unit.trim() {
        "MiB" => 1.0,
        "KiB" => 1.0 / 1024.0,
        _ => panic!("{line}"),
    };
    number.parse::<f64>().unwrap() * scale
}

#[test]
fn killed_again_and_again_it_goes_on() {
    let cases: [(&str, &[&str]); 3] =
        [("raw", &[]), ("qcow2", &["-o", "cluster_size=16k"]), ("qcow2", &["-c", "-o", "extended_l2=off"])];
    let mut state = 0x1234_5678_u64;
    for (format, more) in cases {
        let dir = tempfile::tempdir().unwrap();
        source(dir.path());
        let target = format!("target.{format}");
        let mut words = vec!["convert", "--resume", "-r", "800k", "-m", "1"];
        words.extend(more);
        words.extend(["source.raw", &target]);
        // Each gets further than the one before; 4 MiB at this rate take about 5 seconds.
        for _ in 0..2 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            attempt(dir.path(), &words, (state >> 33) % 300);
            let left = names(dir.path());
            assert!(left.contains(&format!(".{target}.resume")), "{format}: {left:?}");
            assert!(!left.contains(&target), "{format}: {left:?}");
        }
        // Now in one go, at full speed.
        words.retain(|word| !["-r", "800k"].contains(word));
        let line = good(dir.path(), &words);
        assert!(in_mib(&line, "done before") > 1.0, "{line}");
        assert!(in_mib(&line, "written") < 3.2, "anew it would be 4 MiB: {line}");
        assert_eq!(names(dir.path()), ["source.raw", &target], "{format}");
        good(dir.path(), &["compare", "source.raw", &target]);
        if format == "qcow2" && has("qemu-img") {
            let check = run("qemu-img", dir.path(), &["check", &target]);
            assert!(check.status.success(), "{check:?}");
        }
    }
}

#[test]
fn an_interrupt_leaves_what_is_needed_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    source(dir.path());
    let words = ["convert", "--resume", "-m", "1", "-r", "1000k", "source.raw", "target.qcow2"];
    let child = command(PROGRAM, dir.path(), &words).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1000));
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let line = good(dir.path(), &["convert", "--resume", "--verify", "source.raw", "target.qcow2"]);
    assert!(line.contains("done before"), "{line}");
    good(dir.path(), &["compare", "source.raw", "target.qcow2"]);
}

#[test]
fn what_does_not_fit_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = source(dir.path());
    let slow = ["convert", "--resume", "-r", "1000k", "-m", "1", "source.raw", "target.qcow2"];
    let again = |what: &str, words: &[&str]| {
        let line = good(dir.path(), words);
        assert!(!line.contains("done before"), "{what}: {line}");
        good(dir.path(), &["compare", "source.raw", "target.qcow2"]);
        assert_eq!(names(dir.path()), ["source.raw", "target.qcow2"], "{what}");
        fs::remove_file(dir.path().join("target.qcow2")).unwrap();
    };
    let full = ["convert", "--resume", "source.raw", "target.qcow2"];
    // Other options.
    attempt(dir.path(), &slow, 50);
    again("options", &["convert", "--resume", "-o", "cluster_size=4k", "source.raw", "target.qcow2"]);
    // Another source.
    attempt(dir.path(), &slow, 50);
    bytes[17] ^= 1;
    fs::write(dir.path().join("source.raw"), &bytes).unwrap();
    again("source", &full);
    // A partial that is not what the sidecar says: the last stretch differs.
    attempt(dir.path(), &slow, 50);
    let partial = dir.path().join(".target.qcow2.partial-resume");
    let len = fs::metadata(&partial).unwrap().len();
    fs::write(&partial, vec![0x55; len as usize]).unwrap();
    again("partial", &full);
    // No sidecar.
    attempt(dir.path(), &slow, 50);
    fs::remove_file(dir.path().join(".target.qcow2.resume")).unwrap();
    again("sidecar", &full);
    // A format that is only written fresh ends all the same.
    let line = good(dir.path(), &["convert", "--resume", "source.raw", "target.vhdx"]);
    assert!(!line.contains("done before"), "{line}");
    let said = bad(dir.path(), &["convert", "--resume", "-n", "source.raw", "target.vhdx"], 1);
    assert!(said.contains("--resume"), "{said}");
}
