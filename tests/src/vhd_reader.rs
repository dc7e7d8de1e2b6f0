//! A reader of VHD that shares no code with `cowhand-vhd`, and asserts every rule of the structure on its way.
//!
//! It is slow and simple on purpose: it follows Microsoft's specification (version 1.0, 2006) from front to back, looks
//! at every table entry and every bit, and panics with the file's name and what is wrong.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

const SECTOR: u64 = 512;
const FREE: u32 = u32::MAX;

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The ones' complement of the sum of all bytes but the four of the sum itself.
pub(crate) fn vhd_sum(bytes: &[u8], sum_at: Option<usize>) -> u32 {
    let counts = |at: usize| sum_at.is_none_or(|sum| at < sum || at >= sum + 4);
    !bytes.iter().enumerate().filter(|(at, _)| counts(*at)).map(|(_, byte)| u32::from(*byte)).sum::<u32>()
}

/// Cylinders, heads and sectors for a size, by the specification's appendix.
pub fn vhd_geometry(size: u64) -> (u16, u8, u8) {
    let total = (size / SECTOR).min(65535 * 16 * 255);
    let (mut sectors, mut heads, mut tracks);
    if total >= 65535 * 16 * 63 {
        (sectors, heads, tracks) = (255, 16, total / 255);
    } else {
        (sectors, tracks) = (17, total / 17);
        heads = tracks.div_ceil(1024).max(4);
        if tracks >= heads * 1024 || heads > 16 {
            (sectors, heads, tracks) = (31, 16, total / 31);
        }
        if tracks >= heads * 1024 {
            (sectors, heads, tracks) = (63, 16, total / 63);
        }
    }
    ((tracks / heads) as u16, heads as u8, sectors as u8)
}

/// The disk's bytes as the creator means them.
pub(crate) fn vhd_size(creator: &[u8], current: u64, (c, h, s): (u16, u8, u8)) -> u64 {
    let by_geometry = matches!(creator, b"vpc " | b"qemu" | b"vs  ") && (c, h, s) != (65535, 16, 255);
    if by_geometry { u64::from(c) * u64::from(h) * u64::from(s) * SECTOR } else { current }
}

/// One parent locator, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locator {
    /// `W2ru` and its like.
    pub code: String,
    /// What it says, as it is written there.
    pub text: String,
    /// Where its text begins in the file, and how many bytes are set aside.
    pub place: (u64, u64),
}

impl Locator {
    /// As a path with `/`; relative ones without `./`.
    pub fn path(&self) -> PathBuf {
        let text = self.text.strip_prefix("file://").unwrap_or(&self.text).replace('\\', "/");
        Path::new(&text).components().filter(|part| *part != Component::CurDir).collect()
    }

    /// The file in `folder` that it names. XenServer writes a URL's path as it is, others escape it.
    fn in_folder(&self, folder: &Path) -> std::io::Result<PathBuf> {
        let plain = folder.join(self.path()).canonicalize();
        if self.code != "MacX" || plain.is_ok() {
            return plain;
        }
        folder.join(percent_decoded(self.path().to_str().unwrap())).canonicalize()
    }

    fn is_relative(&self) -> bool {
        matches!(self.code.as_str(), "W2ru" | "Wi2r") || (self.code == "MacX" && self.path().is_relative())
    }
}

fn percent_decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, behind)) = rest.split_first() {
        let hex = (*first == b'%')
            .then(|| behind.get(..2))
            .flatten()
            .and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        bytes.push(hex.unwrap_or(*first));
        rest = if hex.is_some() { &behind[2..] } else { behind };
    }
    String::from_utf8(bytes).unwrap()
}

/// What a write of guest data must leave as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// `tap\0` and its like.
    pub creator: [u8; 4],
    /// Of the creator.
    pub creator_version: u32,
    /// `Wi2k`, `Mac ` or nothing.
    pub host: [u8; 4],
    /// The footer's features.
    pub features: u32,
    /// Both sizes: original and current.
    pub sizes: (u64, u64),
    /// Cylinders, heads, sectors.
    pub geometry: (u16, u8, u8),
    /// The unique id, raw.
    pub id: [u8; 16],
    /// Seconds since 2000.
    pub time: u32,
    /// Saved state, and XenServer's hidden.
    pub flags: (u8, u8),
    /// Entries and block size, where there is a header.
    pub table: Option<(u32, u32)>,
    /// The parent's id, its time and its name.
    pub parent: Option<([u8; 16], u32, String)>,
    /// All locators, in order.
    pub locators: Vec<(String, String)>,
    /// XenServer's marker and key hash (33 bytes and 32), where there is a batmap.
    pub batmap: Option<(u8, Vec<u8>)>,
}

