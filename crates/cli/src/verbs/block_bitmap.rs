//! `block-bitmap`: which clusters a file has, one bit each.

use std::ffi::OsString;
use std::io::IsTerminal;

use cowhand::{Cache, Error, block_bitmap, open_alone};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::sources::{Parents, Sharing};

/// Write one bit for each cluster of an image, set where the image keeps something of it
///
/// Of this file alone, whatever it stands on. The lowest bit of a byte is first; the last byte is filled up with
/// zeros. A format without clusters or blocks has 64 KiB to a bit.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand block-bitmap vm.qcow2 | xxd -b | head")]
pub(crate) struct Args {
    /// The image
    image: OsString,

    /// The image's format; by its content if not given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    #[command(flatten)]
    sharing: Sharing,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    if std::io::stdout().is_terminal() {
        return Err(Error::invalid("the bitmap is not text, and standard output is a terminal")
            .hint("send it to a file or a program")
            .into());
    }
    let source = args.sharing.source(&args.image, args.format.as_deref())?;
    let how = args.sharing.open(&source, &Parents::default(), Cache::default())?;
    let image = open_alone(&source.path, &how)?;
    block_bitmap(&image, |bytes| out.write_all(bytes))?;
    Ok(DONE)
}
