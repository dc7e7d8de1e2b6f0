//! Archives that break one rule each, or are damaged in one place: what Proxmox's tool says of them, and what is still
//! intact in them.

use std::collections::BTreeSet;

use crate::vma_reader::{BLOCK, CLUSTER, EXTENT};
use crate::{Rng, VmaBlobs, VmaBuilt, VmaFile, VmaRescue, VmaSlot, vma_fix_extent, vma_fix_header};

const K: u64 = 1 << 10;

/// An archive that is not as it should be.
#[derive(Clone, Debug)]
pub struct VmaDamaged {
    /// What is wrong.
    pub name: String,
    /// The archive.
    pub bytes: Vec<u8>,
    /// What Proxmox's tool says when it extracts; none: it takes it.
    pub says: Option<String>,
    /// What is intact; none: the header is not, so that nobody can tell.
    pub rescue: Option<VmaRescue>,
    /// Clusters of which nobody can tell whether they are intact.
    pub unsure: BTreeSet<(u8, u32)>,
}

impl VmaDamaged {
    fn new(name: impl Into<String>, bytes: Vec<u8>, says: &str, rescue: Option<VmaRescue>) -> VmaDamaged {
        let says = (!says.is_empty()).then(|| says.to_owned());
        VmaDamaged { name: name.into(), bytes, says, rescue, unsure: BTreeSet::new() }
    }

    fn unsure(mut self, built: &VmaBuilt, extents: &[usize]) -> VmaDamaged {
        let slots = extents.iter().flat_map(|n| &built.extents[*n].slots);
        self.unsure = slots.map(|slot| (slot.device, slot.cluster)).collect();
        self
    }
}

/// The archive that is damaged: two disks in a dozen extents.
pub fn vma_sound() -> VmaBuilt {
    let mut file = VmaFile { slots: 3, ..VmaFile::new("sound") }
        .config("qemu-server.conf", crate::vma_qemu_server_conf(&["drive-scsi0", "drive-scsi1"]))
        .disk("drive-scsi0", 1100 * K)
        .disk("drive-scsi1", 500 * K + 512);
    // Every extent has something, and no two disks the same.
    for disk in &mut file.disks {
        let size = disk.content.size();
        let mut at = 0;
        while at < size {
            let filled = Rng::new(at + u64::from(disk.id)).bytes(2 * BLOCK);
            disk.content.write(at, &filled[..filled.len().min((size - at) as usize)]);
            at += CLUSTER;
        }
    }
    file.build()
}

/// Headers that no reader takes.
pub fn vma_bad_headers() -> Vec<VmaDamaged> {
    let sound = vma_sound();
    let mut cases = Vec::new();
    let mut case = |name: &str, says: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sound.bytes.clone();
        change(&mut bytes);
        cases.push(VmaDamaged::new(name, bytes, says, None));
    };
    let be32 = |bytes: &mut Vec<u8>, at: usize, value: u32| {
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        vma_fix_header(bytes);
    };
    for cut in [0, 1, 4, 60, 12_287] {
        case(&format!("cut at {cut}"), "can't read vma header - got EOF", &|b| b.truncate(cut));
    }
    for cut in [12_288, 12_300, sound.header - 1] {
        case(&format!("cut at {cut}"), "can't read vma header data - got EOF", &|b| b.truncate(cut));
    }
    for size in [13_000_000, 0x7fff_ffff, 0x8000_2fff] {
        case(&format!("{size} bytes said"), "can't read vma header data - got EOF", &|b| be32(b, 56, size));
    }
    case("another magic", "not a vma file - wrong magic number", &|b| b[3] = 1);
    for size in [0_u32, 1, 512, 12_287, 12_288, 0x8000_3000, 0xffff_ffff] {
        let says = format!("wrong vma header size {}", size.cast_signed());
        case(&format!("a header of {size} bytes"), &says, &|b| be32(b, 56, size));
    }
    for version in [0, 2, 0x0100_0000, u32::MAX] {
        case(&format!("version {version}"), "wrong vma version", &|b| be32(b, 4, version));
    }
    for at in [0, 1, 12_287] {
        case(&format!("blobs at {at}"), "wrong vma blob buffer offset", &|b| be32(b, 48, at));
    }
    for (at, size) in
        [(12_288, 513 + 12_288), (12_288, u32::MAX), (u32::MAX, 1), (u32::MAX, u32::MAX), (20_000, 20)]
    {
        case(&format!("{size} bytes of blobs at {at}"), "wrong vma blob buffer size", &|b| {
            be32(b, 48, at);
            be32(b, 52, size);
        });
    }
    for (n, pointer) in [(2044, 2), (2044, 0xffff_ffff), (3068, 5), (3068, 1 << 16)] {
        case(&format!("pointer {pointer} at {n}"), "vma contains invalid data pointers", &|b| {
            be32(b, n, pointer)
        });
    }
    case("a configuration's name without its NUL", "vma contains invalid data pointers", &|b| {
        let at = b.windows(17).position(|found| found == b"qemu-server.conf\0").unwrap();
        b[at + 16] = b'x';
        vma_fix_header(b);
    });
    cases
}

