//! Pending logs of VHDX, each as the format says, and what `qemu-img` makes of them. Where `qemu-img` is wrong, that is
//! asserted too, so that the cases are known to be ones; where a newer one is right, a note says so.

use std::path::Path;

use cowhand::{ErrorKind, Open};
use cowhand_tests::{
    ByQemu, LogCase, Mirror, Ran, VhdxLayout, file_sha256, for_all, temp, try_qemu_img, vhdx_content,
    vhdx_dynamic_layouts, vhdx_log_cases,
};

use crate::vhdx_read::readable;

fn case(name: &str) -> LogCase {
    vhdx_log_cases().into_iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name}"))
}

fn file_name(case: &LogCase) -> String {
    format!("{}.vhdx", case.name.replace(' ', "-"))
}

/// Reading replays in memory, and leaves the file as it is.
#[test]
fn replayed_in_memory() {
    let folder = temp();
    for_all(
        &vhdx_log_cases(),
        |case| case.name.to_owned(),
        |case| {
            let path = folder.path().join(file_name(case));
            let content = case.build(&path);
            let before = file_sha256(&path);
            let found = cowhand::open(&path, &readable());
            if case.good {
                content.assert_same(&vhdx_content(&path), "the judge");
                let disk = found.unwrap();
                content.assert_disk(&disk);
                assert!(disk.top().layer.details().dirty, "nothing says that it was not closed");
            } else {
                let error = found.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                assert!(error.to_string().contains("log"), "{error}");
                assert!(std::panic::catch_unwind(|| vhdx_content(&path)).is_err(), "the judge reads it");
            }
            assert_eq!(file_sha256(&path), before, "reading changed the file");
        },
    );
}

/// Says so where `qemu-img` is no longer as bad as it was found to be.
fn note(case: &str, better: &str) {
    eprintln!("qemu-img got better ({case}): {better}");
}

fn qemu_replays(path: &Path) -> Ran {
    try_qemu_img(["check", "-r", "all", "-f", "vhdx", path.to_str().unwrap()])
}

fn qemu_reads(path: &Path, content: &Mirror) -> bool {
    let raw = path.with_extension("mirror");
    content.save(&raw);
    let same =
        try_qemu_img(["compare", "-f", "raw", "-F", "vhdx", raw.to_str().unwrap(), path.to_str().unwrap()]);
    std::fs::remove_file(raw).unwrap();
    same.ok()
}

/// What `qemu-img` makes of each, once it may write.
#[test]
fn replayed_by_qemu() {
    let folder = temp();
    for_all(
        &vhdx_log_cases(),
        |case| case.name.to_owned(),
        |case| {
            let path = folder.path().join(file_name(case));
            let content = case.build(&path);
            let ran = qemu_replays(&path);
            let right = ran.ok() && qemu_reads(&path, &content);
            match case.qemu {
                ByQemu::Right => assert!(right, "qemu-img: {}{}", ran.out, ran.err),
                ByQemu::Wrong if right || !ran.ok() => note(case.name, "it loses nothing silently"),
                ByQemu::Wrong => assert!(ran.out.contains("No errors"), "{}", ran.out),
                ByQemu::Refused if ran.ok() && !case.good => panic!("qemu-img replays it: {}", ran.out),
                ByQemu::Refused if ran.ok() => note(case.name, "it can be opened"),
                ByQemu::Refused => assert!(!ran.err.is_empty()),
            }
            if right {
                // What it left, everybody reads.
                content.assert_same(&vhdx_content(&path), "the judge, behind qemu-img");
                content.assert_disk(&cowhand::open(&path, &readable()).unwrap());
            }
        },
    );
}

/// A wrapped log: `qemu-img` replays what stands before the ring's end or behind it, and says "No errors".
#[test]
fn qemu_loses_what_a_wrapped_log_holds() {
    let folder = temp();
    let path = folder.path().join("wrapped.vhdx");
    let content = case("a wrapped ring").build(&path);
    content.assert_disk(&cowhand::open(&path, &readable()).unwrap());
    let ran = qemu_replays(&path);
    if !ran.ok() || qemu_reads(&path, &content) {
        return note("a wrapped ring", "it is replayed, or refused");
    }
    assert!(ran.out.contains("No errors were found"), "{}", ran.out);
    // And the log is gone: nobody can do better afterwards.
    let lost = std::panic::catch_unwind(|| vhdx_content(&path));
    assert!(lost.is_err() || !lost.unwrap().is_same(&content));
}

/// Reading a file with a pending log without writing to it: `qemu-img` cannot.
#[test]
fn qemu_reads_no_pending_log_without_writing() {
    let folder = temp();
    let path = folder.path().join("dirty.vhdx");
    let content = case("one entry").build(&path);
    let raw = folder.path().join("raw");
    let ran =
        try_qemu_img(["convert", "-f", "vhdx", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
    if ran.ok() {
        note("one entry", "it is read without writing");
    } else {
        assert!(ran.err.contains("log that needs to be replayed"), "{}", ran.err);
    }
    content.assert_disk(&cowhand::open(&path, &readable()).unwrap());
}

/// A damaged first region table: the second is as good, and `qemu-img` does not look at it.
#[test]
fn qemu_needs_the_first_region_table() {
    let folder = temp();
    let layouts: Vec<VhdxLayout> =
        vhdx_dynamic_layouts().into_iter().filter(|layout| layout.name == "first-table-bad").collect();
    let built = layouts[0].build(folder.path());
    let (path, content) = built.top();
    let ran = qemu_replays(path);
    if ran.ok() {
        note("first-table-bad", "the second table is used");
    }
    content.assert_disk(&cowhand::open(path, &Open::default()).unwrap());
}
