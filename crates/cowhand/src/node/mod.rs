//! An image that a path alone does not name: drivers on drivers down to a file, each with its options.
//!
//! A description is trusted as a path on the command line is. What stands in an image is no description, but under
//! [`Policy::Any`](crate::Policy).

mod disk_file;
mod json;
mod shown;
#[cfg(test)]
mod tests;
mod words;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowhand_core::{Access, Cache, Error, ErrorKind, Image, Lock, OpenOptions, Result, Storage};
use serde_json::Value;

use crate::archive::content::Content;
use crate::open::{Open, open_layer};
use crate::registry::{self, DEVICE, FILE};
use crate::resolve::{Files, is_device};
pub use json::parse as parse_json;
pub use shown::{file_name, image_name};

use disk_file::DiskFile;
use words::{Words, as_text, is_identifier};

const FORCE_SHARE: &str = "force-share";

/// How deep one driver may stand on another.
const DEPTH: usize = 64;

/// A description: a driver, its options, and what it stands on.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// `None`: by content.
    driver: Option<String>,
    /// The driver's own options.
    own: Words,
    under: Under,
    backing: Backing,
    data_file: Option<Box<Node>>,
    general: General,
}

/// Where a driver's bytes stand.
#[derive(Clone, Debug, PartialEq)]
enum Under {
    /// The driver is a protocol, and this its file.
    Path(PathBuf),
    /// In what the child gives.
    File(Box<Node>),
}

/// What a description says of an image's parent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Backing {
    /// What the image names.
    #[default]
    Named,
    /// There is none, whatever the image names.
    Nothing,
    /// Another node, which there is not: its name.
    Reference(String),
    /// These options; where they name no file, the image does.
    Described(Described),
}

/// Options of a parent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Described(Words);

/// What every driver takes.
#[derive(Clone, Debug, Default, PartialEq)]
struct General {
    read_only: bool,
    /// The image is read although others may write to it.
    shared: bool,
    /// No lock is taken.
    unlocked: bool,
    direct: bool,
}

/// A description, read, with what should be said of the way it is written.
#[derive(Clone, Debug)]
pub struct ReadNode {
    /// The description.
    pub node: Node,
    /// One paragraph each.
    pub warnings: Vec<String>,
}

/// `driver=FORMAT,file.filename=PATH,...`, as `--image-opts` has it, taken apart.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    words: Words,
    warnings: Vec<String>,
}

impl ImageOptions {
    /// Errors: the text is no list of options.
    pub fn parse(text: &str) -> Result<ImageOptions> {
        let (words, warnings) = Words::from_options(text)?;
        Ok(ImageOptions { words, warnings })
    }

    /// No lock is to be taken. Errors: the options say that one is.
    pub fn share(&mut self) -> Result<()> {
        if self.words.text(FORCE_SHARE).is_some_and(|said| said != "on") {
            return Err(Error::invalid("--force-share/-U conflicts with image options"));
        }
        self.words.put(FORCE_SHARE, Value::Bool(true));
        Ok(())
    }

    /// The description. Errors: it describes no image; in QEMU's words.
    pub fn node(self) -> Result<ReadNode> {
        read(self.words, self.warnings)
    }
}

/// What a name on a command line means.
#[derive(Clone, Debug)]
pub enum Name {
    /// This file.
    Path(PathBuf),
    /// What the name describes.
    Node(ReadNode),
}

impl Name {
    /// As QEMU takes names: `json:{...}`, `file:PATH`, `host_device:PATH`; any other with a colon before the first slash
    /// has a protocol, which nobody here speaks. `format` is the driver, where the caller says it beside.
    pub fn of(name: &Path, format: Option<&str>) -> Result<Name> {
        let bytes = name.as_os_str().as_bytes();
        let Some((protocol, rest)) = protocol_of(bytes) else {
            return match format.filter(|name| registry::is_protocol(name)) {
                _ if bytes.is_empty() => Err(needs_a_name(FILE)),
                None => Ok(Name::Path(name.to_owned())),
                Some(driver) => {
                    let mut words = Words::default();
                    words.put("driver", driver.into());
                    words.put("filename", name.to_string_lossy().into());
                    read(words, Vec::new()).map(Name::Node)
                }
            };
        };
        let rest = Path::new(OsStr::from_bytes(rest));
        match protocol {
            b"file" => Ok(Name::Path(without_protocol(rest))),
            b"json" => {
                let text = rest.to_str().ok_or_else(|| Error::invalid("Could not parse the JSON options: JSON parse error, invalid UTF-8 sequence in string"))?;
                Node::from_json(text, format).map(Name::Node)
            }
            b"host_device" => {
                let mut words = Words::default();
                words.put("file.driver", DEVICE.into());
                words.put("file.filename", rest.to_string_lossy().into());
                if let Some(format) = format {
                    words.put("driver", format.into());
                }
                read(words, Vec::new()).map(Name::Node)
            }
            _ => Err(unknown_protocol(protocol)),
        }
    }

