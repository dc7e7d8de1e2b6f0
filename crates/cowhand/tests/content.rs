//! What a conversion must never get wrong: the target has the source's content, and nothing that was read is lost.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cowhand::{Convert, Create, ErrorKind, Open, Progress, Quiet, compare, convert, create, open};

const MIB: u64 = 1 << 20;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A raw image full of `byte`.
    fn raw(&self, name: &str, byte: u8, len: u64) -> PathBuf {
        fs::write(self.path(name), vec![byte; len as usize]).unwrap();
        self.path(name)
    }

    /// A qcow2 with `bytes` at its start, and nothing else.
    fn qcow2(&self, name: &str, size: u64, backing: Option<(&str, &str)>, bytes: &[u8]) -> PathBuf {
        let mut how = Create::new("qcow2", size);
        how.backing = backing.map(|(name, _)| name.into());
        how.backing_format = backing.map(|(_, format)| format.to_owned());
        create(&self.path(name), &how).unwrap();
        if !bytes.is_empty() {
            let disk = open(&self.path(name), &Open { writable: true, ..Open::default() }).unwrap();
            disk.write(0, bytes).unwrap();
            disk.close().unwrap();
        }
        self.path(name)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn assert_same(a: &Path, b: &Path) {
    let disk = |path| open(path, &Open::default()).unwrap();
    let found = compare(&disk(a), &disk(b), false, &Quiet).unwrap();
    assert_eq!(found.difference, None, "{} and {}", a.display(), b.display());
}

fn over(source: &Path, target: &Path, backing: &str, format: &str) -> Convert {
    let mut how = Convert::new([source], target);
    how.backing = Some(backing.into());
    how.backing_format = Some(format.to_owned());
    how
}

#[test]
fn what_the_source_does_not_have_does_not_show_a_foreign_backing_file() {
    let dir = Dir::new();
    dir.raw("base.raw", 0xbb, 4 * MIB);
    let source = dir.qcow2("source.qcow2", 4 * MIB, None, &[0x11; 65536]);
    let target = dir.path("target.qcow2");
    convert(&over(&source, &target, "base.raw", "raw"), &Quiet).unwrap();
    assert_same(&source, &target);
}

#[test]
fn what_the_source_does_not_have_does_not_show_the_parent_of_an_image_that_is_there() {
    let dir = Dir::new();
    dir.raw("base.raw", 0xbb, 4 * MIB);
    let source = dir.qcow2("source.qcow2", 4 * MIB, None, &[0x11; 65536]);
    let target = dir.qcow2("target.qcow2", 4 * MIB, Some(("base.raw", "raw")), &[]);
    let how = Convert { no_create: true, ..Convert::new([&source], &target) };
    convert(&how, &Quiet).unwrap();
    assert_same(&source, &target);
}

#[test]
fn a_backing_file_of_the_sources_own_is_shared_as_far_as_it_shows() {
    let dir = Dir::new();
    dir.raw("base.raw", 0xbb, 4 * MIB);
    let source = dir.qcow2("top.qcow2", 4 * MIB, Some(("base.raw", "raw")), &[0x11; 65536]);
    let target = dir.path("target.qcow2");
    let done = convert(&over(&source, &target, "base.raw", "raw"), &Quiet).unwrap();
    assert_eq!(done.written, 65536);
    assert_same(&source, &target);

    // A layer in between that is shorter hides the rest.
    dir.qcow2("short.qcow2", MIB, Some(("base.raw", "raw")), &[]);
    let source = dir.qcow2("long.qcow2", 4 * MIB, Some(("short.qcow2", "qcow2")), &[]);
    convert(&over(&source, &target, "base.raw", "raw"), &Quiet).unwrap();
    assert_same(&source, &target);

    // A backing file that is longer than the source shows nothing behind it.
    let source = dir.qcow2("small.qcow2", 2 * MIB, Some(("base.raw", "raw")), &[]);
    let mut how = over(&source, &target, "base.raw", "raw");
    how.options = vec![("size".to_owned(), "4M".to_owned())];
    convert(&how, &Quiet).unwrap();
    assert_same(&source, &target);
}

#[test]
fn an_image_is_not_replaced_by_one_that_stands_on_it() {
    let dir = Dir::new();
    let base = dir.qcow2("base.qcow2", MIB, None, &[0x11; 65536]);
    dir.qcow2("top.qcow2", MIB, Some(("base.qcow2", "qcow2")), &[]);
    let before = fs::read(&base).unwrap();
    for backing in ["base.qcow2", "top.qcow2"] {
        let mut how = Create::new("qcow2", MIB);
        how.backing = Some(backing.into());
        how.backing_format = Some("qcow2".to_owned());
        let error = create(&base, &how).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        how.backing_format = Some("qcow2".to_owned());
        how.unchecked = true;
        assert_eq!(create(&base, &how).is_err(), backing == "base.qcow2", "unchecked: only itself");
        fs::write(&base, &before).unwrap();
    }
}

#[test]
fn a_data_file_is_none_of_the_others() {
    let dir = Dir::new();
    let source = dir.raw("source.raw", 0x11, MIB);
    let target = dir.path("target.qcow2");
    for name in ["target.qcow2", "./target.qcow2", "source.raw"] {
        let mut how = Convert::new([&source], &target);
        how.open.lock = cowhand::Lock::None;
        how.options = vec![("data_file".to_owned(), name.to_owned())];
        let error = convert(&how, &Quiet).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert_eq!(dir.names(), ["source.raw"]);
    }
}

#[test]
fn a_new_target_is_as_private_as_the_old_one_from_the_start() {
    struct Looking<'a>(&'a Dir);
    impl Progress for Looking<'_> {
        fn at(&self, _done: u64, _total: u64) -> ControlFlow<()> {
            let names = self.0.names();
            let partial = names.iter().find(|name| name.contains(".partial-")).unwrap();
            let mode = fs::metadata(self.0.path(partial)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            ControlFlow::Continue(())
        }
    }
    let dir = Dir::new();
    let source = dir.raw("source.raw", 0x11, MIB);
    let target = dir.raw("target.raw", 0x22, MIB);
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
    convert(&Convert::new([&source], &target), &Looking(&dir)).unwrap();
    assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
    assert_same(&source, &target);
}

