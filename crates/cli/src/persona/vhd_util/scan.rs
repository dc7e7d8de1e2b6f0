//! `vhd-util scan`: a line for each image that files, patterns or a volume group lead to.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use cowhand::{Error, Info, Open, Place, Printable, files_in};

use super::names::{canonical, count, fact, hidden, parent_of, volume};
use super::{Call, Done, Failed, Flag, HELP, Verb, errno, look, wrong};
use crate::persona::complain;

pub(super) const VERB: Verb = Verb {
    name: "scan",
    about: "what images there are",
    flags: &[
        Flag::short('m', "match", "Those that fit this pattern").of("GLOB"),
        Flag::short('f', "fast", "Do not look for parents"),
        Flag::short('c', "go-on", "Go on after an image that cannot be read, and call it no failure"),
        Flag::short('l', "group", "Logical volumes of this group").of("GROUP"),
        Flag::short('p', "pretty", "Parents and children as a tree"),
        Flag::short('a', "parents", "The images' parents too"),
        Flag::short('v', "verbose", "Whole paths"),
        Flag::short('M', "markers", "Markers and hashes of keys too"),
        HELP,
    ],
    run,
};

#[derive(Clone, Default)]
struct How {
    fast: bool,
    go_on: bool,
    group: Option<String>,
    pretty: bool,
    parents: bool,
    verbose: bool,
    markers: bool,
}

fn run(call: &mut Call<'_>) -> Done {
    let (mut how, mut pattern) = (How::default(), None);
    while let Some((flag, value)) = call.next()? {
        match flag {
            "match" => pattern = Some(value),
            "fast" => how.fast = true,
            "go-on" => how.go_on = true,
            "group" => how.group = Some(value.to_string_lossy().into_owned()),
            "pretty" => how.pretty = true,
            "parents" => how.parents = true,
            "verbose" => how.verbose = true,
            _ => how.markers = true,
        }
    }
    let files = call.words.others();
    if pattern.is_none() && files.is_empty() {
        return Err(wrong());
    }
    // A tree needs to know who stands on whom.
    how.fast &= !how.pretty;
    let mut job = Job { call, how, lines: Vec::new(), todo: Vec::new(), known: HashSet::new(), first: None };
    job.find(pattern, files)?;
    while let Some(target) = job.next() {
        job.look_at(target)?;
        if job.first.is_some() && !job.how.go_on {
            break;
        }
    }
    job.tree()?;
    match job.first.filter(|_| !job.how.go_on) {
        Some(status) => Err(Failed::says(status, "")),
        None => Ok(()),
    }
}

/// What is to be looked at.
#[derive(Clone)]
struct Target {
    path: PathBuf,
    /// A parent that is raw.
    raw: bool,
}

/// What is known of one image.
struct Line {
    /// As it is printed with `-v`.
    name: String,
    capacity: u64,
    size: u64,
    hidden: u64,
    marker: u64,
    key: String,
    parent: Option<String>,
}

struct Job<'a, 'b> {
    call: &'a mut Call<'b>,
    how: How,
    /// Kept until all are known, for a tree.
    lines: Vec<Line>,
    /// The next is the last.
    todo: Vec<Target>,
    /// The last parts of the names of all that was found: parents are added once.
    known: HashSet<String>,
    /// The number of the first error.
    first: Option<u8>,
}

impl Job<'_, '_> {
    /// Finds the images. A name that leads nowhere is an error of its own; a pattern that fits nothing is none.
    fn find(&mut self, pattern: Option<OsString>, files: Vec<OsString>) -> Done {
        let mut patterns = Vec::new();
        for word in pattern.into_iter().chain(files) {
            let Some(more) = alternatives(&word) else {
                return Err(Failed::says(errno::INVALID, "a pattern stands for too many others"));
            };
            patterns.extend(more);
        }
        let mut found = Vec::new();
        for pattern in patterns {
            let place = match &self.how.group {
                Some(group) => {
                    Place::VolumeGroup(group.clone(), Some(pattern.to_string_lossy().into_owned()))
                }
                None => Place::Path(PathBuf::from(&pattern)),
            };
            match files_in(&place, true) {
                Ok(files) => found.extend(files.into_iter().map(|path| Target { path, raw: false })),
                Err(error) if self.how.group.is_some() => {
                    let number = errno::of(&error);
                    complain(&format!("scan failed: -{number}"));
                    return Err(Failed::Says { status: number, line: String::new(), error: Some(error) });
                }
                Err(error) => {
                    self.error(&pattern.to_string_lossy(), "failure scanning target", error)?;
                    if !self.how.go_on {
                        return Ok(());
                    }
                }
            }
        }
        found.reverse();
        self.known = found.iter().map(|target: &Target| self.own_name(&target.path)).collect();
        self.todo = found;
        Ok(())
    }

