//! The same command lines through the real `qemu-img` and through ours under that name, side by side.
//!
//! `drop-in/NAME.txt` lists them. A line is
//! - `## TITLE`: a new case, in an empty folder;
//! - `! COMMAND`: prepares the case with real programs; both sides begin with what it leaves;
//! - `$ COMMAND`: is run by both, and must give the same exit status, standard output, standard error and files.
//!   `$~date` looks at no time of day in the output, `$~disk` at no size on disk, `$~file` at no length of an image file,
//!   `$~progress` at no percentage but the last, `$~time` at no time that a benchmark took, several are possible: `$~date~disk`;
//! - `? NAME`: the command before it differs, as `docs/compatibility.md` says under the heading `NAME`. That it does is
//!   looked at too, and its files count no more: both sides go on with what the real one made;
//!   `? open`: it differs, and should not; it is counted, so that nobody takes it for equal;
//! - `# ...`: a remark.
//!
//! A command goes through a shell, in one folder that has the same name on both sides.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use crate::command::{Ran, cowhand_program, run, try_qemu_img};
use crate::drop_in_keys;

/// What came of one list.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Command lines that gave the same.
    pub same: usize,
    /// Those that differ as `docs/compatibility.md` says.
    pub intended: usize,
    /// Those that differ and should not.
    pub open: usize,
}

#[derive(Debug)]
struct Line {
    number: usize,
    command: String,
    masks: Vec<String>,
    differs: Option<String>,
}

#[derive(Debug, Default)]
struct Case {
    /// The list's line that begins it.
    number: usize,
    title: String,
    prepare: Vec<String>,
    lines: Vec<Line>,
}

