//! `vhd-util check`: as strict as the tool is, in its words where callers know them.

use std::collections::HashSet;
use std::path::Path;

use cowhand::{
    Check, Kind, Layer, Open, ParentState, Printable, Quiet, Rules, Severity, check_by, info,
    info_with_parent, open,
};

use super::headers::{Base, print, structures};
use super::{
    Call, Done, Failed, Flag, HELP, NAME, SECTOR, Verb, errno, file, is_device, look, name_of, needed, wrong,
};

pub(super) const VERB: Verb = Verb {
    name: "check",
    about: "is everything in an image as it should be?",
    flags: &[
        NAME,
        Flag::short('i', "any-end", "Whatever stands where the footer should, if its copy is good"),
        Flag::short('I', "any-parent", "Whatever the parent's id is"),
        Flag::short('t', "any-time", "Whatever times it says"),
        Flag::short('B', "no-overlaps", "Do not look for blocks that share bytes (not with -s and -b)"),
        Flag::short('p', "parents", "Its parents too"),
        Flag::short('b', "data", "Also that absent sectors hold nothing"),
        Flag::short('s', "stats", "Count the sectors that each image of the chain has"),
        HELP,
    ],
    run,
};

fn run(call: &mut Call<'_>) -> Done {
    let (mut name, mut asked) = (None, HashSet::new());
    while let Some((flag, value)) = call.next()? {
        match flag {
            "name" => name = Some(file(value)),
            flag => drop(asked.insert(flag)),
        }
    }
    call.end()?;
    let path = needed(name)?;
    let is = |flag: &str| asked.contains(flag);
    if is("no-overlaps") && (is("data") || is("stats")) {
        return Err(wrong());
    }
    let rules = Rules {
        strict: true,
        any_time: is("any-time"),
        any_end: is("any-end"),
        no_overlaps: is("no-overlaps"),
        data: is("data"),
        ..Rules::default()
    };
    let job = Job { rules, any_parent: is("any-parent"), quiet: is("stats") };
    job.image(call, &path)?;
    if is("parents") {
        for parent in parents(&path)? {
            job.image(call, Path::new(&parent))
                .inspect_err(|_| drop(writeln!(call.out, "error checking parents")))?;
        }
    }
    if is("stats") { stats(call, &path, is("parents")) } else { Ok(()) }
}

struct Job {
    rules: Rules,
    any_parent: bool,
    /// Nothing is said of an image that is right.
    quiet: bool,
}

impl Job {
    /// Checks one image, and that its parent is the one.
    fn image(&self, call: &mut Call<'_>, path: &Path) -> Done {
        let shown = name_of(path);
        let there = std::fs::metadata(path).map_err(|error| {
            let number = error.raw_os_error().unwrap_or(i32::from(errno::INVALID));
            Failed::says(number as u8, format!("cannot stat {shown}: {number}"))
        })?;
        if !there.is_file() && !is_device(&there) {
            return Err(Failed::says(
                errno::INVALID,
                format!("{shown} is not a regular file or block device"),
            ));
        }
        let how = Check { open: look(), ..Check::default() };
        let wrong = match check_by(path, &how, self.rules, &Quiet) {
            Ok(checked) => checked.report.and_then(|report| {
                let is_wrong = |severity| matches!(severity, Severity::Corruption | Severity::Error);
                report.faults.into_iter().find(|fault| is_wrong(fault.severity)).map(|fault| fault.message)
            }),
            // What is no image at all, or cannot be read.
            Err(error) => {
                writeln!(call.out, "error opening {shown}")?;
                return Err(Failed::Says {
                    status: errno::of(&error),
                    line: String::new(),
                    error: Some(error),
                });
            }
        };
        let wrong = match wrong {
            None if !self.any_parent => lost(path)?,
            wrong => wrong,
        };
        if let Some(wrong) = wrong {
            writeln!(call.out, "{}\n{shown} appears invalid; dumping metadata", Printable(&wrong))?;
            if let Ok(all) = structures(path) {
                print(call.out, &all, Base { hex: false })?;
            }
            return Err(Failed::says(errno::INVALID, ""));
        }
        if !self.quiet {
            writeln!(call.out, "{shown} is valid")?;
        }
        Ok(())
    }
}

