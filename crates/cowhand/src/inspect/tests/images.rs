//! Small contents of every format, made from the specifications, whole and sound: what the tests then break.

/// Puts bytes at an offset, growing with zeros.
pub(super) fn put(image: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    image.resize(image.len().max(at + bytes.len()), 0);
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

pub(super) const CLUSTER: usize = 65536;

/// A qcow2 of version 3, 16 MiB, empty: header, refcount table, refcount block, L1 table.
pub(super) fn qcow2() -> Vec<u8> {
    let mut image = vec![0; 4 * CLUSTER];
    put(&mut image, 0, b"QFI\xfb");
    put(&mut image, 4, &3u32.to_be_bytes());
    put(&mut image, 20, &16u32.to_be_bytes());
    put(&mut image, 24, &(16u64 << 20).to_be_bytes());
    put(&mut image, 36, &1u32.to_be_bytes());
    put(&mut image, 40, &(3 * CLUSTER as u64).to_be_bytes());
    put(&mut image, 48, &(CLUSTER as u64).to_be_bytes());
    put(&mut image, 56, &1u32.to_be_bytes());
    put(&mut image, 96, &4u32.to_be_bytes());
    put(&mut image, 100, &112u32.to_be_bytes());
    image
}

/// The same with this many snapshots of no name, at the end.
pub(super) fn qcow2_with_snapshots(count: u32) -> Vec<u8> {
    let mut image = qcow2();
    let at = image.len();
    put(&mut image, 60, &count.to_be_bytes());
    put(&mut image, 64, &(at as u64).to_be_bytes());
    image.resize(at + count as usize * 40, 0);
    image
}

/// The header extension at the place where the first one stands.
pub(super) fn qcow2_extension(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut image = qcow2();
    put(&mut image, 112, &kind.to_be_bytes());
    put(&mut image, 116, &(data.len() as u32).to_be_bytes());
    put(&mut image, 120, data);
    image
}

fn vhd_sum(bytes: &[u8]) -> [u8; 4] {
    (!bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>()).to_be_bytes()
}

/// A footer of that type.
pub(super) fn vhd_footer(kind: u32, size: u64) -> Vec<u8> {
    let mut footer = vec![0; 512];
    put(&mut footer, 0, b"conectix");
    put(&mut footer, 8, &2u32.to_be_bytes());
    put(&mut footer, 12, &0x10000u32.to_be_bytes());
    put(&mut footer, 16, &if kind == 2 { u64::MAX } else { 512 }.to_be_bytes());
    put(&mut footer, 28, b"win ");
    put(&mut footer, 40, &size.to_be_bytes());
    put(&mut footer, 48, &size.to_be_bytes());
    put(&mut footer, 60, &kind.to_be_bytes());
    let sum = vhd_sum(&footer);
    put(&mut footer, 64, &sum);
    footer
}

pub(super) fn vhd_fixed(guest: &[u8]) -> Vec<u8> {
    let mut image = guest.to_vec();
    image.extend(vhd_footer(2, guest.len() as u64));
    image
}

/// A dynamic or differencing VHD of 16 MiB without a block.
pub(super) fn vhd_sparse(kind: u32) -> Vec<u8> {
    let mut image = vhd_footer(kind, 16 << 20);
    let mut header = vec![0; 1024];
    put(&mut header, 0, b"cxsparse");
    put(&mut header, 8, &u64::MAX.to_be_bytes());
    put(&mut header, 16, &1536u64.to_be_bytes());
    put(&mut header, 24, &0x10000u32.to_be_bytes());
    put(&mut header, 28, &8u32.to_be_bytes());
    put(&mut header, 32, &(2u32 << 20).to_be_bytes());
    let sum = vhd_sum(&header);
    put(&mut header, 36, &sum);
    image.extend(header);
    image.resize(2048, 0xff);
    image.extend(vhd_footer(kind, 16 << 20));
    image
}

const MIB: usize = 1 << 20;

/// A GUID as it stands in a file, from its text.
fn guid(text: u128) -> [u8; 16] {
    let mut bytes = text.to_be_bytes();
    bytes[0..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

pub(super) fn vhdx_seal(image: &mut [u8], at: usize, len: usize) {
    image[at + 4..at + 8].fill(0);
    let sum = crc32c::crc32c(&image[at..at + len]);
    image[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
}

/// Where the metadata region of [`vhdx`] stands: behind its BAT.
pub(super) const VHDX_METADATA: usize = 3 * MIB;

/// An empty dynamic VHDX of 16 MiB.
pub(super) fn vhdx() -> Vec<u8> {
    let mut image = vec![0; 4 * MIB];
    put(&mut image, 0, b"vhdxfile");
    for (copy, at) in [65536, 131_072].into_iter().enumerate() {
        put(&mut image, at, b"head");
        put(&mut image, at + 8, &(7 + copy as u64).to_le_bytes());
        put(&mut image, at + 66, &1u16.to_le_bytes());
        put(&mut image, at + 68, &(MIB as u32).to_le_bytes());
        put(&mut image, at + 72, &(MIB as u64).to_le_bytes());
        vhdx_seal(&mut image, at, 4096);
    }
    for at in [196_608, 262_144] {
        put(&mut image, at, b"regi");
        put(&mut image, at + 8, &2u32.to_le_bytes());
        let regions = [
            (0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08, 2 * MIB),
            (0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e, VHDX_METADATA),
        ];
        for (entry, (name, start)) in regions.into_iter().enumerate() {
            let entry = at + 16 + 32 * entry;
            put(&mut image, entry, &guid(name));
            put(&mut image, entry + 16, &(start as u64).to_le_bytes());
            put(&mut image, entry + 24, &(MIB as u32).to_le_bytes());
            put(&mut image, entry + 28, &1u32.to_le_bytes());
        }
        vhdx_seal(&mut image, at, 65536);
    }
    put(&mut image, VHDX_METADATA, b"metadata");
    put(&mut image, VHDX_METADATA + 10, &3u16.to_le_bytes());
    let items: [(u128, &[u8]); 3] = [
        (0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b, &[0, 0, 0x20, 0, 0, 0, 0, 0]),
        (0x2fa5_4224_cd1b_4876_b211_5dbe_d83b_f4b8, &[0, 0, 0, 1, 0, 0, 0, 0]),
        (0x8141_bf1d_a96f_4709_ba47_f233_a8fa_ab5f, &[0, 2, 0, 0]),
    ];
    for (number, (name, value)) in items.into_iter().enumerate() {
        let entry = VHDX_METADATA + 32 + 32 * number;
        let at = 65536 + 16 * number;
        put(&mut image, entry, &guid(name));
        put(&mut image, entry + 16, &(at as u32).to_le_bytes());
        put(&mut image, entry + 20, &(value.len() as u32).to_le_bytes());
        put(&mut image, entry + 24, &4u32.to_le_bytes());
        put(&mut image, VHDX_METADATA + at, value);
    }
    image
}

pub(super) const DESCRIPTOR: &str = "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
    createType=\"monolithicSparse\"\n\nRW 2048 SPARSE \"disk.vmdk\"\n\nddb.adapterType = \"ide\"\n";

/// A VMDK of 1 MiB with that descriptor.
pub(super) fn vmdk(descriptor: &str) -> Vec<u8> {
    let mut image = vec![0; 65536];
    put(&mut image, 0, b"KDMV");
    put(&mut image, 4, &1u32.to_le_bytes());
    put(&mut image, 12, &2048u64.to_le_bytes());
    put(&mut image, 20, &128u64.to_le_bytes());
    put(&mut image, 28, &1u64.to_le_bytes());
    put(&mut image, 36, &20u64.to_le_bytes());
    put(&mut image, 56, &26u64.to_le_bytes());
    put(&mut image, 512, descriptor.as_bytes());
    image
}

/// The same as a stream, which tells its grain directory in a footer.
pub(super) fn vmdk_stream() -> Vec<u8> {
    let mut image = vmdk(&DESCRIPTOR.replace("monolithicSparse", "streamOptimized"));
    let header = image[..512].to_vec();
    put(&mut image, 56, &u64::MAX.to_le_bytes());
    let mut marker = vec![0; 512];
    put(&mut marker, 0, &1u64.to_le_bytes());
    put(&mut marker, 12, &3u32.to_le_bytes());
    image.extend(marker);
    image.extend(header);
    image.extend([0; 512]);
    image
}

pub(super) fn vdi() -> Vec<u8> {
    let mut image = vec![0; 4096];
    put(&mut image, 0x40, &0xbeda_107fu32.to_le_bytes());
    put(&mut image, 0x44, &0x0001_0001u32.to_le_bytes());
    put(&mut image, 0x4c, &1u32.to_le_bytes());
    put(&mut image, 0x170, &(16u64 << 20).to_le_bytes());
    image
}

pub(super) fn qed() -> Vec<u8> {
    let mut image = vec![0; 4096];
    put(&mut image, 0, b"QED\0");
    put(&mut image, 48, &(16u64 << 20).to_le_bytes());
    image
}

pub(super) fn luks() -> Vec<u8> {
    let mut image = vec![0; 8192];
    put(&mut image, 0, b"LUKS\xba\xbe");
    put(&mut image, 6, &1u16.to_be_bytes());
    put(&mut image, 104, &8u32.to_be_bytes());
    image
}

/// A header of one disk, and its checksum.
pub(super) fn vma() -> Vec<u8> {
    let mut image = vec![0; 12800];
    put(&mut image, 0, b"VMA\0\0\0\0\x01");
    put(&mut image, 8, &[7; 16]);
    put(&mut image, 32, &0xd9cb4de659c87480ee72f11c88725b65_u128.to_be_bytes());
    put(&mut image, 48, &[12288_u32, 16, 12800].map(u32::to_be_bytes).concat());
    put(&mut image, 4128, &1_u32.to_be_bytes());
    put(&mut image, 4136, &4096_u64.to_be_bytes());
    put(&mut image, 12289, b"\x05\0disk\0");
    image
}

pub(super) fn iso() -> Vec<u8> {
    let mut image = vec![0; 65536];
    put(&mut image, 32768, b"\x01CD001\x01");
    put(&mut image, 32768 + 80, &20u32.to_le_bytes());
    put(&mut image, 32768 + 128, &2048u16.to_le_bytes());
    image
}

/// Writes a boot record with one partition into a content.
pub(super) fn add_mbr(image: &mut Vec<u8>) {
    put(image, 446, &[0x80, 1, 1, 0, 0x83, 2, 2, 2, 8, 0, 0, 0, 16, 0, 0, 0]);
    put(image, 510, &[0x55, 0xaa]);
}

pub(super) fn mbr() -> Vec<u8> {
    let mut image = vec![0; 8192];
    add_mbr(&mut image);
    image
}

/// One of each.
pub(super) fn every() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("qcow2", qcow2()),
        ("qcow2 with snapshots", qcow2_with_snapshots(3)),
        ("vhd fixed", vhd_fixed(&mbr())),
        ("vhd dynamic", vhd_sparse(3)),
        ("vhd differencing", vhd_sparse(4)),
        ("vhdx", vhdx()),
        ("vmdk", vmdk(DESCRIPTOR)),
        ("vmdk stream", vmdk_stream()),
        ("vmdk descriptor", DESCRIPTOR.as_bytes().to_vec()),
        ("vdi", vdi()),
        ("qed", qed()),
        ("luks", luks()),
        ("vma", vma()),
        ("iso", iso()),
        ("mbr", mbr()),
        ("raw", vec![0; 5000]),
    ]
}
