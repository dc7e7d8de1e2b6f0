//! `man`: the manual pages.

use std::path::{Path, PathBuf};

use clap::Command;
use clap_mangen::Man;
use cowhand::{Error, Result};

use crate::cli;
use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// Write the manual pages
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand man /usr/local/share/man/man1
  cowhand man - | man -l -")]
pub(crate) struct Args {
    /// The folder for one page per verb, or - for all on standard output
    folder: PathBuf,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let mut whole = cli::command();
    whole.build();
    let mut pages = vec![page(&whole, "cowhand")?];
    for verb in whole.get_subcommands() {
        pages.push(page(verb, &format!("cowhand-{}", verb.get_name()))?);
    }
    for (name, text) in pages {
        if args.folder == Path::new("-") {
            out.write_all(&text)?;
        } else {
            let path = args.folder.join(format!("{name}.1"));
            std::fs::write(&path, text)
                .map_err(|error| Error::io("cannot write", error).image(path.display()))?;
        }
    }
    Ok(DONE)
}

fn page(command: &Command, name: &str) -> Result<(String, Vec<u8>)> {
    let mut text = Vec::new();
    // A verb's own name has the space that is typed; a page's has the hyphen that `man` wants.
    Man::new(command.clone())
        .title(name)
        .render(&mut text)
        .map_err(|error| Error::io("cannot make the manual", error))?;
    Ok((name.to_owned(), text))
}
