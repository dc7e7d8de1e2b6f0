//! Files as block devices, where the machine can do that.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run;

/// A loop device over a file, until this is dropped.
#[derive(Debug)]
pub struct Loop(pub PathBuf);

impl Loop {
    /// `None`, and says so, where that cannot be done.
    pub fn over(file: &Path) -> Option<Loop> {
        let ran = run(Command::new("losetup").args(["--find", "--show"]).arg(file));
        if !ran.ok() {
            eprintln!("SKIPPED: losetup: {}", ran.err.trim());
            return None;
        }
        Some(Loop(ran.out.trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run(Command::new("losetup").arg("--detach").arg(&self.0));
    }
}
