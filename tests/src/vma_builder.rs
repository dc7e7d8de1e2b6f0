//! VMA archives as any program may lay them out, built byte by byte and with no code of `cowhand-vma`: every order of
//! clusters and names, every way to fill an extent, and what only few archives have.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::vma_reader::{BLOCK, CLUSTER, EXTENT, HEADER, SLOTS, vma_sum};
use crate::{Mirror, Rng};

/// A disk to be put into an archive.
#[derive(Clone, Debug)]
pub struct VmaDisk {
    /// Its number.
    pub id: u8,
    /// Its name, without the NUL.
    pub name: Vec<u8>,
    /// What it holds.
    pub content: Mirror,
}

impl VmaDisk {
    /// A disk of this number, name and content.
    pub fn new(id: u8, name: &str, content: Mirror) -> VmaDisk {
        VmaDisk { id, name: name.into(), content }
    }

    /// A memory stream?
    pub fn is_memory(&self) -> bool {
        self.name == b"vmstate"
    }

    fn clusters(&self) -> u64 {
        self.content.size().div_ceil(CLUSTER)
    }
}

/// A disk of chance: blocks that are full, empty, zero but for their last byte; clusters that are full or empty.
pub fn vma_disk_content(size: u64, seed: u64) -> Mirror {
    let mut rng = Rng::new(seed);
    let mut disk = Mirror::new(size);
    let mut at = 0;
    let mut mood = 0;
    while at < size {
        if at.is_multiple_of(CLUSTER) {
            mood = rng.below(4);
        }
        let len = (size - at).min(BLOCK as u64);
        match (mood, rng.below(4)) {
            (0, _) | (1, 0 | 1) => {}
            (1, 2) => disk.write(at + len - 1, &[1 + rng.below(255) as u8]),
            (2, 0) => disk.write(at, &[7]),
            _ => disk.write(at, &rng.bytes(len as usize)),
        }
        at += len;
    }
    disk
}

/// In which order clusters are listed. A memory stream's are in order in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmaOrder {
    /// Disk after disk.
    Straight,
    /// A cluster of each disk in turn.
    Interleaved,
    /// From the last one of the last disk.
    Backwards,
    /// In runs of some clusters of this disk and that, as a running machine's backup jumps to where the guest writes.
    Jumps,
    /// By chance.
    Shuffled,
}

/// How names and configurations stand in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmaBlobs {
    /// A configuration's name and data in turn, then the disks' names.
    Proxmox,
    /// In any order, with records between them that nobody points to.
    Shuffled,
    /// What is alike stands there once.
    Shared,
}

/// An archive to be built.
#[derive(Clone, Debug)]
pub struct VmaFile {
    /// For messages.
    pub name: &'static str,
    /// The archive's identity.
    pub uuid: [u8; 16],
    /// Seconds since 1970, UTC.
    pub ctime: i64,
    /// Configurations: place in the table, name without NUL, bytes.
    pub configs: Vec<(usize, Vec<u8>, Vec<u8>)>,
    /// The disks.
    pub disks: Vec<VmaDisk>,
    /// Slots of an extent that are used at most.
    pub slots: usize,
    /// The clusters' order.
    pub order: VmaOrder,
    /// The names' order.
    pub blobs: VmaBlobs,
    /// Bytes between the table and the blob buffer, and behind it.
    pub padding: (usize, usize),
    /// The header's length is a multiple of this.
    pub round: usize,
    /// Slots of device 0 stand between the others.
    pub gaps: bool,
    /// Extents without a slot stand between the others.
    pub empty_extents: bool,
    /// Zero blocks are stored too.
    pub zeros: bool,
    /// The last cluster of a disk has a full mask, however far the disk goes.
    pub full_last: bool,
    /// Each disk is followed by clusters that it does not have, with empty masks.
    pub beyond: bool,
    /// Bytes that nobody reads are not zero: reserved ones, those of unused slots, what follows a disk's end.
    pub garbage: bool,
}

/// A cluster as an extent lists it.
#[derive(Clone, Debug)]
pub struct VmaSlot {
    /// Which of its 16 blocks are stored.
    pub mask: u16,
    /// The disk's number; 0: unused.
    pub device: u8,
    /// Its number.
    pub cluster: u32,
    /// The stored blocks.
    pub blocks: Vec<u8>,
}

/// An extent of a built archive.
#[derive(Clone, Debug)]
pub struct VmaExtent {
    /// Where it stands.
    pub at: usize,
    /// Its bytes.
    pub len: usize,
    /// What it lists.
    pub slots: Vec<VmaSlot>,
}

