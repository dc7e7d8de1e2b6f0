//! `check` against `qemu-img check`: the same verdict and the same counts for the same damage.

use std::path::Path;

use cowhand::{Check, Quiet, Repair, Report, check};
use cowhand_tests::{Patch, for_all, qemu_img, qemu_io, temp, try_qemu_img};
use serde_json::Value;

const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// How our counts stand to QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    Same,
    /// Why they differ: both find something wrong.
    Differ(&'static str),
    /// Why only we find something.
    OnlyOurs(&'static str),
}

struct Damaged {
    l1: usize,
    l2: usize,
    table: usize,
    block: usize,
    step: usize,
    cluster: u64,
}

impl Damaged {
    fn of(patch: &Patch) -> Damaged {
        let offset = |at: usize| (patch.read_be64(at) & OFFSET) as usize;
        let (l1, table) = (offset(40), offset(48));
        let cluster = 1 << patch.read_be32(20);
        Damaged { l1, l2: offset(l1), table, block: offset(table), step: 8, cluster }
    }

    fn entry(&self, index: usize) -> usize {
        self.l2 + index * self.step
    }

    /// Where the 16-bit count of the cluster that an entry refers to stands.
    fn count(&self, patch: &Patch, index: usize) -> usize {
        self.block + 2 * ((patch.read_be64(self.entry(index)) & OFFSET) / self.cluster) as usize
    }
}

type Spoil = fn(&mut Patch, &Damaged);

const CASES: &[(&str, Counts, Spoil)] = &[
    ("nothing", Counts::Same, |_, _| {}),
    ("a leak", Counts::Same, |p, d| {
        let cluster = p.len() as u64 / d.cluster - 1;
        p.put(d.block + 2 * cluster as usize, &[0, 1]);
    }),
    ("counts too high", Counts::Same, |p, d| {
        for index in 0..5 {
            p.put(d.count(p, index), &[0, 9]);
        }
    }),
    ("a count of 0", Counts::Same, |p, d| {
        p.put(d.count(p, 3), &[0, 0]);
    }),
    ("two entries for one cluster", Counts::Same, |p, d| {
        p.be64(d.entry(40), p.read_be64(d.entry(0)));
    }),
    ("COPIED is missing", Counts::Same, |p, d| {
        p.be64(d.entry(1), p.read_be64(d.entry(1)) & !COPIED);
    }),
    ("COPIED is missing in L1", Counts::Same, |p, d| {
        p.be64(d.l1, p.read_be64(d.l1) & !COPIED);
    }),
    ("reserved bits in L1 and L2", Counts::Same, |p, d| {
        p.be64(d.l1, p.read_be64(d.l1) | 1 << 57);
        p.be64(d.entry(2), p.read_be64(d.entry(2)) | 1 << 4);
    }),
    ("no refcount block", Counts::Same, |p, d| {
        p.be64(d.table, 0);
    }),
    ("reserved bits of a refcount block", Counts::Differ("QEMU reads the block all the same"), |p, d| {
        p.be64(d.table, p.read_be64(d.table) | 4);
    }),
    (
        "a refcount block past the end",
        Counts::Differ("one entry is one fault: what it would count is not known"),
        |p, d| {
            p.be64(d.table, 1 << 40);
        },
    ),
    (
        "an entry past the end",
        Counts::Differ("QEMU also compares COPIED with a count that cannot be"),
        |p, d| {
            p.be64(d.entry(50), COPIED | 1 << 40);
        },
    ),
    ("an entry inside a cluster", Counts::Differ("QEMU counts both clusters that it touches"), |p, d| {
        p.be64(d.entry(4), p.read_be64(d.entry(4)) + 512);
    }),
    ("guest data in the L1 table", Counts::Differ("the entry and the L1 table are each told"), |p, d| {
        p.be64(d.entry(50), COPIED | d.l1 as u64);
    }),
    ("guest data in the L1 table, counted", Counts::OnlyOurs("QEMU looks at counts alone"), |p, d| {
        p.be64(d.entry(50), d.l1 as u64);
        p.put(d.block + 2 * (d.l1 as u64 / d.cluster) as usize, &[0, 2]);
    }),
    ("COPIED and compressed", Counts::Same, |p, d| {
        let packed = (0..256).find(|index| p.read_be64(d.entry(*index)) >> 62 == 1).unwrap();
        p.be64(d.entry(packed), p.read_be64(d.entry(packed)) | COPIED);
    }),
    ("a compressed cluster past the end", Counts::Differ("QEMU counts it as allocated"), |p, d| {
        p.be64(d.entry(60), 1 << 62 | 1 << 40);
    }),
    (
        "an L1 entry past the end",
        Counts::Differ("QEMU also compares COPIED with a count that cannot be"),
        |p, d| {
            p.be64(d.l1, COPIED | 1 << 40);
        },
    ),
    ("the file cut short", Counts::Differ("QEMU also compares COPIED with counts past the end"), |p, d| {
        p.resize(p.len() / 2 / d.cluster as usize * d.cluster as usize);
    }),
    ("the dirty bit", Counts::Same, |p, _| {
        p.be64(72, 1);
    }),
    ("the corrupt bit", Counts::Same, |p, _| {
        p.be64(72, 2);
    }),
];

fn ours(image: &Path, repair: Repair) -> Report {
    check(image, &Check { repair, ..Check::default() }, &Quiet).unwrap().report.unwrap()
}

fn theirs(image: &Path) -> Value {
    let ran = try_qemu_img(["check", "--output=json", "-f", "qcow2", image.to_str().unwrap()]);
    serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{:?}", ran))
}

fn compare(name: &str, image: &Path, counts: Counts) {
    let (our, their) = (ours(image, Repair::Nothing), theirs(image));
    let number = |key: &str| their[key].as_u64().unwrap_or(0);
    let bad = [number("corruptions"), number("leaks")];
    match counts {
        Counts::Same => assert_eq!([our.corruptions, our.leaks], bad, "{name}: {:#?}", our.faults),
        Counts::Differ(_) => assert!(our.corruptions > 0 && bad[0] > 0, "{name}: {bad:?} {:#?}", our.faults),
        Counts::OnlyOurs(_) => {
            assert!(our.corruptions > 0 && bad[0] == 0, "{name}: {bad:?} {:#?}", our.faults)
        }
    }
    if counts == Counts::Same {
        let tally =
            [our.total_units, our.allocated_units, our.fragmented_units, our.compressed_units, our.image_end];
        let keys = ["total-clusters", "allocated-clusters", "fragmented-clusters", "compressed-clusters"];
        let same: Vec<u64> = keys.iter().chain(&["image-end-offset"]).map(|key| number(key)).collect();
        assert_eq!(tally.map(|count| count.unwrap_or(0)).to_vec(), same, "{name}");
    }
}

#[test]
fn verdicts_and_counts_are_qemus() {
    let folder = temp();
    let kinds = ["", "cluster_size=4k", "compat=0.10", "cluster_size=4k,refcount_bits=16"];
    let all: Vec<(usize, &str)> = kinds.into_iter().enumerate().collect();
    for_all(
        &all,
        |(_, kind)| (*kind).to_owned(),
        |(number, kind)| {
            let good = folder.path().join(format!("good-{number}.qcow2"));
            let text = good.to_str().unwrap();
            let options = if kind.is_empty() { "compat=1.1" } else { kind };
            qemu_img(["create", "-q", "-f", "qcow2", "-o", options, text, "16M"]);
            qemu_io(["-f", "qcow2"], &good, ["write -P 1 0 512k", "write -P 2 1M 300k", "write -z 768k 64k"]);
            qemu_io(
                ["-f", "qcow2"],
                &good,
                ["write -c -P 3 640k 64k", "write -c -P 4 704k 64k", "write -P 5 600k 8k"],
            );
            let pattern = Patch::of(&good);
            let places = Damaged::of(&pattern);
            let image = folder.path().join(format!("bad-{number}.qcow2"));
            for (name, counts, spoil) in CASES {
                let mut patch = pattern.clone();
                let whole = patch.len().next_multiple_of(places.cluster as usize);
                patch.resize(whole + places.cluster as usize);
                if kind.contains("0.10") && name.contains("bit") && name.starts_with("the ") {
                    continue;
                }
                spoil(&mut patch, &places);
                patch.save(&image);
                compare(&format!("{kind}: {name}"), &image, *counts);
                // What we repair, QEMU finds nothing wrong with.
                let repaired = ours(&image, Repair::All);
                assert!(repaired.is_clean(), "{kind}: {name}: {:#?}", repaired.faults);
                let ran = try_qemu_img(["check", "-f", "qcow2", image.to_str().unwrap()]);
                assert!(ran.ok(), "{kind}: {name}, repaired: {}{}\n{:#?}", ran.out, ran.err, repaired.faults);
            }
        },
    );
}

#[test]
fn whole_images_of_every_kind_count_the_same() {
    let folder = temp();
    let kinds = [
        "cluster_size=2M",
        "cluster_size=512,refcount_bits=64",
        "refcount_bits=1",
        "extended_l2=on",
        "compression_type=zstd,refcount_bits=8",
        "preallocation=metadata",
        "cluster_size=64k,lazy_refcounts=on",
    ];
    for_all(
        &kinds,
        |kind| (*kind).to_owned(),
        |kind| {
            let image = folder.path().join(format!("{kind}.qcow2"));
            let text = image.to_str().unwrap();
            qemu_img(["create", "-q", "-f", "qcow2", "-o", kind, text, "16M"]);
            qemu_io(
                ["-f", "qcow2"],
                &image,
                ["write -P 1 5M 700k", "write -P 2 0 300k", "write -P 3 2M 33k"],
            );
            if !kind.contains("refcount_bits=1") && !kind.contains("preallocation") {
                qemu_io(["-f", "qcow2"], &image, ["write -c -P 4 8M 2M"]);
                qemu_img(["snapshot", "-c", "one", text]);
                qemu_io(["-f", "qcow2"], &image, ["write -P 5 1M 1M"]);
            }
            qemu_img(["bitmap", "--add", text, "map"]);
            compare(kind, &image, Counts::Same);
            assert!(ours(&image, Repair::Nothing).is_clean(), "{kind}");
        },
    );
}
