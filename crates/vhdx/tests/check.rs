//! Checking and repairing: each rule with its case, random damage, power cuts and failing disks in a repair.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{BAT_AT, BLOCKS_AT, Build, DATA_WRITE, FULL, LINKAGE, METADATA_AT, MIB, PARTIAL, ZERO, sealed};
use cowhand_core::testing::{Fault, Io, Journal, Plan, Rng, fault_test};
use cowhand_core::{
    CheckOptions, Error, Folder, Format, Kind, MemoryFolder, MemoryStorage, NoFiles, Quiet, Repair, Report,
    Result, Severity, Storage,
};
use cowhand_vhdx::Vhdx;

const PARENT: &[(&str, &str)] = &[("parent_linkage", LINKAGE), ("relative_path", "p.vhdx")];
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const TABLES: [u64; 2] = [192 << 10, 256 << 10];
const UNMAPPED: u64 = 3;

fn check(file: &Arc<dyn Storage>, repair: Repair) -> Result<Report> {
    let how = CheckOptions { repair, ..CheckOptions::default() };
    Vhdx.checker().unwrap().check(file.clone(), &NoFiles, &how, &Quiet)
}

/// What sort of image it is: eight blocks, of the last of which the disk has half. Blocks 0, 2 and 7 are in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Make {
    name: &'static str,
    block: u64,
    sector: u64,
    child: bool,
    fixed: bool,
    /// The first block; those after it stand behind.
    first: u64,
}

const PLAIN: Make = Make { name: "dynamic", block: MIB, sector: 512, child: false, fixed: false, first: 0 };
const MAKES: [Make; 6] = [
    PLAIN,
    Make { name: "4096", sector: 4096, block: 2 * MIB, ..PLAIN },
    Make { name: "fixed", fixed: true, ..PLAIN },
    Make { name: "child", child: true, ..PLAIN },
    Make { name: "4096 child", child: true, sector: 4096, ..PLAIN },
    // Its blocks are of two chunks.
    Make { name: "large child", child: true, block: 256 * MIB, first: 12, ..PLAIN },
];

impl Make {
    fn block_at(&self, number: u64) -> u64 {
        self.first + number
    }

    fn size(&self) -> u64 {
        self.block_at(8) * self.block - self.block / 2
    }

    /// The file offset of the n-th of the blocks that are in the file.
    fn place(&self, number: u64) -> u64 {
        BLOCKS_AT + number * self.block
    }

    fn build(&self) -> Build {
        let mut build = Build::new(self.size(), self.block, self.sector, self.child.then_some(PARENT));
        if self.fixed {
            put(&build, METADATA_AT + (64 << 10) + 4, &[1]);
        }
        // As the format wants them marked.
        for item in 1..5 {
            put(&build, METADATA_AT + 32 + 32 * item + 24, &[6]);
        }
        for number in [2, 0, 7] {
            let at = build.room(self.block);
            let partial = self.child && number != 2;
            build.set(self.block_at(number), at | if partial { PARTIAL } else { FULL });
            for within in self.within() {
                put(&build, at + within, &[number as u8 + 1; 100]);
            }
        }
        if !self.fixed {
            build.set(self.block_at(1), ZERO);
        }
        if self.child {
            for number in [0, 7] {
                let at = build.room(MIB);
                let block = self.block_at(number);
                if number == 7 && block / build.ratio() == self.block_at(0) / build.ratio() {
                    build.end -= MIB;
                    build.file.set_len(build.end).unwrap();
                    self.present(&build, at - MIB, block);
                    continue;
                }
                build.set_bitmap(block, at | FULL);
                self.present(&build, at, block);
            }
        }
        build
    }

    /// Sets the bits of those sectors of a block that were written.
    fn present(&self, build: &Build, bitmap: u64, block: u64) {
        for within in self.within() {
            let bit = (block % build.ratio() * self.block + within) / self.sector;
            let mut byte = [0];
            build.file.read_at(bitmap + bit / 8, &mut byte).unwrap();
            put(build, bitmap + bit / 8, &[byte[0] | 1 << (bit % 8)]);
        }
    }

    /// Where in a block something is written, and read.
    fn within(&self) -> [u64; 5] {
        let sector = self.sector;
        [0, sector, 2 * sector, self.block / 2 - sector, self.block - sector]
    }
}

fn put(build: &Build, at: u64, bytes: &[u8]) {
    build.file.write_at(at, bytes).unwrap();
}

