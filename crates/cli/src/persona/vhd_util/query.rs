//! `vhd-util query`: facts of one image, a line each, in one order whatever was asked first.

use cowhand::{Open, Printable, info, open, open_alone};

use super::names::{count, fact, hidden, parent_of};
use super::{
    Call, Done, Failed, Flag, HELP, MIB, NAME, Verb, errno, file, look, name_of, needed, opening, options,
};

pub(super) const VERB: Verb = Verb {
    name: "query",
    about: "facts of an image",
    flags: &[
        NAME,
        Flag::short('v', "virtual", "The disk's size, in MiB"),
        Flag::short('s', "physical", "The bytes that the file needs"),
        Flag::short('p', "parent", "The parent"),
        Flag::short('f', "fields", "The mark that hides it"),
        Flag::short('m', "marker", "The marker beside the batmap"),
        Flag::short('d', "depth", "How many images its chain has"),
        Flag::short('a', "allocated", "How many blocks the file has"),
        Flag::short('S', "fast", "The size up to which it can be resized with -f, in MiB"),
        Flag::short('u', "unresolved", "The parent as the image names it"),
        Flag::short('b', "backup", "Believe the footer's copy at the front"),
        HELP,
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Done {
    let (mut name, mut asked) = (None, Vec::new());
    while let Some((flag, value)) = call.next()? {
        match flag {
            "name" => name = Some(file(value)),
            flag => asked.push(flag),
        }
    }
    call.end()?;
    let path = needed(name)?;
    let is_asked = |flag: &str| asked.contains(&flag);
    let footer = if is_asked("backup") { options(&[("footer", "front")]) } else { Vec::new() };
    let how = Open { options: footer, any_parent: true, ..look() };
    let found = info(&path, &how, false).map_err(opening(&path))?.swap_remove(0); // never empty: the image itself
    let mut first = None;
    // What cannot be told does not keep the rest from being printed.
    let mut failed = |call: &mut Call<'_>, what: &str, error: cowhand::Error| -> cowhand::Result<()> {
        let number = errno::of(&error);
        call.explain(Some(&error));
        first.get_or_insert(number);
        writeln!(call.out, "{what}: -{number}")
    };
    if is_asked("virtual") {
        writeln!(call.out, "{}", found.virtual_size / MIB)?;
    }
    if is_asked("physical") {
        match open_alone(&path, &how).and_then(|image| image.top().layer.used_len()) {
            Ok(bytes) => writeln!(call.out, "{bytes}")?,
            Err(error) => failed(call, "failed to get physical size", error)?,
        }
    }
    let mut lost = None;
    if is_asked("parent") {
        if found.parent.is_none() {
            writeln!(call.out, "{} has no parent", name_of(&path))?;
        } else if is_asked("unresolved") {
            let layer = open_alone(&path, &how)?;
            let named = layer.top().layer.structures()?.into_iter().find_map(|structure| {
                let name = (structure.name == "locator").then(|| structure.fields.get("name")).flatten()?;
                name.as_str().map(str::to_owned)
            });
            let named = named.or_else(|| fact(&found, "parent-name")).unwrap_or_default();
            writeln!(call.out, "{}", Printable(&named))?;
        } else {
            match parent_of(&path, &found) {
                Some(parent) => writeln!(call.out, "{}", name_of(&parent))?,
                None => {
                    writeln!(call.out, "query failed")?;
                    lost = Some(errno::NO_SUCH_FILE);
                }
            }
        }
    }
    if is_asked("fields") {
        writeln!(call.out, "hidden: {}", hidden(&found))?;
    }
    if is_asked("marker") {
        writeln!(call.out, "marker: {}", count(&found, "batmap-marker").unwrap_or(0))?;
    }
    if is_asked("depth") {
        match open(&path, &Open { metadata_only: true, ..how.clone() }) {
            Ok(chain) => writeln!(call.out, "chain depth: {}", chain.links().len())?,
            Err(error) => failed(call, "error checking chain depth", error)?,
        }
    }
    if is_asked("allocated") {
        match blocks(&path, &how) {
            Ok(blocks) => writeln!(call.out, "{blocks}")?,
            Err(error) => failed(call, "error reading bat", error)?,
        }
    }
    if is_asked("fast") {
        let room = count(&found, "table-entries").zip(count(&found, "block-size"));
        writeln!(call.out, "{}", room.map_or(0, |(entries, size)| entries.saturating_mul(size) / MIB))?;
    }
    match first.or(lost) {
        Some(status) => Err(Failed::says(status, "")),
        None => Ok(()),
    }
}

/// Blocks of the disk that stand in the file.
fn blocks(path: &std::path::Path, how: &Open) -> cowhand::Result<u64> {
    let image = open_alone(path, how)?;
    if image.top().layer.as_blocks().is_none() {
        return Err(cowhand::Error::invalid("a fixed disk has no blocks"));
    }
    let mut blocks = 0;
    image.top().layer.allocated(&mut |_, _| {
        blocks += 1;
        Ok(())
    })?;
    Ok(blocks)
}
