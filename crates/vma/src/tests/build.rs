//! Archives of any order: what their makers write, and what else the format allows.

use cowhand_core::testing::Rng;
use zerocopy::{FromZeros, IntoBytes};

use crate::header::checksum;
use crate::layout::{
    BLOCK, CLUSTER, EXTENT_MAGIC, HEADER, MAGIC, RawDevice, RawExtent, RawHeader, RawSlot, SLOTS,
};

pub(super) const UUID: [u8; 16] = *b"an archive's id.";

/// How the clusters of the disks follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// One disk after the other, each from its front to its end.
    Straight,
    /// Stretches of some clusters, of all disks, in any order: a live backup with several workers.
    Jumps,
    /// Each cluster by itself.
    Shuffled,
}

/// An archive of disks with these names and contents.
#[derive(Clone, Debug)]
pub(super) struct Archive {
    pub(super) disks: Vec<(String, Vec<u8>)>,
    pub(super) configs: Vec<(String, Vec<u8>)>,
}

/// A disk of `len` bytes: some clusters are zero, some have all blocks, others some.
pub(super) fn content(len: usize, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for cluster in bytes.chunks_mut(CLUSTER as usize) {
        let kind = rng.below(4);
        for block in cluster.chunks_mut(BLOCK as usize) {
            if kind == 1 || (kind > 1 && rng.chance(1, 2)) {
                block.fill_with(|| rng.below(256) as u8);
                block[0] |= 1;
            }
        }
    }
    bytes
}

impl Archive {
    /// Of disks of those sizes.
    pub(super) fn of(sizes: &[usize], rng: &mut Rng) -> Archive {
        let disks = sizes.iter().enumerate();
        let disks = disks.map(|(number, len)| (format!("drive-scsi{number}"), content(*len, rng))).collect();
        Archive { disks, configs: vec![("qemu-server.conf".to_owned(), b"cores: 2\n".to_vec())] }
    }

    /// Its header.
    pub(super) fn header(&self) -> Vec<u8> {
        let mut raw = RawHeader::new_zeroed();
        let mut blobs = vec![0];
        let mut blob = |bytes: &[u8]| {
            let at = blobs.len() as u32;
            blobs.extend((bytes.len() as u16).to_le_bytes());
            blobs.extend(bytes);
            at.into()
        };
        let name = |name: &str| [name.as_bytes(), &[0]].concat();
        for (index, (config, data)) in self.configs.iter().enumerate() {
            raw.config_names[index] = blob(&name(config));
            raw.config_data[index] = blob(data);
        }
        for (index, (disk, bytes)) in self.disks.iter().enumerate() {
            raw.dev_info[index + 1] = RawDevice {
                name: blob(&name(disk)),
                size: (bytes.len() as u64).into(),
                ..RawDevice::new_zeroed()
            };
        }
        let len = (HEADER + blobs.len()).next_multiple_of(512);
        (raw.magic, raw.version, raw.uuid) = (MAGIC, 1.into(), UUID);
        (raw.blob_buffer_offset, raw.blob_buffer_size) =
            ((HEADER as u32).into(), (blobs.len() as u32).into());
        raw.header_size = (len as u32).into();
        let mut bytes = [raw.as_bytes(), &blobs].concat();
        bytes.resize(len, 0);
        seal(&mut bytes, 32);
        bytes
    }

    /// All of it.
    pub(super) fn build(&self, order: Order, rng: &mut Rng) -> Vec<u8> {
        let mut clusters = Vec::new();
        for (index, (_, bytes)) in self.disks.iter().enumerate() {
            clusters.extend((0..bytes.len().div_ceil(CLUSTER as usize)).map(|cluster| (index, cluster)));
        }
        let mut stretches: Vec<_> = match order {
            Order::Straight => vec![clusters.as_slice()],
            Order::Jumps => clusters.chunks(7).collect(),
            Order::Shuffled => clusters.chunks(1).collect(),
        };
        for index in (1..stretches.len()).rev() {
            stretches.swap(index, rng.below(index as u64 + 1) as usize);
        }
        let mut rest = stretches.concat().into_iter().peekable();
        let mut archive = self.header();
        while rest.peek().is_some() {
            let mut raw = RawExtent::new_zeroed();
            let mut data = Vec::new();
            let most = if order == Order::Straight { 58 } else { 1 + rng.below(SLOTS as u64) as usize };
            for slot in &mut raw.blockinfo[..most] {
                if order == Order::Straight || !rng.chance(1, 8) {
                    let Some((disk, cluster)) = rest.next() else { break };
                    *slot = self.slot(disk, cluster, &mut data);
                }
            }
            archive.extend(extent(raw, &data));
        }
        archive
    }

    /// The entry of a cluster, whose blocks are put behind `data`.
    pub(super) fn slot(&self, disk: usize, cluster: usize, data: &mut Vec<u8>) -> RawSlot {
        let bytes = &self.disks[disk].1[cluster * CLUSTER as usize..];
        let mut mask = 0;
        for (bit, block) in bytes[..bytes.len().min(CLUSTER as usize)].chunks(BLOCK as usize).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                mask |= 1 << bit;
                data.extend(block);
                data.resize(data.len().next_multiple_of(BLOCK as usize), 0);
            }
        }
        RawSlot { mask: mask.into(), reserved: 0, dev_id: disk as u8 + 1, cluster: (cluster as u32).into() }
    }
}

/// An extent with its magic, its count and its checksum.
pub(super) fn extent(mut raw: RawExtent, data: &[u8]) -> Vec<u8> {
    raw.block_count = ((data.len() / BLOCK as usize) as u16).into();
    let mut bytes = extent_header(raw);
    bytes.extend(data);
    bytes
}

/// An extent's header with its magic and its checksum.
pub(super) fn extent_header(mut raw: RawExtent) -> Vec<u8> {
    (raw.magic, raw.uuid) = (EXTENT_MAGIC, UUID);
    let mut bytes = raw.as_bytes().to_vec();
    seal(&mut bytes, 24);
    bytes
}

/// Puts the checksum of a header where it stands.
pub(super) fn seal(header: &mut [u8], at: usize) {
    let sum = checksum(header, at as u64);
    header[at..at + 16].copy_from_slice(&sum);
}
