//! `reconnect-parent`: where an image's parent is now.

use std::ffi::OsString;
use std::path::PathBuf;

use cowhand::{Cache, Printable, Reconnect, reconnect_parent};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::sources::{Parents, Sharing};

/// Write into an image where its parent is now
///
/// For parents that were moved or renamed: every place in which the image names its parent is written anew, and nothing
/// else of it changes. The parent's identity is verified first, where the image remembers one (VHD, VHDX). Without
/// PARENT, it is what the image names, else what --search-dir finds.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand reconnect-parent child.vhd moved/base.vhd
  cowhand reconnect-parent --search-dir /srv/checkpoints child.vhd
  cowhand reconnect-parent --chain --search-dir . newest.avhd")]
pub(crate) struct Args {
    /// The image
    image: OsString,

    /// Its parent
    parent: Option<PathBuf>,

    /// Take a parent that is not the one the image remembers, or of which that cannot be verified
    #[arg(long)]
    force: bool,

    /// Each image that the parent stands on too, down to the base
    #[arg(short = 'r', long)]
    chain: bool,

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// The format of a parent whose child does not state it
    #[arg(short = 'F', long, value_name = "FORMAT")]
    parent_format: Option<String>,

    /// Print nothing
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    sharing: Sharing,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let parents = Parents { parent_format: args.parent_format.clone(), ..Parents::default() };
    let how = Reconnect {
        open: args.sharing.writing(&source, &parents, Cache::default())?,
        parent: args.parent.clone(),
        force: args.force,
        chain: args.chain,
    };
    for done in reconnect_parent(&source.path, &how)? {
        if !args.quiet {
            let (image, parent) = (done.image.display().to_string(), done.parent.display().to_string());
            writeln!(out, "'{}' stands on '{}'.", Printable(&image), Printable(&parent))?;
        }
    }
    Ok(DONE)
}