/// Headers of which one byte fell over: the sum says so, and all the rest is as it was.
pub fn vma_flipped_headers() -> Vec<VmaDamaged> {
    let sound = vma_sound();
    let places = [
        (24, "the time"),
        (40, "the sum itself"),
        (100, "a reserved byte"),
        (4000, "an unused pointer"),
        (11_000, "an unused device"),
        (sound.header - 1, "the padding"),
    ];
    let flip = |(at, name): (usize, &str)| {
        let mut bytes = sound.bytes.clone();
        bytes[at] ^= 0x10;
        let rescue = sound.rescue(|_| usize::MAX);
        VmaDamaged::new(format!("a bit of {name}"), bytes, "wrong vma header chechsum", Some(rescue))
    };
    let mut cases: Vec<VmaDamaged> = places.into_iter().map(flip).collect();
    let at = sound.bytes.windows(6).position(|found| found == b"cores:").unwrap();
    cases.push(flip((at + 7, "a configuration")));
    cases
}

/// Extents that break one rule.
pub fn vma_bad_extents() -> Vec<VmaDamaged> {
    let sound = vma_sound();
    let file = &sound.file;
    let (n, last) = (4, sound.extents.len() - 1);
    let mut cases = Vec::new();
    let extent = |n: usize| sound.extents[n].at..sound.extents[n].at + sound.extents[n].len;
    let without = |gone: &[usize]| {
        let gone = gone.to_vec();
        sound.rescue(move |n| if gone.contains(&n) { 0 } else { usize::MAX })
    };
    // The header of extent `n` changed, its sum right.
    let mut header = |name: &str, says: &str, unsure: &[usize], change: &dyn Fn(&mut [u8])| {
        let mut bytes = sound.bytes.clone();
        let at = sound.extents[n].at;
        change(&mut bytes[at..]);
        vma_fix_extent(&mut bytes, at);
        let mut gone = unsure.to_vec();
        gone.push(n);
        cases.push(VmaDamaged::new(name, bytes, says, Some(without(&gone))).unsure(&sound, unsure));
    };
    header("another identity", "wrong vma extent uuid", &[], &|b| b[8] ^= 1);
    header("another magic", "wrong vma extent header magic", &[], &|b| b[3] = b'F');
    header("reserved bytes", "wrong vma extent header magic", &[n], &|b| b[5] = 1);
    header("a block less than the masks have", "short vma extent - too many blocks", &[n], &|b| b[7] -= 1);
    header("a block more than the masks have", "vma extent error - missing blocks", &[n, n + 1], &|b| {
        b[7] += 1
    });
    header("a mask that has less", "vma extent error - missing blocks", &[n], &|b| b[41] &= 0xfe);
    header("a mask that has more", "short vma extent - too many blocks", &[n], &|b| {
        // What is clear in the first slot that has a clear bit.
        let at = (40..).step_by(8).find(|at| b[*at] != 0xff).unwrap();
        b[at] = 0xff;
    });
    header("65535 blocks", "short vma extent", &(n..=last).collect::<Vec<_>>(), &|b| b[6..8].fill(0xff));
    header("945 blocks", "short vma extent", &(n..=last).collect::<Vec<_>>(), &|b| {
        b[6..8].copy_from_slice(&945_u16.to_be_bytes());
    });
    for device in [3, 77, 254, 255] {
        header(&format!("device {device}"), &format!("got wrong dev id {device}"), &[n], &|b| b[43] = device);
    }
    header("a cluster far behind", "got wrong block address - write beyond end", &[n], &|b| {
        b[44..48].fill(0xff);
    });
    header(
        "a cluster that came before",
        "found duplicated cluster 0 for stream drive-scsi0",
        &[0, n],
        &|b| {
            b[44..48].fill(0);
        },
    );
    header("a cluster twice", "found duplicated cluster", &[n], &|b| b.copy_within(44..48, 52));

    // The disk's last cluster with more blocks than the disk.
    let whole = |slots: Vec<VmaSlot>, change: &dyn Fn(&mut Vec<VmaSlot>)| {
        let mut slots = slots;
        change(&mut slots);
        file.extent_bytes(&slots)
    };
    let patched = |n: usize, with: Vec<u8>| {
        let mut bytes = sound.bytes.clone();
        bytes.splice(extent(n), with);
        bytes
    };
    let slots = |n: usize| sound.extents[n].slots.clone();
    let bytes = patched(
        last,
        whole(slots(last), &|slots| {
            let slot = slots.last_mut().unwrap();
            slot.mask |= 0x8000;
            slot.blocks.extend([1; BLOCK]);
        }),
    );
    let says = "got wrong block address - write beyond end";
    cases.push(
        VmaDamaged::new("a block past the end", bytes, says, Some(without(&[]))).unsure(&sound, &[last]),
    );
    // The same cluster twice, with the same content.
    let bytes = patched(n, whole(slots(n), &|slots| slots.push(slots[0].clone())));
    let rescue = Some(without(&[]));
    let says = "found duplicated cluster";
    cases.push(VmaDamaged::new("a cluster twice, alike", bytes, says, rescue).unsure(&sound, &[n]));
    // A cluster that no extent has.
    let bytes = patched(n, whole(slots(n), &|slots| drop(slots.remove(1))));
    let mut rescue = without(&[n]);
    let mut only = sound.clone();
    only.extents[n].slots.remove(1);
    let found = only.rescue(|_| usize::MAX);
    (rescue.disks, rescue.missing) = (found.disks, found.missing);
    let gone = &sound.extents[n].slots[1];
    let says = format!("detected missing cluster {} for stream drive-scsi0", gone.cluster);
    cases.push(VmaDamaged::new("a cluster nowhere", bytes, &says, Some(rescue)));
    cases
}

