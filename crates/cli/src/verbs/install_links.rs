//! `install-links`: the names of the tools that the program answers to, as links to it.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Component, Path, PathBuf};

use clap::builder::PossibleValuesParser;
use cowhand::{Cache, DirFolder, Error, ErrorKind, Folder, Printable, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::persona::PERSONAS;

/// Make links by which this program is qemu-img, vhd-util and so on
///
/// Called by one of those names, it takes that tool's words and prints that tool's text. All links are made, or none; a
/// file that is there, or a link to another program, is left alone without --force.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cowhand install-links /usr/local/bin
  cowhand install-links ~/bin qemu-img
  cowhand install-links --force --relative /usr/bin")]
pub(crate) struct Args {
    /// The folder to make them in
    folder: PathBuf,

    /// The names; all of them if none is given
    #[arg(value_name = "NAME", value_parser = PossibleValuesParser::new(PERSONAS.iter().map(|persona| persona.name)))]
    names: Vec<String>,

    /// Replace what bears a name already
    #[arg(long)]
    force: bool,

    /// Make symbolic links; this is done where nothing else is asked for
    #[arg(long, conflicts_with = "hard")]
    symbolic: bool,

    /// Make symbolic links that lead there from the folder, so that both can be moved together
    #[arg(long, conflicts_with = "hard")]
    relative: bool,

    /// Make further names of the file itself
    #[arg(long)]
    hard: bool,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> Outcome {
    let program = std::env::current_exe()
        .and_then(fs::canonicalize)
        .map_err(|error| Error::io("cannot find out which file this program is", error))?;
    let to = if args.relative { seen_from(&args.folder, &program)? } else { program.clone() };
    let mut links = Vec::new();
    for name in names(&args.names) {
        let path = args.folder.join(name);
        match look(&path, &program)? {
            There::ItIs => continue,
            There::LeadsHere if !args.force => {
                writeln!(out, "{} leads here already", shown(&path))?;
            }
            There::Other if !args.force => {
                return Err(Error::new(
                    ErrorKind::Exists,
                    "is there already, and is another program or file",
                )
                .image(path.display())
                .hint("pass --force to replace it")
                .into());
            }
            there => links.push(Link::new(&args.folder, name, there != There::Nothing)),
        }
    }
    make(&links, |at| if args.hard { fs::hard_link(&program, at) } else { symlink(&to, at) })?;
    DirFolder::new(args.folder.clone(), Cache::Writeback).sync()?;
    let (arrow, to) = if args.hard { ("=", &program) } else { ("->", &to) };
    for link in &links {
        writeln!(out, "{} {arrow} {}", shown(&link.path), shown(to))?;
    }
    Ok(DONE)
}

/// What is asked for, in the order of the table.
fn names(wanted: &[String]) -> impl Iterator<Item = &'static str> {
    let asked = |name: &&str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    PERSONAS.iter().map(|persona| persona.name).filter(asked)
}

fn shown(path: &Path) -> String {
    Printable(&path.display().to_string()).to_string()
}

/// The file `program` as a link in `folder` has to name it.
fn seen_from(folder: &Path, program: &Path) -> Result<PathBuf> {
    let from =
        fs::canonicalize(folder).map_err(|error| Error::io("cannot open", error).image(folder.display()))?;
    let same = from.components().zip(program.components()).take_while(|(from, to)| from == to).count();
    let up = from.components().skip(same).map(|_| Component::ParentDir);
    Ok(up.chain(program.components().skip(same)).collect())
}

/// What bears a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum There {
    Nothing,
    /// A link to this program.
    LeadsHere,
    /// The very file that runs.
    ItIs,
    Other,
}

fn look(path: &Path, program: &Path) -> Result<There> {
    let failed = |error| Error::io("cannot look at", error).image(path.display());
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(There::Nothing),
        found => found.map_err(failed)?,
    };
    if found.is_dir() {
        return Err(Error::invalid("is a folder, which is not replaced").image(path.display()));
    }
    let own = fs::metadata(program).map_err(failed)?;
    // A link that leads nowhere is none to this program.
    let leads_here = fs::metadata(path).is_ok_and(|end| (end.dev(), end.ino()) == (own.dev(), own.ino()));
    Ok(match leads_here {
        false => There::Other,
        true if found.is_symlink() => There::LeadsHere,
        true if fs::canonicalize(path).is_ok_and(|path| path == program) => There::ItIs,
        true => There::LeadsHere,
    })
}

/// A link that is to be made.
struct Link {
    path: PathBuf,
    /// Where it is made first, if it takes the place of something: the name is never without a file.
    partial: Option<PathBuf>,
}

impl Link {
    fn new(folder: &Path, name: &str, replaces: bool) -> Link {
        let partial = folder.join(format!(".{name}.partial-{:x}", std::process::id()));
        Link { path: folder.join(name), partial: replaces.then_some(partial) }
    }

    /// Gives it its name; what is made where nothing was fails if something has come to be there.
    fn put(&self, new: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
        let Some(partial) = &self.partial else { return new(&self.path) };
        match exchange(partial, &self.path) {
            // A file system that cannot: this will not be taken back.
            Err(Errno::INVAL | Errno::NOSYS) => fs::rename(partial, &self.path),
            done => Ok(done?),
        }
    }

    fn take_back(&self) {
        // Nobody can be told: the error that led here is already on its way.
        let _ = match &self.partial {
            Some(partial) => exchange(partial, &self.path).map_err(io::Error::from),
            None => fs::remove_file(&self.path),
        };
    }
}

/// The two files change their names.
fn exchange(a: &Path, b: &Path) -> rustix::io::Result<()> {
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)
}

/// Makes all of them, or none.
fn make(links: &[Link], new: impl Fn(&Path) -> io::Result<()>) -> Result<()> {
    let mut put = Vec::new();
    let mut all = || {
        for link in links {
            let failed = |error| Error::io("cannot make the link", error).image(link.path.display());
            link.partial.as_deref().map_or(Ok(()), &new).map_err(failed)?;
        }
        for link in links {
            let failed = |error| Error::io("cannot make the link", error).image(link.path.display());
            link.put(&new).map_err(failed)?;
            put.push(link);
        }
        Ok(())
    };
    let done = all();
    if done.is_err() {
        put.into_iter().rev().for_each(Link::take_back);
    }
    for partial in links.iter().filter_map(|link| link.partial.as_deref()) {
        let _ = fs::remove_file(partial);
    }
    done
}