/// The lists there are, by name.
pub fn drop_in_lists() -> Vec<String> {
    let entries = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<String> =
        entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// Runs the list `name`. Errors: everything that is not the same, for people.
pub fn drop_in(name: &str) -> Result<Tally, String> {
    let cases = parse(&fs::read_to_string(folder().join(format!("{name}.txt"))).unwrap());
    let explained =
        fs::read_to_string(folder().ancestors().nth(2).unwrap().join("docs/compatibility.md")).unwrap();
    let temp = crate::temp();
    let next = AtomicUsize::new(0);
    // Much of a list is waiting: for locks that are held a while, for the disk.
    let work = |worker: usize| {
        let root = temp.path().join(worker.to_string());
        fs::create_dir(&root).unwrap();
        let twins = Twins::new(&root);
        let mut done = Vec::new();
        while let Some(case) = cases.get(next.fetch_add(1, Relaxed)) {
            done.push((case.number, twins.judge(name, case, &explained)));
        }
        done
    };
    let mut done: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                scope.spawn({
                    let work = &work;
                    move || work(worker)
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    done.sort_by_key(|(number, _)| *number);
    let mut all = Tally::default();
    let mut failures = String::new();
    for (_, (tally, said)) in done {
        all.same += tally.same;
        all.intended += tally.intended;
        all.open += tally.open;
        failures += &said;
    }
    if failures.is_empty() { Ok(all) } else { Err(failures) }
}

/// Cases of one list that run at once, each in a place of its own.
const WORKERS: usize = 2;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("drop-in")
}

fn parse(text: &str) -> Vec<Case> {
    let mut cases = vec![Case::default()];
    for (index, text) in text.lines().enumerate() {
        let case = cases.last_mut().unwrap();
        match text.split_once(' ').unwrap_or((text, "")) {
            ("##", title) => {
                cases.push(Case { number: index + 1, title: title.to_owned(), ..Case::default() })
            }
            ("!", command) => {
                assert!(case.lines.is_empty(), "line {}: '!' stands before the case's first '$'", index + 1);
                case.prepare.push(command.to_owned());
            }
            (mark, command) if mark.starts_with('$') => case.lines.push(Line {
                number: index + 1,
                command: command.to_owned(),
                masks: mark.split('~').skip(1).map(str::to_owned).collect(),
                differs: None,
            }),
            ("?", why) => {
                case.lines.last_mut().expect("'?' stands behind a '$'").differs = Some(why.to_owned())
            }
            (mark, _) => assert!(mark.is_empty() || mark.starts_with('#'), "line {}: {text}", index + 1),
        }
    }
    cases.retain(|case| !case.lines.is_empty());
    cases
}

/// Two folders that take turns in one place, `here`.
struct Twins {
    root: PathBuf,
    /// Files that were found the same, as they were then: most commands leave most files alone.
    same: RefCell<HashMap<String, [Stamp; 2]>>,
}

/// What changes when a file does: inode, length, and both its times.
type Stamp = (u64, u64, (i64, i64), (i64, i64));

fn stamp(path: &Path) -> Stamp {
    let meta = fs::symlink_metadata(path).unwrap();
    let (changed, written) = ((meta.ctime(), meta.ctime_nsec()), (meta.mtime(), meta.mtime_nsec()));
    (meta.ino(), meta.len(), changed, written)
}

/// What stands behind `?` where ours is to be mended.
const OPEN: &str = "open";
const SIDES: [&str; 2] = ["real", "ours"];

impl Twins {
    fn new(root: &Path) -> Twins {
        fs::create_dir(root.join("bin")).unwrap();
        symlink(cowhand_program(), root.join("bin/qemu-img")).unwrap();
        Twins { root: root.to_owned(), same: RefCell::default() }
    }

    fn side(&self, side: &str) -> PathBuf {
        self.root.join(side)
    }

    /// Runs a case; answers what came of it, and everything that is not the same.
    fn judge(&self, name: &str, case: &Case, explained: &str) -> (Tally, String) {
        let mut tally = Tally::default();
        let mut failures = String::new();
        self.begin(case);
        for line in &case.lines {
            let differences = self.compare(line);
            let place = format!("{name}.txt:{}", line.number);
            let heading = |why: &str| {
                explained
                    .lines()
                    .any(|text| text.starts_with('#') && text.trim_start_matches('#').trim() == why)
            };
            match line.differs.as_deref() {
                None if differences.is_empty() => tally.same += 1,
                None => writeln!(failures, "{place}: {}\n  $ {}\n{differences}", case.title, line.command)
                    .unwrap(),
                Some(OPEN) => tally.open += 1,
                Some(why) => {
                    tally.intended += 1;
                    if !heading(why) {
                        writeln!(failures, "{place}: docs/compatibility.md has no heading '{why}'").unwrap();
                    } else if differences.is_empty() {
                        writeln!(failures, "{place}: does not differ\n  $ {}", line.command).unwrap();
                    }
                }
            }
            if line.differs.is_some() || !differences.is_empty() {
                self.level();
            }
        }
        (tally, failures)
    }

    /// An empty case, prepared, twice.
    fn begin(&self, case: &Case) {
        for side in SIDES {
            let _ = fs::remove_dir_all(self.side(side));
        }
        fs::create_dir(self.side("real")).unwrap();
        for command in &case.prepare {
            let ran = self.run("real", command);
            assert!(ran.ok(), "{}: ! {command}\n{}{}", case.title, ran.out, ran.err);
        }
        self.level();
    }

    /// Ours has what the real one has.
    fn level(&self) {
        let _ = fs::remove_dir_all(self.side("ours"));
        let mut copy = Command::new("cp");
        copy.args(["-a", "--sparse=auto", "--reflink=never"]).args([self.side("real"), self.side("ours")]);
        let ran = run(&mut copy);
        assert!(ran.ok(), "{}", ran.err);
    }

    fn run(&self, side: &str, command: &str) -> Ran {
        let here = self.root.join("here");
        fs::rename(self.side(side), &here).unwrap();
        let path = if side == "ours" {
            format!("PATH='{}':$PATH; ", self.root.join("bin").display())
        } else {
            String::new()
        };
        // A folder's name without what is random in it says the same in messages.
        let script = format!("cd '{}' || exit 99; umask 022; {path}{command}", here.display());
        let ran = run(Command::new("timeout").args(["30", "sh", "-c", &script]));
        fs::rename(&here, self.side(side)).unwrap();
        ran
    }

    /// What differs, a paragraph each.
    fn compare(&self, line: &Line) -> String {
        let [real, ours] = SIDES.map(|side| self.run(side, &line.command));
        let mut differences = String::new();
        if real.code != ours.code {
            writeln!(differences, "  exit status {:?}, ours {:?}", real.code, ours.code).unwrap();
        }
        for (what, real, ours) in
            [("standard output", &real.out, &ours.out), ("standard error", &real.err, &ours.err)]
        {
            let (real, ours) = (masked(real, &line.masks), masked(ours, &line.masks));
            if real != ours {
                writeln!(differences, "  {what}:\n{}  ours:\n{}", indented(&real), indented(&ours)).unwrap();
            }
        }
        self.compare_files(&mut differences);
        differences
    }

    fn compare_files(&self, differences: &mut String) {
        let [real, ours] = SIDES.map(|side| files(&self.side(side)));
        for name in real.keys().chain(ours.keys().filter(|name| !real.contains_key(*name))) {
            let paths = SIDES.map(|side| self.side(side).join(name));
            match (real.get(name), ours.get(name)) {
                (Some(_), None) => writeln!(differences, "  ours made no {name}").unwrap(),
                (None, Some(_)) => writeln!(differences, "  ours made {name}").unwrap(),
                (Some(a), Some(b)) if a != b => {
                    writeln!(differences, "  {name} has mode {a:o}, ours {b:o}").unwrap()
                }
                _ => self.compare_file(name, &paths, differences),
            }
        }
    }
}

impl Twins {
    fn compare_file(&self, name: &str, paths: &[PathBuf; 2], differences: &mut String) {
        let stamps = paths.each_ref().map(|path| stamp(path));
        if self.same.borrow().get(name) == Some(&stamps) {
            return;
        }
        let before = differences.len();
        match paths.each_ref().map(|path| fs::read_link(path).ok()) {
            [None, None] => same_image(name, paths, differences),
            [real, ours] if real == ours => {}
            [real, ours] => writeln!(differences, "  {name} leads to {real:?}, ours to {ours:?}").unwrap(),
        }
        if differences.len() == before {
            self.same.borrow_mut().insert(name.to_owned(), stamps);
        }
    }
}

/// Files below `folder`, with their modes.
fn files(folder: &Path) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                folders.push(entry.path());
                continue;
            }
            let name = entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            found.insert(name, meta.permissions().mode());
        }
    }
    found
}

