//! Persistent dirty bitmaps: listed, changed, kept in step with what is written.

mod bits;
mod directory;
mod store;
mod table;
mod track;

use cowhand_core::{BitmapInfo, Bitmaps, Error, ErrorKind, Result, SeeRange};
use serde_json::{Value, json};

use crate::bitmaps::bits::Bits;
use crate::bitmaps::directory::{
    GRANULARITY_BITS, MAX_BITMAP_BYTES, MAX_BITMAPS, MAX_DIRECTORY_BYTES, MAX_NAME,
};
use crate::layer::Qcow2Layer;

pub(crate) use crate::bitmaps::directory::{Directory, Entry, entries, place, read_bytes};
pub(crate) use crate::bitmaps::table::Word;
pub(crate) use crate::bitmaps::track::Tracker;

/// Without a wish: a cluster, within these bounds.
const DEFAULT_GRANULARITY: std::ops::RangeInclusive<u64> = 4096..=65536;

fn unknown(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no bitmap named '{name}'"))
        .hint("list them first")
        .known_as(format!("Dirty bitmap '{name}' not found"))
}

/// QEMU's sentence for a bitmap that this image cannot keep.
fn unkept(name: &str, why: &str) -> String {
    format!("Can't make bitmap '{name}' persistent: {why}")
}

fn find<'a>(directory: &'a Directory, name: &str) -> Result<&'a Entry> {
    directory.find(name).ok_or_else(|| unknown(name))
}

fn usable<'a>(directory: &'a Directory, name: &str) -> Result<&'a Entry> {
    let entry = find(directory, name)?;
    if entry.is_foreign() {
        return Err(Error::unsupported(format!("bitmap '{name}' has extra data that is not known here"))
            .hint("use it with the program that made it, or remove it"));
    }
    if entry.in_use() {
        return Err(Error::corrupt(
            "bitmap directory",
            format!("bitmap '{name}' was in use when the image was last written, so it is not to be trusted"),
        )
        .hint("remove it, and make a new one")
        .known_as(format!(
            "Bitmap '{name}' is inconsistent and cannot be used\nTry block-dirty-bitmap-remove to delete this bitmap from disk"
        )));
    }
    Ok(entry)
}

/// Refuses what is larger than a bitmap may be, or than nothing: QEMU opens no image with a bitmap of an empty disk.
fn check_bytes(entry: &Entry, size: u64) -> Result<()> {
    if size == 0 {
        return Err(Error::unsupported("a disk of 0 bytes cannot have bitmaps"));
    }
    if entry.bits(size).div_ceil(8) > MAX_BITMAP_BYTES {
        return Err(Error::unsupported(format!(
            "bitmap '{}': {size} bytes of disk need more than 512 MiB with a granularity of {} bytes",
            entry.label(),
            1u64 << entry.granularity_bits()
        ))
        .hint("use a larger granularity")
        .known_as(unkept(
            &entry.label(),
            "Too much space will be occupied by the bitmap. Use larger granularity",
        )));
    }
    Ok(())
}

/// What `info` shows.
pub(crate) fn details(layer: &Qcow2Layer) -> Option<Value> {
    layer.has_bitmaps().then_some(())?;
    // That a directory cannot be read does not concern the disk.
    let directory = layer.directory().ok()?;
    let shown = directory.entries.iter().map(|entry| {
        let flags = [("in-use", entry.in_use()), ("auto", entry.is_auto())];
        let flags: Vec<_> = flags.into_iter().filter_map(|(name, set)| set.then_some(name)).collect();
        json!({ "flags": flags, "name": entry.label(), "granularity": 1u64 << entry.granularity_bits() })
    });
    Some(shown.collect())
}

impl Qcow2Layer {
    /// There are bitmaps, in step with the data.
    pub(crate) fn has_bitmaps(&self) -> bool {
        place(&self.view.shared.header()).is_some()
    }

