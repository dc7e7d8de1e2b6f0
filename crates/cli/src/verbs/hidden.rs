//! `hidden`: the mark that hides an image from lists of disks.

use std::ffi::OsString;

use cowhand::{Cache, Error, hidden, set_hidden};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::sources::{Parents, Sharing};

/// Show or set the mark that hides an image from lists of disks
///
/// XCP-ng and XenServer keep it in qcow2 and VHD images.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand hidden base.qcow2
  cowhand hidden base.qcow2 on")]
pub(crate) struct Args {
    /// The image
    image: OsString,

    /// Set it
    #[arg(value_name = "on|off")]
    mark: Option<Mark>,

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    #[command(flatten)]
    sharing: Sharing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Mark {
    On,
    Off,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let how = args.sharing.open(&source, &Parents::default(), Cache::default())?;
    if let Some(mark) = args.mark {
        set_hidden(&source.path, mark == Mark::On, &how)?;
        return Ok(DONE);
    }
    match hidden(&source.path, &how)? {
        Some(hidden) => writeln!(out, "{}", if hidden { "on" } else { "off" })?,
        None => {
            return Err(Error::unsupported("has no mark that hides it: its format has no place for one")
                .image(source.path.display())
                .into());
        }
    }
    Ok(DONE)
}