    fn next(&mut self) -> Option<Target> {
        if self.first.is_some() && !self.how.go_on { None } else { self.todo.pop() }
    }

    /// Prints one image, or keeps it for the tree.
    fn look_at(&mut self, target: Target) -> Done {
        let how = Open { format: Some(if target.raw { "raw" } else { super::FORMAT }.to_owned()), ..look() };
        let path =
            if self.how.pretty && self.how.group.is_none() { canonical(&target.path) } else { target.path };
        let name = match &self.how.group {
            Some(_) => volume(&path.display().to_string()),
            None => path.display().to_string(),
        };
        let info = match cowhand::info(&path, &how, false) {
            Ok(mut found) => found.swap_remove(0), // never empty: the image itself
            Err(error) => {
                let what = if self.how.group.is_some() { "opening device" } else { "opening file" };
                return self.error(&name, what, error);
            }
        };
        let (parent, file) = self.parent(&path, &info);
        if let Some(file) = file.filter(|_| self.how.parents) {
            self.add(file, &info);
        }
        let line = Line {
            name,
            capacity: info.virtual_size,
            size: info.physical_size,
            hidden: if target.raw { 1 } else { hidden(&info) },
            marker: count(&info, "batmap-marker").unwrap_or(0),
            key: fact(&info, "batmap-key-hash").unwrap_or_default(),
            parent,
        };
        if self.how.pretty {
            self.lines.push(line);
            return Ok(());
        }
        self.print(&line, 0, "")
    }

    /// The parent's name as it is printed with `-v`, and where it is.
    fn parent(&self, path: &Path, info: &Info) -> (Option<String>, Option<PathBuf>) {
        if info.parent.is_none() {
            return (None, None);
        }
        let stated = fact(info, "parent-name").filter(|name| !name.is_empty());
        let file = if self.how.fast && !self.how.parents { None } else { parent_of(path, info) };
        let found = file.as_ref().map(|file| file.display().to_string());
        let name = if self.how.fast { stated.or(found) } else { found.or(stated) };
        let name = name.or_else(|| info.backing_filename());
        match &self.how.group {
            Some(_) => (name.map(|name| volume(&name)), file),
            None => (name, file),
        }
    }

    /// Puts a parent behind all others, unless it is one of them.
    fn add(&mut self, file: PathBuf, child: &Info) {
        if self.known.insert(self.own_name(&file)) {
            let raw = child.parent.as_ref().is_some_and(|parent| parent.expected.is_empty());
            self.todo.insert(0, Target { path: file, raw });
        }
    }

    /// What tells an image from the others: the last part of its name.
    fn own_name(&self, path: &Path) -> String {
        let name = path.display().to_string();
        if self.how.group.is_some() { volume(&name) } else { base(&name).to_owned() }
    }

    fn error(&mut self, name: &str, what: &str, error: Error) -> Done {
        let number = errno::of(&error);
        self.first.get_or_insert(number);
        let name = Printable(name);
        writeln!(self.call.out, "vhd={name} scan-error=-{number} error-message='{what}'")?;
        self.call.explain(Some(&error));
        Ok(())
    }

    fn print(&mut self, line: &Line, indent: usize, remark: &str) -> Done {
        let shown = |name: &str| if self.how.verbose { name.to_owned() } else { base(name).to_owned() };
        let parent = line.parent.as_deref().map_or_else(|| "none".to_owned(), shown);
        let markers = match self.how.markers {
            true => format!("marker={} keyhash={} ", line.marker, line.key),
            false => String::new(),
        };
        let Line { capacity, size, hidden, .. } = line;
        let (name, parent) = (shown(&line.name), Printable(&parent));
        let name = Printable(&name);
        writeln!(
            self.call.out,
            "{:indent$}vhd={name} capacity={capacity} size={size} hidden={hidden} {markers}parent={parent}{remark}",
            ""
        )?;
        Ok(())
    }

