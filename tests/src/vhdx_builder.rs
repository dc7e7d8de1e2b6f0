//! VHDX files as other programs lay them out, built byte by byte and with no code of `cowhand-vhdx`: every order of the
//! parts, every state of a block, and what only few files have.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::guid::{
    BAT, DISK_ID, DISK_SIZE, FILE_PARAMETERS, LOCATOR, LOCATOR_TYPE, LOGICAL, METADATA, PHYSICAL, guid,
    guid_text,
};
use crate::vhdx_log::{SECTOR, set, vhdx_crc};
use crate::{Mirror, Rng, Run};

const K: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The two headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VhdxHeaders {
    /// The second counts; the first is older, and says other GUIDs.
    SecondCounts,
    /// The first counts.
    FirstCounts,
    /// Both are the same, numbers included: disk2vhd.
    Same,
    /// One of them is damaged.
    Damaged(usize),
}

/// What stands behind the header section, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VhdxPart {
    /// The log.
    Log,
    /// The block allocation table.
    Bat,
    /// The metadata region.
    Metadata,
    /// A region that nobody knows, not required, full of bytes.
    Unknown(u8),
    /// All payload and sector bitmap blocks.
    Blocks,
    /// So many MiB of nothing.
    Gap(u64),
}

/// A metadata item that the format does not know.
#[derive(Clone, Debug)]
pub struct ExtraItem {
    /// Any byte: its GUID is made of it.
    pub id: u8,
    /// 1 user, 2 of the disk.
    pub flags: u32,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// What a child says of its parent.
#[derive(Clone, Debug)]
pub struct VhdxParent {
    /// The locator's keys and values, in order.
    pub keys: Vec<(&'static str, String)>,
}

/// An entry of the table that no data asks for: block, state, and whether offset bits are set in it. A block in state 3
/// with an offset keeps a place, in which bytes stand; in other states the offset leads to where another block is.
pub type StateOf = (u64, u8, bool);

/// A file to be built.
#[derive(Clone, Debug)]
pub struct VhdxFile {
    /// For messages and as a file's name.
    pub name: &'static str,
    /// The program.
    pub creator: &'static str,
    /// Guest bytes.
    pub size: u64,
    /// Bytes of a block.
    pub block: u64,
    /// Logical and physical sector.
    pub sectors: (u32, u32),
    /// LeaveBlocksAllocated: every block has a place but those of `states`.
    pub fixed: bool,
    /// The regions' entries say that they are required.
    pub required: bool,
    /// Bytes of the log.
    pub log: u64,
    /// What is where.
    pub parts: Vec<VhdxPart>,
    /// The headers.
    pub headers: VhdxHeaders,
    /// Which region table is damaged.
    pub bad_table: Option<usize>,
    /// Blocks in any order, and MiB between them that nobody uses; metadata items likewise.
    pub shuffled: bool,
    /// Bytes that mean nothing stand where sectors are not there, bits where nobody looks.
    pub garbage: bool,
    /// The file ends where the disk does, inside the last block.
    pub cut: bool,
    /// A child's blocks that are whole are partly present all the same, with all bits set.
    pub never_full: bool,
    /// MiB of the BAT region beyond what is needed.
    pub spare: u64,
    /// Metadata items that nobody knows.
    pub extra: Vec<ExtraItem>,
    /// Entries of blocks without data.
    pub states: Vec<StateOf>,
    /// FileWriteGuid, DataWriteGuid, VirtualDiskId.
    pub ids: [[u8; 16]; 3],
    /// The parent.
    pub parent: Option<VhdxParent>,
    /// What is there, in logical sectors.
    pub runs: Vec<Run>,
}

/// Where the parts of a built file are: first byte, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct VhdxPlaces {
    /// The log.
    pub log: (u64, u64),
    /// The BAT region.
    pub bat: (u64, u64),
    /// The metadata region.
    pub metadata: (u64, u64),
    /// The last sector bitmap block; zero: none.
    pub bitmap: u64,
    /// The last payload block; zero: none.
    pub block: u64,
}

/// A payload block, or the sector bitmap of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placed {
    Block(u64),
    Bitmap(u64),
    /// Unmapped, with its place kept.
    Unmapped(u64),
}