/// A memory stream whose clusters come in another order.
pub fn vma_bad_memory() -> Vec<VmaDamaged> {
    let mut cases = Vec::new();
    for (name, clusters) in
        [("swapped", [0_u32, 2, 1]), ("from the second on", [1, 2, 3]), ("twice", [0, 1, 1])]
    {
        let mut built = VmaFile { slots: 3, ..VmaFile::new("memory") }.disk("vmstate", 3 * CLUSTER).build();
        let at = built.extents[0].at;
        for (n, cluster) in clusters.into_iter().enumerate() {
            let place = at + 40 + 8 * n + 4;
            built.bytes[place..place + 4].copy_from_slice(&cluster.to_be_bytes());
        }
        vma_fix_extent(&mut built.bytes, at);
        let name = format!("memory, {name}");
        cases.push(VmaDamaged::new(name, built.bytes, "found out of order vmstate data", None));
    }
    cases
}

/// What happens to files.
pub fn vma_broken_files() -> Vec<VmaDamaged> {
    let sound = vma_sound();
    let mut rng = Rng::new(11);
    let mut cases = Vec::new();
    let count = sound.extents.len();
    let at = |n: usize| sound.extents[n].at;
    let all = || sound.rescue(|_| usize::MAX);
    let without = |gone: usize| sound.rescue(move |n| if n == gone { 0 } else { usize::MAX });
    let up_to = |end: usize| sound.rescue(|n| end.saturating_sub(at(n)).min(sound.extents[n].len));
    let (n, missing, sum) = (5, "detected missing cluster", "wrong vma extent header chechsum");

    // Cut.
    let inside = at(n) + EXTENT + 3 * BLOCK + 17;
    for (end, says) in [
        (sound.header, missing.to_owned()),
        (sound.header + 1, "read short extent (1 bytes)".to_owned()),
        (sound.header + 100, "read short extent (100 bytes)".to_owned()),
        (at(1), missing.to_owned()),
        (at(n), missing.to_owned()),
        (at(n) + 511, "read short extent (511 bytes)".to_owned()),
        (at(n) + EXTENT, format!("short vma extent (512 < {})", sound.extents[n].len)),
        (inside, format!("short vma extent ({} < {})", inside - at(n), sound.extents[n].len)),
        (sound.bytes.len() - 1, "short vma extent".to_owned()),
        (at(count - 1), missing.to_owned()),
    ] {
        let bytes = sound.bytes[..end].to_vec();
        cases.push(VmaDamaged::new(format!("cut at {end}"), bytes, &says, Some(up_to(end))));
    }
    let mut case =
        |name: String, says: &str, rescue: VmaRescue, unsure: &[usize], change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = sound.bytes.clone();
            change(&mut bytes);
            cases.push(VmaDamaged::new(name, bytes, says, Some(rescue)).unsure(&sound, unsure));
        };
    // A bit that fell over in an extent's header.
    for place in [0, 4, 6, 7, 8, 23, 24, 39, 40, 43, 47, 200, 511] {
        case(format!("a bit of an extent's byte {place}"), sum, without(n), &[], &|b| b[at(n) + place] ^= 4);
    }
    // Sectors and pages that read zero, or as anything.
    for (name, len) in [("a sector", 512), ("a page", 4096)] {
        case(format!("{name} of zeros over an extent's header"), sum, without(n), &[n], &|b| {
            b[at(n)..at(n) + len].fill(0);
        });
        let noise = rng.bytes(len);
        case(format!("{name} of noise over an extent's header"), sum, without(n), &[n], &|b| {
            b[at(n)..at(n) + len].copy_from_slice(&noise);
        });
    }
    case(
        "all but the ends is zero".to_owned(),
        sum,
        sound.rescue(|n| if n == 0 || n == count - 1 { usize::MAX } else { 0 }),
        &[],
        &|b| {
            b[at(1)..at(count - 1)].fill(0);
        },
    );
    for n in [0, n, count - 1] {
        case(format!("extent {n} is gone"), missing, without(n), &[], &|b| {
            b.drain(at(n)..at(n) + sound.extents[n].len);
        });
        case(format!("extent {n} is there twice"), "found duplicated cluster", all(), &[], &|b| {
            let extent = b[at(n)..at(n) + sound.extents[n].len].to_vec();
            b.splice(at(n)..at(n), extent);
        });
    }
    // Bytes between extents that are none: lengths, and things that look like an extent.
    let other = VmaFile { slots: 2, ..VmaFile::new("another") }.disk("drive-scsi0", 200 * K).build();
    let mut fake = b"VMAE\0\0\0\x10".to_vec();
    fake.extend(sound.file.uuid);
    let mut twice = fake.clone();
    twice.extend(rng.bytes(1000));
    twice.extend(&fake);
    for (name, garbage) in [
        ("a byte", vec![7]),
        ("511 bytes", rng.bytes(511)),
        ("512 bytes", rng.bytes(512)),
        ("100000 bytes", rng.bytes(100_000)),
        ("1 MiB of zeros", vec![0; 1 << 20]),
        ("a magic", b"VMAE".to_vec()),
        ("many magics", b"VMAE".repeat(3000)),
        ("a magic and an identity", fake.clone()),
        ("two magics with identities", twice),
        ("an extent's header without its end", sound.bytes[at(n)..at(n) + 300].to_vec()),
        ("another archive", other.bytes.clone()),
        ("this archive's header", sound.bytes[..sound.header].to_vec()),
    ] {
        for where_to in [0, n] {
            // Whether they came in between two extents or into the first one's data, nobody can tell, but by whole
            // sectors, which are what storage loses and makes up.
            let before: &[usize] =
                if where_to == 0 || garbage.len().is_multiple_of(512) { &[] } else { &[n - 1] };
            case(format!("{name} before extent {where_to}"), "", all(), before, &|b| {
                b.splice(at(where_to)..at(where_to), garbage.iter().copied());
            });
        }
        case(format!("{name} at the end"), "", all(), &[], &|b| b.extend(&garbage));
    }
    case("the archive twice".to_owned(), sum, all(), &[], &|b| b.extend(b.clone()));
    // Bytes that are gone, or that came into an extent's data: what stands behind them moves.
    for len in [1, 512, 4096, 10_000] {
        case(format!("{len} bytes gone from an extent's data"), "", without(n), &[n], &|b| {
            b.drain(at(n) + EXTENT + 5000..at(n) + EXTENT + 5000 + len);
        });
        case(format!("{len} bytes come into an extent's data"), "", without(n), &[n], &|b| {
            let noise = Rng::new(3).bytes(len);
            b.splice(at(n) + EXTENT + 5000..at(n) + EXTENT + 5000, noise);
        });
        // Across a border: the next header is lost too.
        case(
            format!("{len} bytes gone from where extents meet"),
            "",
            sound.rescue(|m| if m == n || m + 1 == n { 0 } else { usize::MAX }),
            &[n - 1],
            &|b| {
                b.drain(at(n) - len / 2..at(n) + len - len / 2);
            },
        );
    }
    // The order of extents is free: this is no damage at all.
    let mut bytes = sound.bytes[..sound.header].to_vec();
    for extent in sound.extents.iter().rev() {
        bytes.extend(&sound.bytes[extent.at..extent.at + extent.len]);
    }
    cases.push(VmaDamaged::new("extents in another order: sound", bytes, "", Some(all())));
    for case in &mut cases {
        // Whatever the bytes are, some sum is wrong, or the rest is too short for one.
        if case.says.is_none() && !case.name.ends_with("sound") {
            case.says = Some(String::new());
        }
    }
    cases
}