/// An archive, and all that is to be known of it.
#[derive(Clone, Debug)]
pub struct VmaBuilt {
    /// What it was made of.
    pub file: VmaFile,
    /// The archive.
    pub bytes: Vec<u8>,
    /// Bytes of the header.
    pub header: usize,
    /// The extents.
    pub extents: Vec<VmaExtent>,
}

/// What must come out of a damaged archive.
#[derive(Clone, Debug, Default)]
pub struct VmaRescue {
    /// By number: what came, and zeros where nothing did.
    pub disks: BTreeMap<u8, Mirror>,
    /// By number: the ranges that did not come, joined and ascending. Disks that are whole are not listed.
    pub missing: BTreeMap<u8, Vec<Range<u64>>>,
}

impl VmaFile {
    /// As Proxmox's tool writes it, with nothing in it.
    pub fn new(name: &'static str) -> VmaFile {
        let seed = name.bytes().fold(5, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
        VmaFile {
            name,
            uuid: Rng::new(seed).bytes(16).try_into().unwrap(),
            ctime: 1_795_161_832,
            configs: Vec::new(),
            disks: Vec::new(),
            slots: 58,
            order: VmaOrder::Straight,
            blobs: VmaBlobs::Proxmox,
            padding: (0, 0),
            round: 512,
            gaps: false,
            empty_extents: false,
            zeros: false,
            full_last: false,
            beyond: false,
            garbage: false,
        }
    }

    /// With one more configuration.
    #[must_use]
    pub fn config(mut self, name: &str, data: impl Into<Vec<u8>>) -> VmaFile {
        self.configs.push((self.configs.len(), name.into(), data.into()));
        self
    }

    /// With one more disk, of that size, numbered on.
    #[must_use]
    pub fn disk(mut self, name: &str, size: u64) -> VmaFile {
        let id = self.disks.last().map_or(1, |disk| disk.id + 1);
        let seed = u64::from(id) * 1000 + self.uuid.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        self.disks.push(VmaDisk::new(id, name, vma_disk_content(size, seed)));
        self
    }

    fn rng(&self) -> Rng {
        Rng::new(u64::from_le_bytes(self.uuid[..8].try_into().unwrap()))
    }

    /// Makes the archive.
    pub fn build(self) -> VmaBuilt {
        let mut bytes = self.header();
        let header = bytes.len();
        let mut extents = Vec::new();
        for slots in self.extents() {
            let at = bytes.len();
            bytes.extend(self.extent_bytes(&slots));
            extents.push(VmaExtent { at, len: bytes.len() - at, slots });
        }
        VmaBuilt { file: self, bytes, header, extents }
    }

    /// The header, its sum right.
    pub fn header(&self) -> Vec<u8> {
        let mut rng = self.rng();
        let mut bytes = vec![0; HEADER];
        if self.garbage {
            rng.fill(&mut bytes[60..2044]);
            rng.fill(&mut bytes[4092..4096]);
            for n in 1..256 {
                rng.fill(&mut bytes[4096 + 32 * n + 4..4096 + 32 * n + 8]);
                rng.fill(&mut bytes[4096 + 32 * n + 16..4096 + 32 * n + 32]);
            }
        }
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"VMA\0");
        put(4, &1_u32.to_be_bytes());
        put(8, &self.uuid);
        put(24, &self.ctime.to_be_bytes());
        // Each record with the places that point to it.
        let mut records: Vec<(Vec<u8>, Vec<usize>)> = Vec::new();
        let with_nul = |name: &[u8]| [name, b"\0"].concat();
        for (n, name, data) in &self.configs {
            records.push((with_nul(name), vec![2044 + 4 * n]));
            records.push((data.clone(), vec![3068 + 4 * n]));
        }
        for disk in &self.disks {
            let at = 4096 + 32 * usize::from(disk.id);
            put(at + 8, &disk.content.size().to_be_bytes());
            records.push((with_nul(&disk.name), vec![at]));
        }
        match self.blobs {
            VmaBlobs::Proxmox => {}
            VmaBlobs::Shared => {
                let mut once: Vec<(Vec<u8>, Vec<usize>)> = Vec::new();
                for (record, places) in records {
                    match once.iter_mut().find(|(other, _)| *other == record) {
                        Some((_, there)) => there.extend(places),
                        None => once.push((record, places)),
                    }
                }
                records = once;
            }
            VmaBlobs::Shuffled => {
                records.push((b"nobody's".to_vec(), Vec::new()));
                records.push((Vec::new(), Vec::new()));
                shuffle(&mut records, &mut rng);
            }
        }
        let mut blobs = vec![0];
        for (record, places) in records {
            for place in places {
                put(place, &(blobs.len() as u32).to_be_bytes());
            }
            blobs.extend((record.len() as u16).to_le_bytes());
            blobs.extend(record);
        }
        put(48, &((HEADER + self.padding.0) as u32).to_be_bytes());
        put(52, &(blobs.len() as u32).to_be_bytes());
        bytes.resize(HEADER + self.padding.0, 0);
        bytes.extend(blobs);
        bytes.resize((bytes.len() + self.padding.1).next_multiple_of(self.round), 0);
        let len = bytes.len() as u32;
        bytes[56..60].copy_from_slice(&len.to_be_bytes());
        vma_fix_header(&mut bytes);
        bytes
    }