fn get(file: &MemoryStorage, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_at(at, &mut bytes).unwrap();
    bytes
}

/// Changes a structure that has a checksum, and sets that right.
fn patch(build: &Build, at: u64, len: usize, change: impl FnOnce(&mut [u8])) {
    let mut bytes = get(&build.file, at, len);
    change(&mut bytes);
    put(build, at, &sealed(bytes));
}

fn headers(build: &Build, change: impl Fn(&mut [u8])) {
    HEADERS.into_iter().for_each(|at| patch(build, at, 4096, &change));
}

fn tables(build: &Build, change: impl Fn(&mut [u8])) {
    TABLES.into_iter().for_each(|at| patch(build, at, 65536, &change));
}

/// Makes the log pending, with these sectors; it takes a file of `len` bytes for granted.
fn pending(build: &Build, sectors: &[(u64, [u8; 4096])], len: u64) {
    let mut entry = b"loge\0\0\0\0".to_vec();
    entry.extend((4096 * (1 + sectors.len() as u32)).to_le_bytes());
    entry.extend(0u32.to_le_bytes());
    entry.extend(1u64.to_le_bytes());
    entry.extend((sectors.len() as u32).to_le_bytes());
    entry.extend([0; 4]);
    entry.extend([8; 16]);
    entry.extend(len.to_le_bytes());
    entry.extend(len.to_le_bytes());
    for (at, sector) in sectors {
        entry.extend(b"desc");
        entry.extend(&sector[4092..]);
        entry.extend(&sector[..8]);
        entry.extend(at.to_le_bytes());
        entry.extend(1u64.to_le_bytes());
    }
    entry.resize(4096, 0);
    for (_, sector) in sectors {
        entry.extend(b"data\0\0\0\0");
        entry.extend(&sector[8..4092]);
        entry.extend(1u32.to_le_bytes());
    }
    put(build, MIB, &sealed(entry));
    headers(build, |header| header[48..64].fill(8));
}

/// What a sector of the disk reads; an error is `None`.
type Sector = Option<(Kind, Vec<u8>)>;

/// Some sectors of each block, by their guest offset; `None`: it does not open.
fn sectors(file: &Arc<dyn Storage>) -> Option<Vec<(u64, Sector)>> {
    let layer = common::open(file.clone()).ok()?;
    let unit = u64::from(layer.sector());
    let block = layer.details().cluster_size.unwrap();
    if layer.size() > 10 << 30 {
        return None;
    }
    let offsets = [0, unit, 2 * unit, 3 * unit, block / 2 - unit, block / 2, block - unit];
    let all = (0..layer.size().div_ceil(block)).flat_map(|number| offsets.map(|at| number * block + at));
    let read = |at| {
        let mut bytes = vec![0; unit as usize];
        let found = layer.read(at, &mut bytes).ok()?;
        // Where the layer holds nothing, the buffer says nothing.
        if found.kind != Kind::Data {
            bytes.fill(0);
        }
        // What a disk without a parent does not have reads zero.
        let nothing = layer.parent().is_none() || found.kind == Kind::Data && cowhand_core::is_zero(&bytes);
        let kind = if nothing && found.kind == Kind::Hole { Kind::Zero } else { found.kind };
        Some((kind, bytes))
    };
    Some(all.filter(|at| *at < layer.size()).map(|at| (at, read(at))).collect())
}

/// The guest ranges that a repair says are lost, or perhaps.
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
    for ((at, before), (_, after)) in before.iter().zip(&after) {
        if before.is_some() && !lost.iter().any(|(from, to)| (from..=to).contains(&at)) {
            assert!(before == after, "{told}: guest offset {at} changed\n{report:#?}");
        }
    }
}

fn storage(file: &MemoryStorage) -> Arc<dyn Storage> {
    Arc::new(file.snapshot())
}

fn counts(report: &Report) -> (u64, u64, u64) {
    (report.corruptions, report.leaks, report.check_errors)
}

#[test]
fn good_images_of_every_layout_are_clean() {
    for make in MAKES {
        let build = make.build();
        let file: Arc<dyn Storage> = build.file.clone();
        let report = check(&file, Repair::Nothing).unwrap();
        let notes = usize::from(make.fixed);
        assert!(report.is_clean() && report.faults.len() == notes, "{}: {:#?}", make.name, report.faults);
        let counts = (report.total_units, report.allocated_units, report.fragmented_units);
        // In the order of the disk: 0, 2, 7, which stand as 2, 0, 7.
        assert_eq!(counts, (Some(make.block_at(8)), Some(3), Some(2)), "{}", make.name);
        assert_eq!(report.image_end, Some(build.end), "{}", make.name);
        let before = build.file.snapshot();
        check(&file, Repair::All).unwrap();
        assert!(build.file.same_bytes(&before), "{}: a repair changed what is good", make.name);
    }
}

