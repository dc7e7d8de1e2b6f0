//! Images that other software made, by the hash of what the guest sees in them.

use cowhand::{Convert, Open, Quiet};
use cowhand_tests::{Sample, file_sha256, for_all, guest_sha256, samples, temp};

/// Hashing more than this takes too long for every run.
const LARGE: u64 = 8 << 30;

/// Where the manifest has what one reader made of it, and that reader was wrong: its hash and the right one.
///
/// `fat-differential.vhd`: libvhdi takes sector 186 from the child (zeros), although its bit in the sector bitmap is 0
/// (byte 23 is 0xcb). The parent's sector 186 holds the 12 bytes of WPSettings.dat, whose directory entry both have.
const CORRECTIONS: &[(&str, &str)] = &[(
    "79f1d5f809a97916a61cb0d6f0e6c42665cb92eb7cb410eeb5d599c06e46f177",
    "f4b61a33ee2f7e8c19f737792a4107e46340026a9a829e4169b751901cc3ef02",
)];

fn disks() -> Vec<Sample> {
    let mut disks: Vec<Sample> =
        samples().into_iter().filter(|sample| !sample.sha256_guest.is_empty()).collect();
    for disk in &mut disks {
        if let Some((_, right)) = CORRECTIONS.iter().find(|(wrong, _)| *wrong == disk.sha256_guest) {
            disk.sha256_guest = (*right).to_owned();
        }
    }
    // The longest first, so that none is waited for at the end.
    disks.sort_by_key(|sample| std::cmp::Reverse(sample.virtual_size));
    disks
}

fn open(sample: &Sample) -> cowhand::Opened {
    cowhand::open(&sample.file, &Open::default()).unwrap()
}

#[test]
fn guest_content() {
    let disks = disks();
    if disks.is_empty() {
        return;
    }
    let slow = std::env::var_os("COWHAND_SLOW").is_some();
    for_all(
        &disks,
        |sample| sample.path.clone(),
        |sample| {
            assert_eq!(file_sha256(&sample.file), sample.sha256_file, "the sample itself");
            let disk = open(sample);
            assert_eq!(disk.links()[0].format, if sample.format == "vhd" { "vpc" } else { &sample.format });
            if let Some(size) = sample.virtual_size {
                assert_eq!(disk.size(), size, "virtual size");
            }
            assert_eq!(disk.links().len() > 1, !sample.parent.is_empty(), "parents");
            if disk.size() <= LARGE || slow {
                assert_eq!(guest_sha256(&disk).unwrap(), sample.sha256_guest, "guest content");
            } else {
                eprintln!("not hashed for its {} bytes: {}; COWHAND_SLOW=1 does", disk.size(), sample.path);
            }
            drop(disk);
            assert_eq!(file_sha256(&sample.file), sample.sha256_file, "reading changed the file");
        },
    );
}

/// The disks that are too large to hash have what `qemu-img` finds in them: where we see no data, its sparse copy has
/// none either.
#[test]
fn large_disks_hold_what_qemu_img_finds() {
    let folder = temp();
    for sample in disks() {
        if sample.virtual_size.is_none_or(|size| size <= LARGE) || !sample.parent.is_empty() {
            continue;
        }
        // A pending log is replayed by qemu-img only into the file: give it a copy.
        let copy = folder.path().join("copy");
        std::fs::copy(&sample.file, &copy).unwrap();
        let format = if sample.format == "vhd" { "vpc" } else { &sample.format };
        cowhand_tests::try_qemu_img(["check", "-r", "all", "-f", format, copy.to_str().unwrap()]);
        let theirs = cowhand_tests::qemu_raw(&copy, format);
        let theirs =
            cowhand::open(&theirs, &Open { format: Some("raw".to_owned()), ..Open::default() }).unwrap();
        let ours = open(&sample);
        assert_eq!(ours.size(), theirs.size(), "{}", sample.path);
        cowhand_tests::assert_same(&ours, &theirs);
    }
}

