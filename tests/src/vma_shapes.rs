//! Every legal shape of a VMA archive that readers must take.

use crate::vma_reader::{BLOCK, CLUSTER};
use crate::{Mirror, Rng, VmaBlobs, VmaDisk, VmaFile, VmaOrder, vma_disk_content};

const K: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A configuration as Proxmox has it, for these disks.
pub fn vma_qemu_server_conf(disks: &[&str]) -> String {
    let mut text = "#a machine\nboot: order=scsi0\ncores: 2\nmemory: 2048\nname: a\n".to_owned();
    for disk in disks {
        let device = disk.trim_start_matches("drive-");
        text += &format!("{device}: local-lvm:vm-100-disk-0,size=8M\n");
    }
    for disk in disks {
        text += &format!("#qmdump#map:{}:{disk}:local-lvm:raw:\n", disk.trim_start_matches("drive-"));
    }
    text
}

/// One of each kind; small, but for what must have many clusters.
pub fn vma_shapes() -> Vec<VmaFile> {
    let conf = |disks: &[&str]| vma_qemu_server_conf(disks);
    let two = |name| {
        VmaFile::new(name)
            .config("qemu-server.conf", conf(&["drive-scsi0", "drive-virtio1"]))
            .disk("drive-scsi0", MIB + 300 * K)
            .disk("drive-virtio1", 900 * K + 512)
    };
    let three = |name| two(name).disk("drive-efidisk0", 528 * K);
    vec![
        VmaFile::new("as Proxmox has it")
            .config("qemu-server.conf", conf(&["drive-scsi0", "drive-efidisk0"]))
            .config("qemu-server.fw", "[OPTIONS]\nenable: 1\n")
            .disk("drive-scsi0", 8 * MIB)
            .disk("drive-efidisk0", 528 * K),
        VmaFile { slots: 59, order: VmaOrder::Interleaved, ..VmaFile::new("59 slots") }
            .disk("drive-scsi0", 5 * MIB)
            .disk("drive-scsi1", 4 * MIB),
        VmaFile { slots: 7, order: VmaOrder::Interleaved, ..three("interleaved") },
        VmaFile { slots: 5, order: VmaOrder::Jumps, empty_extents: true, ..three("a running machine") },
        VmaFile { slots: 9, order: VmaOrder::Backwards, blobs: VmaBlobs::Shared, ..three("backwards") },
        VmaFile {
            slots: 11,
            order: VmaOrder::Shuffled,
            blobs: VmaBlobs::Shuffled,
            gaps: true,
            empty_extents: true,
            garbage: true,
            ..three("shuffled, with bytes nobody reads")
        },
        VmaFile { slots: 1, order: VmaOrder::Shuffled, ..two("a cluster to an extent") },
        VmaFile { slots: 6, gaps: true, ..two("unused slots") },
        VmaFile { zeros: true, ..two("zero blocks stored") },
        VmaFile { slots: 8, beyond: true, order: VmaOrder::Shuffled, ..two("empty clusters past the end") },
        VmaFile { full_last: true, ..two("full masks at the end") },
        VmaFile {
            full_last: true,
            garbage: true,
            gaps: true,
            slots: 4,
            ..two("full masks and garbage at the end")
        },
        ends(),
        memory(),
        VmaFile::new("no disk").config("qemu-server.conf", conf(&[])),
        VmaFile { round: 512, padding: (0, 1), ..VmaFile::new("neither disk nor configuration") },
        VmaFile::new("empty configurations")
            .config("qemu-server.conf", "")
            .config("a", "\0")
            .disk("drive-scsi0", 64 * K),
        most(),
        large_header(two("a blob buffer elsewhere")),
        VmaFile { padding: (0, 3 * MIB as usize), ..two("a header of 3 MiB") },
        VmaFile { round: 1, padding: (77, 3), ..two("a header of odd length") },
        numbers(),
        names(),
        VmaFile::new("a disk of zeros").disk("drive-scsi0", 0).zeroed(20 * MIB),
        VmaFile { ctime: -1, uuid: [0; 16], ..two("before 1970, without an identity") },
        shared_configs(),
        twins(),
    ]
}

