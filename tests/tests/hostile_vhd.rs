//! Hostile VHD images, made by patching images of `qemu-img`.

use std::path::Path;
use std::time::{Duration, Instant};

use cowhand::{Check, Open, Quiet, Repair, check};
use cowhand_tests::{Content, Patch, qemu_img, temp};

use crate::hostile::Verdict::{AtOpen, Bounded, Fine, OnRead, Somewhere};
use crate::hostile::{Cases, Gate, judge};

// Where fields are (Microsoft's specification): in the footer, and in the dynamic disk header at offset 512.
const DATA_OFFSET: usize = 16;
const CURRENT_SIZE: usize = 48;
const TYPE: usize = 60;
const SUM: usize = 64;
const HEADER: usize = 512;
const TABLE: usize = HEADER + 16;
const ENTRIES: usize = HEADER + 28;
const BLOCK: usize = HEADER + 32;
const HEADER_SUM: usize = 36;

fn made(folder: &Path, subformat: &str) -> Patch {
    let raw = Content::text("text", 5 << 20).raw_in(folder);
    let image = folder.join("pattern.vhd");
    let options = format!("subformat={subformat},force_size=on");
    qemu_img(
        ["convert", "-f", "raw", "-O", "vpc", "-o", &options]
            .iter()
            .map(Path::new)
            .chain([raw.as_path(), &image]),
    );
    Patch::of(&image)
}

/// A check of such an image ends soon, changes nothing, and finds something wrong where opening does; a repair ends too,
/// and leaves nothing worse.
fn checked(cases: &Cases) {
    for case in &cases.cases {
        let told = case.image.display();
        let bytes = std::fs::read(&case.image).unwrap();
        let run = |repair| {
            let open = Open { format: Some("vpc".to_owned()), ..Open::default() };
            check(&case.image, &Check { open, repair, workers: 1 }, &Quiet)
                .map(|checked| checked.report.unwrap())
        };
        let began = Instant::now();
        let first = run(Repair::Nothing);
        assert!(began.elapsed() < Duration::from_secs(2), "{told}: {:?}", began.elapsed());
        assert!(std::fs::read(&case.image).unwrap() == bytes, "{told}: a check changed it");
        let Ok(first) = first else { continue };
        if matches!(case.verdict, AtOpen(_)) {
            assert!(!first.is_clean(), "{told}: it does not open, and nothing is wrong");
        }
        let repaired = run(Repair::All).unwrap();
        assert!(repaired.corruptions <= first.corruptions, "{told}: {repaired:#?}");
        let again = run(Repair::Nothing).unwrap();
        assert_eq!((again.corruptions, again.leaks), (repaired.corruptions, repaired.leaks), "{told}");
    }
}

/// The dynamic disk header's sum made right.
fn header(p: &mut Patch) -> &mut Patch {
    p.vhd_sum(HEADER, 1024, HEADER_SUM)
}

/// Changes the footer and its copy at the front, and makes their sums right.
fn footers<'p>(p: &'p mut Patch, change: &dyn Fn(&mut Patch, usize)) -> &'p mut Patch {
    for at in [0, p.len() - 512] {
        change(p, at);
        p.vhd_sum(at, 512, SUM);
    }
    p
}

#[test]
fn dynamic_refused_at_open() {
    let folder = temp();
    let pattern = made(folder.path(), "dynamic");
    let mut cases = Cases::new(folder.path(), "vhd");
    let len = pattern.len() as u64;
    type Change<'a> = &'a dyn Fn(&mut Patch) -> &mut Patch;
    let mut case = |name: &str, part: &'static str, change: Change| {
        cases.add(name, &pattern, AtOpen(part), Gate::Refuses, change);
    };
    case("header: bad checksum", "checksum", &|p| p.put(HEADER + 600, &[1]));
    case("header: no signature", "", &|p| header(p.put(HEADER, b"nothing.")));
    case("both footers: bad checksum", "checksum", &|p| {
        let last = p.len() - 512;
        p.put(100, &[1]).put(last + 100, &[1])
    });
    for size in [0, 256, 3 << 20, (2 << 20) + 512, 512 << 20, 1 << 31, u32::MAX] {
        case(&format!("block size {size}"), "block size", &move |p| header(p.be32(BLOCK, size)));
    }
    for entries in [0, 1, 2] {
        case(&format!("{entries} entries for 5 MiB"), "", &move |p| header(p.be32(ENTRIES, entries)));
    }
    case("2^32-1 entries", "", &|p| header(p.be32(ENTRIES, u32::MAX)));
    for at in [len, len + 512, 1 << 40, u64::MAX, u64::MAX - 511] {
        case(&format!("table at {at}"), "", &move |p| header(p.be64(TABLE, at)));
        case(&format!("header at {at}"), "", &move |p| {
            footers(p, &move |p, f| drop_unit(p.be64(f + DATA_OFFSET, at)))
        });
    }
    for size in [(2040 << 30) + 512, 1 << 50, 1 << 63, u64::MAX - 511] {
        let name = format!("current size {size}");
        case(&name, "", &move |p| footers(p, &move |p, f| drop_unit(p.be64(f + CURRENT_SIZE, size))));
    }
    // By content alone these are raw, as a guest may have written them; told that it is a VHD, they are refused.
    let told = 5;
    for kind in [0, 1, 5, 6, u32::MAX] {
        case(&format!("disk type {kind}"), "type", &move |p| {
            footers(p, &move |p, f| drop_unit(p.be32(f + TYPE, kind)))
        });
    }
    let first = cases.cases.len() - told;
    for case in &mut cases.cases[first..] {
        case.how = vec!["format=vpc".to_owned()];
    }
    judge(&cases.cases);
    checked(&cases);
}