#[test]
fn a_pending_log_is_replayed_in_memory_alone() {
    let Some(sample) = disks().into_iter().find(|sample| sample.path.contains("dirtylog")) else { return };
    let disk = open(&sample);
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while at < disk.size() {
        let found = disk.extent(at, disk.size() - at).unwrap();
        if found.kind == cowhand::Kind::Data {
            disk.read(at, &mut buf[..found.len.min(1 << 20) as usize]).unwrap();
        }
        at += found.len;
    }
    drop(disk);
    let infos = cowhand::info(&sample.file, &Open::default(), false).unwrap();
    assert!(infos[0].details.dirty, "info says that it was not closed");
    assert_eq!(file_sha256(&sample.file), sample.sha256_file, "the file was changed");
}

/// Every sample becomes a qcow2 with the same content; `qemu-img` finds it whole.
#[test]
fn samples_become_qcow2() {
    let folder = temp();
    let disks: Vec<(usize, Sample)> = disks().into_iter().enumerate().collect();
    if disks.is_empty() {
        return;
    }
    for_all(
        &disks,
        |(_, sample)| sample.path.clone(),
        |(n, sample)| {
            let target = folder.path().join(format!("{n}.qcow2"));
            cowhand::convert(&Convert { verify: true, ..Convert::new([&sample.file], &target) }, &Quiet)
                .unwrap();
            cowhand_tests::qemu_img(["check", "-q", target.to_str().unwrap()]);
            let converted = cowhand::open(&target, &Open::default()).unwrap();
            cowhand_tests::assert_same(&open(sample), &converted);
            if converted.size() <= 1 << 30 {
                assert_eq!(guest_sha256(&converted).unwrap(), sample.sha256_guest);
            }
            drop(converted);
            std::fs::remove_file(&target).unwrap();
        },
    );
}

/// A differencing disk over another parent than its own is refused, and taken when it is asked for.
#[test]
fn a_wrong_parent_is_refused() {
    let folder = temp();
    for sample in disks() {
        if sample.parent.is_empty() || sample.format == "qcow2" {
            continue;
        }
        let sub = folder.path().join(sample.path.replace('/', "-"));
        std::fs::create_dir(&sub).unwrap();
        let child = sub.join(sample.file.file_name().unwrap());
        let parent = sub.join(&sample.parent);
        std::fs::copy(&sample.file, &child).unwrap();
        std::fs::copy(sample.file.parent().unwrap().join(&sample.parent), &parent).unwrap();
        cowhand::open(&child, &Open::default()).unwrap();
        // Another identity: the unique id of a VHD's footer, the DataWriteGuid of a VHDX's headers.
        let mut patch = cowhand_tests::Patch::of(&parent);
        if sample.format == "vhd" {
            let last = patch.len() - 512;
            for at in [0, last] {
                if patch.get(at, 8) == b"conectix" {
                    patch.put(at + 68, &[0xee; 16]).vhd_sum(at, 512, 64);
                }
            }
        } else {
            for at in [65536, 131_072] {
                patch.put(at + 32, &[0xee; 16]).vhdx_crc(at, 4096);
            }
        }
        patch.save(&parent);
        let error = cowhand::open(&child, &Open::default()).unwrap_err();
        assert_eq!(error.kind(), cowhand::ErrorKind::Mismatch, "{}: {error}", sample.path);
        assert!(error.to_string().contains("--any-parent"), "{error}");
        let trusting = cowhand::open(&child, &Open { any_parent: true, ..Open::default() }).unwrap();
        let by_name = Open { parent: cowhand::Parent::Given(parent.clone()), ..Open::default() };
        assert_eq!(cowhand::open(&child, &by_name).unwrap_err().kind(), cowhand::ErrorKind::Mismatch);
        if trusting.size() <= 1 << 30 {
            assert_eq!(guest_sha256(&trusting).unwrap(), sample.sha256_guest, "the content is the same");
        }
        // No parent at all.
        std::fs::remove_file(&parent).unwrap();
        let error = cowhand::open(&child, &Open::default()).unwrap_err();
        assert_eq!(error.kind(), cowhand::ErrorKind::NotFound, "{error}");
        assert!(error.to_string().contains("No such file or directory"), "{error}");
    }
}
