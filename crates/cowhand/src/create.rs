//! `create`: a new, empty image, alone or over a backing file.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowhand_core::{
    Cache, CreateOptions, Error, ErrorKind, FileHints, Format, Layer, Lock, Options, ParentRef, Progress,
    Quiet, Result, Secrets, Storage, parse_size,
};

use crate::node::{Name, ReadNode};
use crate::open::{Open, Opened, open, open_alone};
use crate::parent::remembered;
use crate::registry::{self, Probing};
use crate::resolve::{Policy, Watched, folder_of, in_folder};
use crate::sectors::Sectors;
use crate::target::{Replace, Target, TargetFiles, refuse_one_of};

/// What is to be made.
#[derive(Clone, Debug, Default)]
pub struct Create {
    /// The format's name.
    pub format: String,
    /// Guest bytes; `None`: the backing file's.
    pub size: Option<u64>,
    /// Options of the format; also `size`, `backing_file` and `backing_fmt`, as QEMU takes them here.
    pub options: Vec<(String, String)>,
    /// The backing file, as it is to be written into the image: a relative name starts at the new image's folder.
    pub backing: Option<PathBuf>,
    /// The backing file's format.
    pub backing_format: Option<String>,
    /// Do not open the backing file (`-u`): it need not exist.
    pub unchecked: bool,
    /// Which further files the backing file may make us open.
    pub policy: Policy,
    /// Folders in which parents of the backing file are looked for, as [`Open::search`](crate::Open) says.
    pub search: Vec<PathBuf>,
    /// What writes and syncs promise.
    pub cache: Cache,
    /// What options of encryption name.
    pub secrets: Secrets,
    /// The file is to have no holes: every byte of it is written.
    pub solid: bool,
    /// How it takes the place of a file that is there.
    pub replace: Replace,
    /// How the backing file's format is found, where nobody names it: to say which it is.
    pub probing: Probing,
    /// The backing file is taken as it stands, as [`Open::lenient`](crate::Open) says.
    pub lenient: bool,
    /// What the options leave open is as QEMU chooses it, for programs that look at it.
    pub qemu_choices: bool,
}

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// Guest bytes: what was asked for, or the next size up that the format can say.
    pub size: u64,
    /// The new file's length in bytes.
    pub file_len: u64,
    /// The image's sectors are not its backing file's.
    pub sectors: Option<Sectors>,
}

/// Makes `path`. What bore the name before is replaced only once the new image is whole.
pub fn create(path: &Path, how: &Create) -> Result<Created> {
    create_with(path, how, &Quiet)
}

/// Makes `path`, and tells `progress` of the space that is written in advance. Where that asks to stop, nothing is left.
pub fn create_with(path: &Path, how: &Create, progress: &dyn Progress) -> Result<Created> {
    new_image(path, how)?.make(progress)
}

/// An image that is to be made: the backing file, if there is one, was opened, and nothing is written.
#[derive(Debug)]
pub struct NewImage<'a> {
    path: &'a Path,
    how: &'a Create,
    format: &'static dyn Format,
    base: Base,
    size: Option<u64>,
    /// The backing file's format, found by its content, where nobody named it.
    undeclared: Option<&'static str>,
    /// Files that must stay as they are.
    read: Vec<Watched>,
}

/// Looks at what the image `path` is to stand on. Errors: that cannot be opened; there is no such format; an option that
/// every format has is wrong.
pub fn new_image<'a>(path: &'a Path, how: &'a Create) -> Result<NewImage<'a>> {
    let format = registry::format(&how.format)?;
    let mut base = Base::of(how.options.clone(), how.backing.clone(), how.backing_format.clone())?;
    base.empty = true;
    base.qemu_choices = how.qemu_choices;
    let mut new = NewImage {
        path,
        how,
        format,
        size: how.size.or(base.size),
        undeclared: None,
        read: Vec::new(),
        base,
    };
    if how.unchecked {
        new.base.refuse_itself(path)?;
        new.base.glance(path, &how.policy);
    } else if let Some(backing) = new.base.look(
        path,
        &Open {
            policy: how.policy.clone(),
            search: how.search.clone(),
            secrets: how.secrets.clone(),
            metadata_only: true,
            // Nothing of its disk is read: one that is in use gets an overlay, which its user then goes on with.
            lock: Lock::None,
            probing: how.probing,
            lenient: how.lenient,
            ..Open::default()
        },
    )? {
        new.undeclared = new.base.undeclared(&backing);
        new.size = new.size.or(Some(backing.size()));
        new.read = backing.watched();
    }
    Ok(new)
}