type Damage = Box<dyn Fn(&mut Build)>;

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
    damage: impl Fn(&mut Build) + 'static,
) -> Case {
    Case { make, damage: Box::new(damage), counts, says, mended }
}

/// Adds a region.
fn region(table: &mut [u8], at: u64, required: u8) {
    table[8] = 3;
    table[80..96].fill(9);
    table[96..104].copy_from_slice(&at.to_le_bytes());
    table[104..108].copy_from_slice(&(MIB as u32).to_le_bytes());
    table[108] = required;
}

fn cases() -> Vec<Case> {
    let [plain, large, fixed, child, _, chunks] = MAKES;
    let (mended, unmended) = (true, false);
    let items = METADATA_AT + (64 << 10);
    vec![
        // The front.
        case(plain, (1, 0), "does not begin with 'vhdxfile'", mended, |b| put(b, 3, b"X")),
        case(plain, (1, 0), "header 1 has a wrong signature or checksum", mended, |b| {
            put(b, HEADERS[0] + 9, &[1])
        }),
        case(plain, (1, 0), "header 2 has a wrong signature or checksum", mended, |b| {
            put(b, HEADERS[1], &[0; 512])
        }),
        case(plain, (1, 0), "neither copy has a right signature", unmended, |b| {
            HEADERS.into_iter().for_each(|at| put(b, at + 99, &[1]));
        }),
        case(plain, (1, 0), "which is of no consequence", mended, |b| {
            patch(b, HEADERS[1], 4096, |header| {
                header[8] = 4;
                header[16] = 9;
            });
        }),
        case(plain, (1, 0), "nobody can tell which is right", unmended, |b| {
            patch(b, HEADERS[1], 4096, |header| {
                header[8] = 4;
                header[32] = 9;
            });
        }),
        case(plain, (0, 0), "one of the last sequence numbers", mended, |b| {
            patch(b, HEADERS[0], 4096, |header| header[8..16].fill(0xff));
        }),
        case(plain, (1, 0), "does not stand on whole MiB", unmended, |b| headers(b, |header| header[73] = 1)),
        case(plain, (0, 0), "the data write GUID is zero", unmended, |b| {
            headers(b, |header| header[32..48].fill(0))
        }),
        // The log.
        case(plain, (1, 0), "is pending, and nothing in it is whole", mended, |b| {
            headers(b, |header| header[48] = 1)
        }),
        case(plain, (1, 0), "this one has", mended, |b| pending(b, &[], b.end + MIB)),
        case(plain, (0, 0), "the log is pending: it changes 1 sector of metadata", mended, |b| {
            let mut table: [u8; 4096] = get(&b.file, BAT_AT, 4096).try_into().unwrap();
            table[8..16].fill(0);
            pending(b, &[(BAT_AT, table)], b.end);
        }),
        case(plain, (1, 0), "would change the headers", unmended, |b| {
            pending(b, &[(4096, [1; 4096])], b.end)
        }),
        case(plain, (2, 0), "puts block 3 at 67108864, past the end of the file", mended, |b| {
            let mut table: [u8; 4096] = get(&b.file, BAT_AT, 4096).try_into().unwrap();
            table[24..32].copy_from_slice(&((64 * MIB) | FULL).to_le_bytes());
            pending(b, &[(BAT_AT, table)], b.end);
            put(b, HEADERS[1], &[1]);
        }),
        // The regions.
        case(plain, (1, 0), "region table 1 has a wrong", mended, |b| put(b, TABLES[0] + 65535, &[1])),
        case(plain, (1, 0), "region table 2 has a wrong", mended, |b| put(b, TABLES[1], &[1])),
        case(plain, (1, 0), "neither region table", unmended, |b| {
            TABLES.into_iter().for_each(|at| put(b, at + 99, &[1]));
        }),
        case(plain, (1, 0), "the region tables do not say the same", mended, |b| {
            patch(b, TABLES[1], 65536, |table| table[44] = 0);
        }),
        case(plain, (1, 0), "what the second table says can be", mended, |b| {
            patch(b, TABLES[0], 65536, |table| table[34] = 0);
        }),
        case(plain, (1, 0), "overlap", unmended, |b| tables(b, |table| region(table, BAT_AT, 0))),
        case(plain, (0, 0), "not marked as required", unmended, |b| tables(b, |table| table[44] = 0)),
        case(plain, (0, 0), "which is not known", unmended, |b| {
            let at = b.room(MIB);
            tables(b, |table| region(table, at, 0));
        }),
        // The metadata.
        case(plain, (1, 0), "metadata table at offset 2097152: has no signature", unmended, |b| {
            put(b, METADATA_AT, &[0])
        }),
        case(plain, (1, 0), "is there twice", unmended, |b| {
            put(b, METADATA_AT + 10, &[6]);
            let first = get(&b.file, METADATA_AT + 32, 32);
            put(b, METADATA_AT + 32 + 5 * 32, &first);
        }),
        case(plain, (1, 0), "cannot lie there", unmended, |b| put(b, METADATA_AT + 32 + 17, &[0, 0])),
        case(plain, (1, 0), "share bytes", unmended, move |b| {
            // The physical sector size stands where the logical one does, and is that.
            put(b, METADATA_AT + 32 + 4 * 32 + 16, &[32]);
        }),
        case(plain, (0, 0), "is marked as 0x4; the format wants 0x6", unmended, |b| {
            put(b, METADATA_AT + 64 + 24, &[4])
        }),
        case(plain, (1, 0), "the block size", unmended, move |b| put(b, items, &[1])),
        case(plain, (1, 0), "too few for the disk's", unmended, move |b| put(b, items + 8 + 5, &[1])),
        case(plain, (0, 0), "the virtual disk's id is zero", unmended, move |b| put(b, items + 16, &[0; 16])),
        case(plain, (1, 0), "parent locator", unmended, move |b| put(b, items + 4, &[2])),
        case(child, (0, 0), "its metadata names one", unmended, move |b| {
            put(b, items + 4, &[0]);
            put(b, BAT_AT + 8 * 4096, &[0; 8]);
            for (block, place) in [(0, child.place(1)), (7, child.place(2)), (3, child_bitmap())] {
                b.set(block, place | FULL);
            }
        }),
        case(child, (0, 0), "is marked as fixed, which means nothing", unmended, move |b| {
            put(b, items + 4, &[3])
        }),
        case(child, (0, 0), "the parent's id is the disk's own", unmended, |b| {
            let id = get(&b.file, HEADERS[0] + 32, 16);
            assert_eq!(id, DATA_WRITE);
            let own: Vec<u8> =
                "07070707-0707-0707-0707-070707070707".encode_utf16().flat_map(u16::to_le_bytes).collect();
            let at = METADATA_AT + (64 << 10) + 40 + 20 + 24 + 28;
            put(b, at + 2, &own);
        }),
        // The BAT.
        case(
            plain,
            (1, 0),
            "(guest bytes 3145728 to 4194303) puts block 3 at 67108864, past the end",
            mended,
            |b| {
                b.set(3, (64 * MIB) | FULL);
            },
        ),
        case(plain, (1, 1), "puts block 7 at 67108864, past the end", mended, |b| {
            b.set(7, (64 * MIB) | FULL);
        }),
        case(plain, (1, 0), "puts block 3 at 0..1048576, over the header section", mended, |b| {
            b.set(3, FULL)
        }),
        case(plain, (1, 0), "over the log", mended, |b| b.set(3, MIB | FULL)),
        case(fixed, (1, 0), "over the metadata region", mended, |b| b.set(3, METADATA_AT | FULL)),
        case(large, (1, 0), "over the BAT region", mended, |b| b.set(3, BAT_AT | FULL)),
        case(plain, (1, 0), "gives block 3 the state 4", mended, |b| b.set(3, 4)),
        case(plain, (1, 0), "gives block 0 the state 4", mended, |b| {
            b.set(0, PLAIN.place(1) | 4);
        }),
        case(plain, (1, 0), "has reserved bits set", mended, |b| b.set(0, PLAIN.place(1) | FULL | 1 << 19)),
        case(plain, (1, 0), "has reserved bits set", mended, |b| b.set(3, (90 * MIB) | FULL | 8)),
        case(plain, (1, 0), "has reserved bits set", mended, |b| b.set(3, (90 * MIB) | 8)),
        case(plain, (1, 0), "and there is no parent", mended, |b| b.set(0, PLAIN.place(1) | PARTIAL)),
        case(plain, (0, 0), "as drafts of the format had it", unmended, |b| b.set(3, 5)),
        case(plain, (1, 0), "and the file ends at", mended, |b| {
            b.file.set_len(b.end - MIB / 2 - 1000).unwrap()
        }),
        case(large, (2, 0), "and the file ends at", mended, |b| b.file.set_len(b.end - 3 * MIB).unwrap()),
        case(plain, (0, 0), "no whole number of MiB", unmended, |b| b.file.set_len(b.end - MIB / 2).unwrap()),
        case(plain, (1, 0), "block 3 (guest bytes 3145728 to 4194303) share bytes", mended, |b| {
            b.set(3, PLAIN.place(1) | FULL);
        }),
        case(plain, (1, 0), "share bytes", mended, |b| b.set(3, PLAIN.place(1) | UNMAPPED)),
        case(large, (2, 0), "share bytes", mended, move |b| b.set(3, (large.place(1) - MIB) | FULL)),
        case(plain, (0, 0), "free, from", unmended, |b| b.set(0, 0)),
        case(plain, (0, 3), "3145728 bytes at 7340032 are used by nothing", mended, |b| {
            b.room(3 * MIB);
        }),
        case(plain, (0, 0), "2 entries of the BAT, which no block of the disk needs", mended, |b| {
            put(b, BAT_AT + 8 * 4096, &(PLAIN.place(1) | FULL).to_le_bytes());
            put(b, BAT_AT + MIB - 8, &[7]);
        }),
        // Children.
        case(child, (3, 1), "puts the sector bitmap of chunk 0 at 67108864, past", mended, |b| {
            b.set_bitmap(0, (64 * MIB) | FULL);
        }),
        case(child, (3, 1), "gives the sector bitmap of chunk 0 the state 7", mended, |b| {
            let at = child_bitmap();
            b.set_bitmap(0, at | PARTIAL);
        }),
        case(child, (2, 1), "no sector bitmap says which part", mended, |b| b.set_bitmap(0, 0)),
        case(chunks, (1, 0), "no sector bitmap says which part", mended, move |b| {
            b.set_bitmap(chunks.block_at(0), 0)
        }),
        case(child, (1, 0), "and the sector bitmap of chunk 0", mended, |b| {
            let at = child_bitmap();
            b.set(4, at | FULL);
        }),
        case(chunks, (1, 1), "the sector bitmap of chunk 0 (", mended, move |b| {
            let at = BLOCKS_AT + 3 * chunks.block;
            b.set_bitmap(chunks.block_at(7), at | FULL);
        }),
        case(child, (1, 0), "share bytes", mended, move |b| b.set(5, child.place(2) | PARTIAL)),
        case(child, (1, 0), "nothing says where", unmended, move |b| {
            let name: Vec<u8> = "r".encode_utf16().flat_map(u16::to_le_bytes).collect();
            let keys = METADATA_AT + (64 << 10) + 40 + 20;
            // The second key is another one.
            let at = u32::from_le_bytes(get(&b.file, keys + 12, 4).try_into().unwrap());
            put(b, keys - 20 + u64::from(at), &[name[0] + 1]);
        }),
    ]
}