    /// Refuses a bitmap that could not be kept, and makes its entry.
    fn new_bitmap(&self, directory: &Directory, name: &str, granularity: Option<u64>) -> Result<Entry> {
        let shared = &self.view.shared;
        let default = || {
            shared.geometry().cluster_size().clamp(*DEFAULT_GRANULARITY.start(), *DEFAULT_GRANULARITY.end())
        };
        let granularity = granularity.unwrap_or_else(default);
        let bad_name = || {
            let len = name.len();
            Error::invalid(format!("a bitmap's name has 1 to {MAX_NAME} bytes; this one has {len}"))
        };
        if name.is_empty() {
            return Err(bad_name().known_as("Bitmap name cannot be empty"));
        }
        if !granularity.is_power_of_two() || !GRANULARITY_BITS.contains(&granularity.trailing_zeros()) {
            return Err(Error::invalid(format!(
                "a granularity of {granularity} bytes; it must be a power of two from 512 to 2147483648"
            ))
            .known_as("Granularity must be power of 2 and at least 512"));
        }
        if shared.rules.version < 3 {
            return Err(Error::unsupported("an image of version 2 cannot have bitmaps")
                .hint("make it one of version 3 first (compat=1.1)")
                .known_as(unkept(name, "Cannot store dirty bitmaps in qcow2 v2 files")));
        }
        if name.len() > MAX_NAME {
            let why = format!("Name length exceeds maximum ({MAX_NAME} characters)");
            return Err(bad_name().known_as(unkept(name, &why)));
        }
        if directory.find(name).is_some() {
            return Err(Error::new(ErrorKind::Exists, format!("there is a bitmap named '{name}' already"))
                .known_as(format!("Bitmap already exists: {name}")));
        }
        let entry = Entry::new(name.as_bytes(), granularity.trailing_zeros());
        check_bytes(&entry, self.view.size())?;
        let bytes = directory.encode().len() + 24 + name.len().next_multiple_of(8);
        if directory.entries.len() >= MAX_BITMAPS || bytes as u64 > MAX_DIRECTORY_BYTES {
            return Err(Error::unsupported("the image has as many bitmaps as there may be")
                .hint("remove some that nobody needs any more")
                .known_as(unkept(name, "Maximum number of persistent bitmaps is already reached")));
        }
        Ok(entry)
    }

    /// Refuses a size of the disk that its bitmaps cannot follow.
    pub(crate) fn check_bitmaps(&self, size: u64) -> Result<()> {
        for entry in self.directory()?.entries {
            if !entry.is_usable() {
                return Err(Error::unsupported(format!(
                    "the image cannot be resized while bitmap '{}' is inconsistent",
                    entry.label()
                ))
                .hint("remove the bitmap first"));
            }
            check_bytes(&entry, size)?;
        }
        Ok(())
    }

    pub(crate) fn bits_of(&self, entry: &Entry) -> Result<Bits> {
        let shared = &self.view.shared;
        table::load(shared.file.as_ref(), shared.geometry(), entry, self.view.size())
    }
}

impl Bitmaps for Qcow2Layer {
    fn list(&self) -> Result<Vec<BitmapInfo>> {
        Ok(self.directory()?.entries.iter().map(Entry::info).collect())
    }

    fn add(&self, name: &str, granularity: Option<u64>, enabled: bool) -> Result<()> {
        self.change_bitmaps(|writer, change| {
            let mut entry = self.new_bitmap(&change.directory, name, granularity)?;
            let bits = Bits::new(self.view.size(), entry.granularity_bits());
            entry.set_auto(enabled);
            self.put_bits(writer, change, &mut entry, &bits)?;
            change.directory.entries.push(entry);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.change_bitmaps(|_, change| {
            let entry = find(&change.directory, name)?.clone();
            self.drop_bits(change, &entry)?;
            change.directory.entries.retain(|other| other.name != entry.name);
            Ok(())
        })
    }

    fn clear(&self, name: &str) -> Result<()> {
        self.change_bitmaps(|writer, change| {
            let granularity_bits = usable(&change.directory, name)?.granularity_bits();
            let bits = Bits::new(self.view.size(), granularity_bits);
            bits.all_changed();
            self.change_entry(change, name.as_bytes(), |change, entry| {
                self.put_bits(writer, change, entry, &bits)
            })
        })
    }

    fn enable(&self, name: &str, enabled: bool) -> Result<()> {
        self.change_bitmaps(|_, change| {
            usable(&change.directory, name)?;
            change.directory.find_mut(name).ok_or_else(|| unknown(name))?.set_auto(enabled);
            Ok(())
        })
    }

    fn dirty(&self, name: &str, see: &mut SeeRange<'_>) -> Result<()> {
        // No lock is held while `see` is called: it may well use this layer.
        match self.tracker.recorded(name) {
            Some(bits) => bits.ranges(see),
            None => self.bits_of(usable(&self.directory()?, name)?)?.ranges(see),
        }
    }

    fn mark(&self, name: &str, ranges: &mut dyn FnMut(&mut SeeRange<'_>) -> Result<()>) -> Result<()> {
        let granularity_bits = usable(&self.directory()?, name)?.granularity_bits();
        let new = Bits::new(self.view.size(), granularity_bits);
        ranges(&mut |range| {
            new.mark(range);
            Ok(())
        })?;
        self.change_bitmaps(|writer, change| {
            let bits = self.bits_of(usable(&change.directory, name)?)?;
            bits.merge(&new)?;
            self.change_entry(change, name.as_bytes(), |change, entry| {
                self.put_bits(writer, change, entry, &bits)
            })
        })
    }
}
