//! A folder that is whole or absent: filled under a partial name, then renamed.

use std::fs;
use std::path::{Path, PathBuf};

use cowhand_core::{Cache, DirFolder, Error, ErrorKind, Folder, Result};

use crate::resolve::folder_of;

/// A folder that goes away, with all that is in it, unless it is finished.
#[derive(Debug)]
pub(crate) struct TargetFolder {
    path: PathBuf,
    now: PathBuf,
    done: bool,
}

impl TargetFolder {
    /// Prepares the folder `path` under a partial name beside it. `empty`: one that is there and empty is replaced.
    /// Errors: something bears that name already.
    pub(crate) fn begin(path: &Path, empty: bool) -> Result<TargetFolder> {
        let (path, name) = TargetFolder::named(path, empty)?;
        let mut attempt = 0;
        loop {
            let now = folder_of(&path).join(partial_name(&name, attempt));
            match TargetFolder::make(path.clone(), now) {
                // One that was killed left it behind: in a container the next has its number.
                Err(error) if error.kind() == ErrorKind::Exists && attempt < 1000 => attempt += 1,
                made => return made,
            }
        }
    }

    /// Makes the new folder `path` under its own name at once, for somebody who looks into it meanwhile.
    pub(crate) fn at_once(path: &Path) -> Result<TargetFolder> {
        let (path, _) = TargetFolder::named(path, false)?;
        TargetFolder::make(path.clone(), path)
    }

    fn named(path: &Path, empty: bool) -> Result<(PathBuf, String)> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::invalid("is no name for a folder").image(path.display()))?;
        // The slash at its end is no part of the name.
        let whole = path.with_file_name(name);
        let there = match fs::read_dir(path) {
            Ok(mut names) if empty => {
                names.next().is_some().then_some("is a folder that holds something already")
            }
            _ => fs::symlink_metadata(&whole).is_ok().then_some("is there already"),
        };
        match there {
            Some(message) => {
                Err(Error::new(ErrorKind::Exists, message).hint("name a new one").image(path.display()))
            }
            None => Ok((whole, name.to_owned())),
        }
    }

    fn make(path: PathBuf, now: PathBuf) -> Result<TargetFolder> {
        let made = fs::create_dir(&now);
        made.map_err(|error| Error::io("cannot create", error).image(path.display()))?;
        Ok(TargetFolder { path, now, done: false })
    }

    /// Where it stands now.
    pub(crate) fn now(&self) -> &Path {
        &self.now
    }

    /// Where it stands once it is finished.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs the folder, gives it its name, and syncs the one it stands in. What is in it was synced before.
    pub(crate) fn finish(mut self, cache: Cache) -> Result<()> {
        DirFolder::new(&self.now, cache).sync()?;
        if self.now != self.path {
            // Where another one was made meanwhile: an empty folder is replaced, one with anything in it is an error.
            let renamed = fs::rename(&self.now, &self.path);
            renamed
                .map_err(|error| Error::io("cannot give it its name", error).image(self.path.display()))?;
        }
        self.done = true;
        DirFolder::new(folder_of(&self.path), cache).sync()
    }
}

/// What a folder is called until it is finished. File names end at 255 bytes: of a longer one people see the front.
fn partial_name(name: &str, attempt: u32) -> String {
    let mut shown = name;
    while shown.len() > 220 {
        let mut chars = shown.chars();
        chars.next_back();
        shown = chars.as_str();
    }
    let again = if attempt == 0 { String::new() } else { format!("-{attempt}") };
    format!(".{shown}.partial-{:x}{again}", std::process::id())
}

impl Drop for TargetFolder {
    fn drop(&mut self) {
        if !self.done {
            // Nobody can be told: the error that led here is already on its way.
            let _ = fs::remove_dir_all(&self.now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_left_behind_is_in_nobodys_way() {
        let parent = tempfile::tempdir().unwrap();
        let left = parent.path().join(partial_name("out", 0));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("file"), "x").unwrap();
        let to = parent.path().join("out");
        let folder = TargetFolder::begin(&to, false).unwrap();
        fs::write(folder.now().join("mine"), "y").unwrap();
        folder.finish(Cache::Unsafe).unwrap();
        let found: Vec<_> = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(found, ["mine"]);
        assert_eq!(fs::read(left.join("file")).unwrap(), b"x");
    }

    #[test]
    fn names_may_be_as_long_as_names_are() {
        let parent = tempfile::tempdir().unwrap();
        let to = parent.path().join("\u{e9}".repeat(127));
        TargetFolder::begin(&to, false).unwrap().finish(Cache::Unsafe).unwrap();
        assert!(to.is_dir());
    }
}
