//! `vhd-util snapshot`: an empty child over an image.

use std::path::Path;

use cowhand::{Amend, Child, Info, Open, Parent, Quiet, amend, child_with, depth_over, info, open};

use super::names::{canonical, fact};
use super::percent::Percent;
use super::{
    CREATOR, Call, Done, FORMAT, Failed, Flag, HELP, NAME, Verb, change, errno, file, look, mebibytes,
    name_of, needed, number, opening, options, wrong,
};

pub(super) const VERB: Verb = Verb {
    name: "snapshot",
    about: "make an empty child of an image",
    flags: &[
        NAME,
        Flag::short('p', "parent", "The image that it stands on; an empty one gives way to its own parent")
            .of("FILE"),
        Flag::short('l', "limit", "How many images the chain may have").of("COUNT"),
        Flag::short('m', "raw", "The parent is raw"),
        Flag::short('S', "room", "Keep room for metadata of a disk this large, for resize -f").of("MIB"),
        Flag::short('e', "empty", "Stand on the parent although it is empty"),
        HELP,
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Done {
    let (mut name, mut parent, mut room, mut limit) = (None, None, None, 0);
    let (mut raw, mut keep_empty) = (false, false);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "name" => name = Some(file(value)),
            "parent" => parent = Some(file(value)),
            "room" => room = Some(mebibytes(&value)?).filter(|room| *room > 0),
            "limit" => limit = number(&value)?,
            "raw" => raw = true,
            _ => keep_empty = true,
        }
    }
    // The word that names what -m says.
    if !matches!(call.words.others().as_slice(), [] | [_]) {
        return Err(wrong());
    }
    let (path, parent) = (needed(name)?, canonical(&needed(parent)?));
    let format = if raw { "raw" } else { FORMAT };
    let room = room.map(|room: u64| room.to_string());
    let mut given = vec![CREATOR];
    given.extend(room.as_deref().map(|room| ("max_size", room)));
    let how = Child {
        open: Open { format: Some(format.to_owned()), ..look() },
        format: Some(FORMAT.to_owned()),
        options: options(&given),
        keep_empty: keep_empty || raw,
        ..Child::default()
    };
    if limit > 0 && !raw {
        let depth =
            depth_over(&parent, &how).map_err(|error| Failed::of("error checking snapshot depth", error))?;
        if depth as u64 + 1 > limit {
            let line = format!("snapshot depth exceeded: current depth: {depth}, limit: {limit}");
            return Err(Failed::says(errno::NO_SPACE, line));
        }
    }
    let target = in_device_names(&path);
    let made = child_with(&parent, &target, &how, &Percent::new(false)).map_err(|error| {
        match open(&parent, &Open { metadata_only: true, ..how.open.clone() }) {
            Ok(_) => Failed::of(format!("error creating {}", name_of(&path)), error),
            Err(_) => opening(&parent)(error),
        }
    })?;
    inherit_key(&target, made.parent_format)
}

/// A new file's name as it is; a logical volume's as the device mapper has it, so that its parent is named so too.
fn in_device_names(path: &Path) -> std::path::PathBuf {
    if path.starts_with("/dev") { canonical(path) } else { path.to_owned() }
}

/// A child's content is encrypted with its parent's key, if that has one.
fn inherit_key(path: &Path, parent_format: &str) -> Done {
    if parent_format != FORMAT {
        return Ok(());
    }
    let chain = info(path, &Open { metadata_only: true, any_parent: true, ..look() }, true)?;
    let Some(key) = chain.get(1).and_then(key_of) else { return Ok(()) };
    let how = Amend {
        open: Open { parent: Parent::Ignored, ..change() },
        options: options(&[("key_hash", &key)]),
        ..Amend::default()
    };
    Ok(amend(path, &how, &Quiet)?)
}

fn key_of(parent: &Info) -> Option<String> {
    Some(format!("{}:{}", fact(parent, "batmap-key-nonce")?, fact(parent, "batmap-key-hash")?))
}
