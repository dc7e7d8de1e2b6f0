//! `man`: the manual pages.

use std::path::{Path, PathBuf};

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use cowhand::{Error, Result};

use crate::exit::{DONE, EXIT, Outcome};
use crate::output::Output;
use crate::{described, page};

/// Write the manual pages
///
/// One for the program, one for each verb, and one for each of the tools whose names it answers to.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand man /usr/local/share/man/man1
  cowhand man - | man -l -")]
pub(crate) struct Args {
    /// The folder for the pages, or - for all on standard output
    folder: PathBuf,
}

/// What the environment may say.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("COWHAND_COMPAT", "With the value qemu: behave as QEMU's tools do where we are more careful by intent."),
    ("COWHAND_COMMIT_REPORT", "With the value 1: commit tells the bytes that it moved."),
    ("TZ", "The time zone in which times are shown."),
];

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let mut pages = Vec::new();
    for name in described::names() {
        let mut whole = described::command(name);
        whole.build();
        if name == "cowhand" {
            pages.push((name.to_owned(), first_page(&whole).map_err(failed)?));
            for verb in whole.get_subcommands().filter(|verb| verb.get_name() != "help") {
                pages.push(page_of(verb, &format!("cowhand-{}", verb.get_name()))?);
                for part in verb.get_subcommands().filter(|part| part.get_name() != "help") {
                    pages.push(page_of(part, &format!("cowhand-{}-{}", verb.get_name(), part.get_name()))?);
                }
            }
        } else {
            pages.push((tool_page_name(name), tool_page(&whole, name).map_err(failed)?));
        }
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

fn failed(error: std::io::Error) -> Error {
    Error::io("cannot make the manual", error)
}

fn page_of(command: &Command, name: &str) -> Result<(String, Vec<u8>)> {
    let mut text = Vec::new();
    // A verb's own name has the space that is typed; a page's has the hyphen that `man` wants.
    Man::new(command.clone()).title(name).render(&mut text).map_err(failed)?;
    Ok((name.to_owned(), text))
}

/// Of the program as a whole: its verbs by what they are for, its exit statuses, its environment.
fn first_page(command: &Command) -> std::io::Result<Vec<u8>> {
    let man = Man::new(command.clone()).title("cowhand");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    let mut roff = Roff::new();
    roff.control("SH", ["VERBS"]);
    for page::Group { title, verbs } in page::GROUPS {
        roff.control("SS", [*title]);
        for (verb, words) in *verbs {
            let about = command.find_subcommand(verb).and_then(Command::get_about);
            let about = about.map_or_else(|| (*words).to_owned(), ToString::to_string);
            entry(&mut roff, verb, &about);
        }
    }
    roff.control("SH", ["SIZES"]);
    roff.text([roman("Bytes, or a number with k, M, G, T, P or E (powers of 1024): 512k, 20M, 1.5G.")]);
    roff.control("SH", ["EXIT STATUS"]);
    EXIT.iter().for_each(|(status, meaning)| entry(&mut roff, &status.to_string(), meaning));
    roff.control("SH", ["ENVIRONMENT"]);
    ENVIRONMENT.iter().for_each(|(name, meaning)| entry(&mut roff, name, meaning));
    roff.control("SH", ["SEE ALSO"]);
    let others = described::names().skip(1).map(|name| format!("{}(1)", tool_page_name(name)));
    let verbs = page::GROUPS.iter().flat_map(|group| group.verbs).map(|(verb, _)| *verb);
    let verbs = verbs.filter(|verb| *verb != "help").map(|verb| format!("cowhand-{verb}(1)"));
    roff.text([roman(verbs.chain(others).collect::<Vec<_>>().join(", "))]);
    roff.to_writer(&mut text)?;
    Ok(text)
}

/// Neither the page of the tool itself, which may be installed beside, nor that of a verb which bears its name.
fn tool_page_name(tool: &str) -> String {
    format!("cowhand-as-{tool}")
}

/// Of a tool whose name the program answers to: all its verbs on one page.
fn tool_page(command: &Command, name: &str) -> std::io::Result<Vec<u8>> {
    let page = tool_page_name(name);
    let mut text = Vec::new();
    Man::new(command.clone()).title(&page).render_title(&mut text)?;
    let mut roff = Roff::new();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!("{page} - {about}"))]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([
        roman("Called by the name "),
        bold(name),
        roman(", as 'cowhand install-links' makes it, cowhand is that tool: it takes its words and prints its text."),
    ]);
    roff.control("SH", ["COMMANDS"]);
    for verb in command.get_subcommands() {
        let operands = verb.get_positionals().filter(|operand| !operand.is_hide_set());
        let operands = operands.filter_map(|operand| operand.get_value_names()?.first().cloned());
        let operands: Vec<String> = operands.map(|operand| operand.to_string()).collect();
        roff.control("SS", [format!("{name} {} {}", verb.get_name(), operands.join(" ")).trim_end()]);
        roff.text([roman(verb.get_about().map(ToString::to_string).unwrap_or_default())]);
        for flag in verb.get_arguments().filter(|flag| !flag.is_positional()) {
            let short = flag.get_short().map(|short| format!("-{short}"));
            let long = flag.get_long().map(|long| format!("--{long}"));
            let forms: Vec<String> = short.into_iter().chain(long).collect();
            let value = flag.get_value_names().and_then(<[_]>::first).map(|value| format!(" {value}"));
            let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
            entry(&mut roff, &format!("{}{}", forms.join(", "), value.unwrap_or_default()), &help);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("cowhand(1), cowhand-install-links(1)")]);
    roff.to_writer(&mut text)?;
    Ok(text)
}

fn entry(roff: &mut Roff, term: &str, text: &str) {
    roff.control("TP", []);
    roff.text([bold(term)]);
    roff.text([roman(text)]);
}