fn child_bitmap() -> u64 {
    BLOCKS_AT + 3 * MIB
}

#[test]
fn each_rule_has_its_case() {
    for (number, case) in cases().into_iter().enumerate() {
        let told = format!("case {number}, {}, {:?}", case.make.name, case.says);
        let mut build = case.make.build();
        (case.damage)(&mut build);
        let damaged = build.file.snapshot();
        let file = storage(&damaged);
        let report = check(&file, Repair::Nothing).unwrap_or_else(|error| panic!("{told}: {error}"));
        assert_eq!((report.corruptions, report.leaks), case.counts, "{told}: {:#?}", report.faults);
        assert!(
            report.faults.iter().any(|fault| fault.message.contains(case.says)),
            "{told}: {:#?}",
            report.faults
        );
        assert!(
            report.faults.iter().all(|fault| !fault.fixed) && report.check_errors == 0,
            "{told}: {:#?}",
            report.faults
        );

        // Only what is lost space is touched by a repair of leaks.
        let own = Arc::new(damaged.snapshot());
        let leaks: Arc<dyn Storage> = own.clone();
        let after = check(&leaks, Repair::Leaks).unwrap();
        assert!(after.corruptions == report.corruptions && after.leaks <= report.leaks, "{told}: {after:#?}");
        if report.corruptions > 0 {
            assert!(own.same_bytes(&damaged), "{told}: a repair of leaks changed a damaged image");
        }
        nothing_is_lost(&told, &file, &leaks, &after);

        let mended = storage(&damaged);
        let after = check(&mended, Repair::All).unwrap_or_else(|error| panic!("{told}: {error}"));
        let again = check(&mended, Repair::Nothing).unwrap();
        assert_eq!(counts(&again), counts(&after), "{told}");
        let worth_a_word = report.faults.iter().all(|fault| fault.severity == Severity::Note);
        assert_eq!(after.is_clean(), case.mended || worth_a_word, "{told}: {:#?}", after.faults);
        if case.mended {
            assert_eq!(
                (after.corruptions_fixed, after.leaks_fixed >= case.counts.1),
                (case.counts.0, true),
                "{told}: {after:#?}"
            );
            let stays = |fault: &&cowhand_core::Fault| fault.message.contains(case.says);
            assert_eq!(again.faults.iter().find(stays), None, "{told}");
            let read = sectors(&mended).unwrap_or_else(|| panic!("{told}: does not open"));
            assert!(read.iter().all(|(_, read)| read.is_some()), "{told}: not readable");
        }
        nothing_is_lost(&told, &file, &mended, &after);
    }
}

