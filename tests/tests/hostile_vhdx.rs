//! Hostile VHDX images, made by patching images of `qemu-img`.

use std::path::Path;

use cowhand_tests::{Content, Patch, qemu_img, temp};

use crate::hostile::Verdict::{AtOpen, Bounded, Fine, OnRead, Somewhere};
use crate::hostile::{Cases, Gate, check_and_repair, judge};

const K: usize = 1 << 10;
const M: usize = 1 << 20;
const HEADERS: [usize; 2] = [64 * K, 128 * K];
const TABLES: [usize; 2] = [192 * K, 256 * K];

// Fields of a header (MS-VHDX 2.2.2).
const SEQUENCE: usize = 8;
const LOG_GUID: usize = 48;
const LOG_VERSION: usize = 64;
const VERSION: usize = 66;
const LOG_LENGTH: usize = 68;
const LOG_OFFSET: usize = 72;

// Regions and metadata items by the first bytes of their GUIDs, as they stand in the file.
const BAT: [u8; 4] = [0x66, 0x77, 0xc2, 0x2d];
const METADATA: [u8; 4] = [0x06, 0xa2, 0x7c, 0x8b];
const FILE_PARAMETERS: [u8; 4] = [0x37, 0x67, 0xa1, 0xca];
const DISK_SIZE: [u8; 4] = [0x24, 0x42, 0xa5, 0x2f];
const LOGICAL_SECTOR: [u8; 4] = [0x1d, 0xbf, 0x41, 0x81];

fn made(folder: &Path) -> Patch {
    let raw = Content::text("text", 5 << 20).raw_in(folder);
    let image = folder.join("pattern.vhdx");
    let args = ["convert", "-f", "raw", "-O", "vhdx", "-o", "block_size=1M"];
    qemu_img(args.iter().map(Path::new).chain([raw.as_path(), &image]));
    Patch::of(&image)
}

/// Changes both headers, and makes their sums right.
fn headers<'p>(p: &'p mut Patch, change: &dyn Fn(&mut Patch, usize)) -> &'p mut Patch {
    for at in HEADERS {
        change(p, at);
        p.vhdx_crc(at, 4 * K);
    }
    p
}

/// Changes both region tables, and makes their sums right.
fn tables<'p>(p: &'p mut Patch, change: &dyn Fn(&mut Patch, usize)) -> &'p mut Patch {
    for at in TABLES {
        change(p, at);
        p.vhdx_crc(at, 64 * K);
    }
    p
}

/// Where a region's entry stands in the table at `table`.
fn region(p: &Patch, table: usize, which: [u8; 4]) -> usize {
    let count = p.read_le32(table + 8) as usize;
    (0..count).map(|n| table + 16 + n * 32).find(|at| p.get(*at, 4) == which).unwrap()
}

fn region_at(p: &Patch, which: [u8; 4]) -> usize {
    p.read_le64(region(p, TABLES[0], which) + 16) as usize
}

/// Where an item's entry stands in the metadata table.
fn item(p: &Patch, which: [u8; 4]) -> usize {
    let table = region_at(p, METADATA);
    let count = p.read_le32(table + 8) as usize >> 16;
    (0..count).map(|n| table + 32 + n * 32).find(|at| p.get(*at, 4) == which).unwrap()
}

fn item_at(p: &Patch, which: [u8; 4]) -> usize {
    region_at(p, METADATA) + p.read_le32(item(p, which) + 16) as usize
}

