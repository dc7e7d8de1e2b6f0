//! Builds VHDX files byte by byte from the specification, apart from the code that is tested.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // Each test file uses its own part.

pub mod crash;

use std::sync::Arc;

use cowhand_core::testing::fill;
use cowhand_core::{CreateOptions, Format, ParentRef, raw::Raw};
use cowhand_core::{Image, Layer, Link, MemoryStorage, NoFiles, OpenOptions, Options, Result, Storage};
use cowhand_vhdx::Vhdx;

pub const MIB: u64 = 1 << 20;
pub const METADATA_AT: u64 = 2 * MIB;
pub const BAT_AT: u64 = 3 * MIB;
/// The first MiB behind the structures.
pub const BLOCKS_AT: u64 = 4 * MIB;
pub const LINKAGE: &str = "{00112233-4455-6677-8899-AABBCCDDEEFF}";
pub const DATA_WRITE: [u8; 16] = [7; 16];

/// Payload states.
pub const ZERO: u64 = 2;
pub const FULL: u64 = 6;
pub const PARTIAL: u64 = 7;

/// Where the structures stand, in bytes, and which header counts.
#[derive(Clone, Copy, Debug)]
pub struct Spots {
    pub log: (u64, u64),
    pub metadata: u64,
    pub bat: u64,
    /// Where the structures end.
    pub end: u64,
    pub second_header: bool,
}

/// As this program and others lay them out.
pub const USUAL: Spots =
    Spots { log: (MIB, MIB), metadata: METADATA_AT, bat: BAT_AT, end: BLOCKS_AT, second_header: false };

/// The BAT behind room for blocks, a log of 3 MiB behind that, the metadata last.
pub const ELSEWHERE: Spots =
    Spots { log: (9 * MIB, 3 * MIB), metadata: 13 * MIB, bat: 6 * MIB, end: 14 * MIB, second_header: true };

/// An image being built.
pub struct Build {
    pub file: Arc<MemoryStorage>,
    pub bat: u64,
    pub block: u64,
    pub sector: u64,
    pub end: u64,
}

/// Bytes of a GUID's written form, in file order.
pub fn guid(text: &str) -> Vec<u8> {
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let bytes: Vec<u8> = (0..16).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap()).collect();
    [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15].map(|n| bytes[n]).to_vec()
}

/// `bytes` with the checksum that stands in bytes 4 to 8.
pub fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[4..8].fill(0);
    let crc = crc32c::crc32c(&bytes);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn locator(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut item = guid("B04AEFB7-D19E-4A81-B789-25B8E9445913");
    item.extend([0, 0, pairs.len() as u8, 0]);
    let mut at = 20 + 12 * pairs.len() as u32;
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let mut texts = Vec::new();
    for (key, value) in pairs {
        let (key, value) = (utf16(key), utf16(value));
        item.extend(at.to_le_bytes());
        item.extend((at + key.len() as u32).to_le_bytes());
        item.extend((key.len() as u16).to_le_bytes());
        item.extend((value.len() as u16).to_le_bytes());
        at += (key.len() + value.len()) as u32;
        texts.extend([key, value].concat());
    }
    item.extend(texts);
    item
}

impl Build {
    /// An image without any block; `parent`: the locator's keys and values.
    pub fn new(size: u64, block: u64, sector: u64, parent: Option<&[(&str, &str)]>) -> Build {
        Build::at(USUAL, size, block, sector, parent)
    }

    /// The same with its structures there.
    pub fn at(spots: Spots, size: u64, block: u64, sector: u64, parent: Option<&[(&str, &str)]>) -> Build {
        let file = Arc::new(MemoryStorage::new());
        file.set_len(spots.end).unwrap();
        let mut creator = b"vhdxfile".to_vec();
        creator.extend("by hand".encode_utf16().flat_map(u16::to_le_bytes));
        file.write_at(0, &creator).unwrap();
        let later = if spots.second_header { 5 } else { 3 };
        for (at, sequence) in [(64 << 10, 4u64), (128 << 10, later)] {
            let mut header = b"head\0\0\0\0".to_vec();
            header.extend(sequence.to_le_bytes());
            header.extend([6; 16]);
            header.extend(DATA_WRITE);
            header.extend([0; 16]);
            header.extend([0, 0, 1, 0]);
            header.extend((spots.log.1 as u32).to_le_bytes());
            header.extend(spots.log.0.to_le_bytes());
            header.resize(4096, 0);
            file.write_at(at, &sealed(header)).unwrap();
        }
        let mut regions = b"regi\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
        for (name, at) in [
            ("2DC27766-F623-4200-9D64-115E9BFD4A08", spots.bat),
            ("8B7CA206-4790-4B9A-B8FE-575F050F886E", spots.metadata),
        ] {
            regions.extend(guid(name));
            regions.extend(at.to_le_bytes());
            regions.extend((MIB as u32).to_le_bytes());
            regions.extend(1u32.to_le_bytes());
        }
        regions.resize(64 << 10, 0);
        let regions = sealed(regions);
        file.write_at(192 << 10, &regions).unwrap();
        file.write_at(256 << 10, &regions).unwrap();

        let mut items = vec![
            ("CAA16737-FA36-4D43-B3B6-33F0AA44E76B", block.to_le_bytes().to_vec()),
            ("2FA54224-CD1B-4876-B211-5DBED83BF4B8", size.to_le_bytes().to_vec()),
            ("BECA12AB-B2E6-4523-93EF-C309E000C746", vec![5; 16]),
            ("8141BF1D-A96F-4709-BA47-F233A8FAAB5F", (sector as u32).to_le_bytes().to_vec()),
            ("CDA348C7-445D-4471-9CC9-E9885251C556", 4096u32.to_le_bytes().to_vec()),
        ];
        if let Some(parent) = parent {
            items[0].1[4] = 2;
            items.push(("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C", locator(parent)));
        }
        let mut table = b"metadata\0\0".to_vec();
        table.extend((items.len() as u16).to_le_bytes());
        table.resize(32, 0);
        let mut at = 64 << 10;
        for (name, bytes) in items {
            table.extend(guid(name));
            table.extend((at as u32).to_le_bytes());
            table.extend((bytes.len() as u32).to_le_bytes());
            table.extend([4, 0, 0, 0, 0, 0, 0, 0]);
            file.write_at(spots.metadata + at, &bytes).unwrap();
            at += bytes.len() as u64;
        }
        file.write_at(spots.metadata, &table).unwrap();
        Build { file, bat: spots.bat, block, sector, end: spots.end }
    }

