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
    out.write_all(script(args.shell, &args.name).as_bytes())?;
    Ok(DONE)
}

fn script(shell: Shell, name: &str) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut described::command(name), name, &mut text);
    // The generator spells a hyphen of the program's name in two ways, and so would never find a verb's flags in bash.
    let state = |hyphen: &str| format!("{}__subcmd__", name.replace('-', hyphen));
    String::from_utf8_lossy(&text).replace(&state("__subcmd__"), &state("__"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_of_bash_is_one_that_it_knows() {
        for name in described::names() {
            let script = script(Shell::Bash, name);
            let states = script.split("cmd=\"").skip(1).filter_map(|rest| rest.split('"').next());
            let states: Vec<&str> = states.filter(|state| !state.is_empty()).collect();
            assert!(states.len() > 4, "{name}: {states:?}");
            for state in states {
                assert!(script.lines().any(|line| line.trim() == format!("{state})")), "{name}: {state}");
            }
        }
    }
}