/// Why the parent that the image names is not there, or not the one.
fn lost(path: &Path) -> Result<Option<String>, Failed> {
    // Where the footer at the end is not good, its copy counts: so it was checked.
    Ok(match info_with_parent(path, &look()).map(|found| found.parent_state) {
        Ok(ParentState::Lost(why)) => {
            // Without advice that this tool cannot follow.
            let error = open(path, &Open { metadata_only: true, ..look() }).err();
            let why = error.map_or(why, |error| error.without_advice().to_string());
            Some(format!("invalid parent: {why}"))
        }
        Ok(_) => None,
        Err(error) => Some(format!("invalid parent: {}", error.without_advice())),
    })
}

/// The names of the images below, but for a raw one.
fn parents(path: &Path) -> Result<Vec<String>, Failed> {
    let chain = info(path, &Open { any_parent: true, ..look() }, true)
        .map_err(|error| Failed::of("error getting parent", error))?;
    Ok(chain
        .iter()
        .skip(1)
        .filter(|image| image.format == super::FORMAT)
        .map(|image| image.filename.clone())
        .collect())
}

/// One image of a chain, and where on the disk its statistics have come to.
struct Layered {
    name: String,
    layer: std::sync::Arc<dyn Layer>,
    /// The run that was found last: where it ends, and whether the image has it.
    end: u64,
    has: bool,
    /// Guest bytes that the image has; of these, those that the image above has not, and none above has.
    written: u64,
    not_in_next: u64,
    not_in_any: u64,
}

impl Layered {
    /// Whether the image has what stands at `at`, and up to where that holds.
    fn look(&mut self, at: u64) -> cowhand::Result<()> {
        if at >= self.end {
            let size = self.layer.size();
            (self.end, self.has) = if at < size {
                let found = self.layer.extent(at, size - at)?;
                (at.saturating_add(found.len.max(1)), found.kind == Kind::Data)
            } else {
                (u64::MAX, false)
            };
        }
        Ok(())
    }
}

/// Counts what each image of the chain has: allocated, written, and of that what its parent, or none of its ancestors,
/// has not.
fn stats(call: &mut Call<'_>, path: &Path, chain: bool) -> Done {
    let how = Open { any_parent: true, ..look() };
    let how = if chain { how } else { Open { parent: cowhand::Parent::Ignored, ..how } };
    let disk = open(path, &how).map_err(super::opening(path))?;
    let images = disk.links().iter().filter(|link| link.format == super::FORMAT);
    let mut images: Vec<Layered> = images
        .map(|link| Layered {
            name: name_of(Path::new(Path::new(&link.name).file_name().unwrap_or_default())),
            layer: link.layer.clone(),
            end: 0,
            has: false,
            written: 0,
            not_in_next: 0,
            not_in_any: 0,
        })
        .collect();
    let size = images.iter().map(|image| image.layer.size()).max().unwrap_or(0);
    let mut at = 0;
    while at < size {
        images.iter_mut().try_for_each(|image| image.look(at))?;
        let end = images.iter().map(|image| image.end).min().unwrap_or(size).min(size);
        let (len, mut next, mut any) = (end - at, false, false);
        for image in &mut images {
            image.written += if image.has { len } else { 0 };
            image.not_in_next += if image.has && !next { len } else { 0 };
            image.not_in_any += if image.has && !any { len } else { 0 };
            (next, any) = (image.has, any || image.has);
        }
        at = end;
    }
    for (depth, image) in images.iter().enumerate() {
        let mut allocated = 0;
        image.layer.allocated(&mut |_, bytes| {
            allocated += bytes / SECTOR;
            Ok(())
        })?;
        let [written, up, chain] =
            [image.written, image.not_in_next, image.not_in_any].map(|bytes| bytes / SECTOR);
        write!(
            call.out,
            "{}: secs allocated: {allocated:#x} secs written: {written:#x} ({:.2}%)",
            image.name,
            percent(written, allocated)
        )?;
        if depth > 0 {
            write!(
                call.out,
                " secs not in parent: {up:#x} ({:.2}%) secs not in ancestors: {chain:#x} ({:.2}%)",
                percent(up, written),
                percent(chain, written)
            )?;
        }
        writeln!(call.out)?;
    }
    Ok(())
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 }
}