    /// The file that a name means where one is to be made: a path, or `file:PATH`.
    pub fn of_target(name: &Path) -> Result<PathBuf> {
        match protocol_of(name.as_os_str().as_bytes()) {
            None => Ok(name.to_owned()),
            Some((b"file", rest)) => Ok(without_protocol(Path::new(OsStr::from_bytes(rest)))),
            Some((protocol, _)) => Err(unknown_protocol(protocol)),
        }
    }
}

/// What stands before a colon and behind it, where the colon comes before any slash.
fn protocol_of(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = name.iter().position(|byte| b":/".contains(byte)).filter(|at| name.get(*at) == Some(&b':'))?;
    Some((name.get(..at)?, name.get(at + 1..)?))
}

/// The same file, by a name that nobody takes for one with a protocol.
pub(crate) fn without_protocol(path: &Path) -> PathBuf {
    match protocol_of(path.as_os_str().as_bytes()) {
        Some(_) => Path::new(".").join(path),
        None => path.to_owned(),
    }
}

fn unknown_protocol(protocol: &[u8]) -> Error {
    Error::invalid(format!("Unknown protocol '{}'", String::from_utf8_lossy(protocol)))
}

impl Node {
    /// The description behind `json:` in a name; `format` is the driver, where the caller says it beside. Errors are in
    /// QEMU's words.
    pub fn from_json(text: &str, format: Option<&str>) -> Result<ReadNode> {
        let mut words = Words::from_json(text)?;
        if let Some(format) = format {
            words.put("driver", Value::String(format.to_owned()));
        }
        read(words, Vec::new())
    }

    /// The file that holds its bytes in the end.
    pub fn path(&self) -> &Path {
        match &self.under {
            Under::Path(path) => path,
            Under::File(child) => child.path(),
        }
    }

    /// `how`, of the image that this describes: its path is [`Node::path`].
    pub fn open(self, how: Open) -> Open {
        Open {
            format: self.driver.clone(),
            options: self.options(),
            lock: if self.general.unlocked { Lock::None } else { how.lock },
            cache: if self.general.direct { Cache::None } else { how.cache },
            node: Some(Arc::new(self)),
            ..how
        }
    }

    /// The image's own file, of a description that is the top of what is opened.
    pub(crate) fn top_storage(&self, files: &Files, how: &Open, access: Access) -> Result<Arc<dyn Storage>> {
        self.check_access(access)?;
        match &self.under {
            Under::Path(path) => self.file(path, files, access),
            Under::File(child) => child.storage(files, how, access),
        }
    }

    pub(crate) fn backing(&self) -> &Backing {
        &self.backing
    }

    pub(crate) fn data_file(&self) -> Option<&Node> {
        self.data_file.as_deref()
    }

    fn check_access(&self, access: Access) -> Result<()> {
        if self.general.read_only && access != Access::Read {
            return Err(Error::new(ErrorKind::Denied, "Block node is read-only"));
        }
        if self.general.shared && access != Access::Read {
            return Err(only_read_only());
        }
        Ok(())
    }

    /// What this gives to the driver above.
    pub(crate) fn storage(&self, files: &Files, how: &Open, access: Access) -> Result<Arc<dyn Storage>> {
        if matches!(self.under, Under::Path(_)) {
            return self.top_storage(files, how, access);
        }
        let file = self.top_storage(files, how, access)?;
        let path = self.path();
        let named = |error: Error| error.image(path.display());
        let stated = self.driver.as_deref().map(registry::format).transpose()?;
        let format = Content::of(&file, stated, how.probing).map_err(named)?.format;
        let options = OpenOptions {
            writable: access != Access::Read,
            options: registry::open_options(format, &self.options()).map_err(named)?,
            ..how.layer(0)
        };
        let link = open_layer(path, file, format, files, &options)?;
        if link.layer.parent().is_some() {
            return Err(Error::unsupported("is within another image, and cannot have a parent there")
                .image(self.path().display()));
        }
        Ok(Arc::new(DiskFile::of(Image::new(vec![link])?)))
    }

