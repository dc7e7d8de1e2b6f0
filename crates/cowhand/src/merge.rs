//! `merge`: what an image holds goes down into its parent, those that stood on it go over to that parent, and it goes
//! away.
//!
//! Nothing is taken away before what replaces it is durable: first the parent has everything, then each child has its
//! new parent, then the image is removed. Stopped anywhere, it can be run again.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cowhand_core::{DirFolder, Error, Folder, LayerId, Lock, Progress, Result};

use crate::commit::{Commit, commit, depth_of};
use crate::open::{Open, Parent, open, open_alone};
use crate::parent::relative_name;
use crate::rebase::{Rebase, rebase};
use crate::resolve::{folder_of, in_folder};
use crate::shelf::files_of;

/// How an image is merged.
#[derive(Clone, Debug, Default)]
pub struct Merge {
    /// How the chain is opened; which layers are writable is decided here.
    pub open: Open,
    /// The parent that takes the data, as [`Commit::base`] names it; `None`: the image's own. Images between the two no
    /// longer read as they did.
    pub base: Option<PathBuf>,
    /// Images that stand on this one: each gets the parent that took the data, and reads as before.
    pub children: Vec<PathBuf>,
    /// Remove the image in the end; otherwise it is left as it is.
    pub delete: bool,
    /// Go on although further images, of the same folders, stand on what changes or goes away.
    pub force: bool,
    /// Threads; `None`: as many as there are processors, at most 8.
    pub workers: Option<usize>,
}

/// What was done, in guest bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Written into the parent, zeros too.
    pub moved: u64,
    /// Held by the image, and by those between it and that parent.
    pub held: u64,
    /// The image was removed.
    pub deleted: bool,
}

/// Merges `path` into its parent. An error, or a kill, leaves the disk's content, and that of every child, as it is.
///
/// Errors: [`ErrorKind::Invalid`](crate::ErrorKind) where a child does not stand on the image, and where other images in
/// the folders of the two, or of [`Open::search`], would show something else afterwards.
pub fn merge(path: &Path, how: &Merge, progress: &dyn Progress) -> Result<Merged> {
    let scene = Scene::of(path, how)?;
    scene.refuse_others(how)?;
    let down = Commit { open: how.open.clone(), base: how.base.clone(), keep: true, workers: how.workers };
    let done = commit(path, &down, progress)?;
    for child in &how.children {
        let over = Rebase {
            open: of_child(how),
            backing: Some(relative_name(child, &scene.base)),
            backing_format: Some(scene.base_format.to_owned()),
            workers: how.workers,
            ..Rebase::default()
        };
        rebase(child, &over, progress)?;
    }
    if how.delete {
        let folder = DirFolder::new(folder_of(path), how.open.cache);
        folder.remove(&scene.name).and_then(|()| folder.sync())?;
    }
    Ok(Merged { moved: done.moved, held: done.held, deleted: how.delete })
}

/// How a child of the image is opened: what was said of the image itself does not hold for it.
fn of_child(how: &Merge) -> Open {
    Open { format: None, options: Vec::new(), parent: Parent::Named, ..how.open.clone() }
}

/// A file: device and inode.
type File = (u64, u64);

fn file(path: &Path) -> Option<File> {
    std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// The image and the files around it, all of them closed again.
struct Scene {
    image: PathBuf,
    /// The image's file name.
    name: String,
    base: PathBuf,
    base_format: &'static str,
    /// Image and base, and what a child remembers of them.
    ends: [(File, LayerId); 2],
    /// The files of the chain down to the base, and the children's.
    known: Vec<File>,
}

impl Scene {
    /// Looks at all that will be needed, before anything is written.
    fn of(path: &Path, how: &Merge) -> Result<Scene> {
        let named = |error: Error| error.image(path.display());
        let chain = open(path, &how.open)?;
        let depth = match &how.base {
            Some(base) => depth_of(base, &chain)?,
            None => 1,
        };
        let (files, links) = (chain.layer_files(), chain.links());
        let (Some(base), Some(base_file), [file, ..], [top, ..]) =
            (links.get(depth), files.get(depth), files.as_slice(), links)
        else {
            return Err(named(Error::invalid("Image does not have a backing file")));
        };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if how.delete {
            let plain = std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
            if !plain || name.is_empty() {
                return Err(named(
                    Error::invalid("is a link or a device, which is not removed")
                        .hint("leave out --delete, or name the file itself"),
                ));
            }
        }
        let mut known = files.get(..=depth).unwrap_or_default().to_vec();
        let ends = [(*file, top.layer.identity()), (*base_file, base.layer.identity())];
        let (base, base_format) = (PathBuf::from(&base.name), base.format);
        drop(chain);
        for child in &how.children {
            known.push(child_file(child, path, ends[0].0, how)?);
        }
        Ok(Scene { image: path.to_owned(), name, base, base_format, ends, known })
    }

    /// Images whose content would change under them, as far as they lie where one looks first.
    fn refuse_others(&self, how: &Merge) -> Result<()> {
        let mut folders = vec![folder_of(&self.image), folder_of(&self.base)];
        folders.extend(how.open.search.iter().cloned());
        let [image, base] = &self.ends;
        let (mut orphans, mut changed) = (Vec::new(), Vec::new());
        for (path, file) in files_of(&folders)? {
            if self.known.contains(&file) {
                continue;
            }
            if how.delete && stands_on(&path, image) {
                orphans.push(format!("'{}'", path.display()));
            } else if stands_on(&path, base) {
                changed.push(format!("'{}'", path.display()));
            }
        }
        let refuse = |who: Vec<String>, what: String, hint: &str| {
            if who.is_empty() || how.force {
                return Ok(());
            }
            Err(Error::invalid(format!("{} {what}", who.join(", "))).image(self.image.display()).hint(hint))
        };
        refuse(
            orphans,
            "would be left without a parent".to_owned(),
            "name each with --child, or leave out --delete",
        )?;
        refuse(
            changed,
            format!(
                "would show something else: '{}', which is written to, is a parent there too",
                self.base.display()
            ),
            "give them another parent first, or pass --force",
        )
    }
}

/// The file of a child, which stands on the image and can be written to.
fn child_file(child: &Path, image: &Path, image_file: File, how: &Merge) -> Result<File> {
    let opened = open(child, &Open { writable: true, ..of_child(how) })?;
    let files = opened.layer_files();
    opened.close()?;
    match files.as_slice() {
        [own, below, ..] if *below == image_file => Ok(*own),
        _ => Err(Error::invalid(format!("does not stand on '{}'", image.display())).image(child.display())),
    }
}

/// The image at `path`, if it is one, has this parent: by a name it gives, or by the identity that it remembers.
fn stands_on(path: &Path, (parent, id): &(File, LayerId)) -> bool {
    let how = Open { lock: Lock::None, ..Open::default() };
    let Some(named) = open_alone(path, &how).ok().and_then(|image| image.top().layer.parent()) else {
        return false;
    };
    let folder = folder_of(path);
    id.0.is_some_and(|id| named.expected.contains(&id))
        || named.candidates.iter().any(|name| file(&in_folder(&folder, name)) == Some(*parent))
}
