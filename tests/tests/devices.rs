//! Block devices, and file systems that share blocks: loop devices, where they can be made.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use cowhand::{Convert, ErrorKind, Open, Quiet};
use cowhand_tests::{Content, Loop, assert_holds, assert_qemu_accepts, file_sha256, options, run, temp};

#[test]
fn devices_are_read_and_written() {
    let folder = temp();
    let source = Content::striped("source", (3 << 20) + 512, 48 << 10, 1).raw_in(folder.path());
    // What stood on the device before must not show through.
    let disk = Content::random("disk", 8 << 20, 2).raw_in(folder.path());
    let garbage = std::fs::read(&disk).unwrap();
    let Some(device) = Loop::over(&disk) else { return };
    for (format, how) in [
        ("raw", ""),
        ("qcow2", ""),
        ("qcow2", "cluster_size=4k"),
        ("qcow2", "extended_l2=on"),
        ("qcow2", "preallocation=metadata"),
    ] {
        std::fs::write(&device.0, &garbage).unwrap();
        let to = Convert {
            format: Some(format.to_owned()),
            options: options(how),
            workers: Some(2),
            verify: true,
            ..Convert::new([&source], &device.0)
        };
        let done = cowhand::convert(&to, &Quiet).unwrap_or_else(|error| panic!("{format} {how}: {error}"));
        assert!(done.in_place, "a device is written in place");
        let opened =
            cowhand::open(&device.0, &Open { format: Some(format.to_owned()), ..Open::default() }).unwrap();
        if format == "raw" {
            // The rest of the device stays.
            assert_eq!(opened.size(), 8 << 20);
            let mut buf = vec![0; 3 << 20];
            opened.read(0, &mut buf).unwrap();
            assert!(buf == std::fs::read(&source).unwrap()[..3 << 20]);
        } else {
            assert_holds(&opened, &source);
            drop(opened);
            assert_qemu_accepts(&device.0, format, &source);
            let found = cowhand::open(&device.0, &Open::default()).unwrap();
            assert_eq!(found.links()[0].format, format, "by content");
        }
        let back = folder.path().join("back.vhdx");
        let from = Convert {
            open: Open { format: Some(format.to_owned()), ..Open::default() },
            ..Convert::new([&device.0], &back)
        };
        cowhand::convert(&from, &Quiet).unwrap();
    }
    // A VHDX grows, which a device cannot.
    let vhdx = Convert { format: Some("vhdx".to_owned()), ..Convert::new([&source], &device.0) };
    assert_eq!(cowhand::convert(&vhdx, &Quiet).unwrap_err().kind(), ErrorKind::Unsupported);
    // One that is too small says so.
    let large = Content::random("large", 9 << 20, 3).raw_in(folder.path());
    let error = cowhand::convert(&Convert::new([&large], &device.0), &Quiet).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Invalid), "{error:?}");
}

/// A file system of its own, until this is dropped.
struct Mounted(PathBuf, #[allow(dead_code)] Loop);

impl Mounted {
    fn xfs(folder: &Path) -> Option<Mounted> {
        if Command::new("mkfs.xfs").arg("-V").output().is_err() {
            eprintln!("SKIPPED: no mkfs.xfs (Debian: xfsprogs), so no file system that shares blocks");
            return None;
        }
        let disk = folder.join("xfs.img");
        File::create(&disk).unwrap().set_len(400 << 20).unwrap();
        let made = run(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&disk));
        assert!(made.ok(), "{}", made.err);
        let device = Loop::over(&disk)?;
        let at = folder.join("mounted");
        std::fs::create_dir(&at).unwrap();
        let ran = run(Command::new("mount").arg(&device.0).arg(&at));
        if !ran.ok() {
            eprintln!("SKIPPED: mount: {}", ran.err.trim());
            return None;
        }
        Some(Mounted(at, device))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.0));
    }
}

/// What is shared is the same, and stays so when one side is written.
#[test]
fn shared_blocks() {
    let folder = temp();
    let Some(mounted) = Mounted::xfs(folder.path()) else { return };
    let at = |name: &str| mounted.0.join(name);
    let raw = Content::striped("source", 12 << 20, 2 << 20, 1).raw_in(&mounted.0);
    let odd = Content::striped("odd", (5 << 20) + 3 * 512, 96 << 10, 2).raw_in(&mounted.0);
    for (n, (format, how, clones)) in [
        ("raw", "", true),
        ("qcow2", "", true),
        ("qcow2", "cluster_size=2M", true),
        ("qcow2", "extended_l2=on", true),
        ("qcow2", "cluster_size=512", false),
        ("qcow2", "data_file=DATA,data_file_raw=on", false),
        ("vhdx", "", true),
        ("vhdx", "subformat=fixed,block_size=1M", true),
        ("vpc", "subformat=fixed,force_size=on", true),
        ("vpc", "force_size=on", false),
    ]
    .into_iter()
    .enumerate()
    {
        for source in [&raw, &odd] {
            let before = file_sha256(source);
            let target = at(&format!("{n}.{format}"));
            let how = how.replace("DATA", at("data.raw").to_str().unwrap());
            let to = Convert {
                format: Some(format.to_owned()),
                options: options(&how),
                verify: true,
                workers: Some(2),
                ..Convert::new([source], &target)
            };
            let done = cowhand::convert(&to, &Quiet).unwrap();
            if clones && source == &raw {
                assert!(done.cloned > 0, "{format} {how}: nothing was shared");
            }
            assert_qemu_accepts(&target, format, source);
            // And back.
            let back = at("back.raw");
            let from = Convert {
                open: Open { format: Some(format.to_owned()), ..Open::default() },
                ..Convert::new([&target], &back)
            };
            cowhand::convert(&from, &Quiet).unwrap();
            assert_qemu_accepts(&back, "raw", source);
            if matches!(format, "raw" | "qcow2") {
                let write = Open { writable: true, format: Some(format.to_owned()), ..Open::default() };
                let disk = cowhand::open(&target, &write).unwrap();
                disk.write(4096, &[0x5a; 100_000]).unwrap();
                disk.close().unwrap();
            }
            assert_eq!(
                file_sha256(source),
                before,
                "{format} {how}: the source was written through the target"
            );
        }
    }
}