    /// The driver's own options.
    fn options(&self) -> Vec<(String, String)> {
        self.own.iter().map(|(name, value)| (name.to_owned(), as_text(value))).collect()
    }

    /// A file as a protocol driver takes it.
    fn file(&self, path: &Path, files: &Files, access: Access) -> Result<Arc<dyn Storage>> {
        if let Some(driver) = self.driver.as_deref().filter(|_| path.exists()) {
            let wanted = match (driver == DEVICE, is_device(path)) {
                (true, false) => Some("either a character or block device"),
                (false, true) => Some("a regular file"),
                _ => None,
            };
            if let Some(wanted) = wanted {
                let name = path.display();
                return Err(Error::invalid(format!("'{driver}' driver requires '{name}' to be {wanted}")));
            }
        }
        let lock = if self.general.unlocked { Lock::None } else { files.lock };
        files.with_lock(lock).trusted(path, access)
    }
}

impl Described {
    /// The description's own file; `None`: the image says which.
    pub(crate) fn has_file(&self) -> bool {
        self.0.has("file.filename") || self.0.has("file")
    }

    /// The parent, whose format is what its child states where nothing is said here; `file`: the one that the image names.
    pub(crate) fn node(&self, stated: Option<&str>, file: Option<&Path>) -> Result<Node> {
        let mut words = self.0.clone();
        if let Some(format) = stated.filter(|_| !words.has("driver")) {
            words.put("driver", Value::String(format.to_owned()));
        }
        if let Some(path) = file {
            words.put("file.filename", Value::String(path.to_string_lossy().into_owned()));
        }
        Ok(read(words, Vec::new())?.node)
    }

    /// The first of the options.
    pub(crate) fn first(&self) -> &str {
        self.0.first().unwrap_or_default()
    }
}

fn read(words: Words, warnings: Vec<String>) -> Result<ReadNode> {
    let mut reader = Reader { names: HashSet::new(), warnings };
    let node = reader.node(words, Place::Top, 0)?;
    Ok(ReadNode { node, warnings: reader.warnings })
}

/// Where in a description a node stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Top,
    /// Below a format driver: a file by default.
    File,
}

struct Reader {
    /// Nodes may have names, each its own.
    names: HashSet<String>,
    warnings: Vec<String>,
}

impl Reader {
    fn node(&mut self, mut words: Words, place: Place, depth: usize) -> Result<Node> {
        if depth > DEPTH {
            return Err(Error::invalid(format!("more than {DEPTH} drivers stand on each other")));
        }
        let driver = words.take_text("driver");
        if let Some(name) = &driver {
            registry::driver(name)?;
        }
        let protocol = match &driver {
            Some(name) => registry::is_protocol(name),
            None => place == Place::File,
        };
        if protocol {
            let Some(path) = words.take_text("filename") else {
                return Err(match &driver {
                    Some(name) => needs_a_name(name),
                    None => unspecified(),
                });
            };
            if path.is_empty() {
                return Err(needs_a_name(driver.as_deref().unwrap_or(FILE)));
            }
            return self.protocol(driver, path.into(), words);
        }
        let backing = self.backing(&mut words);
        let under = match self.child(&mut words, "file", depth)? {
            Some(child) => Under::File(Box::new(child)),
            None if driver.is_none() => return Err(unspecified()),
            None => return Err(Error::invalid("A block device must be specified for \"file\"")),
        };
        let data_file = self.child(&mut words, "data-file", depth)?.map(Box::new);
        let general = self.general(&mut words)?;
        Ok(Node { driver, own: words, under, backing, data_file, general })
    }

    fn protocol(&mut self, driver: Option<String>, path: PathBuf, mut words: Words) -> Result<Node> {
        let mut general = self.general(&mut words)?;
        for (name, allowed) in
            [("locking", &["auto", "on", "off"][..]), ("aio", &["threads", "native", "io_uring"])]
        {
            let Some(value) = words.take(name).map(|value| as_text(&value)) else { continue };
            if !allowed.contains(&value.as_str()) {
                return Err(Error::invalid(format!("invalid parameter value: {value}")));
            }
            if value == "native" && !general.direct {
                return Err(Error::invalid(
                    "aio=native was specified, but it requires cache.direct=on, which was not specified.",
                ));
            }
            general.unlocked |= name == "locking" && value == "off";
        }
        for name in ["drop-cache", "x-check-cache-dropped"] {
            flag(&mut words, name)?;
        }
        number(&mut words, "aio-max-batch")?;
        match words.first() {
            Some(other) => Err(Error::invalid(format!(
                "Block protocol '{}' doesn't support the option '{other}'",
                driver.as_deref().unwrap_or(FILE)
            ))),
            None => Ok(Node {
                driver,
                own: words,
                under: Under::Path(path),
                backing: Backing::Named,
                data_file: None,
                general,
            }),
        }
    }

