//! VHD files as other programs lay them out, built byte by byte and with no code of `cowhand-vhd`: every creator, every
//! order of the parts, every locator, and what only few files have.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::Rng;
use crate::vhd_reader::{vhd_geometry, vhd_size, vhd_sum};

const SECTOR: u64 = 512;

/// Cylinders, heads, sectors as they stand in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Geometry {
    /// By the specification's appendix.
    Standard,
    /// 65535, 16, 255, whatever the size.
    Maximum,
}

/// What stands between the header and the first block, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Nothing, up to a multiple of so many bytes.
    Align(u64),
    /// The block allocation table.
    Bat,
    /// XenServer's: header and map. Must stand right behind the BAT.
    Batmap,
    /// The parent locator of that number.
    Locator(usize),
}

/// XenServer's batmap.
#[derive(Clone, Copy, Debug)]
pub struct Batmap {
    /// Any byte.
    pub marker: u8,
    /// With a nonce and the hash of a key.
    pub key: bool,
}

/// A parent locator to be written.
#[derive(Clone, Debug)]
pub struct LocatorText {
    /// `W2ru`, `W2ku`, `MacX`, `Wi2r`, `Wi2k`.
    pub code: &'static str,
    /// As the program would write it.
    pub text: String,
    /// Bytes set aside.
    pub space: u64,
    /// The space is written down in sectors, as the specification says; else in bytes.
    pub in_sectors: bool,
}

impl LocatorText {
    /// One that takes a sector.
    pub fn new(code: &'static str, text: &str) -> LocatorText {
        LocatorText { code, text: text.to_owned(), space: 512, in_sectors: false }
    }

    fn bytes(&self) -> Vec<u8> {
        if matches!(self.code, "W2ru" | "W2ku") {
            self.text.encode_utf16().flat_map(u16::to_le_bytes).collect()
        } else {
            self.text.clone().into_bytes()
        }
    }
}

/// What a differencing disk says of its parent.
#[derive(Clone, Debug)]
pub struct ParentText {
    /// The parent's unique id; zero for a raw one.
    pub id: [u8; 16],
    /// Seconds since 2000; Windows writes 0.
    pub time: u32,
    /// The Unicode name.
    pub name: String,
    /// At most eight.
    pub locators: Vec<LocatorText>,
}

/// Guest sectors that the file has: from, how many, whether they hold data (else zeros, which hide what is below).
pub type Run = (u64, u64, bool);

/// A file to be built.
#[derive(Clone, Debug)]
pub struct VhdFile {
    /// For messages and as a file's name.
    pub name: &'static str,
    /// `tap\0` and its like.
    pub creator: [u8; 4],
    /// Of the creator.
    pub version: u32,
    /// `Wi2k`, `Mac ` or nothing.
    pub host: [u8; 4],
    /// A fixed disk: no blocks.
    pub fixed: bool,
    /// The footer's current size.
    pub size: u64,
    /// The footer's original size.
    pub original: u64,
    /// How the geometry is chosen.
    pub geometry: Geometry,
    /// Bytes of a block.
    pub block: u32,
    /// Entries of the BAT beyond the disk's end.
    pub spare: u32,
    /// Where the header begins.
    pub header_at: u64,
    /// What stands behind it.
    pub parts: Vec<Part>,
    /// Where [`Part::Batmap`] is, what it holds.
    pub batmap: Option<Batmap>,
    /// Bitmaps with the least significant bit first.
    pub lsb: bool,
    /// Where a block's data (not its bitmap) is aligned.
    pub align: u64,
    /// Blocks in any order, and free sectors between them.
    pub shuffled: bool,
    /// Sectors that are not there have bytes in the file all the same, and no meaning.
    pub garbage: bool,
    /// Bitmaps are full, as QEMU and VirtualBox write them; else they say what the runs say.
    pub full_bitmaps: bool,
    /// Bytes between the last block and the footer; `None`: as many as make the file end on 4 KiB.
    pub gap: Option<u64>,
    /// The footer has 511 bytes.
    pub short_footer: bool,
    /// A machine was saved with it.
    pub saved: u8,
    /// XenServer's hidden.
    pub hidden: u8,
    /// The footer's unique id.
    pub id: [u8; 16],
    /// Seconds since 2000.
    pub time: u32,
    /// The parent.
    pub parent: Option<ParentText>,
    /// What is there.
    pub runs: Vec<Run>,
}

