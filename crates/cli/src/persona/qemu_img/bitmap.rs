//! `qemu-img bitmap`.

use std::ffi::OsString;

use cowhand::{BitmapAction, BitmapStep, MergeSource, bitmap};

use super::errors::why;
use super::source::Opening;
use super::{Call, Flag, Outcome, Verb, says, text, values};
use crate::exit::DONE;

pub(super) const VERB: Verb = Verb {
    name: "bitmap",
    about: "Change an image's persistent dirty bitmaps",
    operands: "FILENAME BITMAP",
    flags: &[
        Flag::both('h', "help", "Show this"),
        Flag::long("object", "A secret: secret,id=ID,file=PATH").of("OBJDEF"),
        Flag::long("image-opts", "FILENAME is a description of an image, not a path"),
        Flag::long("add", "Make the bitmap, empty and recording"),
        Flag::long("remove", "Take the bitmap away"),
        Flag::long("clear", "Forget what is dirty"),
        Flag::long("enable", "Record writes from here on"),
        Flag::long("disable", "Record no more"),
        Flag::long("merge", "Make dirty what is dirty in the bitmap SOURCE").of("SOURCE"),
        Flag::both('g', "granularity", "How many bytes of the disk one bit of a new bitmap stands for")
            .of("SIZE"),
        Flag::both('b', "source-file", "The image that holds the bitmaps to be merged").of("SRC_FILENAME"),
        Flag::both('F', "source-format", "The format of that image").of("SRC_FMT"),
        Flag::short('f', "format", "The image's format").of("FMT"),
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Outcome {
    let mut how = Opening::default();
    let mut actions: Vec<(&str, BitmapAction)> = Vec::new();
    let mut granularity = None;
    let (mut from, mut from_format): (Option<OsString>, Option<String>) = (None, None);
    while let Some((flag, value)) = call.next()? {
        if how.take(flag, &value)? {
            continue;
        }
        match flag {
            "help" => return call.help(),
            "add" => actions.push((flag, BitmapAction::Add(None))),
            "remove" => actions.push((flag, BitmapAction::Remove)),
            "clear" => actions.push((flag, BitmapAction::Clear)),
            "enable" => actions.push((flag, BitmapAction::Enable)),
            "disable" => actions.push((flag, BitmapAction::Disable)),
            "merge" => actions.push((flag, BitmapAction::Merge(text(&value)))),
            "granularity" => {
                granularity = Some(values::size("granularity", &value, 0..=i64::MAX as u64)?);
            }
            "source-file" => from = Some(value),
            "source-format" => from_format = Some(text(&value)),
            _ => {}
        }
    }
    let others = call.others();
    let has = |name: &str| actions.iter().any(|(action, _)| *action == name);
    let wrong = match others.as_slice() {
        _ if actions.is_empty() => {
            "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"
        }
        _ if granularity.is_some() && !has("add") => "granularity only supported with --add",
        _ if from_format.is_some() && from.is_none() => "-F only supported with -b",
        _ if from.is_some() && !has("merge") => "Merge bitmap source file only supported with --merge",
        [_, _] => "",
        _ => "Expecting filename and bitmap name",
    };
    let ([word, name], "") = (others.as_slice(), wrong) else { return Err(says(wrong)) };
    let image = how.source(word)?;
    image.warn_if_raw_is_guessed();
    let merged = Opening { format: from_format, ..Opening::default() };
    let from = from.map(|word| merged.source(&word)).transpose()?;
    let source = from.as_ref().map(|from| MergeSource { path: from.path.clone(), open: from.open.clone() });
    for (_, action) in &mut actions {
        if let BitmapAction::Add(wanted) = action {
            // None at all is the format's choice.
            *wanted = granularity.filter(|bytes| *bytes > 0);
        }
    }
    let (verbs, actions): (Vec<&str>, Vec<BitmapAction>) = actions.into_iter().unzip();
    let name = text(name);
    bitmap(&image.path, &image.open, &name, &actions, source.as_ref()).map_err(|failed| {
        match (failed.step, &from) {
            (BitmapStep::Source, Some(from)) => from.failed(&failed.error),
            (BitmapStep::Action(number), _) => {
                let verb = verbs.get(number).copied().unwrap_or_default();
                let why = why(&image.path, &failed.error);
                says(format!("Operation {verb} on bitmap {name} failed: {why}"))
            }
            (BitmapStep::Image | BitmapStep::Source, _) => image.failed(&failed.error),
            (BitmapStep::Close, _) => says(why(&image.path, &failed.error)),
        }
    })?;
    Ok(DONE)
}
