//! `bitmap`: changing persistent dirty bitmaps, and carrying them from image to image.

use std::path::{Path, PathBuf};

use cowhand_core::{BitmapInfo, Bitmaps, Error, ErrorKind, Layer, Link, Result};

use crate::failed::Failed;
use crate::open::{Open, Parent, open, open_alone};

/// What is done with a bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BitmapAction {
    /// Make it, empty and recording, with so many guest bytes to a bit; `None`: the format's choice.
    Add(Option<u64>),
    /// Take it away.
    Remove,
    /// Nothing is dirty any more.
    Clear,
    /// Record writes from here on.
    Enable,
    /// Record no more.
    Disable,
    /// What is dirty in the bitmap of that name becomes dirty here too.
    Merge(String),
}

/// Where the bitmaps stand that are merged.
#[derive(Clone, Debug, Default)]
pub struct MergeSource {
    /// The image.
    pub path: PathBuf,
    /// How it is opened; no other file is.
    pub open: Open,
}

/// The steps of changing a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapStep {
    /// The image is opened.
    Image,
    /// The image is opened that holds what is merged.
    Source,
    /// The action of that number is done, counted from 0.
    Action(usize),
    /// The image is closed.
    Close,
}

/// Does `actions`, in their order, with the bitmap `name` of the image `path`. Each is durable before the next begins;
/// the first that fails ends it. `source`: where merged bitmaps stand, if not in the image itself.
pub fn bitmap(
    path: &Path,
    how: &Open,
    name: &str,
    actions: &[BitmapAction],
    source: Option<&MergeSource>,
) -> Result<(), Failed<BitmapStep>> {
    let opened = open(path, &Open { writable: true, parent: Parent::Ignored, ..how.clone() });
    let image = opened.map_err(Failed::at(BitmapStep::Image))?;
    let from = source.map(|source| open_alone(&source.path, &source.open)).transpose();
    let from = from.map_err(Failed::at(BitmapStep::Source))?;
    let from = from.as_ref().map_or(image.top(), |from| from.top());
    let act = |action: &BitmapAction| {
        let target = of(image.top());
        match action {
            BitmapAction::Add(granularity) => target
                .map_err(|error| error.known_as("Can't store persistent bitmaps: Operation not supported"))
                .and_then(|all| all.add(name, *granularity, true)),
            BitmapAction::Merge(other) => merge(from, other, image.top(), name),
            other => {
                let target = target.map_err(|error| error.known_as(unknown(name)))?;
                match other {
                    BitmapAction::Remove => target.remove(name),
                    BitmapAction::Clear => target.clear(name),
                    other => target.enable(name, *other == BitmapAction::Enable),
                }
            }
        }
    };
    let done = actions.iter().enumerate().try_for_each(|(number, action)| {
        let done = act(action).map_err(|error| error.image(path.display()));
        done.map_err(Failed::at(BitmapStep::Action(number)))
    });
    // What was done before one failed is left whole.
    let closed = image.close();
    done?;
    closed.map_err(Failed::at(BitmapStep::Close))
}

fn of(link: &Link) -> Result<&dyn Bitmaps> {
    link.layer.as_bitmaps().ok_or_else(|| {
        Error::unsupported(format!("a {} image has no persistent dirty bitmaps", link.format))
            .image(&link.name)
    })
}

/// That there is no such bitmap, in QEMU's words.
fn unknown(name: &str) -> String {
    format!("Dirty bitmap '{name}' not found")
}

/// What is dirty in one bitmap becomes dirty in another. Their granularities may differ; their disks' sizes may not.
fn merge(from: &Link, bitmap: &str, to: &Link, name: &str) -> Result<()> {
    let target = of(to).map_err(|error| error.known_as(unknown(name)))?;
    find(target, name)?;
    let source = of(from).map_err(|error| error.known_as(unknown(bitmap)))?;
    find(source, bitmap).map_err(|error| error.image(&from.name))?;
    let (had, has) = (from.layer.size(), to.layer.size());
    if had != has {
        let said = format!(
            "Bitmaps are of different sizes (destination size is {has}, source size is {had}) and can't be merged"
        );
        return Err(Error::invalid(said.clone()).hint("resize one of the images first").known_as(said));
    }
    target.mark(name, &mut |put| {
        source.dirty(bitmap, &mut |range| put(range)).map_err(|error| error.image(&from.name))
    })
}

/// The bitmap of that name, which can be trusted.
fn find(bitmaps: &dyn Bitmaps, name: &str) -> Result<BitmapInfo> {
    let found = bitmaps.list()?.into_iter().find(|bitmap| bitmap.name == name).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, unknown(name))
            .hint("'cowhand info' lists them")
            .known_as(unknown(name))
    })?;
    if found.inconsistent { Err(inconsistent(name)) } else { Ok(found) }
}