impl VhdFile {
    /// A dynamic disk in the simplest layout, of blocks of 2 MiB, without content.
    pub fn new(name: &'static str, creator: &[u8; 4], version: u32, size: u64) -> VhdFile {
        let seed = name.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
        VhdFile {
            name,
            creator: *creator,
            version,
            host: *b"Wi2k",
            fixed: false,
            size,
            original: size,
            geometry: Geometry::Standard,
            block: 2 << 20,
            spare: 0,
            header_at: SECTOR,
            parts: vec![Part::Bat],
            batmap: None,
            lsb: false,
            align: SECTOR,
            shuffled: false,
            garbage: false,
            full_bitmaps: false,
            gap: Some(0),
            short_footer: false,
            saved: 0,
            hidden: 0,
            id: Rng::new(seed).bytes(16).try_into().unwrap(),
            time: 0x2719_0000 + seed as u32 % 0xffff,
            parent: None,
            runs: Vec::new(),
        }
    }

    /// Guest bytes, by the rule of the creator.
    pub fn guest_size(&self) -> u64 {
        vhd_size(&self.creator, self.size, self.chs())
    }

    fn chs(&self) -> (u16, u8, u8) {
        match self.geometry {
            Geometry::Standard => vhd_geometry(self.size),
            Geometry::Maximum => (65535, 16, 255),
        }
    }

    fn footer(&self) -> Vec<u8> {
        let mut f = vec![0; 512];
        let kind: u32 = if self.fixed { 2 } else { 3 + u32::from(self.parent.is_some()) };
        let (c, h, s) = self.chs();
        set(&mut f, 0, b"conectix");
        set(&mut f, 8, &2u32.to_be_bytes());
        set(&mut f, 12, &0x0001_0000u32.to_be_bytes());
        set(&mut f, 16, &(if self.fixed { u64::MAX } else { self.header_at }).to_be_bytes());
        set(&mut f, 24, &self.time.to_be_bytes());
        set(&mut f, 28, &self.creator);
        set(&mut f, 32, &self.version.to_be_bytes());
        set(&mut f, 36, &self.host);
        set(&mut f, 40, &self.original.to_be_bytes());
        set(&mut f, 48, &self.size.to_be_bytes());
        set(&mut f, 56, &c.to_be_bytes());
        set(&mut f, 58, &[h, s]);
        set(&mut f, 60, &kind.to_be_bytes());
        set(&mut f, 68, &self.id);
        set(&mut f, 84, &[self.saved, self.hidden]);
        let sum = vhd_sum(&f, Some(64));
        set(&mut f, 64, &sum.to_be_bytes());
        f
    }

    /// Writes the file, and answers what a guest sees in it over `below`.
    pub fn build(&self, path: &Path, below: Vec<u8>) -> Vec<u8> {
        let mut rng = Rng::new(u64::from(self.time));
        let size = self.guest_size() as usize;
        // What is not touched costs no memory: some disks are large.
        let mut disk = if below.is_empty() { vec![0; size] } else { below };
        disk.resize(size, 0);
        for (at, count, holds) in &self.runs {
            let bytes = &mut disk[(at * SECTOR) as usize..((at + count) * SECTOR) as usize];
            if *holds { rng.fill(bytes) } else { bytes.fill(0) }
        }
        let file = File::create(path).unwrap();
        let end = if self.fixed {
            file.write_all_at(&disk, 0).unwrap();
            self.size
        } else {
            self.tables_and_blocks(&file, &disk, &mut rng)
        };
        let gap = self.gap.unwrap_or_else(|| (end + SECTOR).next_multiple_of(4096) - SECTOR - end);
        let footer = self.footer();
        let footer = &footer[..if self.short_footer { 511 } else { 512 }];
        file.write_all_at(footer, end + gap).unwrap();
        disk
    }

