//! `amend`: an image's options, changed after it was made.

use std::ffi::OsString;

use cowhand::{Amend, Error, amend, format, open_alone, parse_option_string};

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::verbs::create::asks_for_help;
use crate::verbs::formats;
use crate::work::Work;

/// Change options of an image
///
/// The disk's content stays, another backing file included.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand amend -o compat=1.1,lazy_refcounts=on vm.qcow2
  cowhand amend -o size=40G vm.qcow2
  cowhand amend --object secret,id=old,file=a --object secret,id=new,file=b \\
      -o encrypt.state=active,encrypt.new-secret=new vault.qcow2
  cowhand amend -f qcow2 -o help")]
pub(crate) struct Args {
    /// The image
    #[arg(required_unless_present = "options")]
    image: Option<OsString>,

    /// The options and their new values; help lists them
    #[arg(short, value_name = "NAME=VALUE,...")]
    options: Vec<String>,

    /// Also what loses data: overwriting an active keyslot, erasing the last one
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    work: Work,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let options: Vec<(String, String)> =
        args.options.iter().flat_map(|text| parse_option_string(text)).collect();
    if asks_for_help(&options) {
        let name = match (&args.work.format, &args.image) {
            (Some(name), _) => name.clone(),
            (None, Some(image)) => {
                let source = args.work.sharing.source(image, None)?;
                let how = args.work.reading(&source)?;
                open_alone(&source.path, &how)?.links().first().map_or("raw", |top| top.format).to_owned() // never empty: every image has a layer
            }
            (None, None) => return Err(no_image().into()),
        };
        formats::amend_help(out, format(&name)?)?;
        return Ok(DONE);
    }
    let image = args.image.as_ref().ok_or_else(no_image)?;
    let source = args.work.source(image)?;
    let open = args.work.writing(&source)?;
    let how = Amend { open, options, force: args.force, shrink: false };
    let meter = args.work.showing.meter();
    amend(&source.path, &how, &meter)?;
    meter.finish();
    Ok(DONE)
}

fn no_image() -> Error {
    Error::invalid("no image was named").hint("name the image, or its format with -f")
}
