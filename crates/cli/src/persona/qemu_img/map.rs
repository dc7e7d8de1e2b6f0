//! `qemu-img map`.

use cowhand::{MapEntry, file_name, map_as_qemu, open};

use super::source::Opening;
use super::values::size;
use super::{Call, Flag, Form, Outcome, Verb, says};
use crate::exit::DONE;
use crate::verbs::map::{heading, is_shown, line, object};

pub(super) const VERB: Verb = Verb {
    name: "map",
    about: "Tell which parts of a disk are stored, and where",
    operands: "FILENAME",
    flags: &[
        Flag::both('h', "help", "Show this"),
        Flag::both('f', "format", "The image's format; by its content if not given").of("FMT"),
        Flag::long("output", "How to print it: human or json").of("OFMT"),
        Flag::long("object", "A secret: secret,id=ID,file=PATH").of("OBJDEF"),
        Flag::long("image-opts", "FILENAME is a description of an image, not a path"),
        Flag::both('U', "force-share", "Look at the image although another program writes to it"),
        Flag::both('s', "start-offset", "Where to begin, in bytes of the disk").of("OFFSET"),
        Flag::both('l', "max-length", "How many bytes of the disk to look at").of("LENGTH"),
    ],
    run,
};

/// QEMU counts bytes with a sign.
const MOST: u64 = i64::MAX as u64;

fn run(call: &mut Call<'_>) -> Outcome {
    let mut how = Opening::default();
    let mut form = Form::Human;
    let (mut start, mut length) = (0, u64::MAX);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "help" => return call.help(),
            _ if how.take(flag, &value)? => {}
            "output" => form = call.form(&value)?,
            "start-offset" => start = size("start offset", &value, 0..=MOST)?,
            "max-length" => length = size("max length", &value, 0..=MOST)?,
            _ => {}
        }
    }
    let others = call.others();
    let [word] = others.as_slice() else { return Err(call.usage("Expecting one image file name")) };
    let source = how.source(word)?;
    let disk = open(&source.path, &source.open).map_err(|error| source.failed(&error))?;
    let out = &mut *call.out;
    let nothing = length == 0 || start >= disk.size();
    match form {
        Form::Human => {
            heading(out)?;
            // What a description puts between an image and its file has a name of its own.
            let described = source
                .open
                .node
                .is_some()
                .then(|| (source.path.display().to_string(), file_name(&source.path, &source.open)));
            let mut unplaced = false;
            if !nothing {
                map_as_qemu(&disk, start, length, |entry| {
                    if unplaced || !is_shown(entry) {
                        return Ok(());
                    }
                    unplaced = entry.offset.is_none();
                    match (unplaced, &described) {
                        (true, _) => Ok(()),
                        (false, Some((file, name))) if entry.depth == 0 && entry.filename == *file => {
                            line(&MapEntry { filename: name.clone(), ..entry.clone() }, out)
                        }
                        (false, _) => line(entry, out),
                    }
                })?;
            }
            if unplaced {
                return Err(says("File contains external, encrypted or compressed clusters."));
            }
        }
        Form::Json => {
            write!(out, "[")?;
            let mut first = true;
            let mut put = |entry: &MapEntry| {
                write!(out, "{}", if first { "" } else { ",\n" })?;
                first = false;
                object(entry, out)
            };
            match nothing {
                true => put(&MapEntry { start, ..MapEntry::default() })?,
                false => map_as_qemu(&disk, start, length, put)?,
            }
            writeln!(out, "]")?;
        }
    }
    Ok(DONE)
}