/// What a repair cannot save it names; what it can tell it keeps.
#[test]
fn what_is_lost_is_named_and_the_rest_is_kept() {
    let run = |make: Make, damage: &dyn Fn(&mut Build)| {
        let mut build = make.build();
        damage(&mut build);
        let file: Arc<dyn Storage> = build.file.clone();
        let report = check(&file, Repair::All).unwrap();
        assert!(report.is_clean(), "{:#?}", report.faults);
        let read = sectors(&file).unwrap();
        let at = move |at: u64| read.iter().find(|(offset, _)| *offset == at).unwrap().1.clone().unwrap();
        (report, at)
    };
    let (report, _) = run(PLAIN, &|b| b.set(0, (64 * MIB) | FULL));
    assert_eq!(lost(&report), [(0, MIB - 1)]);
    // The state was lost, and its bytes are there.
    let (report, at) = run(PLAIN, &|b| b.set(0, PLAIN.place(1) | 4));
    assert_eq!((lost(&report), at(0).1[0]), (vec![], 1));
    // A file cut within its last block.
    let (report, at) = run(PLAIN, &|b| b.file.set_len(b.end - MIB / 2 - 512).unwrap());
    assert_eq!(lost(&report), [(7 * MIB + MIB / 2 - 512, 7 * MIB + MIB / 2 - 1)]);
    assert_eq!((at(7 * MIB).1[0], at(7 * MIB + MIB / 2 - 512).1[0]), (8, 0));
    // Without its bitmap a block has the sectors that are not zero.
    let child = MAKES[3];
    let (report, at) = run(child, &|b| b.set_bitmap(0, 0));
    assert!(
        report.faults.iter().any(|fault| fault.message.contains("guest bytes 0 to 1048575 may be wrong"))
    );
    assert_eq!((at(0).0, at(512).1[0], at(3 * 512).0), (Kind::Data, 1, Kind::Hole));
    // Two blocks in one place keep what they read, and are two afterwards.
    let (report, at) = run(PLAIN, &|b| b.set(3, PLAIN.place(1) | FULL));
    assert!(report.faults.iter().any(|fault| fault.message.contains("have a copy each")));
    assert_eq!((at(0), at(3 * MIB + 512)), (at(3 * MIB), at(512)));
}