fn drop_unit(_: &mut Patch) {}

#[test]
fn dynamic_refused_on_read() {
    let folder = temp();
    let pattern = made(folder.path(), "dynamic");
    let mut cases = Cases::new(folder.path(), "vhd");
    let table = pattern.read_be64(TABLE) as usize;
    let end = (pattern.len() / 512) as u32;
    let first = pattern.read_be32(table);
    for (name, to) in [
        ("past the end", end + 8),
        ("far past the end", u32::MAX - 1),
        ("into the footer's copy", 0),
        ("into the header", 1),
        ("into the table", (table / 512) as u32),
    ] {
        cases
            .add(&format!("BAT entry {name}"), &pattern, OnRead("BAT"), Gate::Any, |p| p.be32(table + 4, to));
    }
    // The footer stands behind the last block's data: a block that begins just before it would hold it.
    cases
        .add("BAT entry onto the footer", &pattern, OnRead("BAT"), Gate::Any, |p| p.be32(table + 4, end - 1));
    cases.add("cut in half", &pattern, Somewhere, Gate::Any, |p| p.resize((3 << 20) + 100));
    cases.add("two entries for one block", &pattern, Bounded, Gate::Any, |p| p.be32(table + 4, first));
    judge(&cases.cases);
    checked(&cases);
}

/// One good copy is enough.
#[test]
fn one_footer_is_enough() {
    let folder = temp();
    let pattern = made(folder.path(), "dynamic");
    let mut cases = Cases::new(folder.path(), "vhd");
    cases.add("the end's checksum is bad", &pattern, Fine, Gate::Refuses, |p| {
        let last = p.len() - 512;
        p.put(last + 100, &[1])
    });
    cases.add("the front's checksum is bad", &pattern, Fine, Gate::Refuses, |p| p.put(100, &[1]));
    cases.add("a footer of 511 bytes", &pattern, Fine, Gate::Any, |p| {
        let len = p.len();
        p.resize(len - 1)
    });
    cases.add("padding between the last block and the footer", &pattern, Fine, Gate::Any, |p| {
        let len = p.len();
        let footer = p.get(len - 512, 512).to_vec();
        p.put(len - 512, &[0; 512]).put(len + 3072, &footer)
    });
    judge(&cases.cases);
    checked(&cases);
    for case in &cases.cases {
        let disk = cowhand::open(&case.image, &cowhand::Open::default()).unwrap();
        assert_eq!(disk.links()[0].format, "vpc");
        cowhand_tests::assert_holds(&disk, &folder.path().join("text.raw"));
    }
}

#[test]
fn fixed() {
    let folder = temp();
    let pattern = made(folder.path(), "fixed");
    let last = pattern.len() - 512;
    let mut cases = Cases::new(folder.path(), "vhd");
    let size = (last + 512) as u64;
    for size in [size, 1 << 40, 1 << 63, u64::MAX - 511] {
        cases.add(&format!("current size {size}"), &pattern, AtOpen(""), Gate::Refuses, |p| {
            p.be64(last + CURRENT_SIZE, size).vhd_sum(last, 512, SUM)
        });
    }
    cases.add("bad checksum, told that it is one", &pattern, AtOpen("checksum"), Gate::Any, |p| {
        p.put(last + 100, &[1])
    });
    // By content alone these are raw: a guest may have written that footer.
    for case in &mut cases.cases {
        case.how = vec!["format=vpc".to_owned()];
    }
    // The guest's first sector is the guest's: nothing that stands there makes the disk something else.
    cases.add("behind an MBR", &pattern, Fine, Gate::Safe, |p| {
        p.put(446, &[0; 64])
            .put(510, &[0x55, 0xaa])
            .put(446, &[0x80, 0, 2, 0, 0x83, 0, 8, 0, 1, 0, 0, 0, 100, 0, 0, 0])
    });
    judge(&cases.cases);
    checked(&cases);
    let behind_mbr = &cases.cases.last().unwrap().image;
    let disk = cowhand::open(behind_mbr, &cowhand::Open::default()).unwrap();
    assert_eq!((disk.links()[0].format, disk.size()), ("vpc", last as u64));
}

