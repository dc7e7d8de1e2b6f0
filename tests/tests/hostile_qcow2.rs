//! Hostile qcow2 images, made by patching images of `qemu-img`.

use std::path::Path;

use cowhand_tests::{Content, Patch, qemu_img, qemu_io, temp};

use crate::hostile::Verdict::{AtOpen, Fine, OnRead, Somewhere};
use crate::hostile::{Case, Cases, Gate, judge};

/// An image of qemu-img's, by its options, with this content in it.
fn made(folder: &Path, name: &str, options: &str, compressed: bool) -> Patch {
    let raw = Content::text("text", 2 << 20).raw_in(folder);
    let image = folder.join(name);
    let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-S", "0"];
    if compressed {
        args.push("-c");
    }
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    qemu_img(args.into_iter().map(Path::new).chain([raw.as_path(), &image]));
    Patch::of(&image)
}

// Where the header's fields are (qcow2 specification, "Header").
const VERSION: usize = 4;
const BACKING: usize = 8;
const BACKING_LEN: usize = 16;
const CLUSTER_BITS: usize = 20;
const SIZE: usize = 24;
const CRYPT: usize = 32;
const L1_SIZE: usize = 36;
const L1: usize = 40;
const REFCOUNTS: usize = 48;
const REFCOUNT_CLUSTERS: usize = 56;
const SNAPSHOT_COUNT: usize = 60;
const SNAPSHOTS: usize = 64;
const INCOMPATIBLE: usize = 72;
const REFCOUNT_ORDER: usize = 96;
const HEADER_LENGTH: usize = 100;
const COMPRESSION: usize = 104;

