//! `vma extract`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cowhand::archive::{Extract, Onlooker, Tally, extract};
use cowhand::{Error, ErrorKind, Manifest, Printable, Result};

use super::{Call, Ended, Failure, failed, fatal, text, unreadable};
use crate::exit::DONE;
use crate::output::Output;
use crate::progress::Meter;
use crate::verbs::vma::{FORMAT, from, front, totals};

pub(super) fn run(call: &mut Call<'_>) -> std::result::Result<u8, Ended> {
    let mut how = Extract { archive: Some(FORMAT.to_owned()), lenient: true, ..Extract::default() };
    let mut verbose = false;
    while let Some((flag, value)) = call.next()? {
        match flag {
            "disks" => how.disks = Some(text(&value).split(',').map(str::to_owned).collect()),
            "map" => how.map = Some(value.into()),
            _ => verbose = true,
        }
    }
    let [file, folder] = call.others()?;
    let mut teller = Teller {
        out: call.out,
        mapped: how.map.is_some(),
        verbose,
        state: State::Front,
        memory: Vec::new(),
        since: Instant::now(),
    };
    let done = extract(from(&file), Path::new(&folder), &how, &mut teller, &Meter::new(false, true));
    let state = teller.state;
    let done = done.map_err(|error| match state {
        State::Front => no_folder(&folder, &error).unwrap_or_else(|| unreadable(&file, &error)),
        State::Targets => no_target(&how, &error),
        State::Data => failed("restore failed - ", &error),
    })?;
    if verbose {
        totals::print(call.out, &done.tally)?;
    }
    Ok(DONE)
}

/// How far it has come, which tells what an error is about.
#[derive(Clone, Copy, Debug)]
enum State {
    /// The archive's front and the folder.
    Front,
    /// The map, and the images.
    Targets,
    /// The archive's data.
    Data,
}

fn no_folder(folder: &OsStr, error: &Error) -> Option<Failure> {
    let named = error.image_name().map(Path::new)?;
    let about = named.components().eq(Path::new(folder).components());
    let why = match (error.os_error(), error.kind()) {
        (Some(said), _) => said,
        (None, ErrorKind::Exists) => "File exists".to_owned(),
        _ => return None,
    };
    about.then(|| fatal(format_args!("unable to create target directory {} - {why}", folder.display())))
}

fn no_target(how: &Extract, error: &Error) -> Failure {
    let (Some(name), Some(said)) = (error.image_name(), error.os_error()) else { return failed("", error) };
    let map = how.map.as_deref().is_some_and(|map| map == Path::new(name));
    match map {
        true => fatal(format_args!("unable to open fifo {name} - {said}")),
        false => fatal(format_args!("can't open file {name} - Could not open '{name}': {said}")),
    }
}

struct Teller<'a> {
    out: &'a mut Output,
    /// Somebody waits for the list, to write the map.
    mapped: bool,
    verbose: bool,
    state: State,
    /// The names of machines' memories, which are told of nowhere.
    memory: Vec<String>,
    since: Instant,
}

impl Onlooker for Teller<'_> {
    fn front(&mut self, what: &Manifest) -> Result<()> {
        self.state = State::Targets;
        self.memory = what.disks.iter().filter(|disk| disk.memory).map(|disk| disk.name.clone()).collect();
        if self.mapped {
            front::print(self.out, what)?;
        }
        self.out.flush()
    }

    fn disk(&mut self, name: &str, size: u64, path: &Path, zeros: Option<bool>) -> Result<()> {
        if zeros.is_some() || self.memory.iter().any(|memory| memory == name) {
            return Ok(());
        }
        // The name that it has meanwhile, there.
        let file = path.file_name().unwrap_or_default().display().to_string();
        let path: PathBuf = path.with_file_name(format!("tmp-{file}"));
        writeln!(self.out, "DEVINFO {} {size}", Printable(&path.display().to_string()))?;
        self.out.flush()
    }

    fn filling(&mut self) -> Result<()> {
        self.state = State::Data;
        Ok(())
    }

    fn passed(&mut self, tally: &Tally) -> Result<()> {
        if self.verbose { totals::progress(self.out, tally, self.since) } else { Ok(()) }
    }
}
