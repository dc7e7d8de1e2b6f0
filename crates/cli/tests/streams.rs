//! Standard input and output: pipes that end, disks that are full, sources that change.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // These are tests, helpers included.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::process::Stdio;

use common::{PROGRAM, bad, command, cowhand, finish, good, names, noise, one_line, run};

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    good(dir.path(), &["create", "-q", "a.raw", "1M"]);
    for words in ["man -", "--help", "info a.raw", "convert -p a.raw b.raw", "compare -p a.raw b.raw"] {
        // The shell closes its end before the program begins.
        let script = format!("{{ sleep 0.1; '{PROGRAM}' {words}; echo $? >status; }} | true");
        let output = run("sh", dir.path(), &["-c", &script]);
        assert!(output.stderr.is_empty(), "{words}: {output:?}");
        assert_eq!(fs::read_to_string(dir.path().join("status")).unwrap(), "0\n", "{words}");
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let Ok(full) = File::options().write(true).open("/dev/full") else {
        println!("skipped: there is no /dev/full");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let child = command(PROGRAM, dir.path(), &["formats"]).stdout(full).spawn().unwrap();
    assert!(one_line(&finish(child), 1).contains("No space left on device"));
}

#[test]
fn a_stream_is_judged_as_the_file_is() {
    let dir = tempfile::tempdir().unwrap();
    for image in ["a.qcow2", "a.vhd", "a.vhdx", "a.raw"] {
        good(dir.path(), &["create", "-q", image, "8M"]);
        let file = good(dir.path(), &["inspect", "--json", image]);
        let mut child =
            command(PROGRAM, dir.path(), &["inspect", "--json", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        let content = fs::read(dir.path().join(image)).unwrap();
        child.stdin.take().unwrap().write_all(&content).unwrap();
        let output = finish(child);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), file, "{image}");
    }
}

#[test]
fn a_source_that_changes_is_an_error_and_a_warning_with_force_share() {
    for share in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.raw"), noise(1 << 20)).unwrap();
        let words = ["convert", "-m", "1", "-r", "1M", "a.raw", "b.raw"];
        let words = if share { [&words[..], &["-U"]].concat() } else { words.to_vec() };
        let child = command(PROGRAM, dir.path(), &words).spawn().unwrap();
        common::wait_until(|| names(dir.path()).len() > 1);
        // Another program that heeds no locks.
        File::options().write(true).open(dir.path().join("a.raw")).unwrap().write_all(b"x").unwrap();
        let output = finish(child);
        if share {
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            let said = String::from_utf8(output.stdout).unwrap();
            assert!(said.starts_with("warning: a.raw: changed while it was read"), "{said}");
            assert!(output.stderr.is_empty());
        } else {
            assert!(one_line(&output, 1).contains("changed while it was read"));
            assert_eq!(names(dir.path()), ["a.raw"]);
        }
    }
}

#[test]
fn names_cannot_steer_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let name = "a\u{1b}[2J\n.raw";
    good(dir.path(), &["create", "-q", name, "1M"]);
    for words in [["info", name], ["map", name]] {
        assert!(!good(dir.path(), &words).contains('\u{1b}'));
    }
    assert!(good(dir.path(), &["convert", name, "b.raw"]).lines().count() == 1);
    let said = bad(dir.path(), &["info", "gone\u{1b}\n"], 1);
    assert!(!said.contains('\u{1b}'), "{said}");
}

#[test]
fn paths_outside_need_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join("in")).unwrap();
    good(dir, &["create", "-q", "base.qcow2", "1M"]);
    good(dir, &["create", "-q", "-f", "qcow2", "-b", "../base.qcow2", "-F", "qcow2", "in/top.qcow2"]);
    for verb in [&["map", "in/top.qcow2"][..], &["convert", "in/top.qcow2", "b.raw"]] {
        let said = bad(dir, verb, 1);
        assert!(said.contains("--paths local"), "{said}");
        good(dir, &[verb, &["--paths", "local"]].concat());
        good(dir, &[verb, &["--paths", "deny", "--paths", "allow=."]].concat());
        good(dir, &[verb, &["--paths=deny", "--parent", "base.qcow2"]].concat());
    }
    assert!(bad(dir, &["compare", "in/top.qcow2", "base.qcow2"], 2).contains("--paths"));
    assert_eq!(
        cowhand(dir, &["compare", "in/top.qcow2", "base.qcow2", "--paths", "any"]).status.code(),
        Some(0)
    );
    // Looking follows nothing.
    good(dir, &["info", "in/top.qcow2"]);
}

#[test]
fn manual_and_completions_come_from_the_one_definition() {
    let dir = tempfile::tempdir().unwrap();
    good(dir.path(), &["man", "."]);
    let pages = names(dir.path());
    assert!(
        pages.contains(&"cowhand.1".to_owned()) && pages.contains(&"cowhand-convert.1".to_owned()),
        "{pages:?}"
    );
    let page = fs::read_to_string(dir.path().join("cowhand-convert.1")).unwrap();
    assert!(page.contains("keep\\-partial") && page.contains("Examples:"), "{page}");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        assert!(good_large(dir.path(), &["completions", shell]).contains("keep-partial"), "{shell}");
    }
}

/// As `good`, for more than a pipe holds.
fn good_large(dir: &std::path::Path, words: &[&str]) -> String {
    let to = dir.join("printed");
    let child = command(PROGRAM, dir, words).stdout(File::create(&to).unwrap()).spawn().unwrap();
    assert!(finish(child).status.success());
    fs::read_to_string(to).unwrap()
}