/// A guest could have written a footer at its disk's end: of types 3 and 4 only one with a copy at the front is one.
#[test]
fn a_footer_that_a_guest_wrote() {
    let folder = temp();
    let pattern = made(folder.path(), "dynamic");
    for kind in [3, 4] {
        let image = folder.path().join("guest.img");
        let mut guest = pattern.clone();
        footers(&mut guest, &|p, f| drop_unit(p.be32(f + TYPE, kind)));
        guest.put(0, &[0; 512]);
        guest.save(&image);
        let disk = cowhand::open(&image, &cowhand::Open::default()).unwrap();
        assert_eq!((disk.links()[0].format, disk.size()), ("raw", guest.len() as u64));
    }
    // And a footer as a fixed disk's first sector, which is all the guest's own.
    let image = folder.path().join("nested.vhd");
    let mut nested = made(folder.path(), "fixed");
    let inner = pattern.get(0, 512).to_vec();
    nested.put(0, &inner);
    nested.save(&image);
    let disk = cowhand::open(&image, &cowhand::Open::default()).unwrap();
    assert_eq!((disk.links()[0].format, disk.size()), ("vpc", nested.len() as u64 - 512));
    let mut first = [0; 512];
    disk.read(0, &mut first).unwrap();
    assert_eq!(first.as_slice(), inner);
}

/// A differencing image that stands on itself, or on nothing, or on what it may not name.
#[test]
fn differencing() {
    let folder = temp();
    let pattern = made(folder.path(), "dynamic");
    let mut cases = Cases::new(folder.path(), "vhd");
    let child = |p: &mut Patch, name: &str| {
        footers(p, &|p, f| drop_unit(p.be32(f + TYPE, 4)));
        // The parent's name, UTF-16BE; no locators.
        let units: Vec<u8> = name.encode_utf16().flat_map(u16::to_be_bytes).collect();
        p.put(HEADER + 40, &[9; 16]).put(HEADER + 64, &[0; 512]).put(HEADER + 64, &units);
        header(p);
    };
    for (name, kinds) in [
        ("0.vhd", "own chain"),
        ("/etc/passwd", ""),
        ("../../../../etc/passwd", ""),
        ("absent.vhd", "not there"),
        ("", ""),
    ] {
        cases.add(&format!("over '{name}'"), &pattern, Somewhere, Gate::Refuses, |p| {
            child(p, name);
            p
        });
        let image = &cases.cases.last().unwrap().image;
        let error = cowhand::open(image, &cowhand::Open::default()).unwrap_err();
        assert!(error.to_string().contains(kinds), "{error}");
        use cowhand::ErrorKind::{Corrupt, Denied, NotFound};
        assert!(matches!(error.kind(), Corrupt | Denied | NotFound), "{error:?}");
    }
}

/// Wrong checksums are refused, and read where the caller says so; never written.
#[test]
fn checksums_can_be_passed_over() {
    let folder = temp();
    let path = folder.path().join("x.vhd");
    for (options, spots) in [
        (vec![("subformat", "fixed")], vec![(None, 200)]),
        (vec![("subformat", "dynamic")], vec![(Some(0), 200), (None, 200)]),
        (vec![("subformat", "dynamic")], vec![(Some(512), 1000)]),
    ] {
        let options = options.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let made = cowhand::Create { options, ..cowhand::Create::new("vpc", 4 << 20) };
        cowhand::create(&path, &made).unwrap();
        let good = cowhand::open(&path, &Open::default()).unwrap().size();
        let mut bytes = std::fs::read(&path).unwrap();
        for (from, offset) in spots {
            let from = from.unwrap_or(bytes.len() - 512);
            bytes[from + offset] ^= 1;
        }
        std::fs::write(&path, &bytes).unwrap();
        let open = |ignore_checksums, writable| {
            let format = Some("vpc".to_owned());
            cowhand::open(&path, &Open { format, ignore_checksums, writable, ..Open::default() })
        };
        let error = open(false, false).unwrap_err().to_string();
        assert!(error.contains("checksum") && error.contains("--ignore-checksums"), "{error}");
        assert_eq!(open(true, false).unwrap().size(), good);
        assert!(open(true, true).is_err());
    }
}