    /// The child of that name. `None`: nothing is said of it.
    fn child(&mut self, words: &mut Words, name: &str, depth: usize) -> Result<Option<Node>> {
        let own = words.take_child(name);
        let reference = words.take(name).and_then(|value| value.as_str().map(str::to_owned));
        match (reference, own.is_empty()) {
            (Some(_), false) => Err(Error::invalid(
                "Cannot reference an existing block device with additional options or a new filename",
            )),
            (Some(id), true) => Err(no_node(&id)),
            (None, true) => Ok(None),
            (None, false) => self.node(own, Place::File, depth + 1).map(Some),
        }
    }

    fn backing(&mut self, words: &mut Words) -> Backing {
        let own = words.take_child("backing");
        let nothing = match words.take("backing") {
            Some(Value::Null) => true,
            Some(Value::String(text)) if text.is_empty() => {
                self.warnings
                    .push("Use of \"backing\": \"\" is deprecated; use \"backing\": null instead".to_owned());
                true
            }
            Some(Value::String(id)) => return Backing::Reference(id),
            _ => false,
        };
        match (nothing, own.is_empty()) {
            (true, _) => Backing::Nothing,
            (false, true) => Backing::Named,
            (false, false) => Backing::Described(Described(own)),
        }
    }

    fn general(&mut self, words: &mut Words) -> Result<General> {
        if let Some(name) = words.take("node-name").map(|value| as_text(&value)) {
            if !is_identifier(&name) {
                return Err(Error::invalid(format!("Invalid node-name: '{name}'")));
            }
            if !self.names.insert(name.clone()) {
                return Err(Error::invalid(format!("Duplicate nodes with node-name='{name}'")));
            }
        }
        let read_only = flag(words, "read-only")?;
        let shared = flag(words, FORCE_SHARE)?.unwrap_or(false);
        if shared && read_only == Some(false) {
            return Err(only_read_only());
        }
        flag(words, "auto-read-only")?;
        let direct = flag(words, "cache.direct")?.unwrap_or(false);
        flag(words, "cache.no-flush")?;
        let discard = words.take("discard").map(|value| as_text(&value));
        let unmaps = match discard.as_deref() {
            Some("unmap" | "on") => true,
            None | Some("ignore" | "off") => false,
            Some(_) => return Err(Error::invalid("Invalid discard option")),
        };
        match words.take("detect-zeroes").map(|value| as_text(&value)).as_deref() {
            None | Some("off" | "on") => {}
            Some("unmap") if unmaps => {}
            Some("unmap") => {
                return Err(Error::invalid(
                    "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
                ));
            }
            Some(other) => return Err(Error::invalid(format!("invalid parameter value: {other}"))),
        }
        Ok(General { read_only: read_only.unwrap_or(false), shared, unlocked: shared, direct })
    }
}

/// What is open for writing is locked.
fn only_read_only() -> Error {
    Error::invalid("force-share=on can only be used with read-only images")
}

/// There are no nodes but those of the description.
pub(crate) fn no_node(id: &str) -> Error {
    Error::invalid(format!("Cannot find device='{id}' nor node-name='{id}'"))
}

fn unspecified() -> Error {
    Error::invalid("Must specify either driver or file")
}

fn needs_a_name(driver: &str) -> Error {
    Error::invalid(format!("The '{driver}' block driver requires a file name"))
}

fn flag(words: &mut Words, name: &str) -> Result<Option<bool>> {
    match words.take(name).map(|value| as_text(&value)).as_deref() {
        None => Ok(None),
        Some("on") => Ok(Some(true)),
        Some("off") => Ok(Some(false)),
        Some(_) => Err(Error::invalid(format!("Parameter '{name}' expects 'on' or 'off'"))),
    }
}

fn number(words: &mut Words, name: &str) -> Result<()> {
    match words.take(name).map(|value| as_text(&value)) {
        Some(text) if text.parse::<u64>().is_err() => {
            Err(Error::invalid(format!("Parameter '{name}' expects a number")))
        }
        _ => Ok(()),
    }
}
