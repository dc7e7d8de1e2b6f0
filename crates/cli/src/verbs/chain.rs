//! `chain`: what stands on what, drawn as a tree.

use std::path::PathBuf;

use cowhand::{Cache, Layered, Printable, Result, Tree, chain};

use crate::exit::{DONE, FAILED, Outcome};
use crate::output::{Output, json};
use crate::sizes::Size;
use crate::sources::{Parents, Sharing, Source};
use crate::verbs::Form;

/// Draw what images stand on, as a tree from the base up
///
/// Several images that share parents stand in one tree. Of each file: its format, the disk's size, the space it takes,
/// what it keeps of the disk itself, and whether it is hidden. A parent that is missing or may not be opened is drawn in
/// its place, with the reason.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 1 where a link is broken or an image cannot be read

Examples:
  cowhand chain overlay.qcow2
  cowhand chain *.qcow2")]
pub(crate) struct Args {
    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,

    /// The images' format; by their content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// How to print it
    #[arg(long, value_enum, value_name = "FORM", default_value = "human")]
    output: Form,

    #[command(flatten)]
    sharing: Sharing,

    #[command(flatten)]
    parents: Parents,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = Source { format: args.format.clone(), ..Source::default() };
    let how = args.sharing.open(&source, &args.parents, Cache::default())?;
    let trees = chain(&args.images, &how);
    match args.output {
        Form::Human => trees.iter().try_for_each(|tree| draw(out, tree, "", "", ""))?,
        Form::Json => out.write_all(json(&trees.iter().map(Tree::to_json).collect()).as_bytes())?,
    }
    Ok(if trees.iter().all(Tree::is_whole) { DONE } else { FAILED })
}

/// One file, and those that stand on it. `before` stands before lines of its children.
fn draw(out: &mut Output, tree: &Tree, before: &str, branch: &str, under: &str) -> Result<()> {
    let name = Printable(&tree.filename);
    write!(out, "{before}{branch}{name}")?;
    match &tree.image {
        Err(error) => writeln!(out, "  BROKEN: {error}")?,
        Ok(Layered { info, allocated }) => {
            let hidden = if info.hidden == Some(true) { ", hidden" } else { "" };
            let (size, space) = (Size(info.virtual_size), Size(info.actual_size));
            write!(out, "  {}, {size} disk, {space} on disk, ", info.format)?;
            match allocated {
                Ok(bytes) => writeln!(out, "{} own{hidden}", Size(*bytes))?,
                Err(error) => writeln!(out, "BROKEN: {error}{hidden}")?,
            }
        }
    }
    let before = format!("{before}{under}");
    let last = tree.children.len().saturating_sub(1);
    tree.children.iter().enumerate().try_for_each(|(number, child)| {
        let (branch, under) = if number == last { ("└── ", "    ") } else { ("├── ", "│   ") };
        draw(out, child, &before, branch, under)
    })
}