#[test]
fn runs_of_zeros_too_long_to_hold_are_refused() {
    let dir = Dir::new();
    let source = dir.raw("source.raw", 0x11, MIB);
    for sparse in [(16 << 20) + 512, u64::MAX] {
        let how = Convert { sparse: Some(sparse), ..Convert::new([&source], dir.path("target.raw")) };
        assert_eq!(convert(&how, &Quiet).unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert_eq!(dir.names(), ["source.raw"]);
}

/// Needs a loop device, which only root can make.
#[test]
fn what_a_device_held_before_does_not_show() {
    let dir = Dir::new();
    let backing = dir.raw("device.img", 0xee, 8 * MIB);
    let made = std::process::Command::new("losetup").args(["-f", "--show"]).arg(&backing).output();
    let Some(made) = made.ok().filter(|made| made.status.success()) else {
        println!("skipped: no loop device can be made here");
        return;
    };
    let device = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    // Data in one sector of a cluster, and a cluster further on that has none.
    let source = dir.qcow2("source.qcow2", 4 * MIB, None, &[0x11; 512]);
    let results: Vec<_> = ["raw", "qcow2", "data_file", "data_file_raw"]
        .into_iter()
        .map(|what| {
            let mut whole = fs::File::options().write(true).open(&device).unwrap();
            whole.write_all(&vec![0xee; 8 * MIB as usize]).unwrap();
            let to_device = matches!(what, "raw" | "qcow2");
            let target = if to_device { PathBuf::from(&device) } else { dir.path("target.qcow2") };
            let mut how = Convert::new([&source], target);
            how.format = Some(if what == "raw" { "raw" } else { "qcow2" }.to_owned());
            how.verify = true;
            if !to_device {
                how.options.push(("data_file".to_owned(), device.clone()));
            }
            if what == "data_file_raw" {
                how.options.push((what.to_owned(), "on".to_owned()));
            }
            (what, convert(&how, &Quiet))
        })
        .collect();
    std::process::Command::new("losetup").args(["-d", &device]).status().unwrap();
    for (what, result) in results {
        let done = result.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(done.in_place && done.verified, "{what}");
    }
}
