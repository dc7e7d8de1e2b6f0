//! A target is whole or not there; what bore its name before is untouched by any failure.

use std::fs::{File, Permissions};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use cowhand::{Convert, Create, ErrorKind, Open, Progress, Quiet};
use cowhand_tests::{
    Background, Content, assert_holds, assert_qemu_accepts, options, probe_program, qemu_img, run, temp,
};

/// The formats that a target can have.
const FORMATS: [&str; 4] = ["raw", "qcow2", "vpc", "vhdx"];

/// Does something once, when half is done.
struct AtHalf<F: Fn()> {
    act: F,
    done: AtomicBool,
    then: ControlFlow<()>,
}

impl<F: Fn()> AtHalf<F> {
    fn new(then: ControlFlow<()>, act: F) -> Self {
        AtHalf { act, done: AtomicBool::new(false), then }
    }
}

impl<F: Fn() + Sync> Progress for AtHalf<F> {
    fn at(&self, done: u64, total: u64) -> ControlFlow<()> {
        if done * 2 < total {
            return ControlFlow::Continue(());
        }
        if !self.done.swap(true, Ordering::SeqCst) {
            (self.act)();
        }
        self.then
    }
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn source(folder: &Path) -> PathBuf {
    Content::random("source", 16 << 20, 1).raw_in(folder)
}

fn into(format: &str, source: &Path, target: &Path) -> Convert {
    Convert { format: Some(format.to_owned()), workers: Some(1), ..Convert::new([source], target) }
}

#[test]
fn a_failure_half_way_leaves_the_old_target_and_nothing_else() {
    for format in FORMATS {
        for old in [None, Some(b"what was there before".as_slice())] {
            let (folder, elsewhere) = (temp(), temp());
            let source = source(elsewhere.path());
            let target = folder.path().join("target");
            if let Some(old) = old {
                std::fs::write(&target, old).unwrap();
            }
            let wanted: Vec<String> = old.map(|_| "target".to_owned()).into_iter().collect();
            let check = |what: &str| {
                assert_eq!(names(folder.path()), wanted, "{format}, {what}");
                if let Some(old) = old {
                    assert_eq!(std::fs::read(&target).unwrap(), old, "{format}, {what}");
                }
            };
            let how = into(format, &source, &target);

            let stop = AtHalf::new(ControlFlow::Break(()), || ());
            assert_eq!(cowhand::convert(&how, &stop).unwrap_err().kind(), ErrorKind::Cancelled);
            check("stopped");

            let file = File::options().write(true).open(&source).unwrap();
            let touch = AtHalf::new(ControlFlow::Continue(()), || {
                // Seconds may be all that the file system's clock has.
                file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(5)).unwrap();
            });
            assert_eq!(cowhand::convert(&how, &touch).unwrap_err().kind(), ErrorKind::Changed);
            check("the source was touched");

            let write = AtHalf::new(ControlFlow::Continue(()), || file.write_all_at(b"new", 0).unwrap());
            assert_eq!(cowhand::convert(&how, &write).unwrap_err().kind(), ErrorKind::Changed);
            check("the source was written");

            let shrink = AtHalf::new(ControlFlow::Continue(()), || file.set_len(12 << 20).unwrap());
            let error = cowhand::convert(&how, &shrink).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
            check("the source shrank");
        }
    }
}

#[test]
fn a_source_that_cannot_be_read_to_its_end() {
    let (folder, elsewhere) = (temp(), temp());
    let raw = source(elsewhere.path());
    let image = elsewhere.path().join("source.qcow2");
    qemu_img(["convert", "-f", "raw", "-O", "qcow2"].iter().map(Path::new).chain([raw.as_path(), &image]));
    let file = File::options().write(true).open(&image).unwrap();
    // qemu-img takes what is missing for zeros.
    file.set_len(8 << 20).unwrap();
    for (format, workers) in FORMATS.iter().flat_map(|format| [1, 2, 8].map(|workers| (format, workers))) {
        let target = folder.path().join("target");
        let how = Convert { workers: Some(workers), ..into(format, &image, &target) };
        let error = cowhand::convert(&how, &Quiet).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Changed), "{error:?}");
        assert!(names(folder.path()).is_empty(), "{format}: {:?}", names(folder.path()));
    }
}

#[test]
fn keep_partial_keeps_it() {
    let (folder, elsewhere) = (temp(), temp());
    let source = source(elsewhere.path());
    let target = folder.path().join("target.qcow2");
    let how = Convert { keep_partial: true, ..into("qcow2", &source, &target) };
    let stop = AtHalf::new(ControlFlow::Break(()), || ());
    cowhand::convert(&how, &stop).unwrap_err();
    let left = names(folder.path());
    assert!(left.len() == 1 && left[0].starts_with(".target.qcow2.partial-"), "{left:?}");
    // It is in nobody's way.
    cowhand::convert(&how, &Quiet).unwrap();
    assert_eq!(names(folder.path()).len(), 2);
    assert_qemu_accepts(&target, "qcow2", &source);
}

