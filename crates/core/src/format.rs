//! What the registry knows of a format.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{
    Archives, Checker, Consumer, Content, Error, Inspector, Layer, LayerId, Measured, OptionSpec, Options,
    ParentRef, Prealloc, Result, Secrets, Storage, Streams,
};

/// How well a content matches a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Probe {
    /// Not at all.
    No,
    /// Nothing speaks against it: raw, of everything.
    Possible,
    /// The format's signature stands at the end alone: what is in front is the guest's.
    Trailer,
    /// The format's signature is there.
    Sure,
}

/// How an image is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// For writing too. Otherwise nothing in the file changes, whatever state it is in.
    pub writable: bool,
    /// Options of the format, checked against [`Format::open_options`].
    pub options: Options,
    /// What opens encrypted content: the one that an option names, else each that fits.
    pub secrets: Secrets,
    /// Guest data will be neither read nor written, so what is encrypted needs no secret.
    pub metadata_only: bool,
    /// Read it although its checksums are wrong, where nothing else speaks against it. Not for writing.
    pub ignore_checksums: bool,
    /// As QEMU reads it: what leads past the end of the file reads zero, what leads into the image's own tables reads them, and
    /// the first write does not look at the image first. Whoever sets this wants what a damaged image gives, not an error.
    pub lenient: bool,
}

/// How an image is made.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Guest bytes asked for. A format that cannot say this size exactly rounds up and [`Layer::size`] tells.
    pub size: u64,
    /// Options of the format, checked against [`Format::options`].
    pub options: Options,
    /// What the options name.
    pub secrets: Secrets,
    /// The parent to name: its first candidate is written as it stands.
    pub parent: Option<ParentRef>,
    /// Nobody sees this file before it is whole and renamed: ordering barriers are left out until the one at the end.
    pub fresh: bool,
    /// The disk comes from an image of this format: where options do not say how its size is rounded, it is not.
    pub keep_size: bool,
    /// Nothing is written to the disk before somebody opens the image: what grows with it is as small as can be.
    pub empty: bool,
    /// What nobody said is as QEMU chooses it, for programs that look at it.
    pub qemu_choices: bool,
}

impl CreateOptions {
    /// The option `preallocation`.
    pub fn prealloc(&self) -> Prealloc {
        self.options.text("preallocation").and_then(Prealloc::by_name).unwrap_or_default()
    }
}

/// What `info` says of one image file.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// The allocation unit in bytes, where the format has one.
    pub cluster_size: Option<u64>,
    /// The content is encrypted.
    pub encrypted: bool,
    /// It was not closed cleanly.
    pub dirty: bool,
    /// New data is written compressed by default.
    pub compressed: bool,
    /// The format's own facts, named as QEMU names them where it does.
    pub specific: Map<String, Value>,
}

/// What QEMU's driver of a format can do that not all of them can: programs that call `qemu-img` expect no more of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QemuDriver {
    /// A disk can become longer or shorter.
    pub resizes: bool,
    /// The file's length can be told in advance.
    pub measures: bool,
    /// What [`Details::specific`] holds is told.
    pub details: bool,
    /// It can be told which parts of a disk are stored, and where.
    pub maps: Maps,
}

/// What QEMU tells of which parts of a disk are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maps {
    /// Nothing: all of it, nobody knows where.
    Nothing,
    /// What the image says.
    Image,
    /// What the image says; what it does not hold is zero, and nothing is looked for below.
    Alone,
    /// What the image says, and where data lies in holes of the file, if the file holds much less than the image says.
    Holes,
}

/// Gives a format the other files that an image names or that belong to it (qcow2's external data file), under the
/// path policy. Parents are not asked for here: a format never opens its parent.
pub trait Resolver {
    /// Opens a file that the image names; relative names start at the image's folder.
    fn open(&self, name: &Path, writable: bool) -> Result<Arc<dyn Storage>>;
    /// Makes a file, new or in place of an old one, that the caller asked for by name.
    fn create(&self, name: &Path) -> Result<Arc<dyn Storage>>;
}

/// The resolver that gives no files: for images that stand alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFiles;

impl Resolver for NoFiles {
    fn open(&self, name: &Path, _writable: bool) -> Result<Arc<dyn Storage>> {
        Err(Error::new(
            crate::ErrorKind::Denied,
            format!(
                "the image names another file, '{}', and no other file may be opened here",
                name.display()
            ),
        ))
    }

