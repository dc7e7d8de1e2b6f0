//! The links by which the program is called as another tool: all of them or none, and nothing of anybody else's lost.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // These are tests, helpers included.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use common::{PROGRAM, bad, good, names, run};

fn program() -> PathBuf {
    fs::canonicalize(PROGRAM).unwrap()
}

/// A folder with an empty `bin`.
fn with_bin() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    dir
}

fn is_qemu_img(dir: &Path) {
    let output = run("./bin/qemu-img", dir, &["--version"]);
    assert!(output.stdout.starts_with(b"qemu-img version 10."), "{output:?}");
}

#[test]
fn links_make_the_program_the_tool() {
    let dir = with_bin();
    let said = good(dir.path(), &["install-links", "bin"]);
    let made = names(&dir.path().join("bin"));
    assert!(made.contains(&"qemu-img".to_owned()));
    for name in &made {
        assert_eq!(fs::read_link(dir.path().join("bin").join(name)).unwrap(), program());
        assert!(said.contains(&format!("bin/{name} -> {}\n", program().display())), "{said}");
    }
    assert_eq!(said.lines().count(), made.len());
    is_qemu_img(dir.path());
    // Again is no error, and changes nothing.
    let said = good(dir.path(), &["install-links", "bin"]);
    assert!(said.lines().all(|line| line.ends_with(" leads here already")), "{said}");
    assert_eq!(names(&dir.path().join("bin")), made);
}

#[test]
fn the_forms_of_links() {
    let dir = with_bin();
    let link = dir.path().join("bin/qemu-img");
    good(dir.path(), &["install-links", "bin", "--relative", "qemu-img"]);
    assert_eq!(names(&dir.path().join("bin")), ["qemu-img"]);
    let to = fs::read_link(&link).unwrap();
    assert!(to.is_relative(), "{}", to.display());
    assert_eq!(fs::canonicalize(&link).unwrap(), program());
    is_qemu_img(dir.path());
    // The program beside its links, wherever that folder goes.
    fs::remove_file(&link).unwrap();
    fs::copy(PROGRAM, dir.path().join("bin/cowhand")).unwrap();
    let made = run("bin/cowhand", dir.path(), &["install-links", "--relative", "bin"]);
    assert!(made.status.success(), "{made:?}");
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("cowhand"));
    let made = run("bin/cowhand", dir.path(), &["install-links", "--force", "--hard", "bin"]);
    assert!(made.status.success(), "{made:?}");
    let inode = |path: &Path| fs::symlink_metadata(path).unwrap().ino();
    assert_eq!(inode(&link), inode(&dir.path().join("bin/cowhand")));
    is_qemu_img(dir.path());
    assert!(bad(dir.path(), &["install-links", "bin", "--hard", "--relative"], 1).contains("--relative"));
    assert!(bad(dir.path(), &["install-links", "bin", "qemu-io"], 1).contains("qemu-img"));
}

#[test]
fn what_is_there_stays_without_force() {
    let dir = with_bin();
    let link = dir.path().join("bin/qemu-img");
    let tempt = |make: &dyn Fn()| {
        make();
        let said = bad(dir.path(), &["install-links", "bin"], 1);
        assert!(said.contains("bin/qemu-img: is there already") && said.contains("--force"), "{said}");
        assert_eq!(names(&dir.path().join("bin")), ["qemu-img"]);
    };
    tempt(&|| fs::write(&link, b"the real one").unwrap());
    assert_eq!(fs::read(&link).unwrap(), b"the real one");
    tempt(&|| {
        fs::remove_file(&link).unwrap();
        symlink("/bin/true", &link).unwrap();
    });
    tempt(&|| {
        fs::remove_file(&link).unwrap();
        symlink("/nowhere", &link).unwrap();
    });
    good(dir.path(), &["install-links", "bin", "--force"]);
    assert_eq!(fs::read_link(&link).unwrap(), program());
    assert!(names(&dir.path().join("bin")).iter().all(|name| !name.starts_with('.')));
    // No flag takes a folder away.
    fs::remove_file(&link).unwrap();
    fs::create_dir(&link).unwrap();
    assert!(bad(dir.path(), &["install-links", "bin", "--force"], 1).contains("is a folder"));
    assert!(bad(dir.path(), &["install-links", "nowhere"], 1).contains("No such file or directory"));
}

/// The program under one of the names is never replaced by a link to itself.
#[test]
fn the_running_file_stays() {
    let dir = with_bin();
    let own = dir.path().join("bin/qemu-img");
    fs::copy(PROGRAM, &own).unwrap();
    symlink("bin/qemu-img", dir.path().join("cowhand")).unwrap();
    let made = run("./cowhand", dir.path(), &["install-links", "--force", "bin"]);
    assert!(made.status.success(), "{made:?}");
    assert!(fs::symlink_metadata(&own).unwrap().is_file());
}
