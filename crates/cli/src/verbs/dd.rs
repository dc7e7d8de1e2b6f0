//! `dd`: blocks of a disk into a new image, from and to standard input and output too.

use std::io;
use std::path::Path;

use cowhand::{Cache, Dd, DdInput, DdOutput, Error, Result, dd, parse_size};

use crate::exit::{DONE, Outcome};
use crate::output::{Output, unbuffered_output};
use crate::patient::Patient;
use crate::progress::Meter;
use crate::sources::{Parents, Sharing, Source, note_on_sectors};

/// Copy blocks of a disk into a new image
///
/// Operands are name=value: if= (standard input if not given) and of= (standard output), bs= (512), count= and skip= in
/// blocks, isize= and osize= in bytes. count= counts the blocks that are skipped too, as qemu-img dd does.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand dd if=vm.qcow2 of=front.raw bs=1M count=16
  cowhand dd -O qcow2 if=vm.vhdx of=vm.qcow2
  cowhand dd if=vm.qcow2 bs=1M | \\
    ssh host 'cowhand dd -O qcow2 of=vm.qcow2 bs=1M osize=20G'")]
pub(crate) struct Args {
    /// if=IMAGE of=IMAGE bs=SIZE count=BLOCKS skip=BLOCKS isize=SIZE osize=SIZE
    #[arg(value_name = "NAME=VALUE")]
    operands: Vec<String>,

    /// The source's format; by its content if not given, raw from standard input
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// The target's format
    #[arg(short = 'O', value_name = "FORMAT", default_value = "raw")]
    target_format: String,

    /// Write into an image that is there, in place
    #[arg(short)]
    no_create: bool,

    #[command(flatten)]
    sharing: Sharing,
}

#[derive(Debug, Default)]
struct Operands {
    from: Option<String>,
    to: Option<String>,
    block_size: Option<u64>,
    count: Option<u64>,
    skip: u64,
    input_size: Option<u64>,
    output_size: Option<u64>,
}

impl Operands {
    fn of(words: &[String]) -> Result<Operands> {
        let mut all = Operands::default();
        for word in words {
            let (name, value) = word.split_once('=').ok_or_else(|| unknown(word))?;
            match name {
                "if" => all.from = Some(value.to_owned()),
                "of" => all.to = Some(value.to_owned()),
                "bs" => all.block_size = Some(parse_size(value)?),
                "count" => all.count = Some(parse_size(value)?),
                "skip" => all.skip = parse_size(value)?,
                "isize" => all.input_size = Some(parse_size(value)?),
                "osize" => all.output_size = Some(parse_size(value)?),
                _ => return Err(unknown(name)),
            }
        }
        if all.from.is_none() && all.to.is_none() {
            return Err(Error::invalid("Must specify an input or an output file").hint("use if= or of="));
        }
        Ok(all)
    }
}

fn unknown(name: &str) -> Error {
    Error::invalid(format!("unrecognized operand {name}"))
        .hint("known are if=, of=, bs=, count=, skip=, isize= and osize=")
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let operands = Operands::of(&args.operands)?;
    let source = match &operands.from {
        Some(word) => args.sharing.source(&word.into(), args.format.as_deref())?,
        None => Source { format: args.format.clone(), ..Source::default() },
    };
    let how = Dd {
        open: args.sharing.open(&source, &Parents::default(), Cache::default())?,
        format: args.target_format.clone(),
        block_size: operands.block_size.unwrap_or(512),
        count: operands.count,
        skip: operands.skip,
        input_size: operands.input_size,
        output_size: operands.output_size,
        no_create: args.no_create,
        ..Dd::default()
    };
    let meter = Meter::new(false, false);
    let mut output;
    let from = match &operands.from {
        Some(_) => DdInput::Image(&source.path),
        None => DdInput::Stream(Box::new(io::stdin())),
    };
    let to = match &operands.to {
        Some(path) => DdOutput::Image(Path::new(path)),
        None => {
            output = Patient::over(unbuffered_output()?, meter.stop());
            DdOutput::Stream(&mut output)
        }
    };
    let done = dd(from, to, &how, &meter)?;
    meter.finish();
    if operands.to.is_some() {
        note_on_sectors(out, done.sectors)?;
    }
    Ok(DONE)
}