    /// Prints what was kept: trees of hidden images first, then the others; children below their parents, hidden ones
    /// last.
    fn tree(&mut self) -> Done {
        let mut lines = std::mem::take(&mut self.lines);
        lines.sort_by(|a, b| a.name.cmp(&b.name));
        let places: BTreeMap<String, usize> =
            lines.iter().enumerate().map(|(place, line)| (line.name.clone(), place)).collect();
        let parent = |line: &Line| line.parent.as_ref().and_then(|parent| places.get(parent)).copied();
        let mut children: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (place, line) in lines.iter().enumerate() {
            if let Some(parent) = parent(line).filter(|parent| *parent != place) {
                children.entry(parent).or_default().push(place);
            }
        }
        let is_root = |line: &Line| parent(line).is_none();
        let hidden_first = lines.iter().enumerate().filter(|(_, line)| is_root(line) && line.hidden != 0);
        let others = lines.iter().enumerate().filter(|(_, line)| is_root(line) && line.hidden == 0);
        // What stands on itself has no root, and comes last.
        let rest = 0..lines.len();
        let order: Vec<usize> =
            hidden_first.map(|(place, _)| place).chain(others.map(|(place, _)| place)).chain(rest).collect();
        let mut printed = vec![false; lines.len()];
        for root in order {
            let mut stack = vec![(root, 0)];
            while let Some((place, depth)) = stack.pop() {
                let (Some(line), Some(done)) = (lines.get(place), printed.get_mut(place)) else { continue };
                if std::mem::replace(done, true) {
                    continue;
                }
                let lost = line.parent.is_some() && parent(line).is_none();
                self.print(line, depth * 3, if lost { " (not found in scan)" } else { "" })?;
                let own = children.get(&place).into_iter().flatten().copied();
                let (last, first): (Vec<usize>, Vec<usize>) =
                    own.partition(|child| lines.get(*child).is_some_and(|child| child.hidden != 0));
                stack.extend(first.into_iter().chain(last).rev().map(|child| (child, depth + 1)));
            }
        }
        Ok(())
    }
}

/// The last part of a path.
fn base(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// More patterns than this are no list of names.
const PATTERNS: usize = 4096;

/// The patterns that `{one,other}` stands for; `None`: too many.
fn alternatives(pattern: &OsStr) -> Option<Vec<OsString>> {
    let mut done = Vec::new();
    // The next is the last.
    let mut todo = vec![pattern.as_bytes().to_vec()];
    while let Some(pattern) = todo.pop() {
        match parts(&pattern) {
            Some((front, inside, behind)) => {
                let each = inside.split(|byte| *byte == b',').rev();
                todo.extend(each.map(|part| [front, part, behind].concat()));
            }
            None => done.push(OsString::from_vec(pattern)),
        }
        if done.len() + todo.len() > PATTERNS {
            return None;
        }
    }
    Some(done)
}

/// What stands before, in and behind the first braces.
fn parts(pattern: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let split = |text: &'_ [u8], at: u8| text.iter().position(|byte| *byte == at);
    let open = split(pattern, b'{')?;
    let (front, rest) = (pattern.get(..open)?, pattern.get(open + 1..)?);
    let close = split(rest, b'}')?;
    let (inside, behind) = (rest.get(..close)?, rest.get(close + 1..)?);
    (!inside.contains(&b'{')).then_some((front, inside, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_stand_for_several_patterns() {
        for (pattern, wanted) in [
            ("*.vhd", "*.vhd"),
            ("{a,b}.vhd", "a.vhd b.vhd"),
            ("{a,b}-{1,2}", "a-1 a-2 b-1 b-2"),
            ("a{", "a{"),
            ("{VHD-*,LV-*}", "VHD-* LV-*"),
        ] {
            let found = alternatives(OsStr::new(pattern)).unwrap();
            assert_eq!(found.join(OsStr::new(" ")), wanted);
        }
        assert_eq!(alternatives(OsStr::new(&"{a,b}".repeat(24))), None);
        assert_eq!(alternatives(OsStr::new(&"{a,b}".repeat(12))).unwrap().len(), 4096);
    }
}
