//! What must hold of every hostile image: the right verdict, in little time and memory, with nothing changed.

use std::path::{Path, PathBuf};

use cowhand_tests::{Patch, Probed, file_sha256, for_all, probe};

/// The most that one operation may take, in milliseconds and in KiB.
const TIME: u64 = 2000;
const MEMORY: u64 = 256 << 10;

/// What opening and reading all of an image must come to.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// An error when it is opened; the text holds this.
    AtOpen(&'static str),
    /// It opens, and reading fails with an error whose text holds this.
    OnRead(&'static str),
    /// An error in either place: what cannot be told from the tables' heads alone.
    Somewhere,
    /// It opens and reads.
    Fine,
    /// Whatever it comes to, it stays within bounds.
    Bounded,
}

/// What the gate must say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Gate {
    /// It may say anything, as long as it says something: the damage lies where no stream can be judged by.
    Any,
    /// `unsafe`, `ambiguous` or `unreadable`.
    Refuses,
    /// `ambiguous`.
    Ambiguous,
    /// `safe`.
    Safe,
}

/// An image and what must come of it.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) image: PathBuf,
    /// Further words for `probe`.
    pub(crate) how: Vec<String>,
    pub(crate) verdict: Verdict,
    pub(crate) gate: Gate,
}

/// A table of cases, made by patching.
#[derive(Debug)]
pub(crate) struct Cases<'a> {
    folder: &'a Path,
    extension: &'static str,
    pub(crate) cases: Vec<Case>,
}

impl<'a> Cases<'a> {
    pub(crate) fn new(folder: &'a Path, extension: &'static str) -> Self {
        Cases { folder, extension, cases: Vec::new() }
    }

    /// One case: the pattern with some bytes changed.
    pub(crate) fn add(
        &mut self,
        name: &str,
        pattern: &Patch,
        verdict: Verdict,
        gate: Gate,
        change: impl FnOnce(&mut Patch) -> &mut Patch,
    ) {
        let mut patch = pattern.clone();
        change(&mut patch);
        let image = self.folder.join(format!("{}.{}", self.cases.len(), self.extension));
        patch.save(&image);
        self.cases.push(Case { name: name.to_owned(), image, how: Vec::new(), verdict, gate });
    }
}

/// Judges all.
pub(crate) fn judge(cases: &[Case]) {
    for_all(cases, |case| case.name.clone(), judge_one);
}

fn bounded(what: &str, probed: &Probed) {
    // The limit is for a machine that does nothing else, and tests share theirs: what counts is the processors' time.
    // What waits takes none, and is bounded more loosely.
    assert!(probed.cpu_ms <= TIME, "{what} took {} ms of a processor", probed.cpu_ms);
    assert!(probed.ms <= 10 * TIME, "{what} took {} ms", probed.ms);
    assert!(probed.peak_kib <= MEMORY, "{what} took {} KiB", probed.peak_kib);
    let text = &probed.message;
    assert!(!text.chars().any(char::is_control), "{what}: control characters in {text:?}");
}

fn judge_one(case: &Case) {
    let before = file_sha256(&case.image);
    let words = |verb: &str| {
        let image = case.image.to_str().unwrap().to_owned();
        [vec![verb.to_owned(), image], case.how.clone()].concat()
    };
    let read = probe(words("read"));
    bounded("reading", &read);
    bounded("info", &probe(words("info")));
    let seen = probe([Path::new("inspect"), &case.image]);
    bounded("inspect", &seen);
    assert_eq!(file_sha256(&case.image), before, "the image was changed");

    let text = &read.message;
    let failed = read.ok.is_none();
    match &case.verdict {
        Verdict::Bounded => {}
        Verdict::Fine => assert!(!failed, "{}: {text}", read.kind),
        Verdict::AtOpen(part) => {
            assert!(failed && !read.opened, "it opened: {:?} {text}", read.ok);
            is_clear(case, &read, part);
        }
        Verdict::OnRead(part) => {
            assert!(failed, "it was read: {:?}", read.ok);
            assert!(read.opened, "it did not even open: {text}");
            is_clear(case, &read, part);
        }
        Verdict::Somewhere => {
            assert!(failed, "it was read: {:?}", read.ok);
            is_clear(case, &read, "");
        }
    }
    let verdict = seen.ok.as_ref().map_or("unreadable", |report| report["verdict"].as_str().unwrap());
    let right = match case.gate {
        Gate::Any => true,
        Gate::Refuses => verdict != "safe",
        Gate::Ambiguous => verdict == "ambiguous",
        Gate::Safe => verdict == "safe",
    };
    assert!(right, "inspect says {:?}, and not {:?}", seen.ok, case.gate);
}

/// A check of such an image stays within bounds, changes nothing, and finds something wrong where opening does; a write is
/// refused where there is, or makes it no worse; a repair makes it no worse either.
pub(crate) fn check_and_repair(cases: &[Case], format: &str) {
    let check = |case: &Case| {
        let before = file_sha256(&case.image);
        let run_on = |verb: &str, image: &Path| {
            let image = image.to_str().unwrap().to_owned();
            let words = vec![verb.to_owned(), image, format!("format={format}")];
            let probed = probe([words, case.how.clone()].concat());
            bounded(verb, &probed);
            if let Some(report) = &probed.ok {
                let text = report["messages"].to_string();
                assert!(!text.contains("\\u00"), "control characters in {text}");
            }
            probed
        };
        let run = |verb: &str| run_on(verb, &case.image);
        let first = run("check");
        assert_eq!(file_sha256(&case.image), before, "a check changed the image");
        let Some(first) = first.ok else {
            assert_eq!(first.kind, "Unsupported", "{}", first.message);
            return;
        };
        let wrong = |report: &serde_json::Value| {
            report["corruptions"].as_u64().unwrap() + report["check_errors"].as_u64().unwrap()
        };
        let bad = matches!(case.verdict, Verdict::AtOpen(_) | Verdict::OnRead(_) | Verdict::Somewhere);
        assert!(!bad || wrong(&first) > 0, "it is refused, and nothing is wrong: {first}");
        let copy = case.image.with_extension("written");
        std::fs::copy(&case.image, &copy).unwrap();
        let written = run_on("write", &copy);
        assert!(!bad || written.ok.is_none(), "it is written, and something is wrong: {first}");
        let after = run_on("check", &copy).ok.unwrap();
        assert!(wrong(&after) <= wrong(&first), "a write made it worse: {first}\n{after}");
        std::fs::remove_file(&copy).unwrap();
        let repaired = run("repair");
        let Some(repaired) = repaired.ok else { panic!("{}: {}", repaired.kind, repaired.message) };
        assert!(wrong(&repaired) <= wrong(&first), "{first}\n{repaired}");
        let again = run("check").ok.unwrap();
        assert_eq!(wrong(&again), wrong(&repaired), "{first}\n{repaired}");
        if wrong(&again) == 0 {
            let read = run("read");
            assert!(read.ok.is_some(), "repaired, and not readable: {} {}", read.kind, read.message);
        }
    };
    for_all(cases, |case| case.name.clone(), check);
}

/// The error is of the image's making, and names image and part.
fn is_clear(case: &Case, read: &Probed, part: &str) {
    let text = &read.message;
    let kinds = ["Corrupt", "Unsupported", "Ambiguous", "Changed", "Denied"];
    assert!(kinds.contains(&read.kind.as_str()), "{}: {text}", read.kind);
    assert!(text.to_lowercase().contains(&part.to_lowercase()), "'{part}' is not in: {text}");
    let name = case.image.file_name().unwrap().to_str().unwrap();
    assert!(text.contains(name), "the image is not named: {text}");
}
