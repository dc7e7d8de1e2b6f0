//! What the verbs that read images have in common: how to open them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use cowhand::archive::Indexing;
use cowhand::{
    Cache, Error, ImageOptions, Lock, Node, Open, Parent, Policy, Printable, Result, Sectors, folder_to_allow,
};

use crate::keys::Keys;
use crate::output::Output;

/// How an image and what it stands on are opened.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Sharing {
    /// Read the images although another program writes to them
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,

    /// Which files an image may make us open: deny, same-dir, allow=DIR (repeatable), local, any
    ///
    /// deny: none. same-dir (the default): what lies beneath the image's own folder. allow=DIR: also what lies
    /// beneath DIR. local: any file or block device of this machine. any: local, and names with "file:".
    /// Names on the command line are always trusted.
    #[arg(long, value_name = "POLICY", value_parser = Policy::parse, hide_possible_values = true)]
    pub(crate) paths: Vec<Policy>,

    /// Look in this folder for parents that are not where their children say (repeatable)
    ///
    /// A parent is known by its identity, where its child remembers one (VHD, VHDX), else by its file name. Folders
    /// within are not gone into. Where a VHDX's parent was found by its identity is written down when the VHDX itself is
    /// written to; 'cowhand reconnect-parent' does that for every format.
    #[arg(long, value_name = "DIR")]
    pub(crate) search_dir: Vec<PathBuf>,

    /// Read images although their checksums are wrong (VHD); not what is written to
    #[arg(long)]
    pub(crate) ignore_checksums: bool,

    /// The sources are "driver=FORMAT,file.filename=PATH" in place of a path
    #[arg(long)]
    pub(crate) image_opts: bool,

    /// Keep the places of a backup archive's disks in ARCHIVE.index, so that the next run need not look for them
    ///
    /// ARCHIVE#DISK names a disk of an archive. Where its bytes stand is found by one look at the whole archive. An index
    /// that is there, and is of the archive as it is now, is used with or without this. Of a foreign .zst in one piece none
    /// can be kept.
    #[arg(long)]
    pub(crate) keep_index: bool,

    /// Read a backup archive that is packed in one piece from an unpacked copy in DIR, which goes away at the end
    #[arg(long, value_name = "DIR")]
    pub(crate) unpack_to: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) keys: Keys,
}

/// What an image stands on, where it is not what the image says.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Parents {
    /// The image's parent is PATH, whatever the image names
    #[arg(long, value_name = "PATH")]
    pub(crate) parent: Option<PathBuf>,

    /// The format of a parent whose child does not state it
    #[arg(long, value_name = "FORMAT")]
    pub(crate) parent_format: Option<String>,

    /// Take the parent although it is not the one the image was made from
    #[arg(long)]
    pub(crate) any_parent: bool,
}

/// Whether what is written may have holes.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Holes {
    /// Leave no holes in the file, and fill those it has: Windows takes no sparse VHD or VHDX
    #[arg(long)]
    pub(crate) non_sparse: bool,
}

impl Holes {
    /// `open`, and this beside.
    pub(crate) fn with(self, open: Open) -> Open {
        Open { solid: self.non_sparse, ..open }
    }
}

/// One image on the command line.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) format: Option<String>,
    /// What describes it, where a path and a format do not.
    pub(crate) node: Option<Node>,
}

impl Source {
    fn of(node: Node) -> Source {
        Source { path: node.path().to_owned(), format: None, node: Some(node) }
    }
}

impl Sharing {
    /// What `word` means, given `-f`.
    pub(crate) fn source(&self, word: &OsString, format: Option<&str>) -> Result<Source> {
        if !self.image_opts {
            return Ok(Source { path: word.into(), format: format.map(str::to_owned), node: None });
        }
        if format.is_some() {
            return Err(Error::invalid("--image-opts and -f exclude each other")
                .hint("name the format with driver=FORMAT"));
        }
        let text = word.to_str().ok_or_else(|| {
            Error::invalid("--image-opts takes UTF-8 only").hint("name the image by its path")
        })?;
        image_options(text)
    }

