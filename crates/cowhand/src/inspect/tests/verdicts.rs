//! One rule each: what is safe, what is not, and by which check.

use cowhand_core::Compat;

use super::images::*;
use super::judge;
use crate::inspect::{Report, Verdict};

fn strict(image: &[u8]) -> Report {
    judge(image, Compat::Strict)
}

fn oslo(image: &[u8]) -> Report {
    judge(image, Compat::Oslo)
}

#[track_caller]
fn expect(report: &Report, formats: &[&str], verdict: Verdict, failed: &[&str]) {
    assert_eq!(report.formats, formats, "{report}");
    assert_eq!(report.verdict, verdict, "{report}");
    assert_eq!(report.failed_checks(), failed, "{report}");
}

#[track_caller]
fn safe(image: &[u8], formats: &[&str], size: u64) {
    let report = strict(image);
    expect(&report, formats, Verdict::Safe, &[]);
    assert_eq!((report.virtual_size, report.exit_status()), (Some(size), 0));
}

#[track_caller]
fn refused(image: &[u8], format: &str, failed: &[&str]) {
    let report = strict(image);
    expect(&report, &[format], Verdict::Unsafe, failed);
    assert_eq!(report.exit_status(), 3);
}

const DISK: u64 = 16 << 20;

#[test]
fn sound_images_are_safe() {
    safe(&[], &["raw"], 0);
    safe(&[7; 1000], &["raw"], 1024);
    safe(&qcow2(), &["qcow2"], DISK);
    safe(&qcow2_with_snapshots(3), &["qcow2"], DISK);
    safe(&vhd_sparse(3), &["vhd"], DISK);
    safe(&vhd_fixed(&[1; 4096]), &["vhd"], 4096);
    safe(&vhdx(), &["vhdx"], DISK);
    safe(&vmdk(DESCRIPTOR), &["vmdk"], 1 << 20);
    safe(&vmdk_stream(), &["vmdk"], 1 << 20);
    safe(&vdi(), &["vdi"], DISK);
    safe(&luks(), &["luks"], 4096);
    safe(&iso(), &["iso"], 65536);
    safe(&mbr(), &["gpt"], 8192);
    assert_eq!(oslo(&iso()).virtual_size, Some(20 * 2048));
}

#[test]
fn qcow2_that_names_other_files() {
    let mut image = qcow2();
    put(&mut image, 8, &400u64.to_be_bytes());
    put(&mut image, 16, &9u32.to_be_bytes());
    put(&mut image, 400, b"/etc/\x1b[2J");
    refused(&image, "qcow2", &["backing_file"]);
    let reason = &strict(&image).failed[0].reason;
    assert_eq!(reason, "it names a backing file, '/etc/\\u{1b}[2J'");
    expect(&oslo(&image), &["qcow2"], Verdict::Unsafe, &["backing_file"]);

    let mut image = qcow2();
    image[79] = 4;
    refused(&image, "qcow2", &["data_file"]);
    expect(&oslo(&image), &["qcow2"], Verdict::Unsafe, &["data_file"]);
}

