//! `completions`: what a shell needs to complete our words.

use clap::builder::PossibleValuesParser;
use clap_complete::Shell;

use crate::described;
use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// Print the completions for a shell
///
/// Of this program, or of one of the tools whose names it answers to.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand completions bash > /etc/bash_completion.d/cowhand
  cowhand completions zsh > ~/.zfunc/_cowhand
  cowhand completions fish > ~/.config/fish/completions/cowhand.fish
  cowhand completions bash qemu-img > /etc/bash_completion.d/qemu-img")]
pub(crate) struct Args {
    /// The shell
    shell: Shell,

    /// Cowhand itself, or a name that install-links makes
    #[arg(
        value_name = "NAME",
        default_value = "cowhand",
        value_parser = PossibleValuesParser::new(described::names()),
        hide_possible_values = true
    )]
    name: String,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut described::command(&args.name), &args.name, &mut text);
    out.write_all(&text)?;
    Ok(DONE)
}
