//! Runs `probe` (this package's program) and reads its answer.

use std::ffi::OsStr;
use std::process::Command;

use serde_json::Value;

use crate::command::{probe_program, run};

/// What an operation in a process of its own came to.
#[derive(Clone, Debug)]
pub struct Probed {
    /// What it answered; `None`: it failed.
    pub ok: Option<Value>,
    /// It could be opened; what failed came later.
    pub opened: bool,
    /// The kind of error, as it is spelt in Rust; empty if there was none.
    pub kind: String,
    /// The error's text.
    pub message: String,
    /// How long it took.
    pub ms: u64,
    /// What it took of the processors.
    pub cpu_ms: u64,
    /// The most memory it had.
    pub peak_kib: u64,
}

/// Runs the program `probe`. Panics where it did not end by itself, or ended by a panic.
pub fn probe<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Probed {
    let mut command = Command::new(probe_program());
    command.args(args);
    let ran = run(&mut command);
    assert!(ran.ok() && ran.err.is_empty(), "{command:?} ended with {:?}:\n{}", ran.code, ran.err);
    let answer: Value = serde_json::from_str(ran.out.trim()).unwrap();
    let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
    Probed {
        ok: answer.get("ok").cloned(),
        opened: answer["opened"] == true,
        kind: text("kind"),
        message: text("message"),
        ms: answer["ms"].as_u64().unwrap(),
        cpu_ms: answer["cpu_ms"].as_u64().unwrap(),
        peak_kib: answer["peak_kib"].as_u64().unwrap(),
    }
}
