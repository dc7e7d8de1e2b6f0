//! VMA archives extracted: every legal shape of them, into every format, onto devices, and against digests.

use std::io::Cursor;
use std::path::Path;

use cowhand::archive::{Digester, Digests, Extract, Extracted, extract};
use cowhand::stream::{From, Incoming};
use cowhand::{ArchivedDisk, Body, Cache, Error, ErrorKind, Manifest, Open, Quiet, Result};
use cowhand_tests::{
    Loop, Mirror, VmaBuilt, VmaDisk, VmaFile, assert_qemu_accepts, for_all, options, temp, vma_fix_extent,
    vma_shapes, vma_sound,
};

const CLUSTER: u64 = 65536;

/// As `cowhand vma extract`, but that nothing is synced.
fn plain() -> Extract {
    Extract { archive: Some("vma".to_owned()), cache: Cache::Unsafe, ..Extract::default() }
}

fn from_pipe(bytes: &[u8], to: &Path, how: &Extract) -> Result<Extracted> {
    let bytes = Box::new(Cursor::new(bytes.to_vec()));
    let from = From::Bytes(Incoming { name: "pipe".to_owned(), len: None, bytes });
    extract(from, to, how, &mut (), &Quiet)
}

fn nothing_in(folder: &Path) {
    let names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.is_empty(), "{names:?}");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn assert_image(content: &Mirror, path: &Path, format: &str) {
    let open = Open { format: Some(format.to_owned()), ..Open::default() };
    let disk = cowhand::open(path, &open).unwrap_or_else(|error| panic!("{error}"));
    let mut found = vec![0; content.size() as usize];
    disk.read(0, &mut found).unwrap();
    assert!(found == content.bytes(0, found.len()), "{}", path.display());
}

#[test]
fn every_shape_comes_out_from_a_file_and_from_a_pipe() {
    for_all(
        &vma_shapes(),
        |file| file.name.to_owned(),
        |file| {
            let folder = temp();
            let built = file.clone().build();
            let archive = folder.path().join("archive.vma");
            std::fs::write(&archive, &built.bytes).unwrap();
            let done = [
                extract(From::File(&archive), &folder.path().join("file"), &plain(), &mut (), &Quiet),
                from_pipe(&built.bytes, &folder.path().join("pipe"), &plain()),
            ];
            for (done, to) in done.into_iter().zip(["file", "pipe"]) {
                let done = done.unwrap();
                assert!(done.is_whole() && done.faults.count == 0);
                let to = folder.path().join(to);
                for (_, name, data) in &file.configs {
                    assert_eq!(&std::fs::read(to.join(text(name))).unwrap(), data);
                }
                for disk in &file.disks {
                    let name = text(&disk.name);
                    let path =
                        if disk.is_memory() { "vmstate.bin".into() } else { format!("disk-{name}.raw") };
                    let found = std::fs::read(to.join(path)).unwrap();
                    assert!(found == disk.content.bytes(0, found.len()), "{name}");
                    assert_eq!(found.len() as u64, disk.content.size(), "{name}");
                }
            }
        },
    );
}

#[test]
fn qemu_accepts_what_comes_out_in_every_format() {
    let built = vma_sound();
    for (format, how, extension) in [
        ("qcow2", "cluster_size=4k", "qcow2"),
        ("qcow2", "extended_l2=on", "qcow2"),
        ("vpc", "force_size=on", "vhd"),
        ("vpc", "subformat=fixed,force_size=on", "vhd"),
        ("vhdx", "", "vhdx"),
        ("raw", "", "raw"),
    ] {
        let folder = temp();
        let to = folder.path().join("out");
        let how = Extract { format: Some(format.to_owned()), options: options(how), ..plain() };
        from_pipe(&built.bytes, &to, &how).unwrap();
        for name in ["drive-scsi0", "drive-scsi1"] {
            let path = to.join(format!("disk-{name}.{extension}"));
            assert_image(built.content(name), &path, format);
            let raw = folder.path().join("raw");
            built.content(name).save(&raw);
            if format != "raw" {
                assert_qemu_accepts(&path, format, &raw);
            }
        }
    }
}

/// What the digests of that archive are.
fn digests(built: &VmaBuilt) -> Digests {
    let disks = built.file.disks.iter();
    let disk = |disk: &VmaDisk| ArchivedDisk {
        number: disk.id.into(),
        name: text(&disk.name),
        size: disk.content.size(),
        memory: disk.is_memory(),
    };
    let manifest = Manifest { id: built.file.uuid, disks: disks.map(disk).collect(), ..Manifest::default() };
    let digester = Digester::new(&manifest);
    for (number, disk) in (0..).zip(&built.file.disks) {
        let bytes = disk.content.bytes(0, disk.content.size() as usize);
        digester.add(number, 0, Body::Bytes(&bytes)).unwrap();
    }
    digester.finish()
}

