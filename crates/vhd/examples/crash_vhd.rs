//! Cuts the power many times: `cargo run -p cowhand-vhd --example crash_vhd -- [STATES [CONFIGURATION [SEED]]]`.
//! Prints one table; docs/crash.md holds one.

#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::process::ExitCode;

use common::crash::{CONFIGURATIONS, cut};
use cowhand_core::testing::crash_run;

fn main() -> ExitCode {
    crash_run(CONFIGURATIONS, |one| one.name, |one, seed| cut(one, seed, 400))
}