#[derive(Debug)]
struct Table {
    header: [u8; 1024],
    entries: Vec<u32>,
    block: u64,
    /// Bytes of the bitmap before each block.
    bitmap: u64,
    locators: Vec<Locator>,
    /// The header's 512 bytes and the map.
    batmap: Option<(Vec<u8>, Vec<u8>)>,
}

/// A VHD of which every rule was found to hold.
#[derive(Debug)]
pub struct Vhd {
    path: PathBuf,
    file: File,
    footer: [u8; 512],
    /// 2 fixed, 3 dynamic, 4 differencing.
    pub kind: u32,
    /// Guest bytes, by the rule of the file's creator.
    pub size: u64,
    table: Option<Table>,
}

impl Vhd {
    /// Reads a file; panics where a rule does not hold.
    pub fn open(path: &Path) -> Vhd {
        let name = path.display();
        let file = File::open(path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let len = file.metadata().unwrap().len();
        let short = len % SECTOR == 511;
        assert!(short || len.is_multiple_of(SECTOR), "{name}: {len} bytes are no whole sectors");
        let tail_len = if short { 511 } else { 512 };
        let tail = len - tail_len;
        let mut footer = [0; 512];
        file.read_exact_at(&mut footer[..tail_len as usize], tail).unwrap();
        assert_eq!(&footer[..8], b"conectix", "{name}: the footer's cookie");
        assert_eq!(be32(&footer, 64), vhd_sum(&footer, Some(64)), "{name}: the footer's checksum");
        assert_eq!(be32(&footer, 8) & !1, 2, "{name}: features");
        assert_eq!(be32(&footer, 12), 0x0001_0000, "{name}: the footer's version");
        assert!(footer[86..].iter().all(|byte| *byte == 0), "{name}: reserved bytes of the footer");
        assert!(
            footer[84] <= 1 && footer[85] <= 2,
            "{name}: saved state {}, hidden {}",
            footer[84],
            footer[85]
        );
        let kind = be32(&footer, 60);
        assert!((2..=4).contains(&kind), "{name}: type {kind}");
        let current = be64(&footer, 48);
        let geometry = (be16(&footer, 56), footer[58], footer[59]);
        let size = vhd_size(&footer[28..32], current, geometry);
        assert!(
            size > 0 && size.is_multiple_of(SECTOR) && size <= current,
            "{name}: {size} of {current} bytes"
        );
        let volume = |(c, h, s): (u16, u8, u8)| u64::from(c) * u64::from(h) * u64::from(s);
        if geometry != (65535, 16, 255) {
            let most = volume(vhd_geometry(current));
            assert!(volume(geometry) <= most, "{name}: geometry {geometry:?} is more than {most} sectors");
        }
        let mut vhd = Vhd { path: path.to_owned(), file, footer, kind, size, table: None };
        if kind == 2 {
            assert_eq!(be64(&footer, 16), u64::MAX, "{name}: the data offset of a fixed disk");
            assert!(current <= tail, "{name}: {current} bytes of disk before a footer at {tail}");
        } else {
            let mut copy = [0; 512];
            vhd.file.read_exact_at(&mut copy, 0).unwrap();
            let same = copy[..tail_len as usize] == footer[..tail_len as usize];
            assert!(same, "{name}: the footer and its copy are not the same");
            vhd.read_table(tail);
        }
        vhd
    }

    fn read_table(&mut self, tail: u64) {
        let name = self.path.display().to_string();
        let at = be64(&self.footer, 16);
        let mut places = vec![(0, SECTOR, "the footer's copy".to_owned())];
        let mut header = [0; 1024];
        self.file.read_exact_at(&mut header, at).unwrap();
        places.push((at, at + 1024, "the header".to_owned()));
        assert_eq!(&header[..8], b"cxsparse", "{name}: the header's cookie");
        assert_eq!(be32(&header, 36), vhd_sum(&header, Some(36)), "{name}: the header's checksum");
        assert_eq!(be64(&header, 8), u64::MAX, "{name}: the header's data offset");
        assert_eq!(be32(&header, 24), 0x0001_0000, "{name}: the header's version");
        assert_eq!(be32(&header, 60), 0, "{name}: reserved bytes of the header");
        // Ours notes there of which format a parent is that is neither VHD nor raw.
        let noted = header[768..].starts_with(b"parent-format\0");
        assert!(noted || header[768..].iter().all(|byte| *byte == 0), "{name}: reserved bytes of the header");
        let (table_at, count, block) = (be64(&header, 16), be32(&header, 28), u64::from(be32(&header, 32)));
        assert!(block.is_power_of_two() && block >= SECTOR, "{name}: blocks of {block} bytes");
        let current = be64(&self.footer, 48);
        assert!(u64::from(count) * block >= current, "{name}: {count} entries for {current} bytes");
        assert!(table_at.is_multiple_of(SECTOR), "{name}: table at {table_at}");
        let padded = (u64::from(count) * 4).next_multiple_of(SECTOR);
        let mut bytes = vec![0; padded as usize];
        self.file.read_exact_at(&mut bytes, table_at).unwrap();
        places.push((table_at, table_at + padded, "the BAT".to_owned()));
        let entries: Vec<u32> = (0..count as usize).map(|n| be32(&bytes, 4 * n)).collect();
        let locators = self.read_locators(&header);
        for locator in &locators {
            let (at, space) = locator.place;
            places.push((at, at + space, format!("locator {}", locator.code)));
        }
        let batmap = self.read_batmap(table_at + padded, tail, count);
        if let Some((head, map)) = &batmap {
            places.push((table_at + padded, table_at + padded + 512, "the batmap's header".to_owned()));
            let at = be64(head, 8);
            places.push((at, at + map.len() as u64, "the batmap".to_owned()));
        }
        let bitmap = (block / SECTOR).div_ceil(8).next_multiple_of(SECTOR);
        let used = current.div_ceil(block);
        for (n, entry) in entries.iter().enumerate().filter(|(_, entry)| **entry != FREE) {
            assert!((n as u64) < used, "{name}: entry {n} is beyond the disk's end, and not free");
            let at = u64::from(*entry) * SECTOR;
            places.push((at, at + bitmap + block, format!("block {n}")));
        }
        places.sort();
        for pair in places.windows(2) {
            let ((_, end, a), (start, _, b)) = (&pair[0], &pair[1]);
            assert!(end <= start, "{name}: {a} ends at {end}, {b} begins at {start}");
        }
        let (_, end, last) = places.last().unwrap();
        assert!(*end <= tail, "{name}: {last} ends at {end}, the footer begins at {tail}");
        self.table = Some(Table { header, entries, block, bitmap, locators, batmap });
        self.check_batmap();
    }

    fn read_locators(&self, header: &[u8]) -> Vec<Locator> {
        let name = self.path.display();
        let mut found = Vec::new();
        for entry in header[576..768].chunks(24) {
            let code = String::from_utf8_lossy(&entry[..4]).into_owned();
            let (space, len) = (u64::from(be32(entry, 4)), be32(entry, 8) as usize);
            let at = be64(entry, 16);
            assert_eq!(be32(entry, 12), 0, "{name}: reserved bytes of locator {code}");
            if entry[..4] == [0; 4] {
                continue;
            }
            assert_eq!(self.kind, 4, "{name}: a locator where there is no parent");
            let space = if space < SECTOR { space * SECTOR } else { space };
            assert!(len > 0 && len as u64 <= space, "{name}: locator {code} has {len} bytes in {space}");
            assert!(at.is_multiple_of(SECTOR), "{name}: locator {code} at {at}");
            let mut bytes = vec![0; len];
            self.file.read_exact_at(&mut bytes, at).unwrap();
            // The specification says of the deprecated codes only that they are paths: both ways are read.
            let wide = match code.as_str() {
                "W2ru" | "W2ku" => true,
                "Wi2r" | "Wi2k" => bytes.contains(&0),
                "MacX" => false,
                _ => panic!("{name}: locator code {:?}", &entry[..4]),
            };
            let text = if wide {
                assert!(len.is_multiple_of(2), "{name}: locator {code} has {len} bytes");
                let pairs = bytes.chunks_exact(2);
                let units: Vec<u16> = pairs.map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
                String::from_utf16(&units).unwrap()
            } else {
                String::from_utf8(bytes).unwrap()
            };
            assert!(!text.contains('\0'), "{name}: locator {code} holds a NUL: {text:?}");
            found.push(Locator { code, text, place: (at, space) });
        }
        found
    }

    fn read_batmap(&self, at: u64, tail: u64, count: u32) -> Option<(Vec<u8>, Vec<u8>)> {
        let name = self.path.display();
        let mut head = vec![0; 512];
        if at + 512 > tail {
            return None;
        }
        self.file.read_exact_at(&mut head, at).unwrap();
        if &head[..8] != b"tdbatmap" {
            return None;
        }
        let (map_at, sectors, version) = (be64(&head, 8), be32(&head, 16), be32(&head, 20));
        assert_eq!(version, 0x0001_0002, "{name}: the batmap's version");
        assert!(u64::from(sectors) * SECTOR * 8 >= u64::from(count), "{name}: a batmap of {sectors} sectors");
        let mut map = vec![0; sectors as usize * 512];
        self.file.read_exact_at(&mut map, map_at).unwrap();
        assert_eq!(be32(&head, 24), vhd_sum(&map, None), "{name}: the batmap's checksum");
        Some((head, map))
    }

    /// A set bit says that the block is there with every sector.
    fn check_batmap(&self) {
        let table = self.table.as_ref().unwrap();
        let Some((_, map)) = &table.batmap else { return };
        for n in 0..map.len() * 8 {
            if map[n / 8] >> (7 - n % 8) & 1 == 0 {
                continue;
            }
            let name = self.path.display();
            let entry = table.entries.get(n).copied().unwrap_or(FREE);
            assert_ne!(entry, FREE, "{name}: the batmap has block {n}, the BAT has not");
            let bits = self.bitmap(n);
            let absent = bits.iter().position(|bit| !bit);
            assert_eq!(absent, None, "{name}: the batmap calls block {n} full, a sector of it is not there");
        }
    }

    /// Which sectors of a block are there, as far as the disk goes. The block must not be free.
    fn bitmap(&self, n: usize) -> Vec<bool> {
        let table = self.table.as_ref().unwrap();
        let mut bytes = vec![0; table.bitmap as usize];
        self.file.read_exact_at(&mut bytes, u64::from(table.entries[n]) * SECTOR).unwrap();
        let old = &self.footer[28..32] == b"tap\0" && be32(&self.footer, 32) < 0x0001_0001;
        let sectors = (self.size.saturating_sub(n as u64 * table.block)).min(table.block) / SECTOR;
        let bit = |s: usize| bytes[s / 8] >> (if old { s % 8 } else { 7 - s % 8 }) & 1 == 1;
        (0..sectors as usize).map(bit).collect()
    }

    /// Puts what this file holds over `below`, which is what its parent shows (nothing: `Vec::new()`).
    pub fn over(&self, mut below: Vec<u8>) -> Vec<u8> {
        below.resize(self.size as usize, 0);
        let mut disk = below;
        let Some(table) = &self.table else {
            self.file.read_exact_at(&mut disk, 0).unwrap();
            return disk;
        };
        for n in 0..table.entries.len() {
            if table.entries[n] == FREE {
                continue;
            }
            let bits = self.bitmap(n);
            let data = u64::from(table.entries[n]) * SECTOR + table.bitmap;
            let mut s = 0;
            while s < bits.len() {
                let run = bits[s..].iter().take_while(|bit| **bit == bits[s]).count();
                let at = n as u64 * table.block + s as u64 * SECTOR;
                if bits[s] {
                    let to = &mut disk[at as usize..at as usize + run * 512];
                    self.file.read_exact_at(to, data + s as u64 * SECTOR).unwrap();
                }
                s += run;
            }
        }
        disk
    }

    /// The place of the parent, as the relative locators say: every one must lead to the same file. `None`: no parent.
    pub fn parent(&self) -> Option<PathBuf> {
        if self.kind != 4 {
            return None;
        }
        let name = self.path.display();
        let locators = &self.table.as_ref().unwrap().locators;
        let folder = self.path.parent().unwrap();
        let mut found: Vec<PathBuf> = Vec::new();
        for locator in locators.iter().filter(|locator| locator.is_relative()) {
            let path = locator.in_folder(folder);
            found.push(path.unwrap_or_else(|error| panic!("{name}: {locator:?}: {error}")));
        }
        assert!(!found.is_empty(), "{name}: no relative locator");
        assert!(found.iter().all(|path| *path == found[0]), "{name}: {found:?}");
        for locator in locators.iter().filter(|locator| !locator.is_relative()) {
            let (theirs, ours) = (locator.path(), &found[0]);
            assert_eq!(theirs.file_name(), ours.file_name(), "{name}: {locator:?}");
        }
        let (_, _, unicode) = self.kept().parent.unwrap();
        let unicode = unicode.replace('\\', "/");
        assert_eq!(Path::new(&unicode).file_name(), found[0].file_name(), "{name}: the parent's name");
        Some(found.swap_remove(0))
    }

    /// Which blocks are there: index and sector.
    pub fn blocks(&self) -> Vec<(usize, u32)> {
        let entries = self.table.iter().flat_map(|table| table.entries.iter().copied().enumerate());
        entries.filter(|(_, entry)| *entry != FREE).collect()
    }

    /// Panics unless every block that stands where none of `before` stood has its data on a whole 4 KiB.
    pub fn assert_new_blocks_aligned(&self, before: &[(usize, u32)]) {
        for (n, entry) in self.blocks() {
            let data = u64::from(entry) * SECTOR + self.table.as_ref().unwrap().bitmap;
            let is_old = before.iter().any(|(_, old)| *old == entry);
            assert!(
                is_old || data.is_multiple_of(4096),
                "{}: block {n} has its data at {data}",
                self.path.display()
            );
        }
    }

    /// Where the BAT begins.
    pub fn table_at(&self) -> Option<u64> {
        self.table.as_ref().map(|table| be64(&table.header, 16))
    }

    /// Panics unless the BAT's last sector says "free" where it has no entries.
    pub fn assert_table_padded(&self) {
        let Some(table) = &self.table else { return };
        let entries = table.entries.len() as u64 * 4;
        let mut rest = vec![0; (entries.next_multiple_of(SECTOR) - entries) as usize];
        self.file.read_exact_at(&mut rest, be64(&table.header, 16) + entries).unwrap();
        assert!(rest.iter().all(|byte| *byte == 0xff), "{}: the BAT's padding", self.path.display());
    }

    /// Whether every bit in the bitmaps of this file's blocks is set.
    pub fn bitmaps_are_full(&self) -> bool {
        self.blocks().iter().all(|(n, _)| self.bitmap(*n).iter().all(|bit| *bit))
    }

    /// The locators, in order.
    pub fn locators(&self) -> &[Locator] {
        self.table.as_ref().map_or(&[], |table| &table.locators)
    }

    /// What must be the same after guest data was written.
    pub fn kept(&self) -> Kept {
        let f = &self.footer;
        let table = self.table.as_ref();
        let parent = table.filter(|_| self.kind == 4).map(|table| {
            let units: Vec<u16> = table.header[64..576]
                .chunks_exact(2)
                .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
                .take_while(|unit| *unit != 0)
                .collect();
            (
                table.header[40..56].try_into().unwrap(),
                be32(&table.header, 56),
                String::from_utf16(&units).unwrap(),
            )
        });
        Kept {
            creator: f[28..32].try_into().unwrap(),
            creator_version: be32(f, 32),
            host: f[36..40].try_into().unwrap(),
            features: be32(f, 8),
            sizes: (be64(f, 40), be64(f, 48)),
            geometry: (be16(f, 56), f[58], f[59]),
            id: f[68..84].try_into().unwrap(),
            time: be32(f, 24),
            flags: (f[84], f[85]),
            table: table.map(|table| (table.entries.len() as u32, table.block as u32)),
            parent,
            locators: self.locators().iter().map(|l| (l.code.clone(), l.text.clone())).collect(),
            batmap: table
                .and_then(|table| table.batmap.as_ref())
                .map(|(head, _)| (head[28], head[29..94].to_vec())),
        }
    }
}

/// The whole content of a chain: each file's parent by its locators, its identity checked; a parent that is no VHD is
/// raw, and its child knows no identity of it.
pub fn vhd_content(path: &Path) -> Vec<u8> {
    let vhd = Vhd::open(path);
    let Some(parent) = vhd.parent() else { return vhd.over(Vec::new()) };
    let (wanted, _, _) = vhd.kept().parent.unwrap();
    let below = if is_vhd(&parent) {
        assert_eq!(Vhd::open(&parent).kept().id, wanted, "{}: the parent's id", path.display());
        vhd_content(&parent)
    } else {
        assert_eq!(wanted, [0; 16], "{}: the id of a raw parent", path.display());
        std::fs::read(&parent).unwrap()
    };
    vhd.over(below)
}

/// A footer stands at the end.
fn is_vhd(path: &Path) -> bool {
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    let mut cookie = [0; 8];
    let tail = len.saturating_sub(if len % SECTOR == 511 { 511 } else { 512 });
    file.read_exact_at(&mut cookie, tail).is_ok() && &cookie == b"conectix"
}