#[test]
fn killed_it_leaves_the_partial_name_alone() {
    for format in ["raw", "qcow2", "vhd", "vhdx"] {
        let (folder, elsewhere) = (temp(), temp());
        let source = source(elsewhere.path());
        let target = folder.path().join(format!("target.{format}"));
        std::fs::write(&target, b"what was there before").unwrap();
        let mut command = Command::new(probe_program());
        let killed = Background::start(command.arg("convert").args([&source, &target]), true);
        assert_eq!(killed.line, "half\n");
        drop(killed);
        let left = names(folder.path());
        let name = target.file_name().unwrap().to_str().unwrap();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left[0].starts_with(&format!(".{name}.partial-")) && left[1] == name, "{left:?}");
        assert_eq!(std::fs::read(&target).unwrap(), b"what was there before");
        // Nothing is locked or in the way.
        cowhand::convert(&Convert::new([&source], &target), &Quiet).unwrap();
        let name = if format == "vhd" { "vpc" } else { format };
        assert_qemu_accepts(&target, name, &source);
    }
}

#[test]
fn a_symbolic_link_stays_and_what_it_names_is_replaced() {
    let (folder, elsewhere) = (temp(), temp());
    let source = source(elsewhere.path());
    let real = elsewhere.path().join("real.qcow2");
    std::fs::write(&real, b"before").unwrap();
    let link = folder.path().join("link.qcow2");
    let second = folder.path().join("second.qcow2");
    symlink(&real, &second).unwrap();
    symlink("second.qcow2", &link).unwrap();
    cowhand::convert(&Convert::new([&source], &link), &Quiet).unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(std::fs::symlink_metadata(&second).unwrap().is_symlink());
    assert!(std::fs::symlink_metadata(&real).unwrap().is_file());
    assert_qemu_accepts(&real, "qcow2", &source);
    assert_eq!(names(folder.path()), ["link.qcow2", "second.qcow2"]);
    // One that leads nowhere: what it names is made.
    let nowhere = folder.path().join("nowhere.qcow2");
    symlink(elsewhere.path().join("new.qcow2"), &nowhere).unwrap();
    cowhand::convert(&Convert::new([&source], &nowhere), &Quiet).unwrap();
    assert_qemu_accepts(&elsewhere.path().join("new.qcow2"), "qcow2", &source);
    // One that leads to itself.
    let round = folder.path().join("round.qcow2");
    symlink("round.qcow2", &round).unwrap();
    cowhand::convert(&Convert::new([&source], &round), &Quiet).unwrap_err();
}

#[test]
fn mode_owner_and_attributes_are_kept() {
    let folder = temp();
    let source = source(folder.path());
    for format in FORMATS {
        let target = folder.path().join("target");
        std::fs::write(&target, b"before").unwrap();
        std::fs::set_permissions(&target, Permissions::from_mode(0o640)).unwrap();
        let has_attributes =
            rustix::fs::setxattr(&target, "user.cowhand", b"kept", rustix::fs::XattrFlags::empty()).is_ok();
        let owner = std::os::unix::fs::chown(&target, Some(12345), Some(23456)).is_ok();
        cowhand::convert(&into(format, &source, &target), &Quiet).unwrap();
        let metadata = std::fs::metadata(&target).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
        if owner {
            use std::os::unix::fs::MetadataExt;
            assert_eq!((metadata.uid(), metadata.gid()), (12345, 23456));
        }
        if has_attributes {
            let mut value = [0; 16];
            let n = rustix::fs::getxattr(&target, "user.cowhand", &mut value[..]).unwrap();
            assert_eq!(&value[..n], b"kept");
        }
        assert_qemu_accepts(&target, format, &source);
        std::fs::remove_file(&target).unwrap();
    }
}

#[test]
fn the_target_must_not_be_a_source() {
    let folder = temp();
    let source = source(folder.path());
    let before = cowhand_tests::file_sha256(&source);
    let hard = folder.path().join("hard.raw");
    std::fs::hard_link(&source, &hard).unwrap();
    let soft = folder.path().join("soft.raw");
    symlink("source.raw", &soft).unwrap();
    let spelt = folder.path().join("../").join(folder.path().file_name().unwrap()).join("source.raw");
    for target in [&source, &hard, &soft, &spelt] {
        for no_create in [false, true] {
            let how = Convert { no_create, ..into("raw", &source, target) };
            let error = cowhand::convert(&how, &Quiet).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Locked), "{error:?}");
            assert_eq!(cowhand_tests::file_sha256(&source), before);
        }
    }
    // The parent of the source is a source.
    let child = folder.path().join("child.qcow2");
    qemu_img(["create", "-q", "-f", "qcow2", "-b", "source.raw", "-F", "raw", child.to_str().unwrap()]);
    cowhand::convert(&into("raw", &child, &source), &Quiet).unwrap_err();
    // And without locks too.
    let how = Convert {
        open: Open { lock: cowhand::Lock::None, ..Open::default() },
        ..into("raw", &child, &source)
    };
    assert_eq!(cowhand::convert(&how, &Quiet).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(cowhand_tests::file_sha256(&source), before);
    assert_eq!(names(folder.path()).len(), 4);
}