/// Any few words of metadata may be anything, and the file may be cut: a check ends and changes nothing; a repair loses
/// nothing that was readable, but what it names, and what it then calls clean is.
#[test]
fn any_damage_is_found_and_what_is_repaired_is_right() {
    let rounds: u64 = std::env::var("COWHAND_CHECK_ROUNDS").map_or(80, |text| text.parse().unwrap());
    let (mut clean, mut faulty) = (0, 0);
    for make in MAKES {
        let good = make.build();
        let bat = |build: &Build, number| build.entry_at(make.block_at(number));
        let front = HEADERS.into_iter().flat_map(|at| [0, 8, 16, 32, 48, 64, 68, 72].map(|field| at + field));
        let regions =
            TABLES.into_iter().flat_map(|at| [0, 8, 16, 32, 40, 44, 48, 64, 72].map(|field| at + field));
        let items = (0..6).flat_map(|item| [0, 16, 20, 24].map(|field| METADATA_AT + 32 + 32 * item + field));
        let content = [0, 4, 8, 12, 16, 32, 36, 40, 56, 60, 64].map(|at| METADATA_AT + (64 << 10) + at);
        let entries: Vec<u64> = (0..8).map(|number| bat(&good, number)).collect();
        let ratio = good.ratio();
        let bitmaps = [0, 1].map(|chunk| BAT_AT + 8 * (chunk * (ratio + 1) + ratio));
        let places: Vec<u64> = front
            .chain(regions)
            .chain(items)
            .chain(content)
            .chain(entries.iter().copied().cycle().take(80))
            .chain(bitmaps.into_iter().cycle().take(10))
            .chain([0, METADATA_AT, METADATA_AT + 10, MIB, MIB + 8, MIB + 16, MIB + 48, MIB + 64])
            .collect();
        for round in 0..rounds {
            let told = format!("{}, round {round}", make.name);
            let mut rng = Rng::new(round.wrapping_mul(977) ^ make.name.len() as u64);
            let build = make.build();
            if rng.below(4) == 0 {
                let mut table: [u8; 4096] = get(&build.file, BAT_AT, 4096).try_into().unwrap();
                table[8 * rng.below(8) as usize] ^= 1 << rng.below(3);
                pending(&build, &[(BAT_AT, table)], build.end - rng.below(2) * MIB);
            }
            for _ in 0..1 + rng.below(4) {
                let at = places[rng.below(places.len() as u64) as usize];
                let old = u64::from_le_bytes(get(&build.file, at, 8).try_into().unwrap());
                let new = match rng.below(8) {
                    0 => 0,
                    1 => u64::MAX,
                    2 => old ^ 1 << rng.below(64),
                    3 => old ^ 1 << rng.below(8),
                    4 => old.wrapping_add(rng.below(5) * MIB).wrapping_sub(2 * MIB),
                    5 => (rng.below(build.end / MIB + 2) * MIB) | (4 + rng.below(4)),
                    6 => old & !7 | rng.below(8),
                    _ => rng.any(),
                };
                put(&build, at, &new.to_le_bytes());
            }
            match rng.below(8) {
                0 => build.file.set_len(build.end - rng.below(3 * MIB)).unwrap(),
                1 => build.file.set_len(build.end + rng.below(5) * MIB + rng.below(2) * 777).unwrap(),
                _ => {}
            }
            // Mostly behind good checksums.
            if rng.below(8) != 0 {
                headers(&build, |_| ());
                tables(&build, |_| ());
                let log = get(&build.file, MIB, 8192);
                if rng.below(2) == 0 && log.starts_with(b"loge") {
                    put(&build, MIB, &sealed(log));
                }
            }
            let damaged = build.file.snapshot();
            let file: Arc<dyn Storage> = build.file.clone();
            let since = Instant::now();
            let first = match check(&file, Repair::Nothing) {
                Ok(report) => report,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    continue;
                }
            };
            assert!(build.file.same_bytes(&damaged), "{told}: a check changed the image");
            let mended = storage(&damaged);
            let report =
                check(&mended, Repair::All).unwrap_or_else(|error| panic!("{told}: {error}\n{first:#?}"));
            assert!(since.elapsed() < Duration::from_secs(10), "{told}: {:?}", since.elapsed());
            let again = check(&mended, Repair::Nothing).unwrap();
            assert_eq!(counts(&again), counts(&report), "{told}: {first:#?} {report:#?}");
            let worse = report.corruptions > first.corruptions || report.check_errors > first.check_errors;
            // A log that cannot be replayed hides what is found without it.
            let hidden = first.faults.iter().any(|fault| fault.message.starts_with("log"));
            assert!(!worse || hidden, "{told}: {first:#?}\n{report:#?}");
            nothing_is_lost(&told, &file, &mended, &report);
            faulty += u64::from(!first.is_clean());
            if report.is_clean() {
                clean += 1;
                if let Some(read) = sectors(&mended) {
                    let all = read.iter().all(|(_, read)| read.is_some());
                    assert!(all, "{told}: clean, and not readable\n{report:#?}");
                }
                common::open(mended)
                    .unwrap_or_else(|error| panic!("{told}: clean, and does not open: {error}"));
            }
        }
    }
    assert!(faulty > rounds && clean > rounds, "{faulty} {clean}");
}

