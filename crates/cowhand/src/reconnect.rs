//! `reconnect-parent`: an image whose parent was moved or renamed is told where it is now.

use std::path::{Path, PathBuf};

use cowhand_core::{Error, ErrorKind, Lock, ParentRef, Result};

use crate::open::{Open, Opened, Parent, open, open_as_far};
use crate::parent::{relative_name, remembered};

/// How an image gets to know its parent again.
#[derive(Clone, Debug, Default)]
pub struct Reconnect {
    /// How the image and its parent are opened; what is writable is decided here. [`Open::search`] is where the parent
    /// is looked for that is not named.
    pub open: Open,
    /// The parent; `None`: what the image names, else what is found.
    pub parent: Option<PathBuf>,
    /// Take a parent that is not the one the image remembers, or of which that cannot be said.
    pub force: bool,
    /// Each image that the parent stands on too, down to the base.
    pub chain: bool,
}

/// What was written into one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconnected {
    /// The image.
    pub image: PathBuf,
    /// The parent's name as it stands in the image.
    pub parent: PathBuf,
}

/// Writes into `path` where its parent is. Everything is found and verified before anything is written; each image has
/// its old names or the new ones after a power cut, and it can be run again.
///
/// Errors: [`ErrorKind::Mismatch`] for a parent that is not the one the image was made from, and for one that cannot be
/// verified and has another file name than the image states; [`ErrorKind::Invalid`] for an image that has no parent.
pub fn reconnect_parent(path: &Path, how: &Reconnect) -> Result<Vec<Reconnected>> {
    let named = |error: Error| error.image(path.display());
    let given = how.parent.clone().map_or(Parent::Named, Parent::Given);
    let look = Open { parent: given, any_parent: how.force, metadata_only: true, ..how.open.clone() };
    let alone = open(path, &Open { parent: Parent::Ignored, ..look.clone() })?;
    if alone.top().layer.parent().is_none() {
        return Err(named(
            Error::invalid("has no parent, so there is none to be reconnected")
                .hint("'cowhand rebase -b' gives it one"),
        ));
    }
    drop(alone);
    let (chain, broken) = open_as_far(path, &look)?;
    let count = if how.chain { chain.links().len() - 1 } else { 1 };
    if let Some(error) = broken {
        // What the parent stands on may be missing: that is another image's business.
        let further_down = !how.chain && chain.links().len() > 1;
        let missing = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Denied | ErrorKind::Mismatch);
        if !(further_down && missing) {
            return Err(error);
        }
    }
    let mut jobs = Vec::new();
    for depth in 0..count {
        jobs.push(Job::of(&chain, depth, how.force)?);
    }
    drop(chain);
    // The base's own child first: each image remembers when its parent was last changed.
    let mut done = Vec::new();
    for job in jobs.into_iter().rev() {
        done.push(job.write(&how.open)?);
    }
    Ok(done)
}

/// One image that is to be told.
struct Job {
    image: PathBuf,
    format: &'static str,
    parent: PathBuf,
    parent_format: &'static str,
}

impl Job {
    fn of(chain: &Opened, depth: usize, force: bool) -> Result<Job> {
        let [image, parent] = chain.links().get(depth..depth + 2).unwrap_or_default() else {
            return Err(Error::invalid("has no parent that could be opened").image(chain.name()));
        };
        let wanted = image.layer.parent().unwrap_or_default();
        let named = |error: Error| error.image(&image.name);
        if wanted.expected.is_empty() && !force {
            refuse_other_name(&wanted, Path::new(&parent.name)).map_err(named)?;
        }
        if !wanted.expected.is_empty() && !force && parent.layer.identity().0.is_none() {
            return Err(named(
                Error::new(
                    ErrorKind::Mismatch,
                    format!("remembers the identity of its parent, and '{}' has none", parent.name),
                )
                .hint("pass --force if you are sure"),
            ));
        }
        Ok(Job {
            image: PathBuf::from(&image.name),
            format: image.format,
            parent: PathBuf::from(&parent.name),
            parent_format: parent.format,
        })
    }

    fn write(self, how: &Open) -> Result<Reconnected> {
        let Job { image, format, parent, parent_format } = self;
        let alone = |format: &str| Open {
            format: Some(format.to_owned()),
            options: Vec::new(),
            parent: Parent::Ignored,
            metadata_only: true,
            ..how.clone()
        };
        // Looked at now: reconnecting the parent itself has changed it.
        let now = open(&parent, &Open { lock: Lock::None, ..alone(parent_format) })?;
        now.refuse_as_parent()?;
        let seen = now.seen(0);
        let name = relative_name(&image, &parent);
        let told = remembered(&image, &name, Some(parent_format.to_owned()), seen);
        let opened = open(&image, &Open { writable: true, ..alone(format) })?;
        opened.top().layer.set_parent(Some(&told)).map_err(|error| error.image(image.display()))?;
        opened.close()?;
        Ok(Reconnected { image, parent: name })
    }
}

/// Where an image does not remember who its parent is, a file of the parent's name is taken for it, and no other.
fn refuse_other_name(wanted: &ParentRef, parent: &Path) -> Result<()> {
    let lower = |path: &Path| path.file_name().map(|name| name.to_string_lossy().to_lowercase());
    let same = |name: &PathBuf| {
        name.file_name() == parent.file_name() || (wanted.any_case && lower(name) == lower(parent))
    };
    if wanted.candidates.iter().any(same) {
        return Ok(());
    }
    let shown = wanted.candidates.first().map(|name| name.display().to_string()).unwrap_or_default();
    Err(Error::new(
        ErrorKind::Mismatch,
        format!(
            "remembers of its parent no more than the name '{shown}', so whether '{}' is the one cannot be verified",
            parent.display()
        ),
    )
    .hint("pass --force if you are sure"))
}