#[test]
fn refused_at_open() {
    let folder = temp();
    let pattern = made(folder.path(), "pattern.qcow2", "", false);
    let len = pattern.len() as u64;
    let mut cases = Cases::new(folder.path(), "qcow2");
    let mut case = |name: &str, part: &'static str, change: &dyn Fn(&mut Patch) -> &mut Patch| {
        cases.add(name, &pattern, AtOpen(part), Gate::Refuses, change);
    };
    for version in [0, 1, 4, u32::MAX] {
        case(&format!("version {version}"), "version", &move |p| p.be32(VERSION, version));
    }
    for bits in [0, 8, 22, 63, 64, u32::MAX] {
        case(&format!("cluster_bits {bits}"), "cluster", &move |p| p.be32(CLUSTER_BITS, bits));
    }
    for length in [0, 72, 103, 105, 65_544, 1 << 31, u32::MAX] {
        case(&format!("header_length {length}"), "header", &move |p| p.be32(HEADER_LENGTH, length));
    }
    for size in [1 << 30, 1 << 62, 1 << 63, u64::MAX] {
        case(&format!("size {size}"), "size", &move |p| p.be64(SIZE, size));
    }
    case("L1 of no entries", "L1", &|p| p.be32(L1_SIZE, 0));
    case("L1 above 32 MiB", "L1", &|p| p.be32(L1_SIZE, (32 << 20) / 8 + 1));
    case("L1 of 2^32-1 entries", "L1", &|p| p.be32(L1_SIZE, u32::MAX));
    for at in [1, 65_537, u64::MAX, u64::MAX - 65_535, (1 << 63) + 65_536] {
        case(&format!("L1 at {at}"), "L1", &move |p| p.be64(L1, at));
    }
    for at in [1, 65_537, u64::MAX, u64::MAX - 65_535] {
        case(&format!("refcount table at {at}"), "refcount", &move |p| p.be64(REFCOUNTS, at));
    }
    for clusters in [129, 1 << 20, u32::MAX] {
        let name = format!("refcount table of {clusters} clusters");
        case(&name, "refcount", &move |p| p.be32(REFCOUNT_CLUSTERS, clusters));
    }
    case("65537 snapshots", "snapshot", &move |p| p.be32(SNAPSHOT_COUNT, 65_537).be64(SNAPSHOTS, 65_536));
    case("2^32-1 snapshots", "snapshot", &move |p| p.be32(SNAPSHOT_COUNT, u32::MAX).be64(SNAPSHOTS, 65_536));
    for at in [1, 65_537, u64::MAX, u64::MAX - 65_535] {
        let name = format!("snapshot table at {at}");
        case(&name, "snapshot", &move |p| p.be32(SNAPSHOT_COUNT, 1).be64(SNAPSHOTS, at));
    }
    case("a snapshot with 1025 bytes of extra data", "snapshot", &|p| {
        let at = p.len().next_multiple_of(65_536);
        p.resize(at + 65_536).be32(SNAPSHOT_COUNT, 1).be64(SNAPSHOTS, at as u64).be32(at + 36, 1025)
    });
    case("a snapshot with 2^32-1 bytes of extra data", "snapshot", &|p| {
        let at = p.len().next_multiple_of(65_536);
        p.resize(at + 65_536).be32(SNAPSHOT_COUNT, 1).be64(SNAPSHOTS, at as u64).be32(at + 36, u32::MAX)
    });
    for order in [7, 64, u32::MAX] {
        case(&format!("refcount_order {order}"), "refcount", &move |p| p.be32(REFCOUNT_ORDER, order));
    }
    case("an unknown incompatible bit", "feature", &|p| p.be64(INCOMPATIBLE, 1 << 62));
    case("an unknown incompatible bit that the feature table names", "dirty bit", &|p| {
        let name = p.find(b"dirty bit").unwrap();
        p.put(name - 1, &[61]).be64(INCOMPATIBLE, 1 << 61)
    });
    case("an unknown compression type", "compression", &|p| p.be64(INCOMPATIBLE, 8).put(COMPRESSION, &[7]));
    case("a compression type without its bit", "compression", &|p| p.put(COMPRESSION, &[1]));
    case("the compression bit without a type", "compression", &|p| p.be64(INCOMPATIBLE, 8));
    for length in [65_536, 1 << 31, u32::MAX] {
        case(&format!("an extension of {length} bytes"), "extension", &move |p| {
            let at = p.read_be32(HEADER_LENGTH) as usize;
            p.be32(at + 4, length)
        });
    }
    for method in [3, u32::MAX] {
        case(&format!("crypt_method {method}"), "crypt_method", &move |p| p.be32(CRYPT, method));
    }
    case("LUKS without its header", "encrypt", &|p| p.be32(CRYPT, 2));
    for at in [65_536, 65_530, len, u64::MAX - 3] {
        let name = format!("a backing name at {at}");
        case(&name, "backing", &move |p| p.be64(BACKING, at).be32(BACKING_LEN, 8));
    }
    for length in [1024, 65_536, u32::MAX] {
        let name = format!("a backing name of {length} bytes");
        case(&name, "backing", &move |p| p.be64(BACKING, 4096).be32(BACKING_LEN, length));
    }
    case("a data file bit without a name", "data file", &|p| p.be64(INCOMPATIBLE, 4));
    case("extended L2 in small clusters", "", &|p| p.be64(INCOMPATIBLE, 16).be32(CLUSTER_BITS, 13));
    for length in [71, 100] {
        case(&format!("cut after {length} bytes"), "", &move |p| p.resize(length));
    }
    // The gate may let it pass: it needs a key, and does no harm.
    cases.add("crypt_method 1", &pattern, AtOpen("encrypt"), Gate::Any, |p| p.be32(CRYPT, 1));
    judge(&cases.cases);
}

#[test]
fn an_encrypted_image_needs_its_secret() {
    let folder = temp();
    let image = folder.path().join("luks.qcow2");
    let args = "create -q -f qcow2 --object secret,id=s,data=123 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    qemu_img(args.split(' ').chain([image.to_str().unwrap(), "1M"]));
    let mut case =
        Case { name: "LUKS".to_owned(), image, how: Vec::new(), verdict: AtOpen("encrypt"), gate: Gate::Any };
    // `info` tells of it all the same.
    let infos = cowhand::info(&case.image, &cowhand::Open::default(), false);
    assert!(infos.is_err() || infos.unwrap()[0].details.encrypted);
    case.name.push('!');
    judge(&[case]);
}