impl NewImage<'_> {
    /// Guest bytes asked for, or the backing file's; `None`: nobody says.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// The format that the backing file has by its content, where nobody named it: such an image is not made.
    pub fn undeclared(&self) -> Option<&'static str> {
        self.undeclared
    }

    /// Makes it. What bore the name before is replaced only once the image is whole. `progress` is told of the space that
    /// is written in advance.
    pub fn make(self, progress: &dyn Progress) -> Result<Created> {
        let NewImage { path, how, format, base, size, undeclared, read } = self;
        refuse_one_of(path, &read)?;
        if let (Some(format), Some(backing)) = (undeclared, &base.backing) {
            return Err(refuse_undeclared(format, &in_folder(&folder_of(path), backing)));
        }
        let Some(size) = size else {
            return Err(Error::invalid("Image creation needs a size parameter")
                .hint("name a size, like 20G")
                .image(path.display()));
        };
        let target = Target::replacing(path, how.cache, false, how.replace)?;
        let files = TargetFiles::beside(path, how.cache, false, read).solid(how.solid).replacing(how.replace);
        let layer = base
            .make(format, &target, &files, size, &how.secrets, progress)
            .map_err(|error| error.image(path.display()))?;
        let (size, sectors) = (layer.size(), base.sectors_in(layer.as_ref()));
        let closed = files.gate().during(progress, size, || layer.close());
        closed.map_err(|error| error.image(path.display()))?;
        drop(layer);
        if progress.at(size, size).is_break() {
            return Err(Error::new(ErrorKind::Cancelled, "stopped on request").image(path.display()));
        }
        files.finish()?;
        let file_len = target.storage().len().unwrap_or(0);
        target.finish()?;
        Ok(Created { size, file_len, sectors })
    }
}

/// An image over a backing file whose format nobody named.
fn refuse_undeclared(detected: &str, backing: &Path) -> Error {
    Error::invalid(format!("Backing file specified without backing format; detected format of {detected}"))
        .hint(format!("if that is right, pass -F {detected}"))
        .image(backing.display())
}

/// What every way of making an image has in common: the options, and the parent.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    options: Vec<(String, String)>,
    size: Option<u64>,
    backing: Option<PathBuf>,
    backing_format: Option<String>,
    /// What is to be remembered of the backing file, once it was looked at.
    parent: Option<ParentRef>,
    /// Nobody opens the image before it is whole.
    pub(crate) fresh: bool,
    /// The disk comes from an image of the same format, and keeps its size.
    pub(crate) keep_size: bool,
    /// Nothing is written to the disk before the image is there.
    empty: bool,
    /// What nobody said is as QEMU chooses it.
    pub(crate) qemu_choices: bool,
    /// What is asked of the file system.
    hints: FileHints,
}

impl Base {
    /// Takes the options that every format has out of the list.
    pub(crate) fn of(
        mut options: Vec<(String, String)>,
        backing: Option<PathBuf>,
        backing_format: Option<String>,
    ) -> Result<Base> {
        let hints = FileHints::take(&mut options)?;
        let mut base = Base {
            options: Vec::new(),
            size: None,
            backing,
            backing_format,
            parent: None,
            fresh: true,
            keep_size: false,
            empty: false,
            qemu_choices: false,
            hints,
        };
        for (name, value) in options {
            match name.as_str() {
                "size" => base.size = Some(parse_size(&value)?),
                "backing_file" => {
                    base.backing = Some(value).filter(|value| !value.is_empty()).map(PathBuf::from)
                }
                "backing_fmt" => base.backing_format = Some(value),
                _ => base.options.push((name, value)),
            }
        }
        if base.backing.is_none() && base.backing_format.is_some() {
            return Err(Error::invalid("a backing format without a backing file")
                .hint("name the backing file with -b"));
        }
        Ok(base)
    }

    /// Opens the backing file as the new image `path` will find it, whatever its format.
    pub(crate) fn look(&mut self, path: &Path, how: &Open) -> Result<Option<Opened>> {
        let kept = self.without_protocol(&how.policy);
        let Some(backing) = self.backing.clone() else { return Ok(None) };
        let how = Open {
            format: self.backing_format.clone(),
            lock: how.lock,
            share_raw: how.share_raw,
            cache: how.cache,
            secrets: how.secrets.clone(),
            metadata_only: how.metadata_only,
            policy: if how.policy == Policy::Deny { Policy::SameDir } else { how.policy.clone() },
            search: how.search.clone(),
            probing: how.probing,
            lenient: how.lenient,
            ..Open::default()
        };
        // The name is the caller's, and so is a description in its place.
        let opened = match Name::of(&backing, self.backing_format.as_deref()) {
            Ok(Name::Node(ReadNode { node, .. })) => {
                let path = node.path().to_owned();
                open(&path, &node.open(how))?
            }
            Ok(Name::Path(file)) if kept => open(&in_folder(&folder_of(path), &file), &how)?,
            _ => open(&in_folder(&folder_of(path), &backing), &how)?,
        };
        opened.refuse_as_parent()?;
        self.parent = Some(remembered(path, &backing, self.backing_format.clone(), opened.seen(0)));
        Ok(Some(opened))
    }

    /// Opens the backing file as the new image `path` will find it. Errors: also, nobody named its format.
    pub(crate) fn open(&mut self, path: &Path, how: &Open) -> Result<Option<Opened>> {
        let opened = self.look(path, how)?;
        if let (Some(opened), Some(backing)) = (&opened, &self.backing)
            && let Some(detected) = self.undeclared(opened)
        {
            return Err(refuse_undeclared(detected, &in_folder(&folder_of(path), backing)));
        }
        Ok(opened)
    }