#[test]
fn no_flipped_bit_goes_unnoticed() {
    let folder = temp();
    let to = folder.path().join("out");
    let built = vma_sound();
    let path = folder.path().join("archive.digest");
    digests(&built).write(&path, Cache::Unsafe).unwrap();
    let how = Extract { digests: Some(path), ..plain() };
    assert!(from_pipe(&built.bytes, &to, &how).unwrap().is_whole());
    std::fs::remove_dir_all(&to).unwrap();
    let refused = |bytes: &[u8], at: usize| -> Error {
        let error = from_pipe(bytes, &to, &how).map(|_| ()).unwrap_err();
        assert!(!to.exists(), "byte {at}");
        error
    };
    let mut by_digest = 0;
    let mut flip = built.bytes.clone();
    for at in (0..flip.len()).step_by(4093) {
        flip[at] ^= 1 << (at % 8);
        match from_pipe(&flip, &to, &how) {
            Err(error) => by_digest += usize::from(error.kind() == ErrorKind::Mismatch),
            // Behind a disk's end the archive has bytes that are none of the disk's.
            Ok(_) => {
                for disk in &built.file.disks {
                    let name = text(&disk.name);
                    assert_image(&disk.content, &to.join(format!("disk-{name}.raw")), "raw");
                }
                std::fs::remove_dir_all(&to).unwrap();
            }
        }
        assert!(!to.exists(), "byte {at}");
        flip[at] ^= 1 << (at % 8);
    }
    assert!(by_digest > 50, "{by_digest}");
    // In an extent's masks, with a sum that fits: a block goes elsewhere in its cluster.
    for extent in built.extents.iter().filter(|extent| !extent.slots.is_empty()) {
        let mut moved = built.bytes.clone();
        let mask = extent.slots[0].mask;
        let Some(lowest) = (1..16).find(|bit| mask >> bit & 1 == 1 && mask >> (bit - 1) & 1 == 0) else {
            continue;
        };
        let other = mask & !(1 << lowest) | 1 << (lowest - 1);
        moved[extent.at + 40..extent.at + 42].copy_from_slice(&other.to_be_bytes());
        vma_fix_extent(&mut moved, extent.at);
        assert_eq!(refused(&moved, extent.at).kind(), ErrorKind::Mismatch);
    }
    // A block of zeros in place of one that is none.
    let extent = built.extents.iter().find(|extent| extent.slots.iter().any(|slot| slot.mask != 0)).unwrap();
    let mut zeroed = built.bytes.clone();
    zeroed[extent.at + 512..extent.at + 512 + 4096].fill(0);
    assert_eq!(refused(&zeroed, extent.at).kind(), ErrorKind::Mismatch);
    // Salvage tells where.
    let salvage = Extract { salvage: true, ..how.clone() };
    let done = from_pipe(&zeroed, &to, &salvage).unwrap();
    let slot = &extent.slots[0];
    let start = u64::from(slot.cluster) * CLUSTER;
    let name = built.file.disks.iter().find(|disk| disk.id == slot.device).map(|disk| text(&disk.name));
    for disk in &done.disks {
        let wanted = if Some(&disk.file.name) == name.as_ref() { 1 } else { 0 };
        assert_eq!(disk.differing.count, wanted);
        assert!(disk.differing.list.iter().all(|range| range.start == start));
    }
}

#[test]
fn hostile_names_stay_in_the_folder() {
    let long = "x".repeat(300);
    let file = |config: &str, disk: &str| VmaFile::new("hostile").config(config, "data").disk(disk, CLUSTER);
    for (config, disk) in [
        ("../up", "drive-a"),
        ("/tmp/cowhand-was-here", "drive-a"),
        ("..", "drive-a"),
        ("a/b", "drive-a"),
        ("disk-drive-a.raw", "drive-a"),
        ("fine", "../../drive"),
        ("fine", &long),
    ] {
        let folder = temp();
        let outer = folder.path().join("outer");
        std::fs::create_dir(&outer).unwrap();
        let bytes = file(config, disk).build().bytes;
        let error = from_pipe(&bytes, &outer.join("out"), &plain()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("--salvage"), "{error}");
        nothing_in(&outer);
        let done = from_pipe(&bytes, &outer.join("out"), &Extract { salvage: true, ..plain() }).unwrap();
        assert!(done.is_whole());
        assert_eq!(std::fs::read_dir(&outer).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(outer.join("out")).unwrap().count(), 3);
    }
    assert!(!Path::new("/tmp/cowhand-was-here").exists());
}

#[test]
fn disks_go_onto_devices() {
    let folder = temp();
    let built = vma_sound();
    let files = [folder.path().join("a"), folder.path().join("b")];
    std::fs::write(&files[0], vec![0xaa; 2 << 20]).unwrap();
    std::fs::write(&files[1], vec![0; 1 << 20]).unwrap();
    let Some(a) = Loop::over(&files[0]) else { return };
    let Some(b) = Loop::over(&files[1]) else { return };
    let map = folder.path().join("map");
    let lines =
        format!("1:drive-scsi0={}\nformat=raw:cache=none:0:drive-scsi1={}\n", a.0.display(), b.0.display());
    std::fs::write(&map, lines).unwrap();
    let how = Extract { map: Some(map), cache: Cache::Writeback, ..plain() };
    let done = from_pipe(&built.bytes, &folder.path().join("out"), &how).unwrap();
    assert!(done.is_whole());
    for (device, name) in [(&a, "drive-scsi0"), (&b, "drive-scsi1")] {
        let content = built.content(name);
        let found = std::fs::read(&device.0).unwrap();
        assert!(found[..content.size() as usize] == content.bytes(0, content.size() as usize), "{name}");
        // What the device has behind the disk stays.
        let rest = if name == "drive-scsi0" { 0xaa } else { 0 };
        assert!(found[content.size() as usize..].iter().all(|byte| *byte == rest), "{name}");
    }
}