/// Guest offsets go through L1 at this place to the first L2 table.
fn first_l2(pattern: &Patch) -> usize {
    (pattern.read_be64(pattern.read_be64(L1) as usize) & 0x00ff_ffff_ffff_fe00) as usize
}

#[test]
fn refused_on_read() {
    let folder = temp();
    const COPIED: u64 = 1 << 63;
    let mut cases = Cases::new(folder.path(), "qcow2");
    for (options, step) in [("", 8), ("extended_l2=on", 16), ("cluster_size=4k", 8)] {
        let pattern = made(folder.path(), "pattern.qcow2", options, false);
        let l1 = pattern.read_be64(L1) as usize;
        let l2 = first_l2(&pattern);
        let cluster = 1_u64 << pattern.read_be32(CLUSTER_BITS);
        let end = (pattern.len() as u64).next_multiple_of(cluster);
        let refcounts = pattern.read_be64(REFCOUNTS);
        let block = pattern.read_be64(refcounts as usize);
        let entries = [
            ("unaligned", cluster + 512 + if cluster == 512 { 1 } else { 0 }),
            ("past the end", end + 16 * cluster),
            ("far past the end", 1 << 55),
            ("into the header", 0),
            ("into the L1 table", l1 as u64),
            ("into the refcount table", refcounts),
            ("into a refcount block", block),
        ];
        for (name, to) in entries {
            let to = to & 0x00ff_ffff_ffff_fe00;
            if to == 0 {
                continue;
            }
            cases.add(&format!("{options} L1 entry {name}"), &pattern, OnRead("L1"), Gate::Any, |p| {
                p.be64(l1, COPIED | to)
            });
            cases.add(&format!("{options} L2 entry {name}"), &pattern, OnRead("L2"), Gate::Any, |p| {
                p.be64(l2 + 3 * step, COPIED | to)
            });
        }
        cases.add(
            &format!("{options} L2 entry into its own table"),
            &pattern,
            OnRead("L2"),
            Gate::Any,
            |p| p.be64(l2 + 3 * step, COPIED | l2 as u64),
        );
        if step == 16 {
            cases.add("a subcluster both zero and there", &pattern, OnRead("L2"), Gate::Any, |p| {
                p.be64(l2 + 8, 1 << 32 | 1)
            });
        }
        cases.add(&format!("{options} cut in half"), &pattern, Somewhere, Gate::Any, |p| {
            p.resize((1 << 20) + 100)
        });
    }
    for (options, compression) in [("", "deflate"), ("compression_type=zstd", "zstd")] {
        let pattern = made(folder.path(), "pattern.qcow2", options, true);
        let l2 = first_l2(&pattern);
        let entry = pattern.read_be64(l2);
        assert!(entry & 1 << 62 != 0, "a compressed cluster");
        // For clusters of 64 KiB: 54 bits of offset, 8 of sectors.
        let at = (entry & ((1 << 54) - 1)) as usize;
        let word = |part: &str| format!("{compression}: {part}");
        cases.add(&word("garbage"), &pattern, OnRead("compressed"), Gate::Any, |p| p.put(at, &[0xff; 4000]));
        cases.add(&word("flipped inside"), &pattern, OnRead("compressed"), Gate::Any, |p| {
            let bytes: Vec<u8> = p.get(at + 700, 900).iter().map(|byte| byte ^ 0x5a).collect();
            p.put(at + 700, &bytes)
        });
        cases.add(&word("past the end"), &pattern, OnRead(""), Gate::Any, |p| {
            p.be64(l2, entry & !((1 << 54) - 1) | (1 << 40))
        });
        cases.add(&word("fewer sectors than it takes"), &pattern, OnRead("compressed"), Gate::Any, |p| {
            p.be64(l2, entry & !(0xff << 54))
        });
        cases.add(&word("cut off"), &pattern, Somewhere, Gate::Any, |p| p.resize(at + 1000));
    }
    let pattern = made(folder.path(), "pattern.qcow2", "", true);
    let l2 = first_l2(&pattern);
    let at = (pattern.read_be64(l2) & ((1 << 54) - 1)) as usize;
    // Stored blocks (RFC 1951, 3.2.4): 100 bytes, and 65,535 + 65,535 bytes.
    cases.add("deflate: inflates to less", &pattern, OnRead("compressed"), Gate::Any, |p| {
        p.put(at, &[1, 100, 0, 155, 255])
    });
    cases.add("deflate: inflates to more", &pattern, OnRead("compressed"), Gate::Any, |p| {
        let end = p.len().next_multiple_of(65_536) as u64;
        let block = [[0, 255, 255, 0, 0].as_slice(), &[7; 65_535]].concat();
        let last = [[1, 255, 255, 0, 0].as_slice(), &[7; 65_535]].concat();
        p.put(end as usize, &[block, last].concat());
        p.be64(l2, 1 << 62 | 0xff << 54 | end)
    });
    judge(&cases.cases);
}