    /// An extent of these slots, its sum right.
    pub fn extent_bytes(&self, slots: &[VmaSlot]) -> Vec<u8> {
        let mut bytes = vec![0; EXTENT];
        bytes[..4].copy_from_slice(b"VMAE");
        let stored: usize = slots.iter().map(|slot| slot.blocks.len() / BLOCK).sum();
        bytes[6..8].copy_from_slice(&(stored as u16).to_be_bytes());
        bytes[8..24].copy_from_slice(&self.uuid);
        for (n, slot) in slots.iter().enumerate() {
            let at = 40 + 8 * n;
            bytes[at..at + 2].copy_from_slice(&slot.mask.to_be_bytes());
            bytes[at + 2] = if self.garbage { 0xa5 } else { 0 };
            bytes[at + 3] = slot.device;
            bytes[at + 4..at + 8].copy_from_slice(&slot.cluster.to_be_bytes());
        }
        for slot in slots {
            bytes.extend(&slot.blocks);
        }
        vma_fix_extent(&mut bytes, 0);
        bytes
    }

    /// The clusters, as they are listed.
    fn clusters(&self) -> Vec<(usize, u32)> {
        let mut rng = self.rng();
        let counts: Vec<u64> =
            self.disks.iter().map(|disk| disk.clusters() + if self.beyond { 3 } else { 0 }).collect();
        let of = |disk: usize| (0..counts[disk]).map(move |cluster| (disk, cluster as u32));
        let mut all: Vec<(usize, u32)> = (0..counts.len()).flat_map(of).collect();
        match self.order {
            VmaOrder::Straight => {}
            VmaOrder::Interleaved => all.sort_by_key(|(disk, cluster)| (*cluster, *disk)),
            VmaOrder::Backwards => all.reverse(),
            VmaOrder::Shuffled => shuffle(&mut all, &mut rng),
            VmaOrder::Jumps => {
                let mut runs = Vec::new();
                let mut rest = all.as_slice();
                while !rest.is_empty() {
                    let (run, behind) = rest.split_at((1 + rng.below(7) as usize).min(rest.len()));
                    runs.push(run.to_vec());
                    rest = behind;
                }
                shuffle(&mut runs, &mut rng);
                all = runs.concat();
            }
        }
        for (disk, _) in self.disks.iter().enumerate().filter(|(_, disk)| disk.is_memory()) {
            let places: Vec<usize> = (0..all.len()).filter(|n| all[*n].0 == disk).collect();
            for (cluster, place) in places.into_iter().enumerate() {
                all[place].1 = cluster as u32;
            }
        }
        all
    }

    fn slot(&self, disk: &VmaDisk, cluster: u32, rng: &mut Rng) -> VmaSlot {
        let mut slot = VmaSlot { mask: 0, device: disk.id, cluster, blocks: Vec::new() };
        let is_last = u64::from(cluster) + 1 == disk.clusters();
        for bit in 0..16 {
            let at = u64::from(cluster) * CLUSTER + bit * BLOCK as u64;
            let len = disk.content.size().saturating_sub(at).min(BLOCK as u64);
            let whole =
                (self.full_last && is_last) || (disk.is_memory() && u64::from(cluster) < disk.clusters());
            if whole || (len > 0 && (self.zeros || !disk.content.is_zero(at, len))) {
                slot.mask |= 1 << bit;
                slot.blocks.extend(disk.content.bytes(at, len as usize));
                let pad = BLOCK - len as usize;
                slot.blocks.extend(if self.garbage { rng.bytes(pad) } else { vec![0; pad] });
            }
        }
        slot
    }

