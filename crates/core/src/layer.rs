//! One image file, and only what that file says: the trait every format implements.

use std::fmt::Debug;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::{
    Bitmaps, Blocks, Details, Error, Options, Progress, Result, Secrets, Snapshots, Storage, Structure,
};

/// What a layer has at some guest bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The layer holds these bytes.
    Data,
    /// The layer says these bytes are zero, whatever lies below.
    Zero,
    /// The layer says nothing: ask the layer below; where there is none, zero.
    Hole,
}

/// A run of guest bytes that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Guest bytes, at least 1.
    pub len: u64,
    /// What the layer has there.
    pub kind: Kind,
    /// The bytes are stored compressed.
    pub compressed: bool,
    /// Where these very guest bytes stand, verbatim, in [`Layer::host`]. Also set on `Zero` that is preallocated.
    /// Valid only while the layer is read-only or held exclusively.
    pub host: Option<u64>,
}

impl Extent {
    /// `len` bytes that stand verbatim at `host`.
    pub fn data(len: u64, host: Option<u64>) -> Self {
        Extent { len, kind: Kind::Data, compressed: false, host }
    }

    /// `len` bytes that the layer says are zero.
    pub fn zero(len: u64) -> Self {
        Extent { len, kind: Kind::Zero, compressed: false, host: None }
    }

    /// `len` bytes of which the layer says nothing.
    pub fn hole(len: u64) -> Self {
        Extent { len, kind: Kind::Hole, compressed: false, host: None }
    }
}

/// How guest bytes are taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Erase {
    /// Reads zero afterwards, and where the format can say so it does: it is zero over another parent too. The space is
    /// kept where that is possible.
    Zero,
    /// Reads zero afterwards, never the parent; the space is given back where that is possible.
    Free,
    /// A [`Kind::Hole`] again: what lies below shows through.
    Reveal,
}

/// How much of an image is laid out before it is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Prealloc {
    /// Nothing.
    #[default]
    Off,
    /// The mapping, not the data.
    Metadata,
    /// The mapping, and the space reserved.
    Falloc,
    /// The mapping, and the space written with zeros.
    Full,
}

impl Prealloc {
    /// The mode of that name (`off`, `metadata`, `falloc`, `full`).
    pub fn by_name(name: &str) -> Option<Prealloc> {
        Some(match name {
            "off" => Prealloc::Off,
            "metadata" => Prealloc::Metadata,
            "falloc" => Prealloc::Falloc,
            "full" => Prealloc::Full,
            _ => return None,
        })
    }

    /// How users of QEMU know that there was no room for it.
    pub fn known_failure(self) -> &'static str {
        match self {
            Prealloc::Full => "Could not write zeros for preallocation",
            Prealloc::Off | Prealloc::Metadata | Prealloc::Falloc => "Could not preallocate new data",
        }
    }
}

/// What a child remembers of its parent so as to know it again: VHD's unique id, VHDX's DataWriteGuid, as the 16 raw
/// bytes of the file. `None` for formats that have no such thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LayerId(pub Option<[u8; 16]>);

/// What a layer says of its parent: where it may lie, what it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParentRef {
    /// Paths to try in order, already in this system's spelling (`/`, not `\`). Relative ones start at the child's
    /// own folder. The first is the one to show to a person.
    ///
    /// Where a parent is to be named in a file, the first is the name to write, and the others are further ways to say
    /// the same (the absolute path of a relative one), for the formats that write several.
    pub candidates: Vec<PathBuf>,
    /// The name of the parent's format where the child states one.
    pub format: Option<String>,
    /// The names are Windows': where no file has exactly a candidate's name, one that differs in case alone is meant.
    pub any_case: bool,
    /// The format wants its names brought up to date by who found the parent elsewhere and may write. Otherwise they stay
    /// until somebody asks for that.
    pub kept_current: bool,
    /// Identities any one of which the parent must have. Empty: the child does not say.
    pub expected: Vec<[u8; 16]>,
    /// When the parent's file was last changed, where that is known: VHD writes it down. Nobody is refused for it.
    pub modified: Option<SystemTime>,
    /// Its [`Layer::sector`], where that is known: a format may want a child's to be the same.
    pub sector: Option<u32>,
    /// Its [`Layer::disk_id`], where that is known and there is one: a format's child may bear it too.
    pub disk_id: Option<[u8; 16]>,
}

/// One image file, and only what that file says. It knows nothing of its parent's content.
///
/// Everything takes `&self`; several threads use one layer at once. A reader never sees a mapping published before the
/// data it maps. Overlapping writes are ordered by the layer, so that two writers to one new allocation unit lose
/// nothing of each other's.
pub trait Layer: Send + Sync + Debug {
    /// Guest bytes.
    fn size(&self) -> u64;

    /// The least unit, in bytes and a power of two, whose presence this layer can record.
    fn granule(&self) -> u64;

    /// Bytes of the sectors that a guest sees: a power of two. Partition tables and file systems count in them, so the
    /// same bytes on another kind of disk may say nothing to a guest.
    fn sector(&self) -> u32 {
        512
    }