/// Images with damage that a repair takes long ways to put right.
fn damaged() -> Vec<(&'static str, MemoryStorage)> {
    let all = cases();
    let with = |told, says: &[&str]| {
        let mut build: Option<Build> = None;
        for says in says {
            let case = all.iter().find(|case| case.mended && case.says.contains(says)).unwrap();
            (case.damage)(build.get_or_insert_with(|| case.make.build()));
        }
        (told, build.unwrap().file.snapshot())
    };
    vec![
        with("no name", &["vhdxfile"]),
        with("header", &["header 1 has a wrong"]),
        with("twins", &["which is of no consequence"]),
        with("numbers", &["one of the last sequence"]),
        with("no log", &["nothing in it is whole"]),
        with("pending", &["the log is pending"]),
        with("regions", &["region table 1 has", "the log is pending"]),
        with("regions differ", &["the region tables do not"]),
        with("second table", &["what the second table"]),
        with("entries", &["past the end", "over the log", "has reserved bits", "header 2 has"]),
        with("cut", &["and the file ends at"]),
        with("shared", &["block 3 (guest", "3145728 bytes at"]),
        with("no bitmap", &["no sector bitmap"]),
        with("bitmap", &["past", "and the sector bitmap of"]),
        with("bitmap shared", &["and the sector bitmap of chunk 0"]),
        with("unused", &["3145728 bytes at", "2 entries of the BAT"]),
    ]
}

