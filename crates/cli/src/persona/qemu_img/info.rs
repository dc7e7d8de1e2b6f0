//! `qemu-img info`.

use cowhand::{Info, info};
use serde_json::Value;

use super::errors::could_not_open_one;
use super::source::Opening;
use super::{Call, Flag, Form, Outcome, Verb, json};
use crate::exit::DONE;
use crate::verbs::info::{ParentNote, describe};

pub(super) const VERB: Verb = Verb {
    name: "info",
    about: "Tell what an image is",
    operands: "FILENAME",
    flags: &[
        Flag::both('h', "help", "Show this"),
        Flag::both('f', "format", "The image's format; by its content if not given").of("FMT"),
        Flag::long("output", "How to print it: human or json").of("OFMT"),
        Flag::long("backing-chain", "Look at what the image stands on too"),
        Flag::long("object", "A secret: secret,id=ID,file=PATH").of("OBJDEF"),
        Flag::long("image-opts", "FILENAME is a description of an image, not a path"),
        Flag::both('U', "force-share", "Look at the image although another program writes to it"),
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Outcome {
    let mut how = Opening::default();
    let (mut form, mut chain) = (Form::Human, false);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "help" => return call.help(),
            _ if how.take(flag, &value)? => {}
            "backing-chain" => chain = true,
            "output" => form = call.form(&value)?,
            _ => {}
        }
    }
    let others = call.others();
    let [word] = others.as_slice() else { return Err(call.usage("Expecting one image file name")) };
    let source = how.source(word)?;
    let mut found = info(&source.path, &source.open, chain)
        .map_err(|error| could_not_open_one(&source.name, &source.path, &error))?;
    for image in &mut found {
        if cowhand::format(image.format)?.qemu().is_some_and(|driver| !driver.details) {
            image.details.specific.clear();
        }
    }
    let shown = |image: &Info| source.shown(image.format);
    match form {
        Form::Human => {
            for (index, image) in found.iter().enumerate() {
                if index > 0 {
                    writeln!(call.out)?;
                }
                let name = if index == 0 { shown(image) } else { image.filename.clone() };
                describe(call.out, &name, image, ParentNote::None)?;
            }
        }
        Form::Json => {
            let mut all: Vec<Value> = found.iter().map(Info::to_json).collect();
            if let ([image, ..], [value, ..]) = (found.as_slice(), all.as_mut_slice()) {
                value["filename"] = shown(image).into();
            }
            let value = if chain { Value::Array(all) } else { all.swap_remove(0) }; // never empty: at least the image itself
            json::print(call.out, &value)?;
        }
    }
    Ok(DONE)
}