impl VhdxFile {
    /// A dynamic disk as QEMU, Windows and most lay it out, of blocks of 1 MiB, without content.
    pub fn new(name: &'static str, size: u64) -> VhdxFile {
        let seed = name.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
        let mut rng = Rng::new(seed);
        VhdxFile {
            name,
            creator: "Microsoft Windows 10.0.19041.0",
            size,
            block: MIB,
            sectors: (512, 4096),
            fixed: false,
            required: true,
            log: MIB,
            parts: vec![VhdxPart::Log, VhdxPart::Metadata, VhdxPart::Bat, VhdxPart::Blocks],
            headers: VhdxHeaders::SecondCounts,
            bad_table: None,
            shuffled: false,
            garbage: false,
            cut: false,
            never_full: false,
            spare: 0,
            extra: Vec::new(),
            states: Vec::new(),
            ids: [(); 3].map(|()| rng.bytes(16).try_into().unwrap()),
            parent: None,
            runs: Vec::new(),
        }
    }

    /// The DataWriteGuid as a locator has it.
    pub fn linkage(&self) -> String {
        format!("{{{}}}", guid_text(&self.ids[1]))
    }

    fn sector(&self) -> u64 {
        self.sectors.0.into()
    }

    fn ratio(&self) -> u64 {
        (self.sector() << 23) / self.block
    }

    fn count(&self) -> u64 {
        self.size.div_ceil(self.block)
    }

    fn entries(&self) -> u64 {
        let (blocks, ratio) = (self.count(), self.ratio());
        match self.parent {
            Some(_) => blocks.div_ceil(ratio) * (ratio + 1),
            None => blocks + blocks.saturating_sub(1) / ratio,
        }
    }

    /// Which sectors of a block the runs name.
    fn bits(&self, block: u64) -> Vec<bool> {
        let in_block = self.block / self.sector();
        let first = block * in_block;
        let mut bits = vec![false; in_block as usize];
        for (at, n, _) in &self.runs {
            let from = (*at).clamp(first, first + in_block) - first;
            let to = (at + n).clamp(first, first + in_block) - first;
            bits[from as usize..to as usize].fill(true);
        }
        bits
    }

    /// All sectors of the block that the disk has.
    fn is_whole(&self, block: u64, bits: &[bool]) -> bool {
        let there = (self.size - block * self.block).min(self.block) / self.sector();
        bits[..there as usize].iter().all(|bit| *bit)
    }