impl VmaFile {
    /// The last disk is of this size, and zero.
    fn zeroed(mut self, size: u64) -> VmaFile {
        self.disks.last_mut().unwrap().content = Mirror::new(size);
        self
    }
}

/// Disks that end anywhere.
fn ends() -> VmaFile {
    let sizes = [512, 4096, 4608, 8 * K, 64 * K - 512, 64 * K, 64 * K + 512, 2 * 64 * K - 4096, 3 * 64 * K];
    let mut file = VmaFile { slots: 4, ..VmaFile::new("ends anywhere") };
    for (n, size) in sizes.into_iter().enumerate() {
        file = file.disk(&format!("drive-scsi{n}"), size);
        // The last byte counts.
        file.disks.last_mut().unwrap().content.write(size - 1, &[9]);
    }
    file
}

/// A machine's memory between its disks.
fn memory() -> VmaFile {
    let mut file = VmaFile { slots: 6, order: VmaOrder::Interleaved, ..VmaFile::new("a machine's memory") }
        .config("qemu-server.conf", vma_qemu_server_conf(&["drive-scsi0"]))
        .disk("drive-scsi0", 700 * K)
        .disk("vmstate", 9 * CLUSTER)
        .disk("drive-scsi1", 300 * K);
    file.disks[1].content.zero(CLUSTER, 3 * CLUSTER);
    file
}

/// As many disks and configurations as there can be.
fn most() -> VmaFile {
    let mut file = VmaFile { order: VmaOrder::Jumps, ..VmaFile::new("254 disks, 256 configurations") };
    for n in 0..256 {
        file = file.config(&format!("{n}.conf"), format!("this is {n}"));
    }
    for n in 1..255 {
        file = file.disk(&format!("drive-{n}"), 512 * n);
    }
    file
}

/// Blobs with much room before and behind.
fn large_header(file: VmaFile) -> VmaFile {
    VmaFile { padding: (5000, 70_000), ..file }
}

/// Numbers with gaps between, in no order.
fn numbers() -> VmaFile {
    let mut file = VmaFile { slots: 10, ..VmaFile::new("numbers in no order") };
    for (id, name) in [(254, "drive-scsi0"), (3, "drive-scsi1"), (100, "drive-scsi2"), (1, "drive-scsi3")] {
        file.disks.push(VmaDisk::new(id, name, vma_disk_content(400 * K, id.into())));
    }
    file.configs =
        vec![(255, b"last.conf".to_vec(), b"l".to_vec()), (7, b"seventh.conf".to_vec(), b"s".to_vec())];
    file
}

/// Names that mean something to some program, and are good names of files all the same.
fn names() -> VmaFile {
    let mut file = VmaFile::new("odd names").config("my firewall.fw", "x").config("größe", "y");
    for name in
        ["drive scsi0", "größe", "a,b", "x=y", "#7", "-d", "a:b", "drive-scsi0.raw", "con", "*", "$(id)"]
    {
        file = file.disk(name, 64 * K + 512);
    }
    file
}

fn shared_configs() -> VmaFile {
    VmaFile { blobs: VmaBlobs::Shared, ..VmaFile::new("one text, many names") }
        .config("a.conf", "the same")
        .config("b.conf", "the same")
        .config("drive-scsi0", "the same")
        .disk("drive-scsi0", 100 * K)
}

/// Disks that hold an archive, of which each extent begins at a block: whoever looks for extents finds them here too.
fn twins() -> VmaFile {
    let inner = VmaFile { slots: 2, ..VmaFile::new("inner") }.disk("drive-scsi0", 300 * K).build();
    let mut content = Mirror::new(2 * MIB);
    let mut at = BLOCK as u64;
    for extent in &inner.extents {
        let bytes = &inner.bytes[extent.at..extent.at + extent.len];
        content.write(at, bytes);
        at += (bytes.len() as u64).next_multiple_of(BLOCK as u64) + 2 * BLOCK as u64;
    }
    content.write(MIB + 300 * K, &inner.bytes[..inner.bytes.len().min(500 * K as usize)]);
    content.write(2 * MIB - 700, &Rng::new(1).bytes(700));
    let mut file = VmaFile { slots: 4, ..VmaFile::new("an archive in the archive") };
    file.disks.push(VmaDisk::new(1, "drive-scsi0", content));
    file
}
