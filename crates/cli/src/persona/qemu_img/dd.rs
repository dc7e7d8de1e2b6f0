//! `qemu-img dd`, with Proxmox's additions: `isize=`, `osize=`, `-n`, and streams where `if=` or `of=` names no file.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use cowhand::{Cache, Dd, DdInput, DdOutput, DdStep, Error, ErrorKind, Failed, Name, Open, dd, format, open};

use super::errors::{could_not_open, whole, why, why_not_made};
use super::source::{Opening, Source};
use super::{Call, Failure, Flag, Outcome, Verb, says, text, values};
use crate::exit::DONE;
use crate::persona::compat::replace;
use crate::persona::complain;
use crate::progress::Meter;

pub(super) const VERB: Verb = Verb {
    name: "dd",
    about: "Copy blocks of an image into a new one",
    operands: "[bs=BLOCK_SIZE] [count=BLOCKS] [skip=BLOCKS] [isize=SIZE] [osize=SIZE] [if=INPUT] [of=OUTPUT]",
    flags: &[
        Flag::both('h', "help", "Show this"),
        Flag::long("object", "A secret: secret,id=ID,file=PATH").of("OBJDEF"),
        Flag::both('f', "format", "The input's format").of("FMT"),
        Flag::both('O', "output-format", "The output's format; raw if not given").of("OUTPUT_FMT"),
        Flag::long("image-opts", "INPUT is a description of an image, not a path"),
        Flag::both('U', "force-share", "Open the input although another program uses it"),
        Flag::short('n', "no-create", "Write into an output that is there"),
    ],
    run,
};

/// Stands for standard input and output; so does no name at all, where the other is named.
const STREAM: &[u8] = b"-";

struct Operands {
    from: Option<OsString>,
    to: Option<OsString>,
    how: Dd,
}

impl Operands {
    fn of(words: &[OsString]) -> Result<Operands, Failure> {
        let mut all = Operands { from: None, to: None, how: Dd::default() };
        for word in words {
            let bytes = word.as_bytes();
            let at = bytes.iter().position(|byte| *byte == b'=');
            let (name, value) = bytes.split_at(at.unwrap_or(bytes.len()));
            let value = OsStr::from_bytes(value.get(1..).unwrap_or_default());
            let most = i64::MAX as u64;
            match name {
                _ if at.is_none() => return Err(unknown(name)),
                b"if" => all.from = Some(value.to_owned()),
                b"of" => all.to = Some(value.to_owned()),
                b"bs" => all.how.block_size = values::size("bs", value, 1..=i32::MAX as u64)?,
                b"count" => all.how.count = Some(values::number("count", value, 0..=most)?),
                b"skip" => all.how.skip = values::number("skip", value, 0..=most)?,
                b"isize" => all.how.input_size = Some(values::size("isize", value, 0..=most)?),
                b"osize" => all.how.output_size = Some(values::size("osize", value, 0..=most)?),
                _ => return Err(unknown(name)),
            }
        }
        // Nobody reads a disk off a terminal.
        if all.to.is_none() && (all.from.is_none() || io::stdout().is_terminal()) {
            return Err(says("Must specify both input and output files"));
        }
        let is_file = |name: &OsString| name.as_bytes() != STREAM;
        all.from = all.from.filter(is_file);
        all.to = all.to.filter(is_file);
        Ok(all)
    }
}

fn unknown(name: &[u8]) -> Failure {
    says(format!("unrecognized operand {}", String::from_utf8_lossy(name)))
}

fn run(call: &mut Call<'_>) -> Outcome {
    let mut opening = Opening::default();
    let mut target_format = "raw".to_owned();
    let mut no_create = false;
    while let Some((flag, value)) = call.next()? {
        match flag {
            "help" => return call.help(),
            "output-format" => target_format = text(&value),
            "no-create" => no_create = true,
            _ => {
                opening.take(flag, &value)?;
            }
        }
    }
    let Operands { from, to, how } = Operands::of(&call.others())?;
    let source = from.map(|word| opening.source(&word)).transpose()?;
    let stream = Open { format: opening.format.clone(), ..Open::default() };
    let how = Dd {
        open: source.as_ref().map_or(stream, |source| source.open.clone()),
        format: target_format,
        cache: Cache::Writeback,
        no_create,
        replace: replace(),
        skip_past_end: true,
        qemu_choices: true,
        ..how
    };
    let mut output = io::stdout().lock();
    let input = match &source {
        Some(source) => DdInput::Image(&source.path),
        None => DdInput::Stream(Box::new(io::stdin())),
    };
    let target = to.map(|word| Name::of_target(word.as_ref())).transpose();
    let target = target.map_err(|error| match &source {
        // What is wrong with the source is said before.
        Some(source) => match open(&source.path, &source.open) {
            Ok(_) => says(error.message()),
            Err(error) => source.failed(&error),
        },
        None => says(error.message()),
    })?;
    let to = match &target {
        Some(path) => DdOutput::Image(path),
        None => DdOutput::Stream(&mut output),
    };
    let meter = Meter::waiting(false);
    let done = dd(input, to, &how, &meter)
        .map_err(|failed| complaint(source.as_ref(), target.as_deref(), &how, failed))?;
    if done.skipped_past_end {
        let name = source.map_or_else(String::new, |source| source.name);
        complain(&format!("qemu-img: {name}: cannot skip to specified offset"));
    }
    Ok(DONE)
}

fn complaint(
    source: Option<&Source>,
    target: Option<&Path>,
    how: &Dd,
    Failed { step, error }: Failed<DdStep>,
) -> Failure {
    if error.kind() == ErrorKind::Cancelled {
        return error.into();
    }
    let target = target.unwrap_or_else(|| Path::new(""));
    let name = target.display().to_string();
    match (step, source) {
        (DdStep::Source, Some(source)) => source.failed(&error),
        (DdStep::Create, _) if format(&how.format).is_err() => says("Unknown file format"),
        (DdStep::Create, _) => {
            says(format!("{name}: error while creating output image: {}", why_not_made(&name, &error)))
        }
        (DdStep::Target, _) => could_not_open(&name, target, &error),
        _ => says(told(target, &error)),
    }
}

fn told(path: &Path, error: &Error) -> String {
    if error.os_error().is_some() { why(path, error) } else { whole(error) }
}
