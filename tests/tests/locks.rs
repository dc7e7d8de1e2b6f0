//! QEMU's locks: its programs and we exclude each other on one image.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cowhand::{Access, Cache, Convert, Create, ErrorKind, FileStorage, Lock, Open, Quiet};
use cowhand_tests::{Background, Content, qemu_img, run, temp, try_qemu_img};

/// `qemu-io` that has the image open, until this is dropped; waits until it holds its locks.
fn held_by_qemu(image: &Path, format: &str, for_reading: bool) -> Background {
    let mut command = Command::new("qemu-io");
    command.args(["-f", format]);
    if for_reading {
        command.arg("-r");
    }
    let holder = Background::start(command.args(["-c", "sleep 50000"]).arg(image), false);
    let began = Instant::now();
    let access = if for_reading { Access::Write } else { Access::Read };
    while FileStorage::open(image, access, Lock::Default, Cache::Writeback).is_ok() {
        assert!(began.elapsed() < Duration::from_secs(20), "qemu-io takes no locks, or we see none");
        std::thread::sleep(Duration::from_millis(5));
    }
    holder
}

#[test]
fn what_qemu_writes_we_leave_alone() {
    let folder = temp();
    let image = folder.path().join("image.qcow2");
    qemu_img(["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "4M"]);
    let holder = held_by_qemu(&image, "qcow2", false);
    let error = cowhand::open(&image, &Open::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    let text = error.to_string();
    assert!(
        text.contains("qemu-io") && text.contains(&holder.id().to_string()) && text.contains("-U"),
        "{text}"
    );
    cowhand::open(&image, &Open { lock: Lock::None, ..Open::default() }).unwrap();
    for error in [
        cowhand::open(&image, &Open { writable: true, ..Open::default() }).unwrap_err(),
        cowhand::info(&image, &Open::default(), false).unwrap_err(),
        cowhand::create(&image, &Create::new("qcow2", 512)).unwrap_err(),
        cowhand::convert(&Convert::new([&image], folder.path().join("target.raw")), &Quiet)
            .unwrap_err()
            .error,
    ] {
        assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    }
    let source = Content::random("source", 1 << 20, 1).raw_in(folder.path());
    let error = cowhand::convert(&Convert::new([&source], &image), &Quiet).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "a target in use must not be replaced: {error}");
    let no_create = Convert { no_create: true, ..Convert::new([&source], &image) };
    assert_eq!(cowhand::convert(&no_create, &Quiet).unwrap_err().kind(), ErrorKind::Locked);
    drop(holder);
    cowhand::open(&image, &Open::default()).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no partial is left");
}

#[test]
fn what_qemu_reads_we_may_read() {
    let folder = temp();
    let image = folder.path().join("image.qcow2");
    qemu_img(["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "4M"]);
    let _holder = held_by_qemu(&image, "qcow2", true);
    cowhand::open(&image, &Open::default()).unwrap();
    let error = cowhand::open(&image, &Open { writable: true, ..Open::default() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert_eq!(cowhand::create(&image, &Create::new("qcow2", 512)).unwrap_err().kind(), ErrorKind::Locked);
}

/// A raw image in use may be looked at: only its size is asked for.
#[test]
fn info_of_a_raw_image_in_use() {
    let folder = temp();
    let image = Content::empty("image", 4 << 20).raw_in(folder.path());
    let _holder = held_by_qemu(&image, "raw", false);
    assert_eq!(cowhand::open(&image, &Open::default()).unwrap_err().kind(), ErrorKind::Locked);
    assert_eq!(cowhand::info(&image, &Open::default(), false).unwrap()[0].virtual_size, 4 << 20);
}

#[test]
fn what_we_hold_qemu_leaves_alone() {
    let folder = temp();
    let image = folder.path().join("image.qcow2");
    let path = image.to_str().unwrap();
    cowhand::create(&image, &Create::new("qcow2", 4 << 20)).unwrap();
    let write = |path: &str| run(Command::new("qemu-io").args(["-f", "qcow2", "-c", "write 0 512", path]));
    {
        let _writer = cowhand::open(&image, &Open { writable: true, ..Open::default() }).unwrap();
        let ran = try_qemu_img(["info", path]);
        assert!(!ran.ok() && ran.err.contains("lock"), "{}{}", ran.out, ran.err);
        assert!(write(path).err.contains("lock"));
    }
    {
        let _reader = cowhand::open(&image, &Open::default()).unwrap();
        qemu_img(["info", path]);
        let ran = write(path);
        assert!(ran.err.contains("lock"), "{}{}", ran.out, ran.err);
    }
    {
        let _unlocked = cowhand::open(&image, &Open { lock: Lock::None, ..Open::default() }).unwrap();
        assert!(write(path).ok());
    }
    assert!(write(path).ok());
}

/// Parents are read, and so kept from being written.
#[test]
fn parents_are_locked_for_reading() {
    let folder = temp();
    let base = Content::empty("base", 1 << 20).raw_in(folder.path());
    let top = folder.path().join("top.qcow2");
    let how = Create {
        backing: Some("base.raw".into()),
        backing_format: Some("raw".to_owned()),
        ..Create::new("qcow2", 1 << 20)
    };
    cowhand::create(&top, &how).unwrap();
    let disk = cowhand::open(&top, &Open { writable: true, ..Open::default() }).unwrap();
    let ran = run(Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 512"]).arg(&base));
    assert!(ran.err.contains("lock"), "{}{}", ran.out, ran.err);
    qemu_img(["info", base.to_str().unwrap()]);
    drop(disk);
    let _holder = held_by_qemu(&base, "raw", false);
    assert_eq!(cowhand::open(&top, &Open::default()).unwrap_err().kind(), ErrorKind::Locked);
}