#[test]
fn refused_at_open() {
    let folder = temp();
    let pattern = made(folder.path());
    let mut cases = Cases::new(folder.path(), "vhdx");
    let len = pattern.len() as u64;
    let bat = region_at(&pattern, BAT) as u64;
    let metadata = region_at(&pattern, METADATA);
    type Change<'a> = &'a dyn Fn(&mut Patch) -> &mut Patch;
    let mut case = |name: &str, part: &'static str, change: Change| {
        cases.add(name, &pattern, AtOpen(part), Gate::Any, change);
    };
    case("both headers: bad checksums", "header", &|p| {
        p.put(HEADERS[0] + 100, &[1]).put(HEADERS[1] + 100, &[1])
    });
    case("equal sequence numbers, other content", "header", &|p| {
        headers(p, &|p, at| {
            p.le64(at + SEQUENCE, 7).put(at + 16, &[at as u8 >> 4 | (at >> 16) as u8; 16]);
        })
    });
    for version in [0_u8, 2, 255] {
        case(&format!("header version {version}"), "version", &move |p| {
            headers(p, &|p, at| {
                p.put(at + VERSION, &[version, 0]);
            })
        });
    }
    for length in [1, M as u32 + 4096, 0x8000_0000, u32::MAX] {
        case(&format!("log length {length}"), "log", &move |p| {
            headers(p, &|p, at| {
                p.le32(at + LOG_LENGTH, length);
            })
        });
    }
    for offset in [1, 4096, M as u64 + 512, u64::MAX, u64::MAX - M as u64 + 1] {
        case(&format!("log at {offset}"), "log", &move |p| {
            headers(p, &|p, at| {
                p.le64(at + LOG_OFFSET, offset);
            })
        });
    }
    case("log version 1 with a pending log", "log", &|p| {
        headers(p, &|p, at| {
            p.put(at + LOG_VERSION, &[1, 0]).put(at + LOG_GUID, &[5; 16]);
        })
    });
    case("a pending log that is not there", "log", &|p| {
        headers(p, &|p, at| {
            p.put(at + LOG_GUID, &[5; 16]);
        })
    });
    case("both region tables: bad checksums", "region", &|p| {
        p.put(TABLES[0] + 100, &[1]).put(TABLES[1] + 100, &[1])
    });
    for count in [2048, 1 << 20, u32::MAX] {
        case(&format!("{count} regions"), "region", &move |p| {
            tables(p, &|p, at| {
                p.le32(at + 8, count);
            })
        });
    }
    let mut at_region = |name: &str, which: [u8; 4], offset: u64, length: Option<u32>| {
        case(name, "", &move |p| {
            tables(p, &|p, at| {
                let entry = region(p, at, which);
                p.le64(entry + 16, offset);
                if let Some(length) = length {
                    p.le32(entry + 24, length);
                }
            })
        });
    };
    at_region("BAT region misaligned", BAT, bat + 4096, None);
    at_region("BAT region past the end", BAT, (len + (8 << 20)) & !0xf_ffff, None);
    at_region("BAT region at the end of numbers", BAT, u64::MAX - M as u64 + 1, None);
    at_region("BAT region in the first MiB", BAT, 0, None);
    at_region("BAT region over the log", BAT, M as u64, None);
    at_region("BAT region over the metadata", BAT, metadata as u64, None);
    at_region("BAT region of no length", BAT, bat, Some(0));
    at_region("BAT region of an odd length", BAT, bat, Some(4096));
    at_region("BAT region of 4 GiB", BAT, bat, Some(0xfff0_0000));
    at_region("metadata region past the end", METADATA, (len + (8 << 20)) & !0xf_ffff, None);
    case("an unknown required region", "region", &|p| {
        tables(p, &|p, at| {
            let count = p.read_le32(at + 8);
            let entry = at + 16 + count as usize * 32;
            p.le32(at + 8, count + 1)
                .put(entry, &[0xab; 16])
                .le64(entry + 16, 100 << 20)
                .le32(entry + 24, M as u32)
                .le32(entry + 28, 1);
        })
    });
    case("the BAT region twice", "", &|p| {
        tables(p, &|p, at| {
            let count = p.read_le32(at + 8);
            let old = p.get(region(p, at, BAT), 32).to_vec();
            p.le32(at + 8, count + 1).put(at + 16 + count as usize * 32, &old);
        })
    });
    case("no metadata region", "region", &|p| {
        tables(p, &|p, at| {
            let entry = region(p, at, METADATA);
            // An unknown one that is not required, in its place.
            p.put(entry, &[0xab; 16]).le32(entry + 28, 0);
        })
    });
    case("no metadata signature", "metadata", &move |p| p.put(metadata, b"nothing."));
    case("2048 metadata items", "metadata", &move |p| p.put(metadata + 10, &2048_u16.to_le_bytes()));
    case("65535 metadata items", "metadata", &move |p| p.put(metadata + 10, &u16::MAX.to_le_bytes()));
    case("an unknown required item", "", &move |p| {
        let count = p.read_le32(metadata + 8) >> 16;
        let entry = metadata + 32 + count as usize * 32;
        p.put(metadata + 10, &(count as u16 + 1).to_le_bytes());
        p.put(entry, &[0xab; 16]).le32(entry + 16, 0x2_0000).le32(entry + 20, 8).le32(entry + 24, 4)
    });
    case("an item twice", "", &move |p| {
        let count = p.read_le32(metadata + 8) >> 16;
        let old = p.get(item(p, DISK_SIZE), 32).to_vec();
        p.put(metadata + 10, &(count as u16 + 1).to_le_bytes()).put(metadata + 32 + count as usize * 32, &old)
    });
    for (name, offset, length) in [
        ("in the table", 32_u32, 8_u32),
        ("outside its region", 0x10_0000, 8),
        ("far outside", u32::MAX - 3, 8),
        ("of 2 MiB", 0x1_0000, 2 << 20),
        ("of no length", 0x1_0000, 0),
        ("one byte short", 0x1_0000, 7),
    ] {
        case(&format!("the disk's size {name}"), "", &move |p| {
            let entry = item(p, DISK_SIZE);
            p.le32(entry + 16, offset).le32(entry + 20, length)
        });
    }
    for size in [0, 512, 3 << 20, 512 << 20, 1 << 31, u32::MAX] {
        case(&format!("block size {size}"), "block size", &move |p| {
            p.le32(item_at(p, FILE_PARAMETERS), size)
        });
    }
    for size in [0, 1, 1024, 8192, u32::MAX] {
        case(&format!("sector size {size}"), "sector size", &move |p| {
            p.le32(item_at(p, LOGICAL_SECTOR), size)
        });
    }
    for size in [(5 << 20) + 1, (5 << 20) + 256, (64 << 40) + 512, 1 << 63, u64::MAX] {
        case(&format!("disk of {size} bytes"), "size", &move |p| p.le64(item_at(p, DISK_SIZE), size));
    }
    case("a BAT region too short for 64 TiB", "BAT", &|p| p.le64(item_at(p, DISK_SIZE), 64 << 40));
    case("a parent without a locator", "parent", &|p| p.le32(item_at(p, FILE_PARAMETERS) + 4, 2));
    for length in [8, 64 * K, 300 * K] {
        case(&format!("cut after {length} bytes"), "", &move |p| p.resize(length));
    }
    judge(&cases.cases);
    check_and_repair(&cases.cases, "vhdx");
}

