//! Running the program and its peer, never for longer than a minute.
#![allow(dead_code, clippy::print_stdout, clippy::unwrap_used)] // Not every test file uses everything; these are tests.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_cowhand");
const LIMIT: Duration = Duration::from_secs(60);

/// A command in `dir`, with nothing on standard input, that says what it says in English.
pub(crate) fn command(program: &str, dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(words).current_dir(dir).env("LC_ALL", "C").env("TZ", "UTC");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end. What it prints is taken meanwhile, so that it never waits for room in a pipe.
pub(crate) fn finish(mut child: Child) -> Output {
    fn taken(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
        let mut bytes = Vec::new();
        spawn(move || {
            if let Some(mut pipe) = pipe {
                pipe.read_to_end(&mut bytes).unwrap();
            }
            bytes
        })
    }
    let (out, err) = (taken(child.stdout.take()), taken(child.stderr.take()));
    wait_until(|| child.try_wait().unwrap().is_some());
    let ended = child.try_wait().unwrap().is_some();
    if !ended {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    assert!(ended, "it did not end in time");
    Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

pub(crate) fn run(program: &str, dir: &Path, words: &[&str]) -> Output {
    finish(command(program, dir, words).spawn().unwrap())
}

pub(crate) fn cowhand(dir: &Path, words: &[&str]) -> Output {
    run(PROGRAM, dir, words)
}

/// The program did it, and said nothing on standard error. What it printed.
pub(crate) fn good(dir: &Path, words: &[&str]) -> String {
    let output = cowhand(dir, words);
    assert!(output.status.success() && output.stderr.is_empty(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The program refused, with one line and this status. What it said.
pub(crate) fn bad(dir: &Path, words: &[&str], status: i32) -> String {
    one_line(&cowhand(dir, words), status)
}

pub(crate) fn one_line(output: &Output, status: i32) -> String {
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(said.starts_with("cowhand: ") && said.ends_with('\n') && said.lines().count() == 1, "{said}");
    said
}

/// Waits until `ready`, and no longer than the limit.
pub(crate) fn wait_until(mut ready: impl FnMut() -> bool) {
    let since = Instant::now();
    while !ready() && since.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The names in `dir`, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Bytes that are nowhere zero and differ from sector to sector.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend((state | 0x0101_0101_0101_0101).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// True where that tool is there; otherwise it is said that the test is skipped.
pub(crate) fn has(tool: &str) -> bool {
    let there = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        println!("skipped: there is no {tool}");
    }
    there
}

/// True for qemu-img 10, whose very words are compared; otherwise it is said that the test is skipped.
pub(crate) fn has_qemu_img_10() -> bool {
    let Ok(output) = Command::new("qemu-img").arg("--version").output() else {
        println!("skipped: there is no qemu-img");
        return false;
    };
    let version = String::from_utf8_lossy(&output.stdout);
    let ten = version.starts_with("qemu-img version 10.");
    if !ten {
        println!("skipped: the text of qemu-img 10 is compared, and here is {version}");
    }
    ten
}