    /// The way of opening that goes with these flags. Errors: a secret that cannot be read.
    pub(crate) fn open(&self, source: &Source, parents: &Parents, cache: Cache) -> Result<Open> {
        let mut indexing = Indexing::default();
        indexing.keep = self.keep_index;
        indexing.unpack_to.clone_from(&self.unpack_to);
        let open = Open {
            indexing,
            format: source.format.clone(),
            secrets: self.keys.secrets()?,
            lock: if self.force_share { Lock::None } else { Lock::Default },
            cache,
            policy: self.paths.iter().cloned().reduce(Policy::and).unwrap_or_default(),
            parent: parents.parent.clone().map_or(Parent::Named, Parent::Given),
            parent_format: parents.parent_format.clone(),
            any_parent: parents.any_parent,
            search: self.search_dir.clone(),
            ignore_checksums: self.ignore_checksums,
            ..Open::default()
        };
        Ok(match &source.node {
            Some(node) => node.clone().open(open),
            None => open,
        })
    }

    /// The way of opening an image that is to be changed.
    pub(crate) fn writing(&self, source: &Source, parents: &Parents, cache: Cache) -> Result<Open> {
        if self.force_share {
            return Err(Error::invalid("--force-share is for reading, and this writes")
                .hint("stop the program that uses the image, and leave out -U"));
        }
        self.open(source, parents, cache)
    }
}

/// Says what it takes to open `image` over `parent`, the name that stands in it, where that is more than nothing.
pub(crate) fn note_on_paths(out: &mut Output, image: &Path, parent: &Path) -> Result<()> {
    let Some(folder) = folder_to_allow(image, parent) else { return Ok(()) };
    let folder = folder.display().to_string();
    writeln!(
        out,
        "Note: the parent lies outside the image's own folder, so who opens the image passes --paths allow={} \
         or --paths local.",
        quoted(&folder)
    )
}

/// Says what a guest will make of data whose disk counted in other sectors.
pub(crate) fn note_on_sectors(out: &mut Output, sectors: Option<Sectors>) -> Result<()> {
    sectors.map_or(Ok(()), |sectors| writeln!(out, "Note: {sectors}."))
}

/// A name as a shell takes it for one word.
pub(crate) fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:,@%".contains(c);
    let text = Printable(name).to_string();
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// `driver=qcow2,file.driver=file,file.filename=PATH`; what else is named is the format's own.
fn image_options(text: &str) -> Result<Source> {
    let node = ImageOptions::parse(text).and_then(ImageOptions::node);
    let node =
        node.map_err(|error| error.image(text).hint("--image-opts takes driver=FORMAT,file.filename=PATH"))?;
    Ok(Source::of(node.node))
}

/// A cache mode by QEMU's name.
pub(crate) fn cache(name: &str) -> Result<Cache> {
    Cache::by_name(name).ok_or_else(|| {
        Error::invalid(format!("'{name}' is not a cache mode"))
            .hint("use none, writeback, writethrough, directsync or unsafe")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_options_name_a_file_and_its_format() {
        let found = image_options("driver=qcow2,file.driver=file,file.filename=a,,b").unwrap();
        assert_eq!(found.path, PathBuf::from("a,b"));
        let opened = |text: &str| {
            let source = image_options(text).unwrap();
            Sharing::default().open(&source, &Parents::default(), Cache::default()).unwrap()
        };
        assert_eq!(opened("file.filename=x").format, None);
        let open = opened("driver=luks,key-secret=s,file.filename=x");
        assert_eq!(open.format.as_deref(), Some("luks"));
        assert_eq!(open.options, [("key-secret".to_owned(), "s".to_owned())]);
        for (text, part) in [
            ("driver=qcow2", "A block device must be specified"),
            ("driver=raw,file.driver=nbd,file.host=h", "Unknown driver 'nbd'"),
            ("filename=x", "Must specify either driver or file"),
            ("driver=raw,file.filename=x,file.foo=y", "'foo'"),
        ] {
            let error = image_options(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