#[test]
fn one_copy_is_enough() {
    let folder = temp();
    let pattern = made(folder.path());
    let mut cases = Cases::new(folder.path(), "vhdx");
    for n in 0..2 {
        cases.add(&format!("header {n} bad"), &pattern, Fine, Gate::Any, |p| p.put(HEADERS[n] + 100, &[1]));
        cases.add(&format!("region table {n} bad"), &pattern, Fine, Gate::Any, |p| {
            p.put(TABLES[n] + 100, &[1])
        });
    }
    cases.add("log version 1 without a pending log", &pattern, Fine, Gate::Any, |p| {
        headers(p, &|p, at| {
            p.put(at + LOG_VERSION, &[1, 0]);
        })
    });
    cases.add("an unknown region that is not required", &pattern, Fine, Gate::Any, |p| {
        let place = (p.len() as u64).next_multiple_of(M as u64);
        p.resize(place as usize + M);
        tables(p, &|p, at| {
            let count = p.read_le32(at + 8);
            let entry = at + 16 + count as usize * 32;
            p.le32(at + 8, count + 1)
                .put(entry, &[0xab; 16])
                .le64(entry + 16, place)
                .le32(entry + 24, M as u32);
        })
    });
    judge(&cases.cases);
    for case in &cases.cases {
        let disk = cowhand::open(&case.image, &cowhand::Open::default()).unwrap();
        cowhand_tests::assert_holds(&disk, &folder.path().join("text.raw"));
    }
    check_and_repair(&cases.cases, "vhdx");
}

#[test]
fn refused_on_read() {
    let folder = temp();
    let pattern = made(folder.path());
    let bat = region_at(&pattern, BAT);
    let metadata = region_at(&pattern, METADATA) as u64;
    let mut cases = Cases::new(folder.path(), "vhdx");
    const FULL: u64 = 6;
    let end = (pattern.len() as u64).next_multiple_of(M as u64);
    for (name, entry) in [
        ("past the end", (end + (8 << 20)) | FULL),
        ("far past the end", (1 << 60) | FULL),
        ("into the headers", FULL),
        ("into the log", M as u64 | FULL),
        ("into the BAT", bat as u64 | FULL),
        ("into the metadata", metadata | FULL),
        ("with reserved bits", pattern.read_le64(bat + 16) | 1 << 5),
        ("in state 4", pattern.read_le64(bat + 16) & !7 | 4),
        ("in state 7 without a parent", pattern.read_le64(bat + 16) | 7),
    ] {
        cases.add(&format!("BAT entry {name}"), &pattern, OnRead("BAT"), Gate::Any, |p| {
            p.le64(bat + 16, entry)
        });
    }
    cases.add("cut in half", &pattern, Somewhere, Gate::Any, |p| {
        let half = p.read_le64(bat + 24) as usize & !(M - 1);
        p.resize(half + 100)
    });
    judge(&cases.cases);
    check_and_repair(&cases.cases, "vhdx");
}