#[test]
fn create_is_whole_or_none_too() {
    let folder = temp();
    let target = folder.path().join("target.qcow2");
    std::fs::write(&target, b"before").unwrap();
    for (how, kind) in [
        (Create { options: options("cluster_size=3"), ..Create::new("qcow2", 1 << 20) }, ErrorKind::Invalid),
        (Create { options: options("no_such=1"), ..Create::new("qcow2", 1 << 20) }, ErrorKind::Invalid),
        (Create::new("qcow2", u64::MAX), ErrorKind::Invalid),
        (Create::new("vhdx", u64::MAX), ErrorKind::Invalid),
        (Create::new("vpc", 1 << 50), ErrorKind::Invalid),
        (Create::new("raw", u64::MAX), ErrorKind::Invalid),
        (
            Create {
                backing: Some("absent".into()),
                backing_format: Some("raw".to_owned()),
                ..Create::new("qcow2", 512)
            },
            ErrorKind::NotFound,
        ),
    ] {
        let error = cowhand::create(&target, &how).unwrap_err();
        assert_eq!(error.kind(), kind, "{how:?}: {error:?}");
        assert_eq!(names(folder.path()), ["target.qcow2"]);
        assert_eq!(std::fs::read(&target).unwrap(), b"before");
    }
    cowhand::create(&target, &Create::new("qcow2", 1 << 20)).unwrap();
    qemu_img(["check", "-q", target.to_str().unwrap()]);
    // A folder, a pipe, and a folder that is not there are no targets.
    let error = cowhand::create(folder.path(), &Create::new("raw", 512)).unwrap_err();
    assert!(!names(folder.path().parent().unwrap()).iter().any(|name| name.contains(".partial-")), "{error}");
    cowhand::create(&folder.path().join("absent/target"), &Create::new("raw", 512)).unwrap_err();
}

#[test]
fn a_source_that_changes_is_noticed() {
    let folder = temp();
    let path = source(folder.path());
    let disk = cowhand::open(&path, &Open::default()).unwrap();
    disk.check_unchanged().unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    file.write_all_at(b"x", 0).unwrap();
    assert_eq!(disk.check_unchanged().unwrap_err().kind(), ErrorKind::Changed);
    drop(disk);
    // With locks off it is a warning, and the copy is made.
    let how = Convert {
        open: Open { lock: cowhand::Lock::None, ..Open::default() },
        ..into("qcow2", &path, &folder.path().join("target.qcow2"))
    };
    let write = AtHalf::new(ControlFlow::Continue(()), || {
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap()
    });
    let done = cowhand::convert(&how, &write).unwrap();
    assert!(done.warnings.len() == 1 && done.warnings[0].contains("changed"), "{:?}", done.warnings);
}

/// A small file system of its own, in memory.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Option<Small> {
        let ran =
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at));
        ran.ok().then(|| Small(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.0));
    }
}

#[test]
fn no_space_left() {
    let (folder, elsewhere) = (temp(), temp());
    let Some(_small) = Small::mount(folder.path(), "6m") else {
        eprintln!("SKIPPED: a small file system can only be mounted by root");
        return;
    };
    let source = source(elsewhere.path());
    let target = folder.path().join("target");
    std::fs::write(&target, b"before").unwrap();
    for (format, how) in [
        ("raw", ""),
        ("raw", "preallocation=full"),
        ("qcow2", ""),
        ("qcow2", "preallocation=full"),
        ("vpc", ""),
        ("vpc", "subformat=fixed"),
        ("vhdx", "block_size=1M"),
    ] {
        for workers in [1, 2] {
            let how =
                Convert { options: options(how), workers: Some(workers), ..into(format, &source, &target) };
            let error = cowhand::convert(&how, &Quiet).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{format} {:?}: {error:?}", how.options);
            assert!(!error.to_string().contains('\n') && error.to_string().contains("space"), "{error}");
            assert_eq!(names(folder.path()), ["target"], "{format}");
            assert_eq!(std::fs::read(&target).unwrap(), b"before");
        }
    }
    let small = Content::random("small", 1 << 20, 1).raw_in(elsewhere.path());
    cowhand::convert(&into("qcow2", &small, &target), &Quiet).unwrap();
    assert_qemu_accepts(&target, "qcow2", &small);
    assert_holds(&cowhand::open(&target, &Open::default()).unwrap(), &small);
}