/// The same bytes, or images of one format that say the same of themselves, hold the same disk, and are sound.
fn same_image(name: &str, paths: &[PathBuf; 2], differences: &mut String) {
    if same_bytes(paths) {
        return;
    }
    let [real, ours] = paths.each_ref().map(|path| about(path));
    if real != ours {
        writeln!(differences, "  {name} is\n{}  ours is\n{}", indented(&real), indented(&ours)).unwrap();
        return;
    }
    if let Some(said) = drop_in_keys::compared(&real, paths) {
        if !said.is_empty() {
            writeln!(differences, "  {name}:\n{said}").unwrap();
        }
        return;
    }
    let compared =
        try_qemu_img(["compare".as_ref(), "-U".as_ref(), paths[0].as_os_str(), paths[1].as_os_str()]);
    if compared.code != Some(0) {
        writeln!(differences, "  {name}: {}{}", compared.out, compared.err).unwrap();
    }
    let [real, ours] =
        paths.each_ref().map(|path| try_qemu_img(["check".as_ref(), "-U".as_ref(), path.as_os_str()]).code);
    if real != ours {
        writeln!(differences, "  {name}: qemu-img check says {real:?}, of ours {ours:?}").unwrap();
    }
}

/// Large files are the peer's to compare, which knows holes.
fn same_bytes(paths: &[PathBuf; 2]) -> bool {
    let [len, other] = paths.each_ref().map(|path| fs::metadata(path).map_or(0, |meta| meta.len()));
    if len != other || len <= 1 << 20 {
        return len == other && fs::read(&paths[0]).ok() == fs::read(&paths[1]).ok();
    }
    let words = ["compare", "-q", "-U", "-f", "raw", "-F", "raw"].map(OsStr::new);
    try_qemu_img(words.into_iter().chain(paths.iter().map(|path| path.as_os_str()))).code == Some(0)
}

/// What the peer says of an image, without where it stands and how long it is.
fn about(path: &Path) -> String {
    let ran = try_qemu_img(["info".as_ref(), "-U".as_ref(), path.as_os_str()]);
    let masks = ["date", "disk", "file"].map(str::to_owned);
    let text = drop_in_keys::without_what_is_random(&masked(&ran.out, &masks))
        .replace(path.to_str().unwrap(), "PATH");
    // The path that a relative backing file comes to has the side's name in it.
    SIDES.iter().fold(text, |text, side| {
        text.replace(path.parent().unwrap().to_str().unwrap(), "HERE").replace(&format!("/{side}/"), "/here/")
    })
}

/// Without what no two runs have in common.
fn masked(text: &str, masks: &[String]) -> String {
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    for line in &mut lines {
        for mask in masks {
            match mask.as_str() {
                "disk" => cut_behind(line, &["disk size: ", "\"actual-size\": "]),
                "file" => cut_behind(line, &["file length: ", "\"virtual-size\": "]),
                "date" => {
                    cut_behind(line, &["\"date-sec\": ", "\"date-nsec\": "]);
                    *line = without_times(line);
                }
                "time" => cut_behind(line, &["Run completed in "]),
                "progress" => *line = last_percentage(line),
                other => panic!("no mask is called '{other}'"),
            }
        }
    }
    lines.concat()
}

fn cut_behind(line: &mut String, marks: &[&str]) {
    for mark in marks {
        if let Some(at) = line.find(mark) {
            line.replace_range(at + mark.len().., "...\n");
        }
    }
}

/// How often a percentage is printed depends on how fast the machine is.
fn last_percentage(line: &str) -> String {
    let shown = |part: &&str| part.starts_with("    (") && part.ends_with("/100%)\r");
    let parts: Vec<&str> = line.split_inclusive('\r').collect();
    let last = parts.iter().rposition(&shown);
    let kept = parts.iter().enumerate().filter(|(index, part)| Some(*index) == last || !shown(part));
    kept.map(|(_, part)| *part).collect()
}

/// `2026-11-21 12:34:56` becomes `...`.
fn without_times(line: &str) -> String {
    const SHAPE: &[u8] = b"0000-00-00 00:00:00";
    let bytes = line.as_bytes();
    let is_time = |at: usize| {
        bytes.get(at..at + SHAPE.len()).is_some_and(|part| {
            part.iter()
                .zip(SHAPE)
                .all(|(byte, shape)| if *shape == b'0' { byte.is_ascii_digit() } else { byte == shape })
        })
    };
    match (0..bytes.len()).find(|&at| is_time(at)) {
        Some(at) => format!("{}...{}", &line[..at], &line[at + SHAPE.len()..]),
        None => line.to_owned(),
    }
}

fn indented(text: &str) -> String {
    text.split_inclusive('\n')
        .map(|line| format!("    | {line}"))
        .collect::<String>()
        .trim_end_matches('\n')
        .to_owned()
        + "\n"
}