    /// Where space is kept for guest bytes from `at` on of which the layer says nothing (it may be kept in units larger than
    /// the granule), and for how many of `max` bytes the answer goes on. Requires `at < size()` and `max > 0`.
    fn kept_for_hole(&self, at: u64, max: u64) -> Result<(u64, Option<u64>)> {
        let _ = at;
        Ok((max, None))
    }

    /// What the image calls the other file that [`Layer::host`] is, where it is one.
    fn host_name(&self) -> Option<PathBuf> {
        None
    }

    /// The storage that [`Extent::host`] counts in: the image's file, or its data file.
    fn host(&self) -> &Arc<dyn Storage>;

    /// What the layer has at `at`. Requires `at < size()` and `max > 0`. The answer covers at least one byte and at
    /// most `max`, never goes past the end of the disk, and runs as far as one look at the tables allows: an empty
    /// image must not take one call per granule.
    fn extent(&self, at: u64, max: u64) -> Result<Extent>;

    /// Reads a prefix of `buf` that is alike, and says what it was; fills that prefix where it is [`Kind::Data`] and
    /// leaves `buf` alone otherwise. Requires a `buf` that is not empty and ends within the disk.
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<Extent>;

    /// Writes all of `buf`, which ends within the disk. What it allocates around `buf` reads zero: a caller who wants
    /// a parent's bytes there writes whole granules.
    fn write(&self, at: u64, buf: &[u8]) -> Result<()> {
        let _ = (at, buf);
        Err(cannot("written in place"))
    }

    /// Allocates, clones from `src` by sharing the file system's blocks, publishes. Answers the bytes done from `at`
    /// on; 0 where this range cannot be shared, and the caller then copies.
    fn write_from(&self, at: u64, src: &dyn Storage, src_at: u64, len: u64) -> Result<u64> {
        let _ = (at, src, src_at, len);
        Ok(0)
    }

    /// Writes whole granules (the last one may be cut by the disk's end) compressed. `buf` is guest bytes.
    fn write_compressed(&self, at: u64, buf: &[u8]) -> Result<()> {
        let _ = (at, buf);
        Err(Error::unsupported("this format cannot hold compressed data")
            .hint("leave out -c")
            .known_as("Compression not supported for this file format"))
    }

    /// Takes guest bytes away. Answers how many from `at` on; 0 where this cannot be said at this granularity (the
    /// caller then writes zeros, or leaves it).
    fn erase(&self, at: u64, len: u64, how: Erase) -> Result<u64> {
        let _ = (at, len, how);
        Ok(0)
    }

    /// In an image that was just made, what was never written reads zero. False where it reads as noise: an encrypted
    /// disk that keeps no record of what was written.
    fn new_reads_zero(&self) -> bool {
        true
    }

    /// Changes the disk's size. What is new reads zero, also where a layer of `below` guest bytes stands beneath: at no
    /// moment does the parent show through there, a power cut included. A granule that the old end cuts is left as it
    /// is: the caller has filled it where it must be. What is cut off is gone. Durable when it returns; a power cut
    /// leaves the old size or the new one. Errors: a size that the format cannot say.
    fn resize(&self, size: u64, prealloc: Prealloc, below: u64) -> Result<()> {
        let _ = (size, prealloc, below);
        Err(cannot("resized"))
    }

    /// A durable barrier: all that was written before is there after a power cut.
    fn flush(&self) -> Result<()>;

    /// Flushes and sets what only a clean end may set (a dirty bit, a log's end). Further writes are errors.
    fn close(&self) -> Result<()> {
        self.flush()
    }

    /// What `info` says of this file.
    fn details(&self) -> Details {
        Details::default()
    }

    /// What a child of this layer checks.
    fn identity(&self) -> LayerId {
        LayerId(None)
    }

    /// The id by which a guest knows the disk, as the 16 raw bytes of the file: a copy of the disk has another one, a
    /// child has the same. `None`: the format has no such thing apart from [`Layer::identity`].
    fn disk_id(&self) -> Option<[u8; 16]> {
        None
    }

    /// The identity that this layer bears once its content has changed, where it bears another one then: chosen at the
    /// first call, and taken by the first change behind it. `None`: it keeps the one it has.
    fn next_identity(&self) -> Result<Option<[u8; 16]>> {
        Ok(None)
    }

    /// Notes, durably, that the parent may soon bear this identity too; one of [`ParentRef::expected`] until
    /// [`Layer::set_parent`] says anew what the parent is. For who is about to change the parent's content where this
    /// layer hides it: at no moment is the parent taken for another file. What the layer holds stays as it is.
    fn expect_parent(&self, id: [u8; 16]) -> Result<()> {
        let _ = id;
        Ok(())
    }

    /// The parent this file names, if it names one.
    fn parent(&self) -> Option<ParentRef> {
        None
    }

