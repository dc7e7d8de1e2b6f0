//! `merge`: what an image holds goes down into its parent, those that stood on it go over to that parent, and it goes
//! away.
//!
//! Nothing is taken away before what replaces it is durable: first the parent has everything, then each child has its
//! new parent, then the image is removed. Stopped anywhere, it can be run again.

use std::path::{Path, PathBuf};

use cowhand_core::{DirFolder, Error, Folder, Image, Link, Progress, Result};

use crate::commit::{Commit, commit_alone, depth_of};
use crate::compare::compare_sources;
use crate::convert::workers;
use crate::open::{Open, Opened, Parent, open};
use crate::parent::relative_name;
use crate::plan::Concat;
use crate::rebase::{Rebase, rebase};
use crate::resolve::folder_of;
use crate::sectors::Sectors;
use crate::siblings::{File, Known, who_stands_on};

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
    /// The parent's sectors are not the image's.
    pub sectors: Option<Sectors>,
}

/// Merges `path` into its parent. An error, or a kill, leaves the disk's content, and that of every child, as it is.
///
/// Errors: [`ErrorKind::Invalid`](crate::ErrorKind) where a child does not stand on the image, and where other images in
/// the folders of the two, or of [`Open::search`], would show something else afterwards.
pub fn merge(path: &Path, how: &Merge, progress: &dyn Progress) -> Result<Merged> {
    let scene = Scene::of(path, how, progress)?;
    scene.refuse_others(how, progress)?;
    let down = Commit {
        open: how.open.clone(),
        base: how.base.clone(),
        keep: true,
        workers: how.workers,
        ..Commit::default()
    };
    let done = commit_alone(path, &down, progress)?;
    for child in &scene.children {
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
    Ok(Merged { moved: done.moved, held: done.held, deleted: how.delete, sectors: done.sectors })
}

/// How a child of the image is opened: what was said of the image itself does not hold for it.
fn of_child(how: &Merge) -> Open {
    Open { format: None, options: Vec::new(), parent: Parent::Named, ..how.open.clone() }
}

/// The image and the files around it, all of them closed again.
struct Scene {
    image: PathBuf,
    /// The image's file name.
    name: String,
    base: PathBuf,
    base_format: &'static str,
    /// Image and base.
    ends: [Known; 2],
    /// The files of the chain down to the base, and the children's.
    known: Vec<File>,
    /// The children that stand on the image; the others have come over to the base in an earlier run.
    children: Vec<PathBuf>,
}

impl Scene {
    /// Looks at all that will be needed, before anything is written.
    fn of(path: &Path, how: &Merge, progress: &dyn Progress) -> Result<Scene> {
        let named = |error: Error| error.image(path.display());
        let chain = open(path, &how.open)?;
        let depth = match &how.base {
            Some(base) => depth_of(base, false, &chain)?,
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
        let known = files.get(..=depth).unwrap_or_default().to_vec();
        let of = |file: &File, link: &Link| Known { file: *file, id: link.layer.identity() };
        let ends = [of(file, top), of(base_file, base)];
        let (file, base_file) = (*file, *base_file);
        let (base, base_format) = (PathBuf::from(&base.name), base.format);
        drop(chain);
        let mut scene =
            Scene { image: path.to_owned(), name, base, base_format, ends, known, children: Vec::new() };
        let mut moved = Vec::new();
        for child in &how.children {
            let (own, below) = child_files(child, how)?;
            scene.known.push(own);
            match below {
                Some(below) if below == file => scene.children.push(child.clone()),
                Some(below) if below == base_file => moved.push(child),
                _ => return Err(stands_elsewhere(child, path)),
            }
        }
        match moved.first() {
            Some(child) if !scene.is_down(how, progress)? => Err(stands_elsewhere(child, path)),
            _ => Ok(scene),
        }
    }

    /// The base shows all that the image does: an earlier run came so far, and nothing is left to be written there.
    fn is_down(&self, how: &Merge, progress: &dyn Progress) -> Result<bool> {
        let chain: Opened = open(&self.image, &how.open)?;
        let files = chain.layer_files();
        let depth = files.iter().position(|file| *file == self.ends[1].file).unwrap_or(files.len());
        let base = match chain.links().get(depth..) {
            Some(links) if !links.is_empty() => Image::new(links.to_vec())?,
            _ => return Ok(false),
        };
        let (all, below) = (Concat::new([&*chain]), Concat::new([&base]).up_to(chain.size()));
        let found = compare_sources(&all, &below, false, workers(how.workers), progress);
        found.map(|found| found.difference.is_none()).map_err(|failed| failed.error)
    }

    /// Images whose content would change under them, as far as they lie where one looks first.
    fn refuse_others(&self, how: &Merge, progress: &dyn Progress) -> Result<()> {
        if how.force {
            return Ok(());
        }
        let mut folders = vec![folder_of(&self.image), folder_of(&self.base)];
        folders.extend(how.open.search.iter().cloned());
        let (mut orphans, mut changed) = (Vec::new(), Vec::new());
        for (path, number) in who_stands_on(&self.ends, &folders, &self.known)? {
            let name = format!("'{}'", path.display());
            match number {
                0 if how.delete => orphans.push(name),
                0 => {}
                _ => changed.push(name),
            }
        }
        let refuse = |who: Vec<String>, what: String, hint: &str| {
            if who.is_empty() {
                return Ok(());
            }
            Err(Error::invalid(format!("{} {what}", who.join(", "))).image(self.image.display()).hint(hint))
        };
        refuse(
            orphans,
            "would be left without a parent".to_owned(),
            "name each with --child, or leave out --delete",
        )?;
        if !changed.is_empty() && self.is_down(how, progress)? {
            return Ok(());
        }
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

/// The files of a child, which can be written to, and of its parent.
fn child_files(child: &Path, how: &Merge) -> Result<(File, Option<File>)> {
    let opened = open(child, &Open { writable: true, ..of_child(how) })?;
    let files = opened.layer_files();
    opened.close()?;
    Ok((files.first().copied().unwrap_or_default(), files.get(1).copied())) // never empty: every image has a layer
}

fn stands_elsewhere(child: &Path, image: &Path) -> Error {
    Error::invalid(format!("does not stand on '{}'", image.display())).image(child.display())
}
