//! Every verb's exact words and exit status, as written in `tests/cmd/*.trycmd`, and so those of the other names' tools.
#![allow(clippy::unwrap_used)] // A test.

use std::os::unix::fs::symlink;

/// The names that the program answers to beside its own.
const NAMES: [&str; 4] = ["qemu-img", "qcow2_helper", "vhd-util", "vma"];

#[test]
fn words_and_statuses() {
    let folder = tempfile::tempdir().unwrap();
    let cases = trycmd::TestCases::new();
    for name in NAMES {
        let link = folder.path().join(name);
        symlink(env!("CARGO_BIN_EXE_cowhand"), &link).unwrap();
        cases.register_bin(name, link.as_path());
    }
    cases.case("tests/cmd/*.trycmd").timeout(std::time::Duration::from_secs(60));
    // The cases run when they are dropped, and the links are there until then.
    drop(cases);
}
