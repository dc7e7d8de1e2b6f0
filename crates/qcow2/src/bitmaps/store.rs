//! How bitmaps that changed reach the file: what is new goes to new clusters, and one write of the header, or of flags
//! where nothing else changed, makes it count.

use cowhand_core::{Error, Result};

use crate::alloc::Run;
use crate::bitmaps::bits::{Bits, Content};
use crate::bitmaps::directory::{self, Directory, Entry};
use crate::bitmaps::table::{self, Word};
use crate::extensions::BitmapsAt;
use crate::header::AUTOCLEAR_BITMAPS;
use crate::layer::Qcow2Layer;
use crate::writer::Writer;

/// A change of bitmaps under way: the directory as it will be, and what nothing in the file refers to yet or any more.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) directory: Directory,
    /// The disk's size changes with it.
    pub(crate) size: Option<u64>,
    made: Vec<Run>,
    freed: Vec<Run>,
}

impl Change {
    pub(crate) fn new(old: &Directory) -> Change {
        Change { directory: old.clone(), size: None, made: Vec::new(), freed: Vec::new() }
    }
}

impl Qcow2Layer {
    /// Writes bytes to new clusters, and zeros up to the end of the last. Answers where they stand.
    fn put_bitmap_bytes(&self, writer: &Writer, change: &mut Change, mut bytes: Vec<u8>) -> Result<u64> {
        let geometry = self.view.shared.geometry();
        bytes.resize(bytes.len().next_multiple_of(geometry.cluster_size() as usize), 0);
        let (run, _) = self.reserve(writer, bytes.len() as u64 >> geometry.cluster_bits())?;
        let at = run.start << geometry.cluster_bits();
        change.made.push(run);
        self.view
            .shared
            .file
            .write_at(at, &bytes)
            .map_err(|error| Error::io("cannot write a bitmap", error).at(at))?;
        Ok(at)
    }

    /// The clusters that a bitmap takes go.
    pub(crate) fn drop_bits(&self, change: &mut Change, entry: &Entry) -> Result<()> {
        let shared = &self.view.shared;
        let bits = shared.geometry().cluster_bits();
        for word in table::read(shared.file.as_ref(), shared.geometry(), entry)? {
            if let Word::Stored(at) = word {
                change.freed.push(at >> bits..(at >> bits) + 1);
            }
        }
        change.freed.push(entry.table_run(shared.geometry()));
        Ok(())
    }

    /// Stores what differs in `bits` from what the file has of this bitmap, and gives `entry` its new table.
    pub(crate) fn put_bits(
        &self,
        writer: &Writer,
        change: &mut Change,
        entry: &mut Entry,
        bits: &Bits,
    ) -> Result<()> {
        let shared = &self.view.shared;
        let geometry = shared.geometry();
        let needed = table::len(entry, bits.size(), geometry) as usize;
        let old = match entry.table_at {
            0 => Vec::new(),
            _ => table::read(shared.file.as_ref(), geometry, entry)?,
        };
        if old.len() == needed && !bits.is_changed(0..u64::MAX) {
            return Ok(());
        }
        let mut words = Vec::with_capacity(needed);
        for index in 0..needed.max(old.len()) {
            let range = table::bits_of(index, geometry);
            match old.get(index) {
                Some(word) if index < needed && !bits.is_changed(range.clone()) => {
                    words.push(*word);
                    continue;
                }
                Some(Word::Stored(at)) => {
                    let cluster = at >> geometry.cluster_bits();
                    change.freed.push(cluster..cluster + 1);
                }
                _ => {}
            }
            if index < needed {
                words.push(match bits.content(range) {
                    Content::Zeros => Word::Zeros,
                    Content::Ones => Word::Ones,
                    Content::Mixed(bytes) => Word::Stored(self.put_bitmap_bytes(writer, change, bytes)?),
                });
            }
        }
        if !old.is_empty() {
            change.freed.push(entry.table_run(geometry));
        }
        entry.table_at = self.put_bitmap_bytes(writer, change, table::encode(&words))?;
        entry.table_len = words.len() as u32;
        Ok(())
    }

    /// Makes a change count: a power cut leaves all of it or nothing, and at worst leaks. `old` is what the file has.
    /// When this returns, it is durable, and so is all that was written to the disk before.
    pub(crate) fn commit_bitmaps(
        &self,
        writer: &Writer,
        mut change: Change,
        old: &Directory,
    ) -> Result<Directory> {
        let done = self.try_commit(writer, &mut change, old);
        if done.is_err() {
            for run in change.made {
                self.release(writer, run);
            }
        } else {
            writer.free(change.freed);
        }
        done.map(|()| change.directory)
    }

    /// Gives back what a change took that cannot be finished.
    pub(crate) fn abandon(&self, writer: &Writer, change: Change) {
        for run in change.made {
            self.release(writer, run);
        }
    }

    fn try_commit(&self, writer: &Writer, change: &mut Change, old: &Directory) -> Result<()> {
        let shared = &self.view.shared;
        let geometry = shared.geometry();
        if change.size.is_none() && change.directory.same_places(old) {
            self.write_back(writer, true)?;
            return self.write_flags(writer, &change.directory);
        }
        let was = directory::place(&shared.header());
        let bytes = change.directory.encode();
        let at = if bytes.is_empty() {
            None
        } else {
            let (count, size) = (change.directory.entries.len() as u32, bytes.len() as u64);
            Some(BitmapsAt { count, size, offset: self.put_bitmap_bytes(writer, change, bytes)? })
        };
        change.freed.extend(was.map(|was| directory::run(was, geometry)));
        self.write_back(writer, true)?;
        let switched = self.rewrite_header(writer, |header| {
            header.extensions.set_bitmaps(at);
            header.size = change.size.unwrap_or(header.size);
            header.autoclear =
                header.autoclear & !AUTOCLEAR_BITMAPS | if at.is_some() { AUTOCLEAR_BITMAPS } else { 0 };
            Ok(())
        });
        if switched.is_err() {
            // Which directory the file has is not known: what both refer to stays as it is.
            change.made.clear();
        }
        switched
    }

    /// Writes a directory over the file's own, from which it differs in flags alone: a flag is within one sector, and
    /// each holds for itself.
    pub(crate) fn write_flags(&self, writer: &Writer, directory: &Directory) -> Result<()> {
        let shared = &self.view.shared;
        let Some(at) = directory::place(&shared.header()) else { return Ok(()) };
        shared
            .file
            .write_at(at.offset, &directory.encode())
            .map_err(|error| Error::io("cannot write the bitmap directory", error).at(at.offset))?;
        self.barrier(writer)
    }
}
