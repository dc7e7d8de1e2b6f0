//! `flatten`: what a chain holds becomes one image that stands alone.

use std::path::{Path, PathBuf};

use cowhand_core::{Error, Layer, Progress, Result};

use crate::convert::{Convert, Converted, convert};
use crate::hidden::set_hidden;
use crate::open::{Open, Opened, open};
use crate::registry;

/// How a chain is flattened.
#[derive(Clone, Debug, Default)]
pub struct Flatten {
    /// How the chain is opened, and how the new image is written.
    pub open: Open,
    /// Where to; `None`: in the image's own place, which takes it once it is whole.
    pub target: Option<PathBuf>,
    /// The target's format; `None`: by its extension, else the image's.
    pub format: Option<String>,
    /// Options of that format. Those that are not given are the image's own, where both have one format.
    pub options: Vec<(String, String)>,
    /// Read the new image back and compare it before it gets its name.
    pub verify: bool,
    /// Threads; `None`: as many as there are processors, at most 8.
    pub workers: Option<usize>,
}

/// Makes one image of the chain whose top is `path`. `None`: it has no parent, and nothing was to be done in its place.
/// An error, or a kill, leaves the chain as it was.
///
/// Errors: what would be lost with the old file, internal snapshots, or an encryption that only a caller can name anew.
pub fn flatten(path: &Path, how: &Flatten, progress: &dyn Progress) -> Result<Option<Converted>> {
    let chain = open(path, &how.open)?;
    let top = chain.top();
    let in_place = how.target.is_none();
    if in_place && chain.links().len() == 1 && top.layer.parent().is_none() {
        return Ok(None);
    }
    let format = match (&how.format, &how.target) {
        (Some(name), _) => registry::format(name)?,
        (None, Some(target)) => match registry::by_extension(target) {
            Some(format) => format,
            None => registry::format(top.format)?,
        },
        (None, None) => registry::format(top.format)?,
    };
    let same_format = format.names()[0] == top.format; // never empty: every format has a name
    if in_place {
        refuse_losses(&chain, same_format).map_err(|error| error.image(path.display()))?;
    }
    let mut options = how.options.clone();
    if same_format {
        for (name, value) in top.layer.made_with(in_place) {
            if !options.iter().any(|(given, _)| given == name) {
                options.push((name.to_owned(), value));
            }
        }
    }
    let hidden = in_place && top.layer.hidden() == Some(true);
    let bitmaps = in_place && has_bitmaps(top.layer.as_ref())?;
    drop(chain);
    let done = convert(
        &Convert {
            sources: vec![path.to_owned()],
            open: how.open.clone(),
            target: how.target.clone().unwrap_or_else(|| path.to_owned()),
            replace_source: in_place,
            format: Some(format.names()[0].to_owned()), // never empty: every format has a name
            options,
            bitmaps,
            cache: how.open.cache,
            solid: how.open.solid,
            verify: how.verify,
            workers: how.workers,
            ..Convert::default()
        },
        progress,
    )?;
    if hidden {
        set_hidden(path, true, &Open { format: Some(format.names()[0].to_owned()), ..how.open.clone() })?; // never empty: every format has a name
    }
    Ok(Some(done))
}

/// What the image has beside its disk, and the new one would not have.
fn refuse_losses(chain: &Opened, same_format: bool) -> Result<()> {
    let top = chain.top();
    if !same_format {
        return Err(Error::invalid("an image that is flattened in its own place keeps its format")
            .hint("name a target to make one of another"));
    }
    if top.layer.details().encrypted {
        return Err(Error::unsupported(
            "is encrypted, and would not be any more once it is flattened in its own place",
        )
        .hint("name a target, and its encryption with -o"));
    }
    let snapshots = top.layer.as_snapshots().map(|snapshots| snapshots.list()).transpose()?;
    if snapshots.is_some_and(|list| !list.is_empty()) {
        return Err(Error::unsupported("has internal snapshots, which would be lost")
            .hint("delete them, or name a target and keep the image"));
    }
    Ok(())
}

fn has_bitmaps(layer: &dyn Layer) -> Result<bool> {
    Ok(match layer.as_bitmaps() {
        Some(bitmaps) => !bitmaps.list()?.is_empty(),
        None => false,
    })
}
