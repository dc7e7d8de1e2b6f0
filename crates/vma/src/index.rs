//! Where the bytes of an archive's disks stand in it: found in one pass over the extents' headers.

use std::io::{self, Read};
use std::sync::Arc;

use cowhand_core::{ArchiveIndex, Error, ErrorKind, Forward, Layer, Manifest, Result, Storage, read_up_to};

use crate::came::{Admitted, Came};
use crate::extent;
use crate::header::{self, Header};
use crate::layer::Disk;
use crate::layout::{BLOCK, EXTENT_HEADER};
use crate::places::{Places, Room, Slot};
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
    let mut came = Came::new(&header);
    let mut places = Places::new(header.manifest.disks.len(), room);
    let mut at = header.size;
    let mut bytes = [0; EXTENT_HEADER];
    let mut slots = Vec::new();
    loop {
        let there = read_up_to(input, &mut bytes, at)?;
        let Some(there) = bytes.get(..there).filter(|there| !there.is_empty()) else { break };
        let extent = extent::parse(there, at, Some(&header.manifest.id))?;
        slots.clear();
        for listed in extent::slots(extent, at) {
            slots.extend(slot(&header, &mut came, listed)?);
        }
        at += EXTENT_HEADER as u64;
        places.add(at, &slots)?;
        let data = u64::from(extent.block_count.get()) * BLOCK;
        input.skip(data).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Wrong::new("extent", at, format!("the archive ends within its {data} bytes of data")).into()
            }
            _ => Error::io("cannot read the archive", error).at(at),
        })?;
        at += data;
        places.check_room(came.bytes())?;
    }
    came.complete(&header)?;
    places.sort();
    Ok(Index { front, header, len: at, places })
}

/// What there is to know of a cluster that an extent lists, where it stores any of it.
fn slot(header: &Header, came: &mut Came, listed: extent::Slot) -> Result<Option<Slot>, Wrong> {
    let extent::Slot { cluster, mask, .. } = listed;
    let Some(Admitted { disk, odd, .. }) = came.admit(header, listed)? else { return Ok(None) };
    if let Some(wrong) = odd {
        return Err(wrong);
    }
    let disk = disk as usize;
    let memory = header.manifest.disks.get(disk).is_some_and(|disk| disk.memory);
    Ok((mask != 0).then_some(Slot { disk: (!memory).then_some(disk), cluster, mask }))
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
