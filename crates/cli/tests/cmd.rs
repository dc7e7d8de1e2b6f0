//! Every verb's exact words and exit status, as written in `tests/cmd/*.trycmd`.
#![allow(clippy::unwrap_used)] // A test.

use std::os::unix::fs::symlink;
use std::time::Duration;

/// Names that the program is called by there, beside its own.
const NAMES: [&str; 1] = ["vhd-util"];

#[test]
fn words_and_statuses() {
    let links = tempfile::tempdir().unwrap();
    let cases = trycmd::TestCases::new();
    for name in NAMES {
        let link = links.path().join(name);
        symlink(env!("CARGO_BIN_EXE_cowhand"), &link).unwrap();
        cases.register_bin(name, link);
    }
    // It runs when it is dropped, and needs the links until then.
    cases.case("tests/cmd/*.trycmd").timeout(Duration::from_secs(60));
    drop(cases);
}
