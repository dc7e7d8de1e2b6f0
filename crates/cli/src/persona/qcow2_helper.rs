//! `qcow2_helper` of XCP-ng's storage manager: how much an image keeps, of which clusters, and the images of a volume group.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use cowhand::{
    Error, Info, Lock, Open, Opened, Place, Policy, Printable, Scanned, allocated, block_bitmap, open_alone,
    scan,
};

use super::getopt::{Flag, Words};
use super::{Command, Failure, Outcome, complain};
use crate::exit::{DONE, FAILED};
use crate::output::Output;

const FILE: &[Flag] = &[Flag::short('f', "file", "The image").of("FILE")];

pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "bitmap",
        about: "Write one bit for each cluster, set where the image keeps something of it",
        operands: "-f FILE",
        flags: FILE,
    },
    Command {
        name: "allocated",
        about: "Print how many bytes the image keeps for guest data",
        operands: "-f FILE",
        flags: FILE,
    },
    Command {
        name: "scan",
        about: "List the images of a volume group",
        operands: "-l GROUP -m PATTERN [-a]",
        flags: &[
            Flag::short('l', "group", "The volume group").of("GROUP"),
            Flag::short('m', "match", "Which volumes, by their names").of("PATTERN"),
            Flag::short('a', "ancestors", "And all that these stand on"),
        ],
    },
    Command { name: "help", about: "Show the commands", operands: "", flags: &[] },
];

const LIST: &str = "Run 'qcow2_helper help' for a list of commands.";

pub(super) fn run(words: &[OsString], out: &mut Output) -> Outcome {
    let Some((name, words)) = words.split_first() else {
        return Err(says(format!("Usage: qcow2_helper <command> [options]\n{LIST}")));
    };
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        return Err(says(format!("Command {} is unknown.\n{LIST}", name.display())));
    };
    let mut call = Call { command, words: Words::new(command.name, command.flags, words) };
    match command.name {
        "allocated" => {
            let image = call.image()?;
            allocated(&image).and_then(|bytes| writeln!(out, "{bytes}")).map_err(failed)?;
            Ok(DONE)
        }
        "bitmap" => {
            let image = call.image()?;
            block_bitmap(&image, |bytes| out.write_all(bytes)).map_err(failed)?;
            Ok(DONE)
        }
        "scan" => call.scan(out),
        _ => {
            // Where the real one prints it, too.
            complain("Usage: qcow2_helper <command> [options]\n\nCommands:");
            COMMANDS.iter().for_each(|command| complain(&usage(command)));
            Ok(DONE)
        }
    }
}

struct Call {
    command: &'static Command,
    words: Words,
}

impl Call {
    /// The next flag.
    fn next(&mut self) -> Result<Option<(&'static str, OsString)>, Failure> {
        self.words.next().map_err(|text| says(format!("{text}\n{}", usage(self.command))))
    }

    /// The one image that is named, with or without `-f`.
    fn image(&mut self) -> Result<Opened, Failure> {
        let mut named = None;
        while let Some((_, value)) = self.next()? {
            named = Some(value);
        }
        let others = self.words.others();
        let path = match (named, others.as_slice()) {
            (Some(path), _) => path,
            (None, [path]) => path.clone(),
            _ => return Err(says(usage(self.command))),
        };
        let path = PathBuf::from(path);
        open_alone(&path, &how()).map_err(|error| could_not_open(&path, &error))
    }

    fn scan(&mut self, out: &mut Output) -> Outcome {
        let (mut group, mut pattern, mut ancestors) = (None, None, false);
        while let Some((flag, value)) = self.next()? {
            match flag {
                "group" => group = Some(text(&value)),
                "match" => pattern = Some(text(&value)),
                _ => ancestors = true,
            }
        }
        let (Some(group), Some(pattern)) = (group, pattern) else { return Err(says(usage(self.command))) };
        let mut listing = Listing { out, listed: BTreeSet::new(), parents: VecDeque::new(), broken: false };
        scan(&[Place::VolumeGroup(group, Some(pattern))], &how(), true, |found| listing.add(found))
            .map_err(failed)?;
        while let Some(parent) = listing.parents.pop_front().filter(|_| ancestors) {
            if listing.listed.contains(parent.file_name().unwrap_or_default()) {
                continue;
            }
            scan(&[Place::Path(parent.clone())], &how(), true, |found| listing.add(found)).map_err(|_| {
                let name = parent.file_name().unwrap_or_default().display().to_string();
                says(format!("scan-error: {} not found", Printable(&name)))
            })?;
        }
        Ok(if listing.broken { FAILED } else { DONE })
    }
}

/// The lines of `scan`.
struct Listing<'a> {
    out: &'a mut Output,
    /// The names of the volumes that were looked at.
    listed: BTreeSet<OsString>,
    /// What these stand on.
    parents: VecDeque<PathBuf>,
    broken: bool,
}

impl Listing<'_> {
    /// One image. One that cannot be read is told of, and is no reason to stop.
    fn add(&mut self, found: &Scanned) -> cowhand::Result<()> {
        let name = found.path.file_name().unwrap_or_default();
        self.listed.insert(name.to_owned());
        let shown = name.display().to_string();
        match &found.image {
            Ok(image) => self.line(&found.path, &shown, image),
            Err(error) => {
                complain(&format!("scan-error: {}: {error}", Printable(&shown)));
                self.broken = true;
                Ok(())
            }
        }
    }

    fn line(&mut self, path: &Path, name: &str, image: &Info) -> cowhand::Result<()> {
        let parent = image.backing_filename().map(PathBuf::from);
        let parent = parent.as_deref().and_then(Path::file_name);
        if let (Some(parent), Some(group)) = (parent, path.parent()) {
            self.parents.push_back(group.join(parent));
        }
        let parent = parent.map_or_else(|| "none".to_owned(), |name| name.display().to_string());
        writeln!(
            self.out,
            "qcow2={} capacity={} size={} hidden={} parent={}",
            Printable(name),
            image.virtual_size,
            image.physical_size,
            u8::from(image.hidden == Some(true)),
            Printable(&parent)
        )
    }
}

/// Images are looked at while others have them open, and nothing of their guests' data is.
fn how() -> Open {
    Open {
        format: Some("qcow2".to_owned()),
        lock: Lock::None,
        policy: Policy::Local,
        metadata_only: true,
        ..Open::default()
    }
}

fn could_not_open(path: &Path, error: &Error) -> Failure {
    let name = path.display();
    match (error.os_error(), error.code()) {
        (Some(said), Some(code)) => says(format!("Opening file {name} failed: {said} ({code})")),
        _ if error.field_name() == Some("magic") => says("MAGIC is wrong".to_owned()),
        _ => says(error.to_string()),
    }
}

fn failed(error: Error) -> Failure {
    says(error.to_string())
}

fn usage(command: &Command) -> String {
    format!("Usage: {} {}", command.name, command.operands).trim_end().to_owned()
}

fn says(text: String) -> Failure {
    Failure { status: FAILED, text }
}

fn text(word: &OsStr) -> String {
    word.to_string_lossy().into_owned()
}