#[test]
fn bounded() {
    let folder = temp();
    let mut cases = Cases::new(folder.path(), "qcow2");
    let pattern = made(folder.path(), "pattern.qcow2", "", false);
    let l2 = first_l2(&pattern) as u64;
    cases.add("4096 L1 entries share one L2 table", &pattern, Fine, Gate::Any, |p| {
        let at = p.len().next_multiple_of(65_536);
        for n in 0..4096 {
            p.be64(at + n * 8, 1 << 63 | l2);
        }
        p.be64(L1, at as u64).be32(L1_SIZE, 4096).be64(SIZE, 4096 << 29)
    });
    cases.add("65536 empty snapshots", &pattern, Somewhere, Gate::Any, |p| {
        let at = p.len().next_multiple_of(65_536);
        p.resize(at + 65_536 * 40).be32(SNAPSHOT_COUNT, 65_536).be64(SNAPSHOTS, at as u64)
    });
    let mut all = cases.cases;
    // Entries without a name or an id are well-formed: opening may take them.
    if let Some(last) = all.last_mut() {
        last.verdict = Fine;
    }
    for (name, options, size) in [
        ("empty, 1 PiB", "cluster_size=2M", "1P"),
        ("empty, 2 TiB in small clusters", "cluster_size=4k", "1T"),
        ("empty, 1 PiB, extended", "cluster_size=2M,extended_l2=on", "1P"),
    ] {
        let image = folder.path().join(format!("{name}.qcow2"));
        qemu_img(["create", "-q", "-f", "qcow2", "-o", options, image.to_str().unwrap(), size]);
        all.push(Case { name: name.to_owned(), image, how: Vec::new(), verdict: Fine, gate: Gate::Safe });
    }
    judge(&all);
}

/// One active partition, and the signature.
fn mbr(p: &mut Patch) -> &mut Patch {
    p.put(446, &[0x80, 0, 2, 0, 0x83, 0, 8, 0, 1, 0, 0, 0, 100, 0, 0, 0]).put(510, &[0x55, 0xaa])
}

/// An ISO 9660 volume descriptor.
fn iso(p: &mut Patch) -> &mut Patch {
    p.put(32_768, b"\x01CD001\x01")
}