    pub fn ratio(&self) -> u64 {
        (1 << 23) * self.sector / self.block
    }

    /// The file offset of a block's entry.
    pub fn entry_at(&self, block: u64) -> u64 {
        self.bat + 8 * (block + block / self.ratio())
    }

    pub fn set(&self, block: u64, entry: u64) {
        self.file.write_at(self.entry_at(block), &entry.to_le_bytes()).unwrap();
    }

    /// The entry of the sector bitmap that belongs to a block.
    pub fn set_bitmap(&self, block: u64, entry: u64) {
        let ratio = self.ratio();
        let at = self.bat + 8 * (block / ratio * (ratio + 1) + ratio);
        self.file.write_at(at, &entry.to_le_bytes()).unwrap();
    }

    /// Room at the file's end, whole MiB.
    pub fn room(&mut self, len: u64) -> u64 {
        let at = self.end;
        self.end += len.next_multiple_of(MIB);
        self.file.set_len(self.end).unwrap();
        at
    }

    pub fn open(&self) -> Result<Arc<dyn Layer>> {
        open(self.file.clone())
    }
}

pub fn open(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Vhdx.open(file, &NoFiles, &OpenOptions::default())
}

pub fn reopen(file: Arc<dyn Storage>) -> Result<Arc<dyn Layer>> {
    Vhdx.open(file, &NoFiles, &OpenOptions { writable: true, ..OpenOptions::default() })
}

/// A raw disk full of stamps, some of it zero.
pub fn stamped(size: u64) -> Arc<dyn Layer> {
    let mut bytes = vec![0; size as usize];
    fill(&mut bytes, 0, 1 << 40);
    bytes[size as usize / 3..size as usize / 2].fill(0);
    Raw.open(Arc::new(MemoryStorage::from_bytes(&bytes)), &NoFiles, &OpenOptions::default()).unwrap()
}

/// What opening or reading all of it answers.
pub fn read_all(file: Arc<dyn Storage>) -> Result<Vec<u8>> {
    let layer = open(file)?;
    let image = chain(vec![layer]);
    let mut all = vec![0xa5; image.size() as usize];
    image.read(0, &mut all)?;
    Ok(all)
}

/// The disk that layers make, the top first.
pub fn chain(layers: Vec<Arc<dyn Layer>>) -> Image {
    let link = |layer| Link { layer, name: "x".to_owned(), format: "vhdx" };
    Image::new(layers.into_iter().map(link).collect()).unwrap()
}

pub fn create_options(size: u64, given: &[(&str, &str)]) -> CreateOptions {
    let given: Vec<_> = given.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    CreateOptions {
        size,
        options: Options::check(Vhdx.options(), &given).unwrap(),
        fresh: true,
        ..CreateOptions::default()
    }
}

pub fn create(file: Arc<dyn Storage>, size: u64, given: &[(&str, &str)]) -> Result<Arc<dyn Layer>> {
    Vhdx.create(file, &NoFiles, &create_options(size, given))
}

/// A parent as the verbs name one.
pub fn parent_of(sector: u64) -> ParentRef {
    ParentRef {
        candidates: vec!["base.vhdx".into()],
        format: Some("vhdx".to_owned()),
        expected: vec![DATA_WRITE],
        sector: Some(sector as u32),
        ..ParentRef::default()
    }
}

/// Bytes that nothing else looks like.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8 | 1
    };
    std::iter::repeat_with(next).take(len).collect()
}
