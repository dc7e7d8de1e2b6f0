//! `completions`: what a shell needs to complete our words.

use clap_complete::Shell;

use crate::cli;
use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// Print the completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand completions bash > /etc/bash_completion.d/cowhand
  cowhand completions zsh > ~/.zfunc/_cowhand")]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut cli::command(), "cowhand", &mut text);
    out.write_all(&text)?;
    Ok(DONE)
}
