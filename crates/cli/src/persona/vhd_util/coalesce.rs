//! `vhd-util coalesce`: what an image holds goes down into its parent; the image stays as it is.

use cowhand::{Commit, Convert, Open, Parent, commit, convert, open_alone};

use super::percent::Percent;
use super::{
    CREATOR, Call, Done, FORMAT, Failed, Flag, HELP, NAME, SECTOR, Verb, change, errno, file, look, name_of,
    needed, options, wrong,
};

pub(super) const VERB: Verb = Verb {
    name: "coalesce",
    about: "write what an image holds into its parent",
    flags: &[
        NAME,
        Flag::short('a', "ancestor", "Into this image of the chain, not into the parent").of("FILE"),
        Flag::short('o', "output", "Write the whole disk into a new image, and leave the chain alone")
            .of("FILE"),
        Flag::short('x', "stand-in", "Take this file for the parent").of("FILE"),
        Flag::short('s', "sparse", "Leave the parent's new blocks without space where nothing is written"),
        Flag::short('p', "progress", "Show how far it is"),
        HELP,
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Done {
    let (mut name, mut ancestor, mut output, mut stand_in) = (None, None, None, None);
    let (mut sparse, mut progress) = (false, false);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "name" => name = Some(file(value)),
            "ancestor" => ancestor = Some(file(value)),
            "output" => output = Some(file(value)),
            "stand-in" => stand_in = Some(file(value)),
            "sparse" => sparse = true,
            _ => progress = true,
        }
    }
    call.end()?;
    let path = needed(name)?;
    if output.is_some() && ancestor.is_some() {
        return Err(wrong());
    }
    let progress = Percent::new(progress);
    let coalescing = |error| Failed::of("error coalescing", error);
    if let Some(output) = output {
        if output.exists() {
            writeln!(call.out, "{} already exists", name_of(&output))?;
            return Err(Failed::says(errno::EXISTS, format!("error coalescing: -{}", errno::EXISTS)));
        }
        let how = Convert {
            open: look(),
            format: Some(FORMAT.to_owned()),
            options: options(&[CREATOR]),
            ..Convert::new([&path], &output)
        };
        convert(&how, &progress).map_err(|failed| coalescing(failed.error))?;
        progress.finish();
        return Ok(());
    }
    let alone = open_alone(&path, &look()).map_err(|error| {
        let number = errno::of(&error);
        let line = format!("error opening {}: -{number}\nerror coalescing: -{number}", name_of(&path));
        Failed::Says { status: number, line, error: Some(error) }
    })?;
    if alone.top().layer.parent().is_none() {
        let line = "coalescing of non-differencing disks is not supported\nerror coalescing: -22";
        return Err(Failed::says(errno::INVALID, line));
    }
    drop(alone);
    if sparse {
        writeln!(call.out, "opening for sparse writes")?;
        // Progress is written past it.
        call.out.flush()?;
    }
    let parent = stand_in.map_or(Parent::Named, Parent::Given);
    let how = Commit { open: Open { parent, ..change() }, base: ancestor, keep: true, ..Commit::default() };
    let done = commit(&path, &how, &progress).map_err(|failed| coalescing(failed.error))?;
    progress.finish();
    write!(call.out, "Coalesced {} sectors", done.held / SECTOR)?;
    Ok(())
}
