//! `vhd-util resize`: a disk becomes longer, with a journal by which that can be taken back, or within the room it has.

use cowhand::{
    Error, Info, JOURNAL_END, NewSize, Prealloc, Resize, Resized, info, resize, resize_with_journal,
};

use super::names::{count, fact};
use super::percent::Percent;
use super::{
    CREATOR, Call, Done, Failed, Flag, HELP, MIB, NAME, Verb, change, errno, file, look, mebibytes, name_of,
    needed, number, opening, wrong,
};

pub(super) const VERB: Verb = Verb {
    name: "resize",
    about: "make a disk longer",
    flags: &[
        NAME,
        Flag::short('s', "size", "Its new size").of("MIB"),
        Flag::short('j', "journal", "A new file, or a device, for what revert needs to take it back")
            .of("FILE"),
        Flag::short('f', "fast", "Without one: as far as the metadata has room (create -S)"),
        HELP,
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Done {
    let (mut name, mut size, mut journal, mut fast) = (None, None, None, false);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "name" => name = Some(file(value)),
            "size" => size = Some(value),
            "journal" => journal = Some(file(value)),
            _ => fast = true,
        }
    }
    call.end()?;
    let (path, size) = (needed(name)?, needed(size)?);
    if journal.is_some() == fast {
        return Err(wrong());
    }
    let found = info(&path, &look(), false).map_err(opening(&path))?.swap_remove(0); // never empty: the image itself
    if fact(&found, "creator").as_deref() != Some(CREATOR.1) {
        let line = format!("{} not created by xen; resize not supported", name_of(&path));
        return Err(Failed::says(errno::INVALID, line));
    }
    // Disks with a table grow by whole blocks.
    let fixed = count(&found, "table-entries").is_none();
    let after = if fixed { number(&size)?.checked_mul(MIB).ok_or_else(wrong)? } else { mebibytes(&size)? };
    let how = Resize {
        open: change(),
        size: NewSize::To(after),
        shrink: false,
        force: false,
        prealloc: Prealloc::Off,
    };
    let is = found.virtual_size;
    // Whoever wants it to stop does not tear it: it is taken back, or done.
    let progress = Percent::new(false);
    let Some(journal) = journal else {
        if after < is {
            let line = format!("{}: size ({after}) < curr size ({is})", name_of(&path));
            return Err(Failed::says(errno::INVALID, line));
        }
        if after > room(&found) {
            return Err(Failed::says(errno::INVALID, "the metadata has no room for a disk that large"));
        }
        return done(resize(&path, &how));
    };
    if after < is {
        return Err(Failed::says(errno::UNSUPPORTED, format!("resize failed: -{}", errno::UNSUPPORTED)));
    }
    if journal.is_file() {
        return Err(Failed::says(errno::EXISTS, format!("creating journal failed: -{}", errno::EXISTS)));
    }
    let shown = journal.display().to_string();
    resize_with_journal(&path, &how, &journal, &progress).map(|_| ()).map_err(|error| {
        let what = match (error.image_name() == Some(&shown), error.field_name()) {
            (true, Some(JOURNAL_END)) => "removing journal failed",
            (true, _) => "creating journal failed",
            (false, _) => "resize failed",
        };
        Failed::of(what, error)
    })
}

fn done(resized: Result<Resized, Error>) -> Done {
    resized.map(|_| ()).map_err(|error| Failed::of("resize failed", error))
}

/// The largest disk that the metadata has room for.
fn room(found: &Info) -> u64 {
    let room = count(found, "table-entries").zip(count(found, "block-size"));
    room.map_or(0, |(entries, size)| entries.saturating_mul(size))
}
