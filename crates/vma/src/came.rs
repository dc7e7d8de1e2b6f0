//! Which clusters of an archive's disks came, and whether each was one that may.

use cowhand_core::Result;

use crate::extent::Slot;
use crate::header::{Header, clusters};
use crate::layout::{BLOCK, CLUSTER};
use crate::seen::Seen;
use crate::wrong::Wrong;

/// Of each disk, the clusters that came.
#[derive(Clone, Debug)]
pub(crate) struct Came {
    seen: Vec<Seen>,
    /// Bytes of memory that they take.
    bytes: usize,
}

/// A cluster that is one of a disk.
#[derive(Clone, Debug)]
pub(crate) struct Admitted {
    /// Which disk's, in the archive's list.
    pub(crate) disk: u32,
    /// The disk's guest bytes; all there can be for a machine's memory, whose number is known when they have come.
    pub(crate) end: u64,
    /// What is wrong with how it is listed, though there is no doubt about what it holds.
    pub(crate) odd: Option<Wrong>,
}

impl Came {
    /// Nothing came of the disks of that header.
    pub(crate) fn new(header: &Header) -> Came {
        Came { seen: vec![Seen::default(); header.manifest.disks.len()], bytes: 0 }
    }

    /// Of each disk.
    pub(crate) fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// Bytes of memory that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Notes a cluster that an extent lists. `None`: it says nothing, of what lies behind the disk's end. Errors: why it
    /// may not be listed; it was not noted.
    pub(crate) fn admit(&mut self, header: &Header, slot: Slot) -> Result<Option<Admitted>, Wrong> {
        let Slot { dev_id, cluster, mask, at } = slot;
        let wrong = |message: String| Wrong::new("blockinfo", at, message);
        let number = header.disk(dev_id);
        let found = number.and_then(|disk| {
            let index = disk as usize;
            Some((disk, header.manifest.disks.get(index)?, self.seen.get_mut(index)?))
        });
        let Some((disk, known, seen)) = found else {
            return Err(
                wrong(format!("there is no device {dev_id}")).known_as(format!("got wrong dev id {dev_id}"))
            );
        };
        let name = &known.name;
        let beyond = |message| wrong(message).known_as("got wrong block address - write beyond end");
        let mut odd = None;
        let end = if known.memory {
            let due = seen.end();
            if u64::from(cluster) != due {
                let out = wrong(format!("cluster {cluster} of {name} comes where cluster {due} shall"))
                    .known_as("found out of order vmstate data");
                if u64::from(cluster) < due {
                    return Err(out);
                }
                odd = Some(out);
            }
            u64::MAX
        } else if u64::from(cluster) < clusters(known) {
            // Only a cluster that is stored whole may have blocks that the disk does not.
            if mask != u16::MAX && u32::from(mask) >> blocks(known.size, cluster) != 0 {
                odd = Some(beyond(format!("cluster {cluster} of {name} has a block beyond the end")));
            }
            known.size
        } else if mask == 0 {
            return Ok(None);
        } else {
            return Err(beyond(format!("cluster {cluster} lies beyond the end of {name}")));
        };
        let before = seen.bytes();
        let new = seen.insert(cluster);
        self.bytes = (self.bytes + seen.bytes()).saturating_sub(before);
        if !new {
            return Err(wrong(format!("cluster {cluster} of {name} comes twice"))
                .known_as(format!("found duplicated cluster {cluster} for stream {name}")));
        }
        Ok(Some(Admitted { disk, end, odd }))
    }

    /// All clusters came, where they have to. Errors: which did not.
    pub(crate) fn complete(&self, header: &Header) -> Result<()> {
        for (disk, seen) in header.manifest.disks.iter().zip(&self.seen).filter(|(disk, _)| !disk.memory) {
            seen.gaps(clusters(disk), &mut |gap| {
                let (first, count) = (gap.start, gap.end - gap.start);
                let message = match count {
                    1 => format!("cluster {first} of {} is missing", disk.name),
                    _ => {
                        format!("cluster {first} of {} is missing, with {} that follow", disk.name, count - 1)
                    }
                };
                let known_as = format!("detected missing cluster {first} for stream {}", disk.name);
                Err(Wrong::absent("blockinfo", message).known_as(known_as).into())
            })?;
        }
        Ok(())
    }
}

/// Blocks of the cluster that a disk of `size` bytes has, wholly or in part: at most 16.
fn blocks(size: u64, cluster: u32) -> u32 {
    let left = size.saturating_sub(u64::from(cluster) * CLUSTER).min(CLUSTER);
    left.div_ceil(BLOCK) as u32 // never cut: at most 16
}