fn inconsistent(name: &str) -> Error {
    Error::unsupported(format!(
        "Bitmap '{name}' is inconsistent: it was not saved when the image was last written, and cannot be used"
    ))
    .hint("take it away with 'cowhand bitmap --remove'")
    .known_as(format!(
        "Bitmap '{name}' is inconsistent and cannot be used\nTry block-dirty-bitmap-remove to delete this bitmap from disk"
    ))
}

/// The bitmaps of a source that go into a target. Found before anything is written.
pub(crate) struct Carried<'a> {
    source: &'a dyn Bitmaps,
    bitmaps: Vec<BitmapInfo>,
    /// What was left out, and why.
    pub(crate) skipped: Vec<String>,
}

impl<'a> Carried<'a> {
    /// All of `source`. Errors: one is inconsistent, unless those are skipped.
    pub(crate) fn of(source: &'a Link, skip_broken: bool) -> Result<Carried<'a>> {
        let bitmaps = of(source)?;
        let (broken, whole): (Vec<_>, Vec<_>) =
            bitmaps.list()?.into_iter().partition(|bitmap| bitmap.inconsistent);
        if let Some(bitmap) = broken.first().filter(|_| !skip_broken) {
            return Err(inconsistent(&bitmap.name)
                .image(&source.name)
                .hint("pass --skip-broken-bitmaps, or remove it with 'cowhand bitmap --remove'"));
        }
        let skipped = broken.iter().map(|bitmap| format!("Skipping inconsistent bitmap '{}'", bitmap.name));
        Ok(Carried { source: bitmaps, bitmaps: whole, skipped: skipped.collect() })
    }

    /// Errors where `target` cannot hold any, or has one of them. To be asked before the data is copied.
    pub(crate) fn check(&self, target: &dyn Layer) -> Result<()> {
        match target.as_bitmaps() {
            Some(bitmaps) => {
                let there = bitmaps.list()?;
                // As QEMU goes through them.
                let mut wanted = self.bitmaps.iter().rev();
                match wanted.find(|bitmap| there.iter().any(|other| other.name == bitmap.name)) {
                    None => Ok(()),
                    Some(BitmapInfo { name, .. }) => Err(Error::new(
                        ErrorKind::Exists,
                        format!("there is a bitmap named '{name}' already"),
                    )
                    .hint("take it away with 'cowhand bitmap --remove'")
                    .known_as(format!("Failed to create bitmap {name}: Bitmap already exists: {name}"))),
                }
            }
            None => Err(Error::unsupported("Format driver does not support persistent dirty bitmaps")
                .hint("leave out --bitmaps, or choose qcow2")),
        }
    }

    /// Makes them in `target`, and makes the same dirty there. What the target's disk does not reach is left out.
    pub(crate) fn put(&self, target: &dyn Layer) -> Result<()> {
        let Some(bitmaps) = target.as_bitmaps() else { return self.check(target) };
        let size = target.size();
        for BitmapInfo { name, granularity, enabled, .. } in &self.bitmaps {
            // Not recording while it is filled.
            bitmaps.add(name, Some(*granularity), false)?;
            bitmaps.mark(name, &mut |put| {
                self.source.dirty(name, &mut |range| {
                    let end = range.end.min(size);
                    if range.start < end { put(range.start..end) } else { Ok(()) }
                })
            })?;
            if *enabled {
                bitmaps.enable(name, true)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowhand_core::{Extent, MemoryStorage, SeeRange, Storage};
    use std::ops::Range;
    use std::sync::{Arc, Mutex};

    /// A disk of 1 MiB with bitmaps in memory.
    #[derive(Debug, Default)]
    struct Marked {
        size: u64,
        all: Mutex<Vec<(BitmapInfo, Vec<Range<u64>>)>>,
        file: Option<Arc<dyn Storage>>,
    }

    impl Marked {
        fn new(size: u64) -> Marked {
            Marked { size, all: Mutex::default(), file: Some(Arc::new(MemoryStorage::new())) }
        }

        fn with<T>(
            &self,
            name: &str,
            act: impl FnOnce(&mut (BitmapInfo, Vec<Range<u64>>)) -> T,
        ) -> Result<T> {
            let mut all = self.all.lock().unwrap();
            all.iter_mut()
                .find(|(info, _)| info.name == name)
                .map(act)
                .ok_or_else(|| Error::new(ErrorKind::NotFound, "no such bitmap"))
        }
    }

    impl Bitmaps for Marked {
        fn list(&self) -> Result<Vec<BitmapInfo>> {
            Ok(self.all.lock().unwrap().iter().map(|(info, _)| info.clone()).collect())
        }
        fn add(&self, name: &str, granularity: Option<u64>, enabled: bool) -> Result<()> {
            let granularity = granularity.unwrap_or(65536);
            let info = BitmapInfo { name: name.into(), granularity, enabled, inconsistent: false };
            self.all.lock().unwrap().push((info, Vec::new()));
            Ok(())
        }
        fn remove(&self, name: &str) -> Result<()> {
            self.all.lock().unwrap().retain(|(info, _)| info.name != name);
            Ok(())
        }
        fn clear(&self, name: &str) -> Result<()> {
            self.with(name, |(_, dirty)| dirty.clear())
        }
        fn enable(&self, name: &str, enabled: bool) -> Result<()> {
            self.with(name, |(info, _)| info.enabled = enabled)
        }
        fn dirty(&self, name: &str, see: &mut SeeRange<'_>) -> Result<()> {
            let ranges = self.with(name, |(_, dirty)| dirty.clone())?;
            ranges.into_iter().try_for_each(see)
        }
        fn mark(&self, name: &str, ranges: &mut dyn FnMut(&mut SeeRange<'_>) -> Result<()>) -> Result<()> {
            let mut all = Vec::new();
            ranges(&mut |range| {
                all.push(range);
                Ok(())
            })?;
            self.with(name, |(_, dirty)| dirty.extend(all))
        }
    }

    impl Layer for Marked {
        fn size(&self) -> u64 {
            self.size
        }
        fn granule(&self) -> u64 {
            512
        }
        fn host(&self) -> &Arc<dyn Storage> {
            self.file.as_ref().unwrap()
        }
        fn extent(&self, _at: u64, max: u64) -> Result<Extent> {
            Ok(Extent::hole(max))
        }
        fn read(&self, _at: u64, buf: &mut [u8]) -> Result<Extent> {
            Ok(Extent::hole(buf.len() as u64))
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn as_bitmaps(&self) -> Option<&dyn Bitmaps> {
            Some(self)
        }
    }

    fn link(layer: &Arc<Marked>) -> Link {
        Link { layer: layer.clone(), name: "marked".into(), format: "marked" }
    }

    #[test]
    fn merging_takes_what_is_dirty_and_refuses_other_sizes() {
        let (a, b) = (Arc::new(Marked::new(1 << 20)), Arc::new(Marked::new(1 << 20)));
        a.add("from", Some(512), true).unwrap();
        a.mark("from", &mut |put| put(512..1024)).unwrap();
        b.add("to", None, true).unwrap();
        merge(&link(&a), "from", &link(&b), "to").unwrap();
        assert_eq!(b.with("to", |(_, dirty)| dirty.clone()).unwrap(), [Range { start: 512, end: 1024 }]);
        assert!(merge(&link(&a), "none", &link(&b), "to").unwrap_err().to_string().contains("not found"));
        assert!(merge(&link(&a), "from", &link(&b), "none").unwrap_err().to_string().contains("not found"));
        a.with("from", |(info, _)| info.inconsistent = true).unwrap();
        assert!(merge(&link(&a), "from", &link(&b), "to").unwrap_err().to_string().contains("inconsistent"));
        let c = Arc::new(Marked::new(1 << 21));
        c.add("other", None, true).unwrap();
        let error = merge(&link(&b), "to", &link(&c), "other").unwrap_err().to_string();
        assert!(error.contains("different sizes"), "{error}");
    }

    #[test]
    fn carrying_keeps_flags_and_skips_what_is_broken() {
        let (a, b) = (Arc::new(Marked::new(1 << 20)), Arc::new(Marked::new(1 << 19)));
        for (name, enabled) in [("on", true), ("off", false), ("broken", true)] {
            a.add(name, Some(4096), enabled).unwrap();
            a.mark(name, &mut |put| put(0..4096).and_then(|()| put((1 << 19) - 4096..1 << 20))).unwrap();
        }
        a.with("broken", |(info, _)| info.inconsistent = true).unwrap();
        let source = link(&a);
        assert!(Carried::of(&source, false).is_err());
        let carried = Carried::of(&source, true).unwrap();
        assert_eq!(carried.skipped.len(), 1);
        carried.put(b.as_ref()).unwrap();
        let all = b.all.lock().unwrap();
        let names: Vec<_> = all.iter().map(|(info, _)| (info.name.as_str(), info.enabled)).collect();
        assert_eq!(names, [("on", true), ("off", false)]);
        assert_eq!(all[0].1, [0..4096, (1 << 19) - 4096..1 << 19]);
    }
}
