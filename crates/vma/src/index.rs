//! Where the bytes of an archive's disks stand in it: found in one pass over the extents' headers.

use std::io::{self, Read};
use std::sync::Arc;

use cowhand_core::{
    ArchiveIndex, ArchivedDisk, Error, ErrorKind, Forward, Layer, Manifest, Result, Storage, read_up_to,
};

use crate::extent::{self, Slot as Listed};
use crate::header::{self, Header, clusters};
use crate::layer::Disk;
use crate::layout::{BLOCK, EXTENT_HEADER};
use crate::places::{Places, Room, Slot};
use crate::seen::Seen;
use crate::wrong::Wrong;

/// How much of an archive's front tells it from others, in bytes: up to the checksum of its header, and with it.
const TELLING: usize = 48;

/// The index of one archive.
#[derive(Debug)]
pub(crate) struct Index {
    /// The archive's header, as it stands.
    pub(crate) front: Vec<u8>,
    pub(crate) header: Header,
    /// The archive's bytes.
    pub(crate) len: u64,
    pub(crate) places: Places,
}

/// Bytes in order, kept as they go by.
struct Keeping<'a> {
    input: &'a mut dyn Forward,
    kept: Vec<u8>,
}

impl Read for Keeping<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buf)?;
        self.kept.extend_from_slice(buf.get(..n).unwrap_or_default());
        Ok(n)
    }
}

/// Goes through an archive by all rules. Errors: the first that it breaks; the index would take more than there is room.
pub(crate) fn index(input: &mut dyn Forward, room: Room) -> Result<Index> {
    let mut front = Keeping { input, kept: Vec::new() };
    let header = header::read(&mut front)?;
    let Keeping { input, kept: front } = front;
    let mut pass = Pass::new(&header, room);
    let mut at = header.size;
    let mut bytes = [0; EXTENT_HEADER];
    let mut slots = Vec::new();
    loop {
        let there = read_up_to(input, &mut bytes, at)?;
        let Some(there) = bytes.get(..there).filter(|there| !there.is_empty()) else { break };
        let extent = extent::parse(there, at, Some(&header.manifest.id))?;
        slots.clear();
        for slot in extent::slots(extent, at) {
            slots.extend(pass.slot(slot)?);
        }
        at += EXTENT_HEADER as u64;
        pass.places.add(at, &slots)?;
        let data = u64::from(extent.block_count.get()) * BLOCK;
        input.skip(data).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Wrong::new("extent", at, format!("the archive ends within its {data} bytes of data")).into()
            }
            _ => Error::io("cannot read the archive", error).at(at),
        })?;
        at += data;
        pass.check_room()?;
    }
    let places = pass.finish()?;
    Ok(Index { front, header, len: at, places })
}

/// What is known while the extents go by.
struct Pass<'a> {
    header: &'a Header,
    /// For each disk, which clusters came.
    seen: Vec<Seen>,
    places: Places,
}

impl Pass<'_> {
    fn new(header: &Header, room: Room) -> Pass<'_> {
        let disks = header.manifest.disks.len();
        Pass { header, seen: vec![Seen::default(); disks], places: Places::new(disks, room) }
    }

    /// Looks at what an extent lists. Answers it where it has blocks.
    fn slot(&mut self, slot: Listed) -> Result<Option<Slot>, Wrong> {
        let wrong = |message: String| Err(Wrong::new("blockinfo", slot.at, message));
        let Listed { dev_id, cluster, mask, .. } = slot;
        let found = self.header.disk(dev_id).map(|disk| disk as usize);
        let known = found.and_then(|disk| self.header.manifest.disks.get(disk).zip(self.seen.get_mut(disk)));
        let Some((disk, seen)) = known else {
            return wrong(format!("there is no device {dev_id}"));
        };
        if disk.memory && seen.end() != u64::from(cluster) {
            return wrong(format!("cluster {cluster} of '{}' comes out of order", disk.name));
        }
        if !disk.memory && !within(disk, cluster, mask) {
            return wrong(format!("cluster {cluster} of '{}' has blocks beyond its end", disk.name));
        }
        if !seen.insert(cluster) {
            return wrong(format!("cluster {cluster} of '{}' comes twice", disk.name));
        }
        Ok((mask != 0).then_some(Slot { disk: found.filter(|_| !disk.memory), cluster, mask }))
    }

    /// Whether what is known fits where an index may be.
    fn check_room(&self) -> Result<()> {
        self.places.check_room(self.seen.iter().map(Seen::bytes).sum())
    }

    /// Nothing follows. Errors: clusters did not come.
    fn finish(mut self) -> Result<Places> {
        for (disk, seen) in self.header.manifest.disks.iter().zip(&self.seen) {
            if disk.memory {
                continue;
            }
            seen.gaps(clusters(disk), &mut |gap| {
                let message =
                    format!("clusters {} to {} of '{}' are missing", gap.start, gap.end - 1, disk.name);
                Err(Wrong::absent("blockinfo", message).into())
            })?;
        }
        self.places.sort();
        Ok(self.places)
    }
}

/// Whether the blocks that are there lie within the disk. The last cluster ends where the disk does, whatever it says.
fn within(disk: &ArchivedDisk, cluster: u32, mask: u16) -> bool {
    mask == 0 || u64::from(cluster) < clusters(disk)
}

impl Index {
    /// Whether `file` is the archive that this was made of. Errors: it is not.
    pub(crate) fn is_of(&self, file: &dyn Storage) -> Result<()> {
        let failed = |error| Error::io("cannot read the archive's header", error).at(0);
        let mut front = [0; TELLING];
        let len = file.len().map_err(failed)?;
        if len == self.len {
            file.read_at(0, &mut front).map_err(failed)?;
        }
        if self.front.starts_with(&front) && len == self.len {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Mismatch, "is not the archive that its index was made of")
            .hint("make the index again"))
    }
}

impl ArchiveIndex for Index {
    fn manifest(&self) -> &Manifest {
        &self.header.manifest
    }

    fn layer(self: Arc<Self>, file: Arc<dyn Storage>, disk: u32) -> Result<Arc<dyn Layer>> {
        Ok(Arc::new(Disk::indexed(file, self, disk)?))
    }

    fn to_bytes(&self) -> Vec<u8> {
        crate::kept::to_bytes(self)
    }
}
