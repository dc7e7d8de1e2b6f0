//! `amend`: an image's options change after it was made.

use std::path::{Path, PathBuf};

use cowhand_core::{Error, Options, Prealloc, Progress, Result, parse_size};

use crate::open::{Open, Parent, open};
use crate::rebase::{Rebase, rebase};
use crate::registry;
use crate::resize::{NewSize, Resize, resize};

/// What is to be changed.
#[derive(Clone, Debug, Default)]
pub struct Amend {
    /// How the image and its chain are opened; it is writable always.
    pub open: Open,
    /// Options of the image's format, from [`Format::amend_options`](crate::Format::amend_options); also `size`, and `backing_file` (empty: none) and `backing_fmt`, which leave the disk's content as it is.
    pub options: Vec<(String, String)>,
    /// Also what loses data (`--force`), where the format knows such a thing.
    pub force: bool,
    /// Another size may be smaller: what is cut off is gone.
    pub shrink: bool,
}

/// What every format can do, apart from what is the format's own.
#[derive(Debug, Default)]
struct Common {
    size: Option<u64>,
    backing: Option<PathBuf>,
    backing_format: Option<String>,
    own: Vec<(String, String)>,
}

impl Common {
    fn of(options: &[(String, String)]) -> Result<Common> {
        let mut common = Common::default();
        for (name, value) in options {
            match name.as_str() {
                "size" => common.size = Some(parse_size(value)?),
                "backing_file" => common.backing = Some(PathBuf::from(value)),
                "backing_fmt" => common.backing_format = Some(value.clone()),
                _ => common.own.push((name.clone(), value.clone())),
            }
        }
        Ok(common)
    }
}

/// Changes options of `path`: first the format's own, then the size, then the parent. All names and values are checked
/// before anything changes.
pub fn amend(path: &Path, how: &Amend, progress: &dyn Progress) -> Result<()> {
    let named = |error: Error| error.image(path.display());
    if how.options.is_empty() {
        return Err(named(Error::invalid("Must specify options (-o)")));
    }
    let common = Common::of(&how.options).map_err(named)?;
    let writable = !common.own.is_empty();
    let image = open(path, &Open { writable, parent: Parent::Ignored, ..how.open.clone() })?;
    let top = &image.links()[0]; // never empty: every image has a layer
    let format = top.format;
    let table = registry::format(format)?.amend_options();
    if table.is_empty() && !common.own.is_empty() {
        return Err(named(Error::unsupported(format!(
            "Format driver '{format}' does not support option amendment"
        ))));
    }
    let mut given = common.own.clone();
    if how.force && table.iter().any(|spec| spec.name == "force") {
        given.push(("force".to_owned(), "on".to_owned()));
    }
    let own = Options::check(table, &given).map_err(named)?;
    if !how.shrink && common.size.is_some_and(|size| size < image.size()) {
        return Err(named(
            Error::invalid("amend does not make a disk smaller").hint("use 'cowhand resize --shrink'"),
        ));
    }
    let parent = top.layer.parent();
    if !common.own.is_empty() {
        top.layer.amend(&own, &how.open.secrets, progress).map_err(named)?;
        image.close()?;
    }
    drop(image);
    let open = Open { format: Some(format.to_owned()), ..how.open.clone() };
    if let Some(size) = common.size {
        let how = Resize {
            open: open.clone(),
            size: NewSize::To(size),
            shrink: how.shrink,
            force: false,
            prealloc: Prealloc::Off,
        };
        resize(path, &how)?;
    }
    if common.backing.is_some() || common.backing_format.is_some() {
        // A format alone says what the parent is that the image has.
        let same_name = common.backing.is_none();
        let present = parent.and_then(|parent| parent.candidates.into_iter().next());
        let how = Rebase {
            open,
            backing: common.backing.or(present).filter(|name| !name.as_os_str().is_empty()),
            backing_format: common.backing_format,
            unchecked: same_name,
            ..Rebase::default()
        };
        rebase(path, &how, progress)?;
    }
    Ok(())
}