    /// Everything before the footer; answers where that ends.
    fn tables_and_blocks(&self, file: &File, disk: &[u8], rng: &mut Rng) -> u64 {
        let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).unwrap();
        let block = u64::from(self.block);
        let in_block = block / SECTOR;
        let bitmap = in_block.div_ceil(8).next_multiple_of(SECTOR);
        let count = (self.size.div_ceil(block) + u64::from(self.spare)) as usize;
        let mut header = self.header(count as u32);
        let mut table = vec![0xff; (count * 4).next_multiple_of(512)];
        let mut map = vec![0; count.div_ceil(8).next_multiple_of(512)];
        let (mut table_at, mut batmap_at) = (0, 0);
        let mut end = self.header_at + 1024;
        for part in &self.parts {
            end = end.next_multiple_of(SECTOR);
            match part {
                Part::Align(to) => end = end.next_multiple_of(*to),
                Part::Bat => {
                    table_at = end;
                    set(&mut header, 16, &end.to_be_bytes());
                    end += table.len() as u64;
                }
                Part::Batmap => {
                    batmap_at = end;
                    end += 512 + map.len() as u64;
                }
                Part::Locator(n) => {
                    let locator = &self.parent.as_ref().unwrap().locators[*n];
                    set(&mut header, 576 + 24 * n + 16, &end.to_be_bytes());
                    put(end, &locator.bytes());
                    end += locator.space;
                }
            }
        }
        for n in self.blocks_in_order(in_block, rng) {
            if self.shuffled {
                end += SECTOR * rng.below(9);
            }
            let data = (end + bitmap).next_multiple_of(self.align);
            end = data + block;
            let start = ((data - bitmap) / SECTOR) as u32;
            set(&mut table, 4 * n as usize, &start.to_be_bytes());
            let bits = self.bits(n * in_block, in_block, disk.len() as u64 / SECTOR);
            let mut bytes = vec![0u8; bitmap as usize];
            for (s, bit) in bits.iter().enumerate() {
                let sector = n * in_block + s as u64;
                let there = disk.get((sector * SECTOR) as usize..((sector + 1) * SECTOR) as usize);
                if *bit {
                    bytes[s / 8] |= if self.lsb { 1 << (s % 8) } else { 0x80 >> (s % 8) };
                    if let Some(there) = there.filter(|there| there.iter().any(|byte| *byte != 0)) {
                        put(data + s as u64 * SECTOR, there);
                    }
                } else if self.garbage {
                    put(data + s as u64 * SECTOR, &rng.bytes(512));
                }
            }
            put(data - bitmap, &bytes);
            if bits.iter().all(|bit| *bit) {
                map[n as usize / 8] |= 0x80 >> (n % 8);
            }
        }
        let sum = vhd_sum(&header, Some(36));
        set(&mut header, 36, &sum.to_be_bytes());
        put(0, &self.footer());
        put(self.header_at, &header);
        put(table_at, &table);
        if let Some(batmap) = &self.batmap {
            put(batmap_at, &batmap_header(batmap, batmap_at + 512, &map, rng));
            put(batmap_at + 512, &map);
        }
        end
    }

    /// Which blocks are there, as they follow one another in the file.
    fn blocks_in_order(&self, in_block: u64, rng: &mut Rng) -> Vec<u64> {
        let of_run = |(at, n, _): &Run| at / in_block..(at + n).div_ceil(in_block);
        let mut blocks: Vec<u64> = self.runs.iter().flat_map(of_run).collect();
        blocks.sort_unstable();
        blocks.dedup();
        if self.shuffled {
            for n in (1..blocks.len()).rev() {
                blocks.swap(n, rng.below(n as u64 + 1) as usize);
            }
        }
        blocks
    }

    /// Which sectors of a block are there; none beyond the disk's end, where bitmaps are not full.
    fn bits(&self, first: u64, in_block: u64, end: u64) -> Vec<bool> {
        let mut bits = vec![self.full_bitmaps; in_block as usize];
        for (at, n, _) in &self.runs {
            let from = (*at).clamp(first, first + in_block) - first;
            let to = (at + n).min(end).clamp(first, first + in_block) - first;
            bits[from as usize..to as usize].fill(true);
        }
        bits
    }

    fn header(&self, entries: u32) -> Vec<u8> {
        let mut h = vec![0; 1024];
        set(&mut h, 0, b"cxsparse");
        set(&mut h, 8, &u64::MAX.to_be_bytes());
        set(&mut h, 24, &0x0001_0000u32.to_be_bytes());
        set(&mut h, 28, &entries.to_be_bytes());
        set(&mut h, 32, &self.block.to_be_bytes());
        if let Some(parent) = &self.parent {
            set(&mut h, 40, &parent.id);
            set(&mut h, 56, &parent.time.to_be_bytes());
            let name: Vec<u8> = parent.name.encode_utf16().flat_map(u16::to_be_bytes).collect();
            set(&mut h, 64, &name);
            for (n, locator) in parent.locators.iter().enumerate() {
                let space = if locator.in_sectors { locator.space / SECTOR } else { locator.space };
                set(&mut h, 576 + 24 * n, locator.code.as_bytes());
                set(&mut h, 576 + 24 * n + 4, &(space as u32).to_be_bytes());
                set(&mut h, 576 + 24 * n + 8, &(locator.bytes().len() as u32).to_be_bytes());
            }
        }
        h
    }
}

fn batmap_header(batmap: &Batmap, map_at: u64, map: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut h = vec![0; 512];
    set(&mut h, 0, b"tdbatmap");
    set(&mut h, 8, &map_at.to_be_bytes());
    set(&mut h, 16, &((map.len() / 512) as u32).to_be_bytes());
    set(&mut h, 20, &0x0001_0002u32.to_be_bytes());
    set(&mut h, 24, &vhd_sum(map, None).to_be_bytes());
    set(&mut h, 28, &[batmap.marker]);
    if batmap.key {
        set(&mut h, 29, &[1]);
        set(&mut h, 30, &rng.bytes(64));
    }
    h
}

fn set(into: &mut [u8], at: usize, bytes: &[u8]) {
    into[at..at + bytes.len()].copy_from_slice(bytes);
}