    /// The format of the backing file that was opened, where nobody named it.
    fn undeclared(&self, backing: &Opened) -> Option<&'static str> {
        let detected = backing.links()[0].format; // never empty: every image has a layer
        self.backing_format.is_none().then_some(detected)
    }

    /// `file:PATH` is written as the path alone, which is the same file, where images may not name protocols: who opens
    /// the new image would refuse it. True: it stays as it is.
    fn without_protocol(&mut self, policy: &Policy) -> bool {
        if *policy == Policy::Any {
            return true;
        }
        if let Some(backing) = &self.backing
            && let Ok(Name::Path(file)) = Name::of(backing, None)
        {
            self.backing = Some(file);
        }
        false
    }

    /// Looks at the backing file where that is possible: it need not be there.
    pub(crate) fn glance(&mut self, path: &Path, policy: &Policy) {
        self.without_protocol(policy);
        let Some(backing) = &self.backing else { return };
        let how = Open { format: self.backing_format.clone(), lock: Lock::None, ..Open::default() };
        let opened = open_alone(&in_folder(&folder_of(path), backing), &how).ok();
        let seen = opened.and_then(|opened| opened.seen(0));
        self.parent = Some(remembered(path, backing, self.backing_format.clone(), seen));
    }

    /// An image that stands on itself: the one that was there would be lost.
    pub(crate) fn refuse_itself(&self, path: &Path) -> Result<()> {
        let Some(backing) = &self.backing else { return Ok(()) };
        let file = |path: &Path| std::fs::metadata(path).ok().map(|there| (there.dev(), there.ino()));
        let (image, below) = (file(path), file(&in_folder(&folder_of(path), backing)));
        if image.is_some() && image == below {
            return Err(Error::invalid("would be its own backing file")
                .hint("choose another name")
                .image(path.display()));
        }
        Ok(())
    }

    /// Makes the image on `target`; `progress` may stop that.
    pub(crate) fn make(
        &self,
        format: &dyn Format,
        target: &Target,
        files: &TargetFiles,
        size: u64,
        secrets: &Secrets,
        progress: &dyn Progress,
    ) -> Result<Arc<dyn Layer>> {
        let options = self.create_options(format, size, secrets)?;
        self.hints.apply(target.storage())?;
        files.gate().during(progress, size, || format.create(files.over(target)?, files, &options))
    }

    /// What the format is told.
    pub(crate) fn create_options(
        &self,
        format: &dyn Format,
        size: u64,
        secrets: &Secrets,
    ) -> Result<CreateOptions> {
        let parent = self.parent();
        let options = Options::check(format.options(), &self.options)?;
        Ok(CreateOptions {
            size,
            options,
            secrets: secrets.clone(),
            parent,
            fresh: self.fresh,
            keep_size: self.keep_size,
            empty: self.empty,
            qemu_choices: self.qemu_choices,
        })
    }

    /// The parent as the image is to name it. Of one that was not looked at no more is known than its name.
    pub(crate) fn parent(&self) -> Option<ParentRef> {
        self.parent.clone().or_else(|| {
            self.backing.as_ref().map(|backing| ParentRef {
                candidates: vec![backing.clone()],
                format: self.backing_format.clone(),
                ..ParentRef::default()
            })
        })
    }

    pub(crate) fn size(&self) -> Option<u64> {
        self.size
    }

    /// The new image of `format` takes the disk of `sources`: where that is one of the same format, and no other size was
    /// asked for, the size stays to the byte. It counts in their sectors.
    pub(crate) fn takes_over<'a>(
        &mut self,
        sources: impl IntoIterator<Item = &'a Opened>,
        format: &dyn Format,
    ) {
        let mut tops = sources.into_iter().map(|source| source.top());
        let Some(first) = tops.next() else { return };
        let same = tops.next().is_none() && format.names().contains(&first.format);
        self.keep_size = self.size.is_none() && same;
        self.counts_in(first.layer.sector(), format);
    }

    /// The new image of `format` has sectors of so many bytes, where the format can say that and nobody says otherwise;
    /// a child has its parent's.
    pub(crate) fn counts_in(&mut self, sector: u32, format: &dyn Format) {
        let Some(name) = format.sector_option().filter(|_| self.backing.is_none()) else { return };
        if !self.options.iter().any(|(given, _)| given == name) {
            self.options.push((name.to_owned(), sector.to_string()));
        }
    }

    /// What becomes of the parent's data in `layer`, which was made.
    pub(crate) fn sectors_in(&self, layer: &dyn Layer) -> Option<Sectors> {
        Sectors::differing(self.parent.as_ref()?.sector?, layer.sector())
    }

    pub(crate) fn has_backing(&self) -> bool {
        self.backing.is_some()
    }
}

impl Create {
    /// A new image of `format` and `size` bytes.
    pub fn new(format: &str, size: u64) -> Create {
        Create { format: format.to_owned(), size: Some(size), ..Create::default() }
    }
}