    /// Writes the file, and answers what a guest sees in it over `below`, and where everything is.
    pub fn build(&self, path: &Path, below: &Mirror) -> (Mirror, VhdxPlaces) {
        let mut rng = Rng::new(u64::from_le_bytes(self.ids[0][..8].try_into().unwrap()));
        let mut disk = Mirror::new(self.size);
        disk.reveal(below, 0, self.size);
        for (block, state, _) in self.states.iter().filter(|(_, state, _)| *state != 0) {
            assert!(matches!(state, 1 | 2 | 3 | 5));
            let start = block * self.block;
            disk.zero(start, self.block.min(self.size - start));
        }
        for (at, count, holds) in &self.runs {
            let (at, len) = (at * self.sector(), count * self.sector());
            if *holds { disk.write(at, &rng.bytes(len as usize)) } else { disk.zero(at, len) }
        }
        let file = File::create(path).unwrap();
        let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).unwrap();
        let mut places = VhdxPlaces::default();
        let mut table = vec![0; (self.entries() * 8) as usize];
        let mut regions = Vec::new();
        let mut end = MIB;
        for part in &self.parts {
            match part {
                VhdxPart::Gap(mib) => end += mib * MIB,
                VhdxPart::Log => {
                    places.log = (end, self.log);
                    end += self.log;
                }
                VhdxPart::Bat => {
                    let len = (table.len() as u64).next_multiple_of(MIB).max(MIB) + self.spare * MIB;
                    places.bat = (end, len);
                    regions.push((guid(BAT), end, len, self.required));
                    end += len;
                }
                VhdxPart::Metadata => {
                    places.metadata = (end, MIB);
                    put(end, &self.metadata(&mut rng));
                    regions.push((guid(METADATA), end, MIB, self.required));
                    end += MIB;
                }
                VhdxPart::Unknown(id) => {
                    put(end, &rng.bytes(2 << 20));
                    regions.push(([*id; 16], end, 2 * MIB, false));
                    end += 2 * MIB;
                }
                VhdxPart::Blocks => end = self.blocks(&file, &disk, &mut table, end, &mut places, &mut rng),
            }
        }
        // A last part that nothing was written to has its length all the same.
        let len = file.metadata().unwrap().len();
        file.set_len(if self.cut { end } else { len.max(end) }).unwrap();
        put(places.bat.0, &table);
        let mut identifier = b"vhdxfile".to_vec();
        identifier.extend(self.creator.encode_utf16().flat_map(u16::to_le_bytes));
        put(0, &identifier);
        let table = region_table(&regions);
        for n in 0..2 {
            let mut table = table.clone();
            if self.bad_table == Some(n) {
                table[40] ^= 0xff;
            }
            put((192 + 64 * n as u64) * K, &table);
        }
        for n in 0..2 {
            put((64 + 64 * n as u64) * K, &self.header(n, places.log, &mut rng));
        }
        (disk, places)
    }

    fn header(&self, n: usize, log: (u64, u64), rng: &mut Rng) -> Vec<u8> {
        let (old, sequence) = match self.headers {
            VhdxHeaders::SecondCounts => (n == 0, 7 + n as u64),
            VhdxHeaders::FirstCounts => (n == 1, 8 - n as u64),
            VhdxHeaders::Same | VhdxHeaders::Damaged(_) => (false, 7),
        };
        let mut h = vec![0; 4096];
        set(&mut h, 0, b"head");
        set(&mut h, 8, &sequence.to_le_bytes());
        set(&mut h, 16, &if old { rng.bytes(16) } else { self.ids[0].to_vec() });
        set(&mut h, 32, &if old { rng.bytes(16) } else { self.ids[1].to_vec() });
        set(&mut h, 66, &1_u16.to_le_bytes());
        set(&mut h, 68, &(log.1 as u32).to_le_bytes());
        set(&mut h, 72, &log.0.to_le_bytes());
        let crc = vhdx_crc(&h);
        set(&mut h, 4, &crc.to_le_bytes());
        if self.headers == VhdxHeaders::Damaged(n) {
            h[20] ^= 0xff;
        }
        h
    }

    /// The metadata region's first bytes.
    fn metadata(&self, rng: &mut Rng) -> Vec<u8> {
        let flags = u32::from(self.fixed) | if self.parent.is_some() { 2 } else { 0 };
        let parameters = [(self.block as u32).to_le_bytes(), flags.to_le_bytes()].concat();
        let mut items = vec![
            (guid(FILE_PARAMETERS), 4, parameters),
            (guid(DISK_SIZE), 6, self.size.to_le_bytes().to_vec()),
            (guid(DISK_ID), 6, self.ids[2].to_vec()),
            (guid(LOGICAL), 6, self.sectors.0.to_le_bytes().to_vec()),
            (guid(PHYSICAL), 6, self.sectors.1.to_le_bytes().to_vec()),
        ];
        if let Some(parent) = &self.parent {
            items.push((guid(LOCATOR), 4, locator(&parent.keys)));
        }
        items.extend(self.extra.iter().map(|item| ([item.id; 16], item.flags, item.bytes.clone())));
        if self.shuffled {
            shuffle(&mut items, rng);
        }
        let mut table = vec![0; 64 * K as usize];
        set(&mut table, 0, b"metadata");
        set(&mut table, 10, &(items.len() as u16).to_le_bytes());
        // Places in another order than the entries.
        let mut order: Vec<usize> = (0..items.len()).collect();
        if self.shuffled {
            shuffle(&mut order, rng);
        }
        for n in order {
            let (id, flags, bytes) = &items[n];
            let entry = 32 + 32 * n;
            if self.shuffled {
                table.resize(table.len() + rng.below(5000) as usize, 0);
            }
            let at = if bytes.is_empty() { 0 } else { table.len() as u32 };
            set(&mut table, entry, id);
            set(&mut table, entry + 16, &at.to_le_bytes());
            set(&mut table, entry + 20, &(bytes.len() as u32).to_le_bytes());
            set(&mut table, entry + 24, &u32::to_le_bytes(*flags));
            table.extend_from_slice(bytes);
        }
        table
    }

    /// Writes the blocks from `end` on; answers where they end.
    fn blocks(
        &self,
        file: &File,
        disk: &Mirror,
        table: &mut [u8],
        end: u64,
        places: &mut VhdxPlaces,
        rng: &mut Rng,
    ) -> u64 {
        let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).unwrap();
        let (ratio, sector) = (self.ratio(), self.sector());
        let mut set_entry = |entry: u64, raw: u64| set(table, entry as usize * 8, &raw.to_le_bytes());
        let of_block = |block: u64| block + block / ratio;
        let in_block = self.block / sector;
        let of_run = |(at, n, _): &Run| at / in_block..(at + n).div_ceil(in_block);
        let mut blocks: Vec<u64> = self.runs.iter().flat_map(of_run).collect();
        if self.fixed {
            let other = |block: &u64| self.states.iter().all(|(n, ..)| n != block);
            blocks.extend((0..self.count()).filter(other));
        }
        blocks.sort_unstable();
        blocks.dedup();
        let mut placed = Vec::new();
        for block in &blocks {
            let bitmap = Placed::Bitmap(block / ratio);
            if self.parent.is_some() && !placed.contains(&bitmap) {
                placed.push(bitmap);
            }
            placed.push(Placed::Block(*block));
        }
        let kept = self.states.iter().filter(|(_, state, offset)| *state == 3 && *offset);
        placed.extend(kept.map(|(block, ..)| Placed::Unmapped(*block)));
        if self.shuffled {
            shuffle(&mut placed, rng);
        }
        let mut end = end;
        for what in placed {
            if self.shuffled {
                end += rng.below(3) * MIB;
            }
            let at = end;
            match what {
                Placed::Bitmap(chunk) => {
                    set_entry(chunk * (ratio + 1) + ratio, at | 6);
                    places.bitmap = at;
                    put(at, &self.bitmap(chunk, rng));
                    end += MIB;
                    file.set_len(end.max(file.metadata().unwrap().len())).unwrap();
                }
                Placed::Unmapped(block) => {
                    set_entry(of_block(block), at | 3);
                    put(at, &rng.bytes(5000));
                    end += self.block;
                    file.set_len(end).unwrap();
                }
                Placed::Block(block) => {
                    let bits = self.bits(block);
                    let whole = self.parent.is_none() || (self.is_whole(block, &bits) && !self.never_full);
                    set_entry(of_block(block), at | if whole { 6 } else { 7 });
                    places.block = at;
                    let start = block * self.block;
                    for s in 0..in_block {
                        let guest = start + s * sector;
                        if guest >= self.size || !(whole || bits[s as usize]) {
                            if self.garbage && guest < self.size {
                                put(at + s * sector, &rng.bytes(sector as usize));
                            }
                        } else if !disk.is_zero(guest, sector) {
                            put(at + s * sector, &disk.bytes(guest, sector as usize));
                        }
                    }
                    let is_last = block + 1 == self.count();
                    end += if self.cut && is_last { self.size - start } else { self.block };
                    file.set_len(end).unwrap();
                }
            }
        }
        for (block, state, offset) in &self.states {
            if !(*state == 3 && *offset) {
                set_entry(of_block(*block), u64::from(*state) | if *offset { places.block } else { 0 });
            }
        }
        end
    }

    /// A chunk's sector bitmap block.
    fn bitmap(&self, chunk: u64, rng: &mut Rng) -> Vec<u8> {
        let ratio = self.ratio();
        let bytes_each = (self.block / self.sector() / 8) as usize;
        let mut bitmap = vec![0; MIB as usize];
        for n in 0..ratio.min(self.count() - chunk * ratio) {
            let bits = self.bits(chunk * ratio + n);
            let to = &mut bitmap[n as usize * bytes_each..(n as usize + 1) * bytes_each];
            let whole = self.is_whole(chunk * ratio + n, &bits) && !self.never_full;
            // Of a block that is whole or not there the bits mean nothing.
            if self.garbage && (whole || bits.iter().all(|bit| !*bit)) {
                rng.fill(to);
                continue;
            }
            for (s, _) in bits.iter().enumerate().filter(|(_, bit)| **bit) {
                to[s / 8] |= 1 << (s % 8);
            }
        }
        bitmap
    }
}

fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for n in (1..items.len()).rev() {
        items.swap(n, rng.below(n as u64 + 1) as usize);
    }
}

fn region_table(regions: &[([u8; 16], u64, u64, bool)]) -> Vec<u8> {
    let mut table = vec![0; 64 * K as usize];
    set(&mut table, 0, b"regi");
    set(&mut table, 8, &(regions.len() as u32).to_le_bytes());
    for (n, (id, at, len, required)) in regions.iter().enumerate() {
        let entry = 16 + 32 * n;
        set(&mut table, entry, id);
        set(&mut table, entry + 16, &at.to_le_bytes());
        set(&mut table, entry + 24, &(*len as u32).to_le_bytes());
        set(&mut table, entry + 28, &u32::from(*required).to_le_bytes());
    }
    let crc = vhdx_crc(&table);
    set(&mut table, 4, &crc.to_le_bytes());
    table
}

/// The item: all entries, then all texts.
fn locator(keys: &[(&str, String)]) -> Vec<u8> {
    let mut item = guid(LOCATOR_TYPE).to_vec();
    item.extend_from_slice(&[0; 2]);
    item.extend_from_slice(&(keys.len() as u16).to_le_bytes());
    let mut texts: Vec<u8> = Vec::new();
    let start = 20 + 12 * keys.len();
    for (key, value) in keys {
        let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let (key, value) = (wide(key), wide(value));
        let at = (start + texts.len()) as u32;
        item.extend_from_slice(&at.to_le_bytes());
        item.extend_from_slice(&(at + key.len() as u32).to_le_bytes());
        item.extend_from_slice(&(key.len() as u16).to_le_bytes());
        item.extend_from_slice(&(value.len() as u16).to_le_bytes());
        texts.extend(key);
        texts.extend(value);
    }
    item.extend(texts);
    item
}

/// Makes both headers say that the log is pending under this GUID (zeros: that it is not).
pub fn vhdx_set_log(path: &Path, guid: [u8; 16]) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    for at in [64 * K, 128 * K] {
        let mut header = vec![0; SECTOR as usize];
        file.read_exact_at(&mut header, at).unwrap();
        let whole = u32::from_le_bytes(header[4..8].try_into().unwrap()) == vhdx_crc(&header);
        set(&mut header, 48, &guid);
        if whole {
            let crc = vhdx_crc(&header);
            set(&mut header, 4, &crc.to_le_bytes());
        }
        file.write_all_at(&header, at).unwrap();
    }
}