#[test]
fn ambiguous() {
    let folder = temp();
    let mut cases = Cases::new(folder.path(), "qcow2");
    let pattern = made(folder.path(), "pattern.qcow2", "", false);
    cases.add("qcow2 and MBR", &pattern, AtOpen("-f"), Gate::Ambiguous, mbr);
    cases.add("qcow2 and ISO", &pattern, AtOpen("-f"), Gate::Ambiguous, iso);
    cases.add("qcow2, ISO and MBR", &pattern, AtOpen("-f"), Gate::Ambiguous, |p| {
        mbr(p);
        iso(p)
    });
    let mut told = cases.cases[2].clone();
    told.name = "the same with -f".to_owned();
    told.how = vec!["format=qcow2".to_owned()];
    told.verdict = Fine;
    cases.cases.push(told);
    // Not ambiguous: a guest's own disk with both, as isohybrid images are.
    let raw = folder.path().join("hybrid.raw");
    let mut hybrid = pattern.clone();
    hybrid.put(0, &[0; 512]);
    mbr(&mut hybrid);
    iso(&mut hybrid);
    hybrid.save(&raw);
    cases.cases.push(Case {
        name: "isohybrid".to_owned(),
        image: raw,
        how: Vec::new(),
        verdict: Fine,
        gate: Gate::Safe,
    });
    judge(&cases.cases);
}

/// A file that ends inside its last cluster is legal: the tail reads zero.
#[test]
fn a_last_cluster_cut_short_is_fine() {
    let folder = temp();
    let image = folder.path().join("cut.qcow2");
    qemu_img(["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "1M"]);
    qemu_io(["-f", "qcow2"], &image, ["write -P 7 0 4k"]);
    let mut patch = Patch::of(&image);
    let l2 = first_l2(&patch);
    let data = (patch.read_be64(l2) & 0x00ff_ffff_ffff_fe00) as usize;
    patch.resize(data + 1000);
    patch.save(&image);
    let disk = cowhand::open(&image, &cowhand::Open::default()).unwrap();
    let mut buf = [1; 4096];
    disk.read(0, &mut buf).unwrap();
    assert!(buf[..1000].iter().all(|byte| *byte == 7) && buf[1000..].iter().all(|byte| *byte == 0));
}

/// What an image may not be written for, for its references lead into metadata.
#[test]
fn writing_is_refused() {
    let folder = temp();
    let pattern = made(folder.path(), "pattern.qcow2", "", false);
    let l2 = first_l2(&pattern);
    let refcounts = pattern.read_be64(REFCOUNTS);
    let block = pattern.read_be64(refcounts as usize);
    let data = pattern.read_be64(l2);
    type Change<'a> = &'a dyn Fn(&mut Patch) -> &mut Patch;
    let changes: [(&str, Change); 4] = [
        ("L2 entry into the L1 table", &|p| p.be64(l2, 1 << 63 | p.read_be64(L1))),
        ("L2 entry into a refcount block", &|p| p.be64(l2, 1 << 63 | block)),
        ("refcount block entry into the L2 table", &|p| p.be64(refcounts as usize, l2 as u64)),
        ("a used cluster with refcount 0", &|p| {
            let cluster = (data & 0x00ff_ffff_ffff_fe00) / 65_536;
            p.put((block + 2 * cluster) as usize, &[0, 0])
        }),
    ];
    for (name, change) in changes {
        let image = folder.path().join("image.qcow2");
        let mut patch = pattern.clone();
        change(&mut patch);
        patch.save(&image);
        let how = cowhand::Open { writable: true, ..cowhand::Open::default() };
        let wrote = cowhand::open(&image, &how).and_then(|disk| {
            // Into what is there, and into something new.
            disk.write(0, &[1; 70_000])?;
            disk.write((2 << 20) - 4096, &[1; 4096])?;
            disk.close()
        });
        let error = wrote.expect_err(name);
        assert_eq!(error.kind(), cowhand::ErrorKind::Corrupt, "{name}: {error}");
        let now = Patch::of(&image);
        // Header, tables and the damage are as they were: nothing was overwritten.
        for at in [0, pattern.read_be64(L1) as usize, block as usize, refcounts as usize] {
            if at != block as usize || !name.contains("refcount 0") {
                assert_eq!(now.get(at, 4096), patch.get(at, 4096), "{name}: changed at {at}");
            }
        }
    }
}