/// One entry of a log, in its first sectors, with sums that are right.
fn log<'p>(p: &'p mut Patch, descriptors: u32, body: &[u8], last: u64) -> &'p mut Patch {
    let flushed = p.len() as u64;
    headers(p, &|p, at| {
        p.put(at + LOG_GUID, &[5; 16]);
    });
    let at = p.read_le64(HEADERS[0] + LOG_OFFSET) as usize;
    p.put(at, &[0; 4096]).put(at, b"loge").le32(at + 8, 4096).le64(at + 16, 9).le32(at + 24, descriptors);
    p.put(at + 32, &[5; 16]).le64(at + 48, flushed).le64(at + 56, last).put(at + 64, body);
    p.vhdx_crc(at, 4096)
}

fn zeroing(at: u64, len: u64) -> Vec<u8> {
    let mut descriptor = b"zero\0\0\0\0".to_vec();
    for number in [len, at, 9] {
        descriptor.extend(number.to_le_bytes());
    }
    descriptor
}

#[test]
fn logs() {
    let folder = temp();
    let pattern = made(folder.path());
    let len = pattern.len() as u64;
    let mut cases = Cases::new(folder.path(), "vhdx");
    cases.add("an entry of no descriptors", &pattern, Fine, Gate::Refuses, |p| log(p, 0, &[], len));
    cases.add("2^32-1 descriptors", &pattern, AtOpen("log"), Gate::Refuses, |p| log(p, u32::MAX, &[], len));
    cases.add("127 descriptors in one sector", &pattern, AtOpen("log"), Gate::Refuses, |p| {
        log(p, 127, &[], len)
    });
    cases.add("zeroes 2^40 bytes behind the file", &pattern, Bounded, Gate::Refuses, |p| {
        let at = (p.len() as u64).next_multiple_of(M as u64);
        log(p, 1, &zeroing(at, 1 << 40), len)
    });
    cases.add("zeroes 2^63 bytes", &pattern, Bounded, Gate::Refuses, |p| {
        log(p, 1, &zeroing(8 << 20, 1 << 63), len)
    });
    cases.add("zeroes 2^64-4096 bytes at 2^64-4096", &pattern, Bounded, Gate::Refuses, |p| {
        log(p, 1, &zeroing(u64::MAX - 4095, u64::MAX - 4095), len)
    });
    cases.add("says that the file ends at 2^63", &pattern, Bounded, Gate::Refuses, |p| {
        log(p, 0, &[], 1 << 63)
    });
    cases.add("says that the file was longer", &pattern, AtOpen("log"), Gate::Refuses, |p| {
        log(p, 0, &[], len);
        let at = p.read_le64(HEADERS[0] + LOG_OFFSET) as usize;
        p.le64(at + 48, 1 << 40).vhdx_crc(at, 4096)
    });
    cases.add("data descriptor without its sector", &pattern, AtOpen("log"), Gate::Refuses, |p| {
        let mut descriptor = b"desc".to_vec();
        descriptor.extend([0; 12]);
        descriptor.extend((2_u64 << 20).to_le_bytes());
        descriptor.extend(9_u64.to_le_bytes());
        log(p, 1, &descriptor, len)
    });
    cases.add("a descriptor of another sequence", &pattern, AtOpen("log"), Gate::Refuses, |p| {
        let mut descriptor = zeroing(8 << 20, 4096);
        descriptor[24] = 8;
        log(p, 1, &descriptor, len)
    });
    // The block that holds guest bytes 2 MiB to 3 MiB is zeroed by the log, in memory.
    let bat = region_at(&pattern, BAT);
    cases.add("zeroes a block", &pattern, Fine, Gate::Refuses, |p| {
        let block = p.read_le64(bat + 16) & !(M as u64 - 1);
        log(p, 1, &zeroing(block, M as u64), len)
    });
    judge(&cases.cases);
    let disk = cowhand::open(&cases.cases.last().unwrap().image, &cowhand::Open::default()).unwrap();
    let mut buf = vec![1; M];
    disk.read(2 << 20, &mut buf).unwrap();
    assert!(buf.iter().all(|byte| *byte == 0));
    disk.read(3 << 20, &mut buf).unwrap();
    assert!(buf.iter().any(|byte| *byte != 0));
    drop(disk);
    check_and_repair(&cases.cases, "vhdx");
}

#[test]
fn ambiguous() {
    let folder = temp();
    let pattern = made(folder.path());
    let mut cases = Cases::new(folder.path(), "vhdx");
    cases.add("VHDX and MBR", &pattern, AtOpen("-f"), Gate::Ambiguous, |p| {
        p.put(446, &[0x80, 0, 2, 0, 0x83, 0, 8, 0, 1, 0, 0, 0, 100, 0, 0, 0]).put(510, &[0x55, 0xaa])
    });
    cases.add("VHDX and ISO", &pattern, AtOpen("-f"), Gate::Ambiguous, |p| p.put(32_768, b"\x01CD001\x01"));
    judge(&cases.cases);
}