/// Devices and configurations that Proxmox's tool passes over without a word.
pub fn vma_passed_over() -> Vec<VmaDamaged> {
    let file = VmaFile { blobs: VmaBlobs::Proxmox, ..vma_sound().file };
    let mut cases = Vec::new();
    let mut case = |name: &str, change: &dyn Fn(&mut [u8])| {
        let built = file.clone().build();
        let mut bytes = built.bytes.clone();
        change(&mut bytes[..built.header]);
        vma_fix_header(&mut bytes);
        let rescue = built.rescue(|_| usize::MAX);
        cases.push(VmaDamaged::new(name, bytes, "", Some(rescue)));
    };
    case("a device without a name", &|b| b[4096 + 32 * 9 + 15] = 7);
    case("a device without a size", &|b| b[4096 + 32 * 9 + 3] = 1);
    case("a device whose name is nowhere", &|b| {
        b[4096 + 32 * 9 + 3] = 3;
        b[4096 + 32 * 9 + 15] = 7;
    });
    case("a configuration with a name alone", &|b| b[2044 + 4 * 9 + 3] = 1);
    case("a configuration with data alone", &|b| b[3068 + 4 * 9 + 3] = 1);
    case("device 0", &|b| {
        b[4096 + 3] = 1;
        b[4096 + 15] = 7;
    });
    cases
}