    fn create(&self, name: &Path) -> Result<Arc<dyn Storage>> {
        self.open(name, true)
    }
}

/// A format: how to know it, open it, make it. Checking and repairing start from storage too, because what is broken
/// may not open.
pub trait Format: Send + Sync + Debug {
    /// Its names. The first is the one that is printed (QEMU's, so that programs that read it find it), the others
    /// are taken as well.
    fn names(&self) -> &'static [&'static str];

    /// What QEMU's driver of that name can do; `None`: it has none.
    fn qemu(&self) -> Option<QemuDriver> {
        Some(QemuDriver { resizes: true, measures: true, details: true, maps: Maps::Image })
    }

    /// File name extensions, without the dot, that mean this format when a target is named.
    fn extensions(&self) -> &'static [&'static str];

    /// Looks at the content. `head` is the storage's first 4096 bytes, or all there are.
    fn probe(&self, head: &[u8], storage: &dyn Storage) -> Probe;

    /// What can be set when an image is made.
    fn options(&self) -> &'static [OptionSpec];

    /// The file is the disk, byte for byte, and says nothing of itself: what no other format claims is taken for this one.
    fn is_bare(&self) -> bool {
        false
    }

    /// The options that a child takes over from its parent where both have this format: the allocation unit above all.
    fn child_options(&self) -> &'static [&'static str] {
        &[]
    }

    /// The option that sets [`Layer::sector`], where a disk of this format may have one or another: an image that is made
    /// of a disk takes that one's. `None`: it is 512 always.
    fn sector_option(&self) -> Option<&'static str> {
        None
    }

    /// What a child of this file remembers of it: [`Layer::identity`], read from the few bytes that hold it, so that a
    /// folder full of images is soon gone through. Errors: it is not of this format, or damaged there.
    fn identity(&self, file: &dyn Storage) -> Result<LayerId> {
        let _ = file;
        Ok(LayerId(None))
    }

    /// An identity as this format's programs spell it.
    fn spell(&self, id: [u8; 16]) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        [0..4, 4..6, 6..8, 8..10, 10..16].map(|part| hex(&id[part])).join("-")
    }

    /// What can be set when an image is opened.
    fn open_options(&self) -> &'static [OptionSpec] {
        &[]
    }

    /// Of these, the ones without which the same file would be another disk, or could not be read: a name of the image
    /// is not whole without them.
    fn defining_options(&self) -> &'static [&'static str] {
        &[]
    }

    /// What [`Layer::amend`] can change.
    fn amend_options(&self) -> &'static [OptionSpec] {
        &[]
    }

    /// How large the file will be that `how` makes and `content` fills.
    fn measure(&self, content: &dyn Content, how: &CreateOptions) -> Result<Measured> {
        let _ = (content, how);
        Err(Error::unsupported(format!("the size of {} images cannot be told in advance", self.names()[0]))) // never empty: every format has a name
    }

    /// The check of this format's images, where it has one.
    fn checker(&self) -> Option<&dyn Checker> {
        None
    }

    /// The programs and services that are known to take this format's images.
    fn consumers(&self) -> &'static [Consumer] {
        &[]
    }

    /// Reading and writing this format's files from front to back, where it can.
    fn streams(&self) -> Option<&dyn Streams> {
        None
    }

    /// Its files hold several disks, and can be read from front to back where one can be read so.
    fn archives(&self) -> Option<&dyn Archives> {
        None
    }

    /// The open option that says which of several disks in a file is meant.
    fn disk_option(&self) -> Option<&'static str> {
        None
    }

    /// Its files are kept packed (zstd, gzip, lzo) by the programs it comes from, so they are looked for in what is.
    fn comes_packed(&self) -> bool {
        false
    }

    /// Opens one image file. Reads what is needed and no more; never opens the parent.
    fn open(&self, file: Arc<dyn Storage>, files: &dyn Resolver, how: &OpenOptions)
    -> Result<Arc<dyn Layer>>;

    /// Makes an image on an empty storage.
    fn create(
        &self,
        file: Arc<dyn Storage>,
        files: &dyn Resolver,
        how: &CreateOptions,
    ) -> Result<Arc<dyn Layer>>;

    /// A judge of this format for the safety gate, which sees the content once, from front to end.
    fn inspector(&self) -> Option<Box<dyn Inspector>>;
}