    /// Names another parent, or none, in the file: its first candidate as it stands. What the layer holds stays as it
    /// is, so the caller knows that the disk's content is right with the new parent. Durable when it returns; a power
    /// cut leaves the old name or the new one.
    fn set_parent(&self, parent: Option<&ParentRef>) -> Result<()> {
        let _ = parent;
        Err(Error::unsupported("this format's files cannot name another parent").known_by(libc::ENOTSUP))
    }

    /// Whether making the disk `size` bytes shorter than it is is something that the programs this format comes from
    /// would never do: an error that says so. Who insists goes on to [`Layer::resize`] all the same.
    fn may_shrink(&self, size: u64) -> Result<()> {
        let _ = size;
        Ok(())
    }

    /// The largest disk whose file, of this image's kind and block size, is at most `file_len` bytes long, in guest bytes.
    /// `exact`: with every block written, as it is laid out here; otherwise by the formula of the programs that this
    /// format comes from. `None`: the parent's answer counts.
    fn size_by_file(&self, file_len: u64, exact: bool) -> Result<Option<u64>> {
        let _ = exact;
        Ok(Some(file_len / 512 * 512))
    }

    /// The options of [`Format::options`](crate::Format::options) that make another image like this one: its kind, its
    /// block size, its version; not its size, its parent or its encryption. `replacing`: that one takes this one's place,
    /// so it bears the same identity.
    fn made_with(&self, replacing: bool) -> Vec<(&'static str, String)> {
        let _ = replacing;
        Vec::new()
    }

    /// From now on only such bytes are written and erased that read the same before and after, through the chain. A format
    /// that says in the file whether what is seen has changed need not say so, and the image's children go on knowing it.
    fn keeps_looks(&self) {}

    /// Gives back the space in the file that nothing uses: what stands behind it is moved down, and the file is cut.
    /// What the layer holds stays as it is at every moment, a power cut included; stopped anywhere, it can be run again.
    /// The layer is held by nobody else. Durable when it returns. Formats that leave no such space have nothing to do.
    fn compact(&self, progress: &dyn Progress) -> Result<()> {
        let _ = progress;
        self.flush()
    }

    /// Takes all guest data away: every byte is a hole again, the size and the parent stay, the space is given back.
    /// Durable when it returns; a power cut leaves all or nothing of the data.
    fn clear(&self) -> Result<()> {
        Err(cannot("emptied"))
    }

    /// Changes what [`Format::amend_options`](crate::Format::amend_options) lists. `secrets` has what those options
    /// name. What does not fit together is found before anything changes. The layer may be closed behind it: open it
    /// again to go on.
    fn amend(&self, options: &Options, secrets: &Secrets, progress: &dyn Progress) -> Result<()> {
        let _ = (options, secrets, progress);
        Err(Error::unsupported("this format has nothing that can be amended"))
    }

    /// The mark that hides an image from lists of disks; `None`: the format has no such mark.
    fn hidden(&self) -> Option<bool> {
        None
    }

    /// Sets that mark, durably. Errors: the format or this file has no place for it.
    fn set_hidden(&self, hidden: bool) -> Result<()> {
        let _ = hidden;
        Err(Error::unsupported("this format has no mark that hides an image"))
    }

    /// Calls `see` for the allocation units of this file alone, ascending: the guest bytes, and how many bytes are kept
    /// for them in the file. What only says zero, or nothing, is left out.
    fn allocated(&self, see: &mut dyn FnMut(Range<u64>, u64) -> Result<()>) -> Result<()> {
        let mut at = 0;
        while at < self.size() {
            let found = self.extent(at, self.size() - at)?;
            if found.kind == Kind::Data {
                see(at..at + found.len, found.len)?;
            }
            at += found.len;
        }
        Ok(())
    }

    /// Bytes that the file needs for what it holds; what is behind them could be cut off. A format that cannot tell, or
    /// that has its end elsewhere, answers the file's length.
    fn used_len(&self) -> Result<u64> {
        self.host().len().map_err(|error| Error::io("cannot find the size", error))
    }

    /// Makes the file `len` bytes long, with whatever the format keeps at its end there; a device keeps its length, and
    /// what is to be its end is prepared. Durable when it returns; a power cut leaves one end or the other. Errors:
    /// fewer bytes than [`Layer::used_len`].
    fn set_file_len(&self, len: u64) -> Result<()> {
        let _ = len;
        Err(Error::unsupported("a file of this format is as long as what it holds"))
    }

    /// The structures of the file's metadata as they stand there, damaged or not. Empty: the format does not show them.
    fn structures(&self) -> Result<Vec<Structure>> {
        Ok(Vec::new())
    }

    /// The table of blocks, where the format has one that it shows.
    fn as_blocks(&self) -> Option<&dyn Blocks> {
        None
    }

    /// Internal snapshots, where the format has them.
    fn as_snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }

    /// Persistent dirty bitmaps, where the format has them.
    fn as_bitmaps(&self) -> Option<&dyn Bitmaps> {
        None
    }
}

fn cannot(what: &str) -> Error {
    Error::unsupported(format!("this image cannot be {what}")).hint("convert it to raw or qcow2, which can")
}
