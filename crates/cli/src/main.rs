//! The program: words in, one verb done, an exit status out.

#![forbid(unsafe_code)]

mod cli;
mod consumer;
mod described;
mod exit;
mod keys;
mod objects;
mod output;
mod page;
mod patient;
mod persona;
mod progress;
mod signals;
mod sizes;
mod sources;
mod verbs;
mod work;

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let persona = words.split_first().and_then(|(name, rest)| Some((persona::called(name)?, rest)));
    ExitCode::from(match persona {
        Some((persona, rest)) => persona.run(rest),
        None => cli::run(words),
    })
}
