//! Checking and repairing: each rule with its case, random damage, power cuts and failing disks in a repair.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cowhand_core::testing::{Fault, Io, Journal, Plan, Rng, fault_test};
use cowhand_core::{
    CheckOptions, Error, Folder, Format, MemoryFolder, MemoryStorage, Quiet, Repair, Report, Result,
    Severity, Storage,
};

use super::open;
use crate::Vhd;
use crate::footer::checksum;

const BLOCK: u64 = 4096;
const BLOCKS: usize = 16;
const BAT: usize = 1536;

fn check(file: &Arc<dyn Storage>, repair: Repair) -> Result<Report> {
    let how = CheckOptions { repair, ..CheckOptions::default() };
    Vhd.checker().unwrap().check(file.clone(), &cowhand_core::NoFiles, &how, &Quiet)
}

fn memory(bytes: &[u8]) -> Arc<dyn Storage> {
    Arc::new(MemoryStorage::from_bytes(bytes))
}

fn content(file: &Arc<dyn Storage>) -> Vec<u8> {
    let len = file.len().unwrap();
    let mut bytes = vec![0; len as usize];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn sum(bytes: &mut [u8], at: usize, len: usize, own: usize) {
    let part = &mut bytes[at..at + len];
    part[own..own + 4].fill(0);
    let sum = checksum(part, [0; 4]).to_be_bytes();
    part[own..own + 4].copy_from_slice(&sum);
}

/// An image by hand: 16 blocks of 4 KiB in a table of `entries`, of which 0, 1, 2 and 15 are in the file.
#[derive(Clone, Copy, Debug)]
struct Make {
    name: &'static str,
    kind: u8,
    creator: &'static [u8; 4],
    version: u32,
    entries: usize,
    batmap: bool,
    /// What stands between the blocks, and between the last one and the footer.
    gap: usize,
    short: bool,
}

const PLAIN: Make = Make {
    name: "dynamic",
    kind: 3,
    creator: b"cowh",
    version: 1,
    entries: BLOCKS,
    batmap: false,
    gap: 0,
    short: false,
};

const MAKES: [Make; 7] = [
    PLAIN,
    Make { name: "Windows", creator: b"win ", version: 0xa_0000, gap: 3584, ..PLAIN },
    Make { name: "differencing", kind: 4, creator: b"win ", gap: 3584, ..PLAIN },
    Make { name: "XenServer", creator: b"tap\0", version: 0x1_0003, entries: 400, batmap: true, ..PLAIN },
    Make { name: "XenServer's child", kind: 4, creator: b"tap\0", version: 0x1_0003, batmap: true, ..PLAIN },
    Make { name: "first bit first", kind: 4, creator: b"tap\0", version: 1, ..PLAIN },
    Make { name: "511", short: true, ..PLAIN },
];

impl Make {
    fn bat_end(&self) -> usize {
        (BAT + 4 * self.entries).next_multiple_of(512)
    }

    /// Where the batmap's header is.
    fn map(&self) -> usize {
        self.bat_end()
    }

    /// Where the first locator's data is, and behind it the blocks.
    fn locator(&self) -> usize {
        self.bat_end() + if self.batmap { 1024 } else { 0 }
    }

    fn block(&self, index: usize) -> usize {
        self.locator() + 512 + index * (4608 + self.gap)
    }

    fn image(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.block(4)];
        let mut footer = vec![0; 512];
        put(&mut footer, 0, b"conectix");
        put(&mut footer, 8, &[0, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        put(&mut footer, 28, self.creator);
        put(&mut footer, 32, &self.version.to_be_bytes());
        put(&mut footer, 36, b"Wi2k");
        let size = BLOCK * BLOCKS as u64;
        put(&mut footer, 40, &size.to_be_bytes());
        put(&mut footer, 48, &size.to_be_bytes());
        put(&mut footer, 56, &[0, 1, 4, 17]);
        put(&mut footer, 60, &[0, 0, 0, self.kind]);
        put(&mut footer, 68, &[0x5a; 16]);
        sum(&mut footer, 0, 512, 64);
        put(&mut bytes, 0, &footer);
        put(&mut bytes, 512, b"cxsparse");
        put(&mut bytes, 520, &[0xff; 8]);
        put(&mut bytes, 528, &(BAT as u64).to_be_bytes());
        put(&mut bytes, 536, &[0, 1, 0, 0]);
        put(&mut bytes, 540, &(self.entries as u32).to_be_bytes());
        put(&mut bytes, 544, &(BLOCK as u32).to_be_bytes());
        if self.kind == 4 {
            put(&mut bytes, 552, &[0xa5; 16]);
            let path: Vec<u8> = ".\\parent.vhd".encode_utf16().flat_map(u16::to_le_bytes).collect();
            put(&mut bytes, 1088, b"W2ru");
            put(&mut bytes, 1092, &512u32.to_be_bytes());
            put(&mut bytes, 1096, &(path.len() as u32).to_be_bytes());
            put(&mut bytes, 1104, &(self.locator() as u64).to_be_bytes());
            put(&mut bytes, self.locator(), &path);
        }
        sum(&mut bytes, 512, 1024, 36);
        bytes[BAT..self.bat_end()].fill(0xff);
        for (index, block) in [2, 0, 15, 1].into_iter().enumerate() {
            let at = self.block(index);
            put(&mut bytes, BAT + 4 * block, &((at / 512) as u32).to_be_bytes());
            // Block 1 has all its sectors, the others their first three.
            let bits = match (block, self.version == 1 && self.creator == b"tap\0") {
                (1, _) => 0xff,
                (_, false) => 0xe0,
                (_, true) => 0x07,
            };
            bytes[at] = bits;
            let sectors = if block == 1 { 8 } else { 3 };
            bytes[at + 512..at + 512 + 512 * sectors].fill(block as u8 + 1);
        }
        if self.batmap {
            let at = self.map();
            put(&mut bytes, at, b"tdbatmap");
            put(&mut bytes, at + 8, &(at as u64 + 512).to_be_bytes());
            put(&mut bytes, at + 16, &[0, 0, 0, 1, 0, 1, 0, 2]);
            bytes[at + 512] = 0x40;
            put(&mut bytes, at + 24, &(!0x40u32).to_be_bytes());
        }
        bytes.extend_from_slice(&footer[..if self.short { 511 } else { 512 }]);
        bytes
    }
}

/// What a sector of the disk reads.
type Sector = (cowhand_core::Kind, [u8; 512]);

/// Each sector of the disk, alone; `None`: an error.
fn sectors(file: &Arc<dyn Storage>) -> Option<Vec<Option<Sector>>> {
    let layer = open(file.clone()).ok().filter(|layer| layer.size() <= 1 << 20)?;
    let sector = |at| {
        let mut bytes = [0; 512];
        let found = layer.read(at, &mut bytes).ok()?;
        // Where the layer holds nothing, the buffer says nothing.
        if found.kind != cowhand_core::Kind::Data {
            bytes = [0; 512];
        }
        // A block that is not in the file is a hole where one whose bits are 0 reads zero.
        let kind = if layer.parent().is_none() && found.kind != cowhand_core::Kind::Data {
            cowhand_core::Kind::Zero
        } else {
            found.kind
        };
        Some((kind, bytes))
    };
    Some((0..layer.size() / 512).map(|number| sector(number * 512)).collect())
}

/// The guest ranges that a repair says are lost.
fn lost(report: &Report) -> Vec<(u64, u64)> {
    let range = |message: &str| {
        let (range, _) = message.strip_prefix("guest bytes ")?.split_once(" are lost")?;
        let (from, to) = range.split_once(" to ")?;
        Some((from.parse().ok()?, to.parse().ok()?))
    };
    report.faults.iter().filter_map(|fault| range(&fault.message)).collect()
}

/// What is readable before is the same after, but for what is said to be lost.
fn nothing_is_lost(told: &str, before: &Arc<dyn Storage>, after: &Arc<dyn Storage>, report: &Report) {
    let Some(before) = sectors(before) else { return };
    let after = sectors(after).unwrap_or_else(|| panic!("{told}: does not open any more\n{report:#?}"));
    let lost = lost(report);
    for (number, (before, after)) in before.iter().zip(&after).enumerate() {
        let at = number as u64 * 512;
        if before.is_some() && !lost.iter().any(|(from, to)| (*from..=*to).contains(&at)) {
            assert!(before == after, "{told}: guest offset {at} changed\n{report:#?}");
        }
    }
}

#[test]
fn good_images_of_every_layout_are_clean() {
    for make in MAKES {
        let bytes = make.image();
        let file = memory(&bytes);
        let report = check(&file, Repair::Nothing).unwrap();
        let notes = usize::from(make.short);
        assert!(report.is_clean() && report.faults.len() == notes, "{}: {:#?}", make.name, report.faults);
        let counts = (report.total_units, report.allocated_units, report.fragmented_units);
        // In the order of the disk: 0, 1, 2, 15, which stand as 2, 0, 15, 1.
        let fragmented = 3;
        assert_eq!(counts, (Some(16), Some(4), Some(fragmented)), "{}", make.name);
        assert_eq!(report.image_end, Some(bytes.len() as u64), "{}", make.name);
        check(&file, Repair::All).unwrap();
        let mut expected = bytes.clone();
        expected.resize(bytes.len().next_multiple_of(512), 0);
        assert!(content(&file) == expected, "{}: a repair changed what is good", make.name);
    }
}

type Damage = Box<dyn Fn(&mut Vec<u8>)>;

struct Case {
    make: Make,
    damage: Damage,
    /// Corruptions and leaks.
    counts: (u64, u64),
    /// What a message must say.
    says: &'static str,
    /// Whether a repair makes it clean.
    mended: bool,
}

fn case(
    make: Make,
    counts: (u64, u64),
    says: &'static str,
    mended: bool,
    damage: impl Fn(&mut Vec<u8>) + 'static,
) -> Case {
    Case { make, damage: Box::new(damage), counts, says, mended }
}

/// Both footers, or only one.
fn footers(bytes: &mut Vec<u8>, front: bool, end: bool, change: impl Fn(&mut Vec<u8>, usize)) {
    let last = bytes.len() - 512;
    for at in [Some(0).filter(|_| front), Some(last).filter(|_| end)].into_iter().flatten() {
        change(bytes, at);
        sum(bytes, at, 512, 64);
    }
}

fn header(bytes: &mut [u8], at: usize, value: &[u8]) {
    put(bytes, 512 + at, value);
    sum(bytes, 512, 1024, 36);
}

fn entry(bytes: &mut [u8], block: usize, sector: usize) {
    put(bytes, BAT + 4 * block, &(sector as u32).to_be_bytes());
}

fn cases() -> Vec<Case> {
    let [plain, windows, child, xen, xen_child, ..] = MAKES;
    let unmended = false;
    let mended = true;
    let at = |make: Make, index: usize| make.block(index) / 512;
    vec![
        // Footers.
        case(plain, (1, 0), "the footer at the end has a wrong checksum", mended, |b| {
            let end = b.len() - 512;
            b[end + 100] ^= 1;
        }),
        case(plain, (1, 0), "copy at the front has a wrong checksum", mended, |b| b[100] ^= 1),
        case(windows, (1, 0), "no footer stands at the end", mended, |b| b.truncate(b.len() - 512)),
        case(windows, (1, 0), "no footer stands at the end", mended, |b| b.truncate(b.len() - 4096 + 7)),
        case(plain, (1, 0), "the footer's copy at the front is not there", mended, |b| b[..512].fill(0)),
        case(plain, (0, 0), "is not the same as the footer at the end", mended, |b| {
            footers(b, false, true, |b, at| b[at + 85] = 1);
        }),
        case(plain, (1, 1), "describe different disks", unmended, |b| {
            footers(b, false, true, |b, at| {
                b[at + 68] ^= 1;
                put(b, at + 53, &[0, 0xf0]);
            });
        }),
        case(plain, (1, 0), "no good copy is left", unmended, |b| {
            let end = b.len() - 512;
            b[100] ^= 1;
            b[end + 100] ^= 1;
        }),
        case(plain, (0, 0), "made in the future", unmended, |b| {
            footers(b, true, true, |b, at| put(b, at + 24, &[0xf0; 4]));
        }),
        case(plain, (0, 0), "the features are 0x0", unmended, |b| {
            footers(b, true, true, |b, at| b[at + 11] = 0);
        }),
        case(plain, (0, 0), "larger than that of the disk's size", unmended, |b| {
            footers(b, true, true, |b, at| b[at + 57] = 9);
        }),
        case(plain, (0, 0), "", mended, |b| {
            footers(b, true, true, |b, at| put(b, at + 56, &[0xff, 0xff, 16, 255]));
        }),
        case(plain, (1, 0), "which is meant depends on the reader", unmended, |b| {
            // The size by its geometry is larger than the table.
            header(b, 28, &[0, 0, 0, 100]);
            footers(b, true, true, |b, at| {
                put(b, at + 28, b"vpc ");
                b[at + 57] = 3;
            });
        }),
        case(plain, (1, 0), "no multiple of 512", unmended, |b| {
            footers(b, true, true, |b, at| b[at + 55] = 1);
        }),
        // The header.
        case(plain, (1, 0), "which byte of it changed nobody can say", unmended, |b| b[512 + 1000] ^= 1),
        case(plain, (2, 0), "block size at offset 544", unmended, |b| b[544] = 1),
        case(plain, (1, 0), "do not cover the disk's", unmended, |b| header(b, 28, &[0, 0, 0, 15])),
        case(plain, (0, 0), "has no parent, and its header names one", unmended, |b| header(b, 40, &[1])),
        // The table.
        case(
            plain,
            (1, 0),
            "guest bytes 20480 to 24575) puts block 5 at 0..4608, over the footer's copy",
            mended,
            |b| {
                entry(b, 5, 0);
            },
        ),
        case(plain, (1, 0), "over the dynamic header", mended, |b| entry(b, 5, 2)),
        case(plain, (1, 0), "over the table", mended, |b| entry(b, 5, 3)),
        case(plain, (1, 0), "past the file's end", mended, |b| entry(b, 5, 0xffff_fffe)),
        case(plain, (1, 1), "past the file's end", mended, |b| entry(b, 1, 0xffff_fffe)),
        case(plain, (1, 0), "the blocks' room ends at", mended, move |b| entry(b, 5, at(plain, 4))),
        case(plain, (2, 0), "the blocks' room ends at", mended, |b| b.truncate(b.len() - 512 - 1000)),
        case(plain, (2, 0), "the blocks' room ends at", mended, |b| b.truncate(b.len() - 512 - 4500)),
        case(plain, (1, 0), "block 5 (guest bytes 20480 to 24575) share bytes", mended, move |b| {
            entry(b, 5, at(plain, 0));
        }),
        case(plain, (2, 0), "share bytes", mended, move |b| entry(b, 5, at(plain, 1) - 3)),
        case(child, (1, 0), "share bytes", mended, move |b| entry(b, 9, at(child, 3))),
        case(child, (1, 0), "the path of parent locator 1 and block 9", unmended, move |b| {
            // Each has its own place then, and where the block was is a gap that only compacting gives back.
            let copy = at(child, 0) - 1;
            entry(b, 2, 0xffff_ffff);
            entry(b, 9, copy);
        }),
        case(xen, (0, 2), "the table gives room to block 300", mended, move |b| {
            entry(b, 300, at(xen, 0));
            entry(b, 301, 1 << 20);
        }),
        case(plain, (0, 3), "17408 bytes at 20992 are used by nothing", mended, |b| {
            let footer = b.split_off(b.len() - 512);
            b.resize(b.len() + 13824 + 3584, 0);
            b.extend(footer);
        }),
        case(plain, (0, 3), "no footer stands at the end", mended, |b| {
            let end = b.len() - 512;
            b[end..].fill(0);
            b.resize(end + 4 * 4096, 0);
        }),
        case(plain, (0, 1), "making the image compact", unmended, |b| {
            let first = b.split_off(PLAIN.block(0));
            b.resize(b.len() + 8192, 0);
            b.extend(first);
            for block in [0, 1, 2, 15] {
                let at = BAT + 4 * block + 2;
                let sector = u16::from_be_bytes([b[at], b[at + 1]]) + 16;
                put(b, at, &sector.to_be_bytes());
            }
        }),
        // The batmap.
        case(xen, (1, 0), "the batmap's checksum is", mended, move |b| b[xen.map() + 24] ^= 1),
        case(xen, (2, 0), "calls block 2 full, and its bitmap does not", mended, move |b| {
            b[xen.map() + 512] |= 0x20;
        }),
        case(xen_child, (2, 0), "calls block 9 full, and it is not in the file", mended, move |b| {
            b[xen_child.map() + 513] |= 0x40;
        }),
        case(xen, (0, 0), "", mended, move |b| {
            b[xen.map() + 512] = 0;
            put(b, xen.map() + 24, &[0xff; 4]);
        }),
        case(xen, (1, 0), "where it cannot", unmended, move |b| b[xen.map() + 8] = 1),
        case(xen, (1, 0), "where it cannot", unmended, move |b| b[xen.map() + 19] = 0),
        case(xen, (0, 0), "version 0x10003 is not known", unmended, move |b| b[xen.map() + 23] = 3),
        case(
            xen,
            (1, 0),
            "the batmap's header and the path of parent locator 1 share bytes",
            unmended,
            move |b| {
                header(b, 576, b"W2ru");
                header(b, 584, &[0, 0, 0, 8]);
                header(b, 592, &(xen.map() as u64).to_be_bytes());
            },
        ),
        // The parent.
        case(child, (2, 0), "parent locator 1 at offset 1088: has its 24 bytes", unmended, |b| {
            header(b, 592, &[1])
        }),
        case(child, (2, 0), "no path is longer", unmended, |b| header(b, 584, &[1])),
        case(child, (1, 0), "nothing says where", unmended, |b| header(b, 584, &[0; 4])),
        case(child, (0, 0), "the parent's id is zero", unmended, |b| header(b, 40, &[0; 16])),
        case(child, (1, 0), "the parent's id is the disk's own", unmended, |b| header(b, 40, &[0x5a; 16])),
        case(child, (0, 0), "code \"Zzzz\", which is not known", unmended, |b| header(b, 600, b"Zzzz")),
        case(child, (0, 0), "cannot be decoded", unmended, move |b| put(b, child.locator() + 4, &[0, 0xd8])),
    ]
}

#[test]
fn each_rule_has_its_case() {
    for (number, case) in cases().into_iter().enumerate() {
        let told = format!("case {number}, {}, {:?}", case.make.name, case.says);
        let mut bytes = case.make.image();
        (case.damage)(&mut bytes);
        let file = memory(&bytes);
        let report = check(&file, Repair::Nothing).unwrap_or_else(|error| panic!("{told}: {error}"));
        assert!(content(&file) == bytes, "{told}: a check changed the image");
        assert_eq!((report.corruptions, report.leaks), case.counts, "{told}: {:#?}", report.faults);
        assert!(
            case.says.is_empty() && report.faults.is_empty()
                || report.faults.iter().any(|fault| fault.message.contains(case.says)),
            "{told}: {:#?}",
            report.faults
        );

        // Only what is lost space is touched by a repair of leaks.
        let leaks = memory(&bytes);
        let after = check(&leaks, Repair::Leaks).unwrap();
        assert!(after.corruptions == report.corruptions && after.leaks <= report.leaks, "{told}: {after:#?}");
        if report.corruptions > 0 {
            assert!(content(&leaks) == bytes, "{told}: a repair of leaks changed a damaged image");
        }
        nothing_is_lost(&told, &file, &leaks, &after);

        let mended = memory(&bytes);
        let after = check(&mended, Repair::All).unwrap();
        let again = check(&mended, Repair::Nothing).unwrap();
        assert_eq!(
            (again.corruptions, again.leaks, again.check_errors),
            (after.corruptions, after.leaks, after.check_errors),
            "{told}"
        );
        let worth_a_word = report.faults.iter().all(|fault| fault.severity == Severity::Note);
        assert_eq!(after.is_clean(), case.mended || worth_a_word, "{told}: {:#?}", after.faults);
        if case.mended {
            assert!(again.faults.is_empty(), "{told}: {:#?}", again.faults);
            assert_eq!(
                (after.corruptions_fixed, after.leaks_fixed >= case.counts.1),
                (case.counts.0, true),
                "{told}"
            );
        }
        nothing_is_lost(&told, &file, &mended, &after);
    }
}

/// Any few words of metadata may be anything, and the file may be cut: a check ends and changes nothing; a repair loses
/// nothing that was readable, but what it names, and what it then calls clean is.
#[test]
fn any_damage_is_found_and_what_is_repaired_is_right() {
    let rounds: u64 = std::env::var("COWHAND_CHECK_ROUNDS").map_or(150, |text| text.parse().unwrap());
    let (mut clean, mut faulty) = (0, 0);
    for make in MAKES {
        let good = make.image();
        let end = good.len() - 512;
        let places: Vec<usize> = [0, end]
            .into_iter()
            .flat_map(|at| [at + 16, at + 28, at + 44, at + 48, at + 52, at + 56, at + 60, at + 64])
            .chain([512 + 16, 512 + 20, 512 + 28, 512 + 32, 512 + 36, 1088, 1092, 1096, 1104, 1108])
            .chain((BAT..BAT + 64).step_by(4).chain((BAT..BAT + 64).step_by(4)))
            .chain((make.map()..make.map() + 28).step_by(4))
            .chain([make.map() + 512, make.block(0), make.block(1), make.block(2)])
            .collect();
        for round in 0..rounds {
            let told = format!("{}, round {round}", make.name);
            let mut rng = Rng::new(round.wrapping_mul(977) ^ make.name.len() as u64);
            let mut bytes = good.clone();
            for _ in 0..1 + rng.below(4) {
                let at = places[rng.below(places.len() as u64) as usize];
                if at + 4 > bytes.len() {
                    continue;
                }
                let old = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
                let new = match rng.below(6) {
                    0 => 0,
                    1 => u32::MAX,
                    2 => old ^ 1 << rng.below(32),
                    3 => old.wrapping_add(rng.below(9) as u32).wrapping_sub(4),
                    4 => rng.below(bytes.len() as u64 / 512 + 2) as u32,
                    _ => rng.any() as u32,
                };
                put(&mut bytes, at, &new.to_be_bytes());
            }
            match rng.below(8) {
                0 => bytes.truncate(bytes.len() - rng.below(6000) as usize),
                1 => bytes.resize(bytes.len() + rng.below(20_000) as usize, 0x77),
                _ => {}
            }
            // Mostly behind good checksums.
            if rng.below(8) != 0 {
                sum(&mut bytes, 512, 1024, 36);
                sum(&mut bytes, 0, 512, 64);
                let last = bytes.len() - 512;
                if bytes[last..].starts_with(b"conectix") {
                    sum(&mut bytes, last, 512, 64);
                }
            }
            let file = memory(&bytes);
            let since = Instant::now();
            let Ok(first) = check(&file, Repair::Nothing) else { continue };
            assert!(content(&file) == bytes, "{told}: a check changed the image");
            let mended = memory(&bytes);
            let report = check(&mended, Repair::All).unwrap();
            assert!(since.elapsed() < Duration::from_secs(2), "{told}: {:?}", since.elapsed());
            let again = check(&mended, Repair::Nothing).unwrap();
            assert_eq!(
                (again.corruptions, again.leaks, again.check_errors),
                (report.corruptions, report.leaks, report.check_errors),
                "{told}: {first:#?}"
            );
            let worse = report.corruptions > first.corruptions || report.check_errors > first.check_errors;
            assert!(!worse, "{told}: {first:#?}\n{report:#?}");
            nothing_is_lost(&told, &file, &mended, &report);
            faulty += u64::from(!first.is_clean());
            if report.is_clean() {
                clean += 1;
                let read = sectors(&mended).unwrap_or_else(|| panic!("{told}: clean, and does not open"));
                assert!(read.iter().all(Option::is_some), "{told}: clean, and not readable\n{report:#?}");
            }
        }
    }
    assert!(faulty > rounds && clean > rounds, "{faulty} {clean}");
}

/// Images with damage that a repair takes long ways to put right.
fn damaged() -> Vec<(&'static str, Vec<u8>)> {
    let all = cases();
    let with = |told, says: &[&str]| {
        let mut bytes = Vec::new();
        for says in says {
            let case = all.iter().find(|case| case.says.contains(says)).unwrap();
            if bytes.is_empty() {
                bytes = case.make.image();
            }
            (case.damage)(&mut bytes);
        }
        (told, bytes)
    };
    vec![
        with("bad end", &["the footer at the end has a wrong"]),
        with("no front", &["copy at the front is not there"]),
        with("footers differ", &["is not the same as"]),
        with("no end", &["no footer stands at the end"]),
        with("entries", &["over the dynamic header", "puts block 5 at 0"]),
        with("shared", &["block 5 (guest bytes 20480 to 24575) share bytes", "the footer at the end has a"]),
        with("shared twice", &["share bytes"]),
        with("beyond", &["the table gives room to block 300", "calls block 2 full"]),
        with("unused", &["17408 bytes at 20992"]),
        ("cut", {
            let mut bytes = PLAIN.image();
            bytes.truncate(bytes.len() - 512 - 1000);
            bytes
        }),
        ("cut within", {
            // The footer was put over the last block's end.
            let mut bytes = PLAIN.image();
            let footer = bytes.split_off(bytes.len() - 512);
            bytes.truncate(bytes.len() - 1024);
            bytes.extend(footer);
            bytes
        }),
    ]
}

/// The power goes at any moment of a repair: what was readable is, and running it again ends as it would have.
#[test]
fn a_power_cut_in_a_repair_leaves_nothing_worse() {
    for (name, bytes) in damaged() {
        let before = memory(&bytes);
        let folder = MemoryFolder::new();
        folder.insert("disk", Arc::new(MemoryStorage::from_bytes(&bytes)));
        let journal = Journal::over(&folder);
        let file = journal.folder().open("disk", true).unwrap();
        let whole = check(&file, Repair::All).unwrap();
        assert!(whole.is_clean(), "{name}: {:#?}", whole.faults);
        drop(file);
        let plan = Plan { random: 20, exhaustive: 8, max_states: 400, ..Plan::default() };
        let mut seen = 0;
        for state in journal.states(&plan) {
            let told = format!("{name}, {state}");
            let file = state.folder().open("disk", true).unwrap();
            nothing_is_lost(&told, &before, &file, &whole);
            let after = check(&file, Repair::All).unwrap();
            assert!(after.is_clean(), "{told}: {:#?}", after.faults);
            nothing_is_lost(&told, &before, &file, &whole);
            seen += 1;
        }
        assert!(seen > 0, "{name}");
    }
}

/// Any input or output of a repair fails: it says so, nothing readable is lost, and the next repair ends clean.
#[test]
fn a_failing_disk_in_a_repair_leaves_nothing_worse() {
    for (name, bytes) in damaged() {
        let before = memory(&bytes);
        let whole = check(&memory(&bytes), Repair::All).unwrap();
        for fault in [Fault::EIO, Fault::EIO.forever(), Fault::EIO.only(&[Io::Write]).torn()] {
            fault_test(
                fault,
                || Arc::new(MemoryStorage::from_bytes(&bytes)),
                |file, faults| {
                    let file: Arc<dyn Storage> = faults.storage(file.clone());
                    match check(&file, Repair::All)?.check_errors {
                        0 => Ok(()),
                        _ => Err(Error::invalid("something could not be looked at")),
                    }
                },
                |file, _| {
                    let file: Arc<dyn Storage> = file.clone();
                    let after = check(&file, Repair::All)?;
                    assert!(after.is_clean(), "{name}: {:#?}", after.faults);
                    nothing_is_lost(name, &before, &file, &whole);
                    Ok(())
                },
            )
            .unwrap_or_else(|failure| panic!("{name}: {failure}"));
        }
    }
}
