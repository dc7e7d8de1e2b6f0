//! `qemu-img resize`.

use cowhand::{ErrorKind, NewSize, Open, Prealloc, Resize, open, resize_opened};

use super::errors::said;
use super::numbers::{self, not_a_size};
use super::source::Opening;
use super::{Call, Flag, Outcome, Verb, parameters, says, text};
use crate::exit::DONE;
use crate::persona::complain;

pub(super) const VERB: Verb = Verb {
    name: "resize",
    about: "Make a disk longer or shorter",
    operands: "FILENAME [+|-]SIZE",
    flags: &[
        Flag::both('h', "help", "Show this"),
        Flag::both('q', "quiet", "Print nothing"),
        Flag::long("object", "A secret: secret,id=ID,file=PATH").of("OBJDEF"),
        Flag::both('f', "format", "The image's format").of("FMT"),
        Flag::long("image-opts", "FILENAME is a description of an image, not a path"),
        Flag::long("preallocation", "How what is new is laid out: off, metadata, falloc or full")
            .of("PREALLOC"),
        Flag::long("shrink", "The disk may become shorter: what is cut off is gone"),
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Outcome {
    call.take_negative_numbers();
    let mut opening = Opening::default();
    let (mut quiet, mut shrink, mut prealloc) = (false, false, Prealloc::Off);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "help" => return call.help(),
            "quiet" => quiet = true,
            "shrink" => shrink = true,
            "preallocation" => {
                let mode = text(&value);
                prealloc = Prealloc::by_name(&mode)
                    .ok_or_else(|| says(format!("Invalid preallocation mode '{mode}'")))?;
            }
            _ => {
                opening.take(flag, &value)?;
            }
        }
    }
    let others = call.others();
    let (image, word) = match others.as_slice() {
        [image, size] => (image, text(size)),
        [] | [_] => return Err(call.usage("Expecting image file name and size")),
        _ => return Err(call.usage("Extra argument(s) in command line")),
    };
    let (sign, digits) = match word.as_bytes().first() {
        Some(b'+') => (1, word.get(1..).unwrap_or_default()),
        Some(b'-') => (-1, word.get(1..).unwrap_or_default()),
        _ => (0, word.as_str()),
    };
    let bytes = numbers::size(digits).map_err(|wrong| says(not_a_size("size", digits, wrong)))?;

    let source = opening.source(image)?;
    source.warn_if_raw_is_guessed();
    let disk = open(&source.path, &Open { writable: true, ..source.open.clone() })
        .map_err(|error| source.failed(&error))?;
    let (before, format) = (disk.size(), parameters::format(disk.top().format));
    let bare = format.is_some_and(|format| format.is_bare());
    // As C reckons it.
    let after = match sign {
        0 => bytes.cast_signed(),
        sign => before.wrapping_add_signed(bytes.cast_signed().wrapping_mul(sign)).cast_signed(),
    };
    let after = u64::try_from(after).ok().filter(|after| *after > 0);
    let after = after.ok_or_else(|| says("New image size must be positive"))?;
    if after <= before && prealloc != Prealloc::Off {
        return Err(says("Preallocation can only be used for growing images"));
    }
    if after < before && !shrink {
        complain("qemu-img: Use the --shrink option to perform a shrink operation.");
        return Err(says(
            "warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an \
             operation, make sure there is no important data there.",
        ));
    }
    if !format.and_then(|format| format.qemu()).is_some_and(|driver| driver.resizes) {
        return Err(says("Image format driver does not support resize"));
    }
    if bare && prealloc == Prealloc::Metadata {
        return Err(says("Unsupported preallocation mode: metadata"));
    }
    if !bare && !after.is_multiple_of(512) {
        return Err(says("The new size must be a multiple of 512"));
    }
    let how = Resize { open: source.open, size: NewSize::To(after), shrink, force: false, prealloc };
    resize_opened(disk, &source.path, &how).map_err(|error| match error.kind() {
        ErrorKind::Cancelled => error.into(),
        _ => says(match (error.sentence(), error.os_error()) {
            (None, Some(system)) => format!("{}: {system}", error.message()),
            _ => said(&error).to_owned(),
        }),
    })?;
    if !quiet {
        writeln!(call.out, "Image resized.")?;
    }
    Ok(DONE)
}
