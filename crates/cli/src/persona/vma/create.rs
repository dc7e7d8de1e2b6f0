//! `vma create`.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use cowhand::archive::{CreateArchive, DiskToArchive};
use cowhand::{Error, ErrorKind, Policy};

use super::{Call, Ended, Failure, cannot_open, failed, fatal};
use crate::exit::DONE;
use crate::persona::complain;
use crate::progress::Meter;
use crate::sources::Sharing;
use crate::verbs::vma::FORMAT;
use crate::verbs::vma::create::disk;
use crate::verbs::vma::place::Place;
use crate::verbs::vma::watch::Watch;

pub(super) fn run(call: &mut Call<'_>) -> Result<u8, Ended> {
    // Never packed: this tool's callers do that themselves.
    let mut how = CreateArchive {
        format: FORMAT.to_owned(),
        packing: Some("none".to_owned()),
        ..CreateArchive::default()
    };
    let mut disks = Vec::new();
    let mut verbose = false;
    while let Some((flag, value)) = call.next()? {
        match flag {
            "config" => how.configs.push(value.into()),
            "disk" => disks.push(value),
            _ => verbose = true,
        }
    }
    let others = call.words.others();
    let Some((to, old)) = others.split_first() else { return Err(Ended::Help(String::new())) };
    how.disks = disks_of(&disks, old)?;
    let place = Place::named(to).map_err(|error| failed("", &error))?;
    let watch = Watch::new(Meter::new(false, true), how.zeros.clone(), verbose);
    let done = place.make(&how, &watch).map_err(|error| not_made(to, &how, &error))?;
    watch.finish(&done.disks);
    Ok(DONE)
}

/// `-d` and, in the old way, the words behind the archive's name.
fn disks_of(disks: &[OsString], old: &[OsString]) -> Result<Vec<DiskToArchive>, Failure> {
    if !disks.is_empty() && !old.is_empty() {
        return Err(fatal("Unexpected extra argument - specify all devices via '-d'"));
    }
    let sharing = Sharing { paths: vec![Policy::Local], ..Sharing::default() };
    let mut all = Vec::new();
    for word in disks.iter().chain(old) {
        let shown = word.to_string_lossy();
        let with_format = shown.starts_with("format=");
        if with_format && !shown.contains(':') {
            return Err(fatal(format_args!("read map failed - option 'format' not terminated ('{shown}')")));
        }
        if !with_format && !disks.is_empty() {
            return Err(fatal(format_args!("No format specified for device: '{shown}'")));
        }
        if !with_format {
            complain(&format!(
                "vma: warning: Specifying a device without a format is deprecated - use '-d format=<format>:{shown}'"
            ));
        }
        all.push(disk(word, with_format, &sharing).map_err(|error| failed("", &error))?);
    }
    Ok(all)
}

fn not_made(to: &OsStr, how: &CreateArchive, error: &Error) -> Failure {
    let about = |path: &Path| error.image_name().is_some_and(|name| Path::new(name) == path);
    let said = error.os_error();
    if error.kind() == ErrorKind::Cancelled {
        return failed("", error);
    }
    if let Some(disk) = how.disks.iter().find(|disk| about(&disk.path)) {
        let name = disk.path.display();
        let why = match (error.sentence(), said) {
            (Some(sentence), _) => sentence.to_owned(),
            (None, Some(said)) => format!("Could not open '{name}': {said}"),
            (None, None) => error.without_image().to_string(),
        };
        return fatal(format_args!("bdrv_open '{name}' failed - {why}"));
    }
    match said {
        _ if error.sentence().is_some() => failed("", error),
        None if error.kind() == ErrorKind::Exists && about(Path::new(to)) => cannot_open(to, "File exists"),
        Some(said) if about(Path::new(to)) => cannot_open(to, &said),
        Some(said) if how.configs.iter().any(|path| about(path)) => {
            let name = error.image_name().unwrap_or_default();
            fatal(format_args!("Unable to read file: Failed to open file “{name}”: {said}"))
        }
        _ => failed("creating vma archive failed - ", error),
    }
}