/// The power goes at any moment of a repair: what was readable is, and running it again ends as it would have.
#[test]
fn a_power_cut_in_a_repair_leaves_nothing_worse() {
    let slow = std::env::var_os("COWHAND_SLOW").is_some();
    let mut states = 0;
    for (name, image) in damaged() {
        let before = storage(&image);
        let folder = MemoryFolder::new();
        folder.insert("disk", Arc::new(image.snapshot()));
        let journal = Journal::over(&folder);
        let file = journal.folder().open("disk", true).unwrap();
        let whole = check(&file, Repair::All).unwrap();
        assert!(whole.is_clean(), "{name}: {:#?}", whole.faults);
        drop(file);
        let max_states = if slow { 20_000 } else { 60 };
        let plan = Plan {
            random: if slow { 40 } else { 4 },
            exhaustive: if slow { 8 } else { 3 },
            max_states,
            ..Plan::default()
        };
        let mut seen = 0;
        for state in journal.states(&plan) {
            let told = format!("{name}, {state}");
            let file = state.folder().open("disk", true).unwrap();
            nothing_is_lost(&told, &before, &file, &whole);
            let after = check(&file, Repair::All).unwrap_or_else(|error| panic!("{told}: {error}"));
            assert!(after.is_clean(), "{told}: {:#?}", after.faults);
            nothing_is_lost(&told, &before, &file, &whole);
            seen += 1;
        }
        assert!(seen > 0, "{name}");
        states += seen;
    }
    println!("{states} states");
}

/// Any input or output of a repair fails: it says so, nothing readable is lost, and the next repair ends clean.
#[test]
fn a_failing_disk_in_a_repair_leaves_nothing_worse() {
    for (name, image) in damaged() {
        let before = storage(&image);
        let whole = check(&storage(&image), Repair::All).unwrap();
        for fault in [Fault::EIO, Fault::EIO.only(&[Io::Write]).torn()] {
            fault_test(
                fault,
                || Arc::new(image.snapshot()),
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

/// A disk of 64 TiB in blocks of 1 MiB has a BAT of 512 MiB.
#[test]
fn the_largest_empty_disk_is_looked_at_at_once() {
    let file = Arc::new(MemoryStorage::new());
    common::create(file.clone(), 64 << 40, &[("block_size", "1M"), ("block_state_zero", "off")])
        .unwrap()
        .close()
        .unwrap();
    let file: Arc<dyn Storage> = file;
    let since = Instant::now();
    let report = check(&file, Repair::Nothing).unwrap();
    assert!(report.is_clean() && report.faults.is_empty(), "{:#?}", report.faults);
    assert_eq!(report.total_units, Some(64 << 20));
    assert!(since.elapsed() < Duration::from_millis(500), "{:?}", since.elapsed());
}