#[test]
fn a_backup_archive_is_no_image() {
    refused(&vma(), "vma", &["archive"]);
    let report = strict(&vma());
    assert_eq!(report.virtual_size, Some(4096));
    assert_eq!(report.failed[0].reason, "a backup archive of disks and configurations, and no disk image");
    // oslo.utils takes it for what it takes everything for that it does not know.
    expect(&oslo(&vma()), &["raw"], Verdict::Safe, &[]);

    let changed = |at: usize, with: &[u8]| {
        let mut image = vma();
        put(&mut image, at, with);
        strict(&image).failed_checks().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(changed(12299, &[1]), ["archive", "checksum"], "the blob buffer");
    assert_eq!(changed(40, &[1]), ["archive", "checksum"], "the checksum");
    assert_eq!(changed(7, &[2]), ["archive", "header", "checksum"], "the version");
    assert_eq!(changed(48, &[0; 4]), ["archive", "header", "checksum"], "the blob buffer's place");
    assert_eq!(changed(54, &[2, 1]), ["archive", "header", "checksum"], "the blob buffer's length");
    for size in [0_u32, 12288, 16 << 20 | 1, u32::MAX] {
        assert_eq!(changed(56, &size.to_be_bytes()), ["archive", "header"], "a header of {size} bytes");
    }
    assert_eq!(changed(56, &(1_u32 << 20).to_be_bytes()), ["archive", "header"], "a header beyond the end");
    for cut in [4, 12287, 12288, 12799] {
        refused(&vma()[..cut], "vma", &["archive", "header"]);
    }
    // A second disk of another size: which is meant?
    let mut image = vma();
    put(&mut image, 4160, &1_u32.to_be_bytes());
    put(&mut image, 4168, &4096_u64.to_be_bytes());
    assert_eq!(strict(&image).virtual_size, None);

    let mut both = vma();
    add_mbr(&mut both);
    expect(&strict(&both), &["vma", "gpt"], Verdict::Ambiguous, &["archive", "checksum", "ambiguous"]);
}

#[test]
fn qcow2_features() {
    // A bit that nobody knows, named by the image's own table.
    let mut table = vec![0, 40];
    table.extend(b"time travel");
    table.resize(48, 0);
    let mut image = qcow2_extension(0x6803_f857, &table);
    image[74] = 1;
    refused(&image, "qcow2", &["unknown_features"]);
    assert!(strict(&image).failed[0].reason.ends_with("are not known: time travel"));
    // Extended L2 entries: known to us, not to oslo.utils.
    let mut image = qcow2();
    image[79] = 16;
    safe(&image, &["qcow2"], DISK);
    expect(&oslo(&image), &["qcow2"], Verdict::Unsafe, &["unknown_features"]);
    for version in [0, 1, 4] {
        let mut image = qcow2();
        image[7] = version;
        refused(&image, "qcow2", &["unknown_features"]);
        expect(&oslo(&image), &["qcow2"], Verdict::Unsafe, &["unknown_features"]);
    }
}

/// Clear errors at open, of the list in the specification; oslo.utils sees none of them.
#[test]
fn qcow2_headers_that_do_not_hold() {
    let with = |at: usize, bytes: &[u8]| {
        let mut image = qcow2();
        put(&mut image, at, bytes);
        image
    };
    let headers = [
        with(20, &8u32.to_be_bytes()),
        with(20, &22u32.to_be_bytes()),
        with(24, &(1u64 << 40).to_be_bytes()),
        with(24, &u64::MAX.to_be_bytes()),
        with(32, &3u32.to_be_bytes()),
        with(32, &2u32.to_be_bytes()),
        with(36, &(4 << 20 | 1u32).to_be_bytes()),
        with(40, &(3 * CLUSTER as u64 + 512).to_be_bytes()),
        with(40, &(1u64 << 62).to_be_bytes()),
        with(48, &100u64.to_be_bytes()),
        with(56, &0u32.to_be_bytes()),
        with(56, &129u32.to_be_bytes()),
        with(79, &[8]),
        with(96, &7u32.to_be_bytes()),
        with(100, &96u32.to_be_bytes()),
        with(100, &107u32.to_be_bytes()),
        with(100, &(CLUSTER as u32 + 8).to_be_bytes()),
        with(104, &[1]),
        with(104, &[2]),
        qcow2_extension(0xe279_2aca, &[0; CLUSTER])[..2 * CLUSTER].to_vec(),
        qcow2()[..CLUSTER].to_vec(),
    ];
    for (number, image) in headers.iter().enumerate() {
        assert_eq!(strict(image).failed_checks(), ["header"], "{number}: {}", strict(image));
        assert_eq!(oslo(image).verdict, Verdict::Safe, "{number}");
    }
    // Encryption with its header is a plain fact.
    let mut encrypted = qcow2_extension(0x0537_be77, &[0; 16]);
    put(&mut encrypted, 32, &2u32.to_be_bytes());
    safe(&encrypted, &["qcow2"], DISK);
}

#[test]
fn qcow2_snapshot_tables_that_do_not_hold() {
    let with = |at: usize, bytes: &[u8]| {
        let mut image = qcow2_with_snapshots(3);
        put(&mut image, at, bytes);
        image
    };
    let second = 4 * CLUSTER + 40;
    for image in [
        with(60, &65537u32.to_be_bytes()),
        with(60, &4u32.to_be_bytes()),
        with(64, &(4 * CLUSTER as u64 + 8).to_be_bytes()),
        with(64, &0u64.to_be_bytes()),
        with(64, &(u64::MAX - 0xffff).to_be_bytes()),
        with(second + 36, &1025u32.to_be_bytes()),
        with(second + 8, &(4 << 20 | 1u32).to_be_bytes()),
        with(second + 8, &1u32.to_be_bytes()),
        with(second + 40 + 14, &[0xff]),
    ] {
        refused(&image, "qcow2", &["snapshots"]);
    }
}

#[test]
fn vhd_rules() {
    refused(&vhd_sparse(4), "vhd", &["backing_file"]);
    expect(&oslo(&vhd_sparse(4)), &["vhd"], Verdict::Safe, &[]);
    for at in [100, 600, 2048 + 100] {
        let mut image = vhd_sparse(3);
        image[at] ^= 1;
        refused(&image, "vhd", &["checksum"]);
        expect(&oslo(&image), &["vhd"], Verdict::Safe, &[]);
    }
    // Without the footer at its end, and with two that contradict each other.
    refused(&vhd_sparse(3)[..2048], "vhd", &["footer"]);
    let mut other = vhd_sparse(3);
    put(&mut other, 2048, &vhd_footer(3, 32 << 20));
    refused(&other, "vhd", &["footer"]);
    // A fixed disk that is not all there, and one whose checksum is wrong.
    refused(&vhd_fixed(&[0; 4096])[512..], "vhd", &["size"]);
    let mut image = vhd_fixed(&[0; 4096]);
    image[4096 + 30] ^= 1;
    refused(&image, "vhd", &["checksum"]);
    // A Virtual PC footer of 511 bytes.
    safe(&vhd_fixed(&[0; 4096])[..4096 + 511], &["vhd"], 4096);
    // oslo.utils does not look at the end.
    expect(&oslo(&vhd_fixed(&[0; 4096])), &["raw"], Verdict::Safe, &[]);
}

#[test]
fn a_footer_that_a_guest_could_have_written_is_no_vhd() {
    for kind in [3, 4] {
        let mut image = mbr();
        image.extend(vhd_footer(kind, 1 << 20));
        safe(&image, &["gpt"], image.len() as u64);
    }
}

#[test]
fn vhd_sizes_follow_the_creator() {
    let mut footer = vhd_footer(2, 1000 * 512);
    put(&mut footer, 56, &[0, 5, 4, 17]);
    let sealed = |creator: &[u8]| {
        let mut image = vec![0; 1000 * 512];
        let mut footer = footer.clone();
        put(&mut footer, 28, creator);
        put(&mut footer, 64, &[0; 4]);
        let sum = !footer.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        put(&mut footer, 64, &sum.to_be_bytes());
        image.extend(footer);
        image
    };
    safe(&sealed(b"vpc "), &["vhd"], 340 * 512);
    safe(&sealed(b"qemu"), &["vhd"], 340 * 512);
    safe(&sealed(b"qem2"), &["vhd"], 1000 * 512);
    safe(&sealed(b"vbox"), &["vhd"], 1000 * 512);
}

#[test]
fn vhdx_rules() {
    let change = |at: usize, bytes: &[u8], seal: &[(usize, usize)]| {
        let mut image = vhdx();
        put(&mut image, at, bytes);
        for (at, len) in seal {
            vhdx_seal(&mut image, *at, *len);
        }
        image
    };
    // Both headers matter as far as they can be current: the second one is.
    refused(&change(131_072 + 48, &[9], &[(131_072, 4096)]), "vhdx", &["log"]);
    safe(&change(65536 + 48, &[9], &[(65536, 4096)]), &["vhdx"], DISK);
    refused(&change(131_072 + 66, &[2], &[(131_072, 4096)]), "vhdx", &["header"]);
    refused(&change(65536 + 8, &[8, 0, 0, 0, 0, 0, 0, 0, 1], &[(65536, 4096)]), "vhdx", &["header"]);
    for at in [65536 + 100, 131_072 + 100, 196_608 + 100, 262_144 + 1000] {
        refused(&change(at, &[1], &[]), "vhdx", &["checksum"]);
        expect(&oslo(&change(at, &[1], &[])), &["vhdx"], Verdict::Safe, &[]);
    }
    // The second region table is used where the first one is gone.
    let gone = change(196_608, &[0; 65536], &[]);
    refused(&gone, "vhdx", &["region"]);
    assert_eq!(strict(&gone).virtual_size, Some(DISK));
    // A region that nobody knows, required; an item that nobody knows, required.
    let unknown = change(196_608 + 16, &[0x77; 16], &[(196_608, 65536)]);
    assert!(strict(&unknown).failed_checks().contains(&"unknown_features"));
    let mut item = vhdx();
    put(&mut item, VHDX_METADATA + 10, &4u16.to_le_bytes());
    put(&mut item, VHDX_METADATA + 32 + 96, &[0x77; 16]);
    put(&mut item, VHDX_METADATA + 32 + 96 + 24, &4u32.to_le_bytes());
    refused(&item, "vhdx", &["unknown_features"]);
    // Values out of range.
    for (at, bytes) in [(0, [1u8, 0, 0x20, 0]), (0, [0, 0, 0, 0x20]), (16, [1, 0, 0, 1]), (32, [0, 4, 0, 0])]
    {
        refused(&change(VHDX_METADATA + 65536 + at, &bytes, &[]), "vhdx", &["metadata"]);
    }
    refused(&change(VHDX_METADATA + 65536 + 20, &[0, 0x40], &[]), "vhdx", &["metadata"]);
    // A disk that its table cannot hold.
    refused(&change(VHDX_METADATA + 65536 + 20, &[0, 8], &[]), "vhdx", &["region"]);
    // A child, which names no parent here.
    refused(&change(VHDX_METADATA + 65536 + 4, &[2], &[]), "vhdx", &["backing_file", "metadata"]);
    assert!(strict(&vhdx()[..VHDX_METADATA + 65540]).failed_checks().contains(&"metadata"));
}

#[test]
fn vmdk_rules() {
    let with = |from: &str, to: &str| vmdk(&DESCRIPTOR.replace(from, to));
    for image in [
        with("monolithicSparse", "monolithicFlat"),
        with("createType", "kind"),
        with("disk.vmdk", "/etc/shadow"),
        with("RW 2048", "\"evil\""),
        with("RW 2048 SPARSE \"disk.vmdk\"", ""),
    ] {
        refused(&image, "vmdk", &["descriptor"]);
        expect(&oslo(&image), &["vmdk"], Verdict::Unsafe, &["descriptor"]);
    }
    // What oslo.utils lets pass.
    for (image, check) in [
        (with("ffffffff", "12345678"), "backing_file"),
        (with("CID=12345678", "parentFileNameHint=\"/etc/shadow\""), "backing_file"),
        (with("disk.vmdk", "..\\\\secret"), "descriptor"),
        (with("SPARSE", "FLAT"), "descriptor"),
        (with("ddb.adapterType", "RW 1 FLAT \"more\"\nddb.adapterType"), "descriptor"),
        (with("CID=12345678", "createType=\"monolithicSparse\""), "descriptor"),
    ] {
        refused(&image, "vmdk", &[check]);
        expect(&oslo(&image), &["vmdk"], Verdict::Safe, &[]);
    }
    // A header that sends a reader elsewhere.
    for (at, bytes) in [(4, [9u8, 0, 0, 0]), (28, [2, 0, 0, 0])] {
        let mut image = vmdk(DESCRIPTOR);
        put(&mut image, at, &bytes);
        assert_eq!(strict(&image).verdict, Verdict::Unsafe);
        expect(&oslo(&image), &["vmdk"], Verdict::Unsafe, &["descriptor"]);
    }
    let mut sizeless = vmdk(DESCRIPTOR);
    sizeless[12..20].fill(0);
    refused(&sizeless, "vmdk", &["header"]);
}

#[test]
fn vmdk_footers_must_agree() {
    let end = vmdk_stream().len();
    for at in
        [end - 1536 + 8, end - 1536 + 12, end - 1024, end - 1024 + 4, end - 1024 + 28, end - 512, end - 1]
    {
        let mut image = vmdk_stream();
        image[at] ^= 0x40;
        refused(&image, "vmdk", &["footer"]);
        expect(&oslo(&image), &["vmdk"], Verdict::Unsafe, &["footer"]);
    }
    // Another size: what QEMU would go by.
    let mut image = vmdk_stream();
    image[end - 1024 + 12] ^= 0x40;
    refused(&image, "vmdk", &["footer"]);
    expect(&oslo(&image), &["vmdk"], Verdict::Safe, &[]);
}

#[test]
fn vmdk_descriptors_without_a_disk() {
    let text = DESCRIPTOR.as_bytes();
    refused(text, "vmdk", &["descriptor"]);
    // QEMU takes these for descriptors; oslo.utils does not see it.
    for text in ["#\n \r\nversion=1\n", "# \u{fffd}\nversion=2\nRW 9 FLAT \"/etc/shadow\" 0\n"] {
        refused(text.as_bytes(), "vmdk", &["descriptor"]);
        expect(&oslo(text.as_bytes()), &["raw"], Verdict::Safe, &[]);
    }
    refused(b"COWD\x01\0\0\0 and so on", "vmdk", &["descriptor"]);
    let words = b"A file that is text is a raw disk of text.\n".repeat(20);
    safe(&words, &["raw"], 1024);
}

#[test]
fn foreign_rules() {
    refused(&qed(), "qed", &["banned"]);
    expect(&oslo(&qed()), &["qed"], Verdict::Unsafe, &["banned"]);
    let mut luks2 = luks();
    luks2[7] = 2;
    refused(&luks2, "luks", &["version"]);
    expect(&oslo(&luks2), &["luks"], Verdict::Unsafe, &["version"]);
    let mut child = vdi();
    child[0x4c] = 4;
    refused(&child, "vdi", &["backing_file"]);
    expect(&oslo(&child), &["vdi"], Verdict::Safe, &[]);
}

#[test]
fn partition_tables() {
    let entry = |number: usize, entry: [u8; 16]| {
        let mut image = mbr();
        put(&mut image, 446 + 16 * number, &entry);
        image
    };
    let protective = [0, 0, 2, 0, 0xee, 255, 255, 255, 1, 0, 0, 0, 255, 255, 255, 255];
    safe(&entry(0, protective), &["gpt"], 8192);
    for image in [entry(1, protective), entry(0, [0; 16]), entry(1, [3; 16])] {
        refused(&image, "gpt", &["mbr"]);
        expect(&oslo(&image), &["gpt"], Verdict::Unsafe, &["mbr"]);
    }
    let mut shifted = protective;
    shifted[8] = 2;
    refused(&entry(0, shifted), "gpt", &["mbr"]);
    // A FAT file system's first sector.
    let mut fat = mbr();
    fat[0x10] = 2;
    fat[0x15] = 0xf8;
    safe(&fat, &["raw"], 8192);
}

#[test]
fn two_formats_in_one() {
    let ambiguous = |image: &[u8], formats: &[&str]| {
        for report in [strict(image), oslo(image)] {
            assert_eq!(report.formats, formats);
            assert_eq!(
                (report.verdict, report.exit_status(), report.virtual_size),
                (Verdict::Ambiguous, 4, None)
            );
            assert!(report.failed_checks().contains(&"ambiguous"));
            assert_eq!(report.to_json()["safe"], false);
        }
    };
    let mut image = qcow2();
    put(&mut image, 32768, &iso()[32768..]);
    ambiguous(&image, &["qcow2", "iso"]);
    add_mbr(&mut image);
    ambiguous(&image, &["qcow2", "iso", "gpt"]);
    let mut image = vhdx();
    add_mbr(&mut image);
    ambiguous(&image, &["vhdx", "gpt"]);
    let mut image = vdi();
    put(&mut image, 0, b"QED\0");
    ambiguous(&image, &["qed", "vdi"]);
    // A container at the front and a fixed disk's footer behind it.
    let report = strict(&vhd_fixed(&qcow2()));
    assert_eq!((report.formats.len(), report.verdict), (2, Verdict::Ambiguous));
}

#[test]
fn what_may_stand_together() {
    // A fixed VHD's guest has a partition table, or is a hybrid ISO image.
    let mut hybrid = iso();
    add_mbr(&mut hybrid);
    safe(&hybrid, &["iso", "gpt"], 65536);
    safe(&vhd_fixed(&mbr()), &["vhd", "gpt"], 8192);
    safe(&vhd_fixed(&hybrid), &["vhd", "iso", "gpt"], 65536);
    // A hybrid image's table is of its own making.
    hybrid[446] = 0x17;
    safe(&hybrid, &["iso", "gpt"], 65536);
    assert_eq!(oslo(&hybrid).verdict, Verdict::Ambiguous);
}

#[test]
fn short_contents() {
    for (cut, format) in [
        (&qcow2()[..40], "qcow2"),
        (&vhd_sparse(3)[..300], "vhd"),
        (&vhdx()[..100], "vhdx"),
        (&vmdk(DESCRIPTOR)[..50], "vmdk"),
        (&luks()[..300], "luks"),
        (&vdi()[..300], "vdi"),
    ] {
        let report = strict(cut);
        assert_eq!(
            (report.formats.as_slice(), report.verdict),
            ([format.to_owned()].as_slice(), Verdict::Unsafe)
        );
    }
    for cut in [&vhd_sparse(3)[..300], &vhdx()[..100], &luks()[..300], &vmdk(DESCRIPTOR)[..50]] {
        assert_eq!((oslo(cut).verdict, oslo(cut).exit_status()), (Verdict::Unreadable, 4));
    }
}

#[test]
fn the_report_is_for_programs_and_people() {
    let report = strict(&vhd_sparse(4));
    let json = report.to_json();
    assert_eq!(json["formats"], serde_json::json!(["vhd"]));
    assert_eq!(json["virtual_size"], DISK);
    assert_eq!(json["file_size"], 2560);
    assert_eq!(json["verdict"], "unsafe");
    assert_eq!(json["failed"], serde_json::json!(["backing_file"]));
    assert_eq!(
        report.to_string(),
        "unsafe: vhd, 16777216 bytes\n  vhd: backing_file: a differencing disk: it needs its parent"
    );
}