    fn extents(&self) -> Vec<Vec<VmaSlot>> {
        assert!((1..=SLOTS).contains(&self.slots));
        let mut rng = self.rng();
        let mut extents = vec![Vec::new()];
        for (disk, cluster) in self.clusters() {
            let slot = self.slot(&self.disks[disk], cluster, &mut rng);
            if self.gaps && rng.below(4) == 0 {
                let unused = |rng: &mut Rng| match self.garbage {
                    true => VmaSlot {
                        mask: rng.any() as u16,
                        device: 0,
                        cluster: rng.any() as u32,
                        blocks: Vec::new(),
                    },
                    false => VmaSlot { mask: 0, device: 0, cluster: 0, blocks: Vec::new() },
                };
                push(&mut extents, self.slots, unused(&mut rng));
            }
            if self.empty_extents && rng.below(20) == 0 {
                extents.extend([Vec::new(), Vec::new()]);
            }
            push(&mut extents, self.slots, slot);
        }
        extents
    }
}

fn push(extents: &mut Vec<Vec<VmaSlot>>, most: usize, slot: VmaSlot) {
    if extents.last().is_none_or(|last| last.len() == most) {
        extents.push(Vec::new());
    }
    extents.last_mut().unwrap().push(slot);
}

fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for n in (1..items.len()).rev() {
        items.swap(n, rng.below(n as u64 + 1) as usize);
    }
}

/// Makes a header's sum right.
pub fn vma_fix_header(bytes: &mut [u8]) {
    let len = u32::from_be_bytes(bytes[56..60].try_into().unwrap()) as usize;
    let len = len.clamp(HEADER, bytes.len());
    let sum = vma_sum(&bytes[..len], 32);
    bytes[32..48].copy_from_slice(&sum);
}

/// Makes the sum of the extent's header that stands there right.
pub fn vma_fix_extent(bytes: &mut [u8], at: usize) {
    let sum = vma_sum(&bytes[at..at + EXTENT], 24);
    bytes[at + 24..at + 40].copy_from_slice(&sum);
}

impl VmaBuilt {
    /// The content of the disk of that name.
    pub fn content(&self, name: &str) -> &Mirror {
        let disk = self.file.disks.iter().find(|disk| disk.name == name.as_bytes());
        &disk.unwrap_or_else(|| panic!("there is no disk '{name}'")).content
    }

    /// What must come out where `intact` says of each extent how many of its bytes are as they were, from its first on;
    /// less than a header: all of it is lost. What is there twice counts once.
    pub fn rescue(&self, intact: impl Fn(usize) -> usize) -> VmaRescue {
        let mut rescue = VmaRescue::default();
        let mut known: BTreeMap<u8, Vec<bool>> = BTreeMap::new();
        for disk in self.file.disks.iter().filter(|disk| !disk.is_memory()) {
            let size = disk.content.size();
            rescue.disks.insert(disk.id, Mirror::new(size));
            known.insert(disk.id, vec![false; size.div_ceil(BLOCK as u64) as usize]);
        }
        for (n, extent) in self.extents.iter().enumerate() {
            let Some(mut left) = intact(n).checked_sub(EXTENT) else { continue };
            for slot in &extent.slots {
                let Some(disk) = rescue.disks.get_mut(&slot.device) else {
                    left = left.saturating_sub(slot.blocks.len());
                    continue;
                };
                let known = known.get_mut(&slot.device).unwrap();
                let mut stored = slot.blocks.chunks(BLOCK);
                for bit in 0..16 {
                    let at = u64::from(slot.cluster) * CLUSTER + bit * BLOCK as u64;
                    let there = disk.size().saturating_sub(at).min(BLOCK as u64);
                    let mut comes = true;
                    if slot.mask >> bit & 1 == 1 {
                        let block = stored.next().unwrap();
                        comes = left >= BLOCK;
                        left = if comes { left - BLOCK } else { 0 };
                        if comes && there > 0 {
                            disk.write(at, &block[..there as usize]);
                        }
                    }
                    if comes && there > 0 {
                        known[(at / BLOCK as u64) as usize] = true;
                    }
                }
            }
        }
        for (id, known) in known {
            let size = rescue.disks[&id].size();
            let mut ranges: Vec<Range<u64>> = Vec::new();
            for n in (0..known.len()).filter(|n| !known[*n]) {
                let at = n as u64 * BLOCK as u64;
                let end = (at + BLOCK as u64).min(size);
                match ranges.last_mut().filter(|last| last.end == at) {
                    Some(last) => last.end = end,
                    None => ranges.push(at..end),
                }
            }
            if !ranges.is_empty() {
                rescue.missing.insert(id, ranges);
            }
        }
        rescue
    }
}
