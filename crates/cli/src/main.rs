//! The program: words in, one verb done, an exit status out.

#![forbid(unsafe_code)]

mod cli;
mod consumer;
mod exit;
mod keys;
mod output;
mod progress;
mod signals;
mod sizes;
mod sources;
mod verbs;
mod work;

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(cli::run(std::env::args_os().collect()))
}
